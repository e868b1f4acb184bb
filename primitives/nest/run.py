"""A stream ready to run: its driver, constant tables, and scratch memory for each call in flight.

Not here: what is in the stream (`jitgen.primitives.fc.streams`, `jitgen.primitives.conv.streams`),
where scratch memory comes from (`jitgen.run.scratch`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from jitgen.frozen import uncopied
from jitgen.primitives.layers.arrays import ALIGN, aligned, buffer_of
from jitgen.primitives.nest.stream import Part, Stream
from jitgen.run.scratch import POOL, Seat
from jitgen.run.team import Team
from jitgen.target import Target
from jitgen.types import DTYPES


class Run:
    """Parts on tensors: those of the caller, then scratch, then constants.

    A call takes the caller's by name, so that no two of the same size can change
    places. scratch: elements by tensor name; it is zero when it is first used, and keeps what a
    call left or is zero again. constants: arrays by tensor name.
    """

    def __init__(
        self, parts: Sequence[Part], tensors: Sequence[str], threads: int, target: Target,
        dtype: str, scratch: Mapping[str, int] | None = None,
        constants: Mapping[str, np.ndarray] | None = None,
    ) -> None:  # fmt: skip
        #: the caller's tensors
        self.tensors = tuple(tensors)
        # their places in the stream are looked up here once
        self._pick: Callable[[Mapping[str, Any]], tuple[Any, ...]] = (
            itemgetter(*self.tensors) if len(self.tensors) > 1
            else lambda buffers: tuple(buffers[name] for name in self.tensors)
        )  # fmt: skip
        self.scratch = dict(scratch or {})
        self.constants = dict(constants or {})
        self.stream = Stream(parts, [*tensors, *self.scratch, *self.constants], threads)
        self._tables = tuple(buffer_of(array) for array in self.constants.values())
        self._target = target
        self._dtype = dtype
        self._team: Team | None = None
        #: whose it is, for tools; the first layer that uses it says it
        self.name = ""
        #: where each tensor of scratch lies in a block, and the block's size
        self._places: list[slice] = []
        self._size = 0
        for elements in self.scratch.values():
            end = self._size + elements * DTYPES[dtype].size
            self._places.append(slice(self._size, end))
            self._size = -(-end // ALIGN) * ALIGN
        self._seat = Seat(POOL)

    @property
    def nbytes(self) -> int:
        """Bytes that this holds without scratch: words, code, constants, what the stream tells."""
        return self.stream.nbytes + sum(a.nbytes for a in self.constants.values())

    def __call__(self, buffers: Mapping[str, Any], flags: np.ndarray | None = None) -> None:
        """`buffers` by tensor (cffi pointers); `flags` of the calls that are made
        (`Stream.chosen`), all of them without. TypeError if a tensor is missing or unknown."""
        try:
            given = self._pick(buffers)
        except KeyError:
            raise self._wrong(buffers) from None
        if len(given) != len(buffers):
            raise self._wrong(buffers)
        if self._team is None:
            self._team = self.stream.team(self._target, self.name)
        slices = None if flags is None else self.stream.chosen(flags)
        if not self._size:
            self._team((*given, *self._tables) if self._tables else given, slices)
            return
        seat = self._seat
        try:
            block = seat.blocks.pop()
        except IndexError:
            block = POOL.take(self._size)
        if block.views is None:
            block.views = [buffer_of(block.memory[place]) for place in self._places]
        self._team((*given, *block.views, *self._tables), slices)
        seat.used = next(POOL.clock)
        if not (POOL.over and POOL.full):
            seat.blocks.append(block)

    def _wrong(self, buffers: Mapping[str, Any]) -> TypeError:
        names, own = (", ".join(map(repr, each)) for each in (buffers, self.tensors))
        return TypeError(f"buffers has {names or 'nothing'}; the stream takes {own}")

    __reduce_ex__ = uncopied("copy the layer")

    def seconds(self, sizes: Mapping[str, int], least: float = 0.01) -> float:
        """The shortest time of a call on arrays of zeros, of so many elements by tensor, of those
        of `least` seconds and of two or more."""
        arrays = {name: self._zeros(sizes[name]) for name in self.tensors}
        self(arrays)
        times: list[float] = []
        while len(times) < 2 or sum(times) < least:
            start = time.perf_counter()
            self(arrays)
            times.append(time.perf_counter() - start)
        return min(times)

    def _zeros(self, size: int) -> Any:
        array = aligned((size,), self._dtype)
        array.fill(0)
        return buffer_of(array)
