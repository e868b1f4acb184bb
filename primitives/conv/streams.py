"""The streams of a convolution's passes: products over taps between layouts.

Inside, activations are NHWC in a buffer with zeros around them, so that a row of output pixels is
one batch-reduce product: A_i is the row of input pixels that tap i sees (its rows are `stride`
pixels apart), B_i the weights of the tap, and the sum over taps stays in registers. Loop orders as
in arXiv:1906.06440; weights as [groups][k / width][taps][c][width]. Not here: arrays and their
checks (`jitgen.primitives.layers.convolution`), layouts (`jitgen.primitives.conv.layouts`).
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from jitgen.doors import NUMPY
from jitgen.gemm.kernel import brgemm
from jitgen.gemm.spec import Step
from jitgen.kernels.dot import possible
from jitgen.primitives.conv import depthwise, weights
from jitgen.primitives.conv.cost import Choice, check_block, most_pixels
from jitgen.primitives.conv.layouts import (
    Conv,
    Made,
    Taps,
    even,
    gather,
    pack_parts,
    packed_elements,
    pick,
    spread,
)
from jitgen.primitives.nest.limits import within_reach
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.run import Run
from jitgen.primitives.nest.stream import Part, Ref
from jitgen.run.cache import STREAMS

#: Products of backward by data, at most
MOST_PRODUCTS = 1 << 12


def _pack_parts(conv: Conv, backward: bool, source: str) -> list[Part]:
    if conv.depthwise:
        return [depthwise.pack_part(conv, source, "panels")]
    return pack_parts(conv, backward, source, "panels")


@STREAMS.of
def pack_weights(conv: Conv, backward: bool) -> Run:
    """Tensors "w" and "panels"."""
    scratch = {"by_tap": conv.features * conv.group[0] * len(conv.taps)}
    parts = _pack_parts(conv, backward, "w")
    return Run(parts, ["w", "panels"], conv.threads, conv.target, conv.dtype, scratch)


def _product(
    conv: Conv, p: Taps, name: str, epilogue: tuple[Step, ...], choice: Choice
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
    depth, columns = min(c, choice.channels), even(p.pixels[1], choice.pixels)
    check_block("pixels", columns, most_pixels(conv, p))
    check_block("channels", depth, within_reach(width, e))

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
    # rows at the border leave out the taps that see zeros only
    variants = {"taps": ("h", taps_seen)}
    title = f"sum over {count} taps"
    return Part(title, choice.order, loops, code, words, "c", variants=variants), tables


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


def _input(conv: Conv, parts: list[Part], scratch: dict[str, int]) -> str:
    """Which tensor is the NHWC input of `conv.thin`, with a border unless the kernels are
    depthwise; where that is not the caller's "image", a part that copies it."""
    if conv.depthwise:
        inside, border, step = conv.size, (0, 0), 1
    else:
        inside, border, step = conv.thin.padded, conv.padding, conv.stride[0] // conv.thin.stride[0]
    if conv.nhwc and inside == conv.size:
        return "image"
    scratch["x"] = conv.batch * conv.channels * inside[0] * inside[1]
    parts.append(spread(conv, "image", "x", conv.channels, conv.size, inside, border, step))
    return "x"


@STREAMS.of
def subject(conv: Conv, which: str) -> tuple[Conv, Taps | None]:
    """The convolution and, but for the weight update, the largest product that the choice for a
    pass is about."""
    if which == "backward_weights":
        return conv.thin.dense, None
    flat = _as_product(conv.thin if which == "forward" else conv)
    if which == "forward":
        return flat, _forward_taps(flat)
    return flat, max(_backward_taps(flat)[0], key=lambda p: prod(p.pixels) * len(p.offsets))


def _panels(conv: Conv, backward: bool, parts: list[Part], scratch: dict[str, int]) -> str:
    """The tensor of packed weights, and the parts that pack the caller's "w"."""
    scratch["panels"] = packed_elements(conv, backward)
    scratch["by_tap"] = conv.features * conv.group[0] * len(conv.taps)
    parts += _pack_parts(conv, backward, "w")
    return "panels"


@STREAMS.of
def forward(conv: Conv, choice: Choice | None, packed: bool) -> Run:
    """Tensors of the caller: "image", "w", "result", then "bias" and "residual" as there are."""
    pixels = conv.out[0] * conv.out[1]
    parts: list[Part] = []
    scratch: dict[str, int] = {}
    y = "result"
    x = _input(conv, parts, scratch)
    if not conv.nhwc:
        y, scratch["y"] = "y", conv.batch * conv.features * pixels
    panels = "w" if packed else _panels(conv, False, parts, scratch)
    tables: dict[str, np.ndarray] = {}
    if choice is None:
        part = depthwise.product_part(conv, False, conv.epilogue)
    else:
        flat = _as_product(conv.thin)
        part, tables = _product(flat, _forward_taps(flat), "forward", conv.epilogue, choice)
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
    # no pixel has a larger remainder
    remainders = tuple(min(s, p + x) for s, p, x in
                       zip(conv.stride, conv.padding, conv.size, strict=True))  # fmt: skip
    if prod(remainders) > MOST_PRODUCTS:
        raise ValueError(
            f"stride={conv.stride}: backward_data has {prod(remainders)} products, one for each "
            f"remainder of a pixel by the stride; it has {MOST_PRODUCTS} at most"
        )
    by_remainder: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for i, (r, s) in enumerate(conv.taps):
        place = r % conv.stride[0], s % conv.stride[1]
        by_remainder.setdefault(place, []).append((i, r, s))
    for a in range(remainders[0]):
        for b in range(remainders[1]):
            # the first q whose pixel lies in the image, and how many there are
            first = tuple(max(0, -(-(p - r) // s)) for p, r, s in
                          zip(conv.padding, (a, b), conv.stride, strict=True))  # fmt: skip
            pixels = tuple((p + x - 1 - r) // s - q + 1 for p, x, r, s, q in
                           zip(conv.padding, conv.size, (a, b), conv.stride, first,
                               strict=True))  # fmt: skip
            if min(pixels) < 1:
                continue
            chosen = by_remainder.get((a, b), [])
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


@STREAMS.of
def backward_data(conv: Conv, choice: Choice | None, packed: bool) -> Run:
    """Tensors of the caller: "image" (dy), "w", "result" (dx)."""
    scratch: dict[str, int] = {}
    parts: list[Part] = []
    made: list[Part] = []
    x, y = "image", "result"
    flat, inside, border = conv, conv.out, (0, 0)
    if choice is not None:
        flat = _as_product(conv)
        found, inside, border = _backward_taps(flat)
    if not conv.nhwc or inside != flat.out:
        x, scratch["x"] = "x", flat.batch * conv.features * inside[0] * inside[1]
        real = conv.out if conv.flat else inside
        parts.append(spread(conv, "image", "x", conv.features, conv.out, real, border))
    if not conv.nhwc:
        y, scratch["y"] = "y", conv.batch * conv.channels * conv.size[0] * conv.size[1]
    panels = "w" if packed else _panels(conv, True, parts, scratch)
    tables: dict[str, np.ndarray] = {}
    if choice is None:
        made.append(depthwise.product_part(conv, True, ()))
    else:
        for i, product in enumerate(found):
            part, more = _product(flat, product, f"backward_{i}", (), choice)
            made.append(part)
            tables |= more
    parts += [_renamed(part, {"x": x, "y": y, "panels": panels}) for part in made]
    if not conv.nhwc:
        parts.append(gather(conv, "y", "result", conv.channels, conv.size[0] * conv.size[1]))
    tensors = ["image", "w", "result"]
    return Run(parts, tensors, conv.threads, conv.target, conv.dtype, scratch, tables)


@STREAMS.of
def backward_weights(conv: Conv, choice: Choice | None) -> Run:
    """Tensors of the caller: "dy", "image", "dw", and "db" if there is a bias.

    `choice` is that for `conv.thin.dense`; None for depthwise convolutions.
    """
    whole, thin = conv, conv.thin
    conv = dense = thin.dense
    scratch: dict[str, int] = {}
    parts: list[Part] = []
    x, dy = "image", "dy"
    summable = not conv.bias or possible(conv.dtype, conv.target)
    if not conv.nhwc and (conv.depthwise or not summable or (conv.few and not conv.one_sum)):
        dy, scratch["y"] = "y", conv.batch * conv.features * conv.out[0] * conv.out[1]
        parts.append(spread(conv, "dy", "y", conv.features, conv.out, conv.out, (0, 0)))
    x_plain = conv.one_sum and whole is conv and dy == "dy"
    if not x_plain:
        x = _input(whole, parts, scratch)
    if dy == "y":
        conv = replace(conv, nhwc=True)
    if dense is not thin:
        scratch["seen"] = conv.batch * conv.channels * conv.out[0] * conv.out[1]
        parts.append(pick(thin, x, "seen"))
        x = "seen"
    tables: dict[str, np.ndarray] = {}
    size = conv.features * conv.group[0] * len(conv.taps)
    if choice is None:
        scratch["by_tap"] = size
        parts += depthwise.weights_parts(conv, x, dy)
    else:
        by_tap = copies = "dw"
        if len(conv.taps) > 1 or conv.few:
            by_tap = copies = "by_tap"
            scratch["by_tap"] = size
        if choice.copies > 1:
            copies, scratch["copies"] = "copies", size * choice.copies
        if conv.one_sum:
            part, panels = weights.flat_part(
                conv, x, dy, copies, choice, conv.nhwc or not x_plain
            )
            scratch["panels"] = panels
        else:
            part, tables = weights.tap_part(conv, x, dy, copies, choice)
        parts.append(part)
        if copies != by_tap:
            parts.append(weights.add_part(conv, choice.copies, copies, by_tap))
        if by_tap != "dw":
            parts.append(weights.turn_part(conv, by_tap, "dw"))
    if conv.bias:
        parts += weights.bias_parts(conv, dy)
        scratch["sums"] = conv.batch * conv.features
        if not conv.nhwc:
            tables["ones"] = np.ones(conv.out[0] * conv.out[1], NUMPY[conv.dtype])
    tensors = ["dy", "image", "dw", *(["db"] if conv.bias else [])]
    return Run(parts, tensors, conv.threads, conv.target, conv.dtype, scratch, tables)


def _renamed(part: Part, names: dict[str, str]) -> Part:
    words = {
        word: replace(ref, tensor=names.get(ref.tensor, ref.tensor))
        for word, ref in part.words.items()
    }
    return replace(part, words=words)


def seconds(conv: Conv, which: str, run: Run, packed: int) -> float:
    """Time of a pass, with `packed` elements of packed weights, on arrays of zeros."""
    c, k, e = conv.channels, conv.features, len(conv.taps)
    image, result = conv.batch * c * prod(conv.size), conv.batch * k * prod(conv.out)
    sizes = {
        "image": result if which == "backward_data" else image, "dy": result,
        "result": image if which == "backward_data" else result, "residual": result,
        "w": packed, "dw": k * conv.group[0] * e,
        "bias": k, "db": k,
    }  # fmt: skip
    return run.seconds(sizes)
