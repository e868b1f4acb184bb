"""Threads: how many a layer uses, and which OpenMP runtime may make a team of them.

The runtime is the one that this process has loaded already, or one of the system's. Where there is
none, and in a process that was forked while one was loaded (the runtime remembers threads that are
gone, and would wait for them forever), teams do without (`jitgen.run.crew`). Not here: what the
threads do (`jitgen.run.replay`).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import re
import time
from functools import cache
from typing import Any, NamedTuple

from jitgen import doors
from jitgen.run import quota
from jitgen.run.loader import BYTES, ffi, libc, number

ffi.cdef(
    """
    int pthread_create(void *, const void *, void *, void *);
    int pthread_join(uintptr_t, void *);
    int pthread_mutex_lock(void *);
    int pthread_mutex_unlock(void *);
    int pthread_barrier_init(void *, void *, unsigned);
    int pthread_barrier_wait(void *);
    int pthread_barrier_destroy(void *);
    """
)
#: looked up under a lock of cffi's: see jitgen.run.loader
_GOMP_PARALLEL = ffi.typeof("void (*)(void (*)(void *), void *, unsigned, unsigned)")
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
#: Seconds that the end of the interpreter waits for teams at work
EXIT_SECONDS = 10.0
#: A process that was forked and has not begun a program of its own since (Linux's sched.h)
_FORKED_WITHOUT_EXEC = 0x40


def check_threads(threads: int | None) -> int:
    """How many threads to use: `threads`, else OMP_NUM_THREADS, else the CPUs of this process
    (`jitgen.run.quota`).

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


class OpenMP(NamedTuple):
    """Functions of a runtime: the one that makes a team, and addresses of others."""

    parallel: Any
    barrier: int
    thread_number: int
    team_size: int


def usable_openmp() -> OpenMP | None:
    """The OpenMP runtime if this process may enter a team of it, else None."""
    if _process != os.getpid():  # forked past Python's hooks
        _after_fork_in_child()
    return None if _stale else openmp()


@cache
def openmp() -> OpenMP | None:
    """The OpenMP runtime: one that this process has loaded already (PyTorch brings its own), else
    one of the system's; None if there is none.

    It is never unloaded: its threads may still spin in it when the interpreter has ended. Opened
    past cffi, whose lock a signal handler or a forked child might find taken.
    """
    global _sought
    _sought = True
    for name in (*(_loaded_runtimes() or ()), *RUNTIMES):
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(name, os.RTLD_NOW | os.RTLD_NODELETE)
            parallel, *others = (
                ctypes.cast(getattr(library, function), ctypes.c_void_p).value or 0
                for function in (
                    "GOMP_parallel", "GOMP_barrier", "omp_get_thread_num", "omp_get_num_threads"
                )
            )
            return OpenMP(ffi.cast(_GOMP_PARALLEL, parallel), *others)
    return None


def _loaded_runtimes() -> list[str] | None:
    """OpenMP runtimes in this process; None where that cannot be found out."""
    try:
        # names of files are bytes
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            found = re.findall(r"(/.*/lib(?:gomp|omp|iomp5)\b\S*)", maps.read())
    except OSError:
        return None
    return list(dict.fromkeys(found))


def _forked_before_import() -> bool:
    """Whether this process is the child of one that ran something else than jitgen (without /proc,
    nobody knows)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # the name of the process may have been cut within a character
        with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
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
        try:  # noqa: SIM105 (as a process ends, contextlib may be gone)
            self._c.pthread_barrier_destroy(self._memory)
        except AttributeError:
            pass


def _after_fork_in_child() -> None:
    global _process, _stale, working
    _process, working = os.getpid(), set()
    # a runtime may have made a team at any time: for whom cannot be found out
    _stale = _stale or _sought or _loaded_runtimes() != []


def _at_exit() -> None:
    """Runtimes are torn down when the process ends, and LLVM's then crashes if a team is at work:
    threads that nobody waits for go on without."""
    global _stale
    _stale = True
    end = time.monotonic() + EXIT_SECONDS
    while working and time.monotonic() < end:
        time.sleep(0.0005)


#: An entry for each call that is in a team of the runtime
working: set[Any] = set()
_process = os.getpid()
#: A runtime was looked for
_sought = False
#: A runtime is loaded that may wait for threads which a fork has not copied
_stale = _forked_before_import() and _loaded_runtimes() != []
atexit.register(_at_exit)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
