"""What the cells of recurrent layers do with one vector of one row, and which operands they have.

Written once for all instruction sets on the verbs of `jitgen.isa.machine` and on
`jitgen.emit.functions`. Not here: where operands are in memory, and the loops
(`jitgen.kernels.cells`, which also says what cells compute).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from jitgen.emit import functions
from jitgen.emit.steps import STEPS
from jitgen.isa.machine import At, Machine


@dataclass(frozen=True)
class CellOperand:
    """`gates` values for each row and unit; what they are is its name. In panels, element
    (row, gate, u) of panel q is at q panel + (row gates + gate) width + u; elsewhere element
    (row, gate, unit) is at row ld + gate hidden + unit."""

    name: str
    gates: int = 1
    panels: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell: its operands by word, which of them only a masked kernel reads, and its code."""

    body: Callable[[Vector], None]
    operands: Mapping[str, CellOperand]
    only_masked: str = ""
    saves: bool = False
    peephole: bool = False

    def words(self, masked: bool, peephole: bool) -> dict[str, str]:
        """The words of what a kernel reads and writes, by name; "p", the peepholes' weights, and
        "mask" among them."""
        more = {"p": "bias"} if peephole else {}
        if masked:
            more["mask"] = "mask"
        return {
            operand.name: word for word, operand in self.operands.items()
            if masked or word != self.only_masked
        } | more  # fmt: skip


class Chain:
    """Takes down operations on vectors, to be emitted later."""

    def __init__(self, machine: Machine) -> None:
        self.arithmetic = machine.arithmetic
        self.const, self.const_bits = machine.const, machine.const_bits
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, verb: str) -> Any:
        return lambda *operands: self.calls.append((verb, operands))


def emit_in_turn(machine: Machine, chains: Sequence[Chain]) -> None:
    """Emit an operation of each chain in turn: one chain alone waits for its own results."""
    for verbs in zip_longest(*(chain.calls for chain in chains)):
        for verb, operands in filter(None, verbs):
            getattr(machine, verb)(*operands)


@dataclass(frozen=True)
class Options:
    """What a kernel does besides its cell's least."""

    masked: bool
    peephole: bool
    save: bool


class Vector:
    """A cell's work on `lanes` elements of a row; registers come from `take` and go back.

    `places`: word -> address of its vector and bytes from a gate to the next. `valid`: a register
    whose sign is set unless the mask leaves the row out.
    """

    def __init__(
        self, machine: Machine, registers: Sequence[int], places: Mapping[str, tuple[At, int]],
        valid: int, lanes: int, options: Options,
    ) -> None:  # fmt: skip
        self.machine, self.places = Chain(machine), places
        self.valid, self.lanes, self.options = valid, lanes, options
        self.temp, *self.free = registers
        #: how many registers there must be
        self.used = self.most = 1

    def take(self) -> int:
        """A register of any content."""
        register = self.free.pop(0)
        self.used += 1
        self.most = max(self.most, self.used)
        return register

    def drop(self, *registers: int) -> None:
        """Give registers back."""
        self.free[:0] = registers
        self.used -= len(registers)

    def load(self, word: str, gate: int = 0) -> int:
        """A register with elements of an operand."""
        register = self.take()
        self.machine.load(register, self._at(word, gate), self.lanes)
        return register

    def store(self, x: int, *places: tuple[str, int]) -> None:
        """Store x at each (word, gate), and give its register back."""
        *more, last = places
        for word, gate in more:
            self.machine.or_(self.temp, x, x)  # a store may clobber its register
            self.machine.store(self.temp, self._at(word, gate), self.lanes)
        self.machine.store(x, self._at(*last), self.lanes)
        self.drop(x)

    def _at(self, word: str, gate: int) -> At:
        (register, place), pitch = self.places[word]
        return register, place + gate * pitch

    def store_valid(self, x: int, *places: tuple[str, int], old: str = "") -> None:
        """Store x as `store` does; in rows that are masked out, `old`'s elements, or 0 without."""
        if self.options.masked:
            t = self.temp
            if old:
                self.machine.load(t, self._at(old, 0), self.lanes)
            else:
                self.machine.zero(t)
            self.machine.select_negative(x, self.valid, x, t)
        self.store(x, *places)

    def save_or_drop(self, x: int, gate: int) -> None:
        """Store x as gate of a if the backward pass wants it; give its register back."""
        if self.options.save:
            self.store(x, ("a", gate))
        else:
            self.drop(x)

    def add_product(self, acc: int, x: int, peephole: int) -> None:
        """acc += x p, p being the peephole weights of input, forget or output gate; if any."""
        if self.options.peephole:
            p = self.load("bias", peephole)
            self.machine.fma(acc, x, p)
            self.drop(p)

    def sigmoid(self, x: int) -> None:
        """x = 1 / (1 + e^-x)."""
        self._function(functions.sigmoid, x, STEPS["sigmoid"].temps)

    def tanh(self, x: int) -> None:
        """x = tanh(x)."""
        self._function(functions.tanh, x, STEPS["tanh"].temps)

    def _function(self, function: Callable[..., None], x: int, count: int) -> None:
        temps = [self.take() for _ in range(count)]
        function(self.machine, x, temps)
        self.drop(*temps)

    def rest(self, d: int, y: int) -> None:
        """d = 1 - y."""
        self.machine.load_const(d, self.machine.const(1.0))
        self.machine.sub(d, d, y)

    def sigmoid_backward(self, d: int, y: int) -> None:
        """d *= y (1 - y), the derivative of y = sigmoid."""
        t = self.temp
        self.rest(t, y)
        self.machine.mul(t, t, y)
        self.machine.mul(d, d, t)

    def tanh_backward(self, d: int, y: int) -> None:
        """d *= 1 - y y, the derivative of y = tanh."""
        t = self.temp
        self.machine.load_const(t, self.machine.const(1.0))
        self.machine.fnma(t, y, y)
        self.machine.mul(d, d, t)

    def sum(self, a: tuple[str, int], b: tuple[str, int]) -> int:
        """A register with the sum of two operands."""
        x, y = self.load(*a), self.load(*b)
        self.machine.add(x, x, y)
        self.drop(y)
        return x


# ---- forward --------------------------------------------------------------------------------


def _lstm(v: Vector) -> None:
    m = v.machine
    c, i, f = v.load("b"), v.load("a", 0), v.load("a", 1)
    v.add_product(i, c, 0)
    v.sigmoid(i)
    v.add_product(f, c, 1)
    v.sigmoid(f)
    m.mul(c, c, f)
    v.save_or_drop(f, 1)
    g = v.load("a", 2)
    v.tanh(g)
    m.fma(c, i, g)
    v.save_or_drop(i, 0)
    v.save_or_drop(g, 2)
    o = v.load("a", 3)
    v.add_product(o, c, 2)
    v.sigmoid(o)
    h = v.take()
    m.or_(h, c, c)
    v.store_valid(c, ("c", 0), old="b")
    v.tanh(h)
    m.mul(h, h, o)
    v.save_or_drop(o, 3)
    v.store_valid(h, ("residual", 0), old="bias_row")


def _gru(v: Vector) -> None:
    r, z = v.sum(("a", 0), ("b", 0)), v.sum(("a", 1), ("b", 1))
    v.sigmoid(r)
    v.sigmoid(z)
    n, recurrent = v.load("a", 2), v.load("b", 2)
    v.machine.fma(n, r, recurrent)
    v.drop(recurrent)
    v.save_or_drop(r, 0)
    v.tanh(n)
    _gru_state(v, z, n)
    v.save_or_drop(z, 1)


def _gru_state(v: Vector, z: int, n: int) -> None:
    """Store h = n + z (h - n), and n, whose register goes back."""
    h = v.load("bias_row")
    v.machine.sub(h, h, n)
    v.machine.fmad(h, z, n)
    v.save_or_drop(n, 2)
    v.store_valid(h, ("residual", 0), old="bias_row")


def _gru_before_reset(v: Vector) -> None:
    r, z = v.load("a", 0), v.load("a", 1)
    v.sigmoid(r)
    v.sigmoid(z)
    v.store(z, ("a", 1))
    h = v.load("bias_row")
    v.machine.mul(h, h, r)
    v.store(r, ("a", 0))
    v.store_valid(h, ("residual", 0))


def _gru_before_output(v: Vector) -> None:
    z, n = v.load("a", 1), v.load("a", 2)
    v.tanh(n)
    _gru_state(v, z, n)
    v.drop(z)


def _rnn(v: Vector) -> None:
    h = v.load("a")
    v.tanh(h)
    v.store_valid(h, ("residual", 0), old="bias_row")


# ---- backward: dx is the gradient of the loss with respect to x -------------------------------


def _lstm_backward(v: Vector) -> None:
    m = v.machine
    d, c, o = v.sum(("residual", 0), ("bias_row", 0)), v.load("a_offsets"), v.load("a", 3)
    v.tanh(c)
    do = v.take()
    m.mul(do, d, c)
    v.sigmoid_backward(do, o)
    m.mul(d, d, o)
    v.tanh_backward(d, c)
    v.drop(o, c)
    dc = v.load("b_offsets")
    m.add(dc, dc, d)
    v.drop(d)
    v.add_product(dc, do, 2)
    v.store_valid(do, ("c", 3))
    i, g, di = v.load("a", 0), v.load("a", 2), v.take()
    m.mul(di, dc, g)
    v.sigmoid_backward(di, i)
    m.mul(i, i, dc)
    v.tanh_backward(i, g)
    v.drop(g)
    v.store_valid(i, ("c", 2))
    f, df = v.load("a", 1), v.load("b")
    m.mul(df, df, dc)
    v.sigmoid_backward(df, f)
    m.mul(dc, dc, f)
    v.drop(f)
    v.add_product(dc, di, 0)
    v.add_product(dc, df, 1)
    v.store_valid(di, ("c", 0))
    v.store_valid(df, ("c", 1))
    v.store_valid(dc, ("b_offsets", 0), old="b_offsets")
    _nothing_passes(v)


def _nothing_passes(v: Vector) -> None:
    """The gradient of h reaches the step before through the product alone."""
    nothing = v.take()
    v.machine.zero(nothing)
    v.store_valid(nothing, ("residual", 0), old="residual")


def _gru_output_backward(v: Vector) -> tuple[int, int]:
    """Registers of the gradients of n's and z's pre-activations; dh is stored."""
    m = v.machine
    d, z, n = v.sum(("residual", 0), ("bias_row", 0)), v.load("a", 1), v.load("a", 2)
    dn = v.take()
    v.rest(dn, z)
    m.mul(dn, dn, d)
    v.tanh_backward(dn, n)
    dz = v.load("b_offsets")
    m.sub(dz, dz, n)
    m.mul(dz, dz, d)
    v.sigmoid_backward(dz, z)
    m.mul(d, d, z)
    v.drop(z, n)
    v.store_valid(d, ("residual", 0), old="residual")
    return dn, dz


def _gru_backward(v: Vector) -> None:
    dn, dz = _gru_output_backward(v)
    v.store_valid(dz, ("c", 1), ("a_offsets", 1))
    r, dr, recurrent = v.load("a", 0), v.load("b", 2), v.take()
    v.machine.mul(dr, dr, dn)
    v.sigmoid_backward(dr, r)
    v.machine.mul(recurrent, dn, r)
    v.drop(r)
    v.store_valid(dr, ("c", 0), ("a_offsets", 0))
    v.store_valid(recurrent, ("a_offsets", 2))
    v.store_valid(dn, ("c", 2))


def _gru_before_backward_output(v: Vector) -> None:
    dn, dz = _gru_output_backward(v)
    v.store_valid(dz, ("c", 1))
    v.store_valid(dn, ("c", 2))


def _gru_before_backward_reset(v: Vector) -> None:
    d, r, dr = v.load("bias_row"), v.load("a", 0), v.load("b_offsets")
    v.machine.mul(dr, dr, d)
    v.sigmoid_backward(dr, r)
    v.store_valid(dr, ("c", 0))
    dh = v.load("residual")
    v.machine.fma(dh, d, r)
    v.drop(d, r)
    v.store_valid(dh, ("residual", 0), old="residual")


def _rnn_backward(v: Vector) -> None:
    d, h = v.sum(("residual", 0), ("bias_row", 0)), v.load("a_offsets")
    v.tanh_backward(d, h)
    v.drop(h)
    v.store_valid(d, ("c", 0))
    _nothing_passes(v)


_LSTM, _GRU, _RNN = (CellOperand("gates", gates, panels=True) for gates in (4, 3, 1))
_RECURRENT = CellOperand("recurrent", 3, panels=True)
_BEFORE, _DGATES = CellOperand("h_before"), CellOperand("dgates", 3)
_STATES = {"bias_row": _BEFORE, "residual": CellOperand("h")}
_GRADIENTS = {"bias_row": CellOperand("dy"), "residual": CellOperand("dh")}
_RESET = {"bias_row": _BEFORE, "residual": CellOperand("reset")}
_RESET_BACKWARD = {"bias_row": CellOperand("dreset"), "residual": CellOperand("dh")}
CELLS = {
    "lstm": Cell(
        _lstm, {"a": _LSTM, "b": CellOperand("c_before"), "c": CellOperand("c"), **_STATES},
        "bias_row", True, True,
    ),
    "gru": Cell(_gru, {"a": _GRU, "b": _RECURRENT, **_STATES}, saves=True),
    "gru_before_reset": Cell(_gru_before_reset, {"a": _GRU, **_RESET}),
    "gru_before_output": Cell(_gru_before_output, {"a": _GRU, **_STATES}, saves=True),
    "rnn": Cell(_rnn, {"a": _RNN, **_STATES}, "bias_row"),
    "lstm_backward": Cell(
        _lstm_backward, {
            "a": _LSTM, "b": CellOperand("c_before"), "c": CellOperand("dgates", 4),
            "a_offsets": CellOperand("c"), "b_offsets": CellOperand("dc"), **_GRADIENTS,
        }, peephole=True,
    ),
    "gru_backward": Cell(
        _gru_backward, {
            "a": _GRU, "b": _RECURRENT, "c": _DGATES, "a_offsets": CellOperand("dgates_r", 3),
            "b_offsets": _BEFORE, **_GRADIENTS,
        },
    ),
    "gru_before_backward_output": Cell(
        _gru_before_backward_output, {"a": _GRU, "c": _DGATES, "b_offsets": _BEFORE, **_GRADIENTS}
    ),
    "gru_before_backward_reset": Cell(
        _gru_before_backward_reset,
        {"a": _GRU, "c": _DGATES, "b_offsets": _BEFORE, **_RESET_BACKWARD},
    ),
    "rnn_backward": Cell(
        _rnn_backward, {"a_offsets": CellOperand("h"), "c": CellOperand("dgates"), **_GRADIENTS}
    ),
}  # fmt: skip
