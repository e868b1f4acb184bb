"""Images as tensors, NHWC or NCHW, dense or with gaps; and copies of one to the other.

Not here: copies into a border (`jitgen.primitives.conv.layouts`).
"""

from __future__ import annotations

from jitgen.primitives.conv.layouts import Conv, gather, spread
from jitgen.primitives.nest.nest import relayout
from jitgen.primitives.nest.stream import Part
from jitgen.primitives.nest.tensor import Tensor

#: Of tensors that are not dense: name, and elements from one index of an outer axis to the next
Strides = tuple[tuple[str, tuple[int, ...]], ...]


def image(
    conv: Conv, name: str, channels: int, size: tuple[int, int], strides: Strides = (),
    layout: str = "n h w c",
) -> Tensor:  # fmt: skip
    """Images of `size` pixels; `strides` are looked up by name."""
    apart = dict(zip(layout.split(), dict(strides).get(name, ()), strict=False))
    n, (h, w) = conv.batch, size
    return Tensor(name, layout, conv.dtype, n=n, h=h, w=w, c=channels, strides=apart)


def nhwc_copy(conv: Conv, nchw: str, inside: Tensor, strides: Strides, back: bool = False) -> Part:
    """NCHW images (tensor `nchw`) to dense NHWC ones, or these `back`."""
    _, h, w, c = inside.sizes.values()
    if nchw in dict(strides):
        pair = image(conv, nchw, c, (h, w), strides, "n c h w"), inside
        return relayout(*(pair[::-1] if back else pair), conv.dtype, conv.target)
    if back:
        return gather(conv, inside.name, nchw, c, h * w)
    return spread(conv, nchw, inside.name, c, (h, w), (h, w), (0, 0))
