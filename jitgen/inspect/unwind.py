"""Unwind information: where the caller's frame and registers are at each instruction of a kernel.

`rows` follows a kernel's own instructions, so it holds for whatever `begin` and `end` of the
machine emit; the other functions write rows as DWARF call frame information (.eh_frame,
.eh_frame_hdr, .debug_frame). Registers are DWARF's numbers. Not here: files that hold the sections.
Sources: DWARF 5 section 6.4; Linux Standard Base 5.0 chapter 10.6; psABI for x86-64, figure 3.36;
DWARF for the Arm 64-bit Architecture, section 4.1.

>>> import jitgen
>>> kernel = jitgen.brgemm(4, 8, 16, target="avx2")
>>> rows(kernel)[0]
Row(offset=0, cfa_register=7, cfa_offset=8, cfa_slot=None, saved={})
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from jitgen.isa.a64 import FRAME_POINTER
from jitgen.isa.a64_rows import SP
from jitgen.isa.form import Form, Operands
from jitgen.isa.program import ALIGN, LABEL, SECTION, Program
from jitgen.isa.x86 import RAX, RSP

if TYPE_CHECKING:
    from jitgen.emit.routine import Routine

#: DWARF's numbers of the x86-64 registers, in the order of the machine's own numbers
X86_DWARF = (0, 2, 1, 3, 7, 6, 4, 5, *range(8, 16))
#: kinds of operands that are general-purpose registers (as a destination)
GENERAL = ("r64", "r32", "rax", "x", "xsp", "w")
#: DWARF's number of v0
A64_VECTORS = 64


@dataclass(frozen=True)
class Row:
    """From byte `offset` on, the canonical frame address (CFA) is cfa_register + cfa_offset, or,
    with a slot, the word at cfa_register + cfa_slot, plus cfa_offset. `saved`: register -> where
    the caller's value lies, from the CFA; all others still hold it, or need not be kept."""

    offset: int
    cfa_register: int
    cfa_offset: int
    cfa_slot: int | None = None
    saved: Mapping[int, int] = field(default_factory=dict)


class Function(NamedTuple):
    """A function to describe: address (or offset, see `eh_frame`), bytes, rows."""

    start: int
    size: int
    rows: Sequence[Row]


class Frames(NamedTuple):
    """An .eh_frame section: bytes, where they hold the distance to a function (offset, number of
    the function), and the offset of each function's entry."""

    data: bytes
    distances: list[tuple[int, int]]
    entries: list[int]


class _Architecture(NamedTuple):
    """How frames begin and how they are written."""

    follow: Callable[[Row, Form, Operands], Row]
    first: Row
    #: register that stands for the return address
    return_address: int
    #: instructions have multiples of so many bytes
    unit: int
    #: instructions behind which the next one is not reached
    ends: tuple[str, ...]


# ---- following the instructions ----------------------------------------------------------------


def _changes(form: Form, operands: Operands, register: int, unwritten: tuple[str, ...]) -> bool:
    """Whether an instruction writes the general-purpose `register`, its first operand."""
    return bool(
        operands
        and form.kinds
        and form.kinds[0].rstrip("+") in GENERAL
        and operands[0] == register
        and form.mnemonic not in unwritten
    )


def _unknown(form: Form, operands: Operands) -> ValueError:
    return ValueError(f"{form.text(operands)!r} changes the frame in a way that is not described")


def _follow_x86(row: Row, form: Form, operands: Operands) -> Row:
    """The row behind an instruction; row.offset stays.

    Frames: pushes; with scratch the old rsp is copied to rax, rsp moved and aligned, and the old
    one kept in a slot of the frame (jitgen.isa.x86.X86Machine.begin).
    """
    by_stack = row.cfa_register == X86_DWARF[RSP] and row.cfa_slot is None
    match form.signature, operands:
        case "push r64", (r,) if by_stack:
            at = row.cfa_offset + 8
            return replace(row, cfa_offset=at, saved={**row.saved, X86_DWARF[r]: -at})
        case "pop r64", (r,) if by_stack:
            saved = {k: v for k, v in row.saved.items() if k != X86_DWARF[r]}
            return replace(row, cfa_offset=row.cfa_offset - 8, saved=saved)
        case "mov r64 r64", (to, source) if (to, source) == (RAX, RSP) and by_stack:
            return replace(row, cfa_register=X86_DWARF[RAX])
        case (("lea r64 m" | "and r64 r64"), (to, _)) if (
            to == RSP and row.cfa_register != X86_DWARF[RSP]
        ):
            return row
        # at displacement 0 it only touches a page
        case "mov m64 r64", ((base, None, 1, slot), source) if (base, source) == (RSP, RAX) and (
            slot and row.cfa_register == X86_DWARF[RAX]
        ):
            return replace(row, cfa_register=X86_DWARF[RSP], cfa_slot=slot)
        case "mov r64 m64", (to, (base, None, 1, slot)) if to == base == RSP and (
            slot == row.cfa_slot
        ):
            return replace(row, cfa_slot=None)
    base = X86_DWARF.index(row.cfa_register)
    for register in (RSP, base):
        if _changes(form, operands, register, ("cmp", "test")):
            raise _unknown(form, operands)
    return row


def _follow_a64(row: Row, form: Form, operands: Operands) -> Row:
    """The same for A64 frames: room is taken from sp, registers stored in pairs; with scratch x29
    keeps sp (jitgen.isa.a64.A64Machine.begin)."""
    by_stack = row.cfa_register == SP
    match form.signature, operands:
        case "sub xsp xsp imm", (to, source, size) if to == source == SP and by_stack:
            return replace(row, cfa_offset=row.cfa_offset + size)
        case "add xsp xsp imm", (to, source, size) if to == source == SP and by_stack:
            return replace(row, cfa_offset=row.cfa_offset - size)
        case "add xsp xsp imm", (to, source, 0) if {to, source} == {SP, FRAME_POINTER} and (
            source == row.cfa_register
        ):
            return replace(row, cfa_register=to)
        case (("sub xsp xsp imm lsl #12" | "and xsp x #-64"), (to, *_)) if (
            to == SP and not by_stack
        ):
            return row
        case (("stp x x [xsp imm]" | "stp d d [xsp imm]" as name), (t, u, base, at)) if base == SP:
            places = zip(_a64_numbers(name, t, u), (at, at + 8), strict=True)
            stored = {r: at - row.cfa_offset for r, at in places if r >= 0}
            return replace(row, saved={**row.saved, **stored})
        case (("ldp x x [xsp imm]" | "ldp d d [xsp imm]" as name), (t, u, base, _)) if base == SP:
            loaded = _a64_numbers(name, t, u)
            return replace(row, saved={k: v for k, v in row.saved.items() if k not in loaded})
    for register in (SP, row.cfa_register):
        if _changes(form, operands, register, ("cmp", "cmn", "str", "stur", "stp")):
            raise _unknown(form, operands)
    return row


def _a64_numbers(name: str, *registers: int) -> list[int]:
    """DWARF's numbers of a pair of registers; -1 for the zero register."""
    if name.split()[1] == "d":
        return [A64_VECTORS + r for r in registers]
    return [r if r < SP else -1 for r in registers]


ARCHITECTURES = {
    "x86_64": _Architecture(_follow_x86, Row(0, X86_DWARF[RSP], 8), 16, 1, ("ret", "jmp")),
    "aarch64": _Architecture(_follow_a64, Row(0, SP, 0), 30, 4, ("ret", "b")),
}


def rows(routine: Routine) -> list[Row]:
    """Rows of a routine, by offset; each holds up to the next, the last to the end.

    Raises ValueError if the code is another assembler's, and as `program_rows` does.
    """
    program = routine.program
    if program.encode() != routine.code:
        raise ValueError("the code is another assembler's: its frames cannot be followed")
    return program_rows(program, routine.target.architecture)


def program_rows(program: Program, architecture: str) -> list[Row]:
    """Rows of a program that is one function.

    Raises ValueError if an instruction changes the frame in a way that is not described here.
    """
    chosen = ARCHITECTURES[architecture]
    state: Row | None = chosen.first
    out = [chosen.first]
    labels: dict[int, Row] = {}  # at a label all ways in must agree
    for line in program.lines():
        if line.record is None:
            break  # only constants follow
        form, operands = line.record
        if form is LABEL:
            state = _meet(labels, operands[0], state)
        if form in (LABEL, SECTION, ALIGN):
            continue
        if state is None:
            raise ValueError(f"nothing leads to {form.text(operands)!r}")
        if state != replace(out[-1], offset=0):
            out.append(replace(state, offset=line.offset))
        if form.label_at >= 0 and form.mnemonic not in ("lea", "adr"):
            _meet(labels, operands[form.label_at], state)
        state = chosen.follow(state, form, operands)
        if form.mnemonic in chosen.ends:
            state = None
    return out


def _meet(labels: dict[int, Row], label: int, state: Row | None) -> Row | None:
    """The frame at a label, which has `state` where one comes from."""
    known = labels.get(label)
    if state is None or known is None:
        state = state or known
    elif state != known:
        raise ValueError(f"two ways to label L{label} have different frames")
    if state is not None:
        labels[label] = state
    return state


# ---- writing call frame information --------------------------------------------------------------

_ADVANCE, _OFFSET, _RESTORE = 0x40, 0x80, 0xC0  # with an operand in the low 6 bits
_OFFSET_EXTENDED, _RESTORE_EXTENDED = 0x05, 0x06
_DEF_CFA, _DEF_CFA_REGISTER, _DEF_CFA_OFFSET, _DEF_CFA_EXPRESSION = 0x0C, 0x0D, 0x0E, 0x0F
_OP_BREG0, _OP_DEREF, _OP_PLUS_UCONST = 0x70, 0x06, 0x23
_PCREL_SDATA4, _DATAREL_SDATA4, _UDATA4 = 0x1B, 0x3B, 0x03
#: saved registers lie at multiples of so many bytes from the CFA
_DATA_UNIT = -8


def uleb(value: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def sleb(value: int) -> bytes:
    """Signed LEB128."""
    out = bytearray()
    while not -64 <= value < 64:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value & 0x7F])


def _instructions(table: Sequence[Row], unit: int) -> bytes:
    """Call frame instructions that lead from each row to the next."""
    out = bytearray()
    for before, row in pairwise(table):
        out += _advance((row.offset - before.offset) // unit)
        out += _define_cfa(before, row)
        for register in sorted(before.saved.keys() - row.saved.keys()):
            small = register < 0x40
            out += bytes([_RESTORE | register] if small else [_RESTORE_EXTENDED, register])
        for register, at in row.saved.items():
            if before.saved.get(register) != at:
                small = register < 0x40
                out += bytes([_OFFSET | register] if small else [_OFFSET_EXTENDED, register])
                out += uleb(at // _DATA_UNIT)
    return bytes(out)


def _advance(units: int) -> bytes:
    if units < 0x40:
        return bytes([_ADVANCE | units])
    for size, opcode in ((1, 2), (2, 3), (4, 4)):
        if units < 1 << 8 * size:
            return bytes([opcode]) + units.to_bytes(size, "little")
    raise ValueError(f"{units} is no distance within a function")


def _define_cfa(before: Row, row: Row) -> bytes:
    if row.cfa_slot is not None:
        if replace(row, offset=0, saved={}) == replace(before, offset=0, saved={}):
            return b""
        expression = bytes([_OP_BREG0 + row.cfa_register]) + sleb(row.cfa_slot)
        expression += bytes([_OP_DEREF, _OP_PLUS_UCONST]) + uleb(row.cfa_offset)
        return bytes([_DEF_CFA_EXPRESSION]) + uleb(len(expression)) + expression
    register, offset = uleb(row.cfa_register), uleb(row.cfa_offset)
    if before.cfa_slot is not None:
        return bytes([_DEF_CFA]) + register + offset
    if before.cfa_register != row.cfa_register and before.cfa_offset != row.cfa_offset:
        return bytes([_DEF_CFA]) + register + offset
    if before.cfa_register != row.cfa_register:
        return bytes([_DEF_CFA_REGISTER]) + register
    return bytes([_DEF_CFA_OFFSET]) + offset if before.cfa_offset != row.cfa_offset else b""


def _entry(body: bytes) -> bytes:
    """A CIE or FDE with its length, padded (with DW_CFA_nop) to 8 bytes."""
    body += bytes(-(len(body) + 4) % 8)
    return struct.pack("<I", len(body)) + body


def _common(architecture: _Architecture, identity: int, augmentation: bytes, data: bytes) -> bytes:
    """The CIE: what frames of all functions have in common."""
    first = architecture.first
    body = struct.pack("<IB", identity, 1) + augmentation + b"\0"
    body += uleb(architecture.unit) + sleb(_DATA_UNIT) + bytes([architecture.return_address])
    body += data + bytes([_DEF_CFA]) + uleb(first.cfa_register) + uleb(first.cfa_offset)
    if first.cfa_offset:  # the call has pushed the return address; else it is in its register
        body += bytes([_OFFSET | architecture.return_address, first.cfa_offset // -_DATA_UNIT])
    return _entry(body)


def eh_frame(
    functions: Sequence[Function], architecture: str, address: int | None = None
) -> Frames:
    """An .eh_frame section.

    With `address`, the section's own, the distances to the functions are filled in and a terminator
    follows. Without, for files that are linked, they are left 0 for relocations, `start` is not
    looked at, and the linker adds the terminator.
    """
    chosen = ARCHITECTURES[architecture]
    out = bytearray(_common(chosen, 0, b"zR", bytes([1, _PCREL_SDATA4])))
    entries, distances = [], []
    for number, function in enumerate(functions):
        entries.append(len(out))
        place = len(out) + 8
        distances.append((place, number))
        distance = 0 if address is None else function.start - (address + place)
        body = struct.pack("<IiIB", len(out) + 4, distance, function.size, 0)
        out += _entry(body + _instructions(function.rows, chosen.unit))
    if address is not None:
        out += bytes(4)
    return Frames(bytes(out), distances, entries)


def eh_frame_hdr(
    functions: Sequence[Function], frames: Frames, frames_address: int, address: int
) -> bytes:
    """The .eh_frame_hdr section at `address`: a table of functions, sorted for binary search."""
    encodings = bytes([1, _PCREL_SDATA4, _UDATA4, _DATAREL_SDATA4])
    out = encodings + struct.pack("<iI", frames_address - (address + 4), len(functions))
    table = sorted(
        (function.start - address, frames_address + entry - address)
        for function, entry in zip(functions, frames.entries, strict=True)
    )
    return out + b"".join(struct.pack("<ii", *pair) for pair in table)


def debug_frame(functions: Sequence[Function], architecture: str) -> bytes:
    """A .debug_frame section: as .eh_frame, but with addresses of 8 bytes anywhere."""
    chosen = ARCHITECTURES[architecture]
    out = _common(chosen, 0xFFFFFFFF, b"", b"")
    for function in functions:
        body = struct.pack("<IQQ", 0, function.start, function.size)
        out += _entry(body + _instructions(function.rows, chosen.unit))
    return out
