"""``python -m tools.bench resnet50``: a whole network against PyTorch and ONNX Runtime.

What it is: examples/resnet50.py, forward, f32, random weights, one batch of 224 x 224 images;
contestants take turns in one process (`tools.bench.resnet50_run`, one for each number of threads).
All have batch normalisation folded into the convolutions and get images in the layout they like
best. What it is not: single layers; see `python -m tools.bench conv --table resnet50`.

The columns: milliseconds of a batch of each, best of all rounds, then medians; jitgen; torch nhwc,
torch: PyTorch eager on channels_last and contiguous tensors; fused: the operators that
torch.compile uses, prepacked weights; onnx: ONNX Runtime with all its graph optimisations. %:
percent of the multiply-add peak in that row, of direct convolutions. /torch: time of the best of
PyTorch to jitgen's; /onnx: of ONNX Runtime's. Below: the time of each kind of layer alone, best of
some passes, of jitgen and (by its profiler) of ONNX Runtime. !: other programs took time from this
row.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from tools.bench import command

EXAMPLES = """\
examples:
  python -m tools.bench resnet50                                batch 1 and 16, 1 and all threads
  python -m tools.bench resnet50 --quick                        batch 1, fewer rounds
  python -m tools.bench resnet50 --batch 1 4 --threads 2 --json resnet50.json
"""
SIZE = 224
COLUMNS = {
    "time of PyTorch / jitgen": ("ratio", "torch"), "the same, medians": ("median_ratio", "torch"),
    "time of ONNX Runtime / jitgen": ("ratio", "onnx"),
    "ONNX Runtime, medians": ("median_ratio", "onnx"), "percent of peak": ("percent", "jitgen"),
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--batch", nargs="+", metavar="N", help="images at a time; default: 1 and 16")
    add("--size", type=int, default=SIZE, help="height and width of an image; default %(default)s")
    command.add_arguments(parser, (), EXAMPLES)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as plain data; ValueError names what is wrong."""
    if arguments.size < 32:
        raise ValueError(f"--size {arguments.size} is less than 32")
    batches = arguments.batch or (["1"] if arguments.quick else ["1", "16"])
    return {
        **command.options(arguments, ()), "batches": command.numbers("--batch", batches),
        "size": arguments.size, "passes_alone": 2 if arguments.quick else 5,
    }  # fmt: skip


def _summaries(
    options: dict[str, Any], result: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    figures = command.summary(result["rows"], COLUMNS, lambda row: f"batch {row['n']}")
    yield f"threads: {result['threads']}", figures


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; the exit code (see `tools.bench.command.run`)."""
    return command.run(arguments, "tools.bench.resnet50_run", __doc__ or "", _options, _summaries)
