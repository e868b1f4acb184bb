"""A multi-layer perceptron: fully connected layers, softmax cross-entropy, a training step.

Not here: the layers' passes (`jitgen.primitives.layers.fully_connected`) and the updates
(`jitgen.primitives.train.optimizers`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jitgen import doors
from jitgen.emit.steps import STEPS
from jitgen.frozen import Frozen
from jitgen.primitives.layers.elementwise import is_signed, make_activation
from jitgen.primitives.layers.fully_connected import FullyConnected
from jitgen.primitives.train.optimizers import Adam, Optimizer, Sgd
from jitgen.types import NUMPY, DTypeLike


def softmax_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean loss of a batch and its gradient by the logits (batch x classes, float32 or float64, any
    strides); labels (batch,) are integers below `classes`. TypeError, ValueError: argument, value
    and rule."""
    doors.floats("logits", logits)
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits has shape {logits.shape}; it must be (batch, classes), none zero")
    batch, classes = logits.shape
    labels = doors.indices("labels", labels, batch, classes - 1)
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(axis=1, keepdims=True)
    rows = np.arange(batch)
    loss = float((np.log(sums[:, 0]) - shifted[rows, labels]).mean())
    gradient = exponentials / sums
    gradient[rows, labels] -= 1
    gradient /= batch
    return loss, gradient


class Mlp(Frozen):
    """Fully connected layers of sizes[0] -> sizes[1] -> ..., `activation` between them: one whose
    gradient is made from its output.

    weights[i] is (sizes[i + 1], sizes[i]) and biases[i] (sizes[i + 1],), as PyTorch has them; they
    begin as PyTorch's do (uniform in +-1/sqrt(inputs)) from `seed`, and may be overwritten in
    place. Raises TypeError or ValueError that names argument, value and rule.
    """

    def __init__(
        self, batch: int, sizes: Sequence[int], *, activation: Any = "relu",
        dtype: DTypeLike = "f32", threads: int | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        given = enumerate(doors.items("sizes", sizes))
        sizes = tuple(doors.size(f"sizes[{i}]", c) for i, c in given)
        if len(sizes) < 2:
            shown = doors.shown(sizes)
            raise ValueError(f"sizes={shown}: a network has at least two, inputs and outputs")
        dtype, batch = doors.dtype("dtype", dtype), doors.size("batch", batch)
        step = make_activation(activation, dtype)
        if step is None or STEPS[step[0]].known != "y" or is_signed(step):
            raise ValueError(
                f"activation={doors.shown(activation)}: the gradient of a network's activation is "
                "made from its output alone"
            )
        seed = doors.size("seed", seed, 0, None)
        last = len(sizes) - 2
        self.layers = tuple(
            FullyConnected(
                batch, c, k, activation=step if i < last else None, dtype=dtype,
                threads=threads,
            )
            for i, (c, k) in enumerate(itertools.pairwise(sizes))
        )  # fmt: skip
        rng = np.random.default_rng(seed)
        kind = NUMPY[dtype]
        weights, biases = [], []
        for c, k in itertools.pairwise(sizes):
            limit = c**-0.5
            weights.append(rng.uniform(-limit, limit, (k, c)).astype(kind))
            biases.append(rng.uniform(-limit, limit, k).astype(kind))
        self.weights, self.biases = tuple(weights), tuple(biases)
        self.batch = batch
        self.classes = sizes[-1]
        self._allocate(batch)

    def __repr__(self) -> str:
        sizes = [self.weights[0].shape[1], *map(len, self.biases)]
        return f"<primitives.Mlp {' -> '.join(map(str, sizes))}, batch={self.batch}>"

    def _allocate(self, batch: int) -> None:
        """Arrays that every step writes again; a copy of the network has its own."""
        kind = NUMPY[self.layers[0].layer.dtype]
        self._gradients = [
            (np.empty(w.shape, kind), np.empty(b.shape, kind))
            for w, b in zip(self.weights, self.biases, strict=True)
        ]
        self._outputs = [np.empty((batch, len(b)), kind) for b in self.biases]
        self._deltas = [np.empty_like(y) for y in self._outputs[:-1]]

    def __getstate__(self) -> dict[str, Any]:
        own = ("_gradients", "_outputs", "_deltas")
        return {n: value for n, value in super().__getstate__().items() if n not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._allocate(self.batch)

    @property
    def parameters(self) -> list[np.ndarray]:
        """Weights and biases of all layers, as the optimizers take them."""
        return [p for pair in zip(self.weights, self.biases, strict=True) for p in pair]

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The logits, batch x classes, for any batch; the array is overwritten by the next call."""
        x = doors.view("x", x)
        if x.shape[1:] == self.weights[0].shape[1:] and len(x) not in (0, len(self._outputs[0])):
            self._allocate(len(x))
        for layer, w, b, out in zip(
            self.layers, self.weights, self.biases, self._outputs, strict=True
        ):
            x = layer.forward(x, w, b, out)
        return x

    def gradients(self, x: np.ndarray, labels: np.ndarray) -> tuple[float, list[np.ndarray]]:
        """The loss of a batch, and the gradients of `parameters` (overwritten by the next call).

        x: batch x inputs; labels: (batch,) integers below `classes`.
        """
        logits = self.forward(x)
        loss, delta = softmax_cross_entropy(logits, labels)
        for i in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[i]
            before = self._outputs[i - 1] if i else x
            layer.backward_weights(delta, before, out=self._gradients[i])
            if i:
                delta = layer.backward_data(delta, self.weights[i], out=self._deltas[i - 1])
                delta = self.layers[i - 1].backward_activation(delta, before, out=delta)
        return loss, [g for pair in self._gradients for g in pair]

    def train_step(self, x: np.ndarray, labels: np.ndarray, optimizer: Sgd | Adam) -> float:
        """One step of training on a batch; returns its loss before the step. The optimizer is one
        of `parameters`."""
        doors.instance("optimizer", optimizer, Optimizer)
        own = self.parameters
        if [id(p) for p in optimizer.parameters] != [id(p) for p in own]:
            raise ValueError(
                "optimizer was made for other arrays than this network's parameters (a network and "
                "its optimizer belong in one pickle or deepcopy)"
            )
        loss, gradients = self.gradients(x, labels)
        optimizer.step(gradients)
        return loss
