"""Depthwise convolution: a filter for each channel, with kernels whose lanes are the channels.

A product over one channel would leave all lanes but one empty. Kernels walk down strips of the
images as they lie; each knows which taps see beyond the image, so that no border is needed. Weights
are [taps][channels]. Not here: the kernels (`jitgen.kernels.depthwise`), layouts (`conv_layouts`).
"""

from __future__ import annotations

import math

from jitgen.gemm.spec import Step
from jitgen.kernels.depthwise import emit_depthwise, emit_depthwise_weights
from jitgen.kernels.strips import Axis, plan_strip
from jitgen.primitives.conv.axis import Pieces, axes
from jitgen.primitives.conv.images import Strides, image
from jitgen.primitives.conv.layouts import Conv, Made
from jitgen.primitives.nest.limits import within_reach
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.nest import Nest
from jitgen.primitives.nest.stream import Part
from jitgen.primitives.nest.tables import TooLarge
from jitgen.primitives.nest.tensor import Tensor

#: Channels of a piece, at least, where threads share them
PIECE = 64
#: Bytes of images that a core finds in its part of L3; more of them come from memory, and are
#: fetched so many rows of results ahead: 70 cycles each
NEAR_BYTES, AHEAD = 4 << 20, 4
#: Results along a side of an image, at most
MOST_RESULTS = 1 << 24


def _weights(conv: Conv, plain: str, by_tap: str) -> tuple[Tensor, Tensor]:
    """As the caller has them, and as the kernels do."""
    c, t = conv.channels, len(conv.taps)
    return (Tensor(plain, "c t", conv.dtype, c=c, t=t), Tensor(by_tap, "t c", conv.dtype, t=t, c=c))


def _turn(conv: Conv, source: Tensor, to: Tensor) -> Part:
    """Weights to taps x channels, or back, in a call."""
    nest = Nest("c", {"c": Loop(conv.channels, (conv.channels,))}, conv.dtype, conv.target)
    title = f"weights {source.layout} to {to.layout}"
    return nest.relayout(source.at(c="c"), to.at(c="c"), title=title)


def pack_part(conv: Conv, source: str, to: str) -> Part:
    """Weights channels x taps to taps x channels."""
    return _turn(conv, *_weights(conv, source, to))


def _strips(
    conv: Conv, rows: Axis, columns: Axis, x: Tensor, y: Tensor, band: int, piece: int,
    epilogue: tuple[Step, ...], gradient: bool,
) -> tuple[Pieces, Pieces]:  # fmt: skip
    """Rows and columns in blocks for kernels, of at most `band` rows and `piece` channels, that see
    less than 2 GiB of the images."""
    if (results := max(rows.count, columns.count)) > MOST_RESULTS:
        raise TooLarge(f"{results} results along a side; depthwise, {MOST_RESULTS} at most")
    row = max(x.stride("h"), y.stride("h"))
    around = -(-(max(rows.taps) - min(rows.taps)) // rows.up) + 2 + _ahead(conv) * rows.step
    lines = within_reach(row, conv.element) - around - 1
    band = min(band, lines * rows.up // max(rows.step, rows.up))
    if band < 1:
        raise TooLarge(f"rows of {row * conv.element} bytes, {around} of which span 2 GiB or more")
    plans = [
        plan_strip(rows, columns, c, conv.dtype, conv.target, epilogue, gradient=gradient)
        for c in (min(piece, conv.channels), conv.channels % piece) if c
    ]  # fmt: skip
    strip = min(plans, key=lambda plan: (plan.rolling, plan.pixels))
    width = -(-columns.count // -(-columns.count // strip.pixels))
    return Pieces(rows, band if strip.rolling else 1), Pieces(columns, width)


def _ahead(conv: Conv) -> int:
    """Rows of results ahead of which a core fetches the images that it reads."""
    pixels = conv.size[0] * conv.size[1] + conv.out[0] * conv.out[1]
    size = conv.batch * conv.channels * pixels * conv.element // conv.threads
    return AHEAD if size > NEAR_BYTES else 0


def product_part(
    conv: Conv, backward: bool, epilogue: tuple[Step, ...], strides: Strides = ()
) -> Part:
    """Images from images (tensors "x", "panels", "y", "bias"), strip by strip; `strides` of n, h, w
    of "x" and "y" if they have gaps.

    Pixel p of x adds w[t] dy[o] to its gradient where it is the one that tap t of o sees:
    p + padding = o stride + t dilation.
    """
    c = conv.channels
    rows, columns = axes(conv)
    if backward:
        rows, columns = (
            Axis(axis.size, 1, tuple(-t for t in axis.taps), axis.count, axis.step)
            for axis in (rows, columns)
        )
    x = image(conv, "x", c, (rows.size, columns.size), strides)
    y = image(conv, "y", c, (rows.count, columns.count), strides)
    _, panels = _weights(conv, "w", "panels")
    # threads share images, then channels if there are many, or else bands of rows
    share = conv.threads // math.gcd(conv.batch, conv.threads)
    band, piece = rows.count, c
    if c >= share * PIECE:
        piece = -(-c // share // 16) * 16
    else:
        band = -(-rows.count // share)
    down, along = _strips(conv, rows, columns, x, y, band, piece, epilogue, False)
    ahead = _ahead(conv) * rows.step // rows.up

    def code(sizes: dict[str, int], first: bool, last: bool) -> Made:
        made = emit_depthwise(
            down.of("h", sizes), along.of("w", sizes), sizes["c"], conv.dtype, conv.target,
            lda=_apart(x), ldb=panels.stride("t"), ldc=_apart(y), epilogue=epilogue, ahead=ahead,
        )  # fmt: skip
        return made, {}

    words = {
        "a": x.at(n="n", c="c", h=("h", down.first), w=("w", along.first)),
        "b": panels.at(c="c"), "c": y.at(n="n", h="h", w="w", c="c"),
    }  # fmt: skip
    if ("bias",) in epilogue:
        words["bias"] = Tensor("bias", "c", conv.dtype, c=c).at(c="c")
    nest = _nest(conv, "NCHW", piece, down, along)
    variants = down.variants("h") | along.variants("w")
    return nest.call("strips of pixels, channel by channel", code, words, variants=variants)


def weights_parts(conv: Conv, x: str, dy: str, strides: Strides = ()) -> list[Part]:
    """The weight gradient from tensors `x` and `dy`, whose `strides` of n, h, w are given if they
    have gaps, to "dw"; "by_tap" is scratch.

    Threads share the channels, so that each weight is summed by one of them, strip by strip.
    """
    c = conv.channels
    rows, columns = axes(conv)
    pixels, results = image(conv, x, c, conv.size, strides), image(conv, dy, c, conv.out, strides)
    dw, by_tap = _weights(conv, "dw", "by_tap")
    piece = -(-c // conv.threads // 16) * 16
    down, along = _strips(conv, rows, columns, pixels, results, rows.count, piece, (), True)

    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        made = emit_depthwise_weights(
            down.of("h", size), along.of("w", size), size["c"], conv.dtype, conv.target,
            lda=_apart(pixels), ldb=_apart(results), ldc=by_tap.stride("t"), accumulate=not first,
            ahead=_ahead(conv) * rows.step,
        )  # fmt: skip
        return made, {}

    words = {
        "a": pixels.at(c="c", n="n", h=("h", down.first), w=("w", along.first)),
        "b": results.at(c="c", n="n", h="h", w="w"), "c": by_tap.at(c="c"),
    }  # fmt: skip
    nest = _nest(conv, "Cnhw", piece, down, along, "nhw")
    variants = down.variants("h") | along.variants("w")
    part = nest.call("weight gradient, strip by strip", code, words, variants=variants)
    return [part, _turn(conv, by_tap, dw)]


def _apart(images: Tensor) -> tuple[int, int]:
    """Elements from a row to the next, and from a pixel."""
    return images.stride("h"), images.stride("w")


def _nest(
    conv: Conv, order: str, piece: int, down: Pieces, along: Pieces, sums: str = ""
) -> Nest:
    loops = {
        "n": Loop(conv.batch, (1,)), "c": Loop(conv.channels, (piece,)), "h": down.loop,
        "w": along.loop,
    }  # fmt: skip
    return Nest(order, loops, conv.dtype, conv.target, sums)
