"""Convolution by Winograd's F(2 x 2, 3 x 3): 16 multiplications for 36 (arXiv:1509.09308).

The pixels of a block of tiles, transformed, are 16 planes [tile][channel]; each is multiplied by a
plane of transformed weights, and the products are transformed to results, all by one thread and in
L2. For 3 x 3 kernels of stride 1; pixels beyond the image are not read. Not here: the transforms
(`jitgen.kernels.winograd`), tiles (`jitgen.primitives.conv.tiles`).
"""

from __future__ import annotations

import numpy as np

from jitgen.emit.steps import Step, operands
from jitgen.kernels.layout import emit_transpose
from jitgen.kernels.winograd import Grid, Squares, emit_winograd
from jitgen.primitives.conv.layouts import Conv, Strides, images
from jitgen.primitives.conv.parts import Parts
from jitgen.primitives.conv.tiles import (
    PLANES,
    Pass,
    of_pass,
    pitch,
    pixel_grid,
    plane_grid,
    slowest,
)
from jitgen.primitives.conv.weights import bias_parts
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.nest import Nest
from jitgen.primitives.nest.run import Run
from jitgen.primitives.nest.stream import Made, Part
from jitgen.primitives.nest.tensor import Tensor
from jitgen.run.cache import STREAMS

#: Rows of a panel of weights that are transformed at a time: their taps stay in L1
PACK_ROWS = 16
#: Features and channels of a block of planes of weights in the weight update, at most, and what a
#: block costs beside its work, in features
BLOCK_FEATURES, BLOCK_CHANNELS, BLOCK_COST = 128, 64, 5

# ---- weights ------------------------------------------------------------------------------------


def packed_layout(conv: Conv, backward: bool) -> tuple[tuple[int, ...], tuple[int]]:
    """What must agree between the layer that packed weights and the one that reads them, and the
    shape of the packed weights."""
    p = of_pass(conv, backward)
    return (PLANES, conv.channels, conv.features, p.width), (p.panels("").elements,)


def _pack_part(p: Pass, backward: bool, to: Tensor) -> tuple[Part, dict[str, int]]:
    """Weights k x c x 3 x 3 (tensor "w") to planes of panels, and the scratch it takes. Lanes of a
    panel beyond the last column hold numbers that nobody uses."""
    conv, width, high = p.conv, p.width, min(PACK_ROWS, p.channels)
    layout = "c k t" if backward else "k c t"
    w = Tensor("w", layout, conv.dtype, k=p.features, c=p.channels, t=9)
    taps = Tensor("taps", "c t k", conv.dtype, own=True, c=high, t=9, k=width)

    def turn(size: dict[str, int], first: bool, last: bool) -> Made:
        columns, lda = 9 if backward else 9 * size["c"], w.stride("k")
        made = emit_transpose(size["k"], columns, conv.dtype, conv.target, lda=lda, ldc=width)
        return made, {}

    # backward by data sees the taps mirrored: from the last one on
    step = -width if backward else width
    grids = Grid(3 * step, step, taps.stride("c")), plane_grid(to, "c")

    def transform(size: dict[str, int], first: bool, last: bool) -> Made:
        squares = (Squares(size["c"], (0, 3), (0, 3)),)
        return emit_winograd("weights", width, squares, *grids, conv.dtype, conv.target), {}

    k, c = Loop(p.features, (width,)), Loop(p.channels, (high, 1) if backward else (high,))
    turned = Nest("kcc" if backward else "kc", {"k": k, "c": c}, conv.dtype, conv.target).call(
        "weights by tap", turn,
        {"a": w.at(k="k", c="c"), "c": taps.at(c=("c", np.arange(p.channels) % high))},
    )  # fmt: skip
    loops = {"k": k, "c": Loop(p.channels, (high,))}
    part = Nest("kc" if to.own else "KC", loops, conv.dtype, conv.target).call(
        "weights to planes in panels", transform,
        {"a": taps.at(t=8 if backward else 0),
         "c": to.at(c="c") if to.own else to.at(k="k", c="c")}, before=(turned,),
    )  # fmt: skip
    return part, {"taps": conv.threads * taps.elements}


@STREAMS.of
def pack_weights(conv: Conv, backward: bool) -> Run:
    """Tensors "w" and "panels"."""
    p = of_pass(conv, backward)
    part, scratch = _pack_part(p, backward, p.panels("panels"))
    return Run([part], ["w", "panels"], conv.threads, conv.target, conv.dtype, scratch)


# ---- forward, and backward by data --------------------------------------------------------------


@STREAMS.of
def forward(conv: Conv, packed: bool, strides: Strides = ()) -> Run:
    """Tensors of the caller: "image", "w", "result", then "bias" and "residual" as there are."""
    return _products(conv, False, packed, conv.epilogue, strides)


@STREAMS.of
def backward_data(conv: Conv, packed: bool, strides: Strides = ()) -> Run:
    """Tensors of the caller: "image" (dy), "w", "result" (dx)."""
    return _products(conv, True, packed, (), strides)


def _products(
    conv: Conv, backward: bool, packed: bool, epilogue: tuple[Step, ...], strides: Strides
) -> Run:
    """For each block of tiles and panel of weights, all planes."""
    p, made = of_pass(conv, backward), Parts(conv, strides)
    # panels that are read once are made just before that, for the thread alone
    own = not packed and p.strips.extent == p.strips.blocks[0]
    w, weights = p.panels("w" if packed else "panels", own), list[Part]()
    if not packed:
        part, made.scratch = _pack_part(p, backward, w)
        made.scratch["panels"] = w.elements * (conv.threads if own else 1)
        (weights if own else made.parts).append(part)
    x = made.nhwc("image", "image NHWC", p.channels, p.size)
    y = made.result(p.features, p.out, "result NHWC")
    more = operands(epilogue)
    at, variants, kinds = p.tiles(2)
    v, m = p.planes("v", p.channels), p.planes("m", p.width, "k")
    words = {"a": m.at(s=p.within), "c": y.at(**at, c="k")}
    of_residual = None
    if "bias" in more:
        words["bias"] = Tensor("bias", "c", conv.dtype, c=p.features).at(c="k")
    if "residual" in more:
        residual = made.nhwc("residual", "residual NHWC", p.features, p.out)
        words["residual"], of_residual = residual.at(**at, c="k"), pixel_grid(residual)

    def finish(size: dict[str, int], first: bool, last: bool) -> Made:
        return emit_winograd(
            "output", size["k"], kinds[size["row"]][-1], plane_grid(m, "t"), pixel_grid(y),
            conv.dtype, conv.target, epilogue=epilogue, residual=of_residual,
        ), {}  # fmt: skip

    k = Loop(p.features, (p.width,))
    after = Nest("sks", {"s": p.strips, "k": k}, conv.dtype, conv.target).call(
        "planes to results", finish, words, variants=variants
    )
    loops = {"s": p.blocks, "k": k, "p": Loop(PLANES, (1,))}
    # sums in one order, whatever the size of the block
    made.parts.append(Nest("SKp", loops, conv.dtype, conv.target).gemm(
        v.at(p="p"), w.at(p="p") if own else w.at(p="p", k="k"), m.at(p="p"), m="s t", n="k",
        k="c", plan={"k_split": 1}, title="planes times weights",
        before=(p.part("input", x, v), *weights), after=(after,),
    ))  # fmt: skip
    made.scratch |= {planes.name: conv.threads * planes.elements for planes in (v, m)}
    return made.finish(y, p.out, *more)


# ---- weight update ------------------------------------------------------------------------------


@STREAMS.of
def backward_weights(conv: Conv, strides: Strides = ()) -> Run:
    """Tensors of the caller: "dy", "image", "dw", and "db" if there is a bias.

    A thread sums a block of the weights' planes, some features by some channels, over all tiles:
    planes of gradients (tiles x features), transposed, times planes of pixels (tiles x channels).
    """
    p, made = of_pass(conv, False), Parts(conv, strides)
    x = made.nhwc("image", "image NHWC", conv.channels, conv.size)
    # the bias' gradient sums images without gaps
    copied = images(conv, "dy", conv.features, conv.out, strides).merged("h", "w") is None
    dy = made.nhwc("dy", "dy NHWC", conv.features, conv.out, axis="k", copied=conv.bias and copied)
    high, wide = _block(conv)
    v, m = p.planes("v", wide), p.planes("m", high, "k")
    u = Tensor("u", "p k c", conv.dtype, own=True, p=PLANES, k=high, c=wide,
               strides={"p": pitch(high * wide)})  # fmt: skip
    by_tap = Tensor("by_tap", "t c", conv.dtype, own=True, t=9, c=wide)
    dw = Tensor("dw", "k c t", conv.dtype, k=conv.features, c=conv.channels, t=9)
    made.scratch |= {own.name: conv.threads * own.elements for own in (v, m, u, by_tap)}

    def back(size: dict[str, int], first: bool, last: bool) -> Made:
        grids = plane_grid(u, "c")._replace(square=0), Grid(3 * wide, wide, 0)
        squares = (Squares(1, (0, 4), (0, 4)),)
        return emit_winograd("weight gradient", size["c"], squares, *grids, conv.dtype,
                             conv.target), {}  # fmt: skip

    k, c = Loop(conv.features, (high,)), Loop(conv.channels, (wide,))
    each = Loop(conv.features, (1,))
    by_taps = Nest("kc", {"k": each, "c": c}, conv.dtype, conv.target).call(
        "planes to weights", back,
        {"a": u.at(k=("k", np.arange(conv.features) % high)), "c": by_tap.at()},
    )  # fmt: skip
    loops = {"k": Loop(conv.features, (high, 1)), "c": c}
    after = Nest("kck", loops, conv.dtype, conv.target).relayout(
        by_tap.at(), dw.at(k="k", c="c"), title="weight gradient k x c x taps", before=(by_taps,)
    )
    loops = {"k": k, "c": c, "s": p.blocks, "p": Loop(PLANES, (1,))}
    made.parts.append(Nest("KCsp", loops, conv.dtype, conv.target, "s").gemm(
        m.at(p="p"), v.at(p="p"), u.at(p="p"), m="k", n="c", k="s t", plan={"k_split": 1},
        title="planes of weights", after=(after,),
        before=(p.part("input", x, v, "c"), p.part("gradient", dy, m, "k")),
    ))  # fmt: skip
    if conv.bias:
        made.scratch["sums"] = conv.batch * conv.features
        made.parts += bias_parts(conv, dy)
    return made.run("dy", "image", "dw", *(["db"] if conv.bias else []))


def _block(conv: Conv) -> tuple[int, int]:
    """Features and channels of a block of the weights' planes: as many as L2 holds, fewer where
    threads would be left without work."""
    wide = min(conv.channels, BLOCK_CHANNELS)
    choices = []
    for high in {min(conv.features, BLOCK_FEATURES >> i) for i in range(4)}:
        loops = {"k": Loop(conv.features, (high,)), "c": Loop(conv.channels, (wide,))}
        choices.append((slowest("KC", loops, conv.threads) * (1 + BLOCK_COST / high), high))
    return min(choices)[1], wide
