"""A library as assembly source (.s), for GNU as and Clang 19 or later: what the object file holds.

Not here: the text of a kernel (`jitgen.inspect.asm`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jitgen.inspect.asm import assembly
from jitgen.inspect.unwind import rows
from jitgen.objects.elf import Fixup, Section

if TYPE_CHECKING:
    from jitgen.objects.parts import Library


def source(library: Library) -> str:
    """The kernels with their unwind information, then the table of them."""
    x86 = library.architecture == "x86_64"
    comment, at = ("#", "@") if x86 else ("//", "%")
    text = [f"{comment} {library.name}: kernels made by {library.generator}"]
    text += [assembly(each.kernel, each.symbol, cfi=rows) for each in library.kernels]
    (strings, entries), symbols = library.table()
    found = library.functions[-1]
    label = f".L{found.symbol}_distance"
    (fixup,) = found.fixups
    text += [
        f"    .globl {found.symbol}", f"    .type {found.symbol}, {at}function", "    .p2align 6",
        f"{found.symbol}:", "    .cfi_startproc", *(["    .intel_syntax noprefix"] if x86 else []),
        *(
            "    " + re.sub(r"\bL\d+\b", label, line.text)
            for line in found.lines if line.kind == "instruction"
        ),
        *(["    .att_syntax prefix"] if x86 else []), "    .cfi_endproc",
        f"    .size {found.symbol}, . - {found.symbol}", "    .balign 64, 0",
        f"{label}:", f"    .quad {fixup.symbol} - .", "",
    ]  # fmt: skip
    texts = strings.data.rstrip(b"\0").decode().split("\0")
    data = [[f'    .asciz "{each}"' for each in texts], _words(entries)]
    for section, symbol, lines in zip((strings, entries), symbols, data, strict=True):
        text += [
            f'    .section {section.name},"{"aw" if section.fixups else "a"}",{at}progbits',
            *([f"    .globl {symbol.name}"] if symbol.exported else []),
            f"    .type {symbol.name}, {at}object", f"    .balign {section.align}",
            f"{symbol.name}:", *lines, f"    .size {symbol.name}, . - {symbol.name}", "",
        ]  # fmt: skip
    return "\n".join([*text, f'    .section .note.GNU-stack,"",{at}progbits', ""])


def _words(section: Section) -> list[str]:
    """Data as words of 8 bytes, addresses by name."""
    places: dict[int, Fixup] = {fixup.at: fixup for fixup in section.fixups}
    lines = []
    for at in range(0, len(section.data), 8):
        fixup = places.get(at)
        word = f"{int.from_bytes(section.data[at : at + 8], 'little'):#x}"
        lines.append(f"    .quad {f'{fixup.symbol} + {fixup.addend}' if fixup else word}")
    return lines
