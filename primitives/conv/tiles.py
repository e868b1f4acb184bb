"""Winograd's F(2 x 2, 3 x 3): tiles of images in blocks for threads, and when it pays.

A tile is 2 x 2 results of a 3 x 3 convolution and the 4 x 4 pixels they see; a strip is a row of
tiles of an image. Not here: what is computed (`jitgen.primitives.conv.winograd`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jitgen.emit.shapes import MATRIX_BYTES
from jitgen.gemm.kernel import panel_width
from jitgen.kernels.strips import Axis
from jitgen.kernels.winograd import Grid, Squares, emit_winograd
from jitgen.primitives.conv.axis import seen, stretches
from jitgen.primitives.conv.layouts import Conv
from jitgen.primitives.nest.loops import Loop, iterate
from jitgen.primitives.nest.nest import Nest
from jitgen.primitives.nest.stream import Made, Part
from jitgen.primitives.nest.tensor import Tensor
from jitgen.run.cache import lazy

PLANES = 16
#: Rows of tiles of all images, at most
MOST_STRIPS = 1 << 18
#: Tiles of a block, about: their planes stay in L2
TILES = 56
#: What a block of tiles costs beside its work, in tiles
TILE_COST = 3
#: Planes at a multiple of CONFLICT elements share a set of L1: they lie GAP elements further apart
GAP, CONFLICT = 80, 1024
#: Costs of `choose_algorithm` beside the products, in multiply-accumulates: for each element of a
#: plane of pixels or results, and for each of a plane of weights (read, and updated); and by how
#: much it must be worth it
TRANSFORM, WEIGHTS, MARGIN = 3.5, (1.2, 4.5), 1.1

#: How far (down, right) a strip's first element is from the corner of its first tile, and what
#: exists of tiles
Kind = tuple[int, int, tuple[Squares, ...]]


def pitch(elements: int) -> int:
    """Elements from a plane of so many elements to the next."""
    return -(-elements // CONFLICT) * CONFLICT + GAP


def plane_grid(planes: Tensor, square: str) -> Grid:
    """Where elements of a square lie in planes ("p ..."), whose squares are along an axis."""
    apart = planes.stride("p")
    return Grid(4 * apart, apart, planes.stride(square))


def pixel_grid(images: Tensor) -> Grid:
    """Where elements of a tile lie in NHWC images, and its neighbour's."""
    return Grid(images.stride("h"), images.stride("w"), 2 * images.stride("w"))


def slowest(order: str, loops: Mapping[str, Loop], threads: int) -> float:
    """Work of the thread that has most of a nest."""
    nest = iterate(order, loops, threads)
    work = np.prod(list(nest.size.values()), axis=0)
    return float(np.bincount(nest.thread, work).max())


@dataclass(frozen=True)
class Pass:
    """One of the products: images of `size` pixels and `channels`, results of `out` pixels and
    `features`; result (0, 0) sees the pixels from -`border` on. A strip is a row of tiles."""

    conv: Conv
    size: tuple[int, int]
    channels: int
    out: tuple[int, int]
    features: int
    border: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles of an image."""
        return -(-self.out[0] // 2), -(-self.out[1] // 2)

    @property
    def width(self) -> int:
        """Columns of a panel of weights."""
        conv = self.conv
        return panel_width(TILES, self.features, self.channels, conv.dtype, conv.target)

    def panels(self, name: str, own: bool = False) -> Tensor:
        """Planes of weights; `own`: one panel for each thread."""
        k, c, width = self.width if own else self.features, self.channels, self.width
        apart = pitch(-(-k // width) * width * c)
        return Tensor(name, f"p k/{width} c k", self.conv.dtype, own=own, strides={"p": apart},
                      p=PLANES, k=k, c=c)  # fmt: skip

    @lazy
    def strips(self) -> Loop:
        """All strips, in blocks and one by one: a block has about TILES tiles, and the threads get
        shares as even as can be."""
        count, columns = self.conv.batch * self.grid[0], self.grid[1]
        choices = []
        for block in range(1, max(1, min(count, 2 * TILES // columns)) + 1):
            tiles = block * columns
            if tiles >= TILES / 4 or block == 1:
                loops = {"s": Loop(count, (block,)), "k": Loop(self.features, (self.width,))}
                work = slowest("SK", loops, self.conv.threads) * (1 + TILE_COST / tiles)
                choices.append((work, abs(tiles - TILES), block))
        return Loop(count, (min(choices)[2], 1))

    @lazy
    def blocks(self) -> Loop:
        """The blocks of strips."""
        return Loop(self.strips.extent, self.strips.blocks[:1])

    def planes(self, name: str, channels: int, axis: str = "c") -> Tensor:
        """Planes of a block of tiles, strip by strip, for each thread."""
        sizes = {"p": PLANES, "s": self.blocks.blocks[0], "t": self.grid[1], axis: channels}
        apart = pitch(sizes["s"] * sizes["t"] * channels)
        return Tensor(name, f"p s t {axis}", self.conv.dtype, own=True, strides={"p": apart},
                      **sizes)  # fmt: skip

    @property
    def within(self) -> tuple[str, np.ndarray]:
        """Where each strip stands in its block."""
        return "s", np.arange(self.strips.extent) % self.strips.blocks[0]

    def tiles(self, side: int) -> tuple[dict[str, Any], dict[str, Any], list[Kind]]:
        """Of tiles of `side` x `side` pixels (4) or results (2): the first pixel that exists of
        each strip; variants of a part: for each strip the first row of tiles whose kind is that of
        its own; and the kinds, by row of tiles."""
        size, border = (self.size, self.border) if side == 4 else (self.out, (0, 0))
        rows, columns = (
            Axis(count, 2, tuple(range(-before, side - before)), pixels)
            for count, before, pixels in zip(self.grid, border, size, strict=True)
        )
        corners = 2 * np.arange(rows.count) - border[0]
        lines, first = np.clip(corners, 0, size[0] - 1), min(max(0, -border[1]), size[1] - 1)
        across, leads = stretches(columns), (lines - corners).tolist()
        kinds = [
            (leads[i], first + border[1],
             tuple(Squares(s.number, seen(rows, i), (s.low, s.high)) for s in across))
            for i in range(rows.count)
        ]  # fmt: skip
        n, batch = np.repeat(np.arange(self.conv.batch), rows.count), self.conv.batch
        same = np.array([kinds.index(kind) for kind in kinds])
        at = {"n": ("s", n), "h": ("s", np.tile(lines, batch)), "w": first}
        return at, {"row": ("s", np.tile(same, batch))}, kinds

    def part(self, kind: str, x: Tensor, to: Tensor, over: str = "") -> Part:
        """Planes `to` of a block of images `x`, or of gradients of results (kind "gradient"); where
        `over` names a loop over channels, as many of them at a time as there are in `to`."""
        conv, c = self.conv, x.sizes[x.layout[-1]]
        at, variants, kinds = self.tiles(4 if kind == "input" else 2)
        loops = {over: Loop(c, (to.sizes[over],))} if over else {}

        def code(size: dict[str, int], first: bool, last: bool) -> Made:
            down, right, squares = kinds[size["row"]]
            grid = pixel_grid(x)
            made = emit_winograd(
                kind, size.get(over, c), squares, grid, plane_grid(to, "t"), conv.dtype,
                conv.target, lead=down * grid.down + right * grid.right,
            )  # fmt: skip
            return made, {}

        nest = Nest(over + "ss", {**loops, "s": self.strips}, conv.dtype, conv.target)
        words = {"a": x.at(**at, **{name: name for name in loops}), "c": to.at(s=self.within)}
        return nest.call(f"planes of {kind}", code, words, variants=variants)


def of_pass(conv: Conv, backward: bool) -> Pass:
    """The product of the forward pass, or of backward by data."""
    top, left = conv.padding
    if backward:
        return Pass(conv, conv.out, conv.features, conv.size, conv.channels, (2 - top, 2 - left))
    return Pass(conv, conv.size, conv.channels, conv.out, conv.features, (top, left))


def possible(conv: Conv) -> bool:
    """Whether the algorithm is for such convolutions, and what its kernels see, weights, rows of
    images and planes of a block, within their reach; strips are not too many to be cut well."""
    if conv.kernel != (3, 3) or not conv.stride == conv.dilation == (1, 1) or conv.groups > 1:
        return False
    passes = [of_pass(conv, backward) for backward in (False, True)]
    if max(conv.batch * p.grid[0] for p in passes) > MOST_STRIPS:
        return False
    rows = max(4 * p.size[1] * p.channels for p in passes)
    planes = max(pitch(2 * max(TILES, p.grid[1]) * max(p.channels, p.width)) for p in passes)
    weights = max(p.panels("").elements for p in passes)
    return max(rows, PLANES * planes, weights) * conv.element < MATRIX_BYTES


def choose_algorithm(conv: Conv, which: str, algorithm: str | None) -> str:
    """The algorithm of a pass: the one asked for or, for None, the one that costs less.

    Costs are multiply-accumulates of whole vectors: those of the products; TRANSFORM for each
    element of a plane of pixels or results; WEIGHTS for each element of a plane of weights.
    ValueError if `algorithm` is impossible.
    """
    if algorithm == "winograd" and not possible(conv):
        raise ValueError(
            "algorithm='winograd' is for kernel=3, stride=1, dilation=1, groups=1, less than 2 GiB "
            "of transformed weights, of a row of an image and of a block of tiles, and "
            f"{MOST_STRIPS} rows of tiles at most, not for kernel={conv.kernel}, "
            f"stride={conv.stride}, "
            f"dilation={conv.dilation}, groups={conv.groups}, {conv.channels} and "
            f"{conv.features} channels, {conv.batch} images of {conv.size[0]} x {conv.size[1]}"
        )
    if algorithm is not None or not possible(conv):
        return algorithm or "direct"
    p = of_pass(conv, which == "backward_data")
    lanes = conv.target.machine(conv.dtype, p.features).lanes
    c, k = (-(-x // lanes) * lanes for x in (p.channels, p.features))
    places = np.arange(p.out[0])[:, None] - p.border[0] + np.arange(3)
    # the direct passes that make images leave out rows of taps that see the border only
    update = which == "backward_weights"
    seen = 3 * p.out[0] if update else int(((places >= 0) & (places < p.size[0])).sum())
    direct = conv.batch * seen * 3 * p.out[1] * p.channels * k
    planes = conv.batch * p.grid[0] * p.grid[1] * (p.channels * k + TRANSFORM * (c + k))
    cost = PLANES * (planes + WEIGHTS[update] * p.channels * p.features)
    return "winograd" if MARGIN * cost < direct else "direct"
