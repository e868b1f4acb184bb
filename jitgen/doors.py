"""The door of every public function: arguments checked and normalised by one set of rules.

A value of a wrong type raises TypeError, a wrong value ValueError, before anything is touched; the
message names argument, value and rule. What comes back is a plain value (int, float, bool, str),
since arguments become keys of caches.

- Sizes: what has `__index__` (ints, NumPy integers, integer arrays of no dimension), but no bool;
  no float, not even 4.0; below 2**31 unless another bound is told.
- Numbers: real (ints, floats, fractions, NumPy's, arrays of no dimension), finite unless the rule
  allows infinities, within the range told; no bool, no text, no complex number.
- Flags: bool or `np.bool_`; 0, 1, None and text are none.
- Element types: a name ("f32"), or NumPy's: a dtype (in native byte order), its scalar type or
  its name.
- Names: str, one of those told. Sequences: what can be iterated but text, bytes, mappings and sets;
  their elements are named argument[i].
- Arrays: numpy.ndarray, or what has `__array_interface__` or DLPack in the CPU's memory (a torch
  tensor), never copied; of the one dtype in native byte order and of the one shape, C-contiguous
  unless strides are told; any alignment. Outputs are writable and overlap no other array. Masked
  arrays (their mask would be lost) and np.matrix (its operators differ) are refused; other
  subclasses count as the arrays that they are.

Not here: what the values mean; cffi buffers of arrays (`jitgen.primitives.layers.arrays`).
"""

from __future__ import annotations

import contextlib
import math
import numbers
import operator
import os
import reprlib
import struct
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, TypeVar

import numpy as np

from jitgen.types import DTYPES, NUMPY, name_of

#: Displacements have 32 bits
MOST = (1 << 31) - 1
#: Effort to tell interleaved views apart from overlapping ones; beyond it they count as overlapping
SEARCH_LIMIT: Any = 100_000
#: Bytes that no path has, with its end
PATH_BYTES = 4096
#: What says that it was too much effort (NumPy 1.24 has it elsewhere)
TOO_HARD = getattr(np, "exceptions", np).TooHardError
#: The CPU's memory, as DLPack numbers devices
CPU_MEMORY = 1
#: Characters of a value, bits of an integer, elements of an array that a message shows
LONGEST, BITS, ELEMENTS = 60, 200, 8

T = TypeVar("T")
_repr = reprlib.Repr()
_repr.maxlist = _repr.maxtuple = _repr.maxdict = 2 * ELEMENTS
_repr.maxstring = _repr.maxother = _repr.maxlong = LONGEST


def shown(value: Any) -> str:
    """A value in a message: its repr if that is short, of a large array shape and dtype."""
    if type(value) is str and len(value) < LONGEST // 10:  # names, of which checks show many
        return repr(value)
    if isinstance(value, np.ndarray) and value.size > ELEMENTS:
        return f"<{type(value).__name__} {value.shape} {value.dtype}>"
    if isinstance(value, int) and value.bit_length() > BITS:
        return f"<an integer of {value.bit_length()} bits>"
    try:
        text = _repr.repr(value)
    except Exception:  # the caller's class has a faulty __repr__
        text = f"<{type(value).__name__}>"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


# ---- sizes, numbers, flags ----------------------------------------------------------------------


def integer(name: str, value: Any) -> int:
    """The int that `value` is."""
    try:
        if not isinstance(value, (bool, np.ma.MaskedArray)):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{name}={shown(value)} is no integer")


def size(name: str, value: Any, least: int = 1, most: int | None = MOST) -> int:
    """An integer from `least` to `most` (None: no bound)."""
    number = integer(name, value)
    if number < least:
        raise ValueError(f"{name}={shown(number)} is smaller than {least}")
    if most is not None and number > most:
        raise ValueError(f"{name}={shown(number)} is larger than {most}")
    return number


def sizes(**values: Any) -> list[int]:
    """Sizes from 1 on, by name, in their order."""
    return [size(name, value) for name, value in values.items()]


def number(
    name: str, value: Any, *, low: float | None = None, above: float | None = None,
    high: float | None = None, below: float | None = None, infinite: bool = False,
    dtype: str | None = None,
) -> float:  # fmt: skip
    """A real number with low <= value <= high, above < value < below, that the type in which
    `dtype` is computed can hold."""
    given = value
    if type(value) is not float:  # which most are, and an optimizer's step has several
        if isinstance(value, np.ndarray) and not value.ndim:
            value = plain(name, value)[()]
        if not isinstance(value, numbers.Real) or isinstance(value, (bool, np.timedelta64)):
            raise TypeError(f"{name}={shown(given)} is no real number")
    kind = "a float" if dtype is None else DTYPES[dtype].arithmetic
    try:
        result = float(value)
        if dtype is not None:
            struct.pack(DTYPES[kind].packing, result)
    except OverflowError:
        raise ValueError(f"{name}={shown(given)} is too large for {kind}") from None
    if math.isnan(result) or (math.isinf(result) and not infinite):
        raise ValueError(f"{name}={result} is not finite")
    rule = ""
    if low is not None and result < low:
        rule = f"smaller than {low}"
    elif above is not None and result <= above:
        rule = f"not above {above}"
    elif high is not None and result > high:
        rule = f"larger than {high}"
    elif below is not None and result >= below:
        rule = f"not below {below}"
    if rule:
        raise ValueError(f"{name}={shown(given)} is {rule}")
    return result + 0.0  # no -0.0: it equals 0.0 as a key of caches


def flag(name: str, value: Any) -> bool:
    """A bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}={shown(value)} is no bool")
    return bool(value)


# ---- names, sequences, objects ------------------------------------------------------------------


def text(name: str, value: Any) -> str:
    """A str."""
    if not isinstance(value, str):
        raise TypeError(f"{name}={shown(value)} is no str")
    return str.__str__(value)


def one_of(name: str, value: Any, allowed: Iterable[str]) -> str:
    """One of the names `allowed`."""
    if isinstance(value, str) and value in allowed:
        return str.__str__(value)
    error = ValueError if isinstance(value, str) else TypeError
    raise error(f"{name}={shown(value)} is not one of {', '.join(allowed)}")


def dtype(name: str, value: Any) -> str:
    """The name of an element type, a key of DTYPES, told in its own or in NumPy's words."""
    if type(value) is str and value in DTYPES:  # as most are
        return value
    if isinstance(value, str) and value in DTYPES:
        return str.__str__(value)
    if isinstance(value, type):
        for known in DTYPES:
            if value is NUMPY[known].type:
                return known
    elif isinstance(value, (str, np.dtype)):
        found = None
        with contextlib.suppress(Exception):  # whatever NumPy has against a text
            found = np.dtype(value)
        known_name = None if found is None else name_of(found)
        if known_name:
            return known_name
        if found is not None and name_of(found.newbyteorder()):
            raise ValueError(f"{name}={shown(value)} is byte-swapped; arrays are in native order")
    numpys = isinstance(value, type) and issubclass(value, np.generic)
    error = ValueError if numpys or isinstance(value, (str, np.dtype)) else TypeError
    raise error(f"{name}={shown(value)} is not one of {', '.join(DTYPES)}, or NumPy's for them")


def one_in(name: str, value: Any, among: str, known: Iterable[str]) -> str:
    """One of the names in the argument `among`."""
    if text(name, value) not in known:
        raise ValueError(f"{name}={shown(value)} is not in {among}={shown(known)}")
    return str.__str__(value)


def settle(self: Any, **values: Any) -> None:
    """Set fields of a frozen dataclass to plain values."""
    for name, value in values.items():
        object.__setattr__(self, name, value)


def path(name: str, value: Any) -> str:
    """A file or folder: str or os.PathLike, not empty."""
    try:
        found = os.fspath(value)
    except TypeError:
        found = b""
    if not isinstance(found, str):
        raise TypeError(f"{name}={shown(value)} is neither a str nor an os.PathLike of one")
    try:
        right = 0 < len(os.fsencode(found)) < PATH_BYTES and "\0" not in found
    except UnicodeEncodeError:
        right = False
    if not right:
        raise ValueError(f"{name}={shown(value)} is no path")
    return found


def items(name: str, value: Any, count: int | None = None, what: str = "") -> tuple[Any, ...]:
    """The elements of a sequence, `count` of them if told; `what` says of what."""
    if type(value) is tuple and (count is None or len(value) == count):
        return value  # most are; abstract classes take microseconds
    error: type[Exception] = TypeError
    if not isinstance(value, (str, bytes, bytearray, memoryview, Mapping, Set)):
        with contextlib.suppress(TypeError):
            found = tuple(value)
            if count is None or len(found) == count:
                return found
            error = ValueError
    # the value is shown only here: the text of an array takes a while
    raise error(f"{name}={shown(value)} is no {'sequence' if count is None else 'pair'}{what}")


def pair(name: str, value: Any, what: str = "", least: int = 1) -> tuple[int, int]:
    """Two sizes."""
    first, second = items(name, value, 2, what)
    return size(f"{name}[0]", first, least), size(f"{name}[1]", second, least)


def mapping(name: str, value: Any) -> Mapping[Any, Any]:
    """A mapping."""
    if type(value) is not dict and not isinstance(value, Mapping):
        raise TypeError(f"{name}={shown(value)} is no mapping")
    mapped: Mapping[Any, Any] = value
    return mapped


def function(name: str, value: Any) -> Callable[..., Any]:
    """What can be called."""
    if not callable(value):
        raise TypeError(f"{name}={shown(value)} cannot be called")
    result: Callable[..., Any] = value
    return result


def instance(name: str, value: Any, kind: type[T]) -> T:
    """An object of a class."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}={shown(value)} is no {kind.__module__.split('.')[0]}"
                        f".{kind.__name__}")  # fmt: skip
    return value


# ---- arrays -------------------------------------------------------------------------------------


def plain(name: str, value: Any, of: str = "") -> np.ndarray:
    """An array of whatever dtype, shape and strides; `of` says of what."""
    if type(value) is np.ndarray:
        return value
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} is {type(value).__name__}; it must be a numpy.ndarray{of}")
    for kind, rule in (
        (np.ma.MaskedArray, "its mask would be lost: fill it"), (np.matrix, "give an array"),
    ):  # fmt: skip
        if isinstance(value, kind):
            raise TypeError(f"{name} is {type(value).__name__}; {rule}")
    return value


def view(name: str, value: Any, of: str = "") -> np.ndarray:
    """As `plain`, also of an object that gives its memory, which is not copied."""
    given = not isinstance(value, (np.ndarray, np.generic, type)) and (
        hasattr(value, "__array_interface__") or hasattr(value, "__dlpack__")
    )
    if not given:
        return plain(name, value, of)
    try:
        if hasattr(value, "__array_interface__"):
            return np.asarray(value)
        device = value.__dlpack_device__()
        if device[0] != CPU_MEMORY:
            raise BufferError(f"it is on device {tuple(map(int, device))}, not in CPU memory")
        if getattr(value, "is_neg", bool)():  # torch's, of which DLPack does not know
            raise BufferError("it is a negative view")
        return np.from_dlpack(value)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name} is {type(value).__name__}, whose memory cannot be taken: {error}"
        ) from None


def typed(name: str, value: Any, dtype: np.dtype[Any]) -> np.ndarray:
    """An array of a dtype."""
    array = value if type(value) is np.ndarray else view(name, value, f" of {dtype}")
    if array.dtype != dtype:
        raise TypeError(f"{name} has dtype {array.dtype}; it must be {dtype}")
    return array


def array(name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """A C-contiguous array."""
    found = typed(name, value, dtype)
    if found.shape != shape:
        raise ValueError(f"{name} has shape {found.shape}; it must be {shape}")
    if not found.flags.c_contiguous:
        raise ValueError(f"{name} has strides {found.strides}; it must be C-contiguous")
    return found


def strides(name: str, array: np.ndarray) -> tuple[int, ...]:
    """Strides in elements of all axes but the last, whose elements lie side by side; those of the
    others are whole elements apart, upwards, and overlap nowhere."""
    if not array.ndim:
        return ()
    size, shape, found = array.itemsize, array.shape, list(array.strides)
    end = size
    for axis in reversed(range(len(shape))):
        if shape[axis] == 1:  # no stride of it counts: it gets that of an array without gaps
            found[axis] = end
        end = found[axis] * shape[axis]
    rule = "" if found.pop() == size else "the elements of its last axis must lie side by side"
    end = shape[-1] * size
    for stride, extent in sorted(zip(found, shape, strict=False)):
        if extent > 1 and (stride < end or stride % size):
            rule = rule or f"others must be multiples of {size} that keep elements apart"
        end += stride * (extent - 1)
    if rule:
        raise ValueError(f"{name} has strides {array.strides} for shape {shape}; {rule}")
    return tuple(stride // size for stride in found)


def floats(name: str, value: Any) -> str:
    """The name of the element type of an array of any shape and strides: a key of DTYPES."""
    found = plain(name, value).dtype
    dtype = name_of(found)
    if dtype is None:
        known = " or ".join(kind.numpy for kind in DTYPES.values())
        raise TypeError(f"{name} has dtype {found}; it must be {known}")
    return dtype


def indices(name: str, value: Any, count: int, high: int) -> np.ndarray:
    """`count` integers from 0 to `high`: an array, or a sequence."""
    found = plain(name, value) if isinstance(value, np.ndarray) else _listed(name, value)
    if found.shape != (count,) or found.dtype.kind not in "iu":
        error = TypeError if found.dtype.kind not in "iu" else ValueError
        raise error(
            f"{name} has shape {found.shape} and dtype {found.dtype}; it must be ({count},) "
            "integers"
        )
    low, top = int(found.min()), int(found.max())
    if low < 0 or top > high:
        raise ValueError(f"{name}={shown(value)}, from {low} to {top}: each must be 0 .. {high}")
    return found.astype(np.int64)


def _listed(name: str, value: Any) -> np.ndarray:
    found = [size(f"{name}[{i}]", each, 0) for i, each in enumerate(items(name, value))]
    return np.array(found, np.int64)


def writable(name: str, array: np.ndarray) -> None:
    """An output may be written."""
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only; it is written")


def apart(name: str, array: np.ndarray, others: Iterable[tuple[str, Any]]) -> None:
    """An output shares no memory with any of `others` (None: no array)."""
    for other, value in others:
        if value is None or not np.may_share_memory(array, value):
            continue
        try:
            shared = np.shares_memory(array, value, max_work=SEARCH_LIMIT)
        except TOO_HARD:
            shared = True
        if shared:
            raise ValueError(f"{name} overlaps {other}; an output may overlap no other array")
