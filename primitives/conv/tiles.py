"""Winograd's F(2 x 2, 3 x 3): tiles of images in blocks for threads, and when it pays.

A tile is 2 x 2 results of a 3 x 3 convolution and the 4 x 4 pixels they see; a strip is a row of
tiles of an image. Not here: what is computed (`jitgen.primitives.conv.winograd`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jitgen.emit.shapes import MATRIX_BYTES
from jitgen.gemm.kernel import panel_width
from jitgen.kernels.winograd import Grid, Squares, emit_winograd
from jitgen.primitives.conv.layouts import Conv
from jitgen.primitives.nest.loops import Loop, iterate
from jitgen.primitives.nest.stream import Made, Part, Ref
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

Range = tuple[int, int]
#: How far a strip's first element is from the corner of its first tile, and what exists of tiles
Kind = tuple[int, tuple[Squares, ...]]


def pitch(elements: int) -> int:
    """Elements from a plane of so many elements to the next."""
    return -(-elements // CONFLICT) * CONFLICT + GAP


def _seen(at: int, side: int, size: int) -> Range:
    """The part of `side` places from `at` on that lies in 0 .. size - 1."""
    low, high = max(0, -at), min(side, size - at)
    return (low, high) if low < high else (0, 0)


def _squares(rows: Range, columns: list[Range]) -> tuple[Squares, ...]:
    """A row of squares of which these rows and columns exist."""
    found: list[Squares] = []
    for each in columns:
        if found and found[-1].columns == each:
            found[-1] = found[-1]._replace(number=found[-1].number + 1)
        else:
            found.append(Squares(1, rows, each))
    return tuple(found)


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

    @property
    def panel(self) -> int:
        """Elements from a plane of weights to the next where there is only one panel."""
        return pitch(self.width * self.channels)

    @property
    def panels(self) -> int:
        """Elements from a plane of weights to the next."""
        return pitch(-(-self.features // self.width) * self.width * self.channels)

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

    def pitch(self, channels: int) -> int:
        """Elements from a plane of a block of tiles to the next."""
        return pitch(self.blocks.blocks[0] * self.grid[1] * channels)

    def within(self, channels: int) -> dict[str, np.ndarray]:
        """Where each strip begins in a plane of its block."""
        numbers = np.arange(self.strips.extent) % self.strips.blocks[0]
        return {"s": numbers * self.grid[1] * channels}

    def pixels(self) -> tuple[dict[str, np.ndarray], list[Kind]]:
        """Where the first pixel that each strip sees lies; and by row of tiles, how far that is
        from the corner of the first tile, and what exists of the tiles."""
        row, c = self.size[1] * self.channels, self.channels
        top, left = self.border
        columns = [_seen(2 * i - left, 4, self.size[1]) for i in range(self.grid[1])]
        first = min(max(0, -left), self.size[1] - 1)
        at, kinds = [], []
        for corner in range(-top, 2 * self.grid[0] - top, 2):
            line = min(max(0, corner), self.size[0] - 1)
            at.append(line * row + first * c)
            lead = (line - corner) * row + (first + left) * c
            kinds.append((lead, _squares(_seen(corner, 4, self.size[0]), columns)))
        return self._places(at, self.size[0] * row), kinds

    def results(self) -> tuple[dict[str, np.ndarray], list[Kind]]:
        """The same for the results of each strip."""
        row = self.out[1] * self.features
        columns = [_seen(2 * i, 2, self.out[1]) for i in range(self.grid[1])]
        rows = range(0, self.out[0], 2)
        kinds = [(0, _squares(_seen(i, 2, self.out[0]), columns)) for i in rows]
        return self._places([i * row for i in rows], self.out[0] * row), kinds

    def _places(self, rows: list[int], image: int) -> dict[str, np.ndarray]:
        images = np.arange(self.conv.batch, dtype=np.int64)[:, None] * image
        return {"s": (images + np.array(rows, np.int64)).reshape(-1)}

    def row_of_tiles(self, kinds: list[Kind]) -> dict[str, tuple[str, np.ndarray]]:
        """For each strip, the first row of tiles whose kind is that of its own."""
        return {"row": ("s", np.tile([kinds.index(k) for k in kinds], self.conv.batch))}

    def planes(self, kind: str, x: str, to: str, over: str = "", most: int = 0) -> Part:
        """Planes `to` of a block of images `x`, or of gradients of results (kind "gradient"); where
        `over` names a loop over channels, `most` of them at a time."""
        conv, e = self.conv, self.conv.element
        if kind == "input":
            (places, kinds), line, c = self.pixels(), self.size[1], self.channels
        else:
            (places, kinds), line, c = self.results(), self.out[1], self.features
        most = most or c
        apart = self.pitch(most)

        def code(size: dict[str, int], first: bool, last: bool) -> Made:
            lead, squares = kinds[size["row"]]
            made = emit_winograd(
                kind, size.get(over, c), squares, Grid(line * c, c, 2 * c),
                Grid(4 * apart, apart, most), conv.dtype, conv.target, lead=lead,
            )  # fmt: skip
            return made, {}

        loops = {over: Loop(c, (most,))} if over else {}
        words = {
            "a": Ref(x, dict.fromkeys(loops, 1), e, table=places),
            "c": Ref(to, {}, e, per_thread=PLANES * apart, table=self.within(most)),
        }
        return Part(
            f"planes of {kind}", over + "ss", {**loops, "s": self.strips}, code, words,
            variants=self.row_of_tiles(kinds),
        )  # fmt: skip


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
    weights = max(p.panels for p in passes)
    return max(rows, PLANES * max(planes, weights)) * conv.element < MATRIX_BYTES


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
