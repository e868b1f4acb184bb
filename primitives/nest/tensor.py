"""Tensors as nests see them: axes in a layout, and where an index of each axis lies.

A layout names axes from the outermost in; "k/16" are blocks of 16 along k, and a later "k" what is
inside a block (or, as "k/2", blocks in it):

    "n c h w", "n h w c"     images
    "n/16 k n"               a matrix k x n in panels of 16 columns, the last one padded
    "k/2 n k"                pairs along k, interleaved
    "u/16 t n g u"           gates in panels of 16 hidden units

Not here: what is done at the places (`jitgen.primitives.nest.nest`).

>>> w = Tensor("w", "k/16 c k", "f32", k=40, c=3)
>>> w.elements, w.strides
(144, {'k': 48, 'c': 16})
>>> w.offset(k=17, c=2)
81
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jitgen import doors
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.stream import FAR, Ref
from jitgen.primitives.nest.tables import check_table
from jitgen.run.cache import PLANS
from jitgen.types import DTYPES

#: A part of a position along an axis: a number, a loop, a loop times a step, or a number for each
#: position of a loop
Term = int | str | tuple[str, "int | np.ndarray"]
#: A position along an axis: a part, or the sum of several
Index = Term | list[Term]


class Tensor:
    """A tensor of `dtype` ("f32" ..., or bytes of an element) with an extent for each axis of
    `layout`. `own`: each thread has one for itself. `strides`: elements from one index of an axis
    to the next where they are not those of a tensor without gaps (axes without blocks only).

    Raises TypeError or ValueError that names argument, value and rule.
    """

    def __init__(
        self, name: str, layout: str, dtype: str | int, *, own: bool = False,
        strides: Mapping[str, int] | None = None, **sizes: int,
    ) -> None:  # fmt: skip
        self.name, self.layout = doors.text("name", name), doors.text("layout", layout)
        self.own = doors.flag("own", own)
        self.sizes = {
            # a check takes half a microsecond
            axis: x if type(x) is int and 0 <= x <= FAR else doors.size(axis, x, 0, FAR)
            for axis, x in sizes.items()
        }
        self.element = _element(dtype)
        #: the type's name, "" where only its bytes are known
        self.dtype = str.__str__(dtype) if isinstance(dtype, str) else ""
        tokens = _tokens(layout)
        #: axis -> (elements of the axis in a block, elements of the tensor from block to block)
        self.places: dict[str, list[tuple[int, int]]] = {axis: [] for axis, _, _ in tokens}
        if sizes.keys() != self.places.keys():
            raise ValueError(
                f"{name}: layout={doors.shown(layout)} has axes {' '.join(self.places)}; sizes are "
                f"given for {' '.join(sizes)}"
            )
        step = 1
        for axis, block, above in reversed(tokens):
            self.places[axis].insert(0, (block, step))
            step *= above // block if above else -(-self.sizes[axis] // block)
        #: elements of one thread's, with padding and gaps
        self.elements = step
        for axis, stride in doors.mapping("strides", {} if strides is None else strides).items():
            if self.blocks(axis):
                raise ValueError(f"{name}: strides[{axis!r}]: the axis is in blocks")
            self.places[axis] = [(1, doors.size(f"strides[{axis!r}]", stride, 0, FAR))]
            self.elements = max(self.elements, self.sizes[axis] * stride)
        if strides:  # as far as the last element of all axes
            last = sum(
                (max(size, 1) - 1) // self.places[axis][0][0] * self.places[axis][0][1]
                for axis, size in self.sizes.items()
            )
            self.elements = max(self.elements, 1 + last)

    def blocks(self, axis: str) -> int:
        """Elements of the largest block of an axis, 0 where it is in none."""
        block = self._places(axis)[0][0]
        return block if block > 1 else 0

    def run(self, axis: str) -> int:
        """Elements of the smallest block of an axis, which lie a `stride` apart; 0: it is in
        none."""
        places = self._places(axis)
        return places[-2][0] if len(places) > 1 else 0

    @property
    def strides(self) -> dict[str, int]:
        """Elements from one index of an axis, or from one of its largest blocks, to the next."""
        return {axis: places[0][1] for axis, places in self.places.items()}

    def stride(self, axis: str) -> int:
        """Elements from one index of an axis to the next, within its blocks."""
        return self._places(axis)[-1][1]

    @property
    def inner(self) -> str:
        """The axis along which neighbours lie together."""
        return self.layout.split()[-1]

    def rank(self, axis: str) -> int:
        """Where an axis (what is inside its blocks) stands in the layout."""
        self._places(axis)
        return self.layout.split().index(axis)

    def offset(self, **index: int) -> int:
        """Elements to an index."""
        return sum(
            int(self._place(axis, np.int64(doors.size(axis, at, 0, self.sizes.get(axis, FAR)))))
            for axis, at in index.items()
        )

    def _place(self, axis: str, at: np.ndarray | np.int64) -> np.ndarray | np.int64:
        """Elements to indices of an axis."""
        above, total = None, np.zeros_like(at)
        for block, step in self._places(axis):
            total += (at if above is None else at % above) // block * step
            above = block
        return total

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a NumPy array that holds it: an axis for each word of the layout."""
        return tuple(
            above // block if above else -(-self.sizes[axis] // block)
            for axis, block, above in _tokens(self.layout)
        )

    @property
    def steps(self) -> tuple[int, ...]:
        """Elements from one index to the next along each axis of such an array."""
        taken = dict.fromkeys(self.places, 0)
        found = []
        for axis, _, _ in _tokens(self.layout):
            found.append(self.places[axis][taken[axis]][1])
            taken[axis] += 1
        return tuple(found)

    def at(self, **index: Index) -> Access:
        """The place of an index of each axis (0 where none is given)."""
        for axis in index:
            self._places(axis)
        return Access(self, {
            axis: [_term(axis, term) for term in (x if isinstance(x, list) else [x])]
            for axis, x in index.items()
        })  # fmt: skip

    def like(self, name: str, layout: str) -> Tensor:
        """Another tensor of these axes, without gaps."""
        sizes: dict[str, Any] = self.sizes
        return Tensor(name, layout, self.dtype or self.element, own=self.own, **sizes)

    def merged(self, *axes: str) -> Tensor | None:
        """The same elements with all indices of these axes, outermost first, along the last one;
        the others keep one index. None where steps along them are not even: there are gaps, or
        blocks."""
        if any(map(self.blocks, axes)):
            return None
        sizes: dict[str, Any] = dict(self.sizes)
        strides = self.strides
        extent, stride = 1, strides[axes[-1]]
        for axis in reversed(axes):
            if extent > 1 < sizes[axis] and strides[axis] != extent * stride:
                return None
            if extent == 1 < sizes[axis]:
                stride = strides[axis]
            extent *= sizes[axis]
            sizes[axis] = 1
        if axes[-1] == self.inner and stride != strides[axes[-1]]:
            return None  # neighbours along the last axis lie together
        sizes[axes[-1]], strides[axes[-1]] = extent, stride
        strides = {axis: step for axis, step in strides.items() if not self.blocks(axis)}
        return Tensor(
            self.name, self.layout, self.dtype or self.element, own=self.own, strides=strides,
            **sizes,
        )  # fmt: skip

    def _places(self, axis: str) -> list[tuple[int, int]]:
        places = self.places.get(axis if type(axis) is str else doors.text("axis", axis))
        if places is None:
            raise ValueError(
                f"axis={doors.shown(axis)}: {self.name} has axes {' '.join(self.places)}"
            )
        return places

    def __repr__(self) -> str:
        sizes = ", ".join(f"{axis}={size}" for axis, size in self.sizes.items())
        return f"<Tensor {self.name} {self.layout!r} {sizes}{' own' * self.own}>"


@dataclass(frozen=True)
class Access:
    """A place in a tensor that depends on loops: for each axis the parts of its index."""

    tensor: Tensor
    index: Mapping[str, list[Term]]

    def axis(self, loop: str) -> tuple[str, int] | None:
        """The axis that a loop goes along, and the step it makes there; None if it goes along none
        (or by a table)."""
        for axis, terms in self.index.items():
            for name, step in _steps(terms):
                if name == loop and isinstance(step, int):
                    return axis, step
        return None

    def also(self, **index: Index) -> Access:
        """The place with further parts of its index."""
        more = dict(self.index)
        for axis, terms in self.tensor.at(**index).index.items():
            more[axis] = [*more.get(axis, []), *terms]
        return Access(self.tensor, more)

    def without(self, loop: str) -> Access:
        """The place without the parts of its index that depend on a loop."""
        return Access(self.tensor, {
            axis: [term for term in terms if all(name != loop for name, _ in _steps([term]))]
            for axis, terms in self.index.items()
        })  # fmt: skip

    def steps(self, axis: str) -> dict[str, int]:
        """The loops along an axis, and the step that each makes there (by a table: the least)."""
        return {
            loop: at if isinstance(at, int) else min(np.diff(np.unique(at)).tolist(), default=0)
            for loop, at in _steps(self.index.get(axis, []))
        }

    def moves(self, loop: str) -> bool:
        """Whether the place depends on a loop."""
        return any(name == loop for terms in self.index.values() for name, _ in _steps(terms))

    def ref(self, loops: Mapping[str, Loop], exact: bool = False) -> Ref:
        """The place in numbers. Raises ValueError for a loop that is missing, and an index that
        some position of the loops takes beyond its axis; unless `exact`, a table may also point
        behind the last one, where a call reads nothing."""
        t = self.tensor
        start = 0
        steps: dict[str, int] = {}
        tables: dict[str, np.ndarray] = {}
        for axis, terms in self.index.items():
            first = sum([term for term in terms if isinstance(term, int)])
            moving: list[tuple[str, Any]] = list(_steps(terms))
            self._check(axis, first, moving, loops, exact)
            block, stride = t.places[axis][0]
            straight = all(isinstance(step, int) for _, step in moving)
            if straight and block > 1:
                starts = [first, *(step * loops[name].blocks[-1] for name, step in moving)]
                straight = all(at % block == 0 for at in starts)
            if straight:
                start += first // block * stride
                for name, each in moving:
                    steps[name] = steps.get(name, 0) + each * stride // block
                continue
            if len(moving) > 1 and block > 1:
                raise ValueError(f"{t.name}: several loops along {axis}, which lies in blocks of "
                                 f"{block}; their steps are no multiples")  # fmt: skip
            start += int(t._place(axis, np.int64(first))) if not moving or block == 1 else 0
            for name, step in moving:
                at = np.arange(loops[name].extent) * step if isinstance(step, int) else step
                place = np.asarray(t._place(axis, at + (first if block > 1 else 0)))
                tables[name] = tables[name] + place if name in tables else place
        own = t.elements if t.own else 0
        return Ref(t.name, steps, t.element, own, start, tables, t.elements)

    def _check(
        self, axis: str, first: int, moving: list[tuple[str, Any]], loops: Mapping[str, Loop],
        exact: bool,
    ) -> None:  # fmt: skip
        """Raises ValueError as `ref` does."""
        low = high = first
        for name, step in moving:
            if name not in loops:
                raise ValueError(
                    f"{self.tensor.name}: its axis {axis} goes along loop {name!r}; the nest has "
                    f"loops {' '.join(loops)}"
                )
            if isinstance(step, int):
                last = (loops[name].extent - 1) * step
                low, high = (low + last, high) if last < 0 else (low, high + last)
                continue
            check_table(f"{self.tensor.name}: table along {axis}", step, loops[name].extent)
            if len(step):
                low, high = low + int(step.min()), high + int(step.max())
        behind = not exact and any(not isinstance(step, int) for _, step in moving)
        if low < 0 or high >= max(self.tensor.sizes[axis], 1) + behind:
            raise ValueError(
                f"{self.tensor.name}: the loops go from {low} to {high} along axis {axis}, which "
                f"has {self.tensor.sizes[axis]}"
            )


def _element(dtype: str | int) -> int:
    """Bytes of an element."""
    if isinstance(dtype, str):
        return DTYPES[doors.one_of("dtype", dtype, DTYPES)].size
    element = doors.integer("dtype", dtype)
    if element not in (1, 2, 4, 8):
        raise ValueError(f"dtype={doors.shown(dtype)} is neither a type nor 1, 2, 4 or 8 bytes")
    return element


def _term(axis: str, term: Any) -> Term:
    """A part of an index, checked."""
    if type(term) is str or (type(term) is int and -FAR <= term <= FAR):
        return term
    if isinstance(term, str):
        return doors.text(axis, term)
    if not isinstance(term, tuple):
        return doors.size(axis, term, -FAR, FAR)
    loop, step = doors.items(axis, term, 2, " of a loop and a step")
    if isinstance(step, np.ndarray):
        check_table(f"{axis}: numbers of loop {doors.shown(loop)}", step)
        return doors.text(f"{axis}: loop", loop), step.astype(np.int64)
    return doors.text(f"{axis}: loop", loop), doors.size(f"{axis}: step", step, -FAR, FAR)


def _steps(terms: list[Term]) -> Iterator[tuple[str, int | np.ndarray]]:
    for term in terms:
        if isinstance(term, str):
            yield term, 1
        elif isinstance(term, tuple):
            yield term


@PLANS.of
def _tokens(layout: str) -> tuple[tuple[str, int, int], ...]:
    """Axis, elements of the axis in one step of the token, and in one of the token of that axis
    before it (0: none is)."""
    tokens, seen = [], dict[str, int]()
    for word in doors.text("layout", layout).split():
        if not re.fullmatch(r"[a-z_]+(/[1-9][0-9]*)?", word):
            raise ValueError(f"layout={doors.shown(layout)}: axes, or axis/block, not {word!r}")
        axis, _, block = word.partition("/")
        tokens.append((axis, int(block or 1), seen.get(axis, 0)))
        seen[axis] = int(block or 1)
    if not tokens:
        raise ValueError(f"layout={doors.shown(layout)} has no axes")
    for axis, last in seen.items():
        blocks = [block for name, block, _ in tokens if name == axis]
        if last != 1 or any(a % b or a == b for a, b in itertools.pairwise(blocks)):
            raise ValueError(
                f"layout={doors.shown(layout)}: blocks of {axis} each hold whole ones of the next, "
                f"and {axis} by itself comes last"
            )
    return tuple(tokens)
