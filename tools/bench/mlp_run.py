"""One measuring process of ``python -m tools.bench mlp``: one number of threads.

What it is: the two contestants of a training step, and how a row is printed; `tools.bench.child`
does the rest. What it is not: a command for people; its one argument is the JSON of the options.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from jitgen.primitives.train.mlp import Mlp
from jitgen.primitives.train.optimizers import Adam, Sgd
from tools.bench import child as bench_child
from tools.bench.child import Way

OPTIMIZERS = ("sgd", "adam")


class Bench(bench_child.Child):
    """Every network with every optimizer."""

    peers = ("torch",)
    inference = False
    heading = f"{'network':20} batch optim.    jitgen    PyTorch  ratio medians GFLOP/s   %"

    def rows(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """A row for each network, batch and optimizer."""
        for network in self.options["networks"]:
            for batch in self.options["batches"]:
                for optimizer in OPTIMIZERS:
                    run = partial(self.row, network, batch, optimizer)
                    yield f"{network} {optimizer}", run

    def row(self, network: str, batch: int, optimizer: str) -> dict[str, Any]:
        """Measure a training step."""
        sizes = [int(size) for size in network.split("-")]
        rng = np.random.default_rng(0)
        x = rng.standard_normal((batch, sizes[0])).astype(np.float32)
        labels = rng.integers(0, sizes[-1], batch)
        given = (sizes, x, labels, optimizer, self.threads)
        ways = {"jitgen": partial(_jitgen, *given)}
        if "torch" in self.origins:
            ways["torch"] = partial(_torch, *given)
        # forward and both gradients; the first layer has no gradient of its input
        products = [a * b for a, b in itertools.pairwise(sizes)]
        flops = 2 * batch * (3 * sum(products) - products[0])
        losses: list[float] = []

        def check(_: str, compute: Callable[[], tuple[Any, ...]]) -> str | None:
            """Both start from the same weights: the first losses are the same."""
            losses.append(float(compute()[0]))
            off = abs(losses[-1] / losses[0] - 1)
            return None if off <= 1e-4 else f"wrong loss, relative error {off:.1e}"

        measured = self.measure(ways, check, flops, {"jitgen": ("jitgen", ("torch",))})
        return {"network": network, "optimizer": optimizer, "batch": batch, **measured}

    def row_text(self, row: dict[str, Any]) -> str:
        """A row of the table: see `heading`."""
        cells, best_ms = bench_child.cells, {n: t / 1e6 for n, t in row["best_ns"].items()}
        line = f"{row['network']:20} {row['batch']:5} {row['optimizer']:6}"
        line += "".join(cells(best_ms, [name], "7.2f") + " ms" for name in ("jitgen", "torch"))
        line += cells(row["ratio"], ["jitgen"], "6.2f")
        line += cells(row["median_ratio"], ["jitgen"], "7.2f")
        return line + cells(row["best"], ["jitgen"]) + cells(row["percent"], ["jitgen"], "3.0f")


def _jitgen(
    sizes: list[int], x: np.ndarray, labels: np.ndarray, optimizer: str, threads: int
) -> Way:
    ours = Mlp(len(x), sizes, threads=threads)
    step: Any = (
        Adam(ours.parameters, threads=threads) if optimizer == "adam"
        else Sgd(ours.parameters, lr=0.01, momentum=0.9, threads=threads)
    )  # fmt: skip
    return Way(lambda: ours.train_step(x, labels, step))


def _torch(
    sizes: list[int], x: np.ndarray, labels: np.ndarray, optimizer: str, threads: int
) -> Way:
    import torch

    ours = Mlp(len(x), sizes, threads=threads)
    modules: list[Any] = []
    for w, b in zip(ours.weights, ours.biases, strict=True):
        linear = torch.nn.Linear(w.shape[1], w.shape[0])
        linear.weight.data[:] = torch.from_numpy(w)
        linear.bias.data[:] = torch.from_numpy(b)
        modules += [linear, torch.nn.ReLU()]
    net = torch.nn.Sequential(*modules[:-1])
    images, classes = torch.from_numpy(x), torch.from_numpy(labels)
    if optimizer == "adam":
        step: Any = torch.optim.Adam(net.parameters(), fused=True)
    else:
        step = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, fused=True)

    def train() -> Any:
        step.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(images), classes)
        loss.backward()
        step.step()
        return loss

    return Way(train)


if __name__ == "__main__":
    sys.exit(bench_child.main(Bench))
