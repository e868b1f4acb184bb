"""What the streams of a recurrent layer share: the layer and its tensors, and what a step has in
either direction of time, products and a cell.

Gates lie in panels [hidden / width][steps][batch][gates][width], so that the gates of a unit are
columns of one product. Not here: the passes (`jitgen.primitives.rnn.streams`,
`jitgen.primitives.rnn.backward`), the cells' arithmetic (`jitgen.kernels.cells`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jitgen.kernels.cell_bodies import CELLS
from jitgen.kernels.cells import emit_cell
from jitgen.primitives.nest.limits import check_elements, check_reach, threads_that_pay
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.nest import Nest
from jitgen.primitives.nest.stream import Made, Part
from jitgen.primitives.nest.tensor import Access, Index, Tensor
from jitgen.run.cache import lazy
from jitgen.target import ANY_WIDTH, Target
from jitgen.types import DTYPES

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
#: Layouts of tensors. Axes: t steps, n sequences, m those of all steps, d directions; c inputs and
#: h states; g gates and u units, in panels of the layer's width "w"; k gates by states, the rows of
#: the weights
LAYOUTS = {
    name: layout
    for layout, names in {
        "t n c": "x dx x_rows", "t n d h": "y dy", "t n h": "c reset h_before last_gate",
        "t n g h": "dgates dgates_r", "n h": "h0 c0 dh dc dreset", "h": "p", "t n": "mask flags",
        "u/w t n g u": "gates recurrent", "u/w g u": "bias bias_r", "u/w c g u": "w_panels",
        "u/w h g u": "r_panels n_panels",
    }.items()
    for name in names.split()
}  # fmt: skip
#: Operands of cells (by the names in `CELLS`), in the order of the words of a call
OPERANDS = (
    "dh", "dgates", "dy", "dreset", "gates", "h", "reset", "h_before", "recurrent", "c_before", "c",
    "dc", "dgates_r", "p", "mask",
)  # fmt: skip
#: Operand -> tensor at the first step of time, and at others
STATES_BEFORE = {"h_before": ("h0", "y"), "c_before": ("c0", "c")}
#: Elements from one index of the outer axes of tensors to the next, by tensor, where there are gaps
Strides = tuple[tuple[str, tuple[int, ...]], ...]
#: Tensors of a forward pass: biases (of the recurrent part, where that stands apart), states, the
#: peepholes' weights, and which steps are within a sequence
STATES = ("bias", "bias_r", "h0", "y", "c0", "c", "p", "mask")
#: Elements of the sum of a block of states that are added at a time, backward
DEPTH = 1024
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
        return DTYPES[self.dtype].size

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

    @lazy
    def extents(self) -> dict[str, int]:
        """Of each axis of `LAYOUTS`."""
        return {
            "t": self.steps, "n": self.batch, "m": self.steps * self.batch, "d": self.directions,
            "c": self.inputs, "h": self.hidden, "g": self.gates, "u": self.hidden,
            "k": self.gates * self.hidden,
        }  # fmt: skip

    def tensor(
        self, name: str, layout: str = "", own: bool = False, strides: Strides = (), **sizes: int
    ) -> Tensor:  # fmt: skip
        """A tensor, in its layout of `LAYOUTS` or another; with other sizes of its axes."""
        layout = (layout or LAYOUTS[name]).replace("/w", f"/{self.width}")
        axes = [token.partition("/")[0] for token in layout.split()]
        apart = dict(zip(axes, dict(strides).get(name, ()), strict=False))
        extents = {axis: sizes.get(axis, self.extents[axis]) for axis in axes}
        return Tensor(name, layout, self.dtype, own=own, strides=apart, **extents)

    def nest(self, order: str, loops: Mapping[str, tuple[int, ...]], sums: str = "") -> Nest:
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
        gates = {"w_panels": self.gates, "r_panels": self.gates - later, "n_panels": int(later)}
        return {name: self.tensor(name, g=count) for name, count in gates.items()}


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


class Pass:
    """What the passes of one direction share. They go up (`sign` 1) or down in time, in blocks of
    at most `most` rows, and of `width` units. save: cells leave activations behind."""

    save = False

    def __init__(
        self, layer: Layer, way: Way, sign: int, most: int, width: int, strides: Strides
    ) -> None:  # fmt: skip
        self.layer, self.way, self.sign, self.strides = layer, way, sign, strides
        self.two_parts = layer.kind == "gru_before"
        self.width, self.rows = width, layer.block(most)
        self.loops = {"u": Loop(layer.hidden, (width,)), "n": Loop(layer.batch, (self.rows,))}
        #: those that are not as `Layer.tensor` has them, and those that were asked for
        self.tensors = dict(layer.panels)

    def tensor(self, name: str) -> Tensor:
        """A tensor of the pass."""
        if name not in self.tensors:
            self.tensors[name] = self.layer.tensor(name, strides=self.strides)
        return self.tensors[name]

    def turns(self, counts: list[int]) -> Iterator[Steps]:
        """All steps, so many at a time."""
        done = 0 if self.sign > 0 else self.layer.steps - 1
        for count in counts:
            yield Steps(self, done, self.sign, count)
            done += self.sign * count

    def joined(self, name: str) -> bool:
        """Whether rows of all steps of a tensor are as far apart as those of one."""
        tensor, layer = self.tensor(name), self.layer
        return layer.steps == 1 or tensor.stride("t") == layer.batch * tensor.stride("n")

    def when(self, **index: Index) -> Access | None:
        """The flag (`Part.when`) of a block of rows t, n, or of rows m of all steps, if there are
        any."""
        if not self.way.masked:
            return None
        flags = self.layer.tensor("flags", "m") if "m" in index else self.tensor("flags")
        return flags.at(**index)


@dataclass(frozen=True)
class Steps:
    """`count` steps of a pass from step `first` on, up (`sign` 1) or down in time."""

    made: Pass
    first: int
    sign: int = 1
    count: int = 1

    @property
    def oldest(self) -> bool:
        """There is no step before, in the direction's time."""
        return self.first == (self.made.layer.steps - 1 if self.made.way.reverse else 0)

    @property
    def newest(self) -> bool:
        """There is no step behind."""
        return self.first == (0 if self.made.way.reverse else self.made.layer.steps - 1)

    def at(self, name: str, shift: int = 0, whole: bool = False, **index: int) -> Access:
        """A block of a tensor, of the rows and units in hand, or of `whole` rows: at the step, or
        `shift` from it."""
        tensor = self.made.tensor(name)
        if tensor.own:
            return tensor.at(**index)
        where: dict[str, Index] = {
            "t": [self.first + shift, ("t", self.sign)], "n": "n", "d": self.made.way.d, "u": "u",
            "k": "k", **index,
        }  # fmt: skip
        if not whole:
            where["h"] = "u"
        return tensor.at(**{axis: where[axis] for axis in tensor.sizes if axis in where})

    def operand(self, name: str, whole: bool = False) -> Access:
        """The same of an operand of a cell."""
        if name in STATES_BEFORE:
            return self.at(STATES_BEFORE[name][not self.oldest], self.made.way.before, whole)
        return self.at("y" if name == "h" else name, 0, whole)

    def when(self, shift: int = 0) -> Access | None:
        """The flag of a block of rows, if there are any."""
        return self.made.when(t=[self.first + shift, ("t", self.sign)], n="n")

    def nest(self, order: str = "t|UN", **more: Loop) -> Nest:
        """Loops over the steps, units and rows, and more."""
        layer, loops = self.made.layer, {"t": Loop(self.count, (1,)), **self.made.loops, **more}
        return Nest(order, loops, layer.dtype, layer.target)

    def product(
        self, title: str, a: Access, b: str, c: Access, *, bias: str = "", beta: float = 1.0,
        **how: Any,
    ) -> Part:  # fmt: skip
        """c = a times panels b, plus a bias or c before."""
        panels = self.made.tensor(b)
        _, k, *_ = panels.layout.split()
        pieces = {}
        if k == "k":
            size = panels.sizes[k]
            pieces[k] = Loop(size, (-(-size // -(-size // DEPTH)),))
        if bias:
            how |= {"epilogue": (("bias",),), "words": {"bias": self.at(bias)}}
        return self.nest("t|UN" + "".join(pieces), **pieces).gemm(
            a, panels.at(u="u", **{loop: loop for loop in pieces}), c, m="n", n="u", k=k,
            beta=0.0 if bias else beta, title=title, **how,
        )  # fmt: skip

    def cell(self, name: str, before: list[Part], when: Access | None) -> Part:
        """The kernel of a cell, on what the parts before it make."""
        made, layer, cell = self.made, self.made.layer, CELLS[name]
        masked = made.way.masked and name != "gru_before_reset"
        named = cell.words(masked, layer.peephole)
        words = {named[x]: self.operand(x) for x in OPERANDS if x in named}
        plain = {word: at.tensor.stride("n") for word, at in words.items()
                 if word in cell.operands and not cell.operands[word].panels}  # fmt: skip
        panels = {word: words[word].tensor.strides["u"] for word, o in cell.operands.items()
                  if o.panels and made.width > layer.width}  # fmt: skip

        def code(size: dict[str, int], first: bool, last: bool) -> Made:
            return emit_cell(
                name, size["n"], size["u"], layer.dtype, layer.target, width=layer.width,
                panel=panels, hidden=layer.hidden, ld=plain, masked=masked,
                peephole=layer.peephole, save=made.save and cell.saves,
            ), {}  # fmt: skip

        return self.nest().call(name, code, words, before=tuple(before), when=when)
