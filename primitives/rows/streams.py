"""The streams of functions of rows: blocks of rows among threads, and sums over rows.

Gradients of scale and shift are sums over all rows. Each block of rows has sums of its own, and the
blocks are those of the shape, whatever the threads; another part adds them up. So no result depends
on the number of threads. Not here: arrays (`jitgen.primitives.layers.normalisation`), the functions
(`jitgen.kernels.row_functions`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jitgen.kernels.elementwise import emit_column_sums, emit_map
from jitgen.kernels.row_functions import ROW_FUNCTIONS
from jitgen.primitives.nest.limits import threads_that_pay
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.nest import Nest
from jitgen.primitives.nest.run import Run
from jitgen.primitives.nest.stream import Made, Part
from jitgen.primitives.nest.tensor import Access, Tensor
from jitgen.run.cache import STREAMS
from jitgen.target import Target

#: Elements of a call, about: enough to make its cost vanish, few enough to deal them out evenly
ELEMENTS = 1 << 14
#: Sums over rows: of so many blocks at most, of so many rows at least
MOST_SUMS, LEAST_ROWS = 32, 16
#: Columns of a call that adds up sums
COLUMNS = 256
_LAYOUT = {"row": "m n", "column": "n", "value": "m"}
#: Elements from a row to the next, by tensor, of those with gaps
Strides = tuple[tuple[str, tuple[int]], ...]


@dataclass(frozen=True)
class Rows:
    """`batch` rows of `columns` elements; eps is that of norms."""

    batch: int
    columns: int
    dtype: str
    threads: int
    target: Target
    eps: float = 0.0

    @property
    def used(self) -> int:
        """Threads that pay."""
        return min(self.batch, threads_that_pay("rows", self.threads, self.batch * self.columns))


@STREAMS.of
def row_stream(
    at: Rows, function: str, given: tuple[str, ...] = (), strides: Strides = ()
) -> Run:
    """A function of `ROW_FUNCTIONS` on all rows. Tensors: its operands by name, the optional ones
    that are `given`."""
    operands = ROW_FUNCTIONS[function].operands
    names = [name for name, o in operands.items() if name in given or not o.optional]
    sizes: dict[str, Any] = {"m": at.batch, "n": at.columns}
    gaps = dict(strides)
    places: dict[str, Access] = {}
    for name in names:
        layout = _LAYOUT[operands[name].place]
        tensor = Tensor(
            name, layout, at.dtype, strides={"m": gaps[name][0]} if name in gaps else None,
            **{axis: sizes[axis] for axis in layout.split()},
        )  # fmt: skip
        places[name] = tensor.at(m="m") if "m" in layout else tensor.at()
    sums = [name for name in ("dscale", "dshift") if name in names]
    rows = _rows_of_sums(at) if sums else _rows_of_call(at)
    nest = Nest("M", {"m": Loop(at.batch, (rows,))}, at.dtype, at.target)
    blocks = -(-at.batch // rows)
    scratch, before, after = {}, [], []
    for name in sums:
        # one block: its sums are the result
        apart = Tensor(f"sums of {name}", "b n", at.dtype, b=blocks, n=at.columns)
        if blocks > 1:
            scratch[apart.name] = apart.elements
            places[name] = apart.at(b=("m", np.arange(at.batch) // rows))
            after.append(_added_up(at, apart, name))
        before.append(_zeros(at, nest, places[name]))
    part = nest.rows(function, places, eps=at.eps, before=tuple(before))
    return Run([part, *after], names, at.used, at.target, at.dtype, scratch)


def _rows_of_call(at: Rows) -> int:
    """Rows of a call: the calls of all threads are alike."""
    calls = max(1, at.batch * at.columns // ELEMENTS)
    return -(-at.batch // (-(-calls // at.used) * at.used))


def _rows_of_sums(at: Rows) -> int:
    """Rows of a block that has sums of its own, whatever the threads."""
    least = max(LEAST_ROWS, ELEMENTS // 2 // at.columns)
    return min(at.batch, max(least, -(-at.batch // MOST_SUMS)))


def _zeros(at: Rows, nest: Nest, sums: Access) -> Part:
    """A block's sums begin with zeros."""

    def code(sizes: dict[str, int], first: bool, last: bool) -> Made:
        return emit_map("zero", 1, at.columns, at.dtype, at.target), {}

    return nest.call("zeros", code, {"c": sums})


def _added_up(at: Rows, sums: Tensor, name: str) -> Part:
    """The sums of all blocks."""

    def code(sizes: dict[str, int], first: bool, last: bool) -> Made:
        blocks = sums.sizes["b"]
        made = emit_column_sums(blocks, sizes["n"], at.dtype, at.target, lda=at.columns)
        return made, {}

    nest = Nest("N", {"n": Loop(at.columns, (min(at.columns, COLUMNS),))}, at.dtype, at.target)
    total = Tensor(name, "n", at.dtype, n=at.columns)
    return nest.call(f"{name} of all rows", code, {"a": sums.at(n="n"), "c": total.at(n="n")})
