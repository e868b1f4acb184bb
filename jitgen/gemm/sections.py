"""The sections of a BRGEMM as records: what the code that follows does, with its numbers.

The generator opens sections with these; listings print `str()` of them, and whoever wants to know
which tile or loop an instruction belongs to asks the record, never the words. Sections of other
functions, of which nobody asks more than a title, are plain sentences (`Program.section`). Not
here: why a section is there (`jitgen.inspect.sections`).
"""

from __future__ import annotations

from enum import Enum
from typing import Literal, NamedTuple

#: The parts of a tile, in the order of the code
TileStage = Literal["start", "reduce", "finish"]

_STAGES = {
    "start": "start the accumulators", "reduce": "reduce", "finish": "finish and store",
}  # fmt: skip


class Mark(Enum):
    """Sections without numbers."""

    ENTRY = "entry: save registers, load the arguments"
    NEXT_PASS = "next pass"
    RETURN = "return"

    def __str__(self) -> str:
        return self.value


class BatchPass(NamedTuple):
    """A pass over the batch, of `elements` of it or what is left."""

    elements: int

    def __str__(self) -> str:
        return f"pass over the batch: {self.elements} elements, or what is left"


class BlockLoop(NamedTuple):
    """A loop whose register has the role `over` ("row", "col" or "k"): `blocks` passes of `size`
    rows, columns or reduction steps each, from number `start`."""

    over: str
    blocks: int
    size: int
    start: int

    def __str__(self) -> str:
        return f"loop over {self.over}: {self.blocks} blocks of {self.size}, from {self.start}"


class PackB(NamedTuple):
    """A copy of `depth` reduction steps of `columns` columns of op(B) to the stack."""

    depth: int
    columns: int

    def __str__(self) -> str:
        return f"pack {self.depth} x {self.columns} of op(B) to the stack"


class TileSection(NamedTuple):
    """A part of a tile of C; its reduction holds a `ReductionLoop`, its end `EpilogueStep`s."""

    rows: int
    columns: int
    stage: TileStage

    def __str__(self) -> str:
        return f"tile {self.rows} x {self.columns}: {_STAGES[self.stage]}"


class ReductionLoop(NamedTuple):
    """The inner loop of a tile: `passes` of `unroll` reduction steps in line."""

    passes: int
    unroll: int

    def __str__(self) -> str:
        return f"reduction loop: {self.passes} passes of {self.unroll} steps"


class EpilogueStep(NamedTuple):
    """A step of the epilogue as the spec has it: its name, then its parameters."""

    step: tuple[str | float, ...]

    def __str__(self) -> str:
        return f"epilogue: {' '.join(map(str, self.step))}"
