"""``python -m tools.bench mlp``: a training step of a small network against PyTorch's.

What it is: forward, loss, backward and update of a multi-layer perceptron, batch 256, on random
data; jitgen and PyTorch take turns in one process (`tools.bench.mlp_run`), one for each number of
threads.
What it is not: accuracy; see examples/digits.py.

The columns: milliseconds of a step of each; ratio: PyTorch's time to jitgen's, best of all rounds;
medians: the same of medians; GFLOP/s and percent of the multiply-add peak: of the products.
!: other programs took time from this row.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from tools.bench import command

NETWORKS = ("784-512-512-10", "64-512-512-10")
BATCH = 256
#: Milliseconds of a turn: several steps, of which the first pays for the other's cache
SAMPLE_MS = 20.0
COLUMNS = {
    "jitgen / PyTorch": ("ratio", "jitgen"), "the same, medians": ("median_ratio", "jitgen"),
    "percent of peak": ("percent", "jitgen"),
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--network", action="append", metavar="SIZES", help="e.g. 784-512-512-10")
    parser.add_argument("--batch", nargs="+", default=[f"{BATCH}"], metavar="N", help="default 256")
    command.add_arguments(parser, ())


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as plain data; ValueError names what is wrong."""
    networks = arguments.network or NETWORKS[: 1 if arguments.quick else None]
    for text in networks:
        sizes = [command.number("--network", size) for size in text.split("-")]
        if len(sizes) < 2:
            raise ValueError(f"--network {text!r} has no two sizes such as 64-10")
    return {
        **command.options(arguments, ()), "networks": networks, "sample_ms": SAMPLE_MS,
        "batches": command.numbers("--batch", arguments.batch),
    }  # fmt: skip


def _summaries(
    options: dict[str, Any], result: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    def where(row: dict[str, Any]) -> str:
        return f"{row['network']}, {row['optimizer']}"

    yield f"threads: {result['threads']}", command.summary(result["rows"], COLUMNS, where)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; the exit code (see `tools.bench.command.run`)."""
    return command.run(arguments, "tools.bench.mlp_run", __doc__ or "", _options, _summaries)
