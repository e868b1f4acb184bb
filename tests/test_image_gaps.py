"""Streams on images with gaps between rows, pixels, channels and images: the same results as on
dense ones, and gaps stay as they are.

Not here: dense images (`test_pooling_layers`, `test_convolution`, `test_winograd`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from random_cases import SEED
from test_convolution import KINDS, as_job, random_depthwise
from test_pooling_backward import arrays
from test_pooling_layers import random_pool
from tiers import TIERS, need

from jitgen import Convolution
from jitgen.primitives.conv import pooling, streams, winograd
from jitgen.primitives.nest.run import Run

Array = np.ndarray[Any, Any]
#: tier -> layers whose streams are replayed with gaps
AMOUNT = {"avx2 native": 30, "avx512 native": 10, "avx512 bochs": 4, "sve256 qemu": 6,
          "neon qemu": 6}  # fmt: skip


class Gaps:
    """Strides of an array with random gaps inside its outer axes; the last one has none."""

    def __init__(self, rng: random.Random, shape: tuple[int, ...]) -> None:
        self.shape, strides, step = shape, [1], 1
        for size in shape[:0:-1]:
            step = step * size + rng.choice((0, 1, 5))
            strides.insert(0, step)
        self.strides = tuple(strides[:-1])
        index = sum(np.ix_(*map(np.arange, shape))[i] * s for i, s in enumerate(strides))
        self.index: Array = np.asarray(index)

    def spread(self, values: Array) -> Array:
        """The values with gaps of NaN."""
        flat = np.full(int(self.index.max()) + 1, np.nan, values.dtype)
        flat[self.index] = values
        return flat


def compare(
    tier: str, rng: random.Random, make: Callable[..., Run], given: Mapping[str, Array],
    results: Mapping[str, tuple[int, ...]],
) -> None:  # fmt: skip
    """The stream that `make` makes for dense arrays and for arrays of 4 axes with gaps, replayed on
    a tier: the same bits."""
    shapes = {name: a.shape for name, a in given.items()} | dict(results)
    gaps = {name: Gaps(rng, shape) for name, shape in shapes.items() if len(shape) == 4}
    for name in rng.sample(sorted(gaps), rng.randint(0, len(gaps) - 1)):
        del gaps[name]  # dense
    strides = tuple((name, each.strides) for name, each in gaps.items())
    spread = {name: gaps[name].spread(a) if name in gaps else a for name, a in given.items()}
    sizes = {name: (int(gaps[name].index.max()) + 1,) for name in results if name in gaps}
    runs = make(strides=()), make(strides=strides)
    jobs = [as_job(runs[0], dict(given), dict(results)),
            as_job(runs[1], spread, {**results, **sizes})]  # fmt: skip
    made = []
    for run, outcome in zip(runs, TIERS[tier].run(jobs, isa=TIERS[tier].target), strict=True):
        assert outcome.ok, outcome.error
        written = [n for n in run.stream.tensors if n in results or n in run.scratch]
        made.append(dict(zip(written, outcome.outputs, strict=True)))
    for name, shape in results.items():
        wanted, found = (each[name] for each in made)
        if name in gaps:
            between = np.delete(found, gaps[name].index.ravel())
            assert np.isnan(between).all(), "a gap is written"
            found = found[gaps[name].index]
        np.testing.assert_array_equal(found.reshape(shape), wanted.reshape(shape))


@pytest.mark.parametrize("tier", AMOUNT)
def test_pooling(tier: str) -> None:
    need(TIERS[tier])
    rng = random.Random(f"{SEED} gaps {tier}")
    for i in range(AMOUNT[tier]):
        layer = random_pool(rng, TIERS[tier].target)
        object.__setattr__(layer.conv, "threads", 1)
        suffix = "" if layer.conv.nhwc else " nchw"
        x, dy = arrays(layer, SEED + i)
        for stream, given, result, shape in (
            (pooling.forward, {"x": x}, "y", layer.y_shape),
            (pooling.backward, {"dy": dy, "x": x}, "dx", layer.x_shape),
        ):
            if stream is pooling.backward and layer.kind == "average":
                del given["x"]
            compare(
                tier, rng, partial(stream, layer.conv, layer.kind),
                {name + suffix: array for name, array in given.items()}, {result + suffix: shape},
            )  # fmt: skip


@pytest.mark.parametrize("tier", AMOUNT)
def test_depthwise(tier: str) -> None:
    need(TIERS[tier])
    rng = random.Random(f"{SEED} gaps of depthwise {tier}")
    for i in range(AMOUNT[tier]):
        conv = random_depthwise(rng, TIERS[tier].target, 9).conv
        conv = replace(conv, threads=1, nhwc=True)
        numbers, kind = np.random.default_rng(SEED + i), KINDS[conv.dtype]
        c, n = conv.channels, conv.batch
        x, y, taps = (n, *conv.size, c), (n, *conv.out, c), len(conv.taps)
        shapes = {"image": x, "dy": y, "w": (taps, c), "bias": (c,), "residual": y}
        data = {name: numbers.standard_normal(s).astype(kind) for name, s in shapes.items()}
        given = {"image": data["image"], "w": data["w"]}
        given |= {step: data[step] for step, *_ in conv.epilogue if step in data}
        compare(tier, rng, partial(streams.forward, conv, None, True), given, {"result": y})
        given = {"image": data["dy"], "w": data["w"]}
        compare(tier, rng, partial(streams.backward_data, conv, None, True), given, {"result": x})
        given = {name: data[name] for name in ("dy", "image")}
        results = {"dw": (c, taps)} | ({"db": (c,)} if conv.bias else {})
        compare(tier, rng, partial(streams.backward_weights, conv, None), given, results)


@pytest.mark.parametrize("tier", AMOUNT)
def test_winograd(tier: str) -> None:
    need(TIERS[tier])
    rng = random.Random(f"{SEED} gaps of winograd {tier}")
    for i in range(max(2, AMOUNT[tier] // 2)):
        n, c, h, w, k = rng.randint(1, 2), *(rng.randint(1, most) for most in (20, 12, 12, 20))
        conv = Convolution(
            n, c, h, w, k, 3, padding="same", activation=rng.choice([None, "relu"]),
            residual=rng.random() < 0.5, layout=rng.choice(["nchw", "nhwc"]), threads=1,
            algorithm="winograd", target=TIERS[tier].target,
        ).conv  # fmt: skip
        numbers = np.random.default_rng(SEED + i)
        x, y = ((n, h, w, size) if conv.nhwc else (n, size, h, w) for size in (c, k))
        shapes = {"image": x, "dy": y, "w": (k, c, 3, 3), "bias": (k,), "residual": y}
        data = {name: numbers.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
        weights = data["w"].reshape(-1)
        given = {"image": data["image"], "w": weights}
        given |= {step: data[step] for step, *_ in conv.epilogue if step in data}
        compare(tier, rng, partial(winograd.forward, conv, False), given, {"result": y})
        given = {"image": data["dy"], "w": weights}
        compare(tier, rng, partial(winograd.backward_data, conv, False), given, {"result": x})
        given = {name: data[name] for name in ("dy", "image")}
        results = {"dw": (k, 9 * c), "db": (k,)}
        compare(tier, rng, partial(winograd.backward_weights, conv), given, results)
