"""Who takes part in ``python -m tools.bench resnet50`` beside examples/resnet50.py.

What it is: ResNet-50 of the same dictionary of arrays in PyTorch's oneDNN operators and in ONNX
Runtime. What it is not: it times nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from examples.resnet50 import CLASSES, Torch, Weights, folded, network
from tools.bench import onnx as bench_onnx


class Fused(Torch):
    """The operators to which torch.compile turns a frozen model: bias, sum and ReLU fused, weights
    prepacked for the images of the first call."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights, fold=True)
        self.packed: dict[str, Any] = {}

    def conv(
        self, x: Any, name: str, bn: str, stride: int = 1, relu: bool = True, residual: Any = None
    ) -> Any:
        ops, (w, b) = self.torch.ops.mkldnn, self.convs[name]
        pad = w.shape[-1] // 2
        how = ([pad, pad], [stride, stride], [1, 1], 1)
        if name not in self.packed:
            self.packed[name] = ops._reorder_convolution_weight(w, *how, list(x.shape))
        w, after = self.packed[name], "relu" if relu else "none"
        if residual is None:
            return ops._convolution_pointwise(x, w, b, *how, after, [], "")
        # the residual's memory takes the sum: nobody reads it again
        both = ("add", None, after, [], "")
        return ops._convolution_pointwise_.binary(residual, x, w, b, *how, *both)


class Onnx:
    """The network in ONNX Runtime with all its graph optimisations, for one batch of images; the
    model is made of the same arrays, batch normalisation folded. `profile`: the time
    of its nodes goes to a file of that prefix."""

    def __init__(
        self, weights: Weights, batch: int, size: int, threads: int, profile: str | None = None
    ) -> None:
        from onnx.helper import make_node

        self.weights, self.make_node = weights, make_node
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        #: the images, NCHW
        self.x = np.zeros((batch, 3, size, size), np.float32)
        last = network(self, "images")
        self.model = bench_onnx.Model(
            self.nodes, self.constants, {"images": self.x},
            {last: np.full((batch, CLASSES), np.nan, np.float32)}, threads, profile,
        )  # fmt: skip

    def _node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(self.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def _constant(self, name: str, array: np.ndarray) -> str:
        self.constants[name] = array
        return name

    def conv(
        self, x: str, name: str, bn: str, stride: int = 1, relu: bool = True,
        residual: str | None = None,
    ) -> str:  # fmt: skip
        w, b = folded(self.weights, name, bn)
        given = [x, self._constant(f"{name}.w", w), self._constant(f"{name}.b", b)]
        side = w.shape[-1]
        y = self._node("Conv", given, name, kernel_shape=[side, side], strides=[stride, stride],
                       pads=[side // 2] * 4)  # fmt: skip
        if residual is not None:
            y = self._node("Add", [y, residual], f"{name}.add")
        return self._node("Relu", [y], f"{name}.relu") if relu else y

    def max_pool(self, x: str) -> str:
        return self._node("MaxPool", [x], "maxpool", kernel_shape=[3, 3], strides=[2, 2],
                          pads=[1] * 4)  # fmt: skip

    def head(self, x: str) -> str:
        mean = self._node("Flatten", [self._node("GlobalAveragePool", [x], "avgpool")], "flat")
        given = [self._constant(name, self.weights[name]) for name in ("fc.weight", "fc.bias")]
        return self._node("Gemm", [mean, *given], "fc", transB=1)

    def run(self) -> np.ndarray:
        """The logits of `x`; the array is that of every call."""
        (logits,) = self.model.run()
        return logits

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits of NHWC images."""
        self.x[:] = images.transpose(0, 3, 1, 2)
        return self.run()
