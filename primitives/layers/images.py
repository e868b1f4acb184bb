"""Layers of images: shapes depend on the layout, which errors name.

An array does not say what its axes are: where there are as many channels as rows and columns,
both layouts have one shape. Not here: images in streams (`jitgen.primitives.conv.layouts`).
"""

from __future__ import annotations

from typing import Any

from jitgen.primitives.conv.layouts import Conv
from jitgen.primitives.layers.base import Layer
from jitgen.primitives.layers.described import Shape, Sized

#: Arguments that are images
IMAGES = ("x", "dy", "y", "z", "residual", "out")


class Images(Layer):
    """A layer whose arrays are images, of shapes `x_shape` and `y_shape`."""

    conv: Conv
    x_shape: Shape
    y_shape: Shape

    def _arguments(self, at: Conv) -> dict[str, object]:
        return at.arguments

    def _sides(self, size: tuple[int, int]) -> Shape:
        """The sides that arrays have of a window or an image."""
        return size

    def _image(self, conv: Conv, channels: int, size: tuple[int, int]) -> Shape:
        sides = self._sides(size)
        return (conv.batch, *sides, channels) if conv.nhwc else (conv.batch, channels, *sides)

    def _images(self, name: str, value: Any, shape: Shape) -> tuple[Sized, Shape]:
        """The layer for the batch of images, and their shape, which is `shape` at its own."""
        sized = self._sized(name, value, shape)
        return sized, (sized.at.batch, *shape[1:])

    def _words(self) -> list[str]:
        at = self.conv
        x, y, kernel = ("x".join(map(str, s)) for s in (self.x_shape, self.y_shape, at.kernel))
        return [f"{x} -> {y} {'nhwc' if at.nhwc else 'nchw'}, kernel {kernel}"]

    def _hint(self, name: str, given: Shape, shape: Shape) -> str:
        if name not in IMAGES:
            return ""
        here, there = ("nhwc", "nchw") if self.conv.nhwc else ("nchw", "nhwc")
        _, first, *middle, last = shape
        other = (last, first, *middle) if self.conv.nhwc else (*middle, last, first)
        if given[1:] == other:
            return f" (layout={here!r}; with layout={there!r} the shape would be right)"
        return f" (layout={here!r})"
