"""A kernel with data: arrays for a call, the result in float64, an error bound, NumPy's way.

The bound holds for any order of summation: (k count + 4) eps sum |A||B| for each element of the
products, carried through the epilogue. Not here: timing (`jitgen.measure`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jitgen.kernel import Bound, Kernel
from jitgen.operands import NUMPY, STEP_OF
from jitgen.spec import Step

Array = np.ndarray
#: Arrays begin at multiples of so many bytes
ALIGN = 64
#: Rounding of one step of an epilogue, in eps of its result; the functions err by less
STEP_EPS = 8


def _erf(x: Array) -> Array:
    return np.asarray(np.vectorize(math.erf, otypes=[x.dtype])(x))


#: step -> (function, largest slope)
FUNCTIONS: dict[str, tuple[Callable[[Array], Array], float]] = {
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 0.25),
    "tanh": (np.tanh, 1.0),
    "gelu": (lambda x: x * (1 + _erf(x * math.sqrt(0.5))) / 2, 1.13),
    "gelu_tanh": (
        lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2, 1.13
    ),
    "silu": (lambda x: x / (1 + np.exp(-x)), 1.1),
}  # fmt: skip


def apply_step(step: Step, x: Array, operands: dict[str, Array]) -> tuple[Array, float]:
    """The step of an epilogue on `x`, in its precision; and its largest slope."""
    name, *p = step
    if name in FUNCTIONS:
        function, slope = FUNCTIONS[name]
        with np.errstate(over="ignore"):
            return function(x), slope
    if name == "scale":
        return x * p[0], abs(p[0])
    if name == "leaky_relu":
        return np.where(x < 0, x * p[0], x), max(1.0, abs(p[0]))
    if name == "clip":
        return np.clip(x, p[0], p[1]), 1.0
    if name in ("relu", "relu_mask"):
        return np.maximum(x, 0), 1.0
    operand = operands[name]
    return x + (operand[:, np.newaxis] if name == "bias_row" else operand), 1.0


@dataclass(frozen=True)
class Check:
    """Largest error of a kernel's result, the bound of that element, and the largest part of its
    bound that any error takes (more than 1: the result is wrong)."""

    error: float
    bound: float
    of_bound: float
    mask_wrong: int = 0

    @property
    def passed(self) -> bool:
        """Whether all elements keep within their bounds."""
        return self.of_bound <= 1 and not self.mask_wrong


class Problem:
    """Random arrays for a kernel and a batch of `count`, uniform in [-1, 1]."""

    def __init__(self, kernel: Kernel, count: int, seed: int = 1) -> None:
        if count < 1:
            raise ValueError(f"batch={count} is smaller than 1")
        spec = kernel.spec
        self.kernel = kernel
        self.count = count
        self._random = np.random.default_rng(seed)
        rows, columns = spec.a_shape
        a_all = self._array(count, rows, spec.lda)
        a = a_all[..., :columns]
        self._a = a.swapaxes(1, 2) if spec.trans_a else a
        b_all = b = self._array(count, *spec.b_shape[:-1], spec.panel or spec.ldb)
        if spec.panel:
            self._b = b.swapaxes(1, 2).reshape(count, spec.k, -1)[..., : spec.n]
        else:
            b = b_all[..., : spec.b_shape[1]]
            self._b = b.swapaxes(1, 2) if spec.trans_b else b
        self.c = self._array(spec.m, spec.ldc)[:, : spec.n]
        self._c = self.c.copy()
        shapes: dict[str, tuple[int, ...]] = {
            "bias": (spec.n,), "bias_row": (spec.m,), "residual": (spec.m, spec.ldr),
        }  # fmt: skip
        extra = {s: self._array(*shape) for s, shape in shapes.items() if spec.has(s)}
        if "residual" in extra:
            extra["residual"] = extra["residual"][:, : spec.n]
        if spec.has("relu_mask"):
            extra["mask"] = np.empty((spec.m, spec.mask_bytes), np.uint8)
        self.operands = {STEP_OF[name]: array for name, array in extra.items()}
        if spec.batch == "address":
            self._arguments: tuple[Any, Any] = (list(a), list(b))
        elif spec.batch == "offset":
            self._arguments = (a_all, b_all)
            extra["a_offsets"] = np.arange(count) * (a_all.size // count)
            extra["b_offsets"] = np.arange(count) * (b_all.size // count)
        else:
            self._arguments = (a, b)
        self._extra = extra

    def _array(self, *shape: int) -> Array:
        dtype = NUMPY[self.kernel.spec.dtype]
        raw = np.empty(math.prod(shape) * dtype.itemsize + ALIGN, np.uint8)
        start = -raw.ctypes.data % ALIGN
        array = raw[start : start + raw.size - ALIGN].view(dtype).reshape(shape)
        array[...] = self._random.random(shape, dtype.type)
        array *= 2
        array -= 1
        return array

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes that a call touches of A, B and C."""
        spec = self.kernel.spec
        sizes = {"A": spec.m * spec.k, "B": spec.k * spec.n}
        sizes = {name: size * self.count * spec.element for name, size in sizes.items()}
        return {**sizes, "C": spec.m * spec.n * spec.element}

    def bind(self, kernel: Kernel) -> Bound:
        """`kernel`, of the same spec, bound to the arrays."""
        return kernel.bind(*self._arguments, self.c, **self._extra)

    def check(self) -> Check:
        """Run the kernel once and compare all elements with the result in float64."""
        spec = self.kernel.spec
        self.c[...] = self._c
        self.bind(self.kernel)()
        eps = float(np.finfo(self.c.dtype).eps)
        x, size = np.zeros((spec.m, spec.n)), np.zeros((spec.m, spec.n))
        for a, b in zip(self._a, self._b, strict=True):
            a, b = a.astype(np.float64), b.astype(np.float64)
            x += a @ b
            size += np.abs(a) @ np.abs(b)
        old = self._c.astype(np.float64)
        x = spec.alpha * x + spec.beta * old
        bound = (spec.k * self.count + 4) * eps * (
            abs(spec.alpha) * size + abs(spec.beta) * np.abs(old)
        )
        operands = {name: array.astype(np.float64) for name, array in self.operands.items()}
        wrong = 0
        for step in spec.epilogue:
            if step[0] == "relu_mask":
                bits = np.unpackbits(self._extra["mask"], axis=1, bitorder="little")
                differ = bits[:, : spec.n].astype(bool) != (x > 0)
                wrong += int(np.count_nonzero(differ & (np.abs(x) > bound)))
            x, slope = apply_step(step, x, operands)
            bound = slope * bound + STEP_EPS * eps * np.abs(x)
        error = np.nan_to_num(np.abs(self.c - x), nan=np.inf)  # a NaN is wrong
        bound += float(np.finfo(self.c.dtype).tiny)
        there = np.unravel_index(error.argmax(), error.shape)
        part = float((error / bound).max())
        return Check(float(error[there]), float(bound[there]), part, wrong)

    def numpy_call(self) -> tuple[Callable[[], Any], str]:
        """The same work by NumPy, and what it does: one product of A and B joined along k (which
        is done here, not in the call) and the epilogue."""
        spec = self.kernel.spec
        a = np.ascontiguousarray(np.concatenate(list(self._a), axis=1))
        b = np.ascontiguousarray(np.concatenate(list(self._b), axis=0))
        out = np.empty((spec.m, spec.n), a.dtype)
        old, operands = self._c, self.operands
        # NumPy has no erf: it is compared without that step
        steps = [step for step in spec.epilogue if step[0] != "gelu"]

        def call() -> Array:
            x: Array = np.matmul(a, b, out=out)
            if spec.alpha != 1.0:
                x *= spec.alpha
            if spec.beta:
                x += spec.beta * old
            for step in steps:
                x, _ = apply_step(step, x, operands)
            return x

        done = f"np.matmul of {spec.m} x {a.shape[1]} by {b.shape[0]} x {spec.n}"
        if steps:
            done += f", then {', '.join(step[0] for step in steps)}"
        return call, done + (", without gelu" if len(steps) < len(spec.epilogue) else "")
