"""Small programs of verbs of jitgen.isa.sve and jitgen.isa.neon, and their execution under
qemu-user: for tests of the verbs. Where bits are asked for, 0 stands for NEON.

A `Check` is a job and what it must leave in memory; `verify` runs many in one emulator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import needs
import numpy as np
from rig import qemu
from rig.job import Job

from jitgen import isa

FLOATS = {"f32": np.float32, "f64": np.float64}
#: What emits verbs; it takes the machine
Body = Callable[[Any], None]
#: A processor without SVE
PLAIN = "cortex-a72"


def need_qemu() -> None:
    """Skip where there is no emulator; under CI that is a failure."""
    needs.need(qemu.available())


@dataclass
class Check:
    """A job and what its writable buffers must hold afterwards.

    exact: byte for byte; otherwise any NaN is as good as another, and so is any zero.
    """

    job: Job
    wanted: list[np.ndarray]
    exact: bool = True


def open_machine(dtype: str, bits: int) -> Any:
    """A fresh machine."""
    return isa.open_machine("sve" if bits else "neon", dtype, bits)


def kernel(dtype: str, bits: int, body: Body) -> bytes:
    """A function made of `body`, with every general-purpose register saved."""
    machine = open_machine(dtype, bits)
    machine.begin(machine.gprs)
    body(machine)
    machine.end()
    return machine.program.encode()


def verify(bits: int, checks: list[Check]) -> None:
    """Run the checks in one emulator at a vector length."""
    assert checks
    results = qemu.run([check.job for check in checks], bits, "max" if bits else PLAIN)
    for check, result in zip(checks, results, strict=True):
        label = check.job.label
        assert result.ok, f"{label}: {result.error}"
        for got, wanted in zip(result.outputs, check.wanted, strict=True):
            if check.exact:
                assert got.tobytes() == wanted.tobytes(), f"{label}: {got}, not {wanted}"
            else:
                np.testing.assert_array_equal(got, wanted, err_msg=label)


def numbers(dtype: str, count: int) -> np.ndarray:
    """Random numbers of both signs."""
    return np.random.default_rng(1).standard_normal(count).astype(FLOATS[dtype])
