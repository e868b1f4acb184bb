"""Tiny hand-encoded kernels, most of them bad, to test the rig with.

They use the rig's ABI (one pointer to 8-byte words) and nothing of jitgen.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field


def a64(*words: int) -> bytes:
    """AArch64 instruction words as bytes."""
    return struct.pack(f"<{len(words)}I", *words)


def x86(text: str) -> bytes:
    """x86-64 bytes from hexadecimal digits."""
    return bytes.fromhex(text)


@dataclass(frozen=True)
class Kernels:
    """One kernel of each kind for an architecture."""

    nothing: bytes
    copy: bytes  # words: source, destination, bytes
    read_at: bytes  # words: buffer, offset
    write_at: bytes  # words: buffer, offset
    write_second: bytes  # words: Pointers; writes 9 to the first byte of the second target
    illegal: bytes
    hang: bytes
    return_7: bytes
    stack_overflow: bytes
    stack_pointer: bytes  # returns with the stack pointer changed
    rounding: bytes  # returns with the floating-point control register changed
    clobber: dict[str, bytes] = field(default_factory=dict)


A64_RETURN = (0x52800000, 0xD65F03C0)  # mov w0, #0; ret
A64 = Kernels(
    nothing=a64(*A64_RETURN),
    # ldp x1, x2, [x0]; ldr x3, [x0, #16]; 1: ldrb w4, [x1], #1; strb w4, [x2], #1
    # subs x3, x3, #1; b.ne 1b
    copy=a64(
        0xA9400801, 0xF9400803, 0x38401424, 0x38001444, 0xF1000463, 0x54FFFFA1, *A64_RETURN
    ),
    # ldp x1, x2, [x0]; ldrb w3, [x1, x2]
    read_at=a64(0xA9400801, 0x38626823, *A64_RETURN),
    # ldp x1, x2, [x0]; strb w3, [x1, x2]
    write_at=a64(0xA9400801, 0x38226823, *A64_RETURN),
    # ldr x1, [x0]; ldr x2, [x1, #8]; mov w3, #9; strb w3, [x2]
    write_second=a64(0xF9400001, 0xF9400422, 0x52800123, 0x39000043, *A64_RETURN),
    illegal=a64(0x00000000),  # udf #0
    hang=a64(0x14000000),  # b .
    return_7=a64(0x528000E0, 0xD65F03C0),  # mov w0, #7; ret
    stack_overflow=a64(0xF81F0FE0, 0x17FFFFFF),  # 1: str x0, [sp, #-16]!; b 1b
    stack_pointer=a64(0xD10043FF, *A64_RETURN),  # sub sp, sp, #16
    rounding=a64(0xD2A02001, 0xD51B4401, *A64_RETURN),  # mov x1, #1<<24; msr fpcr, x1
    clobber={
        "x19": a64(0xD2800013, *A64_RETURN),  # mov x19, #0
        "x29": a64(0xD280001D, *A64_RETURN),  # mov x29, #0
        "d8": a64(0x2F00E408, *A64_RETURN),  # movi d8, #0
        "d15": a64(0x2F00E40F, *A64_RETURN),  # movi d15, #0
    },
)
X86_RETURN = "31c0 c3"  # xor eax, eax; ret
X86 = Kernels(
    nothing=x86(X86_RETURN),
    # mov rsi, [rdi]; mov rcx, [rdi+16]; mov rdi, [rdi+8]; rep movsb
    copy=x86("488b37 488b4f10 488b7f08 f3a4" + X86_RETURN),
    # mov rax, [rdi]; add rax, [rdi+8]; movzx eax, byte ptr [rax]
    read_at=x86("488b07 48034708 0fb600" + X86_RETURN),
    # mov rax, [rdi]; add rax, [rdi+8]; mov byte ptr [rax], 1
    write_at=x86("488b07 48034708 c60001" + X86_RETURN),
    # mov rax, [rdi]; mov rcx, [rax+8]; mov byte ptr [rcx], 9
    write_second=x86("488b07 488b4808 c60109" + X86_RETURN),
    illegal=x86("0f0b"),  # ud2
    hang=x86("ebfe"),  # jmp $
    return_7=x86("b807000000 c3"),  # mov eax, 7; ret
    stack_overflow=x86("50 ebfd"),  # 1: push rax; jmp 1b
    stack_pointer=x86("31c0 c20800"),  # xor eax, eax; ret 8
    # mov dword ptr [rsp-4], 0x9fc0; ldmxcsr [rsp-4]
    rounding=x86("c74424fcc09f0000 0fae5424fc" + X86_RETURN),
    clobber={
        "rbx": x86("31db" + X86_RETURN),  # xor ebx, ebx, and so on
        "rbp": x86("31ed" + X86_RETURN),
        "r12": x86("4531e4" + X86_RETURN),
        "r13": x86("4531ed" + X86_RETURN),
        "r14": x86("4531f6" + X86_RETURN),
        "r15": x86("4531ff" + X86_RETURN),
    },
)



AVX512_REGISTERS = x86(
    # mov rax, [rdi]; vmovups [rax], zmm31; vmovups [rax+64], zmm7; kmovw ecx, k5
    "488b07 62617c481138 62f17c48117801 c5f893cd"
    # mov [rax+128], ecx
    "898880000000" + X86_RETURN
)

# mov z0.b, #1; ldr x1, [x0]; str z0, [x1]: what a kernel made for one vector length does
STORE_VECTOR = a64(0x2538C020, 0xF9400001, 0xE5804020, *A64_RETURN)
