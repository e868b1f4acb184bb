"""What debuggers and profilers learn of one loaded function: name, code, frames, listing.

A loaded routine is one function or, a stream's driver, several: each has an image of its own.

Not here: how each of them is told (`jitgen.debug.perf`, `jitgen.debug.jitdump`,
`jitgen.debug.gdb`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jitgen.inspect.names import symbol_name
from jitgen.inspect.unwind import Row, program_rows

if TYPE_CHECKING:
    from jitgen.emit.routine import Piece, Routine
    from jitgen.run.loader import Code

#: A line of a listing that shows bytes of code: its offset
_CODE = re.compile(r" *([0-9a-f]+)  (?:[0-9a-f]{2})+ ")


class Details(NamedTuple):
    """The listing, (offset of an instruction, its line in the listing, from 1), and the frames
    (`jitgen.inspect.unwind`). Lines and frames are empty where another assembler made the code."""

    listing: str
    lines: list[tuple[int, int]]
    rows: list[Row]


class Image:
    """A function that is loaded: a piece of a routine's code, with as many bytes of `room` of its
    own. It keeps the routine and its place alive, so that the address stays its own."""

    def __init__(self, routine: Routine, loaded: Code, piece: Piece, room: int) -> None:
        self._loaded = routine, loaded
        #: what the function is
        self.routine = piece.routine
        self.name = symbol_name(piece.routine)
        self.architecture = routine.target.architecture
        #: its code with constants, but without that of other functions behind it
        self.code = piece.routine.code[: piece.size]
        #: address of the code, and how many bytes from there are the function's own
        self.address, self.room = loaded.address + piece.offset, room
        #: general-purpose register of the argument
        self.argument = routine.argument

    def details(self) -> Details:
        """Made anew each time: some 100 KB that images of many kernels need not keep."""
        text = self.routine.listing()
        program = self.routine.program
        if program.encode() != self.routine.code:
            return Details(text, [], [])
        starts = {line.offset for line in program.lines() if line.kind == "instruction"}
        numbered = enumerate(text.splitlines(), 1)
        found = [(int(match[1], 16), n) for n, s in numbered if (match := _CODE.match(s))]
        # a long instruction takes several lines
        lines = [(offset, n) for offset, n in found if offset in starts]
        return Details(text, lines, program_rows(program, self.architecture))

    def write_listing(self, folder: Path, text: str) -> Path:
        """Write the listing there; returns the file, whose name is the function's."""
        path = folder / f"{self.name}.lst"
        path.write_text(text, encoding="utf-8")
        return path


def images(routine: Routine, loaded: Code) -> list[Image]:
    """One for each function of a routine that has been loaded."""
    pieces = routine.pieces()
    ends = [*(piece.offset for piece in pieces[1:]), loaded.room]
    return [
        Image(routine, loaded, piece, end - piece.offset)
        for piece, end in zip(pieces, ends, strict=True)
    ]
