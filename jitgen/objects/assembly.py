"""A library as assembly source (.s), for GNU as and Clang 19 or later: what the object file holds.

Not here: the text of a function (`jitgen.inspect.asm`).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from jitgen.inspect.asm import assembly
from jitgen.objects.elf import Fixup, Section, Symbol

if TYPE_CHECKING:
    from jitgen.objects.code import Code
    from jitgen.objects.parts import Library

#: Words on a line
_PER_LINE = 8


def source(library: Library) -> str:
    """The functions with their unwind information, then read-only data, then the table."""
    comment, at = ("#", "@") if library.architecture == "x86_64" else ("//", "%")
    text = [f"{comment} {library.name}: made by {library.generator}"]
    text += [_function(each) for each in library.functions]
    sections, symbols = library.tables(library.data)
    for section in sections:
        kind = "aw" if section.fixups else "a"
        text.append(f'    .section {section.name},"{kind}",{at}progbits')
        for symbol in (each for each in symbols if each.section == section.name):
            text += _data(section, symbol, at)
    return "\n".join([*text, f'    .section .note.GNU-stack,"",{at}progbits', ""])


def _function(code: Code) -> str:
    """A function; its constants by name where they are distances or functions."""
    named = bool(code.fixups) or code.leads
    text = assembly(
        code.routine, code.symbol, cfi=lambda _: code.rows, exported=code.exported,
        constants=not named,
    )
    return text + "".join(f"    .quad {fixup.symbol} - .\n" for fixup in code.fixups)


def _data(section: Section, symbol: Symbol, at: str) -> list[str]:
    """Data under its symbol: text as text, addresses by name, else words."""
    begin, end = symbol.offset, symbol.offset + symbol.size
    if section.fixups:
        lines = _words(section)
    elif symbol.name.endswith("_strings"):
        texts = section.data[begin:end].rstrip(b"\0").decode().split("\0")
        lines = [f'    .asciz "{each}"' for each in texts]
    else:
        words = [f"{word:#x}" for (word,) in struct.iter_unpack("<I", section.data[begin:end])]
        lines = [
            f"    .long {', '.join(words[i : i + _PER_LINE])}"
            for i in range(0, len(words), _PER_LINE)
        ]
    return [
        *([f"    .globl {symbol.name}"] if symbol.exported else []),
        f"    .type {symbol.name}, {at}object", f"    .balign {section.align}",
        f"{symbol.name}:", *lines, f"    .size {symbol.name}, . - {symbol.name}", "",
    ]  # fmt: skip


def _words(section: Section) -> list[str]:
    """Data as words of 8 bytes, addresses by name."""
    places: dict[int, Fixup] = {fixup.at: fixup for fixup in section.fixups}
    lines = []
    for at in range(0, len(section.data), 8):
        fixup = places.get(at)
        word = f"{int.from_bytes(section.data[at : at + 8], 'little'):#x}"
        lines.append(f"    .quad {f'{fixup.symbol} + {fixup.addend}' if fixup else word}")
    return lines
