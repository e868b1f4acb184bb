"""The parts of a pass of a convolution as they are found: NHWC images, copies, scratch, the stream.

Not here: the products (`jitgen.primitives.conv.streams`, `jitgen.primitives.conv.winograd`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jitgen.primitives.conv.layouts import Conv, Strides, from_nhwc, images, to_nhwc
from jitgen.primitives.nest.run import Run
from jitgen.primitives.nest.stream import Part
from jitgen.primitives.nest.tensor import Tensor


class Parts:
    """The parts of a pass as they are found, and the scratch and the tables that they take."""

    def __init__(self, conv: Conv, strides: Strides) -> None:
        self.conv, self.thin, self.strides = conv, conv.thin, strides
        self.parts: list[Part] = []
        self.scratch: dict[str, int] = {}
        self.tables: dict[str, np.ndarray] = {}

    def nhwc(
        self, name: str, to: str, channels: int, size: tuple[int, int],
        inside: tuple[int, int] | None = None, *, axis: str = "c", copied: bool = False, **how: Any,
    ) -> Tensor:  # fmt: skip
        """The caller's images as NHWC images of `inside` pixels (the same): they themselves unless
        they must be `copied`, or a copy in scratch `to`."""
        conv, inside = self.conv, inside or size
        if conv.nhwc and inside == size and not copied:
            return images(conv, name, channels, size, self.strides, axis=axis)
        part = to_nhwc(conv, name, to, channels, size, inside, strides=self.strides, **how)
        self.parts.append(part)
        return self.new(to, channels, inside, axis)

    def new(self, name: str, channels: int, size: tuple[int, int], axis: str = "c") -> Tensor:
        """NHWC images in scratch."""
        made = images(self.conv, name, channels, size, self.strides, axis=axis, nhwc=True)
        self.scratch[name] = made.elements
        return made

    def result(self, channels: int, size: tuple[int, int], to: str = "y") -> Tensor:
        """Where the results go: to the caller's array or, for `finish` to copy, to scratch `to`."""
        conv = self.conv
        if conv.nhwc:
            return images(conv, "result", channels, size, self.strides)
        return self.new(to, channels, size)

    def finish(self, y: Tensor, size: tuple[int, int], *more: str) -> Run:
        """The stream of a pass that makes images y; `more`: tensors of the caller's."""
        if y.name != "result":
            how = y.name, "result", y.sizes["c"], size, self.strides
            self.parts.append(from_nhwc(self.conv, *how))
        return self.run("image", "w", "result", *more)

    def run(self, *tensors: str) -> Run:
        """The stream; `tensors` are the caller's."""
        conv = self.conv
        return Run(self.parts, tensors, conv.threads, conv.target, conv.dtype, self.scratch,
                   self.tables)  # fmt: skip
