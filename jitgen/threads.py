"""Threads: how many a layer uses, and which OpenMP runtime may make a team of them.

The runtime is the one that this process has loaded already, or one of the system's. Where there is
none, and in a process that was forked while one was loaded (the runtime remembers threads that are
gone, and would wait for them forever), teams do without (`jitgen.crew`). Not here: what the threads
do (`jitgen.replay`).
"""

from __future__ import annotations

import contextlib
import os
import re
from functools import cache
from typing import Any

from jitgen import doors, quota
from jitgen.loader import BYTES, ffi, libc, number

ffi.cdef(
    """
    void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned);
    void GOMP_barrier(void);
    int omp_get_thread_num(void);
    int omp_get_num_threads(void);
    int pthread_create(void *, const void *, void *, void *);
    int pthread_join(uintptr_t, void *);
    int pthread_mutex_lock(void *);
    int pthread_mutex_unlock(void *);
    int pthread_barrier_init(void *, void *, unsigned);
    int pthread_barrier_wait(void *);
    int pthread_barrier_destroy(void *);
    """
)
#: looked up under a lock of cffi's: see jitgen.loader
with contextlib.suppress(AttributeError):
    for _name in (
        "create", "join", "mutex_lock", "mutex_unlock", "barrier_init", "barrier_wait",
        "barrier_destroy",
    ):  # fmt: skip
        getattr(libc(), f"pthread_{_name}")
#: Names under which OpenMP runtimes with the GNU interface are found
RUNTIMES = ("libgomp.so.1", "libomp.so.5", "libomp.so", "libiomp5.so")
#: More threads than this are a mistake
MOST_THREADS = 1024
#: Larger than any C library's pthread_barrier_t
_BARRIER_BYTES = 64
#: A process that was forked and has not begun a program of its own since (Linux's sched.h)
_FORKED_WITHOUT_EXEC = 0x40


def check_threads(threads: int | None) -> int:
    """How many threads to use: `threads`, else OMP_NUM_THREADS, else the CPUs of this process
    (`jitgen.quota`).

    Raises TypeError or ValueError that names argument, value and rule.
    """
    name: str = "threads"
    value: Any = threads
    if value is None:
        name = "OMP_NUM_THREADS"
        text = os.environ.get(name, "").split(",")[0].strip()
        if not text:
            return min(quota.cpus(), MOST_THREADS)
        value = int(text) if re.fullmatch("[0-9]{1,9}", text) else text
    else:
        value = doors.integer("threads", value)
    if not isinstance(value, int) or not 1 <= value <= MOST_THREADS:
        raise ValueError(f"{name}={doors.shown(value)} is not from 1 to {MOST_THREADS}")
    return value


def usable_openmp() -> Any | None:
    """The OpenMP runtime if this process may enter a team of it, else None."""
    if _process != os.getpid():  # forked past Python's hooks
        _after_fork_in_child()
    return None if _stale else openmp()


@cache
def openmp() -> Any | None:
    """The OpenMP runtime: one that this process has loaded already (PyTorch brings its own), else
    one of the system's; None if there is none.

    It is never unloaded: its threads may still spin in it when the interpreter has ended.
    """
    for name in (*_loaded_runtimes(), *RUNTIMES):
        with contextlib.suppress(OSError, AttributeError):
            library = ffi.dlopen(name, ffi.RTLD_NOW | ffi.RTLD_NODELETE)
            for function in (
                "GOMP_parallel", "GOMP_barrier", "omp_get_thread_num", "omp_get_num_threads"
            ):
                getattr(library, function)
            return library
    return None


def _loaded_runtimes() -> list[str]:
    with contextlib.suppress(OSError), open("/proc/self/maps", encoding="utf-8") as maps:
        found = re.findall(r"(/\S*/lib(?:gomp|omp|iomp5)\b\S*)", maps.read())
        return list(dict.fromkeys(found))
    return []


def _forked_before_import() -> bool:
    """Whether this process is the child of one that ran something else than jitgen."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/self/stat") as file:
        flags = int(file.read().rpartition(")")[2].split()[6])
        return bool(flags & _FORKED_WITHOUT_EXEC)
    return False


class Barrier:
    """A barrier of the C library for threads without a runtime."""

    def __init__(self, threads: int) -> None:
        self._memory = ffi.new(BYTES, _BARRIER_BYTES)
        self._c = libc()
        if self._c.pthread_barrier_init(self._memory, ffi.NULL, threads):
            raise OSError("the C library refuses a barrier")
        self.argument = number(self._memory)
        self.function = number(self._c.pthread_barrier_wait)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self._c.pthread_barrier_destroy(self._memory)


def _after_fork_in_child() -> None:
    global _process, _stale
    _process = os.getpid()
    # a runtime may have made a team at any time: for whom cannot be found out
    _stale = _stale or openmp.cache_info().currsize > 0 or bool(_loaded_runtimes())


_process = os.getpid()
#: A runtime is loaded that may wait for threads which a fork has not copied
_stale = _forked_before_import() and bool(_loaded_runtimes())

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
