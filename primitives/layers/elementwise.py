"""Element-wise work on all threads: gradients of activations, optimizer updates.

A stream of one part cuts the elements among the threads. Not here: the emitted loops
(`jitgen.kernels.elementwise`).
"""

from __future__ import annotations

from typing import Any

from jitgen.kernels.elementwise import emit_map
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.nest import Nest
from jitgen.primitives.nest.stream import Stream
from jitgen.primitives.nest.tensor import Tensor
from jitgen.run.cache import STREAMS
from jitgen.run.team import Team
from jitgen.target import Target

#: Activations whose gradients are known here
ACTIVATIONS = ("relu", "sigmoid", "tanh", "gelu", "silu")
#: Activations whose output does not tell their derivative
OF_INPUT = ("gelu", "silu")
#: Elements of a call: enough to make its cost vanish, few enough to deal them out evenly
ELEMENTS = 1 << 14
#: Fewer elements than this are done before a second thread has begun
ELEMENTS_PER_THREAD = 1 << 15


@STREAMS.of
def elementwise(
    op: str, size: int, words: tuple[str, ...], scalars: str, dtype: str, threads: int,
    target: Target,
) -> Team:  # fmt: skip
    """`op` of jitgen.kernels.elementwise.emit_map over `size` elements that follow one another.

    words: its operands, in the order in which the team takes their addresses; `scalars` is the word
    of its run-time numbers, taken last ("": none).
    """

    def code(sizes: dict[str, int], first: bool, last: bool) -> tuple[bytes, dict[str, int]]:
        return emit_map(op, 1, sizes["n"], dtype, target), {}

    at = {word: Tensor(word, "n", dtype, n=size).at(n="n") for word in words}
    if scalars:
        at[scalars] = Tensor(scalars, "n", dtype, n=1).at()
    used = max(1, min(threads, size // ELEMENTS_PER_THREAD))
    nest = Nest("N", {"n": Loop(size, (min(size, ELEMENTS),))}, dtype, target)
    return Stream([nest.call(op, code, at)], list(at), used).team(target)


def derived_from(activation: str | None, y: Any, z: Any) -> tuple[str, Any]:
    """Of an activation's output y and its input z, the one that its derivative is made from: its
    name and value. ValueError where that one is missing, or the other one given."""
    if activation is None:
        raise ValueError("activation=None: dz is dy")
    if activation not in OF_INPUT:
        if z is not None or y is None:
            what = "y is missing" if z is None else "z is given"
            raise ValueError(
                f"{what}: the gradient of {activation} takes y, what forward returned, and no z"
            )
        return "y", y
    if y is not None or z is None:
        what = "z is missing" if y is None else "y is given"
        raise ValueError(
            f"{what}: the gradient of {activation} takes z=, the input of the activation (what the "
            "same layer with activation=None returns), and y=None"
        )
    return "z", z


def activation_gradient(
    activation: str | None, buffers: tuple[Any, Any, Any], size: int, dtype: str, threads: int,
    target: Target,
) -> None:  # fmt: skip
    """dz = dy * activation'(z) of `size` elements; buffers: dy, what `derived_from` says, dz."""
    words = ("a", "b", "c")
    elementwise(f"{activation}_backward", size, words, "", dtype, threads, target)(buffers)
