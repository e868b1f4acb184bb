"""The inner loop of each kind of tile: what stands in it and the bounds of one pass, in cycles.

The inner loop is the reduction loop; where the whole reduction is unrolled, the loop over the
batch; where there is neither, the code of the reduction. Not here: the kernel around it
(`jitgen.analysis.report`).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from jitgen.analysis.core import Core
from jitgen.analysis.cpus import Cpu, load_rate, rate
from jitgen.gemm.kernel import Kernel
from jitgen.gemm.sections import ReductionLoop, TileSection
from jitgen.inspect.instructions import FMA, KINDS, MASK, VECTOR, Instruction, read_record
from jitgen.isa.program import LABEL, Line

#: Passes of a loop that count in the core model, after those that fill its buffers
_COUNTED = 24


@dataclass(frozen=True)
class Loop:
    """An inner loop: its tile, the instructions in order and the bytes of their code."""

    rows: int
    columns: int
    tiles: int  # how many tiles of C it computes
    what: str
    lines: tuple[Line, ...]
    instructions: tuple[Instruction, ...]
    code_bytes: int

    @property
    def text(self) -> str:
        """Assembly text, with a label where the loop jumps back to."""
        texts = [re.sub(r"\bL\d+$", "again", line.text) for line in self.lines]
        return "\n".join(["again:", *texts])

    @property
    def counts(self) -> dict[str, int]:
        """Instructions by kind; an FMA that reads memory counts as one, and as a load or
        broadcast too."""
        counts = Counter(i.kind for i in self.instructions)
        counts.update(i.load_kind for i in self.instructions if i.kind == FMA and i.load_kind)
        return {kind: counts[kind] for kind in KINDS}

    @property
    def bytes_loaded(self) -> int:
        """Bytes that the loads of a pass read; masked ones count whole."""
        return sum(i.load.bytes for i in self.instructions if i.load)

    def flops(self, element: int) -> int:
        """Floating-point operations of a pass, in all lanes."""
        return sum(2 * i.bits // 8 // element for i in self.instructions if i.kind == FMA)

    @property
    def registers(self) -> int:
        """Vector registers that the loop uses."""
        return len({
            r for i in self.instructions for r in (*i.reads, *i.writes) if VECTOR <= r < MASK
        })  # fmt: skip

    @property
    def chains(self) -> int:
        """Accumulators: independent chains of multiply-accumulates."""
        return len({i.accumulator for i in self.instructions if i.accumulator >= 0})


def find_loops(kernel: Kernel) -> list[Loop]:
    """The inner loop of each kind of tile."""
    counts: Counter[tuple[int, int]] = Counter()
    for rows, columns in kernel.plan.tiles():
        counts[rows.size, columns.size] += rows.repeat * columns.repeat
    found: dict[tuple[int, int], Loop] = {}
    size, inside = (0, 0), False
    body: list[Line] = []
    for line in kernel.program.lines():
        if isinstance(section := line.section, TileSection):
            if inside and size not in found:
                found[size] = _loop(kernel, size, counts[size], body)
            size, body = (section.rows, section.columns), []
            inside = section.stage == "reduce"
        elif inside:
            body.append(line)
    return list(found.values())


def _loop(kernel: Kernel, size: tuple[int, int], tiles: int, body: list[Line]) -> Loop:
    placed: dict[int, int] = {}
    spans = []
    for i, line in enumerate(body):
        assert line.record is not None
        form, operands = line.record
        if form is LABEL:
            placed[operands[0]] = i
        elif form.label_at >= 0 and operands[form.label_at] in placed:
            spans.append((placed[operands[form.label_at]], i + 1))
    architecture = kernel.target.architecture
    vector = kernel.target.machine(kernel.spec.dtype, kernel.spec.n).vector_bits // 8
    what = "reduction unrolled, no loop"
    lines = [x for x in body if x.kind == "instruction" and x.text != "nop"]
    for start, stop in spans:  # inner loops end first
        inner = [x for x in body[start:stop] if x.kind == "instruction" and x.text != "nop"]
        read = [read_record(x.record, architecture, vector) for x in inner if x.record]
        if any(i.kind == FMA for i in read):
            around = body[max(0, start - 1) : stop]
            steps = any(isinstance(x.section, ReductionLoop) for x in around)
            what = "reduction loop" if steps else "loop over the batch, reduction unrolled"
            lines = inner
            break
    read = [read_record(x.record, architecture, vector) for x in lines if x.record]
    return Loop(
        *size, tiles, what, tuple(lines), tuple(read), sum(len(x.code) for x in lines)
    )  # fmt: skip


def bounds(loop: Loop, cpu: Cpu, l2_cycles: float, decoded: bool) -> dict[str, float]:
    """The bounds of one pass in cycles, by name. `l2_cycles` is the pass's share of the kernel's
    L2 bound; `decoded` says whether the code fits the cache of decoded instructions."""
    chain: Counter[int] = Counter()
    units = dict.fromkeys(("FMA pipes", "load ports", "L1 bandwidth", "store ports"), 0.0)
    for i in loop.instructions:
        if i.operation in ("fma", "mul"):
            units["FMA pipes"] += 1 / rate(cpu.fma, i.bits)
        if i.accumulator >= 0:
            chain[i.accumulator] += 1
        if i.load:
            units["load ports"] += 1 / load_rate(cpu, i)
            units["L1 bandwidth"] += i.load.bytes / cpu.l1_bytes
        if i.store:
            units["store ports"] += 1 / rate(cpu.stores, 8 * i.store.bytes)
    width = cpu.dispatch if decoded else cpu.decode
    return {
        **units,
        "front end": len(loop.instructions) / width,
        "FMA latency": max(chain.values(), default=0) * cpu.accumulate,
        "L2 bandwidth": l2_cycles,
    }


def core_cycles(loop: Loop, cpu: Cpu, dtype: str) -> float:
    """Cycles of a pass in the core model, in the steady state."""
    core = Core(cpu, dtype)
    instructions = list(loop.instructions)
    for _ in range(2 + 4 * cpu.window // len(instructions)):
        core.run(instructions, {}, 0)
    core.settle()
    begin = core.totals[0]
    for _ in range(_COUNTED):
        core.run(instructions, {}, 0)
    core.settle()
    return (core.totals[0] - begin) / _COUNTED
