"""ARM SVE at a known vector length (128 to 2048 bits): rows, and the vector verbs. 32 registers.

A function checks the thread's vector length before it does anything, and returns 1 where it is
not the one it was made for. p0 is all true, p1 the tail of a tile, p2 is for comparisons. A tail
costs nothing else: inactive elements are neither read nor written. Not here: SVE2, and streaming
mode.
"""

from __future__ import annotations

from collections.abc import Sequence

from jitgen.isa.a64 import FORMS as GENERAL, X16
from jitgen.isa.a64_rows import XZR, parse_table
from jitgen.isa.a64_vector import A64VectorMachine
from jitgen.isa.form import Form
from jitgen.isa.machine import At, Constant

# Rows for both element sizes: T is s or d, sz the size field.
# syntax | bit diagram | feature
SIZES = """
ptrue p{d}.T                           | 00100101 sz 01100011100011111 0 d:4      | sve
whilelo p{d}.T, x{n}, x{m}             | 00100101 sz 1 m:5 000111 n:5 0 d:4       | sve
dup z{d}.T, #{i}                       | 00100101 sz 111000110 i:8s d:5           | sve
index z{d}.T, #{i}, #{j}               | 00000100 sz 1 j:5s 010000 i:5s d:5       | sve
sub z{d+}.T, z{d}.T, #{i}              | 00100101 sz 100001110 i:8 d:5            | sve
lsl z{d+}.T, p{g}/m, z{d}.T, z{m}.T    | 00000100 sz 010011100 g:3 m:5 d:5        | sve
fmla z{d+}.T, p{g}/m, z{n}.T, z{m}.T   | 01100101 sz 1 m:5 000 g:3 n:5 d:5        | sve
fmls z{d+}.T, p{g}/m, z{n}.T, z{m}.T   | 01100101 sz 1 m:5 001 g:3 n:5 d:5        | sve
fmad z{d+}.T, p{g}/m, z{m}.T, z{a}.T   | 01100101 sz 1 a:5 100 g:3 m:5 d:5        | sve
fadd z{d}.T, z{n}.T, z{m}.T            | 01100101 sz 0 m:5 000000 n:5 d:5         | sve
fsub z{d}.T, z{n}.T, z{m}.T            | 01100101 sz 0 m:5 000001 n:5 d:5         | sve
fmul z{d}.T, z{n}.T, z{m}.T            | 01100101 sz 0 m:5 000010 n:5 d:5         | sve
fmax z{d+}.T, p{g}/m, z{d}.T, z{m}.T   | 01100101 sz 000110100 g:3 m:5 d:5        | sve
fmin z{d+}.T, p{g}/m, z{d}.T, z{m}.T   | 01100101 sz 000111100 g:3 m:5 d:5        | sve
fdivr z{d+}.T, p{g}/m, z{d}.T, z{m}.T  | 01100101 sz 001100100 g:3 m:5 d:5        | sve
fdiv z{d+}.T, p{g}/m, z{d}.T, z{m}.T   | 01100101 sz 001101100 g:3 m:5 d:5        | sve
fsqrt z{d}.T, p{g}/m, z{n}.T         | 01100101 sz 001101101 g:3 n:5 d:5        | sve
cmplt p{d}.T, p{g}/z, z{n}.T, #{i}     | 00100101 sz 0 i:5s 001 g:3 n:5 0 d:4     | sve
fcmgt p{d}.T, p{g}/z, z{n}.T, #0.0     | 01100101 sz 010000001 g:3 n:5 1 d:4      | sve
fcmgt p{d}.T, p{g}/z, z{n}.T, z{m}.T   | 01100101 sz 0 m:5 010 g:3 n:5 1 d:4      | sve
zip1 z{d}.T, z{n}.T, z{m}.T            | 00000101 sz 1 m:5 011000 n:5 d:5         | sve
zip2 z{d}.T, z{n}.T, z{m}.T            | 00000101 sz 1 m:5 011001 n:5 d:5         | sve
lsr z{d+}.T, p{g}/m, z{d}.T, z{m}.T    | 00000100 sz 010001100 g:3 m:5 d:5        | sve
sel z{d}.T, p{g}, z{n}.T, z{m}.T       | 00000101 sz 1 m:5 11 g:4 n:5 d:5         | sve
faddv T{d}, p{g}, z{n}.T               | 01100101 sz 000000001 g:3 n:5 d:5        | sve
fmaxv T{d}, p{g}, z{n}.T               | 01100101 sz 000110001 g:3 n:5 d:5        | sve
orv T{d}, p{g}, z{n}.T                 | 00000100 sz 011000001 g:3 n:5 d:5        | sve
"""
TABLE = """
rdvl x{d}, #{i}                                  | 0000010010111111 01010 i:6s d:5            | sve
movprfx z{d}, z{n}                               | 0000010000100000101111 n:5 d:5             | sve
and z{d}.d, z{n}.d, z{m}.d                       | 00000100001 m:5 001100 n:5 d:5             | sve
orr z{d}.d, z{n}.d, z{m}.d                       | 00000100011 m:5 001100 n:5 d:5             | sve
lsl z{d}.s, z{n}.s, #{i}                         | 00000100011 i:5 100111 n:5 d:5             | sve
lsl z{d}.d, z{n}.d, #{i}                         | 000001001 i<5:5> 1 i<4:0> 100111 n:5 d:5   | sve
dup z{d}.s, z{n}.s[0]                            | 0000010100100100001000 n:5 d:5             | sve
dup z{d}.d, z{n}.d[0]                            | 0000010100101000001000 n:5 d:5             | sve
ld1w { z{t}.s }, p{g}/z, [x{n:sp}, #{i}, mul vl] | 101001010100 i:4s 101 g:3 n:5 t:5          | sve
ld1d { z{t}.d }, p{g}/z, [x{n:sp}, #{i}, mul vl] | 101001011110 i:4s 101 g:3 n:5 t:5          | sve
st1w { z{t}.s }, p{g}, [x{n:sp}, #{i}, mul vl]   | 111001010100 i:4s 111 g:3 n:5 t:5          | sve
st1d { z{t}.d }, p{g}, [x{n:sp}, #{i}, mul vl]   | 111001011110 i:4s 111 g:3 n:5 t:5          | sve
str s{t}, [x{n:sp}, #{i}]                        | 1011110100 i:12*4 n:5 t:5                  |
str d{t}, [x{n:sp}, #{i}]                        | 1111110100 i:12*8 n:5 t:5                  |
ldr z{t}, [x{n:sp}, #{i}, mul vl]                | 1000010110 i<8:3>s 010 i<2:0> n:5 t:5      | sve
str z{t}, [x{n:sp}, #{i}, mul vl]                | 1110010110 i<8:3>s 010 i<2:0> n:5 t:5      | sve
ld1rw { z{t}.s }, p{g}/z, [x{n:sp}, #{i}]        | 1000010101 i:6*4 110 g:3 n:5 t:5           | sve
ld1rd { z{t}.d }, p{g}/z, [x{n:sp}, #{i}]        | 1000010111 i:6*8 111 g:3 n:5 t:5           | sve
"""
FORMS = parse_table(TABLE)
for _t, _size in (("s", "10"), ("d", "11")):
    _rows = SIZES.replace(".T", f".{_t}").replace("T{", f"{_t}{{").replace(" sz ", f" {_size} ")
    FORMS.update(parse_table(_rows))

ALL, TAIL, SCRATCH = 0, 1, 2  # predicates
WHOLE_LOAD = FORMS["ldr z [xsp imm mul vl]"]
WHOLE_STORE = FORMS["str z [xsp imm mul vl]"]


class SveMachine(A64VectorMachine):
    """One row by a vector of columns a multiply-accumulate, 32 registers."""

    name = "sve"
    vectors = 32
    register = "z"
    constant_registers = 1

    def __init__(self, arithmetic: str, vector_bits: int, storage: str | None = None) -> None:
        super().__init__(arithmetic, vector_bits, storage)
        self.bytes = vector_bits // 8
        self.t = {4: "s", 8: "d"}[self.arithmetic.size]
        self.broadcast_reach = 63 * self.element
        self.vector_reach = 7 * self.bytes
        self.vector_granule = self.bytes
        t = self.t
        letter = "w" if t == "s" else "d"
        self._mac = self._form("fmla z.T p/m z.T z.T")
        self._load = FORMS[f"ld1{letter} z.{t} p/z [xsp imm mul vl]"]
        self._store = FORMS[f"st1{letter} z.{t} p [xsp imm mul vl]"]
        self._broadcast = FORMS[f"ld1r{letter} z.{t} p/z [xsp imm]"]
        self._zero = FORMS[f"dup z.{t} imm"]
        if self.lanes in (2, 4, 8, 16):  # two registers for each row
            self.transpose_squares = (self.lanes,)
        #: displacements that ld1 and st1 take, and their immediates
        self._near_vectors = {i * self.bytes: i for i in range(-8, 8)}

    def _form(self, signature: str) -> Form:
        """The form for this machine's elements; T stands for their size."""
        return FORMS[signature.replace(".T", f".{self.t}")]

    def _vector(self, signature: str, *operands: int) -> None:
        self._out((self._form(signature), operands))

    def _three(self, mnemonic: str, d: int, a: int, b: int) -> None:
        self._vector(f"{mnemonic} z.T z.T z.T", d, a, b)

    # ---- structure --------------------------------------------------------------------------

    def begin(self, used: Sequence[int], stack: int = 0, calls: bool = False) -> None:
        good = self.program.new_label()
        self._out((FORMS["rdvl x imm"], (X16, 1)))
        self._emit("cmp xsp imm", X16, self.bytes)
        self._emit("b.eq label", good)
        self._emit("movz x imm lsl imm", 0, 1, 0)
        self._emit("ret")
        self.place(good)
        super().begin(used, stack, calls)
        self._vector("ptrue p.T", ALL)

    def set_tail(self, lanes: int, vector: int) -> None:
        self.set(X16, lanes)
        self._vector("whilelo p.T x x", TAIL, XZR, X16)

    # ---- loads and stores -------------------------------------------------------------------

    def zero(self, v: int) -> None:
        self._out((self._zero, (v, 0)))

    def load(self, v: int, at: At, lanes: int) -> None:
        near = self._near_vectors.get(at[1])
        if near is None:
            self._far_transfer(self._load, WHOLE_LOAD, v, at, lanes == self.lanes)
        else:
            self._out((self._load, (v, ALL if lanes == self.lanes else TAIL, at[0], near)))

    def store(self, v: int, at: At, lanes: int) -> None:
        near = self._near_vectors.get(at[1])
        if near is None:
            self._far_transfer(self._store, WHOLE_STORE, v, at, lanes == self.lanes)
        else:
            self._out((self._store, (v, ALL if lanes == self.lanes else TAIL, at[0], near)))

    def _far_transfer(self, form: Form, whole: Form, v: int, at: At, full: bool) -> None:
        """Load or store far from a pointer: ldr and str of whole registers reach further."""
        count, rest = divmod(at[1], self.bytes)
        if full and not rest and -256 <= count <= 255:
            self._out((whole, (v, at[0], count)))
            return
        base, disp = self._reach(at, self._near_vectors.__contains__)
        self._out((form, (v, ALL if full else TAIL, base, self._near_vectors[disp])))

    def broadcast(self, v: int, at: At) -> None:
        if not (0 <= at[1] <= self.broadcast_reach and at[1] % self.element == 0):
            at = self._reach(at, self._near_elements)
        self._out((self._broadcast, (v, ALL, *at)))

    def _near_elements(self, disp: int) -> bool:
        return disp % self.element == 0 and 0 <= disp <= self.broadcast_reach

    def mac(self, acc: int, a: int, b: int, lanes: int) -> None:
        self._out((self._mac, (acc, ALL, a, b)))

    # ---- arithmetic -------------------------------------------------------------------------

    def _constant(self, element: bytes) -> Constant:
        return (-1, None, 1, self.program.constant(element))

    def load_const(self, d: int, c: Constant) -> None:
        self.broadcast(d, (self.constant_base, c[3]))

    def div(self, d: int, a: int, b: int | Constant) -> None:
        self._destructive("fdiv", "fdivr", d, a, self._register(b))

    def sqrt(self, d: int, a: int) -> None:
        self._vector("fsqrt z.T p/m z.T", d, ALL, a)

    def max(self, d: int, a: int, b: int | Constant) -> None:
        self._destructive("fmax", "fmax", d, a, self._register(b))

    def min(self, d: int, a: int, b: int | Constant) -> None:
        self._destructive("fmin", "fmin", d, a, self._register(b))

    def _destructive(self, name: str, swapped: str, d: int, a: int, b: int) -> None:
        """d = a op b, by an operation whose first operand is its destination."""
        if d == b and d != a:
            self._vector(f"{swapped} z.T p/m z.T z.T", d, ALL, a)
            return
        if d != a:
            self._out((FORMS["movprfx z z"], (d, a)))
        self._vector(f"{name} z.T p/m z.T z.T", d, ALL, b)

    def fma(self, acc: int, a: int, b: int | Constant) -> None:
        self._vector("fmla z.T p/m z.T z.T", acc, ALL, a, self._register(b))

    def fnma(self, acc: int, a: int, b: int | Constant) -> None:
        self._vector("fmls z.T p/m z.T z.T", acc, ALL, a, self._register(b))

    def fmad(self, d: int, a: int, b: int | Constant) -> None:
        self._vector("fmad z.T p/m z.T z.T", d, ALL, a, self._register(b))

    def and_(self, d: int, a: int, b: int | Constant) -> None:
        self._out((FORMS["and z.d z.d z.d"], (d, a, self._register(b))))

    def or_(self, d: int, a: int, b: int | Constant) -> None:
        self._out((FORMS["orr z.d z.d z.d"], (d, a, self._register(b))))

    def shift_left(self, d: int, a: int, bits: int) -> None:
        self._vector("lsl z.T z.T imm", d, a, bits)

    def select_negative(self, d: int, condition: int, a: int, b: int) -> None:
        self._vector("cmplt p.T p/z z.T imm", SCRATCH, ALL, condition, 0)
        self._vector("sel z.T p z.T z.T", d, SCRATCH, a, b)

    def select_greater(self, d: int, x: int, y: int, a: int, b: int) -> None:
        self._vector("fcmgt p.T p/z z.T z.T", SCRATCH, ALL, x, y)
        self._vector("sel z.T p z.T z.T", d, SCRATCH, a, b)

    def shift_down(self, d: int, a: int, bits: int) -> None:
        temp = self.constant_temps[-1]
        self._vector("dup z.T imm", temp, bits)
        if d != a:
            self._out((FORMS["movprfx z z"], (d, a)))
        self._vector("lsr z.T p/m z.T z.T", d, ALL, temp)

    # ---- across lanes -----------------------------------------------------------------------

    def sum_lanes(self, d: int, v: int, temp: int) -> None:
        self._vector(f"faddv {self.t} p z.T", d, ALL, v)
        self._vector("dup z.T z.T[0]", d, d)

    def max_lanes(self, d: int, v: int, temp: int) -> None:
        self._vector(f"fmaxv {self.t} p z.T", d, ALL, v)
        self._vector("dup z.T z.T[0]", d, d)

    def select_first(self, d: int, a: int, b: int, lanes: int) -> None:
        self._vector("sel z.T p z.T z.T", d, TAIL, a, b)

    def store_first(self, v: int, at: At) -> None:
        base, disp = self._reach(at, lambda disp: 0 <= disp < 4096 * self.element
                                 and disp % self.element == 0)  # fmt: skip
        self._out((FORMS[f"str {self.t} [xsp imm]"], (v, base, disp)))

    # ---- bits -------------------------------------------------------------------------------

    def positive_bits(self, d: int, v: int, lanes: int, temps: Sequence[int]) -> None:
        # lane i contributes 1 << i; a shift of the element's bits or more (as unsigned) gives 0
        number, bit = temps[:2]
        width = 8 * self.arithmetic.size
        active = ALL if lanes == self.lanes else TAIL
        self._vector("fcmgt p.T p/z z.T #0.0", SCRATCH, active, v)
        self._vector("index z.T imm imm", number, 0, 1)
        self._or_shifted(d, number, bit)
        if lanes > width:
            self._vector("sub z.T z.T imm", number, width)
            self._or_shifted(X16, number, bit)
            self.merge_bits(d, X16, width)

    def _or_shifted(self, d: int, number: int, bit: int) -> None:
        """d = the bits 1 << number of the lanes in the scratch predicate; clobbers `bit`."""
        self._vector("dup z.T imm", bit, 1)
        self._vector("lsl z.T p/m z.T z.T", bit, ALL, number)
        self._vector(f"orv {self.t} p z.T", bit, SCRATCH, bit)
        self._near = None  # d may be the base of the address that x17 holds
        self._out((GENERAL["fmov w s" if self.arithmetic.size == 4 else "fmov x d"], (d, bit)))

    def spread_bits(self, d: int, r: int, position: int, temps: Sequence[int]) -> None:
        # lane i shifts bit i to the lowest place; a shift of all bits or more (unsigned) gives 0
        number, more = temps[:2]
        width = 8 * self.arithmetic.size
        self._vector("index z.T imm imm", number, 0, 1)
        self._shifted(d, r, position, number)
        if self.lanes > width:
            self._vector("sub z.T z.T imm", number, width)
            self._shifted(more, r, position + width, number)
            self.or_(d, d, more)
        self.shift_left(d, d, width - 1)

    def _shifted(self, d: int, r: int, position: int, number: int) -> None:
        """Every lane of d = (r >> position) >> number."""
        self._emit("lsr x x imm", X16, r, position)
        self._out((GENERAL["fmov s w" if self.arithmetic.size == 4 else "fmov d x"], (d, X16)))
        self._vector("dup z.T z.T[0]", d, d)
        self._vector("lsr z.T p/m z.T z.T", d, ALL, number)


def open_machine(arithmetic: str, vector_bits: int, storage: str | None = None) -> SveMachine:
    """The machine for vectors of exactly `vector_bits`."""
    if vector_bits not in range(128, 2049, 128):
        raise ValueError(f"vector_bits={vector_bits}: SVE has 128 to 2048 in steps of 128")
    return SveMachine(arithmetic, vector_bits, storage)


def tables() -> list[dict[str, Form]]:
    """The tables of this file."""
    return [FORMS]
