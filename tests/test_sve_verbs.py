"""The verbs of isa.sve and isa.a64, one by one, executed under qemu-user.

Each test emits small programs with a few verbs and compares what they leave in memory with NumPy
or with Python integers. Buffers end or begin at an unmapped page, so an element too much that is
read or written is a fault. Not here: encodings (`test_rows`) and kernels (`test_kernels`).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from rig import qemu
from rig.job import Buffer, Job

from isa.a64 import FORMS, flush_icache_code
from isa.a64_rows import SP
from isa.program import Program
from isa.sve import SveMachine, open_machine

LENGTHS = (128, 256, 512, 2048)
DTYPES = ("f32", "f64")
INTEGERS = {"f32": np.uint32, "f64": np.uint64}
FLOATS = {"f32": np.float32, "f64": np.float64}
Body = Callable[[SveMachine], None]

each_length = pytest.mark.parametrize("bits", LENGTHS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(autouse=True)
def _qemu() -> None:
    reason = qemu.available()
    if reason is None:
        return
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass
class Check:
    """A job and what its writable buffers must hold afterwards, byte for byte."""

    job: Job
    wanted: list[np.ndarray]


def kernel(dtype: str, bits: int, body: Body, stack: int = 0) -> bytes:
    """A function made of `body`, with every general-purpose register saved."""
    machine = open_machine(dtype, bits)
    machine.begin(machine.gprs, stack)
    body(machine)
    machine.end()
    return machine.program.encode()


def verify(bits: int, checks: list[Check]) -> None:
    """Run the checks in one emulator at a vector length."""
    assert checks
    results = qemu.run([check.job for check in checks], bits)
    for check, result in zip(checks, results, strict=True):
        assert result.ok, f"{check.job.label}: {result.error}"
        for got, wanted in zip(result.outputs, check.wanted, strict=True):
            assert got.tobytes() == wanted.tobytes(), f"{check.job.label}: {got}, not {wanted}"


def numbers(dtype: str, count: int, seed: int = 1) -> np.ndarray:
    """Random numbers of both signs."""
    return np.random.default_rng(seed).standard_normal(count).astype(FLOATS[dtype])


# ---- loads and stores --------------------------------------------------------------------------


@each_length
@each_dtype
def test_load_and_store_reach_every_displacement(dtype: str, bits: int) -> None:
    """Whole vectors and tails, at displacements that fit the instructions and that do not."""
    machine = open_machine(dtype, bits)
    size, lanes, element = machine.bytes, machine.lanes, machine.element
    checks = []
    displacements = [n * size for n in (0, 1, -1, 7, 8, -8, -9, 255, 256, -256, -257, 3000)]
    displacements += [element, -element, 3 * element, 70000 * element, -(2**20)]
    for disp in displacements:
        for width in {lanes, lanes - 1, 1}:
            data = numbers(dtype, width)

            def body(m: SveMachine, disp: int = disp, width: int = width) -> None:
                m.set_tail(width, -1)
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

        def body(m: SveMachine, width: int = width) -> None:
            m.set_tail(width, -1)
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

        def body(m: SveMachine, disp: int = disp) -> None:
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
    lanes, size = machine.lanes, machine.bytes
    far = 300 * size
    data = numbers("f32", 12 * lanes)

    def body(m: SveMachine) -> None:
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


def _shifted(x: np.ndarray) -> np.ndarray:
    bits = _bits(x)
    return (bits << bits.dtype.type(5)).view(x.dtype)


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
    "mac": lambda d, a, b: d + a * b,
}
#: which of d, a and b are the same register
ALIASES = ((3, 4, 5), (3, 3, 5), (3, 4, 3), (3, 4, 4), (3, 3, 3))


def _operation(dtype: str, bits: int, data: np.ndarray, emit: Body, wanted: np.ndarray) -> Check:
    """Load registers 3, 4 and 5, emit, and store register 3."""
    lanes = len(data[0])

    def body(m: SveMachine) -> None:
        m.use_constants(7)
        m.constant_temps = (30, 29)
        m.load_word(1, (0, 0))
        m.load_word(2, (0, 8))
        for i in range(3):
            m.load(3 + i, (2, i * m.bytes), lanes)
        emit(m)
        m.store(3, (1, 0), lanes)

    out = Buffer(np.zeros(lanes, data.dtype), write=True)
    return Check(Job(kernel(dtype, bits, body), [out, Buffer(data.ravel())]), [wanted])


def _labelled(check: Check, label: str) -> Check:
    check.job.label = label
    return check


@each_length
@each_dtype
def test_arithmetic(dtype: str, bits: int) -> None:
    """Every operation with every aliasing of its registers, and with a constant."""
    lanes = open_machine(dtype, bits).lanes
    generator = np.random.default_rng(5)
    real = generator.standard_normal((3, lanes)).astype(FLOATS[dtype])
    whole = generator.integers(-9, 9, (3, lanes)).astype(FLOATS[dtype])
    checks = []
    for name in (*BINARY, *TERNARY):
        data = real if name in BINARY else whole
        for d, a, b in ALIASES:
            values = [data[r - 3] for r in (d, a, b)]

            def emit(m: SveMachine, name: str = name, d: int = d, a: int = a, b: int = b) -> None:
                if name == "mac":
                    m.mac(d, a, b, lanes)
                else:
                    getattr(m, name)(d, a, b)

            wanted = BINARY[name](*values[1:]) if name in BINARY else TERNARY[name](*values)
            check = _operation(dtype, bits, data, emit, wanted)
            checks.append(_labelled(check, f"{name} {d} {a} {b}"))
        if name == "mac":
            continue
        for d, a in ((3, 4), (3, 3)):
            values = [data[d - 3], data[a - 3], np.full(lanes, 2.5, data.dtype)]

            def constant(m: SveMachine, name: str = name, d: int = d, a: int = a) -> None:
                getattr(m, name)(d, a, m.const(2.5))

            wanted = BINARY[name](*values[1:]) if name in BINARY else TERNARY[name](*values)
            check = _operation(dtype, bits, data, constant, wanted)
            checks.append(_labelled(check, f"{name} {d} {a} constant"))
    verify(bits, checks)


@each_length
@each_dtype
def test_special_values(dtype: str, bits: int) -> None:
    """max and min hand on a NaN from either side; a selection goes by the sign bit alone."""
    lanes = open_machine(dtype, bits).lanes
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -1.5], FLOATS[dtype])
    data = np.stack([np.resize(special, lanes), np.resize(np.roll(special, 3), lanes)] * 2)[:3]
    checks = []
    for name in ("max", "min"):
        for swap in (False, True):
            a, b = (4, 5) if swap else (5, 4)

            def clip(m: SveMachine, name: str = name, a: int = a, b: int = b) -> None:
                getattr(m, name)(3, a, b)
                m.or_(3, 3, m.const(0.0))  # the same bits

            def nan_of(m: SveMachine, name: str = name, a: int = a, b: int = b) -> None:
                getattr(m, name)(3, a, b)
                m.sub(3, 3, 3)
                m.max(3, 3, m.const(0.0))

            x, y = data[a - 3], data[b - 3]
            both = np.isnan(x) | np.isnan(y)
            with np.errstate(invalid="ignore"):
                least = BINARY[name](x, y)
                difference = np.maximum(least - least, FLOATS[dtype](0))
            assert (np.isnan(least) == both).all()
            got = np.where(np.isnan(difference), np.nan, difference).astype(data.dtype)
            quiet = np.isnan(got)
            checks.append(_labelled(_as_flags(dtype, bits, data, nan_of, quiet), f"{name} NaN"))

    def select(m: SveMachine) -> None:
        m.select_negative(3, 3, 4, 5)

    wanted = np.where(np.signbit(data[0]), data[1], data[2])
    checks.append(_labelled(_operation(dtype, bits, data, select, wanted), "select_negative"))

    def shift(m: SveMachine) -> None:
        m.shift_left(3, 4, 5)

    plain = numbers(dtype, 3 * lanes).reshape(3, lanes)
    checks.append(_labelled(_operation(dtype, bits, plain, shift, _shifted(plain[1])), "shift"))

    def zero(m: SveMachine) -> None:
        m.zero(3)

    checks.append(_labelled(_operation(dtype, bits, data, zero, np.zeros_like(data[0])), "zero"))
    verify(bits, checks)


def _as_flags(dtype: str, bits: int, data: np.ndarray, emit: Body, nans: np.ndarray) -> Check:
    """Like `_operation`, but the result is only whether each lane is NaN: all ones or all zeros."""

    def emit_flags(m: SveMachine) -> None:
        emit(m)
        exponent = 0x7F800000 if dtype == "f32" else 0x7FF << 52
        # NaN | infinity is a NaN; its bits below the sign, less infinity's, are not zero
        m.and_(3, 3, m.const_bits((1 << 8 * m.element - 1) - 1))
        m.load_const(4, m.const_bits(exponent))
        m.max(4, 4, m.const(0.0))
        m.sub(3, 3, 3)
        m.and_(3, 3, m.const_bits(exponent))

    wanted = np.where(nans, INTEGERS[dtype](0x7F800000 if dtype == "f32" else 0x7FF << 52), 0)
    return _operation(dtype, bits, data, emit_flags, wanted.astype(INTEGERS[dtype]))


@each_length
@each_dtype
def test_many_constants(dtype: str, bits: int) -> None:
    """More constants than a broadcast reaches; equal ones share a place."""
    lanes = open_machine(dtype, bits).lanes
    data = np.zeros((3, lanes), FLOATS[dtype])
    values = [float(i) for i in range(150)]

    def emit(m: SveMachine) -> None:
        for value in (*values, *values):
            m.add(3, 3, m.const(value))

    wanted = np.full(lanes, 2 * sum(values), data.dtype)
    verify(bits, [_operation(dtype, bits, data, emit, wanted)])


@each_length
@each_dtype
def test_positive_bits(dtype: str, bits: int) -> None:
    """One bit a lane for every width, whatever lies behind it; zeros and NaN are not positive."""
    lanes = open_machine(dtype, bits).lanes
    data = numbers(dtype, lanes)
    data[1::7] = np.nan
    data[2::5] = 0.0
    checks = []
    for width in range(1, lanes + 1):

        def body(m: SveMachine, width: int = width) -> None:
            m.set_tail(width, -1)
            m.load_word(1, (0, 0))
            m.load_word(2, (0, 8))
            m.load(6, (2, 0), m.lanes)
            m.positive_bits(5, 6, width, (7, 8))
            m.store_bits(5, (1, 0), 8)

        wanted = np.array([sum(1 << i for i in range(width) if data[i] > 0)], np.uint64)
        words = [Buffer(np.zeros(1, np.uint64), write=True), Buffer(data)]
        checks.append(Check(Job(kernel(dtype, bits, body), words, f"width {width}"), [wanted]))
    verify(bits, checks)


# ---- scalars -----------------------------------------------------------------------------------

VALUES = (
    0, 1, -1, 2, 255, 4095, 4096, 4097, 0xFFFF, 0x10000, 0xFFF000, 0xFFFFFF, 0x1000000, 123456789,
    -4095, -4096, -4097, -0xFFFFFF, -0x1000000, 2**31 - 1, -(2**31), 2**32, 2**40 + 7, -(2**40) - 7,
    0x1234_0000_5678_0000, 0xFFFF_0000_FFFF_1234 - 2**64, 2**63 - 1, -(2**63),
)  # fmt: skip
START = 0x0123_4567_89AB


def _scalar_check(label: str, emit: list[tuple[Body, int]]) -> Check:
    """Each emit leaves its value in register 5; they are stored one after the other."""

    def body(m: SveMachine) -> None:
        m.load_word(1, (0, 0))
        for i, (each, _) in enumerate(emit):
            each(m)
            m.store_bits(5, (1, 8 * i), 8)

    wanted = np.array([value % 2**64 for _, value in emit], np.uint64)
    out = Buffer(np.zeros(len(emit), np.uint64), write=True)
    return Check(Job(kernel("f32", 256, body), [out], label), [wanted])


def test_scalar_arithmetic() -> None:
    """set, move, offset, sum, subtract, multiply, shift_right, minimum, merge_bits."""

    def start(m: SveMachine, *then: tuple[str, tuple[int, ...]]) -> None:
        m.set(6, START)
        for verb, operands in then:
            getattr(m, verb)(*operands)

    def emits(*then: tuple[str, tuple[int, ...]]) -> Body:
        return lambda m: start(m, *then)

    sets = [(emits(("set", (5, v))), v) for v in VALUES]
    offsets = [(emits(("offset", (5, 6, v))), START + v) for v in VALUES]
    offsets += [(emits(("move", (5, 6)), ("offset", (5, 5, v))), START + v) for v in VALUES]
    offsets += [(emits(("move", (5, 6)), ("advance", (5, v))), START + v) for v in VALUES]
    products = [(emits(("multiply", (5, 6, v))), START * v) for v in VALUES]
    products += [(emits(("move", (5, 6)), ("multiply", (5, 5, v))), START * v) for v in VALUES]
    others = [(emits(("set", (7, 99)), ("sum", (5, 6, 7, s))), START + (99 << s)) for s in range(4)]
    others += [(emits(("set", (5, 99)), ("sum", (5, 5, 6, 3))), 99 + 8 * START)]
    others += [(emits(("set", (5, 99)), ("subtract", (5, 6))), 99 - START)]
    others += [
        (emits(("move", (5, 6)), ("shift_right", (5, s))), START >> s) for s in (0, 1, 3, 40, 63)
    ]
    for bound in (0, 1, START - 1, START, START + 1, 2**63 - 1):
        others.append((emits(("minimum", (5, 6, bound))), min(START, bound)))
    for shift in (0, 4, 32, 56):
        merged = (5 | START << shift) % 2**64
        others.append((emits(("set", (5, 5)), ("merge_bits", (5, 6, shift))), merged))
    groups = {"set": sets, "offset": offsets, "multiply": products, "others": others}
    verify(256, [_scalar_check(name, group) for name, group in groups.items()])


def test_hoisted_constant_is_one_addition() -> None:
    """A hoisted constant is added or subtracted from its register; unhoist ends that."""
    value = 0x123456

    def length(m: SveMachine, emit: Callable[[], None]) -> int:
        before = len(m.program.records)
        emit()
        return len(m.program.records) - before

    def hoisted(m: SveMachine) -> None:
        m.set(9, value)
        m.set(5, START)
        m.hoist(value, 9)
        assert length(m, lambda: m.advance(5, value)) == 1
        assert length(m, lambda: m.advance(5, -value)) == 1
        assert length(m, lambda: m.offset(5, 5, value)) == 1
        m.unhoist()
        m.set(9, 0)
        assert length(m, lambda: m.advance(5, value)) == 2

    verify(256, [_scalar_check("hoist", [(hoisted, START + 2 * value)])])


def test_jumps() -> None:
    """Every jump, taken and not taken; a loop counts down to zero."""
    emit: list[tuple[Body, int]] = []

    def flag(jump: Callable[[SveMachine, int], None], taken: bool) -> None:
        def body(m: SveMachine) -> None:
            label = m.program.new_label()
            m.set(5, 1)
            jump(m, label)
            m.set(5, 0)
            m.place(label)

        emit.append((body, int(taken)))

    flag(lambda m, label: m.jump(label), True)
    for value in (0, 1, -1, 2**40):

        def zero(m: SveMachine, label: int, value: int = value) -> None:
            m.set(6, value)
            m.jump_if_zero(6, label)

        def nonzero(m: SveMachine, label: int, value: int = value) -> None:
            m.set(6, value)
            m.jump_if_nonzero(6, label)

        flag(zero, value == 0)
        flag(nonzero, value != 0)
        for other in (0, -1, 2**40):

            def equal(m: SveMachine, label: int, value: int = value, other: int = other) -> None:
                m.set(6, value)
                m.set(7, other)
                m.jump_if_equal(6, 7, label)

            def differ(m: SveMachine, label: int, value: int = value, other: int = other) -> None:
                m.set(6, value)
                m.set(7, other)
                m.jump_if_different(6, 7, label)

            flag(equal, value == other)
            flag(differ, value != other)
    for bound in VALUES:
        for value in {bound, max(bound - 1, -(2**63)), min(bound + 1, 2**63 - 1)}:

            def less(m: SveMachine, label: int, value: int = value, bound: int = bound) -> None:
                m.set(6, value)
                m.jump_if_less(6, bound, label)

            flag(less, value < bound)

    def loop(m: SveMachine) -> None:
        m.set(5, 0)
        m.set(6, 7)
        label = m.program.new_label()
        m.place(label)
        m.advance(5, 3)
        m.count_down(6, label)

    emit.append((loop, 21))
    verify(256, [_scalar_check(f"jumps {i}", emit[i : i + 40]) for i in range(0, len(emit), 40)])


@each_dtype
def test_words_and_elements(dtype: str) -> None:
    """load_word and copy_element at displacements near, far, negative and off their steps."""
    element = open_machine(dtype, 128).element
    checks = []
    for disp in (0, 8, 32760, 32768, -8, -256, -264, 3, 1 << 20, 77):
        word = np.array([0x0123456789ABCDEF], np.uint64)

        def load(m: SveMachine, disp: int = disp) -> None:
            m.load_word(1, (0, 0))
            m.load_word(2, (0, 8))
            m.offset(2, 2, -disp)
            m.load_word(3, (2, disp))
            m.store_bits(3, (1, 0), 8)

        def copy(m: SveMachine, disp: int = disp) -> None:
            m.load_word(1, (0, 0))
            m.load_word(2, (0, 8))
            m.offset(1, 1, -disp)
            m.offset(2, 2, -disp)
            m.copy_element((1, disp), (2, disp), 3)
            m.prefetch((2, disp))

        for body, data in ((load, word), (copy, word.view(np.uint8)[:element])):
            for place in ("start", "end"):
                words = [Buffer(np.zeros_like(data), True, place), Buffer(data, place=place)]
                code = kernel(dtype, 128, body)
                checks.append(Check(Job(code, words, f"{body.__name__} {disp}"), [data]))
    verify(128, checks)


def test_prefetch_anywhere() -> None:
    """A prefetch of an address that is not mapped is no fault."""

    def body(m: SveMachine) -> None:
        m.load_word(1, (0, 0))
        for disp in (0, 7, 63, -1, -4096, 32767, 40000, 1 << 30):
            m.prefetch((1, disp))

    verify(256, [Check(Job(kernel("f32", 256, body), [8]), [])])


def test_store_bits() -> None:
    """One to eight bytes, at any displacement, and not a byte more."""
    value = 0x0123456789ABCDEF
    checks = []
    for count in range(1, 9):
        for disp in (0, 1, 5, 248, 249, 255, -256, -257, 4097):

            def body(m: SveMachine, count: int = count, disp: int = disp) -> None:
                m.load_word(1, (0, 0))
                m.offset(1, 1, -disp)
                m.set(2, value)
                m.store_bits(2, (1, disp), count)

            wanted = np.frombuffer(value.to_bytes(8, "little")[:count], np.uint8)
            out = Buffer(np.zeros(count, np.uint8), write=True)
            checks.append(Check(Job(kernel("f32", 256, body), [out], f"{count} {disp}"), [wanted]))
    verify(256, checks)


# ---- entry and exit ------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", [0, 1, 64, 4096, 4100, 40000])
@pytest.mark.parametrize("vectors", [0, 8, 9, 12, 32])
def test_registers_of_the_caller(stack: int, vectors: int) -> None:
    """Clobbered registers come back; the scratch is aligned, writable and as large as asked."""
    generator = random.Random(stack)
    machine = open_machine("f64", 256)
    used = tuple(generator.sample(machine.gprs, 11))
    machine.vectors_used = vectors
    machine.begin(used, stack)
    base, sixty_four = used[0], used[1]
    for r in used[2:]:
        machine.set(r, -1)
    for v in range(vectors):
        machine.load_word(base, (0, 0))
        machine.broadcast(v, (base, 0))
    if stack:
        machine.move(base, machine.stack_pointer)
        machine.set(sixty_four, 0)
        for at in (0, stack - 8 if stack >= 8 else 0):
            machine.store_bits(sixty_four, (base, at), 8)
        # the status is the misalignment
        records = machine.program.records
        records.append((FORMS["ubfm x x imm imm"], (base, base, 0, 5)))
        bad = machine.program.new_label()
        machine.jump_if_nonzero(base, bad)
        machine.offset(base, SP, 0)
        machine.end()
        machine.place(bad)
    else:
        machine.end()
    job = Job(machine.program.encode(), [Buffer(np.full(1, 1.5))])
    (result,) = qemu.run([job], 256)
    assert result.ok, result.error


@pytest.mark.parametrize("made_for, thread_has", [(256, 128), (128, 256), (512, 2048)])
def test_wrong_vector_length_returns_1(made_for: int, thread_has: int) -> None:
    """On a thread with another vector length a kernel returns 1 and has touched nothing."""

    def body(m: SveMachine) -> None:
        m.load_word(1, (0, 0))
        m.zero(0)
        m.store(0, (1, 0), m.lanes)

    data = numbers("f32", 64)
    job = Job(kernel("f32", made_for, body), [Buffer(data, write=True)])
    (result,) = qemu.run([job], thread_has)
    assert result.returned and result.value == 1
    np.testing.assert_array_equal(result.outputs[0], data)
    (result,) = qemu.run([job], made_for)
    assert result.ok and not result.outputs[0][: made_for // 32].any()


def test_instruction_cache_maintenance() -> None:
    """The routine walks any range and returns; here between loading its arguments and status 0."""
    program = Program()
    program.emit(FORMS["ldp x x [xsp imm]"], (1, 2, 0, 0))
    program.emit(FORMS["mov x x"], (0, 1))
    program.emit(FORMS["add x x x lsl imm"], (1, 1, 2, 0))
    status = Program()
    status.emit(FORMS["movz x imm lsl imm"], (0, 0, 0))
    status.emit(FORMS["ret"], ())
    code = program.encode() + flush_icache_code()[:-4] + status.encode()
    data = Buffer(np.zeros(5000, np.uint8))
    jobs = [Job(code, [data, size], f"{size} bytes") for size in (1, 4, 64, 5000)]
    for job, result in zip(jobs, qemu.run(jobs, 256), strict=True):
        assert result.ok, f"{job.label}: {result.error}"


@pytest.mark.parametrize("bits", [0, 64, 192 + 1, 2048 + 128])
def test_lengths_that_do_not_exist(bits: int) -> None:
    """A vector length that SVE has not is refused."""
    with pytest.raises(ValueError, match=f"vector_bits={bits}"):
        open_machine("f32", bits)
