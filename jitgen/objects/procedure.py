"""What a library must know of a function that replays streams: a pass of a layer, for C.

A record and no more, so that whoever makes streams, above, can say what is to be exported without
this room knowing layers. Not here: the function's code (`jitgen.objects.entry`), how a pass becomes
a record (`jitgen.primitives.layers.exporting`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jitgen import doors
from jitgen.objects.elf import align
from jitgen.run import barrier
from jitgen.run.replay import Driver
from jitgen.run.threads import MOST_THREADS
from jitgen.target import Target

#: Alignment of scratch memory and of constants
ALIGN = 64


class Argument(NamedTuple):
    """An array that C passes: its name, type of its elements ("" for data of another kind), shape,
    bytes, whether it is written, in words what it holds ("" where the shape says enough), and of
    what is written whether it is read before."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    result: bool
    meaning: str = ""
    updated: bool = False


class Base(NamedTuple):
    """Where a base address of a stream comes from: kind "argument" (its number), "scratch" (bytes
    from its begin), "constant" (its number), or "nothing", an address that no call reads."""

    kind: str
    at: int = 0


class Constant(NamedTuple):
    """Bytes that lie in the library, by a name for their symbol."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Cut:
    """A pass as `threads` threads of the caller do it: the driver, the words that each of the first
    threads replays (the others only wait), and the stream's base addresses in order."""

    threads: int
    driver: Driver
    slices: tuple[bytes, ...]
    bases: tuple[Base, ...]


@dataclass(frozen=True)
class Procedure:
    """A function `int name(const struct name_args *args, int tid, int nthreads)` on one target.

    args: a word for each of `arguments`, then the address of scratch memory. cuts: one for each
    number of threads. scratch: bytes that the streams need.
    """

    name: str
    target: Target
    arguments: tuple[Argument, ...]
    cuts: tuple[Cut, ...]
    scratch: int
    constants: tuple[Constant, ...] = ()
    computes: str = ""

    @property
    def threads(self) -> tuple[int, ...]:
        """The numbers of threads that it can be called with."""
        return tuple(cut.threads for cut in self.cuts)

    @property
    def barriers(self) -> int:
        """Bytes at the begin of the caller's scratch memory that threads wait with: one barrier
        within the streams, and one that all pass at the end."""
        return 2 * barrier.STATE_BYTES if max(self.threads) > 1 else 0

    @property
    def scratch_bytes(self) -> int:
        """Bytes of scratch memory that the caller gives."""
        return self.barriers + align(self.scratch, ALIGN)


def check_counts(threads: Any) -> tuple[int, ...]:
    """Numbers of threads, the smallest first. TypeError or ValueError that names the rule."""
    given = enumerate(doors.items("threads", threads))
    counts = tuple(sorted(doors.size(f"threads[{i}]", n, 1, MOST_THREADS) for i, n in given))
    if not counts or len(set(counts)) < len(counts):
        raise ValueError(f"threads={doors.shown(threads)}: it has one number or several, none of "
                         "them twice")  # fmt: skip
    return counts


class Exportable(ABC):
    """What `jitgen.export` takes beside kernels: it says of which procedures it consists."""

    @abstractmethod
    def procedures(
        self, name: str, passes: Iterable[str] | None = None, threads: Iterable[int] = (1,),
        weights: Mapping[str, Any] | None = None,
    ) -> list[Procedure]:  # fmt: skip
        """The passes (None: all) as C functions `name`_<pass>, to be called on each of these
        numbers of threads; `weights`: arrays by argument that are to lie in the library."""
