"""ELF files of 64 bits, little-endian: what sections and symbols are, and relocatable objects.

A section holds bytes and the places in them that depend on addresses (fixups); symbols name places
in sections. Shared objects are laid out in `jitgen.objects.shared`. Not here: what the sections
hold (`jitgen.objects.parts`). Sources: System V ABI chapter 4, psABI for x86-64, ELF for the Arm
64-bit Architecture.

>>> text = Section(".text", b"\\xc3", CODE, 64)
>>> relocatable("x86_64", [text], [Symbol("f", ".text", 0, 1, FUNCTION, True)])[:4]
b'\\x7fELF'
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

#: Section flags: readable data, code, and data that relocations write before a program starts
READ, CODE, RELOCATED = 2, 2 | 4, 2 | 1
PROGBITS, SYMTAB, STRTAB, RELA = 1, 2, 3, 4
INFO_LINK = 0x40
NOTYPE, OBJECT, FUNCTION, SECTION = range(4)
RELOCATABLE, SHARED = 1, 3
HEADER_BYTES, SEGMENT_BYTES, SECTION_BYTES, SYMBOL_BYTES, RELA_BYTES = 64, 56, 64, 24, 24


class Architecture(NamedTuple):
    """Number of the machine, relocation types by kind of fixup, largest page."""

    machine: int
    relocations: dict[str, int]
    page: int


#: Kinds of fixup: "address" (8 bytes), "distance4" and "distance8" (from the place itself), and
#: "relative": an address of the same shared object, which the loader moves
ARCHITECTURES = {
    "x86_64": Architecture(
        62, {"address": 1, "distance4": 2, "distance8": 24, "relative": 8}, 0x1000
    ),
    "aarch64": Architecture(
        183, {"address": 257, "distance4": 261, "distance8": 260, "relative": 1027}, 0x10000
    ),
}


class Fixup(NamedTuple):
    """The bytes at offset `at` become symbol + addend, as an address or a distance from there."""

    at: int
    kind: str
    symbol: str
    addend: int = 0


@dataclass(frozen=True)
class Section:
    """Bytes that are loaded, with what depends on addresses."""

    name: str
    data: bytes
    flags: int
    align: int
    fixups: tuple[Fixup, ...] = ()


class Symbol(NamedTuple):
    """A place: `size` bytes at `offset` of the section of that name."""

    name: str
    section: str
    offset: int
    size: int
    kind: int
    exported: bool


@dataclass
class Strings:
    """A string table: names with a zero byte behind each."""

    data: bytearray = field(default_factory=lambda: bytearray(1))

    def add(self, name: str) -> int:
        """Put a name in; returns its offset."""
        at = len(self.data)
        self.data += name.encode() + b"\0"
        return at


@dataclass
class Header:
    """A line of the section header table."""

    name: str
    kind: int
    flags: int
    data: bytes
    address: int = 0
    link: int = 0
    info: int = 0
    align: int = 1
    entry: int = 0
    offset: int = -1  # -1: the next free place of the file


def align(value: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-value // to) * to


def file_header(
    kind: int, architecture: str, segments: int, sections: int, table: int, names: int
) -> bytes:
    """The ELF header: `segments` program headers behind it, section headers at `table`."""
    identity = b"\x7fELF\2\1\1".ljust(16, b"\0")
    machine = ARCHITECTURES[architecture].machine
    return identity + struct.pack(
        "<HHIQQQIHHHHHH", kind, machine, 1, 0, HEADER_BYTES if segments else 0, table, 0,
        HEADER_BYTES, SEGMENT_BYTES if segments else 0, segments, SECTION_BYTES, sections, names,
    )  # fmt: skip


def section_symbols(sections: Iterable[str]) -> list[Symbol]:
    """A symbol for each section itself, to which relocations refer."""
    return [Symbol("", name, 0, 0, SECTION, False) for name in sections]


def symbol_table(
    symbols: Iterable[Symbol], sections: dict[str, int], addresses: dict[str, int], names: Strings
) -> tuple[bytes, int, dict[str, int]]:
    """Entries of all symbols, local ones first; the number of local ones; name -> index.

    `sections` gives the index, `addresses` the address of a section. A section's own symbol is
    indexed by the section's name; a symbol without section is looked for in other objects.
    """
    ordered = sorted(symbols, key=lambda symbol: symbol.exported)
    table = bytearray(SYMBOL_BYTES)
    for symbol in ordered:
        where = sections[symbol.section] if symbol.section else 0
        address = addresses.get(symbol.section, 0) + symbol.offset
        name = names.add(symbol.name) if symbol.name else 0
        info = int(symbol.exported) << 4 | symbol.kind
        table += struct.pack("<IBBHQQ", name, info, 0, where, address, symbol.size)
    local = 1 + sum(not symbol.exported for symbol in ordered)
    return bytes(table), local, {s.name or s.section: i for i, s in enumerate(ordered, 1)}


def symbol_headers(table: bytes, local: int, names: Strings, link: int) -> list[Header]:
    """The sections of a symbol table; `link` is the index of the second."""
    return [
        Header(".symtab", SYMTAB, 0, table, link=link, info=local, align=8, entry=SYMBOL_BYTES),
        Header(".strtab", STRTAB, 0, bytes(names.data)),
    ]


def assemble_file(
    kind: int, architecture: str, headers: Sequence[Header], segments: Sequence[bytes] = ()
) -> bytes:
    """The file: header, program headers, data of the sections, names and headers of them."""
    out = bytearray(HEADER_BYTES + SEGMENT_BYTES * len(segments))
    names = Strings()
    lines = [*headers, Header(".shstrtab", STRTAB, 0, b"")]
    for header in lines:
        names.add(header.name)
    lines[-1].data = bytes(names.data)
    table = bytearray(SECTION_BYTES)
    name = 1
    for header in lines:
        at = align(len(out), header.align) if header.offset < 0 else header.offset
        out += bytes(at - len(out)) + header.data
        table += struct.pack(
            "<IIQQQQIIQQ", name, header.kind, header.flags, header.address, at, len(header.data),
            header.link, header.info, header.align, header.entry,
        )  # fmt: skip
        name += len(header.name) + 1
    out += bytes(-len(out) % 8)
    start = file_header(
        kind, architecture, len(segments), len(lines) + 1, len(out), len(lines)
    ) + b"".join(segments)
    out[: len(start)] = start
    return bytes(out + table)


def relocatable(
    architecture: str, sections: Sequence[Section], symbols: Sequence[Symbol]
) -> bytes:
    """An object file (.o). Symbols that fixups name and nobody defines are left to the linker."""
    defined = {symbol.name: symbol for symbol in symbols}
    missing = {f.symbol for s in sections for f in s.fixups if f.symbol not in defined}
    outside = [Symbol(name, "", 0, 0, NOTYPE, True) for name in sorted(missing)]
    names = Strings()
    indices = {section.name: i for i, section in enumerate(sections, 1)}
    lines = [*section_symbols(indices), *symbols, *outside]
    table, local, symbol_index = symbol_table(lines, indices, {}, names)
    symtab = len(sections) + 2
    types = ARCHITECTURES[architecture].relocations
    headers = [Header(s.name, PROGBITS, s.flags, s.data, align=s.align) for s in sections]
    headers += [
        # an empty section that says: needs no executable stack
        Header(".note.GNU-stack", PROGBITS, 0, b""),
        *symbol_headers(table, local, names, symtab + 1),
    ]
    for section in sections:
        data = bytearray()
        for fixup in section.fixups:
            symbol = defined.get(fixup.symbol)
            target = symbol.section if symbol else fixup.symbol
            addend = fixup.addend + (symbol.offset if symbol else 0)
            info = symbol_index[target] << 32 | types[fixup.kind]
            data += struct.pack("<QQq", fixup.at, info, addend)
        if data:
            headers.append(Header(
                f".rela{section.name}", RELA, INFO_LINK, bytes(data), link=symtab,
                info=indices[section.name], align=8, entry=RELA_BYTES,
            ))  # fmt: skip
    return assemble_file(RELOCATABLE, architecture, headers)
