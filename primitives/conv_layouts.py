"""What a convolution is, and its layouts: images into NHWC with a border, weights into panels.

Not here: the products (`primitives.conv_streams`).
"""

from __future__ import annotations

from dataclasses import dataclass

from jitgen.elementwise import emit_map
from jitgen.kernel import panel_width
from jitgen.layout import emit_transpose
from jitgen.pack import emit_packer
from jitgen.spec import DTYPES, Step
from jitgen.target import Target
from primitives.loops import Loop
from primitives.stream import Part, Ref

#: Most pixels of a kernel call
MOST_PIXELS = 128

Made = tuple[bytes, dict[str, int]]


@dataclass(frozen=True)
class Conv:
    """What a convolution's streams depend on. Pairs are (rows, columns); padding is (top, left),
    `out` the output's height and width."""

    batch: int
    channels: int
    size: tuple[int, int]
    features: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    out: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    bias: bool
    epilogue: tuple[Step, ...]
    dtype: str
    nhwc: bool
    threads: int
    target: Target

    @property
    def element(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype].element

    @property
    def group(self) -> tuple[int, int]:
        """Input and output channels of a group."""
        return self.channels // self.groups, self.features // self.groups

    @property
    def taps(self) -> list[tuple[int, int]]:
        """Rows and columns by which the taps look down and right."""
        return [
            (r * self.dilation[0], s * self.dilation[1])
            for r in range(self.kernel[0])
            for s in range(self.kernel[1])
        ]

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the input with all zeros that any tap sees."""
        height, width = (
            max((o - 1) * s + (k - 1) * d + 1, p + x)
            for o, s, k, d, p, x in zip(
                self.out, self.stride, self.kernel, self.dilation, self.padding, self.size,
                strict=True,
            )
        )  # fmt: skip
        return height, width

    def width(self, c: int, k: int) -> int:
        """Columns of a panel of weights for a product over c channels with k results."""
        return panel_width(min(self.out[1], MOST_PIXELS), k, c, self.dtype, self.target)


def spread(
    conv: Conv, source: str, to: str, channels: int, size: tuple[int, int],
    inside: tuple[int, int], at: tuple[int, int], step: tuple[int, int] = (1, 1),
) -> Part:  # fmt: skip
    """Copy images (plain, of `size` pixels) into an NHWC buffer of `inside` pixels, beginning at
    pixel `at`; their pixels are `step` apart there."""
    (h, w), (buffer_h, buffer_w) = size, inside
    pixel = step[1] * channels
    # images without a border are one long row
    rows = 1 if step == (1, 1) and buffer_w == w and at[1] == 0 else h
    length = h * w // rows

    def code(sizes: dict[str, int], first: bool, last: bool) -> Made:
        if conv.nhwc:
            leading = {"a": channels, "c": pixel}
            made = emit_map("copy", length, channels, conv.dtype, conv.target, ld=leading)
        else:
            made = emit_transpose(
                channels, length, conv.dtype, conv.target, lda=h * w, ldc=pixel
            )
        return made, {}

    image = channels * h * w
    row = length * channels if conv.nhwc else length
    start = (at[0] * buffer_w + at[1]) * channels
    words = {
        "a": Ref(source, {"n": image, "h": row}, conv.element),
        "c": Ref(to, {"n": buffer_h * buffer_w * channels, "h": step[0] * buffer_w * channels},
                 conv.element, start=start),
    }  # fmt: skip
    loops = {"n": Loop(conv.batch, (1,)), "h": Loop(rows, (1,))}
    return Part("images into a buffer with a border", "NH", loops, code, words)


def gather(conv: Conv, source: str, to: str, channels: int, pixels: int) -> Part:
    """Copy NHWC images to NCHW ones."""
    # pieces of some channels, so that few images suffice for many threads
    piece = min(channels, 64)

    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        made = emit_transpose(
            pixels, size["c"], conv.dtype, conv.target, lda=channels, ldc=pixels
        )
        return made, {}

    words = {
        "a": Ref(source, {"n": channels * pixels, "c": 1}, conv.element),
        "c": Ref(to, {"n": channels * pixels, "c": pixels}, conv.element),
    }
    loops = {"n": Loop(conv.batch, (1,)), "c": Loop(channels, (piece,))}
    return Part("images to NCHW", "NC", loops, code, words)


def pack_parts(conv: Conv, backward: bool, source: str, to: str) -> list[Part]:
    """Weights k x c x taps into panels, in two steps; tensor "by_tap" is scratch: [taps][k][c]."""
    (c, k), taps, e = conv.group, len(conv.taps), conv.element
    parts = []
    by_tap = source
    if taps > 1:
        by_tap = "by_tap"

        def turn(size: dict[str, int], first: bool, last: bool) -> Made:
            made = emit_transpose(
                c, taps, conv.dtype, conv.target, lda=taps, ldc=conv.features * c
            )
            return made, {}

        words = {"a": Ref(source, {"k": c * taps}, e), "c": Ref(by_tap, {"k": c}, e)}
        parts.append(Part("weights by tap", "K", {"k": Loop(conv.features, (1,))}, turn, words))
    rows, columns = (k, c) if backward else (c, k)
    width = conv.width(rows, columns)

    def pack(size: dict[str, int], first: bool, last: bool) -> Made:
        trans = not backward
        made = emit_packer(
            rows, size["n"], c, 0, width, conv.dtype, trans, conv.target
        )
        return made, {"count": 1}

    panels = -(-columns // width)
    words = {
        "a": Ref(by_tap, {"g": k * c, "t": conv.features * c, "n": 1 if backward else c}, e),
        "c": Ref(to, {"g": panels * taps * rows * width, "t": rows * width, "n": taps * rows}, e),
    }
    loops = {
        "g": Loop(conv.groups, (1,)), "n": Loop(columns, (width,)), "t": Loop(taps, (1,)),
    }  # fmt: skip
    parts.append(Part("weights in panels", "GNT", loops, pack, words))
    return parts


def packed_elements(conv: Conv, backward: bool) -> int:
    """Elements of the packed weights."""
    c, k = conv.group
    rows, columns = (k, c) if backward else (c, k)
    width = conv.width(rows, columns)
    return conv.groups * -(-columns // width) * width * len(conv.taps) * rows
