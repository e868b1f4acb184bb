"""`jitgen kernel`: generate, check against float64, measure, compare with NumPy, report.

Not here: shapes and options (`jitgen.cli.requests`), arrays, bounds and timing
(`jitgen.analysis.measure`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from jitgen.analysis import measure
from jitgen.analysis.measure import Problem
from jitgen.cli import requests
from jitgen.cli.requests import Request, make_request, read_shapes
from jitgen.cli.terminal import BAD, CANNOT_RUN, OK, STRONG, WRONG, colour, print_json
from jitgen.inspect import listing
from jitgen.run import cpu

#: Variables by which BLAS libraries learn how many threads they may use
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


SUMMARY = "generate a kernel, check it and measure it"
USAGE = "%(prog)s M N K [options]\n       %(prog)s --shapes FILE [options]"
NOTES = """\
A file for --shapes has a header line with m,n,k and any of name, count_in_network, batch, dtype,
epilogue, alpha, beta, lda, ldb, ldc, trans_a, trans_b, packed_b, batch_kind and plan; options on
the command line hold where the file says nothing. Lines that begin with # are comments.

Percentages are of the peak of fused multiply-adds that the same run measures; a kernel's time is
that of a call from Python less that of a call of an empty kernel (very short kernels: the whole
call). The arrays are the same at each call, so small ones stay in the caches. NumPy, on one
thread as the kernel, does one matmul of A and B joined along k and the epilogue without gelu.

"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    requests.add_options(parser)
    parser.add_argument("--shapes", metavar="FILE", help="a table of kernels, as CSV")
    what = "time to measure a kernel for (0.3)"
    parser.add_argument("--seconds", type=float, metavar="S", default=0.3, help=what)


def run(arguments: argparse.Namespace) -> int:
    """`jitgen kernel`: check and measure kernels."""
    file, seconds = arguments.shapes, arguments.seconds
    if not 0 < seconds < 3600:
        raise ValueError(f"--seconds {seconds:g} is not between 0 and 3600")
    if file and arguments.size:
        raise ValueError("give either M N K or --shapes, not both")
    given = vars(arguments)
    asked = list(read_shapes(file, given)) if file else [make_request(arguments.size, given)]
    if not asked:
        raise ValueError(f"{file}: the file has no line with a shape")
    return measure_all(asked, seconds, bool(file), arguments.json)


def use_one_thread() -> None:
    """Start this process again with NumPy limited to one thread, as the kernel is: BLAS libraries
    read the variables when they load, which is over. Does nothing if they are set so."""
    if any(os.environ.get(name) != "1" for name in THREADS) and sys.executable:
        os.environ.update(dict.fromkeys(THREADS, "1"))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def measure_all(asked: list[Request], seconds: float, table: bool, as_json: bool) -> int:
    """Measure each kernel for `seconds` and print what was found; returns the exit code."""

    def progress(text: str) -> None:
        if table and sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    results = []
    for i, request in enumerate(asked, 1):
        progress(f"{i}/{len(asked)} {request.name}")
        results.append(_measured(request, seconds))
    progress("")
    # all kernels of a dtype are compared with the best peak of the run, not each with its own
    ran = [r for r in results if "speed" in r]
    for r in ran:
        peaks = (x["speed"]["peak_flops_per_second"] for x in ran if x["dtype"] == r["dtype"])
        r["speed"]["of_peak"] = r["speed"]["flops_per_second"] / max(peaks)
    total = _total(results)
    if as_json:
        print_json({"kernels": results, "total": total} if table else results[0])
    elif table:
        _print_table(results, total)
    else:
        _print_one(results[0])
    if not ran:
        print(f"jitgen: generated but not run: {results[0]['why_not_run']}", file=sys.stderr)
        return CANNOT_RUN
    return OK if all(r["check"]["passed"] for r in results) else WRONG


def _measured(request: Request, seconds: float) -> dict[str, Any]:
    """All facts about one kernel, as JSON has them; without "check" and "speed" if it cannot run
    here. Times in seconds, rates in floating-point operations a second."""
    kernel = request.make()
    spec = kernel.spec
    result: dict[str, Any] = {
        "name": request.name, "m": spec.m, "n": spec.n, "k": spec.k, "batch": request.batch,
        "dtype": spec.dtype, "count_in_network": request.times, "target": kernel.target.name,
        "computes": listing.describe(spec), "flops": kernel.flops(request.batch),
        "code_bytes": len(kernel.code), "plan": listing.plan_lines(kernel),
        "generation_seconds": measure.generation(kernel, request.make),
        "cpu": cpu.name(), "why_not_run": cpu.why_not(kernel.target),
    }  # fmt: skip
    if not result["why_not_run"]:
        problem = Problem(kernel, request.batch)
        result["check"] = problem.check()._asdict()
        result["speed"] = _speed(problem, seconds)
    return result


def _speed(problem: Problem, seconds: float) -> dict[str, Any]:
    kernel = problem.kernel
    peak, peak_flops = measure.peak_kernel(kernel)
    calls = {"kernel": kernel, "peak": peak, "empty": measure.empty_kernel(kernel)}
    contestants = {name: problem.bind(some) for name, some in calls.items()}
    times = measure.interleave({**contestants, "numpy": problem.numpy_call()}, seconds)
    best = {name: min(some) for name, some in times.items()}
    flops, overhead = kernel.flops(problem.count), best["empty"]
    # the core runs a short kernel beside the instructions of its call, so the difference would be
    # far too small: such a kernel is charged with the whole call
    if best["kernel"] < 2 * overhead:
        overhead = 0.0
    return {
        "best_seconds": best["kernel"] - overhead,
        "median_seconds": statistics.median(times["kernel"]) - overhead,
        "rounds": len(times["kernel"]), "call_overhead_seconds": overhead,
        "flops_per_second": flops / (best["kernel"] - overhead),
        "peak_flops_per_second": peak_flops / best["peak"],
        "numpy_seconds": best["numpy"], "numpy_flops_per_second": flops / best["numpy"],
        # both with the cost of their call from Python
        "times_as_fast_as_numpy": best["numpy"] / best["kernel"],
    }  # fmt: skip


def _total(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over all kernels, each counted as often as the network has it."""
    flops = sum(r["count_in_network"] * r["flops"] for r in results)
    total = {"kernels": sum(r["count_in_network"] for r in results), "flops": flops}
    ran = [(r["count_in_network"], r["speed"]) for r in results if "speed" in r]
    if ran:
        seconds = sum(n * s["best_seconds"] for n, s in ran)
        at_peak = sum(n * s["best_seconds"] * s["of_peak"] for n, s in ran)
        overhead = sum(n * s["call_overhead_seconds"] for n, s in ran)
        by_numpy = sum(n * s["numpy_seconds"] for n, s in ran)
        total["speed"] = {
            "best_seconds": seconds, "call_overhead_seconds": overhead,
            "flops_per_second": flops / seconds, "of_peak": at_peak / seconds,
            "numpy_seconds": by_numpy, "numpy_flops_per_second": flops / by_numpy,
            "times_as_fast_as_numpy": by_numpy / (seconds + overhead),
        }  # fmt: skip
    return total


# ---- text -------------------------------------------------------------------------------------


def _print_one(r: dict[str, Any]) -> None:
    width = min(shutil.get_terminal_size((98, 24)).columns, 98)
    where = f" ({r['cpu']})" if "speed" in r else ""
    head = colour(STRONG, f"{r['m']} x {r['n']} x {r['k']}, batch {r['batch']}, {r['dtype']}")
    print(f"{head} on {r['target']}{where}: {r['computes']}\n")
    for title, text in _report(r):
        paragraph = textwrap.fill(f"  {title:10} {text}", width, subsequent_indent=" " * 13)
        print(colour(BAD, paragraph) if title == "WRONG" else paragraph)


def _report(r: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Titles and paragraphs on one kernel."""
    if "speed" in r:
        s, check = r["speed"], r["check"]
        yield "speed", (
            f"{_giga(s['flops_per_second'])} GFLOP/s, {100 * s['of_peak']:.0f} % of the FMA peak "
            f"of {_giga(s['peak_flops_per_second'])} (measured in turns)"
        )
        call = f"a call from Python costs {_time(s['call_overhead_seconds'])} more"
        if not s["call_overhead_seconds"]:
            call = "with the call from Python: too short to tell apart"
        yield "time", (
            f"{_time(s['best_seconds'])} best, {_time(s['median_seconds'])} median of "
            f"{s['rounds']} rounds; {call}"
        )
        yield "NumPy", (
            f"{_giga(s['numpy_flops_per_second'])} GFLOP/s on one thread (a matmul, then the "
            f"epilogue except gelu): jitgen is {s['times_as_fast_as_numpy']:.2f} times as fast"
        )
        bits = f"; {check['mask_bits_wrong']} mask bits differ" if check["mask_bits_wrong"] else ""
        yield "checked" if check["passed"] else "WRONG", (
            f"against float64: largest error {check['largest_error']:.1e} where the bound is "
            f"{check['bound_there']:.1e}; errors take up to "
            f"{100 * check['of_bound']:.2g} % of their bound{bits}"
        )
    cold, warm = r["generation_seconds"]["cold"], r["generation_seconds"]["warm"]
    yield "code", (
        f"{r['code_bytes']} bytes, generated in {_time(cold)}; in {_time(warm)} with instruction "
        "bytes cached"
    )
    for i, sentence in enumerate(r["plan"]):
        yield "" if i else "plan", sentence


def _print_table(results: list[dict[str, Any]], total: dict[str, Any]) -> None:
    rows: list[list[Any]] = [["", "times", "m x n x k", "batch", "type", "bytes"]]
    for r in results:
        size = f"{r['m']}x{r['n']}x{r['k']}"
        times = r["count_in_network"]
        rows.append([r["name"], times, size, r["batch"], r["dtype"], r["code_bytes"]])
    if "speed" in total:
        rows[0] += ["time", "GFLOP/s", "peak", "NumPy", "ratio", "bound"]
        for row, r in zip(rows[1:], results, strict=True):
            part = f"{100 * r['check']['of_bound']:.2g} %"
            row += [*_rates(r["speed"]), part if r["check"]["passed"] else "WRONG"]
        rows.append(["total", total["kernels"], *[""] * 4, *_rates(total["speed"]), ""])
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        line = f"{name:{widths[0]}}"
        for cell, width in zip(cells, widths[1:], strict=True):
            line += f" {cell:>{width}}"
        print(line.rstrip().replace("WRONG", colour(BAD, "WRONG")))
    if "speed" in total:
        peak = max(r["speed"]["peak_flops_per_second"] for r in results)
        print(
            f"\n{results[0]['target']} on {results[0]['cpu']}"
            "\ntime   best; with * it includes the call from Python: too short to tell apart"
            f"\npeak   share of the FMA peak of {_giga(peak)} GFLOP/s, measured in the same run"
            "\nNumPy  GFLOP/s of the same work (gelu left out) on one thread; ratio: jitgen over it"
            "\nbound  share of its error bound that the largest error against float64 takes"
        )


def _rates(s: dict[str, Any]) -> list[str]:
    return [
        _time(s["best_seconds"]) + ("" if s["call_overhead_seconds"] else "*"),
        _giga(s["flops_per_second"]), f"{100 * s['of_peak']:.0f} %",
        _giga(s["numpy_flops_per_second"]), f"{s['times_as_fast_as_numpy']:.2f}",
    ]  # fmt: skip


def _giga(rate: float) -> str:
    return f"{rate / 1e9:.1f}"


def _time(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
