"""Arguments of layers whose results see windows of an image: kernel, stride, padding.

An error names the argument, its value and the rule. Not here: what is done with the windows
(`primitives.convolution`, `primitives.pooling`).
"""

from __future__ import annotations

from typing import Any

from primitives.arguments import positive

Pair = int | tuple[int, int]


def pair(name: str, value: Any) -> tuple[int, int]:
    """Rows and columns from an int or a pair of them. TypeError, ValueError."""
    both = value if isinstance(value, tuple) else (value, value)
    if len(both) != 2:
        raise ValueError(f"{name}={value!r} is neither an int nor a pair")
    for one in both:
        positive(**{name: one})
    return both


def border(
    padding: Any, size: tuple[int, int], taps: tuple[int, int], stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[tuple[int, int], tuple[int, int]]:  # fmt: skip
    """Pixels before and after the image, in rows and columns: `padding` as `Convolution` takes it
    (a number, a pair, pairs, or "same"). ValueError."""
    if isinstance(padding, str):
        if padding != "same":
            raise ValueError(f"padding={padding!r}: a number, a pair, pairs, or 'same'")
        sides = []
        for x, k, s, d in zip(size, taps, stride, dilation, strict=True):
            total = max(0, (-(-x // s) - 1) * s + (k - 1) * d + 1 - x)
            sides.append((total // 2, total - total // 2))
        return sides[0], sides[1]
    both = padding if isinstance(padding, tuple) else (padding, padding)
    if len(both) != 2:
        raise ValueError(f"padding={padding!r} is neither an int, a pair, nor a pair of pairs")
    sides = [one if isinstance(one, tuple) else (one, one) for one in both]
    for side in sides:
        if len(side) != 2 or any(type(x) is not int or x < 0 for x in side):
            raise ValueError(f"padding={padding!r}: sizes are whole numbers, not negative")
    return sides[0], sides[1]


def out_size(
    size: tuple[int, int], around: tuple[tuple[int, int], tuple[int, int]], taps: tuple[int, int],
    stride: tuple[int, int], dilation: tuple[int, int] = (1, 1),
) -> tuple[int, int]:  # fmt: skip
    """Height and width of the output. ValueError where no window fits."""
    out = []
    for i, name in enumerate(("height", "width")):
        reach = (taps[i] - 1) * dilation[i] + 1
        room = size[i] + sum(around[i]) - reach
        if room < 0:
            raise ValueError(
                f"{name}={size[i]} with padding {around[i]} is smaller than the kernel's reach of "
                f"{reach}"
            )
        out.append(room // stride[i] + 1)
    return out[0], out[1]
