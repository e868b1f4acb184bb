"""What a kernel asks of a CPU and how fast it can be there: counts, bounds, predicted cycles.

`analyze` walks the kernel through the core model and sets the bounds of the memory levels beside;
the largest is the prediction. Everything here is modelled; `jitgen.analysis.host` measures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from jitgen import doors
from jitgen.analysis import mca
from jitgen.analysis.core import COUNTS, CROSSED, LOADED, STORED
from jitgen.analysis.cpus import SOURCES, Cpu, check_target, find_cpu
from jitgen.analysis.execution import PHASES
from jitgen.analysis.host import Measured, find_host
from jitgen.analysis.loops import Loop, bounds, core_cycles, find_loops
from jitgen.analysis.mca import Opinion
from jitgen.analysis.memory import Traffic, traffic
from jitgen.analysis.routines import walk
from jitgen.gemm.kernel import Kernel
from jitgen.inspect.instructions import KINDS
from jitgen.inspect.listing import describe


@dataclass(frozen=True)
class LoopReport:
    """One inner loop: its bounds in cycles of a pass, the core model's cycles, other models'."""

    loop: Loop
    bounds: dict[str, float]
    cycles: float
    opinions: tuple[Opinion, ...]

    @property
    def binding(self) -> str:
        """The largest bound."""
        return max(self.bounds, key=lambda name: self.bounds[name])


@dataclass(frozen=True)
class Report:
    """The analysis of a kernel on a CPU for a batch; cycles and bytes are of one call.

    `bounds` are whole-kernel bounds in cycles: the core model's cycles and each memory level's;
    `phases` says how the core's cycles divide; `executed` counts instructions by kind, exactly;
    `crossings` counts accesses that cross a cache line in the passes that were walked, scaled.
    """

    kernel: Kernel
    cpu: Cpu
    batch: int
    loops: tuple[LoopReport, ...]
    bounds: dict[str, float]
    phases: dict[str, float]
    executed: dict[str, int]
    bytes_loaded: int
    bytes_stored: int
    crossings: int
    lanes_used: float
    traffic: Traffic
    static: int
    measured: Measured | None = None
    #: "", or whose figures these are where the table does not have the host's CPU
    note: str = ""

    @property
    def flops(self) -> int:
        """Floating-point operations of a call, without empty lanes and the epilogue."""
        return self.kernel.flops(self.batch)

    @property
    def cycles(self) -> float:
        """Predicted cycles of a call."""
        return max(self.bounds.values())

    @property
    def binding(self) -> str:
        """The bound that decides: a level of memory, or the core's tightest resource."""
        name = max(self.bounds, key=lambda n: self.bounds[n])
        if name != "core":
            return name
        most = max(self.loops, key=lambda r: r.loop.tiles * r.loop.rows * r.loop.columns)
        if self.cycles < 1.1 * self._fma_cycles or most.bounds[most.binding] > 0.9 * most.cycles:
            return most.binding
        return "waiting within the core"

    @property
    def _fma_cycles(self) -> float:
        return self.flops / self.peak

    @property
    def peak(self) -> float:
        """The CPU's FMA peak with the target's vectors, in flops a cycle."""
        return self.cpu.flops_a_cycle(self.kernel.spec.acc_bytes, self.kernel.target.vector_bits)

    @property
    def percent(self) -> float:
        """Predicted percent of that peak, for the whole kernel."""
        return 100 * self._fma_cycles / self.cycles if self.cycles else 0.0

    # ---- text ---------------------------------------------------------------------------------

    def lines(self) -> list[str]:
        """The report as text."""
        return list(self._lines())

    def _lines(self) -> Iterator[str]:
        spec, cpu = self.kernel.spec, self.cpu
        yield (
            f"{spec.m} x {spec.n} x {spec.k}, batch {self.batch}, {spec.dtype}, "
            f"{self.kernel.target.name} on {cpu.title}: {describe(spec)}"
        )
        if self.note:
            yield self.note
        yield ""
        yield (
            f"predicted   {self.percent:.1f} % of the FMA peak of {self.peak:g} flops a cycle: "
            f"{self.cycles:.0f} cycles a call, bound by {self.binding}"
        )
        if self.measured:
            m = self.measured
            yield (
                f"measured    {m.percent:.1f} % of the FMA peak of "
                f"{m.peak_flops_a_second / 1e9:.1f} GFLOP/s on this host: "
                f"{m.flops_a_second / 1e9:.1f} GFLOP/s"
            )
            if m.whole_call:
                yield "            the call from Python is part of it: too short to tell apart"
        parts = [
            f"{name} {100 * part:.0f} %" for name, part in self.phases.items() if part >= 0.005
        ]
        yield f"cycles      {', '.join(parts)} (of {self.bounds['core']:.0f} in the core)"
        yield f"memory      {size_text(self.traffic.touched)} touched; {self._levels()}"
        yield (
            f"lanes       {100 * self.lanes_used:.1f} % of those multiplied are elements of C; "
            f"about {self.crossings} accesses cross a cache line"
        )
        executed = ", ".join(f"{n} {k}" for k, n in self.executed.items() if n)
        yield f"executed    {executed}; {size_text(self.bytes_loaded)} loaded"
        for report in self.loops:
            yield ""
            yield from self._loop_lines(report)
        yield ""
        used = dict.fromkeys(s for text in cpu.sources.values() for s in text.split(" (")[:1])
        yield "all figures but measured ones are modelled; facts of the CPU from:"
        for name in used:
            yield f"  {SOURCES[name]}"

    def _levels(self) -> str:
        levels = [
            f"{name} {size_text(moved)}"
            for name, moved in (
                ("from L2", self.traffic.l1), ("from beyond L2", self.traffic.l2),
                ("from beyond L3", self.traffic.l3 if self.cpu.l3 else 0.0),
            ) if moved
        ]  # fmt: skip
        return ", ".join(levels) or "all of it stays in L1"

    def _loop_lines(self, report: LoopReport) -> Iterator[str]:
        loop, element = report.loop, self.kernel.spec.acc_bytes
        flops = loop.flops(element)
        share = f"{loop.tiles} tile{'s' if loop.tiles > 1 else ''}"
        yield f"tile {loop.rows} x {loop.columns} ({share}): {loop.what}"
        counts = ", ".join(f"{n} {kind}" for kind, n in loop.counts.items() if n)
        machine = self.kernel.target.machine(self.kernel.spec.dtype, self.kernel.spec.n)
        yield f"  a pass    {counts}; {loop.code_bytes} bytes of code"
        yield (
            f"            {loop.bytes_loaded} bytes loaded for {flops} flops "
            f"({loop.bytes_loaded / max(flops, 1):.2f} a flop); "
            f"{loop.registers} of {machine.vectors} vector registers"
        )
        for name, cycles in sorted(report.bounds.items(), key=lambda item: -item[1]):
            if cycles:
                mark = "  <- binding" if name == report.binding else ""
                yield f"  {cycles:8.1f} cycles by {name}{mark}"
        yield f"  {report.cycles:8.1f} cycles predicted by jitgen's core model"
        for opinion in report.opinions:
            if opinion.cycles is None:
                yield f"         - {opinion.tool}: {opinion.why}"
            else:
                fault = f" (known fault: {opinion.fault})" if opinion.fault else ""
                yield f"  {opinion.cycles:8.1f} cycles predicted by {opinion.tool}{fault}"

    # ---- values -------------------------------------------------------------------------------

    def as_values(self) -> dict[str, Any]:
        """The report as JSON has it."""
        spec = self.kernel.spec
        measured = None
        if self.measured:
            measured = {**asdict(self.measured), "percent": self.measured.percent}
        return {
            "m": spec.m, "n": spec.n, "k": spec.k, "batch": self.batch, "dtype": spec.dtype,
            "target": self.kernel.target.name, "computes": describe(spec),
            "cpu": {**asdict(self.cpu), "sources": self._sources()},
            "predicted": {
                "percent_of_peak": self.percent, "cycles": self.cycles, "binding": self.binding,
                "bounds": self.bounds, "phases": self.phases,
                "peak_flops_a_cycle": self.peak,
            },
            "measured": measured, "note": self.note or None,
            "flops": self.flops, "lanes_used": self.lanes_used,
            "executed": self.executed, "bytes_loaded": self.bytes_loaded,
            "bytes_stored": self.bytes_stored, "line_crossings": self.crossings,
            "traffic": asdict(self.traffic),
            "loops": [self._loop_values(report) for report in self.loops],
        }  # fmt: skip

    def _sources(self) -> dict[str, str]:
        named = {}
        for fact, text in self.cpu.sources.items():
            source, bracket, rest = text.partition(" (")
            named[fact or "all others"] = SOURCES[source] + bracket + rest
        return named

    def _loop_values(self, report: LoopReport) -> dict[str, Any]:
        loop = report.loop
        machine = self.kernel.target.machine(self.kernel.spec.dtype, self.kernel.spec.n)
        return {
            "rows": loop.rows, "columns": loop.columns, "tiles": loop.tiles, "what": loop.what,
            "counts": loop.counts, "bytes_loaded": loop.bytes_loaded,
            "flops": loop.flops(self.kernel.spec.acc_bytes), "registers": loop.registers,
            "registers_available": machine.vectors, "chains": loop.chains,
            "code_bytes": loop.code_bytes, "bounds": report.bounds, "binding": report.binding,
            "cycles": report.cycles, "other_models": [asdict(o) for o in report.opinions],
        }  # fmt: skip


def analyze(kernel: Kernel, cpu: str | Cpu, batch: int = 1, other_models: bool = True) -> Report:
    """Analyze `kernel` on `cpu`, a name of `jitgen.analysis.CPUS` or "host", for calls with a batch
    of `batch`; `other_models`: ask llvm-mca and OSACA too, where they are installed.

    A "host" that the table does not have is taken for the core that is nearest, and the report's
    `note` says so. Raises ValueError if the CPU is unknown or does not run the kernel's target,
    RuntimeError if "host" is neither x86-64 nor AArch64.
    """
    doors.instance("kernel", kernel, Kernel)
    batch, other_models = doors.size("batch", batch), doors.flag("other_models", other_models)
    note = ""
    if isinstance(cpu, str) and cpu == "host":
        cpu, note = find_host()
    row = cpu if isinstance(cpu, Cpu) else find_cpu(cpu)
    check_target(row, kernel.target.name)
    return replace(_report(kernel, row, batch, other_models), note=note)


def _report(kernel: Kernel, cpu: Cpu, batch: int, other_models: bool) -> Report:
    spec = kernel.spec
    execution, totals = walk(kernel, cpu, spec.acc_type, batch)
    decoded = execution.static <= cpu.decoded
    cycles = sum(totals[:COUNTS])
    moved = traffic(kernel, cpu, batch)
    levels = {"core": cycles, **moved.cycles(cpu)}
    counts = totals[COUNTS : COUNTS + len(KINDS)]
    macs = max(counts[0], 1.0)
    reports = []
    for loop in find_loops(kernel):
        asked = mca.opinions(loop, cpu.name, kernel.target.architecture) if other_models else ()
        share = levels["L2 bandwidth"] * loop.counts["FMA"] / macs
        reports.append(LoopReport(
            loop, bounds(loop, cpu, share, decoded), core_cycles(loop, cpu, spec.acc_type),
            tuple(asked),
        ))  # fmt: skip
    return Report(
        kernel, cpu, batch, tuple(reports), levels,
        {name: part / cycles for name, part in zip(PHASES, totals, strict=False)},
        {kind: round(n) for kind, n in zip(KINDS, counts, strict=True)},
        round(totals[LOADED]), round(totals[STORED]), round(totals[CROSSED]), _lanes_used(kernel),
        moved, execution.static,
    )  # fmt: skip


def _lanes_used(kernel: Kernel) -> float:
    """Elements of C for each lane that is multiplied."""
    spec = kernel.spec
    lanes = kernel.target.machine(spec.dtype, spec.n).lanes
    multiplied = sum(
        r.size * r.repeat * -(-c.size // lanes) * lanes * c.repeat for r, c in kernel.plan.tiles()
    )
    return spec.m * spec.n / multiplied


def size_text(count: float) -> str:
    """Bytes for the eye."""
    for unit, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            number = count / size
            return f"{number:.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
    return f"{count:.0f} bytes"
