"""Timing core of the benchmarks: contestants, the FMA peak, interleaved rounds.

What it is: calls of compiled code without Python in the loop, calls of Python with the overhead
taken out, and the rounds that let all contestants of a comparison take turns on a noisy machine.
What it is not: it knows neither jitgen nor any other library.

Example::

    from tools.bench import timing
    peak = timing.FmaPeak("avx2", "f32")
    result = timing.interleave([peak], rounds=5, sample_ns=1_000_000)
    print(peak.flops_per_call / result["peak"].best_ns)      # GFLOP/s
"""

from __future__ import annotations

import gc
import itertools
import statistics
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tools.bench.machine_code import (
    BLOCK_OFFSET,
    CHAINS,
    LOOPS_PER_CALL,
    STEPS_PER_LOOP,
    VECTOR_BYTES,
    CannotMeasure,
    drivers,
    ffi,
    fma_chain,
    load_code,
    place,
)


class Contestant(Protocol):
    """Something that can be called many times and timed."""

    name: str

    def run(self, calls: int) -> float:
        """Call it ``calls`` times; return nanoseconds spent, overhead of Python taken out."""


class Cursor:
    """Position in a rotation of buffer sets, shared by all contestants of one comparison.

    Sharing it makes sure that nobody finds a set in the cache because another has just used it.
    """

    def __init__(self, sets: int) -> None:
        self.sets = sets
        self.position = 0

    def slices(self, calls: int) -> list[tuple[int, int]]:
        """Return (start, length) pieces that continue the rotation for ``calls`` calls."""
        pieces = []
        while calls:
            length = min(calls, self.sets - self.position)
            pieces.append((self.position, length))
            self.position = (self.position + length) % self.sets
            calls -= length
        return pieces


def _placed(argument: Any) -> Any:
    """Return a copy of an argument struct or array at BLOCK_OFFSET of a page; others as is."""
    kind = ffi.typeof(argument)
    if kind.kind == "array":
        size = ffi.sizeof(argument)
    elif kind.kind == "pointer" and kind.item.kind == "struct":
        size = ffi.sizeof(kind.item)
    else:
        return argument
    return place(bytes(ffi.buffer(argument, size)), BLOCK_OFFSET)


class CompiledCall:
    """A C function of one pointer argument, called from machine code: no Python in the loop.

    With one argument its struct is copied to a fixed place within a page (see BLOCK_OFFSET).
    """

    def __init__(
        self,
        name: str,
        function: int,
        arguments: Sequence[Any],
        cursor: Cursor | None = None,
        keep: Any = None,
    ) -> None:
        """``arguments`` are cffi pointers, one per buffer set; ``keep`` holds what they need."""
        self.name = name
        self._function = ffi.cast("void *", function)
        blocks = [_placed(arguments[0])] if len(arguments) == 1 else list(arguments)
        addresses = [int(ffi.cast("uintptr_t", block)) for block in blocks]
        self._table = ffi.new("void *[]", [ffi.cast("void *", address) for address in addresses])
        self._keep = (blocks, list(arguments), keep)
        self._cursor = cursor

    def run(self, calls: int) -> float:
        """Call the function ``calls`` times; return nanoseconds."""
        driver = drivers()
        repeat, each, stack = driver.repeat, driver.each, driver.stack
        if self._cursor is None:
            start = time.perf_counter_ns()
            repeat(self._function, self._table[0], calls, stack)
            return float(time.perf_counter_ns() - start)
        pieces = [(self._table + at, length) for at, length in self._cursor.slices(calls)]
        start = time.perf_counter_ns()
        for arguments, length in pieces:
            each(self._function, arguments, length, stack)
        return float(time.perf_counter_ns() - start)


class PythonCall:
    """A Python callable; ``overhead_ns`` per call is taken out of what is measured.

    At least a tenth of the measured time is kept: where the overhead is nearly all of it, the
    difference of two noisy numbers would otherwise come out as zero or less.
    """

    def __init__(
        self,
        name: str,
        calls: Sequence[Callable[[], Any]],
        overhead_ns: float = 0.0,
        cursor: Cursor | None = None,
    ) -> None:
        self.name = name
        self.overhead_ns = overhead_ns
        self._calls = list(calls)
        self._cursor = cursor

    def run(self, calls: int) -> float:
        """Call it ``calls`` times; return nanoseconds without the overhead."""
        if self._cursor is None:
            function = self._calls[0]
            loop = itertools.repeat(None, calls)
            start = time.perf_counter_ns()
            for _ in loop:
                function()
        else:
            order = [
                function
                for at, length in self._cursor.slices(calls)
                for function in self._calls[at : at + length]
            ]
            start = time.perf_counter_ns()
            for function in order:
                function()
        raw = float(time.perf_counter_ns() - start)
        return max(raw - self.overhead_ns * calls, 0.1 * raw)


class FmaPeak(CompiledCall):
    """The fused multiply-add peak of this core for one instruction set and element type.

    ``isa`` is "avx2" (ymm registers) or "avx512" (zmm registers), ``dtype`` "f32" or "f64".
    """

    def __init__(self, isa: str, dtype: str) -> None:
        if isa not in VECTOR_BYTES:
            raise CannotMeasure(f"no FMA peak measurement for isa={isa!r} yet")
        # 0.8 is no power of two, so that the multipliers have bits to work on.
        element = struct.pack("<d", 0.8) if dtype == "f64" else struct.pack("<f", 0.8)
        block = ffi.new("char[]", struct.pack("<Q", LOOPS_PER_CALL) + element + bytes(8))
        super().__init__("peak", load_code(fma_chain(isa, dtype)), [block])
        lanes = VECTOR_BYTES[isa] // (8 if dtype == "f64" else 4)
        self.flops_per_call = 2 * lanes * CHAINS * STEPS_PER_LOOP * LOOPS_PER_CALL


def warm_up(contestant: Contestant, seconds: float = 0.3) -> None:
    """Keep the core busy with a contestant, so that its clock has risen before anything counts.

    Measured: the first 30 to 50 ms after a pause can run at 70 to 85 % of the later clock.
    """
    calls = calls_for(contestant, 1e6)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        contestant.run(calls)


@dataclass(frozen=True)
class Timing:
    """Nanoseconds per call over the rounds of one contestant."""

    best_ns: float
    median_ns: float
    samples_ns: tuple[float, ...]


def calls_for(contestant: Contestant, sample_ns: float) -> int:
    """Return how many calls of a contestant last about ``sample_ns`` (this also warms it up)."""
    calls = 1
    while True:
        start = time.perf_counter_ns()
        contestant.run(calls)
        elapsed = time.perf_counter_ns() - start
        if elapsed >= sample_ns / 4:
            return max(1, round(calls * sample_ns / elapsed))
        calls *= 4


def interleave(
    contestants: Sequence[Contestant],
    rounds: int,
    sample_ns: float,
    before: Callable[[Contestant], object] = lambda _: None,
) -> dict[str, Timing]:
    """Let the contestants take turns for ``rounds`` rounds of about ``sample_ns`` each.

    The order is reversed every second round, so that no one always runs behind the same other.
    ``before`` is called before a contestant's turn. Returns a Timing per contestant name. Python's
    garbage collector rests meanwhile.
    """
    calls = {}
    for contestant in contestants:
        before(contestant)
        calls[contestant.name] = calls_for(contestant, sample_ns)
    samples: dict[str, list[float]] = {c.name: [] for c in contestants}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            for contestant in contestants if turn % 2 == 0 else reversed(contestants):
                before(contestant)
                elapsed = contestant.run(calls[contestant.name])
                samples[contestant.name].append(elapsed / calls[contestant.name])
    finally:
        if enabled:
            gc.enable()
    return {
        name: Timing(min(values), statistics.median(values), tuple(values))
        for name, values in samples.items()
    }
