"""The weight update of a convolution: dw = dy^T x over pixels, all at once or tap by tap.

Its loops: x copies of dw, g groups, k and c pieces of dw, r and s taps, n images, p pixels or rows
of pixels. Upper case x: threads sum their share of the pixels into copies of their own, which are
added at the end. Not here: the order and the blocks (`jitgen.primitives.conv.cost`).
"""

from __future__ import annotations

import re

import numpy as np

from jitgen.gemm.kernel import brgemm
from jitgen.kernels import dot
from jitgen.kernels.dot import emit_dot
from jitgen.kernels.elementwise import emit_column_sums
from jitgen.kernels.layout import emit_transpose
from jitgen.kernels.pack import emit_packer
from jitgen.primitives.conv.cost import Choice, check_block, most_summed
from jitgen.primitives.conv.layouts import Conv, even
from jitgen.primitives.nest.limits import check_reach
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.stream import Made, Part, Ref

#: Elements of a call that adds copies
ELEMENTS = 1 << 12


def flat_part(
    conv: Conv, x: str, dy: str, to: str, choice: Choice, x_rows: bool
) -> tuple[Part, int]:
    """All pixels are one sum (1 x 1 taps): x (dy, if conv.few) is packed, piece by piece, each just
    before it is read. x is NHWC if `x_rows`, dy if `conv.nhwc`; else they are NCHW.

    Second result: elements of the scratch "panels".
    """
    e, pixels, width = conv.element, conv.out[0] * conv.out[1], conv.sum_width
    # NHWC images follow one another without a seam
    images, length = (1, conv.batch * pixels) if conv.nhwc else (conv.batch, pixels)
    by_image = choice.copies <= images
    share = (images // choice.copies, length) if by_image else (1, length // choice.copies)
    depth = even(share[1], choice.pixels)
    sides = {"c": (x, conv.channels, x_rows), "k": (dy, conv.features, conv.nhwc)}
    m, n = "kc" if not conv.few else "ck"
    (left, rows, left_rows), (right, columns, right_rows) = sides[m], sides[n]

    check_block("pixels", depth, most_summed(conv)[0])
    check_block("channels", even(rows, choice.channels), most_summed(conv)[1])

    def at(tensor: str, letter: str, channels: int, in_rows: bool) -> Ref:
        steps = {"n": length * channels, "p": channels, letter: 1}
        if not in_rows:
            steps |= {"p": 1, letter: length}
        steps["x"] = share[0] * steps["n"] if by_image else share[1] * steps["p"]
        return Ref(tensor, steps, e)

    def pack(size: dict[str, int], first: bool, last: bool) -> Made:
        made = emit_packer(
            size["p"], size[n], columns if right_rows else length, 0, width, conv.dtype,
            not right_rows, conv.target,
        )  # fmt: skip
        return made, {"count": 1}

    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        kernel = brgemm(
            size[m], size[n], size["p"], conv.dtype, lda=rows if left_rows else length,
            ldc=columns, trans_a=left_rows, packed_b=width, beta=0.0 if first else 1.0,
            target=conv.target,
        )  # fmt: skip
        return kernel, {"count": 1}

    panel = Ref("panels", {}, e, per_thread=width * depth)
    loops = {
        "x": Loop(choice.copies, (1,)), n: Loop(columns, (width,)), "n": Loop(share[0], (1,)),
        "p": Loop(share[1], (depth,)), m: Loop(rows, (even(rows, choice.channels),)),
    }  # fmt: skip
    # a piece is packed once for all blocks of the other side inside, by the thread that reads it
    outside = re.match(rf".*[xnp{n}A-Z]({m}?\])?\|?", choice.order)
    assert outside is not None
    outer = {name: loop for name, loop in loops.items() if name in outside[0].lower()}
    packing = Part(
        "pack a piece of a panel", outside[0], outer, pack,
        {"a": at(right, n, columns, right_rows), "c": panel},
    )  # fmt: skip
    words = {"a": at(left, m, rows, left_rows), "b": panel,
             "c": Ref(to, {"x": rows * columns, m: columns, n: 1}, e)}  # fmt: skip
    part = Part(
        "weight gradient of all pixels", choice.order, loops, code, words, "np", (packing,)
    )
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
    n_all = k if conv.few else c

    # a row of pixels is the sum of a call
    check_reach(
        conv.arguments, conv.dtype, a_row_of_x_with_its_border=row,
        a_row_of_y=length * (conv.features if conv.nhwc else 1), the_weights_of_a_tap=n_all * (
            c if conv.few else 1
        ),
    )  # fmt: skip

    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        m, n = (size["c"], size["k"]) if conv.few else (size["k"], size["c"])
        by_pixel = conv.features if conv.nhwc else pixels
        kernel = brgemm(
            m, n, length, conv.dtype, lda=step if conv.few else by_pixel, trans_a=conv.nhwc,
            ldb=conv.features if conv.few else step, ldc=n_all, batch="offset",
            target=conv.target, beta=0.0 if first else 1.0,
        )  # fmt: skip
        return kernel, {"count": size["p"]}

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
    if not conv.few:
        check_block("channels", blocks[0], most_summed(conv)[1])
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
    rows, columns, lda, ldc = count, c, conv.features * c, count
    if conv.few and count == 1:
        # c x k to k x c
        rows, columns, lda, ldc = c, 0, k, c  # 0: the block of the loop over k
        steps, to_steps = {"g": k * c, "k": 1}, {"g": k * c, "k": c}
        loops = {"g": Loop(conv.groups, (1,)), "k": Loop(k, (min(k, 64),))}
    elif conv.few:
        columns, ldc = k, c * count
        steps, to_steps = {"g": k * c, "c": k}, {"g": k * c * count, "c": count}
        loops = {"g": Loop(conv.groups, (1,)), "c": Loop(c, (1,))}
    else:
        steps, to_steps = {"k": c}, {"k": c * count}
        loops = {"k": Loop(conv.features, (1,))}

    def turn(size: dict[str, int], first: bool, last: bool) -> Made:
        made = emit_transpose(
            rows, columns or size["k"], conv.dtype, conv.target, lda=lda, ldc=ldc
        )
        return made, {}

    words = {"a": Ref(source, steps, e), "c": Ref(to, to_steps, e)}
    return Part("weight gradient k x c x taps", "".join(loops).upper(), loops, turn, words)


def bias_parts(conv: Conv, dy: str) -> list[Part]:
    """The bias gradient, sums of dy by channel: image by image first, as one long sum would round
    off too much. Tensors: scratch "sums" (batch * features) and, for a plain NCHW dy, constant
    "ones" (the pixels of an image)."""
    k, e, pixels = conv.features, conv.element, conv.out[0] * conv.out[1]
    piece = -(-k // conv.threads // 64) * 64

    def image(size: dict[str, int], first: bool, last: bool) -> Made:
        if conv.nhwc:
            return emit_column_sums(pixels, size["k"], conv.dtype, conv.target, lda=k), {}
        return emit_dot(size["k"], pixels, pixels, conv.dtype, conv.target), {}

    def images(size: dict[str, int], first: bool, last: bool) -> Made:
        return emit_column_sums(conv.batch, size["k"], conv.dtype, conv.target, lda=k), {}

    of_dy = Ref(dy, {"n": k * pixels, "k": 1 if conv.nhwc else pixels}, e)
    words = {"a": of_dy} if conv.nhwc else {"a": Ref("ones", {}, e), "b": of_dy}
    words["c"] = Ref("sums", {"n": k, "k": 1}, e)
    dots = min(k, 64) if dot.within_reach(k, pixels, conv.dtype) else 1
    loops = {"n": Loop(conv.batch, (1,)), "k": Loop(k, (piece if conv.nhwc else dots,))}
    refs = {"a": Ref("sums", {"k": 1}, e), "c": Ref("db", {"k": 1}, e)}
    return [
        Part("sums by image", "NK", loops, image, words),
        Part("bias gradient", "K", {"k": Loop(k, (piece,))}, images, refs),
    ]
