"""Convolutions against float64: three passes over every option, replayed on every tier; errors.

Not here: the machinery of streams (test_streams).
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from activations import activated
from random_cases import SEED
from rig import count
from rig.job import Buffer, Job, Pointers
from tiers import TIERS, need

from jitgen import Convolution
from jitgen.primitives.conv import streams
from jitgen.primitives.nest.run import Run
from jitgen.run import cpu
from jitgen.run.replay import emit_replay

HERE = [name for name, why in cpu.targets().items() if not why]
KINDS = {"f32": np.float32, "f64": np.float64}
EPS = {"f32": 2.0**-24, "f64": 2.0**-53}
#: Of slope 1.5 at the most
ACTIVATIONS = [None, None, "relu", "relu", "relu6", ("leaky_relu", 0.25), "hardswish", "elu"]
#: tier -> configurations of each pass
AMOUNT = {"avx512 bochs": 24, "sve128 qemu": 10, "sve256 qemu": 10, "sve512 qemu": 10,
          "neon qemu": 10}  # fmt: skip


def random_layer(rng: random.Random, target: str, most: int) -> Convolution:
    """Any kernel, stride, padding, dilation, groups and layout; sizes that no block divides."""
    while True:
        groups = rng.choice([1, 1, 1, 2, 3])
        c, k = (rng.choice([1, 3, rng.randint(1, most)]) * groups for _ in "ck")
        if rng.random() < 0.2:  # depthwise; once in a while with pixels that share a set of L1
            c = k = groups = rng.choice([rng.randint(2, 3 * most), 512])
        taps = rng.choice([(1, 1), (3, 3), (rng.randint(1, 5), rng.randint(1, 5))])
        height, width = rng.randint(1, most), rng.randint(1, most)
        pair = lambda low, high: (rng.randint(low, high), rng.randint(low, high))  # noqa: E731
        padding = rng.choice(["same", 0, pair(0, 3), (pair(0, 2), pair(0, 2))])
        try:
            return Convolution(
                rng.randint(1, 3), c, height, width, k, taps,
                stride=rng.choice([1, 1, 2, pair(1, 3)]), padding=padding,
                dilation=rng.choice([1, 1, pair(1, 2)]), groups=groups, bias=rng.random() < 0.7,
                activation=rng.choice(ACTIVATIONS), residual=rng.random() < 0.3,
                dtype=rng.choice(["f32", "f64"]), layout=rng.choice(["nchw", "nhwc"]),
                threads=rng.randint(1, 3), algorithm="direct", target=target,
            )  # fmt: skip
        except ValueError as error:
            assert "smaller than the kernel's reach" in str(error)


def random_depthwise(rng: random.Random, target: str, most: int) -> Convolution:
    """Depthwise: borders wider than the window, strides that skip pixels, windows of few and of
    many taps, all epilogues that its kernels know."""
    while True:
        c = rng.choice([rng.randint(2, 3 * most), 2, 16, 64, 65, 129])
        side = lambda: rng.choice([1, 2, 3, 3, 3, 4, 5, 7])  # noqa: E731
        pair = lambda high: (rng.randint(0, high), rng.randint(0, high))  # noqa: E731
        try:
            return Convolution(
                rng.randint(1, 3), c, rng.randint(1, most), rng.randint(1, most), c,
                (side(), side()), stride=rng.choice([1, 1, 2, (2, 1), (1, 3), 4]),
                padding=rng.choice(["same", 0, (pair(2), pair(2)), (pair(7), pair(7))]),
                dilation=rng.choice([1, 1, 2, (1, 3)]), groups=c, bias=rng.random() < 0.7,
                activation=rng.choice(ACTIVATIONS), residual=rng.random() < 0.3,
                dtype=rng.choice(["f32", "f32", "f64"]),
                layout=rng.choice(["nchw", "nhwc", "nhwc"]), threads=rng.randint(1, 3),
                target=target,
            )  # fmt: skip
        except ValueError as error:
            assert "smaller than the kernel's reach" in str(error)


class Reference:
    """All passes in float64, tap by tap, on NCHW arrays of standard normal, or small whole,
    numbers."""

    def __init__(self, layer: Convolution, seed: int, whole_numbers: bool = False) -> None:
        conv, rng = layer.conv, np.random.default_rng(seed)
        kind = KINDS[conv.dtype]
        n, (c, k) = conv.batch, conv.group
        shapes = {
            "x": (n, conv.channels, *conv.size), "w": layer.w_shape, "b": (conv.features,),
            "residual": (n, conv.features, *conv.out), "dy": (n, conv.features, *conv.out),
        }  # fmt: skip
        data = {name: rng.standard_normal(s).astype(kind) for name, s in shapes.items()}
        if whole_numbers:
            data = {name: rng.integers(-4, 5, s).astype(kind) for name, s in shapes.items()}
        self.data = data
        x, w, b, residual, dy = (data[name].astype(np.float64) for name in shapes)
        (top, left), (height, width) = conv.padding, conv.padded
        whole = np.zeros((n, conv.channels, height, width))
        inside = (slice(None), slice(None), slice(top, top + conv.size[0]),
                  slice(left, left + conv.size[1]))  # fmt: skip
        whole[inside] = x
        y, dw, dwhole = np.zeros(dy.shape), np.zeros(w.shape), np.zeros(whole.shape)
        size = np.zeros(dy.shape)
        for i, (r, s) in enumerate(conv.taps):
            at = np.s_[:, :, r : r + conv.stride[0] * (conv.out[0] - 1) + 1 : conv.stride[0],
                       s : s + conv.stride[1] * (conv.out[1] - 1) + 1 : conv.stride[1]]  # fmt: skip
            tap = np.unravel_index(i, conv.kernel)
            for g in range(conv.groups):
                ins, outs = slice(g * c, g * c + c), slice(g * k, g * k + k)
                part, filters = whole[at][:, ins], w[outs, :, tap[0], tap[1]]
                y[:, outs] += np.einsum("nchw,kc->nkhw", part, filters)
                size[:, outs] += np.einsum("nchw,kc->nkhw", np.abs(part), np.abs(filters))
                dw[outs, :, tap[0], tap[1]] = np.einsum("nchw,nkhw->kc", part, dy[:, outs])
                dwhole[at][:, ins] += np.einsum("nkhw,kc->nchw", dy[:, outs], filters)
        if conv.bias:
            y += b[:, None, None]
        if layer.residual:
            y += residual
        y = activated(layer.activation, y)
        self.y, self.dx, self.dw, self.db = y, dwhole[inside], dw, dy.sum((0, 2, 3))
        terms = max(len(conv.taps) * max(c, k), n * conv.out[0] * conv.out[1])
        #: how far off a result may be: a sum of `terms` products of standard normal numbers
        self.bound = 40 * (terms + 8) * EPS[conv.dtype] * 2


def stored(layer: Convolution, array: np.ndarray) -> np.ndarray:
    """An NCHW array in the layer's layout."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if layer.conv.nhwc else array


def check(layer: Convolution, what: str, got: np.ndarray, exact: np.ndarray, bound: float) -> None:
    if layer.conv.nhwc and got.ndim == 4 and what in ("y", "dx"):
        got = got.transpose(0, 3, 1, 2)
    error = np.abs(got - exact).max()  # NaN if there is one
    assert error <= bound, f"JITGEN_SEED={SEED} {what} is off by {error}: {layer.conv}"


#: Targets, most of all AVX2, and how many times 50 configurations each gets
PARTS = [(target, i, random_layer) for target in HERE for i in range(20 if target == "avx2" else 5)]
PARTS += [(target, i, random_depthwise) for target in HERE for i in range(4)]


@pytest.mark.parametrize(("target", "part", "make"), PARTS)
def test_random_configurations(target: str, part: int, make: Any) -> None:
    rng = random.Random(f"{SEED} {target} {part} {make.__name__}")
    for i in range(50):
        layer = make(rng, target, 17)
        r = Reference(layer, SEED + 100 * part + i)
        x, dy, residual = (stored(layer, r.data[name]) for name in ("x", "dy", "residual"))
        w, b = r.data["w"], r.data["b"] if layer.conv.bias else None
        packed = layer.pack_weights(w)
        for filters in (w, packed):
            y, dx = (np.full_like(array, np.nan) for array in (dy, x))
            layer.forward(x, filters, b, residual if layer.residual else None, out=y)
            check(layer, "y", y, r.y, r.bound)
            layer.backward_data(dy, filters, out=dx)
            check(layer, "dx", dx, r.dx, r.bound)
        dw, db = layer.backward_weights(dy, x)
        check(layer, "dw", dw, r.dw, r.bound)
        if layer.conv.bias:
            assert db is not None
            check(layer, "db", db, r.db, r.bound)
        count.count(target, "convolutions", 5)


@pytest.mark.parametrize("target", HERE)
@pytest.mark.parametrize(("size", "c", "k", "taps"), [
    (7, 512, 2048, 1), (7, 2048, 512, 1), (14, 96, 512, 1), (1, 300, 700, 1), (28, 3, 64, 7),
    (9, 700, 130, 3),
])  # fmt: skip
def test_layers_of_networks(size: int, c: int, k: int, taps: int, target: str) -> None:
    """Sizes at which panels, pieces of the reduction and long rows of pixels come into play."""
    for batch, threads in ((1, 1), (2, 2)):
        layer = Convolution(
            batch, c, size, size, k, taps, padding="same", layout="nhwc", threads=threads,
            algorithm="direct", target=target,
        )  # fmt: skip
        r = Reference(layer, SEED)
        x, dy = (stored(layer, r.data[name]) for name in ("x", "dy"))
        w, b = r.data["w"], r.data["b"]
        packed = layer.pack_weights(w)
        for filters in (w, packed):
            check(layer, "y", layer.forward(x, filters, b), r.y, r.bound)
            check(layer, "dx", layer.backward_data(dy, filters), r.dx, r.bound)
        dw, db = layer.backward_weights(dy, x)
        assert db is not None
        check(layer, "dw", dw, r.dw, r.bound)
        check(layer, "db", db, r.db, r.bound)


@pytest.mark.parametrize("target", HERE)
@pytest.mark.parametrize(("c", "size", "stride"), [
    (32, 112, 1), (64, 112, 2), (256, 28, 2), (512, 14, 1), (512, 14, 2), (1024, 7, 1),
])  # fmt: skip
def test_depthwise_layers_of_mobilenet(c: int, size: int, stride: int, target: str) -> None:
    """Small whole numbers, whose sums are exact, on one thread and on two."""
    numbers = np.random.default_rng(SEED)
    x = numbers.integers(-8, 9, (1, size, size, c)).astype(np.float32)
    dy = numbers.integers(-8, 9, (1, size // stride, size // stride, c)).astype(np.float32)
    w = numbers.integers(-8, 9, (c, 1, 3, 3)).astype(np.float32)
    b = numbers.integers(-8, 9, c).astype(np.float32)
    whole = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y, dw, dwhole = np.zeros_like(dy), np.zeros_like(w), np.zeros_like(whole)
    for r, s in np.ndindex(3, 3):
        at = np.s_[:, r : r + size : stride, s : s + size : stride]
        y += whole[at] * w[:, 0, r, s]
        dw[:, 0, r, s] = (whole[at] * dy).sum((0, 1, 2), dtype=np.float64)
        dwhole[at] += dy * w[:, 0, r, s]
    for threads in (1, 2):
        layer = Convolution(
            1, c, size, size, c, 3, stride=stride, padding=1, groups=c, activation="relu",
            layout="nhwc", threads=threads, target=target,
        )  # fmt: skip
        np.testing.assert_array_equal(layer.forward(x, w, b), np.maximum(y + b, 0))
        np.testing.assert_array_equal(layer.backward_data(dy, w), dwhole[:, 1:-1, 1:-1])
        np.testing.assert_array_equal(layer.backward_weights(dy, x)[0], dw)


def as_job(run: Run, given: dict[str, np.ndarray], result: dict[str, tuple[int, ...]]) -> Job:
    """The stream of a run with its arrays in memory of their own, outputs poisoned."""
    kind = next(iter(given.values())).dtype
    buffers = []
    for name in run.stream.tensors:
        if name in given:
            buffers.append(Buffer(given[name]))
        elif name in result:
            buffers.append(Buffer(np.full(result[name], np.nan, kind), write=True))
        elif name in run.scratch:
            buffers.append(Buffer(np.zeros(run.scratch[name], kind), write=True))
        else:
            buffers.append(Buffer(run.constants[name]))
    code = emit_replay(run.stream.calls, run._target).code
    return Job(code, [Buffer(run.stream.slices[0]), Pointers(buffers), 0, 0])


@pytest.mark.parametrize("make", [random_layer, random_depthwise])
@pytest.mark.parametrize("tier", AMOUNT)
def test_replay(tier: str, make: Any) -> None:
    """The drivers and kernels of other instruction sets compute the same layers."""
    need(TIERS[tier])
    rng = random.Random(f"{SEED} {tier} {make.__name__}")
    jobs: list[Job] = []
    expected: list[tuple[Convolution, str, np.ndarray, float, int]] = []
    for i in range(AMOUNT[tier]):
        layer = make(rng, TIERS[tier].target, 7)
        object.__setattr__(layer.conv, "threads", 1)
        r, conv = Reference(layer, SEED + i), layer.conv
        x, dy, residual = (stored(layer, r.data[name]) for name in ("x", "dy", "residual"))
        given = {"image": x, "w": r.data["w"], "bias": r.data["b"], "residual": residual}
        for what, run, arrays, outputs, exact in (
            ("y", streams.forward(conv, layer.choice("forward"), False), given,
             {"result": layer.y_shape}, r.y),
            ("dx", streams.backward_data(conv, layer.choice("backward_data"), False),
             {**given, "image": dy}, {"result": layer.x_shape}, r.dx),
            ("dw", streams.backward_weights(conv, layer.choice("backward_weights")),
             {"image": x, "dy": dy},
             {"dw": layer.w_shape, "db": (conv.features,)}, r.dw),
        ):  # fmt: skip
            jobs.append(as_job(run, arrays, outputs))
            written = [n for n in run.stream.tensors if n in outputs or n in run.scratch]
            index = written.index(next(iter(outputs)))
            expected.append((layer, what, exact, r.bound, index))
    for (layer, what, exact, bound, index), outcome in zip(
        expected, TIERS[tier].run(jobs, isa=TIERS[tier].target), strict=True
    ):
        assert outcome.ok, f"JITGEN_SEED={SEED} {what} {layer.conv}: {outcome.error}"
        shape = {"y": layer.y_shape, "dx": layer.x_shape, "dw": layer.w_shape}[what]
        check(layer, what, outcome.outputs[index].reshape(shape), exact, bound)


@pytest.mark.parametrize(("c", "k", "groups"), [(37, 70, 1), (37, 37, 37), (200, 200, 200)])
def test_any_number_of_threads_gives_the_same_bits(c: int, k: int, groups: int) -> None:
    for size, taps, stride in ((9, 3, 1), (14, 1, 1), (13, 5, 2)):
        results = []
        for threads in (1, 2, 4):
            layer = Convolution(
                2, c, size, size, k, taps, stride=stride, padding="same", groups=groups,
                threads=threads, algorithm="direct",
            )  # fmt: skip
            r = Reference(layer, SEED)
            x, w, b, dy = (r.data[name] for name in ("x", "w", "b", "dy"))
            results.append((layer.forward(x, w, b), layer.backward_data(dy, w)))
        for other in results[1:]:
            for one, two in zip(results[0], other, strict=True):
                np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("target", HERE)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(("groups", "algorithm"), [(1, "direct"), (1, "winograd"), (8, "direct")])
def test_bias_gradient_of_many_pixels(
    layout: str, groups: int, algorithm: str, target: str
) -> None:
    """Numbers of one sign: as sums of an image's pixels, then of the images, off by no more."""
    batch, size = 64, 64
    layer = Convolution(
        batch, 8, size, size, 8, 3, padding=1, groups=groups, layout=layout, algorithm=algorithm,
        target=target, threads=2,
    )  # fmt: skip
    dy = np.full(layer.y_shape, 0.1, np.float32)
    exact = batch * size * size * float(dy.flat[0])
    db = layer.backward_weights(dy, np.zeros(layer.x_shape, np.float32))[1]
    assert db is not None
    assert np.abs(db - exact).max() <= (size * size + batch) * EPS["f32"] * exact


@pytest.mark.skipif(not HERE, reason="no target runs on this CPU")
def test_bias_gradient_of_more_than_two_gigabytes() -> None:
    """The stream can be made: no kernel spans more than an image."""
    for algorithm in ("direct", "winograd"):
        layer = Convolution(
            256, 64, 224, 224, 64, 3, padding=1, layout="nhwc", algorithm=algorithm, threads=1
        )
        assert "sums by image" in layer.stream("backward_weights").text(1)


X, W, B = (np.zeros(s, np.float32) for s in ((1, 4, 5, 5), (6, 4, 3, 3), (6,)))
LAYER = Convolution(1, 4, 5, 5, 6, 3) if HERE else None


def onto_its_weights(layer: Any) -> Any:
    """Results in the memory of packed weights."""
    packed = layer.pack_weights(W)
    out = packed.forward.reshape(-1)[: 6 * 3 * 3].reshape(1, 6, 3, 3)
    return layer.forward(X, packed, B, out=out)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: Convolution(0, 4, 5, 5, 6, 3), ValueError, "batch=0"),
        (lambda x: Convolution(1, 4, 5, 5, 6, 6), ValueError, "height=5"),
        (lambda x: Convolution(1, 4, 5, 5, 6, (3,)), ValueError, "kernel=(3,)"),
        (lambda x: Convolution(1, 4, 5, 5, 6, 3, stride=0), ValueError, "stride=0"),
        (lambda x: Convolution(1, 4, 5, 5, 6, 3, stride=1.5), TypeError, "stride=1.5"),
        (lambda x: Convolution(1, 4, 5, 5, 6, 3, padding=-1), ValueError, "padding=-1"),
        (lambda x: Convolution(1, 4, 5, 5, 6, 3, padding="valid"), ValueError, "valid"),
        (lambda x: Convolution(1, 4, 5, 5, 6, 3, groups=4), ValueError, "groups=4"),
        (lambda x: Convolution(1, 4, 5, 5, 6, 3, layout="chwn"), ValueError, "chwn"),
        (lambda x: Convolution(1, 4, 5, 5, 6, 3, activation="celu"), ValueError, "celu"),
        (lambda x: Convolution(1, 4, 5, 5, 6, 3, dtype="i8"), ValueError, "i8"),
        (lambda x: x.forward(X[0], W, B), ValueError, "x has shape (4, 5, 5)"),
        (lambda x: x.forward(X, W[:5], B), ValueError, "w has shape"),
        (lambda x: x.forward(X, W), TypeError, "b is NoneType"),
        (lambda x: x.forward(X, W, B, X), ValueError, "residual is given"),
        (lambda x: x.forward(X, W, B, out=X), ValueError, "out has shape"),
        (lambda x: x.forward(X.astype("f8"), W, B), TypeError, "float64"),
        (lambda x: x.backward_data(X, W), ValueError, "dy has shape"),
        (lambda x: onto_its_weights(x), ValueError, "out overlaps w"),
        (lambda x: x.backward_data(np.zeros((1, 6, 3, 3), "f4"),
                                   x.pack_weights(W, backward=False)), ValueError, "backward="),
        (lambda x: x.forward(X, Convolution(1, 4, 5, 5, 6, 1).pack_weights(W[:, :, :1, :1].copy()),
                             B), ValueError, "w is packed as"),
        (lambda x: x.backward_weights(np.zeros((1, 6, 3, 3), "f4"), X[:, :3]), ValueError, "x has"),
    ],
)  # fmt: skip
@pytest.mark.skipif(not HERE, reason="no target runs on this CPU")
def test_bad_input(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        call(LAYER)
    assert words in str(raised.value)


@pytest.mark.parametrize("target", HERE)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_sum_in_place_of_the_residual(layout: str, target: str) -> None:
    """The same bits as with an array of its own, however the sum is cut."""
    rng = np.random.default_rng(SEED)
    for c, k, side, algorithm in (
        (64, 128, 1, None), (2048, 512, 1, None), (24, 20, 1, None), (64, 64, 3, "direct"),
        (64, 64, 3, "winograd"), (1500, 64, 3, "direct"),
    ):  # fmt: skip
        layer = Convolution(
            2, c, 9, 9, k, side, padding=side // 2, residual=True, activation="relu",
            layout=layout, target=target, algorithm=algorithm, threads=2,
        )  # fmt: skip
        x, w, residual = (
            rng.standard_normal(shape).astype(np.float32)
            for shape in (layer.x_shape, layer.w_shape, layer.y_shape)
        )
        b = np.ones(k, np.float32)
        wanted = layer.forward(x, w, b, residual)
        got = layer.forward(x, w, b, residual, out=residual)
        assert got is residual and (got == wanted).all(), f"JITGEN_SEED={SEED} {c} {k} {algorithm}"
