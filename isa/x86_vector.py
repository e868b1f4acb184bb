"""Vector verbs that AVX2 and AVX-512 share: the same operations under VEX and EVEX rows.

A machine here names its table, its widest register and how a constant is written as an operand
(a whole vector in memory for AVX2, a broadcast element for AVX-512). Not here: loads, stores and
masks, which differ; see jitgen.isa.avx2 and jitgen.isa.avx512.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from jitgen.isa.form import Form
from jitgen.isa.machine import At, Constant
from jitgen.isa.x86 import X86Machine
from jitgen.isa.x86_rows import parse_table

# Squares are transposed in pieces of 128 bits, which needs no permutation across them.
# mnemonic | operands | encoding | feature
TABLE = """
vmovups     | xmm m128             | VEX.128.0F.WIG 10 /r        | avx
vmovups     | m128 xmm             | VEX.128.0F.WIG 11 /r        | avx
vmovups     | m256 ymm             | VEX.256.0F.WIG 11 /r        | avx
vinsertf128 | ymm ymm m128 uimm8   | VEX.256.66.0F3A.W0 18 /r    | avx
vunpcklps   | xmm xmm xmm          | VEX.128.0F.WIG 14 /r        | avx
vunpckhps   | xmm xmm xmm          | VEX.128.0F.WIG 15 /r        | avx
vunpcklpd   | xmm xmm xmm          | VEX.128.66.0F.WIG 14 /r     | avx
vunpckhpd   | xmm xmm xmm          | VEX.128.66.0F.WIG 15 /r     | avx
vunpcklps   | ymm ymm ymm          | VEX.256.0F.WIG 14 /r        | avx
vunpckhps   | ymm ymm ymm          | VEX.256.0F.WIG 15 /r        | avx
vunpcklpd   | ymm ymm ymm          | VEX.256.66.0F.WIG 14 /r     | avx
vunpckhpd   | ymm ymm ymm          | VEX.256.66.0F.WIG 15 /r     | avx
"""
TRANSPOSE = parse_table(TABLE)
#: register name by width in bits
REGISTER = {128: "xmm", 256: "ymm", 512: "zmm"}
#: ends of the names of instructions on vectors and on single floats, by their size in bytes
SUFFIXES = {4: ("ps", "ss"), 8: ("pd", "sd")}
#: vshufps that exchanges the halves of parts of so many bits
SWAPS = {128: str(0x4E), 64: str(0xB1)}


class X86VectorMachine(X86Machine):
    """Arithmetic verbs over the rows of `table`."""

    table: dict[str, Form]
    fused_load = True

    def __init__(self, arithmetic: str, vector_bits: int, storage: str | None = None) -> None:
        super().__init__(arithmetic, vector_bits, storage)
        self.p, self.s = SUFFIXES[self.arithmetic.size]
        self.register = REGISTER[vector_bits]
        self.memory = self._memory_kind()
        self._out = self.program.records.append
        self.transpose_squares = tuple(size // self.element for size in (64, 32, 16))

    @abstractmethod
    def _memory_kind(self) -> str:
        """Kind of a constant operand: "m256", "b32" ..."""

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

    def transpose(self, side: int, to: At, to_row: int, source: At, source_row: int) -> None:
        group = 16 // self.element
        if side > 2 * group:  # a cache line wide: in quarters, those of the same rows together
            half = side // 2
            for row in (0, half):
                for column in (0, half):
                    at = source[1] + row * source_row + column * self.element
                    corner = (to[0], to[1] + column * to_row + row * self.element)
                    self.transpose(half, corner, to_row, (source[0], at), source_row)
            return
        kind, bits = ("ymm", 256) if side > group else ("xmm", 128)
        for first in range(0, side, group):
            for i in range(group):
                at = source[1] + i * source_row + first * self.element
                self._out((TRANSPOSE["vmovups xmm m128"], (i, (source[0], None, 1, at))))
                if side > group:
                    memory = (source[0], None, 1, at + group * source_row)
                    self._out((TRANSPOSE["vinsertf128 ymm ymm m128 uimm8"], (i, i, memory, 1)))
            columns = self.transpose_pieces(TRANSPOSE, kind, range(group), range(4, 4 + group))
            for i, column in enumerate(columns, first):
                memory = (to[0], None, 1, to[1] + i * to_row)
                self._out((TRANSPOSE[f"vmovups m{bits} {kind}"], (memory, column)))

    def transpose_pieces(
        self, table: dict[str, Form], kind: str, r: Sequence[int], t: Sequence[int]
    ) -> Sequence[int]:
        """Transpose, in each piece of 128 bits, the square that registers r hold; t are others.

        Returns the registers with the result, r or t.
        """

        def unpack(letters: str, d: int, a: int, b: int) -> None:
            self._out((table[f"vunpck{letters} {kind} {kind} {kind}"], (d, a, b)))

        if len(r) == 2:
            unpack("lpd", t[0], r[0], r[1])
            unpack("hpd", t[1], r[0], r[1])
            return t
        # interleave rows 0 and 1, 2 and 3; then pairs of elements make the columns
        for d, letter, row in ((0, "l", 0), (1, "h", 0), (2, "l", 2), (3, "h", 2)):
            unpack(f"{letter}ps", t[d], r[row], r[row + 1])
        for d, letter, a in ((0, "l", 0), (1, "h", 0), (2, "l", 1), (3, "h", 1)):
            unpack(f"{letter}pd", r[d], t[a], t[a + 2])
        return r

    # ---- arithmetic -----------------------------------------------------------------------

    def add(self, d: int, a: int, b: int | Constant) -> None:
        self._vector(f"vadd{self.p}", d, a, b)

    def sub(self, d: int, a: int, b: int | Constant) -> None:
        self._vector(f"vsub{self.p}", d, a, b)

    def mul(self, d: int, a: int, b: int | Constant) -> None:
        self._vector(f"vmul{self.p}", d, a, b)

    def div(self, d: int, a: int, b: int | Constant) -> None:
        self._vector(f"vdiv{self.p}", d, a, b)

    def sqrt(self, d: int, a: int) -> None:
        self._vector(f"vsqrt{self.p}", d, a)

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

    # ---- across lanes ---------------------------------------------------------------------

    def sum_lanes(self, d: int, v: int, temp: int) -> None:
        self._across_lanes("vadd", d, v, temp)

    def max_lanes(self, d: int, v: int, temp: int) -> None:
        self._across_lanes("vmax", d, v, temp)

    def _across_lanes(self, operation: str, d: int, v: int, temp: int) -> None:
        """Every lane of d = all lanes of v, combined: with halves exchanged, of ever smaller
        parts."""
        bits = self.vector_bits
        while bits > 8 * self.arithmetic.size:
            if bits > 128:
                self._exchange_pieces(temp, v, bits)
            else:
                self._vector("vshufps", temp, v, v, immediate=SWAPS[bits])
            self._vector(f"{operation}{self.p}", d, v, temp)
            v, bits = d, bits // 2

    @abstractmethod
    def _exchange_pieces(self, d: int, v: int, bits: int) -> None:
        """d = v with the halves of each part of `bits`, more than 128, exchanged."""

    def load_const(self, d: int, c: Constant) -> None:
        if self.memory[0] == "m":
            self._vector("vmovups", d, c)
        else:
            element = (self.constant_base, None, 1, c[3])
            form = f"vbroadcast{self.s} {self.register} m{8 * self.arithmetic.size}"
            self._out((self.table[form], (d, element)))
