"""Packing of B in panels as wide as a kernel's register tile, in emitted code.

A packed B is [ceil(n / panel)][k][panel]: each tile of columns reads one sequential stream. Columns
beyond n are zero. Not here: kernels that read panels (`jitgen.brgemm(..., packed_b=True)`).

>>> import numpy as np
>>> panel_shape(3, 10, 8)
(2, 3, 8)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jitgen import cpu, loader
from jitgen.cache import CODE
from jitgen.copying import copy_rows, repeated
from jitgen.frame import ARGUMENTS, Frame
from jitgen.kernel import Kernel
from jitgen.layout import LOOP_ROLES, transpose_loops
from jitgen.operands import NUMPY, address
from jitgen.spec import MATRIX_BYTES
from jitgen.target import ANY_WIDTH, TARGETS, Target


def panel_shape(k: int, n: int, panel: int) -> tuple[int, int, int]:
    """Shape of a packed k x n matrix: panels, rows, columns of a panel."""
    return (-(-n // panel), k, panel)


def pack_b(
    b: np.ndarray, panel: int | Kernel, *, trans: bool = False, out: np.ndarray | None = None
) -> np.ndarray:
    """Pack B for a kernel with `packed_b`.

    b: (count, k, n) or (k, n), rows contiguous; with `trans` (count, n, k) or (n, k), which is
    transposed on the way. `panel` is the kernel, or its panel width in columns, a multiple of the
    vector length. Returns (count, ceil(n / panel), k, panel), without count if b has none; `out`
    may give that array.

    Raises TypeError or ValueError that names argument, value and rule.
    """
    if not isinstance(b, np.ndarray) or b.dtype not in NUMPY.values() or not b.dtype.isnative:
        what = getattr(b, "dtype", type(b).__name__)
        raise TypeError(f"b is {what}; it must be an array of float32 or float64")
    if b.ndim not in (2, 3) or 0 in b.shape[-2:]:
        raise ValueError(f"b has shape {b.shape}; it must be (count, k, n) or (k, n), none zero")
    dtype = next(name for name, kind in NUMPY.items() if kind == b.dtype)
    width = panel.spec.panel if isinstance(panel, Kernel) else panel
    target = _target(width, dtype)
    batch = b if b.ndim == 3 else b[np.newaxis]
    rows, columns = batch.shape[1:]
    k, n = (columns, rows) if trans else (rows, columns)
    if columns > 1 and batch.strides[2] != b.itemsize:
        raise ValueError(f"b has strides {b.strides}; its rows must be contiguous")
    leading = batch.strides[1] // b.itemsize if rows > 1 else columns
    stride = batch.strides[0] // b.itemsize if len(batch) > 1 else 0
    extent = max(rows * leading, stride, panel_shape(k, n, width)[0] * k * width) * b.itemsize
    if min(leading, stride) < 0 or extent >= MATRIX_BYTES:
        raise ValueError(f"b has strides {b.strides}, shape {b.shape}; 0 to 2 GiB are allowed")
    panels = panel_shape(k, n, width)
    shape = (len(batch), *panels) if b.ndim == 3 else panels
    if out is None:
        out = np.empty(shape, b.dtype)
    elif not isinstance(out, np.ndarray) or out.dtype != b.dtype or out.shape != shape:
        raise ValueError(f"out must be an array of shape {shape} and dtype {b.dtype}")
    elif not (out.flags.c_contiguous and out.flags.writeable) or np.may_share_memory(out, b):
        raise ValueError("out must be contiguous, writable and apart from b")
    if len(batch):
        function = _packer(k, n, leading, stride, width, dtype, trans, target)
        struct = loader.ffi.new(loader.WORDS, len(ARGUMENTS))
        for name, word in (("a", address(b)), ("c", address(out)), ("count", len(batch))):
            struct[ARGUMENTS[name] // 8] = word
        if function(struct):
            raise RuntimeError("this thread's SVE vector length is not the host's")
    return out


def _target(width: Any, dtype: str) -> Target:
    """The widest target of this host whose vectors fill panels of `width` columns."""
    usable = [cpu.host(), *(TARGETS[name] for name, reason in cpu.targets().items() if not reason)]
    lanes = [target.machine(dtype, ANY_WIDTH).lanes for target in usable]
    for target, n in zip(usable, lanes, strict=True):
        if type(width) is int and width > 0 and width % n == 0:
            return target
    raise ValueError(f"panel={width!r} is no multiple of {min(lanes)}, the {dtype} lanes here")


def _packer(*shape: Any) -> Any:
    with loader.lock:
        return _load(*shape)[0]


@CODE.of
def _load(*shape: Any) -> tuple[Any, loader.Code]:
    code = loader.load(emit_packer(*shape))
    return loader.ffi.cast(loader.FUNCTION, code.address), code


@CODE.of
def emit_packer(
    k: int, n: int, leading: int, stride: int, panel: int, dtype: str, trans: bool, target: Target
) -> bytes:
    """Machine code that packs `count` matrices from `a` to `c` (argument struct of docs/abi.md)."""
    machine = target.machine(dtype, ANY_WIDTH)
    frame = Frame(machine)
    roles = ("from", "to", "left", "source", "panels")
    source_base, to, left, source, done = (frame.take(role) for role in roles)
    for role in LOOP_ROLES if trans else ("row", "constants"):
        frame.take(role)
    step = frame["row"]
    lanes, element = machine.lanes, machine.element
    machine.program.section(f"pack {k} x {n} in panels of {panel} columns")
    machine.begin(frame.used())
    tail = n % lanes
    spare = machine.vectors - 1
    if tail and not trans:
        if machine.tail_vectors(tail):
            machine.use_constants(frame["constants"])
        machine.set_tail(tail, spare)
    frame.load_argument("from", "a")
    frame.load_argument("to", "c")
    frame.load_argument("left", "count")
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
    machine.end()
    return machine.program.encode()
