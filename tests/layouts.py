"""Arrays in the layouts of `jitgen.primitives.nest.tensor`, by NumPy alone.

Not here: any test.
"""

from __future__ import annotations

import numpy as np


def stored(array: np.ndarray, axes: str, layout: str, fill: float = 0) -> np.ndarray:
    """An array with these axes (in words), as a tensor of `layout` lies in memory; where blocks are
    padded, `fill`."""
    names = axes.split()
    tokens = [token.partition("/") for token in layout.split()]
    for i, name in enumerate(names):
        blocks = [int(block) for axis, _, block in tokens if axis == name and block]
        if blocks:
            more = [(0, -array.shape[i] % blocks[0] if j == i else 0) for j in range(len(names))]
            array = np.pad(array, more, constant_values=fill)
    shape, places = [], []  # the array's own order, all axes cut
    for i, name in enumerate(names):
        blocks = [int(block or 1) for axis, _, block in tokens if axis == name]
        for j, block in enumerate(blocks):
            shape.append((array.shape[i] if j == 0 else blocks[j - 1]) // block)
            places.append((name, block))
    wanted = [places.index((axis, int(block or 1))) for axis, _, block in tokens]
    return np.ascontiguousarray(array.reshape(shape).transpose(wanted))
