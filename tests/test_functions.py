"""Accuracy of jitgen.emit.functions, on a model of its instructions in NumPy.

The model rounds every instruction as IEEE 754 demands, fused multiply-add included, so what it
computes is what the kernels compute; no machine code runs here.  References: double precision for
f32, 40-digit decimals for f64.  Bounds are those the docstrings state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from jitgen.emit import functions
from jitgen.emit.steps import STEPS
from jitgen.types import DTYPES

FUNCTIONS = {
    "exp": functions.exp,
    "sigmoid": functions.sigmoid,
    "silu": functions.silu,
    "tanh": functions.tanh,
    "gelu": functions.gelu,
    "gelu_tanh": functions.gelu_tanh,
}
BOUNDS = {
    ("exp", "f32"): 2.3,
    ("sigmoid", "f32"): 2.5,
    ("silu", "f32"): 3.0,
    ("tanh", "f32"): 3.4,
    ("gelu", "f32"): 4.4,
    ("gelu_tanh", "f32"): 3.2,
    ("exp", "f64"): 1.6,
    ("sigmoid", "f64"): 2.2,
    ("silu", "f64"): 2.8,
    ("tanh", "f64"): 3.0,
    ("gelu", "f64"): 6.0,
    ("gelu_tanh", "f64"): 3.0,
}

Array = np.ndarray[Any, Any]


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the rounded sum and its exact error."""
    with np.errstate(all="ignore"):
        total = a + b
        part = total - a
        return total, (a - (total - part)) + (b - part)


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the rounded float64 product and its error, exact away from over- and underflow."""

    def split(value: Array) -> tuple[Array, Array]:
        scaled = value * 134217729.0  # 2^27 + 1
        head = scaled - (scaled - value)
        return head, value - head

    product = a * b
    a_head, a_tail = split(a)
    b_head, b_tail = split(b)
    error = ((a_head * b_head - product) + a_head * b_tail + a_tail * b_head) + a_tail * b_tail
    return product, error


def _round_to_odd(a: Array, b: Array) -> Array:
    """Return a + b in float64, an inexact sum taking the neighbour whose last bit is 1.

    Rounding that once more, to at least two bits less, gives the correctly rounded sum.
    """
    total, error = _two_sum(a, b)
    raw = total.view(np.int64)
    step = np.where((error > 0) == (total > 0), 1, -1)
    inexact_and_even = (error != 0) & (raw & 1 == 0) & np.isfinite(total)
    rounded: Array = np.where(inexact_and_even, raw + step, raw).view(np.float64)
    return rounded


def _fused(a: Array, b: Array, c: Array) -> Array:
    """Return a * b + c rounded once.

    float64 follows Boldo and Melquiond.  Its product error is inexact only where the product is
    below 2^-960, by far less than the smallest subnormal number.
    """
    if c.dtype == np.float32:
        product = a.astype(np.float64) * b.astype(np.float64)
        return _round_to_odd(product, c.astype(np.float64)).astype(np.float32)
    product, product_error = _two_product(a, b)
    low, low_error = _two_sum(c, product_error)
    high, high_error = _two_sum(product, low)
    fused = high + _round_to_odd(low_error, high_error)
    return np.where(np.isfinite(fused), fused, a * b + c)


class Model:
    """functions.Emitter that computes on arrays instead of emitting instructions."""

    def __init__(self, dtype: str) -> None:
        self.arithmetic = DTYPES[dtype]
        self.float = np.dtype(dtype[0] + str(int(dtype[1:]) // 8))
        self.bits = np.dtype("u" + str(self.float.itemsize))
        self.registers: dict[int, Array] = {}
        self.instructions = 0

    def run(self, function: Callable[..., None], x: Array, temps: int) -> Array:
        """Return function(x), every temporary starting as NaN."""
        self.registers = {0: x.astype(self.float)}
        self.registers |= {t: np.full(x.shape, np.nan, self.float) for t in range(1, temps + 1)}
        with np.errstate(all="ignore"):
            function(self, 0, tuple(range(1, temps + 1)))
        return self.registers[0]

    def const(self, value: float) -> Array:
        return np.array(value, self.float)

    def const_bits(self, bits: int) -> Array:
        return np.array(bits, self.bits).view(self.float)

    def _value(self, operand: int | Array) -> Array:
        return self.registers[operand] if isinstance(operand, int) else operand

    def _set(self, d: int, value: Array) -> None:
        assert d in self.registers, "a register that was not given"
        assert value.dtype == self.float
        self.registers[d] = value
        self.instructions += 1

    def load_const(self, d: int, c: Array) -> None:
        self._set(d, np.full_like(self.registers[0], c))

    def add(self, d: int, a: int, b: int | Array) -> None:
        self._set(d, self.registers[a] + self._value(b))

    def sub(self, d: int, a: int, b: int | Array) -> None:
        self._set(d, self.registers[a] - self._value(b))

    def mul(self, d: int, a: int, b: int | Array) -> None:
        self._set(d, self.registers[a] * self._value(b))

    def div(self, d: int, a: int, b: int | Array) -> None:
        self._set(d, self.registers[a] / self._value(b))

    def max(self, d: int, a: int, b: int | Array) -> None:
        left, right = self.registers[a], self._value(b)
        self._set(d, np.where(left > right, left, right))

    def min(self, d: int, a: int, b: int | Array) -> None:
        left, right = self.registers[a], self._value(b)
        self._set(d, np.where(left < right, left, right))

    def fma(self, acc: int, a: int, b: int | Array) -> None:
        self._set(acc, _fused(self.registers[a], self._value(b), self.registers[acc]))

    def fnma(self, acc: int, a: int, b: int | Array) -> None:
        self._set(acc, _fused(-self.registers[a], self._value(b), self.registers[acc]))

    def fmad(self, d: int, a: int, b: int | Array) -> None:
        c = np.broadcast_to(self._value(b), self.registers[d].shape)
        self._set(d, _fused(self.registers[d], self.registers[a], c))

    def and_(self, d: int, a: int, b: int | Array) -> None:
        bits = self.registers[a].view(self.bits) & self._value(b).view(self.bits)
        self._set(d, bits.view(self.float))

    def or_(self, d: int, a: int, b: int | Array) -> None:
        bits = self.registers[a].view(self.bits) | self._value(b).view(self.bits)
        self._set(d, bits.view(self.float))

    def shift_left(self, d: int, a: int, bits: int) -> None:
        shifted = self.registers[a].view(self.bits) << self.bits.type(bits)
        self._set(d, shifted.view(self.float))


def _apply(name: str, dtype: str, x: Array) -> Array:
    return Model(dtype).run(FUNCTIONS[name], x, STEPS[name].temps)


def _sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1.0) / (1.0 + small)


def reference_f32(name: str, x: Array) -> Array:
    """Return the function of the float64 array x, good to 1e-12 relative."""
    if name == "exp":
        return np.exp(x)
    if name == "tanh":
        return np.tanh(x)
    if name == "sigmoid":
        return _sigmoid(x)
    x = np.maximum(x, -120.0)  # all three are 0 in f32 from there down
    if name == "silu":
        return x * _sigmoid(x)
    if name == "gelu":
        # math.erfc of each element: NumPy has none
        double: Array = np.array([math.erfc(value) for value in (-x * math.sqrt(0.5)).tolist()])
        return x * 0.5 * double
    bounded: Array = np.minimum(x, 120.0)
    return x * _sigmoid(math.sqrt(8 / math.pi) * (bounded + 0.044715 * bounded**3))


def ulps(got: Array, reference: Array) -> Array:
    """Return the errors of the float32 array `got` in ULP of the float64 array `reference`.

    An infinite result is right where the reference rounds to infinity.
    """
    with np.errstate(over="ignore"):
        exact = got == reference.astype(np.float32)
    exponent = np.maximum(np.frexp(reference)[1] - 1, -126)
    with np.errstate(invalid="ignore"):
        error = np.abs(got.astype(np.float64) - reference) / np.ldexp(1.0, exponent - 23)
    return np.where(exact & ~np.isfinite(got), 0.0, error)


def _inputs_f32(seed: int) -> Array:
    """Return finite inputs: all exponents alike, and closer where the functions change."""
    random = np.random.default_rng(seed)
    raw = random.integers(0, 1 << 32, 400_000, dtype=np.uint32).view(np.float32)
    dense = [
        random.uniform(low, high, 320_000)
        for low, high in ((-110, 92), (-21, 21), (-6, 6), (-1, 1), (-0.1, 0.1))
    ]
    parts = [raw[np.isfinite(raw)], *(part.astype(np.float32) for part in dense)]
    for name in ("exp_range", "sigmoid_range", "silu_limit", "tanh_limit", "gelu_limit"):
        for edge in np.atleast_1d(getattr(functions.TABLES["f32"], name)).astype(np.float32):
            steps = np.arange(-500, 501, dtype=np.int32)
            near = (edge.view(np.int32) + steps).view(np.float32)
            parts += [near, -near]
    return np.concatenate(parts)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_f32_error_is_within_the_stated_bound(name: str) -> None:
    x = _inputs_f32(seed=20)
    with np.errstate(over="ignore", under="ignore"):
        reference = reference_f32(name, x.astype(np.float64))
    errors = ulps(_apply(name, "f32", x), reference)
    worst = int(np.argmax(errors))
    assert errors[worst] <= BOUNDS[name, "f32"], (
        f"{name}({x[worst]!r}) is off by {errors[worst]} ULP"
    )


_PI = Decimal("3.14159265358979323846264338327950288419716939937510582")


def _mills_ratio(y: Decimal) -> Decimal:
    """Return Phi(-y) / phi(y) for y >= 0."""
    if y < 5:
        term = total = y
        k = 1
        while term > total * Decimal("1e-36"):
            k += 2
            term *= y * y / k
            total += term
        return (_PI / 2).sqrt() * (y * y / 2).exp() - total
    fraction = y
    for k in range(80, 0, -1):
        fraction = y + k / fraction
    return 1 / fraction


def _reference_f64(name: str, value: float) -> Decimal:
    """Return the function of one float64, good to 1e-25 relative."""
    x = Decimal(value)
    if name == "exp":
        return x.exp()
    if name == "tanh":
        if abs(x) < Decimal("1e-8"):
            return x - x**3 / 3
        e = (2 * x).exp()
        return (e - 1) / (e + 1)
    if name == "gelu":
        tail = (-x * x / 2).exp() / (2 * _PI).sqrt() * _mills_ratio(abs(x))
        return x * tail if x < 0 else x * (1 - tail)
    w = x
    if name == "gelu_tanh":
        w = (8 / _PI).sqrt() * (x + Decimal("0.044715") * x**3)
    sigmoid = 1 / (1 + (-w).exp())
    return sigmoid if name == "sigmoid" else x * sigmoid


def _inputs_f64(name: str, count: int, seed: int) -> Array:
    """Return finite inputs up to where the function has reached its limits."""
    reach = {"gelu": 39.0, "gelu_tanh": 22.0, "tanh": 20.0}.get(name, 752.0)
    random = np.random.default_rng(seed)
    sign = random.choice([-1.0, 1.0], count)
    x = np.concatenate(
        [
            sign * random.uniform(0, reach, count),
            sign * random.uniform(0, 3, count),
            sign * 10.0 ** random.uniform(-9, 0, count),
            sign * 10.0 ** random.uniform(-320, 0, count),
        ]
    )
    return x[x < 709.7]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_f64_error_is_within_the_stated_bound(name: str) -> None:
    x = _inputs_f64(name, 4000, seed=30)
    got = _apply(name, "f64", x)
    worst = 0.0
    with localcontext(Context(prec=45, Emin=-99999, Emax=99999)):
        for argument, result in zip(x.tolist(), got.tolist(), strict=True):
            reference = _reference_f64(name, argument)
            ulp = Decimal(math.ulp(float(reference)))
            worst = max(worst, float(abs(Decimal(result) - reference) / ulp))
    assert worst <= BOUNDS[name, "f64"]


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_limits_and_nan(name: str, dtype: str) -> None:
    largest = np.finfo(Model(dtype).float).max
    x = np.array([np.inf, largest, -largest, -np.inf, 0.0, -0.0, np.nan])
    one_at_top = name in ("sigmoid", "tanh")
    top = [1.0, 1.0] if one_at_top else [np.inf, np.inf if name == "exp" else largest]
    bottom = -1.0 if name == "tanh" else 0.0
    middle = {"exp": 1.0, "sigmoid": 0.5}.get(name, 0.0)
    expected = [*top, bottom, bottom, middle, middle, np.nan]
    np.testing.assert_array_equal(_apply(name, dtype, x), expected)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_tanh_and_sigmoid_stay_in_range_and_tanh_is_odd(dtype: str) -> None:
    x = np.random.default_rng(40).uniform(-45, 45, 100_000)
    tanh = _apply("tanh", dtype, x)
    assert np.all(np.abs(tanh) <= 1)
    np.testing.assert_array_equal(_apply("tanh", dtype, -x), -tanh)
    sigmoid = _apply("sigmoid", dtype, x)
    assert np.all((sigmoid > 0) & (sigmoid <= 1))


def test_fused_multiply_add_of_the_model_rounds_once() -> None:
    random = np.random.default_rng(50)
    for dtype in (np.float32, np.float64):
        a, b = random.uniform(-2, 2, (2, 2000)).astype(dtype)
        c = (-a * b * random.choice([1, 1e-9, 0.5, 1e9], 2000)).astype(dtype)
        for p, q, r, got in zip(a, b, c, _fused(a, b, c), strict=True):
            exact = Fraction(float(p)) * Fraction(float(q)) + Fraction(float(r))
            error = abs(Fraction(float(got)) - exact)
            for other in (np.nextafter(got, dtype(-9e9)), np.nextafter(got, dtype(9e9))):
                assert error <= abs(Fraction(float(other)) - exact)
