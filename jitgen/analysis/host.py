"""Which CPU of the table this host is, and what a kernel measures on it.

Not here: predictions (`jitgen.analysis.report`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jitgen import cpu as host_cpu
from jitgen import loader, measure
from jitgen.analysis.cpus import CPUS, Cpu
from jitgen.analysis.report import Measured
from jitgen.kernel import Kernel

#: (vendor, family, model) of x86 -> row: Intel SDM volume 4 table 2-1; AMD revision guides 56683
#: (family 19h, models 0 to F: Zen 3) and 57095 (models 10 to 1F: Zen 4), and processor references
_INTEL = {0x55: "skylake-avx512", 0x6A: "icelake-server", 0x6C: "icelake-server",
          0x8F: "sapphirerapids", 0xCF: "sapphirerapids"}  # fmt: skip
_AMD_ZEN3 = (*range(0x10), *range(0x20, 0x60))
_AMD_ZEN4 = (*range(0x10, 0x20), *range(0x60, 0x80), *range(0xA0, 0xB0))
#: (implementer, part) of MIDR_EL1 -> row: technical reference manuals of the cores
_ARM = {(0x41, 0xD40): "neoverse-v1", (0x41, 0xD4F): "neoverse-v2", (0x46, 0x001): "a64fx"}
_MIDR = Path("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1")


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


def find_host() -> Cpu:
    """The row of the CPU that this runs on.

    Raises RuntimeError, with what the CPU says of itself, if it is none of them.
    """
    if loader.architecture() == "aarch64":
        try:
            midr = int(_MIDR.read_text(), 16)
        except (OSError, ValueError):
            midr = 0
        name, what = arm_row(midr), f"MIDR_EL1 {midr:#x}"
    else:
        import cpuinfo

        info: dict[str, Any] = cpuinfo.get_cpu_info()
        vendor = str(info.get("vendor_id_raw") or "unknown vendor")
        family, model = int(info.get("family") or 0), int(info.get("model") or 0)
        name = x86_row(vendor, family, model)
        what = f"{vendor} family {family} model {model}"
    if not name:
        raise RuntimeError(
            f"cpu='host': this CPU ({host_cpu.name()}; {what}) has no row of facts; name one that "
            f"is like it: {', '.join(CPUS)}"
        )
    return CPUS[name]


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
