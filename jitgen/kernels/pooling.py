"""Pooling of a row of pixels, NHWC: the maximum or the mean of each window, channel by channel, and
the gradient of either.

The loops are those of `jitgen.kernels.windows`, without weights. A window
at a border is a row of its own: the caller leaves out the taps that lie in the padding. A gradient
is added window by window to the pixels that the window sees; where its maximum lies is found again,
not kept. Not here: the loops over rows, and zeros before the first addition.
"""

from __future__ import annotations

import math

from jitgen.emit.copying import repeated
from jitgen.emit.routine import Operand, Written, emitter
from jitgen.isa.machine import Machine
from jitgen.kernels.windows import Forward, Row, Windows
from jitgen.run.cache import CODE
from jitgen.target import Target

KINDS = ("max", "average")
#: Pixels of a tile, and elements of their windows, at most, for code below 8 KiB
PIXELS, TILE_ELEMENTS = 8, 96


@CODE.of
@emitter
def emit_pool(
    kind: str, pixels: int, channels: int, taps: tuple[int, ...], dtype: str, target: Target, *,
    step: int, ldc: int, divisor: float | None = None,
) -> Written:  # fmt: skip
    """The routine for one row: y[j, c] = max, or mean, over t of x[taps[t] + j step + c].

    Word a is x at the corner of the first pixel's window, c is y (pixels `ldc` elements apart; it
    may not overlap x). Taps, the distance of the corners `step` and `ldc` are in elements. A mean
    is the sum times 1 / divisor, rounded (default: the number of taps). A maximum is NaN where an
    element of the window is, as PyTorch's. Raises ValueError that names argument, value and rule.
    """
    row = Row(pixels, channels, taps, step, dtype)
    return _Pool(kind, row, ldc, target, _factor(kind, row, ldc, divisor)).write()


@CODE.of
@emitter
def emit_pool_backward(
    kind: str, pixels: int, channels: int, taps: tuple[int, ...], dtype: str, target: Target, *,
    step: int, ldb: int, divisor: float | None = None, accumulate: bool = True,
) -> Written:  # fmt: skip
    """The routine for what one row adds to the gradient of x: for each window j and channel c,
    dx[taps[t] + j step + c] += dy[j, c] for the t of the maximum, or += dy[j, c] / divisor for all.

    Word a is x (read for a maximum only), b is dy (pixels `ldb` elements apart), c is dx, which has
    x's layout and overlaps neither; the rest as for `emit_pool`. Of equal maxima the first one
    counts, of several NaN the last one, as PyTorch has it; windows follow one another. Without
    `accumulate` all that windows see is overwritten: for windows that share no element. Raises
    ValueError that names argument, value and rule.
    """
    row = Row(pixels, channels, taps, step, dtype)
    factor = _factor(kind, row, ldb, divisor)
    return _Backward(kind, row, ldb, target, factor, accumulate).write()


def _factor(kind: str, row: Row, leading: int, divisor: float | None) -> float | None:
    """What sums are multiplied by, None for a maximum. ValueError."""
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(KINDS)}")
    row.check(leading)
    if kind == "max":
        if divisor is not None:
            raise ValueError(f"divisor={divisor}: a maximum has none")
        return None
    number = float(len(row.taps) if divisor is None else divisor)
    if not (math.isfinite(number) and number):
        raise ValueError(f"divisor={divisor} is not a finite number other than 0")
    return 1.0 / number


def _maximum(machine: Machine, best: int, x: int, temp: int) -> None:
    """best = the greater of best and x, NaN where either is. Clobbers temp.

    x86's maximum is its second operand where either is NaN; or-ed with that of the operands
    swapped, a NaN stays one and a number what it is (of two zeros, -0).
    """
    machine.max(temp, best, x)
    machine.max(best, x, best)
    machine.or_(best, best, temp)


class _Pool(Forward):
    def __init__(
        self, kind: str, row: Row, ldc: int, target: Target, factor: float | None
    ) -> None:
        most = min(PIXELS, max(1, TILE_ELEMENTS // len(row.taps)))
        super().__init__(f"{kind}_pool", row, ldc, target, {}, most)
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
                    _maximum(machine, acc, 0, 1)
                else:
                    machine.add(acc, acc, 0)
        if self.factor is not None:
            factor = machine.const(self.factor)
            for acc in self.acc:
                machine.mul(acc, acc, factor)


#: Registers of `_Backward`; a maximum's `INDEX` is the number of its tap, as a float
ZERO, MINUS, BEST, X, FIRST, SECOND, INDEX, TAP, GRADIENT = range(9)


class _Backward(Windows):
    def __init__(
        self, kind: str, row: Row, ldb: int, target: Target, factor: float | None, accumulate: bool
    ) -> None:
        operands = {"x": Operand("a", "x at the first window", row.dtype)} if factor is None else {}
        operands["dy"] = Operand("b", "gradient of y", row.dtype)
        operands["dx"] = Operand("c", "gradient of x", row.dtype)
        super().__init__(f"{kind}_pool_backward", row, target, operands)
        self.factor, self.accumulate = factor, accumulate
        self.steps = dict.fromkeys(operands, row.step * self.element) | {"dy": ldb * self.element}
        self.places = [tap * self.element for tap in row.taps]

    def loops(self) -> None:
        machine, frame = self.machine, self.frame
        if self.factor is None:
            machine.zero(ZERO)
            machine.load_const(MINUS, machine.const(-1.0))
        with repeated(machine, frame["again"], self.row.pixels):
            for role in self.operands:
                machine.move(frame[f"{role}_now"], frame[role])
            self.channels(self._route if self.factor is None else self._share)
            for role, size in self.steps.items():
                machine.advance(frame[role], size)

    def _share(self, lanes: int) -> None:
        machine, frame = self.machine, self.frame
        machine.load(GRADIENT, (frame["dy_now"], 0), lanes)
        machine.mul(GRADIENT, GRADIENT, machine.const(self.factor or 0.0))
        for place in self.places:
            self._add(GRADIENT, place, lanes)

    def _add(self, value: int, place: int, lanes: int) -> None:
        machine, at = self.machine, (self.frame["dx_now"], place)
        if self.accumulate:
            machine.load(X, at, lanes)
            machine.add(X, X, value)
        else:
            machine.or_(X, value, value)  # a copy, which the store may clobber
        machine.store(X, at, lanes)

    def _route(self, lanes: int) -> None:
        machine, frame = self.machine, self.frame
        machine.zero(INDEX)
        machine.load(BEST, (frame["x_now"], self.places[0]), lanes)
        for t, place in enumerate(self.places[1:], 1):
            machine.load(X, (frame["x_now"], place), lanes)
            machine.load_const(TAP, machine.const(float(t)))
            # a NaN, which neither comparison finds, or an element above all before it
            machine.select_greater(FIRST, ZERO, X, INDEX, TAP)
            machine.select_greater(SECOND, X, MINUS, INDEX, FIRST)
            machine.select_greater(INDEX, X, BEST, TAP, SECOND)
            _maximum(machine, BEST, X, FIRST)
        gradient, rest = GRADIENT, BEST
        machine.load(gradient, (frame["dy_now"], 0), lanes)
        for t in range(len(self.places) - 1, 0, -1):  # what goes to a tap is taken out
            machine.load_const(TAP, machine.const(t - 1.0))
            machine.select_greater(FIRST, INDEX, TAP, gradient, ZERO)
            machine.select_greater(rest, INDEX, TAP, ZERO, gradient)
            self._add(FIRST, self.places[t], lanes)
            gradient, rest = rest, gradient
        self._add(gradient, self.places[0], lanes)
