"""A routine that is no kernel as text: its words, registers, sections and instructions.

Kernels have a plan, which gives each of their instructions a meaning (`jitgen.inspect.listing`).
Not here: other formats.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

from jitgen.emit.routine import Routine
from jitgen.inspect.loops import find_loops
from jitgen.inspect.registers import general_name
from jitgen.inspect.text import numbered
from jitgen.isa.form import Record
from jitgen.isa.program import LABEL


def listing(routine: Routine) -> str:
    """Header, sections, instructions, constants, and the functions that lie behind them."""
    own, *behind = routine.pieces()
    lines = list(takewhile(lambda line: line.offset < own.size, routine.program.lines()))
    records: list[Record] = [line.record or (LABEL, ()) for line in lines]
    ends = find_loops(records)
    depth = 0
    out = [f"; {line}".rstrip() for line in _header(routine)]
    for i, line in enumerate(lines):
        if line.kind == "section":
            out += ["", f"; {line.text}"]
        elif line.kind == "label":
            out.append(f"{line.text}:")
            depth += i in ends
        else:
            out += numbered(line, depth, "")
            depth -= list(ends.values()).count(i)
    if behind:
        out += ["", "; behind it, at these offsets"]
    out += [f"; {p.offset:6x}  {p.routine.name}, {p.size} bytes" for p in behind]
    return "\n".join(out) + "\n"


def _header(routine: Routine) -> Iterator[str]:
    target = routine.target
    needs = sorted({f for some in routine.program.features for f in some.split()})
    yield f"{routine.name} for {target.name}"
    yield f"{len(routine.code)} bytes with constants; needs {', '.join(needs) or 'nothing'}"
    if routine.code != routine.program.encode():
        yield "the code came about elsewhere: its instructions are not known"
    yield from ("", "words of its argument")
    for operand in routine.signature:
        yield f"  {operand.word:16} {operand.type:9} {operand.meaning}"
    yield from ("", "general-purpose registers")
    yield f"  {general_name(target, routine.argument):4} the argument"
    for role, number in routine.roles.items():
        yield f"  {general_name(target, number):4} {role}"
