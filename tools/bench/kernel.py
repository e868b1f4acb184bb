"""The kernel suites: jitgen, LIBXSMM and NumPy on the same batch-reduce problems.

What it is: the lists of shapes, the measurement of one row (all contestants and the FMA peak take
turns, results are checked first), and the figures that sum up a table.
What it is not: it prints nothing; see `tools.bench.report`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from tools.bench.problem import Problem, Shape
from tools.bench.timing import Contestant, Cursor, FmaPeak, PythonCall, interleave, warm_up

_SUITE = """
16x6x64 24x64x64 32x64x64 48x48x48 60x64x64 64x64x64 63x63x63 64x30x64 31x29x33 13x7x9 5x5x5
128x32x64 14x64x64 28x64x64 7x64x64 1x64x64
6x16x64 64x24x64 64x32x64 64x60x64 30x64x64 29x31x33 7x13x9 32x128x64 64x14x64 64x28x64
64x7x64 64x1x64
"""
SUITE_SIZES = tuple(_SUITE.split())
GRID_SIDE = 64
GRID_K = (1, 16, 32, 64, 128)
GRID_SEED = 20
# A row whose own peak falls below this share of the best peak seen was disturbed: do it again.
QUIET_SHARE = 0.97
LARGE_C = 1024


def parse_size(text: str) -> tuple[int, int, int]:
    """Return (m, n, k) of a text such as "64x30x64"; ValueError names the rule."""
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"shape={text!r} is not MxNxK with three positive whole numbers")
    return int(parts[0]), int(parts[1]), int(parts[2])


def grid_shapes(sample: int) -> list[Shape]:
    """Return a fixed sample of m, n in 1..64 and k in {1, 16, 32, 64, 128}, count 1."""
    sides = range(1, GRID_SIDE + 1)
    every = [Shape(m, n, k, 1) for m in sides for n in sides for k in GRID_K]
    chosen = random.Random(GRID_SEED).sample(every, min(sample, len(every)))
    return sorted(chosen, key=lambda s: (s.k, s.m, s.n))


class Player(Protocol):
    """A library that can join: it makes a contestant for a problem."""

    def contestant(self, problem: Problem, cursor: Cursor | None) -> Contestant:
        """Return the contestant that computes every set of a problem in the cursor's order."""


@dataclass
class Bench:
    """Who takes part and how long: the settings of one run, and the best peak seen so far."""

    isa: str
    players: dict[str, Player]
    rounds: int = 9
    sample_ns: float = 2e6
    cold: bool = False
    retries: int = 2
    best_peak: dict[str, float] = field(default_factory=dict)

    def start(self, dtypes: Iterable[str]) -> None:
        """Warm the core up and take a first reading of the peaks (GFLOP/s)."""
        for dtype in dtypes:
            peak = FmaPeak(self.isa, dtype)
            warm_up(peak)
            timing = interleave([peak], self.rounds, self.sample_ns)["peak"]
            self.best_peak[dtype] = peak.flops_per_call / timing.best_ns

    def row(self, shape: Shape, dtype: str) -> dict[str, Any]:
        """Measure one shape, again when the machine was disturbed; return the quietest result.

        GFLOP/s under "best" and "median" by contestant, "peak" (GFLOP/s), "percent" of that peak,
        "approximate" (overhead taken out exceeded what was left) and "failed" (name: reason).
        """
        problem = Problem(shape, dtype, cold=self.cold)
        cursor = Cursor(problem.sets) if self.cold else None
        contestants, failed = self._prepare(problem, cursor)
        peak = FmaPeak(self.isa, dtype)
        everyone = [peak, *contestants]
        best: dict[str, Any] = {"peak": 0.0}
        for _ in range(1 + self.retries):
            timings = interleave(everyone, self.rounds, self.sample_ns)
            here = peak.flops_per_call / timings["peak"].best_ns
            self.best_peak[dtype] = max(here, self.best_peak.get(dtype, 0.0))
            if here > best["peak"]:
                gflops = {c.name: shape.flops / timings[c.name].best_ns for c in contestants}
                median = {c.name: shape.flops / timings[c.name].median_ns for c in contestants}
                best = {
                    "m": shape.m,
                    "n": shape.n,
                    "k": shape.k,
                    "count": shape.count,
                    "dtype": dtype,
                    "peak": here,
                    "best": gflops,
                    "median": median,
                    "percent": {name: 100 * value / here for name, value in gflops.items()},
                    "approximate": [
                        c.name
                        for c in contestants
                        if isinstance(c, PythonCall) and c.overhead_ns > timings[c.name].best_ns
                    ],
                    "failed": failed,
                }
            if best["peak"] >= QUIET_SHARE * self.best_peak[dtype]:
                break
        return best

    def _prepare(
        self, problem: Problem, cursor: Cursor | None
    ) -> tuple[list[Contestant], dict[str, str]]:
        """Return the contestants whose result is right, and why the others are not there."""
        contestants: list[Contestant] = []
        failed: dict[str, str] = {}
        for name, player in self.players.items():
            try:
                contestant = player.contestant(problem, cursor)
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}"
                continue
            if cursor is not None:
                cursor.position = 0
            wrong = problem.check(partial(contestant.run, 1))
            if wrong is None:
                contestants.append(contestant)
            else:
                failed[name] = wrong
        return contestants, failed

    def table(
        self, shapes: Sequence[Shape], dtypes: Sequence[str], progress: Callable[[str], None]
    ) -> list[dict[str, Any]]:
        """Measure all shapes for all dtypes; ``progress`` gets a line of text before each row."""
        rows: list[dict[str, Any]] = []
        total = len(shapes) * len(dtypes)
        for dtype in dtypes:
            for shape in shapes:
                progress(f"{len(rows) + 1}/{total} {shape} x{shape.count} {dtype}")
                rows.append(self.row(shape, dtype))
        return rows


def mean(values: Sequence[float]) -> float | None:
    """Return the arithmetic mean, None of nothing."""
    return sum(values) / len(values) if values else None


def geometric_mean(values: Sequence[float]) -> float | None:
    """Return the geometric mean of positive values, None of nothing."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def ratios(
    rows: Sequence[dict[str, Any]], ours: str, theirs: str, what: str = "best"
) -> list[float]:
    """Return GFLOP/s of ``ours`` over ``theirs`` for the rows that have both."""
    pairs = [(row[what].get(ours), row[what].get(theirs)) for row in rows]
    return [a / b for a, b in pairs if a is not None and b is not None]


def summary(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Return mean and geometric mean of GFLOP/s and of percent of peak, and jitgen's ratios.

    "percent_large_geomean" covers the rows with m*n >= 1024. Where jitgen is among the names,
    "ratio" holds per peer the geometric mean, mean, minimum and the geometric mean of medians.
    """
    result: dict[str, Any] = {"rows": len(rows), "contestants": {}, "ratio": {}}
    for name in names:
        here = [row for row in rows if name in row["best"]]
        percent = [row["percent"][name] for row in here]
        large = [row["percent"][name] for row in here if row["m"] * row["n"] >= LARGE_C]
        gflops = [row["best"][name] for row in here]
        result["contestants"][name] = {
            "rows": len(here),
            "gflops_mean": mean(gflops),
            "gflops_geomean": geometric_mean(gflops),
            "percent_geomean": geometric_mean(percent),
            "percent_min": min(percent, default=None),
            "percent_large_geomean": geometric_mean(large),
        }
        if name != "jitgen" and "jitgen" in names:
            values = ratios(rows, "jitgen", name)
            result["ratio"][name] = {
                "geomean": geometric_mean(values),
                "mean": mean(values),
                "min": min(values, default=None),
                "median_geomean": geometric_mean(ratios(rows, "jitgen", name, "median")),
            }
    return result
