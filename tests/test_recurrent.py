"""LSTM, GRU and RNN layers against float64: both passes over every option, odd numbers, errors.

Native targets only. Not here: other instruction sets (test_recurrent_streams), ONNX's tests
(test_recurrent_onnx), the cells' kernels alone (test_cells).
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from needs import need_torch
from random_cases import SEED
from recurrent_cases import Problem, poison_empty, random_problem
from rig import count

from jitgen import Gru, Lstm, Rnn
from jitgen.primitives.nest import limits
from jitgen.run import cpu

HERE = [name for name, why in cpu.targets().items() if not why]
pytestmark = pytest.mark.skipif(not HERE, reason="no target runs on this CPU")
each_target = pytest.mark.parametrize("target", HERE)
#: configurations of a target come in so many parts of PART
PARTS, PART = 10, 30


@pytest.fixture(autouse=True)
def small_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads share also the work of a test, and what a layer allocates is NaN at first."""
    monkeypatch.setitem(limits.WORK_PER_THREAD, "recurrent", 1)
    poison_empty(monkeypatch)


@each_target
@pytest.mark.parametrize("part", range(PARTS))
def test_random_configurations(target: str, part: int) -> None:
    rng = random.Random(f"{SEED} {target} {part}")
    for _ in range(PART):
        problem = random_problem(rng, target, 20)
        problem.check()
        count.count(target, "recurrent layers", 3)


@each_target
@pytest.mark.parametrize(("kind", "reset"), [
    ("lstm", "after"), ("gru", "after"), ("gru", "before"), ("rnn", "after"),
])  # fmt: skip
@pytest.mark.parametrize(("batch", "steps", "features", "hidden"), [
    (64, 3, 128, 256), (1, 12, 300, 512), (24, 4, 700, 100), (100, 2, 65, 97), (3, 100, 9, 17),
])  # fmt: skip
def test_sizes_of_networks(
    target: str, kind: str, reset: str, batch: int, steps: int, features: int, hidden: int
) -> None:
    """Several blocks of rows, long products and long sequences."""
    problem = random_problem(
        random.Random(f"{SEED} {target}"), target, 20, 2, kind=kind, reset=reset, batch=batch,
        steps=steps, features=features, hidden=hidden,
    )  # fmt: skip
    problem.check()


@each_target
def test_several_python_threads(target: str) -> None:
    """Inference with one layer from several Python threads at once: each gets its own results."""
    rng = random.Random(f"{SEED} {target}")
    for kind in ("lstm", "gru", "rnn"):
        one = random_problem(rng, target, 20, 1, kind=kind, batch=17, steps=5)
        problems = [replace(one, arrays={**one.arrays, "x": one.arrays["x"] * i}) for i in range(4)]

        def use(problem: Problem) -> None:
            for _ in range(20):
                problem.check_forward(problem.forward())

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(use, problems))


@each_target
def test_large_numbers_saturate(target: str) -> None:
    """Pre-activations up to 1e30: gates at their limits, finite results, finite gradients."""
    rng = random.Random(f"{SEED} {target}")
    for _ in range(20):
        problem = random_problem(rng, target, 20, 1)
        problem.arrays["x"] *= problem.arrays["x"].dtype.type(10.0 ** rng.randint(2, 30))
        again = replace(problem, text=f"large x, {problem.text}")
        # |h| <= 1, or what it began with (GRU)
        y, *states = again.forward(training=True)
        limit = problem.arrays["h0"]
        most = 1.0 if limit is None else max(1.0, float(np.abs(limit).max()))
        assert (np.abs(y) <= most * (1 + 1e-6)).all(), again.text
        assert all(np.isfinite(s).all() for s in states), again.text
        assert all(g is None or np.isfinite(g).all() for g in again.backward()), again.text


def test_the_comparison_sees_a_small_error() -> None:
    """One weight that is off by a hundredth of its size, in both passes."""
    problem = random_problem(
        random.Random(SEED), HERE[0], 10, kind="lstm", steps=5, batch=4, hidden=9, features=7,
        lengths=False,
    )  # fmt: skip
    problem.packed = False
    w = problem.arrays["w"]
    at = np.unravel_index(np.abs(w).argmax(), w.shape)
    w[at] *= 1.01
    with pytest.raises(AssertionError, match="is off by"):
        problem.check_forward(problem.forward(training=True))
    w[at] /= 1.01
    problem.forward(training=True)
    w[at] *= 1.01  # what backward reads is another weight now
    gradients = problem.backward()
    w[at] /= 1.01
    with pytest.raises(AssertionError, match="dx is off by"):
        problem.check_backward(gradients)


@each_target
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_odd_numbers_in_x(target: str, kind: str) -> None:
    """NaN and infinity give what the equations give, in every sequence, and leave no trace."""
    rng = random.Random(f"{SEED} {target} {kind}")
    for i in range(20):
        problem = random_problem(rng, target, 20, kind=kind)
        odd = (np.nan,) if i % 2 else (np.nan, np.inf, -np.inf)
        x = problem.arrays["x"]
        usual = x.copy()
        for _ in range(rng.randint(1, 3)):
            x[tuple(rng.randrange(n) for n in x.shape)] = rng.choice(odd)
        again = replace(problem, text=f"odd numbers, {problem.text}")
        again.check_forward(again.forward())
        if i % 2:
            # infinity times a gradient that rounds to 0 is NaN, and infinity if it does not
            again.check_forward(again.forward(training=True))
            again.check_backward(again.backward())
        x[...] = usual
        problem.check()


@each_target
def test_what_lies_behind_a_sequence_does_not_matter(target: str) -> None:
    """NaN and infinity there, in x and dy: the same bits as for zeros."""
    rng = random.Random(f"{SEED} {target}")
    for _ in range(40):
        problem = random_problem(rng, target, 20, rng.choice([1, 1, 2]), lengths=True)
        behind = np.arange(len(problem.arrays["x"]))[:, None] >= problem.lengths
        results = []
        for odd in (0.0, np.nan, np.inf):
            for array in (problem.arrays["x"], problem.gradients["dy"]):
                array[behind] = odd
            results.append([*problem.forward(), *problem.forward(True), *problem.backward()])
        y, dx = results[1][0], results[1][4 if problem.cell.kind != "lstm" else 6]
        assert not y[behind].any(), problem.text
        assert not dx[behind].any(), problem.text
        for other in results[1:]:
            for one, two in zip(results[0], other, strict=True):
                np.testing.assert_array_equal(one, two, err_msg=problem.text)
        problem.check_backward(results[2][4 if problem.cell.kind != "lstm" else 6 :])


@each_target
def test_what_an_empty_sequence_holds_stays_there(target: str) -> None:
    """NaN and infinity as its states and their gradients: it keeps them, nothing else sees them."""
    rng = random.Random(f"{SEED} {target}")
    compared = 0
    while compared < 60:
        problem = random_problem(rng, target, 20, 1, lengths=True)
        empty = problem.lengths == 0
        given = {**problem.arrays, **problem.gradients}
        names = [n for n in ("h0", "c0", "dh", "dc") if given.get(n) is not None]
        if empty.any() and not empty.all() and names:
            name = rng.choice(names)
            given[name][..., empty, :] = rng.choice([np.nan, np.inf])
            again = replace(problem, text=f"odd {name}, {problem.text}")
            again.check_forward(again.forward())
            again.check_forward(again.forward(training=True))
            again.check_backward(again.backward())
            compared += 1


@each_target
def test_the_same_bits_in_every_run(target: str) -> None:
    """With any number of threads; from 12 rows on, where a thread's blocks do not depend on their
    number, the forward pass gives the same bits for all numbers."""
    for i in range(8):
        results = []
        for threads in (1, 2, 3, 4):
            problem = random_problem(
                random.Random(f"{SEED} {i}"), target, 20, threads, batch=12 + 6 * i
            )
            runs = [[*problem.forward(), *problem.forward(True), *problem.backward()]
                    for _ in "12"]  # fmt: skip
            for one, two in zip(*runs, strict=True):
                np.testing.assert_array_equal(one, two, err_msg=problem.text)
            results.append(runs[0][: 4 if problem.cell.kind != "lstm" else 6])
        for other in results[1:]:
            for one, two in zip(results[0], other, strict=True):
                np.testing.assert_array_equal(one, two, err_msg=problem.text)


@each_target
def test_sequences_of_one_length_are_layers_of_that_length(target: str) -> None:
    """Lengths that are all the same: the first steps alone, bit for bit."""
    rng = np.random.default_rng(SEED)
    long, short = (Lstm(3, steps, 5, 9, direction="bidirectional", target=target, threads=1)
                   for steps in (6, 4))  # fmt: skip
    x, w, r, b = (rng.standard_normal(long.shapes[n]).astype(np.float32) for n in "xwrb")
    y, h, c = long.forward(x, w, r, b, lengths=[4, 4, 4])
    for one, two in zip((y[:4], h, c), short.forward(x[:4].copy(), w, r, b), strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_last_training_pass_counts() -> None:
    """A forward pass without training in between changes nothing, one with training all."""
    rng = random.Random(SEED)
    one = random_problem(rng, HERE[0], 10, kind="lstm", batch=3, steps=4, features=5, hidden=6)
    first = one.forward(training=True)
    expected = one.backward()
    two = replace(one, arrays={**one.arrays, "x": one.arrays["x"] * 2}, text="x doubled")
    one.forward(training=True)
    two.forward()
    for got, wanted in zip(one.backward(), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    two.forward(training=True)
    two.check_backward(two.backward())
    one.check_forward(first)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("lengths", [False, True])
def test_first_states_may_change_before_backward(kind: str, lengths: bool) -> None:
    """As where the next states of a long sequence are put into the same arrays."""
    problem = random_problem(
        random.Random(SEED), HERE[0], 10, kind=kind, steps=3, lengths=lengths
    )
    shape, dtype = problem.layer.shapes["h0"], problem.arrays["x"].dtype
    numbers = np.random.default_rng(SEED)
    states = {
        name: numbers.standard_normal(shape).astype(dtype)
        for name in (("h0", "c0") if kind == "lstm" else ("h0",))
    }
    problem = replace(problem, arrays={**problem.arrays, **states})
    problem.forward(training=True)
    kept = {name: array.copy() for name, array in states.items()}
    for array in states.values():
        array.fill(9)
    gradients = problem.backward()
    replace(problem, arrays={**problem.arrays, **kept}).check_backward(gradients)


def test_weights_may_get_another_shape_before_backward() -> None:
    """The same numbers seen as one row: the same gradients."""
    layer = Gru(2, 3, 4, 5, reset="before", threads=1)
    rng = np.random.default_rng(SEED)
    x, w, r, b = (rng.standard_normal(layer.shapes[n]).astype(np.float32) for n in "xwrb")
    dy = np.ones(layer.shapes["y"], np.float32)
    layer.forward(x, w, r, b, training=True)
    expected = layer.backward(dy)
    for array in (x, w, r):
        array.shape = (1, -1)
    for got, wanted in zip(layer.backward(dy), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


LAYER = Lstm(2, 3, 4, 5, threads=1) if HERE else None
PEEPHOLE = Lstm(2, 3, 4, 5, peephole=True, threads=1) if HERE else None
UNBIASED = Gru(2, 3, 4, 5, bias=False, threads=1) if HERE else None
BOTH = Rnn(2, 3, 4, 5, direction="bidirectional", threads=1) if HERE else None
X, W, R, B, H, P, DY = (np.zeros(s, np.float32) for s in (
    (3, 2, 4), (20, 4), (20, 5), (2, 20), (2, 5), (3, 5), (3, 2, 5)))  # fmt: skip


def backward(layer: Any, *arrays: Any) -> Any:
    """After a forward pass of zeros."""
    layer.forward(X, W, R, B, training=True)
    return layer.backward(*arrays)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: Lstm(0, 3, 4, 5), ValueError, "batch=0"),
        (lambda x: Lstm(2, 0, 4, 5), ValueError, "steps=0"),
        (lambda x: Gru(2, 3, -1, 5), ValueError, "in_features=-1"),
        (lambda x: Rnn(2, 3, 4, 5.0), TypeError, "hidden=5.0"),
        (lambda x: Lstm(True, 3, 4, 5), TypeError, "batch=True"),
        (lambda x: Lstm(2, 3, 4, 5, direction="back"), ValueError, "direction='back'"),
        (lambda x: Gru(2, 3, 4, 5, reset="never"), ValueError, "reset='never'"),
        (lambda x: Lstm(2, 3, 4, 5, dtype="f16"), ValueError, "dtype='f16'"),
        (lambda x: Lstm(2, 3, 4, 5, threads=0), ValueError, "threads=0"),
        (lambda x: Lstm(2, 3, 4, 5, target="mmx"), ValueError, "mmx"),
        (lambda x: Lstm(2, 3, 4, 5, forget_bias="1"), TypeError, "forget_bias='1'"),
        (lambda x: Lstm(2, 3, 4, 5, forget_bias=np.nan), ValueError, "forget_bias=nan"),
        (lambda x: x.forward(X[0], W, R, B), ValueError, "x has shape (2, 4)"),
        (lambda x: x.forward(X.tolist(), W, R, B), TypeError, "x is list"),
        (lambda x: x.forward(X.astype("f8"), W, R, B), TypeError, "x has dtype float64"),
        (lambda x: x.forward(X[:, :, ::-1], W, R, B), ValueError, "x has strides"),
        (lambda x: x.forward(X, W[:15], R, B), ValueError, "w has shape (15, 4)"),
        (lambda x: x.forward(X, W, R.T, B), ValueError, "r has shape (5, 20)"),
        (lambda x: x.forward(X, W, None, B), TypeError, "r is NoneType"),
        (lambda x: x.forward(X, W, R), TypeError, "b is NoneType"),
        (lambda x: x.forward(X, W, R, B[0]), ValueError, "b has shape (20,)"),
        (lambda x: x.forward(X, W, R, B, H[:1]), ValueError, "h0 has shape (1, 5)"),
        (lambda x: x.forward(X, W, R, B, H, H.astype("f8")), TypeError, "c0 has dtype float64"),
        (lambda x: x.forward(X, W, R, B, p=P), ValueError, "p is given"),
        (lambda x: PEEPHOLE.forward(X, W, R, B), TypeError, "p is NoneType"),
        (lambda x: PEEPHOLE.forward(X, W, R, B, p=P[:2]), ValueError, "p has shape (2, 5)"),
        (lambda x: UNBIASED.forward(X, W[:15], R[:15], B), ValueError, "b is given"),
        (lambda x: BOTH.forward(X, W[:5], R[:5], B[:, :5]), ValueError, "w has shape (5, 4)"),
        (lambda x: x.forward(X, W, R, B, lengths=[1, 4]), ValueError, "lengths=[1, 4]"),
        (lambda x: x.forward(X, W, R, B, lengths=[-1, 2]), ValueError, "lengths[0]=-1"),
        (lambda x: x.forward(X, W, R, B, lengths=[1]), ValueError, "lengths has shape (1,)"),
        (lambda x: x.forward(X, W, R, B, lengths=[1.0, 2.0]), TypeError, "lengths[0]=1.0"),
        (lambda x: x.forward(X, W, R, B, lengths=2), TypeError, "lengths=2 is no sequence"),
        (lambda x: x.forward(X, x.pack_weights(W, R), R, B), ValueError, "r is given"),
        (lambda x: x.forward(X, UNBIASED.pack_weights(W[:15], R[:15]), None, B), ValueError,
         "w is packed for"),
        (lambda x: x.forward(X, Lstm(2, 3, 4, 6).pack_weights(
            np.zeros((24, 4), "f4"), np.zeros((24, 6), "f4")), None, B), ValueError,
         "w is packed for"),
        (lambda x: x.pack_weights(W, R[:, :4]), ValueError, "r has shape (20, 4)"),
        (lambda x: Lstm(2, 3, 4, 5).backward(DY), ValueError, "forward"),
        (lambda x: backward(x, DY[:2]), ValueError, "dy has shape (2, 2, 5)"),
        (lambda x: backward(x, None), TypeError, "dy is NoneType"),
        (lambda x: backward(x, DY, H[0]), ValueError, "dh has shape (5,)"),
        (lambda x: backward(x, DY, H, H.astype("f8")), TypeError, "dc has dtype float64"),
    ],
)  # fmt: skip
def test_bad_input(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        call(LAYER)
    assert words in str(raised.value)


def test_a_refused_pass_leaves_the_last_one() -> None:
    """After an error, backward still belongs to the last forward pass that ran."""
    layer = Lstm(2, 3, 4, 5, threads=1)
    rng = np.random.default_rng(SEED)
    x, w, r, b = (rng.standard_normal(a.shape).astype(np.float32) for a in (X, W, R, B))
    dy = np.ones_like(DY)
    layer.forward(x, w, r, b, training=True)
    expected = layer.backward(dy)
    layer.forward(x, w, r, b, training=True)
    with pytest.raises(ValueError, match="lengths"):
        layer.forward(x * 2, w, r, b, lengths=[9, 9], training=True)
    for got, wanted in zip(layer.backward(dy), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_training_that_no_product_can_sum_is_refused() -> None:
    """Before anything is computed."""
    layer = Lstm(256, 512, 1, 1024, bias=False)
    x, w, r = (np.zeros(layer.shapes[name], np.float32) for name in "xwr")
    with pytest.raises(ValueError, match="steps=512 and batch=256 with hidden=1024"):
        layer.forward(x, w, r, training=True)


def test_two_layers_as_pytorch_stacks_them() -> None:
    """y of the first is x of the second, dx of the second dy of the first."""
    need_torch()
    import torch

    steps, batch, inputs, hidden = 5, 3, 7, 9
    theirs = torch.nn.LSTM(inputs, hidden, num_layers=2, bidirectional=True, dtype=torch.float64)
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal((steps, batch, inputs))
    dy = rng.standard_normal((steps, batch, 2 * hidden))
    x_torch = torch.tensor(x, requires_grad=True)
    expected, _ = theirs(x_torch)
    expected.backward(torch.tensor(dy))

    def get(name: str, i: int, gradient: bool = False) -> np.ndarray:
        both = [getattr(theirs, f"{name}_l{i}{end}") for end in ("", "_reverse")]
        return np.stack([(p.grad if gradient else p.detach()).numpy() for p in both])

    layers = [
        Lstm(batch, steps, c, hidden, direction="bidirectional", dtype="f64")
        for c in (inputs, 2 * hidden)
    ]
    y = x
    for i, layer in enumerate(layers):
        b = np.stack([get("bias_ih", i), get("bias_hh", i)], axis=1)
        y = layer.forward(y, get("weight_ih", i), get("weight_hh", i), b, training=True)[0]
    np.testing.assert_allclose(y, expected.detach().numpy(), atol=1e-12)
    for i, layer in reversed(list(enumerate(layers))):
        dy, dw, dr, *_ = layer.backward(dy)
        np.testing.assert_allclose(dw, get("weight_ih", i, True), atol=1e-11)
        np.testing.assert_allclose(dr, get("weight_hh", i, True), atol=1e-11)
    assert x_torch.grad is not None
    np.testing.assert_allclose(dy, x_torch.grad.numpy(), atol=1e-11)
