"""Layers of the command line: made of their texts, their passes and algorithms, progress.

Only commands that are about a layer import this, and all layers with it. Not here: options
(`jitgen.cli.requests`), what is done with a layer (`jitgen.cli.show_layer`,
`jitgen.cli.analyze_layer`).
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from jitgen.primitives.layers.base import Layer
from jitgen.primitives.layers.convolution import Convolution
from jitgen.primitives.layers.passes import Pass
from jitgen.primitives.layers.text import layer_of

#: Seconds that a command may take before it says what it is doing
QUIET = 1.0


def make_layer(arguments: argparse.Namespace, target: str | None) -> Layer:
    """The layer of --layer, for a target (None: the one its text names, or the best here)."""
    return layer_of(arguments.layer, target=target, threads=arguments.threads)


def chosen_pass(layer: Layer, name: str) -> Pass:
    """The pass of that name. ValueError if the layer has none."""
    passes = layer.passes()
    if name not in passes:
        raise ValueError(f"--pass {name} is not one of {', '.join(passes)}")
    return passes[name]


def algorithm(layer: Layer, name: str) -> str:
    """The algorithm of a pass, "" where there is only one."""
    if not isinstance(layer, Convolution):
        return ""
    if layer.conv.depthwise:
        return "depthwise"
    which = name.partition(" ")[0]
    which = {"pack_weights": "backward_data" if "backward" in name else "forward"}.get(which, which)
    return layer.algorithms.get(which, "")


def head(layer: Layer) -> dict[str, Any]:
    """What JSON says of a layer."""
    return {
        "layer": repr(layer).removeprefix("<primitives.").removesuffix(">"),
        "target": layer.target.name, "dtype": layer.dtype, "threads": layer.threads,
    }  # fmt: skip


class Progress:
    """A line on a terminal's standard error that says what a long command is doing."""

    def __init__(self) -> None:
        self._start, self._shown = time.perf_counter(), False

    def tell(self, what: str) -> None:
        """What is done now; "" at the end."""
        late = time.perf_counter() - self._start > QUIET
        if sys.stderr.isatty() and (self._shown or (what and late)):
            self._shown = bool(what)
            print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)
