"""Packing of B in panels as wide as a kernel's register tile, in emitted code.

A packed B is [ceil(n / panel)][k][panel]: each tile of columns reads one sequential stream. Columns
beyond n are zero. Not here: kernels that read panels (`jitgen.brgemm(..., packed_b=True)`).

>>> import numpy as np
>>> panel_shape(3, 10, 8)
(2, 3, 8)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jitgen import doors
from jitgen.emit.copying import copy_rows, repeated
from jitgen.emit.frame import ARGUMENTS
from jitgen.emit.routine import Operand, Routine, Writer, Written, emitter
from jitgen.emit.shapes import MATRIX_BYTES
from jitgen.gemm.kernel import Kernel
from jitgen.gemm.operands import address
from jitgen.kernels.layout import LOOP_ROLES, transpose_loops
from jitgen.run import cpu, loader, shared
from jitgen.run.cache import CODE
from jitgen.target import ANY_WIDTH, TARGETS, Target
from jitgen.types import NUMPY


def panel_shape(k: int, n: int, panel: int) -> tuple[int, int, int]:
    """Shape of a packed k x n matrix: panels, rows, columns of a panel."""
    return (-(-n // panel), k, panel)


def pack_b(
    b: np.ndarray, panel: int | Kernel, *, trans: bool = False, out: np.ndarray | None = None
) -> np.ndarray:
    """Pack B for a kernel with `packed_b`.

    b: (count, k, n) or (k, n), rows contiguous; with `trans` (count, n, k) or (n, k), which is
    transposed on the way. `panel` is the kernel, whose k, n and dtype b must have, or its panel
    width in columns, a multiple of the vector length. Returns (count, ceil(n / panel), k, panel),
    without count if b has none; `out` may give that array.

    Raises TypeError or ValueError that names argument, value and rule.
    """
    b = doors.view("b", b)
    dtype, trans = doors.floats("b", b), doors.flag("trans", trans)
    if b.ndim not in (2, 3) or 0 in b.shape[-2:]:
        raise ValueError(f"b has shape {b.shape}; it must be (count, k, n) or (k, n), none zero")
    batch = b if b.ndim == 3 else b[np.newaxis]
    rows, columns = batch.shape[1:]
    k, n = (columns, rows) if trans else (rows, columns)
    width, target = _width(panel, k, n, dtype, trans)
    if columns > 1 and batch.strides[2] != b.itemsize:
        raise ValueError(f"b has strides {b.strides}; its rows must be contiguous")
    leading = _elements(b, batch, 1, columns)
    stride = _elements(b, batch, 0, 0)
    panels = panel_shape(k, n, width)
    extent = max(rows * leading, stride, math.prod(panels)) * b.itemsize
    if min(leading, stride) < 0 or extent >= MATRIX_BYTES:
        raise ValueError(f"b has strides {b.strides}, shape {b.shape}; 0 to 2 GiB are allowed")
    shape = (len(batch), *panels) if b.ndim == 3 else panels
    if out is None:
        to = out = np.empty(shape, b.dtype)
    else:
        to = doors.array("out", out, shape, b.dtype)
        doors.writable("out", to)
        doors.apart("out", to, [("b", b)])
    if len(batch):
        function = _packer(k, n, leading, stride, width, dtype, trans, target)
        struct = loader.ffi.new(loader.WORDS, len(ARGUMENTS))
        for name, word in (("a", address(b)), ("c", address(to)), ("count", len(batch))):
            struct[ARGUMENTS[name] // 8] = word
        if function(struct):
            raise RuntimeError("this thread's SVE vector length is not the host's")
    return out


def _width(panel: Any, k: int, n: int, dtype: str, trans: bool) -> tuple[int, Target]:
    """The width of the panels of a k x n matrix, and what packs it: the widest target of this host
    whose vectors fill them."""
    width = panel
    if isinstance(panel, Kernel):
        spec = panel.spec
        width = spec.panel
        if not width:
            raise ValueError(f"panel={doors.shown(panel)} was made without packed_b")
        if (k, n, dtype) != (spec.k, spec.n, spec.dtype):
            raise ValueError(
                f"b is k x n = {k} x {n} of {NUMPY[dtype]} with trans={trans}; panel, the kernel, "
                f"multiplies {spec.k} x {spec.n} of {NUMPY[spec.dtype]}"
            )
    usable = [cpu.host(), *(TARGETS[name] for name, reason in cpu.targets().items() if not reason)]
    lanes = [target.machine(dtype, ANY_WIDTH).lanes for target in usable]
    width = doors.size("panel", width)
    for target, wanted in zip(usable, lanes, strict=True):
        if width % wanted == 0:
            return width, target
    raise ValueError(f"panel={width} is no multiple of {min(lanes)}, the {dtype} lanes here")


def _elements(b: np.ndarray, batch: np.ndarray, axis: int, default: int) -> int:
    """The elements from one row (or matrix) to the next; `default` if there is no next one."""
    if batch.shape[axis] < 2:
        return default
    elements, rest = divmod(batch.strides[axis], b.itemsize)
    if rest:
        raise ValueError(f"b has strides {b.strides}; they must be multiples of {b.itemsize}")
    return elements


def _packer(*shape: Any) -> Any:
    with shared.lock:
        return _load(*shape)[0]


@CODE.of
def _load(*shape: Any) -> tuple[Any, Routine, loader.Code]:
    routine = emit_packer(*shape)
    code = loader.load(routine)
    return loader.ffi.cast(loader.FUNCTION, code.address), routine, code


@CODE.of
@emitter
def emit_packer(
    k: int, n: int, leading: int, stride: int, panel: int, dtype: str, trans: bool, target: Target
) -> Written:
    """The routine that packs `count` matrices from `a` to `c` (argument struct of docs/abi.md)."""
    machine = target.machine(dtype, ANY_WIDTH)
    operands = {
        "from": Operand("a", "first matrix", dtype), "to": Operand("c", "panels", dtype),
        "left": Operand("count", "number of matrices", "number"),
    }  # fmt: skip
    kind = "pack_transposed" if trans else "pack"
    name = f"{kind} {dtype} {k}x{n} in panels of {panel}"
    writer = Writer(name, target, machine, operands, 0 if trans else n)
    writer.take("source", "panels", *(LOOP_ROLES if trans else ("row", "constants")))
    # the constants are the mask
    writer.begin(constants=bool(writer.tail and machine.tail_vectors(writer.tail)))
    _panels(writer, k, n, leading, stride, panel, trans)
    return writer.end()


def _panels(
    writer: Writer, k: int, n: int, leading: int, stride: int, panel: int, trans: bool
) -> None:
    machine, frame = writer.machine, writer.frame
    roles = ("from", "to", "left", "source", "panels", "row")
    source_base, to, left, source, done, step = (frame[role] for role in roles)
    lanes, element = machine.lanes, machine.element
    again = machine.program.new_label()
    machine.place(again)
    panels, rest = divmod(n, panel)
    blocks = [(0, panel, panels)] if panels else []
    blocks += [(panels * panel, rest, 1)] if rest else []
    down, across = (element, leading * element) if trans else (leading * element, element)
    for start, columns, repeat in blocks:
        machine.program.section(f"{repeat} panels of {columns} columns")
        machine.offset(source, source_base, start * across)
        if repeat > 1:
            machine.set(done, 0)
        each = machine.program.new_label()
        machine.place(each)
        row = panel * element
        if columns < panel:
            with repeated(machine, step, k):
                machine.zero(0)
                for j in range(columns // lanes * lanes, panel, lanes):
                    machine.store(0, (to, j * element), lanes)
                machine.advance(to, row)
            machine.advance(to, -k * row)
        if trans:
            transpose_loops(frame, columns, k, source, to, leading, panel)
            machine.advance(to, k * row)
        else:
            parts = [(j * element, min(lanes, columns - j)) for j in range(0, columns, lanes)]
            copy_rows(machine, parts, k, source, to, down, row, step)
        if repeat > 1:
            machine.advance(source, panel * across - (0 if trans else k * down))
            machine.advance(done, 1)
            machine.jump_if_less(done, repeat, each)
    machine.advance(source_base, stride * element)
    machine.count_down(left, again)
