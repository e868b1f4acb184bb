"""Tables of the calls of a stream: how large they may be, equal rows, and who writes what.

Not here: how the tables come about (`jitgen.primitives.nest.stream`).
"""

from __future__ import annotations

import numpy as np

from jitgen import doors
from jitgen.primitives.nest.loops import Iterations

#: Calls of a stream, at most: some seconds to make it, a gigabyte while that is done
MOST_CALLS = 1 << 22


class TooLarge(ValueError):
    """A stream has too many calls, or tensors of more elements than offsets can count."""


def check_calls(count: int) -> None:
    """Raises TooLarge if a stream would have more calls than it may."""
    if count > MOST_CALLS:
        raise TooLarge(f"{count} kernel calls; a stream has {MOST_CALLS} at most")


def check_table(name: str, value: np.ndarray, extent: int = 0) -> None:
    """A number for each of so many positions of a loop."""
    if doors.plain(name, value).dtype.kind not in "iu" or value.ndim != 1:
        error = ValueError if value.dtype.kind in "iu" else TypeError
        raise error(f"{name} has shape {value.shape} and dtype {value.dtype}; it must be a vector "
                    "of integers")  # fmt: skip
    if len(value) < extent:
        raise ValueError(f"{name} has {len(value)} numbers; the loop has {extent} positions")


def check_owners(title: str, order: str, nest: Iterations, results: np.ndarray) -> None:
    """Raises ValueError if two threads have a result at the same place between two barriers: which
    of them adds to it, or stores it last, would be a matter of chance."""
    key = results + nest.phase * (results.max(initial=0) + 1)
    places = np.sort(key)
    if (places[1:] != places[:-1]).all():
        return  # no place occurs twice, which is soon seen
    by_place = np.argsort(key, kind="stable")
    raced = np.flatnonzero((np.diff(key[by_place]) == 0) & (np.diff(nest.thread[by_place]) != 0))
    if len(raced):
        i, j = by_place[raced[0]], by_place[raced[0] + 1]
        raise ValueError(
            f"{title}, order={order!r}: threads {nest.thread[i]} and {nest.thread[j]} "
            f"both write c[{results[i]}] without a barrier between; share only loops on which c "
            "depends"
        )


def distinct(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of a table of small numbers, and which of them each row is. (np.unique
    takes 15 milliseconds at its first call.)"""
    radix = np.concatenate([[1], np.cumprod(table.max(axis=0) + 1)[:-1]])
    key = table @ radix
    order = np.argsort(key, kind="stable")
    new = np.concatenate([[True], np.diff(key[order]) != 0])
    index = np.empty(len(key), np.int64)
    index[order] = np.cumsum(new) - 1
    return table[order[new]], index


def groups(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Begins and ends of stretches of equal rows."""
    inner = np.flatnonzero((np.diff(key, axis=0) != 0).any(axis=1)) + 1
    return np.concatenate([[0], inner]), np.concatenate([inner, [len(key)]])
