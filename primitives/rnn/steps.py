"""What the streams of a recurrent layer share: the layer, its tensors, and what a step has in either
direction of time, products and a cell.

Gates lie in panels [hidden / width][steps][batch][gates][width], so that the gates of a unit are
columns of one product. Not here: the passes (`jitgen.primitives.rnn.streams`,
`jitgen.primitives.rnn.backward`), the cells' arithmetic (`jitgen.kernels.cells`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jitgen.gemm.spec import DTYPES
from jitgen.kernels.cell_bodies import CELLS
from jitgen.kernels.cells import emit_cell
from jitgen.primitives.nest.limits import check_elements, check_reach
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.nest import Nest
from jitgen.primitives.nest.stream import Part
from jitgen.primitives.nest.tensor import Access, Index, Tensor
from jitgen.run.cache import lazy
from jitgen.target import ANY_WIDTH, Target

#: Gates of a unit, by kind of cell
GATES = {"lstm": 4, "gru": 3, "gru_before": 3, "rnn": 1}
#: Vectors of units in a panel of gates: panels of three or four vectors suit the products
VECTORS = {"lstm": 1, "gru": 1, "gru_before": 2, "rnn": 4}
#: By kind of cell, what a direction keeps for its backward pass: gates, the recurrent part of the
#: gates where it stands apart, the states of the cells, the reset states
KEPT = {
    "lstm": ("gates", "c"), "gru": ("gates", "recurrent"), "gru_before": ("gates", "reset"),
    "rnn": ("gates",),
}  # fmt: skip
#: Layouts of tensors: axes are t steps, n sequences, m all of them of all steps, d directions,
#: c inputs and h states, g gates and u units, in panels of the layer's width "w"; k rows of the
#: weights, gates by units, or what else a product sums over
LAYOUTS = {
    name: layout
    for layout, names in {
        "t n c": "x dx x_rows", "t n d h": "y dy", "n h": "h0 c0 dh dc dreset", "h": "p", "t n": "mask flags",
        "t n h": "c reset h_before", "u/w t n g u": "gates recurrent", "t n k": "dgates dgates_r",
        "u/w k g u": "w_panels r_panels n_panels", "u/w g u": "bias bias_r",
    }.items()
    for name in names.split()
}  # fmt: skip
#: Elements from one index of the outer axes of tensors to the next, by tensor, where there are gaps
Strides = tuple[tuple[str, tuple[int, ...]], ...]
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

    @property
    def cells(self) -> int:
        """Rows of all steps."""
        return self.steps * self.batch

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

    def tensor(
        self, name: str, layout: str = "", own: bool = False, strides: Strides = (), **sizes: int
    ) -> Tensor:  # fmt: skip
        """A tensor, in its layout of `LAYOUTS` or another; with other sizes of its axes."""
        layout = (layout or LAYOUTS[name]).replace("/w", f"/{self.width}")
        axes = [token.partition("/")[0] for token in layout.split()]
        whole = {
            "t": self.steps, "n": self.batch, "m": self.cells, "d": self.directions,
            "c": self.inputs, "h": self.hidden, "g": self.gates, "u": self.hidden,
            "k": self.gates * self.hidden, **sizes,
        }  # fmt: skip
        apart = dict(zip(axes, dict(strides).get(name, ()), strict=False))
        extents = {axis: whole[axis] for axis in axes}
        return Tensor(name, layout, self.dtype, own=own, strides=apart, **extents)

    def nest(self, order: str, sums: str = "", **loops: tuple[int, ...]) -> Nest:
        """Loops: extents, and blocks from the outermost in."""
        made = {name: Loop(extent, tuple(blocks)) for name, (extent, *blocks) in loops.items()}
        return Nest(order, made, self.dtype, self.target, sums)

    @lazy
    def sizes(self) -> dict[str, int]:
        """Elements of what a direction keeps for its backward pass."""
        return {name: self.tensor(name).elements for name in KEPT[self.kind]}

    @lazy
    def panels(self) -> dict[str, Tensor]:
        """Weights as the forward pass reads them, which depends on neither batch nor steps: the
        input's, the recurrent ones, and those of the gate that waits for the reset, if one does."""
        later = self.kind == "gru_before"
        sizes = {
            "w_panels": (self.inputs, self.gates), "r_panels": (self.hidden, self.gates - later),
            "n_panels": (self.hidden, int(later)),
        }  # fmt: skip
        return {name: self.tensor(name, k=k, g=g) for name, (k, g) in sizes.items()}


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
    """How one direction runs: against time with `reverse`; it is the layer's `d`-th. state: there
    are initial states. masked: sequences have lengths; the calls of a block of rows have the flag
    (`Part.when`) of its first row at their step."""

    reverse: bool
    d: int
    state: bool
    masked: bool

    @property
    def before(self) -> int:
        """From a step to the one that it depends on."""
        return 1 if self.reverse else -1


class Steps(NamedTuple):
    """`count` steps from step `first` on, up (`sign` 1) or down in time."""

    first: int
    sign: int = 1
    count: int = 1

    def at(self, shift: int = 0) -> Index:
        """The step in hand, or one so many behind it."""
        return [self.first + shift, ("t", self.sign)]


class Pass:
    """What the passes of one direction share. `most`, `width`: rows of a block at most, and units;
    `save`: cells leave activations behind."""

    save = False

    def __init__(self, layer: Layer, way: Way, most: int, width: int, strides: Strides) -> None:
        self.layer, self.way, self.width, self.strides = layer, way, width, strides
        self.two_parts = layer.kind == "gru_before"
        self.rows = layer.block(most)
        #: those that are not as `Layer.tensor` has them, and those that were asked for
        self.tensors = dict(layer.panels)

    def tensor(self, name: str) -> Tensor:
        """A tensor of the pass."""
        if name not in self.tensors:
            self.tensors[name] = self.layer.tensor(name, strides=self.strides)
        return self.tensors[name]

    def at(
        self, name: str, steps: Steps, shift: int = 0, along: Index = "u", **index: int
    ) -> Access:  # fmt: skip
        """A block of a tensor, of the rows and units in hand: at the step, or `shift` from it. Rows
        go `along` the units, or along what a product sums over ("k")."""
        tensor = self.tensor(name)
        if tensor.own:
            return tensor.at(**index)
        where: dict[str, Index] = {
            "t": steps.at(shift), "n": "n", "d": self.way.d, "u": "u", "c": along, "h": along,
            "k": along, **index,
        }  # fmt: skip
        return tensor.at(**{axis: where[axis] for axis in tensor.sizes if axis in where})

    def when(self, t: Index, n: Index = "n") -> Access | None:
        """The flag of a block of rows, if there are any."""
        return self.tensor("flags").at(t=t, n=n) if self.way.masked else None

    def when_cell(self) -> Access | None:
        """The same, of rows of all steps (loop m)."""
        return self.layer.tensor("flags", "m").at(m="m") if self.way.masked else None

    def joined(self, name: str) -> bool:
        """Whether rows of all steps of a tensor are as far apart as those of one."""
        tensor, layer = self.tensor(name), self.layer
        return layer.steps == 1 or tensor.stride("t") == layer.batch * tensor.stride("n")

    def nest(self, steps: Steps, order: str = "t|UN", **more: tuple[int, ...]) -> Nest:
        """Loops over the steps, units and rows, and more."""
        layer = self.layer
        return layer.nest(
            order, t=(steps.count, 1), u=(layer.hidden, self.width), n=(layer.batch, self.rows),
            **more,
        )  # fmt: skip

    def product(
        self, title: str, steps: Steps, a: Access, b: str, c: Access, *, bias: str = "",
        beta: float = 1.0, depth: int = 0, **how: Any,
    ) -> Part:  # fmt: skip
        """c = a times panels b, plus a bias or c before; sums are in pieces of `depth` at most (0:
        whole)."""
        panels = self.tensor(b)
        k = panels.sizes["k"]
        piece = -(-k // -(-k // (depth or k)))
        if bias:
            how |= {"epilogue": (("bias",),), "words": {"bias": self.at(bias, steps)}}
        return self.nest(steps, "t|UNk", k=(k, piece)).gemm(
            a, panels.at(u="u", k="k"), c, m="n", n="u", beta=0.0 if bias else beta, title=title,
            **how,
        )  # fmt: skip

    def cell(
        self, name: str, steps: Steps, operands: Mapping[str, Access], before: list[Part],
        when: Access | None,
    ) -> Part:  # fmt: skip
        """The kernel of a cell, which takes what it has of the operands (by the names in `CELLS`),
        on what the parts before it make."""
        layer, cell = self.layer, CELLS[name]
        masked = self.way.masked and name != "gru_before_reset"
        more = {"p": self.at("p", steps), "mask": self.at("mask", steps)}
        named = cell.words(masked, layer.peephole)
        words = {named[x]: at for x, at in {**operands, **more}.items() if x in named}
        plain = {w: words[w].tensor.stride("n") for w, o in cell.operands.items()
                 if w in words and not o.panels}  # fmt: skip
        panels = {w: words[w].tensor.strides["u"] for w, o in cell.operands.items()
                  if o.panels and self.width > layer.width}  # fmt: skip

        def code(size: dict[str, int], first: bool, last: bool) -> tuple[bytes, dict[str, int]]:
            made = emit_cell(
                name, size["n"], size["u"], layer.dtype, layer.target, width=layer.width,
                panel=panels, hidden=layer.hidden, ld=plain, masked=masked,
                peephole=layer.peephole, save=self.save and cell.saves,
            )  # fmt: skip
            return made, {}

        return self.nest(steps).call(name, code, words, before=tuple(before), when=when)
