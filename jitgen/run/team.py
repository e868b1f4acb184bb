"""A stream made callable: its driver loaded, its slices bound to threads.

`Team(calls, slices, bases, target)(addresses)` replays slice t on thread t, all at the same time.
This is the one place that enters a team of threads: a call is one call of machine code, which
returns when the last thread has ended its slice, whatever signals arrive. Not here: that code
(`jitgen.run.crew`), the driver's (`jitgen.run.replay`), and which runtime may be used
(`jitgen.run.threads`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from jitgen import doors, records
from jitgen.emit.routine import Routine
from jitgen.frozen import uncopied
from jitgen.run import cpu, crew, loader, replay, threads
from jitgen.run.loader import ffi, number
from jitgen.target import Target

_JOB_WORDS = crew.JOB_BYTES // 8
#: Larger than any C library's pthread_mutex_t; zeros are a mutex that is free
_MUTEX_BYTES = 64


class _Context:
    """What one call in flight needs: base addresses, a job for each thread, the table of
    `jitgen.run.crew`."""

    __slots__ = ("_barrier", "_mutex", "_runtime", "address", "bases", "jobs", "words")

    def __init__(self, streams: Sequence[int], bases: int, driver: int) -> None:
        self.bases = ffi.new(loader.ADDRESSES, max(bases, 1))
        self.jobs = ffi.new(loader.WORDS, _JOB_WORDS * len(streams))
        self.words = ffi.new(loader.WORDS, crew.CONTEXT_BYTES // 8)
        self.address = ffi.cast(loader.ADDRESS, self.words)
        self._mutex = ffi.new(loader.BYTES, _MUTEX_BYTES)
        self._barrier: threads.Barrier | None = None
        #: the OpenMP runtime that all words are set for
        self._runtime: threads.OpenMP | None = None
        self.use_streams(streams)
        for i in range(len(streams)):
            self.jobs[_JOB_WORDS * i + replay.BASES // 8] = number(self.bases)
            self.jobs[_JOB_WORDS * i + crew.CONTEXT // 8] = number(self.words)
        c = loader.libc()
        for at, word in (
            (crew.SIZE, len(streams)), (crew.JOBS, number(self.jobs)), (crew.REPLAY, driver),
            (crew.MUTEX, number(self._mutex)), (crew.LOCK, number(c.pthread_mutex_lock)),
            (crew.UNLOCK, number(c.pthread_mutex_unlock)),
            (crew.CREATE, number(c.pthread_create)), (crew.JOIN, number(c.pthread_join)),
        ):  # fmt: skip
            self.words[at // 8] = word

    def use_streams(self, streams: Sequence[int]) -> None:
        """Addresses of the words that each thread replays."""
        for i, stream in enumerate(streams):
            self.jobs[_JOB_WORDS * i + replay.STREAM // 8] = stream

    def use_openmp(self, runtime: threads.OpenMP) -> None:
        """Before threads of a runtime."""
        self.words[crew.MISMATCH // 8] = 0
        if self._runtime is not runtime:
            self.words[crew.THREAD_NUMBER // 8] = runtime.thread_number
            self.words[crew.TEAM_SIZE // 8] = runtime.team_size
            self._use_barrier(runtime.barrier, 0)
            self._runtime = runtime

    def use_crew(self, helper: int) -> None:
        """Before threads of our own."""
        self._runtime = None
        barrier = self._barrier = self._barrier or threads.Barrier(len(self.jobs) // _JOB_WORDS)
        self.words[crew.HELPER // 8] = helper
        self.words[crew.GO // 8] = self.words[crew.REFUSED // 8] = 0
        self._use_barrier(barrier.function, barrier.argument)

    def _use_barrier(self, function: int, argument: int) -> None:
        for at in range(0, len(self.jobs), _JOB_WORDS):
            self.jobs[at + replay.BARRIER_FUNCTION // 8] = function
            self.jobs[at + replay.BARRIER_ARGUMENT // 8] = argument


class Team:
    """A stream bound to its driver: call it with the base addresses.

    calls: the kinds of call (`jitgen.run.replay.Call`); slices: one array of 32-bit words for each
    thread, all with equally many barriers; bases: how many base addresses there are; name: whose
    stream it is, for tools.
    """

    def __init__(
        self, calls: Sequence[replay.Call], slices: Sequence[np.ndarray], bases: int,
        target: Target, name: str = "",
    ) -> None:  # fmt: skip
        reason = cpu.why_not(target)
        if reason:
            raise RuntimeError(f"cannot run kernels for {target.name}: {reason}")
        self._slices = [np.ascontiguousarray(s, np.uint32) for s in slices]
        self._count = bases
        start = time.perf_counter()
        self._driver = replay.emit_replay(calls, target, name)
        self._code = loader.load(self._driver)
        records.told_generation(
            "driver", self._driver.name, "new", target.name, self._code.size,
            time.perf_counter() - start, len(self._driver.calls),
        )  # fmt: skip
        self._replay = ffi.cast(loader.FUNCTION, self._code.address)
        self._streams = [_address(s) for s in self._slices]
        # what every call asks for: together some 40 ns
        self._all, self._alone = slice(0, bases), len(slices) == 1
        self._target = target
        self._enter = None if self._alone else _functions(target)
        #: contexts that no call is using: a call takes one, so that calls may overlap
        self._free: list[_Context] = []

    @property
    def nbytes(self) -> int:
        """Bytes of the streams and of the driver with its kernels."""
        return self._code.room + sum(s.nbytes for s in self._slices)

    def __call__(
        self, bases: Sequence[Any], slices: Sequence[np.ndarray] | None = None
    ) -> None:
        """Replay all slices, or these in their place (contiguous, of 32-bit words), on the base
        addresses (cffi pointers); returns when all are done.

        Raises RuntimeError if a kernel refused (a thread's SVE vectors have another length),
        OSError if the system refuses a thread, and TypeError or ValueError for bases of another
        type or number; nothing was done then.
        """
        try:
            context = self._free.pop()
        except IndexError:
            context = _Context(self._streams, self._count, self._code.address)
        try:
            context.bases[self._all] = bases
        except (TypeError, ValueError):
            raise self._wrong(bases) from None
        if slices is not None:
            context.use_streams([_address(s) for s in slices])
        status = self._replay(context.jobs) if self._alone else self._parallel(context)
        if slices is not None:
            context.use_streams(self._streams)
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

    __reduce_ex__ = uncopied("copy the layer, or make the stream anew")

    def _parallel(self, context: _Context) -> int:
        size, enter = len(self._streams), self._enter
        assert enter is not None
        done = False
        working = threads.working
        try:
            working.add(context)  # before it is asked whether the runtime may be used
            runtime = threads.usable_openmp()
            if runtime is not None:
                context.use_openmp(runtime)
                runtime.parallel(enter.member, context.address, size, 0)
        finally:
            working.discard(context)
        if runtime is not None:
            # it may give fewer threads than asked for: a limit, a nested region
            done = not context.words[crew.MISMATCH // 8]
        if not done:
            context.use_crew(enter.helper)
            enter.crew(context.address)
            refused = context.words[crew.REFUSED // 8]
            if refused:
                raise OSError(refused, f"threads={size}: the system refuses a thread "
                              f"({os.strerror(refused)}); nothing was computed")  # fmt: skip
        status = 0
        for at in range(crew.STATUS // 8, len(context.jobs), _JOB_WORDS):
            status |= context.jobs[at]
        return status


class _Functions(NamedTuple):
    """`jitgen.run.crew`'s functions for a target, and their code."""

    member: Any
    crew: Any
    helper: int
    routines: tuple[Routine, ...]
    codes: tuple[loader.Code, ...]


@cache
def _functions(target: Target) -> _Functions:
    routines = tuple(emit(target) for emit in (crew.emit_member, crew.emit_crew, crew.emit_helper))
    codes = tuple(map(loader.load, routines))
    member, whole = (ffi.cast(loader.PROCEDURE, code.address) for code in codes[:2])
    return _Functions(member, whole, codes[2].address, routines, codes)


def _address(words: np.ndarray) -> int:
    return int(words.__array_interface__["data"][0])
