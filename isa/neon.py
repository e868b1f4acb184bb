"""ARM NEON (ARMv8 Advanced SIMD): rows, and the vector verbs. 32 registers of 128 bits, no masks.

Every CPU that the procedure call standard of AArch64 is for has it. A multiply-accumulate takes one
factor from a lane of a register, so a unit of A is loaded and need not be broadcast. A tail of 1 or
2 elements has moves of its own width, one of 3 is moved in two pieces.
Not here: half precision, dot products, matrix multiplication (FEAT_FP16, FEAT_DotProd, FEAT_BF16).
"""

from __future__ import annotations

from collections.abc import Sequence

from jitgen.isa.a64 import FORMS as GENERAL, X16
from jitgen.isa.a64_rows import parse_table
from jitgen.isa.a64_vector import A64VectorMachine
from jitgen.isa.form import Form
from jitgen.isa.machine import At, Constant

# Rows for both element sizes: T is 4s or 2d, E is s or d, z the size bit.
# syntax | bit diagram | feature
SIZES = """
fadd v{d}.T, v{n}.T, v{m}.T     | 010011100 z 1 m:5 110101 n:5 d:5 | asimd
fsub v{d}.T, v{n}.T, v{m}.T     | 010011101 z 1 m:5 110101 n:5 d:5 | asimd
fmul v{d}.T, v{n}.T, v{m}.T     | 011011100 z 1 m:5 110111 n:5 d:5 | asimd
fdiv v{d}.T, v{n}.T, v{m}.T     | 011011100 z 1 m:5 111111 n:5 d:5 | asimd
fsqrt v{d}.T, v{n}.T            | 011011101 z 100001111110 n:5 d:5 | asimd
fmax v{d}.T, v{n}.T, v{m}.T     | 010011100 z 1 m:5 111101 n:5 d:5 | asimd
fmin v{d}.T, v{n}.T, v{m}.T     | 010011101 z 1 m:5 111101 n:5 d:5 | asimd
fmla v{d+}.T, v{n}.T, v{m}.T    | 010011100 z 1 m:5 110011 n:5 d:5 | asimd
fmls v{d+}.T, v{n}.T, v{m}.T    | 010011101 z 1 m:5 110011 n:5 d:5 | asimd
fmla v{d+}.T, v{n}.T, v{m}.E[0] | 010011111 z 0 m:5 000100 n:5 d:5 | asimd
faddp v{d}.T, v{n}.T, v{m}.T    | 011011100 z 1 m:5 110101 n:5 d:5 | asimd
fmaxp v{d}.T, v{n}.T, v{m}.T    | 011011100 z 1 m:5 111101 n:5 d:5 | asimd
fcmgt v{d}.T, v{n}.T, v{m}.T    | 011011101 z 1 m:5 111001 n:5 d:5 | asimd
fcmgt v{d}.T, v{n}.T, #0.0      | 010011101 z 100000110010 n:5 d:5 | asimd
cmlt v{d}.T, v{n}.T, #0         | 010011101 z 100000101010 n:5 d:5 | asimd
ushl v{d}.T, v{n}.T, v{m}.T     | 011011101 z 1 m:5 010001 n:5 d:5 | asimd
zip1 v{d}.T, v{n}.T, v{m}.T     | 010011101 z 0 m:5 001110 n:5 d:5 | asimd
zip2 v{d}.T, v{n}.T, v{m}.T     | 010011101 z 0 m:5 011110 n:5 d:5 | asimd
"""
TABLE = """
movi v{d}.2d, #0                   | 011011110000000011100100000 d:5    | asimd
mov v{d}.16b, v{n}.16b             | 01001110101 n:5 000111 n:5 d:5     | asimd
and v{d}.16b, v{n}.16b, v{m}.16b   | 01001110001 m:5 000111 n:5 d:5     | asimd
orr v{d}.16b, v{n}.16b, v{m}.16b   | 01001110101 m:5 000111 n:5 d:5     | asimd
bsl v{d+}.16b, v{n}.16b, v{m}.16b  | 01101110011 m:5 000111 n:5 d:5     | asimd
bit v{d+}.16b, v{n}.16b, v{m}.16b  | 01101110101 m:5 000111 n:5 d:5     | asimd
bif v{d+}.16b, v{n}.16b, v{m}.16b  | 01101110111 m:5 000111 n:5 d:5     | asimd
shl v{d}.4s, v{n}.4s, #{i}         | 01001111001 i:5 010101 n:5 d:5     | asimd
shl v{d}.2d, v{n}.2d, #{i}         | 0100111101 i:6 010101 n:5 d:5      | asimd
ushr v{d}.4s, v{n}.4s, #{i}        | 01101111001 i:5n 000001 n:5 d:5    | asimd
ushr v{d}.2d, v{n}.2d, #{i}        | 0110111101 i:6n 000001 n:5 d:5     | asimd
dup v{d}.4s, v{n}.s[0]             | 0100111000000100000001 n:5 d:5     | asimd
dup v{d}.2d, v{n}.d[0]             | 0100111000001000000001 n:5 d:5     | asimd
dup v{d}.4s, w{n}                  | 0100111000000100000011 n:5 d:5     | asimd
dup v{d}.2d, x{n}                  | 0100111000001000000011 n:5 d:5     | asimd
mov v{d+}.s[0], v{n}.s[0]          | 0110111000000100000001 n:5 d:5     | asimd
mov v{d+}.s[3], v{n}.s[3]          | 0110111000011100011001 n:5 d:5     | asimd
mov v{d+}.d[0], v{n}.d[0]          | 0110111000001000000001 n:5 d:5     | asimd
mov v{d+}.d[1], v{n}.d[0]          | 0110111000011000000001 n:5 d:5     | asimd
mov v{d+}.d[1], x{n}               | 0100111000011000000111 n:5 d:5     | asimd
mov s{d}, v{n}.s[2]                | 0101111000010100000001 n:5 d:5     | asimd
addv s{d}, v{n}.4s                 | 0100111010110001101110 n:5 d:5     | asimd
addp d{d}, v{n}.2d                 | 0101111011110001101110 n:5 d:5     | asimd
ldr q{t}, [x{n:sp}, #{i}]          | 0011110111 i:12*16 n:5 t:5         | asimd
ldr d{t}, [x{n:sp}, #{i}]          | 1111110101 i:12*8 n:5 t:5          | asimd
ldr s{t}, [x{n:sp}, #{i}]          | 1011110101 i:12*4 n:5 t:5          | asimd
ldur q{t}, [x{n:sp}, #{i}]         | 00111100110 i:9s 00 n:5 t:5        | asimd
ldur d{t}, [x{n:sp}, #{i}]         | 11111100010 i:9s 00 n:5 t:5        | asimd
ldur s{t}, [x{n:sp}, #{i}]         | 10111100010 i:9s 00 n:5 t:5        | asimd
str q{t}, [x{n:sp}, #{i}]          | 0011110110 i:12*16 n:5 t:5         | asimd
str d{t}, [x{n:sp}, #{i}]          | 1111110100 i:12*8 n:5 t:5          | asimd
str s{t}, [x{n:sp}, #{i}]          | 1011110100 i:12*4 n:5 t:5          | asimd
stur q{t}, [x{n:sp}, #{i}]         | 00111100100 i:9s 00 n:5 t:5        | asimd
stur d{t}, [x{n:sp}, #{i}]         | 11111100000 i:9s 00 n:5 t:5        | asimd
stur s{t}, [x{n:sp}, #{i}]         | 10111100000 i:9s 00 n:5 t:5        | asimd
"""
#: What instructions do, by signature or mnemonic
MEANINGS = {
    "fadd": "{0} = {1} + {2}",
    "fsub": "{0} = {1} - {2}",
    "fmul": "{0} = {1} * {2}",
    "fdiv": "{0} = {1} / {2}",
    "fsqrt": "{0} = sqrt({1})",
    "fmax": "{0} = max({1}, {2})",
    "fmin": "{0} = min({1}, {2})",
    "fmla": "{0} += {1} * {2}",
    "fmla v.4s v.4s v.s[0]": "{0} += {1} * lane 0 of {2}",
    "fmla v.2d v.2d v.d[0]": "{0} += {1} * lane 0 of {2}",
    "fmls": "{0} -= {1} * {2}",
    "faddp": "{0} = sums of the pairs of {1}, then of {2}",
    "fmaxp": "{0} = maxima of the pairs of {1}, then of {2}",
    "fcmgt": "{0} = {1} > {2}",
    "fcmgt v.4s v.4s #0.0": "{0} = {1} > 0",
    "fcmgt v.2d v.2d #0.0": "{0} = {1} > 0",
    "cmlt": "{0} = {1} < 0",
    "ushl": "{0} = {1} << {2}, lane by lane",
    "shl": "{0} = {1} << {2}, lane by lane",
    "ushr": "{0} = {1} >> {2}, lane by lane",
    "zip1": "{0} = lower halves of {1} and {2}, in turn",
    "zip2": "{0} = upper halves of {1} and {2}, in turn",
    "movi": "{0} = 0",
    "and": "{0} = {1} & {2}",
    "orr": "{0} = {1} | {2}",
    "bsl": "{0} = {1} where {0}, else {2}",
    "bit": "{0} = {1} where {2}, else {0}",
    "bif": "{0} = {0} where {2}, else {1}",
    "dup": "{0} = {1}, broadcast",
    "dup v.4s v.s[0]": "{0} = lane 0 of {1}, broadcast",
    "dup v.2d v.d[0]": "{0} = lane 0 of {1}, broadcast",
    "mov": "{0} = {1}",
    "mov v.s[0] v.s[0]": "lane 0 of {0} = lane 0 of {1}",
    "mov v.s[3] v.s[3]": "lane 3 of {0} = lane 3 of {1}",
    "mov v.d[0] v.d[0]": "lower half of {0} = lower half of {1}",
    "mov v.d[1] v.d[0]": "upper half of {0} = lower half of {1}",
    "mov v.d[1] x": "upper half of {0} = {1}",
    "mov s v.s[2]": "{0} = element 2 of {1}",
    "addv": "{0} = sum of the lanes of {1}",
    "addp": "{0} = sum of the lanes of {1}",
    "ldr": "{0} = {memory}",
    "ldur": "{0} = {memory}",
    "str": "{memory} = {0}",
    "stur": "{memory} = {0}",
}
FORMS = parse_table(TABLE, MEANINGS)
for _t, _e, _z in (("4s", "s", "0"), ("2d", "d", "1")):
    _rows = SIZES.replace("}.T", f"}}.{_t}").replace("}.E", f"}}.{_e}").replace(" z ", f" {_z} ")
    FORMS.update(parse_table(_rows, MEANINGS))

BITS = 128
#: bytes -> letter of the register that is so wide
WIDTHS = {4: "s", 8: "d", 16: "q"}
#: largest displacement of a load or store, in units of its size
REACH = 4095


class NeonMachine(A64VectorMachine):
    """One row by 4 floats (2 doubles) a multiply-accumulate, 32 registers."""

    name = "neon"
    vectors = 32
    register = "v"
    constant_registers = 1
    vector_granule = BITS // 8
    vector_reach = REACH * BITS // 8

    def __init__(self, arithmetic: str, storage: str | None = None) -> None:
        super().__init__(arithmetic, BITS, storage)
        self.t, self.e = {4: ("4s", "s"), 8: ("2d", "d")}[self.arithmetic.size]
        self.broadcast_reach = REACH * self.element
        self.transpose_squares = (self.lanes,)
        self._mac = self._form("fmla v.T v.T v.T")
        self._mac_unit = self._form("fmla v.T v.T v.E[0]")
        self._spread = self._form("dup v.T v.E[0]")
        #: holds the third element of a tail on its way
        self._tail = -1

    def _form(self, signature: str) -> Form:
        """The form for this machine's elements; T and E stand for their size."""
        return FORMS[signature.replace(".T", f".{self.t}").replace(".E", f".{self.e}")]

    def _vector(self, signature: str, *operands: int) -> None:
        self._out((self._form(signature), operands))

    def _three(self, mnemonic: str, d: int, a: int, b: int) -> None:
        self._vector(f"{mnemonic} v.T v.T v.T", d, a, b)

    @property
    def _temp(self) -> int:
        """The register for constants, in which verbs may make what they need."""
        return self.constant_temps[-1]

    # ---- loads and stores -------------------------------------------------------------------

    def _transfer(self, mnemonic: str, v: int, at: At, size: int) -> None:
        """ldr or str of the first `size` bytes of a register, wherever they lie."""

        def fits(disp: int) -> bool:
            return disp % size == 0 and 0 <= disp <= REACH * size

        def near(disp: int) -> bool:
            return fits(disp) or -256 <= disp < 256

        base, disp = at if fits(at[1]) else self._reach(at, near)
        if not fits(disp):
            mnemonic = mnemonic.replace("r", "ur")
        self._out((FORMS[f"{mnemonic} {WIDTHS[size]} [xsp imm]"], (v, base, disp)))

    def tail_vectors(self, lanes: int) -> int:
        return int(lanes == 3)

    def set_tail(self, lanes: int, vector: int) -> None:
        self._tail = vector

    def zero(self, v: int) -> None:
        self._out((FORMS["movi v.2d #0"], (v,)))

    def load(self, v: int, at: At, lanes: int) -> None:
        if lanes != 3:
            self._transfer("ldr", v, at, lanes * self.element)
            return
        self._transfer("ldr", v, at, 2 * self.element)
        self._transfer("ldr", self._tail, (at[0], at[1] + 2 * self.element), self.element)
        self._out((FORMS["mov v.d[1] v.d[0]"], (v, self._tail)))

    def store(self, v: int, at: At, lanes: int) -> None:
        if lanes != 3:
            self._transfer("str", v, at, lanes * self.element)
            return
        self._transfer("str", v, at, 2 * self.element)
        self._out((FORMS["mov s v.s[2]"], (self._tail, v)))
        self._transfer("str", self._tail, (at[0], at[1] + 2 * self.element), self.element)

    def store_first(self, v: int, at: At) -> None:
        self._transfer("str", v, at, self.element)

    def load_unit(self, v: int, at: At) -> None:
        self._transfer("ldr", v, at, self.element)

    def broadcast(self, v: int, at: At) -> None:
        self.load_unit(v, at)
        self._out((self._spread, (v, v)))

    def mac(self, acc: int, a: int, b: int, lanes: int) -> None:
        self._out((self._mac, (acc, a, b)))

    def mac_unit(self, acc: int, a: int, b: int, lanes: int) -> None:
        self._out((self._mac_unit, (acc, b, a)))

    # ---- arithmetic -------------------------------------------------------------------------

    def _constant(self, element: bytes) -> Constant:
        return (-1, None, 1, self.program.constant(element * self.lanes))

    def load_const(self, d: int, c: Constant) -> None:
        self.load(d, (self.constant_base, c[3]), self.lanes)

    def _move(self, d: int, s: int) -> None:
        if d != s:
            self._out((FORMS["mov v.16b v.16b"], (d, s)))

    def div(self, d: int, a: int, b: int | Constant) -> None:
        self._vector("fdiv v.T v.T v.T", d, a, self._register(b))

    def sqrt(self, d: int, a: int) -> None:
        self._vector("fsqrt v.T v.T", d, a)

    def max(self, d: int, a: int, b: int | Constant) -> None:
        self._vector("fmax v.T v.T v.T", d, a, self._register(b))

    def min(self, d: int, a: int, b: int | Constant) -> None:
        self._vector("fmin v.T v.T v.T", d, a, self._register(b))

    def fma(self, acc: int, a: int, b: int | Constant) -> None:
        self._vector("fmla v.T v.T v.T", acc, a, self._register(b))

    def fnma(self, acc: int, a: int, b: int | Constant) -> None:
        self._vector("fmls v.T v.T v.T", acc, a, self._register(b))

    def fmad(self, d: int, a: int, b: int | Constant) -> None:
        # only the addend is overwritten
        self._move(self._temp, self._register(b))
        self._vector("fmla v.T v.T v.T", self._temp, d, a)
        self._move(d, self._temp)

    def and_(self, d: int, a: int, b: int | Constant) -> None:
        self._vector("and v.16b v.16b v.16b", d, a, self._register(b))

    def or_(self, d: int, a: int, b: int | Constant) -> None:
        self._vector("orr v.16b v.16b v.16b", d, a, self._register(b))

    def shift_left(self, d: int, a: int, bits: int) -> None:
        self._vector("shl v.T v.T imm", d, a, bits)

    def shift_down(self, d: int, a: int, bits: int) -> None:
        self._vector("ushr v.T v.T imm", d, a, bits)

    def select_negative(self, d: int, condition: int, a: int, b: int) -> None:
        if d in (a, b):
            self._vector("cmlt v.T v.T #0", self._temp, condition)
            name, other = ("bif", b) if d == a else ("bit", a)
            self._vector(f"{name} v.16b v.16b v.16b", d, other, self._temp)
        else:
            self._vector("cmlt v.T v.T #0", d, condition)
            self._vector("bsl v.16b v.16b v.16b", d, a, b)

    def select_greater(self, d: int, x: int, y: int, a: int, b: int) -> None:
        self._vector("fcmgt v.T v.T v.T", d, x, y)
        self._vector("bsl v.16b v.16b v.16b", d, a, b)

    # ---- across lanes -----------------------------------------------------------------------

    def sum_lanes(self, d: int, v: int, temp: int) -> None:
        self._pairs("faddp", d, v)

    def max_lanes(self, d: int, v: int, temp: int) -> None:
        self._pairs("fmaxp", d, v)

    def _pairs(self, mnemonic: str, d: int, v: int) -> None:
        for _ in range(self.lanes.bit_length() - 1):
            self._vector(f"{mnemonic} v.T v.T v.T", d, v, v)
            v = d

    def select_first(self, d: int, a: int, b: int, lanes: int) -> None:
        # one lane, or half a register, is put into a copy of the other
        kept, put, row = b, a, "mov v.d[0] v.d[0]"
        if lanes == 3:
            kept, put, row = a, b, "mov v.s[3] v.s[3]"
        elif lanes * self.arithmetic.size == 4:
            row = "mov v.s[0] v.s[0]"
        to = self._temp if d == put != kept else d
        self._move(to, kept)
        self._out((FORMS[row], (to, put)))
        self._move(d, to)

    # ---- bits -------------------------------------------------------------------------------

    def positive_bits(self, d: int, v: int, lanes: int, temps: Sequence[int]) -> None:
        # lane i contributes 1 << i, those behind the last one nothing
        positive, bits = temps[:2]
        self._vector("fcmgt v.T v.T #0.0", positive, v)
        size = self.arithmetic.size
        values = b"".join(self.arithmetic.encode_bits(1 << i) for i in range(lanes)) + bytes(16)
        self.set(X16, int.from_bytes(values[:8], "little"))
        self._out((GENERAL["fmov d x"], (bits, X16)))
        if lanes * size > 8:
            self.set(X16, int.from_bytes(values[8:16], "little"))
            self._out((FORMS["mov v.d[1] x"], (bits, X16)))
        self.and_(bits, bits, positive)
        self._vector("addv s v.4s" if size == 4 else "addp d v.2d", bits, bits)
        self._near = None  # d may be the base of the address that x17 holds
        self._out((GENERAL["fmov w s" if size == 4 else "fmov x d"], (d, bits)))

    def spread_bits(self, d: int, r: int, position: int, temps: Sequence[int]) -> None:
        # bit i is shifted to the top of lane i
        shifts = temps[0]
        size, encode = self.arithmetic.size, self.arithmetic.encode_bits
        values = b"".join(encode(8 * size - 1 - i) for i in range(self.lanes))
        self.load_const(shifts, (-1, None, 1, self.program.constant(values)))
        self._emit("lsr x x imm", X16, r, position)
        self._vector(f"dup v.T {'w' if size == 4 else 'x'}", d, X16)
        self._vector("ushl v.T v.T v.T", d, d, shifts)


def open_machine(
    arithmetic: str, vector_bits: int = 0, storage: str | None = None
) -> NeonMachine:
    """The machine; `vector_bits` may only be 0 or 128."""
    if vector_bits not in (0, BITS):
        raise ValueError(f"vector_bits={vector_bits}: NEON has vectors of 128 bits")
    return NeonMachine(arithmetic, storage)


def tables() -> list[dict[str, Form]]:
    """The tables of this file."""
    return [FORMS]
