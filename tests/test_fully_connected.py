"""The fully connected layer against float64: every pass, layout, activation; and its errors.

Not here: streams (test_streams), training (test_mlp).
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from oracle import FUNCTIONS
from random_cases import SEED
from rig import count

from jitgen import FullyConnected
from jitgen.primitives.fc.layouts import Blocked, PackedWeights
from jitgen.primitives.layers.elementwise import ACTIVATIONS
from jitgen.run import cpu

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


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", KINDS)
def test_activations_and_their_gradients(activation: str, dtype: str) -> None:
    """The gradient is checked against central differences of the activation in float64."""
    function = FUNCTIONS[activation][0] if activation in FUNCTIONS else lambda v: np.maximum(v, 0)
    rng = np.random.default_rng(SEED)
    layer = FullyConnected(9, 21, 37, activation=activation, dtype=dtype, threads=2)
    linear = FullyConnected(9, 21, 37, dtype=dtype)
    x, w, b, dy = (
        rng.standard_normal(s).astype(KINDS[dtype]) for s in ((9, 21), (37, 21), (37,), (9, 37))
    )
    z = linear.forward(x, w, b)
    y = layer.forward(x, w, b)
    np.testing.assert_allclose(y, function(z.astype(np.float64)), rtol=1e-5, atol=1e-6)
    name, needed = ("z", z) if activation in ("gelu", "silu") else ("y", y)
    dz = layer.backward_activation(dy, **{name: needed})
    h, z64 = 1e-6, z.astype(np.float64)
    slope = (function(z64 + h) - function(z64 - h)) / (2 * h)
    if activation == "relu":
        slope = (z64 > 0).astype(np.float64)
    np.testing.assert_allclose(dz, dy * slope, rtol=2e-5, atol=1e-6)
    in_place = dy.copy()
    assert layer.backward_activation(in_place, out=in_place, **{name: needed}) is in_place
    np.testing.assert_array_equal(in_place, dz)
    both = layer.backward_activation(blocked(dy, 16), **{name: blocked(needed, 16)})
    np.testing.assert_array_equal(both.plain(), dz)


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
        (lambda x: FullyConnected(4, 6, 5, activation="softmax"), ValueError, "softmax"),
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
