"""Pooling layers over random windows against float64, and folding of batch normalisation.

Not here: the kernels (test_pooling).
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np
import pytest
from random_cases import SEED

from jitgen import AveragePool, Convolution, MaxPool, fold_batch_norm
from jitgen.run import cpu

HERE = [name for name, why in cpu.targets().items() if not why]
KINDS = {"f32": np.float32, "f64": np.float64}


def random_pool(rng: random.Random, target: str) -> MaxPool | AveragePool:
    """Any kernel, stride, padding, type and layout; some windows of more taps than a kernel has."""
    make = rng.choice([MaxPool, AveragePool])
    while True:
        taps = rng.choice([3, (rng.randint(1, 5), rng.randint(1, 5)), (rng.randint(9, 12), 10)])
        most = [k // 2 for k in (taps if isinstance(taps, tuple) else (taps, taps))]
        side = [(rng.randint(0, m), rng.randint(0, m)) for m in most]
        try:
            return make(
                rng.randint(1, 3), rng.randint(1, 140), rng.randint(1, 14), rng.randint(1, 14),
                taps, stride=rng.choice([None, 1, 2, (1, 3)]),
                padding=rng.choice([0, "same", (side[0], side[1])]),
                dtype=rng.choice(["f32", "f64"]), layout=rng.choice(["nchw", "nhwc"]),
                threads=rng.randint(1, 3), target=target,
            )  # fmt: skip
        except ValueError as error:
            assert "smaller than the kernel's reach" in str(error)


def reference(layer: MaxPool | AveragePool, x: np.ndarray) -> np.ndarray:
    """In float64, window by window."""
    conv = layer.conv
    nchw = x.transpose(0, 3, 1, 2) if conv.nhwc else x
    fill = -np.inf if layer.kind == "max" else 0.0
    (top, left), (height, width) = conv.padding, conv.padded
    whole = np.full((*nchw.shape[:2], height, width), fill)
    whole[:, :, top : top + conv.size[0], left : left + conv.size[1]] = nchw
    y = np.empty((*nchw.shape[:2], *conv.out))
    for h in range(conv.out[0]):
        for w in range(conv.out[1]):
            r, s = h * conv.stride[0], w * conv.stride[1]
            window = whole[:, :, r : r + conv.kernel[0], s : s + conv.kernel[1]]
            y[:, :, h, w] = window.max((2, 3)) if layer.kind == "max" else window.mean((2, 3))
    return y.transpose(0, 2, 3, 1) if conv.nhwc else y


@pytest.mark.parametrize("target", HERE)
def test_random_windows(target: str) -> None:
    rng = random.Random(f"{SEED} pools {target}")
    for i in range(60):
        layer = random_pool(rng, target)
        kind = KINDS[layer.conv.dtype]
        # negative on average: a padding of zeros would be seen in a maximum
        x = (np.random.default_rng(SEED + i).standard_normal(layer.x_shape) - 2).astype(kind)
        exact = reference(layer, x)
        bound = 0 if layer.kind == "max" else 200 * np.finfo(kind).eps
        for _ in range(2):  # also where scratch holds what a call left
            error = np.abs(layer.forward(x) - exact).max()
            assert error <= bound, f"JITGEN_SEED={SEED} off by {error}: {layer.conv}"


def test_padding_is_no_number_and_nan_stays() -> None:
    x = np.full((1, 3, 5, 5), -np.inf, np.float32)
    assert (MaxPool(1, 3, 5, 5, 3, padding=1).forward(x) == -np.inf).all()
    x[0, 1, 0, 0] = np.nan
    y = MaxPool(1, 3, 5, 5, 3, stride=2, padding=1).forward(x)
    assert np.isnan(y[0, 1, 0, 0]) and np.isnan(y).sum() == 1


def test_global_average() -> None:
    for size, channels in ((7, 2048), (12, 70)):
        layer = AveragePool(2, channels, size, size, (size, size), layout="nhwc")
        x = np.random.default_rng(SEED).standard_normal(layer.x_shape).astype(np.float32)
        out = np.empty((2, 1, 1, channels), np.float32)
        assert layer.forward(x, out) is out
        exact = x.astype(np.float64).mean((1, 2), keepdims=True)
        np.testing.assert_allclose(out, exact, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((0, 4, 5, 5, 3), {}, ValueError, "batch=0"),
        ((1, 4, 5, 5, 3.0), {}, TypeError, "kernel=3.0"),
        ((1, 4, 5, 5, 3), {"padding": 2}, ValueError, "padding=2 is more than half of kernel=3"),
        ((1, 4, 5, 5, 6), {}, ValueError, "height=5 with padding (0, 0)"),
        ((1, 4, 99, 99, 82), {}, ValueError, "kernel=82"),
        ((1, 4, 5, 5, 3), {"layout": "chwn"}, ValueError, "layout='chwn'"),
        ((1, 4, 5, 5, 3), {"dtype": "s32"}, ValueError, "dtype='s32'"),
        ((1, 4, 5, 5, 3), {"stride": 0}, ValueError, "stride=0"),
    ],
)  # fmt: skip
def test_errors(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    for make in (MaxPool, AveragePool):
        with pytest.raises(error) as caught:
            make(*arguments, **options)
        assert words in str(caught.value)


def test_wrong_arrays() -> None:
    layer = MaxPool(1, 4, 6, 6, 2)
    x = np.zeros((1, 4, 6, 6), np.float32)
    with pytest.raises(ValueError, match="x has shape"):
        layer.forward(x[:, 1:])
    with pytest.raises(ValueError, match="out overlaps x"):
        layer.forward(x, x.reshape(-1)[:36].reshape(1, 4, 3, 3))


LAYERS: list[Any] = [
    partial(MaxPool, kernel=2), partial(AveragePool, kernel=2),
    partial(Convolution, out_channels=4, kernel=2, stride=2),
]  # fmt: skip


@pytest.mark.parametrize("make", LAYERS)
def test_one_layout_for_all_unless_asked(make: Any) -> None:
    """Layers that follow one another read what the one before wrote, also where there are as many
    channels as rows and columns and no shape could tell."""
    default, nchw = make(1, 4, 4, 4), make(1, 4, 4, 4, layout="nchw")
    assert default.y_shape == nchw.y_shape == (1, 4, 2, 2)
    x = np.random.default_rng(SEED).standard_normal((1, 4, 4, 4)).astype(np.float32)
    more = ()
    if isinstance(default, Convolution):
        more = np.ones(default.w_shape, np.float32), np.zeros(4, np.float32)
    np.testing.assert_array_equal(default.forward(x, *more), nchw.forward(x, *more))


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize(("here", "there"), [("nchw", "nhwc"), ("nhwc", "nchw")])
def test_errors_name_the_layout(make: Any, here: str, there: str) -> None:
    layer, other = (make(1, 4, 6, 8, layout=layout) for layout in (here, there))
    x, y, wrong = (np.zeros(s, np.float32) for s in (layer.x_shape, layer.y_shape, (1, 2, 3, 4)))
    x_there, y_there = (np.zeros(s, np.float32) for s in (other.x_shape, other.y_shape))
    calls: list[tuple[Any, np.ndarray]]
    if isinstance(layer, Convolution):
        w, b = np.zeros(layer.w_shape, np.float32), np.zeros(4, np.float32)
        calls = [
            (lambda a: layer.forward(a, w, b), x_there),
            (lambda a: layer.forward(x, w, b, out=a), y_there),
            (lambda a: layer.backward_data(a, w), y_there),
            (lambda a: layer.backward_data(y, w, out=a), x_there),
            (lambda a: layer.backward_weights(a, x), y_there),
            (lambda a: layer.backward_weights(y, a), x_there),
        ]  # fmt: skip
    else:
        calls = [
            (layer.forward, x_there), (lambda a: layer.forward(x, out=a), y_there),
            (lambda a: layer.backward(a, x), y_there),
            (lambda a: layer.backward(y, x, out=a), x_there),
        ]  # fmt: skip
    for call, array in calls:
        with pytest.raises(ValueError, match=r"has shape .*; it must be ") as caught:
            call(array)
        note = f"(layout='{here}'; with layout='{there}' the shape would be right)"
        assert str(caught.value).endswith(note)
        with pytest.raises(ValueError, match=rf"it must be \(1, .*\) \(layout='{here}'\)$"):
            call(wrong)


def test_folded_batch_norm() -> None:
    rng = np.random.default_rng(SEED)
    w = rng.standard_normal((6, 5, 3, 3)).astype(np.float32)
    b, gamma, beta, mean = rng.standard_normal((4, 6)).astype(np.float32)
    variance = rng.random(6).astype(np.float32) + 0.1
    x = rng.standard_normal((2, 5, 7, 7)).astype(np.float32)
    layer = Convolution(2, 5, 7, 7, 6, 3)
    wide = (slice(None), None, None)
    exact = layer.forward(x, w, b).astype(np.float64) - mean[wide]
    exact = exact / np.sqrt(variance[wide] + 1e-3) * gamma[wide] + beta[wide]
    folded = fold_batch_norm(w, b, gamma, beta, mean, variance, eps=1e-3)
    np.testing.assert_allclose(layer.forward(x, *folded), exact, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="mean has shape"):
        fold_batch_norm(w, b, gamma, beta, mean[:3], variance)
    with pytest.raises(ValueError, match="variance=-1"):
        fold_batch_norm(w, None, gamma, beta, mean, variance * 0 - 1)
