"""Layers over rows against NumPy in double precision: all passes, gaps, in place, threads.

Compared with PyTorch where it is installed. Not here: the kernels on all targets
(`test_row_kernels`), what every layer has (`test_doors`, `test_copies`, `test_read_only`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from needs import need_torch
from row_oracle import results

from jitgen import LayerNorm, LogSoftmax, LogSumExp, RmsNorm, RowMean, RowSum, Softmax

Array = np.ndarray[Any, Any]
FLOATS = {"f32": np.float32, "f64": np.float64}
#: one element, one row, one column, blocks of rows that threads share, several sums over rows
SHAPES = [(1, 1), (1, 100), (70, 1), (5, 33), (40, 384), (333, 129), (3, 20_000), (1100, 64)]
each_shape = pytest.mark.parametrize(("rows", "columns"), SHAPES)
each_dtype = pytest.mark.parametrize("dtype", FLOATS)
each_threads = pytest.mark.parametrize("threads", [1, 2, 3])


def numbers(seed: int, dtype: str, *shape: int) -> Array:
    """Random numbers."""
    return (2 * np.random.default_rng(seed).standard_normal(shape)).astype(FLOATS[dtype])


def check(function: str, name: str, got: Array, eps: float = 0.0, **operands: Array) -> None:
    """Compare a result: each has the type of its operands, and lies within its bound."""
    matrices = {n: x if x.ndim == 2 else x[np.newaxis] if n in COLUMN else x[:, np.newaxis]
                for n, x in operands.items()}  # fmt: skip
    value, bound = results(function, matrices, eps, 1, 4)[name]
    if got.ndim == 1:
        got = got[np.newaxis] if name in COLUMN else got[:, np.newaxis]
    assert got.shape == value.shape and got.dtype == next(iter(operands.values())).dtype
    off = np.abs(got - value)
    assert (off <= bound).all(), f"{function}: {name} is off by up to {(off / bound).max()} bounds"


COLUMN = ("scale", "shift", "dscale", "dshift")


@each_shape
@each_dtype
@each_threads
def test_softmax_and_its_logarithm(rows: int, columns: int, dtype: str, threads: int) -> None:
    """Forward, and backward from what forward returned."""
    x, dy = numbers(1, dtype, rows, columns), numbers(2, dtype, rows, columns)
    for kind, name in ((Softmax, "softmax"), (LogSoftmax, "log_softmax")):
        layer = kind(rows, columns, dtype=dtype, threads=threads)
        y = layer.forward(x)
        check(name, "y", y, x=x)
        check(f"{name}_backward", "dx", layer.backward(dy, y), dy=dy, y=y)


@each_shape
@each_dtype
@each_threads
def test_sums(rows: int, columns: int, dtype: str, threads: int) -> None:
    """One number for each row, and its gradient."""
    x, dy = numbers(3, dtype, rows, columns), numbers(4, dtype, rows)
    how: dict[str, Any] = {"dtype": dtype, "threads": threads}
    y = LogSumExp(rows, columns, **how).forward(x)
    check("log_sum_exp", "value", y, x=x)
    dx = LogSumExp(rows, columns, **how).backward(dy, x, y)
    check("log_sum_exp_backward", "dx", dx, gradient=dy, x=x, value=y, dx=x)
    for kind, name in ((RowSum, "sum"), (RowMean, "mean")):
        check(name, "value", kind(rows, columns, **how).forward(x), x=x)
        dx = kind(rows, columns, **how).backward(dy)
        check(f"{name}_backward", "dx", dx, gradient=dy, dx=x)


@each_shape
@each_dtype
@each_threads
@pytest.mark.parametrize("affine", [True, False])
def test_norms(rows: int, columns: int, dtype: str, threads: int, affine: bool) -> None:
    """Forward with the numbers of each row, backward with them."""
    x, dy = numbers(5, dtype, rows, columns), numbers(6, dtype, rows, columns)
    scale, shift = numbers(7, dtype, columns), numbers(8, dtype, columns)
    how: dict[str, Any] = {"dtype": dtype, "threads": threads, "affine": affine, "eps": 1e-3}
    for kind, name in ((LayerNorm, "layer_norm"), (RmsNorm, "rms_norm")):
        layer: Any = kind(rows, columns, **how)
        columns_of = {"scale": scale, "shift": shift} if affine else {}
        if kind is RmsNorm:
            columns_of.pop("shift", None)
        plain = layer.forward(x, **columns_of)
        kept = {n: np.full(rows, np.nan, x.dtype) for n in ("mean", "rstd")}
        if kind is RmsNorm:
            del kept["mean"]
        y = layer.forward(x, **columns_of, **kept)
        assert y.tobytes() == plain.tobytes()
        for result, got in {"y": y, **kept}.items():
            check(name, result, got, 1e-3, x=x, **columns_of)
        more = {"scale": scale} if affine else {}
        found = layer.backward(dy, x, **kept, **more)
        names = ["dx", "dscale", "dshift"][: len(found)] if affine else ["dx"]
        zeros = {n: np.zeros_like(scale) for n in names[1:]}
        for result, got in zip(names, found if affine else [found], strict=True):
            check(f"{name}_backward", result, got, dy=dy, x=x, **kept, **more, **zeros)


def every(rows: int, columns: int, threads: int) -> dict[str, Array]:
    """Results of every pass of every layer."""
    x, dy = numbers(10, "f32", rows, columns), numbers(11, "f32", rows, columns)
    scale, value = numbers(12, "f32", columns), numbers(13, "f32", rows)
    found: dict[str, Any] = {}
    for kind in (Softmax, LogSoftmax):
        layer = kind(rows, columns, threads=threads)
        y = found[kind.__name__] = layer.forward(x)
        found[f"{kind.__name__} dx"] = layer.backward(dy, y)
    lse = LogSumExp(rows, columns, threads=threads)
    y = found["LogSumExp"] = lse.forward(x)
    found["LogSumExp dx"] = lse.backward(value, x, y)
    for sums in (RowSum, RowMean):
        found[sums.__name__] = sums(rows, columns, threads=threads).forward(x)
        found[f"{sums.__name__} dx"] = sums(rows, columns, threads=threads).backward(value)
    mean, rstd = np.empty((2, rows), np.float32)
    norm = LayerNorm(rows, columns, threads=threads)
    found["LayerNorm"] = norm.forward(x, scale, scale, mean=mean, rstd=rstd)
    for name, got in zip(("dx", "dscale", "dshift"), norm.backward(dy, x, mean, rstd, scale),
                         strict=True):  # fmt: skip
        found[f"LayerNorm {name}"] = got
    rms = RmsNorm(rows, columns, threads=threads)
    found["RmsNorm"] = rms.forward(x, scale, rstd=rstd)
    for name, got in zip(("dx", "dscale"), rms.backward(dy, x, rstd, scale), strict=True):
        found[f"RmsNorm {name}"] = got
    return found


@pytest.mark.parametrize(("rows", "columns"), [(700, 100), (4099, 33)])
def test_results_do_not_depend_on_the_number_of_threads(rows: int, columns: int) -> None:
    """Bit by bit, those that are sums over rows too."""
    alone = every(rows, columns, 1)
    assert len(alone) == 17
    for threads in (2, 3, 7):
        for name, got in every(rows, columns, threads).items():
            assert got.tobytes() == alone[name].tobytes(), (name, threads)


def test_sums_over_rows_begin_anew_with_each_call() -> None:
    """Scratch keeps what a call left: a second call gives the same, and one on other data too."""
    layer = RmsNorm(200, 40, threads=2)
    x, dy = numbers(14, "f32", 200, 40), numbers(15, "f32", 200, 40)
    scale, rstd = numbers(16, "f32", 40), np.empty(200, np.float32)
    layer.forward(x, scale, rstd=rstd)
    first = [each.copy() for each in layer.backward(dy, x, rstd, scale)]
    layer.backward(10 * dy, x, rstd, scale)
    for a, b in zip(first, layer.backward(dy, x, rstd, scale), strict=True):
        assert a.tobytes() == b.tobytes()


def test_rows_with_gaps_and_results_in_place() -> None:
    """What lies between rows stays; y may be x, dx may be dy; another number of rows."""
    rows, columns = 9, 50
    wide = numbers(17, "f32", rows, 64)
    layer = Softmax(2, columns, threads=2)
    x = wide[:, 3 : 3 + columns]
    before = wide.copy()
    y = layer.forward(x.copy())
    assert layer.forward(x, out=x) is x
    np.testing.assert_array_equal(x, y)
    outside = np.ones(64, bool)
    outside[3 : 3 + columns] = False
    np.testing.assert_array_equal(wide[:, outside], before[:, outside])
    dy = numbers(18, "f32", rows, 64)[:, :columns]
    wanted = layer.backward(dy.copy(), y)
    assert layer.backward(dy, x, out=dy) is dy
    np.testing.assert_array_equal(dy, wanted)
    norm = LayerNorm(2, columns, affine=False)
    wanted = norm.forward(y)
    np.testing.assert_array_equal(norm.forward(y, out=y), wanted)


def _softmax_of(row: list[float]) -> list[float]:
    return Softmax(1, len(row)).forward(np.array([row], np.float32))[0].tolist()


def test_masked_rows() -> None:
    """-infinity is a probability of 0; a row of nothing else has none."""
    assert _softmax_of([0.0, -math.inf, 0.0]) == [0.5, 0.0, 0.5]
    assert all(map(math.isnan, _softmax_of([-math.inf] * 3)))
    assert all(map(math.isnan, _softmax_of([1.0, math.nan])))
    row = np.full((1, 5), -np.inf, np.float32)
    assert LogSumExp(1, 5).forward(row)[0] == -np.inf
    assert np.isnan(LogSoftmax(1, 5).forward(row)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Softmax(0, 3), "rows=0 is smaller than 1"),
        (lambda: LayerNorm(2, 3, eps=-1.0), "eps=-1.0"),
        (lambda: Softmax(2, 3).forward(np.zeros((2, 4), np.float32)), r"x has shape \(2, 4\)"),
        (lambda: LayerNorm(2, 3).forward(np.zeros((2, 3), np.float32)), "scale is missing"),
        (
            lambda: LayerNorm(2, 3, affine=False).forward(
                np.zeros((2, 3), np.float32), np.zeros(3, np.float32)
            ),
            "scale is given, but the layer was made with affine=False",
        ),
        (lambda: RowSum(2, 3).backward(np.zeros((2, 3), np.float32)), r"dy has shape \(2, 3\)"),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    """Errors name argument, value and rule."""
    with pytest.raises(ValueError, match=message):
        call()


def test_another_result_may_not_lie_in_an_operand() -> None:
    """Only the argument that is named may be the result."""
    x, scale = np.ones((4, 4), np.float32), np.ones(4, np.float32)
    y = Softmax(4, 4).forward(x)
    with pytest.raises(ValueError, match="out overlaps y"):
        Softmax(4, 4).backward(x, y, out=y)
    with pytest.raises(ValueError, match="rstd overlaps scale"):
        RmsNorm(4, 4).forward(x, scale, rstd=scale)


def _special() -> Array:
    """Rows with every mixture of what is not finite."""
    values = [-math.inf, math.inf, math.nan, 0.0, 1.5, -200.0]
    rows = [[a, b, c] for a in values for b in values for c in values]
    return np.array(rows, np.float32)


def test_rows_that_are_not_finite_are_pytorchs() -> None:
    """Infinities and NaN at the same places as PyTorch's results, forward and backward."""
    need_torch()
    import torch

    x = _special()
    given = torch.tensor(x, requires_grad=True)
    rows, columns = x.shape
    weight = np.random.default_rng(19).standard_normal(x.shape).astype(np.float32)
    functions: Mapping[str, tuple[Any, Any]] = {
        "softmax": (Softmax, lambda t: torch.softmax(t, 1)),
        "log_softmax": (LogSoftmax, lambda t: torch.log_softmax(t, 1)),
        "log_sum_exp": (LogSumExp, lambda t: torch.logsumexp(t, 1)),
        "layer_norm": (LayerNorm, lambda t: torch.nn.functional.layer_norm(t, (3,))),
        "rms_norm": (RmsNorm, lambda t: torch.nn.functional.rms_norm(t, (3,), eps=1e-5)),
        "sum": (RowSum, lambda t: t.sum(1)), "mean": (RowMean, lambda t: t.mean(1)),
    }  # fmt: skip
    for name, (kind, theirs) in functions.items():
        norm = kind in (LayerNorm, RmsNorm)
        layer = kind(rows, columns, **({"affine": False} if norm else {}))
        wanted = theirs(given)
        got = layer.forward(x)
        np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
        if norm:
            continue
        (gradient,) = torch.autograd.grad(
            wanted, given, torch.tensor(weight if got.ndim == 2 else weight[:, 0])
        )
        dy = weight if got.ndim == 2 else np.ascontiguousarray(weight[:, 0])
        inputs = {"LogSumExp": (dy, x, got), "RowSum": (dy,), "RowMean": (dy,)}
        dx = layer.backward(*inputs.get(kind.__name__, (dy, got)))
        np.testing.assert_allclose(dx, gradient.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
