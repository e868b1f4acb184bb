"""Convolution by Winograd's F(2 x 2, 3 x 3): 16 multiplications for 36 (arXiv:1509.09308).

The pixels of a block of tiles, transformed, are 16 planes [tile][channel]; each is multiplied by a
plane of transformed weights, and the products are transformed to results, all by one thread and in
L2. For 3 x 3 kernels of stride 1; pixels beyond the image are not read. Not here: the transforms
(`jitgen.kernels.winograd`), tiles (`jitgen.primitives.conv.tiles`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jitgen.emit.steps import Step, operands
from jitgen.gemm.kernel import brgemm
from jitgen.kernels.layout import emit_transpose
from jitgen.kernels.winograd import Grid, Squares, emit_winograd
from jitgen.primitives.conv.layouts import Conv, from_nhwc, images, to_nhwc
from jitgen.primitives.conv.tiles import PLANES, Pass, of_pass, pitch, slowest
from jitgen.primitives.conv.weights import bias_parts
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.run import Run
from jitgen.primitives.nest.stream import Made, Part, Ref
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
    return (PLANES, conv.channels, conv.features, p.width), (PLANES * p.panels,)


def _pack_part(conv: Conv, backward: bool, to: str, own: bool) -> tuple[Part, dict[str, int]]:
    """Weights k x c x 3 x 3 to panels [plane][columns / width][rows][width], and the scratch it
    takes. Lanes of a panel beyond the last column hold numbers that nobody uses. `own`: to one
    panel that each thread has for itself."""
    p, c, e = of_pass(conv, backward), conv.channels, conv.element
    width, high = p.width, min(PACK_ROWS, p.channels)
    panels = p.panel if own else p.panels

    def turn(size: dict[str, int], first: bool, last: bool) -> Made:
        columns, lda = (9, 9) if backward else (9 * size["r"], 9 * c)
        made = emit_transpose(size["k"], columns, conv.dtype, conv.target, lda=lda, ldc=width)
        return made, {}

    # backward by data sees the taps mirrored: from the last one on
    sign, start = (-1, 8 * width) if backward else (1, 0)

    def transform(size: dict[str, int], first: bool, last: bool) -> Made:
        made = emit_winograd(
            "weights", width, (Squares(size["r"], (0, 3), (0, 3)),),
            Grid(3 * sign * width, sign * width, 9 * width), Grid(4 * panels, panels, width),
            conv.dtype, conv.target,
        )  # fmt: skip
        return made, {}

    taps = Ref("taps", {}, e, per_thread=9 * width * high)
    loops = {"k": Loop(p.features, (width,)), "r": Loop(p.channels, (high,))}
    place = {"r": np.arange(p.channels) % high * 9 * width}
    turned = Part(
        "weights by tap", "krr" if backward else "kr",
        {**loops, "r": Loop(p.channels, (high, 1) if backward else (high,))}, turn,
        {"a": Ref("w", {"k": 9, "r": 9 * c} if backward else {"k": 9 * c, "r": 9}, e),
         "c": replace(taps, table=place)},
    )  # fmt: skip
    panel = Ref(to, {"r": width} if own else {"k": p.channels, "r": width}, e,
                per_thread=PLANES * panels if own else 0)  # fmt: skip
    part = Part(
        "weights to planes in panels", "kr" if own else "KR", loops, transform,
        {"a": replace(taps, start=start), "c": panel}, before=(turned,),
    )  # fmt: skip
    sizes = {"taps": conv.threads * taps.per_thread}
    return part, {**sizes, to: (conv.threads if own else 1) * PLANES * panels}


@STREAMS.of
def pack_weights(conv: Conv, backward: bool) -> Run:
    """Tensors "w" and "panels"."""
    part, scratch = _pack_part(conv, backward, "panels", False)
    del scratch["panels"]
    return Run([part], ["w", "panels"], conv.threads, conv.target, conv.dtype, scratch)


# ---- forward, and backward by data --------------------------------------------------------------


@STREAMS.of
def forward(conv: Conv, packed: bool) -> Run:
    """Tensors of the caller: "image", "w", "result", then "bias" and "residual" as there are."""
    return _products(conv, False, packed, conv.epilogue)


@STREAMS.of
def backward_data(conv: Conv, packed: bool) -> Run:
    """Tensors of the caller: "image" (dy), "w", "result" (dx)."""
    return _products(conv, True, packed, ())


def _products(conv: Conv, backward: bool, packed: bool, epilogue: tuple[Step, ...]) -> Run:
    p = of_pass(conv, backward)
    parts: list[Part] = []
    scratch: dict[str, int] = {}
    tensors = ["image", "w", "result", *operands(epilogue)]
    names = {name: name for name in tensors}
    # panels that are read once are made just before that
    own = not packed and p.strips.extent == p.strips.blocks[0]
    weights: tuple[Part, ...] = ()
    if not packed:
        names["w"] = "panels"
        part, scratch = _pack_part(conv, backward, "panels", own)
        weights, parts = ((part,), []) if own else ((), [part])
    if not conv.nhwc:
        for name, channels, size in (
            ("image", p.channels, p.size), ("result", p.features, p.out),
            ("residual", p.features, p.out),
        ):  # fmt: skip
            if name in names:
                names[name] = f"{name} NHWC"
                scratch[names[name]] = conv.batch * channels * size[0] * size[1]
                if name != "result":
                    parts.append(to_nhwc(conv, name, names[name], channels, size))
    parts.append(_product_part(p, names, epilogue, weights))
    scratch["v"] = conv.threads * PLANES * p.pitch(p.channels)
    scratch["m"] = conv.threads * PLANES * p.pitch(p.width)
    if not conv.nhwc:
        parts.append(from_nhwc(conv, names["result"], "result", p.features, p.out))
    return Run(parts, tensors, conv.threads, conv.target, conv.dtype, scratch)


def _product_part(
    p: Pass, names: dict[str, str], epilogue: tuple[Step, ...], weights: tuple[Part, ...]
) -> Part:
    """For each block of tiles and panel of weights, all planes; tensors by what they are. Parts
    `weights` make the panel, of the thread's own, if there are any."""
    conv, e, c, width = p.conv, p.conv.element, p.channels, p.width
    v, m, line = p.pitch(c), p.pitch(width), p.out[1] * p.features
    places, kinds = p.results()

    def multiply(size: dict[str, int], first: bool, last: bool) -> Made:
        # sums in one order, whatever the size of the block
        kernel = brgemm(
            size["s"] * p.grid[1], size["k"], c, conv.dtype, ldc=width, packed_b=width,
            target=conv.target, plan={"k_split": 1},
        )  # fmt: skip
        return kernel, {"count": 1}

    def finish(size: dict[str, int], first: bool, last: bool) -> Made:
        made = emit_winograd(
            "output", size["k"], kinds[size["row"]][1], Grid(4 * m, m, width),
            Grid(line, p.features, 2 * p.features), conv.dtype, conv.target, epilogue=epilogue,
        )  # fmt: skip
        return made, {}

    result = Ref(names["result"], {"k": 1}, e, table=places)
    words = {"a": Ref("m", {}, e, per_thread=PLANES * m, table=p.within(width)), "c": result}
    if "bias" in names:
        words["bias"] = Ref("bias", {"k": 1}, e)
    if "residual" in names:
        words["residual"] = replace(result, tensor=names["residual"])
    k = Loop(p.features, (width,))
    after = Part(
        "planes to results", "sks", {"s": p.strips, "k": k}, finish, words,
        variants=p.row_of_tiles(kinds),
    )  # fmt: skip
    words = {
        "a": Ref("v", {"p": v}, e, per_thread=PLANES * v),
        "b": Ref(names["w"], {"p": p.panel}, e, per_thread=PLANES * p.panel) if weights else Ref(
            names["w"], {"p": p.panels, "k": c}, e
        ),
        "c": Ref("m", {"p": m}, e, per_thread=PLANES * m),
    }
    loops = {"s": p.blocks, "k": k, "p": Loop(PLANES, (1,))}
    return Part(
        "planes times weights", "SKp", loops, multiply, words,
        before=(p.planes("input", names["image"], "v"), *weights), after=(after,),
    )  # fmt: skip


# ---- weight update ------------------------------------------------------------------------------


@STREAMS.of
def backward_weights(conv: Conv) -> Run:
    """Tensors of the caller: "dy", "image", "dw", and "db" if there is a bias.

    A thread sums a block of the weights' planes, some features by some channels, over all tiles:
    planes of gradients (tiles x features), transposed, times planes of pixels (tiles x channels).
    """
    p, e = of_pass(conv, False), conv.element
    parts: list[Part] = []
    scratch: dict[str, int] = {}
    x, dy = "image", "dy"
    if not conv.nhwc:
        x, dy = "image NHWC", "dy NHWC"
        scratch[x] = conv.batch * conv.channels * conv.size[0] * conv.size[1]
        scratch[dy] = conv.batch * conv.features * conv.out[0] * conv.out[1]
        parts = [
            to_nhwc(conv, "image", x, conv.channels, conv.size),
            to_nhwc(conv, "dy", dy, conv.features, conv.out),
        ]
    high, wide = _block(conv)
    v, m, u = p.pitch(wide), p.pitch(high), pitch(high * wide)

    def multiply(size: dict[str, int], first: bool, last: bool) -> Made:
        kernel = brgemm(
            size["k"], size["c"], size["s"] * p.grid[1], conv.dtype, lda=high, ldb=wide, ldc=wide,
            trans_a=True, beta=0.0 if first else 1.0, target=conv.target, plan={"k_split": 1},
        )  # fmt: skip
        return kernel, {"count": 1}

    def back(size: dict[str, int], first: bool, last: bool) -> Made:
        made = emit_winograd(
            "weight gradient", size["c"], (Squares(1, (0, 4), (0, 4)),), Grid(4 * u, u, 0),
            Grid(3 * wide, wide, 0), conv.dtype, conv.target,
        )  # fmt: skip
        return made, {}

    def turn(size: dict[str, int], first: bool, last: bool) -> Made:
        return emit_transpose(9, size["c"], conv.dtype, conv.target, lda=wide, ldc=9), {}

    planes = {name: Ref(name, {}, e, per_thread=PLANES * apart)
              for name, apart in (("v", v), ("m", m), ("u", u))}  # fmt: skip
    by_tap = Ref("by_tap", {}, e, per_thread=9 * wide)
    scratch |= {ref.tensor: conv.threads * ref.per_thread for ref in (*planes.values(), by_tap)}
    k, c = Loop(conv.features, (high,)), Loop(conv.channels, (wide,))
    row = {"k": np.arange(conv.features) % high * wide}
    by_taps = Part(
        "planes to weights", "kc", {"k": Loop(conv.features, (1,)), "c": c}, back,
        {"a": replace(planes["u"], table=row), "c": by_tap},
    )  # fmt: skip
    after = Part(
        "weight gradient k x c x taps", "kck", {"k": Loop(conv.features, (high, 1)), "c": c}, turn,
        {"a": by_tap, "c": Ref("dw", {"k": 9 * conv.channels, "c": 9}, e)}, before=(by_taps,),
    )  # fmt: skip
    words = {
        "a": replace(planes["m"], steps={"p": m}), "b": replace(planes["v"], steps={"p": v}),
        "c": replace(planes["u"], steps={"p": u}),
    }  # fmt: skip
    parts.append(Part(
        "planes of weights", "KCsp", {"k": k, "c": c, "s": p.blocks, "p": Loop(PLANES, (1,))},
        multiply, words, "s", after=(after,),
        before=(p.planes("input", x, "v", "c", wide), p.planes("gradient", dy, "m", "k", high)),
    ))  # fmt: skip
    if conv.bias:
        scratch["sums"] = conv.batch * conv.features
        parts += bias_parts(conv, images(conv, dy, conv.features, conv.out, axis="k", nhwc=True))
    tensors = ["dy", "image", "dw", *(["db"] if conv.bias else [])]
    return Run(parts, tensors, conv.threads, conv.target, conv.dtype, scratch)


def _block(conv: Conv) -> tuple[int, int]:
    """Features and channels of a block of the weights' planes: as many as L2 holds, fewer where
    threads would be left without work."""
    wide = min(conv.channels, BLOCK_CHANNELS)
    choices = []
    for high in {min(conv.features, BLOCK_FEATURES >> i) for i in range(4)}:
        loops = {"k": Loop(conv.features, (high,)), "c": Loop(conv.channels, (wide,))}
        choices.append((slowest("KC", loops, conv.threads) * (1 + BLOCK_COST / high), high))
    return min(choices)[1], wide
