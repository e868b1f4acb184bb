"""A space-filling curve over a rectangle: neighbours on the curve are neighbours in the plane.

The generalised Hilbert curve of J. Cerveny ("gilbert"): a rectangle is cut into halves of suitable
parity until it is a line. Not here: what is ordered by it (`jitgen.primitives.nest.loops`).

>>> [tuple(p) for p in curve(2, 2).tolist()]
[(0, 0), (1, 0), (1, 1), (0, 1)]
"""

from __future__ import annotations

import numpy as np

from jitgen import doors
from jitgen.run.cache import PLANS

Vector = tuple[int, int]


def curve(rows: int, columns: int) -> np.ndarray:
    """The points (row, column) of a rows x columns rectangle along the curve: (rows * columns, 2).

    Consecutive points are neighbours, but for one diagonal step where the longer side is odd.
    TypeError, ValueError: a size is no integer or negative.
    """
    return _curve(doors.size("rows", rows, 0), doors.size("columns", columns, 0))


@PLANS.of
def _curve(rows: int, columns: int) -> np.ndarray:
    points: list[Vector] = []
    if columns >= rows:
        _walk(points, (0, 0), (0, columns), (rows, 0))
    else:
        _walk(points, (0, 0), (rows, 0), (0, columns))
    result = np.array(points, np.int64).reshape(-1, 2)
    result.flags.writeable = False
    return result


def _walk(points: list[Vector], at: Vector, a: Vector, b: Vector) -> None:
    """Append the points of the parallelogram of sides a (the way to go) and b."""
    width, height = abs(a[0] + a[1]), abs(b[0] + b[1])
    step_a, step_b = _unit(a), _unit(b)
    if height == 1 or width == 1:
        step, count = (step_a, width) if height == 1 else (step_b, height)
        points.extend((at[0] + i * step[0], at[1] + i * step[1]) for i in range(count))
        return
    half_a, half_b = _half(a), _half(b)
    if 2 * width > 3 * height:  # long: cut the way in two
        if abs(half_a[0] + half_a[1]) % 2 and width > 2:
            half_a = _plus(half_a, step_a)
        _walk(points, at, half_a, b)
        _walk(points, _plus(at, half_a), _minus(a, half_a), b)
        return
    if abs(half_b[0] + half_b[1]) % 2 and height > 2:
        half_b = _plus(half_b, step_b)
    _walk(points, at, half_b, half_a)  # up, across, down
    _walk(points, _plus(at, half_b), a, _minus(b, half_b))
    last = _plus(_plus(at, _minus(a, step_a)), _minus(half_b, step_b))
    _walk(points, last, _minus((0, 0), half_b), _minus((0, 0), _minus(a, half_a)))


def _unit(v: Vector) -> Vector:
    return ((v[0] > 0) - (v[0] < 0), (v[1] > 0) - (v[1] < 0))


def _half(v: Vector) -> Vector:
    return (v[0] // 2, v[1] // 2)


def _plus(v: Vector, w: Vector) -> Vector:
    return (v[0] + w[0], v[1] + w[1])


def _minus(v: Vector, w: Vector) -> Vector:
    return (v[0] - w[0], v[1] - w[1])
