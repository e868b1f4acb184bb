"""Depthwise convolution: a filter for each channel, with kernels whose lanes are the channels.

A product over one channel would leave all lanes but one empty. Kernels walk down strips of the
images as they lie; each knows which taps see beyond the image, so that no border is needed. Weights
are [taps][channels]. Not here: the kernels (`jitgen.depthwise`), layouts (`conv_layouts`).
"""

from __future__ import annotations

import math

import numpy as np

from jitgen.depthwise import Axis, emit_depthwise, emit_depthwise_weights, plan_strip
from jitgen.layout import emit_transpose
from jitgen.spec import Step
from primitives.conv_layouts import Conv, Made, Taps
from primitives.loops import Loop
from primitives.stream import Part, Ref

#: Channels of a piece, at least, where threads share them
PIECE = 64


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
    """Blocks of `block` results along an axis: for each position at which one begins, the first
    pixel that it sees (`first`), how many pixels the first result's corner is before that
    (`before`), and how many it sees (`size`)."""

    def __init__(self, axis: Axis, block: int) -> None:
        self.axis, self.loop = axis, Loop(axis.count, (block,))
        low, high = min(axis.taps), max(axis.taps)
        at = np.arange(axis.count)
        last = np.minimum(at + block, axis.count) - 1
        self.first = np.clip(at * axis.step + low, 0, axis.size)
        self.size = np.clip(last * axis.step + high + 1, self.first, axis.size) - self.first
        # where nothing is seen, this is of no account
        self.before = np.maximum(self.first - at * axis.step - low, 0)

    def variants(self, loop: str) -> dict[str, tuple[str, np.ndarray]]:
        """Facts for kernels, as `Part` has them."""
        return {f"{loop} before": (loop, self.before), f"{loop} size": (loop, self.size)}

    def of(self, loop: str, size: dict[str, int]) -> Axis:
        """The axis of a block, from its first seen pixel on."""
        low, before = min(self.axis.taps), size[f"{loop} before"]
        taps = tuple(t - low - before for t in self.axis.taps)
        return Axis(size[loop], self.axis.step, taps, size[f"{loop} size"])


def _shares(conv: Conv, threads: int, rows: int) -> tuple[int, int]:
    """Rows of a band and channels of a piece, for `threads` threads beside those that images and
    columns keep busy: pieces of channels if there are enough of them, bands of rows if not."""
    if conv.channels >= threads * PIECE:
        return rows, -(-conv.channels // threads // 16) * 16
    return -(-rows // threads), conv.channels


def _strips(
    conv: Conv, rows: Axis, columns: Axis, band: int, piece: int, epilogue: tuple[Step, ...],
    gradient: bool,
) -> tuple[_Pieces, _Pieces]:  # fmt: skip
    """Rows and columns in blocks for kernels, of at most `band` rows and `piece` channels."""
    plans = [
        plan_strip(rows, columns, c, conv.dtype, conv.target, epilogue, gradient=gradient)
        for c in (min(piece, conv.channels), conv.channels % piece) if c
    ]  # fmt: skip
    strip = min(plans, key=lambda plan: (plan.rolling, plan.pixels))
    width = -(-columns.count // -(-columns.count // strip.pixels))
    return _Pieces(rows, band if strip.rolling else 1), _Pieces(columns, width)


def product_part(
    conv: Conv, p: Taps, size: tuple[int, int], border: tuple[int, int], epilogue: tuple[Step, ...]
) -> Part:  # fmt: skip
    """Strips of results (tensors "x", "panels", "y", "bias") from images of `size`; `border` is
    what the offsets of `p` count besides."""
    e, c = conv.element, conv.channels
    rows, columns = (
        Axis(p.pixels[i], p.stride[i], tuple(dict.fromkeys(o[i] - border[i] for o in p.offsets)),
             size[i])
        for i in range(2)
    )  # fmt: skip
    band, piece = _shares(conv, conv.threads // math.gcd(conv.batch, conv.threads), rows.count)
    down, along = _strips(conv, rows, columns, band, piece, epilogue, False)
    row, y_row = size[1] * c, p.image[1] * c

    def code(sizes: dict[str, int], first: bool, last: bool) -> Made:
        made = emit_depthwise(
            down.of("h", sizes), along.of("w", sizes), sizes["c"], conv.dtype, conv.target,
            lda=(row, c), ldb=c, ldc=(p.apart[0] * y_row, p.apart[1] * c), filters=p.weights,
            epilogue=epilogue,
        )  # fmt: skip
        return made, {}

    words = {
        "a": Ref("x", {"n": size[0] * row, "c": 1}, e,
                 table={"h": down.first * row, "w": along.first * c}),
        "b": Ref("panels", {"c": 1}, e),
        "c": Ref("y", {"n": p.image[0] * y_row, "h": p.apart[0] * y_row, "w": p.apart[1] * c,
                       "c": 1}, e, start=p.at[0] * y_row + p.at[1] * c),
    }  # fmt: skip
    if ("bias",) in epilogue:
        words["bias"] = Ref("bias", {"c": 1}, e)
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
    rows, columns = (
        Axis(conv.out[i], conv.stride[i],
             tuple(t * conv.dilation[i] - conv.padding[i] for t in range(conv.kernel[i])),
             conv.size[i])
        for i in range(2)
    )  # fmt: skip
    piece = -(-c // conv.threads // 16) * 16
    down, along = _strips(conv, rows, columns, rows.count, piece, (), True)
    row, y_row = conv.size[1] * c, conv.out[1] * c

    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        made = emit_depthwise_weights(
            down.of("h", size), along.of("w", size), size["c"], conv.dtype, conv.target,
            lda=(row, c), ldb=(y_row, c), ldc=c, accumulate=not first,
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
