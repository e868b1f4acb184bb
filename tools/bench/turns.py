"""Turns on a noisy machine: a row of contestants, measured again while others take time from it.

What it is: the multiply-add peak of one core and of all threads beside every row, a loop of loads
on all threads, the pause until the threads of another pool sleep, and the attempts until a row is
undisturbed. What it is not: it knows no layers; the children (`tools.bench.child`) do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jitgen.emit.routine import Routine
from jitgen.primitives.layers.arrays import buffer_of
from jitgen.run import cpu
from jitgen.run.replay import END, FIRST_KIND, Call, Word
from jitgen.run.team import Team
from tools.bench.kernel import QUIET_SHARE
from tools.bench.machine_code import ffi, fma_chain, memory_walk, walk_step
from tools.bench.timing import Contestant, FmaPeak, PythonCall, interleave, warm_up

#: Contestants whose threads are not those of OpenMP, which PyTorch and jitgen share
POOLS = {"numpy": "openblas", "onnxruntime": "onnxruntime"}
#: How long the idle threads of a pool spin, in seconds: OpenBLAS for 2**26 cycles, GNU's OpenMP for
#: 300000 rounds of a pause, ONNX Runtime for 34 ms (measured)
SPINNING = {"openblas": 0.025, "openmp": 0.006, "onnxruntime": 0.045}
#: Longest wait for a quiet machine before a row is measured again, in seconds
WAIT = 1.0


class Settle:
    """Before a turn: one untimed call, and as many as last until the threads of another pool, which
    had the turn before, sleep."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._last = ""

    def __call__(self, contestant: Contestant) -> None:
        pool = POOLS.get(contestant.name, "openmp")
        wait = SPINNING.get(self._last, 0) if self._threads > 1 and pool != self._last else 0
        end = time.perf_counter() + wait
        contestant.run(1)
        while time.perf_counter() < end:
            contestant.run(1)
        self._last = pool


class Turns:
    """How rows are measured in this process, and the best reading of the peak so far."""

    def __init__(self, threads: int, rounds: int, sample_ms: float, retries: int) -> None:
        self.threads, self.rounds, self.retries = threads, rounds, retries
        self.sample_ns = 1e6 * sample_ms
        self.isa = cpu.host().name
        self.core = FmaPeak(self.isa, "f32")
        flops, call = team_peak(self.isa, threads)
        self.all_cores, self._all_cores_flops = PythonCall("all cores", [call]), flops
        self.before = Settle(threads)
        warm_up(self.core)
        readings = interleave([self.core, self.all_cores], 9, 2e6)
        self.best_peak = flops / readings["all cores"].best_ns

    def times(
        self, contestants: list[Contestant]
    ) -> tuple[dict[str, float], dict[str, float], bool]:
        """Nanoseconds per call, also of "peak" and "all cores": the least of all rounds, and the
        median of the quietest attempt; whether even that was disturbed."""
        everyone = [self.core, self.all_cores, *contestants]
        best: dict[str, float] = {}
        median: dict[str, float] = {}
        for attempt in range(1 + self.retries):
            if attempt:
                self._wait()
            timings = interleave(everyone, self.rounds, self.sample_ns, self.before)
            for name, timing in timings.items():
                best[name] = min(timing.best_ns, best.get(name, timing.best_ns))
            cores = timings["all cores"]
            self.best_peak = max(self.best_peak, self._all_cores_flops / cores.best_ns)
            if not median or cores.median_ns < median["all cores"]:
                median = {name: timing.median_ns for name, timing in timings.items()}
            if self._quiet(median["all cores"]):
                break
        return best, median, not self._quiet(median["all cores"])

    def peak(self, best_ns: dict[str, float]) -> float:
        """GFLOP/s of one core times the threads, from the row's own reading."""
        return self.threads * self.core.flops_per_call / best_ns["peak"]

    def _quiet(self, all_cores_ns: float) -> bool:
        return self._all_cores_flops / all_cores_ns >= QUIET_SHARE * self.best_peak

    def _wait(self) -> None:
        """Until the machine is quiet, but no longer than WAIT."""
        end = time.perf_counter() + WAIT
        while time.perf_counter() < end:
            if self._quiet(interleave([self.all_cores], 9, 1e6)["all cores"].median_ns):
                break


def team_peak(isa: str, threads: int) -> tuple[int, Callable[[], Any]]:
    """Floating-point operations of a call, and a call that multiplies and adds on all threads."""
    peak = FmaPeak(isa, "f32")
    loops, factor = 20 * 400, int(np.float32(0.8).view(np.uint32))
    # a kernel returns 0: xor eax, eax instead of the last byte, a ret
    code = fma_chain(isa, "f32")[:-1] + bytes.fromhex("31c0c3")
    peak_code = Routine("peak", (), cpu.host(), code)
    call = Call(peak_code, (Word("c", 0, 2),), (("a", loops), ("b", factor)))
    slices = [np.array([FIRST_KIND, 1, 0, END, 0], np.uint32) for _ in range(threads)]
    team, nothing = Team([call], slices, 1, cpu.host()), ffi.new("char[]", 64)
    return 20 * threads * peak.flops_per_call, lambda: team((nothing,))


def team_walk(
    isa: str, threads: int, arrays: Sequence[np.ndarray], store: bool = False
) -> tuple[int, list[Callable[[], Any]]]:
    """Bytes of a call, and for each array (of one size) a call that reads it, or stores to it, on
    all threads and does nothing else."""
    steps = arrays[0].nbytes // (walk_step(isa) * threads)
    walk = Routine("walk", (), cpu.host(), memory_walk(isa, store))
    call = Call(walk, (Word("a", 0, 2),), (("count", steps),))
    piece = steps * walk_step(isa)
    slices = [np.array([FIRST_KIND, 1, t * piece // 4, END, 0], np.uint32) for t in range(threads)]
    team = Team([call], slices, 1, cpu.host())
    buffers = [buffer_of(array) for array in arrays]
    return piece * threads, [lambda a=buffer: team((a,)) for buffer in buffers]
