"""The streams of a convolution's passes: products over taps between layouts.

Inside, activations are NHWC in a buffer with zeros around them, so that a row of output pixels is
one batch-reduce product: A_i is the row of input pixels that tap i sees (its rows are `stride`
pixels apart), B_i the weights of the tap, and the sum over taps stays in registers. Loop orders as
in arXiv:1906.06440; weights as [groups][k / width][taps][c][width]. Not here: arrays and their
checks (`primitives.convolution`), layouts (`primitives.conv_layouts`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from jitgen.elementwise import emit_column_sums
from jitgen.kernel import brgemm
from jitgen.layout import emit_transpose
from jitgen.spec import Step
from primitives import conv_depthwise as depthwise
from primitives.conv_layouts import (
    MOST_PIXELS,
    Conv,
    Made,
    Taps,
    gather,
    pack_parts,
    packed_elements,
    spread,
)
from primitives.gemm import Product, fused_part
from primitives.loops import Loop
from primitives.run import Run
from primitives.stream import Part, Ref

#: Bytes of a panel's weights that are used for all rows of an image before the next channels
WEIGHT_BYTES = 640 << 10
#: Most pixels that a call of the weight update sums over: its rows of x and dy stay in L2
MOST_DEPTH = 1024
#: Fewer input channels than this would leave lanes empty in the weight update
FEW_CHANNELS = 16
#: Bytes of results of one panel that wait in L2 for the next channels
RESULT_BYTES = 1 << 18


def _pack_parts(conv: Conv, backward: bool, source: str) -> list[Part]:
    if conv.depthwise:
        return [depthwise.pack_part(conv, source, "panels")]
    return pack_parts(conv, backward, source, "panels")


@lru_cache(maxsize=256)
def pack_weights(conv: Conv, backward: bool) -> Run:
    """Tensors "w" and "panels"."""
    scratch = {"by_tap": conv.features * conv.group[0] * len(conv.taps)}
    parts = _pack_parts(conv, backward, "w")
    return Run(parts, ["w", "panels"], conv.threads, conv.target, conv.dtype, scratch)


def _product(
    conv: Conv, p: Taps, name: str, epilogue: tuple[Step, ...]
) -> tuple[Part, dict[str, np.ndarray]]:  # fmt: skip
    """The part (tensors "x", "panels", "y", "bias", "residual"), and its tables of offsets."""
    c, k = p.channels // conv.groups, p.features // conv.groups
    width, total, e = conv.width(c, k), len(conv.taps), conv.element
    row = p.inside[1] * p.channels
    tables = {
        f"x_{name}": np.array([r * row + s * p.channels for r, s in p.offsets] or [0], np.int64),
        f"w_{name}": np.array([t * c * width for t in p.weights] or [0], np.int64),
    }
    count = len(p.offsets)
    first_tap, taps_seen = p.seen() if count else (np.zeros(p.pixels[0], int),) * 2
    # channels whose weights stay in L2 for all rows of an image
    depth = max(16, WEIGHT_BYTES // (max(count, 1) * width * e))
    depth = min(c, _even(c, depth, 16))
    columns = _even(p.pixels[1], MOST_PIXELS)

    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        kernel = brgemm(
            size["w"], size["k"], size["c"], conv.dtype, lda=p.stride[1] * p.channels,
            ldc=p.apart[1] * p.features, batch="offset", packed_b=width, target=conv.target,
            beta=0.0 if first else 1.0, epilogue=epilogue if last else (),
        )  # fmt: skip
        return kernel.code, {"count": size["taps"]}

    y_row = p.image[1] * p.features
    results = {
        "n": p.image[0] * y_row, "h": p.apart[0] * y_row, "w": p.apart[1] * p.features,
        "g": k, "k": 1,
    }  # fmt: skip
    start = p.at[0] * y_row + p.at[1] * p.features
    words = {
        "a": Ref("x", {"n": p.inside[0] * row, "h": p.stride[0] * row,
                       "w": p.stride[1] * p.channels, "g": c, "c": 1}, e),
        "b": Ref("panels", {"g": -(-k // width) * width * total * c, "k": total * c,
                            "c": width}, e),
        "c": Ref("y", results, e, start=start),
        "a_offsets": Ref(f"x_{name}", {}, 8, table={"h": first_tap}),
        "b_offsets": Ref(f"w_{name}", {}, 8, table={"h": first_tap}),
    }  # fmt: skip
    for step, *_ in epilogue:
        if step == "bias":
            words["bias"] = Ref("bias", {"g": k, "k": 1}, e)
        elif step == "residual":
            words["residual"] = Ref("residual", results, e, start=start)
    loops = {
        "n": Loop(conv.batch, (1,)), "g": Loop(conv.groups, (1,)), "k": Loop(k, (width,)),
        "c": Loop(c, (depth,)), "h": Loop(p.pixels[0], (1,)), "w": Loop(p.pixels[1], (columns,)),
    }  # fmt: skip
    order = _order(conv, p, -(-k // width), c > depth, width)
    # rows at the border leave out the taps that see zeros only
    variants = {"taps": ("h", taps_seen)}
    title = f"sum over {count} taps"
    return Part(title, order, loops, code, words, "c", variants=variants), tables


def _order(conv: Conv, p: Taps, panels: int, pieces: bool, width: int) -> str:
    """The order of the loops over n images, g groups, k panels of results, c pieces of the
    reduction, h rows and w pieces of rows; the threads share the upper-case ones.

    One long row of pixels: a piece of it stays in L2 for all panels. Images: a panel's weights stay
    for all rows of an image, and, if they come in pieces and the results are small enough to wait
    for the next piece in L2, of all images. The threads share rows where that alone is even.
    """
    if conv.batch * p.pixels[0] == 1:
        return "NHWGkc"

    def even(tasks: int) -> bool:
        return -(-tasks // conv.threads) * conv.threads <= 1.15 * tasks

    results = conv.batch * p.pixels[0] * p.pixels[1] * width * conv.element
    if pieces and results <= RESULT_BYTES and even(conv.groups * panels):
        return "GKcnhw"
    return "NGKchw" if even(conv.batch * conv.groups * panels) else "NGKHcw"


def _even(extent: int, most: int, multiple: int = 1) -> int:
    """A block of at most about `most` that cuts `extent` evenly, a multiple."""
    blocks = -(-extent // most)
    block = -(-extent // blocks)
    return -(-block // multiple) * multiple


def _forward_taps(conv: Conv) -> Taps:
    return Taps(
        conv.out, conv.padded, conv.channels, conv.features, conv.stride, tuple(conv.taps),
        tuple(range(len(conv.taps))), conv.out,
        (conv.padding[0], conv.padding[0] + conv.size[0]),
    )  # fmt: skip


def _as_product(conv: Conv) -> Conv:
    """A flat convolution as one image of one row, another as it is."""
    if not conv.flat:
        return conv
    pixels = (1, conv.batch * conv.size[0] * conv.size[1])
    return replace(conv, batch=1, size=pixels, out=pixels)


@lru_cache(maxsize=256)
def forward(conv: Conv, packed: bool) -> Run:
    """Tensors of the caller: "image", "w", "result", then "bias" and "residual" as there are."""
    # depthwise kernels need no border
    inside, border = (conv.size, (0, 0)) if conv.depthwise else (conv.padded, conv.padding)
    pixels = conv.out[0] * conv.out[1]
    parts, scratch = [], {}
    x, y, panels = "image", "result", "w"
    if not conv.nhwc or inside != conv.size:
        x, scratch["x"] = "x", conv.batch * conv.channels * inside[0] * inside[1]
        parts.append(spread(conv, "image", "x", conv.channels, conv.size, inside, border))
    if not conv.nhwc:
        y, scratch["y"] = "y", conv.batch * conv.features * pixels
    if not packed:
        panels, scratch["panels"] = "panels", packed_elements(conv, False)
        scratch["by_tap"] = conv.features * conv.group[0] * len(conv.taps)
        parts += _pack_parts(conv, False, "w")
    tables: dict[str, np.ndarray] = {}
    if conv.depthwise:
        part = depthwise.product_part(conv, False, conv.epilogue)
    else:
        flat = _as_product(conv)
        part, tables = _product(flat, _forward_taps(flat), "forward", conv.epilogue)
    residual = "residual"
    if not conv.nhwc and any(step == "residual" for step, *_ in conv.epilogue):
        residual, scratch["r"] = "r", conv.batch * conv.features * pixels
        parts.append(spread(conv, "residual", "r", conv.features, conv.out, conv.out, (0, 0)))
    parts.append(_renamed(part, {"x": x, "y": y, "panels": panels, "residual": residual}))
    if not conv.nhwc:
        parts.append(gather(conv, "y", "result", conv.features, pixels))
    tensors = ["image", "w", "result"]
    tensors += [step for step, *_ in conv.epilogue if step in ("bias", "residual")]
    return Run(parts, tensors, conv.threads, conv.target, conv.dtype, scratch, tables)


# ---- backward -----------------------------------------------------------------------------------


def _backward_taps(conv: Conv) -> tuple[list[Taps], tuple[int, int], tuple[int, int]]:
    """Backward by data as products over taps, one for each remainder of a pixel's place by the
    stride; and size and border of the buffer that holds the gradient of the output.

    Pixel p of the padded input adds w[tap] * dy[(p - tap) / stride] for the taps that make it
    whole. With p = q stride + a, those are the taps with tap % stride = a, and the place is
    q - tap // stride: a convolution of stride 1 over q, whose taps look up and left.
    """
    before = tuple((k - 1) * d // s for k, d, s in
                   zip(conv.kernel, conv.dilation, conv.stride, strict=True))  # fmt: skip
    last = tuple((p + x - 1) // s for p, x, s in
                 zip(conv.padding, conv.size, conv.stride, strict=True))  # fmt: skip
    top, left = before
    inside = (top + max(last[0] + 1, conv.out[0]), left + max(last[1] + 1, conv.out[1]))
    products = []
    for a in range(conv.stride[0]):
        for b in range(conv.stride[1]):
            # the first q whose pixel lies in the image, and how many there are
            first = tuple(max(0, -(-(p - r) // s)) for p, r, s in
                          zip(conv.padding, (a, b), conv.stride, strict=True))  # fmt: skip
            pixels = tuple((p + x - 1 - r) // s - q + 1 for p, x, r, s, q in
                           zip(conv.padding, conv.size, (a, b), conv.stride, first,
                               strict=True))  # fmt: skip
            if min(pixels) < 1:
                continue
            chosen = [
                (i, r, s) for i, (r, s) in enumerate(conv.taps)
                if r % conv.stride[0] == a and s % conv.stride[1] == b
            ]  # fmt: skip
            offsets = tuple(
                (first[0] + top - r // conv.stride[0], first[1] + left - s // conv.stride[1])
                for _, r, s in chosen
            )
            at = (first[0] * conv.stride[0] + a - conv.padding[0],
                  first[1] * conv.stride[1] + b - conv.padding[1])  # fmt: skip
            products.append(Taps(
                (pixels[0], pixels[1]), inside, conv.features, conv.channels, (1, 1), offsets,
                tuple(i for i, _, _ in chosen), conv.size, (top, top + conv.out[0]), conv.stride,
                at,
            ))  # fmt: skip
    return products, inside, (top, left)


@lru_cache(maxsize=256)
def backward_data(conv: Conv, packed: bool) -> Run:
    """Tensors of the caller: "image" (dy), "w", "result" (dx)."""
    scratch: dict[str, int] = {}
    parts: list[Part] = []
    made: list[Part] = []
    products: list[Taps] = []
    x, y, panels = "image", "result", "w"
    flat, inside, border = conv, conv.out, (0, 0)
    if conv.depthwise:
        made.append(depthwise.product_part(conv, True, ()))
    else:
        flat = _as_product(conv)
        products, inside, border = _backward_taps(flat)
    if not conv.nhwc or inside != flat.out:
        x, scratch["x"] = "x", flat.batch * conv.features * inside[0] * inside[1]
        real = conv.out if conv.flat else inside
        parts.append(spread(conv, "image", "x", conv.features, conv.out, real, border))
    if not conv.nhwc:
        y, scratch["y"] = "y", conv.batch * conv.channels * conv.size[0] * conv.size[1]
    if not packed:
        panels, scratch["panels"] = "panels", packed_elements(conv, True)
        scratch["by_tap"] = conv.features * conv.group[0] * len(conv.taps)
        parts += _pack_parts(conv, True, "w")
    tables: dict[str, np.ndarray] = {}
    for i, product in enumerate(products):
        part, more = _product(flat, product, f"backward_{i}", ())
        made.append(part)
        tables |= more
    parts += [_renamed(part, {"x": x, "y": y, "panels": panels}) for part in made]
    if not conv.nhwc:
        parts.append(gather(conv, "y", "result", conv.channels, conv.size[0] * conv.size[1]))
    tensors = ["image", "w", "result"]
    return Run(parts, tensors, conv.threads, conv.target, conv.dtype, scratch, tables)


@lru_cache(maxsize=256)
def backward_weights(conv: Conv) -> Run:
    """Tensors of the caller: "dy", "image", "dw", and "db" if there is a bias.

    For each tap, dw (k x c) = sum over rows of output pixels of dy^T x; the batch of a call is all
    rows of all images, so that each piece of dw is written once.
    """
    (c, k), taps, e = conv.group, conv.taps, conv.element
    inside, border = (conv.size, (0, 0)) if conv.depthwise else (conv.padded, conv.padding)
    scratch = {"by_tap": conv.features * c * len(taps)}
    parts: list[Part] = []
    x, dy = "image", "dy"
    if not conv.nhwc or inside != conv.size:
        x, scratch["x"] = "x", conv.batch * conv.channels * inside[0] * inside[1]
        parts.append(spread(conv, "image", "x", conv.channels, conv.size, inside, border))
    if not conv.nhwc:
        dy, scratch["y"] = "y", conv.batch * conv.features * conv.out[0] * conv.out[1]
        parts.append(spread(conv, "dy", "y", conv.features, conv.out, conv.out, (0, 0)))
    pixels = conv.batch * conv.out[0] * conv.out[1]
    tables: dict[str, np.ndarray] = {}
    product = Product(
        k, c, pixels, conv.dtype, conv.target, conv.threads, conv.width(c, k), a="columns", b="rows"
    )
    if conv.depthwise:
        parts += depthwise.weights_parts(conv, x, dy)
    elif conv.flat and conv.groups == 1 and product.fused:
        # all pixels of all images are one long reduction
        scratch["panels"] = conv.threads * product.panel_depth * product.width
        parts.append(fused_part(product, dy, x, "panels", "dw"))
    else:
        more, tables = _by_taps(conv, x, dy)
        parts += more
    if conv.bias:

        def sums(size: dict[str, int], first: bool, last: bool) -> Made:
            made = emit_column_sums(
                pixels, size["k"], conv.dtype, conv.target, lda=conv.features
            )
            return made, {}

        refs = {"a": Ref(dy, {"k": 1}, e), "c": Ref("db", {"k": 1}, e)}
        piece = -(-conv.features // conv.threads // 64) * 64
        parts.append(Part("bias gradient", "K", {"k": Loop(conv.features, (piece,))}, sums, refs))
    tensors = ["dy", "image", "dw", *(["db"] if conv.bias else [])]
    return Run(parts, tensors, conv.threads, conv.target, conv.dtype, scratch, tables)


def _by_taps(conv: Conv, x: str, dy: str) -> tuple[list[Part], dict[str, np.ndarray]]:
    """The weight gradient tap by tap, from tensors `x` and `dy` to "dw", and tables of the rows of
    output pixels that the reduction runs over. Lanes are input channels, or output channels where
    there are few of the former."""
    (c, k), taps, e, inside = conv.group, conv.taps, conv.element, conv.padded
    row, length = inside[1] * conv.channels, conv.out[1]
    images = np.arange(conv.batch, dtype=np.int64)[:, None]
    lines = np.arange(conv.out[0], dtype=np.int64)
    tables = {
        "x_rows": ((images * inside[0] + lines * conv.stride[0]) * row).reshape(-1),
        "y_rows": ((images * conv.out[0] + lines) * length * conv.features).reshape(-1),
    }
    few = c < FEW_CHANNELS <= k
    step = conv.stride[1] * conv.channels
    width = conv.width(length, k if few else c)
    result = "by_tap" if len(taps) > 1 or few else "dw"

    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        m, n = (size["c"], size["k"]) if few else (size["k"], size["c"])
        kernel = brgemm(
            m, n, length, conv.dtype, lda=step if few else conv.features, trans_a=True,
            ldb=conv.features if few else step, ldc=k if few else c, batch="offset",
            target=conv.target, beta=0.0 if first else 1.0,
        )  # fmt: skip
        return kernel.code, {"count": size["p"]}

    of_x = Ref(x, {"r": conv.dilation[0] * row, "s": conv.dilation[1] * conv.channels, "g": c,
                   "c": 1}, e)  # fmt: skip
    of_dy = Ref(dy, {"g": k, "k": 1}, e)
    x_rows, dy_rows = Ref("x_rows", {"p": 1}, 8), Ref("y_rows", {"p": 1}, 8)
    place = {"k": 1, "c": k} if few else {"k": c, "c": 1}
    words = {
        "a": of_x if few else of_dy,
        "b": of_dy if few else of_x,
        "c": Ref(result, {"r": conv.kernel[1] * conv.features * c, "s": conv.features * c,
                          "g": k * c, **place}, e),
        "a_offsets": x_rows if few else dy_rows,
        "b_offsets": dy_rows if few else x_rows,
    }  # fmt: skip
    tasks = len(taps) * conv.groups * -(-(k if few else c) // width)
    rows = c if few else _even(k, 64 if tasks * -(-k // 64) >= 2 * conv.threads else 24)
    loops = {
        "g": Loop(conv.groups, (1,)), "r": Loop(conv.kernel[0], (1,)),
        "s": Loop(conv.kernel[1], (1,)), "k": Loop(k, (width if few else rows,)),
        "c": Loop(c, (rows if few else width,)),
        "p": Loop(len(tables["x_rows"]), (max(1, MOST_DEPTH // length),)),
    }  # fmt: skip
    parts = [Part("weight gradient by tap", "GKCRSp", loops, code, words, "p")]
    if result == "dw":
        return parts, tables
    count = len(taps)

    def turn(size: dict[str, int], first: bool, last: bool) -> Made:
        # taps of a channel, or of an output channel, that lie far apart come together
        columns, ldc = (k, c * count) if few else (c, count)
        made = emit_transpose(
            count, columns, conv.dtype, conv.target, lda=conv.features * c, ldc=ldc
        )
        return made, {}

    if few:
        back = {"a": Ref("by_tap", {"g": k * c, "c": k}, e),
                "c": Ref("dw", {"g": k * c * count, "c": count}, e)}  # fmt: skip
        over = {"g": Loop(conv.groups, (1,)), "c": Loop(c, (1,))}
    else:
        back = {"a": Ref("by_tap", {"k": c}, e), "c": Ref("dw", {"k": c * count}, e)}
        over = {"k": Loop(conv.features, (1,))}
    title = "weight gradient k x c x taps"
    parts.append(Part(title, "".join(over).upper(), over, turn, back))
    return parts, tables


def _renamed(part: Part, names: dict[str, str]) -> Part:
    words = {
        word: replace(ref, tensor=names.get(ref.tensor, ref.tensor))
        for word, ref in part.words.items()
    }
    return replace(part, words=words)
