"""Start and end of a tile: what the accumulators begin with, the epilogue, and the store.

With alpha = 1 the accumulators begin with beta * C; otherwise they begin with zero and C is added
at the end. An earlier pass leaves partial sums in C, to which the next pass adds; only the last
pass applies the epilogue. Not here: the reduction (`jitgen.gemm.generator`) and the transcendental
functions (`jitgen.emit.functions`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from jitgen.emit import functions
from jitgen.emit.frame import Frame, Register
from jitgen.emit.functions import FUNCTIONS
from jitgen.gemm.sections import EpilogueStep
from jitgen.gemm.spec import KernelSpec, Step
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
            or any(s[0] in FUNCTIONS or len(s) > 1 for s in spec.epilogue)
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
            for step in self.spec.epilogue:
                self._apply(step, tile)
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
        self._each_element(tile, c, self.spec.ldc, t, apply)

    def _each_element(
        self, tile: Tile, pointer: int, leading: int, t: int, apply: Callable[[int], None]
    ) -> None:
        """For every accumulator: t = its part of an m x n matrix, then `apply(acc)`."""
        for acc, disp, width in self._parts(tile, leading):
            self.machine.load(t, (pointer, disp), width)
            apply(acc)

    # ---- the steps of an epilogue -----------------------------------------------------------

    def _apply(self, step: Step, tile: Tile) -> None:
        machine, t = self.machine, tile.free[0]
        name, *parameters = step
        machine.program.section(EpilogueStep(step))
        if name in FUNCTIONS:
            temps = tile.free[: functions.TEMPS[name]]
            _each(tile.acc, lambda acc: FUNCTIONS[name](machine, acc, temps))
        elif name == "residual":
            pointer = self._matrix(tile, "b_now", "residual", self.spec.ldr)
            self._each_element(
                tile, pointer, self.spec.ldr, t, lambda acc: machine.add(acc, acc, t)
            )
        elif name == "scale":
            factor = machine.const(parameters[0])
            _each(tile.acc, lambda acc: machine.mul(acc, acc, factor))
        elif name == "clip":
            machine.load_const(t, machine.const(parameters[0]))
            _each(tile.acc, lambda acc: machine.max(acc, t, acc))
            machine.load_const(t, machine.const(parameters[1]))
            _each(tile.acc, lambda acc: machine.min(acc, t, acc))
        elif name == "leaky_relu":
            slope = machine.const(parameters[0])

            def leak(acc: int) -> None:
                machine.mul(t, acc, slope)
                machine.select_negative(acc, acc, t, acc)

            _each(tile.acc, leak)
        elif name in ("relu", "relu_mask"):
            if name == "relu_mask":
                self._store_mask(tile)
            machine.zero(t)
            _each(tile.acc, lambda acc: machine.max(acc, t, acc))
        else:
            self._bias(name, tile, t)

    def _bias(self, name: str, tile: Tile, t: int) -> None:
        """Add a vector along the columns ("bias") or along the rows ("bias_row")."""
        machine = self.machine
        by_column = name == "bias"
        self.frame.load_argument("b_now", name)
        pointer = self.frame["b_now"]
        self.frame.shift(pointer, tile.col if by_column else tile.row, self.spec.c_bytes, "step")
        if by_column:
            for j, width in enumerate(tile.widths):
                machine.load(t, (pointer, tile.offsets[j] * self.spec.c_bytes), width)
                for row in tile.acc:
                    machine.add(row[j], row[j], t)
            return
        for i, row in enumerate(tile.acc):
            machine.broadcast(t, (pointer, i * self.spec.c_bytes))
            for acc in row:
                machine.add(acc, acc, t)

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

