"""The streams of recurrent layers: the backward pass through time and the weights' gradients.

From the last step to the first, the product of the gates' gradients with the recurrent weights
makes the gradient of a block of states, and the cell's kernel turns it into the gradients of that
block's gates; one barrier ends a step. The gradients of x and of all weights are products over all
steps at once, behind the last. Not here: the forward pass (`primitives.recurrent_streams`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jitgen.elementwise import emit_column_sums, emit_map
from jitgen.kernel import panel_width
from primitives.gemm import Product, pack_part, product_parts
from primitives.loops import Loop
from primitives.recurrent_streams import (
    BACKWARD_ROWS,
    Layer,
    Span,
    Way,
    step_cell,
    step_product,
)
from primitives.run import Run
from primitives.stream import Part, Ref

#: Elements of the sum of a block of states that are added at a time
DEPTH = 1024
#: Tensors of the caller: of the forward pass, then gradients; r_n, dr_n are the rows of r and dr
#: that belong to the last gate. dh and dc hold gradients of the last states and become those of
#: the first ones.
TENSORS = (
    "x", "w", "r", "r_n", "h0", "y", "c0", "c", "p", "mask", "gates", "recurrent", "reset",
    "dy", "dh", "dc", "dgates", "dx", "dw", "dr", "dr_n", "db", "db_r",
)  # fmt: skip


@lru_cache(maxsize=256)
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
        #: units of a call
        self.width = -(-width // layer.width) * layer.width

    def new(self, tensor: str, elements: int) -> str:
        """A tensor of scratch."""
        self.scratch[tensor] = max(elements, self.scratch.get(tensor, 0))
        return tensor

    def parts(self) -> list[Part]:
        layer, way, t = self.layer, self.way, self.layer.steps
        if self.recurrent == "dgates_r":
            self.new("dgates_r", t * layer.batch * self.rows)
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
        return [*parts, self._product(oldest, 0), *self._sums(oldest)]

    def _pack(self, source: str, to: str, depth: int) -> Part:
        layer = self.layer
        product = Product(
            layer.batch, layer.hidden, depth, layer.dtype, layer.target, layer.used, self.width,
            b="rows",
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
            self.width, beta=1.0, most=BACKWARD_ROWS, depth=DEPTH,
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
        how: dict[str, Any] = {"width": self.width, "panel": panel, "most": BACKWARD_ROWS}
        if not self.two_parts:
            return [step_cell(span, way, f"{layer.kind}_backward", words, ld, before, **how)]
        part = step_cell(span, way, "gru_before_backward_output", words, ld, before, **how)
        words = {**words, "bias_row": Ref("dreset", block, e)}
        ld = {**ld, "bias_row": h}
        again = step_product(
            span, "gradient of the reset states",
            {"a": span.ref("dgates", n * self.rows, start=2 * h, n=self.rows),
             "b": Ref("n_panels", {"u": h}, e), "c": Ref("dreset", block, e)},
            h, self.rows, self.width, h, self.width, beta=0.0, most=BACKWARD_ROWS,
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
        products = [
            (cells, layer.inputs, rows, "rows", "dgates", "w", "dx"),
            (rows, layer.inputs, cells, "columns", "dgates", "x", "dw"),
            (rows, h, cells, "columns", self.recurrent, "h_before", "dr"),
        ]
        if self.two_parts:
            # the last gate saw other states
            self.new("last_gate", cells * h)
            steps = Span(layer, 0, 1, layer.steps, -1)
            gate = steps.ref("dgates", n * rows, start=2 * h, n=rows)
            parts.append(self._copy(steps, gate, rows, "last_gate"))
            products.append((h, h, cells, "columns", "last_gate", "reset", "dr_n"))
        for m, columns, k, how, a, b, c in products:
            product = Product(
                m, columns, k, layer.dtype, layer.target, layer.used,
                panel_width(m, columns, k, layer.dtype, layer.target), a=how, b="rows",
            )  # fmt: skip
            more, scratch = product_parts(product, a, b, c, "panels")
            self.new("panels", scratch)
            parts += more
        parts.append(self._bias("dgates", "db"))
        if self.recurrent != "dgates":
            parts.append(self._bias(self.recurrent, "db_r"))
        return parts

    def _copy(self, span: Span, source: Ref, lda: int, to: str) -> Part:
        """Rows of `hidden` elements, step by step."""
        layer, h = self.layer, self.layer.hidden
        words = {"a": source, "c": span.ref(to, layer.batch * h, n=h)}
        loops = {key: loop for key, loop in span.loops(1, BACKWARD_ROWS).items() if key != "u"}

        def code(size: dict[str, int], first: bool, last: bool) -> tuple[bytes, dict[str, int]]:
            leading = {"a": lda, "c": h}
            return emit_map("copy", size["n"], h, layer.dtype, layer.target, ld=leading), {}

        return Part(f"{source.tensor} to {to}", "TN", loops, code, words)

    def _bias(self, gradient: str, to: str) -> Part:
        layer, e = self.layer, self.layer.element
        cells = layer.steps * layer.batch

        def code(size: dict[str, int], first: bool, last: bool) -> tuple[bytes, dict[str, int]]:
            made = emit_column_sums(cells, size["k"], layer.dtype, layer.target, lda=self.rows)
            return made, {}

        piece = -(-self.rows // layer.used // 64) * 64
        words = {"a": Ref(gradient, {"k": 1}, e), "c": Ref(to, {"k": 1}, e)}
        return Part("bias gradient", "K", {"k": Loop(self.rows, (piece,))}, code, words)
