"""Depthwise convolution of a row of pixels, NHWC: each channel with a filter of its own.

    y[j, c] = epilogue(sum over t of x[taps[t] + j step + c] w[t, c])

Vectors run along the channels. A tile is a few neighbouring pixels by one vector: its weights are
loaded once, and an input that several pixels see is, too. The last tile of a row lies over the one
before it. Called as BRGEMM kernels are (docs/abi.md). `Windows` has the loops, which pooling
(`jitgen.pooling`) shares. Not here: padding and the loops over rows and images.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from isa.machine import ELEMENTS, Machine
from jitgen import functions
from jitgen.copying import repeated
from jitgen.elementwise import check_shape
from jitgen.epilogue import FUNCTIONS
from jitgen.frame import Frame
from jitgen.spec import MATRIX_BYTES, Step, make_epilogue
from jitgen.target import Target

#: Epilogue steps besides FUNCTIONS
STEPS = ("bias", "relu", "clip")
#: Pixels of a tile, at most: enough to hide the latency of the FMA; fewer with FUNCTIONS
PIXELS, FUNCTION_PIXELS = 8, 3
#: Multiply-accumulates of a tile, at most, for code below 8 KiB; the weight gradient has one more
#: tile, for the rest of the pixels
TILE_MACS, GRADIENT_MACS = 224, 112
#: Taps of a window, at most: they stand in line
MOST_TAPS = 81
#: Pixels that the weight gradient takes at a time
UNROLL = 4


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
        if far * ELEMENTS[self.dtype][2] >= MATRIX_BYTES:
            raise ValueError(f"taps and step reach {far} elements ({self.dtype}): 2 GiB or more")


@lru_cache(maxsize=1024)
def emit_depthwise(
    pixels: int, channels: int, taps: tuple[int, ...], dtype: str, target: Target, *, step: int,
    ldc: int, ldb: int | None = None, filters: tuple[int, ...] | None = None,
    epilogue: tuple[Step, ...] = (),
) -> bytes:  # fmt: skip
    """Machine code for one row of `pixels` output pixels of `channels` channels.

    Word a is x at the corner of the first pixel's window, b is w (rows of channels, `ldb` elements
    apart, default: channels), c is y (pixels `ldc` elements apart), bias as the epilogue asks.
    Tap t reads taps[t] elements from the corner and row filters[t] of w (default: t); corners are
    `step` elements apart. y may overlap neither x nor w. With a stride of its own, the gradient of
    x is such rows too: those of its pixels that see the same taps, `ldc` being the stride.

    epilogue: steps of STEPS and FUNCTIONS. Raises ValueError that names argument, value and rule.
    """
    row = Row(pixels, channels, taps, step, dtype)
    row.check(ldc)
    rows = tuple(range(len(taps))) if filters is None else filters
    ldb = channels if ldb is None else ldb
    if len(rows) != len(taps) or min(rows) < 0:
        raise ValueError(f"filters={filters}: each of the {len(taps)} taps has one, from 0")
    check_shape(max(rows) + 1, channels, dtype, ldb)
    steps = make_epilogue(epilogue)
    for name, *_ in steps:
        if name not in STEPS and name not in FUNCTIONS:
            raise ValueError(f"epilogue step {name!r} is not one of {', '.join(STEPS)} ...")
    return _Depthwise(row, ldc, [ldb * r for r in rows], target, steps).emit()


@lru_cache(maxsize=1024)
def emit_depthwise_weights(
    pixels: int, channels: int, taps: tuple[int, ...], dtype: str, target: Target, *, step: int,
    ldb: int, ldc: int | None = None, accumulate: bool = True,
) -> bytes:  # fmt: skip
    """Machine code for what one row adds to the gradient of w: dw[t, c] += sum over j of
    dy[j, c] x[taps[t] + j step + c], or dw[t, c] = without `accumulate`.

    Word a is x and `taps`, `step` are as for `emit_depthwise`; b is dy (pixels `ldb` elements
    apart), c is dw (taps x channels, rows `ldc` elements apart, default: channels). Raises
    ValueError that names argument, value and rule.
    """
    row = Row(pixels, channels, taps, step, dtype)
    row.check(ldb)
    ldc = channels if ldc is None else ldc
    check_shape(len(taps), channels, dtype, ldc)
    return _Weights(row, ldb, ldc, target, accumulate).emit()


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

    def multiply(
        self, at: tuple[int, int], pairs: list[tuple[int, int]], lanes: int, temp: int
    ) -> None:
        """acc += x * v for each pair (acc, v) of registers, x being the vector at `at`."""
        machine = self.machine
        if len(pairs) == 1 and machine.fused_load and lanes == machine.lanes:
            machine.mac_load(*pairs[0], at, lanes)
            return
        machine.load(temp, at, lanes)
        for acc, v in pairs:
            machine.mac(acc, temp, v, lanes)


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


class _Depthwise(Forward):
    def __init__(
        self, row: Row, ldc: int, filters: list[int], target: Target, epilogue: tuple[Step, ...]
    ) -> None:
        words = {"w": "b"}
        if ("bias",) in epilogue:
            words["bias"] = "bias"
        names = [step[0] for step in epilogue]
        slow = any(name in FUNCTIONS for name in names)
        most = min(FUNCTION_PIXELS if slow else PIXELS, max(1, TILE_MACS // len(row.taps)))
        super().__init__(row, ldc, target, words, most)
        self.epilogue = epilogue
        self.filters = [offset * self.element for offset in filters]
        self.temps = list(range(max([1, *(functions.TEMPS.get(name, 1) for name in names)])))
        # all taps at once where their weights leave registers for some pixels, else in groups
        room = self.free - len(self.temps)
        taps = len(row.taps)
        held = taps if room - taps >= min(2, row.pixels) else min(taps, room // 2)
        groups = math.ceil(taps / held)
        held = math.ceil(taps / groups)
        self.groups = [range(i, min(i + held, taps)) for i in range(0, taps, held)]
        self.weights = [len(self.temps) + t % held for t in range(taps)]
        self.tiles(len(self.temps) + held)

    def tile(self, lanes: int) -> None:
        machine, x = self.machine, self.frame["x_now"]
        for acc in self.acc:
            machine.zero(acc)
        for taps in self.groups:
            for t in taps:
                machine.load(self.weights[t], (self.frame["w_now"], self.filters[t]), lanes)
            for place, pairs in self.uses(taps, self.pixels):
                registers = [(self.acc[p], self.weights[t]) for p, t in pairs]
                self.multiply((x, place), registers, lanes, self.temps[0])
        for step in self.epilogue:
            self._apply(step, lanes)

    def _apply(self, step: Step, lanes: int) -> None:
        machine, t = self.machine, self.temps[0]
        name, *parameters = step
        if name in FUNCTIONS:
            for acc in self.acc:
                FUNCTIONS[name](machine, acc, self.temps[: functions.TEMPS[name]])
        elif name == "bias":
            machine.load(t, (self.frame["bias_now"], 0), lanes)
            for acc in self.acc:
                machine.add(acc, acc, t)
        elif name == "relu":
            machine.zero(t)
            for acc in self.acc:
                machine.max(acc, t, acc)
        else:
            for bound, limit in zip(parameters, (machine.max, machine.min), strict=True):
                machine.load_const(t, machine.const(bound))
                for acc in self.acc:
                    limit(acc, t, acc)


class _Weights(Windows):
    def __init__(self, row: Row, ldb: int, ldc: int, target: Target, accumulate: bool) -> None:
        super().__init__(row, target, {"x": "a", "dy": "b", "dw": "c"})
        self.accumulate = accumulate
        self.pitch, self.filter = ldb * self.element, ldc * self.element
        taps = len(row.taps)
        self.unroll = min(UNROLL, row.pixels, max(1, GRADIENT_MACS // taps))
        # register 0 is an input; then the gradients of a few pixels, then the sums of the taps
        self.first = 1 + self.unroll
        most = self.free - self.first
        held = math.ceil(taps / math.ceil(taps / most))
        self.groups = [range(i, min(i + held, taps)) for i in range(0, taps, held)]

    def loops(self) -> None:
        self.channels(self._sums)

    def _sums(self, lanes: int) -> None:
        machine, frame = self.machine, self.frame
        passes, rest = divmod(self.row.pixels, self.unroll)
        for taps in self.groups:
            machine.program.section(f"sums of taps {taps[0]} to {taps[-1]}")
            for i, t in enumerate(taps, self.first):
                if self.accumulate:
                    machine.load(i, (frame["dw"], t * self.filter), lanes)
                else:
                    machine.zero(i)
            machine.move(frame["x_now"], frame["x"])
            machine.move(frame["dy_now"], frame["dy"])
            with repeated(machine, frame["again"], passes):
                self._pixels(taps, self.unroll, lanes)
                machine.advance(frame["x_now"], self.unroll * self.row.step * self.element)
                machine.advance(frame["dy_now"], self.unroll * self.pitch)
            if rest:
                self._pixels(taps, rest, lanes)
            for i, t in enumerate(taps, self.first):
                machine.store(i, (frame["dw"], t * self.filter), lanes)

    def _pixels(self, taps: range, pixels: int, lanes: int) -> None:
        machine, frame = self.machine, self.frame
        for p in range(pixels):
            machine.load(1 + p, (frame["dy_now"], p * self.pitch), lanes)
        for place, pairs in self.uses(taps, pixels):
            registers = [(self.first + t - taps[0], 1 + p) for p, t in pairs]
            self.multiply((frame["x_now"], place), registers, lanes, 0)
