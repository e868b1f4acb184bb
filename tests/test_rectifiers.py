"""Accuracy of jitgen.emit.rectifiers as the table of steps emits them, on the model of instructions
in NumPy that test_functions and test_derivatives have.

Bounds are those the docstrings state. Not here: machine code (test_kernels and others).
"""

from __future__ import annotations

import math
from decimal import Context, Decimal, localcontext
from typing import Any

import numpy as np
import pytest
from test_derivatives import Selecting
from test_functions import _inputs_f32, ulps

from jitgen.emit.steps import STEPS

Array = np.ndarray[Any, Any]
#: Largest errors in ULP
BOUNDS = {
    ("elu", "f32"): 1.3, ("hardswish", "f32"): 2.5, ("mish", "f32"): 4.3,
    ("elu", "f64"): 1.4, ("hardswish", "f64"): 2.5, ("mish", "f64"): 3.7,
}  # fmt: skip
NAMES = ("elu", "hardswish", "mish")
INF, NAN = math.inf, math.nan


def apply(step: tuple[Any, ...], dtype: str, x: Array) -> Array:
    """A step as its instructions compute it, parameters filled in."""
    name, *parameters = step
    kind = STEPS[name]
    parameters += list(kind.parameters.values())[len(parameters) :]

    def emit(model: Any, register: int, temps: Any) -> None:
        kind.emit(model, [register], temps, *parameters)

    return Selecting(dtype).run(emit, x, kind.temps)


def _reference_f32(name: str, x: Array) -> Array:
    """Of the float64 array x, good to 1e-12 relative."""
    if name == "elu":
        return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
    if name == "hardswish":
        return np.maximum(x, -3) * np.clip(x + 3, 0, 6) / 6
    x = np.maximum(x, -120)
    u = np.exp(-np.abs(x))
    tangent = (1 + 2 * u) / (1 + 2 * u + 2 * u * u), u * (u + 2) / (u * u + 2 * u + 2)
    return x * np.where(x > 0, *tangent)


@pytest.mark.parametrize("name", NAMES)
def test_f32_error_is_within_the_stated_bound(name: str) -> None:
    random = np.random.default_rng(70)
    near = [random.uniform(-3.2, 3.2, 320_000), -3 + 10 ** random.uniform(-6, -1, 100_000)]
    x = np.concatenate([_inputs_f32(seed=70), *(each.astype(np.float32) for each in near)])
    with np.errstate(all="ignore"):
        reference = _reference_f32(name, x.astype(np.float64))
    errors = ulps(apply((name,), "f32", x), reference)
    worst = int(np.argmax(errors))
    assert 0.5 < errors[worst] <= BOUNDS[name, "f32"], f"{name}({x[worst]!r}): {errors[worst]} ULP"


def _reference_f64(name: str, value: float) -> Decimal:
    x = Decimal(value)
    if name == "hardswish":
        return x * min(max(x + 3, Decimal(0)), Decimal(6)) / 6
    if name == "elu":
        if x > 0:
            return x
        return x + x * x / 2 + x**3 / 6 if abs(x) < Decimal("1e-8") else x.exp() - 1
    u = x.exp()
    return x * u * (u + 2) / (u * (u + 2) + 2)


@pytest.mark.parametrize("name", NAMES)
def test_f64_error_is_within_the_stated_bound(name: str) -> None:
    random = np.random.default_rng(71)
    reach, sign = {"elu": 40.0, "hardswish": 3.1, "mish": 752.0}[name], (-1.0, 1.0)
    x = np.concatenate([
        random.uniform(-reach, min(reach, 25.0), 4000), random.uniform(-4, 4, 4000),
        random.choice(sign, 4000) * 10.0 ** random.uniform(-9, 0, 4000),
        random.choice(sign, 4000) * 10.0 ** random.uniform(-320, 0, 4000),
    ])  # fmt: skip
    worst = 0.0
    with localcontext(Context(prec=45, Emin=-99999, Emax=99999)):
        for argument, result in zip(x.tolist(), apply((name,), "f64", x).tolist(), strict=True):
            reference = _reference_f64(name, argument)
            ulp = Decimal(math.ulp(float(reference)))
            worst = max(worst, float(abs(Decimal(result) - reference) / ulp))
    assert 0.5 < worst <= BOUNDS[name, "f64"]


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize(("step", "expected"), [
    (("elu",), [NAN, INF, "largest", -1, -1, 0, 0, 4]),
    (("elu", 2.5), [NAN, INF, "largest", -2.5, -2.5, 0, 0, 4]),
    (("hardswish",), [NAN, INF, "largest", 0, 0, 0, 0, 4]),
    (("mish",), [NAN, INF, "largest", 0, 0, 0, 0, None]),
    (("hardsigmoid",), [NAN, 1, 1, 0, 0, 0.5, 0.5, 1]),
    (("hardsigmoid", -0.25, 2.0), [NAN, 0, 0, 1, 1, 1, 1, 1]),
    (("clip", -1.5, 3.0), [NAN, 3, 3, -1.5, -1.5, 0, 0, 3]),
    (("clip", -INF, 3.0), [NAN, 3, 3, -INF, "lowest", 0, 0, 3]),
    (("leaky_relu", 0.5), [NAN, INF, "largest", -INF, "half", 0, 0, 4]),
])  # fmt: skip
def test_limits_and_nan(step: tuple[Any, ...], expected: list[Any], dtype: str) -> None:
    largest = float(np.finfo(Selecting(dtype).float).max)
    names = {"largest": largest, "lowest": -largest, "half": -largest / 2}
    x = np.array([NAN, INF, largest, -INF, -largest, 0.0, -0.0, 4.0])
    got = apply(step, dtype, x)
    wanted = np.array([names.get(v, v) for v in expected], float)
    told = np.array([v is not None for v in expected])
    np.testing.assert_array_equal(got[told], wanted[told].astype(got.dtype))


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_straight_parts_are_exact(dtype: str) -> None:
    """Where they are x itself; hardsigmoid is rounded once."""
    x = np.abs(np.random.default_rng(72).standard_normal(10_000) * 100)
    x = x.astype(Selecting(dtype).float)
    np.testing.assert_array_equal(apply(("elu",), dtype, x), x)
    far = x + x.dtype.type(3)
    np.testing.assert_array_equal(apply(("hardswish",), dtype, far), far)
    np.testing.assert_array_equal(apply(("leaky_relu", 0.1), dtype, x), x)
    if dtype == "f32":
        x = x / x.dtype.type(-30)
        exact = np.clip(x.astype(np.float64) * float(np.float32(1 / 6)) + 0.5, 0, 1)
        np.testing.assert_array_equal(apply(("hardsigmoid",), dtype, x), exact.astype(x.dtype))
