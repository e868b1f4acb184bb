"""The streams of pooling: a row of output pixels is one call of `jitgen.kernels.pooling`, on NHWC.

Where windows reach into the padding, rows and columns have kernels of their own, which leave those
taps out. Windows of many taps are pooled along rows, then along columns; their gradients go the way
back. Windows may share pixels, so the rows of a gradient's image are added one after the other, and
threads share images and channels. Not here: arrays (`jitgen.primitives.layers.pooling`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jitgen.emit.shapes import MOST_TAPS
from jitgen.kernels.elementwise import emit_map
from jitgen.kernels.pooling import emit_pool, emit_pool_backward
from jitgen.kernels.strips import Axis
from jitgen.primitives.conv.axis import Stretch, axes, stretches
from jitgen.primitives.conv.layouts import Conv, Strides, from_nhwc, images
from jitgen.primitives.conv.parts import Parts
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.nest import Nest
from jitgen.primitives.nest.run import Run
from jitgen.primitives.nest.stream import Made, Part
from jitgen.primitives.nest.tensor import Access, Tensor
from jitgen.run.cache import STREAMS


@dataclass(frozen=True)
class Pass:
    """Windows over images `source`, to images `to`: forward, or from the gradient of `to` ("d" and
    its name) that of `source`."""

    source: str
    to: str
    rows: Axis
    columns: Axis
    backward: bool = False

    @property
    def number(self) -> int:
        """Taps of a window: what the sum of a mean is divided by."""
        return len(self.rows.taps) * len(self.columns.taps)

    @property
    def shared(self) -> bool:
        """Some pixel may be in two windows."""
        return any(len(a.taps) > a.step and a.count > 1 for a in (self.rows, self.columns))


def _passes(conv: Conv) -> list[Pass]:
    """From tensor "x" to "y"."""
    rows, columns = axes(conv)
    if len(conv.taps) <= MOST_TAPS:
        return [Pass("x", "y", rows, columns)]
    down, along = (Axis(size, 1, (0,), size) for size in (rows.size, columns.count))
    return [Pass("x", "along", down, columns), Pass("along", "y", rows, along)]


@STREAMS.of
def forward(conv: Conv, kind: str, strides: Strides = ()) -> Run:
    """Tensors of the caller: x, y, or, if they are NCHW, "x nchw" and "y nchw"; `strides` of those
    with gaps, of n, h, w or n, c, h."""
    return _run(conv, kind, ["x"], "y", _passes(conv), strides)


@STREAMS.of
def backward(conv: Conv, kind: str, strides: Strides = ()) -> Run:
    """Tensors of the caller: dy, for a maximum x, dx; their names as for `forward`."""
    passes = _passes(conv)
    back = [replace(p, backward=True) for p in reversed(passes)]
    if kind == "max":
        return _run(conv, kind, ["dy", "x"], "dx", [*passes[:-1], *back], strides)
    return _run(conv, kind, ["dy"], "dx", back, strides)


def _run(
    conv: Conv, kind: str, inputs: list[str], result: str, passes: Sequence[Pass], strides: Strides
) -> Run:
    """The passes on NHWC tensors, between copies where the caller's are NCHW."""
    c, suffix, made = conv.channels, "" if conv.nhwc else " nchw", Parts(conv, strides)
    size = {"x": conv.size, "y": conv.out, "along": (conv.size[0], conv.out[1])}
    size |= {f"d{name}": pixels for name, pixels in size.items()}
    pixels = {name: made.nhwc(name + suffix, name, c, size[name]) for name in inputs}
    for p in passes:
        name = "d" * p.backward + (p.source if p.backward else p.to)
        if name == result and conv.nhwc:
            pixels[name] = images(conv, name, c, size[name], strides)
        else:
            pixels[name] = made.new(name, c, size[name])
        made.parts += _windows(conv, kind, p, pixels)
    if not conv.nhwc:
        made.parts.append(from_nhwc(conv, result, result + suffix, c, size[result], strides))
    return made.run(*(name + suffix for name in (*inputs, result)))


def _windows(conv: Conv, kind: str, p: Pass, pixels: dict[str, Tensor]) -> list[Part]:
    """The parts of a pass; the first one begins with zeros where some pixel is not overwritten."""
    sides = stretches(p.rows), stretches(p.columns)
    parts = [_part(conv, kind, p, row, column, pixels) for row in sides[0] for column in sides[1]]
    covered = math.prod(sum((s.high - s.low) * s.number for s in side) for side in sides)
    if not p.backward or not (p.shared or covered < p.rows.size * p.columns.size):
        return parts
    dx = pixels[f"d{p.source}"]
    dx = dx.merged("h", "w") or dx  # an image without gaps between its rows is one long row

    def zeros(sizes: dict[str, int], first: bool, last: bool) -> Made:
        wide, ld = dx.sizes["w"], {"c": dx.stride("w")}
        return emit_map("zero", wide, sizes["c"], conv.dtype, conv.target, ld=ld), {}

    loops = {name: parts[0].loops[name] for name in "nc"} | {"z": Loop(dx.sizes["h"], (1,))}
    nest = Nest("NCz", loops, conv.dtype, conv.target)
    begin = nest.call("zeros", zeros, {"c": dx.at(n="n", c="c", h="z")})
    return [replace(parts[0], before=(begin,)), *parts[1:]]


def _part(
    conv: Conv, kind: str, p: Pass, row: Stretch, column: Stretch, pixels: dict[str, Tensor]
) -> Part:
    """The results of a stretch of rows and one of columns."""
    d, c = "d" * p.backward, conv.channels
    source, to = pixels[d + p.source], pixels[d + p.to]
    divisor = float(p.number) if kind == "average" else None
    tall, wide = row.high - row.low, column.high - column.low

    def row_of(tensor: Tensor) -> tuple[tuple[int, ...], int]:
        """Offsets of the taps, and from a result's to the next one's."""
        down, right = tensor.stride("h"), tensor.stride("w")
        taps = tuple(r * down + s * right for r in range(tall) for s in range(wide))
        return taps, p.columns.step * right

    def code(sizes: dict[str, int], first: bool, last: bool) -> Made:
        offsets, step = row_of(source)
        shape = kind, column.number, sizes["c"], offsets, conv.dtype, conv.target
        how: dict[str, Any] = {"step": step, "divisor": divisor}
        if not p.backward:
            return emit_pool(*shape, ldc=to.stride("w"), **how), {}
        x = row_of(pixels[p.source]) if kind == "max" else None
        made = emit_pool_backward(*shape, ldb=to.stride("w"), accumulate=p.shared, x=x, **how)
        return made, {}

    def seen(tensor: Tensor) -> Access:
        h, w = (axis.taps[s.low] + s.first * axis.step
                for axis, s in ((p.rows, row), (p.columns, column)))  # fmt: skip
        return tensor.at(n="n", h=[h, ("h", p.rows.step)], w=w, c="c")

    result = to.at(n="n", h=[row.first, "h"], w=column.first, c="c")
    words = {"a": seen(source), "c": result}
    order, tasks, line_of = "NHC", conv.batch * row.number, 64
    if p.backward:
        words = {"b": result, "c": seen(source)}
        if kind == "max":
            words["a"] = seen(pixels[p.source])
        order, tasks, line_of = "NCh", conv.batch, 16
    # where there are few rows (or images), the threads share channels too
    few = tasks < 4 * conv.threads and tasks % conv.threads
    piece = -(-c // conv.threads // line_of) * line_of if few else c
    loops = {"n": Loop(conv.batch, (1,)), "h": Loop(row.number, (1,)), "c": Loop(c, (piece,))}
    nest = Nest(order, loops, conv.dtype, conv.target)
    return nest.call(f"{'gradient' if d else kind} of {tall} x {wide} taps", code, words)
