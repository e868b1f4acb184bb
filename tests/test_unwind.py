"""Unwind information: right at every instruction, as stepping through kernels shows, and written as
readelf reads it."""

from __future__ import annotations

import random
import re
import shutil
import struct
import subprocess
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stepping
from needs import need
from random_cases import SEED, random_case
from stepping import STACK, Guest

import jitgen
from jitgen import isa
from jitgen.inspect.unwind import (
    ARCHITECTURES,
    Function,
    Row,
    debug_frame,
    eh_frame,
    eh_frame_hdr,
    program_rows,
    rows,
    sleb,
    uleb,
)
from jitgen.isa import a64, x86
from jitgen.isa.program import Program
from jitgen.objects.elf import PROGBITS, READ, Header, assemble_file

#: Frames of every kind: nothing saved, much saved, scratch on the stack, of more than a page
KINDS = {
    "plain": {"m": 8, "n": 8, "k": 8},
    "saves": {
        "m": 12, "n": 64, "k": 4, "beta": 1.0, "epilogue": ("bias", "relu"),
        "plan": {"k_block": 2, "batch_chunk": 1},
    },
    "scratch": {"m": 4, "n": 8, "k": 4, "trans_b": True},
    "pages": {"m": 1, "n": 48, "k": 32, "trans_b": True, "plan": {"k_block": 32}},
}  # fmt: skip


def _stepped(target: str, kind: str) -> jitgen.Kernel:
    return jitgen.brgemm(**KINDS[kind], target=target)


def check_steps(guest: Guest, table: Sequence[Row]) -> int:
    """Step to the end; at each instruction the row must lead to the caller. Returns the steps."""
    starts = [row.offset for row in table]
    steps = 0
    running = True
    while running:
        row = table[bisect_right(starts, guest.offset) - 1]
        where = f"at offset {guest.offset:#x}: {row}"
        cfa = guest.register(row.cfa_register)
        if row.cfa_slot is not None:
            cfa = guest.read(cfa + row.cfa_slot)
        cfa += row.cfa_offset
        assert cfa == STACK, f"CFA {cfa:#x} is not {STACK:#x} {where}"
        for register, value in guest.expected.items():
            at = row.saved.get(register)
            found = guest.register(register) if at is None else guest.read(cfa + at)
            assert found == value, f"register {register} is {found:#x} {where}"
        running = guest.step()
        steps += 1
    return steps


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["avx2", "sve256", "sve512", "neon"])
def test_rows_lead_to_the_caller_at_every_instruction(target: str, kind: str) -> None:
    need(stepping.available())
    kernel = _stepped(target, kind)
    table = rows(kernel)
    if kind in ("scratch", "pages"):
        assert kernel.plan.pack
    with Guest(kernel) as guest:
        assert check_steps(guest, table) > 100


def test_rows_of_the_refusal_of_another_vector_length() -> None:
    """SVE kernels return early, in their middle, where the length is not theirs."""
    need(stepping.available())
    kernel = _stepped("sve512", "saves")
    with Guest(kernel, vector_bits=256) as guest:
        assert check_steps(guest, rows(kernel)) == 5


@pytest.mark.parametrize("target", ["avx2", "sve256"])
@pytest.mark.parametrize("kind", ["saves", "scratch"])
def test_stepping_notices_each_wrong_row(target: str, kind: str) -> None:
    """Another CFA, another place of a register, a row that begins too late or is missing."""
    need(stepping.available())
    kernel = _stepped(target, kind)
    table = rows(kernel)
    offsets = [x.offset for x in kernel.program.lines() if x.kind == "instruction"]
    wrong = []
    for i, row in enumerate(table):
        wrong.append([*table[:i], replace(row, cfa_offset=row.cfa_offset + 8), *table[i + 1 :]])
        for register, at in row.saved.items():
            moved = replace(row, saved={**row.saved, register: at - 8})
            wrong.append([*table[:i], moved, *table[i + 1 :]])
        if i and row.cfa_offset != table[i - 1].cfa_offset:
            behind = offsets[bisect_right(offsets, row.offset)] if row.offset < offsets[-1] else 0
            rest = [r for r in table[i + 1 :] if r.offset > behind]
            late = [replace(row, offset=behind)] if table[i + 1 :] == rest and behind else []
            wrong.append([*table[:i], *late, *rest])
    for each in random.Random(SEED).sample(wrong, 6):
        with Guest(kernel) as guest, pytest.raises(AssertionError, match="at offset"):
            check_steps(guest, each)


@pytest.mark.parametrize("target", ["avx2", "avx512", "sve128", "sve1024", "neon"])
def test_rows_of_random_kernels(target: str) -> None:
    """They can be followed; at the end all is as at the start."""
    rng = random.Random(f"{SEED} {target}")
    done = 0
    while done < 12:
        try:
            kernel = random_case(rng, 60).kernel(target)
        except ValueError:
            continue
        table = rows(kernel)
        offsets = [row.offset for row in table]
        assert offsets == sorted(set(offsets)) and offsets[0] == 0
        assert offsets[-1] < len(kernel.code)
        assert replace(table[-1], offset=0) == table[0]
        done += 1


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "records", "message"),
    [
        ("x86_64", [("add r64 imm8", x86.RSP, -8)], "'add rsp, -8' changes the frame"),
        ("x86_64", [("mov r64 r64", x86.RAX, x86.RSP), ("xor r32 r32", 0, 0)], "changes the frame"),
        ("x86_64", [("and r64 r64", x86.RSP, 5)], "changes the frame"),
        ("x86_64", [("je rel", 9), ("push r64", 3), ("label", 9)], "label L9 have different"),
        ("x86_64", [("label", 9), ("push r64", 3), ("jmp rel", 9)], "label L9 have different"),
        ("x86_64", [("ret",), ("push r64", 3)], "nothing leads to 'push rbx'"),
        ("aarch64", [("add xsp xsp imm", 31, 5, 0)], "'add sp, x5, #0' changes the frame"),
        ("aarch64", [("cbz x label", 1, 9), ("sub xsp xsp imm", 31, 31, 16), ("label", 9)], "L9"),
    ],
)
def test_unknown_frames_are_refused(
    architecture: str, records: list[tuple[Any, ...]], message: str
) -> None:
    forms = x86.FORMS if architecture == "x86_64" else a64.FORMS
    program = Program()
    for signature, *operands in [*records, ("ret",)]:
        if signature == "label":
            program.place(operands[0])
        else:
            program.emit(forms[signature], tuple(operands))
    with pytest.raises(ValueError, match=re.escape(message)):
        program_rows(program, architecture)


def test_a_function_that_calls_saves_its_link() -> None:
    """Frames of functions that call others, which kernels do not."""
    for family in ("avx2", "sve"):
        machine = isa.open_machine(family, "f32", 256)
        machine.begin(machine.kept[:3], 64, calls=True)
        machine.call(machine.kept[0], machine.kept[1])
        machine.end()
        architecture = "x86_64" if family == "avx2" else "aarch64"
        table = program_rows(machine.program, architecture)
        inside = max(table, key=lambda row: len(row.saved))
        assert (30 in inside.saved) == (family == "sve")
        assert replace(table[-1], offset=0) == ARCHITECTURES[architecture].first


# ---- what is written -----------------------------------------------------------------------------


def _readelf(folder: Path, architecture: str, header: Header, option: str) -> str:
    if not shutil.which("readelf"):
        need("readelf is not installed (Debian, Ubuntu: binutils)")
    path = folder / "frames.o"
    path.write_bytes(assemble_file(2, architecture, [header]))
    command = ["readelf", f"--debug-dump={option}", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not done.stderr, done.stderr
    return done.stdout


def _names(architecture: str) -> dict[str, int]:
    if architecture == "x86_64":
        named = ("rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp")
        numbered = {f"r{i}": i for i in range(8, 16)}
        return {name: i for i, name in enumerate(named)} | numbered | {"ra": 16}
    general = {f"x{i}": i for i in range(31)} | {"sp": 31, "ra": 30}
    return general | {f"v{i}": 64 + i for i in range(32)}


def _tables(text: str, architecture: str) -> list[list[Row]]:
    """The rows of each FDE that readelf has interpreted; offsets are addresses."""
    names = _names(architecture)
    out: list[list[Row]] = []
    columns: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if match := re.search(r" FDE .* pc=(\w+)", line):
            # where nothing changes readelf prints no table
            out.append([replace(ARCHITECTURES[architecture].first, offset=int(match[1], 16))])
        elif words[:2] == ["LOC", "CFA"]:
            columns = words[2:]
            out[-1:] = [[]] if out else []
        elif out and re.match(r"[0-9a-f]{16} ", line):
            cfa = re.fullmatch(r"(\w+)\+(\d+)", words[1])
            register, offset = (names[cfa[1]], int(cfa[2])) if cfa else (-1, -1)
            saved = {
                names[c]: int(w[1:]) for c, w in zip(columns, words[2:], strict=True) if w[0] == "c"
            }
            out[-1].append(Row(int(words[0], 16), register, offset, None, saved))
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["avx2", "avx512", "sve128", "sve512", "neon"])
@pytest.mark.parametrize("section", [".eh_frame", ".debug_frame"])
def test_readelf_reads_the_rows(target: str, kind: str, section: str, tmp_path: Path) -> None:
    kernel, other = _stepped(target, kind), _stepped(target, "plain")
    architecture = kernel.target.architecture
    start, address = 0x7000_1000, 0x7100_0000
    functions = [
        Function(start, len(kernel.code), rows(kernel)),
        Function(start + 0x8000, len(other.code), rows(other)),
    ]
    if section == ".eh_frame":
        data = eh_frame(functions, architecture, address).data
    else:
        data = debug_frame(functions, architecture)
    header = Header(section, PROGBITS, READ, data, address, align=8)
    read = _tables(_readelf(tmp_path, architecture, header, "frames-interp"), architecture)
    hidden = {16} if architecture == "x86_64" else set()  # the return address, from the CIE
    for function, found in zip(functions, read, strict=True):
        expected = [
            replace(row, offset=row.offset + function.start, cfa_slot=None)
            if row.cfa_slot is None
            else Row(row.offset + function.start, -1, -1, None, row.saved)
            for row in function.rows
        ]
        cleared = [
            replace(r, saved={k: v for k, v in r.saved.items() if k not in hidden}) for r in found
        ]
        assert cleared == expected
    slots = [row for row in functions[0].rows if row.cfa_slot is not None]
    if slots:
        raw = _readelf(tmp_path, architecture, header, "frames")
        row = slots[0]
        assert (
            f"DW_OP_breg7 (rsp): {row.cfa_slot}; DW_OP_deref; DW_OP_plus_uconst: {row.cfa_offset}"
        ) in raw


def test_frames_for_linkers_leave_distances_to_relocations() -> None:
    kernel = _stepped("avx2", "saves")
    functions = [Function(0, len(kernel.code), rows(kernel))] * 2
    linked, final = (eh_frame(functions, "x86_64", at) for at in (None, 0x1000))
    assert linked.distances == final.distances and linked.entries == final.entries
    blank = bytearray(final.data[:-4])  # but for the terminator
    for place, _ in final.distances:
        assert struct.unpack_from("<i", blank, place)[0] == -(0x1000 + place)
        struct.pack_into("<i", blank, place, 0)
    assert linked.data == bytes(blank)


def test_the_search_table_is_sorted_and_finds_each_function() -> None:
    table = [Row(0, 7, 8)]
    functions = [Function(start, 16, table) for start in (0x3000, 0x1000, 0x2000)]
    frames = eh_frame(functions, "x86_64", 0x8000)
    data = eh_frame_hdr(functions, frames, 0x8000, 0x9000)
    kinds, to_frames, count = data[:4], *struct.unpack_from("<iI", data, 4)
    assert kinds == bytes([1, 0x1B, 3, 0x3B]) and 0x9004 + to_frames == 0x8000 and count == 3
    pairs = list(struct.iter_unpack("<ii", data[12:]))
    assert [0x9000 + start for start, _ in pairs] == [0x1000, 0x2000, 0x3000]
    for start, entry in pairs:
        place = 0x9000 + entry - 0x8000
        distance = struct.unpack_from("<i", frames.data, place + 8)[0]
        assert 0x8000 + place + 8 + distance == 0x9000 + start


@pytest.mark.parametrize(
    ("value", "unsigned", "signed"),
    [(0, "00", "00"), (63, "3f", "3f"), (64, "40", "c000"), (127, "7f", "ff00"),
     (128, "8001", "8001"), (624485, "e58e26", "e58e26")],
)  # fmt: skip
def test_leb128(value: int, unsigned: str, signed: str) -> None:
    """Among them the example of DWARF 5, section 7.6."""
    assert uleb(value).hex() == unsigned and sleb(value).hex() == signed
    assert sleb(-64).hex() == "40" and sleb(-65).hex() == "bf7f" and sleb(-123456).hex() == "c0bb78"
