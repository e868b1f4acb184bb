"""The weight update of a convolution: dw = dy^T x over pixels, all at once or tap by tap.

Its loops: x copies of dw, g groups, k and c pieces of dw, r and s taps, n images, p pixels or rows
of pixels. Upper case x: threads sum their share of the pixels into copies of their own, which are
added at the end. Not here: the order and the blocks (`jitgen.primitives.conv.cost`).
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from jitgen.kernels import dot
from jitgen.kernels.dot import emit_dot
from jitgen.kernels.elementwise import emit_column_sums
from jitgen.primitives.conv.layouts import Choice, Conv, check_block, even, most_summed
from jitgen.primitives.nest.limits import check_reach
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.nest import Nest
from jitgen.primitives.nest.stream import Made, Part
from jitgen.primitives.nest.tensor import Access, Tensor

#: Elements of a call that adds copies
ELEMENTS = 1 << 12

Operands = tuple[dict[str, Loop], Access, Access, Access]


def flat_operands(conv: Conv, x: Tensor, dy: Tensor, to: str, choice: Choice) -> Operands:
    """Where all pixels are one sum: loops, and places of the left side, of the right one, which is
    packed, and of the result. x and dy: no image has gaps, nor are there any between images if dy
    is NHWC."""
    axes = ("n", "h", "w") if dy.rank("k") == 3 else ("h", "w")
    x_row, dy_row = x.merged(*axes), dy.merged(*axes)
    assert x_row is not None and dy_row is not None
    x, dy = x_row, dy_row
    (m, left), (n, right) = (("c", x), ("k", dy)) if conv.few else (("k", dy), ("c", x))
    images, length = dy.sizes["n"], dy.sizes["w"]
    by_image = choice.copies <= images
    share = (images // choice.copies, length) if by_image else (1, length // choice.copies)
    pixels: dict[str, Any] = {"n": ["n", ("x", share[0])], "w": "p"}
    if not by_image:
        pixels = {"n": "n", "w": ["p", ("x", share[1])]}
    sizes: dict[str, Any] = {"c": conv.channels, "k": conv.features}
    loops = {
        "x": Loop(choice.copies, (1,)), n: Loop(sizes[n], (conv.sum_width,)),
        "n": Loop(share[0], (1,)), "p": Loop(share[1], (even(share[1], choice.pixels),)),
        m: Loop(sizes[m], (even(sizes[m], choice.channels),)),
    }  # fmt: skip
    dw = Tensor(to, f"x {m} {n}", conv.dtype, x=choice.copies, **sizes)
    a, b = left.at(**pixels, **{m: m}), right.at(**pixels, **{n: n})
    return loops, a, b, dw.at(x="x", c="c", k="k")


def flat_part(conv: Conv, x: Tensor, dy: Tensor, to: str, choice: Choice) -> tuple[Part, int]:
    """All pixels are one sum (1 x 1 taps): x (dy, if conv.few) is packed, piece by piece, each just
    before it is read. x and dy are those of `flat_operands`.

    Second result: elements of the scratch "panels".
    """
    loops, a, b, c = flat_operands(conv, x, dy, to, choice)
    m, n = "ck" if conv.few else "kc"
    depth, width = loops["p"].blocks[0], conv.sum_width
    check_block("pixels", depth, most_summed(conv)[0])
    check_block("channels", loops[m].blocks[0], most_summed(conv)[1])
    sizes: dict[str, Any] = {n: width, "w": depth}
    panel = Tensor("panels", f"{n}/{width} w {n}", conv.dtype, own=True, **sizes)
    # a piece is packed once for all blocks of the other side inside, by the thread that reads it
    outside = re.match(rf".*[xnp{n}A-Z]({m}?\])?\|?", choice.order)
    assert outside is not None
    outer = {name: loop for name, loop in loops.items() if name in outside[0].lower()}
    packing = Nest(outside[0], outer, conv.dtype, conv.target).relayout(
        b, panel.at(), title="pack a piece of a panel"
    )
    part = Nest(choice.order, loops, conv.dtype, conv.target, "np").gemm(
        a, panel.at(), c, m=m, n=n, k="p", before=(packing,), title="weight gradient of all pixels"
    )
    return part, conv.threads * panel.elements


def tap_operands(conv: Conv, x: Tensor, dy: Tensor, to: str, choice: Choice) -> Operands:
    """Where each tap is summed by rows of pixels (loops w and p): loops, and places of x, of dy, in
    their first rows, and of the result."""
    (c, k), (height, width) = conv.group, conv.kernel
    share = conv.batch * conv.out[0] // choice.copies
    # the columns of a result, or all of them with few input channels, are one call's
    blocks = (c, conv.sum_width) if conv.few else (
        min(c, conv.sum_width), even(k, choice.channels)
    )
    loops = {
        "x": Loop(choice.copies, (1,)), "g": Loop(conv.groups, (1,)), "r": Loop(height, (1,)),
        "s": Loop(width, (1,)), "k": Loop(k, blocks[1:]), "c": Loop(c, blocks[:1]),
        "p": Loop(share, (even(share, max(1, choice.pixels // conv.out[1])),)),
        "w": Loop(conv.out[1], conv.out[1:]),
    }  # fmt: skip
    layout = "x r s g c k" if conv.few else "x r s g k c"
    dw = Tensor(to, layout, conv.dtype, x=choice.copies, r=height, s=width, g=conv.groups, k=k, c=c)
    return (
        loops,
        x.at(h=("r", conv.dilation[0]), w=[("s", conv.dilation[1]), ("w", conv.stride[1])],
             c=[("g", c), "c"]),
        dy.at(w="w", k=[("g", k), "k"]),
        dw.at(x="x", r="r", s="s", g="g", k="k", c="c"),
    )  # fmt: skip


def tap_part(
    conv: Conv, x: Tensor, dy: Tensor, to: str, choice: Choice
) -> tuple[Part, dict[str, np.ndarray]]:
    """The gradient tap by tap ([taps][k][c], with few input channels [taps][c][k]), and tables of
    the rows of output pixels that the reduction runs over.

    x is NHWC with its border, and so is dy if conv.few.
    """
    loops, of_x, of_dy, of_dw = tap_operands(conv, x, dy, to, choice)
    (c, k), row = conv.group, x.stride("h")
    # a row of pixels is the sum of a call
    check_reach(
        conv.arguments, conv.dtype, a_row_of_x_with_its_border=row,
        a_row_of_y=dy.stride("h"), the_weights_of_a_tap=c * k if conv.few else c,
    )  # fmt: skip
    if not conv.few:
        check_block("channels", loops["k"].blocks[0], most_summed(conv)[1])
    images, lines = np.arange(conv.batch)[:, None], np.arange(conv.out[0])
    tables = {
        "x_rows": (images * x.stride("n") + lines * conv.stride[0] * x.stride("h")).reshape(-1),
        "y_rows": (images * dy.stride("n") + lines * dy.stride("h")).reshape(-1),
    }
    rows = {
        name: Tensor(name, "p", 8, p=len(table)).at(p=["p", ("x", loops["p"].extent)])
        for name, table in tables.items()
    }
    names = ("x_rows", "y_rows") if conv.few else ("y_rows", "x_rows")
    a, b, m, n = (of_x, of_dy, "c", "k") if conv.few else (of_dy, of_x, "k", "c")
    part = Nest(f"{choice.order}w", loops, conv.dtype, conv.target, "pw").gemm(
        a, b, of_dw, m=m, n=n, k="w", taps="p", title="weight gradient by tap",
        words={"a_offsets": rows[names[0]], "b_offsets": rows[names[1]]},
    )  # fmt: skip
    return part, tables


def add_part(conv: Conv, copies: int, source: str, to: str) -> Part:
    """Add the copies of dw."""
    elements = conv.features * conv.group[0] * len(conv.taps)

    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        return emit_column_sums(copies, size["e"], conv.dtype, conv.target, lda=elements), {}

    words = {"a": Tensor(source, "x e", conv.dtype, x=copies, e=elements).at(e="e"),
             "c": Tensor(to, "e", conv.dtype, e=elements).at(e="e")}  # fmt: skip
    nest = Nest("E", {"e": Loop(elements, (ELEMENTS,))}, conv.dtype, conv.target)
    return nest.call("add the copies", code, words)


def turn_part(conv: Conv, source: str, to: str) -> Part:
    """The gradient by tap to k x c x taps: taps that lie far apart come together."""
    (c, k), count = conv.group, len(conv.taps)
    # one tap: c x k to k x c
    outer, block = ("k", min(k, 64)) if count == 1 else ("c" if conv.few else "k", 1)
    layout = "t g c k" if conv.few else "t g k c"
    by_tap = Tensor(source, layout, conv.dtype, t=count, g=conv.groups, c=c, k=k)
    dw = by_tap.like(to, "t g k c" if count == 1 else "g k c t")
    loops = {"g": Loop(conv.groups, (1,)), outer: Loop(dw.sizes[outer], (block,))}
    place: dict[str, Any] = {axis: axis for axis in loops}
    return Nest("".join(loops).upper(), loops, conv.dtype, conv.target).relayout(
        by_tap.at(**place), dw.at(**place), title="weight gradient k x c x taps"
    )


def bias_parts(conv: Conv, dy: Tensor) -> list[Part]:
    """The bias gradient, sums of dy, of which no image has gaps, by channel: image by image first,
    as one long sum would round off too much. Tensors: scratch "sums" (batch * features) and, for an
    NCHW dy, constant "ones" (the pixels of an image)."""
    in_rows = dy.merged("h", "w")
    assert in_rows is not None
    dy, k, pixels = in_rows, conv.features, in_rows.sizes["w"]
    rows = dy.rank("k") > dy.rank("w")
    piece = -(-k // conv.threads // 64) * 64
    dots = min(k, 64) if dot.within_reach(k, pixels, conv.dtype) else 1

    def image(size: dict[str, int], first: bool, last: bool) -> Made:
        if rows:
            lda = dy.stride("w")
            return emit_column_sums(pixels, size["k"], conv.dtype, conv.target, lda=lda), {}
        return emit_dot(size["k"], pixels, dy.stride("k"), conv.dtype, conv.target), {}

    def images(size: dict[str, int], first: bool, last: bool) -> Made:
        return emit_column_sums(conv.batch, size["k"], conv.dtype, conv.target, lda=k), {}

    sums = Tensor("sums", "n k", conv.dtype, n=conv.batch, k=k)
    ones, db = Tensor("ones", "w", conv.dtype, w=pixels), Tensor("db", "k", conv.dtype, k=k)
    of_dy = dy.at(n="n", k="k")
    words = {"a": of_dy} if rows else {"a": ones.at(), "b": of_dy}
    loops = {"n": Loop(conv.batch, (1,)), "k": Loop(k, (piece if rows else dots,))}
    by_image = Nest("NK", loops, conv.dtype, conv.target)
    whole = Nest("K", {"k": Loop(k, (piece,))}, conv.dtype, conv.target)
    return [
        by_image.call("sums by image", image, {**words, "c": sums.at(n="n", k="k")}),
        whole.call("bias gradient", images, {"a": sums.at(k="k"), "c": db.at(k="k")}),
    ]
