"""A reader of listings: executes the meanings of a kernel's instructions on NumPy arrays.

It knows nothing of instructions, registers' numbers or addresses: matrices are indexed as the
sentences say. Not here: what is tested with it (`test_meaning`), and bit masks (`relu_mask`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import numpy as np

import jitgen
from jitgen.gemm.sections import PackB
from jitgen.inspect.meaning import explain

FLOATS: dict[str, Any] = {"f32": np.float32, "f64": np.float64}
INTS: dict[Any, Any] = {np.float32: np.uint32, np.float64: np.uint64}
#: A vector register, and an element or some of a matrix, as meanings name them
NAME = r"acc'*\[\d+,\d+\]|\b[ab]\[\d+\]|\b[ab]\b(?!\[)|\b[tv]\d+|\btail\b|\bchosen\b|\ball\b"
PLACE = r"\b(?:A|B|C|packed|bias|bias_row|residual)\[[^\]]*\]"


class Vector:
    """A vector register's lanes; bits are those of the element type."""

    def __init__(self, lanes: Any) -> None:
        self.lanes = lanes

    def _with(self, other: Any, f: Callable[[Any, Any], Any]) -> Vector:
        values = other.lanes if isinstance(other, Vector) else self.lanes.dtype.type(other)
        return Vector(f(self.lanes, values).astype(self.lanes.dtype))

    def _bits(self, other: Any, f: Callable[[Any, Any], Any]) -> Vector:
        kind = np.uint32 if self.lanes.dtype == np.float32 else np.uint64
        values = other.lanes.view(kind) if isinstance(other, Vector) else kind(other)
        return Vector(f(self.lanes.view(kind), values).astype(kind).view(self.lanes.dtype))

    def __add__(self, other: Any) -> Vector:
        return self._with(other, np.add)

    def __sub__(self, other: Any) -> Vector:
        return self._with(other, np.subtract)

    def __mul__(self, other: Any) -> Vector:
        return self._with(other, np.multiply)

    def __truediv__(self, other: Any) -> Vector:
        return self._with(other, np.divide)

    def __and__(self, other: Any) -> Vector:
        return self._bits(other, np.bitwise_and)

    def __or__(self, other: Any) -> Vector:
        return self._bits(other, np.bitwise_or)

    def __lshift__(self, bits: int) -> Vector:
        return self._bits(bits, np.left_shift)


class Reader:
    """Executes the meanings of one kernel on arrays as they are multiplied: A and B lists of m x k
    and k x n (with the columns of whole panels), the others by name."""

    def __init__(self, kernel: jitgen.Kernel, arrays: dict[str, Any], count: int) -> None:
        self.lines = list(explain(kernel, list(kernel.program.lines())))
        machine = kernel.target.machine(kernel.spec.dtype, kernel.spec.n)
        self.bytes = machine.vector_bits // 8
        self.sve = kernel.target.family == "sve"
        self.lanes = machine.lanes
        self.dtype = FLOATS[kernel.spec.dtype]
        packed = np.full((kernel.spec.k, kernel.spec.n + 600), np.nan, self.dtype)
        self.arrays = {**arrays, "packed": packed}
        #: general-purpose registers by role, without those that hold addresses
        self.numbers: dict[str, Any] = {"count": count}
        self.vectors: dict[str, Vector] = {}
        self.k = self.next_k = 0
        self.section: Hashable = None

    def run(self) -> None:
        """From the first line to the return with result 0."""
        labels = {x.line.text: i for i, x in enumerate(self.lines) if x.line.kind == "label"}
        backs = {x.loop.end: x.loop for x in self.lines if x.loop is not None}
        at = 0
        while self.lines[at].meaning != "return" or self.lines[at].loop is not None:
            line = self.lines[at]
            if line.line.kind == "section":
                self.section = line.line.section
            elif line.loop is not None:
                self.k = self.next_k = 0
            elif line.line.kind == "instruction":
                jump = re.fullmatch(r"(?:if (.*), )?go to (L\d+)", line.meaning)
                again = re.fullmatch(r"again while (.*)", line.meaning)
                if jump and (not jump[1] or self._number(jump[1].replace(" = ", " == "))):
                    at = labels[jump[2]]
                elif again and self._number(again[1]):
                    by = backs[at].by
                    self.k = self.next_k if by is None else self.k + by
                    at = backs[at].begin
                elif not jump and not again:
                    self._execute(line.meaning)
            at += 1
        assert self.numbers["result"] == 0

    # ---- statements -------------------------------------------------------------------------

    def _execute(self, text: str) -> None:
        if text.startswith(("compare", "save", "restore", "prefetch", "padding", "clear the")):
            return
        match = re.fullmatch(r"(.*?) ([-+*/|]?)= (.*)", text)
        assert match, text
        target, sign, what = match.groups()
        pointer = re.fullmatch(r"&packed\[(.*), .*\]", what)
        if pointer:  # where the next pass writes
            self.next_k = eval(_compiled(pointer[1]), {}, {"k": self.k})
        if re.fullmatch(PLACE, target):
            self._store(target, what)
        elif target.startswith("upper half of "):
            lanes = self.vectors[target.split()[-1]].lanes
            half = re.fullmatch(r"lower half of (.*)", what)  # 64 bits, of 128; others 128, of 256
            values = self.vectors[half[1]].lanes[: self.lanes // 2] if half else self._place(what)
            lanes[len(values) : 2 * len(values)] = values
        elif not re.fullmatch(NAME, target) or re.match(r"args|&", what):
            self._scalar(target, f"{target} {sign} ({what})" if sign else what)
        elif sign:
            self.vectors[target] = self._vector(f"{target} {sign} ({what})")
        elif what == "its upper half":
            lanes = self.vectors[target].lanes
            self.vectors[target] = self._whole(lanes[len(lanes) // 2 :])
        else:
            self.vectors[target] = self._vector(what)

    def _scalar(self, target: str, what: str) -> None:
        if re.fullmatch(PLACE, what):
            self.numbers[target] = self._place(what)[0]
            return
        what = what.replace("args.count", "count").replace(", else", " else")
        what = what.replace("bytes of a vector register", str(self.bytes))
        try:
            self.numbers[target] = self._number(what)
        except (NameError, SyntaxError):  # an address: what lies there is named where it is used
            self.numbers.pop(target, None)

    def _number(self, text: str) -> Any:
        return eval(_compiled(text), {}, self.numbers)

    def _store(self, place: str, what: str) -> None:
        part = self._place(place)
        element = re.fullmatch(r"element (\d) of (.*)", what)
        if what in self.numbers:
            part[:] = self.numbers[what]
        elif element:
            part[:] = self.vectors[element[2]].lanes[int(element[1])]
        else:
            part[:] = self.vectors[what].lanes[: len(part)]

    # ---- values -----------------------------------------------------------------------------

    def _place(self, place: str) -> Any:
        """The part of an array that a place names, as a view of one dimension."""
        name, inside = place[:-1].split("[")
        array = self.arrays[name]
        if name in ("A", "B"):
            array = array[self.numbers["first" if isinstance(self.section, PackB) else "index"]]
        known = {"row": self.numbers.get("row"), "col": self.numbers.get("col"), "k": self.k,
                 "block": self.numbers.get("k")}  # fmt: skip
        slices = []
        for index, limit in zip(inside.split(", "), array.shape, strict=True):
            span = re.fullmatch(r"(?:(.*)\+)?(\d+)\.\.(\d+)", index)
            base, first, last = (span[1] or "0", span[2], span[3]) if span else (index, 0, 0)
            begin = eval(_compiled(base), {}, known)
            assert 0 <= begin + int(first) <= begin + int(last) < limit, (place, begin, limit)
            slices.append(slice(begin + int(first), begin + int(last) + 1))
        part = array[tuple(slices)]
        if part.ndim == 1:
            return part
        return part[:, 0] if part.shape[1] == 1 else part[0]

    def _whole(self, values: Any) -> Vector:
        """A register with zeros behind the values."""
        lanes = np.zeros(self.lanes, self.dtype)
        lanes[: len(values)] = values
        return Vector(lanes)

    def _every(self, value: Any) -> Vector:
        """A register with the same in every lane: a number, or a bit pattern."""
        if isinstance(value, int) and value >= 1 << 30:
            value = INTS[self.dtype](value).view(self.dtype)
        return Vector(np.full(self.lanes, value, self.dtype))

    def _memory(self, place: str) -> Vector:
        """A memory operand; one element is for all lanes."""
        values = self._place(place)
        return self._every(values[0]) if len(values) == 1 else self._whole(values)

    def _vector(self, what: str) -> Vector:
        if re.fullmatch(r"(mask of )?the first \d+ lanes|all lanes", what):
            return Vector(np.zeros(0))  # places say how many elements
        if re.fullmatch(PLACE, what):
            return self._whole(self._place(what))
        if match := re.fullmatch(r"element (\d) of (.*)", what):
            return self._whole([self.vectors[match[2]].lanes[int(match[1])]])
        if match := re.fullmatch(rf"lane (\d) of ({NAME}), broadcast", what):
            return self._every(self.vectors[match[2]].lanes[int(match[1])])
        if match := re.fullmatch(r"(.*), broadcast", what):
            return self._every(self._place(match[1])[0])
        if match := re.fullmatch(r"(lower|upper) halves of (\w+) and (\w+), (.*)", what):
            return self._halves(*match.groups())
        if match := re.fullmatch(r"quarters (.), (.) of (\w+), then (.), (.) of (\w+)", what):
            i, j, a, k, m, b = match.groups()
            quarters = [self.vectors[name].lanes.reshape(4, -1) for name in (a, a, b, b)]
            numbers = map(int, (i, j, k, m))
            return Vector(np.concatenate([q[n] for q, n in zip(quarters, numbers, strict=True)]))
        if match := re.fullmatch(r"(.*) where (.*), else (.*)", what):
            chosen = self._vector(match[2]).lanes
            return Vector(
                np.where(chosen, self._vector(match[1]).lanes, self._vector(match[3]).lanes)
            )
        if match := re.fullmatch(r"(.*) < 0", what):  # the sign bit decides
            return Vector(np.signbit(self.vectors[match[1]].lanes))
        text = re.sub(
            rf"({PLACE})|(?:lane (\d) of )?({NAME})",
            lambda m: f"memory({m[1]!r})" if m[1] else f"vectors[{m[3]!r}]"
            if m[2] is None else f"every(vectors[{m[3]!r}].lanes[{m[2]}])",
            what.replace(", lane by lane", ""),
        )
        value = eval(_compiled(text), {
            "vectors": self.vectors, "memory": self._memory, "every": self._every, "inf": math.inf,
            "max": lambda a, b: a._with(b, np.maximum), "min": lambda a, b: a._with(b, np.minimum),
        })  # fmt: skip
        return value if isinstance(value, Vector) else self._every(value)

    def _halves(self, which: str, a: str, b: str, how: str) -> Vector:
        pieces = self.bytes // 16 if how.endswith("each 128 bits") else 1
        small = 16 // np.dtype(self.dtype).itemsize
        # registers of 128 bits have their values first, SVE's are whole
        width = small if how in ("joined", "in turn") and not self.sve else self.lanes // pieces
        pairs = []
        for at in range(0, pieces * width, width):
            begin = at if which == "lower" else at + width // 2
            x, y = (self.vectors[n].lanes[begin : begin + width // 2] for n in (a, b))
            in_turn = how.startswith("in turn")
            pairs.append(np.stack([x, y], 1).reshape(-1) if in_turn else np.append(x, y))
        return self._whole(np.concatenate(pairs))


@cache
def _compiled(text: str) -> Any:
    return compile(text.strip(), text, "eval")
