"""Loop nests as data: named loops, their blocks, an order in one string, cut among threads.

The order names loops by single letters, outermost first, in the spirit of PARLOOPER
(arXiv:2304.12576):

    "Nkc"      loops over n, k and c; upper case: the iterations are shared among the threads
    "NKnk"     a repeated letter is the same loop, blocked: its block sizes follow each other
    "[NK]c"    two loops at once, along a generalised Hilbert curve
    "c|NK"     a barrier ends every iteration of the loop before the bar

Parallel letters stand together; the iterations of all of them are dealt out in consecutive
pieces of equal work. Nothing runs here: the result is arrays. Not here: kernels
(`jitgen.primitives.nest.stream`).

>>> nest = iterate("Nk", {"n": Loop(5, (2,)), "k": Loop(4, (4,))}, threads=2)
>>> nest.start["n"].tolist(), nest.size["n"].tolist(), nest.thread.tolist()
([0, 2, 4], [2, 2, 1], [0, 1, 1])
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from jitgen import doors
from jitgen.primitives.nest.curve import curve
from jitgen.run.cache import PLANS
from jitgen.run.threads import check_threads

Array = np.ndarray
#: Characters of an order
LONGEST = 100


@dataclass(frozen=True)
class Loop:
    """0 .. extent - 1 in blocks: sizes from the outermost to the innermost, which is what one
    kernel call covers. The last block of each size may be shorter."""

    extent: int
    blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        extent = doors.size("extent", self.extent, 0)
        given = enumerate(doors.items("blocks", self.blocks))
        blocks = tuple(doors.size(f"blocks[{i}]", block) for i, block in given)
        if not blocks or any(b % c for b, c in itertools.pairwise(blocks)):
            raise ValueError(
                f"blocks={doors.shown(self.blocks)}: there is at least one, and each is a multiple "
                "of the next"
            )
        doors.settle(self, extent=extent, blocks=blocks)


@dataclass(frozen=True)
class Iterations:
    """The innermost iterations in program order: where each loop's block begins and how long it
    is, the thread that runs it, and its phase (phases are parted by barriers)."""

    start: dict[str, Array]
    size: dict[str, Array]
    thread: Array
    phase: Array

    def __len__(self) -> int:
        return len(self.thread)


@dataclass(frozen=True)
class _Level:
    letters: str  # lower case; two for a curve
    parallel: bool
    barrier: bool


def parse_order(order: str) -> tuple[_Level, ...]:
    """The levels of an order string. Raises TypeError or ValueError that names what is wrong."""
    order = doors.text("order", order)
    if len(order) > LONGEST:
        raise ValueError(
            f"order={doors.shown(order)} has {len(order)} characters; at most {LONGEST}"
        )
    return _parse(order)


@PLANS.of
def _parse(order: str) -> tuple[_Level, ...]:
    if not re.fullmatch(r"((\[[A-Za-z]{2}\]|[A-Za-z])\|?)*", order):
        raise ValueError(
            f"order={doors.shown(order)}: letters, [two letters] for a curve, | after one for a "
            "barrier"
        )
    levels = []
    for letters, bar in re.findall(r"(\[\w\w\]|\w)(\|?)", order):
        name = letters.strip("[]")
        if name.upper() != name and name.lower() != name:
            raise ValueError(f"order={order!r}: [{name}] is half parallel")
        if len(set(name)) < len(name):
            raise ValueError(f"order={order!r}: [{name}] is one loop; a curve is over two")
        levels.append(_Level(name.lower(), name.isupper(), bool(bar)))
    parallel = "".join("P" if level.parallel else "s" for level in levels)
    if re.search("Ps+P", parallel):
        raise ValueError(f"order={order!r}: parallel letters must stand together")
    inside = [level for level in levels[parallel.find("P") :] if "P" in parallel and level.barrier]
    if inside:
        raise ValueError(f"order={order!r}: a barrier must stand outside the parallel loops")
    return tuple(levels)


def check_order(order: str, letters: str, sums: Iterable[str] = "") -> None:
    """Raises TypeError or ValueError unless `order` names each of these loops once, and does not
    run those of `sums`, which add to the same results, out of turn (`check_sums`)."""
    levels = parse_order(order)
    if sorted("".join(level.letters for level in levels)) != sorted(letters):
        raise ValueError(f"order={order!r} does not name each of {' '.join(letters)} once")
    check_sums(order, sums)


def check_sums(order: str, sums: Iterable[str]) -> None:
    """Raises ValueError if `order` shares a loop of `sums` among threads, which would add to the
    same results at the same time, or runs it along a curve, which does not begin and end the sum of
    each result at its first and last block."""
    for level in parse_order(order):
        for name in sorted(set(level.letters) & set(sums)):
            if level.parallel:
                raise ValueError(
                    f"order={order!r}: threads cannot share a sum ({name.upper()}); write it "
                    f"{name!r}"
                )
            if len(level.letters) > 1:
                raise ValueError(
                    f"order={order!r}: a curve cannot order a sum ({name}); take it out of "
                    f"[{level.letters}]"
                )


def iterate(order: str, loops: Mapping[str, Loop], threads: int = 1) -> Iterations:
    """All innermost iterations of the loops in `order`.

    Raises TypeError or ValueError if order and loops do not fit each other.
    """
    levels, threads = parse_order(order), check_threads(threads)
    for name, loop in doors.mapping("loops", loops).items():
        doors.instance(f"loops[{doors.shown(name)}]", loop, Loop)
    depth = dict.fromkeys(loops, 0)
    start = {name: np.zeros(1, np.int64) for name in loops}
    size = {name: np.array([loop.extent], np.int64) for name, loop in loops.items()}
    thread = np.zeros(1, np.int64)
    phase = np.zeros(1, np.int64)
    parent = np.zeros(1, np.int64)  # the iteration of the sequential loops outside
    for i, level in enumerate(levels):
        blocks = []
        for name in level.letters:
            if name not in loops or depth[name] == len(loops[name].blocks):
                raise ValueError(
                    f"order={order!r}: no (more) blocks for loop {name!r}; loops="
                    f"{doors.shown(dict(loops))}"
                )
            blocks.append(loops[name].blocks[depth[name]])
            depth[name] += 1
        counts = [-(-size[n] // b) for n, b in zip(level.letters, blocks, strict=True)]
        origin, steps = _children(counts)
        start = {n: s[origin] for n, s in start.items()}
        size = {n: s[origin] for n, s in size.items()}
        for name, block, step in zip(level.letters, blocks, steps, strict=True):
            start[name] = start[name] + step * block
            size[name] = np.minimum(block, size[name] - step * block)
        thread, phase, parent = thread[origin], phase[origin], parent[origin]
        if level.barrier:
            phase = np.arange(len(origin))
        if not level.parallel and not any(above.parallel for above in levels[:i]):
            parent = np.arange(len(origin))
        last_parallel = level.parallel and not any(b.parallel for b in levels[i + 1 :])
        if last_parallel:
            work = np.ones(len(origin))
            for s in size.values():
                work = work * s
            thread = _deal(work, parent, threads)
    for name, used in depth.items():
        if used != len(loops[name].blocks):
            raise ValueError(f"order={order!r}: loop {name!r} has {len(loops[name].blocks)} blocks")
    return Iterations(start, size, thread, phase)


def _children(counts: list[Array]) -> tuple[Array, list[Array]]:
    """For each new iteration the old one it belongs to, and its place in each loop."""
    total = np.prod(counts, axis=0)
    origin = np.repeat(np.arange(len(total)), total)
    within = np.arange(len(origin)) - np.repeat(np.cumsum(total) - total, total)
    if len(counts) == 1:
        return origin, [within]
    places = [np.empty_like(within), np.empty_like(within)]
    rows, columns = counts
    for r, c in sorted(set(zip(rows.tolist(), columns.tolist(), strict=True))):
        chosen = ((rows == r) & (columns == c))[origin]
        points = curve(r, c)[within[chosen]]
        places[0][chosen], places[1][chosen] = points[:, 0], points[:, 1]
    return origin, places


def _deal(work: Array, parent: Array, threads: int) -> Array:
    """The thread of each iteration: consecutive pieces of equal work within each parent."""
    result = np.zeros(len(work), np.int64)
    for begin, end in _groups(parent):
        done = np.cumsum(work[begin:end])
        middle = done - work[begin:end] / 2
        result[begin:end] = np.minimum(middle * threads / done[-1], threads - 1)
    return result


def _groups(values: Array) -> Iterator[tuple[int, int]]:
    """Begin and end of each stretch of equal values."""
    if not len(values):
        return
    edges = np.flatnonzero(np.diff(values)) + 1
    yield from zip([0, *edges.tolist()], [*edges.tolist(), len(values)], strict=True)
