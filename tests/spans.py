"""Streams of arrays that do not exist: every call's blocks lie in their tensors, and do all work.

Kernels are replaced by records of what they would do, so that streams of any size are made without
arrays. Not here: which streams (test_large).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from jitgen.emit.routine import Routine
from jitgen.gemm.spec import make_spec
from jitgen.kernels import relayout
from jitgen.primitives.fc import streams as fc_streams
from jitgen.primitives.nest import gemm, nest
from jitgen.primitives.nest.run import Run
from jitgen.target import AVX2

#: word -> elements that a call sees from its address on; and its multiply-adds
Blocks = tuple[dict[str, int], int]


class Record(Routine):
    """A kernel that is only described."""

    def __init__(self, name: str, *args: Any, **how: Any) -> None:
        plain = [a for a in args if isinstance(a, (int, str))]
        how = {key: value for key, value in how.items() if key not in ("plan", "target")}
        super().__init__(name, (), AVX2, repr((name, plain, how)).encode())


def _product(args: list[Any], how: dict[str, Any], count: int) -> Blocks:
    panel = how.pop("packed_b", 0)
    # this refuses a matrix, or a stride, of 2 GiB
    s = make_spec(*args, panel=panel, **how)
    rows, columns = s.a_shape
    b = -(-s.n // panel) * s.k * panel if panel else (s.k - 1) * s.ldb + s.n
    words = {
        "a": (rows - 1) * s.lda + columns + (count - 1) * s.stride_a,
        "b": b + (count - 1) * s.stride_b, "c": (s.m - 1) * s.ldc + s.n, "bias": s.n,
    }  # fmt: skip
    return words, s.m * s.n * s.k * count


def _packer(k: int, n: int, leading: int, _: int, panel: int, _dtype: str, trans: bool) -> Blocks:
    source = (n - 1) * leading + k if trans else (k - 1) * leading + n
    return {"a": source, "c": -(-n // panel) * k * panel}, 0


def _dot(n: int, k: int, ldb: int, *_: Any) -> Blocks:
    return {"a": k, "b": (n - 1) * ldb + k, "c": n, "bias": n}, n * k


def _blocks(code: bytes, count: int) -> Blocks:
    """What a record's call does."""
    name, args, how = eval(code)  # a record of ours
    if name == "brgemm":
        return _product(args, how, count)
    if name == "emit_column_sums":
        rows, columns, *_ = args
        return {"a": (rows - 1) * how["lda"] + columns, "c": columns}, 0
    return _packer(*args) if name == "emit_packer" else _dot(*args)


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Streams of fully connected layers are made of records."""
    cached = [f for f in vars(fc_streams).values() if hasattr(f, "cache_clear")]

    with monkeypatch.context() as patch:
        for module, name in (
            (nest, "brgemm"), (relayout, "emit_packer"), (gemm, "emit_dot"),
            (fc_streams, "emit_column_sums"),
        ):  # fmt: skip
            patch.setattr(module, name, partial(Record, name))
        yield
    # no other test may find these streams
    for function in cached:
        function.cache_clear()


def check_run(run: Run, sizes: dict[str, int]) -> int:
    """Fail unless each call's blocks lie in their tensors, the caller's of `sizes` elements; the
    multiply-adds of all calls."""
    sizes = {**sizes, **run.scratch}
    work = 0
    for calls in [c for part in run.stream.parts for c in (part, *(b for b, _ in part.before))]:
        for kind in set(calls.kind.tolist()):
            call = run.stream.calls[kind - 2]
            extents, products = _blocks(call.code, dict(call.fixed).get("count", 1))
            offsets = calls.offsets[calls.kind == kind]
            work += products * len(offsets)
            for w, word in enumerate(call.words):
                tensor = run.stream.tensors[word.base or 0]
                what = f"{calls.part.title}: {word.name} of {call.code!r} in {tensor}"
                assert int(offsets[:, w].min()) >= 0, what
                assert int(offsets[:, w].max()) + extents[word.name] <= sizes[tensor], what
    return work
