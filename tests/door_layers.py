"""Working calls of layers and optimizers, see `door_calls`.

Not here: kernels, loops and streams.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from door_calls import COUNT, HERE, ONE, PADDING, PAIR, SIDE, add, nothing_or_empty, rand, zeros
from door_values import (
    IN,
    LOOSE,
    MAYBE,
    MAYBE_OUT,
    Array,
    either,
    flag,
    function,
    items,
    mapping,
    name,
    nothing,
    number,
    optional,
    size,
    text,
    tuples,
)

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
    RmsNorm,
    Rnn,
    RowMean,
    RowSum,
    Sgd,
    Softmax,
    convolution_1d,
    fold_batch_norm,
)
from jitgen.analysis import CPUS
from jitgen.primitives.fc.layouts import Blocked, PackedWeights
from jitgen.primitives.layers.convolution import PackedFilter
from jitgen.primitives.layers.text import layer_of
from jitgen.primitives.nest import bounds
from jitgen.primitives.rnn import onnx as recurrent_onnx
from jitgen.primitives.rnn.kept import PackedRecurrent
from jitgen.primitives.train import mlp

PASSES = ("forward", "backward_data", "backward_weights")
#: An array of floats: the layer that gets it checks the rest
ANY = Array(also=("another dtype", "one axis more", "one more", "no axis", "empty", "Fortran order",
                  "read-only", *LOOSE), floats=True)  # fmt: skip

# ---- layers -------------------------------------------------------------------------------------


def add_procedures(prefix: str, layer: Any) -> None:
    """The export of a layer's forward pass."""
    add(prefix + ".procedures", lambda **given: [p.threads for p in layer.procedures(**given)],
        lambda: {"name": "a", "passes": ["forward"], "threads": [1], "weights": None},
        name=text, passes=optional(items(name("forward", "backward"))),
        threads=items(size(1, 1024), 1), weights=nothing_or_empty)



FC = FullyConnected(4, 6, 5, activation="relu", **ONE)
add("jitgen.primitives.layers.fully_connected.FullyConnected", FullyConnected,
    lambda: {"batch": 4, "in_features": 6, "out_features": 5, "bias": True, "activation": "relu",
             "residual": False, "dtype": "f32", "threads": 1, "blocks": (4, 16), "order": "nm",
             "target": HERE},
    residual=flag, blocks=optional(items(size(), 2, 2)))  # fmt: skip
X, W, B, Y = (lambda: rand(4, 6)), (lambda: rand(5, 6)), (lambda: rand(5)), (lambda: rand(4, 5))
PREFIX = "jitgen.primitives.layers.fully_connected.FullyConnected."
add(PREFIX + "stream", lambda **given: FC.stream(**given).text(), lambda: {"name": "forward",
    "packed": True}, name=name(*PASSES), packed=flag)  # fmt: skip
add(PREFIX + "pack_weights", FC.pack_weights, lambda: {"w": W(), "backward": True}, w=IN,
    backward=flag)
add(PREFIX + "pack_input", FC.pack_input, lambda: {"x": X()}, x=IN)
add(PREFIX + "forward", FC.forward,
    lambda: {"x": X(), "w": W(), "b": B(), "out": zeros(4, 5), "residual": None},
    x=IN, w=IN, b=IN, out=MAYBE_OUT, residual=MAYBE)
add(PREFIX + "forward with a residual",
    FullyConnected(4, 6, 5, residual=True, activation=("clip", -1, 1), **ONE).forward,
    lambda: {"x": X(), "w": W(), "b": B(), "out": zeros(4, 5), "residual": Y()},
    x=IN, w=IN, b=IN, out=MAYBE_OUT, residual=IN)
add(PREFIX + "backward_data", FC.backward_data,
    lambda: {"dz": Y(), "w": W(), "out": zeros(4, 6)}, dz=IN, w=IN, out=MAYBE_OUT)
add(PREFIX + "backward_activation", FC.backward_activation,
    lambda: {"dy": Y(), "y": Y(), "out": zeros(4, 5), "z": None}, dy=IN, y=IN, out=MAYBE_OUT,
    z=MAYBE)
add(PREFIX + "backward_activation of gelu",
    FullyConnected(4, 6, 5, activation="gelu", **ONE).backward_activation,
    lambda: {"dy": Y(), "y": None, "out": zeros(4, 5), "z": Y()}, dy=IN, y=MAYBE, out=MAYBE_OUT,
    z=IN)
add(PREFIX + "backward_weights", FC.backward_weights,
    lambda: {"dz": Y(), "x": X(), "out": (zeros(5, 6), zeros(5))}, dz=IN, x=IN,
    out=optional(nothing))
add("jitgen.primitives.fc.layouts.Blocked", Blocked, lambda: {"array": rand(1, 4, 8), "columns": 6},
    array=Array(also=("another dtype", *LOOSE, "read-only")), columns=size(1, 8))
add("jitgen.primitives.fc.layouts.Blocked.plain", FC.pack_input(X()).plain, dict)
BLOCKED = FC.pack_weights(W())
add("jitgen.primitives.fc.layouts.PackedWeights", PackedWeights,
    lambda: {"forward": BLOCKED.forward, "backward": BLOCKED.backward, "layout": BLOCKED.layout},
    forward=nothing, backward=optional(nothing), layout=nothing)

CONV = Convolution(2, 4, 5, 6, 3, 3, padding=1, activation="relu", residual=True, **ONE)
OPTIONS: dict[str, Any] = {
    "stride": 1, "padding": 1, "dilation": 1, "groups": 1, "bias": True, "activation": None,
    "residual": False, "dtype": "f32", "layout": "nchw", "threads": 1, "algorithm": None,
    "blocks": None, "order": None, "tune": False, "target": HERE,
}  # fmt: skip
CONV_KINDS: dict[str, Any] = {
    "kernel": PAIR, "stride": PAIR, "padding": PADDING, "dilation": PAIR, "residual": flag,
    "algorithm": optional(name("direct", "winograd")), "order": either(
        optional(text), mapping),
    "blocks": either(optional(items(size(), 2, 2)), mapping),
}  # fmt: skip
add("jitgen.primitives.layers.convolution.Convolution", Convolution,
    lambda: {"batch": 2, "in_channels": 4, "height": 5, "width": 6, "out_channels": 3,
             "kernel": 3, **OPTIONS}, **CONV_KINDS)  # fmt: skip
add("jitgen.primitives.layers.convolution_1d.convolution_1d", convolution_1d,
    lambda: {"batch": 2, "in_channels": 4, "length": 5, "out_channels": 3, "kernel": 3,
             **OPTIONS},
    **{**CONV_KINDS, "kernel": size(), "stride": size(), "dilation": size(),
       "padding": either(SIDE, name("same"))})  # fmt: skip
PREFIX = "jitgen.primitives.layers.convolution.Convolution."
CX, CW, CB, CY = ((lambda s=s: rand(*s)) for s in (CONV.x_shape, CONV.w_shape, (3,), CONV.y_shape))
add(PREFIX + "choice", CONV.choice, lambda: {"which": "forward"}, which=name(*PASSES))
add(PREFIX + "stream", lambda **given: CONV.stream(**given).text(1), lambda: {"name": "forward",
    "packed": True}, name=name(*PASSES), packed=flag)  # fmt: skip
add(PREFIX + "pack_weights", CONV.pack_weights, lambda: {"w": CW(), "backward": True}, w=IN,
    backward=flag)
add(PREFIX + "forward", CONV.forward,
    lambda: {"x": CX(), "w": CW(), "b": CB(), "residual": CY(), "out": CY()}, x=IN, w=IN, b=IN,
    residual=IN, out=MAYBE_OUT)
add(PREFIX + "backward_data", CONV.backward_data, lambda: {"dy": CY(), "w": CW(), "out": CX()},
    dy=IN, w=IN, out=MAYBE_OUT)
add(PREFIX + "backward_activation", CONV.backward_activation,
    lambda: {"dy": CY(), "y": CY(), "out": CY(), "z": None}, dy=IN, y=IN, out=MAYBE_OUT, z=MAYBE)
add(PREFIX + "backward_weights", CONV.backward_weights, lambda: {"dy": CY(), "x": CX()}, dy=IN,
    x=IN)
FILTER = CONV.pack_weights(CW())
add("jitgen.primitives.layers.convolution.PackedFilter", PackedFilter,
    lambda: {"forward": FILTER.forward, "backward": FILTER.backward, "layouts": FILTER.layouts},
    forward=ANY, backward=Array(also=ANY.also, none=True, floats=True), layouts=nothing)
for pool in (MaxPool, AveragePool):
    made = pool(2, 4, 5, 6, 3, padding=1, **ONE)
    PREFIX = f"jitgen.primitives.layers.pooling.{pool.__name__}"
    add(PREFIX, pool,
        lambda: {"batch": 2, "channels": 4, "height": 5, "width": 6, "kernel": 3, "stride": 2,
                 "padding": 1, "dtype": "f32", "layout": "nhwc", "threads": 1, "target": HERE},
        kernel=PAIR, stride=optional(PAIR), padding=PADDING)  # fmt: skip
    add(PREFIX + ".forward", made.forward,
        lambda made=made: {"x": rand(*made.x_shape), "out": rand(*made.y_shape)}, x=IN,
        out=MAYBE_OUT)
    add(PREFIX + ".passes", made.passes, dict)
    add_procedures(PREFIX, made)
    add(PREFIX + ".backward", made.backward,
        lambda made=made: {"dy": rand(*made.y_shape), "x": rand(*made.x_shape),
                           "out": rand(*made.x_shape)},
        dy=IN, x=Array(none=pool is AveragePool), out=MAYBE_OUT)  # fmt: skip

add("jitgen.primitives.layers.text.layer_of", layer_of,
    lambda: {"text": "FullyConnected(4, 6, 5)"}, text=nothing, alias={"text": "layer"})
SEEN = FC.passes()["forward"].run
SKYLAKE = bounds.Model(CPUS["skylake-avx512"])
add("jitgen.primitives.nest.bounds.Model", bounds.Model,
    lambda: {"cpu": CPUS["znver4"], "ghz": 3.0, "tell": print}, cpu=nothing,
    tell=optional(function), ghz=optional(number(above=0, below=1000)))
add("jitgen.primitives.nest.bounds.Model.predict", SKYLAKE.predict, lambda: {"run": SEEN},
    run=nothing)
add("jitgen.primitives.nest.bounds.measure", bounds.measure,
    lambda: {"bounds": SKYLAKE.predict(SEEN), "taken": FC.passes()["forward"], "least": 1e-6},
    bounds=nothing, taken=nothing, left_out={"least": "it measures for so long"})
for made in (FC, CONV):
    PREFIX = f"{type(made).__module__}.{type(made).__name__}"
    add(PREFIX + ".passes", made.passes, dict)
    add_procedures(PREFIX, made)

# ---- layers over rows ---------------------------------------------------------------------------

for kind in (Softmax, LogSoftmax, LogSumExp, RowSum, RowMean, LayerNorm, RmsNorm):
    norm = kind in (LayerNorm, RmsNorm)
    PREFIX = f"jitgen.primitives.layers.normalisation.{kind.__name__}"
    add(PREFIX, kind,
        lambda norm=norm: {"rows": 4, "columns": 5, "dtype": "f32", "threads": 1, "target": HERE,
                           **({"eps": 1e-5, "affine": True} if norm else {})},
        rows=COUNT, columns=COUNT,
        **({"eps": number(low=0), "affine": flag} if norm else {}))  # fmt: skip
    made = kind(4, 5, **ONE)
    wide, row, each, result = (lambda: rand(4, 5)), (lambda: rand(4)), (lambda: rand(5)), MAYBE_OUT
    operands = {"LayerNorm": {"scale": each, "shift": each}, "RmsNorm": {"scale": each}}
    kept = {"LayerNorm": {"mean": row, "rstd": row}, "RmsNorm": {"rstd": row}}
    name_of = kind.__name__
    out = row if name_of in ("LogSumExp", "RowSum", "RowMean") else wide
    given = {"x": wide, **operands.get(name_of, {}), "out": out, **kept.get(name_of, {})}
    add(PREFIX + ".passes", made.passes, dict)
    add_procedures(PREFIX, made)
    add(PREFIX + ".forward", made.forward,
        lambda given=given: {key: draw() for key, draw in given.items()}, x=IN,
        **dict.fromkeys(operands.get(name_of, {}), IN),
        **dict.fromkeys(("out", *kept.get(name_of, {})), MAYBE_OUT))  # fmt: skip
    if norm:
        inputs = {"dy": wide, "x": wide, **kept[name_of], "scale": each}
        results = {f"d{key}": each for key in operands[name_of]}
    else:
        inputs = {"LogSumExp": {"dy": row, "x": wide, "y": row}, "RowSum": {"dy": row},
                  "RowMean": {"dy": row}}.get(name_of, {"dy": wide, "y": wide})  # fmt: skip
        results = {}
    given = {**inputs, "out": wide, **results}
    add(PREFIX + ".backward", made.backward,
        lambda given=given: {key: draw() for key, draw in given.items()},
        # of sums, dy alone says how many rows there are
        alias={"dy": "dy out"} if len(inputs) == 1 else {},
        **dict.fromkeys(inputs, IN), **dict.fromkeys(("out", *results), MAYBE_OUT))  # fmt: skip

# ---- recurrent layers, training -----------------------------------------------------------------

BATCH, STEPS, IN_SIZE, HIDDEN = 2, 3, 4, 5
OWN: dict[str, Any] = {
    "forget_bias": number(), "peephole": flag, "reset": name("after", "before"),
}  # fmt: skip
for kind, options in (
    (Lstm, {"forget_bias": 0.0, "peephole": True}), (Gru, {"reset": "after"}), (Rnn, {}),
):  # fmt: skip
    PREFIX = f"jitgen.primitives.layers.recurrent.{kind.__name__}"
    common = {"batch": BATCH, "steps": STEPS, "in_features": IN_SIZE, "hidden": HIDDEN}
    add(PREFIX, kind,
        lambda options=options, common=common: {
            **common, "direction": "forward", "bias": True, "dtype": "f32", "threads": 1,
            "target": HERE, **options},
        **{k: v for k, v in OWN.items() if k in options})  # fmt: skip
    made = kind(BATCH, STEPS, IN_SIZE, HIDDEN, **ONE, **options)
    cell = kind is Lstm

    def run(made: Any = made, cell: bool = cell) -> dict[str, Any]:
        names = ["x", "w", "r", "b", "h0", *(["c0", "p"] if cell else [])]
        shapes = {**made.shapes, "c0": made.shapes["h0"]}
        return {**{n: rand(*shapes[n]) for n in names}, "lengths": np.array([3, 1]),
                "training": False}  # fmt: skip

    add(PREFIX + ".forward", made.forward, run, x=IN, w=IN, r=IN, b=IN, h0=MAYBE,
        **({"c0": MAYBE, "p": IN} if cell else {}), training=flag,
        lengths=optional(items(size(0, STEPS), BATCH, BATCH)))
    trained = kind(BATCH, STEPS, IN_SIZE, HIDDEN, **ONE, **options)
    trained.forward(**{**run(), "training": True})
    add(PREFIX + ".backward", trained.backward,
        lambda made=made, cell=cell: {
            "dy": rand(*made.shapes["y"]), "dh": rand(*made.shapes["h0"]),
            **({"dc": rand(*made.shapes["h0"])} if cell else {})},
        dy=IN, dh=MAYBE, **({"dc": MAYBE} if cell else {}))  # fmt: skip
    add(PREFIX + ".passes", made.passes, dict)
    add_procedures(PREFIX, made)
    add(PREFIX + ".pack_weights", made.pack_weights,
        lambda made=made: {"w": rand(*made.shapes["w"]), "r": rand(*made.shapes["r"])}, w=IN, r=IN)
PACKED = made.pack_weights(rand(*made.shapes["w"]), rand(*made.shapes["r"]))
add("jitgen.primitives.rnn.kept.PackedRecurrent", PackedRecurrent,
    lambda: {"panels": PACKED.panels, "layout": PACKED.layout, "w": PACKED.w, "r": PACKED.r},
    panels=items(mapping), layout=tuples, w=ANY, r=ANY)
for which, gates in (("lstm", 4), ("gru", 3), ("rnn", 1)):
    def onnx(gates: int = gates) -> dict[str, Any]:
        more = {"p": rand(1, 15)} if gates == 4 else {}
        return {"w": rand(1, 5 * gates, 4), "r": rand(1, 5 * gates, 5),
                "b": rand(1, 10 * gates), **more}  # fmt: skip

    add(f"jitgen.primitives.rnn.onnx.{which}_from_onnx",
        getattr(recurrent_onnx, f"{which}_from_onnx"), onnx, w=IN, r=IN, b=MAYBE,
        # w says what dtype and sizes the others have
        alias={"w": "w r b p"}, **({"p": MAYBE} if gates == 4 else {}))
VECTOR = Array(also=("another dtype", *LOOSE))
add("jitgen.primitives.conv.folding.fold_batch_norm", fold_batch_norm,
    lambda: {"w": rand(3, 2), "b": rand(3), "gamma": rand(3), "beta": rand(3), "mean": rand(3),
             "variance": rand(3) + 1, "eps": 1e-5},
    w=VECTOR, b=Array(also=VECTOR.also, none=True), gamma=VECTOR, beta=VECTOR, mean=VECTOR,
    variance=VECTOR, eps=number(low=0, below=math.inf))  # fmt: skip
LABELS = np.array([0, 2, 1])
WHOLE = Array(also=("int64", *LOOSE, "bytes swapped", "a list", "objects"))
add("jitgen.primitives.train.mlp.softmax_cross_entropy", mlp.softmax_cross_entropy,
    lambda: {"logits": rand(3, 4), "labels": LABELS.copy()},
    logits=Array(also=("another dtype", *LOOSE)), labels=items(size(0, 3), 3, 3),
    alias={"logits": "logits labels"})
NET = mlp.Mlp(3, (4, 6, 3), threads=1)
add("jitgen.primitives.train.mlp.Mlp", mlp.Mlp,
    lambda: {"batch": 3, "sizes": (4, 6, 3), "activation": "relu", "dtype": "f32", "threads": 1,
             "seed": 0},
    sizes=items(size(), 2), activation=name("relu", "sigmoid", "tanh", "elu", "exp"),
    seed=size(0, math.inf))  # fmt: skip
add("jitgen.primitives.train.mlp.Mlp.forward", NET.forward, lambda: {"x": rand(3, 4)}, x=IN)
INDEX = items(size(0, 2), 3, 3)
add("jitgen.primitives.train.mlp.Mlp.gradients", NET.gradients,
    lambda: {"x": rand(3, 4), "labels": LABELS.copy()}, x=IN, labels=INDEX)
add("jitgen.primitives.train.mlp.Mlp.train_step", NET.train_step,
    lambda: {"x": rand(3, 4), "labels": LABELS.copy(), "optimizer": Sgd(NET.parameters, 0.0)},
    x=IN, labels=INDEX, optimizer=nothing)
NOT_BELOW = number(low=0)
NUMBERS: dict[str, Any] = {"lr": NOT_BELOW, "weight_decay": NOT_BELOW}
for kind, extra, given in (
    (Sgd, {"momentum": NOT_BELOW}, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}),
    (Adam, {"betas": items(number(low=0, below=1), 2, 2), "eps": number(above=1e-46)},
     {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}),
):  # fmt: skip
    PREFIX = f"jitgen.primitives.train.optimizers.{kind.__name__}"
    add(PREFIX, kind, lambda given=given: {"parameters": [zeros(3)], **given, "threads": 1},
        parameters=nothing, **NUMBERS, **extra)

    def step(gradient: Any, kind: Any = kind, **numbers: Any) -> Any:
        """A step on one parameter, hyperparameters assigned after the making."""
        parameter = rand(3, 2)
        optimizer = kind([parameter], threads=1, **({"lr": 0.1} if kind is Sgd else {}))
        for each, value in numbers.items():
            setattr(optimizer, each, value)
        before = parameter.copy()
        try:
            optimizer.step([gradient])
        except (TypeError, ValueError):
            assert parameter.tobytes() == before.tobytes(), "a parameter changed"
            raise
        return parameter

    add(PREFIX + ".step on one gradient", step,
        lambda given=given: {"gradient": rand(3, 2), **given}, gradient=IN, **NUMBERS, **extra,
        alias={"gradient": "gradients[0]"})

    def step_of(gradients: Any, kind: Any = kind) -> Any:
        kind([rand(3, 2)], lr=0.1, threads=1).step(gradients)

    add(PREFIX + ".step", step_of, lambda: {"gradients": [rand(3, 2)]},
        gradients=nothing)
