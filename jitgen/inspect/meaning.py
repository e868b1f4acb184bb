"""What every instruction of a kernel means, in the terms of its matrices, tiles and roles.

`explain` follows the program once: it keeps what each general-purpose register holds as a linear
value (`jitgen.inspect.loops`), so that an address becomes an element of a matrix, and names vector
registers by the tile that the section tells. Nothing is taken from the generator but sections,
roles and the tile's registers. Not here: the words for one instruction
(`jitgen.inspect.words`) and layout (`jitgen.inspect.listing`).
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from jitgen.gemm.sections import PackB
from jitgen.inspect import a64
from jitgen.inspect.loops import Loop, find_loops
from jitgen.inspect.values import Memory, Register, Scalar, State, Value
from jitgen.inspect.words import Words
from jitgen.isa.a64_rows import XZR
from jitgen.isa.form import Form, Operands, Record
from jitgen.isa.program import ALIGN, LABEL, SECTION, Line

if TYPE_CHECKING:
    from jitgen.gemm.emitted import EmittedKernel

_WRITES_NOTHING = ("store", "compare", "branch", "save", "restore", "return", "prefetch")


class Explained(NamedTuple):
    """A line of the program: its meaning ("" for sections, labels but those of loops, and data),
    the number of loops around it, and the loop that begins here."""

    line: Line
    meaning: str
    depth: int
    loop: Loop | None


def explain(kernel: EmittedKernel, lines: list[Line]) -> Iterator[Explained]:
    """Every line of the kernel's program (`kernel.program.lines()`) with its meaning."""
    return _Reader(kernel, lines).read()


class _Reader:
    def __init__(self, kernel: EmittedKernel, lines: list[Line]) -> None:
        self.kernel = kernel
        self.lines = lines
        self.records: list[Record] = [line.record or (LABEL, ()) for line in lines]
        data = b"".join(line.code for line in lines if line.kind == "data")
        self.words = Words(kernel, data)
        self.isa = self.words.isa
        self.ends = find_loops(self.records)
        self.backs = set(self.ends.values())
        self.scalars = [self._scalar(form, x) for form, x in self.records]
        #: the next record at or behind each that changes a general-purpose register or the flow
        self.next = [len(lines)] * (len(lines) + 1)
        for i in reversed(range(len(lines))):
            matters = self.scalars[i] is not None or self.records[i][0] is LABEL
            self.next[i] = i if matters else self.next[i + 1]
        self.meanings = [""] * len(lines)
        self.loops: dict[int, Loop] = {}

    def read(self) -> Iterator[Explained]:
        state = State()
        state.registers[self.words.machine.argument] = Value(0, {"args": 1})
        state.registers[self.isa.STACK_POINTER] = Value(0, {"stack": 1})
        if self.isa is a64:
            state.registers[XZR] = Value(0)
        self._run(0, len(self.lines), state, True)
        depth = 0
        ends = {loop.end for loop in self.loops.values()}
        for i, line in enumerate(self.lines):
            loop = self.loops.get(i)
            yield Explained(line, self.meanings[i], depth, loop)
            depth += (loop is not None) - (i in ends)

    def _scalar(self, form: Form, operands: Operands) -> Scalar | None:
        made = self.isa.SCALAR.get(form.signature)
        return made(*operands) if made else None

    # ---- following control flow -----------------------------------------------------------------

    def _run(self, i: int, stop: int, state: State, telling: bool) -> None:
        """Follow the records from i up to `stop`; `telling`: note what they mean."""
        pending: dict[int, State] = {}
        while i < stop:
            if not telling:
                i = self.next[i]
                if i >= stop:
                    return
            form, operands = self.records[i]
            if form is LABEL:
                label = operands[0] if operands else -1
                if label in pending:
                    state.merge(pending.pop(label), f"way to L{label}")
                if i in self.ends:
                    self._loop(i, self.ends[i], state, telling)
                    i = self.ends[i]
            elif form is SECTION:
                self.words.enter_section(operands[0])
            elif telling and form is ALIGN:
                self.meanings[i] = f"padding: the loop begins at a multiple of {operands[0]}"
            elif form is not ALIGN:
                self._step(i, state, telling)
                scalar = self.scalars[i]
                if scalar is not None and scalar.op == "branch" and i not in self.backs:
                    pending[operands[form.label_at]] = state.copy()
                    state.dead = not scalar.text
                elif scalar is not None and scalar.op == "return":
                    state.dead = True
            i += 1

    def _loop(self, begin: int, end: int, state: State, telling: bool) -> None:
        loop = Loop(begin, end)
        written = {s.to for s in self.scalars[begin : end + 1] if s is not None and s.to >= 0}
        loop.head = dict.fromkeys(written)
        trial = state.copy()
        for r in written:
            trial.registers[r] = Value(0, {f"@{r}": 1})
        self._run(begin + 1, end, trial, False)
        register = trial.compared[0]
        branch = self.scalars[end]
        loop.role = self.words.roles.get(register, "")
        loop.find_moves(trial)
        steps = self._steps_of_a_pass(loop)
        loop.enter(state, (register, branch.text if branch else ""), trial, steps)
        inside = state.copy()
        inside.registers |= loop.head
        if telling:
            self.loops[begin] = loop
            self.meanings[begin] = self.words.loop(loop)
            self.words.active.append(loop)
        self._run(begin + 1, end, inside, telling)
        if telling:
            self._step(end, inside, True)
            self.words.active.pop()
        loop.leave(state, inside, inside.value(inside.compared[2]), register)

    def _steps_of_a_pass(self, loop: Loop) -> Value:
        """Reduction steps in one pass of a loop that counts `step`: a copy to the stack moves its
        target by so many rows; else the plan says it."""
        move = loop.moves.get(self.kernel.roles["a_now"])
        if not isinstance(self.words.section, PackB) or move is None:
            return Value(self.kernel.plan.k_unroll)
        row = self.words.places.matrices["packed"][0].stride
        return move.times(Fraction(1) / Fraction(row))

    # ---- one instruction ------------------------------------------------------------------------

    def _step(self, i: int, state: State, telling: bool) -> None:
        form, operands = self.records[i]
        scalar = self.scalars[i]
        if scalar is None:
            if telling and form.mnemonic:
                self.meanings[i] = self.words.vector(form, operands, state)
            return
        if scalar.op == "=" and isinstance(scalar.a, Memory):
            value = self.words.places.loaded(state.address(scalar.a))
        else:
            value = state.result(scalar)
        if telling and scalar.op == "unknown" and not scalar.text:
            self.meanings[i] = self.words.vector(form, operands, state)
        elif telling:
            label = operands[form.label_at] if form.label_at >= 0 else -1
            self.meanings[i] = self.words.scalar(scalar, value, state, label, i in self.backs)
        if scalar.op == "compare":
            number = scalar.a.number if isinstance(scalar.a, Register) else -1
            state.compared = (number, state.value(scalar.a), scalar.b)
        elif scalar.op not in _WRITES_NOTHING:
            aligned = scalar.op == "&" and scalar.to == self.isa.STACK_POINTER
            state.registers[scalar.to] = Value(0, {"packed": 1}) if aligned else value
            if scalar.op == "-":  # counting down sets the flags
                state.compared = (scalar.to, value, 0)
