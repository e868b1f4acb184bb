"""Strips of an NHWC image for windows whose lanes are channels: the walk down a few columns.

A row of input is read once and given to all rows of results that see it, which wait in registers
with one vector for each tap (a weight, or the sum that makes its gradient). Where the taps' vectors
do not fit, each row of results is computed by itself, with some taps at a time. What lies beyond
the image is left out: there is no border in memory. Not here: what is multiplied and stored
(`jitgen.kernels.depthwise`), the loops over strips and images (`jitgen.primitives.conv.depthwise`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from jitgen.emit.copying import repeated
from jitgen.emit.frame import Frame
from jitgen.emit.shapes import MATRIX_BYTES, MOST_TAPS, check_shape
from jitgen.emit.steps import STEPS, Step, operands, temporaries
from jitgen.isa.machine import Machine
from jitgen.target import Target
from jitgen.types import DTYPES

#: Instructions of a walk down a strip, and of a row that is computed by itself, at most
WALK_SIZE, ROW_SIZE = 1400, 320
#: Pixels of such a row, at most: enough to hide the latency of the FMA
ROW_PIXELS = 8


@dataclass(frozen=True)
class Axis:
    """Windows along one direction: tap t of result o sees pixel (o step + taps[t]) / up where that
    is whole and one of 0 .. size - 1, and zeros elsewhere. `up` is 1, but in the gradient of x the
    convolution's stride."""

    count: int
    step: int
    taps: tuple[int, ...]
    size: int
    up: int = 1

    def check(self, name: str) -> None:
        """Raise ValueError that names the field unless this is such a direction."""
        if min(self.count, self.step, self.up) < 1 or self.size < 0 or not self.taps:
            raise ValueError(f"{name}={self}: count, step, up and taps are at least 1, size 0")

    def seen(self, o: int) -> list[tuple[int, int]]:
        """The taps of result o that see a pixel, and that pixel."""
        places = [(t, *divmod(o * self.step + tap, self.up)) for t, tap in enumerate(self.taps)]
        return [(t, at) for t, at, rest in places if not rest and 0 <= at < self.size]

    @property
    def alive(self) -> int:
        """How many results one walk along the pixels has begun and not finished, at most."""
        return min(self.count, (max(self.taps) - min(self.taps)) // self.step + 1)

    @property
    def period(self) -> int:
        """After how many results the same taps see pixels again."""
        return self.up // math.gcd(self.step, self.up)

    @property
    def unroll(self) -> int:
        """After how many results the same registers do the same again."""
        return math.lcm(self.alive, self.period)

    def corner(self, o: int) -> int:
        """A pixel for result o that moves evenly from period to period."""
        return o * self.step // self.up


@dataclass(frozen=True)
class Strip:
    """How much one kernel computes: `pixels` of a row, at most; only `rolling` kernels, which have
    all weights in registers, compute more than one row."""

    pixels: int
    rolling: bool


def plan_strip(
    rows: Axis, columns: Axis, channels: int, dtype: str, target: Target,
    epilogue: tuple[Step, ...] = (), *, gradient: bool = False,
) -> Strip:  # fmt: skip
    """The strip for kernels with these windows, or parts of them."""
    free = _free(target.machine(dtype, channels), channels, epilogue, gradient)
    taps, alive = len(rows.taps) * len(columns.taps), rows.alive
    steps = min(rows.count, alive + 2 * rows.unroll)
    size = taps + sum(STEPS[name].size for name, *_ in epilogue)
    pixels = min((free - taps) // alive, WALK_SIZE // (size * steps), columns.count)
    if pixels >= min(2, columns.count):
        return Strip(pixels, True)
    return Strip(min(free // 2, ROW_PIXELS, max(1, ROW_SIZE // size), columns.count), False)


def _free(machine: Machine, channels: int, epilogue: tuple[Step, ...], gradient: bool) -> int:
    """Vector registers for weights and results."""
    tail = _tail(machine, channels, gradient)
    masks = machine.tail_vectors(tail) if tail else 0
    return machine.vectors - machine.constant_registers - masks - temporaries(epilogue)


def _tail(machine: Machine, channels: int, gradient: bool) -> int:
    """Channels of a vector that is not whole. Where results are not added to, the last vector may
    instead lie over the one before it."""
    return channels % machine.lanes if gradient or channels < machine.lanes else 0


#: A row of input in a step: how far below the corner of the step's result, and for each row of
#: results that it adds to: how far below the step's result, the row of taps, and if it is the first
Reads = tuple[int, tuple[tuple[int, int, bool], ...]]


def _steps(rows: Axis) -> list[tuple[bool, tuple[Reads, ...]]]:
    """For each row of results: whether it sees zeros only, and the rows of input that are read
    after those of the row before until it is complete."""
    reads: dict[int, list[tuple[int, int]]] = {}
    last = -1
    ends = []
    for o in range(rows.count):
        for t, place in rows.seen(o):
            reads.setdefault(place, []).append((o, t))
            last = max(last, place)
        ends.append(last)
    steps = []
    begun: set[int] = set()
    read = -1
    for o, end in enumerate(ends):
        step = []
        for i in range(read + 1, end + 1):
            uses = []
            for out, t in sorted(reads.get(i, [])):
                uses.append((out - o, t, out not in begun))
                begun.add(out)
            if uses:
                step.append((i - rows.corner(o), tuple(uses)))
        steps.append((not rows.seen(o), tuple(step)))
        read = end
    return steps


class Walk(ABC):
    """Emits the walk down a strip; `words`: what pointers hold, role -> word of the struct; role
    "residual" is how far the epilogue's matrix is from y, which it lies like. Vector
    registers: temporaries, weights (or their sums), pixels of the results alive (or dy); behind
    those that are free for them are those for constants and a mask."""

    gradient = False
    words: dict[str, str]

    def __init__(
        self, rows: Axis, columns: Axis, channels: int, dtype: str, target: Target,
        x: tuple[int, int], w: int, y: tuple[int, int], ahead: int,
        epilogue: tuple[Step, ...] = (),
    ) -> None:  # fmt: skip
        rows.check("rows")
        columns.check("columns")
        if ahead < 0:
            raise ValueError(f"ahead={ahead} is negative")
        taps = len(rows.taps) * len(columns.taps)
        if taps > MOST_TAPS:
            raise ValueError(f"taps: {taps} of them; a window has 1 to {MOST_TAPS}")
        check_shape(taps, channels, dtype, w)
        for (row, pixel), height, width in (
            (x, rows.size + ahead, columns.size), (y, rows.count, columns.count)
        ):  # fmt: skip
            check_shape(1, channels, dtype, pixel)
            reach = height * row + width * pixel
            if row < 0 or reach * DTYPES[dtype].size >= MATRIX_BYTES:
                raise ValueError(f"distances {row}, {pixel} reach up, or 2 GiB ({dtype}) or more")
        self.machine: Machine = target.machine(dtype, channels)
        machine = self.machine
        self.channels = channels
        self.tail = _tail(machine, channels, self.gradient)
        self.free = free = _free(machine, channels, epilogue, self.gradient)
        pixels = columns.count
        self.rolling = taps + rows.alive * pixels <= free
        if not self.rolling and (rows.count > 1 or pixels >= free):
            raise ValueError(
                f"rows={rows}, columns={columns}: {free} registers do not hold the weights and "
                f"{rows.alive} rows of results, or one row of less than {free} pixels"
            )
        element = machine.element
        self.rows, self.columns, self.epilogue = rows, columns, epilogue
        #: distances in bytes: rows and pixels of x and y, rows of w
        self.x, self.y = (x[0] * element, x[1] * element), (y[0] * element, y[1] * element)
        self.w = w * element
        self.ahead = ahead * self.x[0]
        self.temps = range(temporaries(epilogue))
        held = taps if self.rolling else math.ceil(taps / math.ceil(taps / (free - pixels)))
        self.groups = [range(i, min(i + held, taps)) for i in range(0, taps, held)]
        first = len(self.temps)
        self.weights = [first + t % held for t in range(taps)]
        first += held
        self.acc = [
            list(range(first + i * pixels, first + (i + 1) * pixels)) for i in range(rows.alive)
        ]
        #: by result along the row: the taps that see a pixel, and that pixel
        self.seen = [columns.seen(p) for p in range(pixels)]
        self.frame = Frame(machine)

    @abstractmethod
    def enter(self, taps: range, lanes: int) -> None:
        """Load what belongs to these taps."""

    @abstractmethod
    def leave(self, taps: range, lanes: int) -> None:
        """Be done with these taps."""

    @abstractmethod
    def begin(self, acc: list[int], down: int, lanes: int) -> None:
        """Begin the row of results `down` rows below that of pointer y_now."""

    @abstractmethod
    def finish(self, acc: list[int], lanes: int) -> None:
        """Complete the row of results of pointer y_now."""

    @abstractmethod
    def mac(self, acc: int, weight: int, x: int, lanes: int) -> None:
        """Multiply and add: the registers of a result's pixel, a weight and an input."""

    def emit(self) -> Frame:
        """All of the function."""
        machine, frame = self.machine, self.frame
        matrix = "residual" in operands(self.epilogue)
        roles = (*self.words, "x_now", "y_now", "left", "again", "constants")
        for role in (*roles, *(("residual", "residual_now") if matrix else ())):
            frame.take(role)
        machine.program.section(f"{self.rows} x {self.columns} x {self.channels} channels")
        machine.begin(frame.used())
        machine.use_constants(frame["constants"])
        last = len(self.temps) + self.free
        machine.constant_temps = tuple(range(last, last + machine.constant_registers))
        if self.tail:
            machine.set_tail(self.tail, machine.vectors - 1)
        for role, word in self.words.items():
            frame.load_argument(role, word)
        if matrix:  # how far it is from y
            frame.load_argument("residual", "residual")
            machine.subtract(frame["residual"], frame["y"])
        lanes = machine.lanes
        vectors = (self.channels - self.tail + lanes - 1) // lanes
        if vectors:
            with repeated(machine, frame["left"], vectors):
                self._walk(lanes)
                for role in self.words:
                    machine.advance(frame[role], lanes * machine.element)
                if vectors * lanes > self.channels:  # the second vector lies over the first one
                    later = machine.program.new_label()
                    machine.jump_if_less(frame["left"], vectors, later)
                    for role in self.words:
                        back = self.channels - vectors * lanes
                        machine.advance(frame[role], back * machine.element)
                    machine.place(later)
        if self.tail:
            machine.program.section(f"tail of {self.tail} channels")
            self._walk(self.tail)
        machine.end()
        return frame

    def _walk(self, lanes: int) -> None:
        """All results of a vector of channels."""
        machine, frame = self.machine, self.frame
        steps = _steps(self.rows)
        period, unroll = self.rows.period, self.rows.unroll
        # the walk's pointer stands at the first row that a usual step reads
        start = next((reads[0][0] for _, reads in steps[len(steps) // 2 :] if reads), 0)
        machine.offset(frame["x_now"], frame["x"], start * self.x[0])
        machine.move(frame["y_now"], frame["y"])
        if self.rolling:
            self.enter(self.groups[0], lanes)
        o = 0
        while o < len(steps):
            alike = o + period
            while alike < len(steps) and steps[alike] == steps[alike - period]:
                alike += 1
            passes, rows = (alike - o) // unroll, unroll
            if passes < 2:
                passes, rows = 1, 1
            machine.program.section(f"rows {o} to {o + passes * rows - 1}")
            with repeated(machine, frame["again"], passes):
                for i in range(o, o + rows):
                    self._step(steps[i], i, start, lanes)
            o += passes * rows
        if self.rolling:
            self.leave(self.groups[0], lanes)

    def _step(
        self, step: tuple[bool, tuple[Reads, ...]], o: int, start: int, lanes: int
    ) -> None:
        """Read the rows of a step, which completes row o of the results."""
        machine, frame, alive = self.machine, self.frame, len(self.acc)
        blank, reads = step
        if blank:
            self.begin(self.acc[o % alive], 0, lanes)
        for taps in self.groups:
            if not self.rolling:
                self.enter(taps, lanes)
            for i, uses in reads:
                if taps is self.groups[0]:
                    for down, _, first in uses:
                        if first:
                            self.begin(self.acc[(o + down) % alive], down, lanes)
                seen = [(self.acc[(o + down) % alive], r) for down, r, _ in uses]
                self._row((i - start) * self.x[0], seen, taps, lanes)
            if not self.rolling:
                self.leave(taps, lanes)
        self.finish(self.acc[o % alive], lanes)
        rows = self.rows.corner(o + 1) - self.rows.corner(o)
        machine.advance(frame["x_now"], rows * self.x[0])
        machine.advance(frame["y_now"], self.y[0])

    def _row(
        self, at: int, uses: list[tuple[list[int], int]], taps: range, lanes: int
    ) -> None:
        """Multiply a row of input with `taps`: for each (results, row of taps) of `uses`."""
        machine, x, width = self.machine, self.frame["x_now"], len(self.columns.taps)
        found: dict[int, list[tuple[int, int]]] = {}
        for p, sees in enumerate(self.seen):
            for s, place in sees:
                for acc, r in uses:
                    if r * width + s in taps:
                        pair = (acc[p], self.weights[r * width + s])
                        found.setdefault(place, []).append(pair)
        for place, pairs in sorted(found.items()):
            there = at + place * self.x[1]
            machine.load(self.temps[0], (x, there), lanes)
            if self.ahead:
                machine.prefetch((x, there + self.ahead))
            for result, weight in pairs:
                self.mac(result, weight, self.temps[0], lanes)
