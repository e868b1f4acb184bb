"""Start and end of a tile: what the accumulators begin with, the epilogue, and the store.

With alpha = 1 the accumulators begin with beta * C; otherwise they begin with zero and C is added
at the end. An earlier pass leaves partial sums in C, to which the next pass adds; only the last
pass applies the epilogue. Not here: the reduction (`jitgen.gemm.generator`), what a step computes
(`jitgen.emit.steps`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

from jitgen.emit.frame import Frame, Position, Register
from jitgen.emit.steps import STEPS, StepOperand, apply
from jitgen.gemm.sections import EpilogueStep
from jitgen.gemm.spec import KernelSpec
from jitgen.gemm.tile import Tile
from jitgen.isa.machine import Machine
from jitgen.target import Facts

#: Was C stored by an earlier pass? Known now, or if any of these registers is not zero.
Earlier = list[Register] | bool
#: Will a later pass add to C? Known now, or unless each register has its value (a number, or the
#: argument of that name).
Later = list[tuple[int, int | str]] | bool


class Finish:
    """Emits the start and the end of tiles of one kernel."""

    def __init__(self, spec: KernelSpec, facts: Facts, frame: Frame) -> None:
        self.spec = spec
        self.facts = facts
        self.frame = frame
        self.machine: Machine = frame.machine
        self.needs_constants = (
            spec.alpha != 1.0
            or spec.beta not in (0.0, 1.0)
            or any(STEPS[s[0]].constants for s in spec.epilogue)
        )

    # ---- start ------------------------------------------------------------------------------

    def start(self, tile: Tile, earlier: Earlier) -> None:
        """Set accumulator set 0 to what the sum is added to, the others to zero."""
        machine = self.machine
        for extra in tile.sets[1:]:
            _each(extra, machine.zero)
        machine.constant_temps = tuple(tile.free[-2:])
        if self.spec.alpha != 1.0 or (earlier is False and self.spec.beta == 0.0):
            _each(tile.acc, machine.zero)
            return
        if earlier is True:
            self._load_c(tile)
            return
        if self.spec.beta == 0.0:
            continued, done = machine.program.new_label(), machine.program.new_label()
            self._branch_if_earlier(earlier, continued)
            _each(tile.acc, machine.zero)
            machine.jump(done)
            machine.place(continued)
            self._load_c(tile)
            machine.place(done)
            return
        self._load_c(tile)
        if self.spec.beta != 1.0:
            continued = machine.program.new_label()
            self._branch_if_earlier(earlier, continued)
            beta = machine.const(self.spec.beta)
            _each(tile.acc, lambda acc: machine.mul(acc, acc, beta))
            machine.place(continued)

    def _branch_if_earlier(self, earlier: Earlier, label: int) -> None:
        if isinstance(earlier, list):
            for register in earlier:
                self.machine.jump_if_nonzero(register.number, label)

    def _load_c(self, tile: Tile) -> None:
        pointer = self._matrix(tile, "a_now", "c", self.spec.ldc)
        for acc, disp, width in self._parts(tile, self.spec.ldc):
            self.machine.load(acc, (pointer, disp), width)

    def _parts(self, tile: Tile, leading: int) -> list[tuple[int, int, int]]:
        """(accumulator, displacement in an m x n matrix, active lanes) of a tile's vectors."""
        size = self.spec.c_bytes
        columns = list(zip(tile.offsets, tile.widths, strict=True))
        return [
            (acc, (i * leading + offset) * size, width)
            for i, row in enumerate(tile.acc)
            for acc, (offset, width) in zip(row, columns, strict=True)
        ]

    def _matrix(self, tile: Tile, role: str, argument: str, leading: int) -> int:
        """Point `role` at the tile's corner in an m x n matrix."""
        self.frame.load_argument(role, argument)
        self.frame.shift(self.frame[role], tile.row, leading * self.spec.c_bytes, "step")
        self.frame.shift(self.frame[role], tile.col, self.spec.c_bytes, "step")
        return self.frame[role]

    # ---- end --------------------------------------------------------------------------------

    def end(self, tile: Tile, later: Later, earlier: Earlier) -> None:
        """Sum the accumulator sets, apply alpha and (on the last pass) the epilogue, store."""
        machine = self.machine
        for other in tile.sets[1:]:
            for row, other_row in zip(tile.acc, other, strict=True):
                for acc, addend in zip(row, other_row, strict=True):
                    machine.add(acc, acc, addend)
        machine.constant_temps = tuple(tile.free[-2:])
        c = self._matrix(tile, "a_now", "c", self.spec.ldc)
        if self.spec.alpha != 1.0:
            self._scale_and_add(tile, c, earlier)
        if self.spec.epilogue and later is not True:
            skip = machine.program.new_label()
            if isinstance(later, list):
                for register, value in later:
                    if isinstance(value, str):
                        self.frame.load_argument("step", value)
                    else:
                        machine.set(self.frame["step"], value)
                    machine.jump_if_different(register, self.frame["step"], skip)
            accumulators = [acc for row in tile.acc for acc in row]
            for step in self.spec.epilogue:
                machine.program.section(EpilogueStep(step))
                apply(step, machine, accumulators, tile.free, partial(self._operand, tile))
            machine.place(skip)
        for acc, disp, width in self._parts(tile, self.spec.ldc):
            machine.store(acc, (c, disp), width)

    def _scale_and_add(self, tile: Tile, c: int, earlier: Earlier) -> None:
        """acc = alpha * acc + (C of an earlier pass, else beta * C)."""
        machine, spec, t = self.machine, self.spec, tile.free[0]
        alpha = machine.const(spec.alpha)
        _each(tile.acc, lambda acc: machine.mul(acc, acc, alpha))
        if earlier is False and spec.beta == 0.0:
            return
        first, done = machine.program.new_label(), machine.program.new_label()
        if earlier is not False:
            if isinstance(earlier, list):
                continued = machine.program.new_label()
                self._branch_if_earlier(earlier, continued)
                machine.jump(first)
                machine.place(continued)
            self._each_c(tile, c, t, lambda acc: machine.add(acc, acc, t))
            if earlier is True:
                return
            machine.jump(done)
            machine.place(first)
        if spec.beta != 0.0:
            beta = machine.const(spec.beta)
            self._each_c(tile, c, t, lambda acc: machine.fma(acc, t, beta))
        machine.place(done)

    def _each_c(self, tile: Tile, c: int, t: int, apply: Callable[[int], None]) -> None:
        """For every accumulator: t = its part of C, then `apply(acc)`."""
        for acc, disp, width in self._parts(tile, self.spec.ldc):
            self.machine.load(t, (c, disp), width)
            apply(acc)

    # ---- the operands of an epilogue's steps -------------------------------------------------

    def _operand(self, tile: Tile, operand: StepOperand, t: int) -> Iterator[list[int]]:
        """Load vectors of an operand into t, one after the other, and tell whose each is."""
        machine, size = self.machine, self.spec.c_bytes
        match operand.place:
            case "bit":
                self._store_mask(tile)
                yield [acc for row in tile.acc for acc in row]
            case "element":
                pointer = self._matrix(tile, "b_now", operand.word, self.spec.ldr)
                for acc, disp, width in self._parts(tile, self.spec.ldr):
                    machine.load(t, (pointer, disp), width)
                    yield [acc]
            case "column":
                pointer = self._vector(operand.word, tile.col)
                for j, width in enumerate(tile.widths):
                    machine.load(t, (pointer, tile.offsets[j] * size), width)
                    yield [row[j] for row in tile.acc]
            case "row":
                pointer = self._vector(operand.word, tile.row)
                for i, row in enumerate(tile.acc):
                    machine.broadcast(t, (pointer, i * size))
                    yield row

    def _vector(self, word: str, position: Position) -> int:
        """Point "b_now" at an element of a vector."""
        self.frame.load_argument("b_now", word)
        self.frame.shift(self.frame["b_now"], position, self.spec.c_bytes, "step")
        return self.frame["b_now"]

    def _store_mask(self, tile: Tile) -> None:
        """Store one bit an element, set where it is positive: row i at i * ceil(n / 8) bytes."""
        machine, spec, frame = self.machine, self.spec, self.frame
        bits, more, pointer = frame["index"], frame["step"], frame["b_now"]
        frame.load_argument("b_now", "mask")
        frame.shift(pointer, tile.row, spec.mask_bytes, "step")
        if isinstance(tile.col, int):
            machine.advance(pointer, tile.col // 8)
        else:
            machine.move(more, tile.col.number)
            machine.shift_right(more, 3)
            machine.sum(pointer, pointer, more)
        # up to 64 bits, and whole bytes, are gathered in one register
        unit = math.lcm(self.facts.lanes, 8)
        gathered = 64 // unit * unit // self.facts.lanes
        for i, row in enumerate(tile.acc):
            done = 0
            while done < len(row):
                group = row[done : done + gathered]
                for j, acc in enumerate(group):
                    target = bits if j == 0 else more
                    machine.positive_bits(target, acc, tile.widths[done + j], tile.free)
                    if j:
                        machine.merge_bits(bits, more, j * self.facts.lanes)
                begin = done * self.facts.lanes
                done += len(group)
                count = min(tile.columns, done * self.facts.lanes) - begin
                at = (pointer, i * spec.mask_bytes + begin // 8)
                machine.store_bits(bits, at, -(-count // 8))


def _each(accumulators: list[list[int]], apply: Callable[[int], None]) -> None:
    for row in accumulators:
        for acc in row:
            apply(acc)

