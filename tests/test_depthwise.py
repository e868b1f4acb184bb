"""Depthwise convolution and its weight gradient on every tier, beside float64 and guard pages.

Gaps between rows of pixels are poison, outputs begin as poison. Not here: pooling (`test_pooling`).
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from blocks import EVERYWHERE, FLOATS, Call, Wanted, block, execute, poison
from oracle import FUNCTIONS
from random_cases import SEED
from tiers import TIERS, need

from jitgen.depthwise import MOST_TAPS, emit_depthwise, emit_depthwise_weights
from jitgen.target import TARGETS, Target, parse_target

Array = np.ndarray[Any, Any]
CHANNELS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40, 64, 67)
EPILOGUES: tuple[tuple[tuple[Any, ...], ...], ...] = (
    (), (), (("bias",),), (("bias",), ("relu",)), (("relu",),), (("clip", -0.5, 2.0),),
    (("bias",), ("clip", 0.0, 6.0)), (("bias",), ("silu",)), (("gelu_tanh",), ("bias",)),
    (("sigmoid",), ("clip", 0.25, 0.75)), (("gelu",),), (("bias",), ("tanh",), ("relu",)),
)  # fmt: skip


def amount(tier: str) -> int:
    """Random cases of a tier: few where it is emulated slowly."""
    return 150 if "native" in tier else 30


class Windows:
    """Random windows over an NHWC image `image` (height, width, channels), whose pixels lie `pitch`
    elements apart in `flat`; gaps are poison. at(t, c): index of tap t of every output pixel."""

    def __init__(self, rng: random.Random, dtype: str) -> None:
        self.dtype = dtype
        self.channels = rng.choice((*CHANNELS, rng.randint(1, 80)))
        self.pixels = rng.choice((1, 2, 3, 4, 5, 7, 8, 9, 14, rng.randint(1, 20)))
        high, wide = rng.choice(((1, 1), (1, 3), (3, 3), (3, 3), (2, 5), (5, 5), (7, 7), (4, 2)))
        stride, dilation = rng.choice((1, 1, 1, 2, 3)), rng.choice((1, 1, 1, 2))
        width = (self.pixels - 1) * stride + (wide - 1) * dilation + 1
        height = (high - 1) * dilation + 1
        pitch = self.channels + rng.choice((0, 0, 1, 5))
        line = (width + rng.choice((0, 2))) * pitch
        taps = [
            (r * line + s * pitch) * dilation for r in range(high) for s in range(wide)
        ]  # fmt: skip
        if rng.random() < 0.3:  # any taps, in any order, as gradients of x have
            taps = rng.sample(taps, rng.randint(1, len(taps)))
        self.taps, self.step = tuple(taps), stride * pitch
        size = (height - 1) * line + (width - 1) * pitch + self.channels
        numbers = np.random.default_rng(rng.randrange(1 << 30))
        self.numbers = numbers
        self.flat = np.full(size, poison(1, 1, dtype)[0, 0])
        self.flat.view(np.uint8)[:] = poison(1, size, dtype)[0].view(np.uint8)
        self.index = (
            np.array(self.taps)[:, None, None] + np.arange(self.pixels)[:, None] * self.step
            + np.arange(self.channels)
        )  # fmt: skip
        self.flat[self.index.ravel()] = self.normal(self.index.size)
        self.shape = (self.pixels, self.channels)
        self.label = f"{self.shape} {dtype}, {len(taps)} of {high}x{wide} stride {stride}"

    def normal(self, *shape: int) -> Array:
        return self.numbers.standard_normal(shape).astype(FLOATS[self.dtype])

    def seen(self) -> Array:
        """(taps, pixels, channels) in float64."""
        return self.flat[self.index].astype(np.float64)


def finish(y: Array, bound: Array, bias: Array, epilogue: Any, eps: float) -> tuple[Array, Array]:
    for name, *parameters in epilogue:
        if name == "bias":
            y = y + bias
        elif name == "clip":
            y = np.clip(y, *parameters)
        elif name == "relu":
            y = np.maximum(y, 0)
        else:
            function, lipschitz = FUNCTIONS[name]
            y = function(y)
            bound = bound * lipschitz + 8 * eps * np.abs(y)
        bound = bound + eps * (np.abs(y) + 1)
    return y, bound


def forward(rng: random.Random, target: Target) -> Call:
    dtype = rng.choice(("f32", "f64"))
    windows = Windows(rng, dtype)
    pixels, channels = windows.shape
    taps, epilogue = len(windows.taps), rng.choice(EPILOGUES)
    ldb, ldc = (channels + rng.choice((0, 0, 3, 8)) for _ in "bc")
    filters = rng.choice((None, tuple(rng.sample(range(taps + 2), taps))))
    rows = list(range(taps)) if filters is None else list(filters)
    w, bias = windows.normal(max(rows) + 1, channels), windows.normal(channels)
    seen, mine = windows.seen(), w[rows].astype(np.float64)[:, None]
    eps = float(np.finfo(FLOATS[dtype]).eps)
    bound = (taps + 1) * eps * (np.abs(seen) * np.abs(mine)).sum(0)
    value, bound = finish((seen * mine).sum(0), bound, bias, epilogue, eps)
    code = emit_depthwise(
        pixels, channels, windows.taps, dtype, target, step=windows.step, ldc=ldc, ldb=ldb,
        filters=filters, epilogue=epilogue,
    )  # fmt: skip
    words = {"a": windows.flat, "b": block(w, ldb), "c": block(poison(*value.shape, dtype), ldc)}
    if ("bias",) in epilogue:
        words["bias"] = bias
    label = f"{windows.label} {epilogue} ldb {ldb} ldc {ldc}"
    return Call(code, words, {"c": Wanted(value, ldc, bound)}, label, rng.choice(("end", "start")))


def gradient(rng: random.Random, target: Target) -> Call:
    dtype = rng.choice(("f32", "f64"))
    windows = Windows(rng, dtype)
    pixels, channels = windows.shape
    taps, accumulate = len(windows.taps), rng.random() < 0.5
    ldb, ldc = (channels + rng.choice((0, 0, 3, 8)) for _ in "bc")
    dy, dw = windows.normal(pixels, channels), windows.normal(taps, channels)
    seen = windows.seen()
    start = dw.astype(np.float64) if accumulate else 0.0
    value = start + (seen * dy).sum(1)
    size = np.abs(start) + (np.abs(seen) * np.abs(dy)).sum(1)
    code = emit_depthwise_weights(
        pixels, channels, windows.taps, dtype, target, step=windows.step, ldb=ldb, ldc=ldc,
        accumulate=accumulate,
    )  # fmt: skip
    before = dw if accumulate else poison(taps, channels, dtype)
    words = {"a": windows.flat, "b": block(dy, ldb), "c": block(before, ldc)}
    bound = (pixels + 2) * np.finfo(FLOATS[dtype]).eps * size
    label = f"weights {windows.label} accumulate {accumulate} ldb {ldb} ldc {ldc}"
    return Call(code, words, {"c": Wanted(value, ldc, bound)}, label, rng.choice(("end", "start")))


@pytest.mark.parametrize("make", [forward, gradient])
@pytest.mark.parametrize("tier", EVERYWHERE)
def test_random_rows(tier: str, make: Any) -> None:
    need(TIERS[tier])
    rng = random.Random(f"{SEED} {tier} {make.__name__}")
    target = parse_target(TIERS[tier].target)
    calls = [make(rng, target) for _ in range(amount(tier))]
    for call in calls:
        assert len(call.code) < 8192, call.label
    failures = execute(tier, calls)
    assert not failures, f"JITGEN_SEED={SEED}: {len(failures)} failed:\n" + "\n".join(failures[:9])


@pytest.mark.parametrize("name", TARGETS)
def test_code_is_small(name: str) -> None:
    """MobileNet's windows with a tail of channels; below 4 KiB also with the costliest epilogue."""
    taps = tuple(r * 114 * 67 + s * 67 for r in range(3) for s in range(3))
    for epilogue in ((("bias",), ("clip", 0.0, 6.0)), (("bias",), ("gelu_tanh",))):
        code = emit_depthwise(
            112, 67, taps, "f32", TARGETS[name], step=67, ldc=67, epilogue=epilogue
        )
        assert len(code) < 4096
    assert len(emit_depthwise_weights(112, 67, taps, "f32", TARGETS[name], step=67, ldb=67)) < 4096
    most = tuple(range(0, MOST_TAPS * 5000, 5000))
    assert len(emit_depthwise(14, 67, most, "f32", TARGETS[name], step=67, ldc=67)) < 8192
    assert len(emit_depthwise_weights(14, 67, most, "f32", TARGETS[name], step=67, ldb=67)) < 8192


@pytest.mark.parametrize("tier", ("avx2 native", "avx512 native", "sve256 qemu"))
def test_nan_passes_relu_and_clip(tier: str) -> None:
    need(TIERS[tier])
    x = np.array([np.nan, 1.0, -1.0, np.inf, 9.0], np.float32)
    calls = []
    for step, low, high in ((("relu",), 0.0, np.inf), (("clip", 0.0, 6.0), 0.0, 6.0)):
        code = emit_depthwise(
            1, 5, (0,), "f32", parse_target(TIERS[tier].target), step=5, ldc=5, epilogue=(step,)
        )
        words = {"a": x, "b": np.ones(5, np.float32), "c": poison(1, 5, "f32")[0]}
        calls.append(Call(code, words, {"c": Wanted(np.clip(x, low, high)[None], 5)}, str(step)))
    assert not execute(tier, calls)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pixels": 0}, "rows=0"), ({"ldc": 3}, "leading dimension 3"), ({"dtype": "bf16"}, "bf16"),
        ({"taps": ()}, "taps has 0"), ({"taps": (0,) * (MOST_TAPS + 1)}, "taps has"),
        ({"step": -1}, "step=-1"), ({"taps": (1 << 29,)}, "2 GiB"), ({"ldb": 2}, "dimension 2"),
        ({"filters": (0, 1)}, "filters=(0, 1)"), ({"filters": (-1,)}, "filters=(-1,)"),
        ({"epilogue": (("residual",),)}, "residual"), ({"epilogue": (("clip", 2, 1),)}, "clip"),
    ],
)  # fmt: skip
def test_bad_input(change: dict[str, Any], words: str) -> None:
    good = {"pixels": 4, "channels": 4, "taps": (0,), "dtype": "f32", "step": 4, "ldc": 4}
    assert emit_depthwise(**good, target=TARGETS["avx2"])
    with pytest.raises(ValueError, match=r".") as error:
        emit_depthwise(**{**good, **change}, target=TARGETS["avx2"])
    assert words in str(error.value)
