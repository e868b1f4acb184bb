"""x86-64: general-purpose rows, the System V calling convention and the scalar verbs.

Vector rows and verbs stand in jitgen.isa.avx2 and jitgen.isa.avx512, which build on `X86Machine`
here. Rows are in the notation of the Intel manual, see jitgen.isa.x86_rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from jitgen.isa.form import Form
from jitgen.isa.machine import At, Machine
from jitgen.isa.program import Program
from jitgen.isa.x86_rows import R64, parse_table

# mnemonic | operands | encoding | feature
TABLE = """
mov        | r64 r64         | REX.W 89 /r MR     |
mov        | r32 r32         | 89 /r MR           |
mov        | r64 imm32       | REX.W C7 /0        |
mov        | r32 uimm32      | B8+r               |
movabs     | r64 imm64       | REX.W B8+r         |
mov        | r64 m64         | REX.W 8B /r        |
mov        | r32 m32         | 8B /r              |
movzx      | r32 m16         | 0F B7 /r           |
movzx      | r32 m8          | 0F B6 /r           |
mov        | m64 r64         | REX.W 89 /r        |
mov        | m32 r32         | 89 /r              |
mov        | m16 r16         | 66 89 /r           |
mov        | m8 r8           | 88 /r              |
lea        | r64 m           | REX.W 8D /r        |
lea        | r64 rip         | REX.W 8D /r        |
add        | r64+ r64        | REX.W 01 /r MR     |
add        | r64+ imm8       | REX.W 83 /0        |
add        | r64+ imm32      | REX.W 81 /0        |
add        | rax+ imm32      | REX.W 05           |
sub        | r64+ r64        | REX.W 29 /r MR     |
imul       | r64 r64/m64 imm8  | REX.W 6B /r      |
imul       | r64 r64/m64 imm32 | REX.W 69 /r      |
cmp        | r64 r64         | REX.W 39 /r MR     |
cmp        | r64 imm8        | REX.W 83 /7        |
cmp        | r64 imm32       | REX.W 81 /7        |
cmp        | rax imm32       | REX.W 3D           |
test       | r64 r64         | REX.W 85 /r MR     |
xor        | r32+ r32        | 31 /r MR           |
and        | r64+ r64        | REX.W 21 /r MR     |
or         | r64+ r64        | REX.W 09 /r MR     |
shl        | r64+ uimm8      | REX.W C1 /4        |
shr        | r64+ uimm8      | REX.W C1 /5        |
dec        | r64+            | REX.W FF /1        |
cmovb      | r64+ r64        | REX.W 0F 42 /r     |
push       | r64             | 50+r               |
pop        | r64             | 58+r               |
jmp        | rel             | E9                 |
je         | rel             | 0F 84              |
jne        | rel             | 0F 85              |
jl         | rel             | 0F 8C              |
jb         | rel             | 0F 82              |
call       | r64             | FF /2              |
ret        |                 | C3                 |
cpuid      |                 | 0F A2              |
xgetbv     |                 | 0F 01 D0           |
prefetcht0 | m8              | 0F 18 /1           |
lock xadd  | m64 r64+        | F0 REX.W 0F C1 /r  |
pause      |                 | F3 90              |
syscall    |                 | 0F 05              |
"""
FORMS = parse_table(TABLE)

#: Intel's recommended multi-byte no-operations (SDM volume 2, NOP), lengths 1 to 9
NOPS = [bytes.fromhex(x) for x in (
    "90", "6690", "0f1f00", "0f1f4000", "0f1f440000", "660f1f440000", "0f1f8000000000",
    "0f1f840000000000", "660f1f840000000000")]  # fmt: skip

#: loads of so many bytes that clear the rest of the register
LOADS = {8: "mov r64 m64", 4: "mov r32 m32", 2: "movzx r32 m16", 1: "movzx r32 m8"}
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
CALLEE_SAVED = (RBX, RBP, 12, 13, 14, 15)
PAGE = 4096
#: Linux's number of the system call sched_yield
SCHED_YIELD = 24


def nops(n: int) -> bytes:
    """n bytes of no-operations, as few instructions as possible."""
    return NOPS[8] * (n // 9) + (NOPS[n % 9 - 1] if n % 9 else b"")


class X86Machine(Machine):
    """Scalar verbs of x86-64 and the System V calling convention."""

    arguments, result = (RDI, RSI, RDX, RCX), RAX
    #: rax is scratch of the verbs
    gprs = (RCX, RDX, RSI, 8, 9, 10, 11, *CALLEE_SAVED)
    kept = CALLEE_SAVED
    broadcast_reach = vector_reach = (1 << 31) - 1

    def _new_program(self) -> Program:
        return Program(nops)

    def _emit(self, signature: str, *operands: object) -> None:
        self.program.records.append((FORMS[signature], operands))

    # ---- structure ------------------------------------------------------------------------

    def begin(self, used: Sequence[int], stack: int = 0, calls: bool = False) -> None:
        assert stack or not calls, "the stack is aligned for calls where scratch is taken"
        self._saved = [r for r in CALLEE_SAVED if r in used]
        self._stack = -(-stack // 64) * 64
        if self._stack and RBP not in self._saved:
            self._saved.insert(0, RBP)
        for r in self._saved:
            self._emit("push r64", r)
        if self._stack:
            # the old stack pointer is kept in the frame's top word; pages are touched in order,
            # so that the guard page below a thread's stack is never jumped over
            self._emit("mov r64 r64", RAX, RSP)
            total = self._stack + 128  # the old stack pointer, and what alignment takes
            for _ in range(total // PAGE):
                self._emit("lea r64 m", RSP, (RSP, None, 1, -PAGE))
                self._emit("mov m64 r64", (RSP, None, 1, 0), RAX)
            rest = total % PAGE
            self._emit("lea r64 m", RSP, (RSP, None, 1, -rest))
            self._emit("mov r64 imm32", RBP, -64)
            self._emit("and r64 r64", RSP, RBP)
            self._emit("mov m64 r64", (RSP, None, 1, self._stack), RAX)

    def end(self, status: int | None = None) -> None:
        if status is None:
            self._emit("xor r32 r32", RAX, RAX)
        else:
            self.move(RAX, status)
        if self._stack:
            self._emit("mov r64 m64", RSP, (RSP, None, 1, self._stack))
        for r in reversed(self._saved):
            self._emit("pop r64", r)
        self._leave_vectors()
        self._emit("ret")

    def _call(self, function: int) -> None:
        self._emit("call r64", function)

    def _leave_vectors(self) -> None:
        """Whatever the calling convention wants of the vector registers."""

    @property
    def stack_pointer(self) -> int:
        return RSP

    def jump(self, label: int) -> None:
        self._emit("jmp rel", label)

    def jump_if_nonzero(self, r: int, label: int) -> None:
        self._emit("test r64 r64", r, r)
        self._emit("jne rel", label)

    def jump_if_equal(self, a: int, b: int, label: int) -> None:
        self._emit("cmp r64 r64", a, b)
        self._emit("je rel", label)

    def jump_if_different(self, a: int, b: int, label: int) -> None:
        self._emit("cmp r64 r64", a, b)
        self._emit("jne rel", label)

    def jump_if_less(self, r: int, bound: int, label: int) -> None:
        self._compare(r, bound)
        self._emit("jl rel", label)

    def count_down(self, r: int, label: int) -> None:
        self._emit("dec r64", r)
        self._emit("jne rel", label)

    # ---- scalar ---------------------------------------------------------------------------

    def set(self, d: int, value: int) -> None:
        if value == 0:
            self._emit("xor r32 r32", d, d)
        elif 0 < value < 1 << 32:
            self._emit("mov r32 uimm32", d, value)
        elif -(1 << 31) <= value < 0:
            self._emit("mov r64 imm32", d, value)
        else:
            self._emit("movabs r64 imm64", d, value)

    def move(self, d: int, s: int) -> None:
        if d != s:
            self._emit("mov r64 r64", d, s)

    def offset(self, d: int, s: int, value: int) -> None:
        if not -(1 << 31) <= value < 1 << 31:
            large = d if d != s else RAX
            self.set(large, value)
            self._emit("add r64 r64", large, s)
            self.move(d, large)
        elif value == 0:
            self.move(d, s)
        elif d != s:
            self._emit("lea r64 m", d, (s, None, 1, value))
        elif -128 <= value <= 127:
            self._emit("add r64 imm8", d, value)
        else:
            self._emit("add rax imm32" if d == RAX else "add r64 imm32", d, value)

    def hoist(self, value: int, register: int) -> None:
        pass  # every constant of 32 bits is an immediate

    def sum(self, d: int, a: int, b: int, shift: int = 0) -> None:
        if d == a and shift == 0:
            self._emit("add r64 r64", d, b)
        else:
            self._emit("lea r64 m", d, (a, b, 1 << shift, 0))

    def subtract(self, d: int, s: int) -> None:
        self._emit("sub r64 r64", d, s)

    def multiply(self, d: int, s: int, value: int) -> None:
        if value == 1:
            self.move(d, s)
        elif -128 <= value <= 127:
            self._emit("imul r64 r64 imm8", d, s, value)
        else:
            self._emit("imul r64 r64 imm32", d, s, value)

    def shift_right(self, d: int, bits: int) -> None:
        if bits:
            self._emit("shr r64 uimm8", d, bits)

    def minimum(self, d: int, s: int, value: int) -> None:
        self.set(d, value)
        self._emit("cmp r64 r64", s, d)
        self._emit("cmovb r64 r64", d, s)

    def _compare(self, r: int, value: int) -> None:
        if -128 <= value <= 127:
            self._emit("cmp r64 imm8", r, value)
        else:
            self._emit("cmp rax imm32" if r == RAX else "cmp r64 imm32", r, value)

    def load_word(self, d: int, at: At) -> None:
        self._emit("mov r64 m64", d, (at[0], None, 1, at[1]))

    def load_half(self, d: int, at: At) -> None:
        self._emit("mov r32 m32", d, (at[0], None, 1, at[1]))

    def store_word(self, s: int, at: At) -> None:
        self._emit("mov m64 r64", (at[0], None, 1, at[1]), s)

    def copy_element(self, to: At, source: At, temp: int) -> None:
        size = 8 * self.element
        self._emit(f"mov r{size} m{size}", temp, (source[0], None, 1, source[1]))
        self._emit(f"mov m{size} r{size}", (to[0], None, 1, to[1]), temp)

    def prefetch(self, at: At) -> None:
        self._emit("prefetcht0 m8", (at[0], None, 1, at[1]))

    # ---- between threads ------------------------------------------------------------------

    def fetch_add(self, d: int, at: int, s: int) -> None:
        self.move(d, s)
        self._emit("lock xadd m64 r64", (at, None, 1, 0), d)

    def load_acquire(self, d: int, at: At) -> None:
        self.load_word(d, at)  # loads are ordered, and so are stores

    def store_release(self, s: int, at: At) -> None:
        self.store_word(s, at)

    def pause(self) -> None:
        self._emit("pause")

    def give_way(self) -> None:
        self.set(RAX, SCHED_YIELD)
        self._emit("syscall")

    # ---- bits -----------------------------------------------------------------------------

    def use_constants(self, base: int) -> None:
        self.constant_base = base
        self._emit("lea r64 rip", base, self.program.data_label)

    def keep_bits(self, d: int, lanes: int) -> None:
        """Clear the bits of lanes from `lanes` on."""
        if lanes < self.lanes:
            self._emit("shl r64 uimm8", d, 64 - lanes)
            self._emit("shr r64 uimm8", d, 64 - lanes)

    def merge_bits(self, d: int, s: int, shift: int) -> None:
        if shift:
            self._emit("shl r64 uimm8", s, shift)
        self._emit("or r64 r64", d, s)

    def store_bits(self, r: int, at: At, count: int) -> None:
        base, disp = at
        for size in (8, 4, 2, 1):
            if count >= size:
                self._emit(f"mov m{8 * size} r{8 * size}", (base, None, 1, disp), r)
                disp += size
                count -= size
                if count:
                    self._emit("shr r64 uimm8", r, 8 * size)

    def load_bits(self, d: int, at: At, count: int) -> None:
        base, disp = at
        done = 0
        for size, row in LOADS.items():
            if count - done >= size:
                self._emit(row, RAX if done else d, (base, None, 1, disp + done))
                if done:
                    self.merge_bits(d, RAX, 8 * done)
                done += size


def register_name(r: int) -> str:
    """Name of a general-purpose register."""
    return R64[r]


def tables() -> list[dict[str, Form]]:
    """The tables of this file."""
    return [FORMS]
