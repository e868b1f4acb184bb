"""The functions a kernel applies to C before the store: exp, sigmoid, silu, tanh and two gelus.

Each function is straight-line code on one vector register, written once against the small
instruction set of `Emitter`; an instruction-set file supplies the emitter and thereby the code.
Nothing here allocates registers, encodes instructions or computes a value. Not here: functions with
a straight part (`jitgen.emit.rectifiers`), how many temporaries each takes (`jitgen.emit.steps`).

The shape all of them share:

* e^x = p * 2^n with n = round(x / ln 2) and p a polynomial in f = x - n ln 2.  Adding the "magic"
  number 1.5 * 2^23 (f32) or 1.5 * 2^52 (f64) rounds to the integer n and leaves n in the low bits
  of the sum; with the exponent bias added to the magic number, a left shift by the width of the
  mantissa turns that sum into 2^n.  So neither a rounding nor a conversion instruction is needed.
* Where a result may be subnormal, the last instruction alone may round it there.  The power of two
  goes into a divisor, or is kept away from the subnormal range by a factor that the last
  instruction takes out again; the factor costs nothing, being part of a constant.
* silu and the gelus are x * F(x) with F(x) + F(-x) = 1, and are computed as
  max(x, 0) - |x| * F(-|x|): both signs share the small factor, and no selection is needed.
* An exponent that is a product is kept unrounded: its head is taken from the fma that subtracts
  n ln 2, and what its factors lost to rounding is added as a correction.

Constants are operands in memory and occupy no register.  NaN gives NaN, infinities give the limit.
A zero result may have either sign.  Errors in the docstrings are the largest ones measured against
references of higher precision, for f32 over all inputs, for f64 over 80,000 samples, in units in
the last place (ULP) of the result; for subnormal results that is the smallest subnormal number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, TypeVar

from jitgen.types import DType

C = TypeVar("C")  # handle of a constant; the emitter's own business


class Emitter(Protocol[C]):
    """Instructions on vector registers, destination first; one or two machine instructions each.

    A register is an int.  Only the last operand may be a constant.  Every operation rounds once,
    to nearest even, and keeps subnormal numbers.  Operands may coincide, with each other and with
    the destination; `d` of `fmad` is also its first factor.
    """

    @property
    def arithmetic(self) -> DType:
        """Element type."""

    def const(self, value: float) -> C:
        """Return a constant with `value`, rounded to the element type, in every lane."""

    def const_bits(self, bits: int) -> C:
        """Return a constant with the bit pattern `bits` in every lane."""

    def load_const(self, d: int, c: C) -> None:
        """d = c."""

    def add(self, d: int, a: int, b: int | C) -> None:
        """d = a + b."""

    def sub(self, d: int, a: int, b: int | C) -> None:
        """d = a - b."""

    def mul(self, d: int, a: int, b: int | C) -> None:
        """d = a * b."""

    def div(self, d: int, a: int, b: int | C) -> None:
        """d = a / b."""

    def max(self, d: int, a: int, b: int | C) -> None:
        """d = the greater of a and b; where one of them is NaN, b or NaN."""

    def min(self, d: int, a: int, b: int | C) -> None:
        """d = the smaller of a and b; where one of them is NaN, b or NaN."""

    def fma(self, acc: int, a: int, b: int | C) -> None:
        """acc = acc + a * b, rounded once."""

    def fnma(self, acc: int, a: int, b: int | C) -> None:
        """acc = acc - a * b, rounded once."""

    def fmad(self, d: int, a: int, b: int | C) -> None:
        """d = d * a + b, rounded once: a Horner step."""

    def and_(self, d: int, a: int, b: int | C) -> None:
        """d = a & b, bitwise."""

    def or_(self, d: int, a: int, b: int | C) -> None:
        """d = a | b, bitwise."""

    def shift_left(self, d: int, a: int, bits: int) -> None:
        """d = a << bits in every lane, dropping the bits shifted out."""


@dataclass(frozen=True)
class Table:
    """What differs between the arithmetic types, beyond what `jitgen.types` has.

    A pair (head, tail) is a number to more than working precision.  The heads of `step_square` and
    `step_cubic` have so few bits that their product with any n that occurs is exact.
    """

    small: int  # 2^-small * e^f / 2^-(n + small) reaches every result between 1 and 0
    large: int  # 2^(n + large) is normal for every n of a tail that is not 0
    exp_range: tuple[float, float]  # e^x is 0 below and infinite above
    sigmoid_range: tuple[float, float]  # sigmoid is 0 below and 1 above
    silu_limit: float  # |x| * sigmoid(-|x|) is 0 from here on
    tanh_limit: float  # tanh is 1 from here on
    gelu_limit: float  # |x| * Phi(-|x|) is 0 from here on
    gelu_tanh_limit: float  # likewise
    ln2: tuple[float, float]
    step_square: tuple[float, float]  # 2 ln 2
    step_cubic: tuple[float, float]  # ln 2 / _CUBIC
    inverse_cubic: tuple[float, float]  # 1 / 0.044715; the head has few bits
    exp: tuple[float, ...]  # e^f for |f| <= ln 2 / 2
    exp_wide: tuple[float, ...]  # e^f for |f| <= ln 2
    tail_shift: float  # b
    tail: tuple[float, ...]  # e^(y^2 / 2) * Phi(-y) * (y + b) in powers of y / (y + b) - 1


_LOG2E = 1.4426950408889634
_CUBIC = 0.07135481627260025  # 2 sqrt(2 / pi) 0.044715

# Coefficients are given from the constant term upwards.  They minimise the largest relative error
# on the range they serve (Remez), the first two of `exp` being held at 1.
# fmt: off
TABLES = {
    "f32": Table(
        small=32, large=64,
        exp_range=(-104.0, 89.0), sigmoid_range=(-104.0, 20.0),
        silu_limit=108.75, tanh_limit=9.02, gelu_limit=14.375, gelu_tanh_limit=10.78,
        ln2=(0.6931471824645996, -1.9046542121259336e-09),
        step_square=(1.38629150390625, 2.857213530660374e-06),
        step_cubic=(9.7138671875, 0.0002238405286334455),
        inverse_cubic=(22.363845825195312, 1.417704152117949e-05),
        exp=(1.0, 1.0, 0.49999994, 0.16666521, 0.041668262, 0.008368671, 0.0013820999),
        exp_wide=(
            1.0, 1.0000001, 0.5000006, 0.1666657, 0.04165989, 0.008336937, 0.0014122657,
            1.957802e-04,
        ),
        tail_shift=2.5,
        tail=(
            0.39894015, -0.3990604, 0.3329182, -0.22803365, -0.066297844, -0.2973703, -0.9336157,
            -0.954765, -0.4416417, -0.0804675,
        ),
    ),
    "f64": Table(
        small=64, large=512,
        exp_range=(-746.0, 710.0), sigmoid_range=(-746.0, 40.0),
        silu_limit=751.8, tanh_limit=19.1, gelu_limit=38.59, gelu_tanh_limit=21.55,
        ln2=(0.6931471805599453, 2.3190468138462996e-17),
        step_square=(1.3862943611197807, 1.0995846037416742e-13),
        step_cubic=(9.714091028021357, 2.33860772008595e-12),
        inverse_cubic=(22.36386000223638, 7.068084733670861e-15),
        exp=(
            1.0, 1.0, 0.5000000000000011, 0.16666666666666416, 0.041666666666529795,
            0.008333333333492838, 0.001388888894369953, 0.0001984126950934816,
            2.480149304801622e-05, 2.7557584456466494e-06, 2.763026073198325e-07,
            2.5000517770176316e-08,
        ),
        exp_wide=(
            1.0, 0.9999999999999999, 0.49999999999999856, 0.16666666666667215,
            0.041666666666716604, 0.008333333333242607, 0.0013888888882416426,
            0.0001984126990474312, 2.4801591263051857e-05, 2.755729816304569e-06,
            2.755608211006382e-07, 2.5055255673878254e-08, 2.1067385527754747e-09,
            1.5930385854522674e-10,
        ),
        tail_shift=4.5,
        tail=(
            0.398942280446759, -0.398942277555083, 0.37924150843320825, -0.33983831449453705,
            0.28367221251795116, -0.21639004108545543, 0.14733051739733743, -0.07847389501890889,
            0.04475220359437315, 0.03193523068895432, 0.02807368937387026, 0.002677472897808082,
            -0.2433262650452023, -0.6851235810559878, -1.193975188314501, -1.460637237789878,
            -1.2334804206197838, -0.7015300810403002, -0.2577865601931859, -0.05561355624664906,
            -0.005380258290863648,
        ),
    ),
}
# fmt: on



def exponent_place(v: Emitter[C]) -> int:
    """Return the number of bits right of the exponent."""
    return v.arithmetic.precision - 1


def magic_number(v: Emitter[C], offset: int = 0) -> float:
    """Return the number that, added to n, leaves 2^(n + offset) to be shifted into place."""
    return 1.5 * 2.0 ** exponent_place(v) + v.arithmetic.bias + offset


def sign_bit(v: Emitter[C]) -> int:
    """Return the bit pattern of the sign."""
    return 1 << (8 * v.arithmetic.size - 1)


def horner(v: Emitter[C], d: int, x: int, coefficients: Sequence[float]) -> None:
    """d = coefficients[0] + coefficients[1] * x + ..., d and x being different registers."""
    v.load_const(d, v.const(coefficients[-1]))
    for coefficient in reversed(coefficients[:-1]):
        v.fmad(d, x, v.const(coefficient))


def scaled(coefficients: Sequence[float], outer: float, inner: float = 1.0) -> list[float]:
    """Return the coefficients of outer * P(inner * x)."""
    return [
        float(Fraction(coefficient) * Fraction(outer) * Fraction(inner) ** power)
        for power, coefficient in enumerate(coefficients)
    ]


def _clamp(v: Emitter[C], x: int, t: Sequence[int], low: float, high: float) -> None:
    """x = x limited to [low, high]; NaN, the second operand, stays NaN.  Clobbers t[0], t[1]."""
    v.load_const(t[0], v.const(high))
    v.min(t[0], t[0], x)
    v.load_const(t[1], v.const(low))
    v.max(x, t[1], t[0])


def exp_as_ratio(v: Emitter[C], x: int, ratio: tuple[int, int]) -> None:
    """ratio = (p, a) with p / a = e^x and p near 2^-small: sigmoid(x) is p / (a + p).

    Clobbers x, which must be so limited that a = 2^-(n + small) is normal.
    """
    table = TABLES[v.arithmetic.name]
    p, a = ratio
    magic = v.const(magic_number(v, -table.small))
    v.load_const(a, magic)
    v.fma(a, x, v.const(-_LOG2E))
    v.sub(p, a, magic)  # -n
    v.fma(x, p, v.const(table.ln2[0]))
    v.fma(x, p, v.const(table.ln2[1]))
    horner(v, p, x, scaled(table.exp, 2.0**-table.small))
    v.shift_left(a, a, exponent_place(v))


def _positive_part(v: Emitter[C], x: int, t: int) -> None:
    """x = max(x, 0); NaN stays NaN, being the second operand.  Clobbers t."""
    v.load_const(t, v.const(0.0))
    v.max(x, t, x)


def exp(v: Emitter[C], x: int, t: Sequence[int]) -> None:
    """x = e^x.

    Largest error: f32 2.29 ULP (x near -59), f64 1.5 ULP.
    The range of n is wider than that of normal powers of two, so 2^n is applied as two equal
    factors 2^(n / 2) with n even, at the price of a polynomial on twice the range.
    """
    table = TABLES[v.arithmetic.name]
    power, p = t[0], t[1]
    magic = v.const(magic_number(v))
    _clamp(v, x, t, *table.exp_range)
    v.load_const(power, magic)
    v.fma(power, x, v.const(_LOG2E / 2))
    v.sub(p, power, magic)  # n / 2
    v.fnma(x, p, v.const(2 * table.ln2[0]))
    v.fnma(x, p, v.const(2 * table.ln2[1]))
    horner(v, p, x, table.exp_wide)
    v.shift_left(power, power, exponent_place(v))
    v.mul(p, p, power)
    v.mul(x, p, power)


def sigmoid(v: Emitter[C], x: int, t: Sequence[int]) -> None:
    """x = 1 / (1 + e^-x).

    Largest error: f32 2.41 ULP (x near -4), f64 2.1 ULP.
    With e^x = p / a the result is p / (a + p): no cancellation at either end, never above 1.
    """
    _clamp(v, x, t, *TABLES[v.arithmetic.name].sigmoid_range)
    exp_as_ratio(v, x, (t[0], t[1]))
    v.add(t[1], t[1], t[0])
    v.div(x, t[0], t[1])


def silu(v: Emitter[C], x: int, t: Sequence[int]) -> None:
    """x = x / (1 + e^-x).

    Largest error: f32 3.00 ULP (x near -5), f64 2.6 ULP.
    max(x, 0) - |x| sigmoid(-|x|), the product being (|x| / (a + p)) * p: with the division first,
    neither a small |x| nor a small sigmoid drives an intermediate result below the normal range.
    """
    table = TABLES[v.arithmetic.name]
    sign, limit = v.const_bits(sign_bit(v)), v.const(-table.silu_limit)
    y, p, a = t[0], t[1], t[2]
    v.or_(y, x, sign)
    v.max(y, y, limit)
    exp_as_ratio(v, y, (p, a))
    v.add(a, a, p)
    v.or_(y, x, sign)
    v.max(y, y, limit)
    v.div(y, y, a)
    _positive_part(v, x, a)
    v.fma(x, y, p)


def tanh(v: Emitter[C], x: int, t: Sequence[int]) -> None:
    """x = tanh(x).

    Largest error: f32 3.38 ULP (|x| near 0.06), f64 2.8 ULP.
    e / (e + 2) with e = e^(2 |x|) - 1 = 2^n q + (2^n - 1), q being the polynomial less its constant
    term: accurate near 0, where n is 0; odd to the last bit; never beyond 1.
    """
    table = TABLES[v.arithmetic.name]
    magic = v.const(magic_number(v))
    y, power, q = t[0], t[1], t[2]
    v.load_const(y, v.const(table.tanh_limit))
    v.and_(power, x, v.const_bits(sign_bit(v) - 1))
    v.min(y, y, power)  # NaN stays NaN, being the second operand
    v.load_const(power, magic)
    v.fma(power, y, v.const(2 * _LOG2E))
    v.sub(q, power, magic)  # n
    v.fnma(y, q, v.const(table.ln2[0] / 2))
    v.fnma(y, q, v.const(table.ln2[1] / 2))
    horner(v, q, y, scaled(table.exp, 1.0, 2.0)[1:])
    v.mul(q, q, y)
    v.shift_left(power, power, exponent_place(v))
    v.sub(y, power, v.const(1.0))
    v.fma(y, power, q)
    v.add(q, y, v.const(2.0))
    v.div(y, y, q)
    v.and_(x, x, v.const_bits(sign_bit(v)))
    v.or_(x, x, y)


def gaussian(v: Emitter[C], x: int, t: Sequence[int], limit: float) -> None:
    """t[0] = 2^large e^(-y^2 / 2), large being the table's and y = |x|, at most `limit`.

    Clobbers t[1] and t[2]; the result for NaN is a number or NaN.
    """
    table = TABLES[v.arithmetic.name]
    magic = v.const(magic_number(v))
    y, n, f = t[0], t[1], t[2]
    v.and_(y, x, v.const_bits(sign_bit(v) - 1))
    v.min(y, y, v.const(limit))
    v.mul(n, y, y)
    v.load_const(f, magic)
    v.fma(f, n, v.const(-_LOG2E / 2))
    v.sub(n, f, magic)
    v.mul(f, n, v.const(table.step_square[0]))
    v.fma(f, y, y)  # y^2 + 2 n ln 2, the square unrounded
    v.fma(f, n, v.const(table.step_square[1]))
    v.add(n, n, v.const(magic_number(v, table.large)))
    v.shift_left(n, n, exponent_place(v))
    value = t[0]
    horner(v, value, f, scaled(table.exp, 1.0, -0.5))
    v.mul(value, value, n)


def gelu(v: Emitter[C], x: int, t: Sequence[int]) -> None:
    """x = x Phi(x) = x (1 + erf(x / sqrt 2)) / 2.

    Largest error: f32 4.33 ULP (|x| near 0.014), f64 5.6 ULP (|x| < 0.1): above 4 because six
    roundings (y^2, exponential, r, W, two products) meet where the result is half of x; one more
    degree of W, or a quotient instead of it, measured no better.
    max(x, 0) - y Phi(-y) with y = |x| and y Phi(-y) = e^(-y^2 / 2) * r * W(r - 1), r being
    y / (y + b) and W a polynomial: r and W stay between bounds, however large y is.
    """
    table = TABLES[v.arithmetic.name]
    gaussian(v, x, t, table.gelu_limit)
    value, y, w, ratio = t[0], t[1], t[2], t[1]
    v.and_(y, x, v.const_bits(sign_bit(v) - 1))
    v.min(y, y, v.const(table.gelu_limit))
    v.add(w, y, v.const(table.tail_shift))
    v.div(ratio, y, w)
    v.mul(value, value, ratio)
    v.sub(ratio, ratio, v.const(1.0))
    horner(v, w, ratio, scaled(table.tail, 2.0**-table.large))
    _positive_part(v, x, ratio)
    v.fnma(x, value, w)


def gelu_tanh(v: Emitter[C], x: int, t: Sequence[int]) -> None:
    """x = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2.

    Largest error: f32 3.13 ULP (x near -2.6), f64 2.7 ULP.
    That is x sigmoid(w) with w = c y (y^2 + k), c = 2 sqrt(2 / pi) 0.044715 and k = 1 / 0.044715,
    computed as silu is; c is part of the polynomial for e^-w, so that only y (y^2 + k) is to be
    kept to more than working precision.
    """
    table = TABLES[v.arithmetic.name]
    magic = v.const(magic_number(v))
    y, cubic, n, f = t[0], t[1], t[2], t[3]
    v.and_(y, x, v.const_bits(sign_bit(v) - 1))
    v.min(y, y, v.const(table.gelu_tanh_limit))
    v.load_const(cubic, v.const(table.inverse_cubic[0]))
    v.fma(cubic, y, y)  # y^2 + k, rounded
    v.mul(f, y, cubic)
    v.load_const(n, magic)
    v.fma(n, f, v.const(_CUBIC * _LOG2E))
    v.sub(n, n, magic)
    v.mul(f, n, v.const(table.step_cubic[0]))
    v.fnma(f, y, cubic)  # (n ln 2 - w) / c so far
    v.sub(cubic, cubic, v.const(table.inverse_cubic[0]))
    v.fnma(cubic, y, y)
    v.sub(cubic, cubic, v.const(table.inverse_cubic[1]))  # what rounding added to y^2 + k
    v.fma(f, y, cubic)
    v.fma(f, n, v.const(table.step_cubic[1]))
    p = cubic
    horner(v, p, f, scaled(table.exp, 2.0**-table.small, _CUBIC))
    v.add(n, n, v.const(magic_number(v, -table.small)))
    v.shift_left(n, n, exponent_place(v))
    v.add(n, n, p)
    v.div(y, y, n)
    _positive_part(v, x, f)
    v.fnma(x, y, p)
