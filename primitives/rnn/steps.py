"""Steps of recurrent layers in streams: what a layer's streams depend on, and the two parts that a
step has in either direction of time, the recurrent product and the cells.

Gates lie in panels [hidden / width][steps][batch][gates][width], so that the gates of a unit are
columns of one product. Not here: the passes (`jitgen.primitives.rnn.streams`,
`jitgen.primitives.rnn.backward`), the cells' arithmetic (`jitgen.kernels.cells`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jitgen.gemm.kernel import brgemm
from jitgen.gemm.spec import DTYPES
from jitgen.kernels.cells import emit_cell
from jitgen.primitives.nest.limits import check_elements, check_reach, threads_that_pay
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.stream import Part, Ref
from jitgen.run.cache import lazy
from jitgen.target import ANY_WIDTH, Target

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

    @lazy
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the layer's arguments."""
        lead, rows, h = (2,)[: self.directions - 1], self.gates * self.hidden, self.hidden
        return {
            "x": (self.steps, self.batch, self.inputs), "w": (*lead, rows, self.inputs),
            "r": (*lead, rows, h), "b": (*lead, 2, rows), "p": (*lead, 3, h),
            "h0": (*lead, self.batch, h), "y": (self.steps, self.batch, self.directions * h),
        }  # fmt: skip

    @property
    def used(self) -> int:
        """Threads that pay."""
        work = 2 * self.batch * self.gates * self.hidden * self.hidden
        return threads_that_pay("recurrent", self.threads, work)

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
