"""Streams: a primitive's loops as the sequence of kernel calls that each thread replays.

A `Part` is a loop nest with the kernel it calls and where the kernel's operands lie; a stream is
parts one after the other, a barrier between them. Everything about a call that depends on where the
loops stand is an affine function of the loops' positions, so a stream is computed in NumPy, once
for a shape. Not here: the driver that replays it (`jitgen.run.replay`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import NamedTuple

import numpy as np

from jitgen import doors
from jitgen.emit.frame import ARGUMENTS
from jitgen.emit.routine import Routine
from jitgen.frozen import Frozen, uncopied
from jitgen.primitives.nest.loops import Iterations, Loop, check_sums, iterate
from jitgen.primitives.nest.tables import (
    TooLarge,
    check_calls,
    check_owners,
    distinct,
    groups,
)
from jitgen.run import cpu
from jitgen.run.replay import BARRIER, END, FIRST_KIND, Call, Word
from jitgen.run.team import Team
from jitgen.run.threads import check_threads
from jitgen.target import Target

#: A kernel for a block, and the words of its argument struct that are the same in every call
Made = tuple[Routine, dict[str, int]]
#: Makes it from sizes by loop, and whether the block is the first and the last one of the reduction
MakeCode = Callable[[dict[str, int], bool, bool], Made]
#: Elements that no tensor has
FAR = 1 << 40


class Ref(NamedTuple):
    """Where a word of the argument struct points: `tensor` plus, for each loop named in `steps`,
    its position times a number of elements; `element` is the size of an element in bytes. Where
    `per_thread` is not 0, each thread has that many elements of the tensor for itself. Made by
    `jitgen.primitives.nest.tensor.Access`."""

    tensor: str
    steps: Mapping[str, int]
    element: int
    per_thread: int
    start: int
    #: loop -> elements to add at each position of the loop
    table: Mapping[str, np.ndarray]
    #: of the tensor, or of one thread's; 0: nobody knows
    elements: int = 0


@dataclass(frozen=True)
class Part:
    """A loop nest and the kernel in it; `reduction` names the loops that sum into the same
    output. Made by `jitgen.primitives.nest.nest.Nest`, which checks.

    `when` (of an outermost part): an element of an array of flags; `Stream.chosen` leaves out the
    calls whose flag is not set, with those before and after them. Between barriers the flag of the
    least element must be set if any is.

    `variants` are further facts on a call that its kernel depends on: name -> loop, and a value for
    each position of the loop; `code` finds them beside the sizes.

    `before` and `after` are parts over outermost loops of this one, in the same order, and perhaps
    blocks of their own inside: their calls are made by the thread, and just before or after the
    calls, that have their position.

    `tables`: the values of tensors that the part itself knows. `target` is that of its kernels,
    `writes` the words whose tensors they write to.
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
    when: Ref | None = None
    tables: Mapping[str, np.ndarray] = field(default_factory=dict)
    target: Target | None = None
    writes: tuple[str, ...] = ("c",)

    def refs(self) -> Iterator[Ref]:
        """Those of its words, and of the parts beside it."""
        for part in self.all():
            yield from part.words.values()

    def all(self) -> Iterator[Part]:
        """This one and those beside it."""
        yield self
        for other in (*self.before, *self.after):
            yield from other.all()

    @property
    def count(self) -> int:
        """Calls of the nest, at the least."""
        return prod(-(-loop.extent // loop.blocks[-1]) for loop in self.loops.values())


@dataclass(frozen=True)
class Calls:
    """The calls of one part: the nest, the kind of each iteration, and the offset of each word in
    elements, (iterations, words); the flag of each (-1: none); and those of the parts before and
    after, each with the index of the iteration that its calls stand by."""

    part: Part
    nest: Iterations
    kind: np.ndarray
    offsets: np.ndarray
    flags: np.ndarray
    before: Sequence[tuple[Calls, np.ndarray]] = ()
    after: Sequence[tuple[Calls, np.ndarray]] = ()

    @property
    def count(self) -> int:
        """How many there are, with those of the parts beside."""
        return len(self.nest) + sum(c.count for c, _ in (*self.before, *self.after))

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, and of those of the parts beside."""
        nest = self.nest
        arrays = (*nest.start.values(), *nest.size.values(), nest.thread, nest.phase)
        beside = sum(c.nbytes + at.nbytes for c, at in (*self.before, *self.after))
        return sum(a.nbytes for a in (*arrays, self.kind, self.offsets)) + beside


class Stream(Frozen):
    """The calls of all parts, and what a driver needs to replay them.

    `tensors` names the base addresses in the order in which `team` takes them. Raises `TooLarge`.
    """

    def __init__(self, parts: Sequence[Part], tensors: Sequence[str], threads: int = 1) -> None:
        names = enumerate(doors.items("tensors", tensors))
        self.tensors = tuple(doors.text(f"tensors[{i}]", name) for i, name in names)
        threads = self.threads = check_threads(threads)
        parts = [
            doors.instance(f"parts[{i}]", part, Part)
            for i, part in enumerate(doors.items("parts", parts))
        ]
        for i, part in enumerate(parts):
            for ref in part.refs():
                doors.one_in(f"parts[{i}]: tensor", ref.tensor, "tensors", self.tensors)
        check_calls(sum(part.count for part in parts))
        #: kinds of calls and their numbers, by code and words: routines of the same code are one
        self._found: dict[Hashable, tuple[int, Call]] = {}
        # parts of many steps have the same loops
        self._nests: dict[Hashable, Iterations] = {}
        self.parts = tuple(self._part(part, self._iterate(part, threads)) for part in parts)
        self._nests.clear()
        self.calls = tuple(call for _, call in self._found.values())
        made = [self._slice(t) for t in range(threads)]
        self.slices = tuple(words for words, _ in made)
        self._cuts = [cuts for _, cuts in made]
        for words in self.slices:
            words.flags.writeable = False  # the driver adds them to addresses

    @property
    def nbytes(self) -> int:
        """Bytes of words and code, and of what is known of each call, about."""
        code = sum(call.routine.nbytes + len(call.code) for call in self.calls)
        return code + sum(s.nbytes for s in self.slices) + sum(c.nbytes for c in self.parts)

    def team(self, target: Target, name: str = "") -> Team:
        """The stream, ready to run; `name` says whose it is (for tools; default: its first part's
        title)."""
        name = doors.text("name", name) or next((calls.part.title for calls in self.parts), "")
        return Team(self.calls, self.slices, len(self.tensors), cpu.choose(target), name)

    __reduce_ex__ = uncopied("copy the layer, or make it anew from its parts")

    def chosen(self, flags: np.ndarray) -> list[np.ndarray]:
        """The slices without the calls whose flag (`Part.when`) is not set, and without the
        barriers before phases that have no call left. `flags` are booleans."""
        least = max(int(flag.max()) for _, flag in self._cuts) + 1
        flags = doors.typed("flags", flags, np.dtype(bool))
        if flags.ndim != 1 or len(flags) < least:
            raise ValueError(f"flags has shape {flags.shape}; it must be ({least},), or longer")
        known = np.append(flags, True)  # -1: no flag
        result = []
        for words, (edges, flag) in zip(self.slices, self._cuts, strict=True):
            turns = edges[np.flatnonzero(np.diff(known[flag], prepend=False, append=False))]
            pairs = zip(turns[::2].tolist(), turns[1::2].tolist(), strict=True)
            result.append(np.concatenate([words[begin:end] for begin, end in pairs]))
        return result

    def _iterate(self, part: Part, threads: int) -> Iterations:
        key = part.order, threads, *part.loops.items()
        nest = self._nests.get(key)
        if nest is None:
            nest = self._nests[key] = iterate(part.order, part.loops, threads)
        return nest

    def _part(self, part: Part, nest: Iterations) -> Calls:
        check_sums(part.order, part.reduction)
        before, after = (
            [self._beside(other, part, nest, last) for other in others]
            for last, others in enumerate((part.before, part.after))
        )
        return replace(self._calls(part, nest), before=before, after=after)

    def _beside(
        self, other: Part, part: Part, nest: Iterations, last: int
    ) -> tuple[Calls, np.ndarray]:
        """The calls of a part beside another, and the iteration of that one each stands by: the
        first one of its position, or the last one."""
        blocks = {n: loop.blocks[0] for n, loop in other.loops.items() if n in part.loops}
        own = self._iterate(other, 1)
        key, wanted = (
            np.stack([np.zeros(len(x), int), *(x.start[n] // b for n, b in blocks.items())], axis=1)
            for x in (own, nest)
        )
        wanted[:, 0] = nest.thread
        begins, ends = groups(key)
        place = {tuple(k): i for i, k in enumerate(key[begins, 1:].tolist())}
        firsts, behind = groups(wanted)
        group = [place[tuple(k)] for k in wanted[firsts, 1:].tolist()]
        count = (ends - begins)[group]
        check_calls(int(count.sum()))
        at = np.repeat(behind - 1 if last else firsts, count)
        index = np.repeat(begins[group] - np.cumsum(count) + count, count) + np.arange(len(at))
        chosen = replace(
            own, start={n: x[index] for n, x in own.start.items()},
            size={n: x[index] for n, x in own.size.items()}, thread=nest.thread[at],
            phase=nest.phase[at],
        )  # fmt: skip
        return self._part(other, chosen), at

    def _calls(self, part: Part, nest: Iterations) -> Calls:
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
        shapes, index = distinct(table)
        words = tuple(
            Word(name, self.tensors.index(ref.tensor), ref.element.bit_length() - 1)
            for name, ref in part.words.items()
        )
        kinds = []
        for *sizes, is_first, is_last in shapes.tolist():
            sized = dict(zip(names, sizes, strict=True))
            routine, fixed = doors.items(
                "result of code", part.code(sized, bool(is_first), bool(is_last)), 2
            )
            doors.instance("result of code[0]", routine, Routine)
            for name, value in doors.mapping("result of code[1]", fixed).items():
                doors.one_of("result of code[1]: word", name, ARGUMENTS)
                doors.integer(f"result of code[1][{name!r}]", value)
            call = Call(routine, words, tuple(fixed.items()))
            new = len(self._found), call
            kinds.append(FIRST_KIND + self._found.setdefault((call.code, *call[1:]), new)[0])
        offsets = np.zeros((len(nest), len(words)), np.int64)
        for w, ref in enumerate(part.words.values()):
            offsets[:, w] = _offsets(ref, nest)
        if offsets.size and offsets.max() >= 1 << 32:
            raise TooLarge(f"a tensor of more than 2**32 elements (part {part.title!r})")
        if offsets.size and offsets.min() < 0:
            raise ValueError(
                f"{part.title}: a word begins at element {offsets.min()} of its tensor"
            )
        if self.threads > 1:
            for w, word in enumerate(part.words):
                if word in part.writes:
                    check_owners(part.title, part.order, nest, offsets[:, w])
        kind = np.array(kinds, np.int64)[index]
        flags = np.full(len(nest), -1) if part.when is None else _offsets(part.when, nest)
        return Calls(part, nest, kind, offsets, flags)

    def _slice(self, thread: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """The words that one thread replays; where they may be cut (from 0 to their number), and
        the flag of each stretch."""
        pieces: list[np.ndarray] = []
        edges: list[np.ndarray] = []
        flags: list[np.ndarray] = []
        begun = done = 0
        for calls in self.parts:
            # a barrier before each phase but the first, also where this thread has nothing to do
            words, at, flag = _words(calls, thread, begun, self.threads > 1)
            pieces.append(words)
            edges.append(at + done)
            flags.append(flag)
            begun, done = 1, done + len(words)
        pieces.append(np.array([END, 0], np.uint32))
        edges.append(np.array([done, done + 2]))
        return np.concatenate(pieces), (np.concatenate(edges), np.concatenate([*flags, [-1]]))

    def text(self, most: int = 40) -> str:
        """The kernels by name and shape, and which thread calls them in what order: at most `most`
        calls of each thread and part."""
        most = doors.size("most", most, 0)
        # by its name: the reader stands above what it reads
        shown = importlib.import_module("jitgen.primitives.nest.shown")
        return str(shown.text(self, most))


def _offsets(ref: Ref, nest: Iterations) -> np.ndarray:
    """Where the word points in each iteration, in elements."""
    offsets = ref.start + nest.thread * ref.per_thread
    for name, step in ref.steps.items():
        offsets = offsets + nest.start[name] * step
    for name, elements in ref.table.items():
        offsets = offsets + elements[nest.start[name]]
    return offsets


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


def _words(
    calls: Calls, thread: int, begun: int, barriers: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The words of a part: its calls and those beside them in runs of one kind and flag each,
    behind their kind and length; where stretches of one flag begin, and their flags. `begun`: 1 if
    another part came before."""
    sources = _sources(calls, thread)
    depth = max(len(keys) for *_, keys in sources)
    padded = [keys + [np.zeros(len(own), int)] * (depth - len(keys)) for _, own, keys in sources]
    places = [np.concatenate(level) for level in zip(*padded, strict=True)]
    order = np.lexsort(places[::-1])
    kind = np.concatenate([c.kind[own] for c, own, _ in sources])[order]
    width = np.repeat([c.offsets.shape[1] for c, *_ in sources], [len(o) for _, o, _ in sources])
    phase, flag = calls.nest.phase[places[0][order]], calls.flags[places[0][order]]
    last = int(calls.nest.phase[-1])
    passed = np.diff(phase, prepend=-begun, append=last) * barriers
    cut = passed[:-1] > 0
    cut[:1] = True
    cut[1:] |= np.diff(flag) != 0
    new = cut.copy()
    new[1:] |= np.diff(kind) != 0
    size = width[order] + 2 * (new + passed[:-1])
    end = np.cumsum(size)
    words = np.zeros(2 * int(passed[-1]) + int(size.sum()), np.uint32)
    # [BARRIER, 0] as often as phases have passed
    where = np.append(end - size, end[-1] if len(end) else 0)
    skipped = np.arange(passed.sum()) - np.repeat(np.cumsum(passed) - passed, passed)
    waits = np.repeat(where, passed) + 2 * skipped
    words[waits] = BARRIER
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
    if calls.part.when is None:
        return words, np.zeros(1, np.int64), np.full(1, -1)
    # a barrier is needed if a call of the phase behind it is
    first = np.minimum.reduceat(calls.flags, np.flatnonzero(np.diff(calls.nest.phase, prepend=-1)))
    edges = np.concatenate([begin[cut] - 2, waits])
    flags = np.concatenate([flag[cut], first[1 - begun : 1 - begun + len(waits)]])
    order = np.argsort(edges)
    return words, edges[order], flags[order]
