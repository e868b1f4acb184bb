"""The streams of a convolution's passes: products over taps between layouts.

Inside, activations are NHWC in a buffer with zeros around them, so that a row of output pixels is
one batch-reduce product: A_i is the row of input pixels that tap i sees (its rows are `stride`
pixels apart), B_i the weights of the tap, and the sum over taps stays in registers. Loop orders as
in arXiv:1906.06440. `strides` are those of the caller's images (`jitgen.primitives.conv.layouts`).
Not here: arrays and their checks (`jitgen.primitives.layers.convolution`), layouts
(`jitgen.primitives.conv.layouts`).
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from jitgen.emit.steps import Step, operands
from jitgen.kernels.dot import possible
from jitgen.primitives.conv import depthwise, weights
from jitgen.primitives.conv.layouts import (
    Choice,
    Conv,
    Strides,
    Taps,
    check_block,
    even,
    images,
    most_pixels,
    pack_parts,
    packed_elements,
    panels,
    to_nhwc,
)
from jitgen.primitives.conv.parts import Parts
from jitgen.primitives.nest.limits import within_reach
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.nest import Nest
from jitgen.primitives.nest.run import Run
from jitgen.primitives.nest.stream import Part
from jitgen.primitives.nest.tensor import Access, Tensor
from jitgen.run.cache import STREAMS
from jitgen.types import NUMPY

#: Products of backward by data, at most
MOST_PRODUCTS = 1 << 12


class _Pass(Parts):
    """The parts of a direct or depthwise pass."""

    def input(self, copied: bool = False) -> Tensor:
        """The input of `conv.thin`, with a border unless the kernels are depthwise."""
        conv = self.conv
        how = "image", "x", conv.channels, conv.size
        if conv.depthwise:
            return self.nhwc(*how, copied=copied)
        steps = conv.stride[0] // self.thin.stride[0], 1
        return self.nhwc(*how, self.thin.padded, at=conv.padding, steps=steps, copied=copied)

    def panels(self, backward: bool, packed: bool) -> str:
        """The tensor of packed weights: the caller's "w", or scratch into which that is packed."""
        if packed:
            return "w"
        self.scratch["panels"] = packed_elements(self.conv, backward)
        self.parts += _pack_parts(self.conv, backward, self.scratch)
        return "panels"

    def product(
        self, conv: Conv, p: Taps, name: str, tensors: tuple[Tensor, str, Tensor], choice: Choice,
        epilogue: tuple[Step, ...] = (), residual: Tensor | None = None,
    ) -> None:  # fmt: skip
        """A part, and its tables of offsets."""
        x, w, y = tensors
        width, count = conv.width(p.backward), len(p.offsets)
        w_at = panels(conv, p.backward, w)
        loops, a, b, c = product_operands(conv, p, x, w_at, y, choice)
        check_block("pixels", loops["w"].blocks[0], most_pixels(conv, p))
        check_block("channels", loops["c"].blocks[0], within_reach(width, conv.element))
        rows, columns = np.array(p.offsets or [(0, 0)], np.int64).T
        tables = {
            f"x_{name}": rows * x.stride("h") + columns * x.stride("w"),
            f"w_{name}": np.array(p.weights or [0], np.int64) * w_at.stride("t"),
        }
        self.tables |= tables
        # rows at the border leave out the taps that see zeros only
        first, seen = p.seen() if count else (np.zeros(p.pixels[0], int),) * 2
        words = {
            word: Tensor(table, "t", 8, t=max(1, count)).at(t=("h", first))
            for word, table in zip(("a_offsets", "b_offsets"), tables, strict=True)
        }
        bias = Tensor("bias", "c", conv.dtype, c=p.features)
        for word in operands(epilogue):
            words[word] = bias.at(c=c.index["c"]) if residual is None or word == "bias" else (
                Access(residual, c.index)
            )
        self.parts.append(Nest(choice.order, loops, conv.dtype, conv.target, "c").gemm(
            a, b, c, m="w", n="k", k="c", taps="taps", words=words, epilogue=epilogue,
            variants={"taps": ("h", seen)}, title=f"sum over {count} taps",
        ))  # fmt: skip


def _pack_parts(conv: Conv, backward: bool, scratch: dict[str, int]) -> list[Part]:
    scratch["by_tap"] = conv.features * conv.group[0] * len(conv.taps)
    if conv.depthwise:
        return [depthwise.pack_part(conv, "w", "panels")]
    return pack_parts(conv, backward, "w", "panels")


@STREAMS.of
def pack_weights(conv: Conv, backward: bool) -> Run:
    """Tensors "w" and "panels"."""
    scratch: dict[str, int] = {}
    parts = _pack_parts(conv, backward, scratch)
    return Run(parts, ["w", "panels"], conv.threads, conv.target, conv.dtype, scratch)


def product_operands(
    conv: Conv, p: Taps, x: Tensor, w: Tensor, y: Tensor, choice: Choice
) -> tuple[dict[str, Loop], Access, Access, Access]:
    """Loops of a product, and places of what a call reads for its first tap, of the weights of tap
    0, and of its results."""
    c, k = w.sizes["c"], w.sizes["k"]
    loops = {
        "n": Loop(conv.batch, (1,)), "g": Loop(conv.groups, (1,)), "k": Loop(k, (w.blocks("k"),)),
        "c": Loop(c, (min(c, choice.channels),)), "h": Loop(p.pixels[0], (1,)),
        "w": Loop(p.pixels[1], (even(p.pixels[1], choice.pixels),)),
    }  # fmt: skip
    return (
        loops,
        x.at(n="n", h=("h", p.stride[0]), w=("w", p.stride[1]), c=[("g", c), "c"]),
        w.at(g="g", k="k", c="c"),
        y.at(n="n", h=[("h", p.apart[0]), p.at[0]], w=[("w", p.apart[1]), p.at[1]],
             c=[("g", k), "k"]),
    )  # fmt: skip


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


def _in_rows(t: Tensor, nhwc: bool) -> Tensor | None:
    """Images whose pixels, those of all images if they are NHWC, lie along w without gaps."""
    return t.merged("n", "h", "w") if nhwc else t.merged("h", "w")


def _seamless(conv: Conv, *tensors: Tensor) -> tuple[Conv, list[Tensor]]:
    """The same where NHWC images of a flat convolution, too, are one row, without gaps."""
    whole = [row for t in tensors if (row := _in_rows(t, True))] if conv.flat else []
    return (_as_product(conv), whole) if len(whole) == len(tensors) else (conv, list(tensors))


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


@STREAMS.of
def forward(conv: Conv, choice: Choice | None, packed: bool, strides: Strides = ()) -> Run:
    """Tensors of the caller: "image", "w", "result", then "bias" and "residual" as there are."""
    p = _Pass(conv, strides)
    more = operands(conv.epilogue)
    tensors = [p.input(), p.result(conv.features, conv.out)]
    y = tensors[1]
    w = p.panels(False, packed)
    if "residual" in more:
        residual = p.nhwc("residual", "r", conv.features, conv.out)
        if choice is None and residual.strides != y.strides:
            # kernels read it as they write
            apart = y.strides["n"], y.strides["h"], y.strides["w"]
            p.strides += (("r", apart),)
            residual = p.nhwc("residual", "r", conv.features, conv.out, copied=True)
        tensors.append(residual)
    if choice is None:
        p.parts.append(
            depthwise.product_part(conv, False, conv.epilogue, tensors[0], w, *tensors[1:])
        )
    else:
        flat, (x, to, *more_in) = _seamless(p.thin, *tensors)
        taps = _forward_taps(flat)
        p.product(flat, taps, "forward", (x, w, to), choice, conv.epilogue, *more_in)
    return p.finish(y, conv.out, *more)


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
                at, True,
            ))  # fmt: skip
    return products, inside, (top, left)


@STREAMS.of
def backward_data(conv: Conv, choice: Choice | None, packed: bool, strides: Strides = ()) -> Run:
    """Tensors of the caller: "image" (dy), "w", "result" (dx)."""
    p = _Pass(conv, strides)
    if choice is None:
        x = p.nhwc("image", "x", conv.features, conv.out)
    else:
        products, inside, border = _backward_taps(conv)
        x = p.nhwc("image", "x", conv.features, conv.out, inside, at=border)
    y = p.result(conv.channels, conv.size)
    w = p.panels(True, packed)
    if choice is None:
        p.parts.append(depthwise.product_part(conv, True, (), x, w, y))
    else:
        flat, (x, to) = _seamless(conv, x, y)
        if flat is not conv:
            products, *_ = _backward_taps(flat)
        for i, product in enumerate(products):
            p.product(flat, product, f"backward_{i}", (x, w, to), choice)
    return p.finish(y, conv.size)


@STREAMS.of
def backward_weights(conv: Conv, choice: Choice | None, strides: Strides = ()) -> Run:
    """Tensors of the caller: "dy", "image", "dw", and "db" if there is a bias.

    `choice` is that for `conv.thin.dense`; None for depthwise convolutions.
    """
    p = _Pass(conv, strides)
    thin = p.thin
    dense = thin.dense
    in_row = dense.one_sum and dense is conv
    dy = images(conv, "dy", conv.features, conv.out, strides, axis="k")
    summable = not conv.bias or possible(conv.dtype, conv.target)
    copied = not conv.nhwc and (
        conv.depthwise or not summable or (dense.few and not dense.one_sum)
    )
    if strides:
        summed = dense.one_sum or conv.bias
        copied = copied or (summed and _in_rows(dy, conv.nhwc) is None)
    if copied:
        dy = p.nhwc("dy", "y", conv.features, conv.out, axis="k", copied=True)
    x = images(conv, "image", conv.channels, conv.size, strides)
    if copied or not in_row or _in_rows(x, conv.nhwc) is None:
        x = p.input(copied=bool(strides) and in_row)
    if dense is not thin:
        part = to_nhwc(replace(thin, nhwc=True), x.name, "seen", conv.channels, thin.size, conv.out,
                       steps=thin.stride, strides=strides)  # fmt: skip
        p.parts.append(part)
        x = p.new("seen", conv.channels, conv.out)
    nhwc = conv.nhwc or copied
    dense = replace(dense, nhwc=nhwc)
    size = conv.features * conv.group[0] * len(conv.taps)
    if choice is None:
        p.scratch["by_tap"] = size
        p.parts += depthwise.weights_parts(conv, x, dy)
    else:
        by_tap = copies = "dw"
        if len(conv.taps) > 1 or dense.few:
            by_tap = copies = "by_tap"
            p.scratch["by_tap"] = size
        if choice.copies > 1:
            copies, p.scratch["copies"] = "copies", size * choice.copies
        if dense.one_sum:
            part, p.scratch["panels"] = weights.flat_part(dense, x, dy, copies, choice)
        else:
            part, p.tables = weights.tap_part(dense, x, dy, copies, choice)
        p.parts.append(part)
        if copies != by_tap:
            p.parts.append(weights.add_part(conv, choice.copies, copies, by_tap))
        if by_tap != "dw":
            p.parts.append(weights.turn_part(dense, by_tap, "dw"))
    if conv.bias:
        p.parts += weights.bias_parts(conv, dy)
        p.scratch["sums"] = conv.batch * conv.features
        if not nhwc:
            p.tables["ones"] = np.ones(conv.out[0] * conv.out[1], NUMPY[conv.dtype])
    return p.run("dy", "image", "dw", *(["db"] if conv.bias else []))


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
