"""The derivatives of silu and gelu, on one vector register, for the backward pass.

Written as `jitgen.emit.functions` is, of whose parts and tables they are made. Both obey
F(x) + F(-x) = 1: F(-|x|), which goes to 0, is computed, and subtracted from 1 where x is positive.
Not here: derivatives that are a product of the function's values (`jitgen.kernels.elementwise`).

Each is a sum of two terms, F crosses zero once, and no formula has a small relative error there. So
errors are in units in the last place (ULP) of the sum of the terms' magnitudes, which is F itself
for x >= 0 and nearly |F| for large negative x; for f32 the largest ones over all inputs, for f64
over samples. Infinities give 0 and 1, NaN gives NaN, and a zero may have either sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

from jitgen.emit.functions import TABLES, Emitter, exp_as_ratio, gaussian, horner, scaled, sign_bit

C = TypeVar("C")
#: Temporary registers each function needs beside the one with its argument and result
TEMPS = {"silu": 4, "gelu": 4}
#: gelu'(x) is 0 up to minus this, and 1 from this on
_GELU_LIMIT = {"f32": 14.75, "f64": 39.0}
#: (b, coefficients from the constant term upwards): e^(y^2 / 2) Phi(-y) in powers of y / (y + b),
#: to an eighth of a ULP of itself plus y / sqrt(2 pi) (Remez, the first coefficient held)
# fmt: off
_PHI = {
    "f32": (3.0, (
        0.5, -1.1968266462470307, 1.0531619460946572, -0.2870870233672979, -0.15787006406582727,
        0.058625506175839594, 0.017350347174456964, 0.07323376355540393, -0.08571256066113475,
        0.025123652014749155,
    )),
    "f64": (4.0, (
        0.5, -1.5957691216057348, 2.404230878395218, -2.1065377702466495, 0.8719249358927924,
        0.10515923215410974, -0.2090860112030855, -0.02440257729747549, 0.05410568787748071,
        0.01730312333607928, -0.007525741579918244, -0.024316486488457653, 0.04191877254070928,
        -0.09359074925783943, 0.17547340370413814, -0.24144387566895607, 0.25475141422590753,
        -0.2010076947046712, 0.11122271226181167, -0.03990108615136452, 0.008216613767631185,
        -0.0007256599247513216,
    )),
}
# fmt: on


class Selector(Emitter[C], Protocol[C]):
    """An emitter that can select by sign."""

    def select_negative(self, d: int, condition: int, a: int, b: int) -> None:
        """d = a where the sign bit of `condition` is set, else b."""


def silu(v: Selector[C], x: int, t: Sequence[int]) -> None:
    """x = s (1 + x (1 - s)) with s = 1 / (1 + e^-x).

    Largest error, of s + |x| s (1 - s): f32 3.90 ULP (x near -10.8), f64 2.9 ULP.
    With y = -|x|, e^y = p / a and d = a + p that is p (1 + y a / d) / d: only the last instruction
    can give a subnormal number.
    """
    limit = -TABLES[v.arithmetic.name].silu_limit
    y, p, a, d = t
    _minus_magnitude(v, y, x, p, limit)
    exp_as_ratio(v, y, (p, a))
    _minus_magnitude(v, y, x, d, limit)
    v.add(d, a, p)
    v.div(a, a, d)
    v.fmad(a, y, v.const(1.0))
    v.mul(p, p, a)
    v.div(p, p, d)
    _reflect(v, x, p, d)


def gelu(v: Selector[C], x: int, t: Sequence[int]) -> None:
    """x = Phi(x) + x phi(x), phi being the density of the normal distribution and Phi its integral.

    Largest error, of Phi(x) + |x| phi(x): f32 3.11 ULP (x near -3.2), f64 2.2 ULP.
    With y = |x| and a polynomial W, Phi(-y) = e^(-y^2 / 2) W(y / (y + b)). It need not be accurate
    for large y, unlike that of `jitgen.emit.functions.gelu`, because phi has the same exponential
    and y phi is the larger term there.
    """
    limit, scale = _GELU_LIMIT[v.arithmetic.name], 2.0 ** -TABLES[v.arithmetic.name].large
    shift, coefficients = _PHI[v.arithmetic.name]
    gaussian(v, x, t, limit)
    value, y, ratio, w = t
    _minus_magnitude(v, y, x, ratio, -limit)
    v.sub(ratio, y, v.const(shift))
    v.div(ratio, y, ratio)
    horner(v, w, ratio, scaled(coefficients, scale))
    v.fma(w, y, v.const(scale / math.sqrt(2 * math.pi)))
    v.mul(value, value, w)
    _reflect(v, x, value, w)


def _minus_magnitude(v: Emitter[C], y: int, x: int, t: int, limit: float) -> None:
    """y = -|x|, at least `limit`; NaN, the second operand, stays NaN. Clobbers t."""
    v.or_(y, x, v.const_bits(sign_bit(v)))
    v.load_const(t, v.const(limit))
    v.max(y, t, y)


def _reflect(v: Selector[C], x: int, tail: int, t: int) -> None:
    """x = `tail` where x is negative, else 1 - tail. Clobbers t."""
    v.load_const(t, v.const(1.0))
    v.sub(t, t, tail)
    v.select_negative(x, x, tail, t)
