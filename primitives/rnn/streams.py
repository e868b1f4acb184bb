"""The streams of recurrent layers: weights and the forward pass. One direction is one stream.

A thread computes all gates of some hidden units: a call of the recurrent product makes a block of
pre-activations, and the cell's kernel reads it from L1 at once; one barrier ends a step. After
arXiv:1906.06440, section on LSTM. Not here: the parts of a step (`jitgen.primitives.rnn.steps`),
the backward pass (`jitgen.primitives.rnn.backward`), arrays and their checks
(`jitgen.primitives.layers.recurrent`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from jitgen.kernels.layout import emit_transpose
from jitgen.primitives.nest.gemm import Product, product_part
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.run import Run
from jitgen.primitives.nest.stream import Made, Part, Ref
from jitgen.primitives.rnn.steps import (
    MOST_ROWS,
    ROWS_BY_LENGTH,
    ROWS_PER_STEP,
    STATES,
    Layer,
    Span,
    Way,
    step_cell,
    step_product,
)
from jitgen.run.cache import STREAMS

# ---- weights ------------------------------------------------------------------------------------


def packed_elements(layer: Layer) -> dict[str, int]:
    """Elements of the panels of weights by tensor: the input's, the recurrent ones, and those of
    the gate that waits for the reset (0: none does)."""
    units, k = layer.units, layer.hidden
    later = units * k if layer.kind == "gru_before" else 0
    return {
        "w_panels": units * layer.gates * layer.inputs,
        "r_panels": units * layer.gates * k - later, "n_panels": later,
    }  # fmt: skip


def _pack_parts(layer: Layer) -> list[Part]:
    h, width = layer.hidden, layer.width

    def part(source: str, to: str, k: int, first: int, count: int) -> Part:
        # `count` gates from `first` on of weights (gates x hidden) x k
        def code(size: dict[str, int], begin: bool, end: bool) -> Made:
            made = emit_transpose(size["u"], k, layer.dtype, layer.target, lda=k, ldc=count * width)
            return made, {}

        words = {
            "a": Ref(source, {"g": h * k, "u": k}, layer.element, start=first * h * k),
            "c": Ref(to, {"g": width, "u": k * count}, layer.element),
        }
        loops = {"g": Loop(count, (1,)), "u": Loop(h, (width,))}
        return Part("weights in panels of gates", "GU", loops, code, words)

    together = layer.gates - (layer.kind == "gru_before")
    parts = [
        part("w", "w_panels", layer.inputs, 0, layer.gates), part("r", "r_panels", h, 0, together)
    ]
    return parts + ([part("r", "n_panels", h, together, 1)] if together < layer.gates else [])


@STREAMS.of
def pack_weights(layer: Layer) -> Run:
    """Tensors w, r, w_panels, r_panels, n_panels."""
    tensors = ["w", "r", *packed_elements(layer)]
    return Run(_pack_parts(layer), tensors, layer.used, layer.target, layer.dtype)


# ---- forward ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Forward:
    """The parts of one direction's forward pass."""

    layer: Layer
    way: Way
    training: bool

    @property
    def panel(self) -> int:
        """Elements of a row of a panel of gates."""
        return self.layer.gates * self.layer.width

    @property
    def ldy(self) -> int:
        """Elements of a row of y."""
        return self.layer.directions * self.layer.hidden

    @property
    def per_step(self) -> bool:
        """The input product of a step is made with the step; else of all steps before the first,
        which reads the weights once."""
        return self.layer.batch >= ROWS_PER_STEP

    def own(self, tensor: str) -> bool:
        """A thread has a block of `tensor` for itself, which does not outlive the step."""
        return not self.training and (
            tensor == "recurrent" or (tensor == "gates" and self.per_step and not self.two_parts)
        )

    @property
    def two_parts(self) -> bool:
        """A step has a barrier in its midst."""
        return self.layer.kind == "gru_before"

    @property
    def most(self) -> int:
        """Most rows of a block."""
        return ROWS_BY_LENGTH if self.way.masked else MOST_ROWS

    @property
    def block(self) -> int:
        """Elements of a block that a thread has for itself."""
        return min(self.layer.batch, self.most) * self.panel

    def gates(self, span: Span, tensor: str = "gates", first: int = 0) -> Ref:
        """The block of gates from gate `first` on."""
        layer, start = self.layer, first * self.layer.width
        if self.own(tensor):
            return Ref(tensor, {}, layer.element, start=start, per_thread=self.block)
        step = layer.batch * self.panel
        return span.ref(
            tensor, step, start=start, u=layer.steps * layer.batch * layer.gates, n=self.panel
        )

    def product(
        self, span: Span, a: Ref, lda: int, panels: str, to: Ref, count: int = 0, bias: str = "",
        beta: float = 1.0,
    ) -> Part:  # fmt: skip
        """`count` gates (0: all) of the units in hand."""
        layer = self.layer
        count = count or layer.gates
        k = layer.inputs if panels == "w_panels" else layer.hidden
        words = {"a": a, "b": Ref(panels, {"u": k * count}, layer.element), "c": to}
        if bias:
            words["bias"] = Ref(bias, {"u": layer.gates}, layer.element)
        return step_product(
            span, f"gates from {panels}", words, k, lda, count * layer.width, self.panel,
            layer.width, beta=beta, gates=count, most=self.most,
        )  # fmt: skip

    def parts(self) -> list[Part]:
        layer, way = self.layer, self.way
        parts = []
        if not self.per_step:
            product = Product(
                layer.steps * layer.batch, layer.units * layer.gates, layer.inputs, layer.dtype,
                layer.target, layer.used, self.panel, c=f"n/{self.panel} m n",
                epilogue=(("bias",),),
            )  # fmt: skip
            if way.masked:
                # threads share the panels alone: few of the rows may be in use
                rows = layer.steps_by_length * layer.batch
                product = replace(product, blocks=(rows, self.panel), order="Nm")
            part = product_part(product, "x", "w_panels", "gates")
            parts.append(replace(part, when=Ref("flags", {"m": 1})) if way.masked else part)
        sign, begin = (-1, layer.steps - 1) if way.reverse else (1, 0)
        spans = [Span(layer, begin, sign, 1, -sign)]
        if self.two_parts:
            # which take turns
            spans += [Span(layer, begin + sign * i, sign, 1, -sign) for i in range(1, layer.steps)]
        elif layer.steps > 1:
            spans.append(Span(layer, begin + sign, sign, layer.steps - 1, -sign))
        for i, span in enumerate(spans):
            parts += self.steps(span, i == 0)
        return parts

    def steps(self, span: Span, first: bool) -> list[Part]:
        """Some steps; before the first one the state is given."""
        layer, way, save = self.layer, self.way, self.training
        h, e = layer.hidden, layer.element
        y_size, ldh = layer.batch * self.ldy, h if first else self.ldy

        def state(**steps: int) -> Ref:
            # of the step before
            if first:
                return Ref("h0", {"n": h, **steps}, e)
            return span.ref("y", y_size, 1, way.column, n=self.ldy, **steps)

        gates = self.gates(span)
        words = {"a": gates, "residual": span.ref("y", y_size, 0, way.column, n=self.ldy, u=1)}
        ld = {"residual": self.ldy}
        how: dict[str, Any] = {"most": self.most, "when": span.flag(way)}
        if way.masked or layer.kind in ("gru", "gru_before"):
            words["bias_row"], ld["bias_row"] = state(u=1), ldh
        before: list[Part] = []
        if self.per_step:
            x = span.ref("x", layer.batch * layer.inputs, n=layer.inputs)
            before.append(self.product(span, x, layer.inputs, "w_panels", gates, 0, "bias", 0.0))
        if layer.kind == "gru":
            apart = words["b"] = self.gates(span, "recurrent")
            before.append(self.product(span, state(), ldh, "r_panels", apart, 0, "bias_r", 0.0))
        elif not first or way.state:
            count = 2 if self.two_parts else 0
            before.append(self.product(span, state(), ldh, "r_panels", gates, count))
        if layer.kind == "lstm":
            old, new = Ref("c", {"n": h, "u": 1}, e), Ref("c", {"n": h, "u": 1}, e)
            if save:
                old, new = (span.ref("c", layer.batch * h, i, n=h, u=1) for i in (1, 0))
            words |= {"b": Ref("c0", {"n": h, "u": 1}, e) if first else old, "c": new}
            ld |= {"b": h, "c": h}
        if not self.two_parts:
            save = save and layer.kind != "rnn"
            return [step_cell(span, way, layer.kind, words, ld, tuple(before), save=save, **how)]
        # what the reset leaves of all units goes into a second product
        size = layer.batch * h if save else 0
        reset = {**words, "residual": span.ref("reset", size, n=h, u=1)}
        part = step_cell(
            span, way._replace(masked=False), "gru_before_reset", reset, {**ld, "residual": h},
            tuple(before), **how,
        )  # fmt: skip
        to = self.gates(span, "gates", 2)
        again = self.product(span, span.ref("reset", size, n=h), h, "n_panels", to, 1)
        output = step_cell(span, way, "gru_before_output", words, ld, (again,), save=save, **how)
        return [part, output]


@STREAMS.of
def forward(layer: Layer, way: Way, training: bool, packed: bool) -> Run:
    """Tensors of the caller: x, then w, r or the tensors of `packed_elements`, those of `STATES`
    and, in training, those of `Layer.sizes` (c is among the states)."""
    maker = _Forward(layer, way, training)
    parts = maker.parts()
    scratch: dict[str, int] = {}
    kept = {name: size for name, size in layer.sizes.items() if size and name != "c"}
    tensors = ["x"]
    if packed:
        tensors += packed_elements(layer)
    else:
        parts = _pack_parts(layer) + parts
        tensors += ["w", "r"]
        scratch |= packed_elements(layer)
    tensors += STATES
    if training:
        tensors += kept
    else:
        if "reset" in kept:
            kept["reset"] = layer.batch * layer.hidden
        scratch |= kept | {n: layer.used * maker.block for n in kept if maker.own(n)}
    return Run(parts, tensors, layer.used, layer.target, layer.dtype, scratch)
