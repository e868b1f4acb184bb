"""Images at the door of a layer: arrays whose shape depends on the layout, which errors name.

An array does not say what its axes are: where there are as many channels as rows and columns,
both layouts have one shape. Not here: images in streams (`jitgen.primitives.conv.layouts`).
"""

from __future__ import annotations

from typing import Any

from jitgen.primitives.layers.arrays import check, output


def check_images(name: str, array: Any, shape: tuple[int, ...], dtype: str, nhwc: bool) -> Any:
    """As `jitgen.primitives.layers.arrays.check`; `shape` is that of the layout."""
    try:
        return check(name, array, shape, dtype)
    except ValueError as error:
        raise ValueError(f"{error}{_layout(array, shape, nhwc)}") from None


def output_images(
    out: Any, shape: tuple[int, ...], dtype: str, inputs: dict[str, Any], nhwc: bool
) -> tuple[Any, Any]:
    """As `jitgen.primitives.layers.arrays.output`; `shape` is that of the layout."""
    try:
        return output(out, shape, dtype, inputs)
    except ValueError as error:
        raise ValueError(f"{error}{_layout(out, shape, nhwc)}") from None


def windows_text(layer: Any) -> str:
    """A layer with `conv`, `x_shape` and `y_shape`, in words for its repr."""
    conv = layer.conv
    x, y, kernel = ("x".join(map(str, s)) for s in (layer.x_shape, layer.y_shape, conv.kernel))
    layout = "nhwc" if conv.nhwc else "nchw"
    return (
        f"{x} -> {y} {layout}, kernel {kernel}, {conv.dtype} for {conv.target.name}, "
        f"threads={conv.threads}"
    )


def _layout(array: Any, shape: tuple[int, ...], nhwc: bool) -> str:
    """What a wrong shape has to do with the layout."""
    if array.shape == shape:
        return ""
    here, there = ("nhwc", "nchw") if nhwc else ("nchw", "nhwc")
    n, first, *middle, last = shape
    other = (n, last, first, *middle) if nhwc else (n, *middle, last, first)
    if array.shape == other:
        return f" (layout={here!r}; with layout={there!r} the shape would be right)"
    return f" (layout={here!r})"
