"""The cells of recurrent layers, forward and backward: what a step does between its products.

Each is a kernel over rows x units that reads the gates' pre-activations (or, backward, what the
forward cell saved) and writes the states (or gradients). They are called as BRGEMM kernels are,
with one pointer to the words of `jitgen.emit.frame.ARGUMENTS` (docs/abi.md); `count` is not read.
Not here: the arithmetic (`jitgen.kernels.cell_bodies`), the products with the weights, the loop
over steps.

>>> from jitgen.target import AVX2
>>> emit_cell("lstm", 32, 64, "f32", AVX2, width=8).signature[1]
Operand(word='b', meaning='c_before', type='f32')
"""

from __future__ import annotations

from collections.abc import Mapping

from jitgen.emit.copying import repeated
from jitgen.emit.routine import Operand, Routine, Writer, Written, emitter
from jitgen.emit.shapes import MATRIX_BYTES, check_shape
from jitgen.isa.machine import At
from jitgen.kernels.cell_bodies import CELLS, Cell, Options, Vector, emit_in_turn
from jitgen.run.cache import CODE
from jitgen.target import Target
from jitgen.types import DTYPES


def emit_cell(
    cell: str, rows: int, units: int, dtype: str, target: Target, *, width: int,
    panel: Mapping[str, int] | None = None, hidden: int | None = None,
    ld: Mapping[str, int] | None = None, masked: bool = False, peephole: bool = False,
    save: bool = False,
) -> Routine:  # fmt: skip
    """The routine of a cell for rows x units. Words are addresses; all sizes are in elements.

    Operands in gate panels (below: "panels") hold (row, gate, u) of panel q = unit // width at
    q panel[word] + (row gates + gate) width + unit % width; `width` is a multiple of the vector
    (of min(units, width) elements), panel[word] is rows gates width by default. Other operands
    hold (row, unit) at row ld[word] + unit, those with gates (row, gate, unit) at
    row ld[word] + gate hidden + unit (ld: gates hidden or units by default; hidden: units).

    | cell | words |
    | --- | --- |
    | lstm | a: panels i, f, g, o; b, c: c before, after; bias_row, residual: h before (read only
      if masked), after |
    | gru | a: panels r, z, n of x; b: panels r, z, n of h, with biases; bias_row, residual: h |
    | gru_before_reset | a: panels r, z, n: r and z become activations; bias_row: h; residual: r h |
    | gru_before_output | a: panels with z activated and n; bias_row, residual: h before, after |
    | rnn | a: panels of one gate; bias_row, residual: h before (only if masked), after |

    Panels hold complete pre-activations. `save` (lstm, gru, gru_before_output) writes the
    activations back to a. States after may be at the address of those before. `peephole` (lstm and
    lstm_backward): word bias points to the weights of i, f, o, `hidden` apart.

    | cell | words |
    | --- | --- |
    | every ..._backward | a: panels as saved; residual: dh from the step after, updated to what
      passes to the step before without the recurrent product; bias_row: dy, added to dh;
      c: gradients of the pre-activations, by gate |
    | lstm_backward | b: c before; a_offsets: c after; b_offsets: dc, updated |
    | gru_backward | b: panels as for gru; b_offsets: h before; a_offsets: gradients of the panels
      of h, by gate (c: of those of x) |
    | gru_before_backward_output | b_offsets: h before; gate 0 of c is not written |
    | gru_before_backward_reset | b_offsets: h before; bias_row: the gradient of r h; residual
      += bias_row r; only gate 0 of c is written |
    | rnn_backward | a_offsets: h after (no a) |

    `masked`: word mask points to a number for each row. Where it is not above 0 states, dh and dc
    keep their values, gradients of pre-activations (and r h) are 0, whatever a, b and dy hold, and
    saved activations are undefined. Units beyond `units` are neither used nor written. Kernels of
    two vectors of units or more are the fastest: one alone waits for its own results.

    Raises ValueError that names argument, value and rule.
    """
    if cell not in CELLS:
        raise ValueError(f"cell={cell!r} is not one of {', '.join(CELLS)}")
    known = CELLS[cell]
    if save and not known.saves:
        raise ValueError(f"save=True: {cell} has nothing to save by choice")
    if peephole and not known.peephole:
        raise ValueError(f"peephole=True: {cell} has no peepholes")
    operands = {w: o for w, o in known.operands.items() if masked or w != known.only_masked}
    hidden = units if hidden is None else hidden
    check_shape(rows, units, dtype, hidden)
    lanes = target.machine(dtype, max(1, min(units, width))).lanes
    if width < 1 or width % lanes:
        raise ValueError(f"width={width} is not a multiple of the vector's {lanes} elements")
    pitches: dict[str, int] = {}
    for word, operand in operands.items():
        own, name = (panel, "panel") if operand.panels else (ld, "ld")
        if operand.panels:
            least = default = rows * operand.gates * width
        else:
            least = (operand.gates - 1) * hidden + units
            default = operand.gates * hidden if operand.gates > 1 else units
        pitch = (own or {}).get(word, default)
        if pitch < least:
            raise ValueError(f"{name}[{word!r}]={pitch} is smaller than the {least} it holds")
        times = -(-units // width) if operand.panels else rows
        if times * pitch * DTYPES[dtype].size >= MATRIX_BYTES:
            raise ValueError(f"{name}[{word!r}]={pitch} elements ({dtype}), {times} times: 2 GiB")
        pitches[word] = pitch
    for name, given, panels in (("panel", panel, True), ("ld", ld, False)):
        for word in given or {}:
            if word not in operands or operands[word].panels != panels:
                words = ", ".join(w for w, o in operands.items() if o.panels == panels)
                raise ValueError(f"{name} has {word!r}; {cell} has the words {words}")
    shape = (rows, units, dtype, target, width, hidden)
    return _emit_cell(cell, shape, tuple(pitches.items()), Options(masked, peephole, save))


@CODE.of
@emitter
def _emit_cell(
    cell: str, shape: tuple[int, int, str, Target, int, int],
    pitches: tuple[tuple[str, int], ...], options: Options,
) -> Written:  # fmt: skip
    return _Kernel(CELLS[cell], cell, shape, dict(pitches), options).write()


class _Kernel(Writer):
    """Writes one kernel of `emit_cell`: a loop over rows, in it one over vectors.

    Rows are outside, so that plain operands are read and written along their rows: down a column,
    a power of two between rows would put all of them in the same few sets of the cache. Vectors go
    in pairs, whose operations are emitted in turn, where there are registers for two.
    """

    def __init__(
        self, cell: Cell, name: str, shape: tuple[int, int, str, Target, int, int],
        pitches: dict[str, int], options: Options,
    ) -> None:  # fmt: skip
        self.rows, self.units, dtype, target, width, hidden = shape
        meanings = {w: cell.operands[w].name for w in pitches}
        if options.peephole:
            meanings["bias"] = "peepholes of i, f, o"
        if options.masked:
            meanings["mask"] = "whether a row is valid"
        operands = {word: Operand(word, meaning, dtype) for word, meaning in meanings.items()}
        machine = target.machine(dtype, min(self.units, width))
        name = f"{name} {dtype} {self.rows}x{self.units}"
        super().__init__(name, target, machine, operands, self.units)
        self.cell, self.options = cell, options
        element, lanes = machine.element, machine.lanes
        #: vectors of a panel
        self.each = width // lanes
        #: by word, in bytes: from a gate to the next, from a row to the next, and from the end of
        #: a panel to the next one
        self.gate: dict[str, int] = {}
        self.row: dict[str, int] = {}
        self.over: dict[str, int] = {}
        for word, pitch in pitches.items():
            operand = cell.operands[word]
            self.gate[word] = (width if operand.panels else hidden) * element
            self.row[word] = (operand.gates * width if operand.panels else pitch) * element
            if operand.panels and self.units > width:
                self.over[word] = (pitch - width) * element
        if options.peephole:
            self.gate["bias"], self.row["bias"] = hidden * element, 0
        self.take("row", "vector", "panel", "constants")
        self.registers = list(range(self.free))
        self.valid = self.registers.pop() if options.masked else -1
        probe = Vector(machine, range(64), self._places(0), self.valid, lanes, options)
        cell.body(probe)
        #: registers that a vector takes, and vectors that are emitted together; they may stand in
        #: two panels only if every vector is a panel
        self.needed = probe.most
        pairs = 2 * self.needed <= len(self.registers) and (self.each == 1 or self.each % 2 == 0)
        self.together = 2 if pairs else 1

    def _step(self, word: str) -> int:
        """Bytes from a vector to the next one, in a panel or in panels of one vector."""
        return self.vector + (self.over.get(word, 0) if self.each == 1 else 0)

    def _places(self, vector: int) -> dict[str, tuple[At, int]]:
        """Where the operands of a vector are, counted from where the pointers are."""
        return {
            word: ((self.frame[word], vector * self._step(word)), gate)
            for word, gate in self.gate.items()
        }

    def write(self) -> Written:
        """The function."""
        machine, frame = self.machine, self.frame
        passes, rest = divmod(self.vectors, self.together)
        last = [machine.lanes] * rest + ([self.tail] if self.tail else [])
        self.begin()
        with repeated(machine, frame["row"], self.rows):
            if self.options.masked:  # valid = -mask
                machine.zero(self.valid)
                machine.broadcast(self.registers[0], (frame["mask"], 0))
                machine.sub(self.valid, self.valid, self.registers[0])
                machine.advance(frame["mask"], machine.element)
            moved = self._passes(passes) if passes else {}
            if last:
                machine.program.section(f"the last vectors: {last} elements")
                self._together(last)
            for word, size in self.row.items():
                machine.advance(frame[word], size - moved.get(word, 0))
        return self.end()

    def _passes(self, passes: int) -> dict[str, int]:
        """Loop over whole vectors; returns by how many bytes the pointer of each word has moved."""
        machine, frame = self.machine, self.frame
        machine.program.section(f"{passes} times {self.together} vectors")
        counted = self.each // self.together if self.over and self.each > 1 else 0
        if counted:
            machine.set(frame["panel"], counted)
        moved = {}
        with repeated(machine, frame["vector"], passes):
            self._together([machine.lanes] * self.together)
            for word in self.row:
                machine.advance(frame[word], self.together * self._step(word))
                moved[word] = passes * self.together * self._step(word)
            if counted:
                same = machine.program.new_label()
                machine.count_down(frame["panel"], same)
                for word, size in self.over.items():
                    machine.advance(frame[word], size)
                    moved[word] += passes // counted * size
                machine.set(frame["panel"], counted)
                machine.place(same)
        return moved

    def _together(self, widths: list[int]) -> None:
        """The cell's work on vectors of so many elements that follow one another."""
        vectors = []
        for i, lanes in enumerate(widths):
            registers = self.registers[i * self.needed : (i + 1) * self.needed]
            places = self._places(i)
            vectors.append(
                Vector(self.machine, registers, places, self.valid, lanes, self.options)
            )
            self.cell.body(vectors[-1])
        emit_in_turn(self.machine, [v.machine for v in vectors])
