"""Arguments that could be mistaken for others of the same shape: refused, or right.

What cannot be told, as two states of one shape in the wrong order, is not here.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from activations import DIFFERENTIABLE, name_of
from copied import numbers
from random_cases import SEED

from jitgen import Adam, AveragePool, Convolution, FullyConnected, Gru, Lstm, Mlp, Rnn, Sgd
from jitgen.run import cpu

HERE = [name for name, why in cpu.targets().items() if not why]
pytestmark = pytest.mark.skipif(not HERE, reason="no target runs on this CPU")


@pytest.mark.parametrize(("activation", "right"), DIFFERENTIABLE)
@pytest.mark.parametrize("make", [
    lambda a: FullyConnected(4, 4, 4, activation=a),
    lambda a: Convolution(1, 4, 4, 4, 4, 1, activation=a),
])  # fmt: skip
def test_outputs_and_inputs_of_activations(make: Any, activation: Any, right: str) -> None:
    layer = make(activation)
    shape = (4, 4) if isinstance(layer, FullyConnected) else layer.y_shape
    dy, value = numbers(shape), numbers(shape, 1)
    wrong = {"y": "z", "z": "y"}[right]
    gradient = layer.backward_activation(dy, **{right: value})
    assert gradient.shape == shape
    takes = f"the gradient of {name_of(activation)} takes {right}"
    for given, words in (
        ({wrong: value}, f"{wrong} is given"), ({}, f"{right} is missing"),
        ({wrong: value, right: value}, f"{wrong} is given"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=takes) as caught:
            layer.backward_activation(dy, **given)
        assert str(caught.value).startswith(words)
    if right == "y":
        np.testing.assert_array_equal(layer.backward_activation(dy, value), gradient)
    else:  # as it was called before
        with pytest.raises(ValueError, match=takes):
            layer.backward_activation(dy, value)


def same(found: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.abs(found - wanted).max() <= 1e-4 * max(1.0, np.abs(wanted).max()))


def test_packed_weights_of_other_layers() -> None:
    """Of any batch, target and number of threads: the right product, or an error by name."""
    rng, right = random.Random(SEED), 0
    for _ in range(200):
        c, k = rng.choice([(20, 20), (20, 30), (30, 20), (64, 64)])
        batch = [rng.choice([1, 5, 40, 200]) for _ in "12"]
        one, two = (FullyConnected(b, c, k, bias=False, target=rng.choice(HERE),
                                   threads=rng.choice([1, 2])) for b in batch)  # fmt: skip
        w, x, dz = numbers((k, c)), numbers((batch[1], c), 1), numbers((batch[1], k), 2)
        packed, blocked = one.pack_weights(w), one.pack_input(numbers((batch[0], c), 1))
        try:
            assert same(two.forward(x, packed), x @ w.T)
            assert same(two.backward_data(dz, packed), dz @ w)
            right += 1
        except ValueError as error:
            assert "w was packed for another target, in panels of" in str(error)
        try:
            assert same(two.backward_weights(dz, blocked)[0], dz.T @ x)
        except ValueError as error:
            words = "x was packed for another target, in panels of", "x has shape"
            assert str(error).startswith(words)
    assert right > 50


def test_packed_filters_of_other_layers() -> None:
    """Of any images, stride, dilation, layout, target and algorithm: right, or an error by name."""
    rng, right = random.Random(SEED), 0
    for _ in range(200):
        c, k = rng.choice([(8, 8), (16, 8), (4, 12), (3, 5)])
        groups = rng.choice([1, 1, c if c == k else 1])
        taps = rng.choice([(3, 3), (1, 1), (1, 3), (3, 1)])
        one, two = (
            Convolution(
                rng.choice([1, 3]), c, 9, 8, k, kernel, padding=rng.choice(["same", 0]),
                stride=rng.choice([1, 1, 2]), dilation=rng.choice([1, 2]), groups=groups,
                bias=False, target=rng.choice(HERE), layout=rng.choice(["nchw", "nhwc"]),
                threads=rng.choice([1, 2]), algorithm=rng.choice([None, None, "direct"]),
            )
            for kernel in (taps, rng.choice([taps, taps, taps[::-1]]))
        )  # fmt: skip
        w, x, dy = numbers(one.w_shape), numbers(two.x_shape, 1), numbers(two.y_shape, 2)
        packed = one.pack_weights(w)
        try:
            y, dx = two.forward(x, packed), two.backward_data(dy, packed)
        except ValueError as error:
            assert str(error).startswith("w is packed as (")
        else:
            assert one.w_shape == two.w_shape
            assert same(y, two.forward(x, w))
            assert same(dx, two.backward_data(dy, w))
            right += 1
    assert right > 50


def test_packed_recurrent_weights_of_other_layers() -> None:
    """Those of an RNN of 4 times as many units have the shapes of an LSTM's."""
    layers = [
        make(2, 3, 20, 20, bias=False, **more)
        for make, more in (
            (Lstm, {}), (Lstm, {"direction": "reverse"}), (Lstm, {"direction": "bidirectional"}),
            (Gru, {}), (Gru, {"reset": "before"}), (Rnn, {}),
        )
    ]  # fmt: skip
    layers += [Lstm(2, 3, 30, 20, bias=False), Lstm(5, 4, 20, 20, bias=False)]
    for one in layers:
        w, r = numbers(one.shapes["w"]), numbers(one.shapes["r"], 1)
        packed = one.pack_weights(w, r)
        for two in layers:
            x = numbers(two.shapes["x"])
            try:
                y = two.forward(x, packed, None)[0]
            except ValueError as error:
                assert "w is packed for" in str(error)
            else:
                assert (one.shapes["w"], type(one)) == (two.shapes["w"], type(two))
                assert same(y, two.forward(x, w, r)[0])


def test_packed_weights_of_another_kind() -> None:
    fc, conv, lstm = FullyConnected(4, 4, 4), Convolution(1, 4, 4, 4, 4, 1), Lstm(1, 1, 4, 4)
    square = numbers((4, 4))
    packs = [
        fc.pack_weights(square), conv.pack_weights(numbers((4, 4, 1, 1))),
        lstm.pack_weights(numbers((16, 4)), numbers((16, 4))), fc.pack_input(square),
        fc.pack_weights(square).backward,
    ]  # fmt: skip
    for i, packed in enumerate(packs):
        for j, call in enumerate((
            lambda w: fc.forward(square, w, square[0].copy()),
            lambda w: conv.forward(numbers(conv.x_shape), w, square[0].copy()),
            lambda w: lstm.forward(numbers((1, 1, 4)), w, None, numbers((2, 16))),
        )):
            if i != j:
                with pytest.raises(TypeError, match=f"w is {type(packed).__name__}"):
                    call(packed)


def test_an_optimizer_of_another_network() -> None:
    """It would train something else, without a word."""
    one, two = (Mlp(4, (5, 6, 3)) for _ in "12")
    x, labels = numbers((4, 5)), np.arange(4) % 3
    for optimizer in (Sgd(two.parameters, 0.1), Adam(one.parameters[::-1])):
        before = [p.copy() for p in (*one.parameters, *two.parameters)]
        with pytest.raises(ValueError, match="optimizer was made for other arrays"):
            one.train_step(x, labels, optimizer)
        for p, q in zip((*one.parameters, *two.parameters), before, strict=True):
            np.testing.assert_array_equal(p, q)
    one.train_step(x, labels, Sgd(one.parameters, 0.1))


def test_what_a_mean_does_not_need_is_checked() -> None:
    layer = AveragePool(1, 4, 6, 6, 2)
    dy = numbers(layer.y_shape)
    with pytest.raises(ValueError, match="x has shape"):
        layer.backward(dy, dy)
    with pytest.raises(TypeError, match="x is int"):
        layer.backward(dy, 5)  # type: ignore[arg-type]


def test_packed_depthwise_filters_of_another_window() -> None:
    """1 x 3 and 3 x 1 have as many taps."""
    one, two = (Convolution(1, 8, 9, 8, 8, taps, groups=8, bias=False) for taps in ((1, 3), (3, 1)))
    with pytest.raises(ValueError, match="w is packed as"):
        two.forward(numbers(two.x_shape), one.pack_weights(numbers(one.w_shape)))
