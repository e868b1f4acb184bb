"""The cells of recurrent layers, forward and backward: what a step does between its products.

Each is a kernel over rows x units that reads the gates' pre-activations (or, backward, what the
forward cell saved) and writes the states (or gradients). They are called as BRGEMM kernels are,
with one pointer to the words of `jitgen.frame.ARGUMENTS` (docs/abi.md); `count` is not read. Not
here: the arithmetic (`jitgen.cell_bodies`), the products with the weights, the loop over steps.

>>> from jitgen.target import AVX2
>>> len(emit_cell("lstm", 32, 64, "f32", AVX2, width=8)) < 4096
True
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from isa.machine import ELEMENTS
from jitgen.cell_bodies import CELLS, Vector
from jitgen.copying import repeated
from jitgen.elementwise import check_shape
from jitgen.frame import Frame
from jitgen.spec import MATRIX_BYTES
from jitgen.target import Target


def emit_cell(
    cell: str, rows: int, units: int, dtype: str, target: Target, *, width: int,
    panel: Mapping[str, int] | None = None, hidden: int | None = None,
    ld: Mapping[str, int] | None = None, masked: bool = False, peephole: bool = False,
    save: bool = False,
) -> bytes:  # fmt: skip
    """Machine code of a cell for rows x units. Words are addresses; all sizes are in elements.

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
    saved activations are undefined. Units beyond `units` are neither used nor written.

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
    lanes = target.machine(dtype, min(units, width)).lanes
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
        if times * pitch * ELEMENTS[dtype][2] >= MATRIX_BYTES:
            raise ValueError(f"{name}[{word!r}]={pitch} elements ({dtype}), {times} times: 2 GiB")
        pitches[word] = pitch
    for name, given, panels in (("panel", panel, True), ("ld", ld, False)):
        for word in given or {}:
            if word not in operands or operands[word].panels != panels:
                words = ", ".join(w for w, o in operands.items() if o.panels == panels)
                raise ValueError(f"{name} has {word!r}; {cell} has the words {words}")
    shape = (rows, units, dtype, target, width, hidden)
    return _emit_cell(cell, shape, tuple(pitches.items()), masked, peephole, save)


@lru_cache(maxsize=1024)
def _emit_cell(
    cell: str, shape: tuple[int, int, str, Target, int, int],
    pitches: tuple[tuple[str, int], ...], masked: bool, peephole: bool, save: bool,
) -> bytes:  # fmt: skip
    rows, units, dtype, target, width, hidden = shape
    machine = target.machine(dtype, min(units, width))
    element, lanes = machine.element, machine.lanes
    vectors, tail = divmod(units, lanes)
    frame = Frame(machine)
    free = list(range(machine.vectors - (machine.tail_vectors(tail) if tail else 0)))
    machine.constant_temps = tuple(free.pop() for _ in range(machine.constant_registers))
    body = Vector(machine, frame, free, masked=masked, peephole=peephole, save=save)

    #: by word, in bytes: from a row to the next, from a vector to the next, over the rest of a
    #: panel to the next one
    row, step, over = {}, {}, {}
    for word, pitch in pitches:
        operand = CELLS[cell].operands[word]
        body.pitch[word] = (width if operand.panels else hidden) * element
        row[word] = (operand.gates * width if operand.panels else pitch) * element
        step[word] = lanes * element
        if operand.panels and units > width:
            over[word] = (pitch - width) * element
    if peephole:
        body.pitch["bias"], row["bias"], step["bias"] = hidden * element, 0, lanes * element
    if masked:
        row["mask"], step["mask"] = element, 0
    counted = bool(over) and width > lanes
    for role in (*row, "row", "vector", *(["panel"] if counted else []), "constants"):
        frame.take(role)

    def all_rows(lanes: int) -> None:
        body.lanes = lanes
        machine.program.section(f"{rows} rows of {lanes} units")
        with repeated(machine, frame["row"], rows):
            body.begin()
            CELLS[cell].body(body)
            for word, size in row.items():
                machine.advance(frame[word], size)

    machine.program.section(f"{cell}: {rows} x {units}")
    machine.begin(frame.used())
    machine.use_constants(frame["constants"])
    if tail:
        machine.set_tail(tail, machine.vectors - 1)
    for word in row:
        frame.load_argument(word, word)
    if counted:
        machine.set(frame["panel"], width // lanes)
    if vectors:
        with repeated(machine, frame["vector"], vectors):
            all_rows(lanes)
            for word, size in step.items():
                extra = 0 if counted else over.get(word, 0)
                machine.advance(frame[word], size - rows * row[word] + extra)
            if counted:
                same = machine.program.new_label()
                machine.count_down(frame["panel"], same)
                for word, size in over.items():
                    machine.advance(frame[word], size)
                machine.set(frame["panel"], width // lanes)
                machine.place(same)
    if tail:
        all_rows(tail)
    machine.end()
    return machine.program.encode()
