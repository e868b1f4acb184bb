"""Depthwise convolution, NHWC: each channel with a filter of its own; and its weight gradient.

    y[o, p, c] = epilogue(sum over r, s of x[rows' tap r of o, columns' tap s of p, c] w[r, s, c])

Vectors run along the channels. The gradient of x is the same with `Axis.up`; that of the weights is
the same walk with their sums in place of the weights and dy in place of the results. Called as
BRGEMM kernels are (docs/abi.md). Not here: the walk (`jitgen.kernels.strips`).
"""

from __future__ import annotations

from collections.abc import Iterator

from jitgen.emit.routine import Operand, Written, emitter
from jitgen.emit.steps import Step, StepOperand, apply, check_places, operands
from jitgen.gemm.spec import make_epilogue
from jitgen.kernels.strips import Axis, Walk
from jitgen.run.cache import CODE
from jitgen.target import Target

#: Where operands of its epilogue may lie: channels are columns
PLACES = ("column", "element")


@CODE.of
@emitter
def emit_depthwise(
    rows: Axis, columns: Axis, channels: int, dtype: str, target: Target, *, lda: tuple[int, int],
    ldb: int, ldc: tuple[int, int], epilogue: tuple[Step, ...] = (), ahead: int = 0,
) -> Written:  # fmt: skip
    """The routine for rows.count x columns.count results of `channels` channels.

    Word a is x at pixel (0, 0), b is w (taps x channels, rows `ldb` elements apart), c is y, bias
    and residual (which lies as y does) as the epilogue asks. lda, ldc: elements from a row to the
    next and from a pixel to the next. y may overlap no other word. How many results there may be:
    `plan_strip`. Pixels are fetched into L1 `ahead` rows of x before they are read: 0, unless x
    comes from memory.

    epilogue: all steps but relu_mask and bias_row. Raises ValueError that names argument, value and
    rule.
    """
    steps = make_epilogue(epilogue, dtype)
    check_places(steps, PLACES, "a depthwise kernel")
    walk = _Forward(rows, columns, channels, dtype, target, lda, ldb, ldc, ahead, steps)
    return _written("depthwise", walk, dtype, target)


@CODE.of
@emitter
def emit_depthwise_weights(
    rows: Axis, columns: Axis, channels: int, dtype: str, target: Target, *, lda: tuple[int, int],
    ldb: tuple[int, int], ldc: int, accumulate: bool = True, ahead: int = 0,
) -> Written:  # fmt: skip
    """The routine for what these results add to the gradient of w: dw[r, s, c] += sum over o, p of
    dy[o, p, c] x[...] with x as `emit_depthwise` sees it, or dw = without `accumulate`.

    Word a is x, b is dy (distances `ldb`), c is dw (taps x channels, rows `ldc` elements apart);
    `ahead` as there. Raises ValueError that names argument, value and rule.
    """
    walk = _Gradient(rows, columns, channels, dtype, target, lda, ldc, ldb, ahead)
    walk.accumulate = accumulate
    return _written("depthwise_weights", walk, dtype, target)


def _written(kind: str, walk: Walk, dtype: str, target: Target) -> Written:
    rows, columns = walk.rows, walk.columns
    name = f"{kind} {dtype} {rows.count}x{columns.count}x{walk.channels}"
    signature = tuple(Operand(word, role, dtype) for role, word in walk.words.items())
    if "residual" in operands(walk.epilogue):
        signature += (Operand("residual", "residual", dtype),)
    # each result sees the taps of its row by those of its column
    down, along = (sum(len(axis.seen(o)) for o in range(axis.count)) for axis in (rows, columns))
    flops = 2 * walk.channels * down * along
    return Written(name, signature, target, walk.emit(), flops=flops)


class _Forward(Walk):
    words = {"x": "a", "w": "b", "y": "c", "bias": "bias"}

    def enter(self, taps: range, lanes: int) -> None:
        for t in taps:
            self.machine.load(self.weights[t], (self.frame["w"], t * self.w), lanes)

    def leave(self, taps: range, lanes: int) -> None:
        pass

    def begin(self, acc: list[int], down: int, lanes: int) -> None:
        for register in acc:
            if self.epilogue[:1] == (("bias",),):  # a sum may as well begin with it
                self.machine.load(register, (self.frame["bias"], 0), lanes)
            else:
                self.machine.zero(register)

    def mac(self, acc: int, weight: int, x: int, lanes: int) -> None:
        self.machine.mac(acc, x, weight, lanes)

    def finish(self, acc: list[int], lanes: int) -> None:
        def operand(which: StepOperand, t: int) -> Iterator[list[int]]:
            if which.place == "column":
                self.machine.load(t, (self.frame[which.word], 0), lanes)
                yield acc
                return
            # as far from its first element as y_now is from y's
            pointer = self.frame["residual_now"]
            self.machine.sum(pointer, self.frame["y_now"], self.frame["residual"])
            for p, register in enumerate(acc):
                self.machine.load(t, (pointer, p * self.y[1]), lanes)
                yield [register]

        for i, step in enumerate(self.epilogue):
            if i or step != ("bias",):
                apply(step, self.machine, acc, self.temps, operand)
        for p, register in enumerate(acc):
            self.machine.store(register, (self.frame["y_now"], p * self.y[1]), lanes)


class _Gradient(Walk):
    gradient = True

    words = {"x": "a", "y": "b", "w": "c"}
    accumulate = True

    def enter(self, taps: range, lanes: int) -> None:
        for t in taps:
            if self.accumulate:
                self.machine.load(self.weights[t], (self.frame["w"], t * self.w), lanes)
            else:
                self.machine.zero(self.weights[t])

    def leave(self, taps: range, lanes: int) -> None:
        for t in taps:
            self.machine.store(self.weights[t], (self.frame["w"], t * self.w), lanes)

    def begin(self, acc: list[int], down: int, lanes: int) -> None:
        for p, register in enumerate(acc):
            place = down * self.y[0] + p * self.y[1]
            self.machine.load(register, (self.frame["y_now"], place), lanes)

    def mac(self, acc: int, weight: int, x: int, lanes: int) -> None:
        self.machine.mac(weight, x, acc, lanes)

    def finish(self, acc: list[int], lanes: int) -> None:
        pass
