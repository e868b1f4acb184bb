"""Ways to execute a kernel: which target, on which machine of the rig, and whether it is there.

`execute` generates kernels for cases, runs them and compares. To run one case again:

    python -c "from tiers import *; print(execute('avx2 native', [Case(m=3, n=5, k=7)]))"

Not here: the machines themselves (`rig`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import needs
from cases import Arrays, Case, build, job
from oracle import compare
from rig import bochs, native, qemu
from rig.job import Job, Result

import jitgen


@dataclass(frozen=True)
class Tier:
    """A target on a machine. run(jobs, timeout=seconds, isa=name); available() says why not."""

    target: str
    run: Callable[..., list[Result]]
    available: Callable[[], str | None]
    emulated: bool


def _native(target: str) -> Tier:
    def available() -> str | None:
        return jitgen.targets()[target] or native.available()

    return Tier(target, native.run, available, False)


def _sve(bits: int) -> Tier:
    def run(jobs: Sequence[Job], *, timeout: float = 60.0, isa: str = "") -> list[Result]:
        return qemu.run(jobs, bits, timeout=timeout, isa=isa)

    return Tier(f"sve{bits}", run, qemu.available, True)


def _neon(jobs: Sequence[Job], *, timeout: float = 60.0, isa: str = "") -> list[Result]:
    return qemu.run(jobs, 0, "cortex-a72", timeout=timeout, isa=isa)  # which has no SVE


TIERS = {
    "avx2 native": _native("avx2"),
    "avx512 native": _native("avx512"),
    "avx512 bochs": Tier("avx512", bochs.run, bochs.available, True),
    **{f"sve{bits} qemu": _sve(bits) for bits in (128, 256, 384, 512, 2048)},
    "neon qemu": Tier("neon", _neon, qemu.available, True),
}


def need(tier: Tier) -> None:
    """Skip where a tier cannot run; under CI an absent emulator is a failure."""
    needs.need(tier.available(), installable=tier.emulated)


@dataclass
class Outcome:
    """failures: one text for each case that went wrong. executed: kernels that came back. refused:
    cases whose override of the plan does not fit."""

    failures: list[str] = field(default_factory=list)
    executed: int = 0
    refused: int = 0


def execute(name: str, cases: Sequence[Case]) -> Outcome:
    """Generate, run and compare cases on the tier of that name."""
    tier = TIERS[name]
    outcome = Outcome()
    chosen: list[tuple[Case, Arrays, Job]] = []
    for case in cases:
        try:
            kernel = case.kernel(tier.target)
        except Exception as error:
            if _may_be_refused(case, error):
                outcome.refused += 1
            else:
                outcome.failures.append(f"not generated: {error!r}\n{_again(name, case)}")
            continue
        arrays = build(case, kernel.spec.panel)
        chosen.append((case, arrays, job(case, kernel, arrays)))
    results = tier.run([each for _, _, each in chosen], isa=tier.target)
    for (case, arrays, _), result in zip(chosen, results, strict=True):
        outcome.executed += result.returned
        error = result.error
        if result.ok:
            mask = result.outputs[1] if case.has("relu_mask") else None
            error = compare(case, arrays, result.outputs[0], mask)
        if error:
            outcome.failures.append(f"{error}\n{_again(name, case)}")
    return outcome


def _may_be_refused(case: Case, error: Exception) -> bool:
    """Whether this error is the rightful answer to a plan or a panel width of the case's own."""
    return (
        isinstance(error, ValueError)
        and str(error).startswith(("plan", "the plan", "packed_b"))
        and bool(case.plan or case.packed > 0)
    )


def _again(name: str, case: Case) -> str:
    return (
        f"{case!r}\nagain: PYTHONPATH=.:tests python -c \"from tiers import *; "
        f"inf = float('inf'); print(execute({name!r}, [{case!r}]))\""
    )
