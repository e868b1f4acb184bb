"""Machine code that the benchmarks need, made by hand: repeat drivers and chains of FMAs.

What it is: two x86-64 routines that call a C function of one pointer many times, code whose speed
is the fused multiply-add peak of the core or its memory's, and the placing of data within pages.
What it is not: it deliberately does not use jitgen's own assembler, so that the yardstick does
not come from the thing that is measured.

Example::

    code = load_code(bytes.fromhex("c3"))                    # ret
    driver = drivers()
    driver.repeat(ffi.cast("void *", code), ffi.NULL, 1000, driver.stack)
"""

from __future__ import annotations

import platform
import struct
from typing import Any

import cffi

ffi = cffi.FFI()
ffi.cdef(
    """
    void *mmap(void *, size_t, int, int, int, long);
    int mprotect(void *, size_t, int);
    typedef void (*repeat_t)(const void *function, const void *argument, uint64_t calls,
                             void *stack);
    typedef void (*each_t)(const void *function, void *const *arguments, uint64_t calls,
                           void *stack);
    """
)

_PROT_READ, _PROT_WRITE, _PROT_EXEC = 1, 2, 4
_MAP_PRIVATE_ANONYMOUS = 0x02 | 0x20
PAGE = 4096

# void repeat(function, argument, calls, stack): calls on a stack of its own (see STACK_OFFSET).
_REPEAT = bytes.fromhex(
    "53"  # push rbx
    "55"  # push rbp
    "4154"  # push r12
    "4155"  # push r13
    "4989e5"  # mov r13, rsp
    "4889cc"  # mov rsp, rcx
    "4889fb"  # mov rbx, rdi
    "4889f5"  # mov rbp, rsi
    "4989d4"  # mov r12, rdx
    "4d85e4"  # test r12, r12
    "740a"  # jz done
    "4889ef"  # next: mov rdi, rbp
    "ffd3"  # call rbx
    "49ffcc"  # dec r12
    "75f6"  # jnz next
    "4c89ec"  # done: mov rsp, r13
    "415d"  # pop r13
    "415c"  # pop r12
    "5d"  # pop rbp
    "5b"  # pop rbx
    "c3"  # ret
)

# void each(function, arguments, calls, stack): the next pointer of an array at each call.
_EACH = bytes.fromhex(
    "53"  # push rbx
    "55"  # push rbp
    "4154"  # push r12
    "4155"  # push r13
    "4989e5"  # mov r13, rsp
    "4889cc"  # mov rsp, rcx
    "4889fb"  # mov rbx, rdi
    "4889f5"  # mov rbp, rsi
    "4989d4"  # mov r12, rdx
    "4d85e4"  # test r12, r12
    "740f"  # jz done
    "488b7d00"  # next: mov rdi, [rbp]
    "4883c508"  # add rbp, 8
    "ffd3"  # call rbx
    "49ffcc"  # dec r12
    "75f1"  # jnz next
    "4c89ec"  # done: mov rsp, r13
    "415d"  # pop r13
    "415c"  # pop r12
    "5d"  # pop rbp
    "5b"  # pop rbx
    "c3"  # ret
)

# Where in their pages things lie. A load waits for an earlier store to an address with the same
# low 12 bits (4 KiB aliasing); measured, that makes the smallest kernels up to 40 % slower or
# faster by chance. The stored-to places are C, growing up from 0, and the stack, growing down.
C_OFFSET, A_OFFSET, BLOCK_OFFSET, COUNT_OFFSET, B_OFFSET, STACK_OFFSET = (
    0,
    1024,
    1536,
    1984,
    2048,
    4032,
)
_STACK_BYTES = 1 << 18


class CannotMeasure(RuntimeError):
    """This machine or operating system lacks something that the measurement needs."""


def unsupported() -> str | None:
    """Return why the machine-code drivers cannot run here, or None where they can."""
    machine = platform.machine().lower()
    if machine not in ("x86_64", "amd64"):
        return f"the timing drivers are x86-64 machine code; this is {machine}"
    if platform.system() != "Linux":
        return f"the timing drivers are loaded with Linux's mmap; this is {platform.system()}"
    return None


def load_code(code: bytes) -> int:
    """Map machine code into memory, write it, then make it executable and read-only.

    Returns the address; the mapping lives as long as the process. Raises CannotMeasure when the
    operating system refuses.
    """
    reason = unsupported()
    if reason is not None:
        raise CannotMeasure(reason)
    libc = ffi.dlopen(None)
    size = -(-len(code) // PAGE) * PAGE
    page = libc.mmap(ffi.NULL, size, _PROT_READ | _PROT_WRITE, _MAP_PRIVATE_ANONYMOUS, -1, 0)
    if int(ffi.cast("intptr_t", page)) == -1:
        raise CannotMeasure(f"mmap of {size} bytes failed")
    ffi.memmove(page, code, len(code))
    if libc.mprotect(page, size, _PROT_READ | _PROT_EXEC) != 0:
        raise CannotMeasure("the operating system refuses executable pages (mprotect failed)")
    return int(ffi.cast("uintptr_t", page))


def place(content: bytes, offset: int) -> Any:
    """Return a char pointer to a copy of ``content`` that starts ``offset`` bytes into a page."""
    block = ffi.new("char[]", len(content) + 2 * PAGE)
    start = block + (offset - int(ffi.cast("uintptr_t", block))) % PAGE
    ffi.memmove(start, content, len(content))
    return ffi.gc(start, lambda _, block=block: None)  # keeps the block as long as the pointer


class _Drivers:
    """The two repeat drivers and their stack, made on first use."""

    def __init__(self) -> None:
        self.repeat = ffi.cast("repeat_t", load_code(_REPEAT))
        self.each = ffi.cast("each_t", load_code(_EACH))
        self._low = place(bytes(_STACK_BYTES + PAGE), STACK_OFFSET)
        self.stack = self._low + _STACK_BYTES


_drivers: _Drivers | None = None


def drivers() -> _Drivers:
    """Return the drivers: ``repeat(fn, arg, n, stack)`` and ``each(fn, args, n, stack)``."""
    global _drivers
    if _drivers is None:
        _drivers = _Drivers()
    return _drivers


VECTOR_BYTES = {"avx2": 32, "avx512": 64}

CHAINS = 12
STEPS_PER_LOOP = 2
LOOPS_PER_CALL = 400
_FACTOR, _FACTOR_2 = 12, 13


def fma_chain(isa: str, dtype: str) -> bytes:
    """Machine code of 12 independent vfmadd231 chains, f(const {u64 loops; element x} *)."""
    wide = int(dtype == "f64")
    code = bytearray.fromhex("488b0f")  # mov rcx, [rdi]
    for register in range(CHAINS):  # vxorps ymm, ymm, ymm also clears the rest of zmm
        high = int(register < 8) << 7 | 0x40 | int(register < 8) << 5 | 0x01
        code += bytes([0xC4, high, (~register & 15) << 3 | 4, 0x57, 0xC0 | (register & 7) * 9])
    for register in (_FACTOR, _FACTOR_2):  # vbroadcasts[sd] register, [rdi + disp32]
        opcode = 0x19 if wide else 0x18
        modrm = 0x80 | (register & 7) << 3 | 7
        if isa == "avx512":
            code += bytes([0x62, 0x72, wide << 7 | 0x7D, 0x48, opcode, modrm])
        else:
            code += bytes([0xC4, 0x62, 0x7D, opcode, modrm])
        code += struct.pack("<i", 8)
    loop = len(code)
    for _ in range(STEPS_PER_LOOP):
        for register in range(CHAINS):  # vfmadd231p[sd] register, factor, factor_2
            extend = int(register < 8) << 7
            second = (~_FACTOR & 15) << 3
            modrm = 0xC0 | (register & 7) << 3 | (_FACTOR_2 & 7)
            if isa == "avx512":
                code += bytes([0x62, extend | 0x52, wide << 7 | second | 5, 0x48, 0xB8, modrm])
            else:
                code += bytes([0xC4, extend | 0x42, wide << 7 | second | 5, 0xB8, modrm])
    code += bytes.fromhex("48ffc9")  # dec rcx
    code += b"\x0f\x85" + struct.pack("<i", loop - (len(code) + 6))  # jnz loop
    code += bytes.fromhex("c5f877c3")  # vzeroupper; ret
    return bytes(code)


_WALK_REGISTERS = 8


def walk_step(isa: str) -> int:
    """Bytes of a step of `memory_walk`."""
    return _WALK_REGISTERS * VECTOR_BYTES[isa]


def memory_walk(isa: str, store: bool) -> bytes:
    """Machine code that only loads (or stores zeros), f(const {address; 16 bytes; u64 steps} *).

    It goes through memory from the address on, `walk_step` bytes a step, and returns 0.
    """
    code = bytearray.fromhex("488b07488b4f18")  # mov rax, [rdi]; mov rcx, [rdi + 24]
    code += bytes.fromhex("c5f857c0")  # vxorps xmm0, xmm0, xmm0 clears all of zmm0
    loop = len(code)
    for i in range(_WALK_REGISTERS):  # vmovups register, [rax + i vectors], or the other way
        register = 0 if store else i
        prefix = "62f17c48" if isa == "avx512" else "c5fc"
        code += bytes.fromhex(prefix) + bytes([0x11 if store else 0x10])
        if isa == "avx512":
            code += bytes([0x40 | register << 3, i])
        else:
            code += bytes([0x80 | register << 3]) + struct.pack("<i", 32 * i)
    code += b"\x48\x05" + struct.pack("<i", walk_step(isa))  # add rax, step
    code += bytes.fromhex("48ffc9")  # dec rcx
    code += b"\x0f\x85" + struct.pack("<i", loop - (len(code) + 6))  # jnz loop
    code += bytes.fromhex("c5f87731c0c3")  # vzeroupper; xor eax, eax; ret
    return bytes(code)
