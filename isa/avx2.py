"""AVX2 with FMA: rows under VEX, and the vector verbs. 16 registers of 256 bits, no masks.

A tail of 1, 2 or 4 elements has loads and stores of its own width; other tails are loaded under a
mask vector (vmaskmov) and stored in two or three pieces, because masked stores are slow on AMD.
"""

from __future__ import annotations

from collections.abc import Sequence

from jitgen.isa.form import Form
from jitgen.isa.machine import At, Constant
from jitgen.isa.x86 import RAX
from jitgen.isa.x86_rows import parse_table
from jitgen.isa.x86_vector import TRANSPOSE, X86VectorMachine

# mnemonic | operands | encoding | feature
TABLE = """
vmovups      | ymm ymm/m256           | VEX.256.0F.WIG 10 /r         | avx
vmovups      | xmm xmm/m128           | VEX.128.0F.WIG 10 /r         | avx
vmovups      | m256 ymm               | VEX.256.0F.WIG 11 /r         | avx
vmovups      | m128 xmm               | VEX.128.0F.WIG 11 /r         | avx
vmovss       | xmm m32                | VEX.LIG.F3.0F.WIG 10 /r      | avx
vmovss       | m32 xmm                | VEX.LIG.F3.0F.WIG 11 /r      | avx
vmovsd       | xmm m64                | VEX.LIG.F2.0F.WIG 10 /r      | avx
vmovsd       | m64 xmm                | VEX.LIG.F2.0F.WIG 11 /r      | avx
vextractps   | m32 xmm uimm8          | VEX.128.66.0F3A.WIG 17 /r    | avx
vextractf128 | xmm/m128 ymm uimm8     | VEX.256.66.0F3A.W0 19 /r MR  | avx
vmaskmovps   | ymm ymm m256           | VEX.256.66.0F38.W0 2C /r     | avx
vmaskmovpd   | ymm ymm m256           | VEX.256.66.0F38.W0 2D /r     | avx
vbroadcastss | ymm m32                | VEX.256.66.0F38.W0 18 /r     | avx
vbroadcastsd | ymm m64                | VEX.256.66.0F38.W0 19 /r     | avx
vxorps       | xmm xmm xmm/m128       | VEX.128.0F.WIG 57 /r         | avx
vandps       | ymm ymm ymm/m256       | VEX.256.0F.WIG 54 /r         | avx
vorps        | ymm ymm ymm/m256       | VEX.256.0F.WIG 56 /r         | avx
vaddps       | ymm ymm ymm/m256       | VEX.256.0F.WIG 58 /r         | avx
vaddpd       | ymm ymm ymm/m256       | VEX.256.66.0F.WIG 58 /r      | avx
vsubps       | ymm ymm ymm/m256       | VEX.256.0F.WIG 5C /r         | avx
vsubpd       | ymm ymm ymm/m256       | VEX.256.66.0F.WIG 5C /r      | avx
vmulps       | ymm ymm ymm/m256       | VEX.256.0F.WIG 59 /r         | avx
vmulpd       | ymm ymm ymm/m256       | VEX.256.66.0F.WIG 59 /r      | avx
vdivps       | ymm ymm ymm/m256       | VEX.256.0F.WIG 5E /r         | avx
vdivpd       | ymm ymm ymm/m256       | VEX.256.66.0F.WIG 5E /r      | avx
vsqrtps      | ymm ymm/m256           | VEX.256.0F.WIG 51 /r         | avx
vsqrtpd      | ymm ymm/m256           | VEX.256.66.0F.WIG 51 /r      | avx
vmaxps       | ymm ymm ymm/m256       | VEX.256.0F.WIG 5F /r         | avx
vmaxpd       | ymm ymm ymm/m256       | VEX.256.66.0F.WIG 5F /r      | avx
vminps       | ymm ymm ymm/m256       | VEX.256.0F.WIG 5D /r         | avx
vminpd       | ymm ymm ymm/m256       | VEX.256.66.0F.WIG 5D /r      | avx
vfmadd231ps  | ymm+ ymm ymm/m256      | VEX.256.66.0F38.W0 B8 /r     | fma
vfmadd231pd  | ymm+ ymm ymm/m256      | VEX.256.66.0F38.W1 B8 /r     | fma
vfnmadd231ps | ymm+ ymm ymm/m256      | VEX.256.66.0F38.W0 BC /r     | fma
vfnmadd231pd | ymm+ ymm ymm/m256      | VEX.256.66.0F38.W1 BC /r     | fma
vfmadd213ps  | ymm+ ymm ymm/m256      | VEX.256.66.0F38.W0 A8 /r     | fma
vfmadd213pd  | ymm+ ymm ymm/m256      | VEX.256.66.0F38.W1 A8 /r     | fma
vpslld       | ymm ymm uimm8          | VEX.256.66.0F.WIG 72 /6      | avx2
vpsllq       | ymm ymm uimm8          | VEX.256.66.0F.WIG 73 /6      | avx2
vpsrld       | ymm ymm uimm8          | VEX.256.66.0F.WIG 72 /2      | avx2
vpsrlq       | ymm ymm uimm8          | VEX.256.66.0F.WIG 73 /2      | avx2
vshufps      | ymm ymm ymm uimm8      | VEX.256.0F.WIG C6 /r         | avx
vperm2f128   | ymm ymm ymm uimm8      | VEX.256.66.0F3A.W0 06 /r     | avx
vblendps     | ymm ymm ymm uimm8      | VEX.256.66.0F3A.WIG 0C /r    | avx
vblendpd     | ymm ymm ymm uimm8      | VEX.256.66.0F3A.WIG 0D /r    | avx
vblendvps    | ymm ymm ymm/m256 ymm   | VEX.256.66.0F3A.W0 4A /r /is4 | avx
vblendvpd    | ymm ymm ymm/m256 ymm   | VEX.256.66.0F3A.W0 4B /r /is4 | avx
vcmpps       | ymm ymm ymm/m256 uimm8 | VEX.256.0F.WIG C2 /r         | avx
vcmppd       | ymm ymm ymm/m256 uimm8 | VEX.256.66.0F.WIG C2 /r      | avx
vmovd        | xmm r32                | VEX.128.66.0F.W0 6E /r       | avx
vmovq        | xmm r64                | VEX.128.66.0F.W1 6E /r       | avx
vpbroadcastd | ymm xmm                | VEX.256.66.0F38.W0 58 /r     | avx2
vpbroadcastq | ymm xmm                | VEX.256.66.0F38.W0 59 /r     | avx2
vpsllvd      | ymm ymm ymm/m256       | VEX.256.66.0F38.W0 47 /r     | avx2
vpsllvq      | ymm ymm ymm/m256       | VEX.256.66.0F38.W1 47 /r     | avx2
vmovmskps    | r32 ymm                | VEX.256.0F.WIG 50 /r         | avx
vmovmskpd    | r32 ymm                | VEX.256.66.0F.WIG 50 /r      | avx
vzeroupper   |                        | VEX.128.0F.WIG 77            | avx
"""
FORMS = parse_table(TABLE)

GREATER_THAN = "30"  # vcmp predicate GT_OQ (SDM, CMPPS)


class Avx2Machine(X86VectorMachine):
    """One row by 8 floats (4 doubles) a multiply-accumulate, 16 registers."""

    name = "avx2"
    vectors = 16
    table = FORMS

    def __init__(self, arithmetic: str, storage: str | None = None) -> None:
        super().__init__(arithmetic, 256, storage)
        self._mask = -1
        self._mac = FORMS[f"vfmadd231{self.p} ymm ymm ymm"]
        self._mac_load = FORMS[f"vfmadd231{self.p} ymm ymm m256"]
        self._broadcast = FORMS[f"vbroadcast{self.s} ymm m{8 * self.arithmetic.size}"]
        self._load = FORMS["vmovups ymm m256"]
        self._store = FORMS["vmovups m256 ymm"]

    def _memory_kind(self) -> str:
        return "m256"

    # ---- loads, stores, tails ---------------------------------------------------------------

    def _piece(self, lanes: int) -> str:
        """The plain move of exactly `lanes` elements, or "" where there is none."""
        size = 8 * self.element * lanes
        return {32: "vmovss", 64: "vmovsd", 128: "vmovups"}.get(size, "")

    def tail_vectors(self, lanes: int) -> int:
        return int(lanes % self.lanes != 0 and not self._piece(lanes))

    def set_tail(self, lanes: int, vector: int) -> None:
        if self.tail_vectors(lanes):
            self._mask = vector
            ones = b"\xff" * (self.arithmetic.size * lanes)
            offset = self.program.constant(ones + bytes(32 - len(ones)))
            self._out((self._load, (vector, (self.constant_base, None, 1, offset))))

    def zero(self, v: int) -> None:
        self._out((FORMS["vxorps xmm xmm xmm"], (v, v, v)))

    def load(self, v: int, at: At, lanes: int) -> None:
        memory = (at[0], None, 1, at[1])
        if lanes == self.lanes:
            self._out((self._load, (v, memory)))
        elif piece := self._piece(lanes):
            self._out((FORMS[f"{piece} xmm m{8 * self.element * lanes}"], (v, memory)))
        else:
            self._out((FORMS[f"vmaskmov{self.p} ymm ymm m256"], (v, self._mask, memory)))

    def store(self, v: int, at: At, lanes: int) -> None:
        base, disp = at
        if lanes == self.lanes:
            self._out((self._store, ((base, None, 1, disp), v)))
            return
        # whole halves first: 128 bits, then 64 and 32 of what is left
        size = self.element * lanes
        if size >= 16:
            self._out((FORMS["vmovups m128 xmm"], ((base, None, 1, disp), v)))
            disp += 16
            size -= 16
            if size:
                self._out((FORMS["vextractf128 xmm ymm uimm8"], (v, v, 1)))
        position = 0
        if size >= 8:
            self._out((FORMS["vmovsd m64 xmm"], ((base, None, 1, disp), v)))
            disp += 8
            size -= 8
            position = 2
        if size:
            memory = (base, None, 1, disp)
            if position:
                self._out((FORMS["vextractps m32 xmm uimm8"], (memory, v, position)))
            else:
                self._out((FORMS["vmovss m32 xmm"], (memory, v)))

    def broadcast(self, v: int, at: At) -> None:
        self._out((self._broadcast, (v, (at[0], None, 1, at[1]))))

    def mac(self, acc: int, a: int, b: int, lanes: int) -> None:
        self._out((self._mac, (acc, a, b)))

    def mac_load(self, acc: int, a: int, at: At, lanes: int) -> None:
        self._out((self._mac_load, (acc, a, (at[0], None, 1, at[1]))))

    # ---- arithmetic -------------------------------------------------------------------------

    def and_(self, d: int, a: int, b: int | Constant) -> None:
        self._vector("vandps", d, a, b)

    def or_(self, d: int, a: int, b: int | Constant) -> None:
        self._vector("vorps", d, a, b)

    def shift_left(self, d: int, a: int, bits: int) -> None:
        self._vector("vpslld" if self.arithmetic.size == 4 else "vpsllq", d, a, immediate=str(bits))

    def select_negative(self, d: int, condition: int, a: int, b: int) -> None:
        form = FORMS[f"vblendv{self.p} ymm ymm ymm ymm"]
        self._out((form, (d, b, a, condition)))

    def select_greater(self, d: int, x: int, y: int, a: int, b: int) -> None:
        self._vector(f"vcmp{self.p}", d, x, y, immediate=GREATER_THAN)
        self.select_negative(d, d, a, b)

    def shift_down(self, d: int, a: int, bits: int) -> None:
        self._vector("vpsrld" if self.arithmetic.size == 4 else "vpsrlq", d, a, immediate=str(bits))

    # ---- across lanes -----------------------------------------------------------------------

    def _exchange_pieces(self, d: int, v: int, bits: int) -> None:
        self._vector("vperm2f128", d, v, v, immediate="1")

    def select_first(self, d: int, a: int, b: int, lanes: int) -> None:
        self._vector(f"vblend{self.p}", d, b, a, immediate=str((1 << lanes) - 1))

    def store_first(self, v: int, at: At) -> None:
        form = FORMS[f"vmov{self.s} m{8 * self.element} xmm"]
        self._out((form, ((at[0], None, 1, at[1]), v)))

    # ---- bits -------------------------------------------------------------------------------

    def positive_bits(self, d: int, v: int, lanes: int, temps: Sequence[int]) -> None:
        t = temps[0]
        self.zero(t)
        self._vector(f"vcmp{self.p}", t, v, t, immediate=GREATER_THAN)
        self._out((FORMS[f"vmovmsk{self.p} r32 ymm"], (d, t)))
        self.keep_bits(d, lanes)

    def spread_bits(self, d: int, r: int, position: int, temps: Sequence[int]) -> None:
        self.move(RAX, r)
        self.shift_right(RAX, position)
        letter, register = ("d", "r32") if self.arithmetic.size == 4 else ("q", "r64")
        self._out((FORMS[f"vmov{letter} xmm {register}"], (d, RAX)))
        self._out((FORMS[f"vpbroadcast{letter} ymm xmm"], (d, d)))
        top, encode = 8 * self.arithmetic.size - 1, self.arithmetic.encode_bits
        shifts = b"".join(encode(top - i) for i in range(self.lanes))
        constant = (-1, None, 1, self.program.constant(shifts))
        self._vector(f"vpsllv{letter}", d, d, constant)


def open_machine(
    arithmetic: str, vector_bits: int = 0, storage: str | None = None
) -> Avx2Machine:
    """The machine; `vector_bits` may only be 0 or 256."""
    if vector_bits not in (0, 256):
        raise ValueError(f"vector_bits={vector_bits}: AVX2 has vectors of 256 bits")
    return Avx2Machine(arithmetic, storage)


def tables() -> list[dict[str, Form]]:
    """The tables that this machine uses."""
    return [FORMS, TRANSPOSE]
