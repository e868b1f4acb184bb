"""What a library is made of: functions, and read-only data beside them, each under a symbol.

Not here: which functions a library has (`jitgen.objects.parts`, `jitgen.objects.entry`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jitgen.emit.routine import Routine
from jitgen.inspect.unwind import Row, rows
from jitgen.objects.elf import Fixup
from jitgen.run.cache import lazy


@dataclass(frozen=True)
class Code:
    """A function. fixups: words of its constants that become distances to other symbols. exported:
    other objects may use it. leads: its constants are functions, which stand right behind it as
    functions of their own.

    Raises ValueError, when it is looked into, if another assembler made its bytes.
    """

    symbol: str
    routine: Routine
    fixups: tuple[Fixup, ...] = ()
    exported: bool = True
    leads: bool = False

    @lazy
    def rows(self) -> Sequence[Row]:
        """Its unwind information."""
        return rows(self.routine)

    @lazy
    def constants(self) -> int:
        """Where its constants begin."""
        assert self.rows, "its bytes are those of its program"
        return len(self.routine.code) - self.routine.program.constant_bytes

    @lazy
    def code(self) -> bytes:
        """Its bytes, with constants that are its own."""
        code = self.routine.code
        return code[: self.constants] if self.leads else code


class Data(NamedTuple):
    """Read-only bytes, which begin at a cache line."""

    symbol: str
    data: bytes
