"""One measuring process of ``python -m tools.bench fc``: one number of threads.

What it is: the child that the command starts for each number of threads, because libraries read
OMP_NUM_THREADS and OPENBLAS_NUM_THREADS once. It prints its rows and writes JSON.
What it is not: a command for people; its one argument is the JSON of the options.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tools import bench_fc_peers as peers
from tools import bench_peers, bench_report
from tools.bench_fc_peers import PEERS, PLAIN_PEERS, Calls, Problem, Shape
from tools.bench_timing import Contestant, Cursor, PythonCall, interleave
from tools.bench_turns import Turns

OURS = ("jitgen", "jitgen packed")
#: The smallest batch whose speed-up by threads is measured
SPEED_UP_BATCH = 64
TINY = Shape(1, 64, 64)


class Bench:
    """The settings of one process, and what it measures with."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.threads: int = options["threads"]
        self.cold: bool = options["cold"]
        self.turns = Turns(
            self.threads, options["rounds"], options["sample_ms"], options["retries"]
        )
        self.origins, self.missing = {}, {}  # type: dict[str, str], dict[str, str]
        self._torch = self._start_torch()
        self._libxsmm = self._start_libxsmm()

    def _start_torch(self) -> bool:
        try:
            import torch
        except ImportError as error:
            self.missing["torch"] = f"{error} (pip install torch)"
            return False
        torch.set_num_threads(self.threads)
        self.origins["torch"] = f"PyTorch {torch.__version__}, threads: {torch.get_num_threads()}"
        return True

    def _start_libxsmm(self) -> bench_peers.Libxsmm | None:
        if self.threads > 1:
            self.missing["libxsmm"] = "its kernels are called on one thread only"
            return None
        try:
            library = bench_peers.Libxsmm()
        except bench_peers.PeerMissing as error:
            self.missing["libxsmm"] = str(error)
            return None
        self.origins["libxsmm"] = f"{library.origin}, LIBXSMM target {library.arch}"
        return library

    # ---- contestants ------------------------------------------------------------------------

    def _ways(self, problem: Problem) -> dict[str, Callable[[], Calls]]:
        """How to make each contestant's calls; a contestant may still fail at that."""
        ways: dict[str, Callable[[], Calls]] = {
            "jitgen": partial(peers.jitgen, problem, self.threads, False),
            "jitgen packed": partial(peers.jitgen, problem, self.threads, True),
        }
        if self._torch:
            ways.update(peers.torch_ways(problem))
        ways["numpy"] = partial(peers.numpy_way, problem)
        if self.threads > 1 and problem.shape.n >= SPEED_UP_BATCH:
            ways["one thread"] = partial(peers.jitgen, problem, 1, True)
        return ways

    def _contestants(self, problem: Problem) -> tuple[list[Contestant], dict[str, str]]:
        """The contestants whose result is right, and why the others are not there."""
        cursor = Cursor(problem.sets) if self.cold else None
        found: list[Contestant] = []
        failed: dict[str, str] = {}
        for name, make in self._ways(problem).items():
            try:
                calls = make()
                wrong = problem.check(calls[0])
            except Exception as error:
                wrong = f"{type(error).__name__}: {error}"
            if wrong is None:
                found.append(PythonCall(name, calls, cursor=cursor))
            else:
                failed[name] = wrong
        if self._libxsmm is not None:
            try:
                blocks = peers.Blocks(self._libxsmm, problem)
                calls = blocks.calls()
                calls[0]()
                wrong = problem.check(lambda: (blocks.result(),), epilogue=False)
            except bench_peers.PeerMissing as error:
                wrong = str(error)
            if wrong is None:
                found.append(PythonCall("libxsmm", calls, cursor=cursor))
            else:
                failed["libxsmm"] = wrong
        return found, failed

    # ---- rows -------------------------------------------------------------------------------

    def row(self, which: str, shape: Shape) -> dict[str, Any]:
        """Measure a pass of a layer, again when the machine was "disturbed".

        GFLOP/s under "best" and "median" by contestant, "peak" (GFLOP/s of one core times threads),
        "percent" of it, "ratio" of jitgen to its best rival ("rival" names it); for batch 1 GB/s of
        weights ("gbs") and their "share" of what memory gives.
        """
        problem = Problem(shape, which, cold=self.cold)
        contestants, failed = self._contestants(problem)
        memory: list[Contestant] = []
        moved = 0
        if shape.n == 1:
            moved, calls = peers.memory_calls(self.turns.isa, self.threads, problem)
            memory = [PythonCall("memory", calls, cursor=Cursor(problem.sets))]
        best, median, disturbed = self.turns.times([*memory, *contestants])
        names = [c.name for c in contestants]
        row = {
            "pass": which, "n": shape.n, "c": shape.c, "k": shape.k, "failed": failed,
            "threads": self.threads, "cold": self.cold,
            "disturbed": disturbed,
            **self._figures(shape, best, median, names),
        }  # fmt: skip
        if memory:
            limit = moved / best["memory"]
            row["gbs"] = {name: problem.weight_bytes / best[name] for name in names}
            row["share"] = {name: speed / limit for name, speed in row["gbs"].items()}
            row["gbs"]["memory"] = limit
        return row

    def _figures(
        self, shape: Shape, best_ns: dict[str, float], median_ns: dict[str, float],
        names: list[str],
    ) -> dict[str, Any]:  # fmt: skip
        peak = self.turns.peak(best_ns)
        best = {name: shape.flops / best_ns[name] for name in names}
        median = {name: shape.flops / median_ns[name] for name in names}
        result: dict[str, Any] = {
            "peak": peak, "best": best, "median": median,
            "percent": {name: 100 * value / peak for name, value in best.items()},
            "ratio": {}, "median_ratio": {}, "rival": {},
        }  # fmt: skip
        rivals = {"jitgen": PLAIN_PEERS, "jitgen packed": PEERS}
        for ours, theirs in rivals.items():
            present = [name for name in theirs if name in best]
            if ours in best and present:
                result["rival"][ours] = max(present, key=best.__getitem__)
                result["ratio"][ours] = best[ours] / max(best[name] for name in present)
                top = max(median[name] for name in present)
                result["median_ratio"][ours] = median[ours] / top
        if {"jitgen packed", "libxsmm"} <= set(best):
            result["ratio"]["libxsmm"] = best["jitgen packed"] / best["libxsmm"]
        if {"jitgen packed", "one thread"} <= set(best):
            result["speed_up"] = best["jitgen packed"] / best["one thread"]
        return result

    def tiny(self) -> dict[str, dict[str, float]]:
        """Microseconds of a call on 1 x 64 -> 64, plain arrays, by pass and contestant."""
        result = {}
        for which in peers.PASSES:
            problem = Problem(TINY, which)
            contestants, _ = self._contestants(problem)
            plain = [c for c in contestants if c.name in ("jitgen", *PLAIN_PEERS)]
            turns = self.turns
            timings = interleave(plain, turns.rounds, turns.sample_ns, turns.before)
            result[which] = {name: timing.best_ns / 1e3 for name, timing in timings.items()}
        return result


def row_text(row: dict[str, Any]) -> str:
    """A row of the table: see `HEADING`."""
    best, ratio = row["best"], row["ratio"]
    line = f"{row['pass']:8}{row['n']:4} {row['c']:4}->{row['k']:<4}"
    for name in OURS:
        value, median = best.get(name, 0), row["median"].get(name, 0)
        line += f" {value:7.1f} {median:7.1f} {row['percent'].get(name, 0):3.0f}%"
    for name in (*PEERS, "libxsmm"):
        line += f" {best[name]:7.1f}" if name in best else f" {'-':>7}"
    for name in (*OURS, "libxsmm"):
        line += f" {ratio[name]:6.2f}" if name in ratio else f" {'-':>6}"
    if "speed_up" in row:
        line += f"  {row['speed_up']:.2f} times one thread"
    if "gbs" in row:
        ours = max(row["gbs"].get(name, 0) for name in OURS)
        line += f"  {ours:.1f} of {row['gbs']['memory']:.1f} GB/s"
    if row["disturbed"]:
        line += "  !"
    return "\n".join([line, *(f"  {name}: {why}" for name, why in row["failed"].items())])


HEADING = (
    f"{'GFLOP/s':21}  {'jitgen':>6}  median   %   packed  median   %   torch  autogr  onednn"
    "   numpy onednnP libxsmm /plain /packd /xsmm"
)


def run(options: dict[str, Any]) -> dict[str, Any]:
    """Measure everything the options ask for; prints rows as they come."""
    bench = Bench(options)
    kind = "cold" if bench.cold else "warm"
    print(f"\nthreads: {bench.threads}, {kind} weights", flush=True)
    bench.origins["numpy"] = f"numpy {importlib.metadata.version('numpy')}"
    for name, text in bench.origins.items():
        print(f"  {name}: {text}")
    for name, text in bench.missing.items():
        print(f"  without {name}: {text}")
    result: dict[str, Any] = {
        "threads": bench.threads, "isa": bench.turns.isa, "origins": bench.origins,
        "missing": bench.missing, "rows": [],
    }  # fmt: skip
    print(HEADING, flush=True)
    for which in options["passes"]:
        for size in options["shapes"]:
            bench_report.progress(f"{which} {size}")
            row = bench.row(which, Shape(*size))
            bench_report.progress("")
            print(row_text(row), flush=True)
            result["rows"].append(row)
    if options["tiny"]:
        result["tiny_us"] = bench.tiny()
    return result


def main() -> int:
    """Run the options given as JSON; 0, or 1 if a result of jitgen's was wrong."""
    options = json.loads(sys.argv[1])
    inference: Any = contextlib.nullcontext()
    with contextlib.suppress(ImportError):
        import torch

        inference = torch.inference_mode()
    with inference:
        result = run(options)
    Path(options["result"]).write_text(json.dumps(result))
    return int(any(name in row["failed"] for row in result["rows"] for name in OURS))


if __name__ == "__main__":
    sys.exit(main())
