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
from jitgen.emit.frame import Frame
from jitgen.emit.shapes import MATRIX_BYTES, MOST_TAPS, check_shape
from jitgen.isa.machine import Machine
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


class Windows(ABC):
    """Emits loops over the tiles of a row; a subclass emits the tile.

    `words`: what pointers hold, role -> word of the argument struct; all move along the channels.
    """

    def __init__(self, row: Row, target: Target, words: dict[str, str]) -> None:
        self.row, self.words = row, words
        self.machine: Machine = target.machine(row.dtype, row.channels)
        self.frame = Frame(self.machine)
        self.element = self.machine.element
        self.vector = self.machine.lanes * self.element
        self.tail = row.channels % self.machine.lanes
        #: vector registers for the algorithm's use: the last ones hold a mask and constants
        masks = self.machine.tail_vectors(self.tail) if self.tail else 0
        self.free = self.machine.vectors - masks - self.machine.constant_registers
        self.machine.constant_temps = tuple(range(self.free, self.machine.vectors - masks))

    @abstractmethod
    def loops(self) -> None:
        """Emit everything between entry and return."""

    def channels(self, emit: Callable[[int], None], suffix: str = "") -> None:
        """Loop over vectors of channels: `emit` for each of them, and for the tail, with its lanes.
        Pointers of `words` (the roles with that suffix) move from one to the next."""
        machine, frame = self.machine, self.frame
        vectors = self.row.channels // machine.lanes
        if vectors:
            with repeated(machine, frame["left"], vectors):
                emit(machine.lanes)
                for role in self.words:
                    machine.advance(frame[role + suffix], self.vector)
        if self.tail:
            machine.program.section(f"tail of {self.tail} channels")
            emit(self.tail)

    def emit(self) -> bytes:
        """The machine code."""
        machine, frame = self.machine, self.frame
        for role in (*self.words, *(f"{r}_now" for r in self.words), "left", "again", "constants"):
            frame.take(role)
        row = self.row
        machine.program.section(f"{row.pixels} windows of {len(row.taps)} x {row.channels}")
        machine.begin(frame.used())
        machine.use_constants(frame["constants"])
        if self.tail:
            machine.set_tail(self.tail, machine.vectors - 1)
        for role, word in self.words.items():
            frame.load_argument(role, word)
        self.loops()
        machine.end()
        return machine.program.encode()

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
        self, row: Row, ldc: int, target: Target, words: dict[str, str], most: int
    ) -> None:
        super().__init__(row, target, {"x": "a", "y": "c", **words})
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
            for role in self.words:
                machine.move(frame[f"{role}_now"], frame[role])
            self.channels(self._tile_and_store, "_now")
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
