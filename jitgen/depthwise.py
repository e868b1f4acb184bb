"""Depthwise convolution, NHWC: each channel with a filter of its own; and its weight gradient.

    y[o, p, c] = epilogue(sum over r, s of x[rows' tap r of o, columns' tap s of p, c] w[r, s, c])

Vectors run along the channels. A kernel walks down a strip of a few columns: a row of input is read
once and added to the results of all rows that see it, which wait in registers, as the weights do.
The gradient is the same walk with the weights' sums in place of the weights and dy in place of the
results. Where the weights do not fit (`Shape.rolling`), each row of results is computed by itself.
What lies beyond the image is left out: there is no border in memory. Called as BRGEMM kernels are
(docs/abi.md). Not here: the loops over strips and images (`primitives.conv_depthwise`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
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
from jitgen.windows import MOST_TAPS

#: Epilogue steps besides FUNCTIONS
STEPS = ("bias", "relu", "clip")
#: Instructions of one of FUNCTIONS, about
FUNCTION_SIZE = 40
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
    size = taps + FUNCTION_SIZE * sum(name in FUNCTIONS for name, *_ in epilogue)
    pixels = min((free - taps) // alive, WALK_SIZE // (size * steps), columns.count)
    if pixels >= min(2, columns.count):
        return Strip(pixels, True)
    return Strip(min(free // 2, ROW_PIXELS, max(1, ROW_SIZE // size), columns.count), False)


def _free(machine: Machine, channels: int, epilogue: tuple[Step, ...], gradient: bool) -> int:
    """Vector registers for weights and results."""
    tail = _tail(machine, channels, gradient)
    masks = machine.tail_vectors(tail) if tail else 0
    return machine.vectors - machine.constant_registers - masks - len(_temps(epilogue))


def _tail(machine: Machine, channels: int, gradient: bool) -> int:
    """Channels of a vector that is not whole. Where results are not added to, the last vector may
    instead lie over the one before it."""
    return channels % machine.lanes if gradient or channels < machine.lanes else 0


def _temps(epilogue: tuple[Step, ...]) -> list[int]:
    return list(range(max([1, *(functions.TEMPS.get(name, 1) for name, *_ in epilogue)])))


@lru_cache(maxsize=1024)
def emit_depthwise(
    rows: Axis, columns: Axis, channels: int, dtype: str, target: Target, *, lda: tuple[int, int],
    ldb: int, ldc: tuple[int, int], epilogue: tuple[Step, ...] = (),
) -> bytes:  # fmt: skip
    """Machine code for rows.count x columns.count results of `channels` channels.

    Word a is x at pixel (0, 0), b is w (taps x channels, rows `ldb` elements apart), c is y, bias
    as the epilogue asks. lda, ldc: elements from a row to the next and from a pixel to the next. y
    may overlap neither x nor w. How many results there may be: `plan_strip`.

    epilogue: steps of STEPS and FUNCTIONS. Raises ValueError that names argument, value and rule.
    """
    steps = make_epilogue(epilogue)
    for name, *_ in steps:
        if name not in STEPS and name not in FUNCTIONS:
            raise ValueError(f"epilogue step {name!r} is not one of {', '.join(STEPS)} ...")
    return _Forward(rows, columns, channels, dtype, target, lda, ldb, ldc, steps).emit()


@lru_cache(maxsize=1024)
def emit_depthwise_weights(
    rows: Axis, columns: Axis, channels: int, dtype: str, target: Target, *, lda: tuple[int, int],
    ldb: tuple[int, int], ldc: int, accumulate: bool = True,
) -> bytes:  # fmt: skip
    """Machine code for what these results add to the gradient of w: dw[r, s, c] += sum over o, p of
    dy[o, p, c] x[...] with x as `emit_depthwise` sees it, or dw = without `accumulate`.

    Word a is x, b is dy (distances `ldb`), c is dw (taps x channels, rows `ldc` elements apart).
    Raises ValueError that names argument, value and rule.
    """
    walk = _Gradient(rows, columns, channels, dtype, target, lda, ldc, ldb)
    walk.accumulate = accumulate
    return walk.emit()


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


class _Walk(ABC):
    """Emits the walk down a strip; `words`: what pointers hold, role -> word of the struct. Vector
    registers: temporaries, weights (or their sums), pixels of the results alive (or dy); behind
    those that are free for them are those for constants and a mask."""

    gradient = False
    words: dict[str, str]

    def __init__(
        self, rows: Axis, columns: Axis, channels: int, dtype: str, target: Target,
        x: tuple[int, int], w: int, y: tuple[int, int], epilogue: tuple[Step, ...] = (),
    ) -> None:  # fmt: skip
        rows.check("rows")
        columns.check("columns")
        taps = len(rows.taps) * len(columns.taps)
        if taps > MOST_TAPS:
            raise ValueError(f"taps: {taps} of them; a window has 1 to {MOST_TAPS}")
        check_shape(taps, channels, dtype, w)
        for (row, pixel), height, width in (
            (x, rows.size, columns.size), (y, rows.count, columns.count)
        ):  # fmt: skip
            check_shape(1, channels, dtype, pixel)
            reach = height * row + width * pixel
            if row < 0 or reach * ELEMENTS[dtype][2] >= MATRIX_BYTES:
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
        self.temps = _temps(epilogue)
        held = taps if self.rolling else math.ceil(taps / math.ceil(taps / (free - pixels)))
        self.groups = [range(i, min(i + held, taps)) for i in range(0, taps, held)]
        first = len(self.temps)
        self.weights = [first + t % held for t in range(taps)]
        first += held
        self.acc = [
            list(range(first + i * pixels, first + (i + 1) * pixels)) for i in range(rows.alive)
        ]
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

    def emit(self) -> bytes:
        """The machine code."""
        machine, frame = self.machine, self.frame
        for role in (*self.words, "x_now", "y_now", "left", "again", "constants"):
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
        return machine.program.encode()

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
        for p in range(self.columns.count):
            for s, place in self.columns.seen(p):
                for acc, r in uses:
                    if r * width + s in taps:
                        pair = (acc[p], self.weights[r * width + s])
                        found.setdefault(place, []).append(pair)
        for place, pairs in sorted(found.items()):
            machine.load(self.temps[0], (x, at + place * self.x[1]), lanes)
            for result, weight in pairs:
                self.mac(result, weight, self.temps[0], lanes)


class _Forward(_Walk):
    words = {"x": "a", "w": "b", "y": "c", "bias": "bias"}

    def enter(self, taps: range, lanes: int) -> None:
        for t in taps:
            self.machine.load(self.weights[t], (self.frame["w"], t * self.w), lanes)

    def leave(self, taps: range, lanes: int) -> None:
        pass

    def begin(self, acc: list[int], down: int, lanes: int) -> None:
        for register in acc:
            if self.epilogue[:1] == (("bias",),):  # a sum may as well begin with it
                self.machine.load(register, (self.frame["bias"], 0), lanes)
            else:
                self.machine.zero(register)

    def mac(self, acc: int, weight: int, x: int, lanes: int) -> None:
        self.machine.mac(acc, x, weight, lanes)

    def finish(self, acc: list[int], lanes: int) -> None:
        for i, step in enumerate(self.epilogue):
            if i or step != ("bias",):
                self._apply(step, acc, lanes)
        for p, register in enumerate(acc):
            self.machine.store(register, (self.frame["y_now"], p * self.y[1]), lanes)

    def _apply(self, step: Step, acc: list[int], lanes: int) -> None:
        machine, t = self.machine, self.temps[0]
        name, *parameters = step
        if name in FUNCTIONS:
            for register in acc:
                FUNCTIONS[name](machine, register, self.temps[: functions.TEMPS[name]])
        elif name == "bias":
            machine.load(t, (self.frame["bias"], 0), lanes)
            for register in acc:
                machine.add(register, register, t)
        elif name == "relu":
            machine.zero(t)
            for register in acc:
                machine.max(register, t, register)
        else:
            for bound, limit in zip(parameters, (machine.max, machine.min), strict=True):
                machine.load_const(t, machine.const(bound))
                for register in acc:
                    limit(register, t, register)


class _Gradient(_Walk):
    gradient = True

    words = {"x": "a", "y": "b", "w": "c"}
    accumulate = True

    def enter(self, taps: range, lanes: int) -> None:
        for t in taps:
            if self.accumulate:
                self.machine.load(self.weights[t], (self.frame["w"], t * self.w), lanes)
            else:
                self.machine.zero(self.weights[t])

    def leave(self, taps: range, lanes: int) -> None:
        for t in taps:
            self.machine.store(self.weights[t], (self.frame["w"], t * self.w), lanes)

    def begin(self, acc: list[int], down: int, lanes: int) -> None:
        for p, register in enumerate(acc):
            place = down * self.y[0] + p * self.y[1]
            self.machine.load(register, (self.frame["y_now"], place), lanes)

    def mac(self, acc: int, weight: int, x: int, lanes: int) -> None:
        self.machine.mac(weight, x, acc, lanes)

    def finish(self, acc: list[int], lanes: int) -> None:
        pass
