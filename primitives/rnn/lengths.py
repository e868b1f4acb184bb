"""Sequences of different lengths: which calls of a recurrent layer's streams are made, and the
arrays as these take them.

Inside, the longest sequence comes first: the rows that are in use at a step are its first ones, and
a block of rows ends with its first row. A call is made if the first of its rows is in use (one
always is, so that all results are written). Not here: the streams
(`jitgen.primitives.rnn.streams`), where `Way.masked` makes blocks small.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jitgen import doors
from jitgen.primitives.rnn.steps import Layer
from jitgen.types import NUMPY


class Whole:
    """Sequences that have all steps: every array is as the caller has it. See `Lengths`."""

    longest: int | None = None
    steps: int | None = None
    flags: np.ndarray | None = None
    mask: np.ndarray | None = None

    def rows(self, array: np.ndarray) -> np.ndarray:
        """A caller's array (..., batch, features), the longest sequence first."""
        return array

    def back(self, array: np.ndarray, given: np.ndarray | None) -> np.ndarray:
        """Results (..., batch, hidden) as the caller has them; of an empty sequence what was given
        for it (None: zeros)."""
        return array

    def new(self, shape: tuple[int, ...], dtype: Any, inner: bool) -> np.ndarray:
        """An array for results of all steps; those that no call writes are 0. `inner`: not itself
        what the caller gets."""
        return np.empty(shape, dtype)

    def clear(self, array: np.ndarray) -> None:
        """0 behind each sequence of an array (steps, batch, features), the longest first."""

    def cleared(self, array: np.ndarray) -> np.ndarray:
        """A caller's steps as `rows`, 0 behind each sequence."""
        return array

    def first(self, array: np.ndarray, training: bool) -> np.ndarray:
        """A caller's first states as `rows`; `training`: a copy, 0 for empty sequences."""
        return array.copy() if training else array

    def begin(self, states: np.ndarray, first: np.ndarray) -> None:
        """Put the first states among those after each step, where a block of rows finds them that
        begins later than the stream: in reverse, behind the longest sequence of the block."""

    def last(self, states: np.ndarray, reverse: bool) -> np.ndarray:
        """Each sequence's last states, of those after each step."""
        end: np.ndarray = states[0 if reverse else -1]
        return end

    def result(self, array: np.ndarray, inner: bool) -> np.ndarray:
        """Results of all steps as the caller has them, 0 behind each sequence, in an array of
        `new`: that one, or a copy."""
        return array


class Lengths(Whole):
    """Sequences of these lengths. Raises ValueError that names what is wrong with them.

    longest: steps of the longest sequence, at least 1; steps: how many of any array the streams
    see; flags: of the calls that are made (`Stream.chosen`); mask: (steps, batch), 1 within a
    sequence and 0 behind it.
    """

    longest: int
    steps: int
    mask: np.ndarray

    def __init__(self, layer: Layer, lengths: Any) -> None:
        array = doors.indices("lengths", lengths, layer.batch, layer.steps).astype(np.int64)
        self._empty = array == 0
        self._sorted = bool((array[:-1] >= array[1:]).all())
        self._order = np.argsort(-array, kind="stable")
        self._lengths = array[self._order]
        self.longest = max(1, int(self._lengths[0]))
        # sums take whole pieces; a reverse pass back goes a step further; both look one step ahead
        whole = -(-self.longest // layer.piece) * layer.piece
        self._all, self.steps = layer.steps, min(layer.steps, whole + 2)
        inside = np.arange(layer.steps)[:, None] < self._lengths
        self.mask = inside[: self.steps].astype(NUMPY[layer.dtype])
        self._behind = np.nonzero(~inside[: self.steps])
        inside[0, 0] = True
        self.flags = inside.reshape(-1)
        self._block = layer.rows_by_length

    def rows(self, array: np.ndarray) -> np.ndarray:
        return array if self._sorted else np.take(array, self._order, axis=-2)

    def back(self, array: np.ndarray, given: np.ndarray | None) -> np.ndarray:
        result = np.empty_like(array)
        result[..., self._order, :] = array
        result[..., self._empty, :] = 0 if given is None else given[..., self._empty, :]
        return result

    def new(self, shape: tuple[int, ...], dtype: Any, inner: bool) -> np.ndarray:
        whole = self._sorted and not inner
        return np.zeros(shape if whole else (self.steps, *shape[1:]), dtype)

    def clear(self, array: np.ndarray) -> None:
        array[self._behind] = 0

    def cleared(self, array: np.ndarray) -> np.ndarray:
        array = self.rows(array[: self.steps])
        if self._sorted and len(self._behind[0]):
            array = array.copy()
        self.clear(array)
        return array

    def first(self, array: np.ndarray, training: bool) -> np.ndarray:
        array = self.rows(array)
        if training:
            array = np.where(self._lengths[:, None] > 0, array, array.dtype.type(0))
        return array

    def begin(self, states: np.ndarray, first: np.ndarray) -> None:
        # the steps of the block of each row
        block = np.append(self.longest, self._lengths[1:])
        block = block[np.arange(len(block)) // self._block * self._block]
        late = np.flatnonzero(block < self._all)
        states[block[late], late] = first[late]

    def last(self, states: np.ndarray, reverse: bool) -> np.ndarray:
        step = 0 if reverse else np.maximum(self._lengths - 1, 0)
        end: np.ndarray = states[step, np.arange(len(self._lengths))]
        return end

    def result(self, array: np.ndarray, inner: bool) -> np.ndarray:
        if self._sorted and not inner:
            self.clear(array)
            return array
        # memory of steps that stay 0 is not touched
        result = np.zeros((self._all, *array.shape[1:]), array.dtype)
        steps, rows = self._behind
        result[: self.steps, slice(None) if self._sorted else self._order] = array
        result[steps, self._order[rows]] = 0
        return result
