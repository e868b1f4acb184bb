"""x86-64 code and constants of the rig: register sentinels, poison, the call routine.

The routine calls a kernel on the real processor and checks it; Bochs has the same in its ROM. It
encodes what the rig needs and is no assembler for kernels.

The record (one page, 8-byte words) is shared with the code; word numbers are below. Signals fill
the same words as in `a64`.
"""

from __future__ import annotations

import struct

from .a64 import FAULT_ADDRESS, FAULT_PC, RETURNED, SIGNAL, SIGNAL_CODE, SIGNALLED, STATUS, VALUE
from .layout import changed

ENTRY, WORDS, STACK = 0, 1, 2  # set by the host
SAVED, RSP_AFTER, MXCSR_AFTER, RFLAGS_AFTER = 6, 12, 13, 14  # SAVED: rbx rbp r12..r15
_RSP_BEFORE, _MXCSR_BEFORE = 15, 16

SAVED_NAMES = ["rbx", "rbp", "r12", "r13", "r14", "r15"]
SENTINELS = [
    0x1111111122222222,
    0x3333333344444444,
    0x5555555566666666,
    0x7777777788888888,
    0x99999999AAAAAAAA,
    0xBBBBBBBBCCCCCCCC,
]
POISON = 0xDEAD_A5A5_A5A5_A5A5  # no valid address
MASK_POISON = 0xA5A5_A5A5_A5A5_A5A5
MXCSR = 0x1F80

_RAX, _RCX, _RDX, _RBX, _RSP, _RBP, _RSI, _RDI = range(8)
_SAVED_REGISTERS = [_RBX, _RBP, 12, 13, 14, 15]


def violations(
    saved: list[int], rsp: int, want_rsp: int, mxcsr: int, rflags: int
) -> list[str]:
    """Judge the registers after a return: list of broken ABI rules."""
    found = changed(SAVED_NAMES, SENTINELS, saved)
    if rsp != want_rsp:
        found.append(f"rsp is off by {rsp - want_rsp} on return")
    if (mxcsr ^ MXCSR) & 0xFFC0:  # the low bits are sticky flags
        found.append(f"mxcsr control bits changed from {MXCSR:#x} to {mxcsr & 0xFFFF:#x}")
    if rflags >> 10 & 1:
        found.append("direction flag left set")
    return found


def guarded_call(at: int, flags: frozenset[str]) -> bytes:
    """Return the routine (no argument): call the kernel of the record at address `at`, fill it.

    flags: processor flags as /proc/cpuinfo names them; they choose the registers to poison.
    """
    code = bytearray()
    for register in _SAVED_REGISTERS:
        code += _push(register)
    code += _constant(_RCX, at)
    code += _store(_RSP, _RSP_BEFORE)
    code += b"\x0f\xae\x99" + struct.pack("<i", 8 * _MXCSR_BEFORE)  # stmxcsr [rcx + ...]
    code += b"\x68" + struct.pack("<i", MXCSR) + b"\x0f\xae\x14\x24"  # push; ldmxcsr [rsp]
    code += _poison(flags)
    code += _constant(_RCX, at)
    code += _load(_RSP, STACK) + _load(_RDI, WORDS) + _load(11, ENTRY)
    for register, value in zip(_SAVED_REGISTERS, SENTINELS, strict=True):
        code += _constant(register, value)
    for register in (_RAX, _RCX, _RDX, _RSI, 8, 9, 10):
        code += _constant(register, POISON)
    code += b"\x41\xff\xd3"  # call r11

    code += _constant(_RCX, at)
    code += _store(_RAX, VALUE)
    for i, register in enumerate(_SAVED_REGISTERS):
        code += _store(register, SAVED + i)
    code += _store(_RSP, RSP_AFTER) + _load(_RSP, _RSP_BEFORE)
    code += b"\x9c\x5a\xfc" + _store(_RDX, RFLAGS_AFTER)  # pushfq; pop rdx; cld
    code += b"\x0f\xae\x99" + struct.pack("<i", 8 * MXCSR_AFTER)  # stmxcsr
    code += b"\x0f\xae\x91" + struct.pack("<i", 8 * _MXCSR_BEFORE)  # ldmxcsr
    if "avx" in flags:
        code += b"\xc5\xf8\x77"  # vzeroupper
    code += _constant(_RAX, RETURNED) + _store(_RAX, STATUS)
    for register in reversed(_SAVED_REGISTERS):
        code += _pop(register)
    return bytes(code) + b"\xc3"


def signal_handler(at: int) -> bytes:
    """Return handler(signal, siginfo, ucontext): fill the record at `at`, end the process."""
    code = _constant(_RCX, at)
    code += _store(_RDI, SIGNAL)
    code += b"\x48\x8b\x46\x08" + _store(_RAX, SIGNAL_CODE)  # mov rax, [rsi + 8]
    code += b"\x48\x8b\x46\x10" + _store(_RAX, FAULT_ADDRESS)  # mov rax, [rsi + 16]
    code += b"\x48\x8b\x82" + struct.pack("<i", 168) + _store(_RAX, FAULT_PC)  # [rdx + rip]
    code += _constant(_RAX, SIGNALLED) + _store(_RAX, STATUS)
    code += _constant(_RDI, 1) + _constant(_RAX, 231) + b"\x0f\x05"  # exit_group(1)
    return code


def _poison(flags: frozenset[str]) -> bytes:
    """NaN in all vector registers, a pattern in the mask registers; clobbers rax."""
    code = b""
    if "avx512f" in flags:
        for i in range(32):  # vpternlogd zmm, zmm, zmm, 0xff
            payload0 = 0x03 | (i < 8 or 16 <= i < 24) << 7 | (i < 16) << 6
            payload0 |= (i < 8 or 16 <= i < 24) << 5 | (i < 16) << 4
            payload1 = (~i & 15) << 3 | 0x05
            payload2 = 0x40 | (i < 16) << 3
            modrm = 0xC0 | (i & 7) << 3 | i & 7
            code += bytes([0x62, payload0, payload1, payload2, 0x25, modrm, 0xFF])
        code += _constant(_RAX, MASK_POISON)
        for i in range(8):
            if "avx512bw" in flags:
                code += bytes([0xC4, 0xE1, 0xFB, 0x92, 0xC0 | i << 3])  # kmovq k, rax
            else:
                code += bytes([0xC5, 0xF8, 0x92, 0xC0 | i << 3])  # kmovw k, eax
    elif "avx2" in flags:
        for i in range(16):  # vpcmpeqd ymm, ymm, ymm
            low = 1 if i < 8 else 0
            modrm = 0xC0 | (i & 7) << 3 | i & 7
            first = low << 7 | 1 << 6 | low << 5 | 1
            code += bytes([0xC4, first, (~i & 15) << 3 | 0x05, 0x76, modrm])
    else:
        for i in range(16):  # pcmpeqd xmm, xmm
            prefix = b"\x66" if i < 8 else b"\x66\x45"
            code += prefix + bytes([0x0F, 0x76, 0xC0 | (i & 7) << 3 | i & 7])
    return code


def _constant(register: int, value: int) -> bytes:
    return bytes([0x48 | register >> 3, 0xB8 | register & 7]) + struct.pack("<Q", value)


def _store(register: int, word: int) -> bytes:
    """mov [rcx + 8*word], register."""
    return _move(0x89, register, word)


def _load(register: int, word: int) -> bytes:
    """mov register, [rcx + 8*word]."""
    return _move(0x8B, register, word)


def _move(opcode: int, register: int, word: int) -> bytes:
    head = bytes([0x48 | register >> 3 << 2, opcode, 0x81 | (register & 7) << 3])
    return head + struct.pack("<i", 8 * word)


def _push(register: int) -> bytes:
    return bytes([0x41] * (register > 7) + [0x50 | register & 7])


def _pop(register: int) -> bytes:
    return bytes([0x41] * (register > 7) + [0x58 | register & 7])
