"""Kernels that transpose a matrix.

Called as BRGEMM kernels are (docs/abi.md). Not here: packing into panels (`jitgen.kernels.pack`).
"""

from __future__ import annotations

from jitgen.emit.copying import square_side
from jitgen.emit.frame import Frame
from jitgen.emit.routine import Operand, Routine, Writer, Written, emitter
from jitgen.emit.shapes import MATRIX_BYTES, check_rows
from jitgen.run.cache import CODE
from jitgen.target import ANY_WIDTH, Target
from jitgen.types import DTYPES

#: Source rows that are finished before the next are begun: their pages stay in the TLB, the part of
#: their lines that is not yet read stays in the second cache
BAND = 256
#: Bytes by which rows are prefetched ahead of a square: the hardware does not follow so many rows
AHEAD = 512
#: Side of the block that is copied by elements where there are no squares
ELEMENTS_SIDE = 4
#: Roles of the registers of `transpose_loops`
LOOP_ROLES = ("band", "end", "row", "column", "at", "corner", "to_corner", "product")


def emit_transpose(
    rows: int, columns: int, dtype: str, target: Target, *, lda: int | None = None,
    ldc: int | None = None,
) -> Routine:  # fmt: skip
    """The routine for c[j, i] = a[i, j]: a is rows x columns, c columns x rows, both row-major.

    Words a and c are addresses, `lda` and `ldc` leading dimensions in elements (default: without
    gaps). Large matrices fare best where both begin at a cache line. Raises ValueError that names
    argument, value and rule.
    """
    lda, ldc = columns if lda is None else lda, rows if ldc is None else ldc
    check_rows(rows, columns, dtype, lda)
    check_rows(columns, rows, dtype, ldc)
    if max(rows, columns) >= MATRIX_BYTES:
        raise ValueError(f"rows={rows}, columns={columns}: both must be less than {MATRIX_BYTES}")
    for name, leading in (("lda", lda), ("ldc", ldc)):
        if leading * DTYPES[dtype].size >= MATRIX_BYTES:
            raise ValueError(f"{name}={leading}: rows ({dtype}) lie 2 GiB or more apart")
    return _emit_transpose(rows, columns, dtype, target, lda, ldc)


@CODE.of
@emitter
def _emit_transpose(
    rows: int, columns: int, dtype: str, target: Target, lda: int, ldc: int
) -> Written:
    operands = {
        "source": Operand("a", "matrix", dtype), "to": Operand("c", "matrix, transposed", dtype),
    }  # fmt: skip
    machine = target.machine(dtype, ANY_WIDTH)
    writer = Writer(f"transpose {dtype} {rows}x{columns}", target, machine, operands)
    writer.take(*LOOP_ROLES)
    source, to = writer.frame["source"], writer.frame["to"]
    writer.begin()
    transpose_loops(writer.frame, rows, columns, source, to, lda, ldc)
    return writer.end()


def transpose_loops(
    frame: Frame, rows: int, columns: int, source: int, to: int, lda: int, ldc: int
) -> None:
    """Emit to[j * ldc + i] = source[i * lda + j] for i < rows, j < columns (in elements).

    `source` and `to` are registers and stay as they are; those of LOOP_ROLES are clobbered, and all
    vector registers. The last block of a row or column may lie over the one before it.
    """
    machine = frame.machine
    element = machine.element
    # what lies in a block must be within reach of its corner
    reach = (MATRIX_BYTES - 1 - AHEAD) // (max(lda, ldc) * element) + 1
    side = square_side(machine, min(rows, reach), min(columns, reach))
    most = ELEMENTS_SIDE if reach >= ELEMENTS_SIDE else 1  # it divides BAND
    height, width = side or min(rows, most), side or min(columns, most)
    band, end, row, column, at, corner, to_corner, product = (frame[role] for role in LOOP_ROLES)
    last = -(-rows // height) * height
    each_band, each_column, each_row = (machine.program.new_label() for _ in range(3))
    machine.set(band, 0)
    machine.place(each_band)
    machine.offset(product, band, BAND)
    machine.minimum(end, product, last)
    machine.set(column, 0)
    machine.place(each_column)
    machine.program.section(f"blocks of {height} x {width} below each other")
    machine.move(row, band)
    machine.program.align(machine.loop_alignment)
    machine.place(each_row)
    machine.minimum(at, column, columns - width)
    machine.sum(corner, source, at, element.bit_length() - 1)
    machine.multiply(product, at, ldc * element)
    machine.sum(to_corner, to, product)
    machine.minimum(at, row, rows - height)
    machine.sum(to_corner, to_corner, at, element.bit_length() - 1)
    machine.multiply(product, at, lda * element)
    machine.sum(corner, corner, product)
    if side:
        for i in range(height):
            machine.prefetch((corner, i * lda * element + AHEAD))
        machine.transpose(side, (to_corner, 0), ldc * element, (corner, 0), lda * element)
    else:
        for i in range(height):
            for j in range(width):
                place = (to_corner, (j * ldc + i) * element)
                machine.copy_element(place, (corner, (i * lda + j) * element), product)
    machine.advance(row, height)
    machine.jump_if_different(row, end, each_row)
    machine.advance(column, width)
    machine.jump_if_less(column, columns, each_column)
    machine.move(band, end)
    machine.jump_if_less(band, rows, each_band)
