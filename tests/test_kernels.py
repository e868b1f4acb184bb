"""Thousands of random kernels, executed between guard pages and compared with the oracle.

Data and shapes are fresh in every run; JITGEN_SEED=<n> repeats one. Every failure tells its case
and how to run it again. Not here: the Python face (`test_kernels_python`).
"""

from __future__ import annotations

import random

import pytest
from cases import Case
from random_cases import SEED, random_case
from tiers import TIERS, execute, need

#: tier -> (kernels, largest m, n, k): emulators get smaller ones
AMOUNT = {
    "avx2 native": (3500, 70),
    "avx512 native": (1500, 70),
    "avx512 bochs": (1250, 24),
    "sve128 qemu": (750, 40),
    "sve256 qemu": (750, 40),
    "sve512 qemu": (750, 40),
    "neon qemu": (1000, 40),
    # lengths that are no power of two, or the longest there is, have their own corners
    "sve384 qemu": (250, 40),
    "sve2048 qemu": (250, 40),
}
BATCH = 250


@pytest.mark.parametrize(
    ("tier", "batch"),
    [(tier, i) for tier, (number, _) in AMOUNT.items() for i in range(number // BATCH)],
)
def test_random_kernels(tier: str, batch: int) -> None:
    """A batch of random cases gives the oracle's results and touches nothing else."""
    need(TIERS[tier])
    rng = random.Random(f"{SEED} {tier} {batch}")
    cases = [random_case(rng, AMOUNT[tier][1]) for _ in range(BATCH)]
    outcome = execute(tier, cases)
    assert not outcome.failures, (
        f"JITGEN_SEED={SEED}: {len(outcome.failures)} of {BATCH} cases failed, the first ones:\n\n"
        + "\n\n".join(outcome.failures[:3])
    )
    assert outcome.executed == BATCH - outcome.refused
    # overrides of the plan may ask for too many registers, but most must fit
    assert outcome.refused < BATCH // 5


#: Corners that random cases may miss: everything one, a batch of none, whole registers, many
#: tiles of rows and columns, a reduction longer than any pass.
CORNERS = [
    Case(1, 1, 1),
    Case(1, 1, 1, 0, beta=0.5, data="integer"),
    Case(1, 1, 1, 3, trans_a=True, trans_b=True, dtype="f64"),
    Case(33, 29, 37, 3, ldb=1024, beta=1.0, epilogue=("bias", "relu_mask")),
    Case(14, 45, 300, 2, ldb=1024, batch="address", alpha=-0.5, beta=0.5),
    Case(35, 21, 19, 2, ldb=515, dtype="f64", batch="offset"),
    Case(5, 16, 3, 0, epilogue=("bias", "relu_mask")),
    Case(5, 16, 3, 0, batch="address", beta=1.0, epilogue=("gelu",)),
    Case(5, 16, 3, 0, batch="offset", trans_b=True),
    Case(16, 64, 16, 4),
    Case(33, 65, 17, 3, data="integer", ldc=66),
    Case(61, 3, 5, 2, epilogue=("relu_mask",)),
    Case(2, 130, 7, 2, epilogue=("bias", "residual", "relu_mask"), ldr=200),
    Case(3, 5, 1500, 2, data="integer", stride_b=0),
    Case(3, 5, 1500, 2, trans_b=True, alpha=0.5, beta=2.0, data="integer"),
    Case(4, 8, 6, 600, stride_a=1, stride_b=0, data="integer"),
    Case(9, 40, 8, 40, batch="address", plan=(("batch_chunk", 7),), epilogue=("silu",)),
    Case(7, 9, 5, 3, alpha=0.0, beta=1.0, data="special"),
]


@pytest.mark.parametrize("tier", AMOUNT)
def test_corners(tier: str) -> None:
    """Extreme shapes, batches and strides."""
    need(TIERS[tier])
    outcome = execute(tier, CORNERS)
    assert not outcome.failures, "\n\n".join(outcome.failures)
    assert outcome.executed == len(CORNERS)
