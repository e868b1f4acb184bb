"""A program: instruction records, labels, sections and constant data, and their encoding.

Records are plain tuples `(form, operands)`. Labels, sections and alignments are records whose form
is one of the markers below. Not here: loading the bytes (`jitgen.run.loader`).

>>> from jitgen.isa.x86 import FORMS
>>> p = Program(); p.emit(FORMS["ret"], ()); p.encode().hex()
'c3'
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

from jitgen.isa.form import CACHE_SIZE, Form, Operands, Record


def _unencodable(operands: Operands) -> bytes:
    raise AssertionError(f"a marker has no bytes: {operands}")


def _marker(name: str) -> Form:
    return Form(name, (), "", _unencodable, lambda operands: f"{name} {operands[0]}")


LABEL = _marker("label")
SECTION = _marker("section")
ALIGN = _marker("align")

_MARKERS = (LABEL, SECTION, ALIGN)
DATA_ALIGN = 64
#: The section of the constant data
CONSTANTS = "constants"


@dataclass(frozen=True)
class Line:
    """One line of a listing: byte offset, bytes, text; sections and labels have no bytes."""

    offset: int
    code: bytes
    text: str
    kind: str  # "instruction", "section", "label" or "data"
    record: Record | None = None

    @property
    def section(self) -> Hashable:
        """What a section is, as `Program.section` was told; None for other lines."""
        return self.record[1][0] if self.kind == "section" and self.record else None


class Program:
    """Records in order, plus constant data placed behind the code (64-byte aligned)."""

    def __init__(self, nops: Callable[[int], bytes] | None = None) -> None:
        self.records: list[Record] = []
        self._labels = 0
        self._data = bytearray()
        self._constants: dict[bytes, int] = {}
        self._nops = nops or (lambda n: bytes(n))
        #: the label of the constant data
        self.data_label = self.new_label()

    def emit(self, form: Form, operands: Operands) -> None:
        """Append one instruction."""
        self.records.append((form, operands))

    def new_label(self) -> int:
        """A label that is not yet placed."""
        self._labels += 1
        return self._labels

    def place(self, label: int) -> None:
        """Put `label` here."""
        self.records.append((LABEL, (label,)))

    def align(self, n: int) -> None:
        """Pad with no-operations to a multiple of n bytes (a power of two up to 64)."""
        self.records.append((ALIGN, (n,)))

    def section(self, section: Hashable) -> None:
        """Start a section of the listing: what follows, as a title, or as a record of the caller's
        own whose `str()` is the title. Listings make the text; who wants to know more asks the
        record."""
        self.records.append((SECTION, (section,)))

    def constant(self, data: bytes) -> int:
        """Offset of `data` in the constant block; equal constants share a place."""
        offset = self._constants.get(data)
        if offset is None:
            align = min(DATA_ALIGN, 1 << (len(data) - 1).bit_length())
            self._data += bytes(-len(self._data) % align)
            offset = self._constants[data] = len(self._data)
            self._data += data
        return offset

    @property
    def constant_bytes(self) -> int:
        """Bytes of the constant data, with which the code ends."""
        return len(self._data)

    @property
    def features(self) -> frozenset[str]:
        """CPU features that the instructions need."""
        return frozenset(form.feature for form, _ in self.records if form.feature)

    def encode(self) -> bytes:
        """The machine code with the constant data behind it."""
        pieces, sizes, places = self._layout()
        out: list[bytes] = []
        at = 0
        for piece, size in zip(pieces, sizes, strict=True):
            if isinstance(piece, bytes):
                out.append(piece)
            elif piece[0] is ALIGN:
                out.append(self._nops(size))
            else:
                out.append(_branch(piece, places, at, size))
            at += size
        out.append(bytes(places[self.data_label] - at if self._data else 0))
        out.append(bytes(self._data))
        return b"".join(out)

    def _layout(self) -> tuple[list[bytes | Record], list[int], dict[int, int]]:
        """Pieces (plain bytes, branches, alignments), their sizes, and the place of each label.

        Branches start short and grow until all fit; they never shrink, so this ends.
        """
        pieces: list[bytes | Record] = []
        labels: list[tuple[int, int]] = []  # (label, index into pieces)
        run: list[bytes] = []
        for record in self.records:
            form, operands = record
            code = form.cache.get(operands)
            if code is None:
                if form in _MARKERS or form.label_at >= 0:
                    if form is SECTION:
                        continue
                    if run:
                        pieces.append(b"".join(run))
                        run = []
                    if form is LABEL:
                        labels.append((operands[0], len(pieces)))
                    else:
                        pieces.append(record)
                    continue
                if len(form.cache) >= CACHE_SIZE:
                    form.cache.clear()
                code = form.cache[operands] = form.encode(operands)
            run.append(code)
        if run:
            pieces.append(b"".join(run))
        sizes = [len(p) if isinstance(p, bytes) else (p[0].sizes or (0,))[0] for p in pieces]
        while True:
            starts = self._starts(pieces, sizes)
            places = {label: starts[index] for label, index in labels}
            places[self.data_label] = -(-starts[-1] // DATA_ALIGN) * DATA_ALIGN
            if not self._grow(pieces, sizes, starts, places):
                return pieces, sizes, places

    @staticmethod
    def _starts(pieces: list[bytes | Record], sizes: list[int]) -> list[int]:
        starts = []
        at = 0
        for i, piece in enumerate(pieces):
            starts.append(at)
            if not isinstance(piece, bytes) and piece[0] is ALIGN:
                sizes[i] = -at % piece[1][0]
            at += sizes[i]
        starts.append(at)
        return starts

    @staticmethod
    def _grow(
        pieces: list[bytes | Record], sizes: list[int], starts: list[int], places: dict[int, int]
    ) -> bool:
        grown = False
        for i, piece in enumerate(pieces):
            if isinstance(piece, bytes) or len(piece[0].sizes) < 2 or sizes[i] != piece[0].sizes[0]:
                continue
            distance = places[piece[1][piece[0].label_at]] - (starts[i] + sizes[i])
            if not -128 <= distance <= 127:
                sizes[i] = piece[0].sizes[1]
                grown = True
        return grown

    def lines(self) -> Iterator[Line]:
        """The program line by line, for a listing; texts are made here, not before."""
        pieces, sizes, places = self._layout()
        branch_sizes = iter([s for p, s in zip(pieces, sizes, strict=True) if isinstance(p, tuple)])
        at = 0
        for record in self.records:
            form, operands = record
            if form is SECTION:
                yield Line(at, b"", str(operands[0]), "section", record)
            elif form is LABEL:
                yield Line(at, b"", f"L{operands[0]}", "label", record)
            else:
                if form is ALIGN:
                    code = self._nops(next(branch_sizes))
                elif form.label_at >= 0:
                    code = _branch(record, places, at, next(branch_sizes))
                else:
                    code = form.encode(operands)
                if code:
                    text = "nop" if form is ALIGN else form.text(operands)
                    yield Line(at, code, text, "instruction", record)
                at += len(code)
        start = places[self.data_label]
        if self._data:
            yield Line(start, b"", CONSTANTS, "section", (SECTION, (CONSTANTS,)))
        pointed = any(f.label_at >= 0 and x[f.label_at] == self.data_label for f, x in self.records)
        if self._data or pointed:
            yield Line(start, b"", f"L{self.data_label}", "label")
            for offset in range(0, len(self._data), 16):
                row = bytes(self._data[offset : offset + 16])
                whole = len(row) // 4 * 4
                # words, and bytes behind them: code of another function may end anywhere
                for part, packed, kind, width in (
                    (row[:whole], "<I", ".long", 10), (row[whole:], "<B", ".byte", 4),
                ):  # fmt: skip
                    numbers = [number for (number,) in struct.iter_unpack(packed, part)]
                    values = [f"{number:#0{width}x}" for number in numbers]
                    if part:
                        yield Line(start + offset, part, f"{kind} {', '.join(values)}", "data")
                    offset += len(part)


def _branch(record: Record, places: dict[int, int], at: int, size: int) -> bytes:
    """Bytes of an instruction with a label: its operand becomes (distance, size)."""
    form, operands = record
    i = form.label_at
    distance = places[operands[i]] - at
    return form.encode((*operands[:i], (distance, size), *operands[i + 1 :]))
