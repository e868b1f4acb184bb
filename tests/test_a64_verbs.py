"""The scalar verbs of jitgen.isa.a64, entry and exit of functions, executed under qemu-user.

Each test emits small programs with a few verbs and compares what they leave in memory with what
Python integers give. Not here: encodings (`test_rows`) and vector verbs (`test_sve_verbs`).
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from rig import qemu
from rig.job import Buffer, Job
from verbs import Body, Check, kernel, need_qemu, numbers, verify

from jitgen.isa.a64 import FORMS, flush_icache_code
from jitgen.isa.program import Program
from jitgen.isa.sve import SveMachine, open_machine

each_dtype = pytest.mark.parametrize("dtype", ["f32", "f64"])


@pytest.fixture(autouse=True)
def _qemu() -> None:
    need_qemu()


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
    """A hoisted constant is added or subtracted from its register."""
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

    verify(256, [_scalar_check("hoist", [(hoisted, START + value)])])


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

        def nonzero(m: SveMachine, label: int, value: int = value) -> None:
            m.set(6, value)
            m.jump_if_nonzero(6, label)

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
@pytest.mark.parametrize("vectors", [0, 32])
def test_registers_of_the_caller(stack: int, vectors: int) -> None:
    """Clobbered registers come back; the scratch is aligned, writable and as large as asked."""
    generator = random.Random(stack)
    machine = open_machine("f64", 256)
    used = tuple(generator.sample(machine.gprs, 11))
    machine.begin(used, stack)
    base, zero = used[0], used[1]
    for r in used[2:]:
        machine.set(r, -1)
    for v in range(vectors):
        machine.load_word(base, (0, 0))
        machine.broadcast(v, (base, 0))
    if stack:
        machine.move(base, machine.stack_pointer)
        machine.set(zero, 0)
        for at in (0, stack - 8 if stack >= 8 else 0):
            machine.store_bits(zero, (base, at), 8)
        # where the scratch is not aligned to 64 bytes, the function runs off its end
        machine.program.emit(FORMS["ubfm x x imm imm"], (base, base, 0, 5))
        bad = machine.program.new_label()
        machine.jump_if_nonzero(base, bad)
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
