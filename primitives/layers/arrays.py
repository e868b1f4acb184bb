"""Arrays of a primitive as addresses: checked by the rules of `jitgen.doors`, quickly.

Not here: the rules, what the arrays mean.
"""

from __future__ import annotations

from typing import Any

import _cffi_backend
import numpy as np

from jitgen import doors
from jitgen.types import NUMPY

ALIGN = 64
#: The memory of a C-contiguous array as a cffi pointer, which keeps the array alive. Without the
#: Python part of cffi, which takes as long again
buffer_of = _cffi_backend.FFI().from_buffer


def check(name: str, array: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """The buffer of a C-contiguous input array (cffi, keeps it alive). TypeError, ValueError."""
    # a call of a small layer takes 5 microseconds: what is right is let through quickly
    if type(array) is np.ndarray and array.dtype is NUMPY[dtype] and array.shape == shape:
        try:
            return buffer_of(array)
        except ValueError:
            pass  # not contiguous
    return buffer_of(doors.array(name, doors.plain(name, array), shape, NUMPY[dtype]))


def check_output(
    name: str, array: Any, shape: tuple[int, ...], dtype: str, inputs: dict[str, Any]
) -> Any:
    """The buffer of an output array, which must be writable and overlap none of `inputs`."""
    buffer = check(name, array, shape, dtype)
    if not array.flags.writeable:
        doors.writable(name, array)
    for value in inputs.values():
        if value is not None and np.may_share_memory(array, value):  # what `apart` looks into
            doors.apart(name, array, inputs.items())
    return buffer


def realigned(array: np.ndarray) -> np.ndarray:
    """The array if it begins at a cache line, else a copy that does: one out of a pickle does not,
    and kernels would read across lines."""
    if array.__array_interface__["data"][0] % ALIGN == 0:
        return array
    copy = aligned(array.shape, doors.floats("array", array))
    copy[...] = array
    return copy


def aligned(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An uninitialised array that begins at a cache line."""
    kind = NUMPY[dtype]
    size = int(np.prod(shape)) * kind.itemsize
    raw = np.empty(size + ALIGN, np.uint8)
    start = -raw.__array_interface__["data"][0] % ALIGN
    return raw[start : start + size].view(kind).reshape(shape)


def first_of(array: np.ndarray) -> np.ndarray:
    """The first element, where the array begins."""
    return array[(slice(1),) * array.ndim]
