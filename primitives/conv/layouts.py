"""What a convolution is, and its layouts: images into NHWC with a border, weights into panels.

Not here: the products (`jitgen.primitives.conv.streams`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from jitgen.emit.shapes import MOST_TAPS
from jitgen.gemm.kernel import panel_width
from jitgen.gemm.spec import DTYPES, Step
from jitgen.kernels.elementwise import emit_map
from jitgen.kernels.layout import emit_transpose
from jitgen.kernels.pack import emit_packer
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.stream import Part, Ref
from jitgen.run.cache import lazy
from jitgen.target import Target

#: Pixels of a kernel call for which the width of panels is chosen
MOST_PIXELS = 128
#: Fewer input channels than this would leave lanes empty in the weight update
FEW_CHANNELS = 16
#: A strided image is read in place in the weight update for fewer output channels than this, if
#: its rows have this many results
FEW_FEATURES, SHORT_ROW = 192, 16

Made = tuple[bytes, dict[str, int]]


@dataclass(frozen=True)
class Conv:
    """What a convolution's streams depend on. Pairs are (rows, columns); padding is (top, left),
    `out` the output's height and width. row: pixels of the row that panels of weights are as wide
    for, where all images are one row (`flat`; 0: this one)."""

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
    row: int = 0

    @property
    def element(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype].element

    @property
    def group(self) -> tuple[int, int]:
        """Input and output channels of a group."""
        return self.channels // self.groups, self.features // self.groups

    @property
    def arguments(self) -> dict[str, object]:
        """The layer's arguments that say how large it is, for errors."""
        always: dict[str, object] = {
            "batch": self.batch, "in_channels": self.channels, "height": self.size[0],
            "width": self.size[1], "out_channels": self.features, "kernel": self.kernel,
        }  # fmt: skip
        if self.stride != (1, 1):
            always["stride"] = self.stride
        if self.padding != (0, 0):
            always["padding"] = self.padding
        return always

    @lazy
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

    @property
    def depthwise(self) -> bool:
        """Each channel is a group: kernels of its own, if they know window and epilogue."""
        alone = self.groups == self.channels == self.features > 1
        steps = {step for step, *_ in self.epilogue}
        return alone and len(self.taps) <= MOST_TAPS and "residual" not in steps

    @property
    def flat(self) -> bool:
        """Each tap is a pixel and there is no border: all pixels of all images are one long row."""
        return self.padded == self.size and all(x == 1 for x in (*self.kernel, *self.stride))

    @property
    def dense(self) -> Conv:
        """In the weight update, the convolution of the pixels that are seen, if copying those pays:
        1 x 1 taps with a stride and no border, many products with each or short rows."""
        strided = self.kernel == (1, 1) != self.stride and self.padded == self.size
        pays = self.features >= FEW_FEATURES or self.out[1] < SHORT_ROW
        if strided and pays and self.groups == 1:
            return replace(self, size=self.out, stride=(1, 1))
        return self

    @property
    def thin(self) -> Conv:
        """The convolution of the rows that are seen, if the image is copied anyway: taps are in one
        row, with a stride down and no border."""
        if self.nhwc or self.depthwise or self.kernel[0] > 1 or self.stride[0] == 1:
            return self
        if self.padded != self.size:
            return self
        return replace(self, size=(self.out[0], self.size[1]), stride=(1, self.stride[1]))

    @property
    def few(self) -> bool:
        """In the weight update, lanes are output channels, and the result is turned at the end: the
        input channels are too few, or to pack dy instead of x saves more than turning costs."""
        c, k = self.group
        if self.one_sum:
            return self.batch * self.out[0] * self.out[1] * (c - k) > 2 * c * k
        return c < FEW_CHANNELS <= k

    @property
    def one_sum(self) -> bool:
        """In the weight update, all pixels are one sum."""
        return self.flat and self.groups == 1

    @property
    def sum_width(self) -> int:
        """Columns of dw, or rows of its transpose, that a call of the weight update makes."""
        c, k = self.group
        columns = k if self.few else c
        length = self.out[0] * self.out[1] if self.one_sum else self.out[1]
        return panel_width(min(c if self.few else k, MOST_PIXELS), columns, length, self.dtype,
                           self.target)  # fmt: skip

    def width(self, c: int, k: int) -> int:
        """Columns of a panel of weights for a product over c channels with k results."""
        row = self.row or self.batch * self.out[0] * self.out[1] if self.flat else self.out[1]
        return panel_width(min(row, MOST_PIXELS), k, c, self.dtype, self.target)


@dataclass(frozen=True)
class Taps:
    """A product over taps: results of `pixels` (rows, columns), from a buffer of `inside` pixels
    and `channels` (of all groups) whose pixel for result (h, w) and tap t begins at (h, w) *
    stride + offsets[t]. Which weights belong to it: `weights`, numbers of taps in the panels.
    Results lie `apart` (rows, columns) pixels of an image of `image` pixels, from `at` on. Rows of
    the buffer other than `rows` (first, behind the last) hold zeros."""

    pixels: tuple[int, int]
    inside: tuple[int, int]
    channels: int
    features: int
    stride: tuple[int, int]
    offsets: tuple[tuple[int, int], ...]
    weights: tuple[int, ...]
    image: tuple[int, int]
    rows: tuple[int, int]
    apart: tuple[int, int] = (1, 1)
    at: tuple[int, int] = (0, 0)

    def seen(self) -> tuple[np.ndarray, np.ndarray]:
        """For each row of results, the first tap that sees more than zeros, and how many do: they
        follow one another, as taps go down (or up) the rows."""
        rows = np.array([r for r, _ in self.offsets])
        sign = 1 if rows[0] <= rows[-1] else -1
        corners = np.arange(self.pixels[0]) * self.stride[0]
        # tap r of a result sees one of `self.rows` from row `low` to row `high` of taps
        low, high = self.rows[0] - corners, self.rows[1] - 1 - corners
        low, high = (low, high) if sign > 0 else (-high, -low)
        first = np.searchsorted(sign * rows, low, "left")
        seen = np.searchsorted(sign * rows, high, "right") - first
        return np.where(seen > 0, first, 0), seen


def even(extent: int, most: int, multiple: int = 1) -> int:
    """A block of at most about `most` that cuts `extent` evenly, a multiple."""
    blocks = -(-extent // most)
    block = -(-extent // blocks)
    return -(-block // multiple) * multiple


def spread(
    conv: Conv, source: str, to: str, channels: int, size: tuple[int, int],
    inside: tuple[int, int], at: tuple[int, int], step: int = 1,
) -> Part:  # fmt: skip
    """Copy images (plain, of `size` pixels) into an NHWC buffer of `inside` pixels, beginning at
    pixel `at`; of the rows, those that lie `step` apart."""
    (h, w), (buffer_h, buffer_w) = size, inside
    # images without a border are one long row, where the threads share images evenly
    whole = step == 1 and buffer_w == w and at[1] == 0 and conv.batch % conv.threads == 0
    rows, length = (1, h * w) if whole else ((h - 1) // step + 1, w)

    def code(sizes: dict[str, int], first: bool, last: bool) -> Made:
        if conv.nhwc:
            made = emit_map("copy", length, channels, conv.dtype, conv.target)
        else:
            made = emit_transpose(
                channels, length, conv.dtype, conv.target, lda=h * w, ldc=channels
            )
        return made, {}

    image = channels * h * w
    row = step * length * (channels if conv.nhwc else 1)
    start = (at[0] * buffer_w + at[1]) * channels
    words = {
        "a": Ref(source, {"n": image, "h": row}, conv.element),
        "c": Ref(to, {"n": buffer_h * buffer_w * channels, "h": buffer_w * channels}, conv.element,
                 start=start),
    }  # fmt: skip
    loops = {"n": Loop(conv.batch, (1,)), "h": Loop(rows, (1,))}
    return Part("images into a buffer with a border", "NH", loops, code, words)


def pick(conv: Conv, source: str, to: str) -> Part:
    """Copy the pixels of NHWC images that are seen, stride by stride, to images of `conv.out`."""
    c, (h, w) = conv.channels, conv.out

    def code(sizes: dict[str, int], first: bool, last: bool) -> Made:
        leading = {"a": conv.stride[1] * c, "c": c}
        return emit_map("copy", w, c, conv.dtype, conv.target, ld=leading), {}

    row = conv.size[1] * c
    words = {
        "a": Ref(source, {"n": conv.size[0] * row, "h": conv.stride[0] * row}, conv.element),
        "c": Ref(to, {"n": h * w * c, "h": w * c}, conv.element),
    }
    loops = {"n": Loop(conv.batch, (1,)), "h": Loop(h, (1,))}
    return Part("pixels that are seen", "NH", loops, code, words)


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


def packed_layout(conv: Conv, backward: bool) -> tuple[int, ...]:
    """What must agree between the layer that packed weights and the one that reads them."""
    c, k = conv.group
    if conv.depthwise:
        return (conv.channels, *conv.kernel)
    width = conv.width(k, c) if backward else conv.width(c, k)
    return (conv.groups, c, k, *conv.kernel, width)


def packed_elements(conv: Conv, backward: bool) -> int:
    """Elements of the packed weights."""
    if conv.depthwise:
        return conv.channels * len(conv.taps)
    c, k = conv.group
    rows, columns = (k, c) if backward else (c, k)
    width = conv.width(rows, columns)
    return conv.groups * -(-columns // width) * width * len(conv.taps) * rows
