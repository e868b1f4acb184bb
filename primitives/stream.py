"""Streams: a primitive's loops as the sequence of kernel calls that each thread replays.

A `Part` is a loop nest with the kernel it calls and where the kernel's operands lie; a stream is
parts one after the other, a barrier between them. Everything about a call that depends on where the
loops stand is an affine function of the loops' positions, so a stream is computed in NumPy, once
for a shape. Not here: the driver that replays it (`jitgen.replay`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jitgen.replay import BARRIER, END, FIRST_KIND, Call, Word
from jitgen.target import Target
from jitgen.team import Team
from primitives.loops import Loop, Nest, iterate

#: A kernel's machine code for a block, and the words of its argument struct that are the same in
#: every call: made from sizes by loop, and whether the block is the first and the last one of the
#: reduction
MakeCode = Callable[[dict[str, int], bool, bool], tuple[bytes, dict[str, int]]]


@dataclass(frozen=True)
class Ref:
    """Where a word of the argument struct points: `tensor` plus, for each loop named in `steps`,
    its position times a number of elements; `element` is the size of an element in bytes."""

    tensor: str
    steps: Mapping[str, int]
    element: int = 4


@dataclass(frozen=True)
class Part:
    """A loop nest and the kernel in it; `reduction` names the loops that sum into the same
    output."""

    title: str
    order: str
    loops: Mapping[str, Loop]
    code: MakeCode
    words: Mapping[str, Ref]
    reduction: str = ""


@dataclass(frozen=True)
class Calls:
    """The calls of one part: the nest, the kind of each iteration, and the offset of each word in
    elements, (iterations, words)."""

    part: Part
    nest: Nest
    kind: np.ndarray
    offsets: np.ndarray


class Stream:
    """The calls of all parts, and what a driver needs to replay them.

    `tensors` names the base addresses in the order in which `team` takes them.
    """

    def __init__(self, parts: Sequence[Part], tensors: Sequence[str], threads: int = 1) -> None:
        self.tensors = tuple(tensors)
        self.threads = threads
        self.calls: list[Call] = []
        self.parts: list[Calls] = [self._part(part) for part in parts]
        self.slices = [self._slice(t) for t in range(threads)]

    def team(self, target: Target) -> Team:
        """The stream, ready to run."""
        return Team(self.calls, self.slices, len(self.tensors), target)

    def _part(self, part: Part) -> Calls:
        nest = iterate(part.order, part.loops, self.threads)
        names = list(part.loops)
        columns = [nest.size[n] for n in names]
        first = np.ones(len(nest), bool)
        last = np.ones(len(nest), bool)
        for n in part.reduction:
            first &= nest.start[n] == 0
            last &= nest.start[n] + nest.size[n] == part.loops[n].extent
        table = np.stack([*columns, first, last], axis=1)
        shapes, index = np.unique(table, axis=0, return_inverse=True)
        words = tuple(
            Word(name, self.tensors.index(ref.tensor), ref.element.bit_length() - 1)
            for name, ref in part.words.items()
        )
        kinds = []
        for *sizes, is_first, is_last in shapes.tolist():
            sized = dict(zip(names, sizes, strict=True))
            code, fixed = part.code(sized, bool(is_first), bool(is_last))
            call = Call(code, words, tuple(fixed.items()))
            if call not in self.calls:
                self.calls.append(call)
            kinds.append(FIRST_KIND + self.calls.index(call))
        offsets = np.zeros((len(nest), len(words)), np.int64)
        for w, ref in enumerate(part.words.values()):
            for name, step in ref.steps.items():
                offsets[:, w] += nest.start[name] * step
        if offsets.size and offsets.max() >= 1 << 32:
            raise ValueError(f"{part.title}: a tensor has more than 2**32 elements")
        return Calls(part, nest, np.array(kinds, np.int64)[index.reshape(-1)], offsets)

    def _slice(self, thread: int) -> np.ndarray:
        """The words that one thread replays."""
        pieces: list[np.ndarray] = []
        barrier = np.array([BARRIER, 0], np.uint32)
        first = True
        for calls in self.parts:
            phases = calls.nest.phase
            for phase in np.unique(phases):
                # also where this thread has nothing to do: all threads meet at every barrier
                if not first and self.threads > 1:
                    pieces.append(barrier)
                first = False
                chosen = np.flatnonzero((calls.nest.thread == thread) & (phases == phase))
                kind, offsets = calls.kind[chosen], calls.offsets[chosen].astype(np.uint32)
                edges = [0, *(np.flatnonzero(np.diff(kind)) + 1).tolist(), len(chosen)]
                for begin, end in itertools.pairwise(edges):
                    if begin < end:
                        pieces.append(np.array([kind[begin], end - begin], np.uint32))
                        pieces.append(offsets[begin:end].reshape(-1))
        pieces.append(np.array([END, 0], np.uint32))
        return np.concatenate(pieces)

    def text(self, most: int = 40) -> str:
        """Which thread does what, in what order: at most `most` calls of each thread and part."""
        words = sum(map(len, self.slices))
        total = sum(len(calls.nest) for calls in self.parts)
        size = sum(len(call.code) for call in self.calls)
        out = [
            f"{total} calls of {len(self.calls)} kernels ({size} bytes of code) on {self.threads} "
            f"threads; {4 * words} bytes of stream"
        ]
        for number, calls in enumerate(self.parts):
            part = calls.part
            loops = ", ".join(f"{n} 0..{x.extent} by {x.blocks}" for n, x in part.loops.items())
            out += ["", f"part {number}: {part.title}; order {part.order!r}, loops {loops}"]
            for thread in range(self.threads):
                chosen = np.flatnonzero(calls.nest.thread == thread)
                out.append(f"  thread {thread}: {len(chosen)} calls")
                for i in chosen[:most].tolist():
                    place = ", ".join(
                        f"{n} {calls.nest.start[n][i]}+{calls.nest.size[n][i]}" for n in part.loops
                    )
                    offsets = ", ".join(
                        f"{name} {ref.tensor}[{calls.offsets[i, w]}]"
                        for w, (name, ref) in enumerate(part.words.items())
                    )
                    out.append(f"    kind {calls.kind[i]}: {place}; {offsets}")
                if len(chosen) > most:
                    out.append(f"    ... and {len(chosen) - most} more")
        return "\n".join(out) + "\n"


