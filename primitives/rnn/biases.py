"""The packing of biases as a stream, for programs without Python.

In Python biases are packed by NumPy at each call (`jitgen.primitives.rnn.arguments.biases`), which
gives the same. Not here: what a library holds (`jitgen.objects`).
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from jitgen.kernels.elementwise import emit_map
from jitgen.primitives.layers.passes import Argument, Pass, Passes
from jitgen.primitives.nest.run import Run
from jitgen.primitives.nest.stream import Made, Part
from jitgen.primitives.nest.tensor import Access, Tensor
from jitgen.primitives.rnn.arguments import MEANINGS
from jitgen.primitives.rnn.steps import LAYOUTS, Layer
from jitgen.run.cache import STREAMS
from jitgen.types import NUMPY

#: An LSTM's forget gate
FORGET = 1


@STREAMS.of
def pack_biases(layer: Layer, forget_bias: float) -> Run:
    """Tensors: b (2 x gates hidden), bias and, of a GRU, bias_r, as the forward pass reads them."""
    gru = layer.kind == "gru"
    names = ("bias", "bias_r" if gru else "second")
    bias, second = (layer.tensor(name, LAYOUTS["bias"]) for name in names)
    parts = [_in_panels(layer, row, to) for row, to in enumerate((bias, second))]
    constants, scratch = {}, {}
    if not gru:
        scratch = {second.name: second.elements}
        parts.append(_add(layer, second.at(u="u"), bias.at(u="u"), layer.gates * layer.width))
    if forget_bias:
        # zeros behind the last unit stay
        constants["forget"] = np.zeros(layer.units, NUMPY[layer.dtype])
        constants["forget"][: layer.hidden] = forget_bias
        forget = Tensor("forget", "u", layer.dtype, u=layer.hidden).at(u="u")
        parts.append(_add(layer, forget, bias.at(u="u", g=[FORGET]), layer.width))
    tensors = ["b", "bias", *(["bias_r"] if gru else [])]
    return Run(parts, tensors, 1, layer.target, layer.dtype, scratch, constants)


def _in_panels(layer: Layer, row: int, to: Tensor) -> Part:
    """A row of b in panels, with zeros behind the last unit."""
    b = Tensor("b", "d g u", layer.dtype, d=2, g=layer.gates, u=layer.hidden)
    nest = layer.nest("U", {"u": (layer.hidden, layer.width)})
    return nest.relayout(b.at(d=[row], u="u"), to.at(u="u"), title="biases in panels of gates")


def _add(layer: Layer, source: Access, to: Access, size: int) -> Part:
    """Add so many elements of each panel."""

    def code(sizes: dict[str, int], first: bool, last: bool) -> Made:
        return emit_map("add_to", 1, size, layer.dtype, layer.target), {}

    nest = layer.nest("U", {"u": (layer.hidden, layer.width)})
    return nest.call("add biases", code, {"a": source, "c": to})


def with_biases(self: Any) -> Passes:
    """A method of recurrent layers: the passes, and the packing of a direction's biases."""
    passes, layer = self.passes(), self.layer
    panels = layer.tensor("bias")
    shape = (layer.units // layer.width, layer.gates, layer.width)
    assert panels.elements == prod(shape)

    def made(name: str) -> Pass:
        run = pack_biases(layer, self.forget_bias)
        shapes = {"b": layer.shapes["b"][-2:]}
        return Pass(name, run, tuple(
            Argument(tensor, tensor, shapes.get(tensor, shape), tensor != "b",
                     meaning=MEANINGS.get(tensor, "b[0] and b[1] of PyTorch"))
            for tensor in run.tensors
        ))  # fmt: skip

    return Passes(dict.fromkeys(passes, passes.__getitem__) | {"pack_biases": made})
