"""The functions of rows, one record each: what is reduced in which pass, and what is mapped.

`ROW_FUNCTIONS` is the table that the emitter, layers and nests read. A pass goes once along the
row. Not here: what a pass does (`jitgen.kernels.row_bodies`), loops, registers, addresses
(`jitgen.kernels.rows`).

>>> [p.writes for p in ROW_FUNCTIONS["softmax"].passes]
[(), ('y',), ('y',)]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from jitgen.emit import exponents
from jitgen.kernels import row_bodies as body
from jitgen.kernels.row_bodies import After, Body


class RowOperand(NamedTuple):
    """word: of the argument struct. place: "row" (an element of each element of a row), "column"
    (the same row for all rows), "value" (one element for each row). optional: only if asked for."""

    word: str
    place: str
    meaning: str
    optional: bool = False


@dataclass(frozen=True)
class Pass:
    """One pass along a row.

    reads, writes: operands; the first one written is the group's result. sums, tops: numbers of the
    row that it reduces to. temps: registers for each vector beside what it reads. result: it has
    one although it writes none. chains: sums that it should have side by side. after: what is done
    with the numbers then, with so many temporaries; stores: number -> operand it is stored in.
    """

    reads: tuple[str, ...]
    emit: Body
    writes: tuple[str, ...] = ()
    sums: tuple[str, ...] = ()
    tops: tuple[str, ...] = ()
    temps: int = 0
    result: bool = False
    chains: int = 8
    after: After | None = None
    after_temps: int = 1
    stores: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RowFunction:
    """A function of rows. numbers: further numbers of a row, that `after` makes. constants: those
    that registers hold, by the name of a type and the columns. eps: whether it has one."""

    meaning: str
    operands: Mapping[str, RowOperand]
    passes: tuple[Pass, ...]
    numbers: tuple[str, ...] = ()
    constants: Mapping[str, Callable[[str, int], float]] = field(default_factory=dict)
    eps: bool = False


# ---- the table ----------------------------------------------------------------------------------

_LOW = {"low": lambda dtype, columns: exponents.LOWEST[dtype]}
_X = RowOperand("a", "row", "x")
_Y = RowOperand("c", "row", "y")
_DY = RowOperand("a", "row", "gradient of y")
_DX = RowOperand("c", "row", "gradient of x")
_OF_Y = {"dy": _DY, "y": RowOperand("b", "row", "y"), "dx": _DX}
_SCALE = RowOperand("bias", "column", "scale", True)
_MEAN = RowOperand("bias_row", "value", "mean of each row")
_RSTD = RowOperand("mask", "value", "1 / standard deviation of each row")
_VALUE = RowOperand("c", "value", "a number for each row")
_GRADIENT = RowOperand("a", "value", "gradient of each row's number")
_FIND_TOP = Pass(("x",), body.top, tops=("top",))
_NORM = {"x": _X, "y": _Y, "scale": _SCALE}
_NORM_BACK = {
    "dy": _DY, "x": RowOperand("b", "row", "x"), "dx": _DX, "scale": _SCALE, "rstd": _RSTD,
    "dscale": RowOperand("a_offsets", "column", "sum of gradients of scale", True),
}  # fmt: skip
_OUTPUT_RSTD = {"rstd": _RSTD._replace(optional=True)}

ROW_FUNCTIONS = {
    "softmax": RowFunction(
        "y = e^(x - top) / sum e^(x - top), top the greatest of the row",
        {"x": _X, "y": _Y},
        (
            _FIND_TOP,
            Pass(("x",), body.exp, ("y",), ("sum",), temps=2, chains=1, after=body.invert),
            Pass(("y",), body.scale, ("y",)),
        ),
        constants=_LOW,
    ),
    "log_softmax": RowFunction(
        "y = (x - top) - ln sum e^(x - top)",
        {"x": _X, "y": _Y},
        (
            _FIND_TOP,
            Pass(("x",), body.exp, (), ("sum",), temps=2, result=True, chains=1, after=body.log,
                 after_temps=exponents.LOG_TEMPS),
            Pass(("x",), body.less_sum, ("y",)),
        ),
        constants=_LOW,
    ),
    "log_sum_exp": RowFunction(
        "top + ln sum e^(x - top)",
        {"x": _X, "value": _VALUE},
        (
            Pass(("x",), body.top, tops=("top",), after=body.finite),
            Pass(("x",), body.exp, (), ("sum",), temps=2, result=True, chains=1,
                 after=body.log_and_top, after_temps=exponents.LOG_TEMPS, stores={"sum": "value"}),
        ),
        numbers=("base",),
        constants={**_LOW, "limit": lambda dtype, columns: 0.0},
    ),
    "sum": RowFunction(
        "the sum of a row",
        {"x": _X, "value": _VALUE},
        (Pass(("x",), body.sum, sums=("sum",), stores={"sum": "value"}),),
    ),
    "mean": RowFunction(
        "the mean of a row",
        {"x": _X, "value": _VALUE},
        (Pass(("x",), body.sum, sums=("sum",), after=body.mean("sum"), stores={"sum": "value"}),),
    ),
    "layer_norm": RowFunction(
        "y = (x - mean) rstd scale + shift, rstd = 1 / sqrt(mean of (x - mean)^2 + eps)",
        {
            **_NORM, "shift": RowOperand("residual", "column", "shift", True),
            "mean": _MEAN._replace(optional=True), **_OUTPUT_RSTD,
        },
        (
            Pass(("x",), body.sum_for_mean, sums=("mean",), after=body.mean("mean"),
                 stores={"mean": "mean"}),
            Pass(("x",), body.deviations, sums=("rstd",), temps=1, after=body.root,
                 stores={"rstd": "rstd"}),
            Pass(("x", "scale", "shift"), body.normalise, ("y",)),
        ),
        eps=True,
    ),
    "rms_norm": RowFunction(
        "y = x rstd scale, rstd = 1 / sqrt(mean of x^2 + eps)",
        {**_NORM, **_OUTPUT_RSTD},
        (
            Pass(("x",), body.squares, sums=("rstd",), after=body.root, stores={"rstd": "rstd"}),
            Pass(("x", "scale"), body.normalise, ("y",)),
        ),
        eps=True,
    ),
    "softmax_backward": RowFunction(
        "dx = y (dy - sum dy y)",
        _OF_Y,
        (
            Pass(("dy", "y"), body.dot, sums=("sum",)),
            Pass(("dy", "y"), body.softmax_gradient, ("dx",)),
        ),
    ),
    "log_softmax_backward": RowFunction(
        "dx = dy - e^y sum dy",
        _OF_Y,
        (
            Pass(("dy",), body.sum, sums=("sum",)),
            Pass(("dy", "y"), body.log_softmax_gradient, ("dx",), temps=2),
        ),
        constants=_LOW,
    ),
    "log_sum_exp_backward": RowFunction(
        "dx = gradient e^(x - value)",
        {
            "gradient": _GRADIENT, "x": RowOperand("b", "row", "x"),
            "value": RowOperand("bias_row", "value", "log-sum-exp of each row"), "dx": _DX,
        },
        (Pass(("x",), body.exp_gradient, ("dx",), temps=2),),
        constants=_LOW,
    ),
    "sum_backward": RowFunction(
        "dx = gradient", {"gradient": _GRADIENT, "dx": _DX},
        (Pass((), body.spread, ("dx",), result=True),),
    ),
    "mean_backward": RowFunction(
        "dx = gradient / columns", {"gradient": _GRADIENT, "dx": _DX},
        (Pass((), body.spread, ("dx",), result=True),),
        constants={"part": lambda dtype, columns: 1 / columns},
    ),
    "layer_norm_backward": RowFunction(
        "dx = rstd (g - mean of g - h mean of g h), g = dy scale, h = (x - mean) rstd; "
        "dscale += dy h, dshift += dy",
        {
            **_NORM_BACK, "mean": _MEAN,
            "dshift": RowOperand("b_offsets", "column", "sum of gradients of shift", True),
        },
        (
            Pass(("dy", "x", "scale"), body.norm_sums, sums=("sum", "product"), temps=2, chains=4,
                 after=body.norm_factors),
            Pass(("dy", "x", "scale", "dscale", "dshift"), body.norm_gradient,
                 ("dx", "dscale", "dshift"), temps=3),
        ),
    ),
    "rms_norm_backward": RowFunction(
        "dx = rstd (g - h mean of g h), g = dy scale, h = x rstd; dscale += dy h",
        _NORM_BACK,
        (
            Pass(("dy", "x", "scale"), body.norm_sums, sums=("product",), temps=2, chains=4,
                 after=body.norm_factors),
            Pass(("dy", "x", "scale", "dscale"), body.norm_gradient, ("dx", "dscale"), temps=3),
        ),
    ),
}  # fmt: skip
