"""Benchmark commands: ``python -m tools.bench kernel|fc|conv|lstm|...``.

What it is: jitgen's kernels against LIBXSMM and NumPy on one core: a suite of batch shapes, a grid
of small sizes, and the latency of generation and of calls (`disk` is `tools.bench.disk`). Every
instruction set is measured in a process of its own, with the peers held to the same one.
What it is not: it measures no whole primitives and no threads; the commands `OTHERS` do.

Example::

    python -m tools.bench kernel --quick
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tools.bench import (
    analysis,
    conv,
    disk,
    export,
    fc,
    mlp,
    recurrent,
    resnet50,
    rows,
)  # fmt: skip
from tools.bench.command import host_instruction_sets

EXIT_USAGE, EXIT_CANNOT = 2, 3
# The child's own exit codes (see `tools.bench.run`) are 0, 1 and 3.

#: The commands beside `kernel`: modules with add_arguments and run
OTHERS: dict[str, tuple[Any, str]] = {
    "disk": (disk, "starting programs with and without kernels on disk"),
    "analysis": (analysis, "predicted beside measured percent of peak"),
    "export": (export, "a call of an exported kernel from C"),
    "fc": (fc, "the fully connected layer against PyTorch and others"),
    "conv": (conv, "convolutions against PyTorch and ONNX Runtime"),
    "mlp": (mlp, "a training step against PyTorch's"),
    "lstm": (recurrent, "LSTM and GRU layers against PyTorch and ONNX Runtime"),
    "rows": (rows, "softmax, norms and sums of rows against PyTorch and a copy"),
    "resnet50": (resnet50, "a whole network against PyTorch and ONNX Runtime"),
}

_EXAMPLES = """\
examples:
  python -m tools.bench kernel                          the suite of batch-16 shapes, f32 and f64
  python -m tools.bench kernel --quick                  all parts, shortened, about a minute
  python -m tools.bench kernel --isa avx2,avx512 --all --json result.json --plot grid.png
  python -m tools.bench kernel --shape 64x64x64 --shape 1x64x64 --dtype f32 --rounds 21
  python -m tools.bench kernel --cold --dtype f32       operands come from main memory
  python -m tools.bench kernel --peers-only             LIBXSMM and NumPy without jitgen

exit codes: 0 measured; 1 a wrong result, or jitgen failed on a shape; 2 wrong options;
3 cannot measure here (no x86-64 Linux, instruction set missing, jitgen not importable).
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description="jitgen benchmarks")
    commands = parser.add_subparsers(dest="command", required=True)
    kernel = commands.add_parser(
        "kernel",
        help="batch-reduce kernels against LIBXSMM and NumPy, one core",
        description="jitgen's batch-reduce kernels against LIBXSMM and NumPy on one core.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = kernel.add_argument
    add("--suite", action="store_true", help="the batch shapes (the default part)")
    add("--grid", action="store_true", help="m, n in 1..64, k in {1,16,32,64,128}, count 1")
    add("--latency", action="store_true", help="times of generation, look-up and empty calls")
    add("--all", action="store_true", help="all three parts")
    add("--quick", action="store_true", help="shorter rounds, smaller grid; all parts unless named")
    add(
        "--isa", default=None, metavar="LIST", help="avx2, avx512 or both by comma; default: widest"
    )
    add("--dtype", default="f32,f64", metavar="LIST", help="f32, f64 or both; default %(default)s")
    add("--shape", action="append", metavar="MxNxK", help="suite shape instead of the list")
    add("--count", type=int, default=16, help="batch count of the suite; default %(default)s")
    add(
        "--grid-sample", type=int, default=None, metavar="N", help="shapes of the grid; default 300"
    )
    add("--rounds", type=int, default=None, help="turns of each contestant, at least 5; default 9")
    add("--sample-ms", type=float, default=None, help="length of a turn; default 2 (grid too)")
    add("--cold", action="store_true", help="rotate through buffers of twice the last-level cache")
    add("--peers", default="libxsmm,numpy", metavar="LIST", help="default %(default)s; or none")
    add("--peers-only", action="store_true", help="leave jitgen out")
    add("--libxsmm", default=None, metavar="FILE", help="a LIBXSMM library instead of etops's")
    add("--cpu", type=int, default=None, metavar="N", help="stay on this CPU")
    add("--json", default=None, metavar="FILE", help="write everything to FILE")
    add("--plot", default=None, metavar="FILE", help="draw the grid (implies --grid; matplotlib)")
    for name, (module, text) in OTHERS.items():
        module.add_arguments(commands.add_parser(name, help=text))
    return parser


def _list(parser: argparse.ArgumentParser, option: str, text: str, known: list[str]) -> list[str]:
    values = [value for value in text.split(",") if value]
    for value in values:
        if value not in known:
            parser.error(f"{option} {value!r} is not one of {', '.join(known)}")
    return values


def _options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, Any]:
    """Check the arguments and return them as the plain data that the measuring process takes."""
    from tools.bench.kernel import SUITE_SIZES, parse_size

    part_named = args.suite or args.grid or args.latency or args.shape or args.plot
    every = args.all or (args.quick and not part_named)
    try:
        shapes = [parse_size(text) for text in args.shape or SUITE_SIZES]
    except ValueError as error:
        parser.error(str(error))
    rounds = args.rounds if args.rounds is not None else 5 if args.quick else 9
    sample_ms = args.sample_ms if args.sample_ms is not None else 0.5 if args.quick else 2.0
    grid_sample = args.grid_sample if args.grid_sample is not None else 60 if args.quick else 300
    for option, value, least in (
        ("--rounds", rounds, 5),
        ("--count", args.count, 1),
        ("--grid-sample", grid_sample, 1),
        ("--sample-ms", sample_ms, 0.01),
    ):
        if value < least:
            parser.error(f"{option} {value} is less than {least}")
    for option, file in (("--json", args.json), ("--plot", args.plot)):
        if file is not None and not Path(file).absolute().parent.is_dir():
            parser.error(f"{option} {file!r}: its folder does not exist")
    peers = "" if args.peers == "none" else args.peers
    return {
        "suite": every or args.suite or bool(args.shape) or not part_named,
        "grid": every or args.grid or args.plot is not None,
        "latency": every or args.latency,
        "shapes": shapes,
        "count": args.count,
        "grid_sample": grid_sample,
        "rounds": rounds,
        "sample_ms": sample_ms,
        "dtypes": _list(parser, "--dtype", args.dtype, ["f32", "f64"]),
        "peers": _list(parser, "--peers", peers, ["libxsmm", "numpy"]),
        "peers_only": args.peers_only,
        "libxsmm": args.libxsmm,
        "cold": args.cold,
        "cpu": args.cpu,
    }


def _measure(isa: str, options: dict[str, Any]) -> tuple[int, dict[str, Any] | None]:
    """Run one instruction set in a child process; return its exit code and its result."""
    from tools.bench.peers import environment

    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        text = json.dumps({**options, "isa": isa, "result": str(result)})
        command = [sys.executable, "-m", "tools.bench.run", text]
        # -m finds the packages through the current folder; keep that when started elsewhere.
        root = str(Path(__file__).resolve().parent.parent.parent)
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        child = {**os.environ, **environment(isa), "PYTHONPATH": path}
        code = subprocess.run(command, env=child, check=False).returncode
        return code, json.loads(result.read_text()) if result.exists() else None


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark command; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command in OTHERS:
        code: int = OTHERS[args.command][0].run(args)
        return code
    options = _options(parser, args)

    from tools.bench import report as bench_report
    from tools.bench.machine_code import unsupported

    reason = unsupported()
    if reason is not None:
        print(f"cannot measure: {reason}", file=sys.stderr)
        return EXIT_CANNOT
    available = host_instruction_sets()
    names = args.isa if args.isa is not None else (available or [""])[-1]
    wanted = _list(parser, "--isa", names, ["avx2", "avx512"])
    missing = [isa for isa in wanted if isa not in available]
    if missing or not wanted:
        what = ", ".join(missing) or "AVX2 with FMA"
        print(f"cannot measure: this processor lacks {what}", file=sys.stderr)
        return EXIT_CANNOT

    facts = bench_report.machine_facts()
    print(bench_report.facts_text(facts), flush=True)
    given = argv if argv is not None else sys.argv[1:]
    document: dict[str, Any] = {
        "command": " ".join(["python", "-m", "tools.bench", *given]),
        "machine": facts,
        "options": options,
        "runs": [],
    }
    codes = []
    for isa in wanted:
        code, result = _measure(isa, options)
        codes.append(code)
        if result is not None:
            document["runs"].append(result)
    if args.json is not None:
        Path(args.json).write_text(json.dumps(document, indent=1) + "\n")
    if args.plot is not None and document["runs"]:
        from tools.bench.plot import plot_grid

        plot_grid(document, args.plot)
    # A child killed by a signal has a negative code: that is a failure too.
    return max(1 if code < 0 else code for code in codes)


if __name__ == "__main__":
    sys.exit(main())
