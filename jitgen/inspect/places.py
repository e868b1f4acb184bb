"""Addresses as elements of the matrices: &A[row+2, k+1], C[row+2, col+8..15], bias[col+0..7].

An address is a linear value whose terms name a matrix and positions; the spec's leading dimensions
say which element that is. Not here: how addresses are followed (`jitgen.inspect.meaning`).
"""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import NamedTuple

from jitgen.emit.frame import ARGUMENTS
from jitgen.gemm.spec import KernelSpec
from jitgen.inspect.values import Number, Value

#: Which direction of a matrix a named quantity counts in
DIRECTION = {"row": "row", "col": "column", "k": "step", "block": "step"}
#: Quantities that choose the batch element of A and B, not the place in it
BATCH = frozenset(("index", "first", "pass", "count", "a_offset", "b_offset"))


class Direction(NamedTuple):
    """A direction in which a matrix is indexed: its name, bytes from one index to the next."""

    name: str
    stride: Number


class Place(NamedTuple):
    """An element: the matrix, its indexes as (direction, named quantities, constant)."""

    matrix: str
    indexes: list[tuple[Direction, dict[str, Number], int]]

    def text(self, lanes: int = 1) -> str:
        """`lanes` elements from here on, in the direction whose neighbours lie side by side."""
        parts = []
        for direction, terms, constant in self.indexes:
            many = lanes if direction is self.indexes[-1][0] else 1
            parts.append(_index(terms, constant, many))
        order = [d.name for d, _, _ in self.indexes]
        if order in (["step", "row"], ["column", "step"]):  # stored transposed
            parts.reverse()
        return f"{self.matrix}[{', '.join(parts)}]"


def _index(terms: dict[str, Number], constant: int, lanes: int) -> str:
    words = [name if factor == 1 else f"{factor}*{name}" for name, factor in terms.items()]
    begin = str(constant) if constant or lanes > 1 or not words else ""
    text = "+".join([*words, begin] if begin else words).replace("+-", "-")
    return f"{text}..{constant + lanes - 1}" if lanes > 1 else text


class Places:
    """The matrices of one kernel as they lie in memory."""

    def __init__(self, spec: KernelSpec, packed_step: int, data: bytes) -> None:
        a, e, r = spec.a_bytes, spec.b_bytes, spec.c_bytes
        self.spec = spec
        self.data = data
        row, step = Direction("row", spec.lda * a), Direction("step", a)
        if spec.trans_a:
            row, step = Direction("row", a), Direction("step", spec.lda * a)
        b = (Direction("step", spec.ldb * e), Direction("column", e))
        if spec.trans_b:
            b = (Direction("column", spec.ldb * e), Direction("step", e))
        across = Direction("column", r)
        #: matrix -> its directions, the outer one first
        self.matrices: dict[str, tuple[Direction, ...]] = {
            "A": (step, row) if spec.trans_a else (row, step),
            "B": b,
            "C": (Direction("row", spec.ldc * r), across),
            "residual": (Direction("row", spec.ldr * r), across),
            "bias": (across,),
            "bias_row": (Direction("row", r),),
            "mask": (Direction("row", spec.mask_bytes), Direction("column", Fraction(1, 8))),
            "packed": (Direction("step", packed_step), Direction("column", e)),
            "a_offsets": (Direction("index", 8),),
            "b_offsets": (Direction("index", 8),),
            "a_addresses": (Direction("index", 8),),
            "b_addresses": (Direction("index", 8),),
        }

    def find(self, address: Value | None) -> Place | None:
        """The place of an address, or None where it is not known."""
        if address is None:
            return None
        matrix = next((n for n in address.terms if n in self.matrices), "")
        if not matrix or address.terms[matrix] != 1:
            return None
        terms = {n: f for n, f in address.terms.items() if n != matrix}
        if matrix in ("A", "B"):
            terms = {n: f for n, f in terms.items() if n not in BATCH}
        if matrix == "B" and self.spec.panel:
            return self._in_panels(terms, int(address.constant))
        indexes: list[tuple[Direction, dict[str, Number], int]] = []
        rest: Number = address.constant
        for direction in self.matrices[matrix]:
            mine: dict[str, Number] = {}
            for name in [n for n in terms if DIRECTION.get(n, "index") == direction.name]:
                mine[name] = Fraction(terms.pop(name)) / Fraction(direction.stride)
            count = rest // direction.stride
            rest -= count * direction.stride
            indexes.append((direction, mine, int(count)))
        whole = all(f.denominator == 1 for _, mine, _ in indexes for f in mine.values())
        return Place(matrix, indexes) if whole and not terms and not rest else None

    def _in_panels(self, terms: dict[str, Number], constant: int) -> Place | None:
        """B in panels: column j begins at panel j // width, each with all k rows of its columns."""
        spec = self.spec
        width = spec.panel * spec.b_bytes
        panel, rest = divmod(constant, spec.k * width)
        step, column = divmod(rest, width)
        steps = {n: Fraction(f) / width for n, f in terms.items() if DIRECTION.get(n) == "step"}
        columns = {n: Fraction(f) / (spec.k * spec.b_bytes) for n, f in terms.items() if n == "col"}
        known = len(steps) + len(columns) == len(terms) and not column % spec.b_bytes
        if not known or any(f.denominator > 1 for f in (*steps.values(), *columns.values())):
            return None
        at = panel * spec.panel + column // spec.b_bytes
        return Place("B", [
            (Direction("step", width), dict(steps), step),
            (Direction("column", spec.b_bytes), dict(columns), at),
        ])  # fmt: skip

    def argument(self, address: Value | None) -> str:
        """The word of the argument struct at an address, or ""."""
        if address is None or address.terms != {"args": 1}:
            return ""
        names = [name for name, offset in ARGUMENTS.items() if offset == address.constant]
        return names[0] if names else ""

    def loaded(self, address: Value | None) -> Value | None:
        """What a word loaded from there is: an argument, or an entry of a batch's arrays."""
        name = self.argument(address)
        if name:
            kinds = {"a": "A", "b": "B", "c": "C"}
            if self.spec.batch == "address":
                kinds |= {"a": "a_addresses", "b": "b_addresses"}
            return Value(0, {kinds.get(name, name): 1})
        place = self.find(address)
        if place is None or place.indexes[0][0].name != "index":
            return None
        which = place.matrix[0]
        return Value(0, {f"{which}_offset" if "offsets" in place.matrix else which.upper(): 1})

    def constant(self, address: Value | None, size: int) -> bytes | None:
        """The bytes of a constant, or None where an address is none."""
        if address is None or address.terms != {"constants": 1}:
            return None
        return self.data[int(address.constant) :][:size]


def shortest(number: float, size: int) -> str:
    """The shortest decimal that gives the same float of `size` bytes.

    >>> shortest(0.10000000149011612, 4)
    '0.1'
    """
    if size == 8 or number != number:
        return f"{number:g}" if number == float(f"{number:g}") else repr(number)
    for digits in range(1, 10):
        text = f"{number:.{digits}g}"
        try:
            if struct.unpack("<f", struct.pack("<f", float(text)))[0] == number:
                return text
        except OverflowError:  # rounded up beyond the largest float
            continue
    return repr(number)
