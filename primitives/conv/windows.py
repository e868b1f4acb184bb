"""Arguments of layers whose results see windows of an image: kernel, stride, padding.

An error names the argument, its value and the rule. Not here: what is done with the windows
(`jitgen.primitives.layers.convolution`, `jitgen.primitives.layers.pooling`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jitgen import doors

Pair = int | tuple[int, int]
#: Where the channels of images stand
LAYOUTS = ("nchw", "nhwc")


def pair(
    name: str, value: Any, least: int = 1, what: str = ": rows, columns"
) -> tuple[int, int]:
    """Two sizes, `what` they are, from a pair or one for both. TypeError, ValueError."""
    if _several(value):
        return doors.pair(name, value, what, least)
    one = doors.size(name, value, least)
    return one, one


def _several(value: Any) -> bool:
    """Whether this is a sequence and no size."""
    # np.ndim of a class is the attribute that its instances have
    return isinstance(value, (tuple, list)) or (not isinstance(value, type) and np.ndim(value) > 0)


def border(
    padding: Any, size: tuple[int, int], taps: tuple[int, int], stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[tuple[int, int], tuple[int, int]]:  # fmt: skip
    """Pixels before and after the image, in rows and columns: `padding` as `Convolution` takes it
    (a number, a pair, pairs, or "same"). ValueError."""
    if isinstance(padding, str):
        doors.one_of("padding", padding, ["same"])
        sides = []
        for x, k, s, d in zip(size, taps, stride, dilation, strict=True):
            total = max(0, (-(-x // s) - 1) * s + (k - 1) * d + 1 - x)
            sides.append((total // 2, total - total // 2))
        return sides[0], sides[1]
    if not _several(padding):
        return (pair("padding", padding, 0),) * 2
    rows, columns = doors.items("padding", padding, 2, ": rows, columns")
    return (
        pair("padding[0]", rows, 0, ": top, bottom"),
        pair("padding[1]", columns, 0, ": left, right"),
    )


def out_size(
    size: tuple[int, int], around: tuple[tuple[int, int], tuple[int, int]], taps: tuple[int, int],
    stride: tuple[int, int], dilation: tuple[int, int] = (1, 1),
    names: tuple[str, str] = ("height", "width"),
) -> tuple[int, int]:  # fmt: skip
    """Height and width of the output. ValueError where no window fits."""
    out = []
    for i, name in enumerate(names):
        reach = (taps[i] - 1) * dilation[i] + 1
        room = size[i] + sum(around[i]) - reach
        if room < 0:
            raise ValueError(
                f"{name}={size[i]} with padding {around[i]} is smaller than the kernel's reach of "
                f"{reach} (kernel={taps[i]}, dilation={dilation[i]})"
            )
        out.append(room // stride[i] + 1)
    return out[0], out[1]
