"""The vector verbs of jitgen.isa.sve and jitgen.isa.neon, one by one, executed under qemu-user.

Each test emits small programs with a few verbs and compares what they leave in memory with NumPy.
Buffers end or begin at an unmapped page, so an element too much that is read or written is a
fault. Not here: encodings (`test_rows`), scalar verbs (`test_a64_verbs`), verbs that only NEON does
in a way of its own (`test_neon_verbs`), kernels (`test_kernels`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from rig.job import Buffer, Job
from verbs import FLOATS, Check, kernel, need_qemu, numbers, open_machine, verify

from jitgen.isa import neon, sve
from jitgen.isa.a64 import A64Machine

#: 0 is NEON
LENGTHS = (0, 128, 256, 512, 2048)
#: what NEON needs for a tail of three
TAIL = 28
DTYPES = ("f32", "f64")

each_length = pytest.mark.parametrize("bits", LENGTHS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(autouse=True)
def _qemu() -> None:
    need_qemu()


# ---- loads and stores --------------------------------------------------------------------------


@each_length
@each_dtype
def test_load_and_store_reach_every_displacement(dtype: str, bits: int) -> None:
    """Whole vectors and tails, at displacements that fit the instructions and that do not."""
    machine = open_machine(dtype, bits)
    size, lanes, element = machine.vector_bits // 8, machine.lanes, machine.element
    checks = []
    displacements = [n * size for n in (0, 1, -1, 7, 8, -8, -9, 255, 256, -256, -257, 3000)]
    displacements += [255, 256, -256, -257, *(n * each for n in (4095, 4096) for each in (size, 4))]
    displacements += [element, -element, 3 * element, 70000 * element, -(2**20)]
    for disp in displacements:
        for width in {lanes, lanes - 1, 1}:
            data = numbers(dtype, width)

            def body(m: A64Machine, disp: int = disp, width: int = width) -> None:
                m.set_tail(width, TAIL)
                m.load_word(1, (0, 0))
                m.load_word(2, (0, 8))
                m.offset(1, 1, -disp)
                m.offset(2, 2, -disp)
                m.load(9, (2, disp), width)
                m.store(9, (1, disp), width)

            for place in ("start", "end"):
                out = Buffer(np.zeros_like(data), write=True, place=place)
                words = [out, Buffer(data, place=place)]
                code = kernel(dtype, bits, body)
                checks.append(Check(Job(code, words, f"{disp} {width} {place}"), [data]))
    verify(bits, checks)


@each_length
@each_dtype
def test_inactive_lanes_are_zero_and_untouched(dtype: str, bits: int) -> None:
    """A tail load gives zeros behind it; a tail store leaves memory behind it alone."""
    lanes = open_machine(dtype, bits).lanes
    checks = []
    for width in range(1, lanes):
        data = numbers(dtype, width)

        def body(m: A64Machine, width: int = width) -> None:
            m.set_tail(width, TAIL)
            m.load_word(1, (0, 0))
            m.load_word(2, (0, 8))
            m.load_word(3, (0, 16))
            m.load(31, (3, 0), width)
            m.store(31, (1, 0), m.lanes)
            m.store(31, (2, 0), width)

        whole = Buffer(np.ones(lanes, data.dtype), write=True)
        part = Buffer(np.ones(lanes, data.dtype), write=True)
        zeros, ones = np.zeros(lanes - width, data.dtype), np.ones(lanes - width, data.dtype)
        wanted = [np.concatenate([data, zeros]), np.concatenate([data, ones])]
        job = Job(kernel(dtype, bits, body), [whole, part, Buffer(data)], f"width {width}")
        checks.append(Check(job, wanted))
    verify(bits, checks)


@each_length
@each_dtype
def test_broadcast_reaches_every_displacement(dtype: str, bits: int) -> None:
    """Displacements within the field, beyond it, negative, and off its steps."""
    machine = open_machine(dtype, bits)
    data = numbers(dtype, 1)
    checks = []
    reach = machine.broadcast_reach
    for disp in (0, 4, reach, reach + machine.element, -machine.element, 2, 123456, 4096 * 9):

        def body(m: A64Machine, disp: int = disp) -> None:
            m.load_word(1, (0, 0))
            m.load_word(2, (0, 8))
            m.offset(2, 2, -disp)
            m.broadcast(4, (2, disp))
            m.store(4, (1, 0), m.lanes)

        wanted = np.repeat(data, machine.lanes)
        words = [Buffer(np.zeros_like(wanted), write=True), Buffer(data)]
        checks.append(Check(Job(kernel(dtype, bits, body), words, f"{disp}"), [wanted]))
    verify(bits, checks)


@each_length
def test_far_addresses_share_the_scratch_register(bits: int) -> None:
    """Neighbours of a far address cost nothing more; a moved base or a label ends that."""
    machine = open_machine("f32", bits)
    lanes, size = machine.lanes, machine.vector_bits // 8
    far = (300 if bits else 5000) * size
    data = numbers("f32", 12 * lanes)

    def body(m: A64Machine) -> None:
        m.load_word(1, (0, 0))
        m.load_word(2, (0, 8))
        m.offset(2, 2, -far)
        emitted = len(m.program.records)
        m.load(0, (2, far), lanes)
        first = len(m.program.records) - emitted
        for i in range(1, 8):
            m.load(i, (2, far + i * size), lanes)
        assert len(m.program.records) == emitted + first + 7
        m.advance(2, size)
        m.load(8, (2, far + 7 * size), lanes)
        label = m.program.new_label()
        m.set(3, 2)
        m.place(label)  # runs twice, with the base moved on
        m.load(9, (2, far + 8 * size), lanes)
        m.advance(2, size)
        m.count_down(3, label)
        m.load_word(2, (0, 8))
        m.load(10, (2, 10 * size), lanes)
        for i in range(11):
            m.store(i, (1, i * size), lanes)

    parts = data.reshape(12, lanes)
    wanted = np.concatenate([parts[:9], parts[10:11], parts[10:11]]).ravel()
    words = [Buffer(np.zeros_like(wanted), write=True), Buffer(data)]
    verify(bits, [Check(Job(kernel("f32", bits, body), words, "far"), [wanted])])


# ---- arithmetic ---------------------------------------------------------------------------------


def _bits(x: np.ndarray) -> np.ndarray:
    return x.view(np.uint32 if x.dtype == np.float32 else np.uint64)


BINARY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "and_": lambda a, b: (_bits(a) & _bits(b)).view(a.dtype),
    "or_": lambda a, b: (_bits(a) | _bits(b)).view(a.dtype),
}
#: exact for the small integers they are tried with
TERNARY: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "fma": lambda d, a, b: d + a * b,
    "fnma": lambda d, a, b: d - a * b,
    "fmad": lambda d, a, b: d * a + b,
}
#: which of d, a and b are the same register
ALIASES = ((3, 4, 5), (3, 3, 5), (3, 4, 3), (3, 4, 4), (3, 3, 3))


def _operation(
    dtype: str, bits: int, data: np.ndarray, verb: str, operands: tuple[int | float, ...],
    wanted: np.ndarray,
) -> Check:  # fmt: skip
    """Load registers 3, 4 and 5, apply a verb, store its first operand; a float is a constant."""

    def body(m: A64Machine) -> None:
        m.use_constants(7)
        m.constant_temps = (29, 30)
        m.load_word(1, (0, 0))
        m.load_word(2, (0, 8))
        for i, row in enumerate(data):
            m.load(3 + i, (2, i * m.vector_bits // 8), len(row))
        values = [m.const(each) if isinstance(each, float) else each for each in operands]
        getattr(m, verb)(*values)
        m.store(int(operands[0]), (1, 0), m.lanes)

    out = Buffer(np.zeros_like(wanted), write=True)
    job = Job(kernel(dtype, bits, body), [out, Buffer(data.ravel())], f"{verb} {operands}")
    return Check(job, [wanted])


@each_length
@each_dtype
def test_arithmetic(dtype: str, bits: int) -> None:
    """Every operation with every aliasing of its registers, and with a constant."""
    lanes = open_machine(dtype, bits).lanes
    generator = np.random.default_rng(5)
    real = generator.standard_normal((3, lanes)).astype(FLOATS[dtype])
    whole = generator.integers(-9, 9, (3, lanes)).astype(FLOATS[dtype])
    constant = np.full(lanes, 2.5, FLOATS[dtype])
    checks = []
    for name in (*BINARY, *TERNARY):
        data = real if name in BINARY else whole
        for registers in (*ALIASES, (3, 4, 2.5), (3, 3, 2.5)):
            d, a, b = (constant if r == 2.5 else data[int(r) - 3] for r in registers)
            wanted = BINARY[name](a, b) if name in BINARY else TERNARY[name](d, a, b)
            checks.append(_operation(dtype, bits, data, name, registers, wanted))
    whole_register = _operation(dtype, bits, whole, "mac", (3, 4, 5, lanes), whole[0])
    whole_register.wanted = [whole[0] + whole[1] * whole[2]]
    verify(bits, [*checks, whole_register])


@each_length
@each_dtype
def test_special_values(dtype: str, bits: int) -> None:
    """max and min hand on a NaN from either side; a selection goes by the sign bit alone."""
    lanes = open_machine(dtype, bits).lanes
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -1.5], FLOATS[dtype])
    rows = [np.resize(np.roll(special, shift), lanes) for shift in (0, 1, 4)]
    data = np.stack(rows)
    checks = []
    for name in ("max", "min"):
        for d, a, b in ALIASES:
            wanted = BINARY[name](data[a - 3], data[b - 3])
            check = _operation(dtype, bits, data, name, (d, a, b), wanted)
            check.exact = False
            checks.append(check)
    for d in (3, 4, 5):
        wanted = np.where(np.signbit(data[0]), data[1], data[2])
        operands = (d, 3, 4, 5)
        checks.append(_operation(dtype, bits, data, "select_negative", operands, wanted))
    plain = numbers(dtype, 3 * lanes).reshape(3, lanes)
    for shift in (0, 1, 8 * data.itemsize - 1):
        wanted = (_bits(plain[1]) << _bits(plain[1]).dtype.type(shift)).view(plain.dtype)
        checks.append(_operation(dtype, bits, plain, "shift_left", (3, 4, shift), wanted))
    checks.append(_operation(dtype, bits, data, "zero", (3,), np.zeros_like(data[0])))
    verify(bits, checks)


@each_length
@each_dtype
def test_many_constants(dtype: str, bits: int) -> None:
    """More constants than a broadcast reaches; equal ones share a place."""
    values = [float(i) for i in range(150)]

    def body(m: A64Machine) -> None:
        m.use_constants(7)
        m.constant_temps = (30,)
        m.zero(3)
        for value in (*values, *values):
            m.add(3, 3, m.const(value))
        m.load_word(1, (0, 0))
        m.store(3, (1, 0), m.lanes)

    code = kernel(dtype, bits, body)
    wanted = np.full(open_machine(dtype, bits).lanes, 2 * sum(values), FLOATS[dtype])
    verify(bits, [Check(Job(code, [Buffer(np.zeros_like(wanted), write=True)]), [wanted])])


@each_length
@each_dtype
def test_positive_bits(dtype: str, bits: int) -> None:
    """One bit a lane for every width, whatever lies behind it; zeros and NaN are not positive."""
    lanes = open_machine(dtype, bits).lanes
    mixed = numbers(dtype, lanes)
    mixed[1::7] = np.nan
    mixed[2::5] = 0.0
    checks = []
    for width in range(1, lanes + 1):

        def body(m: A64Machine, width: int = width) -> None:
            m.set_tail(width, TAIL)
            m.load_word(1, (0, 0))
            m.load_word(2, (0, 8))
            m.load(6, (2, 0), m.lanes)
            m.positive_bits(5, 6, width, (7, 8))
            m.store_bits(5, (1, 0), 8)

        for data in (mixed, np.abs(numbers(dtype, lanes))):
            wanted = np.array([sum(1 << i for i in range(width) if data[i] > 0)], np.uint64)
            words = [Buffer(np.zeros(1, np.uint64), write=True), Buffer(data)]
            checks.append(Check(Job(kernel(dtype, bits, body), words, f"width {width}"), [wanted]))
    verify(bits, checks)


@pytest.mark.parametrize("bits", [0, 64, 192 + 1, 2048 + 128])
def test_lengths_that_do_not_exist(bits: int) -> None:
    """A vector length that SVE has not is refused, and so is one that NEON has not."""
    with pytest.raises(ValueError, match=f"vector_bits={bits}: SVE"):
        sve.open_machine("f32", bits)
    if bits:
        with pytest.raises(ValueError, match=f"vector_bits={bits}: NEON"):
            neon.open_machine("f32", bits)
