"""ONNX's own tests of LSTM, GRU and RNN on the layers and on the oracle; converting weights.

The tests are those of the onnx wheel, with the inputs and outputs it ships. Not here: random
configurations (test_recurrent).
"""

from __future__ import annotations

import importlib.util
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from needs import need
from random_cases import SEED
from recurrent_oracle import GATES, Cell, forward

from jitgen import Gru, Lstm, Rnn
from jitgen.primitives.rnn.onnx import gru_from_onnx, lstm_from_onnx, rnn_from_onnx
from jitgen.run import cpu

HERE = [name for name, why in cpu.targets().items() if not why]
#: all that onnx 1.23 has
NAMES = [
    *(f"test_{kind}_{what}" for kind in ("gru", "lstm", "simple_rnn")
      for what in ("defaults", "with_initial_bias", "batchwise", "reverse", "bidirectional")),
    "test_gru_seq_length", "test_rnn_seq_length", "test_lstm_with_peepholes",
]  # fmt: skip
#: The node's inputs in ONNX's order
INPUTS = ("x", "w", "r", "b", "lengths", "h0", "c0", "p")
#: Attributes that the runner knows; anything else in a node is an error
KNOWN = {"direction", "hidden_size", "layout", "linear_before_reset"}


@lru_cache
def cases() -> dict[str, Any]:
    """ONNX's test cases by name, the three operators'."""
    there = importlib.util.find_spec("onnx") is not None
    need(None if there else "the onnx wheel is not installed")
    with warnings.catch_warnings():
        # making the tests of other operators divides by zero
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    return {c.name: c for c in found if {n.op_type for n in c.model.graph.node} & set(OPERATORS)}


OPERATORS = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn"}


class Node:
    """One recurrent node: its inputs as the layers take them, and its outputs as ONNX has them."""

    def __init__(self, node: Any, values: list[np.ndarray]) -> None:
        import onnx

        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes.keys() <= KNOWN, attributes
        given = iter(values)
        named = {n: next(given) for n, name in zip(INPUTS, node.input, strict=False) if name}
        assert next(given, None) is None
        self.kind = OPERATORS[node.op_type]
        self.batchwise = attributes.get("layout", 0) == 1
        self.lengths = named.pop("lengths", None)
        direction = attributes.get("direction", b"forward").decode()
        reset = "after" if attributes.get("linear_before_reset", 0) else "before"
        self.cell = Cell(self.kind, direction, reset if self.kind == "gru" else "after",
                         peephole="p" in named)  # fmt: skip
        if self.batchwise:
            for name in {"x", "h0", "c0"} & named.keys():
                named[name] = np.ascontiguousarray(named[name].swapaxes(0, 1))
        names = ("w", "r", "b", "p") if self.kind == "lstm" else ("w", "r", "b")
        convert: Any = {"lstm": lstm_from_onnx, "gru": gru_from_onnx, "rnn": rnn_from_onnx}
        weights = convert[self.kind](*(named.get(n) for n in names))
        self.arrays = {"x": named["x"], **dict(zip(names, weights, strict=True))}
        self.ways = len(named["w"])
        for name in {"h0", "c0"} & named.keys():
            state = named[name]
            self.arrays[name] = state if self.ways == 2 else state[0]
        self.hidden = named["r"].shape[-1]
        assert attributes["hidden_size"] == self.hidden

    def layer(self, target: str, threads: int) -> tuple[np.ndarray, ...]:
        """y, h and c of our layer (c: LSTM alone)."""
        a = self.arrays
        steps, batch, features = a["x"].shape
        options: Any = {"direction": self.cell.direction, "bias": a["b"] is not None,
                        "threads": threads, "target": target}  # fmt: skip
        size = (batch, steps, features, self.hidden)
        inputs = (a["x"], a["w"], a["r"], a["b"], a.get("h0"))
        if self.kind == "lstm":
            lstm = Lstm(*size, peephole=self.cell.peephole, **options)
            return lstm.forward(*inputs, a.get("c0"), p=a["p"], lengths=self.lengths)
        if self.kind == "gru":
            gru = Gru(*size, reset=self.cell.reset, **options)
            return gru.forward(*inputs, lengths=self.lengths)
        return Rnn(*size, **options).forward(*inputs, lengths=self.lengths)

    def oracle(self) -> tuple[np.ndarray, ...]:
        """The same in float64."""
        done = forward(self.cell, self.arrays, self.lengths)
        return done.y, done.h, done.c

    def outputs(self, y: np.ndarray, *states: np.ndarray) -> list[np.ndarray]:
        """Y, Y_h and Y_c in ONNX's shapes and layout."""
        steps, batch, _ = y.shape
        out = [y.reshape(steps, batch, self.ways, self.hidden).transpose(0, 2, 1, 3)]
        out += [s.reshape(self.ways, batch, self.hidden) for s in states]
        if self.batchwise:  # Y (batch, steps, ways, hidden), Y_h (batch, ways, hidden)
            out = [out[0].transpose(2, 0, 1, 3), *(s.swapaxes(0, 1) for s in out[1:])]
        return out


def test_these_are_all_there_are() -> None:
    assert sorted(cases()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", ["oracle", *HERE])
def test_node(name: str, which: str) -> None:
    """What the node's outputs must be, at the tolerance that ONNX sets."""
    assert name in cases(), f"{name}: is onnx older than 1.23?"
    case = cases()[name]
    (node,) = case.model.graph.node
    compared = 0
    for values, expected in case.data_sets:
        ours = Node(node, values)
        got = ours.outputs(*(ours.oracle() if which == "oracle" else ours.layer(which, 2)))
        wanted = iter(expected)
        for output, array in zip(node.output, got, strict=False):
            if output:
                np.testing.assert_allclose(array, next(wanted), rtol=case.rtol, atol=1e-6)
                compared += 1
        assert next(wanted, None) is None
    assert compared


@pytest.mark.parametrize("ways", [1, 2])
@pytest.mark.parametrize("kind", GATES)
def test_every_element_finds_its_place(kind: str, ways: int) -> None:
    """Gate by gate, as ONNX's documentation has them."""
    onnx_order = {"lstm": "iofc", "gru": "zrh", "rnn": "i"}[kind]
    our_order = {"lstm": "ifco", "gru": "rzh", "rnn": "i"}[kind]
    hidden, features, g = 3, 5, len(onnx_order)
    rng = np.random.default_rng(SEED)
    shapes = ((g * hidden, features), (g * hidden, hidden), (2 * g * hidden,), (3 * hidden,))
    w, r, b, p = (rng.standard_normal((ways, *s)).astype(np.float32) for s in shapes)
    convert: Any = {"lstm": lstm_from_onnx, "gru": gru_from_onnx, "rnn": rnn_from_onnx}[kind]
    converted = convert(w, r, b, p) if kind == "lstm" else convert(w, r, b)
    lead = (2,) if ways == 2 else ()
    shapes = (*shapes[:2], (2, g * hidden), (3, hidden))
    for array, shape in zip(converted, shapes, strict=False):
        assert array.shape == (*lead, *shape)
    for d in range(ways):
        ours = [a[d] if ways == 2 else a for a in converted]
        for at, gate in enumerate(our_order):
            there = onnx_order.index(gate)
            new, old = (slice(i * hidden, i * hidden + hidden) for i in (at, there))
            np.testing.assert_array_equal(ours[0][new], w[d, old])
            np.testing.assert_array_equal(ours[1][new], r[d, old])
            both = b[d].reshape(2, g * hidden)
            np.testing.assert_array_equal(ours[2][:, new], both[:, old])
        if kind == "lstm":
            by_gate = dict(zip("iof", p[d].reshape(3, hidden), strict=True))
            np.testing.assert_array_equal(ours[3], [by_gate[gate] for gate in "ifo"])
    assert all(a.flags.c_contiguous and not np.may_share_memory(a, w) for a in converted)
    nothing = convert(w, r)
    assert all(a is None for a in nothing[2:])


W, R, B, P = (np.zeros(s, np.float32) for s in ((1, 12, 2), (1, 12, 3), (1, 24), (1, 9)))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: lstm_from_onnx(W.tolist(), R), TypeError, "w is list"),
        (lambda: lstm_from_onnx(W.astype("f2"), R), TypeError, "w has dtype float16"),
        (lambda: lstm_from_onnx(W[0], R), ValueError, "w has shape (12, 2); it must be (1 or 2, 4"),
        (lambda: lstm_from_onnx(W[:, :11], R), ValueError, "w has shape (1, 11, 2)"),
        (lambda: lstm_from_onnx(np.zeros((3, 12, 2)), R), ValueError, "w has shape (3, 12, 2)"),
        (lambda: gru_from_onnx(W[:, :0], R), ValueError, "it must be (1 or 2, 3 * hidden"),
        (lambda: lstm_from_onnx(W, R[0]), ValueError, "r has shape (12, 3); it must be (1, 12, 3)"),
        (lambda: gru_from_onnx(W, R), ValueError, "r has shape (1, 12, 3); it must be (1, 12, 4)"),
        (lambda: lstm_from_onnx(W, R.astype("f8")), TypeError, "r has dtype float64"),
        (lambda: lstm_from_onnx(W, R, B[:, :12]), ValueError, "b has shape (1, 12)"),
        (lambda: rnn_from_onnx(W, R), ValueError, "r has shape (1, 12, 3); it must be (1, 12, 12)"),
        (lambda: lstm_from_onnx(W, R, B, P[0]), ValueError, "p has shape (9,); it must be (1, 9)"),
        (lambda: lstm_from_onnx(W, None), TypeError, "r is NoneType"),
    ],
)  # fmt: skip
def test_bad_input(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        call()
    assert words in str(raised.value)
