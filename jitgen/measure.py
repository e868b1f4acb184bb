"""How fast a kernel is: interleaved rounds with the FMA peak, an empty call and NumPy.

All take turns in short samples, so that a change of clock or a busy neighbour meets all of them.
The peak and the empty call are machine code from the same verbs as kernels, so they exist on every
target. Not here: what is reported (`jitgen.cli_kernel`) or data (`jitgen.problem`).
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import jitgen.kernel
from isa.machine import Machine
from jitgen.kernel import Kernel

#: Samples that each contestant gets in the time given, and at least
ROUNDS, FEWEST_ROUNDS = 25, 5
#: Multiply-accumulates of each chain in a pass of the loop, and passes of a call
PEAK_UNROLL, PEAK_PASSES = 4, 1000
#: So many columns make a target use its widest registers
MANY_COLUMNS = 1 << 20


def empty_kernel(kernel: Kernel) -> Kernel:
    """A kernel of the same face that returns at once: what a call costs without the work."""
    machine = kernel.target.machine(kernel.spec.dtype, MANY_COLUMNS)
    machine.begin(())
    machine.end()
    return _stand_in(kernel, machine)


def peak_kernel(kernel: Kernel) -> tuple[Kernel, int]:
    """A kernel of the same face that does nothing but independent multiply-accumulates on the
    widest registers of the target; and its floating-point operations."""
    machine = kernel.target.machine(kernel.spec.dtype, MANY_COLUMNS)
    chains, passes = machine.vectors - 2, machine.gprs[0]
    machine.begin((passes,))
    for v in range(machine.vectors):
        machine.zero(v)
    machine.set(passes, PEAK_PASSES)
    machine.program.align(machine.loop_alignment)
    label = machine.program.new_label()
    machine.place(label)
    for _ in range(PEAK_UNROLL):
        for acc in range(chains):
            machine.mac(acc, chains, chains + 1, machine.lanes)
    machine.count_down(passes, label)
    machine.end()
    macs = PEAK_PASSES * PEAK_UNROLL * chains * machine.lanes
    return _stand_in(kernel, machine), 2 * macs


def _stand_in(kernel: Kernel, machine: Machine) -> Kernel:
    program = machine.program
    return Kernel(kernel.spec, kernel.target, kernel.plan, program, program.encode(), {})


@dataclass
class Samples:
    """Seconds of one call in each round, and CPU seconds of all calls over their seconds."""

    calls: int
    seconds: list[float] = field(default_factory=list)
    cpu: float = 0.0
    wall: float = 0.0

    @property
    def best(self) -> float:
        """Seconds of a call in the fastest round."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """Seconds of a call in the median round."""
        return statistics.median(self.seconds)

    @property
    def threads(self) -> float:
        """Threads that were busy on average."""
        return self.cpu / self.wall


def interleave(contestants: dict[str, Callable[[], Any]], seconds: float) -> dict[str, Samples]:
    """Time callables in turns for about `seconds` altogether (longer if single calls are)."""
    sample = seconds / ROUNDS / len(contestants)
    result = {name: Samples(_calls(call, sample)) for name, call in contestants.items()}
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        done = 0
        while done < FEWEST_ROUNDS or time.perf_counter() < end:
            for name, call in contestants.items():
                some = result[name]
                cpu, start = time.process_time(), time.perf_counter()
                for _ in repeat(None, some.calls):
                    call()
                wall = time.perf_counter() - start
                some.cpu += time.process_time() - cpu
                some.wall += wall
                some.seconds.append(wall / some.calls)
            done += 1
    finally:
        if collecting:
            gc.enable()
    return result


def _calls(call: Callable[[], Any], seconds: float) -> int:
    """How many calls take about `seconds`; also warms up."""
    calls = 1
    while True:
        start = time.perf_counter()
        for _ in repeat(None, calls):
            call()
        taken = time.perf_counter() - start
        if taken >= seconds / 4:
            return max(1, round(calls * seconds / taken))
        calls *= 4


def generation(
    kernel: Kernel, overrides: tuple[tuple[str, Any], ...], make: Callable[[], Any]
) -> dict[str, float]:
    """Seconds to get a kernel, medians of some tries: `cold` with all caches empty, `warm` with
    cached instruction bytes, `cached` with the kernel itself in the cache. `make` asks jitgen for
    the kernel."""

    def median(prepare: Callable[[], None], action: Callable[[], Any], tries: int) -> float:
        times = []
        for _ in range(tries):
            prepare()
            start = time.perf_counter()
            action()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def nothing() -> None:
        pass

    def again() -> None:
        jitgen.kernel.generate(kernel.spec, kernel.target, overrides)

    return {
        "cold": median(jitgen.kernel.clear_caches, make, 3),
        "warm": median(nothing, again, 5),
        "cached": median(nothing, make, 25),
    }
