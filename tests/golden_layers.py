"""The golden corpus: every layer, optimizer and network, and all that each can be asked to do.

Only what users call. Not here: how the streams that this replays are hashed (`golden`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
from golden import DTYPES, Draw, shown
from worked import block_sparse, fused_attention, linear_attention

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

#: What a layer is asked to do, one call after another
Calls = Iterator[tuple[str, Any]]


def _zeros(shape: tuple[int, ...], dtype: str) -> Any:
    return np.zeros(shape, {"f32": np.float32, "f64": np.float64}[dtype])


def _fully_connected(draw: Draw, target: str) -> Iterator[tuple[str, Calls]]:
    cut: dict[str, Any] = {"blocks": (16, 32), "order": "[MN]"}
    for i in range(14):
        n, c, k = (draw.of(least, 3, 16, 64, 100, 256, 513) for least in (1, 1, 2))
        how: dict[str, Any] = {"dtype": DTYPES[i % 2], "threads": draw.of(1, 2, 4)}
        how["activation"] = draw.of("relu", "sigmoid", "tanh", "gelu", "silu")
        how |= {12: cut, 13: {"order": "Nm"}}.get(i, {"bias": False} if i % 5 == 4 else {})
        layer = FullyConnected(n, c, k, target=target, **how)
        yield f"fully connected {n}x{c}x{k} {shown(how)}", _ask_connected(layer, n, c, k, how)


def _ask_connected(layer: Any, n: int, c: int, k: int, how: dict[str, Any]) -> Calls:
    x, w, y, b = (_zeros(s, how["dtype"]) for s in ((n, c), (k, c), (n, k), (k,)))
    bias = b if how.get("bias", True) else None
    packed = layer.pack_weights(w)
    yield "pack weights", packed
    panels = layer.pack_input(x)
    yield "pack input", panels
    yield "forward", layer.forward(x, w, bias)
    yield "forward packed", layer.forward(x, packed, bias)
    blocked = layer.forward(panels, packed, bias)
    yield "forward blocked", blocked
    known = "z" if how["activation"] in ("gelu", "silu") else "y"
    yield "backward activation", layer.backward_activation(y, **{known: y})
    yield "backward data", layer.backward_data(y, w)
    yield "backward data packed", layer.backward_data(y, packed)
    yield "backward weights", layer.backward_weights(y, x)
    yield "backward weights blocked", layer.backward_weights(blocked, panels)


#: Activations and residuals that came later than the other layers here
_ACTIVATIONS: tuple[Any, ...] = (
    "hardswish", "hardsigmoid", ("elu", 0.5), "mish", ("clip", 0, 6), ("leaky_relu", 0.125), "exp",
)  # fmt: skip


def _activated(draw: Draw, target: str) -> Iterator[tuple[str, Calls]]:
    for i, activation in enumerate(_ACTIVATIONS):
        how: dict[str, Any] = {"activation": activation, "residual": i % 2 == 0}
        how |= {"dtype": DTYPES[i % 2], "threads": draw.of(1, 2, 4)}
        n, c, k = (draw.of(least, 3, 64, 100, 513) for least in (1, 1, 2))
        connected = FullyConnected(n, c, k, target=target, **how)
        name = f"fully connected {n}x{c}x{k} {shown(how)}"
        yield name, _ask_activated(connected, ((n, c), (k, c), (n, k)), k, how)
        for j, options in enumerate((
            {"groups": 37}, {"groups": 37, "stride": 2}, {"algorithm": "winograd"},
            {"algorithm": "direct"},
        )):  # fmt: skip
            more = how | options | {"layout": ("nchw", "nhwc")[(i + j) % 2]}
            layer = Convolution(2, 37, 15, 12, 37, 3, padding=1, target=target, **more)
            shapes = layer.x_shape, layer.w_shape, layer.y_shape
            yield f"convolution {shown(more)}", _ask_activated(layer, shapes, 37, how)


def _ask_activated(layer: Any, shapes: Any, k: int, how: dict[str, Any]) -> Calls:
    x, w, y, b = (_zeros(s, how["dtype"]) for s in (*shapes, (k,)))
    more = {"residual": y} if how["residual"] else {}
    yield "forward", layer.forward(x, w, b, **more)
    yield "forward packed", layer.forward(x, layer.pack_weights(w), b, **more)
    if how["activation"] != "mish":
        known = "z" if how["activation"] == "hardswish" else "y"
        yield "backward activation", layer.backward_activation(y, **{known: y})


#: batch, channels, size, features, kernel, options
_CONVOLUTIONS: tuple[tuple[Any, ...], ...] = (
    (2, 16, (14, 14), 32, 3, {"padding": 1, "activation": "relu"}),
    (1, 3, (30, 30), 20, 7, {"padding": 3, "stride": 2}),
    (2, 64, (9, 9), 48, 1, {"residual": True, "activation": "relu"}),
    (1, 40, (12, 11), 33, 1, {"stride": 2, "bias": False}),
    (2, 24, (10, 13), 36, 3, {"groups": 4, "padding": "same", "activation": "silu"}),
    (2, 37, (15, 12), 37, 3, {"groups": 37, "padding": 1, "activation": "relu"}),
    (1, 16, (17, 17), 16, 5, {"groups": 16, "padding": 2, "stride": 2}),
    (2, 32, (14, 15), 24, 3, {"padding": 1, "algorithm": "winograd", "residual": True}),
    (4, 128, (14, 14), 128, 3, {"padding": 1, "activation": "relu"}),
    (1, 9, (20, 20), 70, (3, 5), {"dilation": (2, 1), "padding": (2, 2)}),
    (1, 8, (9, 9), 16, 3, {"padding": ((1, 0), (0, 2)), "stride": (1, 3)}),
    (1, 20, (8, 8), 40, 3, {"blocks": (4, 10), "order": "h|NGKcw", "bias": False}),
    (3, 70, (6, 7), 5, 3, {"padding": 1, "algorithm": "direct", "activation": "gelu"}),
    (2, 6, (50,), 10, 3, {"padding": 1}), (1, 33, (40,), 64, 5, {"stride": 2, "dilation": 2}),
)  # fmt: skip


def _convolutions(draw: Draw, target: str) -> Iterator[tuple[str, Calls]]:
    for i, (n, c, size, k, kernel, options) in enumerate(_CONVOLUTIONS):
        for j, layout in enumerate(("nchw", "nhwc")):
            how = options | {"layout": layout, "dtype": DTYPES[(i + j) % 2]}
            how["threads"] = draw.of(1, 2, 4)
            make: Any = Convolution if len(size) == 2 else convolution_1d
            layer = make(n, c, *size, k, kernel, target=target, **how)
            name = f"convolution {n}x{c}x{'x'.join(map(str, size))} to {k} of {kernel}"
            yield f"{name} {shown(how)}", _ask_convolution(layer, k, how)


def _ask_convolution(layer: Any, k: int, how: dict[str, Any]) -> Calls:
    x, w, y, b = (
        _zeros(s, how["dtype"]) for s in (layer.x_shape, layer.w_shape, layer.y_shape, (k,))
    )
    more = (b if how.get("bias", True) else None, y if how.get("residual") else None)
    packed = layer.pack_weights(w)
    yield "pack weights", packed
    yield "forward", layer.forward(x, w, *more)
    yield "forward packed", layer.forward(x, packed, *more)
    if how.get("activation"):
        known = "z" if how["activation"] in ("gelu", "silu") else "y"
        yield "backward activation", layer.backward_activation(y, **{known: y})
    yield "backward data", layer.backward_data(y, w)
    yield "backward data packed", layer.backward_data(y, packed)
    yield "backward weights", layer.backward_weights(y, x)


def _pools(draw: Draw, target: str) -> Iterator[tuple[str, Calls]]:
    kernels: tuple[tuple[Any, dict[str, Any]], ...] = (
        (2, {}), (3, {"stride": 2, "padding": 1}), ((12, 10), {}), ((2, 3), {"stride": 1}),
        (10, {"stride": 1, "padding": 2}),
    )  # fmt: skip
    for i, (kernel, options) in enumerate(kernels):
        for j, layout in enumerate(("nchw", "nhwc")):
            how = options | {"layout": layout, "dtype": DTYPES[(i + j) % 2]}
            how["threads"] = draw.of(1, 2, 4)
            n, c = draw.number(1, 3), draw.number(1, 70)
            for pool in (MaxPool, AveragePool):
                layer = pool(n, c, 12, 10, kernel, target=target, **how)
                name = f"{pool.__name__} {n}x{c} of {kernel} {shown(how)}"
                yield name, _ask_pool(layer, how["dtype"])


def _ask_pool(layer: Any, dtype: str) -> Calls:
    x, y = _zeros(layer.x_shape, dtype), _zeros(layer.y_shape, dtype)
    yield "forward", layer.forward(x)
    yield "backward", layer.backward(y, x)


def _recurrent(draw: Draw, target: str) -> Iterator[tuple[str, Calls]]:
    kinds: tuple[tuple[Any, dict[str, Any]], ...] = (
        (Lstm, {}), (Lstm, {"peephole": True, "bias": False}), (Gru, {}),
        (Gru, {"reset": "before"}), (Rnn, {}),
    )  # fmt: skip
    for (make, options), direction in product(kinds, ("forward", "reverse", "bidirectional")):
        n, s, c, k = draw.number(3, 60), draw.number(1, 6), draw.number(1, 80), draw.number(1, 130)
        how = options | {"direction": direction, "dtype": draw.of(*DTYPES)}
        how["threads"] = draw.of(1, 2, 4)
        layer = make(n, s, c, k, target=target, **how)
        yield f"{make.__name__} {n}x{s}x{c}x{k} {shown(how)}", _ask_recurrent(layer, n, s, how)


def _ask_recurrent(layer: Any, n: int, s: int, how: dict[str, Any]) -> Calls:
    x, w, r, h0, dy = (_zeros(layer.shapes[name], how["dtype"]) for name in ("x", "w", "r", "h0",
                                                                             "y"))  # fmt: skip
    b = _zeros(layer.shapes["b"], how["dtype"]) if how.get("bias", True) else None
    more = {"p": _zeros(layer.shapes["p"], how["dtype"])} if how.get("peephole") else {}
    lengths = [1 + i * 7 % s for i in range(n)]
    packed = layer.pack_weights(w, r)
    yield "pack weights", packed
    yield "forward", layer.forward(x, w, r, b, **more)
    yield "forward packed", layer.forward(x, packed, None, b, h0, **more)
    yield "forward lengths", layer.forward(x, w, r, b, lengths=lengths, **more)
    yield "forward training", layer.forward(x, w, r, b, training=True, **more)
    yield "backward", layer.backward(dy)
    forward = layer.forward(x, w, r, b, lengths=lengths, training=True, **more)
    yield "forward training lengths", forward
    yield "backward lengths", layer.backward(dy)


def _training(draw: Draw, target: str) -> Iterator[tuple[str, Calls]]:
    for dtype, threads, (kind, make) in product(DTYPES, (1, 4), (("sgd", Sgd), ("adam", Adam))):
        arrays = [_zeros(shape, dtype) for shape in ((300, 400), (17,))]
        optimizer = make(arrays, 0.1, threads=threads)
        gradients = [array.copy() for array in arrays]
        made = ((each, optimizer.step(gradients)) for each in ("step",))
        yield f"{kind} {dtype} threads {threads}", made
    for dtype, sizes in product(DTYPES, ((20, 33, 10), (64, 256, 128, 16))):
        network = Mlp(32, sizes, dtype=dtype, threads=draw.of(1, 2), activation="tanh")
        x, labels = _zeros((32, sizes[0]), dtype), np.zeros(32, np.int64)
        passes = ((each, network.gradients(x, labels)) for each in ("gradients",))
        sides = "-".join(map(str, sizes))
        yield f"mlp {sides} {dtype}", passes


def _primitives(draw: Draw, target: str) -> Iterator[tuple[str, Calls]]:
    """The worked examples: sums over lists, scratch of each thread, calls beside others, rows."""
    lists = np.array([0, 2, 2, 5, 6]), np.array([0, 3, 1, 2, 3, 0])
    for dtype, threads in product(DTYPES, (1, 3)):
        how: dict[str, Any] = {"dtype": dtype, "threads": threads, "target": target}
        made = {
            "block sparse": block_sparse.block_sparse(*lists, (24, 16), 4, 300, **how),
            "linear attention": linear_attention.linear_attention(2, 90, 40, 3, 16, **how),
            "attention": fused_attention.fused_attention(2, 3, 100, 40, **how),
            "attention of one array": fused_attention.fused_attention(
                2, 8, 70, 32, layout="b s p h d", queries=32, **how
            ),
        }
        for name, primitive in made.items():
            arrays = {t.name: _zeros(t.shape, dtype) for t in primitive.tensors.values()}
            call = ((each, run(**given)) for each, run, given in [("call", primitive, arrays)])
            yield f"{name} {dtype} threads {threads}", call


def _normalisation(draw: Draw, target: str) -> Iterator[tuple[str, Calls]]:
    kinds = (Softmax, LogSoftmax, LogSumExp, RowSum, RowMean, LayerNorm, RmsNorm)
    for i, kind in enumerate(kinds):
        for rows, columns in ((draw.number(1, 9), 10), (draw.number(100, 700), 200), (40, 1500)):
            how: dict[str, Any] = {"dtype": DTYPES[i % 2], "threads": draw.of(1, 2, 4)}
            if kind in (LayerNorm, RmsNorm):
                how["affine"] = draw.of(True, True, False)
            layer = kind(rows, columns, target=target, **how)
            name = f"{kind.__name__} {rows}x{columns} {shown(how)}"
            yield name, _ask_rows(layer, rows, columns, how)


def _ask_rows(layer: Any, rows: int, columns: int, how: dict[str, Any]) -> Calls:
    wide, value, row = (_zeros(s, how["dtype"]) for s in ((rows, columns), (rows,), (columns,)))
    kind = type(layer)
    if kind in (LayerNorm, RmsNorm):
        scales = [row, row][: 1 + (kind is LayerNorm)] if how["affine"] else []
        numbers = {"mean": value, "rstd": value.copy()}
        kept = numbers if kind is LayerNorm else {"rstd": value}
        yield "forward", layer.forward(wide, *scales)
        yield "forward training", layer.forward(wide, *scales, **kept)
        yield "backward", layer.backward(wide, wide, *kept.values(), *scales[:1])
        return
    yield "forward", layer.forward(wide)
    inputs = {"LogSumExp": (value, wide, value), "RowSum": (value,), "RowMean": (value,)}
    yield "backward", layer.backward(*inputs.get(kind.__name__, (wide, wide)))


LAYERS: dict[str, Callable[[Draw, str], Iterator[tuple[str, Calls]]]] = {
    "fully-connected": _fully_connected, "convolution": _convolutions, "pooling": _pools,
    "recurrent": _recurrent, "training": _training, "activated": _activated,
    "primitives": _primitives,
    "normalisation": _normalisation,
}  # fmt: skip
