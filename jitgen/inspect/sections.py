"""One sentence for each section of a kernel: which block, which loop, and why it is there.

The sections are the generator's (`jitgen.gemm.sections`); one that is not known here has no
sentence. Not here: single instructions (`jitgen.inspect.words`).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from jitgen.emit.steps import STEPS
from jitgen.gemm.sections import (
    BatchPass,
    BlockLoop,
    EpilogueStep,
    Mark,
    PackB,
    ReductionLoop,
    TileSection,
)
from jitgen.inspect.registers import tile_operands, tiles
from jitgen.isa import program

if TYPE_CHECKING:
    from jitgen.gemm.emitted import EmittedKernel


class Sections:
    """Sentences for the sections of one kernel."""

    def __init__(self, kernel: EmittedKernel) -> None:
        self.kernel = kernel
        self.tiles = tiles(kernel)
        self.vectors = kernel.target.machine(kernel.spec.dtype, kernel.spec.n).vectors

    def sentence(self, section: Hashable) -> str:
        """What the section does and why, or ""."""
        match section:
            case Mark.ENTRY:
                return self._entry()
            case BatchPass(elements):
                return self._pass(elements)
            case BlockLoop(over, blocks, size, start):
                return self._loop(over, blocks, size, start)
            case PackB(depth, columns):
                return self._pack(depth, columns)
            case TileSection(rows, columns, "start"):
                return self._start(rows, columns)
            case TileSection(rows, columns, "reduce"):
                return self._reduce(rows, columns)
            case ReductionLoop(passes, unroll):
                return self._steps(passes, unroll)
            case TileSection(rows, columns, "finish"):
                return self._finish(rows, columns)
            case EpilogueStep((name, *_)):
                return self._epilogue(str(name))
            case Mark.NEXT_PASS:
                return self._next()
            case Mark.RETURN:
                return self._return()
            case program.CONSTANTS:
                return self._constants()
        return ""

    def _entry(self) -> str:
        if self.kernel.target.scalable:
            return (
                f"Refuses vectors of other lengths than {self.kernel.target.vector_bits} bits; "
                "saves what the caller wants kept."
            )
        return "Saves what the caller wants kept; loads what all tiles need."

    def _pass(self, chunk: int) -> str:
        if self.kernel.plan.pack:
            return "C is stored after each pass, because the stack holds B of one batch element."
        what = "batch element" if chunk == 1 else f"{chunk} batch elements"
        return f"C is stored every {what}, so that what a pass reads stays in the L1 cache."

    def _loop(self, what: str, blocks: int, size: int, start: int) -> str:
        end = start + blocks * size - 1
        if what == "k":
            return f"Steps {start} to {end} of the reduction, {size} between stores of C."
        name = "Rows" if what == "row" else "Columns"
        order = self.kernel.plan.order
        outer = (order == "nm") == (what == "col")
        which = "outer" if outer else "inner"
        return f"{name} {start} to {end} of C, {size} in a tile: the {which} loop over tiles."

    def _pack(self, depth: int, columns: int) -> str:
        spec = self.kernel.spec
        why = "it is stored transposed" if spec.trans_b else "its rows lie far apart"
        return f"Copies {depth} steps of {columns} columns of B to lie densely, because {why}."

    def _tile(self, rows: int, columns: int) -> tuple[int, int, int, int, int]:
        """Accumulators of one set, sets, registers of A and of B, registers of all."""
        tile = self.tiles[rows, columns]
        a, b = tile_operands(tile)
        accumulators = len(tile.sets) * len(tile.widths) * tile.rows
        used = accumulators + len(a) + len(b) + (tile.tail >= 0)
        return accumulators // len(tile.sets), len(tile.sets), len(a), len(b), used

    def _start(self, rows: int, columns: int) -> str:
        size, sets, a, b, used = self._tile(rows, columns)
        spec = self.kernel.spec
        begin = "zero" if spec.alpha != 1 or not spec.beta else "beta C" if spec.beta != 1 else "C"
        if begin != "C" and spec.alpha == 1 and self._stored_between():
            begin += " or an earlier pass's C"
        several = f"{sets} x {size} accumulators (FMA latency)" if sets > 1 else (
            f"{size} accumulators"
        )
        return (
            f"Sums begin with {begin}; {several}, {a} of A, {b} of B: "
            f"{used} of {self.vectors} vector registers."
        )

    def _stored_between(self) -> bool:
        """Whether C is stored and read again between passes."""
        plan = self.kernel.plan
        return plan.batch_chunk > 0 or plan.k_block < self.kernel.spec.steps

    def _reduce(self, rows: int, columns: int) -> str:
        tile = self.tiles[rows, columns]
        if tile.hold == "b":
            step = f"{len(tile.widths)} vectors of B and {rows} elements of A, broadcast"
        else:
            step = f"{rows} elements of A, broadcast, and {len(tile.widths)} vectors of B"
        macs = tile.rows * len(tile.widths)
        return f"Adds A B of each batch element: a step takes {step}, for {macs} FMAs."

    def _steps(self, passes: int, unroll: int) -> str:
        return f"The inner loop: {unroll} steps in line, {passes} times, to make branches rare."

    def _finish(self, rows: int, columns: int) -> str:
        _, sets, *_ = self._tile(rows, columns)
        spec = self.kernel.spec
        parts = [f"adds the {sets} sets of sums"] if sets > 1 else []
        parts += ["multiplies by alpha"] if spec.alpha != 1 else []
        parts += ["adds beta C"] if spec.alpha != 1 and spec.beta else []
        parts += ["applies the epilogue"] if spec.epilogue else []
        text = ", ".join([*parts, "stores the tile to C"])
        return f"{text[0].upper()}{text[1:]}."

    def _epilogue(self, name: str) -> str:
        last = ", on the last pass only" if self._stored_between() else ""
        return f"On the accumulators: {STEPS[name].sentence}{last}."

    def _next(self) -> str:
        return "The pointers move to the next batch elements; ends when the batch does."

    def _return(self) -> str:
        return "Gives the caller's registers back; the result 0 says that all went well."

    def _constants(self) -> str:
        return "Read through their address relative to the code, which runs anywhere."
