"""Training: gradients and updates against float64, and a network that learns real digits.

Not here: a layer's passes (test_fully_connected).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
from random_cases import SEED

from jitgen import Adam, Mlp, Sgd, softmax_cross_entropy
from jitgen.run import cpu

ROOT = Path(__file__).resolve().parent.parent
HERE = [name for name, why in cpu.targets().items() if not why]
pytestmark = pytest.mark.skipif(not HERE, reason="no target runs on this CPU")


def reference(
    network: Mlp, x: np.ndarray, labels: np.ndarray, activation: Any
) -> tuple[float, list[np.ndarray]]:
    """Loss and gradients of a network in float64, layer by layer."""
    functions: dict[str, tuple[Any, Any]] = {
        "relu": (lambda v: np.maximum(v, 0), lambda y: y > 0),
        "tanh": (np.tanh, lambda y: 1 - y * y),
        "sigmoid": (lambda v: 1 / (1 + np.exp(-v)), lambda y: y * (1 - y)),
        "leaky_relu": (lambda v: np.where(v > 0, v, v / 4), lambda y: np.where(y > 0, 1, 0.25)),
        "elu": (lambda v: np.where(v > 0, v, np.expm1(np.minimum(v, 0))),
                lambda y: np.where(y > 0, 1, y + 1)),
    }  # fmt: skip
    function, slope = functions[activation if isinstance(activation, str) else activation[0]]
    outputs = [x.astype(np.float64)]
    for i, (w, b) in enumerate(zip(network.weights, network.biases, strict=True)):
        z = outputs[-1] @ w.astype(np.float64).T + b
        outputs.append(z if i == len(network.weights) - 1 else function(z))
    logits = outputs[-1]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    rows = np.arange(len(x))
    loss = float(-np.log(p[rows, labels]).mean())
    delta = p.copy()
    delta[rows, labels] -= 1
    delta /= len(x)
    gradients: list[np.ndarray] = []
    for i in range(len(network.weights) - 1, -1, -1):
        gradients = [delta.T @ outputs[i], delta.sum(0), *gradients]
        delta = (delta @ network.weights[i]) * (slope(outputs[i]) if i else 1)
    return loss, gradients


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "elu", ("leaky_relu", 0.25)])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_gradients(activation: Any, dtype: str) -> None:
    rng = np.random.default_rng(SEED)
    network = Mlp(13, (21, 34, 55, 7), activation=activation, dtype=dtype, threads=2, seed=SEED)
    x = rng.standard_normal((13, 21)).astype(network.weights[0].dtype)
    labels = rng.integers(0, 7, 13)
    loss, gradients = network.gradients(x, labels)
    expected, expected_gradients = reference(network, x, labels, activation)
    tolerance = 1e-5 if dtype == "f32" else 1e-12
    assert abs(loss - expected) < tolerance
    for got, exact in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, exact, atol=tolerance)


def test_softmax_of_large_logits() -> None:
    loss, gradient = softmax_cross_entropy(
        np.array([[1000.0, 0.0], [-1000.0, 0.0]]), np.array([0, 0])
    )
    assert loss == 500.0
    np.testing.assert_allclose(gradient, [[0, 0], [-0.5, 0.5]], atol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("size", [1, 7, 33, 100_003])
def test_updates(size: int, decay: float) -> None:
    """Three steps of both optimizers against their formulas in float64."""
    rng = np.random.default_rng(SEED)
    start, *gradients = (rng.standard_normal(size).astype(np.float32) for _ in range(4))
    w = start.copy()
    sgd = Sgd([w], lr=0.1, momentum=0.9, weight_decay=decay, threads=2)
    exact, velocity = start.astype(np.float64), np.zeros(size)
    for g in gradients:
        sgd.step([g])
        velocity = 0.9 * velocity + g + decay * exact
        exact -= 0.1 * velocity
        np.testing.assert_allclose(w, exact, rtol=1e-5, atol=1e-5)
    w = start.copy()
    adam = Adam([w], lr=0.01, weight_decay=decay, threads=2)
    exact, m, v = start.astype(np.float64), np.zeros(size), np.zeros(size)
    for t, g in enumerate(gradients, 1):
        adam.step([g])
        total = g + decay * exact
        m, v = 0.9 * m + 0.1 * total, 0.999 * v + 0.001 * total**2
        exact -= 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(w, exact, rtol=1e-5, atol=1e-5)


def example(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The digits example, on the code beside this file, whatever is installed."""
    return subprocess.run(
        [sys.executable, "examples/digits.py", "--threads", "1", *arguments], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


def test_the_digits_example(tmp_path: Path) -> None:
    """The example reaches its accuracy on real images and draws its plot."""
    file = tmp_path / "digits.png"
    done = example("--plot", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test accuracy 9" in done.stdout
    assert file.read_bytes().startswith(b"\x89PNG")


def test_the_digits_example_reports_failure() -> None:
    done = example("--epochs", "1", "--least", "100")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "test accuracy" in done.stdout


def test_beside_pytorch() -> None:
    """The first 50 losses from the same weights."""
    needs.need_torch()
    for optimizer in ("adam", "sgd"):
        done = example("--compare", "--optimizer", optimizer)
        assert done.returncode == 0, done.stdout + done.stderr


NETWORK = Mlp(3, (4, 5, 2)) if HERE else None
X, LABELS = np.zeros((3, 4), np.float32), np.zeros(3, np.int64)
W = np.zeros(4, np.float32)
FROZEN = W.copy()
FROZEN.flags.writeable = False


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda n: Mlp(3, (4,)), ValueError, "sizes="),
        (lambda n: Mlp(3, (4, 0)), ValueError, "sizes[1]=0"),
        (lambda n: Mlp(3, (4, 2), activation="gelu"), ValueError,
         "activation='gelu': the gradient of a network's activation is made from its output"),
        (lambda n: Mlp(3, (4, 2), activation=None), ValueError, "activation=None"),
        (lambda n: n.gradients(X, LABELS[:2]), ValueError, "labels has shape (2,)"),
        (lambda n: n.gradients(X, LABELS + 2), ValueError, "each must be 0 .. 1"),
        (lambda n: n.gradients(X, LABELS * 0.5), TypeError, "float64"),
        (lambda n: n.gradients(X[:2], LABELS), ValueError, "labels has shape (3,)"),
        (lambda n: n.gradients(X[:, :2], LABELS), ValueError, "x has shape (3, 2)"),
        (lambda n: Sgd([], lr=1), ValueError, "parameters=[] is empty"),
        (lambda n: Sgd([LABELS], lr=1), TypeError, "int64"),
        (lambda n: Sgd([FROZEN], lr=1), ValueError, "parameters[0] is read-only"),
        (lambda n: Adam([W, W.astype("f8")]), TypeError, "parameters[1] has dtype float64"),
        (lambda n: Adam([W]).step([]), ValueError, "gradients has 0"),
        (lambda n: Adam([W]).step([W[:3]]), ValueError, "gradients[0] has shape (3,)"),
    ],
)  # fmt: skip
def test_bad_input(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        call(NETWORK)
    assert words in str(raised.value)
