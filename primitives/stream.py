"""Streams: a primitive's loops as the sequence of kernel calls that each thread replays.

A `Part` is a loop nest with the kernel it calls and where the kernel's operands lie; a stream is
parts one after the other, a barrier between them. Everything about a call that depends on where the
loops stand is an affine function of the loops' positions, so a stream is computed in NumPy, once
for a shape. Not here: the driver that replays it (`jitgen.replay`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from jitgen.replay import BARRIER, END, FIRST_KIND, Call, Word
from jitgen.target import Target
from jitgen.team import Team
from primitives.loops import Loop, Nest, check_sums, iterate

#: A kernel's machine code for a block, and the words of its argument struct that are the same in
#: every call: made from sizes by loop, and whether the block is the first and the last one of the
#: reduction
MakeCode = Callable[[dict[str, int], bool, bool], tuple[bytes, dict[str, int]]]


#: Calls of a stream, at most: some seconds to make it, a gigabyte while that is done
MOST_CALLS = 1 << 22


class TooLarge(ValueError):
    """A stream has too many calls, or tensors of more elements than offsets can count."""


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

    `before` and `after` are parts over outermost loops of this one, in the same order, and perhaps
    blocks of their own inside: their calls are made by the thread, and just before or after the
    calls, that have their position.
    """

    title: str
    order: str
    loops: Mapping[str, Loop]
    code: MakeCode
    words: Mapping[str, Ref]
    reduction: str = ""
    before: tuple[Part, ...] = ()
    after: tuple[Part, ...] = ()
    variants: Mapping[str, tuple[str, np.ndarray]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Calls of the nest, at the least."""
        return prod(-(-loop.extent // loop.blocks[-1]) for loop in self.loops.values())


@dataclass(frozen=True)
class Calls:
    """The calls of one part: the nest, the kind of each iteration, and the offset of each word in
    elements, (iterations, words); and those of the parts before and after, each with the index of
    the iteration that its calls stand by."""

    part: Part
    nest: Nest
    kind: np.ndarray
    offsets: np.ndarray
    before: Sequence[tuple[Calls, np.ndarray]] = ()
    after: Sequence[tuple[Calls, np.ndarray]] = ()


class Stream:
    """The calls of all parts, and what a driver needs to replay them.

    `tensors` names the base addresses in the order in which `team` takes them. Raises `TooLarge`.
    """

    def __init__(self, parts: Sequence[Part], tensors: Sequence[str], threads: int = 1) -> None:
        self.tensors = tuple(tensors)
        self.threads = threads
        self.calls: list[Call] = []
        _check_calls(sum(part.count for part in parts))
        self.parts = [self._part(part, iterate(part.order, part.loops, threads)) for part in parts]
        self.slices = [self._slice(t) for t in range(threads)]

    def team(self, target: Target) -> Team:
        """The stream, ready to run."""
        return Team(self.calls, self.slices, len(self.tensors), target)

    def _part(self, part: Part, nest: Nest) -> Calls:
        check_sums(part.order, part.reduction)
        before, after = (
            [self._beside(other, part, nest, last) for other in others]
            for last, others in enumerate((part.before, part.after))
        )
        return replace(self._calls(part, nest), before=before, after=after)

    def _beside(
        self, other: Part, part: Part, nest: Nest, last: int
    ) -> tuple[Calls, np.ndarray]:
        """The calls of a part beside another, and the iteration of that one each stands by: the
        first one of its position, or the last one."""
        blocks = {n: loop.blocks[0] for n, loop in other.loops.items() if n in part.loops}
        own = iterate(other.order, other.loops)
        key, wanted = (
            np.stack([np.zeros(len(x), int), *(x.start[n] // b for n, b in blocks.items())], axis=1)
            for x in (own, nest)
        )
        wanted[:, 0] = nest.thread
        begins, ends = _edges(key)
        place = {tuple(k): i for i, k in enumerate(key[begins, 1:].tolist())}
        firsts, behind = _edges(wanted)
        group = [place[tuple(k)] for k in wanted[firsts, 1:].tolist()]
        count = (ends - begins)[group]
        _check_calls(int(count.sum()))
        at = np.repeat(behind - 1 if last else firsts, count)
        index = np.repeat(begins[group] - np.cumsum(count) + count, count) + np.arange(len(at))
        chosen = replace(
            own, start={n: x[index] for n, x in own.start.items()},
            size={n: x[index] for n, x in own.size.items()}, thread=nest.thread[at],
            phase=nest.phase[at],
        )  # fmt: skip
        return self._part(other, chosen), at

    def _calls(self, part: Part, nest: Nest) -> Calls:
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
            raise TooLarge(f"a tensor of more than 2**32 elements (part {part.title!r})")
        if self.threads > 1:
            for w, word in enumerate(part.words):
                if word == "c":
                    _check_owners(part, nest, offsets[:, w])
        kind = np.array(kinds, np.int64)[index]
        return Calls(part, nest, kind, offsets)

    def _slice(self, thread: int) -> np.ndarray:
        """The words that one thread replays."""
        pieces, begun = [], 0
        for calls in self.parts:
            # a barrier before each phase but the first, also where this thread has nothing to do
            pieces.append(_words(calls, thread, begun, self.threads > 1))
            begun = 1
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
                    beside = [_beside(others, i) for others in (calls.before, calls.after)]
                    lines = [[_line(c, j) for c, at in o for j in at.tolist()] for o in beside]
                    out += [*lines[0], _line(calls, i), *lines[1]]
                if len(chosen) > most:
                    out.append(f"    ... and {len(chosen) - most} more")
        return "\n".join(out) + "\n"


def _check_calls(count: int) -> None:
    if count > MOST_CALLS:
        raise TooLarge(f"{count} kernel calls; a stream has {MOST_CALLS} at most")


def _check_owners(part: Part, nest: Nest, results: np.ndarray) -> None:
    """Raises ValueError if two threads have a result at the same place between two barriers: which
    of them adds to it, or stores it last, would be a matter of chance."""
    key = results + nest.phase * (results.max(initial=0) + 1)
    if not part.reduction:  # then it is most likely that no place occurs twice, which is soon seen
        places = np.sort(key)
        if (places[1:] != places[:-1]).all():
            return
    order = np.argsort(key, kind="stable")
    raced = np.flatnonzero((np.diff(key[order]) == 0) & (np.diff(nest.thread[order]) != 0))
    if len(raced):
        i, j = order[raced[0]], order[raced[0] + 1]
        raise ValueError(
            f"{part.title}, order={part.order!r}: threads {nest.thread[i]} and {nest.thread[j]} "
            f"both write c[{results[i]}] without a barrier between; share only loops on which c "
            "depends"
        )


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


def _edges(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Begins and ends of stretches of equal rows."""
    edges = np.flatnonzero((np.diff(key, axis=0) != 0).any(axis=1)) + 1
    return np.concatenate([[0], edges]), np.concatenate([edges, [len(key)]])


def _beside(others: Sequence[tuple[Calls, np.ndarray]], i: int) -> list[tuple[Calls, np.ndarray]]:
    """The calls of other parts that stand by iteration i."""
    found = [(calls, np.arange(*np.searchsorted(at, [i, i + 1]))) for calls, at in others]
    return [(calls, index) for calls, index in found if len(index)]


def _sources(calls: Calls, thread: int) -> list[tuple[Calls, np.ndarray, list[np.ndarray]]]:
    """A part and those beside it, and beside these: the iterations of the thread, and the numbers
    that order them, iterations of this part first."""
    own = np.flatnonzero(calls.nest.thread == thread)
    found = [(calls, own, [own, np.full(len(own), len(calls.before))])]
    for rank, (other, at) in enumerate([*calls.before, *calls.after]):
        rank += rank >= len(calls.before)
        for inner, rows, keys in _sources(other, thread):
            found.append((inner, rows, [at[keys[0]], np.full(len(rows), rank), *keys]))
    return found


def _words(calls: Calls, thread: int, begun: int, barriers: bool) -> np.ndarray:
    """The words of a part: its calls and those beside them in runs of one kind each, behind their
    kind and length. `begun`: 1 if another part came before."""
    sources = _sources(calls, thread)
    depth = max(len(keys) for *_, keys in sources)
    padded = [keys + [np.zeros(len(own), int)] * (depth - len(keys)) for _, own, keys in sources]
    places = [np.concatenate(level) for level in zip(*padded, strict=True)]
    order = np.lexsort(places[::-1])
    kind = np.concatenate([c.kind[own] for c, own, _ in sources])[order]
    width = np.repeat([c.offsets.shape[1] for c, *_ in sources], [len(o) for _, o, _ in sources])
    phase = calls.nest.phase[places[0][order]]
    last = int(calls.nest.phase[-1])
    passed = np.diff(phase, prepend=-begun, append=last) * barriers
    new = passed[:-1] > 0
    new[:1] = True
    new[1:] |= np.diff(kind) != 0
    size = width[order] + 2 * (new + passed[:-1])
    end = np.cumsum(size)
    words = np.zeros(2 * int(passed[-1]) + int(size.sum()), np.uint32)
    for where, count in ((end - size, passed[:-1]), (end[-1:] if len(end) else [0], passed[-1:])):
        # [BARRIER, 0] as often as phases have passed
        skipped = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        words[np.repeat(where, count) + 2 * skipped] = BARRIER
    begin = end - width[order]
    heads = np.flatnonzero(new)
    words[begin[heads] - 2] = kind[heads]
    words[begin[heads] - 1] = np.diff(heads, append=len(new))
    position = np.empty_like(begin)
    position[order] = begin
    done = 0
    for other, own, *_ in sources:
        columns = np.arange(other.offsets.shape[1])
        words[position[done : done + len(own), None] + columns] = other.offsets[own]
        done += len(own)
    return words


def _line(calls: Calls, i: int) -> str:
    """One call for the eye."""
    nest, part = calls.nest, calls.part
    place = ", ".join(f"{n} {nest.start[n][i]}+{nest.size[n][i]}" for n in part.loops)
    offsets = ", ".join(
        f"{name} {ref.tensor}[{calls.offsets[i, w]}]"
        for w, (name, ref) in enumerate(part.words.items())
    )
    return f"    kind {calls.kind[i]}: {place}; {offsets}"
