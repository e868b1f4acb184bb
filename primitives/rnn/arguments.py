"""The arrays of recurrent streams: what each holds, and those that are made of a caller's.

A stream is about one direction: its w, r, b, h0 ... are that direction's part of the layer's. Not
here: shapes of arguments (`jitgen.primitives.rnn.steps`), streams.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jitgen.primitives.layers.arrays import buffer_of, first_of
from jitgen.primitives.rnn.backward import backward
from jitgen.primitives.rnn.steps import Layer
from jitgen.primitives.rnn.streams import forward, pack_weights
from jitgen.run.loader import ffi
from jitgen.types import NUMPY

#: Tensors that a stream writes, by what makes it, and of them those that it reads first
WRITTEN = {
    pack_weights: ("w_panels", "r_panels", "n_panels"),
    forward: ("y", "c", "gates", "recurrent", "reset"),
    backward: ("dgates", "dgates_r", "dx", "dw", "dr", "dr_n", "db", "db_r", "dh", "dc"),
}  # fmt: skip
UPDATED = ("dh", "dc")
#: What tensors hold, where a layer's method has no argument of their name and shape
MEANINGS = {
    "bias": "biases in panels of gates, hidden / width x gates x width, zeros behind the last "
    "unit: of a GRU b[0], of others b[0] + b[1] (and an LSTM's forget_bias)",
    "bias_r": "b[1] in panels of gates",
    "w_panels": "w in panels of gates, hidden / width x in_features x gates x width, zeros behind "
    "the last unit, where nothing is written",
    "r_panels": "r in panels of gates, hidden / width x hidden x gates x width, zeros as in "
    "w_panels",
    "n_panels": "the last gate's rows of r in panels, hidden / width x hidden x width, zeros as in "
    "w_panels",
    "y": "the states of all steps, of both directions side by side",
    "c": "the cells' states, the last ones at the end: steps x batch x hidden in training, else "
    "batch x hidden",
    "gates": "the gates of all steps, which training keeps, hidden / width x steps x batch x "
    "gates x width",
    "recurrent": "the recurrent part of the gates, which training keeps, laid out as they are",
    "reset": "the reset states of all steps, which training keeps",
    "dh": "the gradient of the last h; then that of h0",
    "dc": "the gradient of the last c; then that of c0",
    "dgates": "the gradient of the gates, steps x batch x gates hidden: memory of the caller's",
    "dgates_r": "the gradient of the recurrent part of the gates, as dgates",
    "r_n": "r from row 2 hidden on: the last gate",
    "dr_n": "dr from row 2 hidden on: that memory, which is written twice, dr_n last",
    "db": "the gradient of b[0], and but for a GRU of b[1]", "db_r": "the gradient of b[1]",
}  # fmt: skip


def pointer(array: Any) -> Any:
    """The address of an array that a stream reads, or of none."""
    if array is None or not array.size:
        return ffi.NULL
    return buffer_of(array if array.flags.c_contiguous else first_of(array))


def biases(layer: Layer, b: np.ndarray | None, forget_bias: float) -> dict[str, np.ndarray]:
    """The biases of a direction (2 x gates hidden; None: zeros) in panels of gates."""
    pair = np.zeros((2, layer.gates * layer.hidden), NUMPY[layer.dtype]) if b is None else b
    if layer.kind == "gru":
        return {"bias": _panels(layer, pair[0]), "bias_r": _panels(layer, pair[1])}
    both = pair[0] + pair[1]
    if forget_bias:
        both[layer.hidden : 2 * layer.hidden] += forget_bias
    return {"bias": _panels(layer, both)}


def _panels(layer: Layer, b: np.ndarray) -> np.ndarray:
    wide = np.zeros((layer.gates, layer.units), NUMPY[layer.dtype])
    wide[:, : layer.hidden] = b.reshape(layer.gates, layer.hidden)
    return np.ascontiguousarray(wide.reshape(layer.gates, -1, layer.width).transpose(1, 0, 2))


def peepholes(
    layer: Layer, arrays: dict[str, Any], dp: np.ndarray, reverse: bool, longest: int | None
) -> None:
    """The gradient of the peepholes' weights: sums of the gates' times the cells' states, of so
    many steps (None: all)."""
    gates = arrays["dgates"].reshape(layer.steps, layer.batch, layer.gates, layer.hidden)
    c, c0 = arrays["c"][:longest], arrays["c0"][None]
    later = arrays["c"][1:][:longest]
    before = np.concatenate([later, c0] if reverse else [c0, c[:-1]])[: len(c)]
    for i, (gate, state) in enumerate(((0, before), (1, before), (3, c))):
        np.einsum("tnh,tnh->h", gates[:longest, :, gate], state, out=dp[i])
