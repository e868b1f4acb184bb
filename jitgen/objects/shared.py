"""Shared objects (.so): segments, dynamic symbols with both hash tables, relocations.

Three segments: readable (tables, unwind information, strings), executable, and data that the
loader relocates and then makes readable only. Not here: sections and symbols (`jitgen.objects.elf`)
and what they hold. Sources: System V ABI chapter 5; glibc's elf/dl-lookup.c for the GNU hash.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from jitgen.inspect.unwind import Function, Row, eh_frame, eh_frame_hdr
from jitgen.objects.elf import (
    ARCHITECTURES,
    CODE,
    HEADER_BYTES,
    PROGBITS,
    READ,
    RELA,
    RELA_BYTES,
    RELOCATED,
    SEGMENT_BYTES,
    SHARED,
    STRTAB,
    SYMBOL_BYTES,
    Header,
    Section,
    Strings,
    Symbol,
    align,
    assemble_file,
    section_symbols,
    symbol_headers,
    symbol_table,
)  # fmt: skip

_HASH, _DYNAMIC, _DYNSYM, _GNU_HASH = 5, 6, 11, 0x6FFFFFF6
_LOAD, _DYNAMIC_SEGMENT, _EH_FRAME, _STACK, _RELRO = 1, 2, 0x6474E550, 0x6474E551, 0x6474E552
#: Tags of the dynamic section that hold an address, by section
_TAGS = {".hash": 4, ".gnu.hash": 0x6FFFFEF5, ".dynstr": 5, ".dynsym": 6, ".rela.dyn": 7}
_NULL, _RELASZ, _RELAENT, _STRSZ, _SYMENT, _SONAME = 0, 8, 9, 10, 11, 14
#: Segments begin at multiples of this in the file
_FILE_PAGE = 0x1000


def shared(
    architecture: str, sections: Sequence[Section], symbols: Sequence[Symbol],
    rows: Mapping[str, Sequence[Row]], soname: str,
) -> bytes:  # fmt: skip
    """A shared object named `soname`, which exports the symbols that are marked so. `rows` holds
    the unwind information of each function; fixups refer to `symbols` only."""
    exported = [symbol for symbol in symbols if symbol.exported]
    buckets = max(1, len(exported) // 2)
    # the GNU hash wants the symbols of a bucket to be neighbours
    exported.sort(key=lambda symbol: gnu_hash(symbol.name) % buckets)
    names, same_names = Strings(), Strings()
    soname_at = names.add(soname), same_names.add(soname)
    dynsym, _, _ = symbol_table(exported, {s.name: 0 for s in sections}, {}, names)
    relocations = sum(f.kind == "address" for s in sections for f in s.fixups)
    functions = [Function(0, s.size, rows[s.name]) for s in symbols if s.name in rows]
    frames = eh_frame(functions, architecture, 0)
    headers = [
        Header(".hash", _HASH, READ, _system_hash(exported, buckets), link=3, align=8, entry=4),
        Header(".gnu.hash", _GNU_HASH, READ, _gnu_table(exported, buckets), link=3, align=8),
        Header(".dynsym", _DYNSYM, READ, dynsym, link=4, info=1, align=8, entry=SYMBOL_BYTES),
        Header(".dynstr", STRTAB, READ, bytes(names.data)),
        Header(
            ".rela.dyn", RELA, READ, bytes(RELA_BYTES * relocations), link=3, align=8,
            entry=RELA_BYTES,
        ),
        Header(".eh_frame_hdr", PROGBITS, READ, bytes(12 + 8 * len(functions)), align=4),
        Header(".eh_frame", PROGBITS, READ, frames.data, align=8),
        *(Header(s.name, PROGBITS, s.flags, s.data, align=s.align) for s in sections),
        Header(".dynamic", _DYNAMIC, RELOCATED, bytes(16 * 11), link=4, align=8, entry=16),
    ]  # fmt: skip
    segments = _lay_out(headers, ARCHITECTURES[architecture].page)
    indices = {header.name: i for i, header in enumerate(headers, 1)}
    addresses = {header.name: header.address for header in headers}
    data = {header.name: header.data for header in headers}
    values = {symbol.name: addresses[symbol.section] + symbol.offset for symbol in symbols}
    data[".dynsym"] = symbol_table(exported, indices, addresses, same_names)[0]
    data |= _resolve(architecture, sections, values, addresses)
    functions = [
        Function(values[s.name], s.size, rows[s.name]) for s in symbols if s.name in rows
    ]
    frames = eh_frame(functions, architecture, addresses[".eh_frame"])
    data[".eh_frame"] = frames.data
    data[".eh_frame_hdr"] = eh_frame_hdr(
        functions, frames, addresses[".eh_frame"], addresses[".eh_frame_hdr"]
    )
    dynamic = [(_SONAME, soname_at[0]), *((tag, addresses[name]) for name, tag in _TAGS.items())]
    dynamic += [
        (_STRSZ, len(names.data)), (_SYMENT, SYMBOL_BYTES), (_RELASZ, RELA_BYTES * relocations),
        (_RELAENT, RELA_BYTES), (_NULL, 0),
    ]  # fmt: skip
    data[".dynamic"] = b"".join(struct.pack("<QQ", *entry) for entry in dynamic)
    for header in headers:
        assert len(header.data) == len(data[header.name]), header.name
        header.data = data[header.name]
    all_names = Strings()
    lines = [*section_symbols(addresses), *symbols]
    table, local, _ = symbol_table(lines, indices, addresses, all_names)
    headers += symbol_headers(table, local, all_names, len(headers) + 2)
    return assemble_file(SHARED, architecture, headers, segments)


def _lay_out(headers: Sequence[Header], page: int) -> list[bytes]:
    """Give the sections their offsets and addresses; returns the program headers.

    A segment begins at a file page of its own, and its address is the same as its offset modulo the
    largest page, so that it can be mapped whatever the page size.
    """
    offset = HEADER_BYTES + SEGMENT_BYTES * 7
    address = offset
    loads = []
    for flags, access in ((READ, 4), (CODE, 5), (RELOCATED, 6)):
        if flags != READ:
            offset = align(offset, _FILE_PAGE)
            address = align(address, page) + offset % page
        start = (0, 0) if flags == READ else (offset, address)
        for header in headers:
            if header.flags == flags:
                padding = -offset % header.align
                header.offset, header.address = offset + padding, address + padding
                offset, address = (x + padding + len(header.data) for x in (offset, address))
        size = address - start[1]
        # the loader protects whole pages: the last segment ends with one
        in_memory = align(address, page) - start[1] if flags == RELOCATED else size
        loads.append(_segment(_LOAD, access, *start, size, in_memory, page))
        if flags == RELOCATED:
            loads.append(_segment(_RELRO, 4, *start, size, in_memory, 1))
    place = {header.name: header for header in headers}
    for kind, access, name in (
        (_DYNAMIC_SEGMENT, 6, ".dynamic"), (_EH_FRAME, 4, ".eh_frame_hdr"),
    ):  # fmt: skip
        h = place[name]
        size = len(h.data)
        loads.append(_segment(kind, access, h.offset, h.address, size, size, h.align))
    return [*loads, _segment(_STACK, 6, 0, 0, 0, 0, 16)]


def _segment(
    kind: int, access: int, offset: int, address: int, size: int, in_memory: int, page: int
) -> bytes:
    fields = (kind, access, offset, address, address, size, in_memory, page)
    return struct.pack("<IIQQQQQQ", *fields)


def _resolve(
    architecture: str, sections: Sequence[Section], values: Mapping[str, int],
    addresses: Mapping[str, int],
) -> dict[str, bytes]:  # fmt: skip
    """The sections with distances and addresses filled in, and the relocations of addresses, which
    the loader moves."""
    relative = ARCHITECTURES[architecture].relocations["relative"]
    relocations = bytearray()
    resolved = {}
    for section in sections:
        data = bytearray(section.data)
        for fixup in section.fixups:
            value = values[fixup.symbol] + fixup.addend
            place = addresses[section.name] + fixup.at
            if fixup.kind == "address":
                relocations += struct.pack("<QQq", place, relative, value)
            else:
                value -= place
            form = "<i" if fixup.kind == "distance4" else "<q"
            struct.pack_into(form, data, fixup.at, value)
        resolved[section.name] = bytes(data)
    return {**resolved, ".rela.dyn": bytes(relocations)}


def system_hash(name: str) -> int:
    """The hash of System V.

    >>> hex(system_hash("printf"))
    '0x77905a6'
    """
    value = 0
    for byte in name.encode():
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ high >> 24) & ~high
    return value


def gnu_hash(name: str) -> int:
    """The hash of GNU.

    >>> hex(gnu_hash("printf"))
    '0x156b2bb8'
    """
    value = 5381
    for byte in name.encode():
        value = (value * 33 + byte) & 0xFFFFFFFF
    return value


def _system_hash(symbols: Sequence[Symbol], buckets: int) -> bytes:
    heads, chain = [0] * buckets, [0] * (len(symbols) + 1)
    for i, symbol in enumerate(symbols, 1):
        bucket = system_hash(symbol.name) % buckets
        chain[i], heads[bucket] = heads[bucket], i
    return struct.pack(f"<{2 + buckets + len(chain)}I", buckets, len(chain), *heads, *chain)


def _gnu_table(symbols: Sequence[Symbol], buckets: int) -> bytes:
    """Bloom filter of 64-bit words, buckets, and the hashes, the last of a bucket marked."""
    hashes = [gnu_hash(symbol.name) for symbol in symbols]
    words, shift = 1 << max(0, (len(hashes) // 8).bit_length()), 6
    bloom, heads = [0] * words, [0] * buckets
    chain = []
    for i, value in enumerate(hashes):
        bloom[value // 64 % words] |= 1 << value % 64 | 1 << (value >> shift) % 64
        bucket = value % buckets
        heads[bucket] = heads[bucket] or i + 1
        last = i + 1 == len(hashes) or hashes[i + 1] % buckets != bucket
        chain.append(value & ~1 | last)
    form = f"<4I{words}Q{buckets}I{len(chain)}I"
    return struct.pack(form, buckets, 1, words, shift, *bloom, *heads, *chain)
