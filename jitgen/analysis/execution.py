"""The path of a routine through its own code: which instructions run, in which order, how often.

Scalar instructions are read as operations on numbers (`jitgen.inspect.values.Scalar`), which a walk
executes: arguments are made-up addresses, a batch has a given size, and what is loaded from
matrices is unknown. The instructions are handed over in the order in which a CPU would run them.
Loops whose passes take the same time are skipped and counted. Not here: time
(`jitgen.analysis.core`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

from jitgen.emit.routine import Routine
from jitgen.gemm.emitted import EmittedKernel
from jitgen.gemm.sections import EpilogueStep, PackB, ReductionLoop, TileSection
from jitgen.inspect import a64, x86
from jitgen.inspect.instructions import Instruction, read_record
from jitgen.inspect.values import Memory, Operand, Register, Scalar
from jitgen.isa.a64_rows import XZR
from jitgen.isa.form import Record
from jitgen.isa.program import ALIGN, LABEL, SECTION

#: Addresses that the walk gives the arguments: apart, and aligned as arrays usually are; those of
#: tables of addresses or offsets; of the stack, of constants, and of the words themselves
REGION, _POINTERS = 1 << 40, 1 << 48
_STACK, _CONSTANTS, _WORDS = 1 << 55, 1 << 56, 1 << 57
#: Passes of a loop that are walked at least before others are skipped
FEWEST = 4

#: What the sections of a program belong to, in the order of reports
PHASES = ("entry and loops", "tile start", "reduction", "tile end", "epilogue", "packing")
_STAGES = {"start": 1, "reduce": 2, "finish": 3}
_SECTIONS = {ReductionLoop: 2, EpilogueStep: 4, PackB: 5}
#: Operations that leave a number in a register: of two numbers and a scale
_RESULTS: dict[str, Callable[[int, int, int], int]] = {
    "+": lambda a, b, scale: a + b * scale, "-": lambda a, b, scale: a - b,
    "*": lambda a, b, scale: a * b, "<<": lambda a, b, scale: a << b,
    ">>": lambda a, b, scale: a >> b, "&": lambda a, b, scale: a & b,
    "|": lambda a, b, scale: a | b * scale, "insert": lambda a, b, scale: a & ~scale | b,
}  # fmt: skip
#: Operations that change neither registers nor the flow
_NOTHING = ("save", "restore", "prefetch")


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
    """Instructions in line, of which the last one does `scalar` (None: nothing that matters); the
    label that it branches to."""

    instructions: list[Instruction]
    scalar: Scalar | None
    label: int
    phase: int


class Execution:
    """A routine's code, ready to be walked."""

    def __init__(self, routine: Routine) -> None:
        self.routine = routine
        self.isa = x86 if routine.target.architecture == "x86_64" else a64
        #: word at each offset of the argument, with its place and type
        types = {operand.word: operand.type for operand in routine.signature}
        self._words = {
            at: (i, name, types.get(name, ""))
            for i, (name, at) in enumerate(routine.words.items())
        }
        self._types = list(self._words.values())
        self._items: list[_Item] = []
        self._labels: dict[int, int] = {}
        #: the instructions that stand in the program, without padding
        self.static = 0
        self._read(routine.program.records)

    def _read(self, records: list[Record]) -> None:
        known: dict[tuple[int, object], tuple[Instruction, Scalar | None]] = {}
        phase, line = 0, list[Instruction]()

        def close(scalar: Scalar | None = None, label: int = -1) -> None:
            nonlocal line
            if line:
                self._items.append(_Item(line, scalar, label, phase))
                line = []

        for record in records:
            form, operands = record
            if form is SECTION:
                close()
                phase = _phase(operands[0])
            elif form is LABEL:
                close()
                self._labels[operands[0]] = len(self._items)
            elif form is not ALIGN:
                self.static += 1
                key = id(form), operands
                found = known.get(key)
                if found is None:
                    found = known[key] = self._instruction(record)
                line.append(found[0])
                if found[1] is not None:
                    close(found[1], operands[form.label_at] if form.label_at >= 0 else -1)
        close()

    def _instruction(self, record: Record) -> tuple[Instruction, Scalar | None]:
        form, operands = record
        target = self.routine.target
        made = self.isa.SCALAR.get(form.signature)
        scalar = made(*operands) if made else None
        if scalar is not None and scalar.op in _NOTHING:
            scalar = None
        return read_record(record, target.architecture, target.vector_bits // 8), scalar

    # ---- walking ----------------------------------------------------------------------------

    def walk(self, batch: int, consumer: Consumer, predicted: int) -> None:
        """One call with a batch of `batch`; loops of more than `predicted` passes are taken to be
        left by a mispredicted branch. ValueError where the path depends on what matrices hold."""
        state = _State(self, batch)
        loops: dict[int, _Loop] = {}
        at, items = 0, self._items
        while at < len(items):
            item = items[at]
            consumer.run(item.instructions, state.registers, item.phase)
            scalar = item.scalar
            if scalar is not None and scalar.op == "branch":
                taken = state.taken(scalar)
                target = self._labels[item.label]
                if target <= at:
                    loop = loops.setdefault(at, _Loop(consumer))
                    if taken:
                        loop.passed(state, scalar.text, consumer)
                    else:
                        if loop.passes > predicted:
                            consumer.mispredict(item.phase)
                        del loops[at]
                if taken:
                    at = target
                    continue
            elif scalar is not None:
                if scalar.op == "return":
                    return
                state.run(scalar)
            at += 1

    def word(self, address: int, batch: int) -> int | None:
        """The 8 bytes that are read from an address, if they are known: a word of the argument, or
        an entry of a table of the batch."""
        if address >= _WORDS:
            index, name, kind = self._words[address - _WORDS]
            if name == "count":
                return batch
            if kind == "number":
                return None
            return (_POINTERS if kind in ("offsets", "addresses") else REGION) * (index + 1)
        index, entry = divmod(address, _POINTERS)
        if not 0 < index <= len(self._types) or not isinstance(self.routine, EmittedKernel):
            return None
        _, name, kind = self._types[index - 1]
        spec = self.routine.spec
        size = spec.a_shape[0] * spec.lda
        if name.startswith("b"):
            rows = spec.n if spec.trans_b else spec.k
            size = math.prod(spec.b_shape) if spec.panel else rows * spec.ldb
        element = entry // 8 * size
        if kind == "offsets":
            return element
        return REGION * index + element * (spec.a_bytes if name == "a" else spec.b_bytes)


class _State:
    """Registers and words in memory while a walk is on; what is not there is unknown."""

    def __init__(self, execution: Execution, batch: int) -> None:
        routine, isa = execution.routine, execution.isa
        self._word, self._batch = execution.word, batch
        self._vector = routine.target.vector_bits // 8
        self.registers = {routine.argument: _WORDS, isa.STACK_POINTER: _STACK}
        if isa is a64:
            self.registers[XZR] = 0
        self._stored: dict[int, int | None] = {}
        #: what the last comparison compared
        self.compared: tuple[Operand, Operand] = (0, 0)

    def value(self, operand: Operand) -> int | None:
        """Of a register, a number or a word in memory."""
        if isinstance(operand, Register):
            return self.registers.get(operand.number)
        if isinstance(operand, Memory):
            address = self._address(operand)
            if address is None or operand.size < 4:
                return None
            if address in self._stored:
                return self._stored[address]
            return self._word(address, self._batch)
        return operand

    def _address(self, memory: Memory) -> int | None:
        base = self.registers.get(memory.base)
        offset = self.registers.get(memory.offset) if memory.offset >= 0 else 0
        if base is None or offset is None:
            return None
        return base + offset * memory.scale + memory.disp

    def taken(self, branch: Scalar) -> bool:
        """Whether a branch is taken."""
        if isinstance(branch.a, Register):
            self.compared = (branch.a, 0)
        if not branch.text:
            return True
        a, b = map(self.value, self.compared)
        if a is None or b is None:
            raise ValueError("a branch on what a matrix holds")
        return {"=": a == b, "!=": a != b, "<": a < b}[branch.text]

    def run(self, s: Scalar) -> None:
        """One operation."""
        if s.op == "compare":
            self.compared = (s.a, s.b)
        elif s.op == "store":
            assert isinstance(s.a, Memory)
            address = self._address(s.a)
            if address is not None and address >= _STACK:
                self._stored[address] = self.value(s.b)
        else:
            result = self._result(s)
            if result is None:
                self.registers.pop(s.to, None)
            else:
                self.registers[s.to] = result
            if s.op == "-":  # counting down sets the flags
                self.compared = (Register(s.to), 0)

    def _result(self, s: Scalar) -> int | None:
        if s.op == "unknown":
            return self._vector if s.text else None
        if s.op == "constants":
            return _CONSTANTS
        if s.op == "=":
            return self.value(s.a)
        a, b = self.value(s.a), self.value(s.b)
        if s.op == "below":
            left, right = map(self.value, self.compared)
            if left is None or right is None:
                return None
            return a if left < right else b
        return None if a is None or b is None else _RESULTS[s.op](a, b, s.scale)

    def left(self, condition: str, change: dict[int, int]) -> int:
        """How many more passes a loop has whose branch back was just taken, if registers go on to
        change so in each."""
        a, b = map(self.value, self.compared)
        steps = [change.get(x.number, 0) if isinstance(x, Register) else 0 for x in self.compared]
        step = steps[0] - steps[1]
        if a is None or b is None or not step or condition not in ("!=", "<"):
            return 0
        return -(-(b - a) // step)


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

    def passed(self, state: _State, condition: str, consumer: Consumer) -> None:
        """A pass ended and another follows, by a branch on that condition."""
        self.passes += 1
        if self._skipped:
            return
        registers = state.registers
        consumer.settle()
        self._history.append((consumer.totals.copy(), registers.copy()))
        if (
            len(self._history) < FEWEST
            or consumer.executed - self._executed < consumer.enough
        ):  # fmt: skip
            return
        before = self._history[-2][1]
        change = {r: v - before.get(r, v) for r, v in registers.items()}
        left = state.left(condition, change)
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
