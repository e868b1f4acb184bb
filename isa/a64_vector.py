"""Vector verbs that SVE and NEON share: three operands in registers, squares that are transposed.

Not here: their rows, loads and stores (`jitgen.isa.sve`, `jitgen.isa.neon`).
"""

from __future__ import annotations

from abc import abstractmethod

from jitgen.isa.a64 import A64Machine
from jitgen.isa.machine import At, Constant


class A64VectorMachine(A64Machine):
    """A machine with vectors whose arithmetic takes no operand from memory."""

    @abstractmethod
    def _three(self, mnemonic: str, d: int, a: int, b: int) -> None:
        """An instruction on whole vectors, none of whose sources it overwrites unless it is d."""

    def _register(self, b: int | Constant) -> int:
        """The register of an operand; a constant is loaded into the last of the temporaries."""
        if isinstance(b, int):
            return b
        temp = self.constant_temps[-1]
        self.load_const(temp, b)
        return temp

    def add(self, d: int, a: int, b: int | Constant) -> None:
        self._three("fadd", d, a, self._register(b))

    def sub(self, d: int, a: int, b: int | Constant) -> None:
        self._three("fsub", d, a, self._register(b))

    def mul(self, d: int, a: int, b: int | Constant) -> None:
        self._three("fmul", d, a, self._register(b))

    def transpose(self, side: int, to: At, to_row: int, source: At, source_row: int) -> None:
        # interleaving the first and the second half of the rows, log2(side) times
        rows, others = range(side), range(side, 2 * side)
        for i in rows:
            self.load(i, (source[0], source[1] + i * source_row), side)
        for _ in range(side.bit_length() - 1):
            for i in range(side // 2):
                for half in (0, 1):
                    d, a, b = others[2 * i + half], rows[i], rows[i + side // 2]
                    self._three(f"zip{half + 1}", d, a, b)
            rows, others = others, rows
        for i in range(side):
            self.store(rows[i], (to[0], to[1] + i * to_row), side)
