"""Windows over a row of pixels, NHWC: the loops over tiles of pixels and vectors of channels.

Vectors run along the channels. A tile is a few neighbouring pixels by one vector; the last tile of
a row lies over the one before it. Not here: what is made of a window (`jitgen.kernels.pooling`),
padding, and the loops over rows and images.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jitgen.emit.copying import repeated
from jitgen.emit.routine import Operand, Writer, Written
from jitgen.emit.shapes import MATRIX_BYTES, MOST_TAPS, check_shape
from jitgen.target import Target
from jitgen.types import DTYPES


@dataclass(frozen=True)
class Row:
    """A row of output pixels and the windows they see; sizes in elements."""

    pixels: int
    channels: int
    taps: tuple[int, ...]
    step: int
    dtype: str

    def check(self, leading: int) -> None:
        """Raise ValueError unless kernels can address the row, pixels `leading` elements apart."""
        check_shape(self.pixels, self.channels, self.dtype, leading)
        if not 1 <= len(self.taps) <= MOST_TAPS:
            raise ValueError(f"taps has {len(self.taps)} offsets; a window has 1 to {MOST_TAPS}")
        if self.step < 0:
            raise ValueError(f"step={self.step} is negative")
        far = max(map(abs, self.taps)) + (self.pixels - 1) * self.step + self.channels
        if far * DTYPES[self.dtype].size >= MATRIX_BYTES:
            raise ValueError(f"taps and step reach {far} elements ({self.dtype}): 2 GiB or more")


class Windows(Writer, ABC):
    """Writes loops over the tiles of a row; a subclass emits the tile. All pointers move along the
    channels."""

    def __init__(
        self, kind: str, row: Row, target: Target, operands: dict[str, Operand]
    ) -> None:
        name = f"{kind} {row.dtype} {row.pixels}x{row.channels} of {len(row.taps)} taps"
        machine = target.machine(row.dtype, row.channels)
        super().__init__(name, target, machine, operands, row.channels)
        self.row = row

    @abstractmethod
    def loops(self) -> None:
        """Emit everything between entry and return."""

    def channels(self, emit: Callable[[int], None]) -> None:
        """Loop over vectors of channels: `emit` for each of them, and for the tail, with its lanes.
        The pointers ..._now move from one to the next."""
        self.over_vectors(emit, "left", [f"{role}_now" for role in self.operands])

    def write(self) -> Written:
        """The function."""
        self.take(*(f"{role}_now" for role in self.operands), "left", "again", "constants")
        self.begin()
        self.loops()
        return self.end()

    def uses(self, taps: Sequence[int], pixels: int) -> list[tuple[int, list[tuple[int, int]]]]:
        """The input vectors of a tile: displacement, and the (pixel, tap) pairs that read it."""
        found: dict[int, list[tuple[int, int]]] = {}
        for t in taps:
            for p in range(pixels):
                place = (self.row.taps[t] + p * self.row.step) * self.element
                found.setdefault(place, []).append((p, t))
        return sorted(found.items())


class Forward(Windows):
    """Windows that make one result a pixel: tiles of at most `most` pixels, result by result in
    the registers `acc`, stored to c."""

    def __init__(
        self, kind: str, row: Row, ldc: int, target: Target, operands: dict[str, Operand], most: int
    ) -> None:
        own = {
            "x": Operand("a", "x at the first window", row.dtype), "y": Operand("c", "y", row.dtype)
        }  # fmt: skip
        super().__init__(kind, row, target, {**own, **operands})
        self.pitch = ldc * self.element
        self.most = most
        self.acc: list[int] = []

    def tiles(self, first: int) -> None:
        """Choose the tiles; their accumulators are the registers from `first` on."""
        most = min(self.most, self.free - first)
        self.passes = math.ceil(self.row.pixels / most)
        self.pixels = math.ceil(self.row.pixels / self.passes)
        self.acc = list(range(first, first + self.pixels))

    @abstractmethod
    def tile(self, lanes: int) -> None:
        """Compute the pixels at x_now into `acc`."""

    def loops(self) -> None:
        machine, frame = self.machine, self.frame
        steps = {"x": self.row.step * self.element, "y": self.pitch}
        machine.program.section(f"{self.passes} tiles of {self.pixels} pixels")
        with repeated(machine, frame["again"], self.passes):
            for role in self.operands:
                machine.move(frame[f"{role}_now"], frame[role])
            self.channels(self._tile_and_store)
            if self.passes > 1:
                for role, size in steps.items():
                    machine.advance(frame[role], self.pixels * size)
            over = self.passes * self.pixels - self.row.pixels
            if over:  # the second tile lies over the first one
                later = machine.program.new_label()
                machine.jump_if_less(frame["again"], self.passes, later)
                for role, size in steps.items():
                    machine.advance(frame[role], -over * size)
                machine.place(later)

    def _tile_and_store(self, lanes: int) -> None:
        self.tile(lanes)
        for p, acc in enumerate(self.acc):
            self.machine.store(acc, (self.frame["y_now"], p * self.pitch), lanes)
