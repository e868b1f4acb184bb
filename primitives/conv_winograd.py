"""Winograd's F(2 x 2, 3 x 3) for 3 x 3 convolutions of stride 1: 16 products for 36.

A tile is 2 x 2 results and the 4 x 4 pixels they see. Transformed, the pixels of many tiles are 16
planes of [tile][channel], each multiplied by a plane of transformed weights; what comes out is
transformed to results. A thread does all of that for a block of tiles and of channels of results,
in L2. Pixels beyond the image are never read. Not here: the transforms (`jitgen.winograd`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from jitgen.kernel import brgemm, panel_width
from jitgen.layout import emit_transpose
from jitgen.spec import Step
from jitgen.winograd import Grid, Squares, emit_winograd
from primitives.conv_layouts import Conv, Made, bias_part, gather, spread
from primitives.loops import Loop, iterate
from primitives.run import Run
from primitives.stream import Part, Ref

PLANES = 16
#: Tiles of a block, about: their planes stay in L2
TILES = 56
#: Features and channels of a block of planes of weights in the weight update
BLOCK_FEATURES, BLOCK_CHANNELS = 128, 64
#: What a block of tiles, and one of features, costs beside its work, in tiles and features
TILE_COST, BLOCK_COST = 3, 5
#: Rows of a panel of weights that are transformed at a time: their taps stay in L1
PACK_ROWS = 16
#: Costs that `choose` adds, in multiply-accumulates: for each element of a plane of pixels or
#: results, and for each of a plane of weights by pass; and by how much it must be worth it
TRANSFORM, WEIGHTS, MARGIN = 3.5, {"forward": 1.2, "backward_data": 1.2, "backward_weights": 4.5}, 1.1
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


def pitch(elements: int) -> int:
    """Elements from a plane of so many elements to the next."""
    return -(-elements // CONFLICT) * CONFLICT + GAP


def _slowest(order: str, loops: Mapping[str, Loop], threads: int) -> float:
    """Work of the thread that has most of a nest."""
    nest = iterate(order, loops, threads)
    work = np.prod(list(nest.size.values()), axis=0)
    return float(np.bincount(nest.thread, work).max())


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
        """Strips of a block: about TILES tiles, and as even shares for the threads as can be."""
        strips, tiles = len(self.tiles) - 1, int(self.tiles[-1])
        choices = []
        for block in range(1, strips + 1):
            size = tiles * block / strips
            if TILES / 4 <= size <= 2 * TILES or block == 1:
                loops = {"s": Loop(strips, (block,)), "k": Loop(self.features, (self.width,))}
                work = _slowest("SK", loops, self.conv.threads) * (1 + TILE_COST / size)
                choices.append((work, abs(size - TILES), block))
        return min(choices)[2]

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

    @property
    def panels(self) -> int:
        """Elements from a plane of weights to the next."""
        return pitch(-(-self.features // self.width) * self.width * self.channels)

    def pitch(self, channels: int) -> int:
        """Elements from a plane of a block to the next."""
        return pitch(int(self.block_tiles.max()) * channels)

    def table(self, of: str, size: tuple[int, int], channels: int) -> np.ndarray:
        """Element of the images at which each strip's `of` lies."""
        row = size[1] * channels
        places = [getattr(s, of) for s in self.strips]
        one = np.array([r * row + c * channels for r, c in places], np.int64)
        return (np.arange(self.conv.batch)[:, None] * size[0] * row + one).reshape(-1)

    @cached_property
    def kinds(self) -> list[tuple[Any, ...]]:
        """What the transforms' code for a strip depends on."""
        return list(dict.fromkeys((s.lead, s.reads, s.writes) for s in self.strips))

    @cached_property
    def variants(self) -> dict[str, tuple[str, np.ndarray]]:
        """Number in `kinds` by strip."""
        kind = [self.kinds.index((s.lead, s.reads, s.writes)) for s in self.strips]
        return {"kind": ("s", np.tile(kind, self.conv.batch))}

    @property
    def loop(self) -> Loop:
        """Over strips, in blocks and one by one."""
        return Loop(len(self.tiles) - 1, (self.block, 1))

    def inputs(self, x: str, pitch: int, over: str, most: int) -> Part:
        """Planes "v" of a block of images `x`; where `over` names the loop over channels, `most`
        of them at a time."""
        row = self.size[1] * self.channels
        grid = Grid(row, self.channels, 2 * self.channels)
        places = self.table("pixel", self.size, self.channels)
        return self._planes("input", x, "v", places, self.channels, grid, pitch, over, most)

    def gradients(self, dy: str, pitch: int, over: str, most: int) -> Part:
        """Planes "m" of a block of the gradient of the results."""
        row = self.out[1] * self.features
        grid = Grid(row, self.features, 2 * self.features)
        places = self.table("result", self.out, self.features)
        return self._planes("gradient", dy, "m", places, self.features, grid, pitch, over, most)

    def _planes(
        self, kind: str, source: str, to: str, places: np.ndarray, channels: int, grid: Grid,
        pitch: int, over: str, most: int,
    ) -> Part:  # fmt: skip
        conv, e = self.conv, self.conv.element

        def code(size: dict[str, int], first: bool, last: bool) -> Made:
            lead, reads, writes = self.kinds[size["kind"]]
            made = emit_winograd(
                kind, size.get(over, channels), reads if kind == "input" else writes, grid,
                Grid(4 * pitch, pitch, most), conv.dtype, conv.target,
                lead=lead[0] * grid.down + lead[1] * grid.right if kind == "input" else 0,
            )  # fmt: skip
            return made, {}

        loops = {over: Loop(channels, (most,))} if over else {}
        words = {
            "a": Ref(source, dict.fromkeys(loops, 1), e, table={"s": places}),
            "c": Ref(to, {}, e, per_thread=PLANES * pitch, table={"s": self.within * most}),
        }
        return Part(
            f"{kind} in planes", over + "ss", {**loops, "s": self.loop}, code, words,
            variants=self.variants,
        )  # fmt: skip


def of_pass(conv: Conv, backward: bool) -> Pass:
    """The product of the forward pass, or of backward by data."""
    top, left = conv.padding
    if backward:
        return Pass(conv, conv.out, conv.features, conv.size, conv.channels, (2 - top, 2 - left))
    return Pass(conv, conv.size, conv.channels, conv.out, conv.features, (top, left))


def packed_elements(conv: Conv, backward: bool) -> int:
    """Elements of the transformed weights."""
    return PLANES * of_pass(conv, backward).panels


def packed_layout(conv: Conv, backward: bool) -> tuple[int, ...]:
    """What must agree between the layer that packed weights and the one that reads them."""
    return (PLANES, conv.channels, conv.features, of_pass(conv, backward).width)


def pack_part(conv: Conv, backward: bool, source: str, to: str) -> tuple[Part, dict[str, int]]:
    """Weights k x c x 3 x 3 to panels [plane][columns / width][rows][width], and the scratch it
    takes. Lanes of a panel beyond the last column hold numbers that are of no use."""
    p, c, e = of_pass(conv, backward), conv.channels, conv.element
    width, high, panels = p.width, min(PACK_ROWS, p.channels), p.panels

    def turn(size: dict[str, int], first: bool, last: bool) -> Made:
        columns, lda = (9, 9) if backward else (9 * size["r"], 9 * c)
        made = emit_transpose(size["n"], columns, conv.dtype, conv.target, lda=lda, ldc=width)
        return made, {}

    def transform(size: dict[str, int], first: bool, last: bool) -> Made:
        made = emit_winograd(
            "weights", width, (Squares(size["r"], (0, 3), (0, 3)),),
            Grid(-3 * width, -width, 9 * width) if backward else Grid(3 * width, width, 9 * width),
            Grid(4 * panels, panels, width), conv.dtype, conv.target,
        )  # fmt: skip
        return made, {}

    # backward by data sees the taps mirrored: from the last one on
    taps = Ref("taps", {}, e, per_thread=9 * width * high, start=8 * width if backward else 0)
    loops = {"n": Loop(p.features, (width,)), "r": Loop(p.channels, (high,))}
    place = np.arange(p.channels) % high * 9 * width
    turned = Part(
        "weights by tap", "nrr" if backward else "nr",
        {**loops, "r": Loop(p.channels, (high, 1) if backward else (high,))}, turn,
        {"a": Ref(source, {"n": 9, "r": 9 * c} if backward else {"n": 9 * c, "r": 9}, e),
         "c": replace(taps, table={"r": place}, start=0)},
    )  # fmt: skip
    words = {"a": taps, "c": Ref(to, {"n": p.channels, "r": width}, e)}
    part = Part("weights to planes in panels", "NR", loops, transform, words, before=(turned,))
    return part, {"taps": conv.threads * taps.per_thread}


def product_part(
    p: Pass, x: str, panels: str, y: str, epilogue: tuple[Step, ...], residual: str
) -> tuple[Part, dict[str, int]]:
    """Results from NHWC images, and the scratch it takes."""
    conv, e, c, width = p.conv, p.conv.element, p.channels, p.width
    columns = width
    v, m = p.pitch(c), p.pitch(columns)

    def multiply(size: dict[str, int], first: bool, last: bool) -> Made:
        kernel = brgemm(
            size["tiles"], size["k"], c, conv.dtype, ldc=columns, packed_b=width,
            target=conv.target, plan={"k_split": 1},
        )  # fmt: skip
        return kernel.code, {"count": 1}

    def outputs(size: dict[str, int], first: bool, last: bool) -> Made:
        k, row = p.features, p.out[1] * p.features
        made = emit_winograd(
            "output", size["k"], p.kinds[size["kind"]][2], Grid(4 * m, m, columns),
            Grid(row, k, 2 * k), conv.dtype, conv.target, epilogue=epilogue,
        )  # fmt: skip
        return made, {}

    to = Ref(y, {"k": 1}, e, table={"s": p.table("result", p.out, p.features)})
    words = {
        "a": Ref("m", {}, e, per_thread=PLANES * m, table={"s": p.within * columns}), "c": to
    }
    for step, *_ in epilogue:
        if step == "bias":
            words["bias"] = Ref("bias", {"k": 1}, e)
        elif step == "residual":
            words["residual"] = replace(to, tensor=residual)
    loops = {"s": p.loop, "k": Loop(p.features, (columns,))}
    after = Part("planes to results", "sks", loops, outputs, words, variants=p.variants)
    loops = {
        "s": Loop(p.loop.extent, p.loop.blocks[:1]), "k": Loop(p.features, (columns, width)),
        "p": Loop(PLANES, (1,)),
    }  # fmt: skip
    words = {
        "a": Ref("v", {"p": v}, e, per_thread=PLANES * v),
        "b": Ref(panels, {"p": p.panels, "k": c}, e),
        "c": Ref("m", {"p": m}, e, per_thread=PLANES * m,
                 table={"k": np.arange(p.features) % columns}),
    }  # fmt: skip
    part = Part(
        "planes times planes", "SKpk", loops, multiply, words, "", (p.inputs(x, v, "", c),),
        (after,), {"tiles": ("s", p.block_tiles)},
    )  # fmt: skip
    return part, {"v": conv.threads * PLANES * v, "m": conv.threads * PLANES * m}


@lru_cache(maxsize=256)
def pack_weights(conv: Conv, backward: bool) -> Run:
    """Tensors "w" and "panels"."""
    part, scratch = pack_part(conv, backward, "w", "panels")
    return Run([part], ["w", "panels"], conv.threads, conv.target, conv.dtype, scratch)


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
        part, more = pack_part(conv, backward, "w", panels)
        parts.append(part)
        scratch |= more
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
    """Tensors of the caller: "dy", "image", "dw", and "db" if there is a bias.

    A thread sums a block of the weights' planes, of `kb` features by `cb` channels, over all tiles:
    planes of gradients (tiles x kb), transposed, times planes of pixels (tiles x cb).
    """
    p, e = of_pass(conv, False), conv.element
    parts: list[Part] = []
    scratch: dict[str, int] = {}
    x, dy = "image", "dy"
    if not conv.nhwc:
        x, scratch["x"] = "x", conv.batch * conv.channels * conv.size[0] * conv.size[1]
        parts.append(spread(conv, "image", x, conv.channels, conv.size, conv.size, (0, 0)))
        dy, scratch["y"] = "y", conv.batch * conv.features * conv.out[0] * conv.out[1]
        parts.append(spread(conv, "dy", dy, conv.features, conv.out, conv.out, (0, 0)))
    kb, cb = _blocks(conv)
    v, m, u = p.pitch(cb), p.pitch(kb), pitch(kb * cb)

    def multiply(size: dict[str, int], first: bool, last: bool) -> Made:
        kernel = brgemm(
            size["k"], size["c"], size["tiles"], conv.dtype, lda=kb, ldb=cb, ldc=cb, trans_a=True,
            beta=0.0 if first else 1.0, target=conv.target, plan={"k_split": 1},
        )  # fmt: skip
        return kernel.code, {"count": 1}

    def back(size: dict[str, int], first: bool, last: bool) -> Made:
        whole = (Squares(size["k"], (0, 4), (0, 4)),)
        made = emit_winograd(
            "weight gradient", size["c"], whole, Grid(4 * u, u, cb), Grid(3 * cb, cb, 9 * cb),
            conv.dtype, conv.target,
        )  # fmt: skip
        return made, {}

    def turn(size: dict[str, int], first: bool, last: bool) -> Made:
        return emit_transpose(9, size["c"], conv.dtype, conv.target, lda=cb, ldc=9), {}

    k, c, s = Loop(conv.features, (kb,)), Loop(conv.channels, (cb,)), p.loop
    planes = {name: Ref(name, {"p": pitch}, e, per_thread=PLANES * pitch)
              for name, pitch in (("v", v), ("m", m), ("u", u))}  # fmt: skip
    block = Ref("by_tap", {}, e, per_thread=9 * kb * cb)
    rows = Loop(conv.features, (kb, 1))
    after = (
        Part("planes to weights", "kc", {"k": k, "c": c}, back, {"a": replace(planes["u"], steps={}), "c": block}),
        Part("weight gradient k x c x taps", "kck", {"k": rows, "c": c}, turn, {
            "a": replace(block, table={"k": np.arange(conv.features) % kb * 9 * cb}),
            "c": Ref("dw", {"k": 9 * conv.channels, "c": 9}, e),
        }),
    )  # fmt: skip
    parts.append(Part(
        "planes of weights", "KCsp",
        {"k": k, "c": c, "s": Loop(s.extent, s.blocks[:1]), "p": Loop(PLANES, (1,))}, multiply,
        {"a": planes["m"], "b": planes["v"], "c": planes["u"]}, "s",
        (p.inputs(x, v, "c", cb), p.gradients(dy, m, "k", kb)), after,
        {"tiles": ("s", p.block_tiles)},
    ))  # fmt: skip
    if conv.bias:
        parts.append(bias_part(conv, dy))
    scratch |= {ref.tensor: conv.threads * ref.per_thread for ref in (*planes.values(), block)}
    tensors = ["dy", "image", "dw", *(["db"] if conv.bias else [])]
    return Run(parts, tensors, conv.threads, conv.target, conv.dtype, scratch)


def _blocks(conv: Conv) -> tuple[int, int]:
    """Features and channels of a block of the weights' planes: as many as L2 holds, fewer where
    that leaves threads without work."""
    cb = min(conv.channels, BLOCK_CHANNELS)
    choices = []
    for most in (BLOCK_FEATURES >> i for i in range(4)):
        kb = min(conv.features, most)
        loops = {"k": Loop(conv.features, (kb,)), "c": Loop(conv.channels, (cb,))}
        choices.append((_slowest("KC", loops, conv.threads) * (1 + BLOCK_COST / kb), kb))
    return min(choices)[1], cb


def choose(conv: Conv, algorithm: str | None) -> dict[str, str]:
    """The algorithm of each pass: the one asked for or, for None, the one that costs less.

    Costs are multiply-accumulates of whole vectors: those of the products; TRANSFORM for each
    element of a plane of pixels or results; WEIGHTS for each element of a plane of weights.
    ValueError if `algorithm` is none, or impossible.
    """
    if algorithm not in (None, "direct", "winograd"):
        raise ValueError(f"algorithm={algorithm!r} is not 'direct', 'winograd' or None")
    possible = conv.kernel == (3, 3) and conv.stride == conv.dilation == (1, 1)
    possible &= conv.groups == 1
    if algorithm == "winograd" and not possible:
        raise ValueError(
            "algorithm='winograd' is for kernel=3, stride=1, dilation=1 and groups=1, not for "
            f"kernel={conv.kernel}, stride={conv.stride}, dilation={conv.dilation}, "
            f"groups={conv.groups}"
        )
    if algorithm is not None or not possible:
        return dict.fromkeys(WEIGHTS, algorithm or "direct")
    chosen = {}
    for name, weights in WEIGHTS.items():
        p = of_pass(conv, name == "backward_data")
        lanes = conv.target.machine(conv.dtype, p.features).lanes
        c, k = (-(-x // lanes) * lanes for x in (p.channels, p.features))
        places = np.arange(p.out[0])[:, None] - p.border[0] + np.arange(3)
        # the direct forward pass leaves out rows of taps that see the border only
        seen = 3 * p.out[0] if name == "backward_weights" else ((places >= 0) & (places < p.size[0])).sum()
        direct = conv.batch * int(seen) * 3 * p.out[1] * p.channels * k
        planes = int(p.tiles[-1]) * (p.channels * k + TRANSFORM * (c + k))
        cost = PLANES * (planes + weights * p.channels * p.features)
        chosen[name] = "winograd" if MARGIN * cost < direct else "direct"
    return chosen
