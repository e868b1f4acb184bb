"""How large a layer's arrays may be: checked at its constructor, in words of its arguments.

Streams count offsets in elements with 32 bits; kernels reach 2 GiB from an address (products are
cut so that their calls stay within, rows of an array are not cut). Not here: how products are cut
(`jitgen.primitives.nest.gemm`), and the number of calls of a stream
(`jitgen.primitives.nest.stream`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import TypeVar

from jitgen.emit.shapes import MATRIX_BYTES
from jitgen.primitives.nest.tables import TooLarge
from jitgen.types import DTYPES

Made = TypeVar("Made")

#: Threads that pay: what one thread has done before another one has begun (recurrent: has passed
#: the barrier of a step), in operations or elements. Layers of images take all threads
WORK_PER_THREAD = {"fully connected": 200_000, "recurrent": 100_000, "elementwise": 1 << 15,
                   "rows": 1 << 14}  # fmt: skip
#: Elements of an array that a stream addresses, at most
MOST_ELEMENTS = 1 << 32


def threads_that_pay(kind: str, threads: int, work: int) -> int:
    """Of so many threads, those that are worth it for the work of a kind."""
    return max(1, min(threads, work // WORK_PER_THREAD[kind]))


def within_reach(apart: int, element: int) -> int:
    """How many rows, so many elements apart, span less than 2 GiB: one at the least."""
    return max(1, (MATRIX_BYTES - 1) // (apart * element))


def named(sizes: Mapping[str, object]) -> str:
    """Arguments and their values for an error."""
    return ", ".join(f"{name}={value}" for name, value in sizes.items())


def check_elements(sizes: Mapping[str, object], **arrays: tuple[int, ...]) -> None:
    """Raise ValueError that names the arguments `sizes` if an array of these shapes is larger than
    streams can address."""
    for name, shape in arrays.items():
        if prod(shape) > MOST_ELEMENTS:
            raise ValueError(
                f"{named(sizes)}: {name.replace('_', ' ')} has {prod(shape)} elements; an array "
                f"has {MOST_ELEMENTS} (2**32) at most"
            )


def check_reach(sizes: Mapping[str, object], dtype: str, **rows: int) -> None:
    """The same for parts of arrays, of so many elements, that kernels address from their begin."""
    for name, elements in rows.items():
        size = elements * DTYPES[dtype].size
        if size >= MATRIX_BYTES:
            raise ValueError(
                f"{named(sizes)}: {name.replace('_', ' ')} takes {size} bytes; it must be less "
                f"than 2 GiB ({MATRIX_BYTES})"
            )


def made(make: Callable[[], Made], what: str, sizes: Mapping[str, object]) -> Made:
    """What `make` makes; a stream that is too large is a ValueError that names the arguments."""
    try:
        return make()
    except TooLarge as error:
        raise ValueError(f"{named(sizes)}: {what} has {error}") from None
