"""Kernels that move a matrix to another layout: transposed, and from panels back to plain rows.

Called as BRGEMM kernels are (docs/abi.md). Not here: packing into panels (`jitgen.kernels.pack`).
"""

from __future__ import annotations

from jitgen.emit.copying import copy_rows, repeated, square_side
from jitgen.emit.frame import Frame
from jitgen.emit.shapes import MATRIX_BYTES, check_rows, check_shape
from jitgen.isa.machine import ELEMENTS
from jitgen.run.cache import CODE
from jitgen.target import ANY_WIDTH, Target

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
) -> bytes:  # fmt: skip
    """Machine code for c[j, i] = a[i, j]: a is rows x columns, c columns x rows, both row-major.

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
        if leading * ELEMENTS[dtype][2] >= MATRIX_BYTES:
            raise ValueError(f"{name}={leading}: rows ({dtype}) lie 2 GiB or more apart")
    return _emit_transpose(rows, columns, dtype, target, lda, ldc)


@CODE.of
def _emit_transpose(
    rows: int, columns: int, dtype: str, target: Target, lda: int, ldc: int
) -> bytes:
    machine = target.machine(dtype, ANY_WIDTH)
    frame = Frame(machine)
    source, to = frame.take("source"), frame.take("to")
    for role in LOOP_ROLES:
        frame.take(role)
    machine.program.section(f"transpose {rows} x {columns}")
    machine.begin(frame.used())
    frame.load_argument("source", "a")
    frame.load_argument("to", "c")
    transpose_loops(frame, rows, columns, source, to, lda, ldc)
    machine.end()
    return machine.program.encode()


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


@CODE.of
def emit_unpacker(
    k: int, n: int, leading: int, stride: int, panel: int, dtype: str, trans: bool, target: Target
) -> bytes:
    """Machine code that copies `count` matrices in panels, at `a`, to plain ones, at `c`.

    The inverse of `jitgen.kernels.pack.emit_packer`: panels are [ceil(n / panel)][k][panel], a
    matrix is k x n or, with `trans`, n x k; rows are `leading` elements apart and matrices
    `stride`. Columns of panels beyond n are not read. `panel` is a multiple of the vector length.
    """
    check_shape(*((n, k) if trans else (k, n)), dtype, leading)
    machine = target.machine(dtype, ANY_WIDTH)
    if panel < 1 or panel % machine.lanes:
        raise ValueError(f"panel={panel} is no multiple of {machine.lanes}, the {dtype} lanes")
    if stride < 0 or stride * machine.element >= MATRIX_BYTES:
        raise ValueError(f"stride={stride}: matrices lie 0 to 2 GiB apart")
    frame = Frame(machine)
    roles = ("source", "base", "to", "left", "panels")
    source, base, to, left, panels = (frame.take(role) for role in roles)
    for role in LOOP_ROLES if trans else ("step", "constants"):
        frame.take(role)
    element, lanes = machine.element, machine.lanes
    row = panel * element
    machine.program.section(f"unpack {k} x {n} from panels of {panel} columns")
    machine.begin(frame.used())
    if not trans and n % lanes:
        machine.use_constants(frame["constants"])
        machine.set_tail(n % lanes, machine.vectors - 1)
    frame.load_argument("source", "a")
    frame.load_argument("base", "c")
    frame.load_argument("left", "count")
    again = machine.program.new_label()
    machine.place(again)
    machine.move(to, base)
    for columns, repeat in ((panel, n // panel), (n % panel, 1)):
        if not columns or not repeat:
            continue
        machine.program.section(f"{repeat} panels of {columns} columns")
        with repeated(machine, panels, repeat):
            if trans:
                transpose_loops(frame, k, columns, source, to, panel, leading)
                machine.advance(source, k * row)
                machine.advance(to, panel * leading * element)
            else:
                parts = [(j * element, min(lanes, columns - j)) for j in range(0, columns, lanes)]
                copy_rows(machine, parts, k, source, to, row, leading * element, frame["step"])
                machine.advance(to, row - k * leading * element)
    machine.advance(base, stride * element)
    machine.count_down(left, again)
    machine.end()
    return machine.program.encode()
