"""Whether the operands of a nest's calls fit each other: types, columns, what an epilogue reads.

Not here: whether places stay within their tensors (`jitgen.primitives.nest.tensor`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jitgen import doors
from jitgen.emit.steps import STEPS
from jitgen.primitives.nest.along import Along, Loops, along
from jitgen.primitives.nest.stream import Part
from jitgen.primitives.nest.tensor import Access
from jitgen.types import DTYPES


def check_type(dtype: str, name: str, access: Any) -> None:
    """Raise TypeError, ValueError unless this is a place in a tensor of the type."""
    tensor = doors.instance(name, access, Access).tensor
    if tensor.element != DTYPES[dtype].size:
        raise ValueError(f"{name}={tensor!r} has elements of {tensor.element} bytes; "
                         f"dtype={dtype!r}")  # fmt: skip


def check_columns(loops: Loops, c: Access, n: str, wide: Along, b: Access) -> None:
    """Raise ValueError unless a call's columns of b are some that lie together in c."""
    across = along(loops, c, n, "n")
    if not (wide.loop or across.loop or wide.extent == across.extent):
        raise ValueError(
            f"{n!r}: a call takes all of the axis, which has {wide.extent} in {b.tensor!r} and "
            f"{across.extent} in {c.tensor!r}"
        )
    width = loops[wide.loop].blocks[-1] if wide.loop else wide.extent
    if across.stride != 1 or 0 < across.block < width:
        apart = f"lie {across.stride} elements" if across.stride != 1 else (
            f"are {width}, in blocks of {across.block}"
        )
        raise ValueError(f"n={n!r}: columns of a call {apart} apart in {c.tensor!r}")


def check_factors(
    loops: Loops, a: tuple[Access, Along, Along], b: tuple[Access, Along, Along],
    c: tuple[Access, Along], transposed: tuple[bool, bool],
) -> None:  # fmt: skip
    """Raise ValueError unless what a call reads and writes lies as kernels have it: elements
    together along one of the two axes of each factor, and blocks that follow one another. a: its
    place, rows, depth; b: its place, depth, columns; c: its place and rows."""
    (x, rows, depth), (y, of_b, wide), (z, of_c) = a, b, c
    near_a, near_b = rows if transposed[0] else depth, of_b if transposed[1] else wide
    for access, near in ((x, near_a), (y, near_b)):
        if near.stride != 1 and max(_sizes(loops, near)) > 1:
            raise ValueError(f"{access.tensor!r}: a call's elements lie {near.stride} apart there, "
                             "along none of its two axes together")  # fmt: skip
    for access, on in ((x, rows), (y, of_b), (z, of_c)):
        apart = on.block and on.apart != on.block * on.stride
        if apart and max(_sizes(loops, on)) > on.block:
            raise ValueError(f"{access.tensor!r}: a call takes more than a block of {on.block}, "
                             "and blocks do not follow one another")  # fmt: skip
    for size in _sizes(loops, depth):
        if depth.block and size > depth.block and size % depth.block:
            raise ValueError(f"{x.tensor!r}: a call takes {size} positions along blocks of "
                             f"{depth.block}: some of one block")  # fmt: skip


def _sizes(loops: Loops, on: Along) -> tuple[int, ...]:
    """Positions that calls take: those of a whole block of the loop, and of the last one."""
    if not on.loop:
        return (on.extent,)
    loop = loops[on.loop]
    most = min(loop.extent, loop.blocks[-1])
    return (most, loop.extent % most or most)


def check_operand(
    loops: Loops, dtype: str, step: str, words: Mapping[str, Access], m: tuple[str, Along],
    n: tuple[str, Along], columns: int,
) -> None:  # fmt: skip
    """Raise ValueError unless words has what a step reads, if it reads anything, as large as it
    must be."""
    operand = STEPS[step].operand
    if operand is None:
        return
    word = operand.word
    if word not in words:
        raise ValueError(f"epilogue has {step!r}; words has no {word!r}")
    if columns:
        return
    if operand.place == "bit":
        high, width = (max(_sizes(loops, on)) for on in (m[1], n[1]))
        tensor, least = words[word].tensor, high * -(-width // 8)
        if tensor.element != 1 or tensor.elements < least:
            raise ValueError(f"words[{word!r}]: {tensor!r} has {tensor.elements} elements of "
                             f"{tensor.element} bytes; a call writes {least} of 1")  # fmt: skip
        return
    check_type(dtype, f"words[{word!r}]", words[word])
    for places, (name, wanted), one in (
        (("row", "element"), m, operand.place == "row"), (("column", "element"), n, True),
    ):  # fmt: skip
        if operand.place not in places:
            continue
        found = along(loops, words[word], name, f"words[{word!r}]")
        if not (found.loop or wanted.loop or found.extent == wanted.extent):
            raise ValueError(
                f"words[{word!r}]: {words[word].tensor!r} has {found.extent} along {name!r}, of "
                f"which a call takes {wanted.extent}"
            )
        size, follow = max(_sizes(loops, wanted)), found.apart == found.block * found.stride
        if 0 < found.block < size and (one or not follow):
            raise ValueError(f"words[{word!r}]: a call takes {size} along {name!r}, which "
                             f"{words[word].tensor!r} has in blocks of {found.block}")  # fmt: skip
        if one and found.stride != 1:
            raise ValueError(f"words[{word!r}]: along {name!r} {words[word].tensor!r} has "
                             f"elements {found.stride} apart")  # fmt: skip


def check_own(parts: Sequence[Part]) -> None:
    """Raise ValueError where a call reads own scratch that no call before it, of those that stand
    by one another, has written; or where their blocks differ along a loop that they share."""
    for whole in parts:
        written: set[str] = set()
        for part in _as_called(whole):
            for word, ref in part.words.items():
                if ref.per_thread and word not in part.writes and ref.tensor not in written:
                    raise ValueError(
                        f"{part.title}: reads {ref.tensor!r}, which each thread has for itself and "
                        "no call before it writes; what writes it stands in before="
                    )
            written |= {part.words[word].tensor for word in part.writes}
            for other in (*part.before, *part.after):
                _check_blocks(part, other)


def _as_called(part: Part) -> Iterator[Part]:
    """A part and those that stand by it, in the order of their calls."""
    for other in part.before:
        yield from _as_called(other)
    yield part
    for other in part.after:
        yield from _as_called(other)


def _check_blocks(part: Part, other: Part) -> None:
    here, there = (
        {ref.tensor for ref in each.words.values() if ref.per_thread} for each in (part, other)
    )
    for name in other.loops.keys() & part.loops.keys():
        mine, its = part.loops[name].blocks[0], other.loops[name].blocks[0]
        if here & there and mine != its:
            raise ValueError(
                f"{other.title}: makes {its} positions of loop {name!r} in {min(here & there)!r}, "
                f"of which {part.title!r} takes {mine}"
            )
