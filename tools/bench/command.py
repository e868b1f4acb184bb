"""What ``python -m tools.bench fc|conv|mlp|lstm|attention|resnet50`` share: options, a child
process for each number of threads, summaries and JSON.

What it is: the side of the command; `tools.bench.child` is that of the measuring processes.
What it is not: it knows no layers and times nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.bench import report as bench_report
from tools.bench.kernel import geometric_mean

ROOT = Path(__file__).resolve().parent.parent.parent
EXIT_WRONG, EXIT_USAGE, EXIT_CANNOT = 1, 2, 3
Rows = Sequence[Mapping[str, Any]]
#: By title: where a row holds the figure that is summed up, such as ("ratio", "jitgen")
Columns = Mapping[str, tuple[str, ...]]


def host_instruction_sets() -> list[str]:
    """Which of "avx2" and "avx512" this processor has, the widest last."""
    from jitgen import targets

    refused = targets()
    return [name for name in ("avx2", "avx512") if not refused[name]]


def add_arguments(
    parser: argparse.ArgumentParser, passes: Sequence[str], examples: str = ""
) -> None:
    """The options that all these commands have; --pass where there are several `passes`."""
    parser.epilog, parser.formatter_class = examples, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer rows, shorter turns")
    add("--threads", nargs="+", metavar="N", help="default: 1 and all CPUs")
    if passes:
        add("--pass", dest="passes", default=",".join(passes), metavar="LIST", help="%(default)s")
    add("--rounds", type=int, default=None, help="turns of each contestant, at least 5; default 7")
    add("--json", default=None, metavar="FILE", help="write everything to FILE")


def options(arguments: argparse.Namespace, passes: Sequence[str]) -> dict[str, Any]:
    """Those options as plain data; ValueError names what is wrong."""
    quick = arguments.quick
    cpus = len(os.sched_getaffinity(0))
    rounds = arguments.rounds if arguments.rounds is not None else 5 if quick else 7
    if rounds < 5:
        raise ValueError(f"--rounds {rounds} is less than 5")
    if arguments.json is not None and not Path(arguments.json).absolute().parent.is_dir():
        raise ValueError(f"--json {arguments.json!r}: its folder does not exist")
    return {
        "passes": names("--pass", arguments.passes.split(","), passes) if passes else [],
        "all_threads": numbers("--threads", arguments.threads or ["1", f"{cpus}"], cpus),
        "rounds": rounds, "sample_ms": 0.5 if quick else 2.0, "retries": 1 if quick else 2,
    }  # fmt: skip


def names(option: str, given: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names given; ValueError where one is not `known`."""
    for name in given:
        if name not in known:
            raise ValueError(f"{option} {name!r} is not one of {', '.join(known)}")
    return list(given)


def number(option: str, text: str, most: int | None = None) -> int:
    """A positive number; ValueError names another text."""
    if not text.isdigit() or not 1 <= int(text) <= (most or int(text)):
        rule = "no positive number" if most is None else f"not from 1 to {most}"
        raise ValueError(f"{option} {text!r} is {rule}")
    return int(text)


def numbers(option: str, texts: Sequence[str], most: int | None = None) -> list[int]:
    """The positive numbers of texts such as "1" or "1,2", each once; ValueError names others."""
    parts = [part for text in texts for part in text.split(",")]
    return list(dict.fromkeys(number(option, part, most) for part in parts))


def environment(threads: int) -> dict[str, str]:
    """The environment of a child: threads, no kernels from disk, memory that is kept, packages."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {
        **os.environ, **dict.fromkeys(variables, str(threads)), "JITGEN_CACHE": "",
        "PYTHONPATH": path, "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    }  # fmt: skip


def measure(child: str, threads: int, given: dict[str, Any]) -> tuple[int, dict[str, Any] | None]:
    """Run a module in a process of so many threads; its exit code and its result."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        text = json.dumps({**given, "threads": threads, "result": str(result)})
        command = [sys.executable, "-m", child, text]
        code = subprocess.run(command, env=environment(threads), check=False).returncode
        return code, json.loads(result.read_text()) if result.exists() else None


def summary(rows: Rows, columns: Columns, where: Callable[[Any], str]) -> dict[str, Any]:
    """Geometric mean and least of each column over the rows that have it, and `where` it is."""
    result = {}
    for title, path in columns.items():
        found = []
        for row in rows:
            value: Any = row
            for key in path:
                value = value.get(key) if value else None
            if value:
                found.append((value, where(row)))
        if found:
            least, place = min(found)
            mean = geometric_mean([value for value, _ in found])
            result[title] = {"geomean": mean, "least": least, "where": place}
    return result


def _summary_text(title: str, figures: Mapping[str, Any]) -> str:
    lines = [title]
    for name, value in figures.items():
        lines.append(
            f"  {name:34} geometric mean {value['geomean']:7.3f}, least {value['least']:7.3f} "
            f"({value['where']})"
        )
    return "\n".join(lines)


def run(
    arguments: argparse.Namespace,
    child: str,
    description: str,
    read: Callable[[argparse.Namespace], dict[str, Any]],
    summaries: Callable[[dict[str, Any], dict[str, Any]], Iterator[tuple[str, dict[str, Any]]]],
    more: Callable[[dict[str, Any]], None] = lambda _: None,
) -> int:
    """Measure with a module `child` and print; its rows are explained where `description` says
    "The columns: ". `read` makes options of arguments, `summaries` titles and figures of options
    and the result of a child; `more` adds to the document.

    Returns 0; 1 if jitgen was wrong or a child failed, 2 for wrong options (`read` raises
    ValueError), 3 if this machine cannot measure.
    """
    try:
        given = read(arguments)
    except ValueError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    from tools.bench.machine_code import unsupported

    reason = unsupported() or ("" if host_instruction_sets() else "this processor lacks AVX2")
    if reason:
        print(f"cannot measure: {reason}", file=sys.stderr)
        return EXIT_CANNOT
    facts = bench_report.machine_facts()
    print(bench_report.facts_text(facts), flush=True)
    print("\ncolumns: " + description.partition("The columns: ")[2].rstrip())
    document: dict[str, Any] = {"machine": facts, "options": given, "runs": [], "summary": {}}
    codes = [0]
    for threads in given["all_threads"]:
        code, result = measure(child, threads, given)
        codes.append(EXIT_WRONG if code else 0)
        if result is not None:
            document["runs"].append(result)
    print()
    for result in document["runs"]:
        for title, figures in summaries(given, result):
            document["summary"][title] = figures
            print(_summary_text(title, figures))
        disturbed = sum(row["disturbed"] for row in result["rows"])
        print(f"rows disturbed by other programs: {disturbed} of {len(result['rows'])}")
    more(document)
    if arguments.json is not None:
        Path(arguments.json).write_text(json.dumps(document, indent=1) + "\n")
    return max(codes)
