"""What reductions along rows need beside sums: e^x of what is not positive, and the logarithm.

Written as `jitgen.emit.functions` is, of whose parts it is made. Errors are stated as there: the
largest ones measured, for f32 over all inputs, for f64 over samples, in units in the last place.
Not here: which reductions there are (`jitgen.kernels.row_functions`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

from jitgen.emit.derivatives import Selector
from jitgen.emit.functions import TABLES, Emitter, exponent_place, horner, magic_number

C = TypeVar("C")
_LOG2E = 1.4426950408889634
#: Coefficients of e^f for |f| <= ln 2 / 2, the first one held at 1 (Remez); f64 has `TABLES`'
_EXP = {
    "f32": (1.0, 0.9999997036730253, 0.4999914275742768, 0.1666764393838559, 0.041898851266847885,
            0.008290144392756405),
}  # fmt: skip
#: Parts of ln 2 that n is multiplied by: what f32 leaves out is 1.9e-9 n
_LN2 = {"f32": 1, "f64": 2}
#: From here down n is the smallest exponent less 1, whose power of two is encoded as 0
LOWEST = {"f32": -88.0, "f64": -709.1}
#: R with ln(1 + f) = 2 s + s z R(z), s = f / (2 + f) and z = s^2, for 1 + f between the square
#: roots of 1/2 and of 2 (Remez)
_LOG = {
    "f32": (0.6666666564129258, 0.40000336219324134, 0.2853723832185523, 0.23583568898445764),
    "f64": (
        0.6666666666666735, 0.3999999999941109, 0.28571428743263544, 0.22222198475911115,
        0.18183569743210728, 0.15313903169156026, 0.14797508410453425,
    ),
}  # fmt: skip
#: ln 2: a head whose product with any exponent is exact, and the rest
_LN2_PARTS = {
    "f32": (0.693145751953125, 1.4286068203094172e-06),
    "f64": (0.6931471803691238, 1.9082149292705877e-10),
}
#: Temporaries of `log`
LOG_TEMPS = 5


class Shifter(Selector[C], Protocol[C]):
    """An emitter that can also compare, and shift to the right."""

    def select_greater(self, d: int, x: int, y: int, a: int, b: int) -> None:
        """d = a where x > y, else b (also where x or y is NaN); d is neither a nor b."""

    def shift_down(self, d: int, a: int, bits: int) -> None:
        """d = a >> bits in every lane, zeros coming in."""


def exp_not_positive(
    v: Emitter[C], ds: Sequence[int], xs: Sequence[int], ts: Sequence[int], low: int
) -> None:
    """d = e^x for x <= 0, of several vectors at once, so that none waits for itself.

    Largest error: f32 4.74 ULP (x near -86; 2.1 ULP from x = -8 on), f64 0.9 ULP. e^0 is 1; what is
    below 0.71 of the smallest normal number is 0, so that one power of two serves. NaN gives NaN;
    x may be positive up to 88 (f64: 709). Clobbers xs and ts; `low` is a register with `LOWEST`.
    All registers differ.
    """
    name = v.arithmetic.name
    magic = v.const(magic_number(v))
    for x in xs:
        v.max(x, low, x)  # NaN, the second operand, stays
    for t in ts:
        v.load_const(t, magic)
    for x, t in zip(xs, ts, strict=True):
        v.fma(t, x, v.const(_LOG2E))
    for d, t in zip(ds, ts, strict=True):
        v.sub(d, t, magic)  # n
    for part in TABLES[name].ln2[: _LN2[name]]:
        for d, x in zip(ds, xs, strict=True):
            v.fnma(x, d, v.const(part))
    *rest, last = _EXP.get(name, TABLES[name].exp)
    for d in ds:
        v.load_const(d, v.const(last))
    for coefficient in reversed(rest):
        for d, x in zip(ds, xs, strict=True):
            v.fmad(d, x, v.const(coefficient))
    for t in ts:
        v.shift_left(t, t, exponent_place(v))
    for d, t in zip(ds, ts, strict=True):
        v.mul(d, d, t)


def log(v: Shifter[C], x: int, t: Sequence[int]) -> None:
    """x = ln x.

    Largest error: f32 0.9 ULP, f64 0.9 ULP. 0 gives -infinity, what is negative NaN.
    """
    dtype = v.arithmetic
    place, bias = exponent_place(v), dtype.bias
    f, k, s, z, w = t
    # x as a normal number, in z, and what its exponent is more than that of x
    v.mul(f, x, v.const(2.0 ** (place + 1)))
    v.load_const(s, v.const(dtype.tiny))
    v.select_greater(z, s, x, f, x)
    v.load_const(f, v.const(place + 1.0))
    v.load_const(k, v.const(0.0))
    v.select_greater(w, s, x, f, k)
    _exponent(v, k, z)
    v.sub(k, k, w)
    _log_of_parts(v, (f, k, s, z, w))
    # what is not positive, NaN, and infinity
    v.load_const(k, v.const(0.0))
    v.load_const(s, v.const(-math.inf))
    v.load_const(w, v.const(math.nan))
    v.select_greater(z, k, x, w, s)
    v.select_greater(w, x, k, f, z)
    v.fma(w, x, v.const(0.0))
    v.load_const(k, v.const((2.0 - dtype.epsilon) * 2.0**bias))
    v.load_const(s, v.const(math.inf))
    v.select_greater(x, x, k, s, w)


def log_of_normal(v: Shifter[C], x: int, t: Sequence[int]) -> None:
    """x = ln x of a positive normal number, in fewer steps, with the errors of `log`. NaN gives
    NaN."""
    f, k, s, z, w = t
    v.or_(z, x, x)
    _exponent(v, k, z)
    _log_of_parts(v, (f, k, s, z, w))
    v.mul(x, x, v.const(0.0))  # NaN stays
    v.add(x, x, f)


def _exponent(v: Shifter[C], k: int, z: int) -> None:
    """k = the exponent of z."""
    place = exponent_place(v)
    v.shift_down(k, z, place)
    v.or_(k, k, v.const(2.0**place))
    v.sub(k, k, v.const(2.0**place + v.arithmetic.bias))


def _log_of_parts(v: Shifter[C], t: Sequence[int]) -> None:
    """f = ln(2^k z) of t = (f, k, s, z, w), with z's own exponent left out; clobbers all.

    With 1 + f between the square roots of 1/2 and of 2 that is
    k ln 2 + (f - (f^2 / 2 - s (f^2 / 2 + z R))), of `_LOG`.
    """
    f, k, s, z, w = t
    v.and_(z, z, v.const_bits((1 << exponent_place(v)) - 1))
    v.or_(z, z, v.const(1.0))
    v.mul(f, z, v.const(0.5))
    v.load_const(w, v.const(math.sqrt(2.0)))
    v.select_greater(s, z, w, f, z)
    v.add(f, k, v.const(1.0))
    v.select_greater(w, z, w, f, k)
    v.sub(f, s, v.const(1.0))
    v.add(k, f, v.const(2.0))
    v.div(s, f, k)
    v.mul(z, s, s)
    horner(v, k, z, _LOG[v.arithmetic.name])
    v.mul(k, k, z)
    v.mul(z, f, f)
    v.mul(z, z, v.const(0.5))
    v.add(k, k, z)
    v.mul(s, s, k)
    head, tail = _LN2_PARTS[v.arithmetic.name]
    v.fma(s, w, v.const(tail))
    v.sub(z, z, s)
    v.sub(f, f, z)
    v.fma(f, w, v.const(head))
