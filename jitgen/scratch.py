"""Scratch memory of layers: a pool that all share, bounded in bytes.

A layer takes a block for the time of a call. Which one does not matter, but for one thing: a block
is zeros when a layer takes it for the first time, and after that what the same layer left in it, so
that a border of zeros need not be written again. The pool therefore gives a layer its last block
back, unless another one needed the memory. Not here: who needs scratch, and what for.

The bound is on what lies idle: what running layers need, they get. JITGEN_SCRATCH_MIB sets it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import weakref
from collections import OrderedDict
from typing import Any

import numpy as np

from jitgen.cache import lazy

MIB = 1 << 20
#: Idle memory, in MiB, unless JITGEN_SCRATCH_MIB says otherwise
DEFAULT_MIB = 512
#: From so many bytes on, huge pages are asked for (as NumPy does for its arrays)
HUGE_BYTES = 4 * MIB
#: A block of another layer may be so many times larger than what is needed
WASTE = 4


class Block:
    """Memory that begins at a page; `owner` left its content."""

    __slots__ = ("memory", "owner", "size", "views")

    def __init__(self, size: int) -> None:
        self.size = size
        self.owner: weakref.ref[Any] | None = None
        # from the system, which makes zeros where they are first touched, and gets it back at once:
        # freed memory of the C library's may stay in its heap. Private: a child has its own
        pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if size >= HUGE_BYTES:
            with contextlib.suppress(OSError):  # a system without huge pages
                pages.madvise(mmap.MADV_HUGEPAGE)
        #: None once the pool has given the memory back
        self.memory: np.ndarray | None = np.frombuffer(pages, np.uint8)
        #: what the owner has made of it, for its next call
        self.views: Any = None

    def drop(self) -> None:
        """Give the memory back to the system."""
        self.memory = self.views = None


class Pool:
    """Blocks that no call is using, the longest idle first."""

    def __init__(self) -> None:
        self.bytes = 0
        self._idle: OrderedDict[int, Block] = OrderedDict()
        self._lock = threading.RLock()

    @lazy
    def most_bytes(self) -> int:
        """The bound, read at the first use. Raises ValueError."""
        text = os.environ.get("JITGEN_SCRATCH_MIB", "").strip()
        if text and not text.isdigit():
            raise ValueError(f"JITGEN_SCRATCH_MIB={text!r} is no whole number of MiB")
        return int(text or DEFAULT_MIB) * MIB

    def take(self, owner: Any, mine: list[Block], size: int) -> Block:
        """A block of `size` bytes for a call of `owner`, whose earlier blocks are in `mine`."""
        with self._lock:
            while mine:
                block = mine.pop()
                if self._remove(block) and block.owner is not None and block.owner() is owner:
                    return block
            found = self._other(size)
        if found is None:
            found = Block(size)
        else:
            assert found.memory is not None
            found.memory[:size] = 0
            found.views = None
        found.owner = weakref.ref(owner)
        return found

    def give(self, mine: list[Block], block: Block) -> None:
        """Give a block back after a call."""
        with self._lock:
            self.bytes += block.size
            self._idle[id(block)] = block
            mine.append(block)
            if self.bytes > self.most_bytes:
                self._shrink()

    def _remove(self, block: Block) -> bool:
        """Take a block out if it is still there."""
        if block.memory is None or self._idle.pop(id(block), None) is None:
            return False
        self.bytes -= block.size
        return True

    def _other(self, size: int) -> Block | None:
        """Another layer's block: one that nobody waits for, or the longest idle one if a new one
        would be too much."""
        full = self.bytes + size > self.most_bytes
        for block in list(self._idle.values()):
            nobody = block.owner is None or block.owner() is None
            if size <= block.size <= WASTE * size and (nobody or full) and self._remove(block):
                return block
        return None

    def _shrink(self) -> None:
        # anew: an exception at the wrong moment may have left the sum too large
        self.bytes = sum(block.size for block in self._idle.values())
        for block in list(self._idle.values()):
            if self.bytes <= self.most_bytes:
                break
            if self._remove(block):
                block.drop()

    def clear(self) -> None:
        """Give all idle memory back."""
        with self._lock:
            for block in list(self._idle.values()):
                if self._remove(block):
                    block.drop()

    def info(self) -> dict[str, int]:
        """Idle blocks and bytes, and how many there may be at most."""
        return {"entries": len(self._idle), "bytes": self.bytes, "most_bytes": self.most_bytes}

    def after_fork(self) -> None:
        """In a forked child: the lock may be held by a thread that is not there."""
        self._lock = threading.RLock()


#: The pool of this process
POOL = Pool()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=POOL.after_fork)
