"""DWARF of one function for gdb: its name, its argument struct, and its lines in the listing.

Version 4, which every gdb in use reads. Not here: frames (`jitgen.inspect.unwind`). Source: DWARF 4
sections 2.6, 3, 6.2, 7.5.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from jitgen.debug.image import Image
from jitgen.inspect.unwind import ARCHITECTURES, X86_DWARF, sleb, uleb
from jitgen.types import DTYPES

_NUL = b"\0"
# tags, attributes, forms (section 7.5) as they are used here
_COMPILE_UNIT, _SUBPROGRAM, _PARAMETER, _BASE, _POINTER, _STRUCT, _MEMBER = (
    0x11, 0x2E, 0x05, 0x24, 0x0F, 0x13, 0x0D,
)  # fmt: skip
_NAME, _SIZE, _STMT_LIST, _LOW, _HIGH, _LANGUAGE, _DIRECTORY = (
    0x03, 0x0B, 0x10, 0x11, 0x12, 0x13, 0x1B,
)  # fmt: skip
_PLACE, _OFFSET, _ENCODING, _EXTERNAL, _FRAME_BASE, _TYPE, _PROTOTYPED = (
    0x02, 0x38, 0x3E, 0x3F, 0x40, 0x49, 0x27,
)  # fmt: skip
_ADDR, _DATA1, _DATA2, _DATA8, _STRING, _REF4, _SEC_OFFSET, _EXPRESSION, _FLAG = (
    0x01, 0x0B, 0x05, 0x07, 0x08, 0x13, 0x17, 0x18, 0x19,
)  # fmt: skip
_OP_REG0, _OP_CALL_FRAME_CFA, _ASSEMBLER = 0x50, 0x9C, 0x8001
_FLOAT, _SIGNED, _UNSIGNED, _UNSIGNED_CHAR = 0x04, 0x05, 0x07, 0x08
#: by the kind of an element type
_ENCODINGS = {"float": _FLOAT, "signed": _SIGNED, "unsigned": _UNSIGNED}

#: number -> tag, whether it has children, attributes with their forms
_ABBREVIATIONS = {
    1: (_COMPILE_UNIT, True, ((_LANGUAGE, _DATA2), (_NAME, _STRING), (_DIRECTORY, _STRING),
        (_STMT_LIST, _SEC_OFFSET), (_LOW, _ADDR), (_HIGH, _DATA8))),
    2: (_SUBPROGRAM, True, ((_NAME, _STRING), (_EXTERNAL, _FLAG), (_PROTOTYPED, _FLAG),
        (_TYPE, _REF4), (_LOW, _ADDR), (_HIGH, _DATA8), (_FRAME_BASE, _EXPRESSION))),
    3: (_PARAMETER, False, ((_NAME, _STRING), (_TYPE, _REF4), (_PLACE, _EXPRESSION))),
    4: (_BASE, False, ((_NAME, _STRING), (_SIZE, _DATA1), (_ENCODING, _DATA1))),
    5: (_POINTER, False, ((_SIZE, _DATA1), (_TYPE, _REF4))),
    6: (_STRUCT, True, ((_NAME, _STRING), (_SIZE, _DATA1))),
    7: (_MEMBER, False, ((_NAME, _STRING), (_TYPE, _REF4), (_OFFSET, _DATA1))),
}  # fmt: skip

#: What operands point to, by their type (`jitgen.emit.routine.Operand`), but those to elements
_POINTERS = {"offsets": "number", "bits": "byte", "data": "byte", "function": "byte"}


def sections(image: Image, lines: list[tuple[int, int]], listing: Path) -> dict[str, bytes]:
    """The sections .debug_abbrev, .debug_info and .debug_line; `lines` are (offset, line)."""
    return {
        ".debug_abbrev": _abbreviations(),
        ".debug_info": _information(image, listing),
        ".debug_line": _line_table(image, lines, listing),
    }


def _abbreviations() -> bytes:
    out = bytearray()
    for number, (tag, children, attributes) in _ABBREVIATIONS.items():
        out += uleb(number) + uleb(tag) + bytes([children])
        for attribute, form in attributes:
            out += uleb(attribute) + uleb(form)
        out += bytes(2)
    return bytes(out) + _NUL


def _block(data: bytes) -> bytes:
    return uleb(len(data)) + data


def _information(image: Image, listing: Path) -> bytes:
    span = struct.pack("<2Q", image.address, len(image.code))
    # an emitted function leaves the register of its argument alone but for setting the result
    argument = X86_DWARF[image.argument] if image.architecture == "x86_64" else image.argument
    names = (os.fsencode(listing.name), os.fsencode(listing.parent))
    out = bytearray(struct.pack("<HIB", 4, 0, 8))  # version, abbreviations, bytes of an address
    places: dict[str, int] = {}

    def entry(number: int, data: bytes, name: str = "") -> None:
        nonlocal out
        places[name] = 4 + len(out)  # from the start of the unit, whose length is not yet in `out`
        out += uleb(number) + data

    def reference(name: str) -> bytes:
        return struct.pack("<I", places[name])

    entry(1, struct.pack("<H", _ASSEMBLER) + b"".join(n + _NUL for n in names) + bytes(4) + span)
    routine = image.routine
    types = {operand.word: operand.type for operand in routine.signature}
    entry(4, b"int64_t\0" + bytes([8, _SIGNED]), "number")
    entry(4, b"uint8_t\0" + bytes([1, _UNSIGNED_CHAR]), "byte")
    for name, target in _POINTERS.items():
        entry(5, bytes([8]) + reference(target), name)
    for name, element in DTYPES.items():
        encoding = bytes([element.size, _ENCODINGS[element.kind]])
        entry(4, element.c.encode() + _NUL + encoding, f"{name} element")
        entry(5, bytes([8]) + reference(f"{name} element"), name)
    elements = next((each for each in types.values() if each in DTYPES), "data")
    entry(5, bytes([8]) + reference(elements), "addresses")
    # the field of each word has 8 bytes
    size = max(routine.words.values()) + 8
    entry(6, f"{routine.name.split()[0]}_args".encode() + _NUL + bytes([size]), "struct")
    for word, at in routine.words.items():
        kind = types.get(word, elements)  # the words of others it does not read
        entry(7, word.encode() + _NUL + reference(kind) + bytes([at]))
    out += _NUL
    entry(5, bytes([8]) + reference("struct"), "pointer")
    frame_base = _block(bytes([_OP_CALL_FRAME_CFA]))
    entry(2, image.name.encode() + _NUL + reference("number") + span + frame_base)
    entry(3, b"args\0" + reference("pointer") + _block(bytes([_OP_REG0 + argument])))
    out += _NUL + _NUL
    return struct.pack("<I", len(out)) + bytes(out)


_COPY, _ADVANCE_PC, _ADVANCE_LINE = 1, 2, 3
_END_SEQUENCE, _SET_ADDRESS = 1, 2
#: operands that each standard opcode has
_STANDARD = bytes([0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1])


def _line_table(image: Image, lines: list[tuple[int, int]], listing: Path) -> bytes:
    unit = ARCHITECTURES[image.architecture].unit
    header = bytes([unit, 1, 1, 0, 1, len(_STANDARD) + 1]) + _STANDARD
    # no directory but the unit's own; one file, with no date or size
    header += _NUL + os.fsencode(listing.name) + bytes([0, 0, 0, 0]) + _NUL
    body = bytearray(_NUL + _block(bytes([_SET_ADDRESS]) + struct.pack("<Q", image.address)))
    at, line = 0, 1
    for offset, number in lines:
        if offset != at:
            body += bytes([_ADVANCE_PC]) + uleb((offset - at) // unit)
        body += bytes([_ADVANCE_LINE]) + sleb(number - line) + bytes([_COPY])
        at, line = offset, number
    body += bytes([_ADVANCE_PC]) + uleb((len(image.code) - at) // unit)
    body += _NUL + _block(bytes([_END_SEQUENCE]))
    table = struct.pack("<HI", 4, len(header)) + header + body
    return struct.pack("<I", len(table)) + table
