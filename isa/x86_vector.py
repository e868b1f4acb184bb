"""Vector verbs that AVX2 and AVX-512 share: the same operations under VEX and EVEX rows.

A machine here names its table, its widest register and how a constant is written as an operand
(a whole vector in memory for AVX2, a broadcast element for AVX-512). Not here: loads, stores and
masks, which differ; see isa.avx2 and isa.avx512.
"""

from __future__ import annotations

from isa.form import Form
from isa.machine import Constant
from isa.x86 import X86Machine

#: register name by width in bits
REGISTER = {128: "xmm", 256: "ymm", 512: "zmm"}


class X86VectorMachine(X86Machine):
    """Arithmetic verbs over the rows of `table`."""

    table: dict[str, Form]
    fused_load = True

    def __init__(self, dtype: str, vector_bits: int) -> None:
        super().__init__(dtype, vector_bits)
        self.p = "ps" if dtype == "f32" else "pd"
        self.s = "ss" if dtype == "f32" else "sd"
        self.register = REGISTER[vector_bits]
        self.memory = self._memory_kind()
        self._out = self.program.records.append

    def _memory_kind(self) -> str:
        """Kind of a constant operand: "m256", "b32" ..."""
        raise NotImplementedError

    def _form(self, signature: str) -> Form:
        return self.table[signature]

    def _vector(self, mnemonic: str, *operands: object, immediate: str = "") -> None:
        """Emit an instruction on whole registers; a constant handle becomes its memory operand."""
        v = self.register
        kinds = [v] * len(operands)
        if isinstance(operands[-1], tuple):
            _, _, scale, disp = operands[-1]
            operands = (*operands[:-1], (self.constant_base, None, scale, disp))
            kinds[-1] = self.memory
        signature = f"{mnemonic} {' '.join(kinds)}"
        if immediate:
            self._out((self.table[f"{signature} uimm8"], (*operands, int(immediate))))
        else:
            self._out((self.table[signature], operands))

    def _constant(self, element: bytes) -> Constant:
        whole = element * self.lanes if self.memory[0] == "m" else element
        return (-1, None, 1, self.program.constant(whole))

    def _leave_vectors(self) -> None:
        self._out((self._form("vzeroupper"), ()))

    # ---- arithmetic -----------------------------------------------------------------------

    def add(self, d: int, a: int, b: int | Constant) -> None:
        self._vector(f"vadd{self.p}", d, a, b)

    def sub(self, d: int, a: int, b: int | Constant) -> None:
        self._vector(f"vsub{self.p}", d, a, b)

    def mul(self, d: int, a: int, b: int | Constant) -> None:
        self._vector(f"vmul{self.p}", d, a, b)

    def div(self, d: int, a: int, b: int | Constant) -> None:
        self._vector(f"vdiv{self.p}", d, a, b)

    def max(self, d: int, a: int, b: int | Constant) -> None:
        self._vector(f"vmax{self.p}", d, a, b)

    def min(self, d: int, a: int, b: int | Constant) -> None:
        self._vector(f"vmin{self.p}", d, a, b)

    def fma(self, acc: int, a: int, b: int | Constant) -> None:
        self._vector(f"vfmadd231{self.p}", acc, a, b)

    def fnma(self, acc: int, a: int, b: int | Constant) -> None:
        self._vector(f"vfnmadd231{self.p}", acc, a, b)

    def fmad(self, d: int, a: int, b: int | Constant) -> None:
        self._vector(f"vfmadd213{self.p}", d, a, b)

    def load_const(self, d: int, c: Constant) -> None:
        if self.memory[0] == "m":
            self._vector("vmovups", d, c)
        else:
            element = (self.constant_base, None, 1, c[3])
            form = f"vbroadcast{self.s} {self.register} m{8 * self.element}"
            self._out((self.table[form], (d, element)))
