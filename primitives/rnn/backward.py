"""The streams of recurrent layers: the backward pass through time and the weights' gradients.

From the last step to the first, the product of the gates' gradients with the recurrent weights
makes the gradient of a block of states, and the cell's kernel turns it into the gradients of that
block's gates; one barrier ends a step. The gradients of x and of all weights are products over all
steps at once, behind the last. Not here: the forward pass (`jitgen.primitives.rnn.streams`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jitgen.gemm.kernel import panel_width
from jitgen.kernels.elementwise import emit_column_sums
from jitgen.primitives.nest.gemm import Product, pack_part, product_parts
from jitgen.primitives.nest.run import Run
from jitgen.primitives.nest.stream import Made, Part
from jitgen.primitives.nest.tensor import Access
from jitgen.primitives.rnn.steps import (
    BACKWARD_ROWS,
    ROWS_BY_LENGTH,
    Layer,
    Pass,
    Steps,
    Strides,
    Way,
)
from jitgen.run.cache import STREAMS

#: Where sequences have lengths, rows of a block of a weight's gradient, which stays in L1 while
#: pieces are added to it
ROWS_OF_WEIGHTS = 48
#: Tensors of the caller: of the forward pass, then gradients; r_n, dr_n are the rows of r and dr
#: that belong to the last gate. dh and dc hold gradients of the last states and become those of
#: the first ones.
TENSORS = (
    "x", "w", "r", "r_n", "h0", "y", "c0", "c", "p", "mask", "gates", "recurrent", "reset",
    "dy", "dh", "dc", "dgates", "dgates_r", "dx", "dw", "dr", "dr_n", "db", "db_r",
)  # fmt: skip


@STREAMS.of
def backward(layer: Layer, way: Way, strides: Strides = ()) -> Run:
    """Tensors of the caller: `TENSORS`."""
    made = _Backward(layer, way, strides)
    parts = made.parts()
    return Run(parts, TENSORS, layer.used, layer.target, layer.dtype, made.scratch)


class _Backward(Pass):
    """The parts of one direction's backward pass, and the scratch they need."""

    def __init__(self, layer: Layer, way: Way, strides: Strides) -> None:
        #: rows of w and of r; those of r that the first product of a step takes
        self.k = layer.gates * layer.hidden
        first = self.k - (layer.hidden if layer.kind == "gru_before" else 0)
        width = panel_width(layer.batch, layer.hidden, first, layer.dtype, layer.target)
        width = -(-width // layer.width) * layer.width
        most = ROWS_BY_LENGTH if way.masked else BACKWARD_ROWS
        super().__init__(layer, way, way.before, most, width, strides)
        self.scratch: dict[str, int] = {}
        #: gradient of the recurrent part of the gates
        self.recurrent = "dgates_r" if layer.kind == "gru" else "dgates"
        self.tensors |= {
            "r_panels": layer.tensor("r_panels", f"u/{width} k u", k=first),
            "n_panels": layer.tensor("n_panels", f"u/{width} h u"),
            "rows of gates": layer.tensor(self.recurrent, "t n k"),
        }  # fmt: skip

    def new(self, tensor: str, elements: int = 0) -> str:
        """A tensor of scratch, of so many elements or (0) as many as it has."""
        elements = elements or self.tensor(tensor).elements
        self.scratch[tensor] = max(elements, self.scratch.get(tensor, 0))
        return tensor

    def parts(self) -> list[Part]:
        t = self.layer.steps
        parts = [self._pack("r", "r_panels")]
        if self.two_parts:
            parts.append(self._pack("r_n", "n_panels"))
            self.new("dreset")
        # from the newest step to the oldest
        for steps in self.turns([1] * t if self.two_parts or t < 3 else [1, t - 2, 1]):
            parts += self._steps(steps)
        return [*parts, self._states(steps, 0, when=steps.when()), *self._sums(steps)]

    def _product(self, m: int, n: int, k: int, width: int = 0, **how: Any) -> Product:
        layer = self.layer
        width = width or panel_width(m, n, k, layer.dtype, layer.target)
        return Product(m, n, k, layer.dtype, layer.target, layer.used, width, b="k n", **how)

    def _pack(self, source: str, to: str) -> Part:
        layer, depth = self.layer, self.tensor(to).strides["u"] // self.width
        product = self._product(layer.batch, layer.hidden, depth, self.width)
        return pack_part(product, source, self.new(to))

    def _states(self, steps: Steps, shift: int, **beside: Any) -> Part:
        """The gradient of the states from that of the gates that they led to."""
        return steps.product(
            "gradient of the states", steps.at("rows of gates", shift), "r_panels",
            steps.at("dh"), **beside,
        )  # fmt: skip

    def _steps(self, steps: Steps) -> list[Part]:
        # in reverse, a step's product is of what the step before it in time left: made as long as
        # that one was, so also behind a block's last step, where its cells do nothing
        when = steps.when(-1 if self.way.reverse and not steps.newest else 0)
        product = [] if steps.newest else [self._states(steps, -self.way.before)]
        if not self.two_parts:
            return [steps.cell(f"{self.layer.kind}_backward", product, when)]
        again = steps.product(
            "gradient of the reset states", steps.at("dgates", 0, True, g=2), "n_panels",
            steps.at("dreset"), beta=0.0,
        )  # fmt: skip
        return [
            steps.cell("gru_before_backward_output", product, when),
            steps.cell("gru_before_backward_reset", [again], when),
        ]

    def _sums(self, oldest: Steps) -> list[Part]:
        """Gradients of x, w, r and the biases: sums over all steps."""
        t, every = self.layer.steps, Steps(self, 0, 1, self.layer.steps)
        copies = [(oldest, oldest.operand("h_before", True), "h_before")]
        if t > 1:
            later = Steps(self, oldest.first - self.sign, -self.sign, t - 1)
            copies.append((later, later.operand("h_before", True), "h_before"))
        x = "x"
        if not self.joined(x):
            copies.append((every, every.at(x), x := "x_rows"))
        weights = [("dgates", x, "dw"), (self.recurrent, "h_before", "dr")]
        if self.two_parts:
            # the last gate saw other states
            copies.append((every, every.at("dgates", 0, True, g=2), "last_gate"))
            weights.append(("last_gate", "reset", "dr_n"))
        parts = [self._copy(*copy) for copy in copies] + self._gradient_of_x()
        for names in weights:
            parts += self._gradient_of_weights(*names)
        parts.append(self._bias("dgates", "db"))
        if self.recurrent != "dgates":
            parts.append(self._bias(self.recurrent, "db_r"))
        return parts

    def _copy(self, steps: Steps, source: Access, to: str) -> Part:
        """Rows, step by step."""
        layer, rows = self.layer, (self.layer.batch, self.layer.block(BACKWARD_ROWS))
        nest = layer.nest("TN", {"t": (steps.count, 1), "n": rows})
        # made with the piece of sums that the step is in
        step = steps.first + steps.sign * np.arange(steps.count)
        when = self.when(t=("t", step // layer.piece * layer.piece))
        return nest.relayout(
            source, steps.at(self.new(to), 0, True), title=f"{source.tensor.name} to {to}",
            when=when,
        )  # fmt: skip

    def _made(self, product: Product, a: str, b: str, c: str) -> list[Part]:
        """A product and the packing before it."""
        parts, scratch = product_parts(product, a, b, c, "panels")
        if scratch:
            self.new("panels", scratch)
        return parts

    def _gradient_of_x(self) -> list[Part]:
        layer, dx, joined = self.layer, self.tensor("dx"), self.joined("dx")
        gaps = (("c", (dx.stride("n"),)),)
        product = self._product(layer.extents["m"], layer.inputs, self.k, gaps=gaps)
        if joined and not self.way.masked:
            return self._made(product, "dgates", "w", "dx")
        packing = pack_part(product, "w", self.new("panels", product.packed_elements))
        # threads take turns: few of the steps may be in use
        piece = layer.piece
        steps = (layer.used * piece, piece, piece if joined and self.rows == layer.batch else 1)
        nest = layer.nest("tTCtn", {
            "t": (layer.steps, *steps), "n": (layer.batch, self.rows),
            "c": (layer.inputs, product.width),
        })  # fmt: skip
        part = nest.gemm(
            layer.tensor("dgates", "t n k").at(t="t", n="n"), product.panels("panels").at(n="c"),
            dx.at(t="t", n="n", c="c"), m="n", n="c", outer="t", plan=product.plan,
            title="multiply blocks", when=self.when(t="t", n="n"),
        )  # fmt: skip
        return [packing, part]

    def _gradient_of_weights(self, a: str, b: str, c: str) -> list[Part]:
        """The product of a transposed (rows of all steps x m) and b."""
        layer, right, m = self.layer, self.tensor(b), self.tensor(a).stride("n")
        columns = right.sizes[right.layout[-1]]
        gaps = (("b", (right.stride("n"),)),)
        product = self._product(m, columns, layer.extents["m"], a="k m", gaps=gaps)
        if not self.way.masked:
            return self._made(product, a, b, c)
        self.new("panels", product.packed_elements)
        panels, pieces = product.panels("panels"), (layer.used * layer.piece, layer.piece)
        of_c = columns, product.width
        packing = layer.nest(
            "mMC", {"m": (layer.extents["m"], *(layer.batch * x for x in pieces)), "c": of_c}
        ).relayout(
            product.tensor("b", b).at(k="m", n="c"), panels.at(k="m", n="c"),
            title="pack pieces of panels", when=self.when(m="m"),
        )  # fmt: skip
        panels = layer.tensor("panels", f"c/{product.width} t n c", c=columns)
        nest = layer.nest("MCtn" if m > columns else "CMtn", {
            "m": (m, -(-m // -(-m // ROWS_OF_WEIGHTS))), "c": of_c,
            "t": (layer.steps, layer.piece), "n": (layer.batch, self.rows),
        }, "tn")  # fmt: skip
        part = nest.gemm(
            layer.tensor(a, "t n k", k=m).at(t="t", n="n", k="m"), panels.at(t="t", n="n", c="c"),
            layer.tensor(c, "m c", m=m, c=columns).at(m="m", c="c"), n="c", k="n", outer="t",
            plan=product.plan, title="multiply pieces", when=self.when(t="t", n="n"),
        )  # fmt: skip
        return [packing, part]

    def _bias(self, gradient: str, to: str) -> Part:
        layer = self.layer

        def code(size: dict[str, int], first: bool, last: bool) -> Made:
            made = emit_column_sums(
                size["m"], size["k"], layer.dtype, layer.target, lda=self.k, accumulate=not first
            )
            return made, {}

        # rows of all steps in a piece of a sum over them
        piece = (layer.piece if self.way.masked else layer.steps) * layer.batch
        columns = -(-self.k // layer.used // 64) * 64
        nest = layer.nest("Km", {"k": (self.k, columns), "m": (layer.extents["m"], piece)}, "m")
        words = {
            "a": layer.tensor(gradient, "m k").at(m="m", k="k"),
            "c": layer.tensor(to, "k").at(k="k"),
        }
        return nest.call("bias gradient", code, words, when=self.when(m="m"))
