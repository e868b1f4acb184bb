"""The streams of recurrent layers: weights and the forward pass. One direction is one stream.

A thread computes all gates of some hidden units: a call of the recurrent product makes a block of
pre-activations, and the cell's kernel reads it from L1 at once; one barrier ends a step. After
arXiv:1906.06440, section on LSTM. Not here: the parts of a step (`jitgen.primitives.rnn.steps`),
the backward pass (`jitgen.primitives.rnn.backward`), arrays and their checks
(`jitgen.primitives.layers.recurrent`).
"""

from __future__ import annotations

from dataclasses import replace

from jitgen.primitives.nest.gemm import Product, product_part
from jitgen.primitives.nest.run import Run
from jitgen.primitives.nest.stream import Part
from jitgen.primitives.nest.tensor import Access
from jitgen.primitives.rnn.steps import (
    KEPT,
    MOST_ROWS,
    ROWS_BY_LENGTH,
    ROWS_PER_STEP,
    STATES,
    Layer,
    Pass,
    Steps,
    Strides,
    Way,
)
from jitgen.run.cache import STREAMS

# ---- weights ------------------------------------------------------------------------------------


def _pack_parts(layer: Layer) -> list[Part]:
    def part(source: str, to: str, first: int = 0) -> Part:
        panels = layer.panels[to]
        loops = {"g": (panels.sizes["g"], 1), "u": (layer.hidden, layer.width)}
        weights = layer.tensor(source, f"g u {panels.layout.split()[1]}")
        return layer.nest("GU", loops).relayout(
            weights.at(g=[first, "g"], u="u"), panels.at(g="g", u="u"), fill=False,
            title="weights in panels of gates",
        )  # fmt: skip

    parts = [part("w", "w_panels"), part("r", "r_panels")]
    return parts + ([part("r", "n_panels", 2)] if layer.kind == "gru_before" else [])


@STREAMS.of
def pack_weights(layer: Layer) -> Run:
    """Tensors w, r, w_panels, r_panels, n_panels."""
    tensors = ["w", "r", *layer.panels]
    return Run(_pack_parts(layer), tensors, layer.used, layer.target, layer.dtype)


# ---- forward ------------------------------------------------------------------------------------


class _Forward(Pass):
    """The parts of one direction's forward pass."""

    def __init__(self, layer: Layer, way: Way, training: bool, strides: Strides) -> None:
        most = ROWS_BY_LENGTH if way.masked else MOST_ROWS
        super().__init__(layer, way, -way.before, most, layer.width, strides)
        self.save = training
        #: the input product of a step is made with the step; else of all steps before the first,
        #: which reads the weights once
        self.per_step = layer.batch >= ROWS_PER_STEP or not self.joined("x")
        if not training:
            # a thread has a block of gates for itself, which does not outlive the step
            rows, own = min(layer.batch, most), self.per_step and not self.two_parts
            for name in KEPT[layer.kind]:
                if name in ("c", "reset"):
                    self.tensors[name] = layer.tensor(name, "n h")
                elif own or name == "recurrent":
                    self.tensors[name] = layer.tensor(name, "n g u", True, n=rows, u=layer.width)

    def parts(self) -> list[Part]:
        t = self.layer.steps
        parts = [] if self.per_step else [self._inputs()]
        # two parts take turns
        for steps in self.turns([1] * t if self.two_parts else [1] + [t - 1] * (t > 1)):
            parts += self._steps(steps)
        return parts

    def _inputs(self) -> Part:
        """The input product of all steps."""
        layer, panel = self.layer, self.layer.gates * self.layer.width
        product = Product(
            layer.extents["m"], layer.units * layer.gates, layer.inputs, layer.dtype, layer.target,
            layer.used, panel, c=f"n/{panel} m n", gaps=(("a", (self.tensor("x").stride("n"),)),),
            epilogue=(("bias",),),
        )  # fmt: skip
        if self.way.masked:
            # threads share the panels alone: few of the rows may be in use
            rows = layer.steps_by_length * layer.batch
            product = replace(product, blocks=(rows, panel), order="Nm")
        return product_part(product, "x", "w_panels", "gates", when=self.when(m="m"))

    def _gates(self, steps: Steps, a: str, panels: str, to: Access, bias: str = "") -> Part:
        """Gates of the units in hand, from whole rows of an operand."""
        columns = self.layer.width * self.tensor(panels).sizes["g"]
        return steps.product(
            f"gates from {panels}", steps.operand(a, True), panels, to, bias=bias, columns=columns
        )

    def _steps(self, steps: Steps) -> list[Part]:
        kind, gates, when, parts = self.layer.kind, steps.at("gates"), steps.when(), []
        if self.per_step:
            parts.append(self._gates(steps, "x", "w_panels", gates, "bias"))
        if kind == "gru":
            recurrent = steps.at("recurrent")
            parts.append(self._gates(steps, "h_before", "r_panels", recurrent, "bias_r"))
        elif self.way.state or not steps.oldest:
            parts.append(self._gates(steps, "h_before", "r_panels", gates))
        if not self.two_parts:
            return [steps.cell(kind, parts, when)]
        # what the reset leaves of all units goes into a second product
        again = self._gates(steps, "reset", "n_panels", steps.at("gates", g=2))
        return [
            steps.cell("gru_before_reset", parts, when),
            steps.cell("gru_before_output", [again], when),
        ]


@STREAMS.of
def forward(layer: Layer, way: Way, training: bool, packed: bool, strides: Strides = ()) -> Run:
    """Tensors of the caller: x, then w, r or the panels (`Layer.panels`), those of `STATES` and, in
    training, those of `Layer.sizes` (c is among the states)."""
    made = _Forward(layer, way, training, strides)
    parts = made.parts()
    tensors = ["x", *(layer.panels if packed else ("w", "r")), *STATES]
    scratch: dict[str, int] = {}
    if not packed:
        parts = _pack_parts(layer) + parts
        scratch = {name: panels.elements for name, panels in layer.panels.items()}
    kept = [name for name in layer.sizes if name != "c"]
    if training:
        tensors += kept
    else:
        for tensor in map(made.tensor, kept):
            scratch[tensor.name] = tensor.elements * (layer.used if tensor.own else 1)
    return Run(parts, tensors, layer.used, layer.target, layer.dtype, scratch)
