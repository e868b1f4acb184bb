"""Every form of every instruction table, with corner and random operands, against llvm-mc.

Our text of an instruction goes to the assembler, and its bytes must be ours. x86 is decoded by
iced-x86 as well. Where the assembler would choose another of several right encodings, the oracle's
text (not ours) begins with {vex3} or {evex}; forms whose encoding no prefix can ask for are in
`LONGER_THAN_NEEDED` and compared by what the bytes are disassembled to.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import assembler
import iced_x86
import needs
import pytest
from row_operands import (
    beyond_a64,
    beyond_x86,
    combine,
    corners_a64,
    corners_x86,
    is_memory,
    kinds_of,
)

import jitgen.isa.a64
import jitgen.isa.avx2
import jitgen.isa.avx512
import jitgen.isa.neon
import jitgen.isa.sve
import jitgen.isa.x86
from jitgen.isa.a64_rows import SP, XZR
from jitgen.isa.form import EncodingError, Form
from jitgen.isa.program import Program
from jitgen.isa.x86_rows import REGISTERS

TABLES = {
    "x86_64": [*jitgen.isa.x86.tables(), *jitgen.isa.avx2.tables(), *jitgen.isa.avx512.tables()],
    "aarch64": [
        *jitgen.isa.a64.tables(), *jitgen.isa.sve.tables(), *jitgen.isa.neon.tables(),
    ],
}  # fmt: skip
ARCHITECTURES = tuple(TABLES)
#: Forms that have a shorter one for some operands, which the verbs use and the assembler prefers.
LONGER_THAN_NEEDED = {
    "add r64 imm32", "cmp r64 imm32", "add rax imm32", "cmp rax imm32", "imul r64 r64 imm32",
    "imul r64 m64 imm32", "shl r64 uimm8", "shr r64 uimm8",
}  # fmt: skip
#: No two registers of a pair that is loaded may be the same, nor what an exclusive store reports
#: to and what it reads.
PAIRS = {"ldp x x [xsp imm]", "ldp d d [xsp imm]", "stlxr w x [xsp]"}
#: iced-x86 names some instructions and registers otherwise
ICED_MNEMONICS = {"movabs": "mov", "lock xadd": "xadd"}
ICED_REGISTERS = {f"r{i}b": f"r{i}l" for i in range(8, 16)}

needs_assembler = pytest.mark.usefixtures("_assembler")


@pytest.fixture
def _assembler() -> None:
    if assembler.find() is None:
        needs.need(f"llvm-mc {assembler.OLDEST} or later is not installed")


@dataclass(frozen=True)
class Case:
    """One instruction to encode."""

    form: Form
    operands: tuple[Any, ...]

    @property
    def code(self) -> bytes:
        """Our bytes."""
        return self.form.encode(self.operands)

    @property
    def oracle_text(self) -> str:
        """Our text, with the prefix that pins our choice of encoding."""
        text = self.form.text(self.operands)
        if self.form.mnemonic == "movprfx":
            # LLVM refuses an instruction behind movprfx that does not overwrite its destination
            return f"{text}\nsub z{self.operands[0]}.s, z{self.operands[0]}.s, #1"
        pin = {0xC4: "{vex3} ", 0x62: "{evex} "} if "avx" in self.form.feature else {}
        pin |= {0xC4: "{vex3} "} if self.form.feature == "fma" else {}
        return pin.get(self.code[0], "") + text


def forms(architecture: str) -> list[tuple[str, Form]]:
    """Every form of an architecture without a label, with a name that is unique over all tables."""
    return [
        (f"{i}: {signature}", form)
        for i, table in enumerate(TABLES[architecture])
        for signature, form in table.items()
        if form.label_at < 0
    ]


def label_forms(architecture: str) -> list[Form]:
    """Every form with a label."""
    return [f for table in TABLES[architecture] for f in table.values() if f.label_at >= 0]


def _limits(form: Form, i: int) -> tuple[int, int, int]:
    limits: list[tuple[int, int, int]] = form.encode.__self__.limits  # type: ignore[attr-defined]
    return limits[i]


def corners_of(architecture: str, form: Form) -> list[list[Any]]:
    """The corners of each operand."""
    kinds = kinds_of(form)
    if architecture == "x86_64":
        return [corners_x86(form, kind) for kind in kinds]
    return [corners_a64(kind, _limits(form, i)) for i, kind in enumerate(kinds)]


@functools.cache
def cases(architecture: str) -> dict[str, list[Case]]:
    """The cases of every form, by name."""
    generator = random.Random(19)
    return {
        name: [
            Case(form, operands)
            for operands in combine(
                corners_of(architecture, form), form.signature in PAIRS, generator
            )
        ]
        for name, form in forms(architecture)
    }


def all_cases(architecture: str) -> list[Case]:
    """The cases of all forms in one list."""
    return [case for group in cases(architecture).values() for case in group]


@functools.cache
def expected(architecture: str) -> list[bytes]:
    """The assembler's bytes for `all_cases`."""
    return assembler.assemble(architecture, [case.oracle_text for case in all_cases(architecture)])


def differing(ours: Sequence[bytes], theirs: Sequence[bytes]) -> list[int]:
    """Where two lists of instructions differ."""
    return [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]


# ---- bytes -----------------------------------------------------------------------------------


@needs_assembler
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bytes_are_those_of_llvm(architecture: str) -> None:
    """The assembler's bytes for our text are ours, for every form and every corner."""
    checked = all_cases(architecture)
    ours = [case.code for case in checked]
    theirs = expected(architecture)
    wrong: list[int] = []
    longer: list[int] = []
    for i in differing(ours, theirs):
        known = checked[i].form.signature in LONGER_THAN_NEEDED and len(ours[i]) > len(theirs[i])
        (longer if known else wrong).append(i)
    lines = [f"{checked[i].oracle_text}: {ours[i].hex()}, not {theirs[i].hex()}" for i in wrong]
    assert not lines, f"{len(lines)} differ:\n" + "\n".join(lines[:40])
    if longer:
        read = [_disassembled(architecture, [codes[i] for i in longer]) for codes in (ours, theirs)]
        assert read[0] == read[1]
    assert {checked[i].form.signature for i in longer} <= LONGER_THAN_NEEDED


def _disassembled(architecture: str, codes: list[bytes]) -> list[str]:
    """LLVM's texts; it leaves out the 1 of the opcode that shifts by one."""
    texts = assembler.disassemble(architecture, codes)
    return [t.replace("$1, ", "") if t.startswith(("shl", "shr")) else t for t in texts]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_form_is_left_out(architecture: str) -> None:
    """Every form of every table has cases, and these have every corner of every operand."""
    tested = cases(architecture)
    total = sum(len(table) for table in TABLES[architecture])
    assert len(tested) + len(label_forms(architecture)) == total
    for name, form in forms(architecture):
        for i, corners in enumerate(corners_of(architecture, form)):
            missing = set(corners) - {case.operands[i] for case in tested[name]}
            assert not missing, f"{name}: operand {i} is never {missing}"
            assert corners


@needs_assembler
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_wrong_bit_is_noticed(architecture: str) -> None:
    """A bit flipped in one byte of one case of every form makes exactly that case differ."""
    checked = all_cases(architecture)
    theirs = expected(architecture)
    generator = random.Random(7)
    ours = [case.code for case in checked]
    before = set(differing(ours, theirs))
    flipped = set()
    first = 0
    for group in cases(architecture).values():
        i = first + generator.randrange(len(group))
        first += len(group)
        if i in before:
            continue
        code = bytearray(ours[i])
        code[generator.randrange(len(code))] ^= 1 << generator.randrange(8)
        ours[i] = bytes(code)
        flipped.add(i)
    assert len(flipped) > len(cases(architecture)) * 0.9
    assert set(differing(ours, theirs)) == before | flipped


# ---- ranges ----------------------------------------------------------------------------------


def _bad_operands(architecture: str) -> Iterator[tuple[Form, tuple[Any, ...]]]:
    for name, form in forms(architecture):
        good = cases(architecture)[name][0].operands
        kinds = kinds_of(form)
        yield form, (*good, 0)
        if good:
            yield form, good[:-1]
        for i, kind in enumerate(kinds):
            if architecture == "x86_64":
                values = beyond_x86(form, kind)
            else:
                values = beyond_a64(kind, _limits(form, i))
            for value in values:
                yield form, (*good[:i], value, *good[i + 1 :])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_operands_out_of_range_are_refused(architecture: str) -> None:
    """One operand beyond its range, or one too many or few, is an EncodingError."""
    accepted = []
    for form, operands in _bad_operands(architecture):
        try:
            form.encode(operands)
        except EncodingError as error:
            assert str(error)
        else:
            accepted.append(f"{form.signature} {operands}")
    assert not accepted, f"{len(accepted)} accepted:\n" + "\n".join(accepted[:40])


# ---- labels ----------------------------------------------------------------------------------

OPEN: dict[str, Callable[[], Program]] = {
    "x86_64": lambda: Program(jitgen.isa.x86.nops),
    "aarch64": lambda: Program(jitgen.isa.a64.nops),
}
#: bytes between a branch and its label; x86 has a short form up to 127 bytes
GAPS = {"x86_64": (0, 1, 100, 120, 124, 127, 128, 131, 1000), "aarch64": (0, 4, 400, 32764)}


def _branches(architecture: str) -> tuple[Program, set[str]]:
    """Every form with a label, with every gap, forward and backward."""
    program = OPEN[architecture]()
    seen = set()
    nop = bytes([0x90]) if architecture == "x86_64" else jitgen.isa.a64.nops(4)
    filler = Form("nop", (), "", lambda operands: nop, lambda operands: "nop")
    for form in label_forms(architecture):
        seen.add(form.signature)
        for gap in GAPS[architecture]:
            register = (9,) if len(form.kinds) == 2 else ()
            back, forth = program.new_label(), program.new_label()
            program.place(back)
            for _ in range(gap // len(nop)):
                program.emit(filler, ())
            program.emit(form, (*register, back))
            program.emit(form, (*register, forth))
            for _ in range(gap // len(nop)):
                program.emit(filler, ())
            program.place(forth)
    return program, seen


def _program_text(program: Program) -> str:
    lines = []
    for line in program.lines():
        if line.kind == "label":
            lines.append(f"{line.text}:")
        elif line.kind == "instruction":
            lines.append(line.text)
    return "\n".join(lines) + "\n"


@needs_assembler
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_labels(architecture: str) -> None:
    """A program of branches has llvm-mc's bytes: short, long, forward, backward."""
    program, seen = _branches(architecture)
    assert len(seen) == len(label_forms(architecture))
    ours = program.encode()
    assert ours == b"".join(line.code for line in program.lines())
    assert ours == assembler.assemble_section(architecture, _program_text(program))


@needs_assembler
def test_a64_label_limits() -> None:
    """The farthest distances a field holds, against the assembler; one step more is refused."""
    texts = []
    ours = []
    for form in label_forms("aarch64"):
        i = form.label_at
        low, high, unit = _limits(form, i)
        for register in (0, 30, XZR) if i else (None,):
            head = () if register is None else (register,)
            for distance in (low, -unit, 0, unit, high):
                texts.append(form.text((*head, 77)).replace("L77", f"#{distance}"))
                ours.append(form.encode((*head, (distance, 4))))
            for distance in (low - unit, high + unit, *([2] if unit > 1 else [])):
                with pytest.raises(EncodingError, match="label"):
                    form.encode((*head, (distance, 4)))
    assert ours == assembler.assemble("aarch64", texts)


def test_x86_label_limits() -> None:
    """A distance that does not fit the chosen size is refused."""
    for form in label_forms("x86_64"):
        head = (0,) if form.label_at else ()
        for size in form.sizes:
            reach = 127 if size == 2 else 2**31 - 1
            form.encode((*head, (reach + size, size)))
            form.encode((*head, (-reach - 1 + size, size)))
            for distance in (reach + 1 + size, -reach - 2 + size):
                with pytest.raises(EncodingError, match="label"):
                    form.encode((*head, (distance, size)))


def test_stack_pointer_is_not_the_zero_register() -> None:
    """31 is taken as sp where the syntax says so and refused elsewhere; 32 is the reverse."""
    add = jitgen.isa.a64.FORMS["add xsp xsp imm"]
    orr = jitgen.isa.a64.FORMS["orr x x x lsl imm"]
    assert add.text((SP, SP, 16)) == "add sp, sp, #16"
    assert orr.text((0, XZR, 1, 3)) == "orr x0, xzr, x1, lsl #3"
    with pytest.raises(EncodingError, match="xsp"):
        add.encode((XZR, SP, 16))
    with pytest.raises(EncodingError, match="x register"):
        orr.encode((0, SP, 1, 3))


# ---- a second opinion on x86 -----------------------------------------------------------------

_NAMES = {getattr(iced_x86.Register, n): n.lower() for n in dir(iced_x86.Register) if n.isupper()}
_MNEMONICS = {
    getattr(iced_x86.Mnemonic, n): n.lower() for n in dir(iced_x86.Mnemonic) if n.isupper()
}


def _register_name(kind: str, number: int) -> str:
    name = REGISTERS[kind][number]
    return ICED_REGISTERS.get(name, name)


def _said(instruction: iced_x86.Instruction, i: int, kind: str) -> Any:
    """What iced-x86 says operand i is, in the terms of our operands."""
    if is_memory(kind):
        disp = instruction.memory_displacement
        disp -= (disp >> 63) << 64
        index = instruction.memory_index
        scale = instruction.memory_index_scale if index else 1
        return _NAMES[instruction.memory_base], _NAMES.get(index), scale, disp
    if "imm" in kind:
        return instruction.immediate(i) % 2**64
    return _NAMES[instruction.op_register(i)]


def _meant(kind: str, value: Any) -> Any:
    if is_memory(kind):
        base, index, scale, disp = value
        names = REGISTERS["r64"]
        if index is None:
            return names[base], "none", 1, disp
        return names[base], names[index], scale, disp
    if "imm" in kind:
        return value % 2**64
    return _register_name(kind, value)


def test_iced_reads_what_was_meant() -> None:
    """iced-x86 finds the mnemonic, the length and every operand in our bytes."""
    for case in all_cases("x86_64"):
        code = case.code
        read = iced_x86.Decoder(64, code).decode()
        text = case.form.text(case.operands)
        mnemonic = ICED_MNEMONICS.get(case.form.mnemonic, case.form.mnemonic)
        assert (_MNEMONICS[read.mnemonic], read.len) == (mnemonic, len(code)), text
        kinds = kinds_of(case.form)
        masked = kinds[-1:] == ["mask"]
        plain = kinds[:-1] if masked else kinds
        assert read.op_count == len(plain), text
        for i, kind in enumerate(plain):
            assert _said(read, i, kind) == _meant(kind, case.operands[i]), f"{text}: operand {i}"
        mask = f"k{case.operands[-1]}" if masked else "none"
        assert _NAMES.get(read.op_mask, "none") == mask, text
        assert read.zeroing_masking == ("{z}" in case.form.signature), text
        assert read.is_broadcast == any(kind[0] == "b" for kind in plain), text
