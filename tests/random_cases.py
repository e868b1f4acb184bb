"""Random cases over every option of a kernel, from a `random.Random` or from hypothesis.

Not here: running them (`tiers`).
"""

from __future__ import annotations

import os
import random
import secrets
from typing import Any

from cases import Case
from hypothesis import strategies as st

#: Seed of all random cases of this run: JITGEN_SEED, or fresh ones.
SEED = int(os.environ.get("JITGEN_SEED") or secrets.randbits(32))

SCALARS = (1.0, 0.0, -1.0, 0.5, 2.0, -0.25)
#: Epilogues that networks use; others are drawn step by step.
USUAL = (
    ("bias",),
    ("bias", "relu"),
    ("bias", "relu_mask"),
    ("bias", "residual", "relu"),
    ("bias", "gelu"),
    ("bias_row", "sigmoid"),
    ("residual", "tanh"),
    ("bias", ("scale", 0.5), ("clip", -1.0, 1.0)),
)
FUNCTIONS = (
    "sigmoid", "tanh", "gelu", "gelu_tanh", "silu", "hardswish", "hardsigmoid", "elu", "mish",
)  # fmt: skip
OPERANDS = ("bias", "bias_row", "residual", "relu_mask")


def random_case(rng: random.Random, largest: int = 70) -> Case:
    """A case whose m, n and k are at most `largest`, or now and then 200 if that is at least 70."""
    m, n, k = (_size(rng, largest) for _ in range(3))
    count = rng.choice((0, 1, 1, 2, 3, 4, 5, 7, 9))
    while m * n * k * count > largest**3 * 4:
        count //= 2
    trans_a, trans_b = rng.random() < 0.25, rng.random() < 0.25
    batch = rng.choice(("stride", "stride", "offset", "address"))
    packed = 0 if trans_b else rng.choice((0, 0, 0, 0, -1, 1, 2, 4))
    values: dict[str, Any] = {
        "dtype": rng.choice(("f32", "f32", "f64")),
        "data": rng.choice(("normal", "normal", "integer", "integer", "special")),
        "seed": rng.randrange(1 << 32),
        "place": rng.choice(("end", "start")),
        "alpha": _scalar(rng),
        "beta": _scalar(rng) if rng.random() < 0.7 else 0.0,
    }
    a_columns, b_columns = (m if trans_a else k), (k if trans_b else n)
    for name, least in (("lda", a_columns), ("ldb", b_columns), ("ldc", n), ("ldr", n)):
        if rng.random() < 0.35 and not (name == "ldb" and packed):
            values[name] = least + rng.choice((0, 1, 3, 5, 16, 100))
    if batch == "stride":
        a_rows = k if trans_a else m
        whole_a = a_rows * values.get("lda", a_columns)
        b_rows = n if trans_b else k
        whole_b = k * (n + 128) if packed else b_rows * values.get("ldb", b_columns)
        values["stride_a"] = _stride(rng, whole_a, True)
        values["stride_b"] = _stride(rng, whole_b, not packed)
    return Case(
        m, n, k, count, batch=batch, trans_a=trans_a, trans_b=trans_b, packed=packed,
        epilogue=_epilogue(rng), plan=_plan(rng, k), **values,
    )  # fmt: skip


def cases(largest: int = 40) -> st.SearchStrategy[Case]:
    """The same cases, drawn (and shrunk) by hypothesis."""
    return st.randoms(use_true_random=False).map(lambda rng: random_case(rng, largest))


def _size(rng: random.Random, largest: int) -> int:
    if largest >= 70 and rng.random() < 0.04:
        return rng.randint(71, 200)
    size = rng.randint(1, rng.choice((min(9, largest), largest)))
    return size | 1 if size < largest and rng.random() < 0.5 else size


def _scalar(rng: random.Random) -> float:
    return rng.choice((1.0, 1.0, rng.choice(SCALARS), 1.7))


def _stride(rng: random.Random, whole: int, overlap: bool) -> int | None:
    """Default, larger, the same matrix every time, or overlapping matrices."""
    choices: list[int | None] = [None, None, None, whole + rng.choice((0, 1, 7, 64)), 0]
    if overlap:
        choices.append(rng.randint(1, whole))
    return rng.choice(choices)


def _epilogue(rng: random.Random) -> tuple[Any, ...]:
    kind = rng.random()
    if kind < 0.35:
        return ()
    if kind < 0.6:
        return rng.choice(USUAL)
    steps: list[Any] = []
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        step = rng.choice((
            *OPERANDS, "relu", *FUNCTIONS,
            ("leaky_relu", rng.choice((0.25, 0.01, -2.0, 0.0))),
            ("clip", *rng.choice(((-2.0, 2.0), (0.0, 6.0), (float("-inf"), 0.5), (1.0, 1.0)))),
            ("scale", rng.choice((0.5, -2.0, 1.3))), ("elu", rng.choice((0.3, -1.0, 2.0))),
            ("hardsigmoid", *rng.choice(((0.2, 0.5), (-1.0, 0.0)))),
        ))  # fmt: skip
        if step not in OPERANDS or step not in steps:
            steps.append(step)
    return tuple(steps)


def _plan(rng: random.Random, k: int) -> tuple[tuple[str, Any], ...]:
    """Overrides of the plan; some ask for more registers than there are and are refused."""
    if rng.random() < 0.5:
        return ()
    options = {
        "rows": rng.randint(1, 8),
        "columns": rng.choice((1, 4, 8, 16, 17, 24, 32, 48, 64)),
        "order": rng.choice(("nm", "mn")),
        "hold": rng.choice(("auto", "a", "b")),
        "k_unroll": rng.randint(1, 20),
        "k_split": rng.choice((0, 1, 2, 3, 4)),
        "k_block": rng.choice((1, k, k + 5, rng.randint(1, k), rng.randint(1, k))),
        "batch_chunk": rng.randint(0, 4),
        "prefetch": rng.choice((0, 1, 4, 32)),
        "pack": 1,
    }
    names = rng.sample(sorted(options), rng.choice((1, 1, 2, 3)))
    if "pack" in names:  # a packed B leaves these no choice
        names = [name for name in names if name not in ("order", "batch_chunk")]
    return tuple((name, options[name]) for name in names)
