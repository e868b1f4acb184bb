"""What the functions of rows are, in double precision, and by how much a kernel may be off.

Bounds are sums of what each rounding can do, `a` being how many additions stand one behind the
other; docs/primitives.md states them. Not here: any test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
#: operand -> (result, how far off it may be)
Wanted = dict[str, tuple[Array, Array]]


def results(
    function: str, operands: Mapping[str, Array], eps: float, axis: int, lanes: int
) -> Wanted:
    """The results of a function of rows, or of columns (axis 0), of its operands, as matrices with
    an axis of length 1 where they have no elements. lanes: how many elements of a row are added up
    side by side, at least."""
    o = {name: value.astype(np.longdouble) for name, value in operands.items()}
    some = next(iter(operands.values()))
    kind = np.finfo(some.dtype)
    u, tiny = float(kind.eps), 4 * float(kind.tiny)
    wide = next(v for n, v in o.items() if n in ("x", "dy", "dx"))
    length = wide.shape[axis]
    a = length / (lanes if axis else 1) + 10
    with np.errstate(all="ignore"):
        found = _ALL[function](_Row(o, axis, eps, u, a))
    return {name: (value, bound + tiny) for name, (value, bound) in found.items()}


class _Row:
    """Operands by name, and what goes along an axis."""

    def __init__(self, o: Mapping[str, Array], axis: int, eps: float, u: float, a: float) -> None:
        self.o, self.axis, self.eps, self.u, self.a = o, axis, eps, u, a

    def __getattr__(self, name: str) -> Array:
        return self.o[name]

    def sum(self, x: Array) -> Array:
        return x.sum(axis=self.axis, keepdims=True)

    def mean(self, x: Array) -> Array:
        return x.mean(axis=self.axis, keepdims=True)

    def rows(self, x: Array) -> Array:
        """The sum over rows."""
        return x.sum(axis=0, keepdims=True)

    def of(self, x: Array, name: str, otherwise: float) -> Array:
        """An operand that may be missing."""
        return getattr(self, name) if name in self.o else np.full_like(x, otherwise)


def _softmax(r: _Row) -> Wanted:
    x = r.x
    top = np.max(x, axis=r.axis, keepdims=True)
    e = np.exp(x - top)
    y = e / r.sum(e)
    return {"y": (y, r.u * y * (8 + np.abs(x - top) + r.a))}


def _log_softmax(r: _Row) -> Wanted:
    x = r.x
    top = np.max(x, axis=r.axis, keepdims=True)
    log = np.log(r.sum(np.exp(x - top)))
    return {"y": (x - top - log, r.u * (8 + r.a + np.abs(x - top) + np.abs(log)))}


def _log_sum_exp(r: _Row) -> Wanted:
    x = r.x
    top = np.max(x, axis=r.axis, keepdims=True)
    base = np.where(np.isinf(top), 0, top)
    log = np.log(r.sum(np.exp(x - base)))
    return {"value": (log + base, r.u * (8 + r.a + np.abs(base) + np.abs(log)))}


def _sum(r: _Row) -> Wanted:
    return {"value": (r.sum(r.x), r.u * r.a * r.sum(np.abs(r.x)))}


def _mean(r: _Row) -> Wanted:
    return {"value": (r.mean(r.x), r.u * r.a * r.mean(np.abs(r.x)))}


def _norm(r: _Row, centred: bool) -> Wanted:
    x = r.x
    mean = r.mean(x) if centred else np.zeros_like(r.mean(x))
    rstd = 1 / np.sqrt(r.mean(np.square(x - mean)) + r.eps)
    h = (x - mean) * rstd
    scale, shift = r.of(x, "scale", 1), r.of(x, "shift", 0)
    size = np.max(np.abs(x), axis=r.axis, keepdims=True) * rstd if centred else np.abs(h)
    y = h * scale + shift
    off = r.u * r.a * (np.abs(scale) * (size + np.abs(h) * (1 + size * centred)) + np.abs(y))
    wanted = {"y": (y, off + r.u * np.abs(shift))}
    wanted["rstd"] = rstd, r.u * r.a * rstd * (1 + centred * size.max(r.axis, keepdims=True))
    if centred:
        wanted["mean"] = mean, r.u * r.a * r.mean(np.abs(x))
    return wanted


def _softmax_backward(r: _Row) -> Wanted:
    c, size = r.sum(r.dy * r.y), r.sum(np.abs(r.dy * r.y))
    return {"dx": (r.y * (r.dy - c), r.u * r.a * np.abs(r.y) * (np.abs(r.dy) + size))}


def _log_softmax_backward(r: _Row) -> Wanted:
    e = np.exp(r.y)
    off = np.abs(r.dy) + e * r.a * r.sum(np.abs(r.dy)) * (1 + np.abs(np.where(e > 0, r.y, 0)) / 8)
    return {"dx": (r.dy - e * r.sum(r.dy), r.u * off)}


def _log_sum_exp_backward(r: _Row) -> Wanted:
    dx = r.gradient * np.exp(r.x - r.value)
    return {"dx": (dx, r.u * np.abs(dx) * (8 + np.abs(r.x - r.value)))}


def _spread(r: _Row, mean: bool) -> Wanted:
    dx = r.gradient + np.zeros_like(r.dx)
    dx = dx / dx.shape[r.axis] if mean else dx
    return {"dx": (dx, r.u * np.abs(dx) * mean)}


def _norm_backward(r: _Row, centred: bool) -> Wanted:
    mean = r.mean if centred else (lambda x: 0 * x)
    h = (r.x - (r.o["mean"] if centred else 0)) * r.rstd
    g = r.dy * r.of(r.x, "scale", 1)
    product, weight = r.mean(g * h), r.mean(np.abs(g * h))
    dx = r.rstd * (g - mean(g) - h * product)
    size = np.abs(g) + mean(np.abs(g)) + np.abs(h) * weight
    wanted = {"dx": (dx, r.u * r.a * r.rstd * size)}
    for name, terms in (("dscale", r.dy * h), ("dshift", r.dy)):
        if name in r.o:
            before = r.o[name]
            off = r.u * (len(terms) + 4) * (r.rows(np.abs(terms)) + np.abs(before))
            wanted[name] = before + r.rows(terms), off
    return wanted


_ALL = {
    "softmax": _softmax, "log_softmax": _log_softmax, "log_sum_exp": _log_sum_exp, "sum": _sum,
    "mean": _mean, "layer_norm": lambda r: _norm(r, True), "rms_norm": lambda r: _norm(r, False),
    "softmax_backward": _softmax_backward, "log_softmax_backward": _log_softmax_backward,
    "log_sum_exp_backward": _log_sum_exp_backward, "sum_backward": lambda r: _spread(r, False),
    "mean_backward": lambda r: _spread(r, True),
    "layer_norm_backward": lambda r: _norm_backward(r, True),
    "rms_norm_backward": lambda r: _norm_backward(r, False),
}  # fmt: skip
