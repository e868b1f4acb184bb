"""Units with ku > 1: a pretend element type of 16-bit integer pairs runs through the one generator.

AVX2's vpmaddwd multiplies pairs of 16-bit integers and adds them into 32 bits, which is a unit
with ku = 2. Two rows and three verbs make a machine of it; spec, plan and generator are the
project's own. That is all that bf16 pairs and int8 quads would need. Not here: a supported integer
type.
"""

from __future__ import annotations

import needs
import numpy as np
import pytest
from rig import native
from rig.job import Buffer, Job

import jitgen
from jitgen.gemm import generator, spec
from jitgen.gemm.plan import make_plan
from jitgen.isa.avx2 import FORMS, Avx2Machine
from jitgen.isa.machine import At
from jitgen.isa.x86_rows import parse_table
from jitgen.target import AVX2
from jitgen.types import DTYPES, DType

ROWS = parse_table("""
vpmaddwd | ymm ymm ymm/m256 | VEX.256.66.0F.WIG F5 /r | avx2
vpaddd   | ymm ymm ymm/m256 | VEX.256.66.0F.WIG FE /r | avx2
""")

#: 32-bit accumulators are as wide as f32's, and nothing here looks at more
PAIRS = DType("s16", "signed", 2, 16, 0, "f32", "", "int16", "short", ku=2)


class PairMachine(Avx2Machine):
    """32-bit accumulators, units of two 16-bit integers; the last register is the products'."""

    table = {**FORMS, **ROWS}
    vectors = 15
    fused_load = False

    def mac(self, acc: int, a: int, b: int, lanes: int) -> None:
        self._vector("vpmaddwd", 15, a, b)
        self._vector("vpaddd", acc, acc, 15)

    def mac_load(self, acc: int, a: int, at: At, lanes: int) -> None:
        raise AssertionError("fused_load is off")

    def add(self, d: int, a: int, b: int | tuple[int, None, int, int]) -> None:
        self._vector("vpaddd", d, a, b)


def interleave(b: np.ndarray, ku: int) -> np.ndarray:
    """(count, k, n) -> (count, k / ku, n, ku)."""
    count, k, n = b.shape
    return np.ascontiguousarray(b.reshape(count, k // ku, ku, n).swapaxes(2, 3))


@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 2), (5, 7, 6), (13, 16, 64), (6, 29, 34), (64, 40, 66)])
def test_pairs(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], trans_b: bool) -> None:
    needs.need(jitgen.targets()["avx2"] or native.available(), installable=False)
    monkeypatch.setitem(DTYPES, "s16", PAIRS)
    m, n, k = shape
    jobs, wanted = [], []
    for count in (0, 1, 5):
        for lda in (k, k + 3):
            kernel_spec = spec.make_spec(m, n, k, "s16", lda=lda, trans_b=trans_b)
            machine = PairMachine("f32")
            facts = AVX2.facts(machine)
            generator.emit(kernel_spec, make_plan(kernel_spec, facts), facts, machine)
            rng = np.random.default_rng(count)
            a = rng.integers(-99, 99, (count, m, lda), np.int16)
            b = rng.integers(-99, 99, (count, k, n), np.int16)
            stored = np.ascontiguousarray(b.swapaxes(1, 2)) if trans_b else interleave(b, 2)
            flat = a.reshape(-1)[: a.size - (lda - k)] if count else a
            c = Buffer(np.full((m, n), -1, np.int32), write=True)
            words = [Buffer(flat), Buffer(stored), c, count, *[0] * 6]
            jobs.append(Job(machine.program.encode(), words, f"{shape} count={count} lda={lda}"))
            wanted.append(np.einsum("imk,ikn->mn", a[:, :, :k].astype(int), b.astype(int)))
    for job, result, want in zip(jobs, native.run(jobs, isa="avx2"), wanted, strict=True):
        assert result.ok, f"{job.label}: {result.error}"
        assert np.array_equal(result.outputs[0], want), job.label


def test_odd_reduction_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DTYPES, "s16", PAIRS)
    with pytest.raises(ValueError, match=r"k=7.*multiple of 2"):
        spec.make_spec(4, 4, 7, "s16")
    with pytest.raises(ValueError, match="trans_a=True"):
        spec.make_spec(4, 4, 8, "s16", trans_a=True)
