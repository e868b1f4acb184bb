"""One measuring process of ``python -m tools.bench resnet50``: one number of threads.

What it is: the contestants of a row, the time of each kind of layer, and how both are printed;
`tools.bench.child` does the rest. What it is not: a command for people; its one argument is the
JSON of the options.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from examples import resnet50
from tools.bench import child as bench_child, resnet50_peers as peers
from tools.bench.child import Way

TORCH = ("torch nhwc", "torch", "fused")
PEERS = (*TORCH, "onnxruntime")
RATIOS = {"torch": ("jitgen", TORCH), "onnx": ("jitgen", ("onnxruntime",))}
#: Largest difference of logits, in parts of the largest
TOLERANCE = 1e-4


class Bench(bench_child.Child):
    """The network for several sizes of a batch."""

    heading = (
        f"{'ms':6}  jitgen    %  t. nhwc    torch    fused     onnx   medians  t. nhwc    torch    "
        "fused     onnx /torch /onnx"
    )

    def rows(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """A row for each batch."""
        for n in self.options["batches"]:
            yield f"batch {n}", partial(self.row, n)

    def row(self, n: int) -> dict[str, Any]:
        """Measure a batch of n images; "kinds" has milliseconds of the layers by their kind."""
        weights, size = resnet50.random_weights(), self.options["size"]
        ours = resnet50.Resnet50(weights, n, size, self.threads)
        rng = np.random.default_rng(1)
        ours.x[:] = rng.standard_normal(ours.x.shape)
        ways = {"jitgen": lambda: Way(ours.run), **self._peers(weights, ours.x)}
        expected = ours.run().copy()

        def check(_: str, compute: Callable[[], tuple[Any, ...]]) -> str | None:
            (logits,) = compute()
            off = resnet50.difference(np.asarray(logits), expected)
            return None if off <= TOLERANCE else f"logits differ by {off:.1e} of the largest"

        flops = sum(step.flops for step in ours.steps)
        row = {"n": n, "size": size, **self.measure(ways, check, flops, RATIOS)}
        row["kinds"] = self._kinds(ours, weights)
        return row

    def _peers(self, weights: resnet50.Weights, x: np.ndarray) -> dict[str, Callable[[], Way]]:
        ways: dict[str, Callable[[], Way]] = {}
        if "torch" in self.origins:
            import torch

            last = torch.from_numpy(x).permute(0, 3, 1, 2)

            def torch_way(make: Callable[[], Any], images: Any) -> Way:
                net = make()
                return Way(lambda: net.run(images))

            for name, make, images in (
                ("torch nhwc", lambda: resnet50.Torch(weights, True), last),
                ("torch", lambda: resnet50.Torch(weights, True, False), last.contiguous()),
                ("fused", lambda: peers.Fused(weights), last),
            ):
                ways[name] = partial(torch_way, make, images)
        if "onnxruntime" in self.origins:
            ways["onnxruntime"] = lambda: Way(self._onnx(weights, x, None).run)
        return ways

    def _onnx(self, weights: resnet50.Weights, x: np.ndarray, profile: str | None) -> peers.Onnx:
        net = peers.Onnx(weights, len(x), x.shape[1], self.threads, profile)
        net.x[:] = x.transpose(0, 3, 1, 2)
        return net

    def _kinds(self, ours: resnet50.Resnet50, weights: resnet50.Weights) -> dict[str, Any]:
        """By kind of layer, of all layers of that kind: "layers", "flops" and milliseconds."""
        repeats = self.options["passes_alone"]
        times = resnet50.by_layer(ours, repeats)
        theirs: dict[str, float] = {}
        if "onnxruntime" in self.origins:
            theirs = self._profiled(weights, ours.x, repeats)
        kinds: dict[str, Any] = {}
        for step, seconds in zip(ours.steps, times, strict=True):
            kind = kinds.setdefault(step.kind, {"layers": 0, "flops": 0.0, "jitgen": 0.0})
            kind["layers"] += 1
            kind["flops"] += step.flops
            kind["jitgen"] += 1e3 * seconds
            if theirs:
                kind["onnxruntime"] = kind.get("onnxruntime", 0.0) + theirs.pop(step.name, 0.0)
        if theirs:
            # what is no layer of ours
            kinds["other"] = {"layers": len(theirs), "onnxruntime": sum(theirs.values())}
        return kinds

    def _profiled(self, weights: Any, x: np.ndarray, repeats: int) -> dict[str, float]:
        """Milliseconds of ONNX Runtime's nodes by the layer they came from, best of the passes."""
        with tempfile.TemporaryDirectory() as folder:
            net = self._onnx(weights, x, f"{folder}/profile")
            for _ in range(repeats + 1):
                net.run()
            events = json.loads(Path(net.model.session.end_profiling()).read_text())
        best: dict[str, float] = {}
        for event in events:
            if event["name"].endswith("_kernel_time"):
                node = event["name"].removesuffix("_kernel_time").removesuffix("_nchwc")
                name, time = node.removesuffix(".relu").removesuffix(".add"), event["dur"] / 1e3
                best[name] = min(time, best.get(name, time))
        return best

    def row_text(self, row: dict[str, Any]) -> str:
        """A row of the table: see `heading`; then the kinds of layers."""
        cells = bench_child.cells
        best, median = (
            {name: row[f"{kind}_ns"][name] / 1e6 for name in row["best"]}
            for kind in ("best", "median")
        )
        line = f"{row['n']:6}" + cells(best, ["jitgen"], "7.2f")
        line += cells(row["percent"], ["jitgen"], "4.0f") + cells(best, PEERS, "8.2f")
        line += " " + cells(median, ("jitgen", *PEERS), "8.2f")
        lines = [line + cells(row["ratio"], list(RATIOS), "6.3f")]
        lines.append(f"{'kind of layer':23} layers   jitgen  GFLOP/s     onnx  GFLOP/s /onnx")
        for name, kind in row["kinds"].items():
            line = f"       {name:16} {kind['layers']:6}"
            for who in ("jitgen", "onnxruntime"):
                line += cells(kind, [who], "8.3f")
                known = kind.get("flops") and who in kind
                speed = {who: kind["flops"] / kind[who] / 1e6} if known else {}
                line += cells(speed, [who], "8.1f")
            if {"jitgen", "onnxruntime"} <= set(kind):
                line += f" {kind['onnxruntime'] / kind['jitgen']:5.2f}"
            lines.append(line)
        return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(bench_child.main(Bench))
