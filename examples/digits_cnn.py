"""Train a convolutional network on handwritten digits, forward and backward by jitgen's kernels.

    pip install scikit-learn                 # its bundled digits: 1,797 images of 8 x 8 pixels
    python examples/digits_cnn.py            # at least 97 % of test images right
    python examples/digits_cnn.py --pool average --plot digits.png
    python examples/digits_cnn.py --compare  # the first 50 losses beside PyTorch's, same weights

Convolution 3 x 3 to 16 channels, relu, pooling 2 x 2, convolution 3 x 3 to 32, relu, pooling 2 x 2,
fully connected to 10 classes; arrays are NHWC. Exit code 1 if the accuracy stays below --least.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
from digits import parse, run

from jitgen import (
    Adam,
    AveragePool,
    Convolution,
    FullyConnected,
    MaxPool,
    Sgd,
    softmax_cross_entropy,
)

#: Input and output channels of the convolutions, and pixels a side of their images
CONVOLUTIONS = ((1, 16, 8), (16, 32, 4))
CLASSES = 10


class Cnn:
    """The network for batches of one size, with the methods of jitgen.primitives.train.mlp.Mlp.

    parameters: weight and bias of each layer, shaped as PyTorch's; they begin as PyTorch's do
    (uniform in +-1/sqrt(inputs)).
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.batch, threads = options.batch, options.threads
        pool = MaxPool if options.pool == "max" else AveragePool
        #: pairs of a convolution and what pools its output
        self.stages = [
            (
                Convolution(
                    self.batch, c, side, side, k, 3, padding=1, activation="relu", layout="nhwc",
                    threads=threads,
                ),
                pool(self.batch, k, side, side, 2, layout="nhwc", threads=threads),
            )
            for c, k, side in CONVOLUTIONS
        ]  # fmt: skip
        features = int(np.prod(self.stages[-1][1].y_shape[1:]))
        self.last = FullyConnected(self.batch, features, CLASSES, threads=threads)
        rng = np.random.default_rng(options.seed)
        self.parameters: list[np.ndarray] = []
        for shape in (*(conv.w_shape for conv, _ in self.stages), (CLASSES, features)):
            limit = float(np.prod(shape[1:])) ** -0.5
            for size in (shape, shape[:1]):
                self.parameters.append(rng.uniform(-limit, limit, size).astype(np.float32))

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The logits, batch x classes, of images of 64 pixels; what the layers made is kept."""
        self.outputs = [x.reshape(self.batch, 8, 8, 1)]
        for i, (conv, pool) in enumerate(self.stages):
            y = conv.forward(self.outputs[-1], *self.parameters[2 * i : 2 * i + 2])
            self.outputs += [y, pool.forward(y)]
        self.flat = self.outputs[-1].reshape(self.batch, -1)
        return self.last.forward(self.flat, *self.parameters[-2:])

    def gradients(self, x: np.ndarray, labels: np.ndarray) -> tuple[float, list[np.ndarray]]:
        """The loss of a batch, and the gradients of `parameters`."""
        loss, delta = softmax_cross_entropy(self.forward(x), labels)
        found: list[Any] = [*self.last.backward_weights(delta, self.flat)]
        delta = self.last.backward_data(delta, self.parameters[-2])
        for i in range(len(self.stages) - 1, -1, -1):
            (conv, pool), (before, y, after) = self.stages[i], self.outputs[2 * i : 2 * i + 3]
            delta = pool.backward(delta.reshape(after.shape), y)
            delta = conv.backward_activation(delta, y, out=delta)
            found = [*conv.backward_weights(delta, before), *found]
            if i:
                delta = conv.backward_data(delta, self.parameters[2 * i])
        return loss, found

    def train_step(self, x: np.ndarray, labels: np.ndarray, optimizer: Adam | Sgd) -> float:
        """One step of training on a batch; returns its loss before the step."""
        loss, gradients = self.gradients(x, labels)
        optimizer.step(gradients)
        return loss


def in_pytorch(network: Cnn) -> Any:
    """The same network, with the same weights."""
    import torch
    from torch import nn

    pool = nn.MaxPool2d if isinstance(network.stages[0][1], MaxPool) else nn.AvgPool2d
    modules: list[Any] = [nn.Unflatten(1, (1, 8, 8))]
    for c, k, _ in CONVOLUTIONS:
        modules += [nn.Conv2d(c, k, 3, padding=1), nn.ReLU(), pool(2)]
    modules += [nn.Flatten(), nn.Linear(network.parameters[-2].shape[1], CLASSES)]
    other = nn.Sequential(*modules)
    ours = [p.copy() for p in network.parameters]
    # PyTorch flattens channels x rows x columns
    _, rows, columns, channels = network.stages[-1][1].y_shape
    ours[-2] = ours[-2].reshape(CLASSES, rows, columns, channels).transpose(0, 3, 1, 2)
    for mine, theirs in zip(ours, other.parameters(), strict=True):
        theirs.data = torch.from_numpy(mine.reshape(theirs.shape).copy())
    return other


def main() -> int:
    """The command line."""
    pool = {"choices": ["max", "average"], "default": "max", "help": "kind of pooling (max)"}
    options = parse(__doc__, pool=pool, batch=32, optimizer="sgd")
    return run(Cnn(options), options, in_pytorch)


if __name__ == "__main__":
    sys.exit(main())
