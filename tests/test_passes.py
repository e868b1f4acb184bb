"""The passes of layers: what `passes()` says is what the methods hand to `Run.__call__`.

Not here: streams (test_streams), what the layers compute (the tests of each).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np
import pytest

from jitgen import (
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
    Softmax,
    convolution_1d,
)
from jitgen.primitives.layers.arrays import aligned, buffer_of
from jitgen.primitives.layers.passes import Pass, Passes
from jitgen.primitives.nest.run import Run
from jitgen.run import cpu
from jitgen.run.loader import ffi
from jitgen.types import NUMPY

native = pytest.mark.skipif(
    not any(not why for why in cpu.targets().values()), reason="no target runs on this CPU"
)
TARGETS = ("avx2", "avx512", "sve256")
#: Every kind of layer
KINDS: dict[str, Callable[..., Any]] = {
    "fc": lambda **o: FullyConnected(5, 7, 9, activation="relu", residual=True, **o),
    "fc without bias": lambda **o: FullyConnected(33, 70, 9, bias=False, dtype="f64", **o),
    "direct": lambda **o: Convolution(2, 8, 9, 7, 16, 3, padding=1, activation="gelu",
                                      residual=True, algorithm="direct", **o),
    "nhwc": lambda **o: Convolution(2, 8, 9, 7, 16, 3, stride=2, bias=False, layout="nhwc", **o),
    "groups": lambda **o: Convolution(2, 8, 6, 6, 4, 1, groups=2, activation="relu", **o),
    "winograd": lambda **o: Convolution(1, 16, 12, 12, 24, 3, padding=1, algorithm="winograd",
                                        residual=True, activation=("clip", -1.0, 1.0), **o),
    "depthwise": lambda **o: Convolution(2, 20, 9, 7, 20, 3, groups=20, **o),
    "one dimension": lambda **o: convolution_1d(2, 3, 8, 4, 3, padding=1, **o),
    "max": lambda **o: MaxPool(2, 3, 8, 8, 3, stride=2, padding=1, **o),
    "max of many taps": lambda **o: MaxPool(1, 3, 20, 20, 17, layout="nhwc", **o),
    "average": lambda **o: AveragePool(2, 3, 8, 8, 2, layout="nhwc", **o),
    "lstm": lambda **o: Lstm(3, 4, 5, 6, peephole=True, forget_bias=1.0, **o),
    "lstm both ways": lambda **o: Lstm(3, 4, 5, 6, direction="bidirectional", **o),
    "gru": lambda **o: Gru(13, 3, 5, 20, direction="reverse", **o),
    "gru before": lambda **o: Gru(2, 3, 5, 6, reset="before", direction="bidirectional", **o),
    "rnn": lambda **o: Rnn(2, 1, 5, 6, bias=False, dtype="f64", **o),
    "softmax": lambda **o: Softmax(7, 37, **o),
    "log-softmax": lambda **o: LogSoftmax(7, 37, **o),
    "log-sum-exp": lambda **o: LogSumExp(7, 37, **o),
    "row sum": lambda **o: RowSum(7, 37, **o),
    "row mean": lambda **o: RowMean(7, 37, dtype="f64", **o),
    "layer norm": lambda **o: LayerNorm(37, 21, **o),
    "layer norm without scale": lambda **o: LayerNorm(3, 21, affine=False, **o),
    "rms norm": lambda **o: RmsNorm(7, 37, dtype="f64", **o),
}  # fmt: skip


def user_calls(layer: Any) -> dict[str, Callable[[], Any]]:
    """What a user calls for each pass of a layer, on random arrays."""
    rng = np.random.default_rng(7)

    def new(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(NUMPY[layer.dtype])

    if isinstance(layer, (MaxPool, AveragePool)):
        x, dy = new(*layer.x_shape), new(*layer.y_shape)
        seen = x if isinstance(layer, MaxPool) else None
        return {"forward": lambda: layer.forward(x), "backward": lambda: layer.backward(dy, seen)}
    if isinstance(layer, (Lstm, Gru, Rnn)):
        return recurrent_calls(layer, new)
    if hasattr(layer, "shape"):
        return row_calls(layer, new)
    fc = isinstance(layer, FullyConnected)
    at = layer.layer if fc else layer.conv
    k = at.out_features if fc else at.features
    x = new(at.batch, at.in_features) if fc else new(*layer.x_shape)
    w = new(k, at.in_features) if fc else new(*layer.w_shape)
    y = new(at.batch, k) if fc else new(*layer.y_shape)
    b = new(k) if at.bias else None
    residual = new(*y.shape) if "residual" in repr(layer) else None
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: layer.forward(x, w, b, residual=residual),
        "forward packed": lambda: layer.forward(x, layer.pack_weights(w), b, residual=residual),
        "backward_data": lambda: layer.backward_data(y, w),
        "backward_data packed": lambda: layer.backward_data(y, layer.pack_weights(w)),
        "backward_weights": lambda: layer.backward_weights(y, x),
        "pack_weights": lambda: layer.pack_weights(w, backward=False),
        "pack_weights backward": lambda: layer.pack_weights(w),
    }
    if fc:
        calls["backward_weights packed"] = lambda: layer.backward_weights(y, layer.pack_input(x))
        calls["pack_input"] = lambda: layer.pack_input(x)
    if "relu" in repr(layer) or "clip" in repr(layer):
        calls["backward_activation"] = lambda: layer.backward_activation(y, y)
    if "gelu" in repr(layer):
        calls["backward_activation"] = lambda: layer.backward_activation(y, z=y)
    return calls


def row_calls(layer: Any, new: Callable[..., np.ndarray]) -> dict[str, Callable[[], Any]]:
    rows, columns = layer.shape
    x, row = new(rows, columns), abs(new(rows))
    calls: dict[str, Callable[[], Any]] = {"forward": lambda: layer.forward(x)}
    if isinstance(layer, (Softmax, LogSoftmax)):
        calls["backward"] = lambda: layer.backward(x, x)
    elif isinstance(layer, (RowSum, RowMean)):
        calls["backward"] = lambda: layer.backward(row)
    elif isinstance(layer, LogSumExp):
        calls["backward"] = lambda: layer.backward(row, x, row)
    else:
        names = ("scale", "shift")[: 1 + isinstance(layer, LayerNorm)] if layer.affine else ()
        scales = {name: new(columns) for name in names}
        kept = {"mean": row} if isinstance(layer, LayerNorm) else {}
        kept["rstd"] = row
        own = {name: np.empty(rows, row.dtype) for name in kept}
        scale = {name: scales[name] for name in names[:1]}
        calls = {
            "forward": lambda: layer.forward(x, **scales),
            "forward training": lambda: layer.forward(x, **scales, **own),
            "backward": lambda: layer.backward(x, x, **kept, **scale),
        }
    return calls


def recurrent_calls(layer: Any, new: Callable[..., np.ndarray]) -> dict[str, Callable[[], Any]]:
    x, w, r, h0, c0, y = (
        new(*layer.shapes[n]) for n in ("x", "w", "r", "h0", "h0", "y")
    )  # fmt: skip
    b = new(*layer.shapes["b"]) if layer.bias else None
    states = (h0, c0) if isinstance(layer, Lstm) else (h0,)
    more = {"p": new(*layer.shapes["p"])} if layer.layer.peephole else {}

    def backward() -> Any:
        layer.forward(x, w, r, b, *states, **more, training=True)
        return layer.backward(y, *states)

    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: layer.forward(x, w, r, b, *states, **more),
        "forward packed": lambda: layer.forward(
            x, layer.pack_weights(w, r), None, b, *states, **more
        ),
        "forward training": lambda: layer.forward(x, w, r, b, *states, **more, training=True),
        "backward": backward,
        "pack_weights": lambda: layer.pack_weights(w, r),
    }
    if layer.layer.directions == 1:
        return calls
    return {name + way: call for name, call in calls.items() for way in ("", " reverse")}


class Seen(NamedTuple):
    """A call of a stream: bytes of each tensor before and after it (None: no address)."""

    run: Run
    before: dict[str, bytes | None]
    after: dict[str, bytes | None]


def watched(
    monkeypatch: pytest.MonkeyPatch, passes: Passes, use: Callable[[], Any]
) -> tuple[Any, list[Seen]]:
    """A user's result, and the calls of streams that it takes. Before, what they only write is
    NaN."""
    written = {
        (id(each.run), a.tensor): a.result and not a.updated
        for each in passes.values() for a in each.arguments
    }  # fmt: skip
    calls: list[Seen] = []
    real, poisoned = Run.__call__, set()

    def held(buffers: Mapping[str, Any]) -> dict[str, bytes | None]:
        return {n: None if b == ffi.NULL else bytes(ffi.buffer(b)) for n, b in buffers.items()}

    def call(self: Run, buffers: Mapping[str, Any], *more: Any) -> None:
        for name, buffer in buffers.items():
            # the second one of two directions leaves the first one's half of y
            if written.get((id(self), name)) and (name != "y" or not poisoned):
                np.frombuffer(ffi.buffer(buffer), np.uint8)[:] = 255
                poisoned.add(name)
        before = held(buffers)
        real(self, buffers, *more)
        calls.append(Seen(self, before, held(buffers)))

    with monkeypatch.context() as patch:
        patch.setattr(Run, "__call__", call)
        result = use()
    return result, calls


def seen_by(layer: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Pass, Seen, Any]]:
    """Each pass, the call of its stream that a user's call makes, and the user's result."""
    passes, found = layer.passes(), []
    uses = user_calls(layer)
    assert set(uses) == set(passes)
    for name, each in passes.items():
        result, calls = watched(monkeypatch, passes, uses[name])
        first_of_two = name + " reverse" in passes
        found.append((each, calls[-2] if first_of_two else calls[-1], result))
    return found


@native
@pytest.mark.parametrize("kind", KINDS)
def test_a_method_hands_over_what_its_pass_says(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = KINDS[kind](threads=2)
    element = NUMPY[layer.dtype].itemsize
    for each, seen, _ in seen_by(layer, monkeypatch):
        assert seen.run is each.run
        assert set(seen.before) == set(each.run.tensors)
        said = {a.tensor: prod(a.shape) * element for a in each.arguments}
        handed = {n: len(held) for n, held in seen.before.items() if held is not None}
        assert said == {n: size for n, size in handed.items() if n in said}
        parts = [calls.part for calls in each.run.stream.parts]
        used = {ref.tensor for part in parts for ref in part.refs()}
        assert set(said) == used & set(each.run.tensors)
        assert len({a.name for a in each.arguments}) == len(each.arguments)


@native
@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_is_run_by_its_description(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results that are NaN before, and no address for the tensors without an argument, give bit
    for bit what the method gives; nothing else is written."""
    layer = KINDS[kind](threads=2)
    kind_of = NUMPY[layer.dtype]
    for each, seen, result in seen_by(layer, monkeypatch):
        arrays = {}
        for a in each.arguments:
            before = seen.before[a.tensor]
            assert before is not None
            arrays[a.tensor] = aligned(a.shape, layer.dtype)
            arrays[a.tensor][...] = np.frombuffer(before, kind_of).reshape(a.shape)
        if "dr_n" in arrays:
            arrays["dr_n"] = arrays["dr"][-layer.layer.hidden :]
        buffers = {n: buffer_of(arrays[n]) if n in arrays else ffi.NULL for n in each.run.tensors}
        each.run(buffers)
        for a in each.arguments:
            wanted = seen.after[a.tensor] if a.result else seen.before[a.tensor]
            assert wanted is not None
            np.testing.assert_array_equal(
                arrays[a.tensor], np.frombuffer(wanted, kind_of).reshape(a.shape), each.name
            )
        if not each.name.startswith("pack"):
            results = result if isinstance(result, tuple) else (result,)
            assert all(np.isfinite(r).all() for r in results if r is not None)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_passes_of_any_target_are_made_anywhere(kind: str, target: str) -> None:
    layer = KINDS[kind](threads=3, target=target)
    for each in layer.passes().values():
        assert each.run.stream.calls and not hasattr(each.run, "_code")
        assert all(call.routine.target.name == target for call in each.run.stream.calls)


def test_passes_are_made_when_they_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(FullyConnected, "_run", lambda self, *a: made.append(a) or Run)
    passes = FullyConnected(3, 4, 5).passes()
    assert "forward" in passes and len(list(passes)) == 9 and "forward" in repr(passes)
    assert not made
    assert passes["forward"].run is Run and len(made) == 1
    with pytest.raises(KeyError, match="'Forward' is not one of forward, forward packed, "):
        passes["Forward"]
    with pytest.raises(TypeError):
        passes["forward"] = None  # type: ignore[index]


def test_an_activation_without_gradient_has_no_pass_for_it() -> None:
    for activation in (None, "mish", ("leaky_relu", -0.5)):
        assert "backward_activation" not in FullyConnected(3, 4, 5, activation=activation).passes()
