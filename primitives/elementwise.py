"""Element-wise work on all threads: gradients of activations, optimizer updates.

A stream of one part cuts the elements among the threads. Not here: the emitted loops
(`jitgen.elementwise`).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from jitgen.elementwise import emit_map
from jitgen.spec import DTYPES
from jitgen.target import Target
from jitgen.team import Team
from primitives.arrays import check, output
from primitives.loops import Loop
from primitives.stream import Part, Ref, Stream

#: Activations whose gradients are known here
ACTIVATIONS = ("relu", "sigmoid", "tanh", "gelu", "silu")
#: Elements of a call: enough to make its cost vanish, few enough to deal them out evenly
ELEMENTS = 1 << 14
#: Fewer elements than this are done before a second thread has begun
ELEMENTS_PER_THREAD = 1 << 15


@lru_cache(maxsize=512)
def elementwise(
    op: str, size: int, words: tuple[str, ...], scalars: str, dtype: str, threads: int,
    target: Target,
) -> Team:  # fmt: skip
    """`op` of jitgen.elementwise.emit_map over `size` elements that follow one another.

    words: its operands, in the order in which the team takes their addresses; `scalars` is the word
    of its run-time numbers, taken last ("": none).
    """

    def code(sizes: dict[str, int], first: bool, last: bool) -> tuple[bytes, dict[str, int]]:
        return emit_map(op, 1, sizes["n"], dtype, target), {}

    element = DTYPES[dtype].element
    refs: dict[str, Ref] = {word: Ref(word, {"n": 1}, element) for word in words}
    if scalars:
        refs[scalars] = Ref(scalars, {}, element)
    used = max(1, min(threads, size // ELEMENTS_PER_THREAD))
    loops = {"n": Loop(size, (min(size, ELEMENTS),))}
    stream = Stream([Part(op, "N", loops, code, refs)], list(refs), used)
    return stream.team(target)


def activation_gradient(
    activation: str | None, dy: Any, y: Any, out: Any, shape: tuple[int, ...], dtype: str,
    threads: int, target: Target,
) -> Any:  # fmt: skip
    """dz = dy * activation'(z), arrays of `shape`, in `out` if that is given; it may be dy.

    y is activation(z) for relu, sigmoid and tanh; for gelu and silu, whose result does not tell, it
    is z.
    """
    if activation is None:
        raise ValueError("activation=None: dz is dy")
    buffers = check("dy", dy, shape, dtype), check("y", y, shape, dtype)
    out, last = output(out, shape, dtype, {"y": y} if out is dy else {"dy": dy, "y": y})
    op, words = f"{activation}_backward", ("a", "b", "c")
    elementwise(op, math.prod(shape), words, "", dtype, threads, target)((*buffers, last))
    return out
