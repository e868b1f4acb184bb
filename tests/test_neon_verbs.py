"""What jitgen.isa.neon does in a way of its own, executed under qemu-user on a CPU without SVE:
units that are not broadcast, selections, bits, squares, tails of three.

Not here: verbs that are tried like those of SVE (`test_sve_verbs`), verbs across lanes
(`test_lane_verbs`), encodings (`test_rows`), kernels (`test_kernels`).
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from rig import qemu
from rig.job import Buffer, Job
from verbs import FLOATS, PLAIN, Check, kernel, need_qemu, numbers, verify

import jitgen
from jitgen.isa.neon import NeonMachine, open_machine

each_dtype = pytest.mark.parametrize("dtype", ["f32", "f64"])
SIZE = 16
TEMP = 29


@pytest.fixture(autouse=True)
def _qemu() -> None:
    need_qemu()


def _pointers(m: NeonMachine, count: int) -> None:
    for i in range(count):
        m.load_word(1 + i, (0, 8 * i))


@each_dtype
def test_units_reach_every_displacement(dtype: str) -> None:
    """A factor of multiply-accumulates: within the field, beyond it, negative, off its steps;
    whatever the register held before, and in any register."""
    machine = open_machine(dtype)
    unit = np.full(1, -3, FLOATS[dtype])
    factors = np.arange(1, machine.lanes + 1).astype(FLOATS[dtype])
    wanted = 100 * factors - 3 * factors
    reach = machine.broadcast_reach
    checks = []
    for a, disp in itertools.product(
        (0, 15, 16, 31), (0, 4, reach, reach + machine.element, -machine.element, 2, 123456)
    ):

        def body(m: NeonMachine, a: int = a, disp: int = disp) -> None:
            _pointers(m, 4)
            m.offset(2, 2, -disp)
            m.broadcast(a, (4, 0))
            m.load_unit(a, (2, disp))
            m.load(5, (3, 0), m.lanes)
            m.load(6, (4, 0), m.lanes)
            m.mac_unit(6, a, 5, m.lanes)
            m.store(6, (1, 0), m.lanes)

        out = Buffer(np.zeros_like(wanted), write=True)
        words = [out, Buffer(unit, place="end"), Buffer(factors), Buffer(100 * factors)]
        checks.append(Check(Job(kernel(dtype, 0, body), words, f"v{a} {disp}"), [wanted]))
    verify(0, checks)


@each_dtype
def test_a_selection_may_overwrite_what_it_reads(dtype: str) -> None:
    """The greater one and NaN, and by the sign bit: every register that may be the result."""
    lanes = open_machine(dtype).lanes
    x = np.resize(np.array([1, np.nan, -0.0, np.inf], FLOATS[dtype]), lanes)
    checks = []
    for shift in range(4):
        y = np.roll(np.array([1, 0.0, 2, np.nan], FLOATS[dtype]), shift)[:lanes]
        a, b = numbers(dtype, 2 * lanes).reshape(2, lanes)
        for verb, condition, results in (
            ("select_greater", x > y, (3, 4, 7)), ("select_negative", np.signbit(x), (3, 5, 6, 7)),
        ):  # fmt: skip
            for d in results:

                def body(m: NeonMachine, verb: str = verb, d: int = d) -> None:
                    m.constant_temps = (TEMP,)
                    _pointers(m, 2)
                    for i in range(4):
                        m.load(3 + i, (2, SIZE * i), m.lanes)
                    read = (3, 4, 5, 6) if verb == "select_greater" else (3, 5, 6)
                    getattr(m, verb)(d, *read)
                    m.store(d, (1, 0), m.lanes)

                wanted = np.where(condition, a, b)
                data = Buffer(np.concatenate([x, y, a, b]))
                words = [Buffer(np.zeros_like(wanted), write=True), data]
                checks.append(Check(Job(kernel(dtype, 0, body), words, f"{verb} {d}"), [wanted]))
    verify(0, checks)


@each_dtype
def test_spread_bits(dtype: str) -> None:
    """Bit after bit, from every position, to the sign bits of the lanes; the register stays."""
    machine = open_machine(dtype)
    bits = 0x9E3779B97F4A7C15
    checks = []
    for position in range(65 - machine.lanes):

        def body(m: NeonMachine, position: int = position) -> None:
            m.use_constants(7)
            m.constant_temps = (TEMP,)
            _pointers(m, 2)
            m.load_word(5, (2, 0))
            m.spread_bits(9, 5, position, (10, 11))
            m.zero(12)
            m.load_const(13, m.const(1.0))
            m.select_negative(9, 9, 13, 12)
            m.store(9, (1, 0), m.lanes)
            m.store_word(5, (1, SIZE))

        ones = [float(bits >> position + i & 1) for i in range(machine.lanes)]
        wanted = np.array(ones, FLOATS[dtype]).tobytes() + bits.to_bytes(8, "little")
        out = Buffer(np.zeros(len(wanted), np.uint8), write=True)
        words = [out, Buffer(np.array([bits], np.uint64))]
        expected = [np.frombuffer(wanted, np.uint8)]
        checks.append(Check(Job(kernel(dtype, 0, body), words, f"from {position}"), expected))
    verify(0, checks)


@each_dtype
def test_transpose(dtype: str) -> None:
    """Squares, with rows near and far apart; what lies between them stays."""
    (side,) = open_machine(dtype).transpose_squares
    checks = []
    for source_row, to_row in ((side, side), (side + 1, side), (side, 7), (5000, 9001)):
        data = np.random.default_rng(3).standard_normal((side, source_row)).astype(FLOATS[dtype])
        wanted = np.full((side, to_row), 7, FLOATS[dtype])
        before = wanted.copy()
        wanted[:, :side] = data[:, :side].T

        def body(m: NeonMachine, source_row: int = source_row, to_row: int = to_row) -> None:
            _pointers(m, 2)
            m.transpose(side, (1, 0), to_row * m.element, (2, 0), source_row * m.element)

        words = [Buffer(before, write=True), Buffer(data)]
        checks.append(Check(Job(kernel(dtype, 0, body), words, f"{source_row}"), [wanted]))
    verify(0, checks)


@each_dtype
def test_square_root_and_shifts(dtype: str) -> None:
    """The root of every kind of number; shifts by every distance to either side."""
    lanes = open_machine(dtype).lanes
    kind = np.uint32 if dtype == "f32" else np.uint64
    data = numbers(dtype, lanes)
    checks = []
    for bits in range(1, 8 * data.itemsize):

        def body(m: NeonMachine, bits: int = bits) -> None:
            _pointers(m, 2)
            m.load(3, (2, 0), m.lanes)
            m.shift_left(4, 3, bits)
            m.shift_down(5, 3, bits)
            m.store(4, (1, 0), m.lanes)
            m.store(5, (1, SIZE), m.lanes)

        values = data.view(kind)
        wanted = np.concatenate([values << kind(bits), values >> kind(bits)]).view(data.dtype)
        words = [Buffer(np.zeros_like(wanted), write=True), Buffer(data)]
        checks.append(Check(Job(kernel(dtype, 0, body), words, f"{bits} bits"), [wanted]))
    for value in (4.0, 2.0, 0.0, -0.0, np.inf, float(np.finfo(data.dtype).tiny) / 4):

        def root(m: NeonMachine) -> None:
            _pointers(m, 2)
            m.load(3, (2, 0), m.lanes)
            m.sqrt(4, 3)
            m.store(4, (1, 0), m.lanes)

        some = np.full(lanes, value, data.dtype)
        words = [Buffer(np.zeros_like(some), write=True), Buffer(some)]
        checks.append(Check(Job(kernel(dtype, 0, root), words, f"of {value}"), [np.sqrt(some)]))
    verify(0, checks)


def test_a_vector_with_a_tail_of_three_lies_over_the_one_before_it() -> None:
    """So that nothing is moved in pieces; a narrower tile and the bits of a mask have a tail."""

    def pieces(n: int, *epilogue: str) -> bool:
        code = jitgen.brgemm(4, n, 8, target="neon", epilogue=epilogue)
        return "mov v.d[1] v.d[0]" in {form.signature for form, _ in code.program.records}

    assert not pieces(15) and not pieces(7)
    assert pieces(3) and pieces(15, "relu_mask")


def test_the_cpu_of_these_tests_has_no_sve() -> None:
    """Code for SVE is an illegal instruction there."""
    code = jitgen.brgemm(1, 1, 1, target="sve128").code
    (result,) = qemu.run([Job(code, [])], 0, PLAIN)
    assert "SIGILL" in str(result.error)
