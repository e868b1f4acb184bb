"""A register tile while it is emitted: which vector registers it uses, and where it lies in C.

Not here: which tiles there are (`jitgen.gemm.tiles`) and what is done in one
(`jitgen.gemm.generator`, `jitgen.gemm.epilogue`).
"""

from __future__ import annotations

from jitgen.emit.frame import Position
from jitgen.gemm.spec import KernelSpec
from jitgen.gemm.tiles import operand_registers, overlaps, resolve_hold, tail_registers
from jitgen.isa.form import Record
from jitgen.isa.machine import At
from jitgen.target import Facts


class Tile:
    """A register tile: its size and position, and which vector registers it uses.

    Accumulators come first (set by set, row by row), then the operands; a tail mask that needs a
    register has the last one.
    """

    def __init__(
        self, spec: KernelSpec, facts: Facts, rows: int, columns: int, row: Position, col: Position,
        split: int, hold: str,
    ) -> None:  # fmt: skip
        lanes = facts.lanes
        #: active lanes of each vector of columns, and its first column within the tile
        widths = [min(lanes, columns - j) for j in range(0, columns, lanes)]
        self.offsets = list(range(0, columns, lanes))
        if overlaps(spec, facts, columns):
            widths[-1] = lanes
            self.offsets[-1] = columns - lanes
        self.columns = columns
        self.rows = rows
        self.widths = widths
        self.row = row
        self.col = col
        vectors = len(widths)
        size = rows * vectors
        self.sets = [
            [[s * size + i * vectors + j for j in range(vectors)] for i in range(rows)]
            for s in range(split)
        ]
        self.acc = self.sets[0]
        needed = operand_registers(facts, rows, vectors, hold)
        self.operands = list(range(split * size, split * size + needed))
        self.hold = resolve_hold(rows, vectors, hold)
        #: the registers of the operand that is held through a step, and of the other one (-1 where
        #: the multiply-accumulate reads it from memory)
        count = vectors if self.hold == "b" else rows
        self.held = self.operands[:count]
        self.moving = self.operands[count] if needed > count else -1
        #: lanes of B to load: a panel is padded with zeros, so its vectors are whole
        self.loaded = [lanes] * vectors if spec.panel else widths
        self.tail = facts.vectors - 1 if tail_registers(spec, facts, columns) else -1
        #: where the reduction's first step reads A's rows and B's vectors
        self.a_at: list[At] = []
        self.b_at: list[At] = []
        #: instruction records that repeat in every step
        self.repeated: dict[tuple[int, int], list[Record]] = {}
        #: registers free once the reduction is over and the sets are summed
        self.free = [v for v in range(size, facts.vectors) if v != self.tail]
