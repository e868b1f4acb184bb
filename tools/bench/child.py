"""What the measuring processes of ``python -m tools.bench fc|conv|mlp|lstm|attention|resnet50``
share.

What it is: the process that a command starts for each number of threads, because libraries read
OMP_NUM_THREADS once: who is there, whose result is right, GFLOP/s and ratios of a row, the rows as
JSON. What it is not: a command for people; `tools.bench.command` starts it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tools.bench import report as bench_report
from tools.bench.timing import Contestant, Cursor, PythonCall
from tools.bench.turns import Turns

#: The packages of a peer; the extra of this project that installs them all
NEEDS = {"torch": ("torch",), "onnxruntime": ("onnxruntime", "onnx")}
EXTRA = "pip install 'jitgen[peers]'"


@dataclass(frozen=True)
class Way:
    """A contestant: `call` is timed, `read` turns what it returned into results; `others` are the
    same call on further copies of its operands."""

    call: Callable[[], Any]
    read: Callable[[Any], tuple[Any, ...]] = lambda result: (result,)
    others: Sequence[Callable[[], Any]] = ()


#: Who of ours is compared with the best of whom, by the name of the ratio
Ratios = Mapping[str, tuple[str, Sequence[str]]]
Ways = Mapping[str, Callable[[], Way]]
#: What is wrong with the results that a contestant of that name computes, or None
Check = Callable[[str, Callable[[], tuple[Any, ...]]], "str | None"]


def lacking(peer: str) -> list[str]:
    """The packages of a peer that are not installed."""
    return [name for name in NEEDS[peer] if importlib.util.find_spec(name) is None]


class Child(ABC):
    """The settings of one process, and what it measures with. A kind of benchmark derives from it:
    it knows its `rows` and how to print one."""

    #: Who must be right
    ours: ClassVar[tuple[str, ...]] = ("jitgen",)
    #: The peers that it can call
    peers: ClassVar[tuple[str, ...]] = ("torch", "onnxruntime")
    #: Whether PyTorch runs in its inference mode
    inference: ClassVar[bool] = True
    heading: ClassVar[str]

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.threads: int = options["threads"]
        self.origins, self.missing = {}, {}  # type: dict[str, str], dict[str, str]
        for peer in self.peers:
            if lacking(peer):
                self.missing[peer] = f"{' and '.join(lacking(peer))} not installed ({EXTRA})"
            else:
                version = importlib.metadata.version(peer)
                self.origins[peer] = f"{peer} {version}, threads: {self.threads}"
        if "torch" in self.origins:
            import torch

            torch.set_num_threads(self.threads)
        self.turns = Turns(
            self.threads, options["rounds"], options["sample_ms"], options["retries"]
        )

    @abstractmethod
    def rows(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """What is measured: a name and what makes the row, with `measure`."""

    @abstractmethod
    def row_text(self, row: dict[str, Any]) -> str:
        """A line of the table under `heading`."""

    def more(self) -> dict[str, Any]:
        """What else goes into the result, measured after the rows."""
        return {}

    def measure(
        self, ways: Ways, check: Check, flops: float, ratios: Ratios,
        cursor: Cursor | None = None, others: Sequence[Contestant] = (),
    ) -> dict[str, Any]:  # fmt: skip
        """A row: contestants whose result is right (else "failed" says why not) take turns, again
        when the machine was "disturbed".

        Nanoseconds per call under "best_ns" and "median_ns", GFLOP/s under "best" and "median" by
        contestant, "peak" (GFLOP/s of one core times threads), "percent" of it; "ratio" and
        "median_ratio" of one of ours to the best of others, as `ratios` pairs them; "rival" names
        that one. "setup_ms": to make a contestant ready and call it first, less the next call.
        `others` are yardsticks: timed, but without GFLOP/s.
        """
        found: list[Contestant] = []
        failed: dict[str, str] = {}
        setup: dict[str, float] = {}
        for name, make in ways.items():
            try:
                begin = time.perf_counter()
                way = make()
                way.call()
                ready = time.perf_counter()
                way.call()
                setup[name] = 1e3 * (2 * ready - begin - time.perf_counter())
                wrong = check(name, lambda way=way: way.read(way.call()))
            except Exception as error:
                text = str(error).partition("\n")[0][:120]
                wrong = f"{type(error).__name__}: {text}"
            if wrong is None:
                found.append(PythonCall(name, [way.call, *way.others], cursor=cursor))
            else:
                failed[name] = wrong
        best_ns, median_ns, disturbed = self.turns.times([*others, *found])
        peak = self.turns.peak(best_ns)
        best = {at.name: flops / best_ns[at.name] for at in found}
        row: dict[str, Any] = {
            "threads": self.threads, "flops": flops, "failed": failed, "disturbed": disturbed,
            "peak": peak, "best_ns": best_ns, "median_ns": median_ns, "best": best,
            "median": {at.name: flops / median_ns[at.name] for at in found},
            "percent": {name: 100 * value / peak for name, value in best.items()},
            "ratio": {}, "median_ratio": {}, "rival": {}, "setup_ms": setup,
        }  # fmt: skip
        for ratio, (one, theirs) in ratios.items():
            present = [name for name in theirs if name in best]
            if one in best and present:
                row["rival"][ratio] = max(present, key=best.__getitem__)
                for kind, speeds in (("ratio", best), ("median_ratio", row["median"])):
                    row[kind][ratio] = speeds[one] / max(speeds[name] for name in present)
        return row


def cells(values: Mapping[str, float], names: Sequence[str], form: str = "7.1f") -> str:
    """Columns of a row, each behind a blank; a dash for what is not there."""
    width = form.partition(".")[0]
    return "".join(f" {values[n]:{form}}" if n in values else f" {'-':>{width}}" for n in names)


def _run(child: Child) -> dict[str, Any]:
    print(f"\nthreads: {child.threads}, {child.turns.isa}", flush=True)
    for name, text in child.origins.items():
        print(f"  {name}: {text}")
    for name, text in child.missing.items():
        print(f"  without {name}: {text}")
    print(child.heading, flush=True)
    rows = []
    for name, measure in child.rows():
        bench_report.progress(name)
        row = measure()
        bench_report.progress("")
        line = child.row_text(row) + ("  !" if row["disturbed"] else "")
        print("\n".join([line, *(f"  {who}: {why}" for who, why in row["failed"].items())]))
        sys.stdout.flush()
        rows.append(row)
    return {
        "threads": child.threads, "isa": child.turns.isa, "origins": child.origins,
        "missing": child.missing, "rows": rows, **child.more(),
    }  # fmt: skip


def main(kind: type[Child]) -> int:
    """Measure what the JSON of the one argument says; 0, or 1 if a result of ours was wrong."""
    options = json.loads(sys.argv[1])
    # PyTorch warns of the operators that it uses itself
    warnings.simplefilter("ignore")
    mode: Any = contextlib.nullcontext()
    if kind.inference and not lacking("torch"):
        import torch

        mode = torch.inference_mode()
    with mode:
        result = _run(kind(options))
    Path(options["result"]).write_text(json.dumps(result))
    return int(any(name in row["failed"] for row in result["rows"] for name in kind.ours))
