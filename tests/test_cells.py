"""Cells of recurrent layers on every tier, against their formulas in double precision.

The bounds come from a running error analysis: a `Number` carries how far off it may be. Operands
lie between guard pages, gaps and units behind the last are poison, and rows that a mask leaves out
have NaN in all that may not matter there. Not here: the layers (`test_recurrent`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from blocks import EVERYWHERE, FLOATS, Call, Wanted, execute, poison
from random_cases import SEED
from tiers import TIERS, need

from jitgen.kernels.cell_bodies import CELLS
from jitgen.kernels.cells import emit_cell
from jitgen.target import ANY_WIDTH, TARGETS, Target, parse_target, sve

Array = np.ndarray[Any, Any]
#: Largest error of sigmoid and tanh in ULP (jitgen.emit.functions), and what first order leaves out
FUNCTION_ULP, SLACK = 3.5, 1.01


@dataclass
class Number:
    """Values and how far off a computation in working precision may be, to first order."""

    value: Array
    error: Array | float
    eps: float

    def _of(self, other: Number | float) -> Number:
        return other if isinstance(other, Number) else Number(np.float64(other), 0.0, self.eps)

    def _rounded(self, value: Array, error: Array) -> Number:
        return Number(value, error + self.eps * np.abs(value), self.eps)

    def __add__(self, other: Number | float) -> Number:
        other = self._of(other)
        return self._rounded(self.value + other.value, self.error + other.error)

    def __sub__(self, other: Number | float) -> Number:
        return self + self._of(other) * -1.0

    def __rsub__(self, other: float) -> Number:
        return self._of(other) - self

    def __mul__(self, other: Number | float) -> Number:
        other = self._of(other)
        error = np.abs(self.value) * other.error + np.abs(other.value) * self.error
        return self._rounded(self.value * other.value, error)

    def _function(self, value: Array, slope: Array) -> Number:
        error = slope * self.error + FUNCTION_ULP * self.eps * np.abs(value)
        return Number(value, error, self.eps)

    def sigmoid(self) -> Number:
        value = 0.5 + 0.5 * np.tanh(0.5 * self.value)
        small = np.exp(np.minimum(self.value, 0.0))
        value = np.where(self.value < -1.0, small / (1.0 + small), value)
        return self._function(value, value * (1.0 - value))

    def tanh(self) -> Number:
        value = np.tanh(self.value)
        return self._function(value, 1.0 - value * value)


class Given:
    """What a cell reads: number(word, gate) is rows x units; peepholes are 0 where it has none."""

    def __init__(self, values: dict[str, Array], eps: float, valid: Array) -> None:
        self.values, self.eps, self.valid = values, eps, valid
        self.read: set[str] = set()
        #: (word, gate) -> what it must hold afterwards
        self.results: dict[tuple[str, int], Number] = {}

    def number(self, word: str, gate: int = 0) -> Number:
        if word == "bias" and word not in self.values:
            return Number(np.float64(0.0), 0.0, self.eps)
        self.read.add(word)
        return Number(self.values[word][:, gate].astype(np.float64), 0.0, self.eps)

    def result(self, x: Number, word: str, gate: int = 0, old: str | None = "") -> None:
        """x where the row is valid; else `old`'s element, or 0; without `old` everywhere x."""
        if old is None:
            self.results[word, gate] = x
            return
        before = self.number(old).value if old in self.values else 0.0
        value = np.where(self.valid, x.value, before)
        self.results[word, gate] = Number(value, np.where(self.valid, x.error, 0.0), self.eps)


def _lstm(x: Given, save: bool) -> None:
    c0, p = x.number("b"), [x.number("bias", k) for k in range(3)]
    i = (x.number("a", 0) + p[0] * c0).sigmoid()
    f = (x.number("a", 1) + p[1] * c0).sigmoid()
    g = x.number("a", 2).tanh()
    c = f * c0 + i * g
    o = (x.number("a", 3) + p[2] * c).sigmoid()
    x.result(c, "c", old="b")
    x.result(o * c.tanh(), "residual", old="bias_row")
    for gate, value in enumerate((i, f, g, o)):
        if save:
            x.result(value, "a", gate, old=None)


def _gru(x: Given, save: bool) -> None:
    r, z = ((x.number("a", k) + x.number("b", k)).sigmoid() for k in range(2))
    n = (x.number("a", 2) + r * x.number("b", 2)).tanh()
    x.result((1.0 - z) * n + z * x.number("bias_row"), "residual", old="bias_row")
    for gate, value in enumerate((r, z, n)):
        if save:
            x.result(value, "a", gate, old=None)


def _gru_before_reset(x: Given, save: bool) -> None:
    r, z = (x.number("a", k).sigmoid() for k in range(2))
    x.result(r * x.number("bias_row"), "residual")
    x.result(r, "a", 0, old=None)
    x.result(z, "a", 1, old=None)


def _gru_before_output(x: Given, save: bool) -> None:
    z, n = x.number("a", 1), x.number("a", 2).tanh()
    x.result((1.0 - z) * n + z * x.number("bias_row"), "residual", old="bias_row")
    if save:
        x.result(n, "a", 2, old=None)


def _rnn(x: Given, save: bool) -> None:
    x.result(x.number("a").tanh(), "residual", old="bias_row")


def _lstm_backward(x: Given, save: bool) -> None:
    i, f, g, o = (x.number("a", k) for k in range(4))
    p = [x.number("bias", k) for k in range(3)]
    d, t = x.number("residual") + x.number("bias_row"), x.number("a_offsets").tanh()
    do = d * t * (o * (1.0 - o))
    dc = x.number("b_offsets") + d * o * (1.0 - t * t) + p[2] * do
    di = dc * g * (i * (1.0 - i))
    df = dc * x.number("b") * (f * (1.0 - f))
    dg = dc * i * (1.0 - g * g)
    for gate, value in enumerate((di, df, dg, do)):
        x.result(value, "c", gate)
    x.result(dc * f + p[0] * di + p[1] * df, "b_offsets", old="b_offsets")
    x.result(d * 0.0, "residual", old="residual")


def _gru_output_backward(x: Given) -> tuple[Number, Number]:
    z, n = x.number("a", 1), x.number("a", 2)
    d = x.number("residual") + x.number("bias_row")
    x.result(d * z, "residual", old="residual")
    dz = d * (x.number("b_offsets") - n) * (z * (1.0 - z))
    return dz, d * (1.0 - z) * (1.0 - n * n)


def _gru_backward(x: Given, save: bool) -> None:
    dz, dn = _gru_output_backward(x)
    r = x.number("a", 0)
    dr = dn * x.number("b", 2) * (r * (1.0 - r))
    for gate, value in enumerate((dr, dz, dn)):
        x.result(value, "c", gate)
    for gate, value in enumerate((dr, dz, dn * r)):
        x.result(value, "a_offsets", gate)


def _gru_before_backward_output(x: Given, save: bool) -> None:
    for gate, value in enumerate(_gru_output_backward(x), 1):
        x.result(value, "c", gate)


def _gru_before_backward_reset(x: Given, save: bool) -> None:
    r, d = x.number("a", 0), x.number("bias_row")
    x.result(x.number("residual") + d * r, "residual", old="residual")
    x.result(d * x.number("b_offsets") * (r * (1.0 - r)), "c", 0)


def _rnn_backward(x: Given, save: bool) -> None:
    h, d = x.number("a_offsets"), x.number("residual") + x.number("bias_row")
    x.result(d * (1.0 - h * h), "c")
    x.result(d * 0.0, "residual", old="residual")


FORMULAS: dict[str, Callable[[Given, bool], None]] = {
    "lstm": _lstm, "gru": _gru, "gru_before_reset": _gru_before_reset,
    "gru_before_output": _gru_before_output, "rnn": _rnn, "lstm_backward": _lstm_backward,
    "gru_backward": _gru_backward, "gru_before_backward_output": _gru_before_backward_output,
    "gru_before_backward_reset": _gru_before_backward_reset, "rnn_backward": _rnn_backward,
}  # fmt: skip
#: By cell, words that keep their values where a row is masked out
KEPT = {
    **dict.fromkeys(("lstm", ), ("b", "bias_row")),
    **dict.fromkeys(("gru", "gru_before_output", "rnn"), ("bias_row",)),
    "gru_before_reset": (),
    **dict.fromkeys([c for c in CELLS if "backward" in c], ("residual",)),
    "lstm_backward": ("residual", "b_offsets"),
}  # fmt: skip
#: By cell, pairs of words that may be one piece of memory
SAME = {"lstm": (("b", "c"), ("bias_row", "residual")), "gru": (("bias_row", "residual"),)}


#: Backward cell -> forward cell, word of its states, {word of a gradient: word it belongs to}
PAIRS = {
    "lstm_backward": ("lstm", "b", {"c": "a", "b_offsets": "b"}),
    "gru_backward": ("gru", "b_offsets", {"c": "a", "a_offsets": "b", "residual": "bias_row"}),
    "gru_before_backward_output": (
        "gru_before_output", "b_offsets", {"c": "a", "residual": "bias_row"},
    ),
    "gru_before_backward_reset": ("gru_before_reset", "b_offsets", {"c": "a"}),
    "rnn_backward": ("rnn", "b", {"c": "a"}),
}  # fmt: skip


def test_formulas_are_gradients() -> None:
    """The backward formulas are the slopes of the forward ones, by central differences."""
    assert set(PAIRS) == {cell for cell in CELLS if "backward" in cell}
    numbers = np.random.default_rng(SEED)
    for backward, (cell, state, gradients) in PAIRS.items():
        words = CELLS[cell].operands
        values = {word: numbers.standard_normal((1, words[word].gates, 9)) for word in words}
        if cell == "gru_before_output":
            values["a"][:, 1] = 1 / (1 + np.exp(-values["a"][:, 1]))
        if CELLS[cell].peephole:
            values["bias"] = numbers.standard_normal((1, 3, 9))
        weights = {word: numbers.standard_normal((1, 9)) for word in ("residual", "c")}

        def loss(values: dict[str, Array], cell: str = cell, weights: Any = weights) -> Any:
            given = Given(values, 0.0, np.array([[True]]))
            FORMULAS[cell](given, True)
            terms = (w * given.results[word, 0].value for word, w in weights.items()
                     if (word, 0) in given.results)  # fmt: skip
            return sum(terms), given.results

        activations = values["a"].copy()
        results = loss(values)[1]
        for (word, gate), x in results.items():
            if word == "a":
                activations[:, gate] = x.value
        if cell == "rnn":
            activations = results["residual", 0].value[:, None]
        d, old = weights["residual"][:, None], numbers.standard_normal((1, 1, 9))
        known = {"a": activations, "residual": old, "bias_row": d - old, "b_offsets": d}
        known |= {word: values[word] for word in ("b", "bias") if word in values}
        known[state] = values["b" if cell == "lstm" else "bias_row"]
        if cell == "lstm":
            known |= {"a_offsets": results["c", 0].value[:, None]}
            known["b_offsets"] = weights["c"][:, None]
        if cell == "rnn":
            known["a_offsets"] = activations
        if cell == "gru_before_reset":
            known["bias_row"] = d
        given = Given(known, 0.0, np.array([[True]]))
        FORMULAS[backward](given, False)
        for (word, gate), gradient in given.results.items():
            if word not in gradients:
                continue
            moved = [{w: x.copy() for w, x in values.items()} for _ in range(2)]
            for x, step in zip(moved, (1e-6, -1e-6), strict=True):
                x[gradients[word]][:, gate] += step
            slope = (loss(moved[0])[0] - loss(moved[1])[0]) / 2e-6
            if cell == "gru_before_output" and (word, gate) == ("c", 1):
                z = values["a"][:, 1]  # given as an activation
                slope *= z * (1 - z)
            assert np.abs(gradient.value - slope).max() < 1e-7, (backward, word, gate)


class Shape:
    """A random shape: where the elements of operands are, and the arguments of `emit_cell`."""

    def __init__(self, rng: random.Random, dtype: str, target: Target) -> None:
        full = target.machine(dtype, ANY_WIDTH).lanes
        self.rows = rng.choice((1, 2, 3, rng.randint(1, 9)))
        self.units = rng.choice((1, full, rng.randint(1, 3 * full), rng.randint(1, 9 * full)))
        self.width = full * rng.choice((1, 1, 1, 2, 3, 4))
        self.hidden = self.units + rng.choice((0, 0, 1, 7))
        self.rng = rng
        self.panel: dict[str, int] = {}
        self.ld: dict[str, int] = {}

    def index(self, word: str, gates: int, panels: bool) -> tuple[Array, int]:
        """(rows, gates, units) indices, and how many elements the array has."""
        row, gate = np.arange(self.rows)[:, None, None], np.arange(gates)[:, None]
        unit = np.arange(self.units)
        if panels:
            pitch = self.rows * gates * self.width + self.rng.choice((0, 0, 5))
            self.panel[word] = pitch
            at = unit // self.width * pitch + (row * gates + gate) * self.width
            size = (self.units - 1) // self.width * pitch + self.rows * gates * self.width
            return at + unit % self.width, size
        pitch = gates * self.hidden + self.rng.choice((0, 0, 1, 19))
        self.ld[word] = pitch
        at = row * pitch + gate * self.hidden + unit
        return at, int(at.max()) + 1


def make(cell: str, rng: random.Random, target: Target) -> Call:
    """A random call of a cell's kernel."""
    dtype = rng.choice(tuple(FLOATS))
    known, shape = CELLS[cell], Shape(rng, dtype, target)
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    masked = rng.random() < 0.5
    save, peephole = known.saves and rng.random() < 0.5, known.peephole and rng.random() < 0.5
    eps = float(np.finfo(FLOATS[dtype]).eps)
    valid = numbers.random((shape.rows, 1)) < (0.6 if masked else 1.1)
    values: dict[str, Array] = {}
    places: dict[str, Array] = {}
    words: dict[str, Array | int] = {}
    for word, operand in known.operands.items():
        if word == known.only_masked and not masked:
            continue
        place, size = shape.index(word, operand.gates, operand.panels)
        x = numbers.standard_normal(place.shape) * rng.choice((1.0, 1.0, 3.0, 30.0))
        if ("backward" in cell and word == "a") or (cell == "gru_before_output" and word == "a"):
            x = 1 / (1 + np.exp(-x))
        if word not in KEPT[cell]:  # what must not matter
            x = np.where(valid[:, None], x, np.nan)
        values[word] = x.astype(FLOATS[dtype])
        places[word] = place
        words[word] = poison(1, size, dtype)[0]
    for one, other in SAME.get(cell, ()):
        if one in words and rng.random() < 0.4:
            shape.ld[other], places[other], words[other] = shape.ld[one], places[one], words[one]
    if peephole:
        values["bias"] = numbers.standard_normal((1, 3, shape.units)).astype(FLOATS[dtype])
        places["bias"] = (np.arange(3)[:, None] * shape.hidden + np.arange(shape.units))[None]
        words["bias"] = poison(1, int(places["bias"].max()) + 1, dtype)[0]
    given = Given(values, eps, valid)
    with np.errstate(all="ignore"):
        FORMULAS[cell](given, save)
    outputs = {word for word, _ in given.results}
    for word in given.read:
        flat = words[word]
        assert isinstance(flat, np.ndarray)
        flat[places[word]] = values[word]
    if masked:
        words["mask"] = np.where(valid[:, 0], rng.choice((1.0, 0.25)), 0.0).astype(FLOATS[dtype])
    wanted = {}
    for word in outputs:
        gates = sorted(gate for name, gate in given.results if name == word)
        results = [given.results[word, gate] for gate in gates]
        at = places[word][:, gates]
        value = np.stack(np.broadcast_arrays(*(r.value for r in results)), 1)
        bound = np.stack([np.broadcast_to(r.error, value[:, 0].shape) for r in results], 1)
        tiny = np.finfo(FLOATS[dtype]).smallest_subnormal
        bound = np.where(np.isnan(bound), 0.0, SLACK * bound + (bound > 0) * 1e4 * tiny)
        flat2 = (shape.rows, -1)
        wanted[word] = Wanted(
            value.reshape(flat2), 0, bound.reshape(flat2), np.ascontiguousarray(at).reshape(flat2)
        )
    routine = emit_cell(
        cell, shape.rows, shape.units, dtype, target, width=shape.width, panel=shape.panel,
        hidden=shape.hidden, ld=shape.ld, masked=masked, peephole=peephole, save=save,
    )  # fmt: skip
    label = (
        f"{cell} {dtype} {shape.rows} x {shape.units}, width {shape.width}, hidden {shape.hidden}, "
        f"masked {masked}, save {save}, peephole {peephole}, panel {shape.panel}, ld {shape.ld}"
    )
    return Call(routine, words, wanted, label, rng.choice(("end", "start")))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("tier", EVERYWHERE)
def test_random_shapes(tier: str, cell: str) -> None:
    need(TIERS[tier])
    rng = random.Random(f"{SEED} {tier} {cell}")
    target = parse_target(TIERS[tier].target)
    calls = [make(cell, rng, target) for _ in range(100 if "native" in tier else 20)]
    for call in calls:
        assert len(call.code) < 8192, call.label
    failures = execute(tier, calls)
    assert not failures, f"JITGEN_SEED={SEED}: {len(failures)} failed:\n" + "\n".join(failures[:9])


def test_wrong_kernels_are_noticed() -> None:
    """No mask, a unit or a row too few, a unit too many, nothing saved: each is an error."""
    need(TIERS["avx2 native"])
    target = parse_target("avx2")
    x = np.linspace(-2.0, 2.0, 2 * 3 * 8, dtype=np.float32)
    h, out = np.ones(2 * 5, np.float32), poison(1, 2 * 5, "f32")[0]
    at = np.arange(2)[:, None] * 24 + np.arange(5)
    z, n = 1 / (1 + np.exp(-x[at + 8].astype(np.float64))), np.tanh(x[at + 16].astype(np.float64))
    right = {"rows": 2, "units": 5, "width": 8, "masked": True, "save": True}

    def failures(**change: Any) -> str:
        given = x.copy()
        given[at + 8] = z
        words = {"a": given, "bias_row": h, "residual": out, "mask": np.float32([1.0, 0.0])}
        state = (1 - z) * n + z
        state[1] = 1.0
        wanted = {"residual": Wanted(state, 5, 1e-6), "a": Wanted(n, 0, 1e-6, at + 16)}
        routine = emit_cell("gru_before_output", dtype="f32", target=target, **{**right, **change})
        return "\n".join(execute("avx2 native", [Call(routine, words, wanted, "changed")]))

    assert not failures()
    assert "residual: 5 of 10 elements are wrong" in failures(masked=False)
    ld = {"bias_row": 5, "residual": 5}
    assert "a: 2 of 10 elements are wrong" in failures(units=4, ld=ld)
    assert "a: 5 of 10 elements are wrong" in failures(rows=1)
    assert "a: 10 of 10 elements are wrong" in failures(save=False)
    assert "SIGSEGV" in failures(units=6)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "tier", ("avx2 native", "avx512 native", "avx512 bochs", "sve256 qemu", "neon qemu")
)
def test_limits(tier: str, dtype: str) -> None:
    """Gates that are infinite are 0 or 1; NaN stays, in its element alone."""
    need(TIERS[tier])
    inf, nan = np.inf, np.nan
    gates = np.array([
        [-inf, inf, inf, inf, nan, 0, 0, 0, 0], [inf, -inf, inf, 1e9, 0, nan, 0, 0, 0],
        [1, 1, inf, -inf, 0, 0, nan, 0, 0], [inf, inf, -inf, 0, 0, 0, 0, nan, 0],
    ])  # fmt: skip
    target = parse_target(TIERS[tier].target)
    width = target.machine(dtype, 9).lanes * 9
    a = np.zeros((1, 4, width), FLOATS[dtype])
    a[0, :, :9] = gates
    c0 = np.full(9, 2.0, FLOATS[dtype])
    c = np.array([[2, np.tanh(1), 3, 1, nan, nan, nan, 1, 1]])
    h = np.array([[np.tanh(2), np.tanh(np.tanh(1)), 0, np.tanh(1) / 2, nan, nan, nan, nan, 0]])
    h[0, 8] = np.tanh(1) / 2
    words = {"a": a.ravel(), "b": c0, "c": c0 * nan, "residual": c0 * nan}
    bound = 8 * np.finfo(FLOATS[dtype]).eps
    routine = emit_cell("lstm", 1, 9, dtype, target, width=width)
    wanted = {"c": Wanted(c, 9, bound), "residual": Wanted(h, 9, bound)}
    assert not execute(tier, [Call(routine, words, wanted, "limits")])


def test_every_target_has_short_code() -> None:
    """Also where it is never executed: all cells with all options, with a tail, wide panels."""
    for target in {*TARGETS.values(), *(sve(bits) for bits in (384, 1024, 2048))}:
        for dtype in FLOATS:
            lanes = target.machine(dtype, ANY_WIDTH).lanes
            for name, cell in CELLS.items():
                options = {"masked": True, "save": cell.saves, "peephole": cell.peephole}
                routine = emit_cell(
                    name, 64, 7 * lanes - 1, dtype, target, width=2 * lanes, **options
                )
                assert len(routine.code) < 8192


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cell": "elman"}, "cell='elman' is not one of lstm"),
        ({"rows": 0}, "rows=0"),
        ({"dtype": "i8"}, "dtype='i8'"),
        ({"width": 12}, "width=12 is not a multiple of the vector's 8"),
        ({"width": 0}, "width=0 is not"),
        ({"hidden": 19}, "leading dimension 19 is smaller than columns=20"),
        ({"ld": {"c": 19}}, r"ld\['c'\]=19 is smaller than the 20"),
        ({"ld": {"a": 160}}, "ld has 'a'; lstm has the words b, c, residual"),
        ({"ld": {"bias_row": 20}}, "ld has 'bias_row'"),
        ({"ld": {"c": 1 << 28}}, "2 GiB"),
        ({"panel": {"b": 20}}, "panel has 'b'; lstm has the words a"),
        ({"panel": {"a": 95}}, r"panel\['a'\]=95 is smaller than the 96"),
        ({"cell": "rnn", "save": True}, "save=True: rnn"),
        ({"cell": "gru", "peephole": True}, "peephole=True: gru"),
    ],
)
def test_bad_input(change: dict[str, Any], words: str) -> None:
    arguments = {
        "cell": "lstm", "rows": 3, "units": 20, "dtype": "f32", "target": TARGETS["avx2"],
        "width": 8,
    }  # fmt: skip
    assert emit_cell(**arguments)
    with pytest.raises(ValueError, match=words):
        emit_cell(**{**arguments, **change})
