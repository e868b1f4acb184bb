"""What a call of any routine costs a core, and which bytes of its operands it touches.

A routine is walked as a kernel is (`jitgen.analysis.execution`), with all operands in the
first-level cache. Not here: memory beyond it, reports on kernels (`jitgen.analysis.report`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from jitgen import doors
from jitgen.analysis.core import COUNTS, LOADED, STORED, Core
from jitgen.analysis.cpus import Cpu, check_target
from jitgen.analysis.execution import REGION, Execution
from jitgen.emit.routine import Routine
from jitgen.inspect.instructions import KINDS, Instruction
from jitgen.types import DTYPES

#: A loop of more passes than this is taken to end in a misprediction: predictors keep a history of
#: some hundred branches
PREDICTED = 128
#: Instructions of a first call beyond which a second one, on warm buffers, would say nothing new
LONG = 50_000
#: Instructions after which the operands of a call are not followed further
MOST = 1 << 21
#: Bytes that are told apart: what two calls touch of one line is fetched once
SECTOR = 16


class CoreCost(NamedTuple):
    """A call among others like it: cycles in the core, instructions, bytes loaded and stored."""

    cycles: float
    instructions: int
    loaded: int
    stored: int


class Touched(NamedTuple):
    """What a call touches of an operand: bytes (in pieces of `SECTOR`), and from the first byte to
    the last one."""

    bytes: int
    span: int


def core_cost(routine: Routine, cpu: Cpu, dtype: str, batch: int = 1) -> CoreCost:
    """The cost of a call, of a kernel with a batch of `batch`; `dtype` is what it computes in.

    Raises ValueError if the CPU does not run the routine's target, or where the path through the
    code depends on what arrays hold.
    """
    doors.instance("routine", routine, Routine)
    check_target(doors.instance("cpu", cpu, Cpu), routine.target.name)
    dtype, batch = doors.one_of("dtype", dtype, DTYPES), doors.size("batch", batch)
    _, totals = walk(routine, cpu, dtype, batch)
    counts = totals[COUNTS : COUNTS + len(KINDS)]
    return CoreCost(
        sum(totals[:COUNTS]), round(sum(counts)), round(totals[LOADED]), round(totals[STORED])
    )


def walk(routine: Routine, cpu: Cpu, dtype: str, batch: int) -> tuple[Execution, list[float]]:
    """The totals of one call (`jitgen.analysis.core.Core.totals`) among others: short ones overlap
    their neighbours."""
    execution = Execution(routine)
    decoded = execution.static <= cpu.decoded
    core = Core(cpu if decoded else replace(cpu, dispatch=cpu.decode), dtype)
    execution.walk(batch, core, PREDICTED)
    core.settle()
    first = core.totals.copy()
    if core.executed > LONG:
        return execution, first
    execution.walk(batch, core, PREDICTED)
    core.settle()
    return execution, [now - then for now, then in zip(core.totals, first, strict=True)]


def touched(routine: Routine, batch: int = 1) -> dict[str, Touched]:
    """What a call touches, by the word that says where it lies.

    Raises ValueError where the path through the code depends on what arrays hold, or is longer than
    `MOST` instructions.
    """
    doors.instance("routine", routine, Routine)
    seen = _Seen()
    Execution(routine).walk(doors.size("batch", batch), seen, MOST)
    names = list(routine.words)
    return {
        names[word - 1]: Touched(len(sectors) * SECTOR, seen.last[word] - seen.first[word])
        for word, sectors in sorted(seen.sectors.items()) if word <= len(names)
    }  # fmt: skip


class _Seen:
    """Follows a walk (`jitgen.analysis.execution.Consumer`): sectors by number of the word."""

    def __init__(self) -> None:
        self.totals: list[float] = []
        self.executed = 0
        self.sectors: dict[int, set[int]] = {}
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}

    @property
    def enough(self) -> int:
        """No pass of a loop is skipped."""
        return MOST + 1

    def settle(self) -> None:
        """Nothing waits."""

    def mispredict(self, phase: int) -> None:
        """Of no account."""

    def run(self, instructions: list[Instruction], registers: dict[int, int], phase: int) -> None:
        """Note the accesses."""
        self.executed += len(instructions)
        if self.executed > MOST:
            raise ValueError(f"a call of more than {MOST} instructions")
        for i in instructions:
            for memory in (i.load, i.store):
                if memory is None or not memory.bytes or memory.base not in registers:
                    continue
                begin = registers[memory.base] + memory.displacement
                word = (begin + REGION // 2) // REGION  # some begin a little before their operand
                end = begin + memory.bytes
                sectors = range(begin // SECTOR, (end - 1) // SECTOR + 1)
                self.sectors.setdefault(word, set()).update(sectors)
                self.first[word] = min(begin, self.first.get(word, begin))
                self.last[word] = max(end, self.last.get(word, end))
