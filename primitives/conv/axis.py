"""The sides of images, as windows along them (`Axis`), cut into pieces for kernels.

Not here: `Axis`, and the kernels that take one (`jitgen.kernels.strips`).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

import numpy as np

from jitgen.kernels.strips import Axis
from jitgen.primitives.conv.layouts import Conv
from jitgen.primitives.nest.loops import Loop


def axes(conv: Conv) -> list[Axis]:
    """Rows and columns: the results' windows over the pixels."""
    sides = zip(conv.out, conv.stride, conv.kernel, conv.dilation, conv.padding, conv.size,
                strict=True)  # fmt: skip
    return [Axis(o, s, tuple(t * d - p for t in range(k)), size) for o, s, k, d, p, size in sides]


def seen(axis: Axis, o: int) -> tuple[int, int]:
    """The first tap of result o that sees a pixel and the one behind the last; (0, 0) if none does.
    Taps ascend, and `axis.up` is 1."""
    at = o * axis.step
    low, high = bisect_left(axis.taps, -at), bisect_left(axis.taps, axis.size - at)
    return (low, high) if low < high else (0, 0)


class Stretch(NamedTuple):
    """`number` neighbouring results from `first` on, of which the same taps see pixels: from `low`
    to before `high`."""

    first: int
    number: int
    low: int
    high: int


def stretches(axis: Axis) -> list[Stretch]:
    """All results, parted where windows lose taps to the border. Taps ascend, `axis.up` is 1."""
    # of the windows that lose no taps, one stands for all
    begin, end = -(axis.taps[0] // axis.step), (axis.size - 1 - axis.taps[-1]) // axis.step + 1
    whole = range(max(0, begin), min(axis.count, end))
    found: list[Stretch] = []
    o = 0
    while o < axis.count:
        number, taps = whole.stop - o if o in whole else 1, seen(axis, o)
        if found and found[-1][2:] == taps:
            found[-1] = found[-1]._replace(number=found[-1].number + number)
        else:
            found.append(Stretch(o, number, *taps))
        o += number
    return found


class Pieces:
    """Blocks of `block` results. By the result with which one begins: the `first` pixel that it
    sees, how many it sees (`size`), and how far its lowest tap looks `before` that pixel, in the
    axis' steps."""

    def __init__(self, axis: Axis, block: int) -> None:
        self.axis, self.loop = axis, Loop(axis.count, (block,))
        at = np.arange(axis.count)
        low = at * axis.step + min(axis.taps)
        high = np.minimum(at + block - 1, axis.count - 1) * axis.step + max(axis.taps)
        self.first = np.clip(-(-low // axis.up), 0, axis.size)
        self.size = np.clip(high // axis.up + 1, self.first, axis.size) - self.first
        # where nothing is seen, this is of no account
        self.before = np.maximum(self.first * axis.up - low, 0)

    def variants(self, loop: str) -> dict[str, tuple[str, np.ndarray]]:
        """What kernels depend on, as `Part` has it."""
        return {f"{loop} before": (loop, self.before), f"{loop} size": (loop, self.size)}

    def of(self, loop: str, size: dict[str, int]) -> Axis:
        """The axis of a block, from its first seen pixel on."""
        axis, shift = self.axis, min(self.axis.taps) + size[f"{loop} before"]
        taps = tuple(t - shift for t in axis.taps)
        return Axis(size[loop], axis.step, taps, size[f"{loop} size"], axis.up)
