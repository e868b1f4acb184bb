"""The loops of a program: where they begin and end, how often they run, how registers move.

A register that moves by a constant at each pass is a linear value of the loop's own quantity (row,
col, k ...); so every address in a loop is one too. Not here: words (`jitgen.inspect.meaning`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from jitgen.inspect.values import State, Value
from jitgen.isa.form import Record
from jitgen.isa.program import LABEL

#: role of the register that a loop tests -> the quantity that the loop counts
QUANTITIES = {"row": "row", "col": "col", "k": "block", "index": "index", "first": "first"}


@dataclass
class Loop:
    """A loop over the lines `begin` (its label) to `end` (the branch back).

    `quantity` runs from `start` in steps of `by` (None: they differ), `trips` times (None: the run
    decides); `moves` says by how many bytes or elements registers move at each pass, `head` what
    they hold when a pass begins.
    """

    begin: int
    end: int
    role: str = ""
    quantity: str = ""
    start: Value | None = None
    by: int | None = 1
    trips: int | None = None
    moves: dict[int, Value] = field(default_factory=dict)
    head: dict[int, Value | None] = field(default_factory=dict)

    def find_moves(self, after: State) -> None:
        """Set `moves` from the state behind a trial pass that began with the symbol @r in each
        register r that the loop writes."""
        for r in self.head:
            value = after.registers.get(r)
            if value is not None:
                move = value - Value(0, {f"@{r}": 1})
                if not any(name[0] == "@" for name in move.terms):
                    self.moves[r] = move

    def enter(self, state: State, tested: tuple[int, str], after: State, steps: Value) -> None:
        """Set what registers hold at the head, from their values before the loop.

        tested: register and condition of the branch back. after: the trial pass. steps: reduction
        steps in a pass.
        """
        register, condition = tested
        bound = after.value(after.compared[2])
        move = self.moves.get(register)
        start, by = state.registers.get(register), move.number if move is not None else None
        if start is not None and bound is not None and by:
            distance = (bound - start).number
            if distance is not None:
                self.trips = -(-distance // by) if condition == "<" else distance // by
        self.quantity = QUANTITIES.get(self.role, "k" if self.role == "step" else "pass")
        count = Value(0, {self.quantity: 1})
        unit, passes = Value(by or 1), count
        self.start, self.by = start, by or 1
        if self.quantity == "k":
            unit = steps
            self.start, self.by = Value(0), steps.number
        elif not by:  # passes over the batch take what is left of it
            self.start, passes = Value(0), Value(0, {"pass": 1})
        for r in self.head:
            before, move = state.registers.get(r), self.moves.get(r)
            factor = _ratio(move, unit) if move is not None else None
            if r == register and self.quantity != "k":
                self.head[r] = count
            elif before is None or factor is None or self.start is None:
                self.head[r] = None
            else:
                self.head[r] = before + _whole((passes - self.start).times(factor))

    def leave(self, state: State, after: State, bound: Value | None, register: int) -> None:
        """Set in `state` (before the loop) what registers hold behind it; `after`: behind a pass
        that began at the head."""
        for r in self.head:
            before, move, value = state.registers.get(r), self.moves.get(r), after.registers.get(r)
            by = move.number if move is not None else None
            if before is not None and by is not None and self.trips is not None:
                state.registers[r] = before + Value(by * self.trips)
            elif r == register:
                state.registers[r] = bound
            else:
                kept = value is not None and not {self.quantity, f"@{r}"} & value.terms.keys()
                state.registers[r] = value if kept else None
        state.compared = after.compared


def _ratio(move: Value, unit: Value) -> Fraction | None:
    """How many times `unit` a move is, or None."""
    if not unit.constant:
        return None
    factor = Fraction(move.constant) / Fraction(unit.constant)
    return factor if unit.times(factor) == move else None


def _whole(value: Value) -> Value:
    """The same value with ints where its factors are whole."""
    terms = {n: int(f) if f == int(f) else f for n, f in value.terms.items()}
    constant = value.constant
    return Value(int(constant) if constant == int(constant) else constant, terms)


def find_loops(records: list[Record]) -> dict[int, int]:
    """Begin (the label) -> end (the branch back) of every loop, as indexes of records."""
    placed = {x[0]: i for i, (form, x) in enumerate(records) if form is LABEL and x}
    result = {}
    for i, (form, operands) in enumerate(records):
        begin = placed.get(operands[form.label_at], i) if form.label_at >= 0 else i
        if begin < i:
            result[begin] = i
    return result
