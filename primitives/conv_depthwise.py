"""Depthwise convolution: a filter for each channel, with kernels whose lanes are the channels.

A product over one channel would leave all lanes but one empty. Weights are [taps][channels]. Not
here: the kernels (`jitgen.depthwise`), layouts (`primitives.conv_layouts`).
"""

from __future__ import annotations

from jitgen.depthwise import emit_depthwise, emit_depthwise_weights
from jitgen.layout import emit_transpose
from jitgen.spec import Step
from primitives.conv_layouts import Conv, Made, Taps
from primitives.loops import Loop
from primitives.stream import Part, Ref


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


def product_part(conv: Conv, p: Taps, apart: int, epilogue: tuple[Step, ...]) -> Part:
    """Rows of results (tensors "x", "panels", "y", "bias"); the input's pixels are `apart`
    elements apart."""
    row, e, c = p.inside[1] * apart, conv.element, conv.channels
    displacements = tuple(r * row + s * apart for r, s in p.offsets)

    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        made = emit_depthwise(
            p.pixels[1], c, displacements, conv.dtype, conv.target, step=p.stride[1] * apart,
            ldc=p.apart[1] * c, filters=p.weights, epilogue=epilogue,
        )  # fmt: skip
        return made, {}

    y_row = p.image[1] * c
    words = {
        "a": Ref("x", {"n": p.inside[0] * row, "h": p.stride[0] * row}, e),
        "b": Ref("panels", {}, e),
        "c": Ref("y", {"n": p.image[0] * y_row, "h": p.apart[0] * y_row}, e,
                 start=p.at[0] * y_row + p.at[1] * c),
    }  # fmt: skip
    if ("bias",) in epilogue:
        words["bias"] = Ref("bias", {}, e)
    loops = {"n": Loop(conv.batch, (1,)), "h": Loop(p.pixels[0], (1,))}
    return Part("rows of pixels, channel by channel", "NH", loops, code, words)


def weights_parts(conv: Conv, x: str, dy: str, apart: int) -> list[Part]:
    """The weight gradient from tensors `x` (pixels `apart`) and `dy` to "dw"; "by_tap" is scratch.

    Threads share the channels, so that each weight is summed by one of them, row by row.
    """
    row, e, c, count = conv.padded[1] * apart, conv.element, conv.channels, len(conv.taps)
    displacements = tuple(r * row + s * apart for r, s in conv.taps)

    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        made = emit_depthwise_weights(
            conv.out[1], size["c"], displacements, conv.dtype, conv.target,
            step=conv.stride[1] * apart, ldb=c, ldc=c, accumulate=not first,
        )  # fmt: skip
        return made, {}

    y_row = conv.out[1] * c
    words = {
        "a": Ref(x, {"c": 1, "n": conv.padded[0] * row, "h": conv.stride[0] * row}, e),
        "b": Ref(dy, {"c": 1, "n": conv.out[0] * y_row, "h": y_row}, e),
        "c": Ref("by_tap", {"c": 1}, e),
    }
    piece = min(c, 64) if conv.threads > 1 else c
    loops = {
        "c": Loop(c, (piece,)), "n": Loop(conv.batch, (1,)), "h": Loop(conv.out[0], (1,)),
    }  # fmt: skip

    def turn(size: dict[str, int], first: bool, last: bool) -> Made:
        made = emit_transpose(count, size["c"], conv.dtype, conv.target, lda=c, ldc=count)
        return made, {}

    back = {"a": Ref("by_tap", {"c": 1}, e), "c": Ref("dw", {"c": count}, e)}
    return [
        Part("weight gradient, row by row", "Cnh", loops, code, words, "nh"),
        Part("weight gradient channels x taps", "c", {"c": Loop(c, (c,))}, turn, back),
    ]
