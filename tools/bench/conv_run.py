"""One measuring process of ``python -m tools.bench conv``: one number of threads.

What it is: the contestants of a row, and how a row is printed; `tools.bench.child` does the rest.
What it is not: a command for people; its one argument is the JSON of the options.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tools.bench import child as bench_child, conv_peers as peers
from tools.bench.child import Way
from tools.bench.conv_peers import NCHW_PEERS, PEERS, Layer, Problem

OURS = ("jitgen", "jitgen nhwc")
#: What is compared with the best of whom: all on equal terms, and with everybody
RATIOS = {
    "nchw": ("jitgen", NCHW_PEERS), "jitgen": ("jitgen", PEERS), "nhwc": ("jitgen nhwc", PEERS),
}  # fmt: skip


class Bench(bench_child.Child):
    """The layers of a table."""

    ours = OURS
    heading = (
        f"{'GFLOP/s':43}  batch  jitgen   %    nhwc   %   torch  onednn t. nhwc o. pack blocked"
        "    onnx /nchw  /all nhwc/ set-up order"
    )

    def rows(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """Every layer for every batch and pass."""
        named = self.options["layers"]
        layers = [at for at in peers.layers(self.options["table"]) if at.name in named]
        for which in self.options["passes"]:
            for n in self.options["batches"]:
                for layer in layers:
                    yield f"{which} {layer}", partial(self.row, which, layer, n)

    def _ways(self, problem: Problem) -> dict[str, Callable[[], Way]]:
        """How to make each contestant; it may still fail at that."""
        how = self.options["algorithm"]
        ways: dict[str, Callable[[], Way]] = {
            "jitgen": partial(peers.jitgen, problem, self.threads, "nchw", False, how),
            "jitgen nhwc": partial(peers.jitgen, problem, self.threads, "nhwc", True, how),
        }
        if "torch" in self.origins:
            ways.update(peers.torch_ways(problem))
        if "onnxruntime" in self.origins and problem.which == "forward":
            ways["onnxruntime"] = partial(peers.onnxruntime_way, problem, self.threads)
        return ways

    def row(self, which: str, layer: Layer, n: int) -> dict[str, Any]:
        """Measure a pass of a layer for n images."""
        problem = Problem(layer, n, which)
        measured = self.measure(
            self._ways(problem), lambda _, compute: problem.check(compute()), layer.flops(n),
            RATIOS,
        )  # fmt: skip
        made = peers.convolution(layer, n, self.threads, "nhwc", self.options["algorithm"])
        order = peers.order(made, which)
        return {"pass": which, "layer": str(layer), "n": n, "order": order, **measured}

    def row_text(self, row: dict[str, Any]) -> str:
        """A row of the table: see `heading`."""
        best = row["best"]
        line = f"{row['pass']:8}{row['layer']:35} {row['n']:5}"
        for name in OURS:
            line += bench_child.cells(best, [name])
            line += bench_child.cells(row["percent"], [name], "3.0f")
        line += bench_child.cells(best, PEERS)
        line += bench_child.cells(row["ratio"], list(RATIOS), "5.2f")
        return f"{line} {max(row['setup_ms'][name] for name in OURS):6.0f} {row['order']}"


if __name__ == "__main__":
    sys.exit(bench_child.main(Bench))
