"""Bad values, and what an argument of each kind may take of them.

A kind is a function from a value to the plain value that it stands for, or NO. Not here: calls
(`door_calls`), the walk (`door_walk`).
"""

from __future__ import annotations

import inspect
import math
import operator
import os
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

NO: Any = object()
Kind = Callable[[Any], Any]
MOST = (1 << 31) - 1


class Plain(np.ndarray):
    """A subclass that does nothing else."""


class Odd:
    """An object whose repr fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def _sevens() -> int:
    return 7


def masked() -> Any:
    return np.ma.array([1.0, 2.0, 3.0], mask=[0, 1, 0])


#: name -> maker of a value; none of them is a right value of an array
VALUES: dict[str, Callable[[], Any]] = {
    repr(v): (lambda v=v: v)  # type: ignore[misc]
    for v in (
        None, True, False, 0, -1, 1, 1.5, 4.0, math.nan, math.inf, -math.inf, 1e39, "4", "", "no",
        "forward", b"x", (), {}, 2**31, 2**63, 2**100, -(2**70), 1j, np.int64(4), np.uint8(1),
        np.float32(2), np.float64("nan"), np.bool_(True), np.bool_(False), np.complex64(1),
        np.timedelta64(1), np.str_("f32"), (1,), (1, 2, 3), (0, 0), (-1, 2), (1.5, 2), ("a", "b"),
        Fraction(1, 2), Ellipsis,
    )
} | {
    "[]": list, "[[]]": lambda: [[]], "[1, 2]": lambda: [1, 2], "set": lambda: {1, 2},
    "object()": object, "a failing repr": Odd, "a function": lambda: _sevens, "int": lambda: int,
    "10**400": lambda: 10**400, "10**5000": lambda: 10**5000, "a long str": lambda: "x" * 10**6,
    "=f4": lambda: "=f4", "np.float64": lambda: np.float64, "float": lambda: float,
    "np.dtype": lambda: np.dtype(np.float32), "bytes swapped": lambda: np.dtype(">f4"),
    "surrogate": lambda: "\ud800", "NUL": lambda: "a\0b",
    "np.array(3)": lambda: np.array(3), "np.array(1.5)": lambda: np.array(1.5),
    "np.array(True)": lambda: np.array(True), "np.arange(3)": lambda: np.arange(3),
    "np.array([1])": lambda: np.array([1]), "np.zeros(0)": lambda: np.zeros(0),
    "1000 zeros": lambda: np.zeros(1000), "objects": lambda: np.array([None, 1], object),
    "strings": lambda: np.array(["a"]), "masked": masked,
    "masked 0-d": lambda: np.ma.array(3, mask=True), "np.ma.masked": lambda: np.ma.masked,
    "a generator": lambda: (i for i in range(2)), "range(2)": lambda: range(2),
    "memoryview": lambda: memoryview(b"ab"), "a structured array": lambda: np.zeros(2, "f4,i4"),
}  # fmt: skip


def variants(array: np.ndarray, output: bool) -> Iterator[tuple[str, Any, bool]]:
    """Arrays made from a right one: name, value, whether it is right too."""
    other = np.float64 if array.dtype == np.float32 else np.float32
    yield "another dtype", array.astype(other), False
    yield "float16", array.astype(np.float16), False
    yield "int64", array.astype(np.int64), array.dtype == np.int64
    yield "complex", array.astype(np.complex128), False
    swapped = array.astype(array.dtype.newbyteorder())
    yield "bytes swapped", swapped, swapped.dtype == array.dtype
    yield "a list", array.tolist(), False
    yield "objects", array.astype(object), False
    yield "masked", np.ma.array(array, mask=np.zeros(array.shape, bool)), False
    yield "one axis more", array[np.newaxis, np.newaxis], False
    yield "one more", np.zeros([n + 1 for n in array.shape], array.dtype), False
    yield "no axis", np.zeros((), array.dtype), False
    yield "empty", np.zeros([0] * array.ndim, array.dtype), False
    if array.ndim:
        wide = np.zeros([2 * n for n in array.shape], array.dtype)
        wide[tuple(slice(None, None, 2) for _ in array.shape)] = array
        yield "gaps", wide[tuple(slice(None, None, 2) for _ in array.shape)], False
        yield "reversed", np.ascontiguousarray(array[::-1])[::-1], array.shape[0] == 1
        flat = np.zeros(array.nbytes + 17, np.uint8)[17:]
        odd = flat[: array.nbytes].view(array.dtype).reshape(array.shape)
        odd[...] = array
        yield "not aligned", odd, True
        packed = np.zeros(array.shape, [("pad", "u1"), ("x", array.dtype)])
        packed["x"] = array
        yield "a field of records", packed["x"], False
        if array.size > 1:
            still = np.broadcast_to(array.ravel()[:1], array.shape)
            yield "broadcast", still, False
    if array.ndim == 2:
        yield "np.matrix", np.matrix(array), False
    if array.ndim > 1 and min(array.shape) > 1:
        yield "Fortran order", np.asfortranarray(array), False
    frozen = array.copy()
    frozen.flags.writeable = False
    yield "read-only", frozen, not output
    yield "a subclass", array.copy().view(Plain), True
    with tempfile.TemporaryFile() as file:
        mapped = np.memmap(file, array.dtype, "w+", shape=array.shape)
        mapped[...] = array
        yield "a memory map", mapped, True


# ---- kinds --------------------------------------------------------------------------------------


def size(least: int = 1, most: float = MOST) -> Kind:
    def plain(v: Any) -> Any:
        try:
            if isinstance(v, (bool, np.ma.MaskedArray)):
                return NO
            n = operator.index(v)
        except TypeError:
            return NO
        return n if least <= n <= most else NO

    return plain


def number(
    low: float = -math.inf, below: float = 3.4e38, above: float = -math.inf
) -> Kind:  # fmt: skip
    def plain(v: Any) -> Any:
        if isinstance(v, np.ndarray) and not v.ndim and not isinstance(v, np.ma.MaskedArray):
            v = v[()]
        kinds = (int, float, np.integer, np.floating, Fraction)
        if isinstance(v, (bool, np.timedelta64)) or not isinstance(v, kinds):
            return NO
        try:
            x = float(v)
        except OverflowError:
            return NO
        return x if math.isfinite(x) and low <= x < below and x > above else NO

    return plain


def flag(v: Any) -> Any:
    return bool(v) if isinstance(v, (bool, np.bool_)) else NO


def name(*allowed: str) -> Kind:
    return lambda v: str(v) if isinstance(v, str) and v in allowed else NO


def dtype(v: Any) -> Any:
    """NumPy's words for f32 and f64, and these."""
    for name, kind in (("f32", np.float32), ("f64", np.float64)):
        names = isinstance(v, str) and v in (name, np.dtype(kind).str.replace("<", "="))
        if names or v is kind or (isinstance(v, np.dtype) and v == np.dtype(kind)):
            return name
    return NO


def text(v: Any) -> Any:
    return str(v) if isinstance(v, str) else NO


def nothing(v: Any) -> Any:
    """No value of the table is right."""
    return NO


def anything(v: Any) -> Any:
    return v


def function(v: Any) -> Any:
    return v if callable(v) else NO


def mapping(v: Any) -> Any:
    return v if isinstance(v, dict) else NO


def tuples(v: Any) -> Any:
    return v if isinstance(v, tuple) else NO


def no_items(v: Any) -> Any:
    """An empty sequence."""
    many = isinstance(v, (tuple, list, range)) or (type(v) is np.ndarray and v.ndim == 1)
    return () if many and not len(v) else NO


def optional(kind: Kind) -> Kind:
    return lambda v: None if v is None else kind(v)


def either(*kinds: Kind) -> Kind:
    def plain(v: Any) -> Any:
        return next((found for kind in kinds if (found := kind(v)) is not NO), NO)

    return plain


def items(kind: Kind, least: int = 0, most: int = 1 << 20) -> Kind:
    def plain(v: Any) -> Any:
        v = list(v) if inspect.isgenerator(v) else v
        many = isinstance(v, (tuple, list, range)) or (isinstance(v, np.ndarray) and v.ndim == 1)
        if not many or not least <= len(v) <= most or isinstance(v, np.ma.MaskedArray):
            return NO
        found = tuple(kind(each) for each in v)
        return NO if NO in found else found

    return plain


def folder(v: Any) -> Any:
    path = v if isinstance(v, (str, os.PathLike)) else ""
    return v if path and "\0" not in str(path) and len(str(path)) < 200 else NO


class Array:
    """An array, which no value of the table is; `also`: variants that are right for it, beside
    those that are for all; none: None is right, floats: any array of them."""

    def __init__(
        self, output: bool = False, also: tuple[str, ...] = (), none: bool = False,
        floats: bool = False,
    ) -> None:  # fmt: skip
        self.output, self.also, self.none, self.floats = output, also, none, floats

    def __call__(self, v: Any) -> Any:
        right = type(v) is np.ndarray and v.dtype in (np.float32, np.float64)
        return v if (v is None and self.none) or (self.floats and right) else NO


LOOSE = ("gaps", "reversed", "broadcast", "Fortran order", "a field of records")
IN, OUT, MAYBE, MAYBE_OUT = Array(), Array(True), Array(none=True), Array(True, none=True)
