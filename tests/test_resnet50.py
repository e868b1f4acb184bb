"""The ResNet-50 example: the network against PyTorch, one block against float64.

Not here: the layers (test_convolution, test_pooling_layers).
"""

from __future__ import annotations

from typing import Any

import needs
import numpy as np
from random_cases import SEED

from examples import resnet50


class Exact:
    """Convolutions in float64 on NHWC arrays."""

    def __init__(self, weights: resnet50.Weights) -> None:
        self.weights = weights

    def conv(
        self, x: Any, name: str, bn: str, stride: int = 1, relu: bool = True, residual: Any = None
    ) -> Any:
        w = self.weights[f"{name}.weight"].astype(np.float64)
        gamma, beta, mean, variance = (
            self.weights[f"{bn}.{n}"].astype(np.float64)
            for n in ("weight", "bias", "running_mean", "running_var")
        )
        side, (n, height, width, _) = w.shape[-1], x.shape
        p = side // 2
        whole = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
        out = np.zeros((n, -(-height // stride), -(-width // stride), len(w)))
        for r in range(side):
            for s in range(side):
                seen = whole[:, r : r + height : stride, s : s + width : stride]
                out += seen @ w[:, :, r, s].T
        out = (out - mean) / np.sqrt(variance + 1e-5) * gamma + beta
        if residual is not None:
            out = out + residual
        return np.maximum(out, 0) if relu else out


def test_a_block_against_float64() -> None:
    weights = resnet50.random_weights(SEED % 1000)
    ours = resnet50.Ours(weights, 2)
    x = np.random.default_rng(SEED).standard_normal((2, 14, 14, 256)).astype(np.float32)
    y = resnet50.bottleneck(ours, x, "layer2.0.", 2, True)
    for step in ours.steps:
        step.run()
    exact = resnet50.bottleneck(Exact(weights), x, "layer2.0.", 2, True)
    assert y.shape == (2, 7, 7, 512)
    assert resnet50.difference(y, exact) < 1e-5


def test_logits_against_pytorch() -> None:
    needs.need_torch()
    weights = resnet50.random_weights()
    net = resnet50.Resnet50(weights, 1, 64, threads=2)
    images = np.random.default_rng(SEED).standard_normal((1, 64, 64, 3)).astype(np.float32)
    logits = net(images).copy()
    assert len(net.steps) == 53 + 3 and logits.shape == (1, 1000)
    for fold in (False, True):
        assert resnet50.difference(logits, resnet50.Torch(weights, fold)(images)) < 1e-4
    # the measure sees another network
    weights["layer4.2.conv3.weight"] = -weights["layer4.2.conv3.weight"]
    assert resnet50.difference(logits, resnet50.Torch(weights, False)(images)) > 1e-2
