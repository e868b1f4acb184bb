"""What a convolution is, and its layouts: images into NHWC with a border, weights into panels.

Not here: the products (`jitgen.primitives.conv.streams`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jitgen.emit.shapes import MOST_TAPS
from jitgen.emit.steps import Step
from jitgen.gemm.kernel import panel_width
from jitgen.primitives.nest.limits import within_reach
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.nest import Nest
from jitgen.primitives.nest.stream import Part
from jitgen.primitives.nest.tensor import Tensor
from jitgen.run.cache import lazy
from jitgen.target import Target
from jitgen.types import DTYPES

#: Pixels of a kernel call for which the width of panels is chosen
MOST_PIXELS = 128
#: Fewer input channels than this would leave lanes empty in the weight update
FEW_CHANNELS = 16
#: A strided image is read in place in the weight update for fewer output channels than this, if
#: its rows have this many results
FEW_FEATURES, SHORT_ROW = 192, 16


@dataclass(frozen=True)
class Conv:
    """What a convolution's streams depend on. Pairs are (rows, columns); padding is (top, left),
    `out` the output's height and width. `widths`: columns of a panel of weights, of forward and of
    backward by data, where they are packed already (None: as suits)."""

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
    widths: tuple[int, int] | None = None

    @property
    def element(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype].size

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
        if self.dilation != (1, 1):
            always["dilation"] = self.dilation
        if self.groups != 1:
            always["groups"] = self.groups
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
        """Each channel is a group: kernels of its own, if they know the window."""
        alone = self.groups == self.channels == self.features > 1
        return alone and len(self.taps) <= MOST_TAPS

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

    def width(self, backward: bool) -> int:
        """Columns of a panel of weights: the given one, or what suits the product."""
        if self.widths is not None:
            return self.widths[backward]
        c, k = reversed(self.group) if backward else self.group
        flat = self.flat if backward else self.thin.flat
        row = self.batch * self.out[0] * self.out[1] if flat else self.out[1]
        return panel_width(min(row, MOST_PIXELS), k, c, self.dtype, self.target)


@dataclass(frozen=True)
class Taps:
    """A product over taps: results of `pixels` (rows, columns), from a buffer of `inside` pixels
    and `channels` (of all groups) whose pixel for result (h, w) and tap t begins at (h, w) *
    stride + offsets[t]. Which weights belong to it: `weights`, numbers of taps in the panels.
    Results lie `apart` (rows, columns) pixels of an image of `image` pixels, from `at` on. Rows of
    the buffer other than `rows` (first, behind the last) hold zeros. `backward`: of backward by
    data."""

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
    backward: bool = False

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


@dataclass(frozen=True)
class Choice:
    """How a pass is cut.

    order: the loops. pixels: results of a kernel call; in the weight update pixels that it sums.
    channels: of the reduction in a call; in the weight update output channels of a call. copies:
    of dw, between which the pixels are divided.
    """

    order: str
    pixels: int
    channels: int
    copies: int = 1


#: The choice of the other algorithm (`jitgen.primitives.conv.winograd`)
WINOGRAD = Choice("winograd", 0, 0)


def even(extent: int, most: int, multiple: int = 1) -> int:
    """A block of at most about `most` that cuts `extent` evenly, a multiple."""
    blocks = -(-extent // most)
    block = -(-extent // blocks)
    return -(-block // multiple) * multiple


def most_pixels(conv: Conv, p: Taps) -> int:
    """Results of a call of a product, at the most: what it sees spans less than 2 GiB."""
    return within_reach(max(p.stride[1] * p.channels, p.apart[1] * p.features), conv.element)


def most_summed(conv: Conv) -> tuple[int, int]:
    """The same for the weight update: pixels that a call sums, if all pixels are one sum, and
    output channels (of the other side, if x and dy change places)."""
    pixels = 1 if conv.nhwc else conv.out[0] * conv.out[1]
    return (
        within_reach(max(conv.channels, conv.features), conv.element),
        within_reach(max(pixels, *conv.group), conv.element),
    )


def check_block(what: str, size: int, most: int) -> None:
    """Raise ValueError if a block that the caller chose is too large for a kernel."""
    if size > most:
        raise ValueError(f"blocks: {size} {what} of a call span 2 GiB or more; {most} do not")


#: Elements from one index of the outer axes of images to the next (n h w, or n c h in NCHW), by
#: tensor, where they are not those of an array without gaps
Strides = tuple[tuple[str, tuple[int, int, int]], ...]


def images(
    conv: Conv, name: str, channels: int, size: tuple[int, int], strides: Strides = (), *,
    axis: str = "c", nhwc: bool = False,
) -> Tensor:  # fmt: skip
    """Images of the layer's layout, or NHWC, whose channels are `axis`."""
    layout = f"n h w {axis}" if nhwc or conv.nhwc else f"n {axis} h w"
    apart = dict(strides).get(name)
    steps = dict(zip(layout.split()[:3], apart, strict=True)) if apart else None
    sizes: dict[str, Any] = {"n": conv.batch, axis: channels, "h": size[0], "w": size[1]}
    return Tensor(name, layout, conv.dtype, strides=steps, **sizes)


def to_nhwc(
    conv: Conv, source: str, to: str, channels: int, size: tuple[int, int],
    inside: tuple[int, int] | None = None, at: tuple[int, int] = (0, 0),
    steps: tuple[int, int] = (1, 1), strides: Strides = (),
) -> Part:  # fmt: skip
    """Copy images of the layer's layout, of `size` pixels, into an NHWC buffer of `inside` pixels
    (the same), beginning at pixel `at`; of rows and columns, those that lie `steps` apart."""
    inside = inside or size
    x = images(conv, source, channels, size, strides)
    y = images(conv, to, channels, inside, strides, nhwc=True)
    high, wide = (-(-n // step) for n, step in zip(size, steps, strict=True))
    even_shares = steps == (1, 1) and conv.batch % conv.threads == 0
    of_x, of_y = x.merged("h", "w"), y.merged("h", "w")
    if even_shares and inside[1] == wide and of_x and of_y:
        # images without a border are one long row, where the threads share images evenly
        x, y, at = of_x, of_y, (0, at[0] * wide)
        high, wide = 1, high * wide
    loops = {"n": Loop(conv.batch, (1,)), "h": Loop(high, (1,)), "w": Loop(wide, (wide,))}
    return Nest("NHw", loops, conv.dtype, conv.target).relayout(
        x.at(n="n", h=("h", steps[0]), w=("w", steps[1])),
        y.at(n="n", h=["h", at[0]], w=["w", at[1]]), title="images to NHWC",
    )  # fmt: skip


def from_nhwc(
    conv: Conv, source: str, to: str, channels: int, size: tuple[int, int], strides: Strides = ()
) -> Part:
    """Copy NHWC images to images of the layer's layout."""
    x = images(conv, source, channels, size, nhwc=True)
    y = images(conv, to, channels, size, strides)
    of_x, of_y = x.merged("h", "w"), y.merged("h", "w")
    if of_x and of_y:
        x, y = of_x, of_y
    # pieces of some channels, so that few images suffice for many threads
    loops = {"n": Loop(conv.batch, (1,)), "c": Loop(channels, (min(channels, 64),)),
             "h": Loop(y.sizes["h"], (1,))}  # fmt: skip
    place: dict[str, Any] = {axis: axis for axis in loops}
    nest = Nest("NCh", loops, conv.dtype, conv.target)
    return nest.relayout(x.at(**place), y.at(**place), title="images from NHWC")


def panels(conv: Conv, backward: bool, name: str = "panels") -> Tensor:
    """Packed weights for a product over c with k results: those of forward, or of backward by
    data, where c and k change places."""
    (c, k), width = conv.group, conv.width(backward)
    c, k = (k, c) if backward else (c, k)
    layout = f"g k/{width} t c k"
    return Tensor(name, layout, conv.dtype, g=conv.groups, k=k, t=len(conv.taps), c=c)


def pack_parts(conv: Conv, backward: bool, source: str, to: str) -> list[Part]:
    """Weights k x c x taps into panels, in two steps; tensor "by_tap" is scratch: [taps][k][c]."""
    packed, taps = panels(conv, backward, to), len(conv.taps)
    parts = []
    if taps > 1:
        nest = Nest("K", {"k": Loop(conv.features, (1,))}, conv.dtype, conv.target)
        w = Tensor(source, "k c t", conv.dtype, k=conv.features, c=conv.group[0], t=taps)
        source = "by_tap"
        by_tap = w.like(source, "t k c")
        parts.append(nest.relayout(w.at(k="k"), by_tap.at(k="k"), title="weights by tap"))
    by_tap = packed.like(source, "t g c k" if backward else "t g k c")
    loops = {"g": Loop(conv.groups, (1,)), "k": Loop(packed.sizes["k"], (packed.blocks("k"),)),
             "t": Loop(taps, (1,))}  # fmt: skip
    place: dict[str, Any] = {axis: axis for axis in loops}
    nest = Nest("GKT", loops, conv.dtype, conv.target)
    parts.append(nest.relayout(by_tap.at(**place), packed.at(**place), title="weights in panels"))
    return parts


def packed_layout(conv: Conv, backward: bool) -> tuple[int, ...]:
    """What must agree between the layer that packed weights and the one that reads them."""
    if conv.depthwise:
        return (conv.channels, *conv.kernel)
    return (conv.groups, *conv.group, *conv.kernel, conv.width(backward))


def packed_elements(conv: Conv, backward: bool) -> int:
    """Elements of the packed weights."""
    if conv.depthwise:
        return conv.channels * len(conv.taps)
    return panels(conv, backward).elements
