"""One batch-reduce problem of the benchmarks: shape, buffers and the expected result.

What it is: the data that all contestants share, row-major as in jitgen: A is (count, m, k), B is
(count, k, n), C is (m, n), everything aligned to 64 bytes, in one or (for cold caches) many sets:
arrays a (sets, count, m, k), b (sets, count, k, n) and c (sets, m, n).
What it is not: it runs and times nothing.

Example::

    problem = Problem(Shape(64, 64, 64, 16), "f32")
    a, b, c = problem.a[0], problem.b[0], problem.c[0]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.machine_code import A_OFFSET, B_OFFSET, C_OFFSET, PAGE

DTYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "f64": np.dtype(np.float64)}
# Relative to the size of the sum of absolute products; generous against any order of summation.
TOLERANCE = {"f32": 1e-5, "f64": 1e-13}
_MAX_SETS = 32768


@dataclass(frozen=True)
class Shape:
    """m x n x k of one product and the number of products that are summed."""

    m: int
    n: int
    k: int
    count: int

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}"

    @property
    def flops(self) -> int:
        """Floating-point operations of one call (a multiply-add counts as two)."""
        return 2 * self.m * self.n * self.k * self.count

    def elements(self) -> int:
        """Elements of A, B and C together."""
        return self.count * self.k * (self.m + self.n) + self.m * self.n


def placed(shape: tuple[int, ...], dtype: np.dtype[Any], offset: int) -> np.ndarray:
    """Return an uninitialised C-contiguous array that starts ``offset`` bytes into a page."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + PAGE, np.uint8)
    start = (offset - raw.ctypes.data) % PAGE
    return raw[start : start + size].view(dtype).reshape(shape)


def last_level_cache_bytes() -> int:
    """Return the size of the largest CPU cache, from Linux's sysfs; 64 MiB where that is silent."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 0)
        if unit and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * unit)
    return max(sizes, default=64 << 20)


class Problem:
    """Inputs of one shape and dtype; with ``cold`` in sets that exceed the last cache twice."""

    def __init__(self, shape: Shape, dtype: str, *, cold: bool = False, seed: int = 1) -> None:
        self.shape = shape
        self.dtype = dtype
        element = DTYPES[dtype]
        self.sets = 1
        if cold:
            wanted = 2 * last_level_cache_bytes()
            self.sets = min(_MAX_SETS, -(-wanted // (shape.elements() * element.itemsize)))
        rng = np.random.default_rng(seed)
        self.a = placed((self.sets, shape.count, shape.m, shape.k), element, A_OFFSET)
        self.b = placed((self.sets, shape.count, shape.k, shape.n), element, B_OFFSET)
        self.a[...] = rng.uniform(-1, 1, self.a.shape[1:]).astype(element)
        self.b[...] = rng.uniform(-1, 1, self.b.shape[1:]).astype(element)
        # One C for everyone: where it lies relative to A and B can change the time of a call.
        self.c = placed((self.sets, shape.m, shape.n), element, C_OFFSET)
        self.c[...] = np.nan

    @cached_property
    def expected(self) -> np.ndarray:
        """The result in double precision."""
        a, b = self.a[0].astype(np.float64), self.b[0].astype(np.float64)
        total: np.ndarray = np.einsum("imk,ikn->mn", a, b, optimize=True)
        return total

    def error(self) -> float:
        """Largest error of the result in ``c[0]``, relative to the sum of absolute products."""
        a, b = np.abs(self.a[0].astype(np.float64)), np.abs(self.b[0].astype(np.float64))
        scale = np.einsum("imk,ikn->mn", a, b, optimize=True)
        error = np.max(np.abs(self.c[0].astype(np.float64) - self.expected) / scale)
        return float(error) if np.isfinite(error) else math.inf

    def check(self, compute: Callable[[], Any]) -> str | None:
        """Run ``compute``, which writes ``c[0]``; return what is wrong with it, or None.

        C holds NaN before: with beta = 0 nobody may read it, and everyone must write all of it.
        """
        self.c[0] = np.nan
        compute()
        error = self.error()
        return (
            None if error <= TOLERANCE[self.dtype] else f"wrong result, relative error {error:.1e}"
        )
