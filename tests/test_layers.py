"""What all layers share: any batch, calls by name, arrays of any owner and stride.

Not here: what a layer computes (the tests of each), arguments in general (`test_doors`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from child import run_child
from needs import need_torch

import jitgen
from jitgen import (
    AveragePool,
    Convolution,
    FullyConnected,
    Gru,
    Lstm,
    MaxPool,
    Mlp,
    Rnn,
    convolution_1d,
    doors,
)
from jitgen.primitives.fc import streams
from jitgen.primitives.layers import base
from jitgen.primitives.layers.arrays import buffer_of
from jitgen.run import cpu

pytestmark = pytest.mark.skipif(
    not any(not why for why in cpu.targets().values()), reason="no target runs on this CPU"
)
BATCHES = (*range(1, 10), 64)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Whole numbers, whose sums are exact in any order."""
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)


# ---- any batch ----------------------------------------------------------------------------------


def passes(layer: Any, n: int, packed: Any, w: np.ndarray) -> list[Any]:
    """Every pass of a fully connected layer or a convolution at a batch."""
    if isinstance(layer, FullyConnected):
        x, dy = numbers(n, w.shape[1]), numbers(n, w.shape[0], seed=1)
    else:
        x, dy = numbers(n, *layer.x_shape[1:]), numbers(n, *layer.y_shape[1:], seed=1)
    b = numbers(w.shape[0], seed=2)
    y = layer.forward(x, packed, b)
    out = np.full_like(y, np.nan)
    assert layer.forward(x, packed, b, out=out) is out
    return [
        y, out, layer.forward(x, w, b), layer.backward_activation(dy, y),
        layer.backward_data(dy, packed), layer.backward_data(dy, w),
        *layer.backward_weights(dy, x),
    ]  # fmt: skip


MAKE: dict[str, Any] = {
    "fully connected": (lambda n: FullyConnected(n, 40, 50, activation="relu"), (50, 40)),
    "fully connected, blocks": (
        lambda n: FullyConnected(n, 40, 50, activation="relu", blocks=(3, 16), order="nM"), (50, 40)
    ),
    "convolution": (lambda n: Convolution(n, 5, 7, 6, 9, 3, padding=1, activation="relu"),
                    (9, 5, 3, 3)),
    "convolution, nhwc, stride": (
        lambda n: Convolution(n, 20, 9, 8, 24, 3, stride=2, activation="relu", layout="nhwc",
                              algorithm="direct"), (24, 20, 3, 3)),
    "convolution, one row": (
        lambda n: Convolution(n, 20, 2, 3, 96, 1, activation="relu", layout="nhwc"),
        (96, 20, 1, 1)),
    "convolution, blocks": (
        lambda n: Convolution(n, 20, 8, 8, 40, 3, activation="relu", blocks=(4, 10)),
        (40, 20, 3, 3)),
    "depthwise": (lambda n: Convolution(n, 12, 6, 7, 12, 3, padding=1, groups=12,
                                        activation="relu"), (12, 1, 3, 3)),
    "one dimension": (lambda n: convolution_1d(n, 6, 20, 10, 3, padding=1, activation="relu"),
                      (10, 6, 3)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "own"), [(name, 4) for name in MAKE] + [("fully connected", n) for n in (1, 70)]
)
def test_one_layer_takes_every_batch(name: str, own: int) -> None:
    """The numbers are those of layers made for it, and weights were packed once."""
    make, shape = MAKE[name]
    layer, w = make(own), numbers(*shape, seed=3)
    packed = layer.pack_weights(w)
    for n in BATCHES:
        other = make(n)
        expected = passes(other, n, other.pack_weights(w), w)
        for got, wanted in zip(passes(layer, n, packed, w), expected, strict=True):
            np.testing.assert_array_equal(got, wanted, f"batch {n}")


def test_the_same_bits_as_a_layer_of_that_batch() -> None:
    """Where panels are as wide for both, and so the plan is the same."""
    rng = np.random.default_rng(1)
    x, w, b = (rng.standard_normal(s).astype("f") for s in ((70, 300), (200, 300), (200,)))
    layer = FullyConnected(64, 300, 200, activation="gelu")
    for n in (1, 7, 64, 70):
        other = FullyConnected(n, 300, 200, activation="gelu")
        np.testing.assert_array_equal(layer.forward(x[:n], w, b), other.forward(x[:n], w, b))


def test_winograd_weights_are_for_every_batch() -> None:
    make = lambda n: Convolution(n, 16, 10, 10, 16, 3, padding=1, bias=False)  # noqa: E731
    layer = make(8)
    assert set(layer.algorithms.values()) == {"winograd"}
    w = numbers(*layer.w_shape)
    packed = layer.pack_weights(w)
    for n in BATCHES[:9]:
        x, dy = numbers(n, *layer.x_shape[1:]), numbers(n, *layer.y_shape[1:], seed=1)
        direct = Convolution(n, 16, 10, 10, 16, 3, padding=1, bias=False, algorithm="direct")
        np.testing.assert_array_equal(layer.forward(x, packed), direct.forward(x, w))
        np.testing.assert_array_equal(layer.backward_data(dy, packed), direct.backward_data(dy, w))
        np.testing.assert_array_equal(
            layer.backward_weights(dy, x)[0], direct.backward_weights(dy, x)[0]
        )


def test_blocked_arrays_of_every_batch() -> None:
    first, second = FullyConnected(4, 40, 50, activation="relu"), FullyConnected(4, 50, 30)
    w, v = numbers(50, 40), numbers(30, 50, seed=1)
    packed, more = first.pack_weights(w), second.pack_weights(v)
    b, c = numbers(50), numbers(30)
    for n in BATCHES:
        x = numbers(n, 40, seed=n)
        y = first.forward(first.pack_input(x), packed, b)
        z = second.forward(y, more, c)
        np.testing.assert_array_equal(y.plain(), np.maximum(x @ w.T + b, 0))
        np.testing.assert_array_equal(z.plain(), y.plain() @ v.T + c)
        dy = second.backward_data(z, more)
        np.testing.assert_array_equal(
            first.backward_activation(dy, y).plain(), dy.plain() * (y.plain() > 0)
        )
        dw, db = first.backward_weights(dy, first.pack_input(x))
        np.testing.assert_array_equal(dw, dy.plain().T @ x)
        np.testing.assert_array_equal(db, dy.plain().sum(axis=0))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("make", [MaxPool, AveragePool])
def test_pooling_of_every_batch(make: Any, layout: str) -> None:
    layer = make(3, 5, 8, 9, 3, stride=2, padding=1, layout=layout)
    for n in BATCHES[:10]:
        x, dy = numbers(n, *layer.x_shape[1:]), numbers(n, *layer.y_shape[1:], seed=1)
        other = make(n, 5, 8, 9, 3, stride=2, padding=1, layout=layout)
        np.testing.assert_array_equal(layer.forward(x), other.forward(x))
        np.testing.assert_array_equal(layer.backward(dy, x), other.backward(dy, x))


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("make", [Lstm, Gru, Rnn])
def test_recurrent_layers_take_every_batch_and_number_of_steps(make: Any, direction: str) -> None:
    layer = make(5, 4, 6, 20, direction=direction)
    rng = np.random.default_rng(2)
    w, r, b = (rng.standard_normal(layer.shapes[n]).astype("f") / 4 for n in "wrb")
    packed = layer.pack_weights(w, r)
    for n, steps in ((1, 1), (2, 4), (5, 7), (5, 4), (13, 3), (40, 2)):
        other = make(n, steps, 6, 20, direction=direction)
        x = rng.standard_normal(other.shapes["x"]).astype("f")
        h0 = rng.standard_normal(other.shapes["h0"]).astype("f")
        lengths = rng.integers(0, steps + 1, n)
        for more in ({}, {"lengths": lengths}):
            expected = other.forward(x, w, r, b, h0, **more, training=True)
            got = layer.forward(x, packed, None, b, h0, **more, training=True)
            inferred = layer.forward(x, w, r, b, h0, **more)
            for one, two, three in zip(got, expected, inferred, strict=True):
                np.testing.assert_array_equal(one, two)
                np.testing.assert_allclose(three, two, atol=1e-5)
            dy = rng.standard_normal(expected[0].shape).astype("f")
            for one, two in zip(layer.backward(dy), other.backward(dy), strict=True):
                np.testing.assert_array_equal(one, two)
    with pytest.raises(ValueError, match="dy has shape"):
        layer.backward(np.zeros(layer.shapes["y"], np.float32))


def test_a_network_of_every_batch() -> None:
    net = Mlp(4, (6, 9, 3))
    for n in (4, 1, 7, 4):
        x, labels = numbers(n, 6, seed=n), np.arange(n) % 3
        other = Mlp(n, (6, 9, 3))
        np.testing.assert_array_equal(net.forward(x), other.forward(x))
        loss, gradients = net.gradients(x, labels)
        wanted, expected = other.gradients(x, labels)
        assert loss == pytest.approx(wanted)
        for one, two in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "shape", "words"),
    [
        (lambda: FullyConnected(4, 6, 5), (4, 7), "x has shape (4, 7); it must be (4, 6)"),
        (lambda: FullyConnected(4, 6, 5), (3, 7), "x has shape (3, 7); it must be (4, 6)"),
        (lambda: FullyConnected(4, 6, 5), (0, 6), "x has shape (0, 6); it must be (4, 6)"),
        (lambda: FullyConnected(4, 6, 5), (6,), "x has shape (6,); it must be (4, 6)"),
        (lambda: Convolution(2, 3, 5, 5, 5, 3), (7, 3, 5, 6), "it must be (2, 3, 5, 5)"),
        (lambda: Convolution(2, 3, 5, 6, 5, 3), (7, 5, 6, 3),
         "it must be (2, 3, 5, 6) (layout='nchw'; with"),
        (lambda: convolution_1d(2, 3, 5, 5, 3), (2, 4, 5), "it must be (2, 3, 5)"),
        (lambda: Rnn(2, 3, 4, 5), (9, 9, 5), "it must be (3, 2, 4)"),
        (lambda: Rnn(2, 3, 4, 5), (0, 2, 4), "it must be (3, 2, 4)"),
        (lambda: Gru(2, 3, 4, 5, reset="before"), (1 << 14 | 1, 1, 4), "16384 at most"),
    ],
)  # fmt: skip
def test_other_sizes_are_refused(make: Any, shape: tuple[int, ...], words: str) -> None:
    layer, x = make(), np.zeros(shape, np.float32)
    with pytest.raises(ValueError) as raised:
        layer.forward(x, x, x)
    assert words in str(raised.value)


def test_results_are_of_the_batch_of_the_input() -> None:
    layer = FullyConnected(4, 6, 5)
    x, w, b = numbers(3, 6), numbers(5, 6), numbers(5)
    with pytest.raises(ValueError, match=r"out has shape \(4, 5\); it must be \(3, 5\)"):
        layer.forward(x, w, b, np.zeros((4, 5), np.float32))
    with pytest.raises(ValueError, match=r"x has shape \(3, 6\); it must be \(4, 6\)"):
        layer.backward_weights(np.zeros((4, 5), np.float32), x)


def test_a_layer_keeps_the_streams_of_few_batches() -> None:
    run_child("""
    import gc, weakref
    import numpy as np
    import jitgen
    from jitgen import FullyConnected
    from jitgen.primitives.layers.base import MOST_SHAPES
    from jitgen.run.cache import STREAMS

    def resident():
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096 >> 20

    layer, b = FullyConnected(8, 16, 16, threads=1), np.ones(16, "f")
    w, runs = layer.pack_weights(np.ones((16, 16), "f")), weakref.WeakSet()
    for n in range(1, 1001):
        x = np.ones((n, 16), "f")
        assert (layer.forward(x, w, b) == 17).all()
        runs.update(layer._sized("x", x, (8, 16)).runs.values())
        if n % 100 == 0:  # what nobody but the layer holds
            STREAMS.clear()
            gc.collect()
            assert len(runs) <= 2 * MOST_SHAPES, len(runs)
            start = resident() if n <= 200 else start
            assert resident() <= start + 64, (start, resident())
    assert len(layer._sizes) + len(layer._older) <= 2 * MOST_SHAPES
    """)


def test_a_batch_that_comes_again_finds_its_streams() -> None:
    layer = FullyConnected(8, 16, 16, bias=False)
    w = numbers(16, 16)
    for n in range(1, 2 * base.MOST_SHAPES):
        layer.forward(numbers(n, 16), w)
        layer.forward(numbers(8, 16), w)  # between all others
        if n == 1:
            kept = layer._sized("x", numbers(8, 16), (8, 16))
    # what is used again and again may go once in a while, but its stream is the same
    again = layer._sized("x", numbers(8, 16), (8, 16))
    assert set(again.runs.values()) == set(kept.runs.values())


# ---- calls by name ------------------------------------------------------------------------------


def test_operands_cannot_change_places() -> None:
    """a, b and c have one shape; a call says which is which, in whatever order."""
    layer = FullyConnected(16, 16, 16, bias=False)
    x, w, y = numbers(16, 16), numbers(16, 16, seed=1), np.zeros((16, 16), np.float32)
    run = streams.forward(layer.layer, 0, 0, False)
    given = {"a": buffer_of(x), "b": buffer_of(w), "c": buffer_of(y)}
    for names in ("abc", "cab", "bca"):
        y[...] = np.nan
        run({name: given[name] for name in names})
        np.testing.assert_array_equal(y, x @ w.T)
    for wrong, words in (
        ({"a": given["a"], "b": given["b"]}, "has 'a', 'b'; the stream takes 'a', 'b', 'c'"),
        ({"a": given["a"], "b": given["b"], "y": given["c"]}, "has 'a', 'b', 'y'; the stream"),
        ({**given, "bias": given["c"]}, "has 'a', 'b', 'c', 'bias'; the stream"),
        ({}, "has nothing; the stream"),
    ):  # fmt: skip
        y[...] = 7
        with pytest.raises(TypeError, match=words):
            run(wrong)
        assert (y == 7).all()
    with pytest.raises(TypeError):
        run(tuple(given.values()))  # type: ignore[arg-type]


# ---- arrays of others ---------------------------------------------------------------------------


class Interface:
    """Memory of another library, by NumPy's protocol."""

    def __init__(self, array: np.ndarray) -> None:
        self.__array_interface__ = array.__array_interface__
        self._keep = array


class Exported:
    """The same by DLPack, on whatever device."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self._array, self._device = array, device

    def __dlpack__(self, **how: Any) -> Any:
        return self._array.__dlpack__(**how)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device


@pytest.mark.parametrize("wrap", [Interface, Exported])
def test_memory_of_others_is_taken_without_a_copy(wrap: Any) -> None:
    layer = FullyConnected(4, 6, 5, activation="relu")
    x, w, b = numbers(4, 6), numbers(5, 6, seed=1), numbers(5)
    expected = np.maximum(x @ w.T + b, 0)
    assert np.shares_memory(doors.view("x", wrap(x)), x)
    y = layer.forward(wrap(x), wrap(w), wrap(b))
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, expected)
    out = np.zeros((4, 5), np.float32)
    given = wrap(out)
    assert layer.forward(wrap(x), layer.pack_weights(wrap(w)), wrap(b), given) is given
    np.testing.assert_array_equal(out, expected)
    with pytest.raises(ValueError, match="out overlaps x"):
        FullyConnected(4, 6, 6, bias=False).forward(wrap(x), numbers(6, 6), None, wrap(x))
    conv = Convolution(1, 2, 4, 4, 3, 3, bias=False, residual=True)
    image, f, residual = (numbers(*s) for s in (conv.x_shape, conv.w_shape, conv.y_shape))
    expected = conv.forward(image, f, None, residual)
    given = wrap(residual)
    conv.forward(wrap(image), wrap(f), None, given, given)
    np.testing.assert_array_equal(residual, expected)
    lstm = Lstm(2, 3, 4, 5)
    arrays = [numbers(*lstm.shapes[n]) for n in ("x", "w", "r", "b", "h0", "h0")]
    for one, two in zip(lstm.forward(*map(wrap, arrays)), lstm.forward(*arrays), strict=True):
        np.testing.assert_array_equal(one, two)
    kernel = jitgen.brgemm(4, 5, 6, epilogue=("bias",))
    c = np.zeros((4, 5), np.float32)
    kernel(wrap(x), wrap(np.ascontiguousarray(w.T)), wrap(c), bias=wrap(b))
    np.testing.assert_array_equal(c, x @ w.T + b)
    many = jitgen.brgemm(4, 5, 6, batch="address")
    many([wrap(x)], [wrap(np.ascontiguousarray(w.T))], wrap(c))
    np.testing.assert_array_equal(c, x @ w.T)


def test_memory_elsewhere_is_refused_by_name() -> None:
    layer, w, b = FullyConnected(4, 6, 5), numbers(5, 6), numbers(5)
    for x, words in (
        (Exported(numbers(4, 6), (2, 0)), "x is Exported, whose memory .* on device"),
        (Exported(np.zeros((4, 6), object)), "x is Exported, whose memory cannot be taken"),
        (np.float32(3), "x is float32; it must be a numpy.ndarray"),
        (b"x" * 96, "x is bytes"), (memoryview(b"x" * 96), "x is memoryview"),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=words):
            layer.forward(x, w, b)  # type: ignore[arg-type]
    read_only = numbers(4, 5)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        layer.forward(numbers(4, 6), w, b, Interface(read_only))  # type: ignore[arg-type]


def test_tensors_of_torch() -> None:
    need_torch()
    import torch

    layer = FullyConnected(4, 6, 5)
    x, w, b, y = torch.randn(4, 6), torch.randn(5, 6), torch.randn(5), torch.empty(4, 5)
    expected = torch.nn.functional.linear(x, w, b)
    got = layer.forward(x, layer.pack_weights(w), b)
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)
    assert layer.forward(x, w, b, y) is y
    np.testing.assert_allclose(y.numpy(), got, atol=1e-5)
    half = torch.randn(4, 6, dtype=torch.bfloat16)
    for value, words in (
        (torch.randn(4, 6, requires_grad=True), "x is Tensor, .*require gradient"),
        (torch.randn(4, 6, device="meta"), "x is Tensor, .*meta"),
        (half, "x is Tensor"), (torch.randn(4, 6).double(), "x has dtype float64"),
        (x.to_sparse(), "x is Tensor, .*layout"), (torch.randn(6, 4).T, "x has strides"),
        (torch.randn(1, 6).expand(4, 6), "x has strides"),
        (torch.complex(x, x).conj().imag, "x is Tensor, .*negative"),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=words):
            layer.forward(value, w, b)


# ---- strides ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "strides"),
    [
        (np.zeros((4, 9), np.float32)[:, 2:6], (9,)),
        (np.zeros((8, 6), np.float32)[::2], (12,)),
        (np.zeros((5, 4, 6), np.float32).transpose(1, 0, 2), (6, 24)),
        (np.zeros((2, 6, 8, 4), np.float32)[:, 1:4, 2:5, :3], (192, 32, 4)),
        (np.zeros((1, 8), np.float32)[:, :3], (3,)),
        (np.zeros((4, 1), np.float32), (1,)),
        (np.zeros((4, 3), np.float32)[:, :1], (3,)),
        (np.zeros((4, 6), np.float32)[::-1], None),
        (np.zeros((4, 6), np.float32)[:, ::2], None),
        (np.zeros((6, 4), np.float32).T, None),
        (np.broadcast_to(np.zeros(6, np.float32), (4, 6)), None),
        (np.lib.stride_tricks.as_strided(np.zeros(24, np.float32), (4, 6), (8, 4)), None),
        (np.zeros(4, [("x", "f4", 6), ("pad", "u1")])["x"], None),
    ],
)  # fmt: skip
def test_strides_of_rows(array: np.ndarray, strides: tuple[int, ...] | None) -> None:
    if strides is not None:
        assert doors.strides("x", array) == strides
    else:
        with pytest.raises(ValueError, match="x has strides"):
            doors.strides("x", array)
