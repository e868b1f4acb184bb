"""The roofline of a CPU with a kernel on it, as a picture.

The roof is the FMA peak, the slopes are the bandwidths of the cache levels and of memory; the
kernel stands at its predicted speed once for every level that it fetches from, at the flops it does
for each byte from there. Not here: the figures (`jitgen.analysis.report`). Needs the extra `plot`.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

from jitgen import doors
from jitgen.analysis.report import Report

FORMATS = (".png", ".svg")
#: Points of levels closer than this factor get one label
NEAR = 2.0
_ROOF, _SLOPES, _KERNEL, _MEASURED = "#222222", "#8a8f98", "#c8402f", "#1f6fb2"


def check_file(file: str) -> None:
    """Raise ValueError unless a picture can be written to `file`, RuntimeError without matplotlib.

    Errors name the extra of the package that brings it.
    """
    path = Path(doors.path("file", file))
    if path.suffix not in FORMATS:
        raise ValueError(f"plot file={doors.shown(file)} does not end in {' or '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"plot file={doors.shown(file)}: its folder does not exist")
    _matplotlib()


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise RuntimeError(
            "a plot needs matplotlib, which is not installed; it comes with the extra `plot` "
            "of jitgen (pip install 'jitgen[plot]')"
        ) from None
    matplotlib.use("Agg")
    return matplotlib


def roofline(report: Report, file: str) -> None:
    """Draw the report's roofline to `file`, PNG or SVG by its ending; see `check_file`."""
    doors.instance("report", report, Report)
    check_file(file)
    from matplotlib.figure import Figure

    cpu, spec = report.cpu, report.kernel.spec
    # flops and bytes a cycle become rates by the clock: the one that was measured, or the table's
    ghz = cpu.ghz
    if report.measured:
        ghz = report.measured.peak_flops_a_second / 1e9 / report.peak
    peak = report.peak * ghz
    levels = [(name, bandwidth * ghz) for name, bandwidth, _ in _levels(report)]
    speed = peak * report.percent / 100
    at = [(name, report.flops / moved) for name, _, moved in _levels(report) if moved]
    low = min(0.25, *(x / 8 for _, x in at))
    high = max(64.0, peak / levels[-1][1] * 4, *(4 * x for _, x in at))
    figure = Figure(figsize=(8, 5.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set(
        xscale="log", yscale="log", xlim=(low, high),
        xlabel="flops for each byte fetched from the level",
        ylabel=f"GFLOP/s, {spec.dtype}, one core",
    )  # fmt: skip
    bottom = min(speed / 2, levels[-1][1] * low)
    axes.set_ylim(bottom, peak * 2.2)
    axes.plot([peak / levels[0][1], high], [peak, peak], color=_ROOF, lw=2)
    axes.annotate(
        f"FMA peak {peak:.0f} GFLOP/s", (high, peak), (-6, 5), textcoords="offset points",
        ha="right", color=_ROOF,
    )  # fmt: skip
    for _, bandwidth in levels:
        axes.plot([low, peak / bandwidth], [bandwidth * low, peak], color=_SLOPES, lw=1.4)
    _points(axes, report, at, speed)
    clock = f"{ghz:.1f} GHz, {'as measured' if report.measured else 'from the table'}"
    title = (
        f"{spec.m} x {spec.n} x {spec.k}, batch {report.batch}, {spec.dtype}, "
        f"{report.kernel.target.name} on {cpu.title} ({clock})"
    )
    axes.set_title("\n".join((title, *textwrap.wrap(report.note, 100))), fontsize=10)
    axes.grid(which="major", color="#e4e6ea")
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", frameon=True)
    figure.draw_without_rendering()  # lays out, so that the slopes' angle on paper is known
    for name, bandwidth in levels:
        _name_slope(axes, f"{name} {bandwidth:.0f} GB/s", low, bandwidth)
    figure.savefig(file)


def _levels(report: Report) -> list[tuple[str, float, float]]:
    """(name, bytes a cycle, bytes that a call fetches) of the levels that the CPU has."""
    cpu, traffic = report.cpu, report.traffic
    levels = [
        ("L1", cpu.l1_bytes, float(report.bytes_loaded)), ("L2", cpu.l2_bytes, traffic.l1)
    ]  # fmt: skip
    if cpu.l3:
        levels.append(("L3", cpu.l3_bytes, traffic.l2))
    return [*levels, ("memory", cpu.memory_bytes, traffic.l3 if cpu.l3 else traffic.l2)]


def _points(axes: Any, report: Report, at: list[tuple[str, float]], speed: float) -> None:
    xs = [x for _, x in at]
    axes.plot(
        xs, [speed] * len(xs), "o--", color=_KERNEL, ms=7, lw=1,
        label=f"predicted: {speed:.1f} GFLOP/s, {report.percent:.0f} % of peak",
    )  # fmt: skip
    if report.measured:
        rate = report.measured.flops_a_second / 1e9
        axes.plot(
            xs, [rate] * len(xs), "D:", color=_MEASURED, ms=7, lw=1, mfc="none",
            label=f"measured: {rate:.1f} GFLOP/s, {report.measured.percent:.0f} % of peak",
        )  # fmt: skip
    groups: list[tuple[float, list[str]]] = []
    for name, x in sorted(at, key=lambda item: item[1]):
        if groups and x < NEAR * groups[-1][0]:
            groups[-1][1].append(name)
        else:
            groups.append((x, [name]))
    for x, names in groups:
        axes.annotate(
            f"from {', '.join(sorted(names))}", (x, speed), (0, -24), textcoords="offset points",
            ha="center", color=_KERNEL, fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip


def _name_slope(axes: Any, text: str, low: float, bandwidth: float) -> None:
    """Write along a slope, above it."""
    (x0, y0), (x1, y1) = axes.transData.transform(
        [(low, bandwidth * low), (2 * low, bandwidth * 2 * low)]
    )
    angle = math.atan2(y1 - y0, x1 - x0)
    along, above = 14, 3
    away = (
        along * math.cos(angle) - above * math.sin(angle),
        along * math.sin(angle) + above * math.cos(angle),
    )  # fmt: skip
    axes.annotate(
        text, (low, bandwidth * low), away, textcoords="offset points", color=_SLOPES, fontsize=9,
        rotation=math.degrees(angle), rotation_mode="anchor", va="bottom",
    )  # fmt: skip
