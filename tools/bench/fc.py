"""``python -m tools.bench fc``: the fully connected layer against PyTorch, NumPy and LIBXSMM.

What it is: forward (bias, relu), backward by data and weight update in f32, for one thread and for
all; what a call on a tiny layer costs, and how long a new layer takes until its first call. All
contestants of a row take turns in one process (`tools.bench.fc_run`, one for each number of
threads). What it is not: the kernels by themselves (`tools.bench.kernel`).

The columns: jitgen on plain arrays and with packed weights (packed input for the weight update);
torch: linear and relu_, or mm; autogr: the autograd pass; onednn: PyTorch's oneDNN operator on
plain arrays; onednnP: on reordered weights; libxsmm: the product alone on blocked operands. /plain:
jitgen to the best of torch, autogr, onednn and numpy; /packd: packed to the best of these and
onednnP; /xsmm: packed to libxsmm. For batch 1: GB/s of weights, of what a loop of loads (stores for
the weight update) reaches. !: other programs took time from this row.

In the summaries: percent of peak and speed-up of batch >= 64; memory: share of it, batch 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from tools.bench import command
from tools.bench.kernel import parse_size

PASSES = ("forward", "data", "weights")
BATCHES = (1, 16, 64, 256)
LAYERS = (
    (256, 256), (512, 1024), (1024, 1024), (2048, 1000), (4096, 1024), (1000, 333), (768, 3072),
    (3072, 768),
)  # fmt: skip
QUICK_BATCHES = (1, 64)
QUICK_LAYERS = ((512, 1024), (1000, 333))
#: From this batch on, rows count as bound by multiplication, not by memory
LARGE_BATCH = 64
NEW_LAYER = (256, 4096, 1024)
#: Runs in a fresh process; milliseconds of the first call of a new layer less those of a later one
FIRST_CALL = """
import json, sys, time
import numpy as np
from jitgen.primitives.layers.fully_connected import FullyConnected
which, n, c, k, threads = json.loads(sys.argv[1])
x, w, b, dy = (np.ones(s, np.float32) for s in ((n, c), (k, c), (k,), (n, k)))
y, dx, dw, db = (np.ones(s, np.float32) for s in ((n, k), (n, c), (k, c), (k,)))
times = []
for call in range(4):
    begin = time.perf_counter()
    if not call:
        layer = FullyConnected(n, c, k, activation="relu", threads=threads)
    if which == "forward":
        layer.forward(x, w, b, y)
    elif which == "data":
        layer.backward_data(dy, w, dx)
    elif which == "weights":
        layer.backward_weights(dy, x, (dw, db))
    else:
        layer.forward(x, layer.pack_weights(w, backward=False), b, y)
    times.append(1e3 * (time.perf_counter() - begin))
print(times[0] - min(times[1:]))
"""
#: Columns of the summaries; the second of those rows that multiplication bounds
COLUMNS = {
    "jitgen / best peer": ("ratio", "jitgen"), "packed / best peer": ("ratio", "jitgen packed"),
    "the same, medians": ("median_ratio", "jitgen"),
    "packed, medians": ("median_ratio", "jitgen packed"),
    "packed / LIBXSMM": ("ratio", "libxsmm"), "memory": ("share", "jitgen"),
    "memory, packed": ("share", "jitgen packed"), "speed-up by threads": ("ratio", "threads"),
}  # fmt: skip
LARGE_COLUMNS = {
    "percent of peak": ("percent", "jitgen"),
    "percent of peak, packed": ("percent", "jitgen packed"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--shape", action="append", metavar="NxCxK", help="batch, in and out features; only rows")
    add("--cold", action="store_true", help="weights rotate through twice the last-level cache")
    command.add_arguments(parser, PASSES)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as plain data; ValueError names what is wrong."""
    layers = QUICK_LAYERS if arguments.quick else LAYERS
    batches = QUICK_BATCHES if arguments.quick else BATCHES
    shapes = [(n, c, k) for n in batches for c, k in layers]
    if arguments.shape:
        shapes = [parse_size(text) for text in arguments.shape]
    return {
        **command.options(arguments, PASSES), "shapes": shapes, "cold": arguments.cold,
        "parts": not arguments.shape, "set_up_rounds": 1 if arguments.quick else 3,
    }  # fmt: skip


def first_calls(rounds: int, threads: int) -> dict[str, float]:
    """Least milliseconds of set-up of a new layer in a fresh process, by what is called."""
    best = {}
    for which in (*PASSES, "packed forward"):
        text = json.dumps([which, *NEW_LAYER, threads])
        program = [sys.executable, "-c", FIRST_CALL, text]
        environment = command.environment(threads)
        times = [
            float(subprocess.run(program, env=environment, capture_output=True, check=True).stdout)
            for _ in range(rounds)
        ]
        best[which] = min(times)
    return best


def _summaries(
    options: dict[str, Any], result: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    def where(row: dict[str, Any]) -> str:
        return f"{row['n']}x{row['c']}x{row['k']}"

    for name in (*options["passes"], "all passes"):
        rows = [row for row in result["rows"] if name in (row["pass"], "all passes")]
        large = [row for row in rows if row["n"] >= LARGE_BATCH]
        figures = command.summary(rows, COLUMNS, where)
        figures |= command.summary(large, LARGE_COLUMNS, where)
        yield f"{name}, threads: {result['threads']}", figures


def _times_of_calls(document: dict[str, Any]) -> None:
    """Print what calls on a tiny layer and the set-up of a new one cost."""
    options = document["options"]
    for result in document["runs"]:
        for name, times in result["tiny_us"].items():
            texts = (f"{who} {time:.2f}" for who, time in times.items())
            print(f"a call on 1 x 64 -> 64, microseconds, {name}: {', '.join(texts)}")
    if options["parts"]:
        size = "{} x {} -> {}".format(*NEW_LAYER)
        for threads in options["all_threads"]:
            times = first_calls(options["set_up_rounds"], threads)
            document.setdefault("first_call_ms", {})[threads] = times
            texts = (f"{name} {time:.1f}" for name, time in times.items())
            print(f"set-up of a new layer {size}, threads: {threads}, ms: {', '.join(texts)}")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; the exit code (see `tools.bench.command.run`)."""
    return command.run(
        arguments, "tools.bench.fc_run", __doc__ or "", _options, _summaries, _times_of_calls
    )
