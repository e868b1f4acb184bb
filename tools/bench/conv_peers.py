"""Who takes part in ``python -m tools.bench conv``: jitgen's layer, PyTorch, ONNX Runtime.

What it is: the layer tables, the data of one pass of one layer, what is right, and for each
contestant a callable that computes it, called as a Python program calls it.
What it is not: it times nothing.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jitgen.primitives.layers.arrays import aligned
from jitgen.primitives.layers.convolution import Convolution
from tools.bench import onnx as bench_onnx
from tools.bench.child import Way

PASSES = ("forward", "data", "weights")
TABLES = Path(__file__).resolve().parent.parent.parent / "examples" / "convolutions.csv"
#: Contestants that take NCHW arrays and unpacked weights, and all
NCHW_PEERS = ("torch", "onednn")
PEERS = (*NCHW_PEERS, "torch nhwc", "onednn packed", "blocked", "onnxruntime")
#: Relative to the sum of absolute products; winograd transforms lose a digit, and stay below
TOLERANCE = 1e-5
Pair = tuple[int, int]


@dataclass(frozen=True)
class Layer:
    """A convolution of a table: input channels c, output channels k, groups g."""

    table: str
    name: str
    c: int
    height: int
    width: int
    k: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    count: int

    @property
    def out(self) -> Pair:
        """Rows and columns of the output."""
        sizes = zip(
            (self.height, self.width), self.kernel, self.stride, self.padding, self.dilation,
            strict=True,
        )  # fmt: skip
        rows, columns = ((x + 2 * p - d * (r - 1) - 1) // s + 1 for x, r, s, p, d in sizes)
        return rows, columns

    def flops(self, n: int) -> int:
        """Floating-point operations of a pass for n images, products with the border counted."""
        taps = self.kernel[0] * self.kernel[1]
        return 2 * n * self.k * (self.c // self.groups) * taps * self.out[0] * self.out[1]

    def __str__(self) -> str:
        pairs = ((self.height, self.width), self.kernel, self.stride)
        size, kernel, stride = (f"{a}x{b}" if a != b else f"{a}" for a, b in pairs)
        text = f"{self.c}@{size}->{self.k} {kernel}/{stride}"
        text += f" g{self.groups}" if self.groups > 1 else ""
        return f"{self.name}: {text}"


def _pair(text: str) -> Pair:
    first, _, second = text.partition("x")
    return int(first), int(second or first)


def layers(table: str) -> list[Layer]:
    """The layers of a table in examples/convolutions.csv; ValueError names an unknown one."""
    with TABLES.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = [
        Layer(
            row["table"], row["layer"], int(row["in_channels"]), int(row["height"]),
            int(row["width"]), int(row["out_channels"]), _pair(row["kernel"]),
            _pair(row["stride"]), _pair(row["padding"]), _pair(row["dilation"]),
            int(row["groups"]), int(row["count_in_network"]),
        )
        for row in rows if row["table"] == table
    ]  # fmt: skip
    if not found:
        known = ", ".join(dict.fromkeys(row["table"] for row in rows))
        raise ValueError(f"--table {table!r} is not one of {known}")
    return found


class Problem:
    """The arrays of one pass, f32, NCHW; forward has bias and relu, the weight update db."""

    def __init__(self, layer: Layer, n: int, which: str) -> None:
        self.layer, self.n, self.which = layer, n, which
        rng = np.random.default_rng(1)
        self.x = _random(rng, (n, layer.c, layer.height, layer.width))
        self.w = _random(rng, (layer.k, layer.c // layer.groups, *layer.kernel))
        self.b = _random(rng, (layer.k,))
        self.dy = _random(rng, (n, layer.k, *layer.out))

    @cached_property
    def _expected(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The results in double precision, and sums of absolute products."""
        x, w, b, dy = (a.astype(np.float64) for a in (self.x, self.w, self.b, self.dy))
        sizes = [np.abs(array) for array in (self.x, self.w, self.b, self.dy)]
        if self.which == "forward":
            bias = b[:, None, None]
            y = np.maximum(reference(self.layer, "forward", x, w, dy) + bias, 0)
            scale = reference(self.layer, "forward", sizes[0], sizes[1], sizes[3])
            return [(y, scale + np.abs(bias))]
        product = reference(self.layer, self.which, x, w, dy)
        found = [(product, reference(self.layer, self.which, sizes[0], sizes[1], sizes[3]))]
        if self.which == "weights":
            found.append((dy.sum((0, 2, 3)), sizes[3].sum((0, 2, 3), dtype=np.float64)))
        return found

    def check(self, results: tuple[Any, ...]) -> str | None:
        """What is wrong with results in NCHW (arrays or tensors), or None."""
        found = [np.asarray(result, np.float64) for result in results]
        if [f.shape for f in found] != [e.shape for e, _ in self._expected]:
            return f"wrong shapes {[f.shape for f in found]}"
        worst = 0.0
        for f, (expected, scale) in zip(found, self._expected, strict=True):
            # pixels that no product reaches have scale 0, and must be 0
            error = np.abs(f - expected) / np.maximum(scale, 1e-30)
            worst = max(worst, float(error.max())) if np.isfinite(error).all() else np.inf
        return None if worst <= TOLERANCE else f"wrong result, relative error {worst:.1e}"


def reference(
    layer: Layer, which: str, x: np.ndarray, w: np.ndarray, dy: np.ndarray
) -> np.ndarray:
    """A pass of a convolution in the arrays' own type, tap by tap: y, dx or dw."""
    n, g = len(x), layer.groups
    (top, left), (sh, sw), (oh, ow) = layer.padding, layer.stride, layer.out
    padded = np.zeros((n, layer.c, layer.height + 2 * top, layer.width + 2 * left), x.dtype)
    inner = padded[:, :, top : top + layer.height, left : left + layer.width]
    if which != "data":
        inner[...] = x
    filters = w.reshape(g, layer.k // g, layer.c // g, *layer.kernel)
    gradient = dy.reshape(n, g, layer.k // g, oh * ow)
    y, dw = np.zeros_like(gradient), np.zeros_like(filters)
    for r, s in np.ndindex(*layer.kernel):
        i, j = r * layer.dilation[0], s * layer.dilation[1]
        seen = padded[:, :, i : i + (oh - 1) * sh + 1 : sh, j : j + (ow - 1) * sw + 1 : sw]
        pixels = (n, g, layer.c // g, oh * ow)
        if which == "forward":
            y += filters[..., r, s] @ seen.reshape(pixels)
        elif which == "data":
            seen += (filters[..., r, s].swapaxes(1, 2) @ gradient).reshape(seen.shape)
        else:
            dw[..., r, s] = (gradient @ seen.reshape(pixels).swapaxes(2, 3)).sum(0)
    if which == "forward":
        return y.reshape(dy.shape)
    return inner if which == "data" else dw.reshape(w.shape)


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    result = aligned(shape, "f32")
    result[...] = rng.uniform(-1, 1, shape)
    return result


# ---- jitgen -------------------------------------------------------------------------------------


def convolution(
    layer: Layer, n: int, threads: int, layout: str, algorithm: str | None
) -> Convolution:
    """A layer for n images; algorithm "winograd": where it is possible."""
    at = layer
    simple = at.kernel == (3, 3) and at.stride == at.dilation == (1, 1) and at.groups == 1
    return Convolution(
        n, at.c, at.height, at.width, at.k, at.kernel, stride=at.stride, padding=at.padding,
        dilation=at.dilation, groups=at.groups, activation="relu", layout=layout, threads=threads,
        algorithm=algorithm if simple or algorithm != "winograd" else None,
    )  # fmt: skip


def order(layer: Convolution, which: str) -> str:
    """How a pass of a layer is computed: "winograd", or the order of the loops if it is direct."""
    name = {"forward": "forward", "data": "backward_data", "weights": "backward_weights"}[which]
    choice = layer.choice(name)
    return choice.order if choice else "depthwise"


def jitgen(
    problem: Problem, threads: int, layout: str, packed: bool, algorithm: str | None = None
) -> Way:
    """The layer on arrays in a layout, with plain or packed weights."""
    p = problem
    layer = convolution(p.layer, p.n, threads, layout, algorithm)
    nhwc = layout == "nhwc"
    x, dy = ((_swapped(a, 0, 2, 3, 1) if nhwc else a) for a in (p.x, p.dy))
    if p.which == "weights":
        return Way(lambda: layer.backward_weights(dy, x), tuple)
    w = layer.pack_weights(p.w) if packed else p.w
    out = aligned(layer.y_shape if p.which == "forward" else layer.x_shape, "f32")
    # what nobody writes stays NaN, and is found
    out[...] = np.nan

    def read(result: np.ndarray) -> tuple[np.ndarray]:
        return (result.transpose(0, 3, 1, 2) if nhwc else result,)

    if p.which == "forward":
        return Way(lambda: layer.forward(x, w, p.b, out=out), read)
    return Way(lambda: layer.backward_data(dy, w, out), read)


def _swapped(array: np.ndarray, *axes: int) -> np.ndarray:
    view = array.transpose(*axes)
    result = aligned(view.shape, "f32")
    result[...] = view
    return result


# ---- PyTorch ------------------------------------------------------------------------------------


def torch_ways(problem: Problem) -> Iterator[tuple[str, Callable[[], Way]]]:
    """PyTorch's ways, by name.

    torch and torch nhwc: the usual operators on contiguous and channels_last tensors. onednn: the
    operators to which torch.compile turns a frozen model, on plain NCHW; onednn packed: the same
    on channels_last with reordered weights. blocked: opaque oneDNN tensors that lie as oneDNN
    itself left them, which has no fused relu.
    """
    import torch

    p, at = problem, problem.layer
    x, w, b, dy = (torch.from_numpy(array) for array in (p.x, p.w, p.b, p.dy))
    last = torch.channels_last
    images = [(x, w, dy), tuple(t.contiguous(memory_format=last) for t in (x, w, dy))]
    stride, padding, dilation = list(at.stride), list(at.padding), list(at.dilation)
    how = (padding, stride, dilation, at.groups)
    names = ("torch", "torch nhwc")
    if p.which == "forward":
        conv, fused = torch.conv2d, torch.ops.mkldnn._convolution_pointwise
        usual = (stride, padding, dilation, at.groups)
        for name, (a, f, _) in zip(names, images, strict=True):
            yield name, lambda a=a, f=f: Way(lambda: conv(a, f, b, *usual).relu_())
        yield "onednn", lambda: Way(lambda: fused(x, w, b, *how, "relu", [], ""))

        def packed() -> Way:
            f = torch.ops.mkldnn._reorder_convolution_weight(w, *how, list(x.shape))
            return Way(lambda: fused(images[1][0], f, b, *how, "relu", [], ""))

        def blocked() -> Way:
            shape = list(x.shape)
            f = torch._C._nn.mkldnn_reorder_conv2d_weight(w.to_mkldnn(), *how, shape)
            bias, one = b.to_mkldnn(), torch.eye(at.c).reshape(at.c, at.c, 1, 1).to_mkldnn()
            # multiplied by one: the same values where oneDNN puts the result of a convolution
            a = x.to_mkldnn() if at.c < 16 else torch.conv2d(x.to_mkldnn(), one)
            return Way(
                lambda: conv(a, f, bias, *usual).relu_(), lambda result: (result.to_dense(),)
            )

        yield "onednn packed", packed
        yield "blocked", blocked
        return
    backward = torch.ops.aten.convolution_backward
    mask = [p.which == "data"] + [p.which == "weights"] * 2
    for name, (a, f, d) in zip(names, images, strict=True):
        yield name, lambda a=a, f=f, d=d: Way(
            lambda: backward(
                d, a, f, [at.k], stride, padding, dilation, False, [0, 0], at.groups, mask
            ),
            lambda result: tuple(t for t in result if t is not None),
        )
    if p.which == "data":
        # the gradient is a transposed convolution; `more` rows that no pixel of y has seen
        reach = (
            (o - 1) * s - 2 * q + d * (r - 1) + 1
            for o, s, q, d, r in zip(
                at.out, at.stride, at.padding, at.dilation, at.kernel, strict=True
            )
        )
        more = [h - seen for h, seen in zip((at.height, at.width), reach, strict=True)]
        transposed = torch.ops.mkldnn._convolution_transpose_pointwise
        rest = (padding, more, stride, dilation, at.groups)
        yield "onednn", lambda: Way(lambda: transposed(dy, w, None, *rest, "none", [], ""))

        def reordered() -> Way:
            pack = torch.ops.mkldnn._reorder_convolution_transpose_weight
            f = pack(w, *rest, list(dy.shape))
            d = images[1][2]
            return Way(lambda: transposed(d, f, None, *rest, "none", [], ""))

        yield "onednn packed", reordered


# ---- ONNX Runtime -------------------------------------------------------------------------------


def onnxruntime_way(problem: Problem, threads: int) -> Way:
    """Forward in ONNX Runtime: a model of Conv and Relu (which it fuses), weights constant."""
    from onnx.helper import make_node

    p, at = problem, problem.layer
    nodes = [
        make_node(
            "Conv", ["x", "w", "b"], ["sum"], kernel_shape=at.kernel, strides=at.stride,
            pads=[*at.padding, *at.padding], dilations=at.dilation, group=at.groups,
        ),
        make_node("Relu", ["sum"], ["y"]),
    ]  # fmt: skip
    y = np.full((p.n, at.k, *at.out), np.nan, np.float32)
    model = bench_onnx.Model(nodes, {"w": p.w, "b": p.b}, {"x": p.x}, {"y": y}, threads)
    return Way(model.run, tuple)
