"""Which bytes of its tensors a thread's calls fetch from each level of memory.

What a call touches of an operand is a piece of a tensor; a cache keeps what was touched last, and a
run follows others of the same stream. Pieces are told apart by where they begin, and counted in
granules, of which no more than all bytes are fetched. Not here: what a call fetches again and again
within itself (`jitgen.analysis.memory`), bandwidths (`jitgen.primitives.nest.bounds`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from jitgen.analysis.routines import Touched, touched
from jitgen.gemm.emitted import EmittedKernel
from jitgen.primitives.nest.run import Run
from jitgen.primitives.nest.shown import in_order
from jitgen.primitives.nest.stream import Calls
from jitgen.run.replay import FIRST_KIND, Call

#: Part of a cache that data may take and still be there when it is read again
KEPT = 3 / 4
#: A granule is this part of a cache, but not smaller than so many bytes
GRANULES, LEAST = 256, 4096
#: Iterations of a part that are followed; more of them go on as these did
MOST = 5000


class Piece(NamedTuple):
    """What a call touches of a tensor, in bytes: where it begins, its size, and how far it goes."""

    tensor: str
    begin: int
    size: int
    span: int


class Cache:
    """Keeps what was read last, in granules."""

    def __init__(self, capacity: float) -> None:
        self.capacity = KEPT * capacity
        size = max(LEAST, int(capacity) // GRANULES)
        self.granule = 1 << size.bit_length() - 1
        #: granule -> bytes of it that are there, and where the pieces began that brought them
        self._kept: OrderedDict[tuple[str, int], tuple[float, dict[int, float]]] = OrderedDict()
        self._total = 0.0

    def read(self, piece: Piece) -> float:
        """Read or write a piece; bytes that were not there."""
        first = piece.begin // self.granule
        last = (piece.begin + max(piece.span, 1) - 1) // self.granule
        each, missed = piece.size / (last - first + 1), 0.0
        for number in range(first, last + 1):
            key = piece.tensor, number
            held, begins = self._kept.pop(key, (0.0, {}))
            new = min(each - begins.get(piece.begin, 0.0), self.granule - held)
            if new > 0:
                begins[piece.begin] = each
                missed, held = missed + new, held + new
                self._total += new
            self._kept[key] = held, begins
        while self._total > self.capacity and self._kept:
            _, (held, _) = self._kept.popitem(last=False)
            self._total -= held
        return missed


class Pieces:
    """What the calls of a run touch."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._known: dict[tuple[int, tuple[int, ...]], dict[str, tuple[int, Touched]]] = {}

    def of_call(self, calls: Calls, i: int) -> Iterator[tuple[str, Piece]]:
        """The pieces of one call by word. Of a kernel whose path is not known: none."""
        kind, offsets = int(calls.kind[i]) - FIRST_KIND, calls.offsets[i].tolist()
        words = list(calls.part.words)
        at = dict(zip(words, offsets, strict=True))
        tables = tuple(at[word] for word in words if word.endswith("_offsets"))
        found = self._known.get((kind, tables))
        if found is None:
            found = self._known[kind, tables] = self._of_kernel(kind, calls, at)
        for word, (begin, size) in found.items():
            ref = calls.part.words.get(word)
            if ref is not None:
                start = at[word] * ref.element + begin
                yield word, Piece(ref.tensor, start, size.bytes, size.span)

    def _of_kernel(
        self, kind: int, calls: Calls, at: Mapping[str, int]
    ) -> dict[str, tuple[int, Touched]]:
        """By word, where it begins behind the word's place, and what is touched."""
        call = self.run.stream.calls[kind]
        if isinstance(call.routine, EmittedKernel):
            tables = {
                word.removesuffix("_offsets"): self._table(calls, word, at[word])
                for word in calls.part.words
                if word.endswith("_offsets") and call.routine.spec.batch == "offset"
            }
            return dict(_of_product(call, tables))
        try:
            return {word: (0, size) for word, size in touched(call.routine, batch(call)).items()}
        except ValueError:
            return {}

    def _table(self, calls: Calls, word: str, at: int) -> np.ndarray:
        """The offsets that a call reads."""
        return self.run.constants[calls.part.words[word].tensor].ravel()[at:]


def batch(call: Call) -> int:
    """Matrices of a batch that a call is about."""
    return dict(call.fixed).get("count", 1)


def _of_product(
    call: Call, tables: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, tuple[int, Touched]]]:
    """The same of a BRGEMM."""
    assert isinstance(call.routine, EmittedKernel)
    spec, count = call.routine.spec, batch(call)
    rows_of_b = spec.n if spec.trans_b else spec.k
    panels = -(-spec.n // spec.panel) if spec.panel else 0
    of = {
        "a": (*spec.a_shape, spec.lda, spec.a_bytes),
        "b": (1, panels * spec.k * spec.panel, 0, spec.b_bytes) if panels else
             (rows_of_b, spec.n * spec.k // rows_of_b, spec.ldb, spec.b_bytes),
    }  # fmt: skip
    for word, (rows, columns, leading, element) in of.items():
        size, span = rows * columns, (rows - 1) * leading + columns
        if word in tables:
            begins = np.sort(tables[word][:count])
        else:
            begins = np.arange(count) * (spec.stride_a if word == "a" else spec.stride_b)
        begins = begins.astype(np.int64)
        covered = span + int(np.minimum(np.diff(begins), span).sum())
        first = int(begins[0])
        all_of_them = min(count * size, covered)
        yield word, (first * element, Touched(
            all_of_them * element, (int(begins[-1]) - first + span) * element
        ))  # fmt: skip
    results = {"c": spec.ldc, "residual": spec.ldr if spec.has("residual") else 0}
    for word, leading in results.items():
        if leading:
            span = (spec.m - 1) * leading + spec.n
            yield word, (0, Touched(spec.m * spec.n * spec.c_bytes, span * spec.c_bytes))
    if spec.has("bias"):
        yield "bias", (0, Touched(spec.n * spec.c_bytes, spec.n * spec.c_bytes))


def fetched(
    pieces: Pieces, thread: int, capacities: Iterable[float]
) -> list[list[dict[str, float]]]:
    """Bytes by tensor that a thread fetches from beyond caches of these capacities, for each part
    of the run and each cache."""
    caches = [Cache(capacity) for capacity in capacities]
    for _ in range(2):  # the second run finds what the first one has left
        found = [_of_part(pieces, calls, thread, caches) for calls in pieces.run.stream.parts]
    return found


def _of_part(
    pieces: Pieces, calls: Calls, thread: int, caches: list[Cache]
) -> list[dict[str, float]]:
    moved: list[dict[str, float]] = [{} for _ in caches]
    mine = np.flatnonzero(calls.nest.thread == thread).tolist()
    for i in mine[:MOST]:
        for each, j in in_order(calls, i):
            for _, piece in pieces.of_call(each, j):
                for cache, by_tensor in zip(caches, moved, strict=True):
                    missed = cache.read(piece)
                    by_tensor[piece.tensor] = by_tensor.get(piece.tensor, 0.0) + missed
    scale = len(mine) / max(1, min(len(mine), MOST))
    return [{t: scale * n for t, n in each.items() if n} for each in moved]
