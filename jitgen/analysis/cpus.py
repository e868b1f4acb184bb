"""Published facts of the CPUs that kernels are modelled on, with the source of each.

A row holds what the model in `jitgen.analysis.core` needs and nothing else. Rates are operations a
cycle by vector width; a width that is missing takes the next wider one. Where a vendor gives no
figure, one measured by others is named as such. Not here: the targets' rates, which steer plans
(`jitgen.target`), or detection (`jitgen.analysis.host`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jitgen import doors
from jitgen.inspect.instructions import BROADCAST, Instruction

#: Short names of sources
SOURCES = {
    "AOM": "Intel 64 and IA-32 Architectures Optimization Reference Manual (248966)",
    "FOG": "Agner Fog, Instruction tables and The microarchitecture of Intel, AMD and VIA CPUs",
    "SOG3": "AMD, Software Optimization Guide for the AMD Family 19h Processors (56665)",
    "SOG4": "AMD, Software Optimization Guide for the AMD Zen4 Microarchitecture (57647)",
    "N1G": "Arm, Neoverse N1 Software Optimization Guide",
    "V1G": "Arm, Neoverse V1 Software Optimization Guide",
    "V2G": "Arm, Neoverse V2 Software Optimization Guide",
    "A64FX": "Fujitsu, A64FX Microarchitecture Manual",
    "ACG": "Apple, Apple Silicon CPU Optimization Guide",
    "AMR": "Dougall Johnson, Apple Microarchitecture Research (measured)",
    "HC": "vendor's presentation of the core (Hot Chips, Tech Day), as reported by WikiChip",
    "CC": "measured by Chips and Cheese",
}
_KIB, _MIB = 1 << 10, 1 << 20
Rates = dict[int, float]


@dataclass(frozen=True)
class Cpu:
    """One CPU. Latencies in cycles, caches in bytes, bandwidths in bytes a cycle of one core.

    `dispatch` counts instructions a cycle (x86: with a memory operand still one) from the cache of
    decoded ones (`decoded` of them), `decode` those that come from the instruction cache. `window`
    is the reorder buffer, `waiting` the vector instructions that may wait for operands, `renamed`
    the vector results in flight. `accumulate` is the latency from one multiply-accumulate to the
    next of the same register, `fma` and the others the rates; `divide` gives the cycles in which a
    divider takes one vector, by element type. `sources` names fields -> keys of SOURCES; "" is the
    rest.
    """

    name: str
    title: str
    target: str
    also: tuple[str, ...]
    ghz: float
    dispatch: int
    decode: int
    decoded: int
    window: int
    waiting: int
    renamed: int
    fma: Rates
    add: Rates | None  # None: in the same units as FMAs
    logic: Rates | None
    loads: Rates
    stores: Rates
    integer: int
    fma_latency: int
    accumulate: int
    add_latency: int
    mul_latency: int
    logic_latency: int
    load_latency: int
    divide: dict[str, float]
    divide_latency: dict[str, int]
    mispredict: int
    l1: int
    l1_ways: int
    l1_bytes: float
    l2: int
    l2_bytes: float
    l3: int
    l3_bytes: float
    memory_bytes: float
    sources: dict[str, str] = field(repr=False)

    @property
    def vector_bits(self) -> int:
        """The widest vectors."""
        return max(self.fma)

    def flops_a_cycle(self, element: int, bits: int) -> float:
        """The FMA peak of vectors of so many bits, for elements of so many bytes."""
        return 2 * rate(self.fma, bits) * bits / 8 / element


def rate(rates: Rates, bits: int) -> float:
    """Operations a cycle for vectors of so many bits."""
    return next((n for width, n in sorted(rates.items()) if width >= bits), min(rates.values()))


def load_rate(cpu: Cpu, instruction: Instruction) -> float:
    """Loads a cycle of this kind; a broadcast counts as wide as the register that it fills."""
    assert instruction.load is not None
    wide = instruction.bits if instruction.load_kind == BROADCAST else 0
    return rate(cpu.loads, max(wide, 8 * instruction.load.bytes))


SKYLAKE = Cpu(
    "skylake-avx512", "Intel Skylake-SP with two 512-bit FMA units", "avx512", ("avx2",), 2.5,
    dispatch=4, decode=4, decoded=1536, window=224, waiting=97, renamed=136,
    fma={256: 2, 512: 2}, add=None, logic=None, loads={512: 2}, stores={512: 1}, integer=4,
    fma_latency=4, accumulate=4, add_latency=4, mul_latency=4, logic_latency=1, load_latency=7,
    divide={"f32": 10, "f64": 16}, divide_latency={"f32": 17, "f64": 23}, mispredict=16,
    l1=32 * _KIB, l1_ways=8, l1_bytes=128, l2=_MIB, l2_bytes=48,
    l3=24 * _MIB, l3_bytes=10, memory_bytes=5,
    sources={
        "": "AOM", "renamed": "FOG", "divide": "FOG", "divide_latency": "FOG", "mispredict": "FOG",
        "waiting": "FOG", "l2_bytes": "AOM (64 a cycle at most, 48 sustained)",
        "l3": "HC", "l3_bytes": "CC",
        "memory_bytes": "HC", "ghz": "HC",
    },
)  # fmt: skip
ICELAKE = Cpu(
    "icelake-server", "Intel Ice Lake-SP with two 512-bit FMA units", "avx512", ("avx2",), 2.9,
    dispatch=5, decode=5, decoded=2304, window=352, waiting=160, renamed=190,
    fma={256: 2, 512: 2}, add=None, logic=None, loads={512: 2}, stores={256: 2, 512: 1}, integer=4,
    fma_latency=4, accumulate=4, add_latency=4, mul_latency=4, logic_latency=1, load_latency=7,
    divide={"f32": 10, "f64": 16}, divide_latency={"f32": 17, "f64": 23}, mispredict=17,
    l1=48 * _KIB, l1_ways=12, l1_bytes=128, l2=5 * _MIB // 4, l2_bytes=48,
    l3=36 * _MIB, l3_bytes=10, memory_bytes=5,
    sources={
        "": "AOM", "renamed": "CC", "waiting": "CC", "divide": "FOG", "divide_latency": "FOG",
        "mispredict": "FOG", "l2_bytes": "AOM (64 a cycle at most, 48 sustained)",
        "l3": "HC", "l3_bytes": "CC",
        "memory_bytes": "HC", "ghz": "HC",
    },
)  # fmt: skip
SAPPHIRERAPIDS = Cpu(
    "sapphirerapids", "Intel Sapphire Rapids with two 512-bit FMA units", "avx512", ("avx2",), 3.0,
    dispatch=6, decode=6, decoded=4096, window=512, waiting=160, renamed=298,
    fma={256: 2, 512: 2}, add=None, logic=None, loads={256: 3, 512: 2}, stores={256: 2, 512: 1},
    integer=5,
    fma_latency=4, accumulate=4, add_latency=3, mul_latency=4, logic_latency=1, load_latency=7,
    divide={"f32": 10, "f64": 16}, divide_latency={"f32": 17, "f64": 23}, mispredict=17,
    l1=48 * _KIB, l1_ways=12, l1_bytes=128, l2=2 * _MIB, l2_bytes=48,
    l3=60 * _MIB, l3_bytes=10, memory_bytes=6,
    sources={
        "": "AOM", "renamed": "CC", "waiting": "CC", "divide": "FOG", "divide_latency": "FOG",
        "mispredict": "FOG", "l2_bytes": "AOM (64 a cycle at most, 48 sustained)",
        "l3": "HC", "l3_bytes": "CC",
        "memory_bytes": "HC", "ghz": "HC",
    },
)  # fmt: skip
ZEN3 = Cpu(
    "znver3", "AMD Zen 3", "avx2", (), 3.4,
    dispatch=6, decode=4, decoded=4096, window=256, waiting=128, renamed=128,
    fma={256: 2}, add={256: 2}, logic={256: 2}, loads={256: 2}, stores={128: 2, 256: 1}, integer=4,
    fma_latency=4, accumulate=4, add_latency=3, mul_latency=3, logic_latency=1, load_latency=8,
    divide={"f32": 3.5, "f64": 5}, divide_latency={"f32": 10, "f64": 13}, mispredict=13,
    l1=32 * _KIB, l1_ways=8, l1_bytes=64, l2=_MIB // 2, l2_bytes=32,
    l3=32 * _MIB, l3_bytes=20, memory_bytes=7,
    sources={
        "": "SOG3", "renamed": "SOG3 (160 registers, 32 of them architectural)",
        "divide": "FOG", "divide_latency": "FOG",
        "l3_bytes": "CC", "memory_bytes": "CC", "ghz": "HC",
    },
)  # fmt: skip
ZEN4 = Cpu(
    "znver4", "AMD Zen 4", "avx512", ("avx2",), 3.7,
    dispatch=6, decode=4, decoded=6912, window=320, waiting=128, renamed=160,
    fma={256: 2, 512: 1}, add={256: 2, 512: 1}, logic={256: 2, 512: 1}, loads={256: 2, 512: 1},
    stores={256: 1, 512: 0.5}, integer=4,
    fma_latency=4, accumulate=4, add_latency=3, mul_latency=3, logic_latency=1, load_latency=8,
    divide={"f32": 6, "f64": 10}, divide_latency={"f32": 11, "f64": 13}, mispredict=13,
    l1=32 * _KIB, l1_ways=8, l1_bytes=64, l2=_MIB, l2_bytes=32,
    l3=32 * _MIB, l3_bytes=20, memory_bytes=7,
    sources={
        "": "SOG4", "renamed": "SOG4 (192 registers, 32 of them architectural)",
        "divide": "FOG", "divide_latency": "FOG",
        "l3_bytes": "CC", "memory_bytes": "CC", "ghz": "HC",
    },
)  # fmt: skip
NEOVERSE_N1 = Cpu(
    "neoverse-n1", "Arm Neoverse N1", "neon", (), 2.5,
    dispatch=4, decode=4, decoded=0, window=128, waiting=32, renamed=96,
    fma={128: 2}, add=None, logic=None, loads={128: 2}, stores={128: 1}, integer=3,
    fma_latency=4, accumulate=2, add_latency=2, mul_latency=3, logic_latency=2, load_latency=5,
    divide={"f32": 7, "f64": 14}, divide_latency={"f32": 10, "f64": 15}, mispredict=11,
    l1=64 * _KIB, l1_ways=4, l1_bytes=32, l2=_MIB, l2_bytes=32,
    l3=32 * _MIB, l3_bytes=10, memory_bytes=8,
    sources={
        "": "N1G", "window": "HC", "waiting": "HC", "renamed": "CC", "mispredict": "HC",
        "l2_bytes": "HC", "l3": "HC", "ghz": "HC", "l3_bytes": "CC", "memory_bytes": "CC",
    },
)  # fmt: skip
NEOVERSE_V1 = Cpu(
    "neoverse-v1", "Arm Neoverse V1", "sve256", ("neon",), 2.6,
    dispatch=8, decode=5, decoded=3072, window=256, waiting=88, renamed=128,
    fma={128: 4, 256: 2}, add=None, logic=None, loads={256: 2}, stores={256: 1}, integer=4,
    fma_latency=4, accumulate=2, add_latency=2, mul_latency=3, logic_latency=2, load_latency=6,
    divide={"f32": 7, "f64": 7}, divide_latency={"f32": 10, "f64": 15}, mispredict=11,
    l1=64 * _KIB, l1_ways=4, l1_bytes=64, l2=_MIB, l2_bytes=32,
    l3=32 * _MIB, l3_bytes=10, memory_bytes=8,
    sources={
        "": "V1G", "decoded": "HC", "window": "HC", "waiting": "CC", "renamed": "CC",
        "mispredict": "HC", "l2_bytes": "HC", "l3": "HC", "ghz": "HC", "l3_bytes": "CC",
        "memory_bytes": "CC",
    },
)  # fmt: skip
NEOVERSE_V2 = Cpu(
    "neoverse-v2", "Arm Neoverse V2", "sve128", ("neon",), 3.1,
    dispatch=8, decode=6, decoded=1536, window=320, waiting=112, renamed=188,
    fma={128: 4}, add=None, logic=None, loads={128: 3}, stores={128: 2}, integer=6,
    fma_latency=4, accumulate=2, add_latency=2, mul_latency=3, logic_latency=2, load_latency=6,
    divide={"f32": 4.5, "f64": 7}, divide_latency={"f32": 10, "f64": 15}, mispredict=10,
    l1=64 * _KIB, l1_ways=4, l1_bytes=48, l2=2 * _MIB, l2_bytes=32,
    l3=114 * _MIB, l3_bytes=12, memory_bytes=10,
    sources={
        "": "V2G", "decoded": "HC", "window": "HC", "waiting": "CC", "renamed": "CC",
        "mispredict": "HC", "l2_bytes": "HC", "l3": "HC", "ghz": "HC", "l3_bytes": "CC",
        "memory_bytes": "CC",
    },
)  # fmt: skip
A64FX = Cpu(
    "a64fx", "Fujitsu A64FX", "sve512", ("neon",), 2.2,
    dispatch=4, decode=4, decoded=0, window=128, waiting=40, renamed=96,
    fma={512: 2}, add=None, logic=None, loads={512: 2}, stores={512: 1}, integer=2,
    fma_latency=9, accumulate=9, add_latency=9, mul_latency=9, logic_latency=4, load_latency=11,
    divide={"f32": 98, "f64": 154}, divide_latency={"f32": 98, "f64": 154}, mispredict=12,
    l1=64 * _KIB, l1_ways=4, l1_bytes=128, l2=8 * _MIB, l2_bytes=32,
    l3=0, l3_bytes=0, memory_bytes=9.7,
    sources={
        "": "A64FX", "l2_bytes": "A64FX (64 a cycle at most; 32 with all cores of a group)",
        "memory_bytes": "A64FX (256 GB/s for 12 cores)", "mispredict": "HC",
    },
)  # fmt: skip
FIRESTORM = Cpu(
    "apple-firestorm", "Apple M1, its fast core (Firestorm)", "neon", (), 3.2,
    dispatch=8, decode=8, decoded=0, window=630, waiting=144, renamed=352,
    fma={128: 4}, add=None, logic=None, loads={128: 3}, stores={128: 2}, integer=6,
    fma_latency=4, accumulate=4, add_latency=3, mul_latency=4, logic_latency=2, load_latency=5,
    divide={"f32": 1, "f64": 1}, divide_latency={"f32": 8, "f64": 10}, mispredict=14,
    l1=128 * _KIB, l1_ways=8, l1_bytes=48, l2=12 * _MIB, l2_bytes=32,
    l3=8 * _MIB, l3_bytes=20, memory_bytes=18,
    sources={
        "": "AMR", "dispatch": "ACG", "decode": "ACG", "l1": "ACG", "l1_ways": "ACG", "l2": "ACG",
        "l2_bytes": "CC", "l3": "HC", "l3_bytes": "CC", "memory_bytes": "CC", "ghz": "HC",
    },
)  # fmt: skip
CPUS = {
    cpu.name: cpu
    for cpu in (
        SKYLAKE, ICELAKE, SAPPHIRERAPIDS, ZEN3, ZEN4, NEOVERSE_N1, NEOVERSE_V1, NEOVERSE_V2, A64FX,
        FIRESTORM,
    )
}  # fmt: skip


def find_cpu(name: str) -> Cpu:
    """The row of that name. Raises TypeError or ValueError that lists the names."""
    if not isinstance(name, str) or name not in CPUS:
        error = ValueError if isinstance(name, str) else TypeError
        raise error(f"cpu={doors.shown(name)} is not one of {', '.join(CPUS)}, host")
    return CPUS[name]


def check_target(cpu: Cpu, target: str) -> None:
    """Raise ValueError unless the CPU runs that target."""
    if target not in (cpu.target, *cpu.also):
        runs = " and ".join((cpu.target, *cpu.also))
        raise ValueError(f"target={target!r}: {cpu.title} ({cpu.name}) runs {runs}")
