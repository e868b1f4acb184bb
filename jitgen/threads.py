"""Threads: run one piece of machine code on all threads of a team, without Python in between.

The OpenMP runtime that is on the machine (or already in the process) makes the team; where there is
none, or after a fork of a process that had a team (its threads are gone, and GNU's runtime would
wait for them forever), Python threads do, with a barrier of the C library and the same results.
Not here: what the threads do (`jitgen.replay`).
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from jitgen import doors
from jitgen.loader import ffi, libc

ffi.cdef(
    """
    void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned);
    void GOMP_barrier(void);
    int omp_get_thread_num(void);
    int omp_get_num_threads(void);
    int pthread_barrier_init(void *, void *, unsigned);
    int pthread_barrier_wait(void *);
    int pthread_barrier_destroy(void *);
    """
)
#: Names under which OpenMP runtimes with the GNU interface are found
RUNTIMES = ("libgomp.so.1", "libomp.so.5", "libomp.so", "libiomp5.so")
#: More threads than this are a mistake
MOST_THREADS = 1024
#: Larger than any C library's pthread_barrier_t
_BARRIER_BYTES = 64

_forked = False


def check_threads(threads: int | None) -> int:
    """How many threads to use: `threads`, else OMP_NUM_THREADS, else the CPUs of this process.

    Raises TypeError or ValueError that names argument, value and rule.
    """
    name: str = "threads"
    value: Any = threads
    if value is None:
        name = "OMP_NUM_THREADS"
        text = os.environ.get(name, "").split(",")[0].strip()
        if not text:
            return min(len(os.sched_getaffinity(0)), MOST_THREADS)
        value = int(text) if text.isdigit() else text
    else:
        value = doors.integer("threads", value)
    if not isinstance(value, int) or not 1 <= value <= MOST_THREADS:
        raise ValueError(f"{name}={doors.shown(value)} is not from 1 to {MOST_THREADS}")
    return value


@cache
def openmp() -> Any | None:
    """The OpenMP runtime: one that this process has loaded already (PyTorch brings its own), else
    one of the system's; None if there is none."""
    for name in (*_loaded_runtimes(), *RUNTIMES):
        with contextlib.suppress(OSError, AttributeError):
            library = ffi.dlopen(name)
            if library.GOMP_parallel and library.GOMP_barrier and library.omp_get_thread_num:
                return library
    return None


def _loaded_runtimes() -> list[str]:
    with contextlib.suppress(OSError), open("/proc/self/maps", encoding="utf-8") as maps:
        found = re.findall(r"(/\S*/lib(?:gomp|omp|iomp5)\b\S*)", maps.read())
        return list(dict.fromkeys(found))
    return []


def usable_openmp() -> Any | None:
    """The runtime if this process may enter a team; None after a fork."""
    return None if _forked else openmp()


@cache
def pool(threads: int) -> ThreadPoolExecutor:
    """Python threads for teams of that size where there is no OpenMP."""
    return ThreadPoolExecutor(threads, "jitgen")


class Barrier:
    """A barrier of the C library for a team of Python threads."""

    def __init__(self, threads: int) -> None:
        self._memory = ffi.new("char[]", _BARRIER_BYTES)
        self._c = libc()
        if self._c.pthread_barrier_init(self._memory, ffi.NULL, threads):
            raise OSError("the C library refuses a barrier")
        self.argument = int(ffi.cast("uintptr_t", self._memory))
        self.function = int(ffi.cast("uintptr_t", self._c.pthread_barrier_wait))

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self._c.pthread_barrier_destroy(self._memory)


#: A team of Python threads waits in barriers: two teams at once could take each other's threads
_team = threading.Lock()


def run_in_python_threads(run: Callable[[int], None], threads: int) -> None:
    """run(0) to run(threads - 1), each in a thread of its own, all at the same time."""
    with _team:
        others = [pool(threads - 1).submit(run, i) for i in range(1, threads)]
        run(0)
        for other in others:
            other.result()


def _after_fork_in_child() -> None:
    global _forked, _team
    # only a runtime that was looked for can have made a team
    _forked = _forked or openmp.cache_info().currsize > 0
    _team = threading.Lock()
    pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
