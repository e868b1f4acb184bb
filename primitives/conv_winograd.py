"""Winograd's F(2 x 2, 3 x 3) for 3 x 3 convolutions of stride 1: 16 products for 36.

A tile is 2 x 2 results and the 4 x 4 pixels they see. Transformed, the pixels of many tiles are 16
planes of [tile][channel], each multiplied by a plane of transformed weights; what comes out is
transformed to results. A thread does all of that for a block of tiles and of channels of results,
in L2. Pixels beyond the image are never read. Not here: the transforms (`jitgen.winograd`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from jitgen.kernel import brgemm, panel_width
from jitgen.layout import emit_transpose
from jitgen.pack import emit_packer
from jitgen.spec import Step
from jitgen.winograd import Grid, Squares, emit_winograd
from primitives.conv_layouts import Conv, Made, gather, spread
from primitives.loops import Loop
from primitives.run import Run
from primitives.stream import Part, Ref

PLANES = 16
#: Tiles of a block, about: their planes stay in L2
TILES = 56
#: Elements between planes beyond their tiles: 16 planes at a multiple of 4 KiB share a set of L1
GAP, CONFLICT = 80, 1024


@dataclass(frozen=True)
class Strip:
    """Tiles beside each other in an image: the first pixel (row, column) that is read, how far it
    is from the corner of the first tile, the first result, and what exists of the tiles."""

    pixel: tuple[int, int]
    lead: tuple[int, int]
    result: tuple[int, int]
    reads: tuple[Squares, ...]
    writes: tuple[Squares, ...]

    @property
    def tiles(self) -> int:
        """How many there are."""
        return sum(s.count for s in self.reads)


def _range(at: int, side: int, size: int) -> tuple[int, int]:
    """The part of `side` places from `at` on that lies in 0 .. size."""
    low, high = min(max(0, -at), side), max(0, min(side, size - at))
    return (low, high) if low < high else (0, 0)


def _squares(places: list[int], rows: tuple[int, int], side: int, size: int) -> tuple[Squares, ...]:
    found: list[Squares] = []
    for at in places:
        columns = _range(at, side, size)
        if found and found[-1].columns == columns:
            found[-1] = found[-1]._replace(count=found[-1].count + 1)
        else:
            found.append(Squares(1, rows, columns))
    return tuple(found)


@dataclass(frozen=True)
class Pass:
    """One of the products: images of `size` pixels and `channels`, results of `out` pixels and
    `features`; result (0, 0) sees the pixels from -`border` on."""

    conv: Conv
    size: tuple[int, int]
    channels: int
    out: tuple[int, int]
    features: int
    border: tuple[int, int]

    @cached_property
    def strips(self) -> list[Strip]:
        """Those of an image, from top to bottom."""
        rows, columns = (-(-x // 2) for x in self.out)
        length = -(-columns // -(-columns // (2 * TILES)))
        found = []
        for top in range(0, 2 * rows, 2):
            for left in range(0, 2 * columns, 2 * length):
                corner = top - self.border[0], left - self.border[1]
                pixel = tuple(max(0, min(at, x - 1)) for at, x in zip(corner, self.size))
                lead = tuple(p - at for p, at in zip(pixel, corner))
                lefts = list(range(left, min(left + 2 * length, 2 * columns), 2))
                found.append(Strip(
                    pixel, lead, (top, left),
                    _squares([x - self.border[1] for x in lefts], _range(corner[0], 4, self.size[0]), 4, self.size[1]),
                    _squares(lefts, _range(top, 2, self.out[0]), 2, self.out[1]),
                ))
        return found

    @cached_property
    def tiles(self) -> np.ndarray:
        """Number of the first tile of each strip of all images, and of all tiles."""
        counts = [s.tiles for s in self.strips] * self.conv.batch
        return np.concatenate([[0], np.cumsum(counts)])

    @cached_property
    def block(self) -> int:
        """Strips of a block: about TILES tiles."""
        strips, tiles = len(self.tiles) - 1, int(self.tiles[-1])
        blocks = max(1, round(tiles / TILES))
        return -(-strips // min(blocks, strips))

    @cached_property
    def within(self) -> np.ndarray:
        """Number of the first tile of each strip in its block."""
        first = np.arange(len(self.tiles) - 1) // self.block * self.block
        return self.tiles[:-1] - self.tiles[first]

    @cached_property
    def block_tiles(self) -> np.ndarray:
        """Tiles of the block that begins at each strip."""
        last = np.minimum(np.arange(len(self.tiles) - 1) + self.block, len(self.tiles) - 1)
        return self.tiles[last] - self.tiles[:-1]

    @property
    def width(self) -> int:
        """Columns of a panel of weights."""
        conv = self.conv
        return panel_width(TILES, self.features, self.channels, conv.dtype, conv.target)

    def pitch(self, channels: int) -> int:
        """Elements from a plane of a block to the next."""
        return -(-int(self.block_tiles.max()) * channels // CONFLICT) * CONFLICT + GAP

    def table(self, of: str, size: tuple[int, int], channels: int) -> np.ndarray:
        """Element of the images at which each strip's `of` lies."""
        row = size[1] * channels
        places = [getattr(s, of) for s in self.strips]
        one = np.array([r * row + c * channels for r, c in places], np.int64)
        return (np.arange(self.conv.batch)[:, None] * size[0] * row + one).reshape(-1)


def of_pass(conv: Conv, backward: bool) -> Pass:
    """The product of the forward pass, or of backward by data."""
    top, left = conv.padding
    if backward:
        return Pass(conv, conv.out, conv.features, conv.size, conv.channels, (2 - top, 2 - left))
    return Pass(conv, conv.size, conv.channels, conv.out, conv.features, (top, left))


def packed_elements(conv: Conv, backward: bool) -> int:
    """Elements of the transformed weights."""
    p = of_pass(conv, backward)
    return PLANES * -(-p.features // p.width) * p.width * p.channels


def packed_layout(conv: Conv, backward: bool) -> tuple[int, ...]:
    """What must agree between the layer that packed weights and the one that reads them."""
    return (PLANES, conv.channels, conv.features, of_pass(conv, backward).width)


def pack_parts(conv: Conv, backward: bool, source: str, to: str) -> list[Part]:
    """Weights k x c x 3 x 3 to panels [plane][columns / width][rows][width]; "by_tap" is scratch."""
    p, c, k, e = of_pass(conv, backward), conv.channels, conv.features, conv.element

    def turn(size: dict[str, int], first: bool, last: bool) -> Made:
        return emit_transpose(c, 9, conv.dtype, conv.target), {}

    def transform(size: dict[str, int], first: bool, last: bool) -> Made:
        whole = (Squares(1, (0, 3), (0, 3)),)
        made = emit_winograd(
            "weights", c, whole, Grid(3 * c, c, 0), Grid(4 * k * c, k * c, 0), conv.dtype,
            conv.target,
        )  # fmt: skip
        return made, {}

    start = PLANES * k * c
    taps = Ref("by_tap", {}, e, per_thread=9 * c, start=start)
    over = {"k": Loop(k, (1,))}
    by_tap = Part("weights by tap", "k", over, turn, {"a": Ref(source, {"k": 9 * c}, e), "c": taps})
    planes = Part(
        "weights in planes", "K", over, transform, {"a": taps, "c": Ref("by_tap", {"k": c}, e)},
        before=(by_tap,),
    )  # fmt: skip
    # taps mirrored: the first plane in each direction changes places with the last one
    mirrored = np.array([4 * (3, 1, 2, 0)[i] + (3, 1, 2, 0)[j] for i in range(4) for j in range(4)])
    number = mirrored if backward else np.arange(PLANES)

    def pack(size: dict[str, int], first: bool, last: bool) -> Made:
        made = emit_packer(
            p.channels, size["n"], c, 0, p.width, conv.dtype, not backward, conv.target
        )
        return made, {"count": 1}

    panels = -(-p.features // p.width) * p.width * p.channels
    words = {
        "a": Ref("by_tap", {"n": 1 if backward else c}, e, table={"p": number * k * c}),
        "c": Ref(to, {"p": panels, "n": p.channels}, e),
    }
    loops = {"p": Loop(PLANES, (1,)), "n": Loop(p.features, (p.width,))}
    return [planes, Part("planes in panels", "PN", loops, pack, words)]


def product_part(p: Pass, x: str, panels: str, y: str, epilogue: tuple[Step, ...], residual: str) -> tuple[Part, dict[str, int]]:
    """Results from NHWC images, and the scratch it takes."""
    conv, e, c, width = p.conv, p.conv.element, p.channels, p.width
    strips = len(p.tiles) - 1
    kinds = list(dict.fromkeys((s.lead, s.reads, s.writes) for s in p.strips))
    kind = np.tile([kinds.index((s.lead, s.reads, s.writes)) for s in p.strips], conv.batch)
    columns = width
    v, m = p.pitch(c), p.pitch(columns)

    def inputs(size: dict[str, int], first: bool, last: bool) -> Made:
        lead, reads, _ = kinds[size["kind"]]
        row = p.size[1] * c
        made = emit_winograd(
            "input", c, reads, Grid(row, c, 2 * c), Grid(4 * v, v, c), conv.dtype, conv.target,
            lead=lead[0] * row + lead[1] * c,
        )  # fmt: skip
        return made, {}

    def multiply(size: dict[str, int], first: bool, last: bool) -> Made:
        kernel = brgemm(
            size["tiles"], size["k"], c, conv.dtype, ldc=columns, packed_b=width,
            target=conv.target, plan={"k_split": 1},
        )  # fmt: skip
        return kernel.code, {"count": 1}

    def outputs(size: dict[str, int], first: bool, last: bool) -> Made:
        k, row = p.features, p.out[1] * p.features
        made = emit_winograd(
            "output", size["k"], kinds[size["kind"]][2], Grid(4 * m, m, columns),
            Grid(row, k, 2 * k), conv.dtype, conv.target, epilogue=epilogue,
        )  # fmt: skip
        return made, {}

    s, k = Loop(strips, (p.block, 1)), Loop(p.features, (columns,))
    variants = {"kind": ("s", kind)}
    before = Part(
        "pixels to planes", "ss", {"s": s}, inputs,
        {"a": Ref(x, {}, e, table={"s": p.table("pixel", p.size, c)}),
         "c": Ref("v", {}, e, per_thread=PLANES * v, table={"s": p.within * c})},
        variants=variants,
    )  # fmt: skip
    to = Ref(y, {"k": 1}, e, table={"s": p.table("result", p.out, p.features)})
    words = {
        "a": Ref("m", {}, e, per_thread=PLANES * m, table={"s": p.within * columns}),
        "c": to,
    }
    for step, *_ in epilogue:
        if step == "bias":
            words["bias"] = Ref("bias", {"k": 1}, e)
        elif step == "residual":
            words["residual"] = Ref(residual, to.steps, e, table=to.table)
    after = Part(
        "planes to results", "sks", {"s": s, "k": k}, outputs, words, variants=variants
    )
    loops = {
        "s": Loop(strips, (p.block,)), "k": Loop(p.features, (columns, width)),
        "p": Loop(PLANES, (1,)),
    }  # fmt: skip
    words = {
        "a": Ref("v", {"p": v}, e, per_thread=PLANES * v),
        "b": Ref(panels, {"p": -(-p.features // width) * width * c, "k": c}, e),
        "c": Ref("m", {"p": m}, e, per_thread=PLANES * m,
                 table={"k": np.arange(p.features) % columns}),
    }  # fmt: skip
    part = Part(
        "planes times planes", "SKpk", loops, multiply, words, before=(before,), after=(after,),
        variants={"tiles": ("s", p.block_tiles)},
    )  # fmt: skip
    return part, {"v": conv.threads * PLANES * v, "m": conv.threads * PLANES * m}


def pack_scratch(conv: Conv) -> int:
    """Elements of scratch "by_tap" of `pack_parts`."""
    return PLANES * conv.features * conv.channels + conv.threads * 9 * conv.channels


@lru_cache(maxsize=256)
def pack_weights(conv: Conv, backward: bool) -> Run:
    """Tensors "w" and "panels"."""
    parts = pack_parts(conv, backward, "w", "panels")
    scratch = {"by_tap": pack_scratch(conv)}
    return Run(parts, ["w", "panels"], conv.threads, conv.target, conv.dtype, scratch)


@lru_cache(maxsize=256)
def forward(conv: Conv, packed: bool) -> Run:
    """Tensors of the caller: "image", "w", "result", then "bias" and "residual" as there are."""
    return _run(conv, False, packed)


@lru_cache(maxsize=256)
def backward_data(conv: Conv, packed: bool) -> Run:
    """Tensors of the caller: "image" (dy), "w", "result" (dx)."""
    return _run(conv, True, packed)


def _run(conv: Conv, backward: bool, packed: bool) -> Run:
    p = of_pass(conv, backward)
    epilogue = () if backward else conv.epilogue
    parts: list[Part] = []
    scratch: dict[str, int] = {}
    x, y, panels, residual = "image", "result", "w", "residual"
    results = conv.batch * p.features * p.out[0] * p.out[1]
    if not packed:
        panels, scratch["panels"] = "panels", packed_elements(conv, backward)
        scratch["by_tap"] = pack_scratch(conv)
        parts += pack_parts(conv, backward, "w", panels)
    if not conv.nhwc:
        x, scratch["x"] = "x", conv.batch * p.channels * p.size[0] * p.size[1]
        parts.append(spread(conv, "image", x, p.channels, p.size, p.size, (0, 0)))
        y, scratch["y"] = "y", results
        if ("residual",) in epilogue:
            residual, scratch["r"] = "r", results
            parts.append(spread(conv, "residual", "r", p.features, p.out, p.out, (0, 0)))
    part, more = product_part(p, x, panels, y, epilogue, residual)
    parts.append(part)
    if not conv.nhwc:
        parts.append(gather(conv, y, "result", p.features, p.out[0] * p.out[1]))
    tensors = ["image", "w", "result"]
    tensors += [step for step, *_ in epilogue if step in ("bias", "residual")]
    return Run(parts, tensors, conv.threads, conv.target, conv.dtype, scratch | more)


@lru_cache(maxsize=256)
def backward_weights(conv: Conv) -> Run:
    raise NotImplementedError


PASSES = ("forward", "data", "weights")


def choose(conv: Conv, algorithm: str | None) -> dict[str, str]:
    """pass -> "direct" or "winograd"; ValueError if `algorithm` is impossible."""
    rule = conv.kernel == (3, 3) and conv.stride == conv.dilation == (1, 1) and conv.groups == 1
    if algorithm == "winograd" and not rule:
        raise ValueError(
            "algorithm='winograd': it needs kernel=3, stride=1, dilation=1 and groups=1"
        )
    if algorithm is None:
        return dict.fromkeys(PASSES, "direct")
    return dict.fromkeys(PASSES, algorithm)
