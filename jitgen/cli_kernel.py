"""`jitgen kernel`: generate, check against float64, measure, compare with NumPy, report.

Not here: arguments (`jitgen.cli_options`), arrays and bounds (`jitgen.problem`),
timing (`jitgen.measure`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from typing import Any

from jitgen import cpu, listing, measure
from jitgen.cli_options import (
    BAD,
    CANNOT_RUN,
    OK,
    STRONG,
    WRONG,
    Request,
    Style,
    print_json,
    requests,
)
from jitgen.kernel import Kernel
from jitgen.problem import Problem

#: Variables by which BLAS libraries learn how many threads they may use
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
#: Busy threads on average from which NumPy counts as using several
SEVERAL = 1.2


def use_one_thread() -> None:
    """Start this process again with NumPy limited to one thread, as the kernel is: BLAS libraries
    read the variables when they load, which is over. Does nothing if any of them is set."""
    if not any(name in os.environ for name in THREADS) and sys.executable:
        os.environ.update(dict.fromkeys(THREADS, "1"))
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def kernel(arguments: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    asked = requests(arguments)
    seconds = arguments.seconds or (0.2 if arguments.shapes else 0.5)
    results = []
    progress = arguments.shapes and sys.stderr.isatty()
    for i, request in enumerate(asked, 1):
        if progress:
            print(f"\r\x1b[K{i}/{len(asked)} {request.name}", end="", file=sys.stderr, flush=True)
        results.append(_run(request, seconds))
    if progress:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    _share_peak(results)
    total = _total(results)
    why = results[0]["why_not_run"]
    if arguments.json:
        print_json({"kernels": results, "total": total} if arguments.shapes else results[0])
    elif arguments.shapes:
        _print_table(results, total)
    else:
        _print_one(results[0])
    if why:
        print(f"jitgen: generated but not run: {why}", file=sys.stderr)
        return CANNOT_RUN
    return OK if all(r["check"]["passed"] for r in results) else WRONG


def _run(request: Request, seconds: float) -> dict[str, Any]:
    """All facts about one kernel, as JSON has them; without "check" and "speed" if it cannot run
    here. Times in seconds, rates in floating-point operations a second."""
    made = request.kernel()
    overrides = tuple(sorted(request.options.get("plan", {}).items()))
    spec = made.spec
    result: dict[str, Any] = {
        "name": request.name, "m": spec.m, "n": spec.n, "k": spec.k, "batch": request.batch,
        "dtype": spec.dtype, "count_in_network": request.times, "target": made.target.name,
        "computes": listing.describe(spec), "flops": made.flops(request.batch),
        "code_bytes": len(made.code), "plan": listing.plan_lines(made),
        "generation_seconds": measure.generation(made, overrides, request.kernel),
        "why_not_run": cpu.why_not(made.target),
    }  # fmt: skip
    if not result["why_not_run"]:
        result["cpu"] = cpu.name()
        problem = Problem(made, request.batch)
        check = problem.check()
        result["check"] = {
            "passed": check.passed, "largest_error": min(check.error, sys.float_info.max),
            "bound_there": check.bound, "of_bound": min(check.of_bound, sys.float_info.max),
            "mask_bits_wrong": check.mask_wrong,
            "bound": "(k batch + 4) eps sum |A||B|, through the epilogue",
        }  # fmt: skip
        result["data_bytes"] = problem.bytes
        result["speed"] = _speed(made, problem, seconds)
    return result


def _speed(made: Kernel, problem: Problem, seconds: float) -> dict[str, Any]:
    peak, peak_flops = measure.peak_kernel(made)
    by_numpy, how = problem.numpy_call()
    times = measure.interleave(
        {
            "kernel": problem.bind(made), "peak": problem.bind(peak),
            "empty": problem.bind(measure.empty_kernel(made)), "numpy": by_numpy,
        },
        seconds,
    )  # fmt: skip
    flops, overhead = made.flops(problem.count), times["empty"].best
    best = times["kernel"].best - overhead
    median = times["kernel"].median - times["empty"].median
    # the core runs a short kernel beside the instructions of its call, so the difference would be
    # far too small: such a kernel is charged with the whole call
    short = best < overhead
    if short:
        best, median = times["kernel"].best, times["kernel"].median
    peak_rate = peak_flops / (times["peak"].best - overhead)
    return {
        "rounds": len(times["kernel"].seconds), "calls_per_round": times["kernel"].calls,
        "best_seconds": best, "median_seconds": median,
        "call_seconds": times["kernel"].best, "call_overhead_seconds": overhead,
        "includes_call": short, "flops_per_second": flops / best,
        "peak_flops_per_second": peak_rate,
        "numpy": {
            "how": how, "best_seconds": times["numpy"].best,
            "median_seconds": times["numpy"].median, "threads": times["numpy"].threads,
            "flops_per_second": flops / times["numpy"].best,
            # both with the cost of their call from Python
            "jitgen_times_as_fast": times["numpy"].best / times["kernel"].best,
        },
    }  # fmt: skip


def _share_peak(results: list[dict[str, Any]]) -> None:
    """Compare all kernels of a dtype with the best peak of the run, not each with its own."""
    ran = [r for r in results if "speed" in r]
    for r in ran:
        peaks = (x["speed"]["peak_flops_per_second"] for x in ran if x["dtype"] == r["dtype"])
        r["speed"]["of_peak"] = r["speed"]["flops_per_second"] / max(peaks)


def _total(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over all kernels, each counted as often as the network has it."""
    total: dict[str, Any] = {
        "kernels": sum(r["count_in_network"] for r in results),
        "flops": sum(r["count_in_network"] * r["flops"] for r in results),
    }
    ran = [(r["count_in_network"], r["speed"]) for r in results if "speed" in r]
    if not ran:
        return total
    seconds = sum(times * s["best_seconds"] for times, s in ran)
    ideal = sum(times * s["best_seconds"] * s["of_peak"] for times, s in ran)
    calls = sum(times * s["call_seconds"] for times, s in ran)
    by_numpy = sum(times * s["numpy"]["best_seconds"] for times, s in ran)
    total["speed"] = {
        "seconds": seconds, "flops_per_second": total["flops"] / seconds,
        "of_peak": ideal / seconds,
        "numpy": {"seconds": by_numpy, "jitgen_times_as_fast": by_numpy / calls},
    }  # fmt: skip
    return total


# ---- text -------------------------------------------------------------------------------------


def _print_one(r: dict[str, Any]) -> None:
    style = Style()
    width = min(shutil.get_terminal_size((98, 24)).columns, 98)

    def line(title: str, text: str) -> None:
        print(textwrap.fill(
            text, max(width, 40), initial_indent=f"  {title:10} ", subsequent_indent=" " * 13,
        ))  # fmt: skip

    where = f" ({r['cpu']})" if "cpu" in r else ""
    print(
        style(STRONG, f"{r['m']} x {r['n']} x {r['k']}, batch {r['batch']}, {r['dtype']}")
        + f" on {r['target']}{where}: {r['computes']}\n"
    )
    if "speed" in r:
        _print_speed(r, style, line)
    g = r["generation_seconds"]
    line(
        "code", f"{r['code_bytes']} bytes, generated in {_time(g['cold'])}; in {_time(g['warm'])} "
        f"with instruction bytes cached, in {_time(g['cached'])} with the kernel cached",
    )  # fmt: skip
    for i, sentence in enumerate(r["plan"]):
        line("" if i else "plan", sentence)


def _print_speed(r: dict[str, Any], style: Style, line: Any) -> None:
    s, check, by_numpy = r["speed"], r["check"], r["speed"]["numpy"]
    rate = f"{s['flops_per_second'] / 1e9:.1f} GFLOP/s"
    share = f"{100 * s['of_peak']:.0f} % of the FMA peak"
    line("speed", f"{rate}, {share} of {s['peak_flops_per_second'] / 1e9:.1f} (measured in turns)")
    call = _time(s["call_overhead_seconds"])
    calling = (
        f"with the call from Python, {call} when empty: too short to tell apart"
        if s["includes_call"] else f"a call from Python costs {call} more"
    )  # fmt: skip
    line(
        "time", f"{_time(s['best_seconds'])} best, {_time(s['median_seconds'])} median of "
        f"{s['rounds']} rounds; {calling}",
    )  # fmt: skip
    ratio = by_numpy["jitgen_times_as_fast"]
    verdict = (
        f"jitgen is {ratio:.2f} times as fast" if ratio >= 1
        else f"NumPy is {1 / ratio:.2f} times as fast"
    )  # fmt: skip
    line(
        "NumPy", f"{by_numpy['flops_per_second'] / 1e9:.1f} GFLOP/s on {_threads(by_numpy)} "
        f"({by_numpy['how']}): {verdict}",
    )  # fmt: skip
    found = (
        f"against float64: largest error {check['largest_error']:.1e} where the bound is "
        f"{check['bound_there']:.1e}; errors take up to {_percent(check)} of their bound"
    )
    if check["passed"]:
        line("checked", found)
    else:
        print(f"  {style(BAD, 'WRONG')}      {found}; {check['mask_bits_wrong']} mask bits differ")
    sizes = ", ".join(f"{name} {_size(size)}" for name, size in r["data_bytes"].items())
    line("data", f"{sizes}; the same arrays at each call")


def _print_table(results: list[dict[str, Any]], total: dict[str, Any]) -> None:
    style = Style()
    wide = max([len(r["name"]) for r in results] + [5])
    ran = "speed" in total
    head = f"{'':{wide}} times {'m x n x k':>14} batch type  bytes"
    if ran:
        head += f" {'time':>8} GFLOP/s  peak  NumPy  ratio  bound"
    print(style(STRONG, head))
    for r in results:
        size = f"{r['m']}x{r['n']}x{r['k']}"
        row = f"{r['name']:{wide}} {r['count_in_network']:5} {size:>14} {r['batch']:5} "
        row += f"{r['dtype']:4} {r['code_bytes']:6}"
        if ran:
            s, check = r["speed"], r["check"]
            row += _rates(s, s["best_seconds"], s["numpy"]["flops_per_second"])
            row += f" {_percent(check):>6}" if check["passed"] else style(BAD, "  WRONG")
            row += " *" if s["includes_call"] else ""
        print(row)
    if not ran:
        return
    s = total["speed"]
    sums = _rates(s, s["seconds"], total["flops"] / s["numpy"]["seconds"])
    print(style(STRONG, f"{'total':{wide}} {total['kernels']:5} {'':32}{sums}"))
    first, by_numpy = results[0], [r["speed"]["numpy"] for r in results]
    threads = _threads(max(by_numpy, key=lambda n: float(n["threads"])))
    peak = max(r["speed"]["peak_flops_per_second"] for r in results)
    without = " (and without gelu)" if any("without" in n["how"] for n in by_numpy) else ""
    print(
        f"\n{first['target']} on {first['cpu']}"
        f"\npeak   share of the FMA peak of {peak / 1e9:.1f} GFLOP/s, measured by turns in this run"
        f"\nNumPy  GFLOP/s of the same work on {threads}{without}; ratio: jitgen over NumPy"
        "\nbound  share of its error bound that the largest error against float64 takes"
    )
    if any(r["speed"]["includes_call"] for r in results):
        print("*      too short to be told apart from its call from Python, which time includes")


def _rates(speed: dict[str, Any], seconds: float, numpy_rate: float) -> str:
    ratio = speed["numpy"]["jitgen_times_as_fast"]
    return (
        f" {_time(seconds):>8} {speed['flops_per_second'] / 1e9:7.1f}"
        f" {100 * speed['of_peak']:3.0f} % {numpy_rate / 1e9:6.1f} {ratio:6.2f}"
    )


def _threads(by_numpy: dict[str, Any]) -> str:
    return "one thread" if by_numpy["threads"] < SEVERAL else f"{by_numpy['threads']:.1f} threads"


def _percent(check: dict[str, Any]) -> str:
    return f"{100 * check['of_bound']:.2g} %"


def _time(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _size(size: int) -> str:
    return f"{size} bytes" if size < 1024 else f"{size / 1024:.4g} KiB"
