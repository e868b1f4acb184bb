"""Pooling kernels on every tier, between guard pages, against float64; maxima must be exact.

Gaps between pixels are poison, outputs begin as poison. Not here: the layers
(`test_pooling_layers`).
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from blocks import EVERYWHERE, FLOATS, Call, Wanted, block, execute, poison
from random_cases import SEED
from tiers import TIERS, need

from jitgen.kernels.pooling import emit_pool
from jitgen.target import TARGETS, Target, parse_target

Array = np.ndarray[Any, Any]
CHANNELS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40, 64, 67)


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
        if rng.random() < 0.3:  # any taps, in any order
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


def pool(rng: random.Random, target: Target, kind: str) -> Call:
    dtype = rng.choice(("f32", "f64"))
    windows = Windows(rng, dtype)
    ldc = windows.channels + rng.choice((0, 0, 3, 8))
    divisor = None
    bound: Any = 0.0
    if kind == "max":
        if rng.random() < 0.5:  # NaN and infinities at any place of a window
            at = rng.choices(windows.index.ravel(), k=max(1, windows.index.size // 20))
            windows.flat[at] = rng.choices((np.nan, -np.nan, np.inf, -np.inf), k=len(at))
        value = windows.seen().max(axis=0)
    else:
        seen = windows.seen()
        divisor = rng.choice((None, 9, 2.5, -3.0))
        number = divisor or len(windows.taps)
        value = seen.sum(axis=0) / number
        eps = np.finfo(FLOATS[dtype]).eps
        bound = (len(windows.taps) + 1) * eps * np.abs(seen).sum(axis=0) / abs(number)
    routine = emit_pool(
        kind, windows.pixels, windows.channels, windows.taps, dtype, target, step=windows.step,
        ldc=ldc, divisor=divisor,
    )  # fmt: skip
    words = {"a": windows.flat, "c": block(poison(*windows.shape, dtype), ldc)}
    label = f"{kind} {windows.label} divisor {divisor} ldc {ldc}"
    place = rng.choice(("end", "start"))
    return Call(routine, words, {"c": Wanted(value, ldc, bound)}, label, place)


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("tier", EVERYWHERE)
def test_random_rows(tier: str, kind: str) -> None:
    need(TIERS[tier])
    rng = random.Random(f"{SEED} {tier} {kind}")
    target = parse_target(TIERS[tier].target)
    calls = [pool(rng, target, kind) for _ in range(amount(tier))]
    for call in calls:
        assert len(call.code) < 8192, call.label
    failures = execute(tier, calls)
    assert not failures, f"JITGEN_SEED={SEED}: {len(failures)} failed:\n" + "\n".join(failures[:9])


@pytest.mark.parametrize("tier", EVERYWHERE)
@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_wins_at_every_tap(tier: str, dtype: str) -> None:
    """One NaN at each place of a window of four, also beside an infinity."""
    need(TIERS[tier])
    x = np.ones((4, 4, 3), FLOATS[dtype])  # windows, taps, channels
    x[np.arange(4), np.arange(4), 0] = np.nan
    x[np.arange(4), np.arange(4), 1] = -np.nan
    x[np.arange(4), np.arange(4) - 1, 1] = np.inf
    target = parse_target(TIERS[tier].target)
    routine = emit_pool("max", 4, 3, (0, 3, 6, 9), dtype, target, step=12, ldc=3)
    value = np.array([[np.nan, np.nan, 1.0]] * 4)
    words = {"a": x.ravel(), "c": poison(4, 3, dtype).ravel()}
    assert not execute(tier, [Call(routine, words, {"c": Wanted(value, 3)}, "NaN")])


@pytest.mark.parametrize("name", TARGETS)
def test_code_is_small(name: str) -> None:
    taps = tuple(r * 112 * 67 + s * 67 for r in range(3) for s in range(3))
    for kind in ("max", "average"):
        routine = emit_pool(kind, 56, 67, taps, "f32", TARGETS[name], step=134, ldc=67)
        assert len(routine.code) < 4096


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "median"}, "'median'"), ({"channels": 0}, "columns=0"), ({"taps": ()}, "taps"),
        ({"divisor": 4.0}, "divisor=4.0"), ({"kind": "average", "divisor": 0.0}, "divisor=0.0"),
        ({"kind": "average", "divisor": float("nan")}, "divisor=nan"), ({"step": -2}, "step=-2"),
    ],
)  # fmt: skip
def test_bad_input(change: dict[str, Any], words: str) -> None:
    good = {
        "kind": "max", "pixels": 4, "channels": 4, "taps": (0,), "dtype": "f32", "step": 4, "ldc": 4
    }  # fmt: skip
    assert emit_pool(**good, target=TARGETS["avx2"])
    with pytest.raises(ValueError, match=r".") as error:
        emit_pool(**{**good, **change}, target=TARGETS["avx2"])
    assert words in str(error.value)
