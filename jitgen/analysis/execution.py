"""The path of a kernel through its own code: which instructions run, in which order, how often.

Kernels are written against the verbs of `jitgen.isa.machine.Machine`. A recorder stands between
generator and machine and notes the scalar verbs and jumps; a walk then executes those on numbers,
for a given batch, and hands over the instructions in the order in which a CPU would run them. Loops
whose passes take the same time are skipped and counted. Not here: time (`jitgen.analysis.core`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from jitgen.emit.frame import ARGUMENTS
from jitgen.gemm import generator
from jitgen.gemm.kernel import Kernel
from jitgen.gemm.sections import EpilogueStep, PackB, ReductionLoop, TileSection
from jitgen.inspect.instructions import Instruction, read_record
from jitgen.isa.program import ALIGN, LABEL, SECTION

#: Verbs on general-purpose registers whose effect the walk needs
SCALAR = (
    "set", "move", "offset", "advance", "sum", "subtract", "multiply", "shift_right", "minimum",
    "load_word",
)  # fmt: skip
JUMPS = (
    "jump", "jump_if_nonzero", "jump_if_equal", "jump_if_different", "jump_if_less", "count_down",
)  # fmt: skip
#: Addresses that the walk gives the arguments: apart, and aligned as arrays usually are
_REGION = 1 << 40
_POINTERS = 1 << 48
#: Passes of a loop that are walked at least before others are skipped
FEWEST = 4
#: A page of stack for the walk
_STACK = 1 << 55

#: What the sections of a program belong to, in the order of reports
PHASES = ("entry and loops", "tile start", "reduction", "tile end", "epilogue", "packing")
_STAGES = {"start": 1, "reduce": 2, "finish": 3}
_SECTIONS = {ReductionLoop: 2, EpilogueStep: 4, PackB: 5}


class Consumer(Protocol):
    """What a walk feeds: `totals` are additive counters and times, scaled where passes are
    skipped; `executed` counts the instructions handed over."""

    totals: list[float]
    executed: int

    def run(self, instructions: list[Instruction], registers: dict[int, int], phase: int) -> None:
        """These instructions run in line."""

    def mispredict(self, phase: int) -> None:
        """The branch that ran last was predicted wrongly."""

    def settle(self) -> None:
        """Bring `totals` up to date."""

    @property
    def enough(self) -> int:
        """Instructions after which a loop is in its steady state."""


@dataclass
class _Item:
    """Instructions in line, then a scalar verb or jump (or none) with its arguments."""

    instructions: list[Instruction]
    verb: str
    arguments: tuple[Any, ...]
    phase: int


class _Recorder:
    """Stands for a machine and notes scalar verbs and jumps: (first record, last, verb, args)."""

    def __init__(self, machine: Any) -> None:
        self.__dict__["machine"] = machine
        self.__dict__["events"] = []

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.machine, name)
        if name not in SCALAR and name not in JUMPS:
            return value

        def noted(*args: Any, **named: Any) -> None:
            records = self.machine.program.records
            start = len(records)
            value(*args, **named)
            self.events.append((start, len(records), name, args))

        return noted

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.machine, name, value)


class Execution:
    """A kernel's code, ready to be walked."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        machine = kernel.target.machine(kernel.spec.dtype, kernel.spec.n)
        self.machine = machine
        recorder: Any = _Recorder(machine)
        generator.emit(kernel.spec, kernel.plan, kernel.target.facts(machine), recorder)
        self._items: list[_Item] = []
        self._labels: dict[int, int] = {}
        #: the instructions that stand in the program, without padding
        self.static = 0
        self._read(recorder.events)

    def _read(self, events: list[tuple[int, int, str, tuple[Any, ...]]]) -> None:
        records = self.machine.program.records
        known: dict[Any, Instruction] = {}
        phase, at, skip_to = 0, 0, 0
        ends = itertools.chain(events, [(len(records), len(records), "", ())])
        for start, stop, verb, args in ends:
            line: list[Instruction] = []
            for i in range(at, stop):
                form, operands = records[i]
                if form is SECTION:
                    if line:
                        self._items.append(_Item(line, "", (), phase))
                        line = []
                    phase = _phase(operands[0])
                elif form is LABEL:
                    if line:
                        self._items.append(_Item(line, "", (), phase))
                        line = []
                    self._labels[operands[0]] = len(self._items)
                    skip_to = 0 if skip_to == operands[0] else skip_to
                elif form is not ALIGN:
                    self.static += 1
                    if not skip_to:
                        line.append(self._instruction(records[i], known))
                        # a jump inside a verb guards what does not happen (a wrong vector length)
                        if form.label_at >= 0 and i < start and form.mnemonic not in ("lea", "adr"):
                            skip_to = operands[form.label_at]
            self._items.append(_Item(line, verb, args, phase))
            at = stop

    def _instruction(self, record: Any, known: dict[Any, Instruction]) -> Instruction:
        key = (id(record[0]), record[1])
        found = known.get(key)
        if found is None:
            architecture, size = self.kernel.target.architecture, self.machine.vector_bits // 8
            found = known[key] = read_record(record, architecture, size)
        return found

    # ---- walking ----------------------------------------------------------------------------

    def walk(self, batch: int, consumer: Consumer, predicted: int) -> None:
        """One call with a batch of `batch`; loops of more than `predicted` passes are taken to be
        left by a mispredicted branch."""
        registers = {self.machine.argument: 0, self.machine.stack_pointer: _STACK}
        loops: dict[int, _Loop] = {}
        at = 0
        items = self._items
        while at < len(items):
            item = items[at]
            consumer.run(item.instructions, registers, item.phase)
            if item.verb in JUMPS:
                label = item.arguments[-1]
                taken = self._taken(item, registers, batch)
                target = self._labels[label]
                if target <= at:
                    loop = loops.setdefault(at, _Loop(consumer))
                    if taken:
                        loop.passed(item, registers, consumer)
                    else:
                        if loop.passes > predicted:
                            consumer.mispredict(item.phase)
                        del loops[at]
                if taken:
                    at = target
                    continue
            elif item.verb:
                self._scalar(item, registers, batch)
            at += 1

    def _taken(self, item: _Item, registers: dict[int, int], batch: int) -> bool:
        verb, args = item.verb, item.arguments
        if verb == "jump":
            return True
        value = registers[args[0]]
        if verb == "count_down":
            registers[args[0]] = value - 1
            return value != 1
        if verb == "jump_if_nonzero":
            return value != 0
        if verb == "jump_if_less":
            return value < int(args[1])
        equal = value == registers[args[1]]
        return equal if verb == "jump_if_equal" else not equal

    def _scalar(self, item: _Item, r: dict[int, int], batch: int) -> None:
        verb, (d, *args) = item.verb, item.arguments
        if verb == "set":
            r[d] = args[0]
        elif verb == "move":
            r[d] = r.get(args[0], 0)
        elif verb == "offset":
            r[d] = r.get(args[0], 0) + args[1]
        elif verb == "advance":
            r[d] = r.get(d, 0) + args[0]
        elif verb == "sum":
            shift = args[2] if len(args) > 2 else 0
            r[d] = r.get(args[0], 0) + (r.get(args[1], 0) << shift)
        elif verb == "subtract":
            r[d] -= r[args[0]]
        elif verb == "multiply":
            r[d] = r.get(args[0], 0) * args[1]
        elif verb == "shift_right":
            r[d] = r.get(d, 0) >> args[0]
        elif verb == "minimum":
            r[d] = min(r[args[0]], args[1])
        else:
            base, displacement = args[0]
            r[d] = self._word(base, r[base] + displacement, batch)

    def _word(self, base: int, address: int, batch: int) -> int:
        """The 8 bytes that a kernel reads: an argument, or an entry of a table of the batch."""
        spec = self.kernel.spec
        if base == self.machine.argument:
            index, name = address // 8, list(ARGUMENTS)[address // 8]
            if name == "count":
                return batch
            table = name.endswith("offsets") or (spec.batch == "address" and name in ("a", "b"))
            return (_POINTERS if table else _REGION) * (index + 1)
        index, entry = divmod(address, _POINTERS)
        name = list(ARGUMENTS)[index - 1]
        size = spec.a_shape[0] * spec.lda
        if name.startswith("b"):
            rows = spec.n if spec.trans_b else spec.k
            size = math.prod(spec.b_shape) if spec.panel else rows * spec.ldb
        element = entry // 8 * size
        if name.endswith("offsets"):
            return element
        return _REGION * index + element * (spec.a_bytes if name == "a" else spec.b_bytes)


def _phase(section: Hashable) -> int:
    """The index in PHASES of what a section belongs to."""
    if isinstance(section, TileSection):
        return _STAGES[section.stage]
    return _SECTIONS.get(type(section), 0)


class _Loop:
    """One loop while it runs: finds out when its passes repeat, then skips most of the rest."""

    def __init__(self, consumer: Consumer) -> None:
        self.passes = 1
        self._executed = consumer.executed
        self._history: list[tuple[list[float], dict[int, int]]] = []
        self._skipped = False

    def passed(self, item: _Item, registers: dict[int, int], consumer: Consumer) -> None:
        """A pass ended and another follows."""
        self.passes += 1
        if self._skipped:
            return
        consumer.settle()
        self._history.append((consumer.totals.copy(), registers.copy()))
        if (
            len(self._history) < FEWEST
            or consumer.executed - self._executed < consumer.enough
        ):  # fmt: skip
            return
        before = self._history[-2][1]
        change = {r: v - before.get(r, v) for r, v in registers.items()}
        left = _left(item, registers, change)
        count = left - 2  # the last passes are walked: they may end differently
        if count < 1:
            return
        # the mean of the later half: passes overlap, so single ones vary
        half = len(self._history) // 2
        then = self._history[half][0]
        span = len(self._history) - 1 - half
        for i, (new, old) in enumerate(zip(list(consumer.totals), then, strict=True)):
            consumer.totals[i] += count * (new - old) / span
        for r, step in change.items():
            registers[r] += count * step
        self.passes += count
        self._skipped = True


def _left(item: _Item, registers: dict[int, int], change: dict[int, int]) -> int:
    """How many more passes a loop has whose jump back was just taken."""
    r, *others = item.arguments
    if item.verb == "count_down":
        return registers[r]
    step, end = change.get(r, 0), int(others[0])
    if item.verb == "jump_if_different":
        step, end = step - change.get(end, 0), registers[end]
    return -(-(end - registers[r]) // step) if step > 0 else 0
