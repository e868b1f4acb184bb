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
from collections.abc import Sequence
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
#: Multiply-accumulates that a kernel's code holds, at most, if a walk has few irregular rows
MOST_MACS = 640
#: Pixels of a strip whose rows are computed by themselves, and its multiply-accumulates, at most
ROW_PIXELS, ROW_MACS = 8, 320


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
    steps = min(rows.count, 2 * alive + 2)
    pixels = min((free - taps) // alive, MOST_MACS // (taps * steps), columns.count)
    if pixels >= min(2, columns.count):
        return Strip(pixels, True)
    return Strip(min(free // 2, ROW_PIXELS, max(1, ROW_MACS // taps), columns.count), False)


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
    ldb: int, ldc: tuple[int, int], filters: tuple[int, ...] | None = None,
    epilogue: tuple[Step, ...] = (),
) -> bytes:  # fmt: skip
    """Machine code for rows.count x columns.count results of `channels` channels.

    Word a is x at pixel (0, 0), b is w (rows of channels, `ldb` elements apart), c is y, bias as
    the epilogue asks. lda, ldc: elements from a row to the next and from a pixel to the next.
    Tap (r, s), in row-major order, has row filters[i] of w (default: i). y may overlap neither x
    nor w. columns.count is at most `plan_strip(...).pixels`.

    epilogue: steps of STEPS and FUNCTIONS. Raises ValueError that names argument, value and rule.
    """
    steps = make_epilogue(epilogue)
    for name, *_ in steps:
        if name not in STEPS and name not in FUNCTIONS:
            raise ValueError(f"epilogue step {name!r} is not one of {', '.join(STEPS)} ...")
    walk = _Forward(rows, columns, channels, dtype, target, lda, ldb, ldc, filters, steps)
    return walk.emit()


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
    return _Gradient(
        rows, columns, channels, dtype, target, lda, ldc, ldb, None, (), accumulate
    ).emit()


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


def _repeating(steps: Sequence[object], period: int) -> tuple[int, int]:
    """Where the longest stretch begins in which each is equal to that `period` later, and its
    length."""
    best = (0, 0)
    begin = 0
    for i in range(len(steps)):
        if i - begin >= period and steps[i] != steps[i - period]:
            begin = i - period + 1
        best = max(best, (i + 1 - begin, -begin))
    return -best[1], best[0]


class _Walk(ABC):
    """Emits the walk down a strip; `words`: what pointers hold, role -> word of the struct. Vector
    registers: temporaries, weights (or their sums), then pixels of the results alive (or dy)."""

    gradient = False

    def __init__(
        self, rows: Axis, columns: Axis, channels: int, dtype: str, target: Target,
        x: tuple[int, int], w: int, y: tuple[int, int], filters: tuple[int, ...] | None,
        epilogue: tuple[Step, ...], words: dict[str, str],
    ) -> None:  # fmt: skip
        rows.check("rows")
        columns.check("columns")
        taps = len(rows.taps) * len(columns.taps)
        if taps > MOST_TAPS:
            raise ValueError(f"taps: {taps} of them; a window has 1 to {MOST_TAPS}")
        chosen = tuple(range(taps)) if filters is None else filters
        if len(chosen) != taps or min(chosen) < 0:
            raise ValueError(f"filters={filters}: each of the {taps} taps has one, from 0")
        check_shape(max(chosen) + 1, channels, dtype, w)
        for name, (row, pixel) in (("lda", x), ("ldc", y)):
            check_shape(columns.count, channels, dtype, pixel)
            reach = (rows.count * rows.step + max(map(abs, rows.taps))) * row
            if row < 0 or reach * ELEMENTS[dtype][2] >= MATRIX_BYTES:
                raise ValueError(f"{name}={(row, pixel)}: rows reach 2 GiB or more, or up")
        self.machine: Machine = target.machine(dtype, channels)
        machine = self.machine
        self.channels = channels
        self.tail = _tail(machine, channels, self.gradient)
        free = _free(machine, channels, epilogue, self.gradient)
        pixels = columns.count
        self.rolling = taps + rows.alive * pixels <= free
        if not self.rolling and (rows.count > 1 or pixels >= free):
            raise ValueError(
                f"rows={rows}, columns={columns}: {free} registers do not hold the weights and "
                f"{rows.alive} rows of results, or one row of less than {free} pixels"
            )
        element = machine.element
        self.rows, self.columns, self.words = rows, columns, words
        self.x, self.y = (x[0] * element, x[1] * element), (y[0] * element, y[1] * element)
        self.filters = [row * w * element for row in chosen]
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
        machine.constant_temps = tuple(
            range(machine.vectors - 1 - machine.constant_registers, machine.vectors - 1)
        )
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
        first, count = _repeating(steps, self.rows.period)
        unroll = math.lcm(len(self.acc), self.rows.period)
        passes = count // unroll
        # the walk's pointer stands at the first row that a usual step reads
        start = next((reads[0][0] for _, reads in steps[first:] if reads), 0)
        machine.offset(frame["x_now"], frame["x"], start * self.x[0])
        machine.move(frame["y_now"], frame["y"])
        if self.rolling:
            self.enter(self.groups[0], lanes)
        o = 0
        while o < len(steps):
            if o == first and passes > 1:
                machine.program.section(f"{passes} times {unroll} rows")
                with repeated(machine, frame["again"], passes):
                    for i in range(unroll):
                        self._step(steps[o + i], o + i, start, lanes)
                o += passes * unroll
            else:
                machine.program.section(f"row {o}")
                self._step(steps[o], o, start, lanes)
                o += 1
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
    def __init__(
        self, rows: Axis, columns: Axis, channels: int, dtype: str, target: Target,
        lda: tuple[int, int], ldb: int, ldc: tuple[int, int], filters: tuple[int, ...] | None,
        epilogue: tuple[Step, ...],
    ) -> None:  # fmt: skip
        words = {"x": "a", "w": "b", "y": "c"}
        if ("bias",) in epilogue:
            words["bias"] = "bias"
        super().__init__(
            rows, columns, channels, dtype, target, lda, ldb, ldc, filters, epilogue, words
        )
        # a sum may as well begin with the bias
        self.biased = epilogue[:1] == (("bias",),)
        self.epilogue = epilogue[1:] if self.biased else epilogue

    def enter(self, taps: range, lanes: int) -> None:
        for t in taps:
            self.machine.load(self.weights[t], (self.frame["w"], self.filters[t]), lanes)

    def leave(self, taps: range, lanes: int) -> None:
        pass

    def begin(self, acc: list[int], down: int, lanes: int) -> None:
        for register in acc:
            if self.biased:
                self.machine.load(register, (self.frame["bias"], 0), lanes)
            else:
                self.machine.zero(register)

    def mac(self, acc: int, weight: int, x: int, lanes: int) -> None:
        self.machine.mac(acc, x, weight, lanes)

    def finish(self, acc: list[int], lanes: int) -> None:
        for step in self.epilogue:
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

    def __init__(
        self, rows: Axis, columns: Axis, channels: int, dtype: str, target: Target,
        lda: tuple[int, int], ldc: int, ldb: tuple[int, int], filters: tuple[int, ...] | None,
        epilogue: tuple[Step, ...], accumulate: bool,
    ) -> None:  # fmt: skip
        words = {"x": "a", "y": "b", "w": "c"}
        super().__init__(
            rows, columns, channels, dtype, target, lda, ldc, ldb, filters, epilogue, words
        )
        self.accumulate = accumulate

    def enter(self, taps: range, lanes: int) -> None:
        for t in taps:
            if self.accumulate:
                self.machine.load(self.weights[t], (self.frame["w"], self.filters[t]), lanes)
            else:
                self.machine.zero(self.weights[t])

    def leave(self, taps: range, lanes: int) -> None:
        for t in taps:
            self.machine.store(self.weights[t], (self.frame["w"], self.filters[t]), lanes)

    def begin(self, acc: list[int], down: int, lanes: int) -> None:
        for p, register in enumerate(acc):
            place = down * self.y[0] + p * self.y[1]
            self.machine.load(register, (self.frame["y_now"], place), lanes)

    def mac(self, acc: int, weight: int, x: int, lanes: int) -> None:
        self.machine.mac(weight, x, acc, lanes)

    def finish(self, acc: list[int], lanes: int) -> None:
        pass
