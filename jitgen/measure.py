"""How fast a kernel is: rounds in turns with the FMA peak, an empty call and NumPy.

All take turns in short samples, so that a change of clock or a busy neighbour meets all of them.
The peak and the empty call are machine code from the same verbs as kernels, so they exist on every
target. Not here: what is reported (`jitgen.cli_kernel`) or data (`jitgen.problem`).
"""

from __future__ import annotations

import functools
import statistics
import time
import timeit
from collections.abc import Callable
from typing import Any

import jitgen.kernel
from isa.machine import Machine
from jitgen.kernel import Kernel
from jitgen.target import ANY_WIDTH

#: Samples that each contestant gets in the time given, and at least
ROUNDS, FEWEST_ROUNDS = 25, 5
#: Multiply-accumulates of each chain in a pass of the loop; passes of a call, so many that what
#: the call costs beside them is less than a part in a thousand
PEAK_UNROLL, PEAK_PASSES = 4, 10_000
#: Tries of which a generation time is the median
TRIES = 5


def empty_kernel(kernel: Kernel) -> Kernel:
    """A kernel of the same face that returns at once: what a call costs without the work."""
    machine = kernel.target.machine(kernel.spec.dtype, ANY_WIDTH)
    machine.begin(())
    machine.end()
    return _stand_in(kernel, machine)


def peak_kernel(kernel: Kernel) -> tuple[Kernel, int]:
    """A kernel of the same face that does nothing but independent multiply-accumulates on the
    widest registers of the target; and its floating-point operations."""
    machine = kernel.target.machine(kernel.spec.dtype, ANY_WIDTH)
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


def interleave(
    contestants: dict[str, Callable[[], Any]], seconds: float
) -> dict[str, list[float]]:
    """Time callables in turns for about `seconds` altogether (longer if single calls are): seconds
    of a call in each round."""
    sample = seconds / ROUNDS / len(contestants)
    timers = {name: timeit.Timer(call) for name, call in contestants.items()}
    calls = {name: _calls(timer, sample) for name, timer in timers.items()}
    result: dict[str, list[float]] = {name: [] for name in contestants}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < FEWEST_ROUNDS or time.perf_counter() < end:
        for name, timer in timers.items():
            result[name].append(timer.timeit(calls[name]) / calls[name])
        rounds += 1
    return result


def _calls(timer: timeit.Timer, seconds: float) -> int:
    """How many calls take about `seconds`; also warms up."""
    calls = 1
    while (taken := timer.timeit(calls)) < seconds / 4:
        calls *= 4
    return max(1, round(calls * seconds / taken))


def generation(kernel: Kernel, make: functools.partial[Kernel]) -> dict[str, float]:
    """Seconds to generate a kernel: `cold` with all caches empty, `warm` with cached instruction
    bytes. `make` is the call of `jitgen.brgemm` that gives the kernel."""
    overrides = tuple((make.keywords.get("plan") or {}).items())
    again = functools.partial(jitgen.kernel.generate, kernel.spec, kernel.target, overrides)
    cold = timeit.repeat(make, jitgen.kernel.clear_caches, repeat=TRIES, number=1)
    warm = timeit.repeat(again, repeat=TRIES, number=1)
    return {"cold": statistics.median(cold), "warm": statistics.median(warm)}
