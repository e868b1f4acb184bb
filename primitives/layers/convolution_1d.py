"""Convolution in one dimension: the two-dimensional one of images of height 1.

    y[n, k, l] = sum over c, s of x[n, c, l stride + s dilation - padding] w[k, c, s]

Signals N x C x L (or N x L x C) lie in memory as images N x C x 1 x L do, so the layer is a
`jitgen.primitives.layers.convolution.Convolution` whose arrays have one dimension less. Not here:
any loop.
"""

from __future__ import annotations

from typing import Any

from jitgen import doors
from jitgen.primitives.conv.layouts import Conv
from jitgen.primitives.conv.windows import border, out_size, pair
from jitgen.primitives.layers.convolution import Convolution


class _Signals(Convolution):
    """A convolution of images of height 1 that arrays do not show."""

    def _arguments(self, at: Conv) -> dict[str, object]:
        images = super()._arguments(at).items()
        return {
            "length" if name == "width" else name: value[1] if isinstance(value, tuple) else value
            for name, value in images if name != "height"
        }  # fmt: skip

    def _sides(self, size: tuple[int, int]) -> tuple[int, ...]:
        return size[1:]

    def _apart(self, strides: tuple[int, ...]) -> tuple[int, ...]:
        # of the one row of an image any will do
        outer, inner = strides
        return (outer, outer, inner) if self.conv.nhwc else (outer, inner, inner)


def convolution_1d(
    batch: int, in_channels: int, length: int, out_channels: int, kernel: int, *, stride: int = 1,
    padding: Any = 0, dilation: int = 1, **options: Any,
) -> Convolution:  # fmt: skip
    """A layer whose x is batch x in_channels x length, w out_channels x in_channels / groups x
    kernel, y (and residual, dy) batch x out_channels x its own length; with layout="nhwc" the
    channels of x and y come last.

    padding: a number, a pair (left, right), or "same". options: all others of `Convolution`
    (algorithm "winograd" is not possible). Raises TypeError or ValueError that names argument,
    value and rule.

    >>> import numpy as np
    >>> layer = convolution_1d(1, 1, 5, 1, 3, padding=1, bias=False)
    >>> layer.forward(np.ones((1, 1, 5), np.float32), np.ones((1, 1, 3), np.float32)).tolist()
    [[[2.0, 3.0, 3.0, 3.0, 2.0]]]
    """
    length, kernel, stride, dilation = doors.sizes(
        length=length, kernel=kernel, stride=stride, dilation=dilation
    )
    size, taps, steps, spread = (1, length), (1, kernel), (1, stride), (1, dilation)
    if not isinstance(padding, str):
        padding = (0, pair("padding", padding, 0, ": left, right"))
    around = border(padding, size, taps, steps, spread)
    out_size(size, around, taps, steps, spread, names=("height", "length"))
    return _Signals(
        batch, in_channels, *size, out_channels, taps, stride=steps, padding=around,
        dilation=spread, **options,
    )  # fmt: skip
