"""Direct convolution on images with gaps between rows, pixels and images: the same results as
without, and gaps that stay as they are; and streams for one batch on weights packed for another.

Not here: the passes themselves (test_convolution).
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from random_cases import SEED
from test_convolution import HERE

from jitgen import Convolution
from jitgen.doors import NUMPY
from jitgen.primitives.conv import streams
from jitgen.primitives.conv.cost import choose
from jitgen.primitives.conv.layouts import Conv
from jitgen.primitives.layers.arrays import buffer_of
from jitgen.primitives.nest.run import Run

pytestmark = pytest.mark.skipif(not HERE, reason="no target runs on this CPU")
#: channels, size, features, kernel and more
LAYERS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((20, 7, 9, 33, 3), {"padding": 1}),
    ((20, 6, 8, 40, 1), {}),
    ((40, 6, 8, 20, 1), {"bias": False}),
    ((16, 9, 7, 24, 3), {"groups": 2, "stride": (2, 1)}),
    ((5, 9, 8, 200, 1), {"stride": 2}),
    ((5, 9, 8, 40, 1), {"stride": (2, 1)}),
    ((18, 7, 6, 18, 3), {"groups": 18, "padding": 1}),
]
#: elements more from image to image, and so on, than there are
GAPS = [(0, 0, 0), (40, 0, 0), (0, 8, 0), (0, 0, 3), (16, 5, 2)]
POISON = 7.75


class Images:
    """An array of the layer's layout with gaps filled with POISON."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, gaps: tuple[int, int, int]) -> None:
        apart = [1]
        for size, gap in zip(shape[:0:-1], gaps[::-1], strict=True):
            apart.insert(0, size * apart[0] + gap)
        self.strides: Any = tuple(apart[:3])
        self.memory = np.full(shape[0] * apart[0], POISON, dtype)
        self.array = np.lib.stride_tricks.as_strided(
            self.memory, shape, [x * self.memory.itemsize for x in apart]
        )

    def gaps_are_untouched(self) -> bool:
        left = self.array.copy()
        self.array[:] = POISON
        untouched = bool((self.memory == POISON).all())
        self.array[:] = left
        return untouched


def passes(layer: Convolution, rng: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    """Pass -> arrays by tensor, of numbers where they are read; those of the results come last."""
    made = lambda shape: rng.standard_normal(shape).astype(NUMPY[layer.conv.dtype])  # noqa: E731
    x, w, y = (made(s) for s in (layer.x_shape, layer.w_shape, layer.y_shape))
    bias = {"bias": made(layer.conv.features)} if layer.conv.bias else {}
    more = {**bias, "residual": made(layer.y_shape)} if layer.residual else bias
    sums = {"db": np.zeros_like(made(layer.conv.features))} if layer.conv.bias else {}
    return {
        "forward": {"image": x, "w": w, **more, "result": np.zeros_like(y)},
        "backward_data": {"image": y, "w": w, "result": np.zeros_like(x)},
        "backward_weights": {"dy": y, "image": x, **sums, "dw": np.zeros_like(w)},
    }


def call(run: Run, arrays: dict[str, np.ndarray]) -> None:
    run({name: buffer_of(arrays[name]) for name in run.tensors})


def maker(layer: Convolution, which: str) -> tuple[Any, tuple[Any, ...]]:
    packed = () if which == "backward_weights" else (False,)
    return getattr(streams, which), (layer.conv, layer.choice(which), *packed)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_images_with_gaps(number: int, layout: str) -> None:
    (*sizes,), more = LAYERS[number]
    rng, draw = np.random.default_rng(SEED), random.Random(SEED + number)
    for trial in range(6):
        residual = trial % 2 == 1
        layer = Convolution(
            draw.choice([1, 2, 4]), *sizes, layout=layout, threads=draw.choice([1, 2, 3]),
            residual=residual, dtype=draw.choice(["f32", "f64"]), algorithm="direct", **more,
        )  # fmt: skip
        for which, arrays in passes(layer, rng).items():
            make, how = maker(layer, which)
            call(make(*how), arrays)
            gapped = {
                name: Images(array.shape, array.dtype, draw.choice(GAPS))
                for name, array in arrays.items() if array.ndim == 4 and name not in ("w", "dw")
            }  # fmt: skip
            results = {"forward": ["result"], "backward_data": ["result"]}.get(which, [])
            for name, images in gapped.items():
                images.array[:] = 0 if name in results else arrays[name]
            own = {"dw": np.zeros_like(arrays["dw"])} if "dw" in arrays else {}
            own |= {"db": np.zeros_like(arrays["db"])} if "db" in arrays else {}
            inside = {name: images.memory for name, images in gapped.items()}
            run = make(*how, strides=tuple((n, x.strides) for n, x in gapped.items()))
            call(run, {**arrays, **inside, **own})
            for name in (*results, *own):
                got = gapped[name].array if name in gapped else own[name]
                np.testing.assert_allclose(
                    got, arrays[name], rtol=1e-4, atol=1e-4, err_msg=f"{layer} {which} {name}"
                )
            for name, images in gapped.items():
                assert images.gaps_are_untouched(), f"{layer} {which}: gaps of {name}"


def test_another_batch_reads_the_same_packed_weights() -> None:
    """A stream for 1 image, and for 5, on weights that a layer for 3 packed."""
    rng = np.random.default_rng(SEED)
    seen = set()
    small = (16, 2, 2, 100, 1), dict[str, Any]()
    for sizes, more in (*LAYERS[:6], small):
        layer = Convolution(3, *sizes, layout="nhwc", algorithm="direct", threads=2, **more)
        w = rng.standard_normal(layer.w_shape).astype(np.float32)
        packed = layer.pack_weights(w)
        widths = layer.conv.width(False), layer.conv.width(True)
        seen.add(widths != (replace(layer.conv, batch=1).width(False), widths[1]))
        for batch in (1, 5):
            other = Convolution(batch, *sizes, layout="nhwc", algorithm="direct", threads=2, **more)
            conv = replace(other.conv, widths=widths)
            for which, panels in (("forward", packed.forward), ("backward_data", packed.backward)):
                arrays, name = passes(other, rng)[which], "result"
                expected = dict(arrays, w=w, result=np.zeros_like(arrays[name]))
                make, how = maker(other, which)
                call(make(*how), expected)
                run = make(conv, _choice(conv, which), True)
                call(run, dict(arrays, w=panels))
                np.testing.assert_allclose(arrays[name], expected[name], rtol=1e-4, atol=1e-4)
    assert seen == {False, True}, "no other width would have suited"


def _choice(conv: Conv, which: str) -> Any:
    whole, product = streams.subject(conv, which)
    return choose(whole, which, product)


@pytest.mark.parametrize("features", [40, 100, 200])
def test_rows_that_are_skipped(features: int) -> None:
    """1 x 1 taps with a stride down only: rows that are seen are copied, and then all pixels are
    one row, whose panels are those that are packed."""
    rng = np.random.default_rng(SEED)
    layer = Convolution(
        8, 16, 21, 4, features, 1, stride=(2, 1), bias=False, algorithm="direct", threads=1
    )
    x, w = (rng.standard_normal(s).astype(np.float32) for s in (layer.x_shape, layer.w_shape))
    expected = np.einsum("nchw,kc->nkhw", x[:, :, ::2].astype(float), w[:, :, 0, 0].astype(float))
    for weights in (w, layer.pack_weights(w)):
        np.testing.assert_allclose(layer.forward(x, weights), expected, rtol=1e-4, atol=1e-4)
