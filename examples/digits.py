"""Train a network on real handwritten digits, forward and backward by jitgen's kernels.

    pip install scikit-learn             # its bundled digits: 1,797 images of 8 x 8 pixels
    python examples/digits.py            # 64-512-512-10, at least 97 % of test images right
    python examples/digits.py --plot digits.png --optimizer sgd
    python examples/digits.py --compare  # the first 50 losses beside PyTorch's, same weights

Exit code 1 if the accuracy stays below --least.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jitgen import Adam, Mlp, Sgd

COMPARED_STEPS = 50
#: Inputs of a step, and their labels
Batch = tuple[np.ndarray, np.ndarray]


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images and labels, test images and labels: a fifth is for the test, as many of each
    digit; the split is the same every time."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        sys.exit("this example needs scikit-learn, whose digits it trains on")
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    split = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = split
    return train_images, train_labels, test_images, test_labels


def accuracy(network: Any, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images that the network gets right; the last batch is filled up."""
    right = 0
    for at in range(0, len(images), network.batch):
        part = images[at : at + network.batch]
        filled = np.zeros((network.batch, part.shape[1]), np.float32)
        filled[: len(part)] = part
        right += int((network.forward(filled)[: len(part)].argmax(1) == labels[at:][: len(part)])
                     .sum())  # fmt: skip
    return right / len(images)


def make_optimizer(network: Any, options: argparse.Namespace) -> Adam | Sgd:
    """Adam, or SGD with momentum, which takes a hundred times its rate."""
    rate, threads = options.rate, options.threads
    if options.optimizer == "adam":
        return Adam(network.parameters, lr=rate, threads=threads)
    return Sgd(network.parameters, lr=100 * rate, momentum=0.9, threads=threads)


def train(network: Any, options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Losses by step and test accuracies by epoch of a network with Mlp's methods."""
    images, labels, test_images, test_labels = load()
    optimizer = make_optimizer(network, options)
    rng = np.random.default_rng(options.seed)
    losses, accuracies = [], []
    steps = len(images) // network.batch
    began = time.perf_counter()
    rate = optimizer.lr
    for epoch in range(options.epochs):
        optimizer.lr = rate * (1 - epoch / options.epochs)
        order = rng.permutation(len(images))
        for step in range(steps):
            chosen = order[step * network.batch : (step + 1) * network.batch]
            # a little noise, so that the network does not learn the images by heart
            noise = rng.normal(0, options.noise, (network.batch, images.shape[1]))
            batch = (images[chosen] + noise).astype(np.float32)
            losses.append(network.train_step(batch, labels[chosen], optimizer))
        accuracies.append(accuracy(network, test_images, test_labels))
        print(f"epoch {epoch + 1:3}: loss {np.mean(losses[-steps:]):.4f}, "
              f"test {100 * accuracies[-1]:.2f} %")  # fmt: skip
    seconds = time.perf_counter() - began
    print(f"{len(losses)} steps of {network.batch} images in {seconds:.2f} s: "
          f"test accuracy {100 * accuracies[-1]:.2f} %")  # fmt: skip
    return losses, accuracies


def in_pytorch(network: Mlp) -> Any:
    """The same network, with the same weights."""
    import torch

    modules: list[Any] = []
    for w, b in zip(network.weights, network.biases, strict=True):
        linear = torch.nn.Linear(w.shape[1], w.shape[0])
        linear.weight.data[:] = torch.from_numpy(w)
        linear.bias.data[:] = torch.from_numpy(b)
        modules += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*modules[:-1])


def random_images(batch: int, seed: int) -> Iterator[Batch]:
    """Training images and their labels, without end."""
    images, labels, _, _ = load()
    rng = np.random.default_rng(seed)
    while True:
        chosen = rng.integers(0, len(images), batch)
        yield images[chosen], labels[chosen]


def compare(
    network: Any, options: argparse.Namespace, in_pytorch: Callable[[Any], Any],
    batches: Iterator[Batch],
) -> int:  # fmt: skip
    """Both networks from the same weights on the same batches; 1 if losses part by more than
    1e-4 of the loss."""
    try:
        import torch
    except ImportError:
        sys.exit("--compare needs PyTorch")
    if options.threads:
        torch.set_num_threads(options.threads)
    other = in_pytorch(network)
    ours = make_optimizer(network, options)
    if options.optimizer == "adam":
        theirs: Any = torch.optim.Adam(other.parameters(), lr=ours.lr)
    else:
        theirs = torch.optim.SGD(other.parameters(), lr=ours.lr, momentum=0.9)
    worst = 0.0
    for step in range(COMPARED_STEPS):
        x, y = next(batches)
        loss = network.train_step(x, y, ours)
        theirs.zero_grad()
        expected = torch.nn.functional.cross_entropy(
            other(torch.from_numpy(x)), torch.from_numpy(y)
        )
        expected.backward()
        theirs.step()
        worst = max(worst, abs(loss - expected.item()) / expected.item())
        if step % 10 == 0:
            print(f"step {step:3}: loss {loss:.6f}, PyTorch {expected.item():.6f}")
    print(f"largest relative difference in {COMPARED_STEPS} steps: {worst:.1e}")
    return int(worst > 1e-4)


def plot(file: str, losses: list[float], accuracies: list[float]) -> None:
    """Loss by step, accuracy by epoch."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        sys.exit("--plot needs matplotlib (pip install 'jitgen[plot]')")
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(losses, linewidth=0.8)
    left.set(yscale="log", xlabel="step", ylabel="cross-entropy of the batch", title="loss")
    right.plot(np.arange(1, len(accuracies) + 1), 100 * np.array(accuracies), marker=".")
    right.set(xlabel="epoch", ylabel="test images right, %", title="accuracy")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def parse(description: str, **more: Any) -> argparse.Namespace:
    """The command line; `more` are a network's own options (mappings) and defaults (the rest)."""
    parser = argparse.ArgumentParser(description=description)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--batch", type=int, default=256, help="images a step (%(default)s)")
    parser.add_argument("--epochs", type=int, default=60, help="passes over the images (60)")
    parser.add_argument(
        "--optimizer", choices=["adam", "sgd"], default="adam", help="(%(default)s)"
    )
    parser.add_argument(
        "--rate", type=float, default=1e-3,
        help="Adam's learning rate at the beginning (%(default)s); SGD takes 100 times this",
    )  # fmt: skip
    parser.add_argument("--noise", type=float, default=0.15, help="added to pixels (0.15)")
    parser.add_argument("--threads", type=int, help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--least", type=float, default=97.0, help="least accuracy in percent (97)")
    parser.add_argument("--plot", metavar="FILE", help="draw loss and accuracy")
    parser.add_argument("--compare", action="store_true", help="beside PyTorch, 50 steps")
    for name, option in more.items():
        if isinstance(option, dict):
            parser.add_argument(f"--{name}", **option)
        else:
            parser.set_defaults(**{name: option})
    return parser.parse_args()


def run(network: Any, options: argparse.Namespace, in_pytorch: Callable[[Any], Any]) -> int:
    """What the command line asks for, and its exit code."""
    if options.compare:
        batches = random_images(network.batch, options.seed)
        return compare(network, options, in_pytorch, batches)
    losses, accuracies = train(network, options)
    if options.plot:
        plot(options.plot, losses, accuracies)
    return int(100 * accuracies[-1] < options.least)


def main() -> int:
    """The command line."""
    hidden = {"type": int, "default": 512, "help": "width of the hidden layers (512)"}
    options = parse(__doc__, hidden=hidden)
    sizes = (64, options.hidden, options.hidden, 10)
    network = Mlp(options.batch, sizes, threads=options.threads, seed=options.seed)
    return run(network, options, in_pytorch)


if __name__ == "__main__":
    sys.exit(main())
