"""Pooling in two dimensions, forward: the maximum or the mean of each window, channel by channel.

A row of output pixels is one call of `jitgen.pooling`. Where windows reach into the padding, rows
and columns have kernels of their own, which leave those taps out: the padding of a maximum is
-infinity, that of a mean 0. Windows of many taps are pooled along rows, then along columns.
Not here: gradients, indices of maxima, dilation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from jitgen import cpu
from jitgen.operands import NUMPY
from jitgen.pooling import emit_pool
from jitgen.spec import DTYPES
from jitgen.target import Target, parse_target
from jitgen.threads import check_threads
from jitgen.windows import MOST_TAPS
from primitives.arrays import buffer_of, check, check_output
from primitives.conv_layouts import Conv, Made, gather, spread
from primitives.convolution import LAYOUTS
from primitives.loops import Loop
from primitives.run import Run
from primitives.stream import Part, Ref
from primitives.windows import Pair, border, out_size, pair, positive


@dataclass(frozen=True)
class Stretch:
    """Neighbouring results along one side of the image, and what they see of it: `taps` pixels
    each, the first result from pixel `corner` on, the next ones `step` pixels further."""

    first: int
    count: int
    corner: int
    taps: int
    step: int


class _Pool:
    """Windows of an image; `kind` is that of `jitgen.pooling`."""

    kind = ""

    def __init__(
        self, batch: int, channels: int, height: int, width: int, kernel: Pair, *,
        stride: Pair | None = None, padding: Any = 0, dtype: str = "f32", layout: str = "nhwc",
        threads: int | None = None, target: str | Target | None = None,
    ) -> None:  # fmt: skip
        sizes = {"batch": batch, "channels": channels, "height": height, "width": width}
        for name, value in sizes.items():
            positive(name, value)
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}")
        if layout not in LAYOUTS:
            raise ValueError(f"layout={layout!r} is not one of {', '.join(LAYOUTS)}")
        taps = pair("kernel", kernel)
        steps = taps if stride is None else pair("stride", stride)
        if max(taps) > MOST_TAPS:
            raise ValueError(f"kernel={kernel!r}: a side has at most {MOST_TAPS} taps")
        size = (height, width)
        around = border(padding, size, taps, steps, (1, 1))
        for side, k in zip(around, taps, strict=True):
            if max(side) > k // 2:
                raise ValueError(f"padding={padding!r} is more than half of kernel={kernel!r}")
        out = out_size(size, around, taps, steps)
        if target is None:
            chosen = cpu.host()
        else:
            chosen = target if isinstance(target, Target) else parse_target(target)
        # a depthwise convolution without weights
        self.conv = Conv(
            batch, channels, size, channels, taps, steps, (around[0][0], around[1][0]), out,
            (1, 1), channels, False, (), dtype, layout == "nhwc", check_threads(threads), chosen,
        )  # fmt: skip
        #: shapes of x and y
        self.x_shape = self._shape(size)
        self.y_shape = self._shape(out)
        self._made: Run | None = None

    def _shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        conv = self.conv
        if conv.nhwc:
            return (conv.batch, *size, conv.channels)
        return (conv.batch, conv.channels, *size)

    def forward(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The pooled images, in `out` if that is given."""
        if self._made is None:
            self._made = stream(self.conv, self.kind)
        first = check("x", x, self.x_shape, self.conv.dtype)
        if out is None:
            out = np.empty(self.y_shape, NUMPY[self.conv.dtype])
            second = buffer_of(out)
        else:
            second = check_output("out", out, self.y_shape, self.conv.dtype, {"x": x})
        self._made((first, second))
        return out


class MaxPool(_Pool):
    """The maximum of each window, NaN where an element of it is NaN.

    kernel, stride (default: kernel): an int or a pair (rows, columns). padding: as `Convolution`
    takes it, at most half of the kernel; it is -infinity. layout: "nhwc" or "nchw". threads: None
    for OMP_NUM_THREADS or all CPUs. Raises TypeError or ValueError that names argument, value and
    rule.

    >>> MaxPool(1, 1, 2, 4, 2).forward(np.arange(8, dtype=np.float32).reshape(1, 2, 4, 1)).ravel()
    array([5., 7.], dtype=float32)
    """

    kind = "max"


class AveragePool(_Pool):
    """The mean of each window; padding counts, as 0 (PyTorch's count_include_pad). Arguments as
    for `MaxPool`. Global average pooling has kernel=(height, width).

    >>> AveragePool(1, 1, 2, 4, (2, 4)).forward(np.ones((1, 2, 4, 1), np.float32)).ravel()
    array([1.], dtype=float32)
    """

    kind = "average"


@lru_cache(maxsize=256)
def stream(conv: Conv, kind: str) -> Run:
    """Tensors of the caller: "image" and "result"."""
    (height, width), out = conv.size, conv.out
    images = conv.batch * conv.channels
    parts: list[Part] = []
    scratch: dict[str, int] = {}
    x, y = "image", "result"
    if not conv.nhwc:
        x, scratch["x"] = "x", images * height * width
        y, scratch["y"] = "y", images * out[0] * out[1]
        parts.append(spread(conv, "image", "x", conv.channels, conv.size, conv.size, (0, 0)))
    rows, columns = (
        stretches(conv.size[i], out[i], conv.kernel[i], conv.stride[i], conv.padding[i])
        for i in range(2)
    )
    if len(conv.taps) <= MOST_TAPS:
        parts += _windows(conv, kind, x, y, rows, columns, conv.size, out, len(conv.taps))
    else:
        between = (height, out[1])
        scratch["along"] = images * height * out[1]
        parts += _windows(
            conv, kind, x, "along", [Stretch(0, height, 0, 1, 1)], columns, conv.size, between,
            conv.kernel[1],
        )  # fmt: skip
        parts += _windows(
            conv, kind, "along", y, rows, [Stretch(0, out[1], 0, 1, 1)], between, out,
            conv.kernel[0],
        )  # fmt: skip
    if not conv.nhwc:
        parts.append(gather(conv, "y", "result", conv.channels, out[0] * out[1]))
    return Run(parts, ["image", "result"], conv.threads, conv.target, conv.dtype, scratch)


def stretches(size: int, out: int, taps: int, step: int, padding: int) -> list[Stretch]:
    """`out` results along `size` pixels, parted where windows lose taps to the padding."""
    found: list[Stretch] = []
    seen = None
    for o in range(out):
        corner = o * step - padding
        window = (max(0, -corner), min(taps, size - corner))
        if window == seen:
            found[-1] = replace(found[-1], count=found[-1].count + 1)
        else:
            found.append(Stretch(o, 1, corner + window[0], window[1] - window[0], step))
        seen = window
    return found


def _windows(
    conv: Conv, kind: str, source: str, to: str, rows: list[Stretch], columns: list[Stretch],
    size: tuple[int, int], out: tuple[int, int], number: int,
) -> list[Part]:  # fmt: skip
    """Parts from images of `size` to images of `out` pixels; a mean's divisor is `number`."""
    return [
        _part(conv, kind, source, to, row, column, size, out, number)
        for row in rows
        for column in columns
    ]


def _part(
    conv: Conv, kind: str, source: str, to: str, row: Stretch, column: Stretch,
    size: tuple[int, int], out: tuple[int, int], number: int,
) -> Part:  # fmt: skip
    c, e = conv.channels, conv.element
    line, out_line = size[1] * c, out[1] * c
    taps = tuple(r * line + s * c for r in range(row.taps) for s in range(column.taps))

    def code(sizes: dict[str, int], first: bool, last: bool) -> Made:
        made = emit_pool(
            kind, column.count, sizes["c"], taps, conv.dtype, conv.target, step=column.step * c,
            ldc=c, divisor=float(number) if kind == "average" else None,
        )  # fmt: skip
        return made, {}

    # where there are few rows, the threads share channels too
    shared = conv.batch * row.count < 4 * conv.threads
    piece = -(-c // conv.threads // 64) * 64 if shared else c
    words = {
        "a": Ref(source, {"n": size[0] * line, "h": row.step * line, "c": 1}, e,
                 start=row.corner * line + column.corner * c),
        "c": Ref(to, {"n": out[0] * out_line, "h": out_line, "c": 1}, e,
                 start=row.first * out_line + column.first * c),
    }  # fmt: skip
    loops = {"n": Loop(conv.batch, (1,)), "h": Loop(row.count, (1,)), "c": Loop(c, (piece,))}
    return Part(f"{kind} of {row.taps} x {column.taps} taps", "NHC", loops, code, words)
