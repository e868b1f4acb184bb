"""``python -m tools.bench rows``: softmax, norms and sums of rows against PyTorch and a copy.

What it is: forward and backward of each layer, for one thread and for all; contestants take turns
in one process (`tools.bench.rows_run`, one for each number of threads), and their results are
compared before. What it is not: softmax within attention, autograd of a whole network.

The columns: function, rows x columns; microseconds of jitgen and torch, best of all rounds; GB/s:
bytes that must be read or written once, of jitgen; copy: GB/s of a copy of an array as large as x,
bytes read and written, by NumPy (several threads: by jitgen's); %: the first of the second. ratio:
time of torch to jitgen's; med.: of medians. torch: its functions, backward without autograd where
it has a function for that (softmax, log_softmax, layer_norm), of a sum as an array, not a view.
--cold: arrays rotate through twice the last-level cache. !: other programs took time from this row.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from tools.bench import command
from tools.bench.rows_peers import FUNCTIONS

PASSES = ("forward", "backward")
CASES = ((64, 128), (128, 384), (1024, 4096), (4096, 1024))
QUICK_CASES = ((128, 384),)
COLUMNS = {
    "time of PyTorch / jitgen": ("ratio", "torch"), "the same, medians": ("median_ratio", "torch"),
    "share of a copy's bandwidth": ("share", "jitgen"),
}  # fmt: skip
EXAMPLES = """\
examples:
  python -m tools.bench rows                                    four sizes, 1 and all threads
  python -m tools.bench rows --function softmax,layer_norm --pass forward --threads 1
  python -m tools.bench rows --case 4096x1024 --cold
  JITGEN_ISA=avx2 python -m tools.bench rows --quick
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--function", default=",".join(FUNCTIONS), metavar="LIST", help="default: all")
    add("--case", action="append", metavar="RxC", help="rows and columns")
    add("--dtype", choices=("f32", "f64"), default="f32", help="default %(default)s")
    add("--cold", action="store_true", help="arrays rotate through twice the last-level cache")
    command.add_arguments(parser, PASSES, EXAMPLES)


def _case(text: str) -> tuple[int, ...]:
    sizes = text.split("x")
    if len(sizes) != 2:
        raise ValueError(f"--case {text!r} has not two sizes such as 128x384")
    return tuple(command.number("--case", size) for size in sizes)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as plain data; ValueError names what is wrong."""
    cases = QUICK_CASES if arguments.quick else CASES
    return {
        **command.options(arguments, PASSES), "dtype": arguments.dtype, "cold": arguments.cold,
        "functions": command.names("--function", arguments.function.split(","), list(FUNCTIONS)),
        "cases": [_case(text) for text in arguments.case or ()] or list(cases),
    }  # fmt: skip


def _summaries(
    options: dict[str, Any], result: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for which in options["passes"]:
        rows = [row for row in result["rows"] if row["pass"] == which]
        figures = command.summary(rows, COLUMNS, lambda row: f"{row['function']} {row['case']}")
        yield f"{which}, threads: {result['threads']}", figures


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; the exit code (see `tools.bench.command.run`)."""
    return command.run(arguments, "tools.bench.rows_run", __doc__ or "", _options, _summaries)
