"""Pooling in two dimensions: the maximum or the mean of each window, channel by channel.

A row of output pixels is one call of `jitgen.kernels.pooling`. Where windows reach into the
padding, rows and columns have kernels of their own, which leave those taps out: the padding of a
maximum is -infinity, that of a mean 0. Windows of many taps are pooled along rows, then along
columns; their gradients go the way back. Windows may share pixels, so the rows of a gradient's
image are added one after the other, and threads share images and channels.
Not here: indices of maxima, dilation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jitgen import doors
from jitgen.emit.shapes import MOST_TAPS
from jitgen.gemm.spec import DTYPES
from jitgen.kernels.elementwise import emit_map
from jitgen.kernels.pooling import emit_pool, emit_pool_backward
from jitgen.primitives.conv.layouts import Conv, Made, gather, spread
from jitgen.primitives.conv.windows import LAYOUTS, Pair, border, out_size, pair
from jitgen.primitives.layers.base import Operand
from jitgen.primitives.layers.images import Images
from jitgen.primitives.nest.limits import check_elements, check_reach, named
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.run import Run
from jitgen.primitives.nest.stream import Part, Ref
from jitgen.primitives.nest.tables import MOST_CALLS
from jitgen.run import cpu
from jitgen.run.cache import STREAMS
from jitgen.run.threads import check_threads
from jitgen.target import Target


@dataclass(frozen=True)
class Stretch:
    """Neighbouring results along one side of the image, and what they see of it: `taps` pixels
    each, the first result from pixel `corner` on, the next ones `step` pixels further."""

    first: int
    count: int
    corner: int
    taps: int
    step: int


class _Pool(Images):
    """Windows of an image, for any batch; `kind` is that of `jitgen.kernels.pooling`."""

    kind = ""

    def __init__(
        self, batch: int, channels: int, height: int, width: int, kernel: Pair, *,
        stride: Pair | None = None, padding: Any = 0, dtype: str = "f32", layout: str = "nchw",
        threads: int | None = None, target: str | Target | None = None,
    ) -> None:  # fmt: skip
        batch, channels, height, width = doors.sizes(
            batch=batch, channels=channels, height=height, width=width
        )
        dtype = doors.one_of("dtype", dtype, DTYPES)
        layout = doors.one_of("layout", layout, LAYOUTS)
        taps = pair("kernel", kernel)
        steps = taps if stride is None else pair("stride", stride)
        if max(taps) > MOST_TAPS:
            raise ValueError(f"kernel={doors.shown(kernel)}: a side has at most {MOST_TAPS} taps")
        size = (height, width)
        around = border(padding, size, taps, steps, (1, 1))
        for side, k in zip(around, taps, strict=True):
            if max(side) > k // 2:
                raise ValueError(
                    f"padding={doors.shown(padding)} is more than half of "
                    f"kernel={doors.shown(kernel)}"
                )
        out = out_size(size, around, taps, steps)
        chosen = cpu.choose(target)
        # a depthwise convolution without weights
        self.conv = Conv(
            batch, channels, size, channels, taps, steps, (around[0][0], around[1][0]), out,
            (1, 1), channels, False, (), dtype, layout == "nhwc", check_threads(threads), chosen,
        )  # fmt: skip
        #: shapes of x and y
        self.x_shape = self._image(self.conv, channels, size)
        self.y_shape = self._image(self.conv, channels, out)
        super().__init__(self.conv, self.x_shape)
        #: in names of the caller's tensors
        self._caller = "" if self.conv.nhwc else " nchw"

    def _arguments(self, at: Conv) -> dict[str, object]:
        return {
            "batch": at.batch, "channels": at.channels, "height": at.size[0], "width": at.size[1],
            "kernel": at.kernel,
        }  # fmt: skip

    def _check_sizes(self, conv: Conv) -> None:
        sizes, c, (height, width) = self._arguments(conv), conv.channels, conv.size
        x, y = ((conv.batch, c, *size) for size in (conv.size, conv.out))
        check_elements(sizes, x=x, y=y)
        rows = max(conv.kernel) if math.prod(conv.kernel) > MOST_TAPS else conv.kernel[0]
        line = c * max(width, conv.out[1])
        check_reach(sizes, conv.dtype, the_rows_of_x_that_a_kernel_sees=rows * line)
        if not conv.nhwc:
            check_reach(sizes, conv.dtype, a_channel_of_an_image=height * width)
        if conv.batch * max(height, conv.out[0]) > MOST_CALLS:
            raise ValueError(
                f"{named(sizes)}: images have {conv.batch * height} rows, each a call of a kernel; "
                f"a stream has {MOST_CALLS} calls at most"
            )

    def forward(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The pooled images, in `out` if that is given."""
        sized, shape = self._images("x", x, self.x_shape)
        inputs = ((f"x{self._caller}", "x", x, shape),)
        results = ((f"y{self._caller}", "out", out, (shape[0], *self.y_shape[1:])),)
        return self._result(sized, (stream, self.kind), inputs, results)

    def backward(
        self, dy: np.ndarray, x: np.ndarray | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """dx, shaped like x, in `out` if that is given. x is what `forward` had: a maximum needs
        it, a mean does not look at its numbers."""
        sized, shape = self._images("dy", dy, self.y_shape)
        x_shape = (shape[0], *self.x_shape[1:])
        inputs: tuple[Operand, ...] = ((f"dy{self._caller}", "dy", dy, shape),)
        seen: Operand = (f"x{self._caller}", "x", x, x_shape)
        if self.kind == "max":
            inputs += (seen,)
        elif x is not None:
            self._checked("x", x, x_shape)
            if out is not None:
                self._check_result("out", out, [seen])
        results = ((f"dx{self._caller}", "out", out, x_shape),)
        return self._result(sized, (backward_stream, self.kind), inputs, results)


class MaxPool(_Pool):
    """The maximum of each window, NaN where an element of it is NaN. Backward, the gradient goes to
    the first maximum of a window, or to its last NaN, as PyTorch's.

    kernel, stride (default: kernel): an int or a pair (rows, columns). padding: as `Convolution`
    takes it, at most half of the kernel; it is -infinity. layout: "nchw" or "nhwc". threads: None
    for OMP_NUM_THREADS or all CPUs. Raises TypeError or ValueError that names argument, value and
    rule.

    >>> MaxPool(1, 1, 2, 4, 2).forward(np.arange(8, dtype=np.float32).reshape(1, 1, 2, 4)).ravel()
    array([5., 7.], dtype=float32)
    """

    kind = "max"


class AveragePool(_Pool):
    """The mean of each window; padding counts, as 0 (PyTorch's count_include_pad), also backward.
    Arguments as for `MaxPool`. Global average pooling has kernel=(height, width).

    >>> AveragePool(1, 1, 2, 4, (2, 4)).forward(np.ones((1, 1, 2, 4), np.float32)).ravel()
    array([1.], dtype=float32)
    """

    kind = "average"


@dataclass(frozen=True)
class Pass:
    """Windows over images of `size` pixels in tensor `source`, to images of `out` pixels in `to`; a
    mean's divisor is `number`; some pixel may be `shared` by two windows."""

    source: str
    to: str
    rows: list[Stretch]
    columns: list[Stretch]
    size: tuple[int, int]
    out: tuple[int, int]
    number: int
    shared: bool


def _passes(conv: Conv) -> list[Pass]:
    """From tensor "x" to "y"."""
    size, out = conv.size, conv.out
    rows, columns = (
        stretches(size[i], out[i], conv.kernel[i], conv.stride[i], conv.padding[i])
        for i in range(2)
    )
    shared = [k > s and o > 1 for k, s, o in zip(conv.kernel, conv.stride, out, strict=True)]
    if len(conv.taps) <= MOST_TAPS:
        return [Pass("x", "y", rows, columns, size, out, len(conv.taps), any(shared))]
    between = (size[0], out[1])
    alone = [[Stretch(0, count, 0, 1, 1)] for count in between]
    return [
        Pass("x", "along", alone[0], columns, size, between, conv.kernel[1], shared[1]),
        Pass("along", "y", rows, alone[1], between, out, conv.kernel[0], shared[0]),
    ]


@STREAMS.of
def stream(conv: Conv, kind: str) -> Run:
    """Tensors of the caller: x, y."""
    passes = _passes(conv)
    parts = [part for p in passes for part in _windows(conv, kind, p, False)]
    return _run(conv, parts, ["x"], "y", {"x": conv.size} | {p.to: p.out for p in passes})


@STREAMS.of
def backward_stream(conv: Conv, kind: str) -> Run:
    """Tensors of the caller: dy, for a maximum x, dx."""
    passes, parts, inputs, pixels = _passes(conv), [], ["dy"], {"dy": conv.out}
    if kind == "max":
        inputs.append("x")
        pixels["x"] = conv.size
        for p in passes[:-1]:
            parts += _windows(conv, kind, p, False)
            pixels[p.to] = p.out
    for p in reversed(passes):
        parts += _windows(conv, kind, p, True)
        pixels[f"d{p.source}"] = p.size
    return _run(conv, parts, inputs, "dx", pixels)


def _run(
    conv: Conv, parts: list[Part], inputs: list[str], to: str, pixels: dict[str, tuple[int, int]]
) -> Run:
    """The parts on NHWC tensors of so many pixels, between copies where the caller's are NCHW."""
    tensors, c = [*inputs, to], conv.channels
    if not conv.nhwc:
        copies = [
            spread(conv, f"{name} nchw", name, c, pixels[name], pixels[name], (0, 0))
            for name in inputs
        ]
        back = gather(conv, to, f"{to} nchw", c, math.prod(pixels[to]))
        parts, tensors = [*copies, *parts, back], [f"{name} nchw" for name in tensors]
    scratch = {
        name: conv.batch * c * math.prod(size)
        for name, size in pixels.items() if name not in tensors
    }  # fmt: skip
    return Run(parts, tensors, conv.threads, conv.target, conv.dtype, scratch)


def stretches(size: int, out: int, taps: int, step: int, padding: int) -> list[Stretch]:
    """`out` results along `size` pixels, parted where windows lose taps to the padding."""
    # of the windows that lose no taps, one stands for all
    whole = range(-(-padding // step), min(out, (size - taps + padding) // step + 1))
    found: list[Stretch] = []
    seen, o = None, 0
    while o < out:
        corner = o * step - padding
        window = (max(0, -corner), min(taps, size - corner))
        count = whole.stop - o if o in whole else 1
        if window == seen:
            found[-1] = replace(found[-1], count=found[-1].count + count)
        else:
            found.append(Stretch(o, count, corner + window[0], window[1] - window[0], step))
        seen, o = window, o + count
    return found


def _windows(conv: Conv, kind: str, p: Pass, backward: bool) -> list[Part]:
    """A pass, or from the gradient of its result ("d" and its name) that of its source."""
    parts = [_part(conv, kind, p, row, column, backward) for row in p.rows for column in p.columns]
    if backward:
        c, pixels = conv.channels, math.prod(p.size)

        def zeros(sizes: dict[str, int], first: bool, last: bool) -> Made:
            return emit_map("zero", pixels, sizes["c"], conv.dtype, conv.target, ld={"c": c}), {}

        image = {"n": pixels * c, "c": 1}
        loops = {name: parts[0].loops[name] for name in "nc"}
        word = {"c": Ref(f"d{p.source}", image, conv.element)}
        seen = [sum(s.taps * s.count for s in side) for side in (p.rows, p.columns)]
        if p.shared or math.prod(seen) < pixels:  # not every pixel is overwritten
            parts[0] = replace(parts[0], before=(Part("zeros", "NC", loops, zeros, word),))
    return parts


def _part(
    conv: Conv, kind: str, p: Pass, row: Stretch, column: Stretch, backward: bool
) -> Part:
    c, e = conv.channels, conv.element
    line, out_line = p.size[1] * c, p.out[1] * c
    taps = tuple(r * line + s * c for r in range(row.taps) for s in range(column.taps))
    divisor = float(p.number) if kind == "average" else None

    def code(sizes: dict[str, int], first: bool, last: bool) -> Made:
        row_of = kind, column.count, sizes["c"], taps, conv.dtype, conv.target
        step = column.step * c
        if not backward:
            return emit_pool(*row_of, step=step, ldc=c, divisor=divisor), {}
        made = emit_pool_backward(
            *row_of, step=step, ldb=c, divisor=divisor, accumulate=p.shared
        )
        return made, {}

    seen = Ref(p.source, {"n": p.size[0] * line, "h": row.step * line, "c": 1}, e,
               start=row.corner * line + column.corner * c)  # fmt: skip
    result = Ref(p.to, {"n": p.out[0] * out_line, "h": out_line, "c": 1}, e,
                 start=row.first * out_line + column.first * c)  # fmt: skip
    words = {"a": seen, "c": result}
    order, tasks, line_of = "NHC", conv.batch * row.count, 64
    if backward:
        words = {"b": replace(result, tensor=f"d{p.to}"), "c": replace(seen, tensor=f"d{p.source}")}
        if kind == "max":
            words["a"] = seen
        order, tasks, line_of = "NCh", conv.batch, 16
    # where there are few rows (or images), the threads share channels too
    few = tasks < 4 * conv.threads and tasks % conv.threads
    piece = -(-c // conv.threads // line_of) * line_of if few else c
    loops = {"n": Loop(conv.batch, (1,)), "h": Loop(row.count, (1,)), "c": Loop(c, (piece,))}
    name = "gradient" if backward else kind
    return Part(f"{name} of {row.taps} x {column.taps} taps", order, loops, code, words)
