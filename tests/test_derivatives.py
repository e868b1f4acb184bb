"""Accuracy of jitgen.emit.derivatives, on the model of instructions in NumPy that test_functions
has.

Not here: machine code (`test_elementwise`).
"""

from __future__ import annotations

import math
from decimal import Context, Decimal, localcontext
from typing import Any

import numpy as np
import pytest
from test_functions import _PI, Model, _inputs_f32, _inputs_f64, _mills_ratio

from jitgen.emit import derivatives

Array = np.ndarray[Any, Any]
FUNCTIONS = {"silu": derivatives.silu, "gelu": derivatives.gelu}
#: largest errors in ULP of the sum of the two terms' magnitudes, as the docstrings state them
BOUNDS = {
    ("silu", "f32"): 4.0,
    ("gelu", "f32"): 3.2,
    ("silu", "f64"): 3.2,
    ("gelu", "f64"): 2.6,
}


class Selecting(Model):
    """The model with one instruction more."""

    def select_negative(self, d: int, condition: int, a: int, b: int) -> None:
        negative = np.signbit(self.registers[condition])
        self._set(d, np.where(negative, self.registers[a], self.registers[b]))


def apply(name: str, dtype: str, x: Array) -> Array:
    """The derivative as the instructions compute it."""
    return Selecting(dtype).run(FUNCTIONS[name], x, derivatives.TEMPS[name])


def derivative(name: str, x: Array) -> tuple[Array, Array]:
    """(f'(x), sum of the magnitudes of its terms) in float64, relative to that good to 1e-15."""
    y = x.astype(np.float64)
    with np.errstate(all="ignore"):
        if name == "silu":
            small = np.exp(-np.abs(y))
            s, rest = (np.where(side, small, 1.0) / (1.0 + small) for side in (y < 0, y >= 0))
            return s * (1 + y * rest), s + np.abs(y) * s * rest
        phi = np.exp(-y * y / 2) / math.sqrt(2 * math.pi)
        erfc = np.array([math.erfc(value) for value in (-y.ravel() * math.sqrt(0.5)).tolist()])
        Phi = erfc.reshape(y.shape) / 2
        return Phi + y * phi, Phi + np.abs(y) * phi


@pytest.mark.parametrize("name", FUNCTIONS)
def test_f32_error_is_within_the_stated_bound(name: str) -> None:
    x = _inputs_f32(seed=60)
    x = x[np.abs(x) < 1e15]
    reference, size = derivative(name, x)
    exponent = np.maximum(np.frexp(size)[1] - 1, -126)
    errors = np.abs(apply(name, "f32", x) - reference) / np.ldexp(1.0, exponent - 23)
    worst = int(np.argmax(errors))
    assert errors[worst] <= BOUNDS[name, "f32"], f"{x[worst]!r} is off by {errors[worst]} ULP"


def _reference_f64(name: str, value: float) -> tuple[Decimal, Decimal]:
    x = Decimal(value)
    if name == "silu":
        s = 1 / (1 + (-x).exp())
        first, second = s, x * s * (1 - s)
    else:
        phi = (-x * x / 2).exp() / (2 * _PI).sqrt()
        tail = phi * _mills_ratio(abs(x))
        first, second = (tail if x < 0 else 1 - tail), x * phi
    return first + second, first + abs(second)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_f64_error_is_within_the_stated_bound(name: str) -> None:
    x = _inputs_f64(name, 3000, seed=61)
    got = apply(name, "f64", x)
    worst = 0.0
    with localcontext(Context(prec=45, Emin=-99999, Emax=99999)):
        for argument, result in zip(x.tolist(), got.tolist(), strict=True):
            reference, size = _reference_f64(name, argument)
            ulp = Decimal(math.ulp(float(size)))
            worst = max(worst, float(abs(Decimal(result) - reference) / ulp))
    assert worst <= BOUNDS[name, "f64"]


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_limits_and_nan(name: str, dtype: str) -> None:
    largest = np.finfo(Selecting(dtype).float).max
    x = np.array([np.inf, largest, -largest, -np.inf, 0.0, -0.0, np.nan, -np.nan])
    expected = [1.0, 1.0, 0.0, 0.0, 0.5, 0.5, np.nan, np.nan]
    np.testing.assert_array_equal(apply(name, dtype, x), expected)
