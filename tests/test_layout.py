"""Transposition, and rows to panels, on every target: exact, and nothing else is touched.

Not here: `jitgen.pack_b` (test_pack).
"""

from __future__ import annotations

import random

import numpy as np
import pytest
from blocks import EVERYWHERE, FLOATS, Call, Wanted, block, execute, leading, poison
from random_cases import SEED
from test_pack import pack_panels
from tiers import TIERS, need

from jitgen.kernels.layout import emit_transpose
from jitgen.kernels.pack import emit_packer
from jitgen.target import ANY_WIDTH, parse_target

each_tier = pytest.mark.parametrize("tier", EVERYWHERE)
each_dtype = pytest.mark.parametrize("dtype", FLOATS)

#: below, at and above the sides of all squares; one row, one column; more than one band of rows
SHAPES = [
    (1, 1), (1, 40), (40, 1), (2, 2), (3, 70), (70, 3), (4, 4), (5, 9), (7, 8), (8, 8), (15, 17),
    (16, 16), (17, 33), (32, 31), (64, 16), (257, 5), (290, 19),
]  # fmt: skip


def matrix(seed: int, *shape: int, dtype: str) -> np.ndarray:
    """Random numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(FLOATS[dtype])


@each_tier
@each_dtype
def test_transpose(tier: str, dtype: str) -> None:
    need(TIERS[tier])
    target = parse_target(TIERS[tier].target)
    rng = random.Random(f"{SEED} {tier} {dtype}")
    calls = []
    for rows, columns in [*SHAPES, *((rng.randint(1, 80), rng.randint(1, 80)) for _ in range(12))]:
        lda, ldc = leading(rng, columns), leading(rng, rows)
        a = matrix(rng.randrange(1 << 30), rows, columns, dtype=dtype)
        routine = emit_transpose(rows, columns, dtype, target, lda=lda, ldc=ldc)
        assert len(routine.code) < 4096
        words = {"a": block(a, lda), "c": block(poison(columns, rows, dtype), ldc)}
        label = f"{rows} x {columns}, lda={lda}, ldc={ldc}, JITGEN_SEED={SEED}"
        wanted = {"c": Wanted(a.T, ldc)}
        calls.append(Call(routine, words, wanted, label, rng.choice(("end", "start"))))
    failures = execute(tier, calls)
    assert not failures, "\n".join(failures)


@each_tier
@each_dtype
@pytest.mark.parametrize("trans", [False, True])
def test_rows_to_panels(tier: str, dtype: str, trans: bool) -> None:
    """As NumPy packs; several matrices."""
    need(TIERS[tier])
    target = parse_target(TIERS[tier].target)
    lanes = target.machine(dtype, ANY_WIDTH).lanes
    rng = random.Random(f"{SEED} {tier} {dtype} {trans}")
    calls = []
    for k, n in [(1, 1), (3, 16), (5, 7), (17, 50), (33, 29), (64, 64), (300, 20), (9, 130)]:
        panel = lanes * rng.choice((1, 2, 4))
        rows, columns = (n, k) if trans else (k, n)
        lead, count = leading(rng, columns), rng.choice((1, 3))
        stride = rows * lead + rng.choice((0, 7))
        plain = matrix(rng.randrange(1 << 30), count, k, n, dtype=dtype)
        stored = plain.swapaxes(1, 2) if trans else plain
        panels = pack_panels(plain, panel).reshape(1, -1)
        shape = (k, n, lead, stride, panel, dtype, trans, target)
        label = f"{shape[:-1]}, count {count}, JITGEN_SEED={SEED}"

        # matrices one after the other are one block: rows of all, or of each with a gap
        flat = np.concatenate([_padded(each, lead, stride) for each in stored])
        flat = flat[: (count - 1) * stride + (rows - 1) * lead + columns]
        words = {"a": flat, "c": poison(1, panels.size, dtype)[0], "count": count}
        calls.append(Call(emit_packer(*shape), words, {"c": Wanted(panels, panels.size)}, label))
    for call in calls:
        assert len(call.code) < 4096
    failures = execute(tier, calls)
    assert not failures, "\n".join(failures)


def _padded(values: np.ndarray, lead: int, stride: int) -> np.ndarray:
    """A block with leading dimension, and poison up to the next matrix."""
    dtype = "f32" if values.dtype == np.float32 else "f64"
    flat = poison(1, stride, dtype)[0]
    part = block(values, lead)
    flat[: part.size] = part
    return flat


def test_bad_input() -> None:
    target = parse_target("avx2")
    for arguments, words in (
        ({"rows": 0, "columns": 4}, "rows=0"),
        ({"rows": 3, "columns": 4, "lda": 3}, "leading dimension 3"),
        ({"rows": 3, "columns": 4, "ldc": 2}, "leading dimension 2"),
        ({"rows": 3, "columns": 4, "dtype": "f16"}, "f16"),
        ({"rows": 2, "columns": 1 << 29}, "2 GiB"),
    ):
        with pytest.raises(ValueError, match=words):
            emit_transpose(**{"dtype": "f32", "target": target, **arguments})  # type: ignore[arg-type]
