"""The verbs that go across the lanes of a vector, and the shift to the right, on every instruction
set: each alone, executed and compared with NumPy. Buffers end at an unmapped page.

Not here: encodings (`test_rows`), other verbs (`test_sve_verbs`, `test_kernels`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from rig.job import Buffer, Job
from tiers import TIERS, Tier, need
from verbs import FLOATS

from jitgen import isa
from jitgen.isa.machine import Machine

#: (tier, family, bits of a vector)
MACHINES = [
    ("avx2 native", "avx2", 256),
    *[(f"avx512 {where}", "avx512", bits) for where in ("native", "bochs")
      for bits in (128, 256, 512)],
    *[(f"sve{bits} qemu", "sve", bits) for bits in (128, 256, 384, 512, 2048)],
    ("neon qemu", "neon", 128),
]  # fmt: skip
Array = np.ndarray
each_machine = pytest.mark.parametrize(("tier", "family", "bits"), MACHINES)
each_dtype = pytest.mark.parametrize("dtype", ["f32", "f64"])


class Bench:
    """Programs of one machine, and what they must leave in memory."""

    def __init__(self, tier: str, family: str, bits: int, dtype: str) -> None:
        self.tier: Tier = TIERS[tier]
        need(self.tier)
        self.family, self.bits, self.dtype = family, bits, dtype
        self.lanes = self.open().lanes
        self.jobs: list[Job] = []
        self.wanted: list[Array] = []

    def open(self) -> Machine:
        return isa.open_machine(self.family, self.dtype, self.bits, self.dtype)

    def add(
        self, rows: Array, body: Callable[[Machine], None], wanted: Array, result: int = 0,
        tail: int = 0,
    ) -> None:  # fmt: skip
        """`body` with the rows in registers 0, 1 ..., its result in a register or, where `wanted`
        is one element, stored by it to where register `gprs[1]` points."""
        m = self.open()
        to, source, constants = m.gprs[1:4]
        m.begin(m.gprs[:4])
        m.use_constants(constants)
        m.constant_temps = (m.vectors - 2,)
        m.load_word(source, (m.argument, 8))
        m.load_word(to, (m.argument, 0))
        if tail:
            m.set_tail(tail, m.vectors - 1)
        for i in range(len(rows)):
            m.load(i, (source, i * rows[i].nbytes), m.lanes)
        body(m)
        if wanted.size > 1:
            m.store(result, (to, 0), m.lanes)
        m.end()
        words = [Buffer(np.full_like(wanted, np.nan), write=True), Buffer(rows.ravel())]
        self.jobs.append(Job(m.program.encode(), words, f"{len(self.jobs)}"))
        self.wanted.append(wanted)

    def run(self) -> list[tuple[Array, Array]]:
        """What there is in memory, and what should be."""
        results = self.tier.run(self.jobs, isa=self.tier.target)
        for result in results:
            assert result.ok, result.error
        return [(r.outputs[0], w) for r, w in zip(results, self.wanted, strict=True)]

    def numbers(self, *shape: int) -> Array:
        generator = np.random.default_rng(3)
        return generator.standard_normal((*shape, self.lanes)).astype(FLOATS[self.dtype])


@each_machine
@each_dtype
def test_sum_of_all_lanes_in_every_lane(tier: str, family: str, bits: int, dtype: str) -> None:
    """Exact for whole numbers; otherwise within a rounding for each halving. In place or not."""
    bench = Bench(tier, family, bits, dtype)
    whole = np.arange(1, 1 + bench.lanes)[np.newaxis].astype(FLOATS[dtype])
    real = bench.numbers(1)
    each_lane = np.eye(bench.lanes, dtype=FLOATS[dtype])[:, np.newaxis] * 7
    for rows in (whole, real, *each_lane):
        for d in (0, 5):
            wanted = np.full(bench.lanes, rows.sum(dtype=np.float64), FLOATS[dtype])
            bench.add(rows, lambda m, d=d: m.sum_lanes(d, 0, 6), wanted, d)
    for i, (got, wanted) in enumerate(bench.run()):
        assert (got == got[0]).all()
        slack = 0.0 if i // 2 != 1 else 8 * np.finfo(got.dtype).eps * np.abs(real).sum()
        assert (np.abs(got - wanted) <= slack).all(), (i, got, wanted)


@each_machine
@each_dtype
def test_greatest_lane_in_every_lane(tier: str, family: str, bits: int, dtype: str) -> None:
    """Wherever it is, negative or infinite."""
    bench = Bench(tier, family, bits, dtype)
    real = bench.numbers(1)
    for at in range(bench.lanes):
        for top in (9.0, np.inf):
            rows = np.roll(real, at, 1)
            rows[0, at] = top
            wanted = np.full(bench.lanes, top, real.dtype)
            bench.add(rows, lambda m: m.max_lanes(5, 0, 6), wanted, 5)
    negative = -1 - np.abs(real)
    for rows in (negative, np.full_like(real, -np.inf)):
        wanted = np.full(bench.lanes, rows.max(), real.dtype)
        bench.add(rows, lambda m: m.max_lanes(0, 0, 6), wanted)
    for got, wanted in bench.run():
        np.testing.assert_array_equal(got, wanted)


@each_machine
@each_dtype
def test_first_lanes_of_one_and_others_of_another(
    tier: str, family: str, bits: int, dtype: str
) -> None:
    """Every number of lanes, in every aliasing of registers."""
    bench = Bench(tier, family, bits, dtype)
    rows = bench.numbers(2)
    widths = range(1, bench.lanes) if bench.lanes <= 16 else (1, 8, 16, bench.lanes - 1)
    for lanes in widths:
        for d in (0, 1, 5):
            wanted = np.where(np.arange(bench.lanes) < lanes, *rows)
            bench.add(
                rows, lambda m, d=d, lanes=lanes: m.select_first(d, 0, 1, lanes), wanted, d, lanes
            )
    for got, wanted in bench.run():
        np.testing.assert_array_equal(got, wanted)


@each_machine
@each_dtype
def test_shift_down(tier: str, family: str, bits: int, dtype: str) -> None:
    """Zeros come in from the left, in place or not."""
    bench = Bench(tier, family, bits, dtype)
    rows = bench.numbers(1)
    unsigned = np.dtype(f"u{rows.itemsize}")
    for shift in (1, 23, 8 * rows.itemsize - 1):
        for d in (0, 5):
            wanted = (rows[0].view(unsigned) >> unsigned.type(shift)).view(rows.dtype)
            bench.add(rows, lambda m, d=d, s=shift: m.shift_down(d, 0, s), wanted, d)
    for got, wanted in bench.run():
        assert got.tobytes() == wanted.tobytes()


@each_machine
@each_dtype
def test_store_first(tier: str, family: str, bits: int, dtype: str) -> None:
    """One element, at any displacement: the buffer has no room for a second one."""
    bench = Bench(tier, family, bits, dtype)
    rows = bench.numbers(1)
    for disp in (0, rows.itemsize, -rows.itemsize, 4095 * rows.itemsize, 1 << 20, 2):

        def body(m: Machine, disp: int = disp) -> None:
            m.offset(m.gprs[1], m.gprs[1], -disp)
            m.store_first(0, (m.gprs[1], disp))

        bench.add(rows, body, rows[0, :1])
    for got, wanted in bench.run():
        np.testing.assert_array_equal(got, wanted)
