"""What debuggers and profilers learn of one loaded kernel: name, code, frames, listing.

Not here: how each of them is told (`jitgen.debug.perf`, `jitgen.debug.jitdump`,
`jitgen.debug.gdb`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jitgen.inspect.names import symbol_name
from jitgen.inspect.unwind import Row, rows

if TYPE_CHECKING:
    from jitgen.gemm.kernel import Kernel
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
    """A kernel that is loaded. It keeps the kernel alive, so that its address stays its own."""

    def __init__(self, kernel: Kernel, loaded: Code) -> None:
        self.kernel = kernel
        self._loaded = loaded
        self.name = symbol_name(kernel)
        self.architecture = kernel.target.architecture
        self.code = kernel.code
        #: address of the code, and how many bytes from there are the kernel's own
        self.address, self.room = loaded.address, loaded.room
        #: general-purpose register of the argument
        self.argument = kernel.target.machine(kernel.spec.dtype, kernel.spec.n).argument

    def details(self) -> Details:
        """Made anew each time: some 100 KB that images of many kernels need not keep."""
        from jitgen.inspect.listing import listing

        text = listing(self.kernel)
        program = self.kernel.program
        if program.encode() != self.code:
            return Details(text, [], [])
        starts = {line.offset for line in program.lines() if line.kind == "instruction"}
        numbered = enumerate(text.splitlines(), 1)
        found = [(int(match[1], 16), n) for n, s in numbered if (match := _CODE.match(s))]
        # a long instruction takes several lines
        lines = [(offset, n) for offset, n in found if offset in starts]
        return Details(text, lines, rows(self.kernel))

    def write_listing(self, folder: Path, text: str) -> Path:
        """Write the listing there; returns the file, whose name is the kernel's."""
        path = folder / f"{self.name}.lst"
        path.write_text(text, encoding="utf-8")
        return path
