"""Streams of arrays that do not exist: every call's blocks lie in their tensors, and do all work.

Kernels are replaced by records of what they would do, so that streams of any size are made in no
time and no memory. Not here: which streams (test_limits).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from jitgen.spec import MATRIX_BYTES, make_spec
from primitives import fc_streams, gemm
from primitives.run import Run

#: what a record stands for -> word -> elements from its address on, and multiply-adds
Blocks = tuple[dict[str, int], int]


class Stub:
    """A kernel that is only described."""

    def __init__(self, name: str, *args: Any, **how: Any) -> None:
        how.pop("plan", None)
        how.pop("target", None)
        self.code = repr((name, args, how)).encode()


def _product(args: Any, how: dict[str, Any], count: int) -> Blocks:
    panel = how.pop("packed_b", 0)
    # which refuses a matrix or a stride of 2 GiB
    s = make_spec(*args, panel=panel, **how)
    rows, columns = s.a_shape
    b = -(-s.n // panel) * s.k * panel if panel else (s.k - 1) * s.ldb + s.n
    words = {
        "a": (rows - 1) * s.lda + columns + (count - 1) * s.stride_a,
        "b": b + (count - 1) * s.stride_b, "c": (s.m - 1) * s.ldc + s.n, "bias": s.n,
    }  # fmt: skip
    return words, s.m * s.n * s.k * count


def _packer(k: int, n: int, leading: int, stride: int, panel: int, trans: bool) -> Blocks:
    source = (n - 1) * leading + k if trans else (k - 1) * leading + n
    return {"a": source, "c": -(-n // panel) * k * panel}, 0


def _dot(n: int, k: int, ldb: int) -> Blocks:
    return {"a": k, "b": (n - 1) * ldb + k, "c": n, "bias": n}, n * k


def _sums(rows: int, columns: int, lda: int) -> Blocks:
    return {"a": (rows - 1) * lda + columns, "c": columns}, 0


def blocks(code: bytes, count: int) -> Blocks:
    """What a record's call does."""
    name, args, how = eval(code)  # a record of ours
    if name == "brgemm":
        return _product(args, how, count)
    if name == "packer":
        return _packer(*args[:5], args[6])
    if name == "dot":
        return _dot(*args[:3])
    return _sums(*args[:2], how["lda"])


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Streams of fully connected layers are made of records."""
    with monkeypatch.context() as patch:
        for module, name, what in (
            (gemm, "brgemm", "brgemm"), (gemm, "emit_packer", "packer"),
            (gemm, "emit_dot", "dot"), (fc_streams, "emit_column_sums", "sums"),
        ):  # fmt: skip

            def make(*args: Any, what: str = what, **how: Any) -> Any:
                named = [a if isinstance(a, (int, str, tuple)) else str(a) for a in args]
                stub = Stub(what, *named, **how)
                return stub if what == "brgemm" else stub.code

            patch.setattr(module, name, make)
        yield


def check_run(run: Run, sizes: dict[str, int], element: int) -> int:
    """Fail unless each call's blocks lie in their tensors, of `sizes` elements; the multiply-adds
    of all calls."""
    sizes = {**sizes, **run.scratch}
    work = 0
    for calls in [c for part in run.stream.parts for c in (part, *(b for b, _ in part.before))]:
        for kind in set(calls.kind.tolist()):
            call = run.stream.calls[kind - 2]
            extents, products = blocks(call.code, dict(call.fixed).get("count", 1))
            offsets = calls.offsets[calls.kind == kind]
            work += products * len(offsets)
            for w, word in enumerate(call.words):
                tensor = run.stream.tensors[word.base or 0]
                end = int(offsets[:, w].max()) + extents[word.name]
                assert int(offsets[:, w].min()) >= 0
                assert end <= sizes[tensor], (calls.part.title, word.name, tensor, call.code)
    assert all(size * element < 1 << 40 for size in run.scratch.values())
    return work


assert MATRIX_BYTES == 1 << 31
