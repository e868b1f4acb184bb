"""Executable memory: machine code in, addresses out; never writable and executable at one address.

Many kernels share an arena, anonymous shared memory mapped twice (once writable, once executable);
where the system cannot do that, each kernel gets pages of its own that are written first and made
executable then. Not here: what the code does (`jitgen.gemm.kernel`).

Anonymous and not a named memory file, because perf looks into its map of names (`jitgen.debug`)
only for samples in anonymous memory.

Forking: an arena is shared memory, so after a fork neither side may reuse a place that the other
may still run. A fork therefore gives the arena up; both sides begin a new one.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import weakref
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cffi

from jitgen.emit.routine import Routine
from jitgen.frozen import uncopied
from jitgen.run import shared

ffi = cffi.FFI()
ffi.cdef(
    """
    void *mmap(void *, size_t, int, int, int, int64_t);
    int munmap(void *, size_t);
    int mprotect(void *, size_t, int);
    void *mremap(void *, size_t, size_t, int, ...);
    unsigned long getauxval(unsigned long);
    int prctl(int, unsigned long, unsigned long, unsigned long, unsigned long);
    """
)
#: C types and functions, looked up here once: cffi does so under a lock, which a signal handler
#: that interrupts it, or a child that is forked by another thread, would wait for forever
WORDS, BYTES, ADDRESSES = (ffi.typeof(name) for name in ("uint64_t[]", "char[]", "void *[]"))
ADDRESS, BYTE_ADDRESS, NUMBER = (ffi.typeof(name) for name in ("void *", "char *", "uintptr_t"))
PROCEDURE, FUNCTION = (ffi.typeof(f"{kind} (*)(void *)") for kind in ("void", "int64_t"))
OF_NUMBERS = ffi.typeof("void (*)(uintptr_t, uintptr_t, uintptr_t)")
_libc = ffi.dlopen(None)
with contextlib.suppress(AttributeError):  # not on every system: `why_not_here` says so
    for _name in ("mmap", "munmap", "mprotect", "mremap", "getauxval", "prctl"):
        getattr(_libc, _name)
ARENA_BYTES = 1 << 20
ALIGN = 64
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
MFD_CLOEXEC, MFD_EXEC = 1, 0x10
MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS = 1, 2, 0x20
MREMAP_MAYMOVE = 1


class ExecutableMemoryError(OSError):
    """The system refuses executable memory."""


@lru_cache(maxsize=1)
def architecture() -> str:
    """This machine's architecture: "x86_64", "aarch64" or what the platform says."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def why_not_here() -> str:
    """Why no code can run on this system, or ""."""
    if not sys.platform.startswith("linux"):
        return f"running kernels needs Linux; this is {sys.platform} (generating works everywhere)"
    if architecture() not in ("x86_64", "aarch64"):
        return f"running kernels needs x86-64 or AArch64; this is {platform.machine()}"
    return ""


def libc() -> Any:
    """The C library, through which memory is mapped."""
    return _libc


def number(pointer: Any) -> int:
    """The address that a cffi pointer holds."""
    return int(ffi.cast(NUMBER, pointer))


class Code:
    """Machine code in executable memory; its place is free again when this object dies.

    From `address` on, `size` bytes are the code, `room` bytes its own.
    """

    __slots__ = ("__weakref__", "_owner", "_slot", "address", "room", "size")

    def __init__(self, owner: Arena, slot: tuple[int, int], address: int, size: int) -> None:
        self._owner = owner
        self._slot = slot
        self.address = address
        self.size = size
        self.room = slot[1]

    def __del__(self) -> None:
        owner = getattr(self, "_owner", None)  # none where __init__ did not come so far
        if owner is not None:
            owner.release(self._slot)

    __reduce_ex__ = uncopied("copy the kernel")


class Arena:
    """Executable memory for many kernels: a writable and an executable view of the same pages."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pid = os.getpid()
        self._c = libc()
        self._free: list[tuple[int, int]] = [(0, size)]
        self._dead: deque[tuple[int, int]] = deque()
        self._map_twice()
        _mapped[id(self)] = self.size

    def _map_twice(self) -> None:
        self._writable = self._map(PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS)
        # an old size of 0 asks for a second mapping of shared pages (mremap(2))
        first = ffi.cast(ADDRESS, self._writable)
        self._executable = _checked(self._c.mremap(first, 0, self.size, MREMAP_MAYMOVE))
        self._make_executable()

    def _map(self, access: int, sharing: int, file: int = -1) -> int:
        return _checked(self._c.mmap(ffi.NULL, self.size, access, sharing, file, 0))

    def _make_executable(self) -> None:
        pages = ffi.cast(ADDRESS, self._executable)
        if self._c.mprotect(pages, self.size, PROT_READ | PROT_EXEC):
            raise ExecutableMemoryError(
                ffi.errno, f"the system refuses executable memory ({os.strerror(ffi.errno)}); "
                "generating and listing kernels still works"
            )  # fmt: skip

    def place(self, code: bytes) -> Code | None:
        """Copy `code` in; None if there is no room."""
        size = self._round_up(len(code))
        self._reclaim()
        for i, (start, room) in enumerate(self._free):
            if room >= size:
                self._free[i] = (start + size, room - size)
                ffi.memmove(ffi.cast(BYTE_ADDRESS, self._writable + start), code, len(code))
                return Code(self, (start, size), self._executable + start, len(code))
        return None

    def _round_up(self, size: int) -> int:
        return -(-size // ALIGN) * ALIGN

    def release(self, slot: tuple[int, int]) -> None:
        """Make a place free for the next kernel. Takes no lock and changes no list that `place`
        may be walking: a garbage collection can call this at any point of any thread."""
        self._dead.append(slot)

    def _reclaim(self) -> None:
        """Merge the places of dead kernels into the free ones."""
        while self._dead:
            self._free.append(self._dead.popleft())
        merged: list[tuple[int, int]] = []
        for start, room in sorted(self._free):
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + room)
            else:
                merged.append((start, room))
        self._free = merged

    def __del__(self) -> None:
        # sealed or not: once no code lives here, this process's mappings can go
        self._unmap("_writable", "_executable")

    def _unmap(self, *views: str) -> None:
        # not as the interpreter ends: a thread that it does not wait for may still run code here
        with contextlib.suppress(AttributeError, TypeError):
            if not sys.is_finalizing():
                _mapped.pop(id(self), None)
                for view in views:
                    self._c.munmap(ffi.cast(ADDRESS, getattr(self, view)), self.size)


class FileArena(Arena):
    """An arena on a memory file, for systems where what was writable may not become executable
    (prctl's PR_SET_MDWE, systemd's MemoryDenyWriteExecute). perf names no code in it."""

    def _map_twice(self) -> None:
        try:
            file = os.memfd_create("jitgen", MFD_CLOEXEC | MFD_EXEC)
        except OSError:
            # kernels before 6.3 do not know MFD_EXEC; their memory files are executable anyway
            file = os.memfd_create("jitgen", MFD_CLOEXEC)
        try:
            os.ftruncate(file, self.size)
            self._writable = self._map(PROT_READ | PROT_WRITE, MAP_SHARED, file)
            self._executable = self._map(PROT_READ | PROT_EXEC, MAP_SHARED, file)
        finally:
            os.close(file)


class Pages(Arena):
    """Pages of one kernel, written first and made executable then."""

    def __init__(self, size: int) -> None:
        self.size = -(-size // 4096) * 4096
        self._c = libc()
        self._free = [(0, self.size)]
        self._dead = deque()
        access = PROT_READ | PROT_WRITE
        self._writable = self._executable = self._map(access, MAP_PRIVATE | MAP_ANONYMOUS)
        _mapped[id(self)] = self.size

    def place(self, code: bytes) -> Code | None:
        placed = super().place(code)
        self._make_executable()
        return placed

    def _round_up(self, size: int) -> int:
        return self.size  # nothing else comes here

    def __del__(self) -> None:
        self._unmap("_writable")


def _checked(address: Any) -> int:
    mapped = number(address)
    if mapped == (1 << 64) - 1:
        raise ExecutableMemoryError(
            ffi.errno, f"cannot map memory for machine code: {os.strerror(ffi.errno)}"
        )
    return mapped


#: Bytes of all memory for code that is mapped, by arena
_mapped: dict[int, int] = {}


def info() -> dict[str, int]:
    """Pieces of memory for machine code, and their bytes."""
    sizes = list(_mapped.values())
    return {"entries": len(sizes), "bytes": sum(sizes)}


#: The arena that takes the next kernels; an older one lives as long as its kernels do
_arena: Arena | None = None
#: Whether kernels share arenas. `jitgen.debug` wants pages of its own for each kernel, private ones
#: because debuggers cannot set breakpoints in shared memory
share = True


#: Places and the routines in them, for as long as both live, and whom to tell of the next ones
#: (`jitgen.debug`); guarded by shared.lock
loaded: weakref.WeakKeyDictionary[Code, weakref.ref[Routine]] = weakref.WeakKeyDictionary()
on_load: Callable[[Routine, Code], None] | None = None


def load(routine: Routine) -> Code:
    """Copy a routine into executable memory. Whoever keeps the place keeps the routine too: tools
    that are turned on later ask it for names.

    Raises as `place` does.
    """
    with shared.lock:
        placed = place(routine.code)
        loaded[placed] = weakref.ref(routine)
        if on_load is not None:
            on_load(routine, placed)
    return placed


def place(code: bytes) -> Code:
    """Copy machine code into executable memory.

    Raises ExecutableMemoryError (an OSError) where the system forbids that, with the reason.
    """
    reason = why_not_here()
    if reason:
        raise ExecutableMemoryError(0, reason)
    with shared.lock:
        placed = _place(code)
    if architecture() == "aarch64":
        _flush_instruction_cache(placed)
    return placed


def _place(code: bytes) -> Code:
    global _arena
    # nobody else's while it is in use: a signal handler that loads code finds none, and begins
    # another; what an exception leaves half done is not used again
    arena, _arena = _arena, None
    placed = None
    # a process that was forked past Python's hooks still shares its parent's arena
    if share and arena is not None and arena.pid == os.getpid():
        placed = arena.place(code)
    if placed is None:
        arena = _new_arena(len(code))
        placed = arena.place(code)
    assert placed is not None, "a new arena has room"
    if not isinstance(arena, Pages):
        _arena = arena
    return placed


def _new_arena(size: int) -> Arena:
    for kind in (Arena, FileArena) if share else ():
        with contextlib.suppress(OSError):
            return kind(max(ARENA_BYTES, -(-size // 4096) * 4096))
    return Pages(size)


def _give_up_arena() -> None:
    global _arena
    _arena = None


_flush: Any = None


def _flush_instruction_cache(code: Code) -> None:
    """AArch64: make the new bytes visible to instruction fetch."""
    global _flush
    if _flush is None:
        from jitgen.isa.a64 import flush_icache_code

        # fresh private pages: the system itself cleans the cache when it makes them executable
        stub = flush_icache_code()
        placed = Pages(len(stub)).place(stub)
        assert placed is not None
        _flush = (ffi.cast(OF_NUMBERS, placed.address), placed)
    _flush[0](code.address, code.address + code.size, 0)


shared.before_fork.append(_give_up_arena)
