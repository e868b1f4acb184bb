"""`jitgen kernel`: generate, check against float64, measure, compare with NumPy, report.

Not here: arguments (`jitgen.cli`), arrays and bounds (`jitgen.problem`), timing (`jitgen.measure`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from typing import Any

from jitgen import cpu, listing, measure
from jitgen.cli import CANNOT_RUN, OK, WRONG, Request, Style, print_json, requests
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
    total = _total(results)
    why = cpu.why_not(asked[0].kernel().target) if asked else ""
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
            "of_bound": min(check.of_bound, sys.float_info.max), "mask_bits_wrong": check.mask_wrong,
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
    flops = made.flops(problem.count)
    # a kernel of a few instructions may disappear in the noise of the call
    best, median = (
        max(getattr(times["kernel"], which) - getattr(times["empty"], which), 1e-9)
        for which in ("best", "median")
    )
    return {
        "rounds": len(times["kernel"].seconds), "calls_per_round": times["kernel"].calls,
        "best_seconds": best, "median_seconds": median,
        "call_overhead_seconds": times["empty"].best,
        "flops_per_second": flops / best, "peak_flops_per_second": peak_flops / times["peak"].best,
        "of_peak": flops / best * times["peak"].best / peak_flops,
        "numpy": {
            "how": how, "best_seconds": times["numpy"].best,
            "median_seconds": times["numpy"].median, "threads": times["numpy"].threads,
            "flops_per_second": flops / times["numpy"].best,
            # both with the cost of their call from Python
            "jitgen_times_as_fast": times["numpy"].best / times["kernel"].best,
        },
    }  # fmt: skip


def _total(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over all kernels, each counted as often as the network has it."""
    total: dict[str, Any] = {"kernels": sum(r["count_in_network"] for r in results)}
    if not results or "speed" not in results[0]:
        return total

    def add(*path: str) -> float:
        values = []
        for result in results:
            value: Any = result
            for key in path:
                value = value[key]
            values.append(value * result["count_in_network"])
        return float(sum(values))

    seconds, flops = add("speed", "best_seconds"), add("flops")
    ideal = sum(
        r["flops"] / r["speed"]["peak_flops_per_second"] * r["count_in_network"] for r in results
    )
    by_numpy = add("speed", "numpy", "best_seconds")
    return {
        **total, "flops": flops, "seconds": seconds, "flops_per_second": flops / seconds,
        "of_peak": ideal / seconds, "numpy_seconds": by_numpy,
        "jitgen_times_as_fast": by_numpy / (seconds + add("speed", "call_overhead_seconds")),
    }  # fmt: skip


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
        style.strong(f"{r['m']} x {r['n']} x {r['k']}, batch {r['batch']}, {r['dtype']}")
        + f" on {r['target']}{where}: {r['computes']}\n"
    )
    if "speed" in r:
        _print_speed(r, style, line)
    g = r["generation_seconds"]
    line(
        "code", f"{r['code_bytes']} bytes, generated in {_time(g['cold'])}; {_time(g['warm'])} with "
        f"instruction bytes cached, {_time(g['cached'])} when the kernel itself is",
    )  # fmt: skip
    for i, sentence in enumerate(r["plan"]):
        line("" if i else "plan", sentence)


def _print_speed(r: dict[str, Any], style: Style, line: Any) -> None:
    s, check, by_numpy = r["speed"], r["check"], r["speed"]["numpy"]
    rate = f"{s['flops_per_second'] / 1e9:.1f} GFLOP/s"
    share = f"{100 * s['of_peak']:.0f} % of the FMA peak"
    line("speed", f"{rate}, {share} of {s['peak_flops_per_second'] / 1e9:.1f} (measured in turns)")
    line(
        "time", f"{_time(s['best_seconds'])} best, {_time(s['median_seconds'])} median of "
        f"{s['rounds']} rounds; a call from Python costs {_time(s['call_overhead_seconds'])} more",
    )  # fmt: skip
    ratio = by_numpy["jitgen_times_as_fast"]
    verdict = (
        f"jitgen is {ratio:.2f} times as fast" if ratio >= 1 else f"{1 / ratio:.2f} times as fast"
    )
    line(
        "NumPy", f"{by_numpy['flops_per_second'] / 1e9:.1f} GFLOP/s on {_threads(by_numpy)} "
        f"({by_numpy['how']}): {verdict}",
    )  # fmt: skip
    largest = f"largest error {check['largest_error']:.1e}"
    if check["passed"]:
        line("checked", f"against float64: {largest}, errors reach {_percent(check)} of their bound")
    else:
        wrong = f"{largest}, {check['of_bound']:.3g} times its bound"
        bits = f"; {check['mask_bits_wrong']} mask bits" if check["mask_bits_wrong"] else ""
        print(f"  {style.bad('WRONG')}      {wrong}{bits}")
    sizes = ", ".join(f"{name} {_size(size)}" for name, size in r["data_bytes"].items())
    line("data", f"{sizes}; the same arrays at each call")


_COLUMNS = (
    f"{'m':>6} {'n':>5} {'k':>5} {'batch':>5} {'type':4} {'bytes':>6}",
    f"{'time':>9} {'GFLOP/s':>8} {'peak':>5} {'NumPy':>8} {'faster':>7} {'bound':>6}",
)


def _print_table(results: list[dict[str, Any]], total: dict[str, Any]) -> None:
    style = Style()
    wide = max([len(r["name"]) for r in results] + [5])
    counted = any(r["count_in_network"] != 1 for r in results)
    ran = "speed" in results[0] if results else False
    head = f"{'':{wide}} {'times ' if counted else ''}{_COLUMNS[0]} {_COLUMNS[1] if ran else ''}"
    print(style.strong(head.rstrip()))
    for r in results:
        times = f"{r['count_in_network']:5} " if counted else ""
        row = f"{r['name']:{wide}} {times}{r['m']:6} {r['n']:5} {r['k']:5} {r['batch']:5} "
        row += f"{r['dtype']:4} {r['code_bytes']:6}"
        if ran:
            s, check = r["speed"], r["check"]
            row += f" {_rates(s['best_seconds'], s['flops_per_second'], s['of_peak'])}"
            by_numpy = s["numpy"]
            row += f" {by_numpy['flops_per_second'] / 1e9:8.1f}"
            row += f" {by_numpy['jitgen_times_as_fast']:6.2f}x "
            row += f"{_percent(check):>6}" if check["passed"] else style.bad(" WRONG")
        print(row)
    if not ran:
        return
    rates = _rates(total["seconds"], total["flops_per_second"], total["of_peak"])
    by_numpy = f"{total['flops'] / total['numpy_seconds'] / 1e9:8.1f}"
    last = f"{'total':{wide}} {f'{total["kernels"]:5} ' if counted else ''}{'':36}"
    print(style.strong(f"{last} {rates} {by_numpy} {total['jitgen_times_as_fast']:6.2f}x"))
    first = results[0]
    several = max(results, key=lambda r: r["speed"]["numpy"]["threads"])["speed"]["numpy"]
    print(
        f"\n{first['target']} on {first['cpu']}; peak: of fused multiply-adds, measured in turns "
        f"with each kernel;\nNumPy: GFLOP/s on {_threads(several)}; bound: how much of its error "
        "bound the largest error takes"
    )


def _rates(seconds: float, rate: float, of_peak: float) -> str:
    return f"{_time(seconds):>9} {rate / 1e9:8.1f} {100 * of_peak:3.0f} %"


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
