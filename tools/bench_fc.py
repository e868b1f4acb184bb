"""``python -m tools.bench fc``: the fully connected layer against PyTorch, NumPy and LIBXSMM.

What it is: forward (bias, relu), backward by data and weight update in f32, for one thread and for
all; what a call on a tiny layer costs, and how long a new layer takes until its first call. All
contestants of a row take turns in one process (`bench_fc_run`, one for each number of threads).
What it is not: the kernels by themselves (`bench_kernel`).

The columns: jitgen on plain arrays and with packed weights (packed input for the weight update);
torch: linear and relu_, or mm; autogr: the autograd pass; onednn: PyTorch's oneDNN operator on
plain arrays; onednnP: on reordered weights; libxsmm: the product alone on blocked operands. /plain:
jitgen to the best of torch, autogr, onednn and numpy; /packd: packed to the best of these and
onednnP; /xsmm: packed to libxsmm. For batch 1: GB/s of weights, of what a loop of loads (stores for
the weight update) reaches. !: other programs took time from this row.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools import bench_report
from tools.bench_kernel import geometric_mean, parse_size

ROOT = Path(__file__).resolve().parent.parent
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
from primitives.fully_connected import FullyConnected
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--quick", action="store_true", help="few layers, shorter turns: under a minute")
    add("--shape", action="append", metavar="NxCxK", help="batch, in and out features; only rows")
    add("--threads", default=None, metavar="LIST", help="such as 1,2; default: 1 and all CPUs")
    add("--pass", dest="passes", default=",".join(PASSES), metavar="LIST", help="%(default)s")
    add("--cold", action="store_true", help="weights rotate through twice the last-level cache")
    add("--rounds", type=int, default=None, help="turns of each contestant, at least 5; default 7")
    add("--json", default=None, metavar="FILE", help="write everything to FILE")


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as plain data; ValueError names what is wrong."""
    quick = arguments.quick
    layers = QUICK_LAYERS if quick else LAYERS
    batches = QUICK_BATCHES if quick else BATCHES
    shapes = [(n, c, k) for n in batches for c, k in layers]
    if arguments.shape:
        shapes = [parse_size(text) for text in arguments.shape]
    passes = arguments.passes.split(",")
    for name in passes:
        if name not in PASSES:
            raise ValueError(f"--pass {name!r} is not one of {', '.join(PASSES)}")
    cpus = len(os.sched_getaffinity(0))
    texts = (arguments.threads or ("1" if cpus == 1 else f"1,{cpus}")).split(",")
    for text in texts:
        if not text.isdigit() or not 1 <= int(text) <= cpus:
            raise ValueError(f"--threads {text!r} is not from 1 to {cpus}")
    rounds = arguments.rounds if arguments.rounds is not None else 5 if quick else 7
    if rounds < 5:
        raise ValueError(f"--rounds {rounds} is less than 5")
    if arguments.json is not None and not Path(arguments.json).absolute().parent.is_dir():
        raise ValueError(f"--json {arguments.json!r}: its folder does not exist")
    return {
        "shapes": shapes, "passes": passes, "all_threads": [int(text) for text in texts],
        "rounds": rounds, "sample_ms": 0.5 if quick else 2.0, "retries": 1 if quick else 2,
        "cold": arguments.cold, "parts": not arguments.shape,
    }  # fmt: skip


def _environment(threads: int) -> dict[str, str]:
    """The environment of a child: its threads, no kernels from disk, and where packages lie."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {
        **os.environ, **dict.fromkeys(names, str(threads)), "JITGEN_CACHE": "", "PYTHONPATH": path
    }  # fmt: skip


def _measure(threads: int, options: dict[str, Any]) -> tuple[int, dict[str, Any] | None]:
    """Run one number of threads in a child process; its exit code and its result."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        tiny = options["parts"] and threads == 1
        given = {**options, "threads": threads, "tiny": tiny, "result": str(result)}
        command = [sys.executable, "-m", "tools.bench_fc_run", json.dumps(given)]
        code = subprocess.run(command, env=_environment(threads), check=False).returncode
        return code, json.loads(result.read_text()) if result.exists() else None


def first_calls(rounds: int, threads: int) -> dict[str, float]:
    """Least milliseconds of set-up of a new layer in a fresh process, by what is called."""
    best = {}
    for which in (*PASSES, "packed forward"):
        text = json.dumps([which, *NEW_LAYER, threads])
        command = [sys.executable, "-c", FIRST_CALL, text]
        environment = _environment(threads)
        times = [
            float(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
            for _ in range(rounds)
        ]
        best[which] = min(times)
    return best


def _mean_and_least(rows: Sequence[dict[str, Any]], *path: str) -> dict[str, Any] | None:
    """Geometric mean and least of a figure over the rows that have it, and where the least is."""
    found = []
    for row in rows:
        value: Any = row
        for key in path:
            value = value.get(key) if value else None
        if value:
            found.append((value, f"{row['n']}x{row['c']}x{row['k']}"))
    if not found:
        return None
    least, where = min(found)
    return {"geomean": geometric_mean([v for v, _ in found]), "least": least, "where": where}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Geometric means and least values of a table's rows: ratios, percent of peak, memory."""
    large = [row for row in rows if row["n"] >= LARGE_BATCH]
    figures = {
        "jitgen / best peer": _mean_and_least(rows, "ratio", "jitgen"),
        "packed / best peer": _mean_and_least(rows, "ratio", "jitgen packed"),
        "the same, medians": _mean_and_least(rows, "median_ratio", "jitgen"),
        "packed, medians": _mean_and_least(rows, "median_ratio", "jitgen packed"),
        "packed / LIBXSMM": _mean_and_least(rows, "ratio", "libxsmm"),
        "percent of peak": _mean_and_least(large, "percent", "jitgen"),
        "percent of peak, packed": _mean_and_least(large, "percent", "jitgen packed"),
        "memory": _mean_and_least(rows, "share", "jitgen"),
        "memory, packed": _mean_and_least(rows, "share", "jitgen packed"),
        "speed-up by threads": _mean_and_least(rows, "speed_up"),
    }
    return {name: value for name, value in figures.items() if value is not None}


def _summary_text(title: str, figures: dict[str, Any]) -> str:
    lines = [title]
    for name, value in figures.items():
        lines.append(
            f"  {name:24} geometric mean {value['geomean']:7.3f}, least {value['least']:7.3f} "
            f"({value['where']})"
        )
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; 0, 1 if jitgen was wrong or a child failed, 2 for wrong options, 3 if this
    machine cannot measure."""
    try:
        options = _options(arguments)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    from tools.bench import host_instruction_sets
    from tools.bench_machine_code import unsupported

    reason = unsupported() or ("" if host_instruction_sets() else "this processor lacks AVX2")
    if reason:
        print(f"cannot measure: {reason}", file=sys.stderr)
        return 3
    facts = bench_report.machine_facts()
    print(bench_report.facts_text(facts), flush=True)
    if __doc__ is not None:
        print("\ncolumns: " + __doc__.partition("The columns: ")[2].rstrip())
    document: dict[str, Any] = {"machine": facts, "options": options, "runs": [], "summary": {}}
    codes = [0]
    for threads in options["all_threads"]:
        code, result = _measure(threads, options)
        codes.append(1 if code else 0)
        if result is not None:
            document["runs"].append(result)
    print(f"\npercent of peak and speed-up: batch >= {LARGE_BATCH}; memory: share of it, batch 1")
    for result in document["runs"]:
        for name in (*options["passes"], "all passes"):
            rows = [row for row in result["rows"] if name in (row["pass"], "all passes")]
            title = f"{name}, threads: {result['threads']}"
            document["summary"][title] = summary(rows)
            print(_summary_text(title, document["summary"][title]))
        disturbed = sum(row["disturbed"] for row in result["rows"])
        print(f"rows disturbed by other programs: {disturbed} of {len(result['rows'])}")
        for name, times in result.get("tiny_us", {}).items():
            texts = (f"{who} {time:.2f}" for who, time in times.items())
            print(f"a call on 1 x 64 -> 64, microseconds, {name}: {', '.join(texts)}")
    if options["parts"]:
        size = "{} x {} -> {}".format(*NEW_LAYER)
        for threads in options["all_threads"]:
            times = first_calls(1 if arguments.quick else 3, threads)
            document.setdefault("first_call_ms", {})[threads] = times
            texts = (f"{name} {time:.1f}" for name, time in times.items())
            print(f"set-up of a new layer {size}, threads: {threads}, ms: {', '.join(texts)}")
    if arguments.json is not None:
        Path(arguments.json).write_text(json.dumps(document, indent=1) + "\n")
    return max(codes)
