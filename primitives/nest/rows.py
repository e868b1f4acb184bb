"""Functions of rows at places of tensors: which strides they have there, and which kernel follows.

What is reduced lies together ("rows"), or the rows do ("down columns"): the layouts say which, and
`jitgen.kernels.rows` has a kernel for either. Not here: the functions, parts
(`jitgen.primitives.nest.nest.Nest.rows`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from jitgen import doors
from jitgen.kernels.row_functions import ROW_FUNCTIONS, RowFunction
from jitgen.kernels.rows import emit_rows
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.stream import Made, MakeCode
from jitgen.primitives.nest.tensor import Access
from jitgen.target import Target
from jitgen.types import DTYPES


class _Way(NamedTuple):
    """How a call goes along an axis: elements from one position to the next; its extent, all of
    which is in a call unless there is a loop."""

    stride: int
    extent: int
    loop: str


def row_calls(
    loops: Mapping[str, Loop], dtype: str, target: Target, function: str,
    operands: Mapping[str, Access], rows: str, over: str, eps: float,
) -> tuple[MakeCode, dict[str, Access]]:  # fmt: skip
    """What makes the kernels of a nest's calls, and the words of them. The arguments are those of
    `Nest.rows`, which says what is refused."""
    record = ROW_FUNCTIONS[doors.one_of("function", function, ROW_FUNCTIONS)]
    places = _places(record, function, operands, dtype)
    eps = doors.number("eps", eps, low=0.0, dtype=dtype)
    down: dict[str, _Way | None] = {}
    along: dict[str, _Way | None] = {}
    for name, access in places.items():
        place = record.operands[name].place
        down[name] = _way(loops, access, rows, "rows") if place != "column" else None
        along[name] = _way(loops, access, over, "over") if place != "value" else None
    across = {name: (down[name], along[name]) for name in places}
    wide = [name for name in places if record.operands[name].place == "row"]
    length = _one(over, "over", along, places)
    height = _one(rows, "rows", down, places)
    if length.loop and loops[length.loop].blocks[-1] < length.extent:
        raise ValueError(
            f"over={over!r}: a call takes all of what is reduced; the loop has blocks of "
            f"{loops[length.loop].blocks[-1]} of {length.extent}"
        )
    axis = int(all(w is None or w.stride == 1 or w.extent == 1 for w in along.values()))
    ld: dict[str, int] = {}
    for name, ways in across.items():
        near, far = ways if axis == 0 else ways[::-1]
        if near is not None and near.stride != 1 and near.extent != 1:
            raise ValueError(
                f"{name}={places[name]!r}: neither {over} nor {rows} lies together in all operands"
            )
        if name in wide:
            ld[name] = far.stride if far is not None else 1
        elif far is not None and far.stride != 1 and far.extent != 1:
            raise ValueError(f"{name}={places[name]!r}: its elements do not lie together")
    given = tuple(name for name in places if record.operands[name].optional)

    def code(sizes: dict[str, int], first: bool, last: bool) -> Made:
        high = sizes[height.loop] if height.loop else height.extent
        size = (high, length.extent) if axis else (length.extent, high)
        pitch = {name: max(elements, size[1]) if size[0] == 1 else elements
                 for name, elements in ld.items()}  # fmt: skip
        made = emit_rows(
            function, *size, dtype, target, ld=pitch, given=given, eps=eps, axis=axis
        )
        return made, {}

    return code, {record.operands[name].word: access for name, access in places.items()}


def written(function: str, words: Mapping[str, Access]) -> list[str]:
    """Which of the words a function's results are in."""
    record = ROW_FUNCTIONS[function]
    results = {name for p in record.passes for name in (*p.writes, *p.stores.values())}
    return [record.operands[name].word for name in record.operands
            if name in results and record.operands[name].word in words]  # fmt: skip


def _places(
    record: RowFunction, function: str, operands: Any, dtype: str
) -> dict[str, Access]:
    """The operands, checked: all that there must be, in tensors of the type."""
    places = {}
    for name, access in doors.mapping("operands", operands).items():
        doors.one_of(f"operands of {function}", name, record.operands)
        tensor = doors.instance(f"operands[{name!r}]", access, Access).tensor
        if tensor.element != DTYPES[dtype].size:
            raise ValueError(f"operands[{name!r}]={tensor!r} has elements of {tensor.element} "
                             f"bytes; dtype={dtype!r}")  # fmt: skip
        places[name] = access
    for name, operand in record.operands.items():
        if name not in places and not operand.optional:
            raise ValueError(
                f"operands={doors.shown(operands)} has no {name!r}, which {function} needs"
            )
    return places


def _way(loops: Mapping[str, Loop], access: Access, name: str, argument: str) -> _Way:
    """How a call goes along the axis of a loop, or along the axis of that name, whole."""
    tensor, found = access.tensor, access.axis(name)
    # what is own lies still: it has the axis, of which a call takes as much as of the loop
    still = name in tensor.sizes and name not in access.index and (
        tensor.own or name not in loops
    )  # fmt: skip
    if found is None and not still:
        raise ValueError(
            f"{argument}={doors.shown(name)}: {tensor!r} has no axis along that loop, or called so"
        )
    axis, step = found or (name, 1)
    if tensor.blocks(axis):
        raise ValueError(f"{argument}={doors.shown(name)}: {axis} lies in blocks in {tensor!r}")
    if name not in loops:
        return _Way(tensor.stride(axis) * step, tensor.sizes[axis], "")
    if tensor.sizes[axis] < loops[name].blocks[-1] and still:
        raise ValueError(
            f"{argument}={doors.shown(name)}: a call takes {loops[name].blocks[-1]} positions; "
            f"{tensor!r} has fewer"
        )
    return _Way(tensor.stride(axis) * step, loops[name].extent, name)


def _one(
    name: str, argument: str, ways: Mapping[str, _Way | None], places: Mapping[str, Access]
) -> _Way:
    """The way of all operands: they have the same extent."""
    found = {key: way for key, way in ways.items() if way is not None}
    for key, way in found.items():
        first, other = next(iter(found.items()))
        if way.extent != other.extent:
            raise ValueError(
                f"{argument}={doors.shown(name)}: it has {other.extent} in "
                f"{places[first].tensor!r} and {way.extent} in {places[key].tensor!r}"
            )
    return next(iter(found.values()))
