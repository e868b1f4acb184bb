"""The float64 cells that layers are compared with, against finite differences and PyTorch.

ONNX's own tests run on them in test_recurrent_onnx. Not here: the layers (test_recurrent).
"""

from __future__ import annotations

from typing import Any

import needs
import numpy as np
import pytest
from random_cases import SEED
from recurrent_oracle import DIRECTIONS, GATES, Cell, backward, forward

#: what PyTorch has too, and the rest
SHARED = [Cell(kind, direction) for direction in DIRECTIONS for kind in GATES]
CELLS = SHARED + [
    Cell(kind, direction, reset, forget_bias, peephole)
    for direction in DIRECTIONS
    for kind, reset, forget_bias, peephole in (
        ("gru", "before", 0.0, False), ("lstm", "after", 1.5, False), ("lstm", "after", 0.5, True),
    )
]  # fmt: skip
BATCH, STEPS, FEATURES, HIDDEN = 3, 4, 2, 3


def arrays_of(cell: Cell) -> dict[str, Any]:
    """Random arrays of every name."""
    rng = np.random.default_rng(SEED)
    shapes = cell.shapes(BATCH, STEPS, FEATURES, HIDDEN)
    return {name: rng.uniform(-1, 1, shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("cell", CELLS, ids=str)
@pytest.mark.parametrize("lengths", [None, (4, 0, 2)])
def test_gradients_are_differences(cell: Cell, lengths: tuple[int, ...] | None) -> None:
    """The loss's change along every single element, central differences."""
    arrays = arrays_of(cell)
    dy = arrays.pop("dy")
    rng = np.random.default_rng(SEED + 1)
    dh, dc = (rng.uniform(-1, 1, arrays["h0"].shape) for _ in "hc")
    long = None if lengths is None else np.array(lengths)

    def loss() -> float:
        done = forward(cell, arrays, long)
        return float((done.y * dy).sum() + (done.h * dh).sum() + (done.c * dc).sum())

    exact = backward(cell, arrays, forward(cell, arrays, long), dy, dh, dc)
    step = 1e-5
    for name, array in arrays.items():
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + step
            high = loss()
            array[index] = kept - step
            low = loss()
            array[index] = kept
            assert abs((high - low) / (2 * step) - exact[name][index]) < 1e-8, (name, index)


@pytest.mark.parametrize("cell", SHARED, ids=str)
@pytest.mark.parametrize("lengths", [None, (4, 1, 2)])
def test_pytorch(cell: Cell, lengths: tuple[int, ...] | None) -> None:
    """Outputs and gradients in double precision."""
    needs.need_torch()
    import torch

    arrays = arrays_of(cell)
    dy = arrays.pop("dy")
    rng = np.random.default_rng(SEED + 1)
    dh, dc = (rng.uniform(-1, 1, arrays["h0"].shape) for _ in "hc")
    long = None if lengths is None else np.array(lengths)
    done = forward(cell, arrays, long)
    exact = backward(cell, arrays, done, dy, dh, dc)

    # PyTorch has no layer that runs in reverse alone: half of one that runs both ways
    reverse, ways = cell.direction == "reverse", DIRECTIONS[cell.direction]
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[cell.kind]
    module: Any = kind(FEATURES, HIDDEN, bidirectional=ways == 2 or reverse).double()
    lead = {n: a if n == "x" or ways == 2 else a[None] for n, a in arrays.items()}
    suffixes = ["_reverse"] if reverse else ["", "_reverse"][:ways]
    places: dict[str, Any] = {}
    for d, suffix in enumerate(suffixes):
        for name, ours in (("weight_ih", lead["w"][d]), ("weight_hh", lead["r"][d]),
                           ("bias_ih", lead["b"][d, 0]), ("bias_hh", lead["b"][d, 1])):  # fmt: skip
            parameter = getattr(module, f"{name}_l0{suffix}")
            parameter.data[:] = torch.from_numpy(ours)
            places[name, d] = parameter
    x, h0, c0 = (torch.tensor(lead[n], requires_grad=True) if n in lead else None
                 for n in ("x", "h0", "c0"))  # fmt: skip
    assert x is not None
    states = [s if not reverse else torch.cat([torch.zeros_like(s), s]) for s in (h0, c0)
              if s is not None]  # fmt: skip
    given: Any = x
    if lengths is not None:
        given = torch.nn.utils.rnn.pack_padded_sequence(x, list(lengths), enforce_sorted=False)
    y, last = module(given, tuple(states) if len(states) == 2 else states[0])
    if lengths is not None:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=STEPS)
    finals = list(last) if len(states) == 2 else [last]
    if reverse:
        y, finals = y[:, :, HIDDEN:], [f[1:] for f in finals]
    weights = [dh, dc][: len(finals)]
    loss = (y * torch.from_numpy(dy)).sum() + sum(
        (f * torch.from_numpy(g).reshape(f.shape)).sum()
        for f, g in zip(finals, weights, strict=True)
    )
    loss.backward()

    def same(got: np.ndarray, tensor: Any) -> None:
        np.testing.assert_allclose(got.reshape(tensor.shape), tensor.numpy(), atol=1e-12)

    same(done.y, y.detach())
    for ours, theirs in zip((done.h, done.c)[: len(finals)], finals, strict=True):
        same(ours, theirs.detach())
    same(exact["x"], x.grad)
    for name, tensor in (("h0", h0), ("c0", c0)):
        if tensor is not None:
            same(exact[name], tensor.grad)
    total = {n: a if ways == 2 else a[None] for n, a in exact.items() if n != "x"}
    for d in range(ways):
        same(total["w"][d], places["weight_ih", d].grad)
        same(total["r"][d], places["weight_hh", d].grad)
        same(total["b"][d, 0], places["bias_ih", d].grad)
        same(total["b"][d, 1], places["bias_hh", d].grad)


def test_the_forget_bias_is_a_bias() -> None:
    cell = Cell("lstm", "bidirectional", forget_bias=1.5)
    arrays = arrays_of(cell)
    done = forward(cell, arrays)
    arrays["b"][:, 1, HIDDEN : 2 * HIDDEN] += 1.5
    np.testing.assert_allclose(forward(Cell("lstm", cell.direction), arrays).y, done.y, atol=1e-14)
    assert np.abs(forward(cell, arrays).y - done.y).max() > 1e-3
