"""``python -m tools.bench conv``: convolutions against PyTorch (oneDNN) and ONNX Runtime.

What it is: forward (bias, relu), backward by data and weight update in f32 of the layers of
networks, for one thread and for all. All contestants of a row take turns in one process
(`tools.bench.conv_run`, one for each number of threads), in which freed memory stays with the
process: nobody waits for new pages. What it is not: the kernels by themselves
(`tools.bench.kernel`).

The columns: jitgen: NCHW arrays and plain weights; nhwc: NHWC arrays and packed weights (forward
and data); %: percent of the multiply-add peak in that row; torch, t. nhwc: PyTorch's operators on
contiguous and channels_last tensors; onednn: the operators that torch.compile uses, on NCHW; o.
pack: the same on channels_last with reordered weights; blocked: oneDNN's own layout; onnx: ONNX
Runtime, weights constant. /nchw: jitgen to the best of torch and onednn; /all: jitgen to the best
of all; nhwc/: nhwc to the best of all; order: how jitgen computes it on NHWC, the order of its
loops, or winograd, for which operations are counted as if it were direct: beyond 100 % of the peak.
set-up: milliseconds to make our layer ready, weights packed. !: other programs took time from this
row.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from tools.bench import command

PASSES = ("forward", "data", "weights")
#: With --quick every third layer of a table is measured
QUICK_STEP = 3
RATIOS = {
    "nchw": "jitgen / best NCHW peer", "jitgen": "jitgen / best peer",
    "nhwc": "jitgen nhwc / best peer",
}  # fmt: skip
COLUMNS = {
    **{title: ("ratio", name) for name, title in RATIOS.items()},
    **{f"{title}, medians": ("median_ratio", name) for name, title in RATIOS.items()},
    "percent of peak": ("percent", "jitgen"),
    "percent of peak, nhwc": ("percent", "jitgen nhwc"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--table", default="paper", help="paper, resnet50, vgg16, mobilenet, odd; default paper")
    add("--layer", action="append", metavar="NAME", help="only this layer of the table")
    add("--batch", nargs="+", default=["4"], metavar="N", help="images at a time; default 4")
    add("--algorithm", default=None, metavar="NAME", help="direct, winograd; default: by cost")
    command.add_arguments(parser, PASSES)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as plain data; ValueError names what is wrong."""
    from tools.bench.conv_peers import layers

    known = [layer.name for layer in layers(arguments.table)]
    layers_given = command.names("--layer", arguments.layer or (), known)
    if arguments.algorithm is not None:
        command.names("--algorithm", [arguments.algorithm], ("direct", "winograd"))
    return {
        **command.options(arguments, PASSES), "table": arguments.table,
        "algorithm": arguments.algorithm,
        "layers": layers_given or known[:: QUICK_STEP if arguments.quick else 1],
        "batches": command.numbers("--batch", arguments.batch),
    }  # fmt: skip


def _summaries(
    options: dict[str, Any], result: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for which in options["passes"]:
        for n in options["batches"]:
            rows = [r for r in result["rows"] if (r["pass"], r["n"]) == (which, n)]
            figures = command.summary(rows, COLUMNS, lambda row: str(row["layer"]))
            yield f"{which}, batch {n}, threads: {result['threads']}", figures


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; the exit code (see `tools.bench.command.run`)."""
    return command.run(arguments, "tools.bench.conv_run", __doc__ or "", _options, _summaries)
