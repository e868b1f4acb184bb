"""One object of each public kind, and what it computes, for the tests of copies and of assignments.

Not here: the tests (`test_copies`, `test_read_only`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import jitgen
from jitgen import (
    Adam,
    AveragePool,
    Convolution,
    FullyConnected,
    Gru,
    LayerNorm,
    LogSoftmax,
    LogSumExp,
    Lstm,
    MaxPool,
    Mlp,
    RmsNorm,
    Rnn,
    RowMean,
    RowSum,
    Sgd,
    Softmax,
    convolution_1d,
)
from jitgen.primitives.fc.layouts import Blocked, PackedWeights
from jitgen.primitives.layers.convolution import PackedFilter
from jitgen.primitives.layers.recurrent import PackedRecurrent
from jitgen.target import Rates, Target

CUSTOM = Target("mine", "avx2", 256, "x86_64", ("avx2", "fma"), Rates(1, 1, 4, 5, 1 << 15, 8))


def numbers(shape: tuple[int, ...], seed: int = 0, dtype: str = "f32") -> np.ndarray:
    """Numbers of both signs, the same ones in every process."""
    values = np.random.default_rng(seed).standard_normal(shape)
    return values.astype(np.float32 if dtype == "f32" else np.float64)


def _kernel(kernel: jitgen.Kernel) -> list[Any]:
    spec, found = kernel.spec, [kernel.code, kernel.spec, kernel.plan, kernel.target.name]
    if jitgen.targets().get(kernel.target.name, "custom") or spec.batch != "stride":
        return found
    a, b = numbers(spec.a_shape, 1), numbers(spec.b_shape, 2)
    bias = {"bias": numbers((spec.n,), 3)} if spec.has("bias") else {}
    return [*found, kernel(a, b, np.zeros((spec.m, spec.n), np.float32), **bias)]


def _fully_connected(layer: FullyConnected) -> list[Any]:
    at = layer.layer
    x, w = numbers((at.batch, at.in_features)), numbers((at.out_features, at.in_features), 1)
    b = numbers((at.out_features,), 2)
    dz, packed = numbers((at.batch, at.out_features), 3), layer.pack_weights(w)
    more = [] if at.activation is None else [layer.backward_activation(dz, dz)]
    return [
        layer.forward(x, w, b), layer.forward(x, packed, b), layer.backward_data(dz, packed),
        layer.forward(layer.pack_input(x), packed, b).plain(), *layer.backward_weights(dz, x),
        *more,
    ]  # fmt: skip


def _convolution(layer: Convolution) -> list[Any]:
    x, w, dy = numbers(layer.x_shape), numbers(layer.w_shape, 1), numbers(layer.y_shape, 3)
    b, packed = numbers((layer.conv.features,), 2), layer.pack_weights(w)
    return [
        layer.forward(x, w, b), layer.forward(x, packed, b), layer.backward_data(dy, packed),
        *layer.backward_weights(dy, x), layer.algorithms,
    ]  # fmt: skip


def _pool(layer: MaxPool | AveragePool) -> list[Any]:
    x, dy = numbers(layer.x_shape), numbers(layer.y_shape, 1)
    return [layer.forward(x), layer.backward(dy, x)]


def _softmax(layer: Softmax | LogSoftmax) -> list[Any]:
    y = layer.forward(numbers(layer.shape))
    return [y, layer.backward(numbers(layer.shape, 1), y)]


def _row_sum(layer: RowSum) -> list[Any]:
    return [layer.forward(numbers(layer.shape)), layer.backward(numbers(layer.shape[:1], 1))]


def _log_sum_exp(layer: LogSumExp) -> list[Any]:
    x = numbers(layer.shape)
    y = layer.forward(x)
    return [y, layer.backward(numbers(layer.shape[:1], 1), x, y)]


def _norm(layer: LayerNorm | RmsNorm) -> list[Any]:
    x, dy, scale = (numbers(s, i) for i, s in enumerate((layer.shape, layer.shape,
                                                         layer.shape[1:])))  # fmt: skip
    mean, rstd = np.empty((2, len(x)), np.float32)
    if isinstance(layer, RmsNorm):
        return [layer.forward(x, scale, rstd=rstd), *layer.backward(dy, x, rstd, scale)]
    y = layer.forward(x, scale, scale, mean=mean, rstd=rstd)
    return [y, *layer.backward(dy, x, mean, rstd, scale), layer.eps]


def train(layer: Any, seed: int) -> None:
    """A forward pass of a recurrent layer that `backward` may follow."""
    given = {n: numbers(layer.shapes[n], seed + i) for i, n in enumerate(("x", "w", "r", "b"))}
    more: dict[str, Any] = {"lengths": [3, 7, 0][: layer.layer.batch]}
    if layer.layer.peephole:
        more["p"] = numbers(layer.shapes["p"], seed + 4)
    layer.forward(*given.values(), training=True, **more)


def _recurrent(layer: Lstm | Gru | Rnn) -> list[Any]:
    train(layer, 0)
    gradients = layer.backward(numbers(layer.shapes["y"], 9))
    x, w, r, b = (numbers(layer.shapes[n], i) for i, n in enumerate(("x", "w", "r", "b")))
    p = {"p": numbers(layer.shapes["p"], 4)} if layer.layer.peephole else {}
    return [*gradients, *layer.forward(x, layer.pack_weights(w, r), None, b, **p)]


def _mlp(network: Mlp) -> list[Any]:
    x, labels = numbers((network.batch, 5)), np.arange(network.batch) % network.classes
    loss, gradients = network.gradients(x, labels)
    return [loss, *gradients, network.forward(x).copy()]


def _optimizer(optimizer: Sgd | Adam) -> list[Any]:
    for step in range(3):
        optimizer.step([numbers(p.shape, step) for p in optimizer.parameters])
    return [*(p.copy() for p in optimizer.parameters), optimizer.lr]


def _packed_weights(packed: PackedWeights) -> list[Any]:
    layer = FullyConnected(3, 20, 30, bias=False)
    assert packed.backward is not None
    return [
        layer.forward(numbers((3, 20)), packed), layer.backward_data(numbers((3, 30)), packed),
        packed.forward.plain(), packed.backward.plain(),
    ]  # fmt: skip


def _packed_filter(packed: PackedFilter) -> list[Any]:
    layer = Convolution(1, 8, 5, 5, 12, 3, bias=False)
    x, dy = numbers(layer.x_shape), numbers(layer.y_shape)
    return [layer.forward(x, packed), layer.backward_data(dy, packed)]


def _packed_recurrent(packed: PackedRecurrent) -> list[Any]:
    layer = Lstm(2, 3, 5, 20, bias=False)
    layer.forward(numbers(layer.shapes["x"]), packed, None, training=True)
    return [*layer.backward(numbers(layer.shapes["y"], 1))]


def _parameters() -> list[np.ndarray]:
    return [numbers((7, 5)), numbers((90_000,), 1)]


#: Kind and options -> an object, made anew
MAKE: dict[str, Callable[[], Any]] = {
    "Kernel": lambda: jitgen.brgemm(6, 20, 10, target="avx2"),
    "Kernel packed": lambda: jitgen.brgemm(
        6, 20, 10, packed_b=True, epilogue=("bias", ("clip", -1, 6)), alpha=0.5),
    "Kernel plan": lambda: jitgen.brgemm(6, 20, 10, plan={"rows": 2, "k_unroll": 5}),
    "Kernel transposed": lambda: jitgen.brgemm(6, 20, 10, trans_b=True, stride_a=64, ldr=32),
    "Kernel addresses": lambda: jitgen.brgemm(6, 20, 10, batch="address"),
    "Kernel sve256": lambda: jitgen.brgemm(6, 20, 10, target="sve256"),
    "Kernel of a target of one's own": lambda: jitgen.brgemm(6, 20, 10, target=CUSTOM),
    "KernelSpec": lambda: jitgen.brgemm(6, 20, 10, epilogue=[("clip", 0, 6)]).spec,
    "Plan": lambda: jitgen.brgemm(6, 20, 10).plan,
    "FullyConnected": lambda: FullyConnected(9, 31, 40, threads=2),
    "FullyConnected relu": lambda: FullyConnected(80, 310, 90, activation="relu", order="MN"),
    "Convolution": lambda: Convolution(2, 3, 9, 8, 5, (3, 2), stride=2, threads=2),
    "Convolution winograd": lambda: Convolution(
        1, 8, 9, 9, 16, 3, padding=1, layout="nhwc", algorithm="winograd"),
    "Convolution depthwise": lambda: Convolution(1, 8, 9, 9, 8, 3, groups=8, padding="same"),
    "Convolution cut": lambda: Convolution(1, 8, 9, 9, 16, 3, order="NGKHcw", blocks=(4, 8)),
    "convolution_1d": lambda: convolution_1d(2, 4, 20, 6, 3, padding=1),
    "MaxPool": lambda: MaxPool(2, 5, 9, 8, 3, stride=2, padding=1, threads=2),
    "AveragePool": lambda: AveragePool(2, 5, 9, 8, 2, layout="nhwc"),
    "Softmax": lambda: Softmax(40, 30, threads=2),
    "LogSoftmax": lambda: LogSoftmax(4, 30), "LogSumExp": lambda: LogSumExp(4, 300),
    "RowSum": lambda: RowSum(700, 100, threads=2), "RowMean": lambda: RowMean(4, 30),
    "LayerNorm": lambda: LayerNorm(40, 30, eps=1e-3, threads=2),
    "RmsNorm": lambda: RmsNorm(100, 30),
    "Lstm": lambda: Lstm(3, 7, 5, 20, direction="bidirectional", peephole=True, forget_bias=1.0),
    "Gru": lambda: Gru(3, 7, 5, 20, threads=2),
    "Gru before": lambda: Gru(3, 7, 5, 20, reset="before", direction="reverse"),
    "Rnn": lambda: Rnn(3, 7, 5, 20),
    "Mlp": lambda: Mlp(4, (5, 33, 3), activation="tanh"),
    "Sgd": lambda: Sgd(_parameters(), 0.1, momentum=0.9, weight_decay=0.01, threads=2),
    "Adam": lambda: Adam(_parameters(), 0.1),
    "Blocked": lambda: FullyConnected(7, 50, 3).pack_input(numbers((7, 50))),
    "PackedWeights": lambda: FullyConnected(3, 20, 30, bias=False).pack_weights(numbers((30, 20))),
    "PackedFilter": lambda: Convolution(1, 8, 5, 5, 12, 3).pack_weights(numbers((12, 8, 3, 3))),
    "PackedRecurrent": lambda: Lstm(2, 3, 5, 20).pack_weights(
        numbers((80, 5)), numbers((80, 20), 1)),
}  # fmt: skip

_USE: dict[type, Callable[[Any], list[Any]]] = {
    jitgen.Kernel: _kernel, jitgen.KernelSpec: lambda spec: [spec],
    jitgen.Plan: lambda plan: [plan], FullyConnected: _fully_connected, Convolution: _convolution,
    Softmax: _softmax, LogSoftmax: _softmax, LogSumExp: _log_sum_exp, RowSum: _row_sum,
    LayerNorm: _norm, RmsNorm: _norm, MaxPool: _pool, AveragePool: _pool,
    Lstm: _recurrent, Gru: _recurrent, Rnn: _recurrent,
    Mlp: _mlp, Sgd: _optimizer, Adam: _optimizer, Blocked: lambda x: [x.plain(), x.width],
    PackedWeights: _packed_weights, PackedFilter: _packed_filter,
    PackedRecurrent: _packed_recurrent,
}  # fmt: skip


def use(thing: Any) -> list[Any]:
    """What an object computes, with arrays as type, shape and bytes: to compare bit by bit."""
    kind = next(k for k in _USE if isinstance(thing, k))
    return [
        (x.dtype.str, x.shape, x.tobytes()) if isinstance(x, np.ndarray) else x
        for x in _USE[kind](thing)
    ]


def restored(name: str) -> tuple[str, list[Any]]:
    """What a new object of that name computes; for processes."""
    return name, use(MAKE[name]())


def used(job: tuple[str, Any]) -> tuple[str, list[Any]]:
    """What an object that came with its name computes; for processes."""
    return job[0], use(job[1])
