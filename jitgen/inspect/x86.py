"""x86-64 instructions as what they do: a template for each vector mnemonic, an operation for each
scalar form that kernels use.

In a template `{0}` is the first operand in the order of the Intel manual. Not here: names of
operands (`jitgen.inspect.meaning`).
"""

from __future__ import annotations

from collections.abc import Callable

from jitgen.inspect.values import Memory, Register, Scalar
from jitgen.isa.form import Form, Operands
from jitgen.isa.x86 import RAX, RSP
from jitgen.isa.x86_rows import R64

R = Register

#: Mnemonics, those of vectors without their element type, and what they do.
VECTOR = {
    "vmovup": "{0} = {1}",
    "vmovs": "{0} = {1}",
    "vmaskmovp": "{0} = {2}",
    "vbroadcasts": "{0} = {1}, broadcast",
    "vmovddup": "{0} = {1}, broadcast",
    "vextractps": "{0} = element {2} of {1}",
    "vextractf128": "{0} = its upper half",
    "vxorp": "{0} = 0",
    "vpxord": "{0} = 0",
    "vandp": "{0} = {1} & {2}",
    "vpand": "{0} = {1} & {2}",
    "vorp": "{0} = {1} | {2}",
    "vpor": "{0} = {1} | {2}",
    "vaddp": "{0} = {1} + {2}",
    "vsubp": "{0} = {1} - {2}",
    "vmulp": "{0} = {1} * {2}",
    "vdivp": "{0} = {1} / {2}",
    "vmaxp": "{0} = max({1}, {2})",
    "vminp": "{0} = min({1}, {2})",
    "vfmadd231p": "{0} += {1} * {2}",
    "vfnmadd231p": "{0} -= {1} * {2}",
    "vfmadd213p": "{0} = {0} * {1} + {2}",
    "vpsrl": "{0} = {1} >> {2}, lane by lane",
    "vperm2f128": "{0} = {1}, its halves exchanged",
    "vblendp": "{0} = {2} where bits of {3} are set, else {1}",
    "vpsll": "{0} = {1} << {2}, lane by lane",
    "vblendvp": "{0} = {2} where {3} < 0, else {1}",
    "vblendmp": "{0} = {2} where {3}, else {1}",
    "vcmpp": "{0} = {1} > {2}",
    "vmovmskp": "{0} = bits of {1}",
    "vpmovd2m": "{0} = {1} < 0",
    "vpmovq2m": "{0} = {1} < 0",
    "vunpcklps": "{0} = lower halves of {1} and {2}, in turn",
    "vunpckhps": "{0} = upper halves of {1} and {2}, in turn",
    "vunpcklpd": "{0} = lower halves of {1} and {2}, joined",
    "vunpckhpd": "{0} = upper halves of {1} and {2}, joined",
    "vinsertf128": "upper half of {0} = {2}",
    "vsqrtp": "{0} = sqrt({1})",
    "vmov": "{0} = {1}",  # vmovd, vmovq
    "vpbroadcast": "{0} = first lane of {1}, broadcast",
    "vpsllv": "{0} = {1} << {2}, lane by lane",
    "vpmovm2": "{0} = all ones where {1}, else 0",
    "kmovw": "{0} = bits of {1}",
    "vzeroupper": "clear the upper halves of vectors, for the ABI",
}


def _memory(m: tuple[int, int | None, int, int], size: int = 8) -> Memory:
    base, index, scale, disp = m
    return Memory(base, disp, size, -1 if index is None else index, scale)


def _lea(d: int, m: tuple[int, int | None, int, int]) -> Scalar:
    base, index, scale, disp = m
    if index is None:
        return Scalar("+", d, R(base), disp)
    return Scalar("+", d, R(base), R(index), scale)


def _saved(op: str) -> Callable[[int], Scalar]:
    return lambda r: Scalar(op, text=R64[r])


def _branch(condition: str) -> Callable[[int], Scalar]:
    return lambda label: Scalar("branch", text=condition)


#: What a scalar form does, by its signature; the operands are those of the form.
SCALAR: dict[str, Callable[..., Scalar]] = {
    "mov r64 r64": lambda d, s: Scalar("=", d, R(s)),
    "mov r64 imm32": lambda d, v: Scalar("=", d, v),
    "mov r32 uimm32": lambda d, v: Scalar("=", d, v),
    "movabs r64 imm64": lambda d, v: Scalar("=", d, v),
    "mov r64 m64": lambda d, m: Scalar("=", d, _memory(m)),
    "mov r32 m32": lambda d, m: Scalar("=", d, _memory(m, 4)),
    "mov m64 r64": lambda m, s: Scalar("store", -1, _memory(m), R(s)),
    "mov m32 r32": lambda m, s: Scalar("store", -1, _memory(m, 4), R(s)),
    "mov m16 r16": lambda m, s: Scalar("store", -1, _memory(m, 2), R(s)),
    "mov m8 r8": lambda m, s: Scalar("store", -1, _memory(m, 1), R(s)),
    "movzx r32 m16": lambda d, m: Scalar("=", d, _memory(m, 2)),
    "movzx r32 m8": lambda d, m: Scalar("=", d, _memory(m, 1)),
    "lea r64 m": _lea,
    "lea r64 rip": lambda d, label: Scalar("constants", d),
    "add r64 r64": lambda d, s: Scalar("+", d, R(d), R(s)),
    "add r64 imm8": lambda d, v: Scalar("+", d, R(d), v),
    "add r64 imm32": lambda d, v: Scalar("+", d, R(d), v),
    "add rax imm32": lambda d, v: Scalar("+", d, R(d), v),
    "sub r64 r64": lambda d, s: Scalar("-", d, R(d), R(s)),
    "imul r64 r64 imm8": lambda d, s, v: Scalar("*", d, R(s), v),
    "imul r64 r64 imm32": lambda d, s, v: Scalar("*", d, R(s), v),
    "cmp r64 r64": lambda a, b: Scalar("compare", -1, R(a), R(b)),
    "cmp r64 imm8": lambda a, v: Scalar("compare", -1, R(a), v),
    "cmp r64 imm32": lambda a, v: Scalar("compare", -1, R(a), v),
    "cmp rax imm32": lambda a, v: Scalar("compare", -1, R(a), v),
    "test r64 r64": lambda a, b: Scalar("compare", -1, R(a), 0),
    "xor r32 r32": lambda d, s: Scalar("=", d, 0),
    "and r64 r64": lambda d, s: Scalar("&", d, R(d), R(s)),
    "or r64 r64": lambda d, s: Scalar("|", d, R(d), R(s)),
    "shl r64 uimm8": lambda d, v: Scalar("<<", d, R(d), v),
    "shr r64 uimm8": lambda d, v: Scalar(">>", d, R(d), v),
    "dec r64": lambda d: Scalar("-", d, R(d), 1),
    "cmovb r64 r64": lambda d, s: Scalar("below", d, R(s), R(d)),
    "push r64": _saved("save"),
    "pop r64": _saved("restore"),
    "jmp rel": _branch(""),
    "je rel": _branch("="),
    "jne rel": _branch("!="),
    "jl rel": _branch("<"),
    "ret": lambda: Scalar("return"),
    "prefetcht0 m8": lambda m: Scalar("prefetch", -1, _memory(m, 1)),
    "vmovmskps r32 ymm": lambda d, v: Scalar("unknown", d),
    "vmovmskpd r32 ymm": lambda d, v: Scalar("unknown", d),
    "kmovw r32 k": lambda d, k: Scalar("unknown", d),
}

STACK_POINTER = RSP
#: names of registers that no role has
NAMES = {RAX: "rax", RSP: "rsp"}


def template(form: Form, operands: Operands) -> str:
    """What a vector instruction does, with places for its operands; "" if it is not known."""
    name = form.mnemonic
    if name == "vshuff32x4":
        a, b, c, d = (operands[3] >> shift & 3 for shift in (0, 2, 4, 6))
        return f"{{0}} = quarters {a}, {b} of {{1}}, then {c}, {d} of {{2}}"
    if name == "vshufps":
        part = {0x4E: 64, 0xB1: 32}[operands[3]]
        return f"{{0}} = {{1}}, each {part} bits exchanged with their neighbour"
    found = VECTOR.get(name) or VECTOR.get(name[:-1]) or ""
    if name.startswith("vunpck") and form.kinds[0] != "xmm":
        return f"{found}, each 128 bits"
    return found


def mask_of(form: Form, operands: Operands) -> str:
    """Name of the mask that says which lanes are active, or ""."""
    if "{k}" in form.signature:
        return f"k{operands[-1]}"
    return f"v{operands[1]}" if form.mnemonic.startswith("vmaskmov") else ""


def mask_source(form: Form, operands: Operands) -> tuple[str, int] | None:
    """(name of the mask that the instruction makes, register with its bits)."""
    return (f"k{operands[0]}", operands[1]) if form.signature == "kmovw k r32" else None


def memory_operand(
    kind: str, value: tuple[int, int | None, int, int], element: int
) -> tuple[Memory, int]:
    """(operand, its lanes without a mask) of a vector operand of this kind in memory."""
    size = int(kind[1:]) // 8
    return _memory(value, size), max(1, size // element)
