"""Accuracy of jitgen.emit.exponents, on the model of instructions in NumPy that test_functions has.

Bounds are those the docstrings state. Not here: machine code (test_row_kernels).
"""

from __future__ import annotations

import math
from decimal import Context, Decimal, localcontext
from typing import Any

import numpy as np
import pytest
from test_derivatives import Selecting
from test_functions import ulps

from jitgen.emit import exponents

Array = np.ndarray[Any, Any]
#: Largest errors in ULP
BOUNDS = {("exp", "f32"): 4.75, ("exp", "f64"): 0.9, ("log", "f32"): 0.9, ("log", "f64"): 0.9}
#: and that of e^x from -8 on, f32
NEAR = 2.1
DTYPES = ("f32", "f64")
SQRT_HALF = math.sqrt(0.5)


class Shifting(Selecting):
    """The model with two instructions more."""

    def select_greater(self, d: int, x: int, y: int, a: int, b: int) -> None:
        assert d not in (a, b)
        r = self.registers
        self._set(d, np.where(r[x] > r[y], r[a], r[b]))

    def shift_down(self, d: int, a: int, bits: int) -> None:
        shifted = self.registers[a].view(self.bits) >> self.bits.type(bits)
        self._set(d, shifted.view(self.float))


def exp(dtype: str, x: Array) -> Array:
    """e^x as the instructions compute it."""

    def emit(v: Any, x: int, t: Any) -> None:
        v.load_const(t[2], v.const(exponents.LOWEST[dtype]))
        exponents.exp_not_positive(v, [t[1]], [x], [t[0]], t[2])
        v.or_(x, t[1], t[1])

    return Shifting(dtype).run(emit, x, 3)


def log(dtype: str, x: Array) -> Array:
    """ln x as the instructions compute it."""
    return Shifting(dtype).run(exponents.log, x, exponents.LOG_TEMPS)


def log_of_normal(dtype: str, x: Array) -> Array:
    """The same of positive normal numbers."""
    return Shifting(dtype).run(exponents.log_of_normal, x, exponents.LOG_TEMPS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_of_normal_numbers_is_log(dtype: str) -> None:
    x = inputs_log(dtype)
    x = x[x >= np.finfo(x.dtype).tiny]
    assert log_of_normal(dtype, x).tobytes() == log(dtype, x).tobytes()
    assert np.isnan(log_of_normal(dtype, np.array([np.nan, -np.nan]))).all()


def inputs_exp(dtype: str) -> Array:
    """Numbers that are not positive, down to where e^x is 0."""
    random = np.random.default_rng(80)
    reach = 110 if dtype == "f32" else 760
    count = 400_000 if dtype == "f32" else 4000
    parts = [random.uniform(-r, 0, count) for r in (reach, 20, 3, 0.4)]
    return np.concatenate([*parts, -(10 ** random.uniform(-30, 0, count))]).astype(
        np.float32 if dtype == "f32" else np.float64
    )


def inputs_log(dtype: str) -> Array:
    """Positive numbers of all exponents, more of them near 1."""
    random = np.random.default_rng(81)
    count = 400_000 if dtype == "f32" else 4000
    low, high = (-149, 128) if dtype == "f32" else (-1074, 1024)
    kind = np.float32 if dtype == "f32" else np.float64
    parts = [2 ** random.uniform(low, high, count), random.uniform(0.4, 3, count),
             1 + 10 ** random.uniform(-8, 0, count), random.uniform(1, 5000, count)]  # fmt: skip
    x = np.concatenate(parts).astype(kind)
    return x[(x > 0) & np.isfinite(x)]


def _floor(exact: Array, dtype: str) -> Array:
    """Where the result is what can be, not 0."""
    kind = np.finfo(np.float32 if dtype == "f32" else np.float64)
    return exact >= float(kind.tiny) * SQRT_HALF * 1.001


def test_f32_error_of_exp_is_within_the_stated_bound() -> None:
    x = inputs_exp("f32")
    reference = np.exp(x.astype(np.float64))
    got = exp("f32", x)
    errors = ulps(got, reference)
    large = _floor(reference, "f32")
    worst = float(errors[large].max())
    assert errors[x >= -8].max() <= NEAR
    assert 0.5 < worst <= BOUNDS["exp", "f32"]
    assert (got[reference < float(np.finfo(np.float32).tiny) * SQRT_HALF * 0.999] == 0).all()
    assert (got <= 1).all()


def test_f32_error_of_log_is_within_the_stated_bound() -> None:
    x = inputs_log("f32")
    errors = ulps(log("f32", x), np.log(x.astype(np.float64)))
    worst = int(errors.argmax())
    assert 0.5 < errors[worst] <= BOUNDS["log", "f32"]


@pytest.mark.parametrize("name", ["exp", "log"])
def test_f64_error_is_within_the_stated_bound(name: str) -> None:
    x = (inputs_exp if name == "exp" else inputs_log)("f64")
    got = (exp if name == "exp" else log)("f64", x)
    worst = 0.0
    with localcontext(Context(prec=45, Emin=-99999, Emax=99999)):
        for argument, result in zip(x.tolist(), got.tolist(), strict=True):
            exact = Decimal(argument)
            reference = exact.exp() if name == "exp" else exact.ln()
            if name == "exp" and reference < Decimal(np.finfo(np.float64).tiny * 0.708):
                continue
            if reference == 0:
                assert result == 0
                continue
            ulp = Decimal(math.ulp(float(reference)))
            worst = max(worst, float(abs(Decimal(result) - reference) / ulp))
    assert 0.5 < worst <= BOUNDS[name, "f64"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_limits_and_nan(dtype: str) -> None:
    """What the functions are at their ends, and what is not a number."""
    largest = float(np.finfo(np.float32 if dtype == "f32" else np.float64).max)
    x = np.array([0.0, -0.0, -largest, -np.inf, np.nan])
    np.testing.assert_array_equal(exp(dtype, x), [1, 1, 0, 0, np.nan])
    x = np.array([1.0, 0.0, -0.0, np.inf, -np.inf, -1.0, -1e-30, np.nan, -np.nan])
    wanted = [0, -np.inf, -np.inf, np.inf, *[np.nan] * 5]
    np.testing.assert_array_equal(log(dtype, x), wanted)
