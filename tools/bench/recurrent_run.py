"""One measuring process of ``python -m tools.bench lstm``: one number of threads.

What it is: the contestants of a row, and how a row is printed; `tools.bench.child` does the rest.
What it is not: a command for people; its one argument is the JSON of the options.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tools.bench import child as bench_child, recurrent_peers as peers
from tools.bench.child import Way
from tools.bench.recurrent_peers import PEERS, Case, Problem
from tools.bench.timing import PythonCall
from tools.bench.turns import team_walk

RATIOS = {
    "peer": ("jitgen", PEERS), "torch": ("jitgen", ("torch", "onednn packed")),
    "onnx": ("jitgen", ("onnxruntime",)), "longest": ("jitgen", ("jitgen longest",)),
}  # fmt: skip


class Bench(bench_child.Child):
    """The cases of one kind of cell."""

    #: autograd needs its graph
    inference = False
    heading = f"{'ms':30}  jitgen GFLOP/s   %    torch   onednn     onnx ratio  med."

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        if "torch" in self.origins:
            import torch

            torch.set_grad_enabled(False)

    def rows(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """Every case for every pass."""
        for which in self.options["passes"]:
            for sizes in self.options["cases"]:
                case = Case(self.options["cell"], *sizes, self.options["lengths"])
                yield f"{which} {case}", partial(self.row, which, case)

    def row(self, which: str, case: Case) -> dict[str, Any]:
        """Measure a pass of a layer; of one sequence forward also GB/s of weights ("gbs") and their
        "share" of what a loop of loads reaches."""
        problem = Problem(case, which)
        ways: dict[str, Callable[[], Way]] = {}
        ways["jitgen"] = partial(peers.jitgen, problem, self.threads)
        if case.lengths:
            ways["jitgen longest"] = partial(peers.jitgen_longest, problem, self.threads)
        if "torch" in self.origins:
            ways.update(peers.torch_ways(problem))
        if "onnxruntime" in self.origins and which == "forward" and not case.lengths:
            ways["onnxruntime"] = partial(peers.onnxruntime_way, problem, self.threads)
        loads: list[PythonCall] = []
        moved = 0
        if case.n == 1 and which == "forward" and not case.lengths:
            moved, calls = team_walk(self.turns.isa, self.threads, [problem.r])
            loads = [PythonCall("loads", calls)]
        row: dict[str, Any] = {
            "pass": which, "cell": case.cell, "case": str(case), "lengths": case.lengths,
            **self.measure(
                ways, lambda _, compute: problem.check(compute), case.flops(which), RATIOS,
                others=loads,
            ),
        }  # fmt: skip
        if loads:
            limit = moved / row["best_ns"]["loads"]
            read = problem.w.nbytes + case.t * problem.r.nbytes
            row["gbs"] = {name: read / row["best_ns"][name] for name in row["best"]}
            row["share"] = {name: speed / limit for name, speed in row["gbs"].items()}
            row["gbs"]["loads"] = limit
        return row

    def row_text(self, row: dict[str, Any]) -> str:
        """A row of the table: see `heading`."""
        cells = bench_child.cells
        best_ms = {name: row["best_ns"][name] / 1e6 for name in row["best"]}
        line = f"{row['cell']:5}{row['pass']:9}{row['case']:16}"
        line += cells(best_ms, ["jitgen"], "8.3f")
        line += cells(row["best"], ["jitgen"]) + cells(row["percent"], ["jitgen"], "3.0f")
        line += cells(best_ms, PEERS, "8.3f") + cells(row["ratio"], ["peer"], "5.2f")
        line += cells(row["median_ratio"], ["peer"], "5.2f")
        if "longest" in row["ratio"]:
            line += f"  longest steps {best_ms['jitgen longest']:.3f}"
        if "gbs" in row and "jitgen" in row["gbs"]:
            line += f"  {row['gbs']['jitgen']:.1f} of {row['gbs']['loads']:.1f} GB/s"
        return line


if __name__ == "__main__":
    sys.exit(bench_child.main(Bench))
