"""The streams of recurrent layers: weights and the forward pass. One direction is one stream.

A thread computes all gates of some hidden units: a call of the recurrent product makes a block of
pre-activations, and the cell's kernel reads it from L1 at once; one barrier ends a step. Gates lie
in panels [hidden / width][steps][batch][gates][width], so that the gates of a unit are columns of
one product. After arXiv:1906.06440, section on LSTM. Not here: the backward pass
(`primitives.recurrent_backward`), arrays and their checks (`primitives.recurrent`), the cells'
arithmetic (`jitgen.cells`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from jitgen.cache import STREAMS, lazy
from jitgen.cells import emit_cell
from jitgen.kernel import brgemm
from jitgen.layout import emit_transpose
from jitgen.spec import DTYPES
from jitgen.target import ANY_WIDTH, Target
from primitives.gemm import Product, product_part
from primitives.limits import check_elements, check_reach
from primitives.loops import Loop
from primitives.run import Run
from primitives.stream import Part, Ref

#: Gates of a unit, by kind of cell
GATES = {"lstm": 4, "gru": 3, "gru_before": 3, "rnn": 1}
#: Vectors of units in a panel of gates: panels of three or four vectors suit the products
VECTORS = {"lstm": 1, "gru": 1, "gru_before": 2, "rnn": 4}
#: Tensors of a forward pass: biases (of the recurrent part, where that stands apart), states, the
#: peepholes' weights, and which steps are within a sequence
STATES = ("bias", "bias_r", "h0", "y", "c0", "c", "p", "mask")
#: Most rows of a block of gates, forward and backward: it stays in L1 from the product to the cell,
#: and a piece of a panel of weights in L2 for all rows
MOST_ROWS, BACKWARD_ROWS = 48, 128
#: The same where sequences have lengths: a block ends with its longest sequence
ROWS_BY_LENGTH = 12
#: There, rows of a block, of all steps of a piece of a sum over all steps
ROWS_OF_SUMS = 48
#: From so many rows on, the input product of a step is made with the step
ROWS_PER_STEP = 12
#: Fewer operations of a step than this are done before another thread has passed the barrier
OPERATIONS_PER_THREAD = 100_000


#: Steps of a layer that has a barrier in their midst, at most: each is two parts of the stream
MOST_STEPS = 1 << 14


@dataclass(frozen=True)
class Layer:
    """What the streams of a recurrent layer depend on. kind: a key of `GATES`; "gru_before" resets
    the state before its product."""

    kind: str
    batch: int
    steps: int
    inputs: int
    hidden: int
    directions: int
    peephole: bool
    dtype: str
    threads: int
    target: Target

    @property
    def gates(self) -> int:
        """Gates of a hidden unit."""
        return GATES[self.kind]

    @property
    def element(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype].element

    @lazy
    def width(self) -> int:
        """Units of a panel of gates."""
        return self.target.machine(self.dtype, ANY_WIDTH).lanes * VECTORS[self.kind]

    @property
    def units(self) -> int:
        """Hidden units, rounded up to whole panels."""
        return -(-self.hidden // self.width) * self.width

    def block(self, most: int) -> int:
        """Rows of a block: at most `most`, and as even as can be."""
        return -(-self.batch // -(-self.batch // most))

    @property
    def rows_by_length(self) -> int:
        """Rows of a block of the forward pass where sequences have lengths."""
        return self.block(ROWS_BY_LENGTH)

    @property
    def steps_by_length(self) -> int:
        """There, steps of a call of an input product of all steps."""
        return max(1, ROWS_BY_LENGTH // self.batch)

    @property
    def piece(self) -> int:
        """There, steps of a piece of a sum over all steps; a multiple of `steps_by_length`."""
        few = self.steps_by_length
        return few * max(1, ROWS_OF_SUMS // (few * self.rows_by_length))

    @property
    def used(self) -> int:
        """Threads that pay."""
        work = 2 * self.batch * self.gates * self.hidden * self.hidden
        return max(1, min(self.threads, work // OPERATIONS_PER_THREAD))

    @property
    def sizes(self) -> dict[str, int]:
        """Elements of what a direction keeps for its backward pass: gates, the recurrent part of
        the gates where it stands apart, the states of the cells, the reset states."""
        cells = self.steps * self.batch
        return {
            "gates": cells * self.units * self.gates,
            "recurrent": cells * self.units * self.gates if self.kind == "gru" else 0,
            "c": cells * self.hidden if self.kind == "lstm" else 0,
            "reset": cells * self.hidden if self.kind == "gru_before" else 0,
        }


def check_sizes(layer: Layer) -> None:
    """Raise ValueError where arrays, or what a kernel sees of them, are too large."""
    sizes = {"batch": layer.batch, "steps": layer.steps, "in_features": layer.inputs,
             "hidden": layer.hidden}  # fmt: skip
    cells, rows = (layer.steps, layer.batch), layer.gates * layer.hidden
    check_elements(
        sizes, x=(*cells, layer.inputs), w=(layer.directions, rows, layer.inputs),
        r=(layer.directions, rows, layer.hidden), y=(*cells, layer.directions * layer.hidden),
    )  # fmt: skip
    panel = layer.gates * layer.width
    check_reach(
        sizes, layer.dtype, a_block_of_rows_of_x=BACKWARD_ROWS * layer.inputs,
        a_block_of_rows_of_gates=BACKWARD_ROWS * max(rows, layer.directions * layer.hidden),
        a_panel_of_w=panel * layer.inputs, a_panel_of_r=panel * layer.hidden,
    )  # fmt: skip
    if layer.kind == "gru_before" and layer.steps > MOST_STEPS:
        raise ValueError(f"steps={layer.steps}: with reset='before', {MOST_STEPS} at most")


class Way(NamedTuple):
    """How one direction runs: against time with `reverse`; its results of a step begin at `column`
    of a row of y. state: there are initial states. masked: sequences have lengths; the calls of a
    block of rows have the flag (`Part.when`) of its first row at their step."""

    reverse: bool
    column: int
    state: bool
    masked: bool


@dataclass(frozen=True)
class Span:
    """`count` steps from step `first` on, up (`sign` 1) or down in time; the one that the cell
    depends on is `back` away."""

    layer: Layer
    first: int
    sign: int
    count: int
    back: int

    def ref(self, tensor: str, size: int, shift: int = 0, start: int = 0, **steps: int) -> Ref:
        """`tensor` of `size` elements a step, at the step, or (`shift` 1) the one it depends on,
        or (-1) the one that depends on it."""
        first = self.first + shift * self.back
        return Ref(
            tensor, {"t": self.sign * size, **steps}, self.layer.element, start=first * size + start
        )

    def flag(self, way: Way, shift: int = 0) -> Ref | None:
        """The flag of a block of rows, if there are any."""
        return self.ref("flags", self.layer.batch, shift, n=1) if way.masked else None

    def loops(self, width: int, most: int) -> dict[str, Loop]:
        """Loops over the steps, `width` units, and at most `most` rows."""
        units, rows = Loop(self.layer.hidden, (width,)), self.layer.block(most)
        return {"t": Loop(self.count, (1,)), "u": units, "n": Loop(self.layer.batch, (rows,))}


def step_product(
    span: Span, title: str, words: Mapping[str, Ref], k: int, lda: int, packed: int, ldc: int,
    width: int, *, beta: float, gates: int = 0, most: int = MOST_ROWS, depth: int = 0,
) -> Part:  # fmt: skip
    """`most` rows of tensor a (`k` elements, `lda` apart) times panels of `packed` columns, which
    are `gates` gates of `width` units, or (0) the units themselves; with word "bias" that is added;
    in pieces of `depth` elements, if that is not 0."""
    layer, loops = span.layer, span.loops(width, most)
    if depth:
        loops["k"] = Loop(k, (-(-k // -(-k // depth)),))
    epilogue: Any = (("bias",),) if "bias" in words else ()

    def code(size: dict[str, int], first: bool, last: bool) -> tuple[bytes, dict[str, int]]:
        kernel = brgemm(
            size["n"], packed if gates else size["u"], size.get("k", k), layer.dtype, lda=lda,
            ldc=ldc, packed_b=packed, beta=beta, target=layer.target, epilogue=epilogue,
        )  # fmt: skip
        return kernel.code, {"count": 1}

    return Part(title, "t|UNk" if depth else "t|UN", loops, code, words)


def step_cell(
    span: Span, way: Way, cell: str, words: Mapping[str, Ref], ld: Mapping[str, int],
    before: tuple[Part, ...], *, width: int = 0, most: int, when: Ref | None, **how: Any,
) -> Part:  # fmt: skip
    """The kernel of `cell` for `width` units (0: a panel) and `most` rows, on what the parts before
    it make."""
    layer = span.layer
    more: dict[str, Ref] = {}
    if layer.peephole:
        more["bias"] = Ref("p", {"u": 1}, layer.element)
    if way.masked:
        more["mask"] = span.ref("mask", layer.batch, n=1)

    def code(size: dict[str, int], first: bool, last: bool) -> tuple[bytes, dict[str, int]]:
        made = emit_cell(
            cell, size["n"], size["u"], layer.dtype, layer.target, width=layer.width,
            hidden=layer.hidden, ld=ld, masked=way.masked, peephole=layer.peephole, **how,
        )  # fmt: skip
        return made, {}

    loops = span.loops(width or layer.width, most)
    return Part(cell, "t|UN", loops, code, {**words, **more}, before=before, when=when)


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
        def code(size: dict[str, int], begin: bool, end: bool) -> tuple[bytes, dict[str, int]]:
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
                layer.target, layer.used, self.panel, c="panels", epilogue=(("bias",),),
            )  # fmt: skip
            if way.masked:
                # threads share the panels alone: few of the rows may be in use
                rows = layer.steps_by_length * layer.batch
                product = replace(product, blocks=(rows, self.panel), order="Nm")
            part = product_part(product, "x", "w_panels", "gates", "bias")
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
