"""How fast a stream can be on a CPU: what bounds each of its parts, and the whole, in cycles.

    core               each kernel walked through the core model (`jitgen.analysis.core`), with all
                       operands in L1, times its calls, and a constant for each call
    L2 bandwidth       what the kernels' tiles fetch (`jitgen.analysis.memory`), and operands that
                       are others than in the call before
    L3, memory         bytes from beyond L2 and L3 (`jitgen.primitives.nest.traffic`)

The largest is the prediction for a part, on its slowest thread; barriers, threads that share a
bandwidth, and the TLB are not modelled. Everything here is modelled, but for `measured`. Not here:
text (`jitgen.primitives.nest.report`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from jitgen import doors
from jitgen.analysis.cpus import Cpu, check_target
from jitgen.analysis.memory import traffic
from jitgen.analysis.routines import core_cost
from jitgen.gemm.kernel import Kernel
from jitgen.primitives.layers.passes import Pass
from jitgen.primitives.nest.cost import CALL_CYCLES
from jitgen.primitives.nest.run import Run, best_times
from jitgen.primitives.nest.shown import every
from jitgen.primitives.nest.stream import Calls
from jitgen.primitives.nest.traffic import Pieces, batch, fetched
from jitgen.run.replay import FIRST_KIND, Call
from jitgen.types import DTYPES

#: Rounds of measuring, at least
ROUNDS = 5


@dataclass(frozen=True)
class PartBounds:
    """A part of a run: its calls and floating-point operations on all threads; the bounds of its
    slowest thread in cycles, and how many of those in the core are spent on calling; bytes that a
    thread fetches, by tensor, from beyond L2 and from beyond L3; kernels whose path through their
    code is not known, which have no cycles here."""

    title: str
    calls: int
    flops: int
    bounds: Mapping[str, float]
    calling: float
    beyond_l2: Mapping[str, float]
    beyond_l3: Mapping[str, float]
    unknown: tuple[str, ...] = ()
    #: seconds of the part by itself, on arrays that it finds in the caches
    measured: float | None = None

    @property
    def cycles(self) -> float:
        """Predicted."""
        return max(self.bounds.values())

    @property
    def binding(self) -> str:
        """The largest bound; "calls" where most of the cycles in the core are spent on them."""
        name = max(self.bounds, key=lambda n: self.bounds[n])
        return "calls" if name == "core" and self.calling > self.bounds["core"] / 2 else name


@dataclass(frozen=True)
class RunBounds:
    """A whole run on a CPU: parts follow one another. ghz: of the cycles."""

    cpu: Cpu
    target: str
    threads: int
    peak: float
    ghz: float
    parts: tuple[PartBounds, ...]
    measured: float | None = None

    @property
    def cycles(self) -> float:
        """Predicted, of a run."""
        return sum(part.cycles for part in self.parts)

    @property
    def flops(self) -> int:
        """Floating-point operations of all products."""
        return sum(part.flops for part in self.parts)

    @property
    def binding(self) -> str:
        """What bounds most of the run's cycles."""
        of: dict[str, float] = {}
        for part in self.parts:
            of[part.binding] = of.get(part.binding, 0.0) + part.cycles
        return max(of, key=lambda name: of[name])

    def percent(self, cycles: float) -> float:
        """Of the FMA peak of all threads, where the run takes so many cycles."""
        return 100 * self.flops / (self.peak * self.threads * cycles) if cycles else 0.0

    def seconds(self, cycles: float) -> float:
        """So many cycles."""
        return cycles / self.ghz / 1e9


class Model:
    """Predicts runs on a CPU, at a clock of `ghz` (None: the CPU's); knows kernels that were in
    earlier ones. tell: is called with what is being done, which may take seconds."""

    def __init__(
        self, cpu: Cpu, ghz: float | None = None, tell: Callable[[str], object] | None = None
    ) -> None:
        self._tell = str if tell is None else doors.function("tell", tell)
        self.cpu = doors.instance("cpu", cpu, Cpu)
        self.ghz = cpu.ghz if ghz is None else doors.number("ghz", ghz, above=0, below=1000)
        self._known: dict[tuple[bytes, int], tuple[float, float] | None] = {}

    def predict(self, run: Run) -> RunBounds:
        """The bounds of a run. ValueError if the CPU does not run its target."""
        stream = doors.instance("run", run, Run).stream
        check_target(self.cpu, run.target.name)
        pieces = Pieces(run)
        loads = [self._loads(run, pieces, calls) for calls in stream.parts]
        # each thread has its own L2 and a share of L3
        busiest = int(np.argmax(sum(load.core for load in loads)))
        capacities = [self.cpu.l2, *([self.cpu.l3 / stream.threads] if self.cpu.l3 else [])]
        self._tell("caches")
        moved = fetched(pieces, busiest, capacities)
        parts = [
            self._part(calls, load, moves)
            for calls, load, moves in zip(stream.parts, loads, moved, strict=True)
        ]
        peak = self.cpu.flops_a_cycle(DTYPES[run.dtype].size, run.target.vector_bits)
        return RunBounds(
            self.cpu, run.target.name, stream.threads, peak, self.ghz, tuple(parts)
        )

    def _loads(self, run: Run, pieces: Pieces, part: Calls) -> _Loads:
        """What the kernels of a part take of each thread."""
        stream = run.stream
        core, calling, near = np.zeros((3, stream.threads))
        flops, count, unknown = 0, 0, []
        for calls in every(part):
            count += len(calls.nest)
            for kind in np.unique(calls.kind).tolist():
                call = stream.calls[kind - FIRST_KIND]
                mine = np.flatnonzero(calls.kind == kind)
                flops += len(mine) * call.routine.flops(batch(call))
                each = np.bincount(calls.nest.thread[mine], minlength=stream.threads)
                calling += each * CALL_CYCLES
                cost = self._call(call, run.dtype)
                if cost is None:
                    unknown.append(call.routine.name)
                    continue
                core += each * cost[0]
                near += _near(pieces, calls, mine, cost[1], stream.threads)
        return _Loads(core + calling, calling, near, flops, count, tuple(dict.fromkeys(unknown)))

    def _call(self, call: Call, dtype: str) -> tuple[float, float] | None:
        """Cycles in the core of a call, and bytes that its tiles fetch into L1, weighed by how slow
        they are; None if its path is not known."""
        key = call.code, batch(call)
        if key not in self._known:
            self._tell(call.routine.name)
            try:
                cycles = core_cost(call.routine, self.cpu, dtype, batch(call)).cycles
            except ValueError:
                self._known[key] = None
            else:
                tiles = 0.0
                if isinstance(call.routine, Kernel):
                    moved = traffic(call.routine, self.cpu, batch(call))
                    tiles = moved.cycles(self.cpu)["L2 bandwidth"] * self.cpu.l2_bytes
                self._known[key] = cycles, tiles
        return self._known[key]

    def _part(
        self, calls: Calls, load: _Loads, moved: Sequence[Mapping[str, float]]
    ) -> PartBounds:
        cpu, slowest = self.cpu, int(np.argmax(load.core))
        bounds = {
            "core": float(load.core[slowest]),
            "L2 bandwidth": float(load.near[slowest]) / cpu.l2_bytes,
        }
        beyond = [sum(each.values()) for each in moved]
        if cpu.l3:
            bounds["L3 bandwidth"] = beyond[0] / cpu.l3_bytes
        bounds["memory bandwidth"] = beyond[-1] / cpu.memory_bytes
        return PartBounds(
            calls.part.title, load.count, load.flops, bounds, float(load.calling[slowest]),
            moved[0], moved[-1], load.unknown,
        )  # fmt: skip


@dataclass(frozen=True)
class _Loads:
    """Of a part: cycles in the core, those of calling, bytes from L2, each by thread; flops, calls,
    and kernels that are not known."""

    core: np.ndarray
    calling: np.ndarray
    near: np.ndarray
    flops: int
    count: int
    unknown: tuple[str, ...]


def _near(
    pieces: Pieces, calls: Calls, mine: np.ndarray, tiles: float, threads: int
) -> np.ndarray:
    """Bytes that calls of one kernel fetch from L2, by thread: what its tiles do, or operands that
    lie elsewhere than those of the call before, if these are more."""
    thread, words = calls.nest.thread[mine], list(calls.part.words)
    size = {word: piece.size for word, piece in pieces.of_call(calls, int(mine[0]))}
    moved = np.diff(calls.offsets[mine], axis=0, prepend=-1) != 0
    anew = moved @ np.array([size.get(word, 0) for word in words], float)
    return np.bincount(thread, np.maximum(anew, tiles), minlength=threads)


def measure(bounds: RunBounds, taken: Pass, least: float) -> RunBounds:
    """The same with measured times: of the run of a pass, whose bounds these are, and of each part
    by itself, in turns, so that a part finds in the caches what the one before it has left there;
    on arrays of zeros. The best of as many as take `least` seconds. RuntimeError if the host cannot
    run the target."""
    run, parts = (
        doors.instance("taken", taken, Pass).run, doors.instance("bounds", bounds, RunBounds).parts
    )  # fmt: skip
    least = doors.number("least", least, low=0, below=3600)
    if len(parts) != len(run.stream.parts):
        raise ValueError(f"bounds has {len(parts)} parts, the run {len(run.stream.parts)}")
    sizes = dict.fromkeys(run.tensors, 1) | {a.tensor: prod(a.shape) for a in taken.arguments}
    runs, buffers = [run, *(run.alone(i) for i in range(len(parts)))], run.zeros(sizes)
    whole, *each = best_times(runs, buffers, least, ROUNDS)
    timed = [replace(part, measured=t) for part, t in zip(parts, each, strict=True)]
    return replace(bounds, parts=tuple(timed), measured=whole)
