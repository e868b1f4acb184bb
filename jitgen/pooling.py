"""Pooling of a row of pixels, NHWC: the maximum or the mean of each window, channel by channel.

The loops are those of depthwise convolution (`jitgen.windows.Forward`), without weights. A window
at a border is a row of its own: the caller leaves out the taps that lie in the padding. Not here:
which argument was the maximum, and gradients.
"""

from __future__ import annotations

import math
from functools import lru_cache

from jitgen.target import Target
from jitgen.windows import Forward, Row

KINDS = ("max", "average")
#: Pixels of a tile, and elements of their windows, at most, for code below 8 KiB
PIXELS, TILE_ELEMENTS = 8, 96


@lru_cache(maxsize=1024)
def emit_pool(
    kind: str, pixels: int, channels: int, taps: tuple[int, ...], dtype: str, target: Target, *,
    step: int, ldc: int, divisor: float | None = None,
) -> bytes:  # fmt: skip
    """Machine code for one row: y[j, c] = max, or mean, over t of x[taps[t] + j step + c].

    Word a is x at the corner of the first pixel's window, c is y (pixels `ldc` elements apart; it
    may not overlap x). Taps, the distance of the corners `step` and `ldc` are in elements. A mean
    is the sum times 1 / divisor, rounded (default: the number of taps). A maximum is NaN where an
    element of the window is, as PyTorch's. Raises ValueError that names argument, value and rule.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(KINDS)}")
    if kind == "max" and divisor is not None:
        raise ValueError(f"divisor={divisor}: a maximum has none")
    row = Row(pixels, channels, taps, step, dtype)
    row.check(ldc)
    number = float(len(taps) if divisor is None else divisor)
    if not (math.isfinite(number) and number):
        raise ValueError(f"divisor={divisor} is not a finite number other than 0")
    return _Pool(row, ldc, target, 1.0 / number if kind == "average" else None).emit()


class _Pool(Forward):
    def __init__(self, row: Row, ldc: int, target: Target, factor: float | None) -> None:
        most = min(PIXELS, max(1, TILE_ELEMENTS // len(row.taps)))
        super().__init__(row, ldc, target, {}, most)
        self.factor = factor
        self.tiles(2)  # registers 0 and 1 are an input and a temporary

    def tile(self, lanes: int) -> None:
        machine, x = self.machine, self.frame["x_now"]
        begun: set[int] = set()
        for place, pairs in self.uses(range(len(self.row.taps)), self.pixels):
            loaded = False
            for acc in (self.acc[p] for p, _ in pairs):
                if acc not in begun:
                    machine.load(acc, (x, place), lanes)
                    begun.add(acc)
                    continue
                if not loaded:
                    machine.load(0, (x, place), lanes)
                    loaded = True
                if self.factor is None:
                    self._maximum(acc)
                else:
                    machine.add(acc, acc, 0)
        if self.factor is not None:
            factor = machine.const(self.factor)
            for acc in self.acc:
                machine.mul(acc, acc, factor)

    def _maximum(self, acc: int) -> None:
        """acc = the greater of acc and register 0, NaN where either is.

        x86's maximum is its second operand where either is NaN; or-ed with that of the operands
        swapped, a NaN stays one and a number what it is (of two zeros, -0).
        """
        machine = self.machine
        machine.max(1, acc, 0)
        machine.max(acc, 0, acc)
        machine.or_(acc, acc, 1)
