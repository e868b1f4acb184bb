"""LSTM, GRU and tanh cells in float64: both passes, one sequence and one step after the other.

What `jitgen.primitives.layers.recurrent` must compute, written as its equations stand, for any
direction, length of the sequences and initial state. Checked by finite differences, PyTorch and
ONNX's own tests (test_recurrent_oracle). Not here: how far off a layer in f32 may be
(test_recurrent).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: gates by cell: i, f, g, o; r, z, n; one
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
#: the arrays of a problem; an absent one is None
ARRAYS = ("x", "w", "r", "b", "h0", "c0", "p")
Arrays = Mapping[str, np.ndarray | None]


@dataclass(frozen=True)
class Cell:
    """Which equations: kind is a key of GATES, reset says where the GRU applies r ("after" or
    "before")."""

    kind: str
    direction: str = "forward"
    reset: str = "after"
    forget_bias: float = 0.0
    peephole: bool = False

    def shapes(self, batch: int, steps: int, features: int, hidden: int) -> dict[str, Any]:
        """The shape of every array the cell can take."""
        g, states = GATES[self.kind], (batch, hidden)
        ways = DIRECTIONS[self.direction]
        both = (ways,) if ways == 2 else ()
        shapes: dict[str, Any] = {
            "x": (steps, batch, features), "w": (*both, g * hidden, features),
            "r": (*both, g * hidden, hidden), "b": (*both, 2, g * hidden), "h0": (*both, *states),
            "c0": (*both, *states), "p": (*both, 3, hidden), "dy": (steps, batch, ways * hidden),
        }  # fmt: skip
        if self.kind != "lstm":
            del shapes["c0"]
        if not self.peephole:
            del shapes["p"]
        return shapes


@dataclass
class Forward:
    """What the forward pass gives: y, h and c (c is zero for cells without one) as the layers
    have them, and by direction and sequence the steps that the backward pass goes back over."""

    y: np.ndarray
    h: np.ndarray
    c: np.ndarray
    steps: list[list[list[tuple[int, dict[str, np.ndarray]]]]] = field(default_factory=list)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x)."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def split(cell: Cell, arrays: Arrays, hidden: int) -> dict[str, np.ndarray]:
    """Every array in float64 with an axis of directions in front (x without); absent ones zero."""
    ways = DIRECTIONS[cell.direction]
    x, w = arrays["x"], arrays["w"]
    assert x is not None and w is not None
    shapes = cell.shapes(x.shape[1], x.shape[0], x.shape[2], hidden)
    shapes.setdefault("c0", shapes["h0"])
    shapes.setdefault("p", (*shapes["b"][:-2], 3, hidden))
    full = {}
    for name in ARRAYS:
        given = arrays.get(name)
        shape = shapes[name] if name == "x" or ways == 2 else (1, *shapes[name])
        array = np.zeros(shape) if given is None else given.astype(np.float64)
        full[name] = array.reshape(shape)
    return full


def forward(cell: Cell, arrays: Arrays, lengths: np.ndarray | None = None) -> Forward:
    """Run all sequences; `arrays` has the shapes of Cell.shapes."""
    x, r = arrays["x"], arrays["r"]
    assert x is not None and r is not None
    (steps, batch, _), hidden, ways = x.shape, r.shape[-1], DIRECTIONS[cell.direction]
    full = split(cell, arrays, hidden)
    y = np.zeros((steps, batch, ways * hidden))
    states_h, states_c = full["h0"].copy(), full["c0"].copy()
    result = Forward(y, states_h, states_c)
    for d in range(ways):
        weights = {name: full[name][d] for name in ("w", "r", "b", "p")}
        result.steps.append([])
        for n in range(batch):
            h, c = full["h0"][d, n], full["c0"][d, n]
            times = list(range(steps if lengths is None else int(lengths[n])))
            if cell.direction == "reverse" or d == 1:
                times.reverse()
            done = []
            for t in times:
                state = step(cell, weights, full["x"][t, n], h, c)
                h, c = state["h"], state["c"]
                y[t, n, d * hidden : (d + 1) * hidden] = h
                done.append((t, state))
            states_h[d, n], states_c[d, n] = h, c
            result.steps[d].append(done)
    if ways == 1:
        result.h, result.c = states_h[0], states_c[0]
    return result


def step(
    cell: Cell, weights: dict[str, np.ndarray], x: np.ndarray, before: np.ndarray, c: np.ndarray
) -> dict[str, np.ndarray]:
    """One step of one sequence: the new h and c, and what the backward pass needs."""
    (b0, b1), (p_i, p_f, p_o) = weights["b"], weights["p"]
    u = weights["w"] @ x + b0
    v = weights["r"] @ before + b1
    kept = {"x": x, "before": before, "c_before": c, "c": c}
    if cell.kind == "rnn":
        return {**kept, "h": np.tanh(u + v)}
    if cell.kind == "lstm":
        a_i, a_f, a_g, a_o = np.split(u + v, 4)
        i = sigmoid(a_i + p_i * c)
        f = sigmoid(a_f + p_f * c + cell.forget_bias)
        g = np.tanh(a_g)
        new = f * c + i * g
        o = sigmoid(a_o + p_o * new)
        return {**kept, "i": i, "f": f, "g": g, "o": o, "c": new, "h": o * np.tanh(new)}
    (u_r, u_z, u_n), (v_r, v_z, v_n) = np.split(u, 3), np.split(v, 3)
    r, z = sigmoid(u_r + v_r), sigmoid(u_z + v_z)
    if cell.reset == "before":
        hidden = len(before)
        v_n = weights["r"][2 * hidden :] @ (r * before) + b1[2 * hidden :]
        n = np.tanh(u_n + v_n)
    else:
        n = np.tanh(u_n + r * v_n)
    return {**kept, "r": r, "z": z, "n": n, "v_n": v_n, "h": (1 - z) * n + z * before}


def backward(
    cell: Cell, arrays: Arrays, done: Forward, dy: np.ndarray, dh: np.ndarray | None = None,
    dc: np.ndarray | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Gradients of sum(y dy) + sum(h dh) + sum(c dc) by every array, by their names."""
    r = arrays["r"]
    assert r is not None
    hidden, ways = r.shape[-1], DIRECTIONS[cell.direction]
    full = split(cell, arrays, hidden)
    total = {name: np.zeros(array.shape) for name, array in full.items()}
    batch = dy.shape[1]
    last_h = np.zeros((ways, batch, hidden)) if dh is None else dh.reshape(ways, batch, hidden)
    last_c = np.zeros((ways, batch, hidden)) if dc is None else dc.reshape(ways, batch, hidden)
    for d in range(ways):
        weights = {name: full[name][d] for name in ("w", "r", "b", "p")}
        sums = {name: total[name][d] for name in ("w", "r", "b", "p")}
        for n in range(batch):
            to_h, to_c = last_h[d, n].astype(np.float64), last_c[d, n].astype(np.float64)
            for t, state in reversed(done.steps[d][n]):
                to_h = to_h + dy[t, n, d * hidden : (d + 1) * hidden]
                dx, to_h, to_c = step_back(cell, weights, state, to_h, to_c, sums)
                total["x"][t, n] += dx
            total["h0"][d, n], total["c0"][d, n] = to_h, to_c
    if ways == 1:
        total = {name: t if name == "x" else t[0] for name, t in total.items()}
    return total


def step_back(
    cell: Cell, weights: dict[str, np.ndarray], s: dict[str, np.ndarray], dh: np.ndarray,
    dc: np.ndarray, sums: dict[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Back over one step: gradients by x, h and c before it; those by weights are added to sums."""
    before = s["before"]
    direct = np.zeros_like(dh)
    #: rows of R that multiply h itself; the others multiply r h
    head = len(weights["r"])
    tail_input = before
    if cell.kind == "rnn":
        du = dv = dh * (1 - s["h"] ** 2)
    elif cell.kind == "lstm":
        i, f, g, o, t = s["i"], s["f"], s["g"], s["o"], np.tanh(s["c"])
        p_i, p_f, p_o = weights["p"]
        d_o = dh * t * o * (1 - o)
        dc = dc + dh * o * (1 - t * t) + d_o * p_o
        d_i = dc * g * i * (1 - i)
        d_f = dc * s["c_before"] * f * (1 - f)
        d_g = dc * i * (1 - g * g)
        sums["p"] += [d_i * s["c_before"], d_f * s["c_before"], d_o * s["c"]]
        dc = dc * f + d_i * p_i + d_f * p_f
        du = dv = np.concatenate([d_i, d_f, d_g, d_o])
    else:
        r, z, n = s["r"], s["z"], s["n"]
        d_n = dh * (1 - z) * (1 - n * n)
        d_z = dh * (before - n) * z * (1 - z)
        direct = dh * z
        if cell.reset == "before":
            head, tail_input = 2 * len(dh), r * before
            to_input = weights["r"][head:].T @ d_n
            d_r = to_input * before * r * (1 - r)
            direct += to_input * r
            du = dv = np.concatenate([d_r, d_z, d_n])
        else:
            d_r = d_n * s["v_n"] * r * (1 - r)
            du = np.concatenate([d_r, d_z, d_n])
            dv = np.concatenate([d_r, d_z, d_n * r])
    sums["b"] += [du, dv]
    sums["w"] += np.outer(du, s["x"])
    sums["r"][:head] += np.outer(dv[:head], before)
    sums["r"][head:] += np.outer(dv[head:], tail_input)
    return weights["w"].T @ du, direct + weights["r"][:head].T @ dv[:head], dc
