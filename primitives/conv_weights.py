"""The weight update of a convolution: dw = dy^T x over pixels, all at once or tap by tap.

Its loops: x copies of dw, g groups, k and c pieces of dw, r and s taps, n images, p pixels or rows
of pixels. Letter x upper case: threads sum their share of the pixels into copies of their own, which
are added at the end. Not here: the order and the blocks (`primitives.conv_cost`).
"""

from __future__ import annotations

import re

import numpy as np

from jitgen.dot import emit_dot
from jitgen.elementwise import emit_column_sums
from jitgen.kernel import brgemm
from jitgen.layout import emit_transpose
from jitgen.pack import emit_packer
from primitives.conv_cost import Choice
from primitives.conv_layouts import Conv, Made, even
from primitives.loops import Loop
from primitives.stream import Part, Ref

#: Elements of a call that adds copies
ELEMENTS = 1 << 12


def flat_part(
    conv: Conv, x: str, dy: str, to: str, choice: Choice, x_plain: bool
) -> tuple[Part, int]:
    """All pixels are one sum (1 x 1 taps): x is packed, piece by piece, each just before it is read.

    Tensor x is NHWC, or as the caller's if `x_plain`; dy is as the caller's. Second result: elements
    of the scratch "panels".
    """
    c, k, e, pixels = conv.channels, conv.features, conv.element, conv.out[0] * conv.out[1]
    width = conv.sum_width
    # NHWC images follow one another without a seam
    images, length = (1, conv.batch * pixels) if conv.nhwc else (conv.batch, pixels)
    by_image = choice.copies <= images
    share = (images // choice.copies, length) if by_image else (1, length // choice.copies)
    depth = even(share[1], choice.pixels)
    trans = x_plain and not conv.nhwc
    image = {"n": length * c, "p": 1, "c": length} if trans else {"n": length * c, "p": c, "c": 1}
    dy_image = {"n": length * k, "p": k, "k": 1} if conv.nhwc else {"n": length * k, "p": 1,
                                                                    "k": length}  # fmt: skip
    for steps in (image, dy_image):
        steps["x"] = share[0] * steps["n"] if by_image else share[1] * steps["p"]

    def pack(size: dict[str, int], first: bool, last: bool) -> Made:
        made = emit_packer(
            size["p"], size["c"], length if trans else c, 0, width, conv.dtype, trans, conv.target
        )
        return made, {"count": 1}

    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        kernel = brgemm(
            size["k"], size["c"], size["p"], conv.dtype, lda=k if conv.nhwc else length, ldc=c,
            trans_a=conv.nhwc, packed_b=width, beta=0.0 if first else 1.0, target=conv.target,
        )  # fmt: skip
        return kernel.code, {"count": 1}

    panel = Ref("panels", {}, e, per_thread=width * depth)
    loops = {
        "x": Loop(choice.copies, (1,)), "c": Loop(c, (width,)), "n": Loop(share[0], (1,)),
        "p": Loop(share[1], (depth,)), "k": Loop(k, (even(k, choice.channels),)),
    }  # fmt: skip
    # a piece is packed once for all k inside
    order = choice.order
    outside = re.match(r"(?i).*[xcnp](k?\])?\|?", order)
    assert outside is not None
    outer = {name: loop for name, loop in loops.items() if name in outside[0].lower()}
    packing = Part(
        "pack a piece of a panel", outside[0], outer, pack, {"a": Ref(x, image, e), "c": panel}
    )
    words = {"a": Ref(dy, dy_image, e), "b": panel,
             "c": Ref(to, {"x": k * c, "k": c, "c": 1}, e)}  # fmt: skip
    part = Part("weight gradient of all pixels", order, loops, code, words, "np", (packing,))
    return part, conv.threads * width * depth


def tap_part(
    conv: Conv, x: str, dy: str, to: str, choice: Choice
) -> tuple[Part, dict[str, np.ndarray]]:
    """The gradient tap by tap ([taps][k][c], with few input channels [taps][c][k]), and tables of
    the rows of output pixels that the reduction runs over.

    Tensor x is NHWC with its border; dy is NCHW unless conv.nhwc, and always NHWC if conv.few.
    """
    (c, k), taps, e, inside = conv.group, conv.taps, conv.element, conv.padded
    row, length, pixels = inside[1] * conv.channels, conv.out[1], conv.out[0] * conv.out[1]
    images = np.arange(conv.batch, dtype=np.int64)[:, None]
    lines = np.arange(conv.out[0], dtype=np.int64)
    line = length * (conv.features if conv.nhwc else 1)
    tables = {
        "x_rows": ((images * inside[0] + lines * conv.stride[0]) * row).reshape(-1),
        "y_rows": (images * pixels * conv.features + lines * line).reshape(-1),
    }
    step = conv.stride[1] * conv.channels
    width = conv.sum_width
    copy = len(taps) * conv.features * c

    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        m, n = (size["c"], size["k"]) if conv.few else (size["k"], size["c"])
        if conv.few:
            how = {"lda": step, "ldb": conv.features, "ldc": k, "trans_a": True}
        else:
            how = {"lda": conv.features if conv.nhwc else pixels, "ldb": step, "ldc": c,
                   "trans_a": conv.nhwc}  # fmt: skip
        kernel = brgemm(
            m, n, length, conv.dtype, batch="offset", target=conv.target,
            beta=0.0 if first else 1.0, **how,
        )  # fmt: skip
        return kernel.code, {"count": size["p"]}

    of_x = Ref(x, {"r": conv.dilation[0] * row, "s": conv.dilation[1] * conv.channels, "g": c,
                   "c": 1}, e)  # fmt: skip
    channel = 1 if conv.nhwc else pixels
    of_dy = Ref(dy, {"g": k * channel, "k": channel}, e)
    share = len(tables["x_rows"]) // choice.copies
    x_rows, dy_rows = (Ref(name, {"x": share, "p": 1}, 8) for name in tables)
    place = {"k": 1, "c": k} if conv.few else {"k": c, "c": 1}
    words = {
        "a": of_x if conv.few else of_dy,
        "b": of_dy if conv.few else of_x,
        "c": Ref(to, {"x": copy, "r": conv.kernel[1] * conv.features * c, "s": conv.features * c,
                      "g": k * c, **place}, e),
        "a_offsets": x_rows if conv.few else dy_rows,
        "b_offsets": dy_rows if conv.few else x_rows,
    }  # fmt: skip
    blocks = (width, c) if conv.few else (even(k, choice.channels), width)
    loops = {
        "x": Loop(choice.copies, (1,)), "g": Loop(conv.groups, (1,)),
        "r": Loop(conv.kernel[0], (1,)), "s": Loop(conv.kernel[1], (1,)),
        "k": Loop(k, (blocks[0],)), "c": Loop(c, (blocks[1],)),
        "p": Loop(share, (even(share, max(1, choice.pixels // length)),)),
    }  # fmt: skip
    return Part("weight gradient by tap", choice.order, loops, code, words, "p"), tables


def add_part(conv: Conv, copies: int, source: str, to: str) -> Part:
    """Add the copies of dw."""
    elements = conv.features * conv.group[0] * len(conv.taps)

    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        return emit_column_sums(copies, size["e"], conv.dtype, conv.target, lda=elements), {}

    words = {name: Ref(tensor, {"e": 1}, conv.element)
             for name, tensor in (("a", source), ("c", to))}  # fmt: skip
    return Part("add the copies", "E", {"e": Loop(elements, (ELEMENTS,))}, code, words)


def turn_part(conv: Conv, source: str, to: str) -> Part:
    """The gradient by tap to k x c x taps: taps that lie far apart come together."""
    (c, k), count, e = conv.group, len(conv.taps), conv.element

    def turn(size: dict[str, int], first: bool, last: bool) -> Made:
        columns, ldc = (k, c * count) if conv.few else (c, count)
        made = emit_transpose(
            count, columns, conv.dtype, conv.target, lda=conv.features * c, ldc=ldc
        )
        return made, {}

    if conv.few:
        words = {"a": Ref(source, {"g": k * c, "c": k}, e),
                 "c": Ref(to, {"g": k * c * count, "c": count}, e)}  # fmt: skip
        loops = {"g": Loop(conv.groups, (1,)), "c": Loop(c, (1,))}
    else:
        words = {"a": Ref(source, {"k": c}, e), "c": Ref(to, {"k": c * count}, e)}
        loops = {"k": Loop(conv.features, (1,))}
    return Part("weight gradient k x c x taps", "".join(loops).upper(), loops, turn, words)


def bias_parts(conv: Conv, dy: str) -> list[Part]:
    """The bias gradient, sums of dy by channel. Tensors: constant "ones" (the pixels of an image)
    and scratch "sums" (batch * features) for a plain NCHW dy, whose rows are summed."""
    k, e, pixels = conv.features, conv.element, conv.out[0] * conv.out[1]
    piece = -(-k // conv.threads // 64) * 64

    def rows(size: dict[str, int], first: bool, last: bool) -> Made:
        return emit_dot(size["k"], pixels, pixels, conv.dtype, conv.target), {}

    def columns(size: dict[str, int], first: bool, last: bool) -> Made:
        count = conv.batch * (pixels if conv.nhwc else 1)
        return emit_column_sums(count, size["k"], conv.dtype, conv.target, lda=k), {}

    parts = []
    if not conv.nhwc:
        words = {
            "a": Ref("ones", {}, e), "b": Ref(dy, {"n": k * pixels, "k": pixels}, e),
            "c": Ref("sums", {"n": k, "k": 1}, e),
        }  # fmt: skip
        loops = {"n": Loop(conv.batch, (1,)), "k": Loop(k, (min(k, 64),))}
        parts.append(Part("sums by image", "NK", loops, rows, words))
        dy = "sums"
    refs = {"a": Ref(dy, {"k": 1}, e), "c": Ref("db", {"k": 1}, e)}
    parts.append(Part("bias gradient", "K", {"k": Loop(k, (piece,))}, columns, refs))
    return parts
