"""Batches by lists: which matrices a call sums, for each position of a loop.

Lists are as sparse matrices have them: that of position r begins at pointers[r] and ends before
pointers[r + 1] (SciPy's `indptr`). A place says by a table where each lies. Not here: batches whose
matrices are evenly apart (`jitgen.primitives.nest.nest.Nest.gemm`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jitgen import doors
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.tables import check_table
from jitgen.primitives.nest.tensor import Access, Tensor

#: Bytes of an offset in the argument struct's arrays
OFFSET = 8
#: Products of all lists together, at most: their offsets are tables in memory
MOST_PRODUCTS = 1 << 28


@dataclass(frozen=True)
class Lists:
    """The batches of a product, by position of `loop`: lists of positions of `name`."""

    name: str
    loop: str
    pointers: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Matrices of each position of the loop."""
        return np.diff(self.pointers)

    def offsets(self, access: Access, loops: Mapping[str, Loop]) -> tuple[Access, np.ndarray]:
        """Where the offsets of an operand's matrices lie, a tensor of its own, and what they are.
        Raises ValueError for a position that is beyond an axis."""
        total = int(self.pointers[-1])
        tensor = Tensor(f"{access.tensor.name} by {self.name}", "i", OFFSET, i=max(total, 1))
        values = np.zeros(tensor.elements, np.int64)
        if total:
            place = access.ref({**loops, self.name: Loop(total, (1,))}, exact=True)
            values += np.arange(total) * place.steps.get(self.name, 0)
            if self.name in place.table:
                values += place.table[self.name][:total]
        return tensor.at(i=(self.loop, self.pointers[:-1])), values


def make_lists(
    batch: Any, loops: Mapping[str, Loop], a: Access, b: Access, c: Access, sums: str
) -> Lists:
    """The argument `batch` of `Nest.gemm`, checked: name -> a loop, and pointers.

    Raises TypeError or ValueError that names argument, value and rule.
    """
    given = doors.mapping("batch", batch)
    if len(given) != 1:
        raise ValueError(f"batch={doors.shown(batch)} has {len(given)} names; a product has one")
    ((name, lists),) = given.items()
    what = f"batch[{doors.shown(name)}]"
    if doors.text("batch: name", name) in loops:
        raise ValueError(f"batch={doors.shown(batch)}: {name!r} is a loop of the nest; a batch is "
                         "none")  # fmt: skip
    loop, pointers = doors.items(what, lists, 2, " of a loop and pointers")
    doors.one_in(f"{what}: loop", loop, "loops", loops)
    extent, block = loops[loop].extent, loops[loop].blocks[-1]
    check_table(f"{what}: pointers", pointers, extent + 1)
    pointers = np.array(pointers[: extent + 1], np.int64)
    if block != 1:
        raise ValueError(f"{what}: a call has the list of one position of loop {loop!r}, whose "
                         f"blocks have {block}")  # fmt: skip
    if pointers[0] < 0 or (np.diff(pointers) < 0).any():
        raise ValueError(f"{what}: pointers={doors.shown(pointers)} must not be negative and not "
                         "go down")  # fmt: skip
    if pointers[-1] > MOST_PRODUCTS:
        raise ValueError(f"{what}: {pointers[-1]} products; there are {MOST_PRODUCTS} at most")
    for access in (a, b):
        for axis, terms in access.index.items():
            fixed = any(isinstance(term, int) and term for term in terms)
            if fixed and name in access.steps(axis) and access.tensor.blocks(axis):
                raise ValueError(f"{what}: {access.tensor!r} has {axis} in blocks, and its place a "
                                 "number beside the batch: add it to the table")  # fmt: skip
    if not (a.moves(name) or b.moves(name)):
        raise ValueError(f"{what}: neither {a.tensor!r} nor {b.tensor!r} has a place that depends "
                         f"on {name!r}")  # fmt: skip
    if extent > 1 and not c.moves(loop) and not c.tensor.own and loop not in sums:
        raise ValueError(f"{what}: c does not depend on loop {loop!r}; each of its calls would "
                         "overwrite c")  # fmt: skip
    return Lists(name, loop, pointers)
