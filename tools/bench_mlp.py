"""``python -m tools.bench mlp``: a training step of a small network against PyTorch's.

What it is: forward, loss, backward and update of a multi-layer perceptron, batch 256, on random
data; jitgen and PyTorch take turns in one process, one process for each number of threads.
What it is not: accuracy; see examples/digits.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = ("784-512-512-10", "64-512-512-10")
BATCH = 256
ROUNDS = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--network", action="append", metavar="SIZES", help="e.g. 784-512-512-10")
    parser.add_argument("--threads", default="1,2", metavar="LIST", help="default %(default)s")
    parser.add_argument("--batch", type=int, default=BATCH, help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default %(default)s")
    parser.add_argument("--json", metavar="FILE", help="write everything to FILE")


def run(args: argparse.Namespace) -> int:
    """Measure in child processes and print a table."""
    networks = args.network or list(NETWORKS)
    try:
        for text in networks:
            [int(size) for size in text.split("-")]
        threads = [int(text) for text in args.threads.split(",")]
    except ValueError as error:
        print(f"tools.bench: {error}", file=sys.stderr)
        return 2
    rows = []
    print(f"{'network':16} {'optimizer':9} {'threads':>7} {'jitgen':>9} {'PyTorch':>9} "
          f"{'ratio':>6} {'medians':>8}")  # fmt: skip
    for count in threads:
        variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(count))
        request = json.dumps([networks, args.batch, args.rounds, count])
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        done = subprocess.run(
            [sys.executable, "-m", "tools.bench_mlp", request], stdout=subprocess.PIPE, text=True,
            env={**os.environ, **variables, "PYTHONPATH": path}, check=False,
        )  # fmt: skip
        if done.returncode:
            return done.returncode
        for row in json.loads(done.stdout):
            rows.append(row)
            best, median = row["best_ms"], row["median_ms"]
            print(f"{row['network']:16} {row['optimizer']:9} {count:7} {best['jitgen']:6.2f} ms "
                  f"{best['torch']:6.2f} ms {best['torch'] / best['jitgen']:6.2f} "
                  f"{median['torch'] / median['jitgen']:8.2f}")  # fmt: skip
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def _measure(network: str, optimizer: str, batch: int, rounds: int, threads: int) -> dict[str, Any]:
    import numpy as np
    import torch

    from primitives.mlp import Mlp
    from primitives.optimizers import Adam, Sgd

    sizes = [int(size) for size in network.split("-")]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, sizes[0])).astype(np.float32)
    labels = rng.integers(0, sizes[-1], batch)
    ours = Mlp(batch, sizes, threads=threads)
    modules: list[Any] = []
    for w, b in zip(ours.weights, ours.biases, strict=True):
        linear = torch.nn.Linear(w.shape[1], w.shape[0])
        linear.weight.data[:] = torch.from_numpy(w)
        linear.bias.data[:] = torch.from_numpy(b)
        modules += [linear, torch.nn.ReLU()]
    theirs = torch.nn.Sequential(*modules[:-1])
    torch.set_num_threads(threads)
    tensors = torch.from_numpy(x), torch.from_numpy(labels)
    if optimizer == "adam":
        our_step: Any = Adam(ours.parameters, threads=threads)
        their_step: Any = torch.optim.Adam(theirs.parameters(), fused=True)
    else:
        our_step = Sgd(ours.parameters, lr=0.01, momentum=0.9, threads=threads)
        their_step = torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9, fused=True)

    def torch_step() -> None:
        their_step.zero_grad()
        torch.nn.functional.cross_entropy(theirs(tensors[0]), tensors[1]).backward()
        their_step.step()

    contestants: dict[str, Callable[[], Any]] = {
        "jitgen": lambda: ours.train_step(x, labels, our_step), "torch": torch_step,
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 3):
        for name, call in contestants.items():
            # a few steps in a row: the first pays for the other's cache and threads
            for repeat in range(4):
                begin = time.perf_counter()
                call()
                if turn >= 3 and repeat:
                    times[name].append(1e3 * (time.perf_counter() - begin))
    return {
        "network": network, "optimizer": optimizer, "batch": batch, "threads": threads,
        "best_ms": {name: min(values) for name, values in times.items()},
        "median_ms": {name: statistics.median(values) for name, values in times.items()},
    }  # fmt: skip


def main() -> int:
    """The child: measure and print JSON."""
    try:
        import torch  # noqa: F401
    except ImportError:
        print("cannot measure: PyTorch is not installed", file=sys.stderr)
        return 3
    networks, batch, rounds, threads = json.loads(sys.argv[1])
    rows = [
        _measure(network, optimizer, batch, rounds, threads)
        for network in networks
        for optimizer in ("sgd", "adam")
    ]
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
