"""Streams: a primitive's loops as the sequence of kernel calls that each thread replays.

A `Part` is a loop nest with the kernel it calls and where the kernel's operands lie; a stream is
parts one after the other, a barrier between them. Everything about a call that depends on where the
loops stand is an affine function of the loops' positions, so a stream is computed in NumPy, once
for a shape. Not here: the driver that replays it (`jitgen.replay`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

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
    its position times a number of elements; `element` is the size of an element in bytes. Where
    `per_thread` is not 0, each thread has that many elements of the tensor for itself."""

    tensor: str
    steps: Mapping[str, int]
    element: int = 4
    per_thread: int = 0
    start: int = 0
    #: loop -> elements to add at each position of the loop
    table: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A loop nest and the kernel in it; `reduction` names the loops that sum into the same
    output.

    `variants` are further facts on a call that its kernel depends on: name -> loop, and a value for
    each position of the loop; `code` finds them beside the sizes.

    `before` are parts over the outermost loops of this one, in the same order: each of their calls
    is made by the thread, and just before the calls, that have its position.
    """

    title: str
    order: str
    loops: Mapping[str, Loop]
    code: MakeCode
    words: Mapping[str, Ref]
    reduction: str = ""
    before: tuple[Part, ...] = ()
    variants: Mapping[str, tuple[str, np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True)
class Calls:
    """The calls of one part: the nest, the kind of each iteration, and the offset of each word in
    elements, (iterations, words); and those of the parts before it. `at` is, for each iteration of
    a part before, the index of the iteration that it precedes."""

    part: Part
    nest: Nest
    kind: np.ndarray
    offsets: np.ndarray
    before: tuple[Calls, ...]
    at: np.ndarray


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
        before = []
        for inner in part.before:
            places = np.stack([nest.start[n] for n in inner.loops], axis=1)
            changes = (np.diff(places, axis=0) != 0).any(axis=1)
            at = np.concatenate([[0], np.flatnonzero(changes) + 1])
            outer = iterate(inner.order, inner.loops)
            assert all((outer.start[n] == nest.start[n][at]).all() for n in inner.loops)
            before.append(self._calls(inner, replace(outer, thread=nest.thread[at]), (), at))
        return self._calls(part, nest, tuple(before), np.zeros(0, np.int64))

    def _calls(
        self, part: Part, nest: Nest, before: tuple[Calls, ...], at: np.ndarray
    ) -> Calls:
        names = list(part.loops)
        columns = [nest.size[n] for n in names]
        names += part.variants
        columns += [values[nest.start[loop]] for loop, values in part.variants.values()]
        first = np.ones(len(nest), bool)
        last = np.ones(len(nest), bool)
        for n in part.reduction:
            first &= nest.start[n] == 0
            last &= nest.start[n] + nest.size[n] == part.loops[n].extent
        table = np.stack([*columns, first, last], axis=1)
        shapes, index = _distinct(table)
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
            offsets[:, w] += ref.start + nest.thread * ref.per_thread
            for name, step in ref.steps.items():
                offsets[:, w] += nest.start[name] * step
            for name, elements in ref.table.items():
                offsets[:, w] += elements[nest.start[name]]
        if offsets.size and offsets.max() >= 1 << 32:
            raise ValueError(f"{part.title}: a tensor has more than 2**32 elements")
        kind = np.array(kinds, np.int64)[index]
        return Calls(part, nest, kind, offsets, before, at)

    def _slice(self, thread: int) -> np.ndarray:
        """The words that one thread replays."""
        pieces: list[np.ndarray] = []
        barrier = np.array([BARRIER, 0], np.uint32)
        first = True
        for calls in self.parts:
            phases = calls.nest.phase
            for phase in dict.fromkeys(phases.tolist()):
                # also where this thread has nothing to do: all threads meet at every barrier
                if not first and self.threads > 1:
                    pieces.append(barrier)
                first = False
                chosen = np.flatnonzero((calls.nest.thread == thread) & (phases == phase))
                pieces += _runs(calls, chosen)
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
                    for b in calls.before:
                        if i in b.at:
                            out.append(_line(b, int(np.searchsorted(b.at, i))))
                    out.append(_line(calls, i))
                if len(chosen) > most:
                    out.append(f"    ... and {len(chosen) - most} more")
        return "\n".join(out) + "\n"


def _distinct(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of a table of small numbers, and which of them each row is. (np.unique
    takes 15 milliseconds at its first call.)"""
    radix = np.concatenate([[1], np.cumprod(table.max(axis=0) + 1)[:-1]])
    key = table @ radix
    order = np.argsort(key, kind="stable")
    new = np.concatenate([[True], np.diff(key[order]) != 0])
    index = np.empty(len(key), np.int64)
    index[order] = np.cumsum(new) - 1
    return table[order[new]], index


def _runs(calls: Calls, chosen: np.ndarray) -> list[np.ndarray]:
    """The words of the chosen calls, and of those before them: runs of one kind each."""
    kind, offsets = calls.kind[chosen], calls.offsets[chosen].astype(np.uint32)
    ends = np.diff(kind) != 0
    places = [np.searchsorted(b.at, chosen, side="right") - 1 for b in calls.before]
    for place in places:
        ends |= np.diff(place) != 0
    edges = [0, *(np.flatnonzero(ends) + 1).tolist(), len(chosen)]
    pieces = []
    for begin, end in itertools.pairwise(edges):
        if begin == end:
            continue
        for b, place in zip(calls.before, places, strict=True):
            if begin == 0 or place[begin] != place[begin - 1]:
                pieces.append(np.array([b.kind[place[begin]], 1], np.uint32))
                pieces.append(b.offsets[place[begin]].astype(np.uint32))
        pieces.append(np.array([kind[begin], end - begin], np.uint32))
        pieces.append(offsets[begin:end].reshape(-1))
    return pieces


def _line(calls: Calls, i: int) -> str:
    """One call for the eye."""
    nest, part = calls.nest, calls.part
    place = ", ".join(f"{n} {nest.start[n][i]}+{nest.size[n][i]}" for n in part.loops)
    offsets = ", ".join(
        f"{name} {ref.tensor}[{calls.offsets[i, w]}]"
        for w, (name, ref) in enumerate(part.words.items())
    )
    return f"    kind {calls.kind[i]}: {place}; {offsets}"
