"""``python -m tools.bench analysis``: predicted percent of the FMA peak beside the measured one.

What it is: 30 shapes of many kinds, chosen before the model was compared with any measurement, or
as many random ones as asked for; each measured by turns with the FMA peak, called from machine
code, best of all rounds. Every line has the difference of the two percentages.
What it is not: no constant of the model is fitted here or to this list.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any, NamedTuple

EXIT_MISSED, EXIT_USAGE, EXIT_CANNOT = 1, 2, 3
#: A prediction is good if it lies so many points of percent from what is measured; so many of the
#: list must be
POINTS, GOOD = 10.0, 25
#: A row whose FMA peak falls below this part of the best one was disturbed: again, so many times
QUIET, RETRIES = 0.97, 2


class Case(NamedTuple):
    """One kernel and its batch."""

    isa: str
    dtype: str
    m: int
    n: int
    k: int
    batch: int
    options: dict[str, Any]

    def __str__(self) -> str:
        size = f"{self.m}x{self.n}x{self.k}"
        rest = " ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.isa:7} {self.dtype} {size:10} {self.batch:5}  {rest}".rstrip()


_BATCHED = {
    ("avx2", "f32"): "64x64x64 63x63x63 64x30x64 31x29x33 13x7x9 5x5x5 1x64x64 64x1x64 16x6x64 "
    "28x64x64",
    ("avx512", "f32"): "64x64x64 64x30x64 31x29x33 13x7x9 5x5x5 1x64x64 7x64x64 16x6x64",
    ("avx2", "f64"): "64x64x64 29x31x33 64x7x64",
    ("avx512", "f64"): "64x64x64 63x63x63 7x13x9",
}
_OTHERS = (
    Case("avx2", "f32", 64, 64, 64, 1, {"epilogue": ("bias", "relu")}),
    Case("avx512", "f32", 32, 64, 32, 4, {"epilogue": ("bias", "gelu")}),
    Case("avx2", "f32", 64, 64, 16, 1, {"beta": 1.0}),
    Case("avx2", "f32", 32, 32, 32, 1, {}),
    Case("avx512", "f32", 64, 64, 2048, 1, {}),
    Case("avx2", "f32", 6, 16, 4096, 1, {}),
)


def the_list() -> list[Case]:
    """The 30 cases."""
    batched = [
        Case(isa, dtype, *map(int, size.split("x")), 16, {})  # type: ignore[call-arg, arg-type]
        for (isa, dtype), sizes in _BATCHED.items()
        for size in sizes.split()
    ]
    return [*batched, *_OTHERS]


def random_cases(count: int, seed: int) -> list[Case]:
    """Cases that nobody chose: sizes up to 70 (now and then k up to 500), batches up to 32."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        m, n, k = (rng.randint(1, 70) for _ in range(3))
        k = rng.choice((k, k, k, rng.randint(71, 500)))
        options: dict[str, Any] = rng.choice((
            {}, {}, {}, {"epilogue": ("bias", "relu")}, {"epilogue": ("bias", "gelu")},
            {"beta": 1.0}, {"trans_a": True}, {"packed_b": True},
        ))  # fmt: skip
        isa, dtype = rng.choice(("avx2", "avx512")), rng.choice(("f32", "f64"))
        found.append(Case(isa, dtype, m, n, k, rng.choice((1, 4, 16, 32)), options))
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--random", type=int, metavar="N", help="N random shapes, not the list")
    parser.add_argument("--seed", type=int, default=1, help="of the random shapes; default 1")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each; default 9")
    parser.add_argument("--sample-ms", type=float, default=2.0, help="of a turn; default 2")
    parser.add_argument("--json", default=None, metavar="FILE", help="write all rows to FILE")


def run(args: argparse.Namespace) -> int:
    """Measure and print; 0 if enough of the list are good, 1 if not, 3 if it cannot run here."""
    if args.rounds < 5 or args.sample_ms < 0.01 or (args.random is not None and args.random < 1):
        print("analysis: at least 5 --rounds, 0.01 --sample-ms and 1 --random", file=sys.stderr)
        return EXIT_USAGE
    from jitgen.analysis.host import find_host
    from jitgen.run import cpu as host_cpu
    from jitgen.target import parse_target

    cases = random_cases(args.random, args.seed) if args.random else the_list()
    try:
        row, note = find_host()
    except RuntimeError as error:
        print(f"cannot compare: {error}", file=sys.stderr)
        return EXIT_CANNOT
    reasons = {isa: host_cpu.why_not(parse_target(isa)) for isa in {c.isa for c in cases}}
    if any(reasons.values()):
        print(f"cannot measure: {'; '.join(filter(None, reasons.values()))}", file=sys.stderr)
        return EXIT_CANNOT
    print(f"{host_cpu.name()}, modelled as {row.title}; percent of the FMA peak")
    if note:
        print(note)
    print(f"{'predicted':>9} {'measured':>9} {'difference':>11}  isa     type m x n x k   batch")
    rows = []
    for case, predicted, measured in _compared(cases, row, args.rounds, args.sample_ms * 1e6):
        difference = predicted - measured
        print(f"{predicted:9.1f} {measured:9.1f} {difference:+11.1f}  {case}", flush=True)
        rows.append({**case._asdict(), "predicted": predicted, "measured": measured})
    apart = sorted(abs(r["predicted"] - r["measured"]) for r in rows)
    good = sum(x <= POINTS for x in apart)
    print(
        f"\n{good} of {len(rows)} within {POINTS:g} points; median difference "
        f"{apart[len(apart) // 2]:.1f}, largest {apart[-1]:.1f}"
    )
    if args.json:
        found = {"cpu": row.name, "note": note or None, "rows": rows}
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    return 0 if good * 30 >= GOOD * len(rows) else EXIT_MISSED


def _compared(cases: list[Case], row: Any, rounds: int, sample_ns: float) -> Any:
    """(case, predicted, measured percent) of each case."""
    import jitgen
    from jitgen.analysis import analyze
    from jitgen.analysis.measure import Problem
    from tools.bench.timing import CompiledCall, FmaPeak, interleave, warm_up

    peaks = {key: FmaPeak(*key) for key in sorted({(c.isa, c.dtype) for c in cases})}
    best: dict[Any, float] = dict.fromkeys(peaks, 0.0)
    warm_up(next(iter(peaks.values())))
    for case in cases:
        kernel = jitgen.brgemm(
            case.m, case.n, case.k, case.dtype, target=case.isa, **case.options
        )  # fmt: skip
        problem = Problem(kernel, case.batch)
        bound = problem.bind(kernel)
        call = CompiledCall("kernel", kernel.address, [bound.args_struct], keep=(problem, bound))
        key = (case.isa, case.dtype)
        measured = 0.0
        for _ in range(1 + RETRIES):
            times = interleave([peaks[key], call], rounds, sample_ns)
            here = peaks[key].flops_per_call / times["peak"].best_ns
            best[key] = max(best[key], here)
            rate = kernel.flops(case.batch) / times["kernel"].best_ns
            measured = max(measured, 100 * rate / best[key])
            if here >= QUIET * best[key]:
                break
        report = analyze(kernel, row, case.batch, other_models=False)
        yield case, report.percent, measured
