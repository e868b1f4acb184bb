"""Whether the operands of a nest's calls fit each other: types, columns, what an epilogue reads.

Not here: whether places stay within their tensors (`jitgen.primitives.nest.tensor`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jitgen import doors
from jitgen.emit.steps import STEPS
from jitgen.primitives.nest.along import Along, Loops, along
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
    if columns or operand.place == "bit":
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
        if one and found.stride != 1:
            raise ValueError(f"words[{word!r}]: along {name!r} {words[word].tensor!r} has "
                             f"elements {found.stride} apart")  # fmt: skip
