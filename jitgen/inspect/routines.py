"""A routine that is no kernel as text and as values: its words, registers, sections and
instructions.

Kernels have a plan, which gives each of their instructions a meaning (`jitgen.inspect.listing`).
Not here: assembly (`jitgen.inspect.asm`), pages (`jitgen.inspect.html`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from typing import Any

from jitgen.emit.routine import Routine
from jitgen.inspect.listing import ListedLine, facts, line_values, mix
from jitgen.inspect.loops import Loop, find_loops
from jitgen.inspect.registers import general_name
from jitgen.inspect.text import numbered
from jitgen.isa.form import Record
from jitgen.isa.program import LABEL

#: Says what a JSON file is
KIND = "jitgen routine 1"


def lines(routine: Routine) -> list[ListedLine]:
    """The routine's own instructions line by line, without meanings."""
    own, *_ = routine.pieces()
    some = list(takewhile(lambda line: line.offset < own.size, routine.program.lines()))
    records: list[Record] = [line.record or (LABEL, ()) for line in some]
    ends = find_loops(records)
    last = list(ends.values())
    told, depth, found = facts(routine), 0, []
    for i, line in enumerate(some):
        loop = Loop(i, ends[i]) if line.kind == "label" and i in ends else None
        roles, kind = told(line)
        found.append(ListedLine(line, depth, roles, "", loop, kind))
        depth += (loop is not None) - last.count(i)
    return found


def listing(routine: Routine) -> str:
    """Header, sections, instructions, constants, and the functions that lie behind them."""
    _, *behind = routine.pieces()
    out = [f"; {line}".rstrip() for line in _header(routine)]
    for line, depth, *_ in lines(routine):
        if line.kind == "section":
            out += ["", f"; {line.text}"]
        elif line.kind == "label":
            out.append(f"{line.text}:")
        else:
            out += numbered(line, depth, "")
    if behind:
        out += ["", "; behind it, at these offsets"]
    out += [f"; {p.offset:6x}  {p.routine.name}, {p.size} bytes" for p in behind]
    return "\n".join(out) + "\n"


def needs(routine: Routine) -> list[str]:
    """Features of a CPU that its instructions need."""
    return sorted({f for some in routine.program.features for f in some.split()})


def _header(routine: Routine) -> Iterator[str]:
    target = routine.target
    yield f"{routine.name} for {target.name}"
    size = len(routine.code)
    yield f"{size} bytes with constants; needs {', '.join(needs(routine)) or 'nothing'}"
    if routine.code != routine.program.encode():
        yield "the code came about elsewhere: its instructions are not known"
    yield from ("", "words of its argument")
    for operand in routine.signature:
        yield f"  {operand.word:16} {operand.type:9} {operand.meaning}"
    yield from ("", "general-purpose registers")
    yield f"  {general_name(target, routine.argument):4} the argument"
    for role, number in routine.roles.items():
        yield f"  {general_name(target, number):4} {role}"


def as_values(routine: Routine) -> dict[str, Any]:
    """The listing as JSON has it: plain lists, dicts, strings and numbers."""
    all_lines = lines(routine)
    _, *behind = routine.pieces()
    registers = {role: general_name(routine.target, n) for role, n in routine.roles.items()}
    return {
        "format": KIND, "name": routine.name, "target": routine.target.name,
        "code_bytes": len(routine.code), "needs": needs(routine),
        "words": [
            {"word": o.word, "type": o.type, "meaning": o.meaning} for o in routine.signature
        ],
        "general_registers": registers, "instructions": mix(all_lines),
        "lines": [line_values(each, "") for each in all_lines],
        "behind": [
            {"offset": p.offset, "name": p.routine.name, "bytes": p.size} for p in behind
        ],
    }  # fmt: skip
