"""Depthwise convolution: a filter for each channel, with kernels whose lanes are the channels.

A product over one channel would leave all lanes but one empty. Kernels walk down strips of the
images as they lie; each knows which taps see beyond the image, so that no border is needed. Weights
are [taps][channels]. Not here: the kernels (`jitgen.kernels.depthwise`), layouts
(`jitgen.primitives.conv.layouts`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jitgen.emit.routine import Routine
from jitgen.emit.steps import Step
from jitgen.kernels.depthwise import emit_depthwise, emit_depthwise_weights
from jitgen.kernels.strips import Axis, plan_strip
from jitgen.primitives.conv.axis import Pieces, axes
from jitgen.primitives.conv.layouts import Conv
from jitgen.primitives.nest.limits import within_reach
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.nest import Nest
from jitgen.primitives.nest.stream import Made, Part
from jitgen.primitives.nest.tables import TooLarge
from jitgen.primitives.nest.tensor import Access, Tensor

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


def _ahead(conv: Conv) -> int:
    """Rows of results ahead of which a core fetches the images that it reads."""
    pixels = conv.size[0] * conv.size[1] + conv.out[0] * conv.out[1]
    size = conv.batch * conv.channels * pixels * conv.element // conv.threads
    return AHEAD if size > NEAR_BYTES else 0


def _strips(
    conv: Conv, order: str, sides: Sequence[Axis], x: Tensor, y: Tensor, band: int, piece: int,
    emit: Callable[..., Routine], beside: Mapping[str, Access], **how: Any,
) -> Part:  # fmt: skip
    """`emit` on rows and columns (`sides`) of x and y, of at most `band` rows and `piece` channels,
    in blocks that see less than 2 GiB. Words b and c are y, unless `beside` says otherwise."""
    (rows, columns), row = sides, max(x.stride("h"), y.stride("h"))
    if (results := max(rows.count, columns.count)) > MOST_RESULTS:
        raise TooLarge(f"{results} results along a side; depthwise, {MOST_RESULTS} at most")
    around = -(-(max(rows.taps) - min(rows.taps)) // rows.up) + 2 + _ahead(conv) * rows.step
    lines = within_reach(row, conv.element) - around - 1
    band = min(band, lines * rows.up // max(rows.step, rows.up))
    if band < 1:
        raise TooLarge(f"rows of {row * conv.element} bytes, {around} of which span 2 GiB or more")
    sums = "nhw" if emit is emit_depthwise_weights else ""
    plans = [
        plan_strip(rows, columns, c, conv.dtype, conv.target, how.get("epilogue", ()),
                   gradient=bool(sums))
        for c in (min(piece, conv.channels), conv.channels % piece) if c
    ]  # fmt: skip
    strip = min(plans, key=lambda plan: (plan.rolling, plan.pixels))
    down = Pieces(rows, band if strip.rolling else 1)
    along = Pieces(columns, -(-columns.count // -(-columns.count // strip.pixels)))
    how |= {"lda": (x.stride("h"), x.stride("w")), "ahead": _ahead(conv) * rows.step // rows.up}

    def code(sizes: dict[str, int], first: bool, last: bool) -> Made:
        here = down.of("h", sizes), along.of("w", sizes), sizes["c"], conv.dtype, conv.target
        return emit(*here, **how, **({"accumulate": not first} if sums else {})), {}

    loops = {
        "n": Loop(conv.batch, (1,)), "c": Loop(conv.channels, (piece,)), "h": down.loop,
        "w": along.loop,
    }  # fmt: skip
    results_at = y.at(n="n", h="h", w="w", **{y.layout[-1]: "c"})
    words = {"a": x.at(n="n", c="c", h=("h", down.first), w=("w", along.first)),
             "b": results_at, "c": results_at, **beside}  # fmt: skip
    return Nest(order, loops, conv.dtype, conv.target, sums).call(
        "strips of pixels, channel by channel", code, words,
        variants=down.variants("h") | along.variants("w"),
    )  # fmt: skip


def product_part(
    conv: Conv, backward: bool, epilogue: tuple[Step, ...], x: Tensor, w: str, y: Tensor,
    residual: Tensor | None = None,
) -> Part:  # fmt: skip
    """NHWC images from images, strip by strip; `w` is the tensor of packed weights, "bias" another.
    A residual lies as y does.

    Pixel p of x adds w[t] dy[o] to its gradient where it is the one that tap t of o sees:
    p + padding = o stride + t dilation.
    """
    c, sides = conv.channels, axes(conv)
    if backward:
        sides = [Axis(a.size, 1, tuple(-t for t in a.taps), a.count, a.step) for a in sides]
    panels, rows = _weights(conv, "", w)[1], sides[0]
    # threads share images, then channels if there are many, or else bands of rows
    share = conv.threads // math.gcd(conv.batch, conv.threads)
    band, piece = -(-rows.count // share), c
    if c >= share * PIECE:
        band, piece = rows.count, -(-c // share // 16) * 16
    beside = {"b": panels.at(c="c")}
    if ("bias",) in epilogue:
        beside["bias"] = Tensor("bias", "c", conv.dtype, c=c).at(c="c")
    if residual:
        beside["residual"] = residual.at(n="n", h="h", w="w", c="c")
    return _strips(
        conv, "NCHW", sides, x, y, band, piece, emit_depthwise, beside, epilogue=epilogue,
        ldb=panels.stride("t"), ldc=(y.stride("h"), y.stride("w")),
    )  # fmt: skip


def weights_parts(conv: Conv, x: Tensor, dy: Tensor) -> list[Part]:
    """The weight gradient from NHWC images to "dw"; "by_tap" is scratch.

    Threads share the channels, so that each weight is summed by one of them, strip by strip.
    """
    c, (dw, by_tap) = conv.channels, _weights(conv, "dw", "by_tap")
    part = _strips(
        conv, "Cnhw", axes(conv), x, dy, conv.out[0], -(-c // conv.threads // 16) * 16,
        emit_depthwise_weights, {"c": by_tap.at(c="c")}, ldc=by_tap.stride("t"),
        ldb=(dy.stride("h"), dy.stride("w")),
    )  # fmt: skip
    return [part, _turn(conv, by_tap, dw)]
