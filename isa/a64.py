"""A64: general-purpose rows, the AAPCS64 calling convention and the scalar verbs.

Vector rows and verbs stand in jitgen.isa.neon and jitgen.isa.sve, which build on `A64Machine` here.
Rows are in the notation of jitgen.isa.a64_rows. Registers are numbers; 31 is the stack pointer and
32 the zero register.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jitgen.isa.a64_rows import SP, XZR, parse_table
from jitgen.isa.form import Form
from jitgen.isa.machine import At, Machine
from jitgen.isa.program import Program

# syntax | bit diagram | feature
TABLE = """
movz x{d}, #{i}, lsl #{s}            | 110100101 s:2*16 i:16 d:5             |
movn x{d}, #{i}, lsl #{s}            | 100100101 s:2*16 i:16 d:5             |
movk x{d+}, #{i}, lsl #{s}           | 111100101 s:2*16 i:16 d:5             |
mov x{d}, x{m}                       | 10101010000 m:5 000000 11111 d:5      |
orr x{d}, x{n}, x{m}, lsl #{s}       | 10101010000 m:5 s:6 n:5 d:5           |
and x{d}, x{n}, x{m}                 | 10001010000 m:5 000000 n:5 d:5        |
bic x{d}, x{n}, x{m}                 | 10001010001 m:5 000000 n:5 d:5        |
and x{d:sp}, x{n}, #-64              | 1001001001 111010 111001 n:5 d:5      |
add x{d:sp}, x{n:sp}, #{i}           | 1001000100 i:12 n:5 d:5               |
add x{d:sp}, x{n:sp}, #{i}, lsl #12  | 1001000101 i:12 n:5 d:5               |
add x{d}, x{n}, x{m}, lsl #{s}       | 10001011000 m:5 s:6 n:5 d:5           |
add x{d:sp}, x{n:sp}, x{m}, uxtx     | 10001011001 m:5 011000 n:5 d:5        |
sub x{d:sp}, x{n:sp}, #{i}           | 1101000100 i:12 n:5 d:5               |
sub x{d:sp}, x{n:sp}, #{i}, lsl #12  | 1101000101 i:12 n:5 d:5               |
sub x{d}, x{n}, x{m}                 | 11001011000 m:5 000000 n:5 d:5        |
sub x{d:sp}, x{n:sp}, x{m}, uxtx     | 11001011001 m:5 011000 n:5 d:5        |
subs x{d}, x{n:sp}, #{i}             | 1111000100 i:12 n:5 d:5               |
cmp x{n}, x{m}                       | 11101011000 m:5 000000 n:5 11111      |
cmp x{n:sp}, #{i}                    | 1111000100 i:12 n:5 11111             |
cmp x{n:sp}, #{i}, lsl #12           | 1111000101 i:12 n:5 11111             |
cmn x{n:sp}, #{i}                    | 1011000100 i:12 n:5 11111             |
csel x{d}, x{n}, x{m}, lo            | 10011010100 m:5 0011 00 n:5 d:5       |
mul x{d}, x{n}, x{m}                 | 10011011000 m:5 0 11111 n:5 d:5       |
lsr x{d}, x{n}, #{s}                 | 1101001101 s:6 111111 n:5 d:5         |
lslv x{d}, x{n}, x{m}                | 10011010110 m:5 001000 n:5 d:5        |
ubfm x{d}, x{n}, #{r}, #{s}          | 1101001101 r:6 s:6 n:5 d:5            |
ldr x{t}, [x{n:sp}, #{i}]            | 1111100101 i:12*8 n:5 t:5             |
ldr w{t}, [x{n:sp}, #{i}]            | 1011100101 i:12*4 n:5 t:5             |
ldur x{t}, [x{n:sp}, #{i}]           | 11111000010 i:9s 00 n:5 t:5           |
ldur w{t}, [x{n:sp}, #{i}]           | 10111000010 i:9s 00 n:5 t:5           |
ldurh w{t}, [x{n:sp}, #{i}]          | 01111000010 i:9s 00 n:5 t:5           |
ldurb w{t}, [x{n:sp}, #{i}]          | 00111000010 i:9s 00 n:5 t:5           |
str x{t}, [x{n:sp}, #{i}]            | 1111100100 i:12*8 n:5 t:5             |
str w{t}, [x{n:sp}, #{i}]            | 1011100100 i:12*4 n:5 t:5             |
stur x{t}, [x{n:sp}, #{i}]           | 11111000000 i:9s 00 n:5 t:5           |
stur w{t}, [x{n:sp}, #{i}]           | 10111000000 i:9s 00 n:5 t:5           |
sturh w{t}, [x{n:sp}, #{i}]          | 01111000000 i:9s 00 n:5 t:5           |
sturb w{t}, [x{n:sp}, #{i}]          | 00111000000 i:9s 00 n:5 t:5           |
stp x{t}, x{u}, [x{n:sp}, #{i}]      | 1010100100 i:7s*8 u:5 n:5 t:5         |
ldp x{t}, x{u}, [x{n:sp}, #{i}]      | 1010100101 i:7s*8 u:5 n:5 t:5         |
stp d{t}, d{u}, [x{n:sp}, #{i}]      | 0110110100 i:7s*8 u:5 n:5 t:5         |
ldp d{t}, d{u}, [x{n:sp}, #{i}]      | 0110110101 i:7s*8 u:5 n:5 t:5         |
fmov s{d}, w{n}                      | 0001111000100111000000 n:5 d:5        |
fmov d{d}, x{n}                      | 1001111001100111000000 n:5 d:5        |
fmov w{d}, s{n}                      | 0001111000100110000000 n:5 d:5        |
fmov x{d}, d{n}                      | 1001111001100110000000 n:5 d:5        |
prfm pldl1keep, [x{n:sp}, #{i}]      | 1111100110 i:12*8 n:5 00000           |
adr x{d}, {l}                        | 0 l<1:0> 10000 l<20:2>s d:5           |
b {l}                                | 000101 l:26s*4                        |
b.eq {l}                             | 01010100 l:19s*4 0 0000               |
b.ne {l}                             | 01010100 l:19s*4 0 0001               |
b.lo {l}                             | 01010100 l:19s*4 0 0011               |
b.lt {l}                             | 01010100 l:19s*4 0 1011               |
cbz x{t}, {l}                        | 10110100 l:19s*4 t:5                  |
cbnz x{t}, {l}                       | 10110101 l:19s*4 t:5                  |
blr x{n}                             | 1101011000111111000000 n:5 00000      |
ret                                  | 11010110010111110000001111000000      |
nop                                  | 11010101000000110010000000011111      |
mrs x{t}, ctr_el0                    | 110101010011101100000000001 t:5       |
dc cvau, x{t}                        | 110101010000101101111011001 t:5       |
ic ivau, x{t}                        | 110101010000101101110101001 t:5       |
dsb ish                              | 11010101000000110011101110011111      |
isb                                  | 11010101000000110011111111011111      |
ldaxr x{t}, [x{n:sp}]                | 1100100001011111111111 n:5 t:5        |
stlxr w{s}, x{t}, [x{n:sp}]          | 11001000000 s:5 111111 n:5 t:5        |
ldar x{t}, [x{n:sp}]                 | 1100100011011111111111 n:5 t:5        |
stlr x{t}, [x{n:sp}]                 | 1100100010011111111111 n:5 t:5        |
yield                                | 11010101000000110010000000111111      |
svc #{i}                             | 11010100000 i:16 00001                |
"""
FORMS = parse_table(TABLE)

#: Scratch of the verbs: large constants and values, and legalised addresses.
X16, X17 = 16, 17
FRAME_POINTER, LINK = 29, 30
CALLEE_SAVED = range(19, 29)
CALLEE_SAVED_VECTORS = range(8, 16)  # their low 64 bits
PAGE = 4096
#: Linux's number of the system call sched_yield, and the register of a call's number
SCHED_YIELD, CALL_NUMBER = 124, 8


def nops(n: int) -> bytes:
    """n bytes (a multiple of 4) of no-operations."""
    return FORMS["nop"].encode(()) * (n // 4)


class A64Machine(Machine):
    """Scalar verbs of A64 and the procedure call standard.

    x17 keeps the last address that no displacement reached, so that its neighbours can be reached
    from there; it is forgotten at labels and when its base moves.
    """

    arguments, result = (0, 1, 2, 3), 0
    #: x16 and x17 are scratch of the verbs; x18 belongs to the platform
    gprs = (*range(1, 16), *CALLEE_SAVED)
    kept = tuple(CALLEE_SAVED)

    def __init__(self, arithmetic: str, vector_bits: int, storage: str | None = None) -> None:
        super().__init__(arithmetic, vector_bits, storage)
        self._out = self.program.records.append
        #: (base, displacement) of the address that x17 holds
        self._near: At | None = None
        #: constants in registers, by value
        self._hoisted: dict[int, int] = {}

    def _new_program(self) -> Program:
        return Program(nops)

    def _emit(self, signature: str, *operands: int) -> None:
        """Emit an instruction whose first operand may be a general-purpose destination."""
        near = self._near
        if near is not None and operands and operands[0] == near[0]:
            self._near = None
        self._out((FORMS[signature], operands))

    # ---- structure ------------------------------------------------------------------------

    def begin(self, used: Sequence[int], stack: int = 0, calls: bool = False) -> None:
        assert stack or not calls, "the stack is aligned for calls where scratch is taken"
        self._saved = [r for r in CALLEE_SAVED if r in used]
        if calls:
            self._saved.append(LINK)
        if stack:
            self._saved.append(FRAME_POINTER)
        if len(self._saved) % 2:
            self._saved.append(XZR)
        self._stack = -(-stack // 64) * 64
        self._save("stp")
        if not stack:
            return
        # pages are touched in order, so that the guard page below a thread's stack is never
        # jumped over
        self._emit("add xsp xsp imm", FRAME_POINTER, SP, 0)
        for _ in range(self._stack // PAGE):
            self._emit("sub xsp xsp imm lsl #12", SP, SP, 1)
            self._emit("str x [xsp imm]", XZR, SP, 0)
        self._emit("sub xsp xsp imm", X16, SP, self._stack % PAGE)
        self._emit("and xsp x #-64", SP, X16)

    def end(self, status: int | None = None) -> None:
        if status is None:
            self._emit("movz x imm lsl imm", 0, 0, 0)
        else:
            self.move(0, status)
        if self._stack:
            self._emit("add xsp xsp imm", SP, FRAME_POINTER, 0)
        self._save("ldp")
        self._emit("ret")

    def _save(self, pair: str) -> None:
        """Store ("stp") or load ("ldp") the registers of the caller."""
        size = 8 * (len(self._saved) + len(CALLEE_SAVED_VECTORS))
        if pair == "stp":
            self._emit("sub xsp xsp imm", SP, SP, size)
        at = 0
        for kind, registers in (("x", self._saved), ("d", CALLEE_SAVED_VECTORS)):
            for first, second in zip(registers[::2], registers[1::2], strict=True):
                self._emit(f"{pair} {kind} {kind} [xsp imm]", first, second, SP, at)
                at += 16
        if pair == "ldp":
            self._emit("add xsp xsp imm", SP, SP, size)

    def _call(self, function: int) -> None:
        self._near = None
        self._emit("blr x", function)

    @property
    def stack_pointer(self) -> int:
        return SP

    def place(self, label: int) -> None:
        self._near = None
        super().place(label)

    def jump(self, label: int) -> None:
        self._emit("b label", label)

    def jump_if_nonzero(self, r: int, label: int) -> None:
        self._emit("cbnz x label", r, label)

    def jump_if_equal(self, a: int, b: int, label: int) -> None:
        self._emit("cmp x x", a, b)
        self._emit("b.eq label", label)

    def jump_if_different(self, a: int, b: int, label: int) -> None:
        self._emit("cmp x x", a, b)
        self._emit("b.ne label", label)

    def jump_if_less(self, r: int, bound: int, label: int) -> None:
        if 0 <= bound < 1 << 12:
            self._emit("cmp xsp imm", r, bound)
        elif 0 <= bound < 1 << 24 and bound % (1 << 12) == 0:
            self._emit("cmp xsp imm lsl #12", r, bound >> 12)
        elif -(1 << 12) < bound < 0:
            self._emit("cmn xsp imm", r, -bound)
        else:
            self.set(X16, bound)
            self._emit("cmp x x", r, X16)
        self._emit("b.lt label", label)

    def count_down(self, r: int, label: int) -> None:
        self._emit("subs x xsp imm", r, r, 1)
        self._emit("b.ne label", label)

    # ---- scalar ---------------------------------------------------------------------------

    def set(self, d: int, value: int) -> None:
        if 0 <= value < 1 << 16:
            self._emit("movz x imm lsl imm", d, value, 0)
            return
        parts = [value >> 16 * i & 0xFFFF for i in range(4)]
        # the parts that the first instruction does not leave right
        name, rest = "movz", 0
        if parts.count(0xFFFF) > parts.count(0):
            name, rest = "movn", 0xFFFF
        for i in [i for i in range(4) if parts[i] != rest] or [0]:
            part = parts[i] ^ 0xFFFF if name == "movn" else parts[i]
            self._emit(f"{name} x imm lsl imm", d, part, 16 * i)
            name = "movk"

    def move(self, d: int, s: int) -> None:
        if s == SP:
            self._emit("add xsp xsp imm", d, s, 0)
        elif d != s:
            self._emit("mov x x", d, s)

    def offset(self, d: int, s: int, value: int) -> None:
        if 0 < value < 4096:
            self._emit("add xsp xsp imm", d, s, value)
            return
        size = abs(value)
        name = "add" if value > 0 else "sub"
        high, low = divmod(size, 1 << 12)
        if value == 0:
            self.move(d, s)
        elif high == 0 or (low == 0 and high < 1 << 12):
            shift = " lsl #12" if high else ""
            self._emit(f"{name} xsp xsp imm{shift}", d, s, high or low)
        elif s != SP and (value in self._hoisted or -value in self._hoisted):
            if value in self._hoisted:
                self._emit("add x x x lsl imm", d, s, self._hoisted[value], 0)
            else:
                self._emit("sub x x x", d, s, self._hoisted[-value])
        elif high < 1 << 12:
            self._emit(f"{name} xsp xsp imm lsl #12", d, s, high)
            self._emit(f"{name} xsp xsp imm", d, d, low)
        else:
            self.set(X16, size)
            self._emit(f"{name} xsp xsp x uxtx", d, s, X16)

    def hoist(self, value: int, register: int) -> None:
        self._hoisted[value] = register

    def sum(self, d: int, a: int, b: int, shift: int = 0) -> None:
        self._emit("add x x x lsl imm", d, a, b, shift)

    def subtract(self, d: int, s: int) -> None:
        self._emit("sub x x x", d, d, s)

    def multiply(self, d: int, s: int, value: int) -> None:
        if value > 0 and value & (value - 1) == 0:
            self._shift_left(d, s, value.bit_length() - 1)
        else:
            self.set(X16, value)
            self._emit("mul x x x", d, s, X16)

    def _shift_left(self, d: int, s: int, bits: int) -> None:
        if bits:
            self._emit("ubfm x x imm imm", d, s, 64 - bits, 63 - bits)
        else:
            self.move(d, s)

    def shift_right(self, d: int, bits: int) -> None:
        if bits:
            self._emit("lsr x x imm", d, d, bits)

    def minimum(self, d: int, s: int, value: int) -> None:
        self.set(d, value)
        self._emit("cmp x x", s, d)
        self._emit("csel x x x lo", d, s, d)

    # ---- memory ---------------------------------------------------------------------------

    def _reach(self, at: At, fits: Callable[[int], bool]) -> At:
        """An address whose displacement fits: `at`, or the same place seen from x17."""
        base, disp = at
        if fits(disp):
            return at
        near = self._near
        if near is not None and near[0] == base and fits(disp - near[1]):
            return X17, disp - near[1]
        self.offset(X17, base, disp)
        self._near = at
        return X17, 0

    def _access(self, mnemonic: str, kind: str, r: int, at: At, size: int) -> None:
        """ldr or str of `size` bytes."""
        base, disp = self._reach(at, lambda disp: disp % size == 0 and 0 <= disp // size < 4096)
        self._emit(f"{mnemonic} {kind} [xsp imm]", r, base, disp)

    def load_word(self, d: int, at: At) -> None:
        if -256 <= at[1] < 0:
            self._emit("ldur x [xsp imm]", d, *at)
        else:
            self._access("ldr", "x", d, at, 8)

    def load_half(self, d: int, at: At) -> None:
        self._access("ldr", "w", d, at, 4)

    def store_word(self, s: int, at: At) -> None:
        self._access("str", "x", s, at, 8)

    def copy_element(self, to: At, source: At, temp: int) -> None:
        kind = {4: "w", 8: "x"}[self.element]
        self._access("ldr", kind, temp, source, self.element)
        self._access("str", kind, temp, to, self.element)

    def prefetch(self, at: At) -> None:
        base, disp = self._reach(
            (at[0], at[1] & -8), lambda disp: disp % 8 == 0 and 0 <= disp < 8 * 4096
        )
        self._emit("prfm pldl1keep [xsp imm]", base, disp)

    # ---- between threads ------------------------------------------------------------------

    def fetch_add(self, d: int, at: int, s: int) -> None:
        again = self.program.new_label()
        self.place(again)
        self._emit("ldaxr x [xsp]", d, at)
        self._emit("add x x x lsl imm", X16, d, s, 0)
        self._emit("stlxr w x [xsp]", X17, X16, at)
        self._emit("cbnz x label", X17, again)

    def load_acquire(self, d: int, at: At) -> None:
        self.offset(X16, *at)
        self._emit("ldar x [xsp]", d, X16)

    def store_release(self, s: int, at: At) -> None:
        self.offset(X16, *at)
        self._out((FORMS["stlr x [xsp]"], (s, X16)))

    def pause(self) -> None:
        self._emit("yield")

    def give_way(self) -> None:
        self.set(CALL_NUMBER, SCHED_YIELD)
        self._emit("svc imm", 0)
        self._near = None

    # ---- bits -----------------------------------------------------------------------------

    def use_constants(self, base: int) -> None:
        self.constant_base = base
        self._emit("adr x label", base, self.program.data_label)

    def merge_bits(self, d: int, s: int, shift: int) -> None:
        self._emit("orr x x x lsl imm", d, d, s, shift)

    def store_bits(self, r: int, at: At, count: int) -> None:
        base, disp = self._reach(at, lambda disp: -256 <= disp <= 256 - 8)
        for size, row in ((8, "stur x"), (4, "stur w"), (2, "sturh w"), (1, "sturb w")):
            if count >= size:
                self._emit(f"{row} [xsp imm]", r, base, disp)
                disp += size
                count -= size
                if count:
                    self._emit("lsr x x imm", r, r, 8 * size)

    def load_bits(self, d: int, at: At, count: int) -> None:
        base, disp = self._reach(at, lambda disp: -256 <= disp <= 256 - 8)
        done = 0
        for size, row in ((8, "ldur x"), (4, "ldur w"), (2, "ldurh w"), (1, "ldurb w")):
            if count - done >= size:
                self._emit(f"{row} [xsp imm]", X16 if done else d, base, disp + done)
                if done:
                    self.merge_bits(d, X16, 8 * done)
                done += size


def flush_icache_code() -> bytes:
    """A function of (start, end) addresses that makes code written there fit to run.

    Data cache lines are cleaned to the point of unification, then instruction cache lines
    invalidated, line lengths taken from CTR_EL0 (log2 of words: bits 16 to 19 and 0 to 3).
    """
    program = Program(nops)

    def emit(signature: str, *operands: int) -> None:
        program.emit(FORMS[signature], operands)

    start, end, types, size, mask, at = 0, 1, 2, 3, 4, 5
    emit("mrs x ctr_el0", types)
    for lowest, clean in ((16, "dc cvau x"), (0, "ic ivau x")):
        emit("movz x imm lsl imm", mask, 4, 0)
        emit("ubfm x x imm imm", size, types, lowest, lowest + 3)
        emit("lslv x x x", size, mask, size)
        emit("sub xsp xsp imm", mask, size, 1)
        emit("bic x x x", at, start, mask)
        again = program.new_label()
        program.place(again)
        emit(clean, at)
        emit("add x x x lsl imm", at, at, size, 0)
        emit("cmp x x", at, end)
        emit("b.lo label", again)
        emit("dsb ish")
    emit("isb")
    emit("ret")
    return program.encode()


def register_name(r: int) -> str:
    """Name of a general-purpose register."""
    return {SP: "sp", XZR: "xzr"}.get(r, f"x{r}")


def tables() -> list[dict[str, Form]]:
    """The tables of this file."""
    return [FORMS]
