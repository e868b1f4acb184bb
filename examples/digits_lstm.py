"""Train an LSTM on real handwritten digits: it reads an image row by row, top to bottom.

    python examples/digits_lstm.py            # 8 steps of 8 pixels, 64 hidden units, 10 classes
    python examples/digits_lstm.py --plot digits.png --optimizer sgd
    python examples/digits_lstm.py --compare  # the first 50 losses beside PyTorch's, same weights

Needs scikit-learn, whose digits it trains on. Exit code 1 if the accuracy stays below --least.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from digits import parse, run

from jitgen import Adam, FullyConnected, Lstm, Sgd, softmax_cross_entropy

ROWS = COLUMNS = 8
CLASSES = 10


class Reader:
    """Lstm, and a fully connected layer on its last h; weights begin as PyTorch's do."""

    def __init__(self, batch: int, hidden: int, threads: int | None, seed: int) -> None:
        self.batch = batch
        self.lstm = Lstm(batch, ROWS, COLUMNS, hidden, threads=threads)
        self.head = FullyConnected(batch, hidden, CLASSES, threads=threads)
        rng = np.random.default_rng(seed)
        limit = hidden**-0.5
        shapes = ((4 * hidden, COLUMNS), (4 * hidden, hidden), (2, 4 * hidden),
                  (CLASSES, hidden), (CLASSES,))  # fmt: skip
        #: w, r and b of the LSTM, weights and bias of the head
        self.parameters = [rng.uniform(-limit, limit, s).astype(np.float32) for s in shapes]
        self._no_dy = np.zeros((ROWS, batch, hidden), np.float32)

    def _states(self, images: np.ndarray, training: bool) -> np.ndarray:
        rows = images.reshape(self.batch, ROWS, COLUMNS).swapaxes(0, 1)
        w, r, b = self.parameters[:3]
        _, h, _ = self.lstm.forward(np.ascontiguousarray(rows), w, r, b, training=training)
        return h

    def forward(self, images: np.ndarray) -> np.ndarray:
        """The logits (batch, 10) of images (batch, 64)."""
        return self.head.forward(self._states(images, False), *self.parameters[3:])

    def train_step(self, images: np.ndarray, labels: np.ndarray, optimizer: Adam | Sgd) -> float:
        """One step of training; its loss before the step."""
        h = self._states(images, True)
        w, b = self.parameters[3:]
        loss, delta = softmax_cross_entropy(self.head.forward(h, w, b), labels)
        dh = self.head.backward_data(delta, w)
        _, *gradients, _, _ = self.lstm.backward(self._no_dy, dh)
        optimizer.step([*gradients, *self.head.backward_weights(delta, h)])
        return loss


def in_pytorch(network: Reader) -> Any:
    """The same network, with the same weights."""
    import torch

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            w, r, b, head, bias = map(torch.from_numpy, network.parameters)
            self.lstm = torch.nn.LSTM(COLUMNS, r.shape[1])
            self.head = torch.nn.Linear(r.shape[1], CLASSES)
            for p, value in zip(self.parameters(), (w, r, *b, head, bias), strict=True):
                p.data[:] = value

        def forward(self, images: Any) -> Any:
            rows = images.reshape(-1, ROWS, COLUMNS).swapaxes(0, 1)
            return self.head(self.lstm(rows)[1][0][0])

    return Module()


def main() -> int:
    """The command line."""
    hidden = {"type": int, "default": 64, "help": "hidden units (64)"}
    options = parse(__doc__, hidden=hidden, batch=64, rate=5e-3)
    network = Reader(options.batch, options.hidden, options.threads, options.seed)
    return run(network, options, in_pytorch)


if __name__ == "__main__":
    sys.exit(main())
