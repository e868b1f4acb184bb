"""Depthwise convolution: a filter for each channel, with kernels whose lanes are the channels.

A product over one channel would leave all lanes but one empty. Kernels walk down strips of the
images as they lie; each knows which taps see beyond the image, so that no border is needed. Weights
are [taps][channels]. Not here: the kernels (`jitgen.kernels.depthwise`), layouts (`conv_layouts`).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from jitgen.emit.steps import Step, operands
from jitgen.kernels.depthwise import emit_depthwise, emit_depthwise_weights
from jitgen.kernels.layout import emit_transpose
from jitgen.kernels.strips import Axis, plan_strip
from jitgen.primitives.conv.layouts import Conv
from jitgen.primitives.nest.limits import within_reach
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.stream import Made, Part, Ref
from jitgen.primitives.nest.tables import TooLarge

#: Channels of a piece, at least, where threads share them
PIECE = 64
#: Bytes of images that a core finds in its part of L3; more of them come from memory, and are
#: fetched so many rows of results ahead: 70 cycles each
NEAR_BYTES, AHEAD = 4 << 20, 4
#: Results along a side of an image, at most
MOST_RESULTS = 1 << 24


def pack_part(conv: Conv, source: str, to: str) -> Part:
    """Weights channels x taps to taps x channels."""
    count = len(conv.taps)

    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        made = emit_transpose(
            size["c"], count, conv.dtype, conv.target, lda=count, ldc=conv.channels
        )
        return made, {}

    words = {"a": Ref(source, {"c": count}, conv.element), "c": Ref(to, {"c": 1}, conv.element)}
    return Part("weights by tap", "c", {"c": Loop(conv.channels, (conv.channels,))}, code, words)


class _Pieces:
    """Blocks of `block` results along an axis. By the result with which one begins: the `first`
    pixel that it sees, how many it sees (`size`), and how far its lowest tap looks `before` that
    pixel, in the axis' steps."""

    def __init__(self, axis: Axis, block: int) -> None:
        if axis.count > MOST_RESULTS:
            raise TooLarge(f"{axis.count} results along a side; depthwise, {MOST_RESULTS} at most")
        self.axis, self.loop = axis, Loop(axis.count, (block,))
        at = np.arange(axis.count)
        low = at * axis.step + min(axis.taps)
        high = np.minimum(at + block - 1, axis.count - 1) * axis.step + max(axis.taps)
        self.first = np.clip(-(-low // axis.up), 0, axis.size)
        self.size = np.clip(high // axis.up + 1, self.first, axis.size) - self.first
        # where nothing is seen, this is of no account
        self.before = np.maximum(self.first * axis.up - low, 0)

    def variants(self, loop: str) -> dict[str, tuple[str, np.ndarray]]:
        """What kernels depend on, as `Part` has it."""
        return {f"{loop} before": (loop, self.before), f"{loop} size": (loop, self.size)}

    def of(self, loop: str, size: dict[str, int]) -> Axis:
        """The axis of a block, from its first seen pixel on."""
        axis, shift = self.axis, min(self.axis.taps) + size[f"{loop} before"]
        taps = tuple(t - shift for t in axis.taps)
        return Axis(size[loop], axis.step, taps, size[f"{loop} size"], axis.up)


def _strips(
    conv: Conv, rows: Axis, columns: Axis, band: int, piece: int, epilogue: tuple[Step, ...],
    gradient: bool,
) -> tuple[_Pieces, _Pieces]:  # fmt: skip
    """Rows and columns in blocks for kernels, of at most `band` rows and `piece` channels, that see
    less than 2 GiB of the images."""
    row = conv.channels * max(columns.size, columns.count)
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
    return _Pieces(rows, band if strip.rolling else 1), _Pieces(columns, width)


def _ahead(conv: Conv) -> int:
    """Rows of results ahead of which a core fetches the images that it reads."""
    pixels = conv.size[0] * conv.size[1] + conv.out[0] * conv.out[1]
    size = conv.batch * conv.channels * pixels * conv.element // conv.threads
    return AHEAD if size > NEAR_BYTES else 0


def _forward_axes(conv: Conv) -> list[Axis]:
    return [
        Axis(conv.out[i], conv.stride[i],
             tuple(t * conv.dilation[i] - conv.padding[i] for t in range(conv.kernel[i])),
             conv.size[i])
        for i in range(2)
    ]  # fmt: skip


def product_part(conv: Conv, backward: bool, epilogue: tuple[Step, ...]) -> Part:
    """Images from images (tensors "x", "panels", "y", "bias", "residual"), strip by strip.

    Pixel p of x adds w[t] dy[o] to its gradient where it is the one that tap t of o sees:
    p + padding = o stride + t dilation.
    """
    e, c = conv.element, conv.channels
    rows, columns = _forward_axes(conv)
    if backward:
        rows, columns = (
            Axis(axis.size, 1, tuple(-t for t in axis.taps), axis.count, axis.step)
            for axis in (rows, columns)
        )
    # threads share images, then channels if there are many, or else bands of rows
    share = conv.threads // math.gcd(conv.batch, conv.threads)
    band, piece = rows.count, c
    if c >= share * PIECE:
        piece = -(-c // share // 16) * 16
    else:
        band = -(-rows.count // share)
    down, along = _strips(conv, rows, columns, band, piece, epilogue, False)
    row, y_row = columns.size * c, columns.count * c
    ahead = _ahead(conv) * rows.step // rows.up

    def code(sizes: dict[str, int], first: bool, last: bool) -> Made:
        made = emit_depthwise(
            down.of("h", sizes), along.of("w", sizes), sizes["c"], conv.dtype, conv.target,
            lda=(row, c), ldb=c, ldc=(y_row, c), epilogue=epilogue, ahead=ahead,
        )  # fmt: skip
        return made, {}

    words = {
        "a": Ref("x", {"n": rows.size * row, "c": 1}, e,
                 table={"h": down.first * row, "w": along.first * c}),
        "b": Ref("panels", {"c": 1}, e),
        "c": Ref("y", {"n": rows.count * y_row, "h": y_row, "w": c, "c": 1}, e),
    }  # fmt: skip
    for word in operands(epilogue):
        words[word] = Ref("bias", {"c": 1}, e) if word == "bias" else replace(
            words["c"], tensor=word
        )
    loops = {
        "n": Loop(conv.batch, (1,)), "c": Loop(c, (piece,)), "h": down.loop, "w": along.loop,
    }  # fmt: skip
    variants = down.variants("h") | along.variants("w")
    return Part("strips of pixels, channel by channel", "NCHW", loops, code, words,
                variants=variants)  # fmt: skip


def weights_parts(conv: Conv, x: str, dy: str) -> list[Part]:
    """The weight gradient from tensors `x` and `dy` to "dw"; "by_tap" is scratch.

    Threads share the channels, so that each weight is summed by one of them, strip by strip.
    """
    e, c, count = conv.element, conv.channels, len(conv.taps)
    rows, columns = _forward_axes(conv)
    piece = -(-c // conv.threads // 16) * 16
    down, along = _strips(conv, rows, columns, rows.count, piece, (), True)
    row, y_row = conv.size[1] * c, conv.out[1] * c

    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        made = emit_depthwise_weights(
            down.of("h", size), along.of("w", size), size["c"], conv.dtype, conv.target,
            lda=(row, c), ldb=(y_row, c), ldc=c, accumulate=not first,
            ahead=_ahead(conv) * rows.step,
        )  # fmt: skip
        return made, {}

    words = {
        "a": Ref(x, {"c": 1, "n": conv.size[0] * row}, e,
                 table={"h": down.first * row, "w": along.first * c}),
        "b": Ref(dy, {"c": 1, "n": conv.out[0] * y_row, "h": y_row, "w": c}, e),
        "c": Ref("by_tap", {"c": 1}, e),
    }  # fmt: skip
    loops = {
        "c": Loop(c, (piece,)), "n": Loop(conv.batch, (1,)), "h": down.loop, "w": along.loop,
    }  # fmt: skip

    def turn(size: dict[str, int], first: bool, last: bool) -> Made:
        made = emit_transpose(count, size["c"], conv.dtype, conv.target, lda=c, ldc=count)
        return made, {}

    back = {"a": Ref("by_tap", {"c": 1}, e), "c": Ref("dw", {"c": count}, e)}
    variants = down.variants("h") | along.variants("w")
    return [
        Part("weight gradient, strip by strip", "Cnhw", loops, code, words, "nhw",
             variants=variants),
        Part("weight gradient channels x taps", "c", {"c": Loop(c, (c,))}, turn, back),
    ]  # fmt: skip
