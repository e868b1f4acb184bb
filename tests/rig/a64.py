"""AArch64 code of the rig: a small encoder and the routine that calls a kernel and checks it.

Used by the server under qemu-user and by native runs on AArch64, so both make the same checks.
It encodes what the rig needs and is no assembler for kernels.

The record (one 4 KiB page, 8-byte words) is shared with the code; word numbers are below.
"""

from __future__ import annotations

import struct

from .layout import Layout, changed, signal_text

ENTRY, WORDS, STACK, FLAGS = 0, 1, 2, 3  # set by the host
STATUS, VALUE, SAVED_X, SP_AFTER, SAVED_D = 4, 5, 6, 17, 18  # x19..x29 from 6, d8..d15 from 18
FPCR_BEFORE, FPCR_AFTER, SVCR, SP_BEFORE = 26, 27, 28, 29
SIGNAL, SIGNAL_CODE, FAULT_ADDRESS, FAULT_PC = 30, 31, 32, 33
SYSCALL_RESULT, SYSCALL_ERROR = 34, 35
RECORD_WORDS = 36
HAS_SVE, HAS_SME = 0, 1  # bit numbers in FLAGS
RETURNED, SIGNALLED = 1, 2  # STATUS

X_SENTINELS = [0xA5A5000000000000 | i * 0x0101010101 for i in range(19, 30)]
# Each 16-bit part is a NaN as float16 and bfloat16, so the whole is one in every format.
D_SENTINELS = [(0xFF88 + i) * 0x0001000100010001 for i in range(8, 16)]
SAVED_NAMES = [f"x{i}" for i in range(19, 30)] + [f"d{i}" for i in range(8, 16)]
POISON = 0xDEAD_A5A5_A5A5_A5A5  # no valid address

_SENTINELS_AT, _PREDICATE_AT, _VECTORS_AT = 512, 1024, 2048  # byte offsets in the record
_SP = 31


def record(entry: int, words: int, stack: int, flags: int) -> bytes:
    """Return the record page before a call (addresses; stack: its upper end)."""
    page = bytearray(4096)
    struct.pack_into("<4Q", page, 0, entry, words, stack, flags)
    struct.pack_into("<11Q", page, _SENTINELS_AT, *X_SENTINELS)
    page[_PREDICATE_AT : _PREDICATE_AT + 32] = b"\xa5" * 32
    for i, value in enumerate(D_SENTINELS):
        row = struct.pack("<Q", value) + b"\xff" * 248
        page[_VECTORS_AT + 256 * i : _VECTORS_AT + 256 * (i + 1)] = row
    return bytes(page)


def violations(words: tuple[int, ...], stack: int) -> list[str]:
    """Judge the record after a return: list of broken ABI rules."""
    after = list(words[SAVED_X : SAVED_X + 11]) + list(words[SAVED_D : SAVED_D + 8])
    found = changed(SAVED_NAMES, X_SENTINELS + D_SENTINELS, after)
    if words[SP_AFTER] != stack:
        found.append(f"sp is off by {words[SP_AFTER] - stack} on return")
    if words[FPCR_BEFORE] != words[FPCR_AFTER]:
        found.append(f"fpcr changed from {words[FPCR_BEFORE]:#x} to {words[FPCR_AFTER]:#x}")
    if words[SVCR]:
        found.append("streaming mode or ZA left on")
    return found


def signal_of(layout: Layout, words: tuple[int, ...]) -> str:
    """Describe the signal in a record."""
    number = words[SIGNAL] % 2**32
    code = words[SIGNAL_CODE] % 2**32
    return signal_text(layout, number, code, words[FAULT_ADDRESS], words[FAULT_PC])


class Assembler:
    """Encoder of the instructions the rig needs. d, n, m, t: register numbers; 31 is sp or xzr."""

    def __init__(self) -> None:
        self.words: list[int] = []
        self.labels: dict[str, int] = {}
        self._fixes: list[tuple[int, str, int, int]] = []

    def label(self, name: str) -> None:
        """Define a label here."""
        self.labels[name] = len(self.words)

    def emit(self, word: int) -> None:
        """Append one instruction word."""
        self.words.append(word)

    def constant(self, d: int, value: int) -> None:
        """movz, movk: d = 64-bit value."""
        self.emit(0xD2800000 | (value & 0xFFFF) << 5 | d)
        for part in (1, 2, 3):
            bits = value >> 16 * part & 0xFFFF
            if bits:
                self.emit(0xF2800000 | part << 21 | bits << 5 | d)

    def move(self, d: int, n: int) -> None:
        """d = n, neither is sp."""
        self.emit(0xAA0003E0 | n << 16 | d)

    def add_immediate(self, d: int, n: int, value: int) -> None:
        """d = n + value, either may be sp."""
        self.emit(0x91000000 | value << 10 | n << 5 | d)

    def subtract_immediate(self, d: int, n: int, value: int) -> None:
        """d = n - value, either may be sp."""
        self.emit(0xD1000000 | value << 10 | n << 5 | d)

    def add(self, d: int, n: int, m: int) -> None:
        """d = n + m."""
        self.emit(0x8B000000 | m << 16 | n << 5 | d)

    def subtract(self, d: int, n: int, m: int) -> None:
        """d = n - m."""
        self.emit(0xCB000000 | m << 16 | n << 5 | d)

    def load(self, t: int, n: int, word: int) -> None:
        """ldr x_t, [x_n, #8*word]."""
        self.emit(0xF9400000 | word << 10 | n << 5 | t)

    def store(self, t: int, n: int, word: int) -> None:
        """str x_t, [x_n, #8*word]."""
        self.emit(0xF9000000 | word << 10 | n << 5 | t)

    def load_d(self, t: int, n: int, word: int) -> None:
        """ldr d_t, [x_n, #8*word]."""
        self.emit(0xFD400000 | word << 10 | n << 5 | t)

    def store_d(self, t: int, n: int, word: int) -> None:
        """str d_t, [x_n, #8*word]."""
        self.emit(0xFD000000 | word << 10 | n << 5 | t)

    def system_call(self, number: int | None = None) -> None:
        """svc #0, with the number in x8 first when given."""
        if number is not None:
            self.constant(8, number)
        self.emit(0xD4000001)

    def compare(self, n: int, value: int) -> None:
        """cmp x_n, #value."""
        self.emit(0xF100001F | value << 10 | n << 5)

    def branch(self, name: str, link: bool = False) -> None:
        """b or bl to a label."""
        self._fix(name, 26, 0, 0x94000000 if link else 0x14000000)

    def branch_if(self, condition: int, name: str) -> None:
        """b.condition (0 eq, 3 lo, 13 le) to a label."""
        self._fix(name, 19, 5, 0x54000000 | condition)

    def branch_if_zero(self, t: int, name: str) -> None:
        """cbz x_t to a label."""
        self._fix(name, 19, 5, 0xB4000000 | t)

    def branch_if_bit_clear(self, t: int, bit: int, name: str) -> None:
        """tbz x_t, #bit to a label."""
        self._fix(name, 14, 5, 0x36000000 | bit >> 5 << 31 | (bit & 31) << 19 | t)

    def ret(self) -> None:
        """Return to x30."""
        self.emit(0xD65F03C0)

    def code(self) -> bytes:
        """Resolve the labels and return the bytes."""
        for at, name, width, shift in self._fixes:
            distance = self.labels[name] - at & (1 << width) - 1
            self.words[at] |= distance << shift
        self._fixes.clear()
        return struct.pack(f"<{len(self.words)}I", *self.words)

    def _fix(self, name: str, width: int, shift: int, word: int) -> None:
        self._fixes.append((len(self.words), name, width, shift))
        self.emit(word)


def emit_guarded_call(a: Assembler, at: int) -> None:
    """Emit the routine (no argument): call the kernel of the record at address `at`, fill it."""
    a.subtract_immediate(_SP, _SP, 176)
    for i in range(12):
        a.store(19 + i, _SP, i)
    for i in range(8):
        a.store_d(8 + i, _SP, 12 + i)
    a.constant(9, at)
    a.add_immediate(10, _SP, 0)
    a.store(10, 9, SP_BEFORE)
    a.emit(0xD53B4400 | 10)  # mrs x10, fpcr
    a.store(10, 9, FPCR_BEFORE)
    _emit_poison(a)
    for i in range(11):
        a.load(19 + i, 9, _SENTINELS_AT // 8 + i)
    a.load(16, 9, ENTRY)
    a.load(10, 9, STACK)
    a.add_immediate(_SP, 10, 0)
    a.load(0, 9, WORDS)
    a.constant(17, POISON)
    for i in [*range(1, 16), 18]:
        a.move(i, 17)
    a.emit(0xD63F0000 | 16 << 5)  # blr x16

    a.constant(9, at)
    a.store(0, 9, VALUE)
    for i in range(11):
        a.store(19 + i, 9, SAVED_X + i)
    a.add_immediate(10, _SP, 0)
    a.store(10, 9, SP_AFTER)
    for i in range(8):
        a.store_d(8 + i, 9, SAVED_D + i)
    a.emit(0xD53B4400 | 10)  # mrs x10, fpcr
    a.store(10, 9, FPCR_AFTER)
    a.load(11, 9, FLAGS)
    a.branch_if_bit_clear(11, HAS_SME, "no sme")
    a.emit(0xD53B4240 | 10)  # mrs x10, svcr
    a.store(10, 9, SVCR)
    a.emit(0xD503467F)  # smstop
    a.label("no sme")
    a.load(10, 9, FPCR_BEFORE)
    a.emit(0xD51B4400 | 10)  # msr fpcr, x10
    a.constant(10, RETURNED)
    a.store(10, 9, STATUS)
    a.load(10, 9, SP_BEFORE)
    a.add_immediate(_SP, 10, 0)
    for i in range(12):
        a.load(19 + i, _SP, i)
    for i in range(8):
        a.load_d(8 + i, _SP, 12 + i)
    a.add_immediate(_SP, _SP, 176)
    a.ret()


def emit_signal_handler(a: Assembler, at: int) -> None:
    """Emit handler(signal, siginfo, ucontext) up to having filled the record at address `at`."""
    a.constant(9, at)
    a.store(0, 9, SIGNAL)
    a.load(4, 1, 1)  # si_code
    a.store(4, 9, SIGNAL_CODE)
    a.load(4, 1, 2)  # si_addr
    a.store(4, 9, FAULT_ADDRESS)
    a.load(4, 2, 55)  # uc_mcontext.pc, byte 440 of ucontext
    a.store(4, 9, FAULT_PC)
    a.constant(4, SIGNALLED)
    a.store(4, 9, STATUS)


def emit_flush(a: Assembler) -> None:
    """Emit flush(x0 first, x1 end): make written code visible to instruction fetch."""
    for name, instruction in (("clean", 0xD50B7B20), ("invalidate", 0xD50B7520)):
        a.move(2, 0)
        a.label(name)
        a.emit(instruction | 2)  # dc cvau, x2 / ic ivau, x2
        a.add_immediate(2, 2, 16)  # no cache line is shorter
        a.emit(0xEB01005F)  # cmp x2, x1
        a.branch_if(3, name)
        a.emit(0xD5033B9F)  # dsb ish
    a.emit(0xD5033FDF)  # isb
    a.ret()


def _emit_poison(a: Assembler) -> None:
    """Emit: NaN in v or z0-z31, a pattern in p0-p15; sentinels in d8-d15. x9: the record."""
    for i in range(32):
        a.emit(0x4F07E7E0 | i)  # movi v.16b, #0xff
    for i in range(8):
        a.emit(0x3DC00000 | (_VECTORS_AT + 256 * i) // 16 << 10 | 9 << 5 | 8 + i)  # ldr q, [x9]
    a.load(11, 9, FLAGS)
    a.branch_if_bit_clear(11, HAS_SVE, "no sve")
    for i in range(32):
        a.emit(0x2538C000 | 0xFF << 5 | i)  # mov z.b, #-1
    a.add_immediate(10, 9, _VECTORS_AT)
    for i in range(8):
        a.emit(0x85804000 | 10 << 5 | 8 + i)  # ldr z, [x10]
        a.add_immediate(10, 10, 256)
    a.add_immediate(10, 9, _PREDICATE_AT)
    for i in range(16):
        a.emit(0x85800000 | 10 << 5 | i)  # ldr p, [x10]
    a.label("no sve")
