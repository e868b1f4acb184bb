"""Programs: labels, short and long branches, alignment, constants, and the bounded byte caches.

Not here: the bytes of instructions (test_rows).
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from jitgen.isa import form as forms
from jitgen.isa.program import CONSTANTS, DATA_ALIGN, Program
from jitgen.isa.x86 import FORMS, nops


def _jumps(distance: int) -> bytes:
    """A jump over `distance` bytes."""
    program = Program(nops)
    label = program.new_label()
    program.emit(FORMS["jmp rel"], (label,))
    for _ in range(distance):
        program.emit(FORMS["ret"], ())
    program.place(label)
    return program.encode()


@pytest.mark.parametrize(("distance", "size"), [(0, 2), (127, 2), (128, 5), (1000, 5)])
def test_branches_are_as_short_as_they_can_be(distance: int, size: int) -> None:
    code = _jumps(distance)
    assert len(code) == size + distance
    offset = int.from_bytes(code[1:size], "little", signed=True)
    assert offset == distance


def test_a_branch_that_grows_can_make_another_grow() -> None:
    program = Program(nops)
    outer, inner = program.new_label(), program.new_label()
    program.emit(FORMS["jne rel"], (outer,))
    program.emit(FORMS["jmp rel"], (inner,))
    for _ in range(124):
        program.emit(FORMS["ret"], ())
    program.place(outer)
    for _ in range(10):
        program.emit(FORMS["ret"], ())
    program.place(inner)
    code = program.encode()
    # the jump is long, which pushes the first branch's target out of reach too
    assert len(code) == 6 + 5 + 134
    assert int.from_bytes(code[2:6], "little") == 5 + 124


def test_alignment_is_of_whole_instructions_of_no_effect() -> None:
    program = Program(nops)
    for before in range(33):
        program = Program(nops)
        for _ in range(before):
            program.emit(FORMS["ret"], ())
        program.align(32)
        program.emit(FORMS["ret"], ())
        code = program.encode()
        padding = -before % 32
        assert code[before : before + padding] == nops(padding)
        assert len(code) == before + padding + 1


def test_equal_constants_share_a_place_behind_the_code() -> None:
    program = Program(nops)
    assert program.constant(b"abcd") == 0
    assert program.constant(bytes(32)) == 32
    assert program.constant(b"abcd") == 0
    program.emit(FORMS["lea r64 rip"], (1, program.data_label))
    code = program.encode()
    assert code[DATA_ALIGN : DATA_ALIGN + 4] == b"abcd"
    assert len(code) == DATA_ALIGN + 64
    assert int.from_bytes(code[3:7], "little") == DATA_ALIGN - 7


def test_lines_give_the_bytes_in_order() -> None:
    program = Program(nops)
    label = program.new_label()
    program.section("a section")
    program.place(label)
    program.emit(FORMS["add r64 imm32"], (3, 1000))
    program.align(16)
    program.emit(FORMS["jne rel"], (label,))
    lines = list(program.lines())
    assert b"".join(line.code for line in lines) == program.encode()
    assert [line.kind for line in lines[:2]] == ["section", "label"]


def test_a_section_is_what_the_program_was_told() -> None:
    """A listing's text is its `str()`, the section itself stays what it was; no bytes."""

    class Part(NamedTuple):
        number: int

        def __str__(self) -> str:
            return f"part {self.number}"

    program = Program(nops)
    program.section(Part(3))
    program.section("a sentence")
    program.emit(FORMS["ret"], ())
    program.constant(b"abcd")
    lines = list(program.lines())
    sections = [(x.text, x.section) for x in lines if x.kind == "section"]
    assert sections == [("part 3", Part(3)), ("a sentence", "a sentence"), (CONSTANTS, CONSTANTS)]
    assert isinstance(lines[0].section, Part)
    assert all(x.section is None for x in lines if x.kind != "section")
    assert program.encode() == lines[2].code.ljust(DATA_ALIGN, b"\0") + b"abcd"


def test_byte_caches_are_bounded() -> None:
    form = FORMS["add r64 imm32"]
    for begin in range(0, 3 * forms.CACHE_SIZE, 500):
        program = Program(nops)
        for value in range(begin, begin + 500):
            program.emit(form, (3, value))
        assert len(program.encode()) == 500 * 7
        assert len(form.cache) <= forms.CACHE_SIZE
