"""One measuring process of the benchmarks: one instruction set, prints tables, writes JSON.

What it is: the child that `python -m tools.bench` starts per instruction set, because the peers
read LIBXSMM_TARGET and the thread counts only once, when they are loaded.
What it is not: a command for people; its one argument is the JSON of the options.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench import kernel as bench_kernel, peers as bench_peers, report as bench_report
from tools.bench.machine_code import CannotMeasure
from tools.bench.problem import Problem, Shape
from tools.bench.timing import CompiledCall, PythonCall, calls_for

EXIT_OK, EXIT_FAILED, EXIT_CANNOT = 0, 1, 3


def players_for(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Return (players by name, where each comes from, notes on those that are missing)."""
    players: dict[str, Any] = {}
    notes: list[str] = []
    if not options["peers_only"]:
        from tools.bench import ours as bench_ours

        players["jitgen"] = bench_ours.Jitgen(options["isa"])
    if "libxsmm" in options["peers"]:
        try:
            players["libxsmm"] = bench_peers.Libxsmm(options["libxsmm"])
        except bench_peers.PeerMissing as error:
            notes.append(str(error))
            try:
                players["libxsmm"] = bench_peers.Etops()
            except bench_peers.PeerMissing as also:
                notes.append(str(also))
    if "numpy" in options["peers"]:
        players["numpy"] = bench_peers.NumPy()
    origins = {name: player.origin for name, player in players.items()}
    if "libxsmm" in players:
        origins["libxsmm"] += f", LIBXSMM target {players['libxsmm'].arch}"
    if "numpy" in players and "OPENBLAS_CORETYPE" in os.environ:
        origins["numpy"] += f", OPENBLAS_CORETYPE={os.environ['OPENBLAS_CORETYPE']}"
    return players, origins, notes


def peer_call_times(players: dict[str, Any], dtype: str, rounds: int) -> dict[str, float]:
    """Return best nanoseconds of a call of the smallest problem of each peer."""
    contestants: dict[str, Any] = {}
    smallest = Problem(Shape(1, 1, 1, 1), dtype)
    c = smallest.c[0]
    libxsmm = players.get("libxsmm")
    if isinstance(libxsmm, bench_peers.Libxsmm):
        address = libxsmm.dispatch(smallest.shape, dtype)
        arguments = libxsmm.arguments(0, smallest.a[0], smallest.b[0], c)
        function = bench_peers.ffi.cast("void (*)(void *)", address)
        pointer = bench_peers.ffi.cast("void *", arguments)
        contestants["LIBXSMM call, empty, from Python (cffi)"] = PythonCall(
            "call", [lambda: function(pointer)]
        )
        contestants["LIBXSMM kernel, empty, from machine code"] = CompiledCall(
            "compiled", address, [arguments]
        )
    if libxsmm is not None:
        try:
            call = bench_peers.Etops().call(smallest, 0)
            contestants["etops call, 1x1x1, from Python"] = PythonCall("etops", [call])
        except bench_peers.PeerMissing:
            pass
    if "numpy" in players:
        x = np.ones((1, 1), c.dtype)
        y = np.ones((1, 1), c.dtype)
        contestants["numpy.matmul call, 1x1x1, out="] = PythonCall(
            "matmul", [lambda: np.matmul(x, x, out=y)]
        )
    times = {}
    for label, contestant in contestants.items():
        calls = calls_for(contestant, 1e6)
        times[label] = min(contestant.run(calls) for _ in range(rounds)) / calls
    return times


def _suite(
    bench: bench_kernel.Bench, shapes: list[Shape], options: dict[str, Any], title: str, rows: bool
) -> dict[str, Any]:
    names = list(bench.players)
    result: dict[str, Any] = {"rows": [], "summary": {}}
    for dtype in options["dtypes"]:
        table = bench.table(shapes, [dtype], bench_report.progress)
        bench_report.progress("")
        result["rows"] += table
        result["summary"][dtype] = bench_kernel.summary(table, names)
        print(f"\n{title}, {dtype}")
        if rows:
            print(bench_report.table_text(table, names))
        else:
            for row in table:
                for name, reason in row["failed"].items():
                    print(f"{row['m']}x{row['n']}x{row['k']} {name}: {reason}")
        print(bench_report.summary_text(result["summary"][dtype]), flush=True)
    return result


def run(options: dict[str, Any]) -> dict[str, Any]:
    """Measure what the options ask for, print it, and return everything as plain data."""
    isa, dtypes = options["isa"], options["dtypes"]
    players, origins, notes = players_for(options)
    bench = bench_kernel.Bench(
        isa, players, options["rounds"], options["sample_ms"] * 1e6, options["cold"]
    )
    bench.start(dtypes)
    result: dict[str, Any] = {"isa": isa, "origins": origins, "notes": notes}
    caches = "cold (buffers rotate through twice the last-level cache)" if bench.cold else "warm"
    print(f"\n== {isa}, one core, data caches {caches}")
    for dtype in dtypes:
        print(f"FMA peak {dtype}: {bench.best_peak[dtype]:.1f} GFLOP/s")
    for name, origin in origins.items():
        print(f"{name}: {origin}")
    for note in notes:
        print(f"note: {note}")
    if options["suite"]:
        shapes = [Shape(m, n, k, options["count"]) for m, n, k in options["shapes"]]
        title = f"Suite: batch of {options['count']}"
        result["suite"] = _suite(bench, shapes, options, title, rows=True)
    if options["grid"]:
        shapes = bench_kernel.grid_shapes(options["grid_sample"])
        title = f"Grid: {len(shapes)} of m, n in 1..64, k in {bench_kernel.GRID_K}, count 1"
        result["grid"] = _suite(bench, shapes, options, title, rows=False)
    if options["latency"]:
        latency: dict[str, Any] = {"calls_ns": {}}
        if "jitgen" in players:
            from tools.bench import ours as bench_ours

            latency["generation_ms"] = bench_ours.generation_times("f32", options["rounds"])
            latency["calls_ns"] |= bench_ours.call_times(isa, "f32", options["rounds"])
        latency["calls_ns"] |= peer_call_times(players, "f32", options["rounds"])
        result["latency"] = latency
        print(f"\nLatency\n{bench_report.latency_text(latency)}", flush=True)
    result["peak_gflops"] = bench.best_peak
    return result


def failures(result: dict[str, Any]) -> int:
    """Count what jitgen did wrong or could not do, and wrong results of anyone."""
    rows = [row for part in ("suite", "grid") for row in result.get(part, {}).get("rows", [])]
    bad: int = sum(
        1
        for row in rows
        for name, reason in row["failed"].items()
        if name == "jitgen" or reason.startswith("wrong")
    )
    generation = result.get("latency", {}).get("generation_ms", {})
    return bad + sum(1 for times in generation.values() if "error" in times)


def main(argv: list[str]) -> int:
    """Run with the options in ``argv[0]`` (JSON); the result goes to the file they name."""
    options = json.loads(argv[0])
    if options["cpu"] is not None:
        os.sched_setaffinity(0, {options["cpu"]})
    try:
        result = run(options)
    except (CannotMeasure, ImportError, ValueError) as error:
        print(f"cannot measure: {error}", file=sys.stderr)
        return EXIT_CANNOT
    Path(options["result"]).write_text(json.dumps(result))
    return EXIT_FAILED if failures(result) else EXIT_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
