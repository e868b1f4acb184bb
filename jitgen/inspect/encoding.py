"""The bytes of one instruction by field: prefixes, opcode, ModRM, SIB, displacement, immediate.

x86 only: an A64 instruction is one word. Not here: how bytes are made (`jitgen.isa.x86_rows`).
"""

from __future__ import annotations

from jitgen.isa.form import Form

#: forms without a ModRM byte: the register is part of the opcode, or there is none
_PLAIN = {
    "push r64", "pop r64", "mov r32 uimm32", "movabs r64 imm64", "add rax imm32", "cmp rax imm32",
    "ret", "vzeroupper",
}  # fmt: skip
_LEGACY = {0x66, 0xF2, 0xF3}
#: bytes that a vector prefix has, and its name
_VECTOR = {0xC5: (2, "VEX"), 0xC4: (3, "VEX"), 0x62: (4, "EVEX")}


def fields(form: Form, code: bytes) -> list[tuple[str, bytes]]:
    """(name, bytes) of each field of an x86 instruction, in order.

    >>> from jitgen.isa.x86 import FORMS
    >>> form = FORMS["mov r64 m64"]
    >>> fields(form, form.encode((1, (7, None, 1, 8))))
    [('REX', b'H'), ('opcode', b'\\x8b'), ('ModRM', b'O'), ('disp8', b'\\x08')]
    """
    out: list[tuple[str, bytes]] = []
    at = 0

    def take(name: str, size: int) -> bytes:
        nonlocal at
        part = code[at : at + size]
        if part:
            out.append((name, part))
        at += size
        return part

    if form.mnemonic == "align":
        return [("no-operations", code)]
    if code[0] in _VECTOR and "avx" in form.feature + form.feature.replace("fma", "avx"):
        take(_VECTOR[code[0]][1], _VECTOR[code[0]][0])
        take("opcode", 1)
    else:
        while code[at] in _LEGACY:
            take("prefix", 1)
        if code[at] & 0xF0 == 0x40:
            take("REX", 1)
        take("opcode", 2 if code[at] == 0x0F else 1)
    if form.sizes and form.mnemonic != "lea":
        take("distance", len(code))
        return out
    if form.signature not in _PLAIN:
        mod, rm = divmod(take("ModRM", 1)[0], 64)
        sib = mod < 3 and rm & 7 == 4
        if sib:
            take("SIB", 1)
        if mod == 1:
            take("disp8*N" if code[0] == 0x62 else "disp8", 1)
        elif mod == 2 or (mod == 0 and rm & 7 == 5):
            take("disp32", 4)
    rest = len(code) - at
    take(f"imm{8 * rest}", rest)
    return out
