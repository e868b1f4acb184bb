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
from jitgen.primitives.conv.layouts import Conv
from jitgen.primitives.conv.pooling import backward, forward
from jitgen.primitives.conv.windows import LAYOUTS, Pair, border, out_size, pair
from jitgen.primitives.layers.described import Operand
from jitgen.primitives.layers.images import Images
from jitgen.primitives.layers.passes import Use
from jitgen.primitives.nest.limits import check_elements, check_reach, named
from jitgen.primitives.nest.tables import MOST_CALLS
from jitgen.run import cpu
from jitgen.run.threads import check_threads
from jitgen.target import Target
from jitgen.types import DTypeLike


class _Pool(Images):
    """Windows of an image, for any batch; `kind` is that of `jitgen.kernels.pooling`."""

    kind = ""
    _strided = {
        forward: ("x", "y", "x nchw", "y nchw"),
        backward: ("dy", "x", "dx", "dy nchw", "x nchw", "dx nchw"),
    }

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

    def _uses(self) -> dict[str, Use]:
        x, dy = self._blank(self.x_shape), self._blank(self.y_shape)
        seen = x if self.kind == "max" else None
        return {
            "forward": Use(lambda own: own.forward(x), ("y",)),
            "backward": Use(lambda own: own.backward(dy, seen), ("dx",)),
        }

    def forward(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The pooled images, in `out` if that is given."""
        sized, shape = self._images("x", x, self.x_shape)
        inputs = ((f"x{self._caller}", "x", x, shape),)
        results = ((f"y{self._caller}", "out", out, (shape[0], *self.y_shape[1:])),)
        return self._result(sized, (forward, self.kind), inputs, results)

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
            self._loose("x", x, x_shape)
            if out is not None:
                self._check_result("out", out, [seen])
        results = ((f"dx{self._caller}", "out", out, x_shape),)
        return self._result(sized, (backward, self.kind), inputs, results)


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
