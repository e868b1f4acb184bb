"""Element-wise work on all threads: gradients of activations, optimizer updates.

An `Elementwise` is a stream of one part that cuts rows among the threads. Not here: the emitted
loops (`jitgen.elementwise`).
"""

from __future__ import annotations

from functools import lru_cache

from jitgen.elementwise import emit_map
from jitgen.spec import DTYPES
from jitgen.target import Target
from jitgen.team import Team
from primitives.loops import Loop
from primitives.stream import Part, Ref, Stream

#: Elements of a call: enough to make its cost vanish, few enough to deal them out evenly
ELEMENTS = 1 << 14
#: Fewer elements than this are done before a second thread has begun
ELEMENTS_PER_THREAD = 1 << 15


@lru_cache(maxsize=512)
def elementwise(
    op: str, rows: int, columns: int, words: tuple[str, ...], scalars: str, dtype: str,
    threads: int, target: Target,
) -> Team:  # fmt: skip
    """`op` of jitgen.elementwise.emit_map over rows x columns contiguous elements.

    words: its operands, in the order in which the team takes their addresses; `scalars` is the word
    of its run-time numbers, taken last ("": none).
    """
    if rows == 1:
        # a vector: pieces of it are the rows
        loops = {"n": Loop(columns, (min(columns, ELEMENTS),))}
        step = 1
    else:
        loops = {"n": Loop(rows, (max(1, min(rows, ELEMENTS // columns)),))}
        step = columns

    def code(size: dict[str, int], first: bool, last: bool) -> tuple[bytes, dict[str, int]]:
        shape = (1, size["n"]) if rows == 1 else (size["n"], columns)
        return emit_map(op, *shape, dtype, target, ld=dict.fromkeys(words, shape[1])), {}

    element = DTYPES[dtype].element
    refs: dict[str, Ref] = {word: Ref(word, {"n": step}, element) for word in words}
    if scalars:
        refs[scalars] = Ref(scalars, {}, element)
    used = max(1, min(threads, rows * columns // ELEMENTS_PER_THREAD))
    stream = Stream([Part(op, "N", loops, code, refs)], list(refs), used)
    return stream.team(target)


