"""jitgen in an AArch64 Python under qemu-user: the Python face, loading and running, SVE and NEON.

The checks themselves stand in `aarch64_guest`. Not here: kernels by the thousand (`test_kernels`),
which need no Python in the emulator.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import needs
import pytest
from random_cases import SEED, random_case
from rig import a64_python
from rig.count import count

TESTS = Path(__file__).resolve().parent
CASES = 60
#: processor -> bits of SVE, 0 without; a64fx has no SVE2
PROCESSORS = {
    "max,sve-default-vector-length=16": 128,
    "max,sve-default-vector-length=32": 256,
    "max,sve-default-vector-length=64": 512,
    "a64fx": 512,
    "max,sve=off,sme=off": 0,
    "neoverse-n1": 0,
}


@pytest.fixture(scope="module", autouse=True)
def _python() -> None:
    needs.need(a64_python.available())


def _outcome(cpu: str, bits: int, cases: list[str]) -> dict[str, Any]:
    """What the guest reports."""
    script = str(TESTS / "aarch64_guest.py")
    # NumPy under emulation warns of overflows and divisions that never happened
    done = a64_python.run(
        ["-W", "ignore", script, str(bits), json.dumps(cases)],
        cpu, paths=[TESTS.parent, TESTS], timeout=300.0, JITGEN_ISA="",
    )  # fmt: skip
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


@pytest.mark.parametrize("cpu", PROCESSORS)
def test_every_processor(cpu: str) -> None:
    """Targets, calls, binding, both element types, threads, fork, refused vector lengths."""
    bits = PROCESSORS[cpu]
    rng = random.Random(f"{SEED} {cpu}")
    outcome = _outcome(cpu, bits, [repr(random_case(rng, 24)) for _ in range(CASES)])
    count(f"sve{bits}" if bits else "neon", "qemu python", outcome["kernels"])
    assert not outcome["failures"], f"JITGEN_SEED={SEED}\n" + "\n".join(outcome["failures"])
    assert outcome["kernels"] > CASES
