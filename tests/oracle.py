"""What a kernel must compute: float64 values, how far a result may be off, and the comparison.

    C = epilogue(beta * C + alpha * sum op(A_i) op(B_i))

The error bound of the sum is (k * count + 4) eps (|alpha| sum |A||B| + |beta C|); each step of the
epilogue scales it by the step's Lipschitz constant and adds the step's own rounding. Results that
are exact in every step must be equal. NaN and infinities must stand where NumPy has them. Written
with NumPy alone, from the documentation of the operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from cases import DTYPES, Arrays, Case

_erfc = np.frompyfunc(math.erfc, 1, 1)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1.0) / (1.0 + small)


def _times(x: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """x * factor with the limit 0 where x is -infinity."""
    return np.where(x == -np.inf, 0.0, x * factor)


def _gelu(x: np.ndarray) -> np.ndarray:
    return _times(x, 0.5 * _erfc(-x * math.sqrt(0.5)).astype(np.float64))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    bounded = np.clip(x, -1e3, 1e3)
    return _times(x, _sigmoid(math.sqrt(8 / math.pi) * (bounded + 0.044715 * bounded**3)))


def _elu(x: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    return np.where(x <= 0, alpha * np.expm1(np.minimum(x, 0)), x)


def _hardsigmoid(x: np.ndarray, alpha: float = 1 / 6, beta: float = 0.5) -> np.ndarray:
    return np.clip(alpha * x + beta, 0, 1)


def _hardswish(x: np.ndarray) -> np.ndarray:
    return _times(x, np.clip(x + 3, 0, 6)) / 6


def _mish(x: np.ndarray) -> np.ndarray:
    return _times(x, np.tanh(np.logaddexp(0, x)))


#: name -> (function, Lipschitz constant: a number, or a function of x, bound and parameters)
FUNCTIONS: dict[str, tuple[Callable[..., np.ndarray], Any]] = {
    "sigmoid": (_sigmoid, 0.25),
    "tanh": (np.tanh, 1.0),
    "silu": (lambda x: _times(x, _sigmoid(x)), 1.2),
    "gelu": (_gelu, 1.2),
    "gelu_tanh": (_gelu_tanh, 1.2),
    "exp": (np.exp, lambda x, bound: np.exp(x + bound)),
    "hardsigmoid": (_hardsigmoid, lambda x, bound, alpha=1 / 6, beta=0.5: abs(alpha)),
    "hardswish": (_hardswish, 1.5),
    "elu": (_elu, lambda x, bound, alpha=1.0: max(1.0, abs(alpha))),
    "mish": (_mish, 1.1),
}


def stepped(
    step: tuple[Any, ...], value: np.ndarray, bound: np.ndarray, kind: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Value and bound behind one of FUNCTIONS with its parameters, computed in `kind`."""
    name, *parameters = step
    parameters = [float(np.dtype(kind).type(p)) for p in parameters]
    function, lipschitz = FUNCTIONS[name]
    if callable(lipschitz):
        lipschitz = lipschitz(value, bound, *parameters)
    value = function(value, *parameters)
    limits = np.finfo(kind)
    rounding = float(limits.eps) * np.abs(value) + float(limits.smallest_subnormal)
    return value, bound * lipschitz + 8 * rounding


@dataclass
class Expected:
    """What C must be: values, how far off each may be, and which must be exact.

    bits: the relu mask by element; sure: whether the value is far enough from 0 to tell.
    """

    value: np.ndarray
    bound: np.ndarray
    exact: np.ndarray
    bits: np.ndarray
    sure: np.ndarray


def oracle(case: Case, arrays: Arrays) -> Expected:
    """The expected result of a case."""
    with np.errstate(all="ignore"):
        return _oracle(case, arrays)


def _oracle(case: Case, arrays: Arrays) -> Expected:
    dtype = DTYPES[case.dtype]
    eps, tiny = float(np.finfo(dtype).eps), float(np.finfo(dtype).smallest_subnormal)
    a = arrays.a.matrices().transpose(1, 0, 2).reshape(case.m, -1)
    b = arrays.b.matrices().reshape(-1, case.n)
    value = case.alpha * (a @ b)
    size = abs(case.alpha) * (np.abs(a) @ np.abs(b))
    if case.beta != 0.0:
        c = arrays.c[arrays.c_index(case)].astype(np.float64)
        value = value + case.beta * c
        size += np.abs(case.beta * c)
    depth = case.k * case.count + 4
    bound = depth * (eps * size + tiny)
    dyadic = _dyadic(case.alpha) and _dyadic(case.beta)
    exact = np.full(value.shape, case.data == "integer" and dyadic)
    bits = sure = exact
    for step in case.epilogue:
        name, *parameters = (step,) if isinstance(step, str) else step
        if name in ("relu_mask", "relu"):
            if name == "relu_mask":
                bits, sure = value > 0, exact | np.isnan(value) | (np.abs(value) > bound)
            value = np.where(value > 0, value, np.where(np.isnan(value), value, 0.0))
        elif name == "clip":
            value = np.clip(value, *parameters)
        elif name in FUNCTIONS:
            value, bound = stepped((name, *parameters), value, bound, dtype)
            exact = np.zeros_like(exact)
        else:
            value, factor = _linear(case, arrays, name, parameters, value)
            bound = bound * factor + 2 * (eps * np.abs(value) + tiny)
            exact = exact & all(map(_dyadic, parameters))
        # NaN and infinities are what they are, however inexact the way there was
        bound = np.where(np.isfinite(value), bound, 0.0)
        exact = exact & (value == value.astype(dtype))
    return Expected(value, bound, exact, bits, sure)


def _dyadic(factor: float) -> bool:
    """Whether small integers times this factor are exact."""
    return (8 * factor).is_integer()


def _linear(
    case: Case, arrays: Arrays, name: str, parameters: list[float], value: np.ndarray
) -> tuple[np.ndarray, float]:
    """Apply a step that adds or multiplies; the result and the step's Lipschitz constant."""
    if name == "bias":
        return value + arrays.bias, 1.0
    if name == "bias_row":
        return value + arrays.bias_row[:, None], 1.0
    if name == "residual":
        index = np.arange(case.m)[:, None] * arrays.ldr + np.arange(case.n)
        return value + arrays.residual[index], 1.0
    factor = parameters[0]
    if name == "scale":
        return value * factor, abs(factor)
    assert name == "leaky_relu"
    return np.where(value < 0, value * factor, value), max(1.0, abs(factor))


def compare(case: Case, arrays: Arrays, c: np.ndarray, mask: np.ndarray | None) -> str:
    """What is wrong with a result, or "". c: flat, as `arrays.c`, after the call."""
    expected = oracle(case, arrays)
    index = arrays.c_index(case)
    got = c[index].astype(np.float64)
    with np.errstate(all="ignore"):
        rounded = expected.value.astype(DTYPES[case.dtype]).astype(np.float64)
        right = (got == rounded) | (np.isnan(got) & np.isnan(expected.value))
        near = np.abs(got - expected.value) <= expected.bound
    wrong = ~(right | near & ~expected.exact)
    if wrong.any():
        i, j = np.argwhere(wrong)[0]
        return (
            f"{wrong.sum()} of {wrong.size} elements are wrong, first C[{i}, {j}] = "
            f"{got[i, j]!r} instead of {expected.value[i, j]!r} +- {expected.bound[i, j]:.3g}"
            f"{' (exact)' if expected.exact[i, j] else ''}"
        )
    before, after = arrays.c.copy(), c.copy()
    before[index] = after[index] = 0.0
    if before.tobytes() != after.tobytes():
        return "bytes of C outside its m x n block were changed"
    if mask is not None:
        return _compare_mask(expected, mask)
    return ""


def _compare_mask(expected: Expected, mask: np.ndarray) -> str:
    columns = expected.bits.shape[1]
    got = np.unpackbits(mask, axis=1, bitorder="little")
    if got[:, columns:].any():
        return "unused bits of the mask are not zero"
    wrong = (got[:, :columns] != expected.bits) & expected.sure
    if wrong.any():
        i, j = np.argwhere(wrong)[0]
        return f"{wrong.sum()} bits of the mask are wrong, first [{i}, {j}]"
    return ""
