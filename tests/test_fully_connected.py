"""The fully connected layer against float64: every pass, layout, activation; and its errors.

Not here: streams (test_streams), training (test_mlp).
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from activations import EXAMPLES, activated
from random_cases import SEED
from rig import count

from jitgen import FullyConnected
from jitgen.primitives.fc import streams
from jitgen.primitives.fc.layouts import Blocked, PackedWeights
from jitgen.run import cpu, loader

HERE = [name for name, why in cpu.targets().items() if not why]
pytestmark = pytest.mark.skipif(not HERE, reason="no target runs on this CPU")
KINDS = {"f32": np.float32, "f64": np.float64}
EPS = {"f32": 2.0**-24, "f64": 2.0**-53}
#: Targets, most of all AVX2, and how many times 50 configurations each gets
PARTS = [(target, i) for target in HERE for i in range(10 if target == "avx2" else 5)]


def plain(value: Any) -> np.ndarray:
    return value.plain() if isinstance(value, Blocked) else value


def blocked(matrix: np.ndarray, width: int) -> Blocked:
    """A matrix in panels; what lies beyond its columns is poison."""
    rows, columns = matrix.shape
    array = np.full((-(-columns // width), rows, width), np.nan, matrix.dtype)
    for i, panel in enumerate(array):
        part = matrix[:, i * width : (i + 1) * width]
        panel[:, : part.shape[1]] = part
    return Blocked(array, columns)


def close(got: np.ndarray, a: np.ndarray, b: np.ndarray, dtype: str, add: Any = 0.0) -> str:
    """"" if got is a b + add within the bound of a sum of that many products."""
    exact = a.astype(np.float64) @ b.astype(np.float64) + add
    bound = (a.shape[1] + 4) * EPS[dtype] * 2 * (np.abs(a) @ np.abs(b) + np.abs(add))
    wrong = ~(np.abs(got - exact) <= bound + 1e-300)
    return f"{wrong.sum()} of {wrong.size} wrong" if wrong.any() else ""


@pytest.mark.parametrize(("target", "part"), PARTS)
def test_random_configurations(target: str, part: int) -> None:
    """forward, dx, dw, db against float64, from plain and from packed tensors."""
    rng = random.Random(f"{SEED} {target} {part}")
    for i in range(50):
        batch, c, k = (rng.choice([1, 2, 3, 8, 16, 31, 64, rng.randint(1, 130)]) for _ in "nck")
        dtype = rng.choice(["f32", "f64"])
        bias, threads = rng.random() < 0.7, rng.randint(1, 3)
        layer = FullyConnected(
            batch, c, k, bias=bias, dtype=dtype, threads=threads, target=target,
            order=rng.choice([None, "MN", "[MN]"]),
        )  # fmt: skip
        data = np.random.default_rng(SEED + 1000 * part + i)
        x, w, b, dz = (
            data.standard_normal(s).astype(KINDS[dtype])
            for s in ((batch, c), (k, c), (k,), (batch, k))
        )
        b_or_none = b if bias else None
        what = f"JITGEN_SEED={SEED} {layer.layer} "
        packed = layer.pack_weights(w)
        for given_x in (x, layer.pack_input(x)):
            for given_w in (w, packed):
                y = plain(layer.forward(given_x, given_w, b_or_none))
                error = close(y, x, w.T, dtype, b if bias else 0.0)
                assert not error, what + error
        for given_dz in (dz, blocked(dz, 16)):
            for given_w in (w, packed):
                dx = plain(layer.backward_data(given_dz, given_w))
                error = close(dx, dz, w, dtype)
                assert not error, what + error
            for given_x in (x, layer.pack_input(x)):
                dw, db = layer.backward_weights(given_dz, given_x)
                error = close(dw, dz.T, x, dtype)
                assert not error, what + error
                if bias:
                    assert db is not None
                    error = close(db[None], np.ones((1, batch), KINDS[dtype]), dz, dtype)
                    assert not error, what + error
                else:
                    assert db is None
        count.count(target, "fully connected layers", 10)


@pytest.mark.parametrize(("activation", "known"), EXAMPLES)
@pytest.mark.parametrize("dtype", KINDS)
def test_activations_and_their_gradients(activation: Any, known: str, dtype: str) -> None:
    """The gradient is checked against central differences of the activation in float64."""
    function = partial(activated, activation)
    rng = np.random.default_rng(SEED)
    layer = FullyConnected(9, 21, 37, activation=activation, dtype=dtype, threads=2)
    linear = FullyConnected(9, 21, 37, dtype=dtype)
    x, w, b, dy = (
        rng.standard_normal(s).astype(KINDS[dtype]) for s in ((9, 21), (37, 21), (37,), (9, 37))
    )
    z = linear.forward(x, w, b)
    y = layer.forward(x, w, b)
    np.testing.assert_allclose(y, function(z.astype(np.float64)), rtol=1e-5, atol=1e-6)
    if not known:
        for given in ({"y": y}, {"z": z}, {}):
            with pytest.raises(ValueError, match=f"'{activation}' has no backward pass"):
                layer.backward_activation(dy, **given)
        return
    name, needed = known, {"y": y, "z": z}[known]
    dz = layer.backward_activation(dy, **{name: needed})
    h, z64 = 1e-6, z.astype(np.float64)
    high, middle, low = (function(z64 + s * h) for s in (1, 0, -1))
    slope = (high - low) / (2 * h)
    # where straight parts meet there is no slope
    parts = np.abs(high + low - 2 * middle) > 1e-8 * (1 + np.abs(middle))
    assert parts.mean() < 0.01
    slope[parts], dz[parts], dy[parts] = 0, 0, 0
    np.testing.assert_allclose(dz, dy * slope, rtol=2e-5, atol=1e-6)
    in_place = dy.copy()
    assert layer.backward_activation(in_place, out=in_place, **{name: needed}) is in_place
    np.testing.assert_array_equal(in_place, dz)
    both = layer.backward_activation(blocked(dy, 16), **{name: blocked(needed, 16)})
    np.testing.assert_array_equal(both.plain(), dz)


@pytest.mark.parametrize("target", HERE)
def test_residuals(target: str) -> None:
    """Of every way to multiply: few rows in place, packed pieces, panels, blocked; and in place."""
    rng = np.random.default_rng(SEED)
    for i, (batch, c, k) in enumerate(((1, 40, 70), (7, 33, 20), (20, 50, 70), (65, 1100, 600))):
        dtype, bias = ("f32", "f64")[i % 2], i % 3 > 0
        layer = FullyConnected(
            batch, c, k, bias=bias, residual=True, activation=("clip", -9, 30), dtype=dtype,
            threads=2, target=target,
        )  # fmt: skip
        x, w, b, residual = (
            rng.integers(-3, 4, s).astype(KINDS[dtype]) for s in ((batch, c), (k, c), k, (batch, k))
        )
        expected = np.clip(x @ w.T + b * bias + residual, -9, 30)
        packed = layer.pack_weights(w)
        given = b if bias else None
        for weights in (w, packed):
            out = np.full_like(residual, np.nan)
            assert layer.forward(x, weights, given, out, residual=residual) is out
            np.testing.assert_array_equal(out, expected)
            place = residual.copy()
            assert layer.forward(x, weights, given, place, residual=place) is place
            np.testing.assert_array_equal(place, expected)
        y = layer.forward(layer.pack_input(x), packed, given, residual=blocked(
            residual, packed.forward.width))  # fmt: skip
        np.testing.assert_array_equal(y.plain(), expected)
        count.count(target, "fully connected layers", 5)


def test_the_residual_must_fit() -> None:
    layer = FullyConnected(4, 6, 5, residual=True)
    packed, x = layer.pack_weights(W), layer.pack_input(X)
    other = blocked(Y, packed.forward.width + 1)
    for call, error, words in (
        (lambda: layer.forward(X, W, B), TypeError, "residual is NoneType"),
        (lambda: layer.forward(X, W, B, residual=X), ValueError, "residual has shape (4, 6)"),
        (lambda: layer.forward(X, W, B, BOTH[:20].reshape(4, 5),
                               residual=BOTH[9:29].reshape(4, 5)), ValueError, "overlaps residual"),
        (lambda: layer.forward(x, packed, B, residual=Y), ValueError, "residual has panels of 0"),
        (lambda: layer.forward(x, packed, B, residual=other), ValueError, "residual has panels of"),
        (lambda: layer.forward(X, W, B, residual=other), ValueError, "residual has panels of"),
        (lambda: LAYER.forward(X, W, B, residual=Y), ValueError, "residual is given"),
        (lambda: FullyConnected(4, 6, 5, residual=1), TypeError, "residual=1 is no bool"),
    ):  # fmt: skip
        with pytest.raises(error) as raised:
            call()
        assert words in str(raised.value)


@pytest.mark.parametrize(("activation", "error", "words"), [
    (("leaky_relu", -0.5), ValueError, "activation=('leaky_relu', -0.5) has no backward pass"),
    (("elu", -1), ValueError, "activation=('elu', -1.0) has no backward pass"),
])  # fmt: skip
def test_gradients_that_the_output_does_not_tell(activation: Any, error: Any, words: str) -> None:
    layer = FullyConnected(4, 6, 5, activation=activation)
    y = layer.forward(X, W, B)
    with pytest.raises(error) as raised:
        layer.backward_activation(Y, y)
    assert words in str(raised.value)


def test_any_panels_fit_the_registers() -> None:
    """Eight vectors a panel and few rows: as many accumulator sets as fit, and no more."""
    assert FullyConnected(1, 513, 513, dtype="f64", target="sve512").stream().calls


def test_a_chain_stays_blocked() -> None:
    rng = np.random.default_rng(SEED)
    first, second = FullyConnected(20, 50, 70, activation="relu"), FullyConnected(20, 70, 33)
    x, w1, b1, w2, b2 = (
        rng.integers(-4, 5, s).astype(np.float32)
        for s in ((20, 50), (70, 50), (70,), (33, 70), (33,))
    )
    h = first.forward(first.pack_input(x), first.pack_weights(w1), b1)
    y = second.forward(h, second.pack_weights(w2, backward=False), b2)
    assert isinstance(h, Blocked)
    assert isinstance(y, Blocked)
    expected = np.maximum(x @ w1.T + b1, 0) @ w2.T + b2
    np.testing.assert_array_equal(y.plain(), expected)


@pytest.mark.parametrize("target", HERE)
def test_any_number_of_threads_gives_the_same_bits(target: str) -> None:
    """Blocks follow the threads, sums do not: no reduction is split."""
    rng = np.random.default_rng(SEED)
    for batch, c, k in ((100, 300, 200), (1, 300, 200), (37, 700, 901), (2, 50, 33)):
        x, w, b, dz = (
            rng.standard_normal(s).astype(np.float32)
            for s in ((batch, c), (k, c), (k,), (batch, k))
        )
        results = []
        for threads in (1, 2, 3, 5):
            layer = FullyConnected(
                batch, c, k, activation="tanh", threads=threads, target=target
            )
            packed = layer.pack_weights(w)
            dw, db = layer.backward_weights(dz, x)
            results.append((
                layer.forward(x, w, b), layer.forward(x, packed, b), layer.backward_data(dz, w),
                layer.backward_data(dz, packed), dw, db,
            ))  # fmt: skip
        for other in results[1:]:
            for one, two in zip(results[0], other, strict=True):
                np.testing.assert_array_equal(one, two)


def test_out_and_many_callers() -> None:
    layer = FullyConnected(33, 65, 47, activation="relu", threads=2)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        x, w, b = (rng.integers(-4, 5, s).astype(np.float32) for s in ((33, 65), (47, 65), (47,)))
        out = np.full((33, 47), np.nan, np.float32)
        for _ in range(30):
            assert layer.forward(x, w, b, out) is out
            np.testing.assert_array_equal(out, np.maximum(x @ w.T + b, 0))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, i) for i in range(8)]:
            done.result()


X, W, B, Y = (np.zeros(s, np.float32) for s in ((4, 6), (5, 6), (5,), (4, 5)))
READ_ONLY = Y.copy()
READ_ONLY.flags.writeable = False
BOTH = np.zeros(40, np.float32)
LAYER = FullyConnected(4, 6, 5) if HERE else None


def narrow(packed: PackedWeights, name: str) -> PackedWeights:
    """Weights whose panels somebody has cut off."""
    panels = getattr(packed, name)
    return replace(packed, **{name: Blocked(panels.array[:, :-1].copy(), panels.columns)})


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: FullyConnected(0, 6, 5), ValueError, "batch=0"),
        (lambda x: FullyConnected(4, 2.0, 5), TypeError, "in_features=2.0"),
        (lambda x: FullyConnected(4, 6, -1), ValueError, "out_features=-1"),
        (lambda x: FullyConnected(4, 6, 5, activation="softmax"), ValueError,
         "activation='softmax' is not one of relu, "),
        (lambda x: FullyConnected(4, 6, 5, activation="bias"), ValueError, "activation='bias' is"),
        (lambda x: FullyConnected(4, 6, 5, activation="clip"), ValueError,
         "activation='clip' takes low, high; got []"),
        (lambda x: FullyConnected(4, 6, 5, activation=("clip", 6, 0)), ValueError,
         "activation=clip: low=6.0 is above 0.0"),
        (lambda x: FullyConnected(4, 6, 5, activation=("elu", "1")), TypeError,
         "activation=elu alpha='1' is no real number"),
        (lambda x: FullyConnected(4, 6, 5, activation=3), TypeError, "activation=3 is neither"),
        (lambda x: FullyConnected(4, 6, 5, dtype="bf16"), ValueError, "bf16"),
        (lambda x: FullyConnected(4, 6, 5, threads=0), ValueError, "threads=0"),
        (lambda x: FullyConnected(4, 6, 5, blocks=(0, 16)), ValueError, "blocks[0]=0"),
        (lambda x: FullyConnected(4, 6, 5, order="xy").forward(X, W, B), ValueError, "order="),
        (lambda x: x.forward([[1.0]], W, B), TypeError, "x is list"),
        (lambda x: x.forward(X.astype(np.float64), W, B), TypeError, "float64"),
        (lambda x: x.forward(X[:, :3], W, B), ValueError, "x has shape (4, 3); it must be (4, "),
        (lambda x: x.forward(X[:0], W, B), ValueError, "x has shape (0, 6); it must be (4, 6)"),
        (lambda x: x.backward_weights(Y[:3], X), ValueError, "x has shape (4, 6); it must be (3"),
        (lambda x: x.forward(X, W.T, B), ValueError, "(6, 5)"),
        (lambda x: x.forward(np.asfortranarray(X), W, B), ValueError, "strides"),
        (lambda x: x.forward(X, W), TypeError, "b is NoneType"),
        (lambda x: FullyConnected(4, 6, 5, bias=False).forward(X, W, B), ValueError, "bias=False"),
        (lambda x: x.forward(X, W, B, READ_ONLY), ValueError, "read-only"),
        (lambda x: x.forward(BOTH[:24].reshape(4, 6), W, B, BOTH[20:].reshape(4, 5)), ValueError,
         "overlaps x"),
        (lambda x: x.backward_data(X, W), ValueError, "dz has shape"),
        (lambda x: x.backward_data(Y, x.pack_weights(W, backward=False)), ValueError, "backward="),
        (lambda x: x.backward_weights(Y, Y), ValueError, "x has shape"),
        (lambda x: x.backward_weights(Y, X, (W, B[:3])), ValueError, "out[1] has shape"),
        (lambda x: x.backward_activation(Y, Y), ValueError, "activation=None"),
        (lambda x: x.forward(blocked(Y, 8), W, B), ValueError, "x has 5 columns"),
        (lambda x: x.forward(X, FullyConnected(4, 6, 9).pack_weights(np.zeros((9, 6), "f4")), B),
         ValueError, "w was packed for (6, 9, 'f32')"),
        # as many columns, but panels of another depth or type: read, they would end too early
        (lambda x: x.forward(X, FullyConnected(4, 2, 5).pack_weights(np.zeros((5, 2), "f4")), B),
         ValueError, "w was packed for (2, 5, 'f32')"),
        (lambda x: x.backward_data(
            Y, FullyConnected(4, 6, 3).pack_weights(np.zeros((3, 6), "f4"))),
         ValueError, "w was packed for (6, 3, 'f32')"),
        (lambda x: x.forward(
            X, FullyConnected(4, 6, 5, dtype="f64").pack_weights(np.zeros((5, 6))), B),
         ValueError, "w was packed for (6, 5, 'f64')"),
        (lambda x: x.forward(X, narrow(x.pack_weights(W), "forward"), B), ValueError,
         "w (packed) has shape"),
        (lambda x: x.backward_data(Y, narrow(x.pack_weights(W), "backward")), ValueError,
         "w (packed) has shape"),
        (lambda x: x.forward(X, x.pack_weights(W).forward, B), TypeError, "w is Blocked"),
        (lambda x: FullyConnected(4, 6, 5, bias=False).backward_weights(Y, X, (W.copy(), B)),
         ValueError, "bias=False"),
    ],
)  # fmt: skip
def test_bad_input(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        call(LAYER)
    assert words in str(raised.value)


@pytest.mark.parametrize("which", ["forward", "backward_data", "backward_weights"])
@pytest.mark.parametrize("batch", [1, 5, 70])
def test_streams_of_arrays_with_gaps(which: str, batch: int) -> None:
    """Rows that lie apart give the same numbers, and what is between them stays."""
    c, k = 40, 90
    layer = FullyConnected(batch, c, k, threads=2, bias=which == "forward").layer
    shapes = {"forward": ((batch, c), (k, c), (batch, k)),
              "backward_data": ((batch, k), (k, c), (batch, c)),
              "backward_weights": ((batch, k), (batch, c), (k, c))}[which]  # fmt: skip
    rng = np.random.default_rng(SEED)
    plain = [rng.integers(-4, 5, shape).astype(np.float32) for shape in shapes]
    bias = [np.zeros(k, np.float32)] if which == "forward" else []
    wide = [np.full((rows, columns + 3 + i), np.nan, np.float32)
            for i, (rows, columns) in enumerate(shapes)]  # fmt: skip
    for array, values in zip(wide[:2], plain, strict=False):
        array[:, : values.shape[1]] = values
    strides = tuple((name, (array.shape[1],)) for name, array in zip("abc", wide, strict=True))
    make = getattr(streams, which)
    how = (0, 0) if which == "backward_weights" else (0, 0, False)
    for arrays, gaps in ((plain, ()), (wide, strides)):
        given = zip(("a", "b", "c", "bias"), (*arrays, *bias), strict=False)
        make(layer, *how, gaps)({name: loader.ffi.from_buffer(a) for name, a in given})
    np.testing.assert_array_equal(wide[2][:, : shapes[2][1]], plain[2])
    assert np.isnan(wide[2][:, shapes[2][1] :]).all()
