"""One measuring process of ``python -m tools.bench rows``: one number of threads.

What it is: the contestants of a row, and how a row is printed; `tools.bench.child` does the rest.
What it is not: a command for people; its one argument is the JSON of the options.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tools.bench import child as bench_child, rows_peers
from tools.bench.child import Way
from tools.bench.rows_peers import Problem
from tools.bench.timing import Cursor, PythonCall

RATIOS = {"torch": ("jitgen", ("torch",))}


class Bench(bench_child.Child):
    """Every function at every size."""

    peers = ("torch",)
    #: autograd needs its graph
    inference = False
    heading = f"{'us':39} jitgen     torch   GB/s   copy   % ratio  med."

    def rows(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """Every function at every size, for every pass."""
        for which in self.options["passes"]:
            for sizes in self.options["cases"]:
                for function in self.options["functions"]:
                    name = f"{which} {function} {sizes[0]}x{sizes[1]}"
                    yield name, partial(self.row, which, function, *sizes)

    def row(self, which: str, function: str, rows: int, columns: int) -> dict[str, Any]:
        """Measure a pass of a function; "flops" are bytes, so that "best" are GB/s; "share" is what
        that is of a copy."""
        dtype, cold = self.options["dtype"], self.options["cold"]
        problem = Problem(function, which, rows, columns, dtype, cold)
        cursor = Cursor(problem.sets) if cold else None
        ways: dict[str, Callable[[], Way]] = {
            "jitgen": partial(rows_peers.jitgen_way, problem, self.threads)
        }
        if "torch" in self.origins:
            ways["torch"] = partial(rows_peers.torch_way, problem)
        copies = PythonCall("copy", rows_peers.copies(problem, self.threads), cursor=cursor)
        row: dict[str, Any] = {
            "pass": which, "function": function, "case": f"{rows}x{columns}", "cold": cold,
            **self.measure(
                ways, lambda _, compute: problem.check(compute), problem.moved, RATIOS, cursor,
                [copies],
            ),
        }  # fmt: skip
        row["copy"] = 2 * problem.nbytes / row["best_ns"]["copy"]
        row["share"] = {name: speed / row["copy"] for name, speed in row["best"].items()}
        return row

    def row_text(self, row: dict[str, Any]) -> str:
        """A row of the table: see `heading`."""
        cells = bench_child.cells
        best_us = {name: row["best_ns"][name] / 1e3 for name in row["best"]}
        percent = {name: 100 * share for name, share in row["share"].items()}
        line = f"{row['pass']:9}{row['function']:13}{row['case']:12}"
        line += cells(best_us, ["jitgen", "torch"], "9.1f") + cells(row["best"], ["jitgen"], "6.1f")
        line += f" {row['copy']:6.1f}" + cells(percent, ["jitgen"], "3.0f")
        line += cells(row["ratio"], ["torch"], "5.2f")
        return line + cells(row["median_ratio"], ["torch"], "5.2f")


if __name__ == "__main__":
    sys.exit(bench_child.main(Bench))
