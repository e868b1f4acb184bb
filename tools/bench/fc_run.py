"""One measuring process of ``python -m tools.bench fc``: one number of threads.

What it is: the contestants of a row, how a row is printed, and calls on a tiny layer;
`tools.bench.child` does the rest. What it is not: a command for people; its one argument is the
JSON of the options.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tools.bench import child as bench_child, fc_peers as peers, peers as bench_peers
from tools.bench.child import Way
from tools.bench.fc_peers import PEERS, PLAIN_PEERS, Calls, Problem, Shape
from tools.bench.timing import Contestant, Cursor, PythonCall
from tools.bench.turns import team_walk

OURS = ("jitgen", "jitgen packed")
#: What is compared with the best of whom
RATIOS = {
    "jitgen": ("jitgen", PLAIN_PEERS), "jitgen packed": ("jitgen packed", PEERS),
    "libxsmm": ("jitgen packed", ("libxsmm",)), "threads": ("jitgen packed", ("one thread",)),
}  # fmt: skip
#: The smallest batch whose speed-up by threads is measured
SPEED_UP_BATCH = 64
TINY = Shape(1, 64, 64)


def _way(make: Callable[[], Calls]) -> Way:
    calls = make()
    return Way(calls[0], tuple, calls[1:])


class Bench(bench_child.Child):
    """The layers of a list of shapes."""

    ours = OURS
    peers = ("torch",)
    heading = (
        f"{'GFLOP/s':21}  {'jitgen':>6}  median   %   packed  median   %   torch  autogr  onednn"
        "   numpy onednnP libxsmm /plain /packd /xsmm"
    )

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self.cold: bool = options["cold"]
        self._libxsmm = self._start_libxsmm()
        self.origins["numpy"] = f"numpy {importlib.metadata.version('numpy')}"
        self.origins["weights"] = "cold" if self.cold else "warm"

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

    def rows(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """Every shape for every pass."""
        for which in self.options["passes"]:
            for size in self.options["shapes"]:
                yield f"{which} {size}", partial(self.row, which, Shape(*size), self.cold)

    def _ways(self, problem: Problem) -> dict[str, Callable[[], Way]]:
        """How to make each contestant; it may still fail at that."""
        calls: dict[str, Callable[[], Calls]] = {
            "jitgen": partial(peers.jitgen, problem, self.threads, False),
            "jitgen packed": partial(peers.jitgen, problem, self.threads, True),
        }
        if "torch" in self.origins:
            calls.update(peers.torch_ways(problem))
        calls["numpy"] = partial(peers.numpy_way, problem)
        if self.threads > 1 and problem.shape.n >= SPEED_UP_BATCH:
            calls["one thread"] = partial(peers.jitgen, problem, 1, True)
        ways = {name: partial(_way, make) for name, make in calls.items()}
        if self._libxsmm is not None:
            ways["libxsmm"] = partial(peers.libxsmm_way, self._libxsmm, problem)
        return ways

    def row(self, which: str, shape: Shape, cold: bool) -> dict[str, Any]:
        """Measure a pass of a layer; for batch 1 also GB/s of weights ("gbs") and their "share" of
        what memory gives."""
        problem = Problem(shape, which, cold=cold)
        cursor = Cursor(problem.sets)
        memory: list[Contestant] = []
        moved = 0
        if shape.n == 1:
            arrays, store = problem.dw or problem.w, which == "weights"
            moved, calls = team_walk(self.turns.isa, self.threads, arrays, store)
            memory = [PythonCall("memory", calls, cursor=cursor)]
        measured = self.measure(
            self._ways(problem),
            # libxsmm has the product alone
            lambda name, compute: problem.check(compute, epilogue=name != "libxsmm"),
            shape.flops, RATIOS, cursor if cold else None, memory,
        )  # fmt: skip
        row = {"pass": which, "n": shape.n, "c": shape.c, "k": shape.k, "cold": cold}
        row |= measured
        if memory:
            best = row["best_ns"]
            limit = moved / best["memory"]
            row["gbs"] = {name: problem.weight_bytes / best[name] for name in row["best"]}
            row["share"] = {name: speed / limit for name, speed in row["gbs"].items()}
            row["gbs"]["memory"] = limit
        return row

    def row_text(self, row: dict[str, Any]) -> str:
        """A row of the table: see `heading`."""
        cells = bench_child.cells
        line = f"{row['pass']:8}{row['n']:4} {row['c']:4}->{row['k']:<4}"
        for name in OURS:
            line += cells(row["best"], [name]) + cells(row["median"], [name])
            line += cells(row["percent"], [name], "3.0f") + "%"
        line += cells(row["best"], (*PEERS, "libxsmm"))
        line += cells(row["ratio"], (*OURS, "libxsmm"), "6.2f")
        if "threads" in row["ratio"]:
            line += f"  {row['ratio']['threads']:.2f} times one thread"
        if "gbs" in row:
            ours = max(row["gbs"].get(name, 0) for name in OURS)
            line += f"  {ours:.1f} of {row['gbs']['memory']:.1f} GB/s"
        return line

    def more(self) -> dict[str, Any]:
        """Microseconds of a call on 1 x 64 -> 64, plain arrays, by pass and contestant."""
        if not self.options["parts"] or self.threads > 1:
            return {"tiny_us": {}}
        result = {}
        for which in peers.PASSES:
            best_ns = self.row(which, TINY, False)["best_ns"]
            plain = [name for name in ("jitgen", *PLAIN_PEERS) if name in best_ns]
            result[which] = {name: best_ns[name] / 1e3 for name in plain}
        return {"tiny_us": result}


if __name__ == "__main__":
    sys.exit(bench_child.main(Bench))
