"""Text tables of the benchmarks, and the facts about machine and versions that go with them.

What it is: formatting only. What it is not: it measures nothing.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

_TITLES = {"jitgen": "jitgen", "libxsmm": "LIBXSMM", "numpy": "NumPy"}
_PACKAGES = ("jitgen", "numpy", "etops", "cffi")


def machine_facts() -> dict[str, Any]:
    """Return processor name, system, versions and date of this run."""
    try:
        import cpuinfo

        processor = cpuinfo.get_cpu_info().get("brand_raw", "")
    except ImportError:
        processor = ""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "processor": processor or platform.processor() or platform.machine(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": versions,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def facts_text(facts: dict[str, Any]) -> str:
    """Return the facts as two lines."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return f"{facts['processor']}, {facts['system']}\n{versions}, {facts['date']}"


def progress(text: str) -> None:
    """Show one line of progress on standard error, only where that is a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def _number(value: float | None, digits: int = 1, width: int = 8) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"


def table_text(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Return one line per shape: GFLOP/s and percent of peak of each, and jitgen's ratios."""
    rivals = [name for name in names if name != "jitgen"] if "jitgen" in names else []
    head = f"{'m x n x k':>12} {'x':>3} {'type':>4}"
    for name in names:
        head += f" {_TITLES[name]:>9} {'%':>5}"
    for name in rivals:
        head += f" {'/' + _TITLES[name]:>9}"
    head += f" {'peak':>7}"
    lines = [head]
    for row in rows:
        size = f"{row['m']}x{row['n']}x{row['k']}"
        line = f"{size:>12} {row['count']:>3} {row['dtype']:>4}"
        for name in names:
            mark = "~" if name in row["approximate"] else " "
            value = _number(row["best"].get(name), 1, 8)
            line += f" {value}{mark} {_number(row['percent'].get(name), 1, 5)}"
        for name in rivals:
            ours, theirs = row["best"].get("jitgen"), row["best"].get(name)
            both = ours is not None and theirs is not None
            line += f" {_number(ours / theirs if both else None, 2, 9)}"
        lines.append(f"{line} {row['peak']:>7.1f}")
        lines += [f"{'':>12} {name}: {reason}" for name, reason in row["failed"].items()]
    if any(row["approximate"] for row in rows):
        lines.append("~ more call overhead was taken out than time is left: a rough figure")
    return "\n".join(lines)


def summary_text(result: dict[str, Any]) -> str:
    """Return the figures of `tools.bench.kernel.summary` as a few lines."""
    lines = []
    for name, figures in result["contestants"].items():
        some = figures["rows"] < result["rows"]
        which = f" (only {figures['rows']} of {result['rows']} shapes)" if some else ""
        lines.append(
            f"{_TITLES[name]:>9}{which}: GFLOP/s mean {_number(figures['gflops_mean'], 1, 0)}, "
            f"geometric mean {_number(figures['gflops_geomean'], 1, 0)}; "
            f"percent of peak: geometric mean {_number(figures['percent_geomean'], 1, 0)}, min "
            f"{_number(figures['percent_min'], 1, 0)}, geometric mean where m*n >= 1024 "
            f"{_number(figures['percent_large_geomean'], 1, 0)}"
        )
    for name, figures in result["ratio"].items():
        lines.append(
            f"jitgen / {_TITLES[name]}: geometric mean {_number(figures['geomean'], 3, 0)}, mean "
            f"{_number(figures['mean'], 3, 0)}, min {_number(figures['min'], 3, 0)}, geometric "
            f"mean of medians {_number(figures['median_geomean'], 3, 0)}"
        )
    return "\n".join(lines)


def latency_text(result: dict[str, Any]) -> str:
    """Return generation and call times as a few lines."""
    lines = []
    for target, times in result.get("generation_ms", {}).items():
        if "error" in times:
            lines.append(f"generate 64x64x64 {target:>10}: {times['error']}")
            continue
        cold, warm = times["cold"], times["warm"]
        lines.append(
            f"generate 64x64x64 {target:>10}: cold {cold['best_ms']:.2f} ms (median "
            f"{cold['median_ms']:.2f}), warm {warm['best_ms']:.2f} ms (median "
            f"{warm['median_ms']:.2f})"
        )
    lines += [f"{label}: {value:.1f} ns" for label, value in result.get("calls_ns", {}).items()]
    return "\n".join(lines)
