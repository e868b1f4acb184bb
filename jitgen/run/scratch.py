"""Scratch memory of layers: a pool that all share, bounded in bytes.

A layer takes a block for the time of a call. Which one does not matter, but for one thing: a block
is zeros when a layer takes it for the first time, and after that what the same layer left in it, so
that a border of zeros need not be written again. A layer therefore keeps its idle blocks in a
`Seat`, from which another layer takes them where a new block would be too much: whoever pops a
block from a seat has it alone. Not here: who needs scratch, and what for.

The bound, JITGEN_SCRATCH_MIB, is on what lies idle: what running layers need, they get.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import weakref
from itertools import count
from typing import Any, TypeVar

import numpy as np

from jitgen.run import shared
from jitgen.run.cache import lazy

MIB = 1 << 20
#: Idle memory, in MiB, unless JITGEN_SCRATCH_MIB says otherwise
DEFAULT_MIB = 512
#: From so many bytes on, huge pages are asked for (as NumPy does for its arrays)
HUGE_BYTES = 4 * MIB
#: A block of another layer may be so many times larger than what is needed
WASTE = 4
#: Seats that are not worth a look for those of layers that are gone
CROWD = 64

T = TypeVar("T")


class Block:
    """Memory that begins at a page."""

    __slots__ = ("__weakref__", "memory", "size", "views")

    def __init__(self, size: int) -> None:
        # from the system, which makes zeros where they are first touched, and gets it back at once:
        # freed memory of the C library's may stay in its heap. Private: a child has its own
        pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if size >= HUGE_BYTES:
            with contextlib.suppress(OSError):  # a system without huge pages
                pages.madvise(mmap.MADV_HUGEPAGE)
        self.memory = np.frombuffer(pages, np.uint8)
        self.size = size
        #: what the layer has made of it, for its next call
        self.views: Any = None


class Seat:
    """The blocks of one layer that no call of it is using: pop one before a call, `Pool.take` one
    if there is none, append it after the call unless the pool is `full`."""

    __slots__ = ("__weakref__", "blocks", "used")

    def __init__(self, pool: Pool) -> None:
        self.blocks: list[Block] = []
        #: when the layer was last called, by the pool's clock
        self.used = 0
        pool.enter(self)


class Pool:
    """The seats of all layers, and how much memory their blocks have.

    No sum is kept that an exception, or a handler in between, could spoil.
    """

    def __init__(self) -> None:
        self.clock = count(1)
        #: there may be more than the bound: ask `full`
        self.over = False
        #: blocks, in use or not
        self._blocks: dict[int, weakref.ref[Block]] = {}
        self._seats: dict[int, weakref.ref[Seat]] = {}
        #: so many seats are looked through for those of layers that are gone
        self._crowd = CROWD

    def enter(self, seat: Seat) -> None:
        """A new layer's seat, as long as it lives."""
        with shared.lock:
            if len(self._seats) >= self._crowd:
                self._crowd = 2 * len(_living(self._seats)) + CROWD
            self._seats[id(seat)] = weakref.ref(seat)

    @lazy
    def most_bytes(self) -> int:
        """The bound, read at the first use. Raises ValueError."""
        text = os.environ.get("JITGEN_SCRATCH_MIB", "").strip()
        if text and not re.fullmatch("[0-9]{1,9}", text):
            raise ValueError(f"JITGEN_SCRATCH_MIB={text!r} is no whole number of MiB")
        return int(text or DEFAULT_MIB) * MIB

    @property
    def full(self) -> bool:
        """Whether there is more than the bound, so that a block should rather go than be kept."""
        with shared.lock:
            self.over = self.bytes > self.most_bytes
            return self.over

    @property
    def bytes(self) -> int:
        """Bytes of all blocks."""
        return sum(block.size for block in _living(self._blocks))

    def take(self, size: int) -> Block:
        """A block of `size` bytes or more for a layer whose seat is empty; all zeros."""
        with shared.lock:
            block = None
            if self.bytes + size > self.most_bytes:
                block = self._another(size)
            if block is None:
                block = Block(size)
                self._blocks[id(block)] = weakref.ref(block)
                self.over = self.bytes > self.most_bytes
                return block
        block.memory[:size] = 0
        block.views = None
        return block

    def _another(self, size: int) -> Block | None:
        """The block of the layer that has waited longest and has one that suits; if there is none,
        blocks are freed until a new one fits."""
        seats = sorted(_living(self._seats), key=lambda seat: seat.used)
        for seat in seats:
            for block in list(seat.blocks):
                if size <= block.size <= WASTE * size:
                    with contextlib.suppress(ValueError):  # its layer has just taken it
                        seat.blocks.remove(block)
                        return block
        for seat in seats:
            while self.bytes + size > self.most_bytes and seat.blocks:
                _drop(seat)
        return None

    def clear(self) -> None:
        """Give all idle memory back."""
        for seat in _living(self._seats):
            while seat.blocks:
                _drop(seat)

    def info(self) -> dict[str, int]:
        """Idle blocks and their bytes, and how many there may be at most."""
        sizes = [block.size for seat in _living(self._seats) for block in list(seat.blocks)]
        return {"entries": len(sizes), "bytes": sum(sizes), "most_bytes": self.most_bytes}


def _living(references: dict[int, weakref.ref[T]]) -> list[T]:
    """The objects that are still there; the others are forgotten. (A callback of a reference, or a
    `__del__`, would swallow an interrupt that comes in it.)"""
    found = []
    with shared.lock:
        for key, reference in list(references.items()):
            living = reference()
            if living is not None:
                found.append(living)
            elif references.get(key) is reference:
                references.pop(key, None)
    return found


def _drop(seat: Seat) -> None:
    with contextlib.suppress(IndexError):
        seat.blocks.pop(0)


#: The pool of this process
POOL = Pool()
