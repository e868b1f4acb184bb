"""Pooling in two dimensions: the maximum or the mean of each window, channel by channel.

The padding of a maximum is -infinity, that of a mean 0. Not here: the streams
(`jitgen.primitives.conv.pooling`), indices of maxima, dilation.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jitgen import doors
from jitgen.emit.shapes import MOST_TAPS
from jitgen.frozen import Frozen
from jitgen.primitives.conv.layouts import Conv
from jitgen.primitives.conv.pooling import backward_stream, stream
from jitgen.primitives.conv.windows import LAYOUTS, Pair, border, out_size, pair
from jitgen.primitives.layers.images import check_images, output_images, windows_text
from jitgen.primitives.nest.limits import check_elements, check_reach, named
from jitgen.primitives.nest.runs import Runs
from jitgen.primitives.nest.tables import MOST_CALLS
from jitgen.run import cpu
from jitgen.run.threads import check_threads
from jitgen.target import Target
from jitgen.types import DTypeLike


class _Pool(Frozen):
    """Windows of an image; `kind` is that of `jitgen.kernels.pooling`."""

    kind = ""

    def __init__(
        self, batch: int, channels: int, height: int, width: int, kernel: Pair, *,
        stride: Pair | None = None, padding: Any = 0, dtype: DTypeLike = "f32",
        layout: str = "nchw", threads: int | None = None, target: str | Target | None = None,
    ) -> None:  # fmt: skip
        batch, channels, height, width = doors.sizes(
            batch=batch, channels=channels, height=height, width=width
        )
        dtype = doors.dtype("dtype", dtype)
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
        sizes = self._sizes = {
            "batch": batch, "channels": channels, "height": height, "width": width, "kernel": taps,
        }  # fmt: skip
        check_elements(sizes, x=(batch, channels, *size), y=(batch, channels, *out))
        rows = max(taps) if math.prod(taps) > MOST_TAPS else taps[0]
        line = channels * max(width, out[1])
        check_reach(sizes, dtype, the_rows_of_x_that_a_kernel_sees=rows * line)
        if layout == "nchw":
            check_reach(sizes, dtype, a_channel_of_an_image=height * width)
        if batch * max(height, out[0]) > MOST_CALLS:
            raise ValueError(
                f"{named(sizes)}: images have {batch * height} rows, each a call of a kernel; a "
                f"stream has {MOST_CALLS} calls at most"
            )
        chosen = cpu.choose(target)
        # a depthwise convolution without weights
        self.conv = Conv(
            batch, channels, size, channels, taps, steps, (around[0][0], around[1][0]), out,
            (1, 1), channels, False, (), dtype, layout == "nhwc", check_threads(threads), chosen,
        )  # fmt: skip
        #: shapes of x and y
        self.x_shape = self._shape(size)
        self.y_shape = self._shape(out)
        self._runs = Runs(type(self).__name__, self._sizes)

    def __repr__(self) -> str:
        return f"<primitives.{type(self).__name__} {windows_text(self)}>"

    def _shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        conv = self.conv
        if conv.nhwc:
            return (conv.batch, *size, conv.channels)
        return (conv.batch, conv.channels, *size)

    def forward(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The pooled images, in `out` if that is given."""
        return self._call(stream, {"x": (x, self.x_shape)}, self.y_shape, out)

    def _call(
        self, make: Any, inputs: dict[str, tuple[Any, tuple[int, ...]]], shape: tuple[int, ...],
        out: np.ndarray | None,
    ) -> np.ndarray:  # fmt: skip
        dtype, nhwc = self.conv.dtype, self.conv.nhwc
        buffers = [check_images(name, a, size, dtype, nhwc) for name, (a, size) in inputs.items()]
        given = {name: array for name, (array, _) in inputs.items()}
        result: np.ndarray
        result, last = output_images(out, shape, dtype, given, nhwc)
        read = buffers if self.kind == "max" else buffers[:1]
        self._runs.use(make, self.conv, self.kind)((*read, last))
        return result

    def backward(
        self, dy: np.ndarray, x: np.ndarray | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """dx, shaped like x, in `out` if that is given. x is what `forward` had: a maximum needs
        it, a mean does not look at its numbers."""
        inputs: dict[str, tuple[Any, tuple[int, ...]]] = {"dy": (dy, self.y_shape)}
        if self.kind == "max" or x is not None:
            inputs["x"] = (x, self.x_shape)
        elif x is not None:
            check_images("x", x, self.x_shape, self.conv.dtype, self.conv.nhwc)
        return self._call(backward_stream, inputs, self.x_shape, out)


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
