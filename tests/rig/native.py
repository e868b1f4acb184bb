"""Runs jobs on the processor of this computer (Linux on x86-64 or AArch64).

A child process is forked for the batch; a crash or a hang is reported in that job's Result and
the rest continues in a new child. Memory is never writable and executable at once. Vector lengths
and instructions are what the processor has.

    results = native.run([Job(code, [a, b, c])])
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import pickle
import platform
import select
import signal
import struct
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cffi

from . import a64, x86
from .count import count
from .job import Job, Result, RigError, failed
from .layout import judge, place_job

PAGE = mmap.PAGESIZE
STACK_BYTES = 1 << 16
SIGNAL_STACK_BYTES = 1 << 18

_NONE, _R, _RW, _RX = 0, 1, 3, 5
_PROTECTION = {"r": _R, "rw": _RW, "rx": _RX}
_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_FIXED = 0x10
_SIGNALS = (signal.SIGILL, signal.SIGTRAP, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV)
_SA_SIGINFO, _SA_ONSTACK = 4, 0x08000000
_HWCAP, _HWCAP2, _HWCAP_SVE, _HWCAP2_SME = 16, 26, 1 << 22, 1 << 23
_LENGTH = struct.Struct("<Q")

_ffi = cffi.FFI()
_ffi.cdef(
    """
    struct sigaction { void *handler; unsigned long mask[16]; int flags; void *restorer; };
    typedef struct { void *sp; int flags; size_t size; } stack_t;
    void *mmap(void *, size_t, int, int, int, long);
    int mprotect(void *, size_t, int);
    int munmap(void *, size_t);
    int sigaction(int, const struct sigaction *, struct sigaction *);
    int sigaltstack(const stack_t *, stack_t *);
    unsigned long getauxval(unsigned long);
    """
)


def available() -> str | None:
    """Return None if jobs can run, else why not."""
    if sys.platform != "linux":
        return f"native runs need Linux, this is {sys.platform}"
    if _machine() not in ("x86_64", "aarch64"):
        return f"native runs need x86-64 or AArch64, this is {platform.machine()}"
    return None


def run(jobs: Sequence[Job], *, timeout: float = 60.0, isa: str = "") -> list[Result]:
    """Run jobs in order and return their results.

    timeout: seconds for one job. isa: name under which kernels that returned are counted, "" for
    not at all. RigError: this computer is not one of those supported, or memory runs out.
    """
    reason = available()
    if reason is not None:
        raise RigError(reason)
    results: list[Result] = []
    if jobs:
        with contextlib.closing(_Memory(jobs)) as memory:
            while len(results) < len(jobs):
                results += memory.batch(jobs[len(results) :], timeout)
    if isa:
        count(isa, "native", sum(result.returned for result in results))
    return results


class _Memory:
    """What children inherit at known addresses: routines, stack, record, room for one job."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._taken: list[tuple[int, int]] = []
        span = max(place_job(job, 0, PAGE, _trap()).end for job in jobs)
        # Taken whole and unreachable, so that nothing comes to lie where a guard page is meant.
        self._arena = self._take(span, _NONE)
        stack = self._take(STACK_BYTES + 2 * PAGE, _NONE)
        _protect(stack + PAGE, STACK_BYTES, _RW)
        self._stack = stack + PAGE + STACK_BYTES
        self._signal_stack = self._take(SIGNAL_STACK_BYTES, _RW)
        # Shared: the parent reads what the signal handler of a child wrote.
        self._record_map = mmap.mmap(-1, max(PAGE, 4096))
        self._record_view = _ffi.from_buffer(self._record_map)
        self._record = int(_ffi.cast("uintptr_t", self._record_view))
        code, self._call, self._handler, self._flush = _routines(self._record)
        length = -(-len(code) // PAGE) * PAGE
        self._code = self._take(length, _RW)
        _ffi.memmove(_pointer(self._code), code, len(code))
        _protect(self._code, length, _RX)

    def close(self) -> None:
        """Give all memory back."""
        for address, size in self._taken:
            _library().munmap(_pointer(address), size)
        _ffi.release(self._record_view)
        self._record_map.close()

    def batch(self, jobs: Sequence[Job], timeout: float) -> list[Result]:
        """Run jobs in one child, up to and including the first that ends it."""
        self._record_map[:] = bytes(len(self._record_map))
        readable, writable = os.pipe()
        with warnings.catch_warnings():
            # Python warns that threads do not survive a fork; the child uses none.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            self._child(jobs, writable)
        os.close(writable)
        results: list[Result] = []
        try:
            while len(results) < len(jobs):
                answer = _receive(readable, timeout)
                if answer is None:
                    break
                if isinstance(answer, str):
                    raise RigError(answer)
                results.append(answer)
            else:
                return results
            _, status = os.waitpid(child, 0)
            child = 0
            results.append(failed(self._death(jobs[len(results)], status)))
        except TimeoutError:
            results.append(failed(f"hung: not back within {timeout:g} s"))
        finally:
            os.close(readable)
            if child:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        return results

    def _child(self, jobs: Sequence[Job], writable: int) -> None:
        """Run jobs and send their results; never returns."""
        try:
            self._catch_signals()
            for job in jobs:
                _send(writable, self._one(job))
        except Exception as error:
            _send(writable, f"the child failed: {error!r}")
        finally:
            os._exit(0)

    def _one(self, job: Job) -> Result:
        layout = place_job(job, self._arena, PAGE, _trap())
        for region in layout.regions:
            size = len(region.pages)
            if not size:
                continue
            _map(region.address, size, _RW, _ANONYMOUS | _FIXED)
            _ffi.memmove(_pointer(region.address), region.pages, size)
            _protect(region.address, size, _PROTECTION[region.protection])
        if self._flush:
            flush = _ffi.cast("void (*)(void *, void *)", self._code + self._flush)
            flush(_pointer(layout.code), _pointer(layout.code + len(job.code)))
        record = _record(layout.code, layout.words, self._stack)
        self._record_map[: len(record)] = record
        _ffi.cast("void (*)(void)", self._code + self._call)()
        words = struct.unpack_from(f"<{a64.RECORD_WORDS}Q", self._record_map)
        pages = [_bytes(each.address, len(each.pages)) for each in layout.outputs]
        found = _violations(words, self._stack)
        result = judge(layout, words[a64.VALUE], found, pages)
        _map(layout.base, layout.end - layout.base, _NONE, _ANONYMOUS | _FIXED)
        return result

    def _catch_signals(self) -> None:
        library = _library()
        stack = _ffi.new("stack_t *", (_pointer(self._signal_stack), 0, SIGNAL_STACK_BYTES))
        if library.sigaltstack(stack, _ffi.NULL):
            raise OSError(_ffi.errno, "sigaltstack")
        action = _ffi.new("struct sigaction *")
        action.handler = _pointer(self._code + self._handler)
        action.flags = _SA_SIGINFO | _SA_ONSTACK
        for number in _SIGNALS:
            if library.sigaction(int(number), action, _ffi.NULL):
                raise OSError(_ffi.errno, "sigaction")

    def _death(self, job: Job, status: int) -> str:
        words = struct.unpack_from(f"<{a64.RECORD_WORDS}Q", self._record_map)
        if words[a64.STATUS] == a64.SIGNALLED:
            return a64.signal_of(place_job(job, self._arena, PAGE, _trap()), words)
        if os.WIFSIGNALED(status):
            return f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
        return f"ended the process with status {os.WEXITSTATUS(status)}"

    def _take(self, size: int, protection: int) -> int:
        address = _map(0, size, protection, _ANONYMOUS)
        self._taken.append((address, size))
        return address


def _routines(record: int) -> tuple[bytes, int, int, int]:
    """Return code and the offsets in it of call, signal handler and flush (0: not needed)."""
    if _machine() == "x86_64":
        call = x86.guarded_call(record, x86_flags())
        return call + x86.signal_handler(record), 0, len(call), 0
    a = a64.Assembler()
    a64.emit_guarded_call(a, record)
    a.label("handler")
    a64.emit_signal_handler(a, record)
    a.constant(0, 1)
    a.system_call(94)  # exit_group
    a.label("flush")
    a64.emit_flush(a)
    return a.code(), 0, 4 * a.labels["handler"], 4 * a.labels["flush"]


def _record(entry: int, words: int, stack: int) -> bytes:
    if _machine() == "x86_64":
        return struct.pack("<3Q", entry, words, stack).ljust(8 * a64.RECORD_WORDS, b"\0")
    flags = 0
    if _library().getauxval(_HWCAP) & _HWCAP_SVE:
        flags |= 1 << a64.HAS_SVE
    if _library().getauxval(_HWCAP2) & _HWCAP2_SME:
        flags |= 1 << a64.HAS_SME
    return a64.record(entry, words, stack, flags)


def _violations(words: tuple[int, ...], stack: int) -> list[str]:
    if _machine() == "aarch64":
        return a64.violations(words, stack)
    saved = list(words[x86.SAVED : x86.SAVED + len(x86.SENTINELS)])
    mxcsr, rflags = words[x86.MXCSR_AFTER], words[x86.RFLAGS_AFTER]
    return x86.violations(saved, words[x86.RSP_AFTER], stack, mxcsr & 0xFFFF, rflags)


def _send(file: int, message: Result | str) -> None:
    data = pickle.dumps(message, protocol=5)
    left = memoryview(_LENGTH.pack(len(data)) + data)
    while left:
        left = left[os.write(file, left) :]


def _receive(file: int, timeout: float) -> Any:
    """Return the next message, None at the end; TimeoutError after timeout seconds."""
    end = time.monotonic() + timeout
    size = _LENGTH.size
    data = bytearray()
    while len(data) < size:
        if not select.select([file], [], [], max(0.0, end - time.monotonic()))[0]:
            raise TimeoutError
        chunk = os.read(file, min(size - len(data), 1 << 20))
        if not chunk:
            return None
        data += chunk
        if len(data) == size == _LENGTH.size:
            size += _LENGTH.unpack(data)[0]
    return pickle.loads(data[_LENGTH.size :])


def _map(address: int, size: int, protection: int, flags: int) -> int:
    result = _library().mmap(_pointer(address), size, protection, flags, -1, 0)
    value = int(_ffi.cast("intptr_t", result))
    if value == -1:
        raise RigError(f"cannot map {size} bytes: {os.strerror(_ffi.errno)}")
    return value


def _protect(address: int, size: int, protection: int) -> None:
    if _library().mprotect(_pointer(address), size, protection):
        raise RigError(f"cannot protect {size} bytes: {os.strerror(_ffi.errno)}")


def _pointer(address: int) -> Any:
    return _ffi.cast("void *", address)


def _bytes(address: int, size: int) -> bytes:
    return bytes(_ffi.buffer(_pointer(address), size))


@functools.cache
def _library() -> Any:
    return _ffi.dlopen(None)


@functools.cache
def _machine() -> str:
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )


def _trap() -> bytes:
    return b"\xcc" if _machine() == "x86_64" else b"\0"


@functools.cache
def x86_flags() -> frozenset[str]:
    """Return the processor flags as Linux names them; empty on AArch64."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()
