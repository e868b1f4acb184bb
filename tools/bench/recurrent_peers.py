"""Who takes part in ``python -m tools.bench lstm``: jitgen's layers, PyTorch, ONNX Runtime.

What it is: the data of one pass of one layer, what is right, and for each contestant a callable
that computes it, called as a Python program calls it.
What it is not: it times nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jitgen.primitives.layers.arrays import aligned
from jitgen.primitives.layers.recurrent import Gru, Lstm
from tools.bench import onnx as bench_onnx
from tools.bench.child import Way

GATES = {"lstm": 4, "gru": 3}
#: The order of our gates (i, f, g, o and r, z, n) in ONNX's (i, o, f, c and z, r, h)
ONNX_ORDER = {"lstm": [0, 3, 1, 2], "gru": [1, 0, 2]}
#: oneDNN's number of an LSTM in PyTorch
MODE_LSTM = 2
PEERS = ("torch", "onednn packed", "onnxruntime")
#: Lengths of n sequences of at most t steps, by name: a tenth for all, or from a tenth to all
LENGTHS: dict[str, Callable[[int, int], np.ndarray]] = {
    "short": lambda n, t: np.full(n, max(1, t // 10)),
    "mixed": lambda n, t: np.random.default_rng(1).integers(max(1, t // 10), t + 1, n),
}
#: Of results, relative to the largest of their array
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """A layer: n sequences of t steps, c input features, k hidden units; `lengths` of the
    sequences: the name of a kind in `LENGTHS`, or "" if all have all steps."""

    cell: str
    n: int
    t: int
    c: int
    k: int
    lengths: str = ""

    @property
    def gates(self) -> int:
        """Products for each unit."""
        return GATES[self.cell]

    def steps(self) -> np.ndarray:
        """Steps of each sequence."""
        if not self.lengths:
            return np.full(self.n, self.t)
        return LENGTHS[self.lengths](self.n, self.t)

    def flops(self, which: str) -> int:
        """Floating-point operations of the products of a pass; backward has two for each."""
        product = 2 * int(self.steps().sum()) * self.gates * self.k * (self.c + self.k)
        return product if which == "forward" else 2 * product

    def __str__(self) -> str:
        return f"{self.n}x{self.t}x{self.c}x{self.k}"


class Problem:
    """The arrays of a pass, f32, weights as PyTorch initialises them; states begin at zero."""

    def __init__(self, case: Case, which: str) -> None:
        self.case, self.which = case, which
        rng = np.random.default_rng(1)
        n, t, c, k, rows = case.n, case.t, case.c, case.k, case.gates * case.k
        bound = k**-0.5
        #: steps of each sequence, and which steps lie behind it; None: all have all
        self.lengths = case.steps() if case.lengths else None
        self.behind = np.arange(t)[:, None] >= case.steps()
        self.x = _random(rng, (t, n, c), 1.0)
        self.w = _random(rng, (rows, c), bound)
        self.r = _random(rng, (rows, k), bound)
        self.b = _random(rng, (2, rows), bound)
        self.dy = _random(rng, (t, n, k), 1.0)

    @cached_property
    def _expected(self) -> list[np.ndarray]:
        doubles = [a.astype(np.float64) for a in (self.x, self.w, self.r, self.b, self.dy)]
        doubles[-1][self.behind] = 0  # no gradient comes from there, and so none goes there
        results = (lstm if self.case.cell == "lstm" else gru)(*doubles)
        results[0][self.behind] = 0
        return results[:1] if self.which == "forward" else results[1:]

    def check(self, compute: Callable[[], tuple[Any, ...]]) -> str | None:
        """What is wrong with (y,) or (dx, dw, dr, db) of a contestant, or None."""
        found = [np.asarray(result, np.float64) for result in compute()]
        if [f.shape for f in found] != [e.shape for e in self._expected]:
            return f"wrong shapes {[f.shape for f in found]}"
        worst = 0.0
        for f, expected in zip(found, self._expected, strict=True):
            error = np.abs(f - expected).max() / np.abs(expected).max()
            worst = max(worst, float(error)) if np.isfinite(error) else np.inf
        return None if worst <= TOLERANCE else f"wrong result, relative error {worst:.1e}"


def _random(rng: np.random.Generator, shape: tuple[int, ...], bound: float) -> np.ndarray:
    result = aligned(shape, "f32")
    result[...] = rng.uniform(-bound, bound, shape)
    return result


# ---- what is right ------------------------------------------------------------------------------


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _products(
    x: np.ndarray, w: np.ndarray, r: np.ndarray, h: np.ndarray, inputs: np.ndarray,
    states: np.ndarray,
) -> list[np.ndarray]:  # fmt: skip
    """dx, dw, dr, db of the gradients of gates: of x's product and of that of the states h."""
    both = np.stack([inputs.sum((0, 1)), states.sum((0, 1))])
    dw, dr = (np.tensordot(a, b, ([0, 1], [0, 1])) for a, b in ((inputs, x), (states, h)))
    return [inputs @ w, dw, dr, both]


def lstm(
    x: np.ndarray, w: np.ndarray, r: np.ndarray, b: np.ndarray, dy: np.ndarray
) -> list[np.ndarray]:
    """y, dx, dw, dr, db of an LSTM in the arrays' own type."""
    t, n, k = dy.shape
    h, c = np.zeros((t + 1, n, k), x.dtype), np.zeros((t + 1, n, k), x.dtype)
    gates = x @ w.T + b.sum(0)
    for s in range(t):
        i, f, g, o = np.split(gates[s] + h[s] @ r.T, 4, 1)
        i, f, g, o = _sigmoid(i), _sigmoid(f), np.tanh(g), _sigmoid(o)
        gates[s] = np.hstack([i, f, g, o])
        c[s + 1] = f * c[s] + i * g
        h[s + 1] = o * np.tanh(c[s + 1])
    inner, dh, dc = np.empty_like(gates), np.zeros((n, k), x.dtype), np.zeros((n, k), x.dtype)
    for s in reversed(range(t)):
        i, f, g, o = np.split(gates[s], 4, 1)
        out = np.tanh(c[s + 1])
        dh = dh + dy[s]
        dc = dc + dh * o * (1 - out**2)
        inner[s] = np.hstack([
            dc * g * i * (1 - i), dc * c[s] * f * (1 - f), dc * i * (1 - g**2),
            dh * out * o * (1 - o),
        ])  # fmt: skip
        dc, dh = dc * f, inner[s] @ r
    return [h[1:], *_products(x, w, r, h[:-1], inner, inner)]


def gru(
    x: np.ndarray, w: np.ndarray, r: np.ndarray, b: np.ndarray, dy: np.ndarray
) -> list[np.ndarray]:
    """y, dx, dw, dr, db of a GRU (reset after the product) in the arrays' own type."""
    t, n, k = dy.shape
    h = np.zeros((t + 1, n, k), x.dtype)
    inputs, states = x @ w.T + b[0], np.empty((t, n, 3 * k), x.dtype)
    gates = np.empty_like(inputs)
    for s in range(t):
        states[s] = h[s] @ r.T + b[1]
        (xr, xz, xn), (hr, hz, hn) = np.split(inputs[s], 3, 1), np.split(states[s], 3, 1)
        reset, z = _sigmoid(xr + hr), _sigmoid(xz + hz)
        new = np.tanh(xn + reset * hn)
        gates[s] = np.hstack([reset, z, new])
        h[s + 1] = (1 - z) * new + z * h[s]
    by_x, by_h, dh = np.empty_like(gates), np.empty_like(gates), np.zeros((n, k), x.dtype)
    for s in reversed(range(t)):
        reset, z, new = np.split(gates[s], 3, 1)
        dh = dh + dy[s]
        dz = dh * (h[s] - new) * z * (1 - z)
        dn = dh * (1 - z) * (1 - new**2)
        dr = dn * states[s, :, 2 * k :] * reset * (1 - reset)
        by_x[s], by_h[s] = np.hstack([dr, dz, dn]), np.hstack([dr, dz, dn * reset])
        dh = dh * z + by_h[s] @ r
    return [h[1:], *_products(x, w, r, h[:-1], by_x, by_h)]


# ---- contestants --------------------------------------------------------------------------------


def jitgen(problem: Problem, threads: int) -> Way:
    """Forward with packed weights; backward after a forward pass that is not timed."""
    p = problem
    layer, packed = _layer(p, p.case.t, threads)
    if p.which == "forward":
        return Way(
            lambda: layer.forward(p.x, packed, None, p.b, lengths=p.lengths),
            lambda result: result[:1],
        )
    layer.forward(p.x, packed, None, p.b, lengths=p.lengths, training=True)
    return Way(lambda: layer.backward(p.dy), lambda result: result[:4])


def jitgen_longest(problem: Problem, threads: int) -> Way:
    """The same without lengths, for as many steps as the longest sequence has."""
    p, steps = problem, int(problem.case.steps().max())
    layer, packed = _layer(p, steps, threads)
    x, dy, behind = p.x[:steps], p.dy[:steps].copy(), p.behind[:steps]
    dy[behind] = 0

    def read(result: Any) -> tuple[Any, ...]:
        found = np.zeros((p.case.t, *result[0].shape[1:]), np.float32)
        found[:steps] = result[0]
        found[p.behind] = 0
        return (found,) if p.which == "forward" else (found, *result[1:4])

    if p.which == "forward":
        return Way(lambda: layer.forward(x, packed, None, p.b), read)
    layer.forward(x, packed, None, p.b, training=True)
    return Way(lambda: layer.backward(dy), read)


def _layer(problem: Problem, steps: int, threads: int) -> tuple[Any, Any]:
    """A layer and its packed weights."""
    at = problem.case
    kind: Any = Lstm if at.cell == "lstm" else Gru
    layer = kind(at.n, steps, at.c, at.k, threads=threads)
    return layer, layer.pack_weights(problem.w, problem.r)


def torch_ways(problem: Problem) -> Iterator[tuple[str, Callable[[], Way]]]:
    """PyTorch's ways, by name: its module and its autograd; its oneDNN layer on packed weights,
    where all sequences have all steps (with lengths the module gets them packed)."""
    import torch

    p, at = problem, problem.case
    arrays = (p.w, p.r, p.b[0], p.b[1])
    x, dy = torch.from_numpy(p.x), torch.from_numpy(p.dy)
    lengths = torch.from_numpy(at.steps())

    def module() -> Way:
        kind = torch.nn.LSTM if at.cell == "lstm" else torch.nn.GRU
        layer = kind(at.c, at.k)
        for name, array in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), arrays,
                               strict=True):  # fmt: skip
            getattr(layer, f"{name}_l0").data[:] = torch.from_numpy(array)
        def run(given: Any) -> Any:
            if p.lengths is None:
                return layer(given)[0]
            packed = torch.nn.utils.rnn.pack_padded_sequence(given, lengths, enforce_sorted=False)
            return torch.nn.utils.rnn.pad_packed_sequence(layer(packed)[0], total_length=at.t)[0]

        if p.which == "forward":
            return Way(lambda: run(x), lambda result: (result,))
        with torch.enable_grad():
            given = x.clone().requires_grad_()
            y = run(given)
        towards, gradient = [given, *layer.parameters()], torch.autograd.grad
        return Way(
            lambda: gradient(y, towards, dy, retain_graph=True),
            lambda found: (*found[:3], torch.stack(found[3:])),
        )

    yield "torch", module
    if at.cell != "lstm" or p.which != "forward" or at.lengths:
        return

    def packed() -> Way:
        w, r, b, more = (torch.from_numpy(array) for array in arrays)
        pack = torch.ops.mkldnn._reorder_mkldnn_rnn_layer_weight
        w, r = pack(w, r, at.k, False, True, False, list(x.shape))
        layer, state = torch.ops.aten.mkldnn_rnn_layer, torch.zeros(1, at.n, at.k)
        how = (False, [], MODE_LSTM, at.k, 1, True, False, False, False)
        return Way(lambda: layer(x, w, r, b, more, state, state, *how), lambda found: found[:1])

    yield "onednn packed", packed


def onnxruntime_way(problem: Problem, threads: int) -> Way:
    """Forward in ONNX Runtime: one node LSTM or GRU, weights constant."""
    from onnx.helper import make_node

    p, at = problem, problem.case
    node = make_node(
        at.cell.upper(), ["x", "w", "r", "b"], ["y"], hidden_size=at.k,
        **({"linear_before_reset": 1} if at.cell == "gru" else {}),
    )  # fmt: skip

    def reordered(array: np.ndarray) -> np.ndarray:
        gates = array.reshape(at.gates, at.k, -1)[ONNX_ORDER[at.cell]]
        return gates.reshape(1, at.gates * at.k, -1)

    b = np.concatenate([reordered(row).ravel() for row in p.b])[None]
    constants = {"w": reordered(p.w), "r": reordered(p.r), "b": b}
    y = np.full((at.t, 1, at.n, at.k), np.nan, np.float32)
    model = bench_onnx.Model([node], constants, {"x": p.x}, {"y": y}, threads)
    return Way(model.run, lambda found: (found[0][:, 0],))
