"""One measuring process of ``python -m tools.bench conv``: one number of threads.

What it is: the child that the command starts for each number of threads, because libraries read
OMP_NUM_THREADS once. It prints its rows and writes JSON.
What it is not: a command for people; its one argument is the JSON of the options.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tools import bench_conv_peers as peers
from tools import bench_report
from tools.bench_conv_peers import NCHW_PEERS, PEERS, Layer, Problem, Way
from tools.bench_timing import Contestant, PythonCall
from tools.bench_turns import Turns

OURS = ("jitgen", "jitgen nhwc")
#: What is compared with the best of whom: all on equal terms, and with everybody
RATIOS = {
    "nchw": ("jitgen", NCHW_PEERS), "jitgen": ("jitgen", PEERS), "nhwc": ("jitgen nhwc", PEERS),
}  # fmt: skip
NEEDS = {"torch": ("torch",), "onnxruntime": ("onnxruntime", "onnx")}


class Bench:
    """The settings of one process, and what it measures with."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.threads: int = options["threads"]
        self.origins, self.missing = {}, {}  # type: dict[str, str], dict[str, str]
        for peer, packages in NEEDS.items():
            lacking = [name for name in packages if importlib.util.find_spec(name) is None]
            if lacking:
                self.missing[peer] = f"pip install {' '.join(lacking)}"
            else:
                version = importlib.metadata.version(peer)
                self.origins[peer] = f"{peer} {version}, threads: {self.threads}"
        if "torch" in self.origins:
            import torch

            torch.set_num_threads(self.threads)
        self.turns = Turns(
            self.threads, options["rounds"], options["sample_ms"], options["retries"]
        )

    def _ways(self, problem: Problem) -> dict[str, Callable[[], Way]]:
        """How to make each contestant; it may still fail at that."""
        ways: dict[str, Callable[[], Way]] = {
            "jitgen": partial(peers.jitgen, problem, self.threads, "nchw", False),
            "jitgen nhwc": partial(peers.jitgen, problem, self.threads, "nhwc", True),
        }
        if "torch" in self.origins:
            ways.update(peers.torch_ways(problem))
        if "onnxruntime" in self.origins and problem.which == "forward":
            ways["onnxruntime"] = partial(peers.onnxruntime_way, problem, self.threads)
        return ways

    def _contestants(
        self, problem: Problem
    ) -> tuple[list[Contestant], dict[str, str], dict[str, float]]:
        """The contestants whose result is right, why the others are not there, and by how many
        milliseconds the first call of ours is longer than the second."""
        found: list[Contestant] = []
        failed: dict[str, str] = {}
        setup: dict[str, float] = {}
        for name, make in self._ways(problem).items():
            try:
                way = make()
                times = [time.perf_counter()]
                result = way.call()
                times.append(time.perf_counter())
                wrong = problem.check(way.read(result))
                if name in OURS:
                    times.append(time.perf_counter())
                    way.call()
                    times.append(time.perf_counter())
                    setup[name] = 1e3 * (times[1] - times[0] - times[3] + times[2])
            except Exception as error:
                wrong = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            if wrong is None:
                found.append(PythonCall(name, [way.call]))
            else:
                failed[name] = wrong
        return found, failed, setup

    def row(self, which: str, layer: Layer, n: int) -> dict[str, Any]:
        """Measure a pass of a layer for n images, again when the machine was "disturbed".

        GFLOP/s under "best" and "median" by contestant, "peak" (GFLOP/s of one core times threads),
        "percent" of it; "ratio" and "median_ratio" by `RATIOS`, "rival" names who was best.
        """
        contestants, failed, setup = self._contestants(Problem(layer, n, which))
        best_ns, median_ns, disturbed = self.turns.times(contestants)
        flops, peak = layer.flops(n), self.turns.peak(best_ns)
        names = [contestant.name for contestant in contestants]
        best = {name: flops / best_ns[name] for name in names}
        median = {name: flops / median_ns[name] for name in names}
        row: dict[str, Any] = {
            "pass": which, "layer": str(layer), "n": n, "threads": self.threads, "flops": flops,
            "peak": peak, "best": best, "median": median, "failed": failed,
            "percent": {name: 100 * value / peak for name, value in best.items()},
            "setup_ms": setup, "disturbed": disturbed, "ratio": {}, "median_ratio": {}, "rival": {},
        }  # fmt: skip
        for ratio, (ours, theirs) in RATIOS.items():
            present = [name for name in theirs if name in best]
            if ours in best and present:
                row["rival"][ratio] = max(present, key=best.__getitem__)
                row["ratio"][ratio] = best[ours] / max(best[name] for name in present)
                top = max(median[name] for name in present)
                row["median_ratio"][ratio] = median[ours] / top
        return row


HEADING = (
    f"{'GFLOP/s':43}  batch  jitgen   %    nhwc   %   torch  onednn t. nhwc o. pack blocked"
    "    onnx /nchw  /all nhwc/ set-up"
)


def row_text(row: dict[str, Any]) -> str:
    """A row of the table: see `HEADING`."""
    best, ratio = row["best"], row["ratio"]
    line = f"{row['pass']:8}{row['layer']:35} {row['n']:5}"
    for name in OURS:
        line += f" {best[name]:7.1f} {row['percent'][name]:3.0f}" if name in best else f" {'-':>11}"
    for name in PEERS:
        line += f" {best[name]:7.1f}" if name in best else f" {'-':>7}"
    for name in RATIOS:
        line += f" {ratio[name]:5.2f}" if name in ratio else f" {'-':>5}"
    line += f" {max(row['setup_ms'].values(), default=0.0):6.0f}"
    if row["disturbed"]:
        line += "  !"
    return "\n".join([line, *(f"  {name}: {why}" for name, why in row["failed"].items())])


def run(options: dict[str, Any]) -> dict[str, Any]:
    """Measure everything the options ask for; prints rows as they come."""
    bench = Bench(options)
    print(f"\nthreads: {bench.threads}, {bench.turns.isa}", flush=True)
    for name, text in bench.origins.items():
        print(f"  {name}: {text}")
    for name, text in bench.missing.items():
        print(f"  without {name}: {text}")
    result: dict[str, Any] = {
        "threads": bench.threads, "isa": bench.turns.isa, "origins": bench.origins,
        "missing": bench.missing, "rows": [],
    }  # fmt: skip
    print(HEADING, flush=True)
    layers = [at for at in peers.layers(options["table"]) if at.name in options["layers"]]
    for which in options["passes"]:
        for n in options["batches"]:
            for layer in layers:
                bench_report.progress(f"{which} {layer}")
                row = bench.row(which, layer, n)
                bench_report.progress("")
                print(row_text(row), flush=True)
                result["rows"].append(row)
    return result


def main() -> int:
    """Run the options given as JSON; 0, or 1 if a result of jitgen's was wrong."""
    options = json.loads(sys.argv[1])
    # PyTorch warns of the operators that it uses itself
    warnings.simplefilter("ignore")
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
