"""Layers on arrays with gaps: any whose last axis is contiguous is taken as it lies, not copied,
and gives the same bits; what lies between stays as it is.

Not here: the streams (test_image_gaps, test_conv_strides, test_recurrent_strides).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from libraries import need_x86
from random_cases import SEED

from jitgen import (
    AveragePool,
    Convolution,
    FullyConnected,
    Gru,
    LayerNorm,
    LogSoftmax,
    LogSumExp,
    Lstm,
    MaxPool,
    RmsNorm,
    Rnn,
    RowMean,
    RowSum,
    Softmax,
    convolution_1d,
    doors,
)

RNG = np.random.default_rng(SEED)


def numbers(*shape: int) -> np.ndarray:
    return RNG.integers(-4, 5, shape).astype(np.float32)


def apart(array: np.ndarray, fill: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The same numbers with gaps behind each axis, and the memory they are in, NaN between."""
    base = np.full([n + 1 + i for i, n in enumerate(array.shape)], np.nan, array.dtype)
    view = base[tuple(slice(0, n) for n in array.shape)]
    if fill:
        view[...] = array
    return view, base


def compare(call: Callable[..., np.ndarray], *arrays: np.ndarray) -> None:
    """A call of arrays and out=, dense and with gaps, all of them and each alone."""
    need_x86()
    wanted = call(*arrays)
    for chosen in ([True] * (len(arrays) + 1), *np.eye(len(arrays) + 1, dtype=bool).tolist()):
        given = [apart(a)[0] if yes else a for a, yes in zip(arrays, chosen, strict=False)]
        if not chosen[-1]:
            np.testing.assert_array_equal(call(*given), wanted)
            continue
        out, base = apart(wanted, fill=False)
        result = call(*given, out=out)
        assert result is out
        np.testing.assert_array_equal(out, wanted)
        assert np.isnan(base).sum() == base.size - out.size, "gaps were written"


@pytest.mark.parametrize("batch", [1, 4, 70])
def test_fully_connected(batch: int) -> None:
    layer = FullyConnected(batch, 24, 40, activation="relu", residual=True, threads=2)
    x, w, b, r, dz = (numbers(*s) for s in ((batch, 24), (40, 24), (40,), (batch, 40), (batch, 40)))
    packed = layer.pack_weights(w)

    def forward(x: Any, r: Any, out: Any = None) -> Any:
        return layer.forward(x, packed, b, out, residual=r)

    compare(forward, x, r)
    compare(lambda x, w, out=None: layer.forward(x, w, b, out, residual=r), x, w)
    compare(lambda dz, out=None: layer.backward_data(dz, packed, out), dz)
    compare(lambda dz, w, out=None: layer.backward_data(dz, w, out), dz, w)
    db = np.empty(40, np.float32)

    def update(dz: Any, x: Any, out: Any = None) -> Any:
        return layer.backward_weights(dz, x, None if out is None else (out, db))[0]

    compare(update, dz, x)


SHAPES: dict[str, dict[str, Any]] = {
    "3x3": {"kernel": 3, "padding": 1}, "winograd": {"kernel": 3, "algorithm": "winograd"},
    "1x1": {"kernel": 1}, "1x1 stride": {"kernel": 1, "stride": 2},
    "stride": {"kernel": 3, "stride": 2, "padding": 1},
    "groups": {"kernel": 3, "groups": 2}, "depthwise": {"kernel": 3, "padding": 1, "groups": 8},
}  # fmt: skip


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("residual", [False, True])
def test_convolution(shape: str, layout: str, residual: bool) -> None:
    features = 8 if shape == "depthwise" else 12
    layer = Convolution(2, 8, 9, 7, features, layout=layout, residual=residual, threads=2,
                        activation="relu", **SHAPES[shape])  # fmt: skip
    x, w, y = numbers(*layer.x_shape), numbers(*layer.w_shape), numbers(*layer.y_shape)
    b, packed = numbers(features), layer.pack_weights(w)
    if residual:
        compare(lambda x, r, out=None: layer.forward(x, packed, b, r, out), x, y)
    else:
        compare(lambda x, out=None: layer.forward(x, packed, b, out=out), x)
    compare(lambda dy, out=None: layer.backward_data(dy, packed, out), y)
    dw = layer.backward_weights(y, x)
    for dy, image in ((apart(y)[0], x), (y, apart(x)[0]), (apart(y)[0], apart(x)[0])):
        for found, wanted in zip(layer.backward_weights(dy, image), dw, strict=True):
            np.testing.assert_allclose(found, wanted, 1e-5, 1e-4)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_convolution_of_signals(layout: str) -> None:
    layer = convolution_1d(2, 6, 20, 5, 3, padding=1, layout=layout, threads=1, bias=False)
    x, w, y = numbers(*layer.x_shape), numbers(*layer.w_shape), numbers(*layer.y_shape)
    compare(lambda x, out=None: layer.forward(x, w, out=out), x)
    compare(lambda dy, out=None: layer.backward_data(dy, w, out), y)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("kind", [MaxPool, AveragePool])
def test_pooling(kind: Any, layout: str) -> None:
    layer = kind(2, 10, 9, 8, 3, stride=2, padding=1, layout=layout, threads=2)
    x, dy = numbers(*layer.x_shape), numbers(*layer.y_shape)
    compare(lambda x, out=None: layer.forward(x, out), x)
    compare(lambda dy, x, out=None: layer.backward(dy, x, out), dy, x)


@pytest.mark.parametrize("kind", [Softmax, LogSoftmax])
@pytest.mark.parametrize("columns", [1, 37, 600])
def test_softmax(kind: Any, columns: int) -> None:
    layer = kind(9, columns, threads=2)
    x, dy = numbers(9, columns), numbers(9, columns)
    compare(layer.forward, x)
    compare(layer.backward, dy, layer.forward(x))


@pytest.mark.parametrize("columns", [1, 37, 600])
def test_norms_and_sums(columns: int) -> None:
    x, dy, scale, value = numbers(40, columns), numbers(40, columns), numbers(columns), numbers(40)
    norm, rms = LayerNorm(40, columns, threads=2), RmsNorm(40, columns, threads=2)
    compare(lambda x, out=None: norm.forward(x, scale, scale, out), x)
    compare(lambda x, out=None: rms.forward(x, scale, out), x)
    mean, rstd = value, np.abs(value) + 1
    compare(lambda dy, x, out=None: norm.backward(dy, x, mean, rstd, scale, out)[0], dy, x)
    compare(lambda dy, x, out=None: rms.backward(dy, x, rstd, scale, out)[0], dy, x)
    for sums in (RowSum, RowMean, LogSumExp):
        wanted = sums(40, columns).forward(x)
        np.testing.assert_array_equal(sums(40, columns).forward(apart(x)[0]), wanted)
        out, base = apart(x, fill=False)
        more = () if sums is not LogSumExp else (x, wanted)
        dense = sums(40, columns).backward(value, *more)
        sums(40, columns).backward(value, *more, out=out)
        np.testing.assert_array_equal(out, dense)
        assert np.isnan(base).sum() == base.size - out.size, "gaps were written"


@pytest.mark.parametrize("kind", [Lstm, Gru, Rnn])
@pytest.mark.parametrize("batch", [3, 20])
@pytest.mark.parametrize("lengths", [False, True])
def test_recurrent(kind: Any, batch: int, lengths: bool) -> None:
    """Also batch first, by a transposed view."""
    need_x86()
    layer = kind(batch, 5, 12, 16, direction="bidirectional", threads=1)
    x, w, r, b = (numbers(*layer.shapes[name]) / 8 for name in "xwrb")
    how = {"lengths": [1 + i % 5 for i in range(batch)]} if lengths else {}
    wanted = layer.forward(x, w, r, b, training=True, **how)
    dy = numbers(*layer.shapes["y"])
    gradients = layer.backward(dy)
    first = np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2)
    for given in (apart(x)[0], first):
        for found, want in zip(layer.forward(given, w, r, b, **how), wanted, strict=True):
            np.testing.assert_allclose(found, want, 1e-5, 1e-6)
        layer.forward(given, w, r, b, training=True, **how)
        for found, want in zip(layer.backward(apart(dy)[0]), gradients, strict=True):
            if want is not None:
                np.testing.assert_allclose(found, want, 1e-4, 1e-4)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (numbers(4, 12)[:, ::2], r"x has strides \(48, 8\)"),
        (numbers(4, 6)[::-1], "x has strides"),
        (numbers(6, 4).T, "x has strides"),
    ],
)
def test_other_strides_are_refused(x: np.ndarray, message: str) -> None:
    layer = FullyConnected(4, 6, 5, bias=False)
    with pytest.raises(ValueError, match=message):
        layer.forward(x, numbers(5, 6))


def test_results_may_not_lie_over_one_another() -> None:
    layer = FullyConnected(4, 6, 5, bias=False)
    out = np.broadcast_to(np.zeros(5, np.float32), (4, 5))
    with pytest.raises(ValueError, match="out"):
        layer.forward(numbers(4, 6), numbers(5, 6), out=out)
    twice = np.lib.stride_tricks.as_strided(np.zeros(20, np.float32), (4, 5), (12, 4))
    with pytest.raises(ValueError, match="out"):
        layer.forward(numbers(4, 6), numbers(5, 6), out=twice)


@pytest.mark.parametrize("stride", [0, 8])
def test_elements_of_the_last_axis_lie_side_by_side(stride: int) -> None:
    need_x86()
    layer = FullyConnected(4, 24, 40, bias=False, threads=1)
    x = np.lib.stride_tricks.as_strided(numbers(4, 48), (4, 24), (192, stride))
    with pytest.raises(ValueError, match=r"x has strides \(192, .*last axis must lie side by side"):
        layer.forward(x, numbers(40, 24))


def test_axes_of_one_element_have_any_stride() -> None:
    """Whatever their strides are, and with gaps behind others."""
    x = numbers(3, 1, 5, 1, 8)
    for strides in ((240, 7, 40, 0, 4), (240, -9, 48, 1000, 4), (200, 0, 40, 40, 4)):
        array = np.lib.stride_tricks.as_strided(numbers(200), x.shape, strides)
        last = strides[2] // 4
        assert doors.strides("x", array) == (strides[0] // 4, 5 * last, last, 8)
    assert doors.strides("x", np.float32(1).reshape(())) == ()


@pytest.mark.parametrize("batch", [1, 3])
def test_one_row_with_gaps(batch: int) -> None:
    need_x86()
    lstm = Lstm(5, batch, 1, 16, bias=False, threads=1)
    x, w, r = numbers(5, batch, 1), numbers(64, 1) / 8, numbers(64, 16) / 8
    for each, wanted in zip(lstm.forward(apart(x)[0], w, r), lstm.forward(x, w, r), strict=True):
        np.testing.assert_array_equal(each, wanted)
    pool = AveragePool(batch, 1, 5, 6, 3, threads=1, layout="nhwc")
    compare(lambda x, out=None: pool.forward(x, out=out), numbers(batch, 5, 6, 1))


def test_a_residual_with_gaps_is_its_own_result() -> None:
    need_x86()
    conv = Convolution(2, 8, 6, 6, 10, 3, padding=1, bias=False, residual=True, layout="nhwc",
                       threads=1)  # fmt: skip
    fc = FullyConnected(4, 24, 40, bias=False, residual=True, threads=1)
    for layer, x, w, y in (
        (conv, numbers(2, 6, 6, 8), numbers(10, 8, 3, 3), numbers(2, 6, 6, 10)),
        (fc, numbers(4, 24), numbers(40, 24), numbers(4, 40)),
    ):
        wanted = layer.forward(x, w, residual=y)
        out, base = apart(y)
        assert layer.forward(x, w, residual=out, out=out) is out
        np.testing.assert_array_equal(out, wanted)
        assert np.isnan(base).sum() == base.size - out.size
