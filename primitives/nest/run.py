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

from jitgen import records
from jitgen.frozen import uncopied
from jitgen.primitives.layers.arrays import ALIGN, aligned, buffer_of
from jitgen.primitives.nest.stream import Part, Stream
from jitgen.records import EXEC, LOGGER, QUIET
from jitgen.run.scratch import POOL, Seat
from jitgen.run.team import Team
from jitgen.target import Target
from jitgen.types import DTYPES


class Stopwatch:
    """Sums up the time of replays: of one pass of a layer."""

    def __init__(self) -> None:
        self.seconds = 0.0
        #: of the replay with the most
        self.threads = 0

    def around(self, replay: Callable[..., Any], threads: int) -> Callable[..., None]:
        """`replay`, timed."""

        def timed(*args: Any) -> None:
            start = time.perf_counter()
            replay(*args)
            self.seconds += time.perf_counter() - start
            self.threads = max(self.threads, threads)

        return timed


def stopwatch() -> Stopwatch | None:
    """One if somebody wants to know how long a pass takes (`jitgen.records`)."""
    if not (LOGGER.level < QUIET or EXEC.level):  # nobody; `wanted` takes ten times as long
        return None
    return Stopwatch() if records.wanted(EXEC) else None


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
        #: where each tensor of scratch lies in a block, in bytes, and the block's size
        self.places: list[slice] = []
        self.scratch_bytes = 0
        for elements in self.scratch.values():
            end = self.scratch_bytes + elements * DTYPES[dtype].size
            self.places.append(slice(self.scratch_bytes, end))
            self.scratch_bytes = -(-end // ALIGN) * ALIGN
        self._seat = Seat(POOL)

    @property
    def target(self) -> Target:
        """What the machine code is for."""
        return self._target

    @property
    def dtype(self) -> str:
        """Type of the elements of scratch."""
        return self._dtype

    def alone(self, number: int) -> Run:
        """The part of that number by itself, on the same tensors: to be timed."""
        part = self.stream.parts[number].part
        return Run(
            [part], self.tensors, self.stream.threads, self._target, self._dtype, self.scratch,
            self.constants,
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        """Bytes that this holds without scratch: words, code, constants, what the stream tells."""
        return self.stream.nbytes + sum(a.nbytes for a in self.constants.values())

    def __call__(
        self, buffers: Mapping[str, Any], flags: np.ndarray | None = None,
        watch: Stopwatch | None = None,
    ) -> None:  # fmt: skip
        """`buffers` by tensor (cffi pointers); `flags` of the calls that are made
        (`Stream.chosen`), all of them without; `watch` times the replay. TypeError if a tensor is
        missing or unknown."""
        try:
            given = self._pick(buffers)
        except KeyError:
            raise self._wrong(buffers) from None
        if len(given) != len(buffers):
            raise self._wrong(buffers)
        team: Any = self._team
        if team is None:
            team = self._team = self.stream.team(self._target, self.name)
        if watch is not None:
            team = watch.around(team, self.stream.threads)
        slices = None if flags is None else self.stream.chosen(flags)
        if not self.scratch_bytes:
            team((*given, *self._tables) if self._tables else given, slices)
            return
        seat = self._seat
        try:
            block = seat.blocks.pop()
        except IndexError:
            block = POOL.take(self.scratch_bytes)
        if block.views is None:
            block.views = [buffer_of(block.memory[place]) for place in self.places]
        team((*given, *block.views, *self._tables), slices)
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
        return best_times([self], self.zeros(sizes), least, 2)[0]

    def zeros(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        """Buffers of zeros for a call, of so many elements by tensor."""
        arrays = {name: aligned((sizes[name],), self._dtype) for name in self.tensors}
        for array in arrays.values():
            array.fill(0)
        return {name: buffer_of(array) for name, array in arrays.items()}


def best_times(
    runs: Sequence[Run], buffers: Mapping[str, Any], least: float, rounds: int
) -> list[float]:
    """The shortest time of a call of each run, in turns on the same arrays: of so many rounds at
    least, and of as many as take `least` seconds for each."""
    for run in runs:
        run(buffers)
    best, done, spent = [float("inf")] * len(runs), 0, 0.0
    while done < rounds or spent < least * len(runs):
        done += 1
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run(buffers)
            took = time.perf_counter() - start
            best[i], spent = min(best[i], took), spent + took
    return best
