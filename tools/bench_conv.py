"""``python -m tools.bench conv``: convolutions against PyTorch (oneDNN) and ONNX Runtime.

What it is: forward (bias, relu), backward by data and weight update in f32 of the layers of
networks, for one thread and for all. All contestants of a row take turns in one process
(`bench_conv_run`, one for each number of threads), in which freed memory stays with the process:
nobody waits for new pages. What it is not: the kernels by themselves (`bench_kernel`).

The columns: jitgen: NCHW arrays and plain weights; nhwc: NHWC arrays and packed weights (forward
and data); %: percent of the multiply-add peak in that row; torch, t. nhwc: PyTorch's operators on
contiguous and channels_last tensors; onednn: the operators that torch.compile uses, on NCHW; o.
pack: the same on channels_last with reordered weights; blocked: oneDNN's own layout; onnx: ONNX
Runtime, weights constant. /nchw: jitgen to the best of torch and onednn; /all: jitgen to the best
of all; nhwc/: nhwc to the best of all; set-up: milliseconds by which our
first call is longer than the next. !: other programs took time from this row.
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
from tools.bench_kernel import geometric_mean

ROOT = Path(__file__).resolve().parent.parent
PASSES = ("forward", "data", "weights")
#: With --quick every third layer of a table is measured
QUICK_STEP = 3
RATIOS = {
    "nchw": "jitgen / best NCHW peer", "jitgen": "jitgen / best peer",
    "nhwc": "jitgen nhwc / best peer",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--table", default="paper", help="paper, resnet50, vgg16, mobilenet, odd; default paper")
    add("--layer", action="append", metavar="NAME", help="only this layer of the table")
    add("--batch", default="4", metavar="LIST", help="images, such as 1,4,16; default %(default)s")
    add("--threads", default=None, metavar="LIST", help="such as 1,2; default: 1 and all CPUs")
    add("--pass", dest="passes", default=",".join(PASSES), metavar="LIST", help="%(default)s")
    add("--quick", action="store_true", help="every third layer, shorter turns")
    add("--rounds", type=int, default=None, help="turns of each contestant, at least 5; default 7")
    add("--json", default=None, metavar="FILE", help="write everything to FILE")


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as plain data; ValueError names what is wrong."""
    from tools.bench_conv_peers import layers

    quick = arguments.quick
    names = [layer.name for layer in layers(arguments.table)]
    for name in arguments.layer or ():
        if name not in names:
            raise ValueError(f"--layer {name!r} is not one of {', '.join(names)}")
    passes = arguments.passes.split(",")
    for name in passes:
        if name not in PASSES:
            raise ValueError(f"--pass {name!r} is not one of {', '.join(PASSES)}")
    batches = arguments.batch.split(",")
    for text in batches:
        if not text.isdigit() or not int(text):
            raise ValueError(f"--batch {text!r} is no positive number")
    cpus = len(os.sched_getaffinity(0))
    threads = (arguments.threads or ("1" if cpus == 1 else f"1,{cpus}")).split(",")
    for text in threads:
        if not text.isdigit() or not 1 <= int(text) <= cpus:
            raise ValueError(f"--threads {text!r} is not from 1 to {cpus}")
    rounds = arguments.rounds if arguments.rounds is not None else 5 if quick else 7
    if rounds < 5:
        raise ValueError(f"--rounds {rounds} is less than 5")
    if arguments.json is not None and not Path(arguments.json).absolute().parent.is_dir():
        raise ValueError(f"--json {arguments.json!r}: its folder does not exist")
    return {
        "table": arguments.table, "layers": arguments.layer or names[:: QUICK_STEP if quick else 1],
        "passes": passes, "batches": [int(text) for text in batches],
        "all_threads": [int(text) for text in threads], "rounds": rounds,
        "sample_ms": 0.5 if quick else 2.0, "retries": 1 if quick else 2,
    }  # fmt: skip


def _environment(threads: int) -> dict[str, str]:
    """The environment of a child: threads, no kernels from disk, memory that is kept, packages."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {
        **os.environ, **dict.fromkeys(names, str(threads)), "JITGEN_CACHE": "", "PYTHONPATH": path,
        "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    }  # fmt: skip


def _measure(threads: int, options: dict[str, Any]) -> tuple[int, dict[str, Any] | None]:
    """Run one number of threads in a child process; its exit code and its result."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        given = {**options, "threads": threads, "result": str(result)}
        command = [sys.executable, "-m", "tools.bench_conv_run", json.dumps(given)]
        code = subprocess.run(command, env=_environment(threads), check=False).returncode
        return code, json.loads(result.read_text()) if result.exists() else None


def _mean_and_least(found: list[tuple[float, str]]) -> dict[str, Any]:
    least, where = min(found)
    return {"geomean": geometric_mean([v for v, _ in found]), "least": least, "where": where}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Geometric means and least values of rows: ratios (also of medians), percent of peak."""
    columns = {title: ("ratio", name) for name, title in RATIOS.items()}
    columns |= {f"{title}, medians": ("median_ratio", name) for name, title in RATIOS.items()}
    columns |= {
        "percent of peak": ("percent", "jitgen"),
        "percent of peak, nhwc": ("percent", "jitgen nhwc"),
    }  # fmt: skip
    result = {}
    for title, (kind, name) in columns.items():
        found = [(row[kind][name], row["layer"]) for row in rows if name in row[kind]]
        if found:
            result[title] = _mean_and_least(found)
    return result


def _summary_text(title: str, figures: dict[str, Any]) -> str:
    lines = [title]
    for name, value in figures.items():
        lines.append(
            f"  {name:34} geometric mean {value['geomean']:7.3f}, least {value['least']:7.3f} "
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
    print()
    for result in document["runs"]:
        for which in options["passes"]:
            for n in options["batches"]:
                rows = [r for r in result["rows"] if (r["pass"], r["n"]) == (which, n)]
                title = f"{which}, batch {n}, threads: {result['threads']}"
                document["summary"][title] = summary(rows)
                print(_summary_text(title, document["summary"][title]))
        disturbed = sum(row["disturbed"] for row in result["rows"])
        print(f"rows disturbed by other programs: {disturbed} of {len(result['rows'])}")
    if arguments.json is not None:
        Path(arguments.json).write_text(json.dumps(document, indent=1) + "\n")
    return max(codes)
