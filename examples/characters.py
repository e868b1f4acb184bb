"""A character model: an LSTM learns to write as a text does, character by character.

    python examples/characters.py                 # on this project's README.md
    python examples/characters.py --text FILE --hidden 256 --steps 2000
    python examples/characters.py --compare       # the first 50 losses beside PyTorch's

Exit code 1 if the loss (nats a character) stays above --most.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from digits import Batch, compare, make_optimizer

from jitgen import Adam, FullyConnected, Lstm, Sgd, softmax_cross_entropy

README = Path(__file__).resolve().parent.parent / "README.md"
#: Added to the forget gate: what a cell holds is kept until the network learns to forget
FORGET_BIAS = 1.0


class Writer:
    """Lstm on one-hot characters, and a fully connected layer on every step's h."""

    def __init__(self, letters: int, options: argparse.Namespace) -> None:
        batch, length, hidden = options.batch, options.length, options.hidden
        self.letters, self.hidden, self.threads = letters, hidden, options.threads
        self.lstm = Lstm(
            batch, length, letters, hidden, forget_bias=FORGET_BIAS, threads=options.threads
        )
        self.head = FullyConnected(batch * length, hidden, letters, threads=options.threads)
        rng = np.random.default_rng(options.seed)
        limit = hidden**-0.5
        shapes = ((4 * hidden, letters), (4 * hidden, hidden), (2, 4 * hidden),
                  (letters, hidden), (letters,))  # fmt: skip
        #: w, r and b of the LSTM, weights and bias of the head
        self.parameters = [rng.uniform(-limit, limit, s).astype(np.float32) for s in shapes]

    def train_step(self, x: np.ndarray, labels: np.ndarray, optimizer: Adam | Sgd) -> float:
        """One step of training: x (length, batch, letters), labels (length * batch,); the loss
        before the step."""
        w, r, b, head, bias = self.parameters
        y, _, _ = self.lstm.forward(x, w, r, b, training=True)
        rows = y.reshape(-1, self.hidden)
        loss, delta = softmax_cross_entropy(self.head.forward(rows, head, bias), labels)
        dy = self.head.backward_data(delta, head).reshape(y.shape)
        _, *gradients, _, _ = self.lstm.backward(dy)
        optimizer.step([*gradients, *self.head.backward_weights(delta, rows)])
        return loss

    def write(self, first: int, count: int, temperature: float, seed: int) -> Iterator[int]:
        """Letters drawn one after the other, each from what the network expects next."""
        one = Lstm(1, 1, self.letters, self.hidden, forget_bias=FORGET_BIAS, threads=1)
        head = FullyConnected(1, self.hidden, self.letters, threads=1)
        w, r, b, head_w, head_b = self.parameters
        packed, head_w = one.pack_weights(w, r), head.pack_weights(head_w, backward=False)
        rng = np.random.default_rng(seed)
        h = c = np.zeros((1, self.hidden), np.float32)
        x = np.zeros((1, 1, self.letters), np.float32)
        letter = first
        for _ in range(count):
            x.fill(0)
            x[0, 0, letter] = 1
            _, h, c = one.forward(x, packed, None, b, h, c)
            logits = head.forward(h, head_w, head_b)[0].astype(np.float64) / temperature
            chances = np.exp(logits - logits.max())
            letter = int(rng.choice(self.letters, p=chances / chances.sum()))
            yield letter


def pieces(text: np.ndarray, letters: int, options: argparse.Namespace) -> Iterator[Batch]:
    """Random pieces of the text, one-hot, and the letter that follows each of theirs."""
    rng = np.random.default_rng(options.seed)
    rows = np.eye(letters, dtype=np.float32)
    while True:
        starts = rng.integers(0, len(text) - options.length, options.batch)
        at = starts + np.arange(options.length)[:, None]
        yield rows[text[at]], text[at + 1].reshape(-1)


def in_pytorch(network: Writer) -> Any:
    """The same network, with the same weights."""
    import torch

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            w, r, b, head, bias = map(torch.from_numpy, network.parameters)
            forget = torch.zeros(4, network.hidden)
            forget[1] = FORGET_BIAS
            self.lstm = torch.nn.LSTM(network.letters, network.hidden)
            self.head = torch.nn.Linear(network.hidden, network.letters)
            values = (w, r, b[0] + forget.reshape(-1), b[1], head, bias)
            for p, value in zip(self.parameters(), values, strict=True):
                p.data[:] = value

        def forward(self, x: Any) -> Any:
            return self.head(self.lstm(x)[0].reshape(-1, network.hidden))

    return Module()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--text", metavar="FILE", type=Path, default=README, help="what to learn")
    parser.add_argument("--batch", type=int, default=32, help="pieces a step (32)")
    parser.add_argument("--length", type=int, default=50, help="letters of a piece (50)")
    parser.add_argument("--hidden", type=int, default=128, help="hidden units (128)")
    parser.add_argument("--steps", type=int, default=600, help="of training (600)")
    parser.add_argument("--rate", type=float, default=1e-2,
                        help="learning rate of Adam at the beginning (0.01); SGD: 100 times")
    parser.add_argument("--write", type=int, default=300, help="letters to write at the end (300)")
    parser.add_argument("--temperature", type=float, default=0.7, help="below 1: less daring (0.7)")
    parser.add_argument("--threads", type=int, help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=float, default=1.5, help="most loss at the end (1.5)")
    parser.add_argument("--optimizer", choices=["adam", "sgd"], default="adam")
    parser.add_argument("--compare", action="store_true", help="beside PyTorch, 50 steps")
    options = parser.parse_args()
    text = options.text.read_text(encoding="utf-8")
    if len(text) <= options.length:
        sys.exit(f"{options.text} has {len(text)} characters; --length {options.length} needs more")
    alphabet = sorted(set(text))
    places = {letter: i for i, letter in enumerate(alphabet)}
    numbers = np.array([places[letter] for letter in text])
    network = Writer(len(alphabet), options)
    batches = pieces(numbers, len(alphabet), options)
    if options.compare:
        return compare(network, options, in_pytorch, batches)
    optimizer = make_optimizer(network, options)
    rate = optimizer.lr
    losses = []
    began = time.perf_counter()
    for step in range(options.steps):
        optimizer.lr = rate * (1 - step / options.steps)
        losses.append(network.train_step(*next(batches), optimizer))
        if step % 100 == 0:
            print(f"step {step:4}: {losses[-1]:.3f} nats a character")
    seconds = time.perf_counter() - began
    loss = float(np.mean(losses[-20:]))
    print(f"{options.steps} steps of {options.batch} x {options.length} characters in "
          f"{seconds:.1f} s: {loss:.3f} nats a character")  # fmt: skip
    written = network.write(places[text[0]], options.write, options.temperature, options.seed)
    print(text[0] + "".join(alphabet[i] for i in written))
    return int(loss > options.most)


if __name__ == "__main__":
    sys.exit(main())
