"""The convolutional example: its gradients against float64, what it learns, its first losses beside
PyTorch's.

Not here: the layers (`test_convolution`, `test_pooling_backward`, `test_fully_connected`).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
from random_cases import SEED

from jitgen.run import cpu

ROOT = Path(__file__).resolve().parent.parent
HERE = [name for name, why in cpu.targets().items() if not why]
pytestmark = pytest.mark.skipif(not HERE, reason="no target runs on this CPU")


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the examples importable by their names, as they are for each other."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


class Exact:
    """The network's loss in float64, as a function of its parameters."""

    def __init__(self, network: Any, pool: str, x: Any, labels: Any) -> None:
        self.network, self.pool, self.labels = network, pool, labels
        self.x = x.astype(np.float64).reshape(len(x), 8, 8, 1)

    def loss(self, parameters: list[Any]) -> float:
        y = self.x
        for w, b in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
            whole, (_, height, width, _) = np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0))), y.shape
            y = np.maximum(b + sum(
                whole[:, r : r + height, s : s + width] @ w[:, :, r, s].T
                for r in range(3) for s in range(3)
            ), 0)  # fmt: skip
            four = np.stack([y[:, r::2, s::2] for r in (0, 1) for s in (0, 1)])
            y = four.max(0) if self.pool == "max" else four.mean(0)
        logits = y.reshape(len(y), -1) @ parameters[-2].T + parameters[-1]
        logits = logits - logits.max(1, keepdims=True)
        chosen = logits[np.arange(len(logits)), self.labels]
        return float((np.log(np.exp(logits).sum(1)) - chosen).mean())


@pytest.mark.parametrize("pool", ["max", "average"])
def test_gradients(pool: str, examples: None) -> None:
    """Of each parameter along a random direction, by central differences of the loss in float64."""
    from digits_cnn import Cnn

    network = Cnn(argparse.Namespace(batch=7, threads=2, pool=pool, seed=SEED))
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal((7, 64)).astype(np.float32)
    labels = rng.integers(0, 10, 7)
    exact = Exact(network, pool, x, labels)
    loss, gradients = network.gradients(x, labels)
    start = [p.astype(np.float64) for p in network.parameters]
    assert abs(loss - exact.loss(start)) < 1e-5
    h = 1e-7
    for i, gradient in enumerate(gradients):
        assert gradient.shape == network.parameters[i].shape
        direction = rng.standard_normal(gradient.shape)
        sides = [
            exact.loss([p + sign * h * direction if j == i else p for j, p in enumerate(start)])
            for sign in (1, -1)
        ]
        slope = (sides[0] - sides[1]) / (2 * h)
        size = np.abs(gradient * direction).sum()
        assert abs((gradient * direction).sum() - slope) < 1e-4 * size + 1e-6, i


def test_it_learns() -> None:
    done = subprocess.run(
        [sys.executable, "examples/digits_cnn.py", "--threads", "1"], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    accuracy = re.search(r"test accuracy ([\d.]+) %", done.stdout)
    assert accuracy and float(accuracy[1]) > 97
    losses = [float(found) for found in re.findall(r"epoch +\d+: loss ([\d.]+)", done.stdout)]
    assert len(losses) == 60 and losses[-1] < losses[0] / 10


def options(**changed: Any) -> argparse.Namespace:
    """The command line's, as `digits.run` takes them."""
    usual = {
        "batch": 32, "threads": 1, "pool": "max", "seed": 0, "optimizer": "sgd", "rate": 1e-3,
        "epochs": 1, "noise": 0.15, "least": 97.0, "plot": None, "compare": False,
    }  # fmt: skip
    return argparse.Namespace(**{**usual, **changed})


def test_low_accuracy_is_a_failure(examples: None) -> None:
    import digits
    import digits_cnn

    chosen = options(least=100.0)
    assert digits.run(digits_cnn.Cnn(chosen), chosen, digits_cnn.in_pytorch) == 1


@pytest.mark.parametrize("pool", ["max", "average"])
def test_beside_pytorch(pool: str, examples: None, capsys: pytest.CaptureFixture[str]) -> None:
    """The first 50 losses from the same weights: at most 1e-4 of the loss apart."""
    needs.need_torch()
    import digits
    import digits_cnn

    chosen = options(pool=pool, compare=True)
    assert digits.run(digits_cnn.Cnn(chosen), chosen, digits_cnn.in_pytorch) == 0
    worst = re.search(r"largest relative difference in 50 steps: (\S+)", capsys.readouterr().out)
    assert worst and float(worst[1]) < 1e-4

    def another(network: Any) -> Any:
        other = digits_cnn.in_pytorch(network)
        next(other.parameters()).data *= 1.01
        return other

    assert digits.run(digits_cnn.Cnn(chosen), chosen, another) == 1
