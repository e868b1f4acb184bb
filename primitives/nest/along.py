"""How a kernel's call goes along an axis of a tensor: what a place says about strides and sizes.

Not here: what is called (`jitgen.primitives.nest.nest`), where a place lies
(`jitgen.primitives.nest.tensor`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from jitgen import doors
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.tensor import Access

Sizes = dict[str, int]
Loops = Mapping[str, Loop]


class Along(NamedTuple):
    """How a call goes along an axis: elements from one position to the next; blocks of so many (0:
    none) that lie so far apart; its rank in the layout; the extent of the axis, all of which is in
    a call unless there is a loop."""

    stride: int = 0
    block: int = 0
    apart: int = 0
    rank: int = 0
    extent: int = 1
    loop: str = ""

    def size(self, sizes: Sizes) -> int:
        """Positions in a call."""
        return sizes[self.loop] if self.loop else self.extent


def along(loops: Loops, access: Access, name: str, argument: str) -> Along:
    """How a call goes along the axis of a loop, or along the axis of that name, whole."""
    if " " in name:
        outer, inner = (along(loops, access, each, argument) for each in name.split())
        if outer.stride != inner.extent * inner.stride:
            raise ValueError(
                f"{argument}={doors.shown(name)}: {access.tensor!r} has gaps between them"
            )
        return inner
    axes = [axis for axis in access.index if name in access.steps(axis)]
    if len(axes) > 1:
        raise ValueError(f"{argument}={doors.shown(name)}: it goes along {' and '.join(axes)} "
                         f"of {access.tensor!r}")  # fmt: skip
    found = access.axis(name)
    if found:
        return on(loops, access, found[0], name)
    tensor = access.tensor
    if name in tensor.sizes and (tensor.own or name not in loops):
        _check_whole(loops, access, name, argument)
        return on(loops, access, name)
    raise ValueError(
        f"{argument}={doors.shown(name)}: {tensor!r} has no axis along that loop, or called so"
    )


def _check_whole(loops: Loops, access: Access, axis: str, argument: str) -> None:
    """Raise ValueError if a call would leave an axis of which it takes all, or, of a tensor
    that is own, as much as a loop says."""
    extent, what = access.tensor.sizes[axis], f"{argument}={axis!r}: a call takes "
    if any(term != 0 for term in access.index.get(axis, ())):
        raise ValueError(f"{what}all of the axis, but the place in {access.tensor!r} has an "
                         "index along it")  # fmt: skip
    if axis in loops:
        most = min(loops[axis].extent, loops[axis].blocks[-1])
        if most > extent:
            raise ValueError(f"{what}{most} positions of loop {axis!r}; {access.tensor!r} has "
                             f"{extent}")  # fmt: skip


def on(loops: Loops, access: Access, axis: str, loop: str = "") -> Along:
    """How a call goes along an axis: along a loop, by default the one of the smallest steps, or
    all of it is in a call."""
    tensor, block = access.tensor, access.tensor.blocks(axis)
    steps = {x: at[1] for x in loops if (at := access.axis(x)) and at[0] == axis}
    # what is own lies still: no loop goes along it, but it has the axis of one
    still = axis if tensor.own and axis in loops else ""
    loop = loop or min(steps, key=steps.__getitem__, default=still)
    step = steps.get(loop, 1)
    return Along(
        tensor.stride(axis) * step, block, tensor.strides[axis] if block else 0,
        tensor.rank(axis), tensor.sizes[axis], loop,
    )  # fmt: skip
