"""Which CPU of the table this host is, or is most like, and what a kernel measures on it.

Not here: predictions (`jitgen.analysis.report`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jitgen.analysis import measure
from jitgen.analysis.cpus import CPUS, Cpu
from jitgen.gemm.kernel import Kernel
from jitgen.run import cpu as host_cpu, loader
from jitgen.target import parse_target

#: (vendor, family, model) of x86 -> row: Intel SDM volume 4 table 2-1; AMD revision guides 56683
#: (family 19h, models 0 to F: Zen 3) and 57095 (models 10 to 1F: Zen 4), and processor references
_INTEL = {0x55: "skylake-avx512", 0x6A: "icelake-server", 0x6C: "icelake-server",
          0x8F: "sapphirerapids", 0xCF: "sapphirerapids"}  # fmt: skip
_AMD_ZEN3 = (*range(0x10), *range(0x20, 0x60))
_AMD_ZEN4 = (*range(0x10, 0x20), *range(0x60, 0x80), *range(0xA0, 0xB0))
#: (implementer, part) of MIDR_EL1 -> row: technical reference manuals of the cores
_ARM = {
    (0x41, 0xD0C): "neoverse-n1", (0x41, 0xD40): "neoverse-v1", (0x41, 0xD4F): "neoverse-v2",
    (0x46, 0x001): "a64fx",
    # M1, Pro, Max: whichever kind of core answers, kernels are for the fast one
    **dict.fromkeys(((0x61, part) for part in (*range(0x22, 0x26), 0x28, 0x29)), "apple-firestorm"),
}  # fmt: skip
_MIDR = Path("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1")
#: Row -> maker (vendor, or implementer), and which of the features that tell generations apart it
#: has, by the names of Linux (of its server parts, as rows are)
_ICELAKE = "avx512f avx512_vbmi2 gfni vaes sha_ni"
_ROWS = {
    "skylake-avx512": ("GenuineIntel", "avx512f"),
    "icelake-server": ("GenuineIntel", _ICELAKE),
    "sapphirerapids": ("GenuineIntel", f"{_ICELAKE} avx512_bf16 avx512_fp16 amx_tile avx_vnni "
                       "serialize waitpkg movdiri"),
    "znver3": ("AuthenticAMD", "vaes sha_ni"),
    "znver4": ("AuthenticAMD", f"{_ICELAKE} avx512_bf16"),
    "neoverse-n1": ("0x41", ""), "neoverse-v1": ("0x41", "sve"),
    "neoverse-v2": ("0x41", "sve sve2"), "a64fx": ("0x46", "sve"), "apple-firestorm": ("0x61", ""),
}  # fmt: skip
_TOLD_APART = {feature for _, features in _ROWS.values() for feature in features.split()}


class Host(NamedTuple):
    """The row for this host; `note` is "" or says that it is only the nearest one."""

    cpu: Cpu
    note: str


@dataclass(frozen=True)
class Measured:
    """What the host measured: rates in floating-point operations a second; `whole_call` says that
    the time includes the call from Python, which could not be told apart."""

    seconds: float
    flops_a_second: float
    peak_flops_a_second: float
    whole_call: bool

    @property
    def percent(self) -> float:
        """Of the FMA peak measured in the same run."""
        return 100 * self.flops_a_second / self.peak_flops_a_second


def x86_row(vendor: str, family: int, model: int) -> str:
    """Name of the row for an x86 CPU, or ""."""
    if vendor == "GenuineIntel" and family == 6:
        return _INTEL.get(model, "")
    if vendor == "AuthenticAMD" and family == 0x19:
        return "znver3" if model in _AMD_ZEN3 else "znver4" if model in _AMD_ZEN4 else ""
    return ""


def arm_row(midr: int) -> str:
    """Name of the row for the main identification register of an Arm CPU, or ""."""
    return _ARM.get((midr >> 24, midr >> 4 & 0xFFF), "")


def find_host() -> Host:
    """The row of the CPU that this runs on, or the nearest one.

    Raises RuntimeError if it is neither x86-64 nor AArch64.
    """
    architecture = loader.architecture()
    if architecture == "aarch64":
        try:
            midr = int(_MIDR.read_text(), 16)
        except (OSError, ValueError):
            midr = 0
        row, maker, what = arm_row(midr), f"{midr >> 24:#x}", f"MIDR_EL1 {midr:#x}"
        features = set(host_cpu.features())
    elif architecture == "x86_64":
        import cpuinfo

        info: dict[str, Any] = cpuinfo.get_cpu_info()
        maker = str(info.get("vendor_id_raw") or "unknown vendor")
        family, model = int(info.get("family") or 0), int(info.get("model") or 0)
        row, what = x86_row(maker, family, model), f"{maker} family {family} model {model}"
        features = set(info.get("flags") or ())
    else:
        raise RuntimeError(
            f"cpu='host': this CPU ({host_cpu.name()}) is neither x86-64 nor AArch64; name one of "
            f"{', '.join(CPUS)}"
        )
    if row:
        return Host(CPUS[row], "")
    cpu = _nearest(architecture, maker, features & _TOLD_APART)
    return Host(
        cpu,
        f"host CPU {host_cpu.name()} ({what}) is not in the table: figures are those of "
        f"{cpu.name}, the nearest by features",
    )


def _nearest(architecture: str, maker: str, features: set[str]) -> Cpu:
    """The core that is most like a CPU: one that runs what the CPU runs, with vectors of its
    length, of the same maker (whose cores are more like each other than like those of others),
    with the same best target, of the same generation; the first in the table of equal ones."""

    def apart(cpu: Cpu) -> tuple[float, ...]:
        whose, its_features = _ROWS[cpu.name]
        target = target_here(cpu)
        length = cpu.vector_bits / (host_cpu.vector_length() or 128)
        return (
            bool(host_cpu.why_not(parse_target(target))),
            abs(math.log2(length)) if architecture == "aarch64" else 0,
            whose != maker, target != cpu.target, len(features ^ set(its_features.split())),
        )  # fmt: skip

    alike = [c for c in CPUS.values() if parse_target(c.target).architecture == architecture]
    return min(alike, key=apart)


def target_here(cpu: Cpu) -> str:
    """The best target of a row that this host can run; the best of all if it can run none."""
    names = (cpu.target, *cpu.also)
    return next((name for name in names if not host_cpu.why_not(parse_target(name))), names[0])


def run(kernel: Kernel, batch: int, seconds: float) -> Measured:
    """Measure `kernel` for about `seconds` by turns with the FMA peak and an empty call.

    Raises RuntimeError if this host cannot run it.
    """
    problem = measure.Problem(kernel, batch)
    peak, peak_flops = measure.peak_kernel(kernel)
    calls = {"kernel": kernel, "peak": peak, "empty": measure.empty_kernel(kernel)}
    bound = {name: problem.bind(some) for name, some in calls.items()}
    best = {name: min(times) for name, times in measure.interleave(dict(bound), seconds).items()}
    taken = best["kernel"] - best["empty"]
    # the core runs a short kernel beside the instructions of its call
    whole = best["kernel"] < 2 * best["empty"]
    taken = best["kernel"] if whole else taken
    rate = kernel.flops(batch) / taken
    return Measured(taken, rate, peak_flops / best["peak"], whole)
