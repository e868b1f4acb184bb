"""Recurrent layers over whole sequences: LSTM, GRU and the simple RNN; forward and backward.

    Lstm   i, f, o = sigmoid, g = tanh of w x + b_0 + r h' + b_1   (h', c': the step before)
           c = f c' + i g,  h = o tanh(c)
    Gru    rr, z = sigmoid of the same, n = tanh(w_n x + b_0n + rr (r_n h' + b_1n)), or, with
           reset="before", tanh(w_n x + b_0n + r_n (rr h') + b_1n);  h = (1 - z) n + z h'
    Rnn    h = tanh(w x + b_0 + r h' + b_1)

Weights have PyTorch's shapes and order of gates (i, f, g, o and r, z, n); D = 2 directions stack
theirs along a first axis. ONNX's tensors: `jitgen.primitives.rnn.onnx`. Not here: what the
layers share (`jitgen.primitives.layers.sequences`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jitgen import doors
from jitgen.primitives.layers.sequences import Recurrent
from jitgen.primitives.rnn.kept import PackedRecurrent
from jitgen.target import Target
from jitgen.types import DTypeLike

RESETS = ("after", "before")


class Lstm(Recurrent):
    """A long short-term memory layer for one size of batch and number of steps.

    direction: "forward", "reverse" (from the last step to the first) or "bidirectional" (both; the
    results side by side). forget_bias is added to the forget gate's bias; peephole: the gates see
    the cell's state through weights p. threads: None for OMP_NUM_THREADS or all CPUs. Raises
    TypeError or ValueError that names argument, value and rule.

    >>> layer = Lstm(2, 3, 4, 5)
    >>> x, w, r = (np.ones(layer.shapes[name], np.float32) for name in "xwr")
    >>> y, h, c = layer.forward(x, w, r, np.zeros(layer.shapes["b"], np.float32))
    >>> y.shape, h.shape, bool((y[-1] == h).all())
    ((3, 2, 5), (2, 5), True)
    """

    def __init__(
        self, batch: int, steps: int, in_features: int, hidden: int, *,
        direction: str = "forward", bias: bool = True, forget_bias: float = 0.0,
        peephole: bool = False, dtype: DTypeLike = "f32", threads: int | None = None,
        target: str | Target | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            "lstm", batch, steps, in_features, hidden, direction, bias, peephole, dtype, threads,
            target, forget_bias,
        )  # fmt: skip

    def forward(
        self, x: np.ndarray, w: np.ndarray | PackedRecurrent, r: np.ndarray | None,
        b: np.ndarray | None = None, h0: np.ndarray | None = None, c0: np.ndarray | None = None,
        *, p: np.ndarray | None = None, lengths: Any = None, training: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        """y (steps x batch x D hidden), and the last h and c, shaped like h0.

        Arguments have the shapes of `shapes`: b is PyTorch's bias_ih and bias_hh, p the weights of
        i, f and o. lengths: steps of each sequence; behind it y is 0, and the states stay.
        training: `backward` may follow.
        """
        y, h, c = self._forward(x, w, r, b, {"h0": h0, "c0": c0}, p, lengths, training)
        return y, h, c

    def backward(
        self, dy: np.ndarray, dh: np.ndarray | None = None, dc: np.ndarray | None = None
    ) -> tuple[Any, ...]:
        """dx, dw, dr, db, dh0, dc0 and, with peepholes, dp: the gradients of the last forward pass
        with training=True, from those of y and of the last h and c (None: 0)."""
        return tuple(self._backward(dy, {"dh": dh, "dc": dc}))


class _WithoutCell(Recurrent):
    """A layer whose only state is h."""

    def forward(
        self, x: np.ndarray, w: np.ndarray | PackedRecurrent, r: np.ndarray | None,
        b: np.ndarray | None = None, h0: np.ndarray | None = None, *, lengths: Any = None,
        training: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """y (steps x batch x D hidden) and the last h; see `Lstm.forward`."""
        y, h = self._forward(x, w, r, b, {"h0": h0}, None, lengths, training)
        return y, h

    def backward(self, dy: np.ndarray, dh: np.ndarray | None = None) -> tuple[Any, ...]:
        """dx, dw, dr, db, dh0; see `Lstm.backward`."""
        return tuple(self._backward(dy, {"dh": dh}))


class Gru(_WithoutCell):
    """A gated recurrent unit. reset: "after" the recurrent product, as PyTorch has it, or "before"
    (ONNX with linear_before_reset=0). Else as `Lstm`."""

    def __init__(
        self, batch: int, steps: int, in_features: int, hidden: int, *,
        direction: str = "forward", bias: bool = True, reset: str = "after",
        dtype: DTypeLike = "f32", threads: int | None = None, target: str | Target | None = None,
    ) -> None:  # fmt: skip
        reset = doors.one_of("reset", reset, RESETS)
        super().__init__(
            "gru" if reset == "after" else "gru_before", batch, steps, in_features, hidden,
            direction, bias, False, dtype, threads, target,
        )  # fmt: skip


class Rnn(_WithoutCell):
    """The simple recurrent layer, with tanh. Else as `Lstm`."""

    def __init__(
        self, batch: int, steps: int, in_features: int, hidden: int, *,
        direction: str = "forward", bias: bool = True, dtype: DTypeLike = "f32",
        threads: int | None = None, target: str | Target | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            "rnn", batch, steps, in_features, hidden, direction, bias, False, dtype, threads, target
        )
