"""`jitgen show --layer`: the passes of a layer, the stream of one, any kernel of it.

Not here: streams in words (`jitgen.primitives.nest.shown`), listings (`jitgen.inspect`).
"""

from __future__ import annotations

import argparse
from math import prod
from typing import Any

from jitgen import doors
from jitgen.cli.layers import Progress, algorithm, chosen_pass, head, make_layer
from jitgen.cli.requests import kernel_options
from jitgen.cli.terminal import STRONG, colour
from jitgen.emit.routine import Routine
from jitgen.primitives.layers.base import Layer
from jitgen.primitives.layers.passes import Argument, Pass
from jitgen.primitives.nest import shown
from jitgen.types import DTYPES

#: Calls of each thread and part that are shown
CALLS = 4


def show(arguments: argparse.Namespace, chosen: str) -> Routine | str | dict[str, Any]:
    """What is to be printed in the format `chosen`: a kernel, text, or values for JSON."""
    kernel_options(arguments)
    if arguments.kernel is None:
        if chosen not in ("text", "json"):
            raise ValueError(f"--format {chosen}: a layer is text or json; --kernel N asks for one "
                             "of the kernels of a pass")  # fmt: skip
    elif arguments.pass_ is None:
        raise ValueError(f"--kernel {arguments.kernel} is a kernel of a pass: --pass is missing")
    layer = make_layer(arguments, arguments.isa)
    if arguments.pass_ is None:
        if arguments.calls is not None:
            raise ValueError(f"--calls {arguments.calls} is for a pass: --pass is missing")
        found = overview(layer)
        return found if chosen == "json" else _overview_text(arguments.layer, found)
    each = chosen_pass(layer, arguments.pass_)
    stream = each.run.stream
    if arguments.kernel is not None:
        count = len(stream.calls)
        if not 0 <= arguments.kernel < count:
            raise ValueError(
                f"--kernel {arguments.kernel}: {each.name} has kernels 0 to {count - 1}"
            )
        routine: Routine = stream.calls[arguments.kernel].routine
        return routine
    most = doors.size("--calls", CALLS if arguments.calls is None else arguments.calls, 0)
    if chosen == "json":
        return pass_values(layer, each) | shown.as_values(stream, most)
    return "\n".join([*_pass_lines(arguments.layer, layer, each), "", shown.text(stream, most)])


# ---- all passes ---------------------------------------------------------------------------------


def overview(layer: Layer) -> dict[str, Any]:
    """All passes of a layer, as JSON has them."""
    progress = Progress()
    passes: dict[str, Any] = {}
    for name in (names := layer.passes()):
        progress.tell(f"{name} ({len(passes) + 1} of {len(names)})")
        each = names[name]
        stream = each.run.stream
        values = shown.as_values(stream, 0)
        facts = ("threads", "calls", "barriers", "code_bytes", "stream_bytes")
        passes[name] = {
            "algorithm": algorithm(layer, name) or None, "parts": len(stream.parts),
            "kernels": len(stream.calls), **{fact: values[fact] for fact in facts},
            "flops": sum(use.calls * use.flops for use in shown.kernels(stream)),
            "scratch_bytes": _scratch_bytes(layer, each),
        }  # fmt: skip
    progress.tell("")
    return head(layer) | {"passes": passes}


def _overview_text(text: str, found: dict[str, Any]) -> str:
    names = {
        "algorithm": "algorithm", "parts": "parts", "calls": "calls", "kernels": "kernels",
        "barriers": "barriers", "threads": "threads", "code_bytes": "code", "flops": "flops",
        "stream_bytes": "stream", "scratch_bytes": "scratch",
    }  # fmt: skip
    passes = found["passes"]
    if not any(each["algorithm"] for each in passes.values()):
        del names["algorithm"]
    rows = [["pass", *names.values()]]
    for name, each in passes.items():
        rows.append([name, *("" if each[n] is None else str(each[n]) for n in names)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([f"{row[0]:{widths[0]}}", *(f"{c:>{w}}" for c, w in
                                              zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]  # fmt: skip
    return "\n".join([
        colour(STRONG, text.strip()), found["layer"], "", *lines, "",
        "code, stream and scratch in bytes; --pass PASS shows the stream of one", "",
    ])  # fmt: skip


# ---- one pass -----------------------------------------------------------------------------------


def pass_values(layer: Layer, each: Pass) -> dict[str, Any]:
    """What JSON says of a pass beside its stream."""
    return head(layer) | {
        "pass": each.name, "algorithm": algorithm(layer, each.name) or None,
        "arguments": [a._asdict() | {"shape": list(a.shape)} for a in each.arguments],
        "scratch": each.run.scratch, "scratch_bytes": _scratch_bytes(layer, each),
        "constants": {n: list(a.shape) for n, a in each.run.constants.items()},
    }  # fmt: skip


def _scratch_bytes(layer: Layer, each: Pass) -> int:
    return sum(each.run.scratch.values()) * DTYPES[layer.dtype].size


def _pass_lines(text: str, layer: Layer, each: Pass) -> list[str]:
    how = algorithm(layer, each.name)
    element = DTYPES[layer.dtype].size
    lines = [
        colour(STRONG, f"{text.strip()}: {each.name}{f', {how}' if how else ''}"),
        head(layer)["layer"], "", "tensor, elements and bytes; the argument of the layer",
    ]  # fmt: skip
    rows = [
        (a.tensor, "x".join(map(str, a.shape)), prod(a.shape) * element, _argument(a))
        for a in each.arguments
    ]
    rows += [(n, str(size), size * element, "scratch") for n, size in each.run.scratch.items()]
    rows += [
        (n, "x".join(map(str, a.shape)), a.nbytes, "constants")
        for n, a in each.run.constants.items()
    ]
    widths = [max(len(str(row[i])) for row in rows) for i in range(3)]
    for name, shape, size, what in rows:
        lines.append(f"  {name:{widths[0]}}  {shape:{widths[1]}}  {size:>{widths[2]}}  {what}")
    return lines


def _argument(a: Argument) -> str:
    way = ", read and written" if a.updated else ", written" if a.result else ""
    return f"{a.name}{way}{f': {a.meaning}' if a.meaning else ''}"
