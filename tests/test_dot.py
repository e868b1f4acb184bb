"""Rows times rows on every tier, between guard pages, against float64.

Not here: layers that use them (test_fully_connected).
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from oracle import stepped
from random_cases import SEED
from rig.job import Buffer, Job
from tiers import TIERS, need

from jitgen.kernels.dot import emit_dot, possible
from jitgen.target import TARGETS, parse_target

KINDS = {"f32": np.float32, "f64": np.float64}
EPS = {"f32": 2.0**-24, "f64": 2.0**-53}
AMOUNT = {
    "avx2 native": (150, 200), "avx512 native": (150, 200), "avx512 bochs": (60, 70),
    "sve128 qemu": (40, 70), "sve256 qemu": (40, 70), "sve512 qemu": (40, 70),
    "neon qemu": (40, 70),
}  # fmt: skip
EPILOGUES = [
    (), (("bias",),), (("bias",), ("relu",)), (("relu",),), (("bias",), ("gelu",)),
    (("sigmoid",),), (("bias",), ("tanh",)), (("silu",),), (("bias",), ("residual",), ("relu",)),
    (("residual",), ("mish",)), (("bias",), ("hardswish",)), (("elu", 0.5), ("residual",)),
    (("bias",), ("clip", -1.0, 2.0)), (("leaky_relu", 0.25),), (("hardsigmoid",), ("bias",)),
    (("clip", -2.0, 2.0), ("exp",)), (("scale", 0.5),),
]  # fmt: skip


def expected(
    y: np.ndarray, bound: np.ndarray, operands: dict[str, np.ndarray], epilogue: Any, kind: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Result and how far off it may be."""
    eps = float(np.finfo(kind).eps)
    for name, *parameters in epilogue:
        if name in operands:
            y = y + operands[name]
        elif name in ("relu", "clip"):
            y = np.clip(y, *(parameters or (0, np.inf)))
        elif name in ("leaky_relu", "scale"):
            y = np.where((y < 0) | (name == "scale"), y * parameters[0], y)
        else:
            y, bound = stepped((name, *parameters), y, bound, kind)
        bound = bound + eps * np.abs(y)
    return y, bound


@pytest.mark.parametrize("tier", AMOUNT)
def test_random_rows(tier: str) -> None:
    need(TIERS[tier])
    target = parse_target(TIERS[tier].target)
    amount, most = AMOUNT[tier]
    rng = random.Random(f"{SEED} {tier}")
    jobs, cases = [], []
    for i in range(amount):
        n, k = (rng.choice([1, 2, 7, 8, 15, 16, 17, rng.randint(1, most)]) for _ in "nk")
        ldb = k + rng.choice([0, 0, 1, 5])
        dtype, epilogue = rng.choice(["f32", "f64"]), rng.choice(EPILOGUES)
        data = np.random.default_rng(SEED + i)
        x, *more = (data.standard_normal(s).astype(KINDS[dtype]) for s in (k, n, n))
        operands = dict(zip(("bias", "residual"), more, strict=True))
        w = np.full((n, ldb), np.nan, KINDS[dtype])
        w[:, :k] = data.standard_normal((n, k))
        buffers = [
            Buffer(x), Buffer(w.reshape(-1)[: (n - 1) * ldb + k].copy()),
            Buffer(np.full(n, np.nan, KINDS[dtype]), write=True),
        ]  # fmt: skip
        there = [Buffer(v) if (name,) in epilogue else 0 for name, v in operands.items()]
        words = [*buffers, 1, 0, 0, there[0], 0, there[1]]
        routine = emit_dot(n, k, ldb, dtype, target, epilogue)
        jobs.append(Job(routine.code, words, f"{n} x {k} {dtype}"))
        exact = w[:, :k].astype(np.float64) @ x
        bound = (k + 8) * EPS[dtype] * (np.abs(w[:, :k]) @ np.abs(x))
        wide = {name: v.astype(np.float64) for name, v in operands.items()}
        cases.append((*expected(exact, bound, wide, epilogue, KINDS[dtype]), epilogue))
    outcomes = TIERS[tier].run(jobs, isa=target.name)
    for job, (exact, bound, epilogue), outcome in zip(jobs, cases, outcomes, strict=True):
        what = f"JITGEN_SEED={SEED} {job.label} {epilogue}"
        assert outcome.ok, f"{what}: {outcome.error}"
        assert (np.abs(outcome.outputs[0] - exact) <= bound).all(), what


def test_which_targets_can() -> None:
    assert {name for name, t in TARGETS.items() if possible("f32", t)} == set(TARGETS)
    wide = parse_target("sve2048")
    assert not possible("f32", wide)
    with pytest.raises(ValueError, match="target=sve2048"):
        emit_dot(4, 4, 4, "f32", wide)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((0, 4, 4, "f32"), "rows=0"), ((4, 4, 3, "f32"), "leading dimension 3"),
        ((4, 4, 4, "bf16"), "bf16"),
    ],
)  # fmt: skip
def test_bad_input(arguments: tuple[int, int, int, str], word: str) -> None:
    with pytest.raises(ValueError, match=r"is|are|must") as error:
        emit_dot(*arguments, TARGETS["avx2"])
    assert word in str(error.value)
    for step in ("relu_mask", "bias_row"):
        with pytest.raises(ValueError, match=f"epilogue step '{step}': its operand lies by"):
            emit_dot(4, 4, 4, "f32", TARGETS["avx2"], ((step,),))
    with pytest.raises(ValueError, match="'softmax' is not one of"):
        emit_dot(4, 4, 4, "f32", TARGETS["avx2"], (("softmax",),))
