"""Kernels that move a matrix to another layout: rows to rows, transposed, or into panels.

One call moves two axes (`Moved`); which of the emitters it takes follows from where neighbours lie
in either layout. Tensors with more axes are loops around such calls
(`jitgen.primitives.nest.nest.Nest.relayout`). Not here: how each emitter does it.
"""

from __future__ import annotations

from dataclasses import dataclass

from jitgen.emit.routine import Routine
from jitgen.kernels.elementwise import emit_map
from jitgen.kernels.layout import emit_transpose
from jitgen.kernels.pack import emit_packer
from jitgen.target import Target


@dataclass(frozen=True)
class Moved:
    """`rows` times `columns` elements. In the source, neighbours in a row lie together and rows
    `lda` elements apart; in the result neighbours in a row lie together too and rows `ldc` apart,
    or, if it is `transposed`, neighbours in a column, and columns `ldc` apart. With a `panel` the
    result is panels of so many elements (columns, or rows if it is transposed), the last one filled
    up with zeros, and `ldc` is not looked at."""

    rows: int
    columns: int
    lda: int
    ldc: int
    transposed: bool = False
    panel: int = 0


def emit_relayout(moved: Moved, dtype: str, target: Target) -> Routine:
    """The routine that moves the matrix at word a to word c; word count is 1. Raises ValueError
    that names argument, value and rule."""
    m = moved
    if m.panel:
        k, n = (m.columns, m.rows) if m.transposed else (m.rows, m.columns)
        return emit_packer(k, n, m.lda, 0, m.panel, dtype, m.transposed, target)
    if m.transposed:
        return emit_transpose(m.rows, m.columns, dtype, target, lda=m.lda, ldc=m.ldc)
    return emit_map("copy", m.rows, m.columns, dtype, target, ld={"a": m.lda, "c": m.ldc})
