"""Model the inner loops of kernels with llvm-mca: cycles a pass against the FMA bound.

    python -m tools.mca                      # 64x64x64 on the four reference CPUs
    python -m tools.mca 48 48 48 --json

The figures are predictions with a perfect first-level cache, not measurements. Known faults of
the models: LLVM gives Ice Lake and Sapphire Rapids one 512-bit FMA a cycle, and Zen 4 three
operations for a 512-bit broadcast; so those CPUs are not used here. Not here: whole kernels.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass

import jitgen
from jitgen.kernel import Kernel

#: llvm-mca CPU -> (jitgen target, triple, fused multiply-adds a cycle of one vector)
CPUS = {
    "skylake-avx512": ("avx512", "x86_64", 2),
    "neoverse-v1": ("sve256", "aarch64", 2),
    "neoverse-v2": ("sve128", "aarch64", 4),
    "a64fx": ("sve512", "aarch64", 2),
}
ITERATIONS = 1000
TOOLS = ("llvm-mca-22", "llvm-mca-21", "llvm-mca-20", "llvm-mca-19", "llvm-mca")


@dataclass(frozen=True)
class Modelled:
    """One inner loop under one CPU model; cycles are of one pass of the loop."""

    cpu: str
    target: str
    tile: str
    macs: int
    cycles: float
    bound: float
    percent: float


def inner_loops(kernel: Kernel) -> dict[str, str]:
    """The reduction loop of each kind of tile: tile -> assembly text."""
    loops: dict[str, str] = {}
    tile, lines, inside = "", [], False
    for line in kernel.program.lines():
        if line.kind == "section":
            match = re.match(r"tile (\d+ x \d+): reduce", line.text)
            tile = match[1] if match else tile
            inside = line.text.startswith("reduction loop")
            lines = []
        elif inside and line.kind == "instruction" and line.text != "nop":
            is_branch = line.record is not None and line.record[0].label_at >= 0
            lines.append(re.sub(r"\bL\d+$", "again", line.text))
            if is_branch:
                loops.setdefault(tile, "\n".join(["again:", *lines]))
                inside = False
    return loops


def model(kernel: Kernel, cpu: str, tool: str) -> list[Modelled]:
    """llvm-mca's cycles for every inner loop of `kernel`."""
    target, triple, rate = CPUS[cpu]
    found = []
    for tile, text in inner_loops(kernel).items():
        syntax = ".intel_syntax noprefix\n" if triple == "x86_64" else ""
        command = [tool, f"-mtriple={triple}", f"-mcpu={cpu}", f"-iterations={ITERATIONS}"]
        if triple == "aarch64":
            command.append("-mattr=+sve")
        done = subprocess.run(
            command, input=syntax + text + "\n", capture_output=True, text=True, check=False
        )
        match = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
        if not match:
            raise RuntimeError(f"{tool} for {cpu}: {done.stderr.strip()[:300]}")
        macs = len(re.findall(r"^(?:vfmadd231|fmla)", text, re.MULTILINE))
        cycles = int(match[1]) / ITERATIONS
        bound = macs / rate
        found.append(Modelled(cpu, target, tile, macs, cycles, bound, 100 * bound / cycles))
    return found


def main(argv: list[str] | None = None) -> int:
    """The command line; 0: modelled, 3: no llvm-mca of version 19 or newer."""
    parser = argparse.ArgumentParser(prog="python -m tools.mca", description=__doc__.split("\n")[0])
    parser.add_argument("shape", nargs="*", type=int, default=[64, 64, 64], metavar="M N K")
    parser.add_argument("--cpu", action="append", choices=CPUS, help="one CPU; default all")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    options = parser.parse_args(argv)
    if len(options.shape) != 3:
        parser.error("a shape has three sizes: M N K")
    tool = next((t for t in TOOLS if shutil.which(t)), None)
    if tool is None:
        print("tools.mca: llvm-mca not found (Debian: llvm-19 or newer)", file=sys.stderr)
        return 3
    rows = []
    for cpu in options.cpu or CPUS:
        kernel = jitgen.brgemm(*options.shape, target=CPUS[cpu][0])
        rows += model(kernel, cpu, tool)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return 0
    heads = f"{'cpu (modelled)':16} {'target':8} {'tile':>8} {'FMAs':>5}"
    print(f"{heads} {'cycles':>7} {'bound':>7}   %")
    for row in rows:
        print(
            f"{row.cpu:16} {row.target:8} {row.tile:>8} {row.macs:5} {row.cycles:7.2f} "
            f"{row.bound:7.2f} {row.percent:5.1f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
