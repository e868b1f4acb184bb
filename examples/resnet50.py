"""ResNet-50 (v1.5), forward, from a dictionary of arrays named as torchvision's state_dict.

    python examples/resnet50.py --random              # time of each layer, images a second
    python examples/resnet50.py --weights FILE.npz --batch 16 --threads 2
    python examples/resnet50.py --random --compare    # logits beside PyTorch's
    python examples/resnet50.py --random --plot resnet50.png

Batch normalisation is folded into the convolutions; bias, residual and ReLU are fused. With
--compare, exit code 1 if logits part by more than 1e-3 of the largest. Not here: time beside
PyTorch's and ONNX Runtime's (python -m tools.bench resnet50).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jitgen import AveragePool, Convolution, FullyConnected, MaxPool, fold_batch_norm
from jitgen.primitives.layers.arrays import aligned

BLOCKS = (3, 4, 6, 3)
CLASSES = 1000
Weights = Mapping[str, np.ndarray]


def network(make: Any, x: Any) -> Any:
    """The network, in terms of `make`: conv, max_pool, head."""
    x = make.max_pool(make.conv(x, "conv1", "bn1", stride=2))
    for stage, blocks in enumerate(BLOCKS, 1):
        for i in range(blocks):
            x = bottleneck(make, x, f"layer{stage}.{i}.", 2 if i == 0 and stage > 1 else 1, i == 0)
    return make.head(x)


def bottleneck(make: Any, x: Any, name: str, stride: int, project: bool) -> Any:
    """A block: 1 x 1, 3 x 3 with the stride, 1 x 1, plus the input or its projection."""
    same = x
    if project:
        same = make.conv(x, f"{name}downsample.0", f"{name}downsample.1", stride, relu=False)
    y = make.conv(x, f"{name}conv1", f"{name}bn1")
    y = make.conv(y, f"{name}conv2", f"{name}bn2", stride)
    return make.conv(y, f"{name}conv3", f"{name}bn3", residual=same)


def folded(weights: Weights, conv: str, bn: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias of a convolution with its batch normalisation."""
    names = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, variance = (weights[f"{bn}.{name}"] for name in names)
    return fold_batch_norm(weights[f"{conv}.weight"], None, gamma, beta, mean, variance)


def norm_of(conv: str) -> str:
    """The batch normalisation behind a convolution, by name."""
    return conv.replace("conv", "bn").replace("downsample.0", "downsample.1")


class RandomWeights:
    """Fills `weights` with He-initialised filters, by a seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.weights: dict[str, np.ndarray] = {}

    def conv(
        self, x: int, name: str, bn: str, stride: int = 1, relu: bool = True, residual: Any = None
    ) -> int:
        part = name.rsplit(".", 2)[-1] if "downsample" not in name else "downsample"
        planes = 64 << (int(name[5]) - 1) if name.startswith("layer") else 64
        k = 4 * planes if part in ("conv3", "downsample") else planes
        side = {"conv1": 7 if name == "conv1" else 1, "conv2": 3}.get(part, 1)
        scale = np.sqrt(2 / (x * side * side))
        rng = self.rng
        new = {
            f"{name}.weight": rng.standard_normal((k, x, side, side)) * scale,
            # the last one of a block is small, or 16 blocks would add up to large numbers
            f"{bn}.weight": rng.uniform(0.5, 1, k) * (0.3 if part == "conv3" else 1),
            f"{bn}.bias": rng.standard_normal(k) / 10,
            f"{bn}.running_mean": rng.standard_normal(k) / 10,
            f"{bn}.running_var": rng.uniform(0.8, 1.2, k),
        }
        self.weights |= {key: value.astype(np.float32) for key, value in new.items()}
        return k

    def max_pool(self, x: int) -> int:
        return x

    def head(self, x: int) -> dict[str, np.ndarray]:
        w = self.rng.standard_normal((CLASSES, x)) / np.sqrt(x)
        self.weights["fc.weight"] = w.astype(np.float32)
        self.weights["fc.bias"] = np.zeros(CLASSES, np.float32)
        return self.weights


def random_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of the whole network."""
    return network(RandomWeights(seed), 3)  # type: ignore[no-any-return]


@dataclass
class Step:
    """A layer with its arrays: run() computes y. Its kind is such as "3x3/2"."""

    name: str
    kind: str
    run: Callable[[], Any]
    y: np.ndarray
    flops: float


class Ours:
    """Builds the steps; images are NHWC. `x` is the input, to be filled by the caller."""

    def __init__(self, weights: Weights, threads: int | None) -> None:
        self.weights, self.threads = weights, threads
        self.steps: list[Step] = []
        self.memory: dict[str, np.ndarray] = {}

    def conv(
        self, x: np.ndarray, name: str, bn: str, stride: int = 1, relu: bool = True,
        residual: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        w, b = folded(self.weights, name, bn)
        (n, height, width, c), side = x.shape, w.shape[-1]
        layer = Convolution(
            n, c, height, width, len(w), side, stride=stride, padding=side // 2,
            activation="relu" if relu else None, residual=residual is not None, layout="nhwc",
            threads=self.threads,
        )  # fmt: skip
        packed = layer.pack_weights(w, backward=False)
        # a sum takes the place of its residual, which no other layer reads
        y = self._array(self._place(name), layer.y_shape) if residual is None else residual
        run = lambda: layer.forward(x, packed, b, residual, out=y)  # noqa: E731
        kind = f"{side}x{side}" + f"/{stride}" * (stride > 1) + " + residual" * layer.residual
        return self._step(name, kind, run, y, 2.0 * y.size * w[0].size)

    def _place(self, name: str) -> str:
        """The memory of a convolution's results: one for each part of a block, so that it stays in
        the caches. That of the outputs of blocks alternates between stages, as the first layers of
        a stage read the one before."""
        part = name.split(".", 2)[-1]
        stages = sum("downsample" in step.name for step in self.steps)
        return f"stage {stages % 2}" if "downsample" in part else part

    def _array(self, place: str, shape: tuple[int, ...]) -> np.ndarray:
        """The first elements of a memory, which the first layer that has it makes large enough."""
        size = int(np.prod(shape))
        memory = self.memory.setdefault(place, aligned((size,), "f32"))
        return memory[:size].reshape(shape)

    def max_pool(self, x: np.ndarray) -> np.ndarray:
        n, height, width, c = x.shape
        layer = MaxPool(
            n, c, height, width, 3, stride=2, padding=1, layout="nhwc", threads=self.threads
        )
        y = aligned(layer.y_shape, "f32")
        return self._step("maxpool", "max pool", lambda: layer.forward(x, out=y), y, 0.0)

    def head(self, x: np.ndarray) -> np.ndarray:
        n, height, width, c = x.shape
        pool = AveragePool(
            n, c, height, width, (height, width), layout="nhwc", threads=self.threads
        )
        mean = aligned(pool.y_shape, "f32")
        self._step("avgpool", "head", lambda: pool.forward(x, out=mean), mean, 0.0)
        layer = FullyConnected(n, c, CLASSES, threads=self.threads)
        packed, b = layer.pack_weights(self.weights["fc.weight"]), self.weights["fc.bias"]
        y, flat = aligned((n, CLASSES), "f32"), mean.reshape(n, c)
        run = lambda: layer.forward(flat, packed, b, out=y)  # noqa: E731
        return self._step("fc", "head", run, y, 2.0 * y.size * c)

    def _step(
        self, name: str, kind: str, run: Callable[[], Any], y: np.ndarray, flops: float
    ) -> np.ndarray:
        self.steps.append(Step(name, kind, run, y, flops))
        return y


class Resnet50:
    """The network for one batch of square images."""

    def __init__(
        self, weights: Weights, batch: int = 1, size: int = 224, threads: int | None = None
    ) -> None:
        #: the images of `run`, NHWC
        self.x = aligned((batch, size, size, 3), "f32")
        self.x.fill(0)
        make = Ours(weights, threads)
        network(make, self.x)
        self.steps = make.steps

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits of NHWC images; the array is that of every call."""
        self.x[:] = images
        return self.run()

    def run(self) -> np.ndarray:
        """Logits of `x`."""
        for step in self.steps:
            step.run()
        return self.steps[-1].y


class Torch:
    """The network in PyTorch; batch normalisation apart, or folded into filters in the order of
    NHWC images, or (not `channels_last`) of NCHW."""

    def __init__(self, weights: Weights, fold: bool, channels_last: bool = True) -> None:
        import torch

        self.torch, self.fold = torch, fold
        self.weights = {name: torch.from_numpy(array) for name, array in weights.items()}
        self.convs: dict[str, Any] = {}
        form = torch.channels_last if channels_last else torch.contiguous_format
        for name in weights:
            conv = name.removesuffix(".weight")
            if fold and weights[name].ndim == 4:
                w, b = (torch.from_numpy(v) for v in folded(weights, conv, norm_of(conv)))
                self.convs[conv] = w.to(memory_format=form), b

    def conv(
        self, x: Any, name: str, bn: str, stride: int = 1, relu: bool = True, residual: Any = None
    ) -> Any:
        conv, given = self.torch.nn.functional.conv2d, self.weights
        if self.fold:
            w, b = self.convs[name]
            y = conv(x, w, b, stride, w.shape[-1] // 2)
        else:
            w = given[f"{name}.weight"]
            y = conv(x, w, None, stride, w.shape[-1] // 2)
            names = ("running_mean", "running_var", "weight", "bias")
            mean, variance, gamma, beta = (given[f"{bn}.{n}"] for n in names)
            y = self.torch.nn.functional.batch_norm(y, mean, variance, gamma, beta)
        if residual is not None:
            y += residual
        return y.relu_() if relu else y

    def max_pool(self, x: Any) -> Any:
        return self.torch.nn.functional.max_pool2d(x, 3, 2, 1)

    def head(self, x: Any) -> Any:
        w, b = self.weights["fc.weight"], self.weights["fc.bias"]
        return self.torch.nn.functional.linear(x.mean((2, 3)), w, b)

    def run(self, x: Any) -> Any:
        """Logits of an NCHW tensor of any memory format."""
        with self.torch.inference_mode():
            return network(self, x)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits of NHWC images."""
        result: np.ndarray = self.run(self.torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
        return result


def difference(logits: np.ndarray, exact: np.ndarray) -> float:
    """The largest difference, in parts of the largest logit."""
    return float(np.abs(logits - exact).max() / np.abs(exact).max())


def seconds(run: Callable[[], Any], least: float = 1.0) -> float:
    """The best of repeats for `least` seconds (at least 3)."""
    run()
    times: list[float] = []
    while len(times) < 3 or sum(times) < least:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def by_layer(net: Resnet50, repeats: int = 10) -> list[float]:
    """Seconds of each layer, in the order of the network: best of `repeats` passes."""
    best = [float("inf")] * len(net.steps)
    for _ in range(repeats):
        for i, step in enumerate(net.steps):
            began = time.perf_counter()
            step.run()
            best[i] = min(best[i], time.perf_counter() - began)
    return best


def plot(file: str, names: list[str], times: list[float]) -> None:
    """A bar for each layer."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        sys.exit("--plot needs matplotlib (pip install 'jitgen[plot]')")
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots()
    axes.bar(names, [1e3 * t for t in times])
    axes.set(ylabel="ms", title="ResNet-50, time by layer")
    axes.tick_params(axis="x", rotation=90, labelsize=7)
    figure.savefig(file, dpi=120)


def compare(net: Resnet50, weights: Weights, images: np.ndarray) -> int:
    """Logits beside PyTorch's; 1 if they part by more than 1e-3."""
    try:
        theirs = Torch(weights, fold=False)
    except ImportError:
        sys.exit("--compare needs PyTorch (pip install 'jitgen[peers]')")
    off = difference(net(images), theirs(images))
    print(f"largest difference of logits: {off:.1e} of the largest")
    return int(not off < 1e-3)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--random", action="store_true", help="He-initialised weights, seeded")
    source.add_argument("--weights", metavar="FILE", help="NPZ file, names as in a state_dict")
    parser.add_argument("--batch", type=int, default=1, help="images at a time (1)")
    parser.add_argument("--size", type=int, default=224, help="their height and width (224)")
    parser.add_argument("--threads", type=int, help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", action="store_true", help="logits beside PyTorch's")
    parser.add_argument("--plot", metavar="FILE", help="draw the time by layer")
    options = parser.parse_args()
    weights = dict(np.load(options.weights)) if options.weights else random_weights(options.seed)
    net = Resnet50(weights, options.batch, options.size, options.threads)
    images = np.random.default_rng(options.seed).standard_normal(net.x.shape).astype(np.float32)
    if options.compare:
        return compare(net, weights, images)
    net(images)
    names, times = [step.name for step in net.steps], by_layer(net)
    print(f"{'layer':24} {'output':>18} {'ms':>8} {'GFLOP/s':>8}")
    for step, t in zip(net.steps, times, strict=True):
        shape = " x ".join(map(str, step.y.shape[1:]))
        print(f"{step.name:24} {shape:>18} {1e3 * t:8.3f} {step.flops / t / 1e9:8.1f}")
    total = seconds(lambda: net(images))
    work = sum(step.flops for step in net.steps)
    print(f"total {1e3 * total:.2f} ms, {work / total / 1e9:.1f} GFLOP/s, "
          f"{options.batch / total:.1f} images/s")  # fmt: skip
    if options.plot:
        plot(options.plot, names, times)
    return 0


if __name__ == "__main__":
    sys.exit(main())
