"""Arrays at the door of a primitive: checked, and turned into addresses.

An error names the argument, its value and the rule. Not here: what the arrays mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jitgen.loader import ffi
from jitgen.doors import NUMPY

ALIGN = 64
#: The memory of a C-contiguous array as a cffi pointer, which keeps the array alive
buffer_of = ffi.from_buffer


def check(name: str, array: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """The buffer of a C-contiguous input array (cffi, keeps it alive). TypeError, ValueError."""
    # a call of a small layer takes 5 microseconds: what is right is let through quickly
    if type(array) is np.ndarray and array.dtype is NUMPY[dtype] and array.shape == shape:
        try:
            return buffer_of(array)
        except ValueError:
            pass  # not contiguous
    _check(name, array, shape, dtype)
    return buffer_of(array)


def check_output(
    name: str, array: Any, shape: tuple[int, ...], dtype: str, inputs: dict[str, Any]
) -> Any:
    """The buffer of an output array, which must be writable and overlap none of `inputs`."""
    buffer = check(name, array, shape, dtype)
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only; it is written")
    for other, value in inputs.items():
        if value is not None and np.may_share_memory(array, value):
            raise ValueError(f"{name} overlaps {other}; an output may overlap no other array")
    return buffer


def output(
    out: Any, shape: tuple[int, ...], dtype: str, inputs: dict[str, Any]
) -> tuple[Any, Any]:
    """The array that a pass writes, `out` or a new one, and its buffer."""
    if out is None:
        out = np.empty(shape, NUMPY[dtype])
        return out, buffer_of(out)
    return out, check_output("out", out, shape, dtype, inputs)


def _check(name: str, array: Any, shape: tuple[int, ...], dtype: str) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} is {type(array).__name__}; it must be a numpy.ndarray")
    if array.dtype != NUMPY[dtype]:
        raise TypeError(f"{name} has dtype {array.dtype}; it must be {NUMPY[dtype]}")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; it must be {shape}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} has strides {array.strides}; it must be C-contiguous")


def aligned(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An uninitialised array that begins at a cache line."""
    kind = NUMPY[dtype]
    size = int(np.prod(shape)) * kind.itemsize
    raw = np.empty(size + ALIGN, np.uint8)
    start = -raw.__array_interface__["data"][0] % ALIGN
    return raw[start : start + size].view(kind).reshape(shape)
