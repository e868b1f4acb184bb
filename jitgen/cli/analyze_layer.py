"""`jitgen analyze --layer`: what bounds each part of a layer's passes on a CPU, and their times.

Not here: the bounds (`jitgen.primitives.nest.bounds`) and their text
(`jitgen.primitives.nest.report`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from jitgen.analysis import host
from jitgen.analysis.cpus import Cpu, check_target, find_cpu
from jitgen.analysis.measure import interleave, peak_kernel
from jitgen.cli.layers import Progress, algorithm, chosen_pass, head, make_layer
from jitgen.cli.requests import kernel_options
from jitgen.cli.terminal import OK, STRONG, colour, print_json
from jitgen.gemm.kernel import brgemm
from jitgen.primitives.layers.base import Layer
from jitgen.primitives.layers.passes import Pass
from jitgen.primitives.nest import report
from jitgen.primitives.nest.bounds import Model, RunBounds, measure
from jitgen.primitives.nest.shown import table
from jitgen.run import cpu as host_cpu
from jitgen.target import Target
from jitgen.types import NUMPY

#: Seconds for which each pass, and each of its parts, is measured
SECONDS = 0.1


def run(arguments: argparse.Namespace) -> int:
    """Print the analysis of a pass, or of all passes."""
    kernel_options(arguments)
    if arguments.plot:
        raise ValueError(f"--plot {arguments.plot} is for kernels, not for --layer")
    on_host = arguments.cpu in (None, "host")
    row, note = host.find_host() if on_host else (find_cpu(arguments.cpu), "")
    target = host.target_here(row) if on_host else row.target
    # what the text names stays
    named = "target" in arguments.layer
    layer = make_layer(arguments, arguments.isa or (None if named else target))
    check_target(row, layer.target.name)
    reason = host_cpu.why_not(layer.target) if on_host else ""
    seconds = 0.0
    if on_host and not reason:
        seconds = SECONDS if arguments.seconds is None else arguments.seconds
    names = list(layer.passes())
    if arguments.pass_ is not None:
        names = [chosen_pass(layer, arguments.pass_).name]
    progress = Progress()
    found: dict[str, RunBounds] = {}
    progress.tell("the clock")
    ghz = _ghz(row, layer.target, layer.dtype, seconds) if seconds else row.ghz
    at = ""

    def tell(what: str) -> None:
        progress.tell(f"{at}: {what}")

    model = Model(row, ghz, tell)
    for name in names:
        at = f"{name} ({len(found) + 1} of {len(names)})"
        found[name] = _analyzed(layer.passes()[name], model, seconds, tell)
    progress.tell("")
    if arguments.json:
        print_json(_values(layer, found, note, arguments.pass_))
    else:
        print("\n".join(_lines(arguments.layer, layer, found, note, arguments.pass_)))
    if reason:
        raise RuntimeError(f"analyzed but not measured: {reason}")
    return OK


def _ghz(row: Cpu, target: Target, dtype: str, seconds: float) -> float:
    """The clock at which multiply-accumulates run here, if a core does as many in a cycle as
    the row says."""
    kernel = brgemm(8, 8, 8, dtype, target=target)
    peak, flops = peak_kernel(kernel)
    element = kernel.spec.acc_bytes
    a, b, c = np.zeros((3, 8, 8), NUMPY[dtype])
    best = min(interleave({"peak": peak.bind(a, b, c)}, seconds)["peak"])
    return flops / best / row.flops_a_cycle(element, target.vector_bits) / 1e9


def _analyzed(
    each: Pass, model: Model, seconds: float, tell: Callable[[str], None]
) -> RunBounds:
    found = model.predict(each.run)
    if not seconds:
        return found
    tell("measured")
    return measure(found, each, seconds)


def _values(
    layer: Layer, found: dict[str, RunBounds], note: str, one: str | None
) -> dict[str, Any]:
    passes = {
        name: {"algorithm": algorithm(layer, name) or None, **report.as_values(each)}
        for name, each in found.items()
    }
    what = {"passes": passes} if one is None else {"pass": one, **passes[one]}
    return {**head(layer), "note": note or None, **what}


def _lines(
    text: str, layer: Layer, found: dict[str, RunBounds], note: str, one: str | None
) -> list[str]:
    how = algorithm(layer, one) if one else ""
    what = f"{text.strip()}{f': {one}' if one else ''}{f', {how}' if how else ''}"
    lines = [colour(STRONG, what), head(layer)["layer"]]
    first = next(iter(found.values()))
    lines += [report.head(first), *([note] if note else []), ""]
    if one is not None:
        return [*lines, *report.lines(first)]
    measured = first.measured is not None
    rows = [["", "pass", "parts", "Mflop", "predicted", "of peak", "measured", "of peak",
             "bound by"]]  # fmt: skip
    for name, each in found.items():
        cycles = [each.cycles]
        if each.measured is not None:
            cycles.append(each.measured * each.ghz * 1e9)
        row = ["", name, str(len(each.parts)), f"{each.flops / 1e6:.1f}" if each.flops else ""]
        for some in cycles:
            share = f"{each.percent(some):.1f} %" if each.flops else ""
            row += [report.time(each.seconds(some)), share]
        rows.append([*row, each.binding])
    if not measured:
        rows[0] = [*rows[0][:6], rows[0][-1]]
    lines += [line[2:] for line in table(rows)]
    return [*lines, "", "all but measured times are modelled; --pass PASS tells of its parts"]
