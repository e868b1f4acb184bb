"""The streams of recurrent layers: the backward pass through time and the weights' gradients.

From the last step to the first, the product of the gates' gradients with the recurrent weights
makes the gradient of a block of states, and the cell's kernel turns it into the gradients of that
block's gates; one barrier ends a step. The gradients of x and of all weights are products over all
steps at once, behind the last. Not here: the forward pass (`jitgen.primitives.rnn.streams`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from jitgen.gemm.kernel import brgemm, panel_width
from jitgen.kernels.elementwise import emit_column_sums, emit_map
from jitgen.kernels.pack import emit_packer
from jitgen.primitives.nest.gemm import Product, pack_part, product_parts
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.run import Run
from jitgen.primitives.nest.stream import Made, Part, Ref
from jitgen.primitives.rnn.steps import (
    BACKWARD_ROWS,
    ROWS_BY_LENGTH,
    Layer,
    Span,
    Way,
    step_cell,
    step_product,
)
from jitgen.run.cache import STREAMS

#: Elements of the sum of a block of states that are added at a time
DEPTH = 1024
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
def backward(layer: Layer, way: Way) -> Run:
    """Tensors of the caller: `TENSORS`."""
    maker = _Backward(layer, way)
    parts = maker.parts()
    return Run(parts, TENSORS, layer.used, layer.target, layer.dtype, maker.scratch)


class _Backward:
    """The parts of one direction's backward pass, and the scratch they need."""

    def __init__(self, layer: Layer, way: Way) -> None:
        self.layer, self.way = layer, way
        self.two_parts = layer.kind == "gru_before"
        self.scratch: dict[str, int] = {}
        #: rows of w and of r; those of r that the first product of a step takes
        self.rows = layer.gates * layer.hidden
        self.depth = self.rows - (layer.hidden if self.two_parts else 0)
        #: gradient of the recurrent part of the gates
        self.recurrent = "dgates_r" if layer.kind == "gru" else "dgates"
        width = panel_width(layer.batch, layer.hidden, self.depth, layer.dtype, layer.target)
        #: units of a call, and its rows at most
        self.width = -(-width // layer.width) * layer.width
        self.most = ROWS_BY_LENGTH if way.masked else BACKWARD_ROWS
        #: rows of all steps in a piece of a sum over them
        self.piece = (layer.piece if way.masked else layer.steps) * layer.batch

    def new(self, tensor: str, elements: int) -> str:
        """A tensor of scratch."""
        self.scratch[tensor] = max(elements, self.scratch.get(tensor, 0))
        return tensor

    def parts(self) -> list[Part]:
        layer, way, t = self.layer, self.way, self.layer.steps
        parts = [self._pack("r", "r_panels", self.depth)]
        if self.two_parts:
            parts.append(self._pack("r_n", "n_panels", layer.hidden))
            self.new("dreset", layer.batch * layer.hidden)
        # from the newest step to the oldest
        sign, newest = (1, 0) if way.reverse else (-1, t - 1)
        counts = [1] * t if self.two_parts or t < 3 else [1, t - 2, 1]
        done = 0
        for count in counts:
            span = Span(layer, newest + sign * done, sign, count, sign)
            parts += self._steps(span, done == 0, done + count == t)
            done += count
        oldest = Span(layer, newest + sign * (t - 1), sign, 1, sign)
        last = replace(self._product(oldest, 0), when=oldest.flag(way))
        return [*parts, last, *self._sums(oldest)]

    def _pack(self, source: str, to: str, depth: int) -> Part:
        layer = self.layer
        product = Product(
            layer.batch, layer.hidden, depth, layer.dtype, layer.target, layer.used, self.width,
            b="k n",
        )  # fmt: skip
        return pack_part(product, source, self.new(to, product.packed_elements))

    def _product(self, span: Span, shift: int) -> Part:
        """The gradient of the states from that of the gates that they led to."""
        layer, h = self.layer, self.layer.hidden
        words = {
            "a": span.ref(self.recurrent, layer.batch * self.rows, shift, n=self.rows, k=1),
            "b": Ref("r_panels", {"u": self.depth, "k": self.width}, layer.element),
            "c": Ref("dh", {"n": h, "u": 1}, layer.element),
        }
        return step_product(
            span, "gradient of the states", words, self.depth, self.rows, self.width, h,
            self.width, beta=1.0, most=self.most, depth=DEPTH,
        )  # fmt: skip

    def _steps(self, span: Span, newest: bool, oldest: bool) -> list[Part]:
        layer, way, h, e = self.layer, self.way, self.layer.hidden, self.layer.element
        n, ldy, block = layer.batch, layer.directions * h, {"n": h, "u": 1}
        gates = layer.steps * n * layer.gates

        def saved(tensor: str) -> Ref:
            step = n * layer.gates * layer.width
            return span.ref(tensor, step, u=gates, n=layer.gates * layer.width)

        def gradient(tensor: str) -> Ref:
            return span.ref(tensor, n * self.rows, n=self.rows, u=1)

        words = {
            "residual": Ref("dh", block, e), "c": gradient("dgates"),
            "bias_row": span.ref("dy", n * ldy, 0, way.column, n=ldy, u=1),
        }  # fmt: skip
        ld = {"residual": h, "c": self.rows, "bias_row": ldy}
        h_before = span.ref("y", n * ldy, 1, way.column, n=ldy, u=1)
        ldh = ldy
        if oldest:
            h_before, ldh = Ref("h0", block, e), h
        if layer.kind == "rnn":
            words["a_offsets"] = span.ref("y", n * ldy, 0, way.column, n=ldy, u=1)
            ld["a_offsets"] = ldy
        else:
            words["a"] = saved("gates")
        if layer.kind == "lstm":
            c_before = Ref("c0", block, e) if oldest else span.ref("c", n * h, 1, **block)
            words |= {
                "b": c_before, "a_offsets": span.ref("c", n * h, **block),
                "b_offsets": Ref("dc", block, e),
            }  # fmt: skip
            ld |= {"b": h, "a_offsets": h, "b_offsets": h}
        elif layer.kind != "rnn":
            words["b_offsets"], ld["b_offsets"] = h_before, ldh
        if layer.kind == "gru":
            words |= {"b": saved("recurrent"), "a_offsets": gradient("dgates_r")}
            ld["a_offsets"] = self.rows
        before = () if newest else (self._product(span, -1),)
        panels = {"lstm": "a", "gru": "ab", "gru_before": "a", "rnn": ""}[layer.kind]
        panel = dict.fromkeys(panels, gates * layer.width)
        how: dict[str, Any] = {"width": self.width, "panel": panel, "most": self.most}
        # in reverse, a step's product is of what the step before it in time left: made as long as
        # that one was, so also behind a block's last step, where its cells do nothing
        how["when"] = span.flag(way, -1 if way.reverse and not newest else 0)
        if not self.two_parts:
            return [step_cell(span, way, f"{layer.kind}_backward", words, ld, before, **how)]
        part = step_cell(span, way, "gru_before_backward_output", words, ld, before, **how)
        words = {**words, "bias_row": Ref("dreset", block, e)}
        ld = {**ld, "bias_row": h}
        again = step_product(
            span, "gradient of the reset states",
            {"a": span.ref("dgates", n * self.rows, start=2 * h, n=self.rows),
             "b": Ref("n_panels", {"u": h}, e), "c": Ref("dreset", block, e)},
            h, self.rows, self.width, h, self.width, beta=0.0, most=self.most,
        )  # fmt: skip
        return [
            part, step_cell(span, way, "gru_before_backward_reset", words, ld, (again,), **how)
        ]

    def _sums(self, oldest: Span) -> list[Part]:
        """Gradients of x, w, r and the biases: sums over all steps."""
        layer, way, rows = self.layer, self.way, self.rows
        n, h = layer.batch, layer.hidden
        cells, ldy = layer.steps * n, layer.directions * h
        self.new("h_before", cells * h)
        parts = [self._copy(oldest, Ref("h0", {"n": h}, layer.element), h, "h_before")]
        if layer.steps > 1:
            later = Span(layer, oldest.first - oldest.sign, -oldest.sign, layer.steps - 1,
                         oldest.back)  # fmt: skip
            state = later.ref("y", n * ldy, 1, way.column, n=ldy)
            parts.append(self._copy(later, state, ldy, "h_before"))
        weights = [
            (rows, layer.inputs, "dgates", "x", "dw"), (rows, h, self.recurrent, "h_before", "dr")
        ]
        if self.two_parts:
            # the last gate saw other states
            self.new("last_gate", cells * h)
            steps = Span(layer, 0, 1, layer.steps, -1)
            gate = steps.ref("dgates", n * rows, start=2 * h, n=rows)
            parts.append(self._copy(steps, gate, rows, "last_gate"))
            weights.append((h, h, "last_gate", "reset", "dr_n"))
        parts += self._gradient_of_x()
        for m, columns, a, b, c in weights:
            parts += self._gradient_of_weights(m, columns, a, b, c)
        parts.append(self._bias("dgates", "db"))
        if self.recurrent != "dgates":
            parts.append(self._bias(self.recurrent, "db_r"))
        return parts

    def _made(self, product: Product, a: str, b: str, c: str) -> list[Part]:
        """A product and the packing before it."""
        parts, scratch = product_parts(product, a, b, c, "panels")
        self.new("panels", scratch)
        return parts

    def _gradient_of_x(self) -> list[Part]:
        layer, k, columns, e = self.layer, self.rows, self.layer.inputs, self.layer.element
        cells, batch = layer.steps * layer.batch, layer.batch
        width = panel_width(cells, columns, k, layer.dtype, layer.target)
        product = Product(
            cells, columns, k, layer.dtype, layer.target, layer.used, width, b="k n"
        )  # fmt: skip
        if not self.way.masked:
            return self._made(product, "dgates", "w", "dx")

        def code(size: dict[str, int], first: bool, last: bool) -> Made:
            kernel = brgemm(
                size["t"] * size["r"], size["n"], k, layer.dtype, lda=k, ldc=columns,
                packed_b=width, target=layer.target, plan=product.plan,
            )  # fmt: skip
            return kernel, {"count": 1}

        words = {
            "a": Ref("dgates", {"t": batch * k, "r": k}, e), "b": Ref("panels", {"n": k}, e),
            "c": Ref("dx", {"t": batch * columns, "r": columns, "n": 1}, e),
        }  # fmt: skip
        # threads take turns: few of the steps may be in use
        piece, rows = layer.piece, layer.block(self.most)
        steps = (layer.used * piece, piece, 1 if rows < batch else piece)
        loops = {
            "t": Loop(layer.steps, steps), "r": Loop(batch, (rows,)), "n": Loop(columns, (width,))
        }  # fmt: skip
        packing = pack_part(product, "w", self.new("panels", product.packed_elements))
        when = Ref("flags", {"t": batch, "r": 1})
        return [packing, Part("multiply blocks", "tTNtr", loops, code, words, when=when)]

    def _gradient_of_weights(self, m: int, columns: int, a: str, b: str, c: str) -> list[Part]:
        """The product of a transposed (rows of all steps x m) and b."""
        layer, e = self.layer, self.layer.element
        cells, batch = layer.steps * layer.batch, layer.batch
        width = panel_width(m, columns, cells, layer.dtype, layer.target)
        product = Product(
            m, columns, cells, layer.dtype, layer.target, layer.used, width, a="k m", b="k n"
        )  # fmt: skip
        if not self.way.masked:
            return self._made(product, a, b, c)

        def pack(size: dict[str, int], first: bool, last: bool) -> Made:
            rows = size["t"] * batch
            shape = (rows, size["n"], columns, 0, width, layer.dtype, False, layer.target)
            return emit_packer(*shape), {"count": 1}

        def code(size: dict[str, int], first: bool, last: bool) -> Made:
            # a block of rows of each step, or all rows of all of them
            k, count = (size["r"], size["t"]) if size["r"] < batch else (size["t"] * batch, 1)
            kernel = brgemm(
                size["m"], size["n"], k, layer.dtype, lda=m, ldc=columns, trans_a=True,
                stride_a=batch * m, stride_b=batch * width, packed_b=width,
                beta=0.0 if first else 1.0, target=layer.target, plan=product.plan,
            )  # fmt: skip
            return kernel, {"count": count}

        self.new("panels", product.packed_elements)
        n, steps = Loop(columns, (width,)), layer.piece
        loops = {"t": Loop(layer.steps, (layer.used * steps, steps)), "n": n}
        panels = Ref("panels", {"n": cells, "t": batch * width, "r": width}, e)
        words = {
            "a": Ref(b, {"n": 1, "t": batch * columns}, e),
            "c": replace(panels, steps={"n": cells, "t": batch * width}),
        }
        when = Ref("flags", {"t": batch})
        packing = Part("pack pieces of panels", "tTN", loops, pack, words, when=when)
        words = {
            "a": Ref(a, {"m": 1, "t": batch * m, "r": m}, e), "b": panels,
            "c": Ref(c, {"m": columns, "n": 1}, e),
        }  # fmt: skip
        rows = -(-m // -(-m // ROWS_OF_WEIGHTS))
        loops = {
            "m": Loop(m, (rows,)), "n": n, "t": Loop(layer.steps, (steps,)),
            "r": Loop(batch, (layer.block(self.most),)),
        }  # fmt: skip
        order, when = "MNtr" if m > columns else "NMtr", Ref("flags", {"t": batch, "r": 1})
        return [packing, Part("multiply pieces", order, loops, code, words, "tr", when=when)]

    def _copy(self, span: Span, source: Ref, lda: int, to: str) -> Part:
        """Rows of `hidden` elements, step by step."""
        layer, h = self.layer, self.layer.hidden
        words = {"a": source, "c": span.ref(to, layer.batch * h, n=h)}
        loops = {key: loop for key, loop in span.loops(1, BACKWARD_ROWS).items() if key != "u"}

        def code(size: dict[str, int], first: bool, last: bool) -> Made:
            leading = {"a": lda, "c": h}
            return emit_map("copy", size["n"], h, layer.dtype, layer.target, ld=leading), {}

        # made with the piece of sums that the step is in
        step = span.first + span.sign * np.arange(span.count)
        piece = step // layer.piece * layer.piece * layer.batch
        when = Ref("flags", {}, table={"t": piece}) if self.way.masked else None
        return Part(f"{source.tensor} to {to}", "TN", loops, code, words, when=when)

    def _bias(self, gradient: str, to: str) -> Part:
        layer, e = self.layer, self.layer.element
        cells = layer.steps * layer.batch

        def code(size: dict[str, int], first: bool, last: bool) -> Made:
            made = emit_column_sums(
                size["m"], size["k"], layer.dtype, layer.target, lda=self.rows,
                accumulate=not first,
            )  # fmt: skip
            return made, {}

        columns = -(-self.rows // layer.used // 64) * 64
        loops = {"k": Loop(self.rows, (columns,)), "m": Loop(cells, (self.piece,))}
        words = {"a": Ref(gradient, {"k": 1, "m": self.rows}, e), "c": Ref(to, {"k": 1}, e)}
        when = Ref("flags", {"m": 1}) if self.way.masked else None
        return Part("bias gradient", "Km", loops, code, words, "m", when=when)
