"""Targets: an instruction set at a vector length, with the throughput facts the plan needs.

Rates are typical of the cores that have the target (sources in docs/performance.md); they steer
the plan, never correctness. Any target can be generated on any host. Not here: which of them this
CPU can run (`jitgen.cpu`).

>>> parse_target("sve256").vector_bits
256
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import isa
from isa.machine import Machine
from jitgen.plan import Facts


@dataclass(frozen=True, eq=False)  # a target is itself: hashing it must cost nothing
class Target:
    """One target. Rates are vector operations a cycle, caches bytes, l2_rate bytes a cycle."""

    name: str
    family: str
    vector_bits: int
    architecture: str
    features: tuple[str, ...]
    fma_rate: float
    load_rate: float
    issue_rate: float
    fma_latency: int
    l1: int
    l2: int
    l2_rate: float

    def machine(self, dtype: str, n: int) -> Machine:
        """A machine for kernels of n columns: the narrowest registers that hold them, if the
        family has several widths."""
        bits = self.vector_bits
        if self.family == "avx512":
            wanted = n * (32 if dtype == "f32" else 64)
            bits = next((b for b in (256, 512) if b >= wanted), 512)
        return isa.open_machine(self.family, dtype, bits)

    def facts(self, machine: Machine) -> Facts:
        """What the plan may know of `machine` on this target."""
        tails = (0, *(machine.tail_vectors(lanes) for lanes in range(1, machine.lanes)))
        return Facts(
            lanes=machine.lanes, vectors=machine.vectors, element=machine.element,
            fused_broadcast=machine.fused_broadcast, fused_load=machine.fused_load,
            tail_vectors=tails, constant_temps=machine.constant_registers,
            broadcast_reach=machine.broadcast_reach, vector_reach=machine.vector_reach,
            vector_granule=machine.vector_granule, fma_rate=self.fma_rate,
            load_rate=self.load_rate, issue_rate=self.issue_rate, fma_latency=self.fma_latency,
            l1=self.l1, l2=self.l2, l2_rate=self.l2_rate,
        )  # fmt: skip


#: More columns than any vector has: asks for the full vector length
ANY_WIDTH = 1 << 20
_KIB = 1024
AVX2 = Target(
    "avx2", "avx2", 256, "x86_64", ("avx2", "fma"), 2, 2, 5, 4, 32 * _KIB, 512 * _KIB, 10
)
AVX512 = Target(
    "avx512", "avx512", 512, "x86_64",
    ("avx512f", "avx512vl", "avx512bw", "avx512dq", "avx2", "fma"),
    2, 2, 5, 4, 32 * _KIB, 1024 * _KIB, 24,
)  # fmt: skip


@cache
def sve(bits: int) -> Target:
    """SVE at a vector length of `bits` (128 to 2048 in steps of 128).

    128 bits is Neoverse V2 and N2 (four pipes), 256 Neoverse V1, 512 and above A64FX.
    """
    if bits not in range(128, 2049, 128):
        raise ValueError(f"sve{bits}: SVE has 128 to 2048 bits in steps of 128")
    rate, loads, issue, latency = (
        (4, 3, 8, 4) if bits == 128 else (2, 2, 8, 4) if bits == 256 else (2, 2, 4, 9)
    )
    return Target(
        f"sve{bits}", "sve", bits, "aarch64", ("sve",), rate, loads, issue, latency, 64 * _KIB,
        1024 * _KIB, 16,
    )  # fmt: skip


#: The targets that are listed by name; SVE at other lengths is named "sve<bits>".
TARGETS = {t.name: t for t in (AVX512, AVX2, sve(128), sve(256), sve(512))}


def parse_target(name: str) -> Target:
    """The target of that name. Raises ValueError that lists the names."""
    if not isinstance(name, str):
        raise TypeError(f"target={name!r} is neither a Target nor its name")
    if name in TARGETS:
        return TARGETS[name]
    match = re.fullmatch(r"sve([0-9]{1,5})", name)
    if match:
        return sve(int(match[1]))
    raise ValueError(f"target={name!r} is not one of {', '.join(TARGETS)}, sve<bits>")
