"""Convolution in one dimension: three passes over every option against float64 and PyTorch,
and the gradient of a convolution's activation.

The oracle is in one dimension too: it knows nothing of images. Not here: the layer that does the
work (`test_convolution`), and its instruction sets.
"""

from __future__ import annotations

import random
from typing import Any

import needs
import numpy as np
import pytest
from activations import DIFFERENTIABLE
from random_cases import SEED

from jitgen import Convolution, convolution_1d
from jitgen.run import cpu

Array = np.ndarray[Any, Any]
HERE = [name for name, why in cpu.targets().items() if not why]
KINDS = {"f32": np.float32, "f64": np.float64}
pytestmark = pytest.mark.skipif(not HERE, reason="no target runs on this CPU")


def random_options(rng: random.Random) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Arguments of a layer; its kernel may reach further than the signal."""
    groups = rng.choice([1, 1, 2, 3])
    c, k = (rng.randint(1, 12) * groups for _ in "ck")
    if rng.random() < 0.2:  # depthwise
        c = k = groups = rng.randint(2, 40)
    sizes = (rng.randint(1, 3), c, rng.randint(1, 60), k, rng.randint(1, 7))
    return sizes, {
        "stride": rng.randint(1, 3), "dilation": rng.randint(1, 3), "groups": groups,
        "padding": rng.choice(["same", 0, rng.randint(0, 4), (rng.randint(0, 3), 2)]),
        "bias": rng.random() < 0.7, "residual": rng.random() < 0.3,
        "activation": rng.choice([None, "relu"]), "dtype": rng.choice(["f32", "f64"]),
        "layout": rng.choice(["nchw", "nhwc"]), "threads": rng.randint(1, 2),
    }  # fmt: skip


def sides(sizes: tuple[int, ...], options: dict[str, Any]) -> tuple[int, int]:
    """Zeros before and after the signal."""
    padding, length, taps = options["padding"], sizes[2], sizes[4]
    if padding == "same":
        out = -(-length // options["stride"])
        total = (out - 1) * options["stride"] + (taps - 1) * options["dilation"] + 1 - length
        return max(0, total) // 2, max(0, total) - max(0, total) // 2
    return padding if isinstance(padding, tuple) else (padding, padding)


class Exact:
    """All passes in float64 on N x C x L, tap by tap and group by group."""

    def __init__(self, sizes: tuple[int, ...], options: dict[str, Any], seed: int) -> None:
        n, channels, length, features, taps = sizes
        stride, dilation, groups = (options[name] for name in ("stride", "dilation", "groups"))
        before, after = sides(sizes, options)
        self.length = (length + before + after - (taps - 1) * dilation - 1) // stride + 1
        rng, kind = np.random.default_rng(seed), KINDS[options["dtype"]]
        c, k = channels // groups, features // groups
        shapes = {"x": (n, channels, length), "w": (features, c, taps), "b": (features,),
                  "dy": (n, features, self.length), "residual": (n, features, self.length)}
        self.data = {name: rng.standard_normal(s).astype(kind) for name, s in shapes.items()}
        x, w, b, dy, residual = (a.astype(np.float64) for a in self.data.values())
        whole = np.pad(x, ((0, 0), (0, 0), (before, after)))
        y, dwhole, dw = np.zeros(dy.shape), np.zeros(whole.shape), np.zeros(w.shape)
        for t in range(taps):
            at = slice(t * dilation, t * dilation + (self.length - 1) * stride + 1, stride)
            for g in range(groups):
                ins, outs = slice(g * c, g * c + c), slice(g * k, g * k + k)
                y[:, outs] += np.einsum("ncl,kc->nkl", whole[:, ins, at], w[outs, :, t])
                dwhole[:, ins, at] += np.einsum("nkl,kc->ncl", dy[:, outs], w[outs, :, t])
                dw[outs, :, t] = np.einsum("ncl,nkl->kc", whole[:, ins, at], dy[:, outs])
        y += b[:, None] * options["bias"] + residual * options["residual"]
        if options["activation"]:
            y = np.maximum(y, 0)
        dx = dwhole[:, :, before : before + length]
        self.wanted = {"y": y, "dx": dx, "dw": dw, "db": dy.sum((0, 2))}
        terms = max(taps * max(c, k), n * self.length) + 8
        self.bound = 40 * terms * float(np.finfo(kind).eps)


def turned(layer: Convolution, a: Array) -> Array:
    """N x C x L as the layer has it, or back."""
    return np.ascontiguousarray(a.transpose(0, 2, 1)) if layer.conv.nhwc else a


def passes(layer: Convolution, data: dict[str, Array], packed: bool) -> dict[str, Array]:
    """What the layer makes of the data, as N x C x L."""
    x, dy, residual = (turned(layer, data[name]) for name in ("x", "dy", "residual"))
    w: Any = layer.pack_weights(data["w"]) if packed else data["w"]
    b = data["b"] if layer.conv.bias else None
    y = layer.forward(x, w, b, residual if layer.residual else None)
    dw, db = layer.backward_weights(dy, x)
    made = {"y": turned(layer, y), "dx": turned(layer, layer.backward_data(dy, w)), "dw": dw}
    assert (db is not None) == layer.conv.bias
    return made if db is None else {**made, "db": db}


def test_random_layers() -> None:
    rng, done = random.Random(f"{SEED} 1-D"), 0
    while done < 80:
        sizes, options = random_options(rng)
        reach = (sizes[4] - 1) * options["dilation"] + 1
        if sizes[2] + sum(sides(sizes, options)) < reach:
            with pytest.raises(ValueError, match="smaller than the kernel's reach"):
                convolution_1d(*sizes, **options)
            continue
        layer, exact = convolution_1d(*sizes, **options), Exact(sizes, options, SEED + done)
        for name, got in passes(layer, exact.data, done % 2 == 0).items():
            label = f"JITGEN_SEED={SEED} {name} of {sizes} {options}"
            assert got.shape == exact.wanted[name].shape, label
            assert np.abs(got - exact.wanted[name]).max() <= exact.bound, label
        done += 1


@pytest.mark.parametrize("options", [
    {}, {"stride": 2, "padding": 3}, {"dilation": 3, "padding": 6}, {"groups": 4, "padding": 1},
    {"padding": "same", "dilation": 2}, {"groups": 12, "stride": 3},
])  # fmt: skip
def test_against_pytorch(options: dict[str, Any]) -> None:
    needs.need_torch()
    import torch

    sizes = (2, 12, 50, 24, 5)
    layer = convolution_1d(*sizes, **options)
    rng = np.random.default_rng(SEED)
    shapes = (("x", layer.x_shape), ("w", layer.w_shape), ("b", (24,)), ("dy", layer.y_shape))
    data = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes}
    x, w, b = (torch.from_numpy(data[name]).requires_grad_() for name in "xwb")
    y = torch.nn.functional.conv1d(x, w, b, **options)
    y.backward(torch.from_numpy(data["dy"]))
    data["residual"] = data["dy"]
    made = passes(layer, data, False)
    theirs = {"y": y.detach(), "dx": x.grad, "dw": w.grad, "db": b.grad}
    for name, array in theirs.items():
        assert array is not None
        np.testing.assert_allclose(made[name], array.numpy(), rtol=1e-4, atol=1e-4)


def test_shapes() -> None:
    for layout, x, y in (("nchw", (3, 4, 9), (3, 6, 5)), ("nhwc", (3, 9, 4), (3, 5, 6))):
        layer = convolution_1d(3, 4, 9, 6, 3, stride=2, padding="same", groups=2, layout=layout)
        assert (layer.x_shape, layer.w_shape, layer.y_shape) == (x, (6, 2, 3), y)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: convolution_1d(1, 4, 0, 6, 3), ValueError, "length=0"),
        (lambda: convolution_1d(1, 4, 9, 6, (1, 3)), TypeError, "kernel=(1, 3)"),
        (lambda: convolution_1d(1, 4, 9, 6, 3, stride=0), ValueError, "stride=0"),
        (lambda: convolution_1d(1, 4, 9, 6, 3, dilation=1.5), TypeError, "dilation=1.5"),
        (lambda: convolution_1d(1, 4, 9, 6, 3, padding=-1), ValueError, "-1"),
        (lambda: convolution_1d(1, 4, 9, 6, 3, padding="valid"), ValueError, "'valid'"),
        (lambda: convolution_1d(1, 4, 9, 6, 3, groups=4), ValueError, "groups=4"),
        (lambda: convolution_1d(1, 4, 9, 6, 10), ValueError, "reach of 10"),
        (lambda: convolution_1d(1, 4, 9, 6, 3).forward(
            np.zeros((1, 4, 1, 9), "f4"), np.zeros((6, 4, 3), "f4"), np.zeros(6, "f4")),
         ValueError, "x has shape (1, 4, 1, 9); it must be (1, 4, 9)"),
    ],
)  # fmt: skip
def test_bad_input(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)


# ---- the activation's gradient, in one dimension and two ----------------------------------------


@pytest.mark.parametrize(("activation", "known_from"), DIFFERENTIABLE)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_activation_gradient(activation: Any, known_from: str, layout: str) -> None:
    """The whole layer's derivative by x along a direction, against central differences of it."""
    options: dict[str, Any] = {"padding": 1, "dtype": "f64", "layout": layout, "threads": 2}
    for make, sizes in ((convolution_1d, (2, 5, 11, 7, 3)), (Convolution, (2, 5, 6, 8, 7, 3))):
        layer = make(*sizes, activation=activation, **options)
        linear = make(*sizes, **options)
        rng = np.random.default_rng(SEED)
        x, dx = rng.standard_normal((2, *layer.x_shape))
        w, dy = rng.standard_normal(layer.w_shape), rng.standard_normal(layer.y_shape)
        b = rng.standard_normal(7)
        known = {"y": layer.forward(x, w, b)}
        if known_from == "z":
            known = {"z": linear.forward(x, w, b)}
        ((name, value),) = known.items()
        dz = layer.backward_activation(dy, **known)
        gradient = layer.backward_data(dz, w)
        h = 1e-6
        high, low = (layer.forward(x + s * h * dx, w, b) for s in (1, -1))
        slope = ((high - low) * dy).sum() / (2 * h)
        assert abs((gradient * dx).sum() - slope) < 1e-5 * max(1, abs(slope))
        assert layer.backward_activation(dy, out=dy, **known) is dy
        np.testing.assert_array_equal(dy, dz)
        with pytest.raises(ValueError, match="activation=None"):
            linear.backward_activation(dy, value)
        with pytest.raises(ValueError, match=f"{name} has shape .*layout="):
            layer.backward_activation(dy, **{name: value[:1]})
