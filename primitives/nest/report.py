"""Bounds of a run as text and as values.

Not here: the bounds (`jitgen.primitives.nest.bounds`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jitgen.analysis.report import size_text
from jitgen.primitives.nest.bounds import PartBounds, RunBounds
from jitgen.primitives.nest.shown import table

#: Operands of a part that are named, at most: those of the most bytes
OPERANDS = 6
#: Headings of bounds
SHORT = {"core": "core", "L2 bandwidth": "L2", "L3 bandwidth": "L3", "memory bandwidth": "memory"}


def head(found: RunBounds) -> str:
    """Target, CPU, threads and clock."""
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    return (
        f"{found.target} on {found.cpu.title} ({found.cpu.name}), {threads}, {found.ghz:.2f} GHz"
    )


def lines(found: RunBounds) -> Iterator[str]:
    """The report as text, without `head`."""
    percent = ""
    if found.flops:
        each = " and thread" * (found.threads > 1)
        percent = (
            f", {found.percent(found.cycles):.1f} % of the FMA peak of {found.peak:g} flops a "
            f"cycle{each}"
        )
    yield (
        f"predicted   {time(found.seconds(found.cycles))}{percent}; bound by {found.binding}"
    )
    if found.measured is not None:
        share = found.percent(found.measured * found.ghz * 1e9)
        yield f"measured    {time(found.measured)}" + (f", {share:.1f} %" if found.flops else "")
    yield ""
    yield from table(_rows(found))
    for number, part in enumerate(found.parts):
        yield ""
        yield f"part {number}: {part.title}"
        for where, moved in (("L2", part.beyond_l2), ("L3", part.beyond_l3)):
            if moved and (where == "L2" or found.cpu.l3):
                yield f"  from beyond {where}: {_operands(moved)}"
        if not part.beyond_l2:
            yield "  all that it reads is in L2"
        if part.unknown:
            yield f"  not modelled: {', '.join(part.unknown)}"
    yield ""
    yield "times and bytes are those of a part's slowest thread; all but measured ones are modelled"
    if found.measured is not None:
        yield "a part is measured by itself, the whole in one run"


def _rows(found: RunBounds) -> list[list[str]]:
    names = [name for name in SHORT if name in found.parts[0].bounds]
    rows = [["", "part", "calls", "Mflop", *(SHORT[n] for n in names), "predicted", "of all",
             "measured", "bound by"]]  # fmt: skip
    for number, part in enumerate(found.parts):
        rows.append([
            str(number), part.title, str(part.calls),
            f"{part.flops / 1e6:.1f}" if part.flops else "",
            *(time(found.seconds(part.bounds[n])) for n in names),
            time(found.seconds(part.cycles)), f"{_share(found, part):.1f} %",
            "" if part.measured is None else time(part.measured), part.binding,
        ])  # fmt: skip
    if found.measured is None:
        rows = [[*row[:-2], row[-1]] for row in rows]
    return rows


def _share(found: RunBounds, part: PartBounds) -> float:
    return 100 * part.cycles / found.cycles if found.cycles else 0.0


def _operands(moved: Mapping[str, float]) -> str:
    some = sorted(moved.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {size_text(count)}" for name, count in some[:OPERANDS])
    rest = sum(count for _, count in some[OPERANDS:])
    return shown + (f", others {size_text(rest)}" if rest else "")


def time(seconds: float) -> str:
    """A time for the eye."""
    if not seconds:
        return "0"
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def as_values(found: RunBounds) -> dict[str, Any]:
    """The report as JSON has it: times in seconds, of the whole and by part."""
    return {
        "cpu": found.cpu.name, "target": found.target, "threads": found.threads,
        "ghz": found.ghz, "peak_flops_a_cycle": found.peak, "flops": found.flops,
        "predicted": {
            "seconds": found.seconds(found.cycles), "cycles": found.cycles,
            "percent_of_peak": found.percent(found.cycles), "binding": found.binding,
        },
        "measured": None if found.measured is None else {
            "seconds": found.measured,
            "percent_of_peak": found.percent(found.measured * found.ghz * 1e9),
        },
        "parts": [_part_values(found, part) for part in found.parts],
    }  # fmt: skip


def _part_values(found: RunBounds, part: PartBounds) -> dict[str, Any]:
    return {
        "title": part.title, "calls": part.calls, "flops": part.flops, "binding": part.binding,
        "cycles": part.cycles, "seconds": found.seconds(part.cycles),
        "percent_of_all": _share(found, part), "bounds": dict(part.bounds),
        "cycles_of_calling": part.calling, "bytes_beyond_l2": dict(part.beyond_l2),
        "bytes_beyond_l3": dict(part.beyond_l3) if found.cpu.l3 else {},
        "not_modelled": list(part.unknown), "measured_seconds": part.measured,
    }  # fmt: skip
