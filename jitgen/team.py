"""A stream made callable: its driver loaded, its slices bound to threads.

`Team(calls, slices, bases, target)(addresses)` replays slice t on thread t, all at the same time.
Not here: the driver's code (`jitgen.replay`) and the threads (`jitgen.threads`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from jitgen import cpu, doors, loader, replay, threads
from jitgen.loader import ffi
from jitgen.target import Target

_JOB_WORDS = replay.JOB_BYTES // 8


class _Context:
    """What one call in flight needs: base addresses, a job for each thread, the team's context."""

    __slots__ = ("address", "barrier", "bases", "jobs", "team")

    def __init__(self, streams: Sequence[int], bases: int) -> None:
        self.bases = ffi.new("void *[]", max(bases, 1))
        self.jobs = ffi.new("uint64_t[]", _JOB_WORDS * len(streams))
        self.team = ffi.new("uint64_t[]", 8)
        self.barrier: threads.Barrier | None = None
        for i, stream in enumerate(streams):
            self.jobs[_JOB_WORDS * i] = stream
            self.jobs[_JOB_WORDS * i + 1] = _number(self.bases)
        self.address = ffi.cast("void *", self.team)

    def use_barrier(self, function: int, argument: int) -> None:
        for at in range(0, len(self.jobs), _JOB_WORDS):
            self.jobs[at + 2] = function
            self.jobs[at + 3] = argument


class Team:
    """A stream bound to its driver: call it with the base addresses.

    calls: the kinds of call (`jitgen.replay.Call`); slices: one array of 32-bit words for each
    thread, all with equally many barriers; bases: how many base addresses there are.
    """

    def __init__(
        self, calls: Sequence[replay.Call], slices: Sequence[np.ndarray], bases: int,
        target: Target,
    ) -> None:  # fmt: skip
        reason = cpu.why_not(target)
        if reason:
            raise RuntimeError(f"cannot run kernels for {target.name}: {reason}")
        self._slices = [np.ascontiguousarray(s, np.uint32) for s in slices]
        self._count = bases
        self._code = loader.load(replay.emit_replay(calls, target))
        self._replay = ffi.cast("int64_t (*)(void *)", self._code.address)
        self._streams = [int(s.__array_interface__["data"][0]) for s in self._slices]
        self._target = target
        #: contexts that no call is using: a call takes one, so that calls may overlap
        self._free: list[_Context] = []

    def __call__(self, bases: Sequence[Any]) -> None:
        """Replay all slices on the base addresses (cffi pointers); returns when all are done.

        Raises RuntimeError if a kernel refused (a thread's SVE vectors have another length),
        TypeError or ValueError for bases of another type or number.
        """
        try:
            context = self._free.pop()
        except IndexError:
            context = self._new_context()
        try:
            context.bases[0 : self._count] = bases
        except (TypeError, ValueError):
            raise self._wrong(bases) from None
        status = self._replay(context.jobs) if len(self._streams) == 1 else self._parallel(context)
        self._free.append(context)
        if status:
            raise RuntimeError(
                f"a thread's SVE vectors have another length than {self._target.name} says; the "
                "result is not valid"
            )

    def _wrong(self, bases: Any) -> Exception:
        """What is wrong with base addresses."""
        given = doors.items("bases", bases)
        for i, base in enumerate(given):
            if not isinstance(base, ffi.CData):
                return TypeError(f"bases[{i}]={doors.shown(base)} is no cffi pointer")
        return ValueError(f"bases={doors.shown(bases)} has {len(given)} addresses; the stream has "
                          f"{self._count} tensors")  # fmt: skip

    def _new_context(self) -> _Context:
        context = _Context(self._streams, self._count)
        library = threads.usable_openmp()
        if library is not None:
            context.use_barrier(_number(library.GOMP_barrier), 0)
            words = (
                _number(library.omp_get_thread_num), _number(library.omp_get_num_threads),
                len(self._streams), 0, _number(context.jobs), self._code.address,
            )  # fmt: skip
            context.team[0 : len(words)] = words
        return context

    def _parallel(self, context: _Context) -> int:
        library = threads.usable_openmp()
        size = len(self._streams)
        if library is not None:
            context.team[3] = 0
            library.GOMP_parallel(_team_function(self._target), context.address, size, 0)
        if library is None or context.team[3]:
            # no runtime, or it gives fewer threads than asked for (a limit, a nested region)
            barrier = context.barrier = context.barrier or threads.Barrier(size)
            context.use_barrier(barrier.function, barrier.argument)
            threads.run_in_python_threads(lambda i: self._run_one(context, i), size)
            if library is not None:
                context.use_barrier(_number(library.GOMP_barrier), 0)
        status = 0
        for at in range(replay.STATUS // 8, len(context.jobs), _JOB_WORDS):
            status |= context.jobs[at]
        return status

    def _run_one(self, context: _Context, thread: int) -> None:
        at = _JOB_WORDS * thread
        context.jobs[at + replay.STATUS // 8] = self._replay(context.jobs + at)


def _number(pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))


@cache
def _team_function(target: Target) -> Any:
    code = loader.load(replay.emit_team(target))
    _keep.append(code)
    return ffi.cast("void (*)(void *)", code.address)


_keep: list[loader.Code] = []
