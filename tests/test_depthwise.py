"""Depthwise convolution and its weight gradient on every tier, beside float64 and guard pages.

Gaps between pixels and rows are poison, outputs begin as poison. Not here: layers
(`test_convolution`).
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from blocks import EVERYWHERE, FLOATS, POISON, Call, Wanted, block, execute, poison
from oracle import FUNCTIONS, stepped
from random_cases import SEED
from tiers import TIERS, need

from jitgen.emit.shapes import MOST_TAPS
from jitgen.kernels.depthwise import emit_depthwise, emit_depthwise_weights
from jitgen.kernels.strips import Axis, plan_strip
from jitgen.target import TARGETS, Target, parse_target

Array = np.ndarray[Any, Any]
CHANNELS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40, 64, 67)
EPILOGUES: tuple[tuple[tuple[Any, ...], ...], ...] = (
    (), (), (("bias",),), (("bias",), ("relu",)), (("relu",),), (("clip", -0.5, 2.0),),
    (("bias",), ("clip", 0.0, 6.0)), (("bias",), ("silu",)), (("gelu_tanh",), ("bias",)),
    (("sigmoid",), ("clip", 0.25, 0.75)), (("gelu",),), (("bias",), ("tanh",), ("relu",)),
    (("bias",), ("residual",), ("relu",)), (("residual",),), (("bias",), ("hardswish",)),
    (("bias",), ("residual",), ("clip", 0.0, 6.0)), (("elu", 0.5), ("residual",)), (("mish",),),
    (("bias",), ("leaky_relu", 0.25)), (("hardsigmoid", 0.2, 0.5),), (("scale", 0.5), ("bias",)),
    (("clip", -2.0, 2.0), ("exp",)),
)  # fmt: skip
#: Bytes of a kernel, at most; twice as many with a tail of channels
CODE_BYTES = 8192


def amount(tier: str) -> int:
    """Random cases of a tier: few where it is emulated slowly."""
    return 300 if "native" in tier else 40


def random_axis(rng: random.Random, taps: int, most: int) -> Axis:
    """A direction with a border on any side, also one wider than the window, or with no pixel."""
    step, up, dilation = rng.choice(((1, 1), (1, 1), (2, 1), (3, 1), (1, 2), (1, 3), (2, 3))) + (
        rng.choice((1, 1, 1, 2, 3)),
    )
    first = -rng.choice((0, 0, 1, 1, 2, rng.randint(0, 5)))
    offsets = [first + t * dilation for t in range(taps)]
    if rng.random() < 0.3:
        offsets.reverse()
    count = rng.randint(1, most)
    reach = ((count - 1) * step + max(offsets)) // up + 1
    size = max(0, reach + rng.choice((0, 0, -1, -2, 1, -rng.randint(0, reach + 5))))
    return Axis(count, step, tuple(offsets), size, up)


class Images:
    """Random x and y with gaps for random axes: `x_flat`, whose elements for each tap and result
    are `seen` (taps, rows, pixels, channels; zeros beyond the image)."""

    def __init__(self, rng: random.Random, target: Target, epilogue: Any, gradient: bool) -> None:
        self.dtype = rng.choice(("f32", "f64"))
        self.numbers = np.random.default_rng(rng.randrange(1 << 30))
        self.exact = rng.random() < 0.3
        self.channels = rng.choice((*CHANNELS, rng.randint(1, 80)))
        high, wide = rng.choice(((1, 1), (1, 3), (3, 3), (3, 3), (2, 5), (5, 5), (7, 7), (4, 2)))
        rows, columns = random_axis(rng, high, 20), random_axis(rng, wide, 9)
        strip = plan_strip(
            rows, columns, self.channels, self.dtype, target, epilogue, gradient=gradient
        )
        self.rows = rows if strip.rolling else replace(rows, count=1)
        self.columns = replace(columns, count=min(columns.count, strip.pixels))
        self.x = self.distances(rng, self.columns.size)
        self.y = self.distances(rng, self.columns.count)
        image = self.normal(rows.size, columns.size, self.channels)
        self.x_flat = self.spread(image, self.x)
        shape = (self.rows.count, self.columns.count, self.channels)
        self.seen = np.zeros((high * wide, *shape))
        for o in range(shape[0]):
            for p in range(shape[1]):
                for r, i in self.rows.seen(o):
                    for s, j in self.columns.seen(p):
                        self.seen[r * wide + s, o, p] = image[i, j]
        self.label = f"{self.rows} {self.columns} {self.channels} {self.dtype} {self.x} {self.y}"

    def distances(self, rng: random.Random, width: int) -> tuple[int, int]:
        pixel = self.channels + rng.choice((0, 0, 1, 5))
        return width * pixel + rng.choice((0, 0, 3)), pixel

    def normal(self, *shape: int) -> Array:
        if self.exact:
            return self.numbers.integers(-8, 9, shape).astype(FLOATS[self.dtype])
        return self.numbers.standard_normal(shape).astype(FLOATS[self.dtype])

    def spread(self, image: Array, distances: tuple[int, int]) -> Array:
        """Rows x pixels x channels in a flat array, as short as possible; gaps are poison."""
        row, pixel = distances
        height, width, channels = image.shape
        size = (height - 1) * row + (width - 1) * pixel + channels if height and width else 1
        flat = np.full(size, POISON[self.dtype]).view(FLOATS[self.dtype])
        for i in range(height):
            for j in range(width):
                flat[i * row + j * pixel :][:channels] = image[i, j]
        return flat

    def wanted(self, value: Array, bound: Array) -> Wanted:
        """What y must be: rows of pixels, with the gaps between pixels."""
        row, pixel = self.y
        shape = (value.shape[0], (value.shape[1] - 1) * pixel + self.channels)
        whole, bounds = np.full(shape, np.nan), np.zeros(shape)
        for p in range(value.shape[1]):
            at = slice(p * pixel, p * pixel + self.channels)
            whole[:, at], bounds[:, at] = value[:, p], bound[:, p]
        return Wanted(whole, row, bounds)


def finish(
    y: Array, bound: Array, operands: dict[str, Array], epilogue: Any, kind: Any
) -> tuple[Array, Array]:
    """Result behind the epilogue, and how far off it may be."""
    eps = float(np.finfo(kind).eps)
    for name, *parameters in epilogue:
        if name in operands:
            y = y + operands[name]
            bound = bound + 10 * eps * np.abs(operands[name])
        elif name == "clip":
            y = np.clip(y, *parameters)
        elif name == "relu":
            y = np.maximum(y, 0)
        elif name in ("leaky_relu", "scale"):
            y = np.where((y < 0) | (name == "scale"), y * parameters[0], y)
        else:
            y, bound = stepped((name, *parameters), y, bound, kind)
        bound = bound + eps * (np.abs(y) + 1)
    return y, bound


def forward(rng: random.Random, target: Target) -> Call:
    epilogue = rng.choice(EPILOGUES)
    images = Images(rng, target, epilogue, False)
    taps, c = len(images.seen), images.channels
    w, bias = images.normal(taps, c), images.normal(c)
    residual = images.normal(*images.seen.shape[1:])
    mine = w.astype(np.float64)[:, None, None]
    eps = float(np.finfo(FLOATS[images.dtype]).eps)
    bound = (taps + 1) * eps * (np.abs(images.seen) * np.abs(mine)).sum(0)
    operands = {"bias": bias, "residual": residual}
    value, bound = finish(
        (images.seen * mine).sum(0), bound, operands, epilogue, FLOATS[images.dtype]
    )
    if images.exact and not any(name in FUNCTIONS for name, *_ in epilogue):
        bound = np.zeros(value.shape)
    ldb = c + rng.choice((0, 0, 3, 8))
    routine = emit_depthwise(
        images.rows, images.columns, c, images.dtype, target, lda=images.x, ldb=ldb, ldc=images.y,
        epilogue=epilogue, ahead=rng.choice((0, 3)),
    )  # fmt: skip
    before = np.full(value.shape, POISON[images.dtype]).view(FLOATS[images.dtype])
    words = {"a": images.x_flat, "b": block(w, ldb), "c": images.spread(before, images.y)}
    if ("bias",) in epilogue:
        words["bias"] = bias
    if ("residual",) in epilogue:
        words["residual"] = images.spread(residual, images.y)
    label = f"{images.label} {epilogue} ldb {ldb}"
    place = rng.choice(("end", "start"))
    return Call(routine, words, {"c": images.wanted(value, bound)}, label, place)


def gradient(rng: random.Random, target: Target) -> Call:
    images = Images(rng, target, (), True)
    accumulate, ldc = rng.random() < 0.5, images.channels + rng.choice((0, 0, 3, 8))
    taps, rows, pixels, c = images.seen.shape
    dy, dw = images.normal(rows, pixels, c), images.normal(taps, c)
    start = dw.astype(np.float64) if accumulate else 0.0
    value = start + (images.seen * dy).sum((1, 2))
    size = np.abs(start) + (np.abs(images.seen) * np.abs(dy)).sum((1, 2))
    eps = 0.0 if images.exact else float(np.finfo(FLOATS[images.dtype]).eps)
    routine = emit_depthwise_weights(
        images.rows, images.columns, c, images.dtype, target, lda=images.x, ldb=images.y, ldc=ldc,
        accumulate=accumulate, ahead=rng.choice((0, 2)),
    )  # fmt: skip
    before = dw if accumulate else poison(taps, c, images.dtype)
    words = {"a": images.x_flat, "b": images.spread(dy, images.y), "c": block(before, ldc)}
    bound = (rows * pixels + 2) * eps * size
    label = f"weights {images.label} accumulate {accumulate} ldc {ldc}"
    place = rng.choice(("end", "start"))
    return Call(routine, words, {"c": Wanted(value, ldc, bound)}, label, place)


@pytest.mark.parametrize("make", [forward, gradient])
@pytest.mark.parametrize("tier", EVERYWHERE)
def test_random_strips(tier: str, make: Any) -> None:
    need(TIERS[tier])
    rng = random.Random(f"{SEED} {tier} {make.__name__}")
    target = parse_target(TIERS[tier].target)
    calls = [make(rng, target) for _ in range(amount(tier))]
    for call in calls:
        assert len(call.code) < 2 * CODE_BYTES, call.label
    failures = execute(tier, calls)
    assert not failures, f"JITGEN_SEED={SEED}: {len(failures)} failed:\n" + "\n".join(failures[:9])


def test_a_wrong_tap_is_found() -> None:
    """The check can fail: windows one pixel further see other numbers."""
    need(TIERS["avx2 native"])
    x = np.arange(8, dtype=np.float32)
    found = []
    for first in (0, 1):
        routine = emit_depthwise(
            Axis(1, 1, (0,), 1), Axis(4, 1, (first, first + 1), 8), 1, "f32", TARGETS["avx2"],
            lda=(8, 1), ldb=1, ldc=(4, 1),
        )  # fmt: skip
        words = {"a": x, "b": np.ones(2, np.float32), "c": poison(1, 4, "f32")[0]}
        value = (x[:4] + x[1:5])[None]
        call = Call(routine, words, {"c": Wanted(value, 4)}, "taps")
        found.append(execute("avx2 native", [call]))
    assert not found[0] and found[1]


@pytest.mark.parametrize("name", TARGETS)
def test_code_is_small(name: str) -> None:
    """MobileNet's windows, a whole image high; also with the costliest epilogue."""
    for step, channels in ((1, 64), (2, 64), (1, 67)):
        rows, columns = (Axis(112, step, (-1, 0, 1), 112 * step) for _ in range(2))
        for epilogue in ((("bias",), ("clip", 0.0, 6.0)), (("bias",), ("gelu_tanh",))):
            strip = plan_strip(rows, columns, channels, "f32", TARGETS[name], epilogue)
            routine = emit_depthwise(
                rows if strip.rolling else replace(rows, count=1),
                replace(columns, count=strip.pixels), channels, "f32", TARGETS[name],
                lda=(112 * channels, channels), ldb=channels, ldc=(112 * channels, channels),
                epilogue=epilogue,
            )  # fmt: skip
            assert len(routine.code) < CODE_BYTES
    rows, columns = Axis(1, 1, tuple(range(9)), 9), Axis(100, 1, tuple(range(9)), 108)
    assert len(rows.taps) * len(columns.taps) == MOST_TAPS
    strip = plan_strip(rows, columns, 67, "f32", TARGETS[name])
    routine = emit_depthwise(
        rows, replace(columns, count=strip.pixels), 67, "f32", TARGETS[name], lda=(108 * 67, 67),
        ldb=67, ldc=(6700, 67),
    )  # fmt: skip
    assert len(routine.code) < CODE_BYTES


def test_strips_of_mobilenet() -> None:
    """Seven pixels a strip with AVX-512 and SVE, whose weights stay in registers."""
    for name in ("avx512", "sve128", "sve256", "sve512"):
        for step in (1, 2):
            rows, columns = (Axis(56, step, (-1, 0, 1), 56 * step) for _ in range(2))
            strip = plan_strip(rows, columns, 128, "f32", TARGETS[name], (("bias",), ("relu",)))
            assert strip.rolling and strip.pixels >= 7


@pytest.mark.parametrize("tier", ("avx2 native", "avx512 native", "sve256 qemu", "neon qemu"))
def test_nan_passes_relu_and_clip(tier: str) -> None:
    need(TIERS[tier])
    x = np.array([np.nan, 1.0, -1.0, np.inf, 9.0], np.float32)
    one = Axis(1, 1, (0,), 1)
    calls = []
    for step, low, high in ((("relu",), 0.0, np.inf), (("clip", 0.0, 6.0), 0.0, 6.0)):
        routine = emit_depthwise(
            one, one, 5, "f32", parse_target(TIERS[tier].target), lda=(5, 5), ldb=5, ldc=(5, 5),
            epilogue=(step,),
        )  # fmt: skip
        words = {"a": x, "b": np.ones(5, np.float32), "c": poison(1, 5, "f32")[0]}
        calls.append(Call(routine, words, {"c": Wanted(np.clip(x, low, high)[None], 5)}, str(step)))
    assert not execute(tier, calls)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": Axis(0, 1, (0,), 1)}, "rows=Axis(count=0"), ({"dtype": "bf16"}, "bf16"),
        ({"columns": Axis(1, 0, (0,), 1)}, "columns=Axis(count=1, step=0"),
        ({"columns": Axis(1, 1, (), 1)}, "taps=()"), ({"rows": Axis(1, 1, (0,), -1)}, "size=-1"),
        ({"rows": Axis(1, 1, (0,), 1, 0)}, "up=0"), ({"channels": 0}, "columns=0"),
        ({"columns": Axis(1, 1, (0,) * (MOST_TAPS + 1), 1)}, f"{MOST_TAPS + 1} of them"),
        ({"columns": Axis(99, 1, (0,), 1)}, "registers"), ({"ldb": 2}, "dimension 2"),
        ({"rows": Axis(9, 1, tuple(range(40)), 1)}, "registers"), ({"ldc": (9, 3)}, "dimension 3"),
        ({"ahead": -1}, "ahead=-1"), ({"lda": (-1, 4)}, "reach up"),
        ({"lda": (1 << 29, 4)}, "2 GiB"),
        ({"epilogue": (("relu_mask",),)}, "'relu_mask': its operand lies by bit"),
        ({"epilogue": (("clip", 2, 1),)}, "clip"),
    ],
)  # fmt: skip
def test_bad_input(change: dict[str, Any], words: str) -> None:
    good = {
        "rows": Axis(1, 1, (0,), 1), "columns": Axis(4, 1, (0,), 4), "channels": 4, "dtype": "f32",
        "lda": (16, 4), "ldb": 4, "ldc": (16, 4),
    }  # fmt: skip
    assert emit_depthwise(**good, target=TARGETS["avx2"])
    with pytest.raises(ValueError, match=r".") as error:
        emit_depthwise(**{**good, **change}, target=TARGETS["avx2"])
    assert words in str(error.value)
