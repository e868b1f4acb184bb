"""``python -m tools.bench attention``: a fused attention against PyTorch's.

What it is: examples/fused_attention.py, forward, f32, without a mask, beside PyTorch's
scaled_dot_product_attention on the same arrays; they take turns in one process
(`tools.bench.attention_run`), one for each number of threads, and results are compared with
float64 before.
What it is not: whole layers with projections, a backward pass.

The columns: images x heads x steps x features; layout: "b h s d" for q, k and v one by one,
"b s p h d" for all three in one array; milliseconds of each, best of all rounds; ratio: PyTorch's
time to jitgen's; medians: the same of medians; GFLOP/s and percent of the multiply-add peak in that
row: of the two products; softmax: microseconds of the softmax alone, which finds its scores in the
cache; bound: both products at the peak, and the softmax, in percent of jitgen's time.
!: other programs took time from this row.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from tools.bench import command

CASES = ("8x8x128x64", "1x12x512x64", "4x12x384x64")
LAYOUTS = ("b h s d", "b s p h d")
#: Milliseconds of a turn: a few calls; what is found in the caches is settled before it
SAMPLE_MS = 5.0
COLUMNS = {
    "PyTorch / jitgen": ("ratio", "jitgen"), "the same, medians": ("median_ratio", "jitgen"),
    "percent of peak": ("percent", "jitgen"), "percent of the bound": ("of_bound",),
}  # fmt: skip
EXAMPLES = """\
examples:
  python -m tools.bench attention                        three cases, two layouts, 1 and all threads
  python -m tools.bench attention --case 8x8x128x64 --queries 32 64 128
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--case", action="append", metavar="BxHxSxD", help="images, heads, steps, features")
    add("--layout", action="append", choices=LAYOUTS, help="default: both")
    add("--queries", nargs="+", default=["64"], metavar="N", help="of a block; default 64")
    command.add_arguments(parser, (), EXAMPLES)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as plain data; ValueError names what is wrong."""
    cases = arguments.case or CASES[: 1 if arguments.quick else None]
    for text in cases:
        sizes = [command.number("--case", size) for size in text.split("x")]
        if len(sizes) != 4:
            raise ValueError(f"--case {text!r} has not four sizes such as {CASES[0]}")
    return {
        **command.options(arguments, ()), "cases": cases, "sample_ms": SAMPLE_MS,
        "layouts": arguments.layout or LAYOUTS,
        "queries": command.numbers("--queries", arguments.queries),
    }  # fmt: skip


def _summaries(
    options: dict[str, Any], result: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    def where(row: dict[str, Any]) -> str:
        return f"{row['case']}, {row['layout']}"

    yield f"threads: {result['threads']}", command.summary(result["rows"], COLUMNS, where)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; the exit code (see `tools.bench.command.run`)."""
    return command.run(arguments, "tools.bench.attention_run", __doc__ or "", _options, _summaries)
