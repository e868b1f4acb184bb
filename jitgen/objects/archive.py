"""Static libraries: the `ar` format with GNU's symbol index and long names.

Not here: the members (`jitgen.objects.elf`). Source: ar(5).

>>> archive([Member("a.o", b"...", ("f",))])[:8]
b'!<arch>\\n'
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

_MAGIC = b"!<arch>\n"
_HEADER_BYTES = 60


class Member(NamedTuple):
    """A file with the symbols that it defines."""

    name: str
    data: bytes
    symbols: tuple[str, ...]


def _header(name: str, size: int) -> bytes:
    """Owner, date and mode are constant, so that equal kernels give equal files."""
    return f"{name:<16}{0:<12}{0:<6}{0:<6}{644:<8}{size:<10}`\n".encode()


def _padded(data: bytes) -> bytes:
    return data + b"\n" * (len(data) % 2)


def archive(members: Sequence[Member]) -> bytes:
    """The library; a linker takes the members whose symbols it needs."""
    names = _padded(b"".join(f"{member.name}/\n".encode() for member in members))
    symbols = b"".join(f"{name}\0".encode() for member in members for name in member.symbols)
    count = sum(len(member.symbols) for member in members)
    symbols += bytes(-len(symbols) % 2)
    index_bytes = 4 + 4 * count + len(symbols)
    at = len(_MAGIC) + 2 * _HEADER_BYTES + index_bytes + len(names)
    places: list[int] = []
    bodies = []
    name_at = 0
    for member in members:
        places += [at] * len(member.symbols)
        body = _header(f"/{name_at}", len(member.data)) + _padded(member.data)
        bodies.append(body)
        at += len(body)
        name_at += len(member.name) + 2
    index = struct.pack(f">I{count}I", count, *places) + symbols
    return b"".join(
        (_MAGIC, _header("/", len(index)), index, _header("//", len(names)), names, *bodies)
    )
