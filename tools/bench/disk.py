"""``python -m tools.bench disk``: what the kernel cache on disk gains a program that starts anew.

What it is: the start of fresh processes that ask for 1, 10 and 100 kernels, without the cache, with
an empty one (which they fill) and with a full one, in turns; and the time of one kernel by itself.
Bytecode and files are in memory, as for a program that starts often.
What it is not: the speed of the kernels, which are the same bytes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.bench import report as bench_report

ROOT = Path(__file__).resolve().parent.parent.parent
COUNTS = (1, 10, 100)
#: The round that compiles bytecode and fills the caches that later rounds find filled
WARM_UP = -1
MODES = ("without", "filling", "filled")
PARTS = ("numpy", "jitgen", "kernels", "process")
HEADINGS = ("import numpy", "import jitgen", "the kernels", "whole process")
#: Runs in the fresh process: JSON in, JSON out. Times in seconds.
CHILD = """
import json, sys, time
requests = json.loads(sys.argv[1])
begin = time.perf_counter()
import numpy
numpy_at = time.perf_counter()
import jitgen
jitgen_at = time.perf_counter()
for request in requests:
    jitgen.brgemm(**request)
done = time.perf_counter()
generated = any(module in sys.modules for module, _ in jitgen.isa.FAMILIES.values())
print(json.dumps([numpy_at - begin, jitgen_at - numpy_at, done - jitgen_at, generated]))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--rounds", type=int, default=15, help="processes of a kind; default 15")
    parser.add_argument("--json", default=None, metavar="FILE", help="write all times to FILE")


def requests(count: int) -> list[dict[str, Any]]:
    """Assorted kernels, always the same: 64 x 64 x 64 first, then sizes up to 70."""
    rng = random.Random(1)
    found: list[dict[str, Any]] = [{"m": 64, "n": 64, "k": 64, "epilogue": ["bias", "relu"]}]
    while len(found) < count:
        m, n, k = (rng.randint(1, 70) for _ in range(3))
        steps = rng.choice(([], [], ["bias", "relu"], ["bias", "gelu"]))
        found.append({"m": m, "n": n, "k": k, "epilogue": steps})
    return found[:count]


def start(wanted: list[dict[str, Any]], bytecode: str, cache: str) -> dict[str, Any]:
    """Run one fresh process; its times in milliseconds, and whether it generated anything."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode, "JITGEN_CACHE": cache}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    path = filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment["PYTHONPATH"] = os.pathsep.join(path)
    command = [sys.executable, "-c", CHILD, json.dumps(wanted)]
    begin = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    whole = time.perf_counter() - begin
    *parts, generated = json.loads(done.stdout)
    times = zip(PARTS, [*parts, whole], strict=True)
    return {**{name: 1e3 * seconds for name, seconds in times}, "generated": generated}


def starts(rounds: int, folder: str) -> list[dict[str, Any]]:
    """Best and median in milliseconds, a row for each number of kernels and each mode.

    Raises RuntimeError if the cache was not used where it should have been.
    """
    bytecode = f"{folder}/bytecode"
    results: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for number in range(WARM_UP, rounds):
        for count, mode in itertools.product(COUNTS, MODES):
            cache = {
                "without": "", "filling": f"{folder}/{count}-{number}",
                "filled": f"{folder}/{count}-{WARM_UP}",
            }[mode]  # fmt: skip
            result = start(requests(count), bytecode, cache)
            if result["generated"] != (mode != "filled"):
                raise RuntimeError(f"{mode}: the kernels did not come from where they should")
            if number != WARM_UP:
                results.setdefault((count, mode), []).append(result)
    rows = []
    for (count, mode), found in results.items():
        times = {part: [result[part] for result in found] for part in PARTS}
        rows.append({
            "count": count, "mode": mode, "all": times,
            "best": {part: min(each) for part, each in times.items()},
            "median": {part: statistics.median(each) for part, each in times.items()},
        })  # fmt: skip
    return rows


def single(folder: str) -> dict[str, float]:
    """Microseconds that one of 100 kernels takes in a warm process: the median over the kernels of
    the best of five."""
    sys.path.insert(0, str(ROOT))
    import jitgen
    from jitgen.gemm.kernel import CODE_BYTES, generate
    from jitgen.run import disk

    disk.enable(f"{folder}/single")
    store = disk.store()
    full = disk.Store(f"{folder}/full", disk.FOLDERS * 128 * disk.PAGE)
    if store is None:
        raise RuntimeError("the cache cannot be used here")
    kernels = [jitgen.brgemm(**request) for request in requests(100)]
    keys = [store.key(k.spec, k.target, ()) for k in kernels]
    for folder_number in range(disk.FOLDERS):
        for number in range(128):
            full.save(bytes([folder_number, number]) + bytes(30), bytes(4000))

    def clock(work: Callable[[int], object]) -> float:
        times = []
        for i in range(len(kernels)):
            best = float("inf")
            for _ in range(5):
                begin = time.perf_counter()
                work(i)
                best = min(best, time.perf_counter() - begin)
            times.append(1e6 * best)
        return statistics.median(times)

    def load(i: int) -> None:
        found = store.key(kernels[i].spec, kernels[i].target, ())
        if store.load(found, CODE_BYTES) != kernels[i].code:
            raise RuntimeError("the code on disk is not what was generated")

    return {
        "generate": clock(lambda i: generate(kernels[i].spec, kernels[i].target)),
        "load": clock(load),
        "store": clock(lambda i: store.save(keys[i], kernels[i].code)),
        "store, cache full": clock(lambda i: full.save(keys[i], kernels[i].code)),
    }


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; 0, 1 if the cache could not be used, 2 for wrong options."""
    if arguments.rounds < 1:
        print(f"--rounds {arguments.rounds} is less than 1", file=sys.stderr)
        return 2
    print(bench_report.facts_text(bench_report.machine_facts()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            rows, one = starts(arguments.rounds, folder), single(folder)
        except (RuntimeError, subprocess.CalledProcessError) as error:
            print(f"cannot measure: {error}", file=sys.stderr)
            return 1
    print(f"\nbest and median of {arguments.rounds} fresh processes, milliseconds\n")
    print("kernels  cache   " + "".join(f"{heading:>17}" for heading in HEADINGS))
    for row in rows:
        cells = (f"{row['best'][part]:9.1f} {row['median'][part]:7.1f}" for part in PARTS)
        print(f"{row['count']:7}  {row['mode']:8}" + "".join(cells))
    print("\none kernel in a warm process (median of 100 kernels), microseconds\n")
    for name, microseconds in one.items():
        print(f"{name:18} {microseconds:7.1f}")
    if arguments.json is not None:
        document = {"starts": rows, "single_us": one}
        Path(arguments.json).write_text(json.dumps(document, indent=1) + "\n")
    return 0
