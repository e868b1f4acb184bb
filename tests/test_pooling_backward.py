"""Gradients of pooling: kernels and streams on every tier, layers against an index oracle (float64)
and against PyTorch.

Elements are few different numbers, so that maxima are often equal, with NaN and infinities among
them; gradients are small integers, whose sums are exact. Not here: forward (`test_pooling`,
`test_pooling_layers`).
"""

from __future__ import annotations

import random
from typing import Any

import needs
import numpy as np
import pytest
from blocks import EVERYWHERE, FLOATS, Call, Wanted, block, execute, poison
from random_cases import SEED
from rig import count
from test_convolution import as_job
from test_pooling import Windows, amount
from test_pooling_layers import random_pool
from tiers import TIERS, need

from jitgen import AveragePool, MaxPool
from jitgen.kernels.elementwise import emit_map
from jitgen.kernels.pooling import emit_pool_backward
from jitgen.primitives.conv.pooling import backward
from jitgen.run import cpu
from jitgen.target import TARGETS, Target, parse_target

Array = np.ndarray[Any, Any]
HERE = [name for name, why in cpu.targets().items() if not why]
NUMBERS = (-np.inf, -2.0, -1.0, -0.5, -0.0, 0.0, 0.25, 1.0, 3.0, np.inf, np.nan)
#: tier -> layers whose streams are replayed
AMOUNT = {"avx512 bochs": 16, "sve128 qemu": 10, "sve256 qemu": 10, "sve512 qemu": 10,
          "neon qemu": 10}  # fmt: skip


def winners(seen: Array) -> Array:
    """Which of the first axis is the maximum: the first one, or the last NaN."""
    nan = np.isnan(seen)
    last = len(seen) - 1 - nan[::-1].argmax(axis=0)
    return np.where(nan.any(axis=0), last, np.where(nan, -np.inf, seen).argmax(axis=0))


# ---- kernels -----------------------------------------------------------------------------------


def gradient(rng: random.Random, target: Target, kind: str) -> Call:
    dtype = rng.choice(("f32", "f64"))
    windows = Windows(rng, dtype)
    flat, index, shape = windows.flat, windows.index, windows.shape
    used = np.unique(index)
    likely = [1.0] * (len(NUMBERS) - 1) + [0.1]
    flat[used] = rng.choices(NUMBERS, likely, k=len(used))
    accumulate = len(used) < index.size or rng.random() < 0.5
    before = flat.copy()
    before[used] = windows.numbers.integers(-9, 10, len(used)) if accumulate else np.nan
    dy = windows.numbers.integers(-9, 10, shape).astype(FLOATS[dtype])
    ldb = shape[1] + rng.choice((0, 0, 3, 8))
    words: dict[str, Any] = {"b": block(dy, ldb), "c": before}
    wanted = before.astype(np.float64)
    if not accumulate:
        wanted[used] = 0
    divisor, bound, x = None, 0.0, None
    if kind == "max":
        words["a"] = flat
        if rng.random() < 0.3:  # x lies otherwise than dx: window by window
            taps, c = len(windows.taps), windows.channels
            words["a"] = np.ascontiguousarray(flat[index].transpose(1, 0, 2)).ravel()
            x = tuple(c * t for t in range(taps)), taps * c
        chosen = np.take_along_axis(index, winners(flat[index])[None], 0)[0]
        np.add.at(wanted, chosen, dy)
    else:
        divisor = rng.choice((None, 9, 2.5, -3.0))
        each = dy / float(divisor or len(windows.taps))
        np.add.at(wanted, index, each[None])
        bound = (len(windows.taps) * 4 + 2) * np.finfo(FLOATS[dtype]).eps * 9 * len(windows.taps)
    routine = emit_pool_backward(
        kind, *shape, windows.taps, dtype, target, step=windows.step, ldb=ldb, divisor=divisor,
        accumulate=accumulate, x=x,
    )  # fmt: skip
    label = f"{kind} {windows.label} divisor {divisor} ldb {ldb} accumulate {accumulate} x {x}"
    return Call(routine, words, {"c": Wanted(wanted[None], len(wanted), bound)}, label,
                rng.choice(("end", "start")))  # fmt: skip


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("tier", EVERYWHERE)
def test_random_rows(tier: str, kind: str) -> None:
    need(TIERS[tier])
    rng = random.Random(f"{SEED} {tier} {kind} backward")
    target = parse_target(TIERS[tier].target)
    calls = [gradient(rng, target, kind) for _ in range(amount(tier))]
    failures = execute(tier, calls)
    assert not failures, f"JITGEN_SEED={SEED}: {len(failures)} failed:\n" + "\n".join(failures[:9])


@pytest.mark.parametrize("tier", EVERYWHERE)
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_window_of_three(tier: str, dtype: str) -> None:
    """All triples of the numbers: ties, zeros of both signs, infinities and NaN at every place."""
    need(TIERS[tier])
    x = np.array(np.meshgrid(NUMBERS, NUMBERS, NUMBERS)).reshape(3, -1).astype(FLOATS[dtype])
    channels = x.shape[1]
    dy = np.arange(1, channels + 1).astype(FLOATS[dtype])
    value = np.where(winners(x) == np.arange(3)[:, None], dy, 0)
    target = parse_target(TIERS[tier].target)
    taps = (0, channels, 2 * channels)
    words = {"a": x.ravel(), "b": dy, "c": np.zeros_like(x).ravel()}
    options: dict[str, Any] = {"step": 0, "ldb": channels}
    routine = emit_pool_backward("max", 1, channels, taps, dtype, target, **options)
    call = Call(routine, words, {"c": Wanted(value, channels)}, "triples")
    assert not execute(tier, [call])
    # the comparison sees a kernel that takes the last of equal maxima
    wrong = emit_pool_backward("max", 1, channels, taps[::-1], dtype, target, **options)
    (failure,) = execute(tier, [Call(wrong, words, call.wanted, "reversed")])
    assert "elements are wrong" in failure


@pytest.mark.parametrize("tier", EVERYWHERE)
def test_zeros_leave_gaps_alone(tier: str) -> None:
    """What a gradient's image begins with, where threads share its channels."""
    need(TIERS[tier])
    calls = []
    for rows, columns, ld in ((1, 1, 1), (3, 16, 40), (5, 67, 70), (4, 130, 130)):
        for dtype in FLOATS:
            target = parse_target(TIERS[tier].target)
            routine = emit_map("zero", rows, columns, dtype, target, ld={"c": ld})
            words = {"c": block(poison(rows, columns, dtype), ld)}
            wanted = {"c": Wanted(np.zeros((rows, columns)), ld)}
            calls.append(Call(routine, words, wanted, f"{rows} x {columns} zeros, {dtype}"))
    assert not execute(tier, calls)


@pytest.mark.parametrize("name", TARGETS)
def test_code_is_small(name: str) -> None:
    taps = tuple(r * 112 * 67 + s * 67 for r in range(3) for s in range(3))
    for kind in ("max", "average"):
        routine = emit_pool_backward(kind, 56, 67, taps, "f32", TARGETS[name], step=134, ldb=67)
        assert len(routine.code) < 4096


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "median"}, "'median'"), ({"pixels": 0}, "rows=0"), ({"taps": ()}, "taps"),
        ({"divisor": 4.0}, "divisor=4.0"), ({"kind": "average", "divisor": 0.0}, "divisor=0.0"),
        ({"ldb": 3}, "leading dimension 3"), ({"step": -2}, "step=-2"),
    ],
)  # fmt: skip
def test_bad_kernels(change: dict[str, Any], words: str) -> None:
    good = {
        "kind": "max", "pixels": 4, "channels": 4, "taps": (0,), "dtype": "f32", "step": 4, "ldb": 4
    }  # fmt: skip
    assert emit_pool_backward(**good, target=TARGETS["avx2"])
    with pytest.raises(ValueError, match=r".") as error:
        emit_pool_backward(**{**good, **change}, target=TARGETS["avx2"])
    assert words in str(error.value)


# ---- layers ------------------------------------------------------------------------------------


def arrays(layer: MaxPool | AveragePool, seed: int) -> tuple[Array, Array]:
    """x of few different numbers, dy of small integers."""
    rng, kind = np.random.default_rng(seed), FLOATS[layer.conv.dtype]
    x = rng.choice(NUMBERS[1:-2], layer.x_shape).astype(kind)
    if seed % 3 == 0:
        x[rng.random(x.shape) < 0.05] = np.nan
        x[rng.random(x.shape) < 0.5] = -np.inf
    return x, rng.integers(-9, 10, layer.y_shape).astype(kind)


def reference(layer: MaxPool | AveragePool, x: Array, dy: Array) -> Array:
    """In float64, window by window."""
    conv = layer.conv
    if conv.nhwc:
        x, dy = x.transpose(0, 3, 1, 2), dy.transpose(0, 3, 1, 2)
    images = np.arange(conv.batch)[:, None], np.arange(conv.channels)
    dx = np.zeros(x.shape)
    for h in range(conv.out[0]):
        for w in range(conv.out[1]):
            corner = [o * s - p for o, s, p in zip((h, w), conv.stride, conv.padding, strict=True)]
            rows, columns = (
                np.arange(max(0, at), min(at + k, size))
                for at, k, size in zip(corner, conv.kernel, conv.size, strict=True)
            )
            window = np.s_[:, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            if layer.kind == "average":
                each = dy[:, :, h, w] / (conv.kernel[0] * conv.kernel[1])
                dx[window] += each[..., None, None]
            else:
                best = winners(x[window].reshape(*x.shape[:2], -1).transpose(2, 0, 1))
                at = rows[best // len(columns)], columns[best % len(columns)]
                dx[(*images, *at)] += dy[:, :, h, w]
    return dx.transpose(0, 2, 3, 1) if conv.nhwc else dx


def check(layer: MaxPool | AveragePool, got: Array, x: Array, dy: Array) -> None:
    bound = 0.0 if layer.kind == "max" else 9 * 200 * np.finfo(got.dtype).eps
    error = np.abs(got - reference(layer, x, dy)).max()
    assert error <= bound, f"JITGEN_SEED={SEED} off by {error}: {layer.kind} {layer.conv}"


@pytest.mark.parametrize("target", HERE)
def test_random_layers(target: str) -> None:
    rng = random.Random(f"{SEED} gradients of pools {target}")
    for i in range(60):
        layer = random_pool(rng, target)
        for seed in (2 * i, 2 * i + 1):  # also where scratch holds what a call left
            x, dy = arrays(layer, SEED + seed)
            out = np.full(layer.x_shape, np.nan, x.dtype)
            assert layer.backward(dy, x, out) is out
            check(layer, out, x, dy)
        count.count(target, "gradients of pooling", 2)


@pytest.mark.parametrize("tier", AMOUNT)
def test_replay(tier: str) -> None:
    """The drivers and kernels of other instruction sets compute the same layers."""
    need(TIERS[tier])
    rng = random.Random(f"{SEED} gradients of pools {tier}")
    jobs, cases = [], []
    for i in range(AMOUNT[tier]):
        layer = random_pool(rng, TIERS[tier].target)
        object.__setattr__(layer.conv, "threads", 1)
        x, dy = arrays(layer, SEED + i)
        run = backward(layer.conv, layer.kind)
        suffix = "" if layer.conv.nhwc else " nchw"
        result = f"dx{suffix}"
        jobs.append(as_job(run, {f"dy{suffix}": dy, f"x{suffix}": x}, {result: layer.x_shape}))
        written = [n for n in run.stream.tensors if n == result or n in run.scratch]
        cases.append((layer, x, dy, written.index(result)))
    for (layer, x, dy, at), outcome in zip(
        cases, TIERS[tier].run(jobs, isa=TIERS[tier].target), strict=True
    ):
        assert outcome.ok, f"JITGEN_SEED={SEED} {layer.conv}: {outcome.error}"
        check(layer, outcome.outputs[at].reshape(layer.x_shape), x, dy)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [
    (2, 2, 0), (3, 2, 1), (3, 1, 1), ((2, 3), (1, 2), (0, 1)), (5, 3, 2), (10, 2, 3),
])  # fmt: skip
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_against_pytorch(kernel: Any, stride: Any, padding: Any, layout: str) -> None:
    """The same bits for maxima, NaN and ties among them."""
    needs.need_torch()
    import torch

    rng = np.random.default_rng(SEED)
    for make in (MaxPool, AveragePool):
        layer = make(
            2, 21, 23, 17, kernel, stride=stride, padding=padding, layout=layout, threads=2
        )
        x, dy = arrays(layer, SEED // 3 * 3)
        if make is AveragePool:
            x = rng.standard_normal(x.shape).astype(np.float32)
        nchw = (lambda a: a.transpose(0, 3, 1, 2)) if layer.conv.nhwc else (lambda a: a)
        theirs = torch.from_numpy(np.ascontiguousarray(nchw(x))).requires_grad_()
        pool = (
            torch.nn.functional.max_pool2d if make is MaxPool else torch.nn.functional.avg_pool2d
        )
        pool(theirs, kernel, stride, padding).backward(
            torch.from_numpy(np.ascontiguousarray(nchw(dy)))
        )
        assert theirs.grad is not None
        np.testing.assert_allclose(
            nchw(layer.backward(dy, x)), theirs.grad.numpy(), atol=0 if make is MaxPool else 1e-5,
            rtol=0,
        )  # fmt: skip


def test_any_number_of_threads_gives_the_same_bits() -> None:
    for make in (MaxPool, AveragePool):
        results = []
        for threads in (1, 2, 4):
            layer = make(1, 128, 15, 15, 3, stride=2, padding=1, threads=threads)
            x, _ = arrays(layer, SEED)
            dy = np.random.default_rng(SEED).standard_normal(layer.y_shape).astype(np.float32)
            assert len({*backward(layer.conv, layer.kind).stream.parts[0].nest.thread}) == (
                threads
            )
            results.append(layer.backward(dy, x))
        for other in results[1:]:
            np.testing.assert_array_equal(results[0], other)


def test_errors() -> None:
    layer = MaxPool(1, 4, 6, 6, 2)
    x, dy = np.zeros((1, 4, 6, 6), np.float32), np.zeros((1, 4, 3, 3), np.float32)
    for call, error, words in (
        (lambda: layer.backward(dy), TypeError, "x is NoneType"),
        (lambda: layer.backward(x, x), ValueError, "dy has shape"),
        (lambda: layer.backward(dy, dy), ValueError, "x has shape"),
        (lambda: layer.backward(dy, x, x), ValueError, "out overlaps x"),
        (lambda: layer.backward(dy.astype("f8"), x), TypeError, "float64"),
    ):
        with pytest.raises(error) as caught:
            call()
        assert words in str(caught.value)
    assert AveragePool(1, 4, 6, 6, 2).backward(dy).shape == x.shape
