"""Element-wise work on all threads: gradients of activations, optimizer updates.

A stream of one part cuts the elements among the threads. Not here: the emitted loops
(`jitgen.kernels.elementwise`).
"""

from __future__ import annotations

from typing import Any

from jitgen.gemm.spec import DTYPES
from jitgen.kernels.elementwise import emit_map
from jitgen.primitives.nest.limits import threads_that_pay
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.run import Run
from jitgen.primitives.nest.stream import Part, Ref
from jitgen.run.cache import STREAMS
from jitgen.target import Target

#: Activations whose gradients are known here
ACTIVATIONS = ("relu", "sigmoid", "tanh", "gelu", "silu")
#: Activations whose output does not tell their derivative
OF_INPUT = ("gelu", "silu")
#: Elements of a call: enough to make its cost vanish, few enough to deal them out evenly
ELEMENTS = 1 << 14


@STREAMS.of
def elementwise(
    op: str, size: int, words: tuple[str, ...], scalars: str, dtype: str, threads: int,
    target: Target,
) -> Run:  # fmt: skip
    """`op` of jitgen.kernels.elementwise.emit_map over `size` elements that follow one another.

    Tensors: the op's operands `words`, and `scalars`, that of its run-time numbers ("": none).
    """

    def code(sizes: dict[str, int], first: bool, last: bool) -> tuple[bytes, dict[str, int]]:
        return emit_map(op, 1, sizes["n"], dtype, target), {}

    element = DTYPES[dtype].element
    refs: dict[str, Ref] = {word: Ref(word, {"n": 1}, element) for word in words}
    if scalars:
        refs[scalars] = Ref(scalars, {}, element)
    loops = {"n": Loop(size, (min(size, ELEMENTS),))}
    used = threads_that_pay("elementwise", threads, size)
    return Run([Part(op, "N", loops, code, refs)], list(refs), used, target, dtype)


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


def gradient(at: Any, activation: str, size: int) -> Run:
    """Tensors a: dy, b: what `derived_from` says, c: dz = dy * activation'(z), of `size` elements;
    `at` has dtype, threads and target."""
    words = ("a", "b", "c")
    return elementwise(f"{activation}_backward", size, words, "", at.dtype, at.threads, at.target)
