"""AVX-512 (F, VL, BW, DQ): rows under EVEX, and the vector verbs. 32 registers, tails by masks.

The machine opens at 512, 256 or 128 bits: a kernel with few columns uses the narrowest registers
that hold them, and a tail vector is operated on at the narrowest width that covers it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from jitgen.isa.form import Form
from jitgen.isa.machine import At, Constant
from jitgen.isa.x86 import RAX
from jitgen.isa.x86_rows import parse_table
from jitgen.isa.x86_vector import REGISTER, TRANSPOSE, X86VectorMachine

# Rows for every width: {v} register, {L} its bits, {f} the feature (512 bits: F, less: VL).
# mnemonic | operands | encoding | feature
WIDTHS = """
vmovups      | {v}{{kz}} {v}/m{L}            | EVEX.{L}.0F.W0 10 /r         | {f}
vmovups      | m{L}{{k}} {v}                 | EVEX.{L}.0F.W0 11 /r         | {f}
vmovupd      | {v}{{kz}} {v}/m{L}            | EVEX.{L}.66.0F.W1 10 /r      | {f}
vmovupd      | m{L}{{k}} {v}                 | EVEX.{L}.66.0F.W1 11 /r      | {f}
vbroadcastss | {v} m32                       | EVEX.{L}.66.0F38.W0 18 /r    | {f}
vpxord       | {v} {v} {v}/m{L}/b32          | EVEX.{L}.66.0F.W0 EF /r      | {f}
vpandd       | {v} {v} {v}/m{L}/b32          | EVEX.{L}.66.0F.W0 DB /r      | {f}
vpandq       | {v} {v} {v}/m{L}/b64          | EVEX.{L}.66.0F.W1 DB /r      | {f}
vpord        | {v} {v} {v}/m{L}/b32          | EVEX.{L}.66.0F.W0 EB /r      | {f}
vporq        | {v} {v} {v}/m{L}/b64          | EVEX.{L}.66.0F.W1 EB /r      | {f}
vaddps       | {v} {v} {v}/m{L}/b32          | EVEX.{L}.0F.W0 58 /r         | {f}
vaddpd       | {v} {v} {v}/m{L}/b64          | EVEX.{L}.66.0F.W1 58 /r      | {f}
vsubps       | {v} {v} {v}/m{L}/b32          | EVEX.{L}.0F.W0 5C /r         | {f}
vsubpd       | {v} {v} {v}/m{L}/b64          | EVEX.{L}.66.0F.W1 5C /r      | {f}
vmulps       | {v} {v} {v}/m{L}/b32          | EVEX.{L}.0F.W0 59 /r         | {f}
vmulpd       | {v} {v} {v}/m{L}/b64          | EVEX.{L}.66.0F.W1 59 /r      | {f}
vdivps       | {v} {v} {v}/m{L}/b32          | EVEX.{L}.0F.W0 5E /r         | {f}
vdivpd       | {v} {v} {v}/m{L}/b64          | EVEX.{L}.66.0F.W1 5E /r      | {f}
vsqrtps      | {v} {v}/m{L}/b32              | EVEX.{L}.0F.W0 51 /r         | {f}
vsqrtpd      | {v} {v}/m{L}/b64              | EVEX.{L}.66.0F.W1 51 /r       | {f}
vmaxps       | {v} {v} {v}/m{L}/b32          | EVEX.{L}.0F.W0 5F /r         | {f}
vmaxpd       | {v} {v} {v}/m{L}/b64          | EVEX.{L}.66.0F.W1 5F /r      | {f}
vminps       | {v} {v} {v}/m{L}/b32          | EVEX.{L}.0F.W0 5D /r         | {f}
vminpd       | {v} {v} {v}/m{L}/b64          | EVEX.{L}.66.0F.W1 5D /r      | {f}
vfmadd231ps  | {v}+ {v} {v}/m{L}/b32         | EVEX.{L}.66.0F38.W0 B8 /r    | {f}
vfmadd231pd  | {v}+ {v} {v}/m{L}/b64         | EVEX.{L}.66.0F38.W1 B8 /r    | {f}
vfnmadd231ps | {v}+ {v} {v}/m{L}/b32         | EVEX.{L}.66.0F38.W0 BC /r    | {f}
vfnmadd231pd | {v}+ {v} {v}/m{L}/b64         | EVEX.{L}.66.0F38.W1 BC /r    | {f}
vfmadd213ps  | {v}+ {v} {v}/m{L}/b32         | EVEX.{L}.66.0F38.W0 A8 /r    | {f}
vfmadd213pd  | {v}+ {v} {v}/m{L}/b64         | EVEX.{L}.66.0F38.W1 A8 /r    | {f}
vpslld       | {v} {v}/m{L}/b32 uimm8        | EVEX.{L}.66.0F.W0 72 /6      | {f}
vpsllq       | {v} {v}/m{L}/b64 uimm8        | EVEX.{L}.66.0F.W1 73 /6      | {f}
vpsrld       | {v} {v}/m{L}/b32 uimm8        | EVEX.{L}.66.0F.W0 72 /2      | {f}
vpsrlq       | {v} {v}/m{L}/b64 uimm8        | EVEX.{L}.66.0F.W1 73 /2      | {f}
vshufps      | {v} {v} {v} uimm8             | EVEX.{L}.0F.W0 C6 /r         | {f}
vblendmps    | {v}{{kz}} {v} {v}/m{L}/b32    | EVEX.{L}.66.0F38.W0 65 /r    | {f}
vblendmpd    | {v}{{kz}} {v} {v}/m{L}/b64    | EVEX.{L}.66.0F38.W1 65 /r    | {f}
vcmpps       | k{{k}} {v} {v}/m{L}/b32 uimm8 | EVEX.{L}.0F.W0 C2 /r         | {f}
vcmppd       | k{{k}} {v} {v}/m{L}/b64 uimm8 | EVEX.{L}.66.0F.W1 C2 /r      | {f}
vpmovd2m     | k {v}                         | EVEX.{L}.F3.0F38.W0 39 /r    | {dq}
vpmovq2m     | k {v}                         | EVEX.{L}.F3.0F38.W1 39 /r    | {dq}
vpmovm2d     | {v} k                         | EVEX.{L}.F3.0F38.W0 38 /r    | {dq}
vpmovm2q     | {v} k                         | EVEX.{L}.F3.0F38.W1 38 /r    | {dq}
"""
TABLE = """
vbroadcastsd | zmm m64    | EVEX.512.66.0F38.W1 19 /r | avx512f
vbroadcastsd | ymm m64    | EVEX.256.66.0F38.W1 19 /r | avx512vl
vmovddup     | xmm m64    | EVEX.128.F2.0F.W1 12 /r   | avx512vl
kmovw        | k r32      | VEX.L0.0F.W0 92 /r        | avx512f
kmovw        | r32 k      | VEX.L0.0F.W0 93 /r        | avx512f
vunpcklps    | zmm zmm zmm | EVEX.512.0F.W0 14 /r     | avx512f
vunpckhps    | zmm zmm zmm | EVEX.512.0F.W0 15 /r     | avx512f
vunpcklpd    | zmm zmm zmm | EVEX.512.66.0F.W1 14 /r  | avx512f
vunpckhpd    | zmm zmm zmm | EVEX.512.66.0F.W1 15 /r  | avx512f
vshuff32x4   | zmm zmm zmm uimm8 | EVEX.512.66.0F3A.W0 23 /r | avx512f
vshuff32x4   | ymm ymm ymm uimm8 | EVEX.256.66.0F3A.W0 23 /r | avx512vl
vmovss       | m32 xmm    | EVEX.LIG.F3.0F.W0 11 /r   | avx512f
vmovsd       | m64 xmm    | EVEX.LIG.F2.0F.W1 11 /r   | avx512f
vzeroupper   |            | VEX.128.0F.WIG 77         | avx
"""
FORMS = parse_table(TABLE)
for _v, _bits in (("zmm", 512), ("ymm", 256), ("xmm", 128)):
    _features = {"f": "avx512f", "dq": "avx512dq"} if _v == "zmm" else {
        "f": "avx512vl", "dq": "avx512dq avx512vl"}  # fmt: skip
    FORMS.update(parse_table(WIDTHS.format(v=_v, L=_bits, **_features)))

GREATER_THAN = "30"  # vcmp predicate GT_OQ (SDM, CMPPS)
#: vshuff32x4 of a register with itself that exchanges the halves of parts of so many bits, by the
#: bits of the register
SWAPS = {(512, 512): 0x4E, (512, 256): 0xB1, (256, 256): 0x01}
EVEN_PIECES, ODD_PIECES = 0x88, 0xDD  # vshuff32x4: pieces 0 and 2, or 1 and 3, of both operands
TAIL = 1  # k1 holds the tail mask
SCRATCH = 2  # k2 is for comparisons


class _LaneForms(NamedTuple):
    """The forms for a vector of so many lanes: at the narrowest width that covers them."""

    masked: bool
    load: Form
    store: Form
    mac: Form
    mac_broadcast: Form
    mac_load: Form


@cache
def _lane_forms(p: str, element: int, vector_bits: int) -> tuple[_LaneForms, ...]:
    """By number of lanes; p is the suffix of instructions on elements of so many bits."""
    found = []
    for lanes in range(vector_bits // element + 1):
        bits = next(b for b in REGISTER if b >= min(lanes * element, vector_bits))
        v = REGISTER[bits]
        masked = lanes * element != bits
        fma = f"vfmadd231{p} {v} {v}"
        found.append(_LaneForms(
            masked,
            FORMS[f"vmovu{p} {v}{{k}}{{z}} m{bits}" if masked else f"vmovu{p} {v} m{bits}"],
            FORMS[f"vmovu{p} m{bits}{{k}} {v}" if masked else f"vmovu{p} m{bits} {v}"],
            FORMS[f"{fma} {v}"], FORMS[f"{fma} b{element}"], FORMS[f"{fma} m{bits}"],
        ))  # fmt: skip
    return tuple(found)


class Avx512Machine(X86VectorMachine):
    """One row by 16 floats (8 doubles) a multiply-accumulate, 32 registers."""

    name = "avx512"
    vectors = 32
    table = FORMS
    fused_broadcast = True

    def __init__(self, arithmetic: str, vector_bits: int, storage: str | None = None) -> None:
        super().__init__(arithmetic, vector_bits, storage)
        bits = 8 * self.arithmetic.size
        self.q = {32: "d", 64: "q"}[bits]
        self._lanes = _lane_forms(self.p, bits, vector_bits)
        # there is no vbroadcastsd of two
        broadcast = "vmovddup" if self.lanes == 2 else f"vbroadcast{self.s}"
        self._broadcast = FORMS[f"{broadcast} {self.register} m{bits}"]
        self._zero = FORMS["vpxord xmm xmm xmm"]

    def _memory_kind(self) -> str:
        return f"b{8 * self.arithmetic.size}"

    # ---- loads, stores, tails ---------------------------------------------------------------

    def set_tail(self, lanes: int, vector: int) -> None:
        if self._lanes[lanes].masked:
            self.set(RAX, (1 << lanes) - 1)
            self._out((FORMS["kmovw k r32"], (TAIL, RAX)))

    def zero(self, v: int) -> None:
        self._out((self._zero, (v, v, v)))

    def load(self, v: int, at: At, lanes: int) -> None:
        forms = self._lanes[lanes]
        memory = (at[0], None, 1, at[1])
        self._out((forms.load, (v, memory, TAIL) if forms.masked else (v, memory)))

    def store(self, v: int, at: At, lanes: int) -> None:
        forms = self._lanes[lanes]
        memory = (at[0], None, 1, at[1])
        self._out((forms.store, (memory, v, TAIL) if forms.masked else (memory, v)))

    def broadcast(self, v: int, at: At) -> None:
        self._out((self._broadcast, (v, (at[0], None, 1, at[1]))))

    def mac(self, acc: int, a: int, b: int, lanes: int) -> None:
        self._out((self._lanes[lanes].mac, (acc, a, b)))

    def mac_broadcast(self, acc: int, b: int, at: At, lanes: int) -> None:
        self._out((self._lanes[lanes].mac_broadcast, (acc, b, (at[0], None, 1, at[1]))))

    def mac_load(self, acc: int, a: int, at: At, lanes: int) -> None:
        self._out((self._lanes[lanes].mac_load, (acc, a, (at[0], None, 1, at[1]))))

    # ---- arithmetic -------------------------------------------------------------------------

    def and_(self, d: int, a: int, b: int | Constant) -> None:
        self._vector(f"vpand{self.q}", d, a, b)

    def or_(self, d: int, a: int, b: int | Constant) -> None:
        self._vector(f"vpor{self.q}", d, a, b)

    def shift_left(self, d: int, a: int, bits: int) -> None:
        self._vector(f"vpsll{self.q}", d, a, immediate=str(bits))

    def select_negative(self, d: int, condition: int, a: int, b: int) -> None:
        v = self.register
        self._out((FORMS[f"vpmov{self.q}2m k {v}"], (SCRATCH, condition)))
        self._out((FORMS[f"vblendm{self.p} {v}{{k}} {v} {v}"], (d, b, a, SCRATCH)))

    def select_greater(self, d: int, x: int, y: int, a: int, b: int) -> None:
        v = self.register
        compare = FORMS[f"vcmp{self.p} k {v} {v} uimm8"]
        self._out((compare, (SCRATCH, x, y, int(GREATER_THAN))))
        self._out((FORMS[f"vblendm{self.p} {v}{{k}} {v} {v}"], (d, b, a, SCRATCH)))

    def shift_down(self, d: int, a: int, bits: int) -> None:
        self._vector(f"vpsrl{self.q}", d, a, immediate=str(bits))

    # ---- across lanes -----------------------------------------------------------------------

    def _exchange_pieces(self, d: int, v: int, bits: int) -> None:
        pieces = SWAPS[self.vector_bits, bits]
        self._vector("vshuff32x4", d, v, v, immediate=str(pieces))

    def select_first(self, d: int, a: int, b: int, lanes: int) -> None:
        mask = TAIL
        if not self._lanes[lanes].masked:  # loads of a tail need no mask, so that there is none
            mask = SCRATCH
            self.set(RAX, (1 << lanes) - 1)
            self._out((FORMS["kmovw k r32"], (mask, RAX)))
        v = self.register
        self._out((FORMS[f"vblendm{self.p} {v}{{k}} {v} {v}"], (d, b, a, mask)))

    def store_first(self, v: int, at: At) -> None:
        form = FORMS[f"vmov{self.s} m{8 * self.element} xmm"]
        self._out((form, ((at[0], None, 1, at[1]), v)))

    def transpose(self, side: int, to: At, to_row: int, source: At, source_row: int) -> None:
        if side != 64 // self.element:
            super().transpose(side, to, to_row, source, source_row)
            return
        # whole cache lines in and out
        for i in range(side):
            memory = (source[0], None, 1, source[1] + i * source_row)
            self._out((FORMS["vmovups zmm m512"], (i, memory)))
        group = side // 4
        groups = [
            self.transpose_pieces(FORMS, "zmm", range(i, i + group), range(16 + i, 16 + i + group))
            for i in range(0, side, group)
        ]
        # piece p of register n of a group has column p * group + n of the group's rows
        shuffle = FORMS["vshuff32x4 zmm zmm zmm uimm8"]
        low = 16 - groups[0][0] // 16 * 16  # the bank that has no result
        for n, (a, b, c, d) in enumerate(zip(*groups, strict=True)):
            t = range(low + 4 * n, low + 4 * n + 4)
            for i, (x, y, pieces) in enumerate(
                ((a, b, EVEN_PIECES), (c, d, EVEN_PIECES), (a, b, ODD_PIECES), (c, d, ODD_PIECES))
            ):
                self._out((shuffle, (t[i], x, y, pieces)))
            for p, (first, pieces) in enumerate(
                ((0, EVEN_PIECES), (2, EVEN_PIECES), (0, ODD_PIECES), (2, ODD_PIECES))
            ):
                self._out((shuffle, (a, t[first], t[first + 1], pieces)))
                memory = (to[0], None, 1, to[1] + (p * group + n) * to_row)
                self._out((FORMS["vmovups m512 zmm"], (memory, a)))

    # ---- bits -------------------------------------------------------------------------------

    def positive_bits(self, d: int, v: int, lanes: int, temps: Sequence[int]) -> None:
        t = temps[0]
        self.zero(t)
        r = self.register
        form = FORMS[f"vcmp{self.p} k {r} {r} uimm8"]
        self._out((form, (SCRATCH, v, t, int(GREATER_THAN))))
        self._out((FORMS["kmovw r32 k"], (d, SCRATCH)))
        self.keep_bits(d, lanes)

    def spread_bits(self, d: int, r: int, position: int, temps: Sequence[int]) -> None:
        self.move(RAX, r)
        self.shift_right(RAX, position)
        self._out((FORMS["kmovw k r32"], (SCRATCH, RAX)))
        self._out((FORMS[f"vpmovm2{self.q} {self.register} k"], (d, SCRATCH)))


def open_machine(
    arithmetic: str, vector_bits: int = 0, storage: str | None = None
) -> Avx512Machine:
    """The machine with registers of 512 (the default), 256 or 128 bits."""
    if vector_bits not in (0, *REGISTER):
        raise ValueError(f"vector_bits={vector_bits}: AVX-512 has 128, 256 and 512")
    return Avx512Machine(arithmetic, vector_bits or 512, storage)


def tables() -> list[dict[str, Form]]:
    """The tables that this machine uses."""
    return [FORMS, TRANSPOSE]
