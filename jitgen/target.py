"""Targets: an instruction set at a vector length, with the throughput facts the plan needs.

Rates are typical of the cores that have the target (sources in docs/performance.md); they steer
the plan, never correctness. Any target can be generated on any host. Not here: which of them this
CPU can run (`jitgen.run.cpu`).

>>> parse_target("sve256").vector_bits
256
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from jitgen import doors, isa
from jitgen.isa.machine import Machine
from jitgen.types import DTYPES, DTypeLike

#: Family -> bits that the vectors of its targets may have
_WIDTHS = {"avx2": (256,), "avx512": (512,), "sve": range(128, 2049, 128), "neon": (128,)}


@dataclass(frozen=True)
class Rates:
    """What a core does in a cycle, its latency in cycles, its first cache in bytes."""

    fma: float
    loads: float
    issue: float
    latency: int  # of a multiply-accumulate
    l1: int
    l2_bytes: float  # that L2 delivers a cycle beside everything else


@dataclass(frozen=True)
class Facts:
    """What the plan needs to know of a machine and the core it runs on."""

    lanes: int
    vectors: int
    fused_broadcast: bool
    fused_load: bool
    tail_vectors: tuple[int, ...]  # extra registers for a tail of so many lanes
    constant_temps: int  # registers that constants of an epilogue need
    broadcast_reach: int  # bytes
    vector_reach: int  # bytes
    vector_granule: int  # displacements of vector loads are multiples of this
    rates: Rates


@dataclass(frozen=True, eq=False)  # a target is itself: hashing it must cost nothing
class Target:
    """One target: its code needs `features`; `rates` steer the plan."""

    name: str
    family: str
    vector_bits: int
    architecture: str
    features: tuple[str, ...]
    rates: Rates

    def __post_init__(self) -> None:
        name = doors.text("name", self.name)
        known = isa.FAMILIES[doors.one_of("family", self.family, isa.FAMILIES)][1]
        if doors.text("architecture", self.architecture) != known:
            raise ValueError(f"architecture={doors.shown(self.architecture)} is not {known}, that "
                             f"of family={self.family!r}")  # fmt: skip
        wanted = _WIDTHS[self.family]
        if doors.integer("vector_bits", self.vector_bits) not in wanted:
            raise ValueError(f"vector_bits={doors.shown(self.vector_bits)} is none that "
                             f"{self.family} has")  # fmt: skip
        given = enumerate(doors.items("features", self.features))
        features = tuple(doors.text(f"features[{i}]", feature) for i, feature in given)
        doors.settle(self, name=name, features=features)
        doors.instance("rates", self.rates, Rates)

    @property
    def scalable(self) -> bool:
        """Whether the vector length belongs to the thread: code for another length refuses."""
        return self.family == "sve"

    def machine(self, dtype: DTypeLike, n: int) -> Machine:
        """A machine for kernels of n columns of elements of `dtype` in memory: the narrowest
        registers that hold them, if the family has several widths. TypeError, ValueError."""
        n, dtype = doors.size("n", n), doors.dtype("dtype", dtype)
        bits, arithmetic = self.vector_bits, DTYPES[dtype].arithmetic
        if self.family == "avx512":
            wanted = n * 8 * DTYPES[arithmetic].size
            bits = next((b for b in (256, 512) if b >= wanted), 512)
        return isa.open_machine(self.family, arithmetic, bits, dtype)

    def scalar_machine(self) -> Machine:
        """A machine for code that touches no vector: its type is any."""
        return self.machine(next(iter(DTYPES)), ANY_WIDTH)

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:
        # a target is compared by identity: what has a name comes back as what has that name
        try:
            known = parse_target(self.name) is self
        except ValueError:
            known = False
        return (parse_target, (self.name,)) if known else super().__reduce_ex__(protocol)

    def facts(self, machine: Machine) -> Facts:
        """What the plan may know of `machine` on this target."""
        tails = (0, *(machine.tail_vectors(lanes) for lanes in range(1, machine.lanes)))
        return Facts(
            lanes=machine.lanes, vectors=machine.vectors, fused_broadcast=machine.fused_broadcast,
            fused_load=machine.fused_load, tail_vectors=tails,
            constant_temps=machine.constant_registers, broadcast_reach=machine.broadcast_reach,
            vector_reach=machine.vector_reach, vector_granule=machine.vector_granule,
            rates=self.rates,
        )  # fmt: skip


#: More columns than any vector has: asks for the full vector length
ANY_WIDTH = 1 << 20
_KIB = 1024
AVX2 = Target(
    "avx2", "avx2", 256, "x86_64", ("avx2", "fma"),
    Rates(fma=2, loads=2, issue=5, latency=4, l1=32 * _KIB, l2_bytes=10),
)  # fmt: skip
AVX512 = Target(
    "avx512", "avx512", 512, "x86_64",
    ("avx512f", "avx512vl", "avx512bw", "avx512dq", "avx2", "fma"),
    Rates(fma=2, loads=2, issue=5, latency=4, l1=32 * _KIB, l2_bytes=24),
)  # fmt: skip


@cache
def sve(bits: int) -> Target:
    """SVE at a vector length of `bits` (128 to 2048 in steps of 128).

    128 bits is Neoverse V2 and N2 (four pipes), 256 Neoverse V1, 512 and above A64FX.
    """
    if bits not in range(128, 2049, 128):
        raise ValueError(f"target='sve{bits}': SVE has 128 to 2048 bits in steps of 128")
    cache = {"l1": 64 * _KIB, "l2_bytes": 24}
    if bits == 128:
        rates = Rates(fma=4, loads=3, issue=8, latency=4, **cache)
    elif bits == 256:
        rates = Rates(fma=2, loads=2, issue=8, latency=4, **cache)
    else:
        rates = Rates(fma=2, loads=2, issue=4, latency=9, **cache)
    return Target(f"sve{bits}", "sve", bits, "aarch64", ("sve",), rates)


#: Every AArch64 CPU runs it, so there is no feature to ask for. The rates are those of Neoverse N1.
NEON = Target(
    "neon", "neon", 128, "aarch64", (),
    Rates(fma=2, loads=2, issue=4, latency=4, l1=64 * _KIB, l2_bytes=16),
)  # fmt: skip
#: The targets that are listed by name, the best ones of an architecture first; SVE at other lengths
#: is named "sve<bits>".
TARGETS = {t.name: t for t in (AVX512, AVX2, sve(128), sve(256), sve(512), NEON)}


def parse_target(name: str) -> Target:
    """The target of that name. Raises ValueError that lists the names."""
    if not isinstance(name, str):
        raise TypeError(f"target={doors.shown(name)} is neither a Target nor its name")
    if name in TARGETS:
        return TARGETS[name]
    match = re.fullmatch(r"sve([0-9]{1,5})", name)
    if match:
        return sve(int(match[1]))
    raise ValueError(f"target={doors.shown(name)} is not one of {', '.join(TARGETS)}, sve<bits>")
