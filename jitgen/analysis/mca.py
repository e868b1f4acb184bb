"""Other models of the same loop: llvm-mca and OSACA, where they are installed.

Both predict with a perfect first-level cache. Where a model is known to be wrong about an
instruction of the loop, the answer says so. Not here: our own model (`jitgen.analysis.core`).
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from jitgen.analysis.loops import Loop
from jitgen.inspect.instructions import BROADCAST

LLVM_MCA = ("llvm-mca-22", "llvm-mca-21", "llvm-mca-20", "llvm-mca-19", "llvm-mca")
#: Older models lack Neoverse V1, V2 and Zen 4
OLDEST = 19
#: Models of Neoverse V1 and V2 have about the CPUs' dispatch width from this version on
NARROWED = 22
ITERATIONS = 300
SECONDS = 60
#: CPU -> OSACA's name for it
OSACA = {
    "skylake-avx512": "SKX", "icelake-server": "ICX", "sapphirerapids": "SPR", "znver3": "ZEN3",
    "znver4": "ZEN4", "neoverse-v2": "V2", "a64fx": "A64FX",
}  # fmt: skip


@dataclass(frozen=True)
class Opinion:
    """What another tool says of a pass: cycles, or None and why; and a fault to keep in mind."""

    tool: str
    cycles: float | None
    why: str = ""
    fault: str = ""


@functools.cache
def find_llvm_mca() -> tuple[str, int] | None:
    """The newest llvm-mca that knows the CPUs, and its version; or None."""
    for name in LLVM_MCA:
        path = shutil.which(name)
        if path is None:
            continue
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        version = re.search(r"version (\d+)", done.stdout)
        if version and int(version[1]) >= OLDEST:
            return path, int(version[1])
    return None


def opinions(loop: Loop, cpu: str, architecture: str) -> list[Opinion]:
    """What the tools that are installed say of a pass of the loop."""
    found = []
    mca = find_llvm_mca()
    if mca is not None:
        found.append(_llvm_mca(*mca, loop, cpu, architecture))
    osaca = shutil.which("osaca")
    if osaca is not None:
        found.append(_osaca(osaca, loop, cpu, architecture))
    return found


def _llvm_mca(path: str, version: int, loop: Loop, cpu: str, architecture: str) -> Opinion:
    tool = f"llvm-mca {version}"
    command = [path, f"-mtriple={architecture}", f"-mcpu={cpu}", f"-iterations={ITERATIONS}"]
    text = loop.text + "\n"
    if architecture == "aarch64":
        command.append("-mattr=+sve")
    else:
        text = ".intel_syntax noprefix\n" + text
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, check=False, timeout=SECONDS
    )
    match = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    if match is None:
        return Opinion(tool, None, _last_line(done.stderr))
    return Opinion(tool, int(match[1]) / ITERATIONS, fault=_llvm_fault(loop, cpu, version))


def _llvm_fault(loop: Loop, cpu: str, version: int) -> str:
    wide = any(i.bits == 512 for i in loop.instructions)
    if wide and cpu in ("icelake-server", "sapphirerapids"):
        return "its model has one 512-bit FMA a cycle, the CPU has two"
    if cpu == "znver4" and any(
        i.bits == 512 and i.kind == BROADCAST for i in loop.instructions
    ):  # fmt: skip
        return "its model makes three operations of a 512-bit broadcast, the CPU one"
    if cpu in ("neoverse-v1", "neoverse-v2") and version < NARROWED:
        return "its model dispatches twice as many instructions a cycle as the CPU"
    return ""


def _osaca(path: str, loop: Loop, cpu: str, architecture: str) -> Opinion:
    if cpu not in OSACA:
        return Opinion("osaca", None, f"it has no model of {cpu}")
    comment = "#" if architecture == "x86_64" else "//"
    begin, end = f"{comment} OSACA-BEGIN\n", f"\n{comment} OSACA-END\n"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "loop.s"
        file.write_text(begin + loop.text + end)
        command = [path, "--arch", OSACA[cpu], str(file)]
        if architecture == "x86_64":
            command[1:1] = ["--syntax", "INTEL"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return Opinion("osaca", None, f"no answer in {SECONDS} s")
    answer = read_osaca(done.stdout, done.stderr, done.returncode)
    if cpu == "znver3" and any(i.kind == BROADCAST for i in loop.instructions):
        return replace(answer, fault="its model gives a broadcast a slot of an FMA pipe")
    return answer


def read_osaca(output: str, errors: str, code: int) -> Opinion:
    """OSACA's answer: the larger of its throughput and its loop-carried dependency."""
    if code:
        return Opinion("osaca", None, f"it failed: {_last_line(errors)}")
    if "WARNING" in output and "not" in output.lower() and "performance data" in output.lower():
        return Opinion("osaca", None, "its database lacks instructions of this loop")
    # the line of sums: port loads, then critical path and loop-carried dependency
    for line in reversed(output.splitlines()):
        numbers = re.findall(r"\d+\.\d+|\d+", line)
        if len(numbers) > 4 and not re.search(r"[a-zA-Z]", line):
            values = [float(x) for x in numbers]
            return Opinion("osaca", max(*values[:-2], values[-1]))
    return Opinion("osaca", None, "its answer has no line of sums")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return next((x for x in lines if "error" in x), lines[-1] if lines else "no answer")[:160]
