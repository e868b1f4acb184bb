"""One measuring process of ``python -m tools.bench attention``: one number of threads.

What it is: the two contestants of a row, the softmax alone, and how a row is printed;
`tools.bench.child` does the rest. What it is not: a command for people; its one argument is the
JSON of the options.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from jitgen import Loop, Nest, Primitive, Tensor
from jitgen.kernels.elementwise import emit_map
from tools.bench import child as bench_child
from tools.bench.child import Way
from tools.bench.command import ROOT
from tools.bench.timing import PythonCall


class Bench(bench_child.Child):
    """Every case in every layout, with every number of queries in a block."""

    peers = ("torch",)
    heading = (
        f"{'case':14} {'layout':10} queries   jitgen    PyTorch  ratio medians GFLOP/s   % "
        "softmax  bound"
    )

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        sys.path.append(str(ROOT / "examples"))
        self._example: Any = importlib.import_module("fused_attention")

    def rows(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """A row for each case, layout and block."""
        for case in self.options["cases"]:
            for layout in self.options["layouts"]:
                for queries in self.options["queries"]:
                    yield f"{case} {layout}", partial(self.row, case, layout, queries)

    def row(self, case: str, layout: str, queries: int) -> dict[str, Any]:
        """Measure a case; "of_bound": percent of jitgen's time that the bound takes."""
        batch, heads, steps, features = sizes = tuple(map(int, case.split("x")))
        rng = np.random.default_rng(0)
        named, (q, k, v, o) = self._example.arrays(rng, *sizes, layout, "f32")
        exact, bound = self._example.expected(q, k, v)

        def ours() -> Way:
            attend = self._example.fused_attention(
                *sizes, layout=layout, queries=queries, threads=self.threads
            )
            return Way(lambda: attend(**named), lambda _: (o,))

        def theirs() -> Way:
            import torch

            tensors = [torch.from_numpy(x) for x in (q, k, v)]
            attention = torch.nn.functional.scaled_dot_product_attention
            return Way(lambda: attention(*tensors), lambda found: (found.numpy(),))

        def check(name: str, compute: Callable[[], tuple[Any, ...]]) -> str | None:
            (found,) = compute()
            # PyTorch's sums are in another order: twice the bound
            worst = np.abs(found - exact).max(initial=0.0, where=True) / bound.max()
            return None if (np.abs(found - exact) <= 2 * bound).all() else f"off by {worst:.1e}"

        ways = {"jitgen": ours, **({"torch": theirs} if "torch" in self.origins else {})}
        softmax = PythonCall("softmax", [self._softmax(sizes, queries)])
        flops = 4 * batch * heads * steps * steps * features
        row = self.measure(
            ways, check, flops, {"jitgen": ("jitgen", ("torch",))}, others=[softmax]
        )
        if "jitgen" in row["best_ns"]:
            least = flops / row["peak"] + row["best_ns"]["softmax"]
            row["of_bound"] = 100 * least / row["best_ns"]["jitgen"]
        return {"case": case, "layout": layout, "queries": queries, **row}

    def _softmax(self, sizes: tuple[int, ...], queries: int) -> Primitive:
        """The softmax of all blocks, each in a thread's own scratch."""
        batch, heads, steps, _ = sizes
        scores = Tensor(
            "scores", "s q", "f32", own=True, strides={"s": queries + self._example.GAP},
            s=steps, q=queries,
        ).at()  # fmt: skip
        loops = {"b": Loop(batch, (1,)), "h": Loop(heads, (1,)), "q": Loop(steps, (queries,))}
        nest = Nest("BHQ", loops, "f32")
        # scratch that nobody writes is refused; a vector of it costs nothing here
        zeros = nest.call("zeros", lambda *_: (emit_map("zero", 1, 4, "f32", nest.target), {}),
                          {"c": scores})  # fmt: skip
        part = nest.rows(
            "softmax", {"x": scores, "y": scores}, rows="q", over="s", before=(zeros,)
        )
        return Primitive([part], [], self.threads)

    def row_text(self, row: dict[str, Any]) -> str:
        """A row of the table: see `heading`."""
        cells, best_ms = bench_child.cells, {n: t / 1e6 for n, t in row["best_ns"].items()}
        line = f"{row['case']:14} {row['layout']:10} {row['queries']:7}"
        line += "".join(cells(best_ms, [name], "7.3f") + " ms" for name in ("jitgen", "torch"))
        line += cells(row["ratio"], ["jitgen"], "6.2f")
        line += cells(row["median_ratio"], ["jitgen"], "7.2f")
        line += cells(row["best"], ["jitgen"]) + cells(row["percent"], ["jitgen"], "3.0f")
        line += f" {1e3 * best_ms['softmax']:7.0f}"
        return line + cells(row, ["of_bound"], "5.0f")


if __name__ == "__main__":
    sys.exit(bench_child.main(Bench))
