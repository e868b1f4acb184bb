"""``python -m tools.bench lstm``: LSTM and GRU layers against PyTorch and ONNX Runtime.

What it is: whole sequences in f32, forward (inference) and backward with the gradients of weights
and biases, for one thread and for all; contestants take turns in one process
(`tools.bench.recurrent_run`, one for each number of threads), and their results are compared
before. What it is not: a cell alone, or training with an optimiser.

The columns: sequences x steps x input features x hidden units; milliseconds of each, best of all
rounds: jitgen (forward: packed weights; backward: dx, dw, dr and db); torch: nn.LSTM or nn.GRU
(forward without gradients, for LSTM in oneDNN; backward: autograd alone, its forward not timed);
onednn: PyTorch's oneDNN layer on reordered weights; onnx: ONNX Runtime. GFLOP/s: of the matrix
products of g = 4 (LSTM) or 3 (GRU) gates, forward 2 T N g K (C + K), backward twice that; %:
percent of the multiply-add peak in that row. ratio: time of the best peer to jitgen's; med.: of
medians. For one sequence, forward: GB/s at which weights are read if w is read once and r at every
step, of what a loop of loads over as many bytes as r reaches. With --lengths ("short": a tenth of
the steps for all sequences; "mixed": from a tenth to all, evenly) PyTorch gets packed sequences,
FLOP are of steps within sequences, and "longest steps" is jitgen without lengths for as many steps
as the longest sequence has. !: other programs took time from this row.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from tools.bench import command

PASSES = ("forward", "backward")
CELLS = ("lstm", "gru")
LENGTHS = ("short", "mixed")
#: Sequences, steps, input features, hidden units
CASES = (
    (1, 20, 256, 256), (1, 50, 512, 512), (32, 20, 256, 256), (32, 20, 512, 512),
    (32, 10, 1024, 1024), (168, 10, 256, 256), (168, 50, 256, 256), (64, 25, 1024, 1024),
    (16, 40, 333, 200),
)  # fmt: skip
QUICK_CASES = ((1, 20, 256, 256), (32, 20, 256, 256), (16, 40, 333, 200))
COLUMNS = {
    "time of best peer / jitgen": ("ratio", "peer"), "the same, medians": ("median_ratio", "peer"),
    "time of the longest steps without lengths / jitgen": ("ratio", "longest"),
    "time of PyTorch / jitgen": ("ratio", "torch"), "time of ONNX / jitgen": ("ratio", "onnx"),
    "percent of peak": ("percent", "jitgen"), "share of loads": ("share", "jitgen"),
}  # fmt: skip
EXAMPLES = """\
examples:
  python -m tools.bench lstm                                    nine cases, 1 and all threads
  python -m tools.bench lstm --cell gru --pass forward
  python -m tools.bench lstm --quick --threads 1                three cases, shorter turns
  python -m tools.bench lstm --lengths short --case 16x200x128x128
  python -m tools.bench lstm --case 32x20x512x512 --rounds 21 --json lstm.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--cell", choices=CELLS, default="lstm", help="default %(default)s")
    add("--lengths", choices=LENGTHS, default="", help="default: sequences have all steps")
    add("--case", action="append", metavar="NxTxCxK", help="sequences, steps, inputs, units")
    command.add_arguments(parser, PASSES, EXAMPLES)


def _case(text: str) -> tuple[int, ...]:
    sizes = text.split("x")
    if len(sizes) != 4:
        raise ValueError(f"--case {text!r} has not four sizes such as 32x20x256x256")
    return tuple(command.number("--case", size) for size in sizes)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as plain data; ValueError names what is wrong."""
    cases = QUICK_CASES if arguments.quick else CASES
    return {
        **command.options(arguments, PASSES), "cell": arguments.cell,
        "lengths": arguments.lengths,
        "cases": [_case(text) for text in arguments.case or ()] or list(cases),
    }  # fmt: skip


def _summaries(
    options: dict[str, Any], result: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for which in options["passes"]:
        rows = [row for row in result["rows"] if row["pass"] == which]
        figures = command.summary(rows, COLUMNS, lambda row: str(row["case"]))
        cell = f"{options['cell']} {options['lengths']}".rstrip()
        yield f"{cell} {which}, threads: {result['threads']}", figures


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; the exit code (see `tools.bench.command.run`)."""
    return command.run(arguments, "tools.bench.recurrent_run", __doc__ or "", _options, _summaries)
