"""The linear units a kernel applies to C before the store: straight lines, and what bends them.

Each emits code for several vector registers, so that a bound or a slope is loaded once for all of
them; written against the instructions of `jitgen.emit.functions.Emitter`, of whose parts and tables
elu and mish are made. Not here: the functions without a straight part (`jitgen.emit.functions`),
which steps there are (`jitgen.emit.steps`).

NaN gives NaN, infinities give the limit (hardswish and mish are 0 at -infinity, where PyTorch's are
NaN), a zero may have either sign. Parameters are rounded to the element type. Errors are stated as
in `jitgen.emit.functions`: the largest ones, for f32 over all inputs from 2^-27 on, for f64 over
80,000 samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from jitgen.emit.derivatives import Selector
from jitgen.emit.functions import (
    TABLES,
    Emitter,
    exp_as_ratio,
    exponent_place,
    horner,
    magic_number,
)

C = TypeVar("C")
_LOG2E = 1.4426950408889634
#: mish(x) is x from here on
_MISH_LIMIT = {"f32": 10.0, "f64": 20.0}


def at_least(v: Emitter[C], xs: Sequence[int], t: int, bound: float) -> None:
    """x = max(x, bound); NaN, the second operand, stays NaN. Clobbers t."""
    v.load_const(t, v.const(bound))
    for x in xs:
        v.max(x, t, x)


def at_most(v: Emitter[C], xs: Sequence[int], t: int, bound: float) -> None:
    """x = min(x, bound); NaN, the second operand, stays NaN. Clobbers t."""
    v.load_const(t, v.const(bound))
    for x in xs:
        v.min(x, t, x)


def clip(v: Emitter[C], xs: Sequence[int], t: Sequence[int], low: float, high: float) -> None:
    """x = x limited to [low, high], exactly."""
    at_least(v, xs, t[0], low)
    at_most(v, xs, t[0], high)


def leaky_relu(v: Selector[C], xs: Sequence[int], t: Sequence[int], slope: float) -> None:
    """x = x, or slope x where x is negative, rounded once."""
    factor = v.const(slope)
    for x in xs:
        v.mul(t[0], x, factor)
        v.select_negative(x, x, t[0], x)


def hardsigmoid(
    v: Emitter[C], xs: Sequence[int], t: Sequence[int], alpha: float, beta: float
) -> None:
    """x = alpha x + beta, rounded once, limited to [0, 1]."""
    v.load_const(t[0], v.const(alpha))
    for x in xs:
        v.fmad(x, t[0], v.const(beta))
    clip(v, xs, t, 0.0, 1.0)


def hardswish(v: Emitter[C], xs: Sequence[int], t: Sequence[int]) -> None:
    """x = x min(max(x + 3, 0), 6) / 6.

    Largest error: f32 2.49 ULP, f64 2.5 ULP (both near 0).
    In this order, PyTorch's, because x + 3 is exact where it nearly vanishes, unlike x / 6 + 1/2.
    x is limited to -3 itself, so that -infinity gives 0.
    """
    at_least(v, xs, t[0], -3.0)
    for x in xs:
        v.add(t[0], x, v.const(3.0))
        v.min(t[0], t[0], v.const(6.0))
        v.mul(t[0], t[0], v.const(1 / 6))
        v.mul(x, x, t[0])


def elu(v: Emitter[C], x: int, t: Sequence[int], alpha: float) -> None:
    """x = x, or alpha (e^x - 1) where x is negative.

    Largest error with alpha = 1: f32 1.27 ULP (x near -0.13), f64 1.4 ULP; none where x > 0.
    max(x, 0) + alpha e with e = e^min(x, 0) - 1 = 2^n q + (2^n - 1), as `tanh` has it.
    """
    table = TABLES[v.arithmetic.name]
    y, power, q = t[0], t[1], t[2]
    v.load_const(y, v.const(0.0))
    v.min(y, y, x)
    v.max(y, y, v.const(-2 * table.tanh_limit))
    v.load_const(q, v.const(0.0))
    v.max(x, q, x)
    magic = v.const(magic_number(v))
    v.load_const(power, magic)
    v.fma(power, y, v.const(_LOG2E))
    v.sub(q, power, magic)  # n
    v.fnma(y, q, v.const(table.ln2[0]))
    v.fnma(y, q, v.const(table.ln2[1]))
    horner(v, q, y, table.exp[1:])
    v.mul(q, q, y)
    v.shift_left(power, power, exponent_place(v))
    v.sub(y, power, v.const(1.0))
    v.fma(y, power, q)
    v.fma(x, y, v.const(alpha))


def mish(v: Emitter[C], x: int, t: Sequence[int]) -> None:
    """x = x tanh(ln(1 + e^x)).

    Largest error: f32 4.23 ULP (x near -7.6), f64 3.6 ULP.
    With u = e^x = p / a the tangent is u (u + 2) / (u (u + 2) + 2) = g / (g + 2 a), g = p (u + 2):
    u may be below the normal range there, being added to 2. Beyond the limit, from which on the
    tangent is 1, what is left of x is added.
    """
    table = TABLES[v.arithmetic.name]
    y, z, p, a = t[0], t[1], t[2], t[3]
    v.load_const(p, v.const(-table.silu_limit))
    v.max(x, p, x)
    v.load_const(p, v.const(_MISH_LIMIT[v.arithmetic.name]))
    v.min(y, p, x)
    v.min(z, p, x)
    v.sub(x, x, y)
    exp_as_ratio(v, z, (p, a))
    v.div(z, p, a)
    v.add(z, z, v.const(2.0))
    v.mul(z, z, p)
    v.add(a, a, a)
    v.add(a, a, z)
    v.div(y, y, a)
    v.fma(x, y, z)

