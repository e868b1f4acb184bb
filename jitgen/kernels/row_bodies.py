"""What the passes along rows do: code for groups of vectors, and for a row's numbers in between.

A body is code for vectors that take each step together, so that none waits for itself. Numbers of a
row stand in every lane of a register. Not here: which passes a function has
(`jitgen.kernels.row_functions`), loops, registers, addresses (`jitgen.kernels.rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jitgen.emit import exponents
from jitgen.isa.machine import Machine


class Group:
    """Vectors that take every step together.

    x: operand -> registers, one for each vector; the last pass may change them. d: registers for
    the result; of a pass that writes, those of the first operand. t: temporaries, rows of one for
    each vector. s: numbers of the row. tail: lanes of the last vector if it is no whole one.
    """

    def __init__(
        self, machine: Machine, x: Mapping[str, Sequence[int]], d: Sequence[int],
        t: Sequence[Sequence[int]], s: Mapping[str, int], sums: Mapping[str, Sequence[int]],
        tail: int, spare: int,
    ) -> None:  # fmt: skip
        self.machine, self.x, self.d, self.t, self.s = machine, x, d, t, s
        self._sums, self._tail, self._spare = sums, tail, spare

    def clear(self, v: Sequence[int]) -> None:
        """0 in the lanes behind the row's end. Those of operands have it."""
        if self._tail:
            self.machine.zero(self._spare)
            self.machine.select_first(v[-1], v[-1], self._spare, self._tail)

    def add(self, name: str, v: Sequence[int]) -> None:
        """Add vectors, 0 behind the row's end, to a sum."""
        for total, each in zip(self._sums[name], v, strict=False):
            self.machine.add(total, total, each)

    def add_products(self, name: str, a: Sequence[int], b: Sequence[int]) -> None:
        """Add the products of vectors to a sum."""
        for total, x, y in zip(self._sums[name], a, b, strict=False):
            self.machine.fma(total, x, y)

    def greatest(self, name: str, v: Sequence[int]) -> None:
        """The greater of a maximum and vectors; a NaN is passed over."""
        last = len(v) - 1
        for i, (top, each) in enumerate(zip(self._sums[name], v, strict=False)):
            if self._tail and i == last:
                self.machine.select_first(self._spare, each, top, self._tail)
                each = self._spare
            self.machine.max(top, each, top)


class Between(NamedTuple):
    """What is known between passes: columns of a row, eps, temporaries."""

    columns: int
    eps: float
    t: Sequence[int]


#: Emits a pass on a group of vectors
Body = Callable[[Machine, Group], None]
#: Emits what is done with the numbers of a row behind a pass
After = Callable[[Machine, Mapping[str, int], Between], None]


# ---- bodies -------------------------------------------------------------------------------------


def top(m: Machine, g: Group) -> None:
    g.greatest("top", g.x["x"])


def exp(m: Machine, g: Group) -> None:
    for t, x in zip(g.t[0], g.x["x"], strict=True):
        m.sub(t, x, g.s["base"] if "base" in g.s else g.s["top"])
    if "limit" in g.s:  # an infinity, which the difference to the greatest number leaves
        for t in g.t[0]:
            m.min(t, g.s["limit"], t)
    exponents.exp_not_positive(m, g.d, g.t[0], g.t[1], g.s["low"])
    g.clear(g.d)
    g.add("sum", g.d)


def scale(m: Machine, g: Group) -> None:
    for d, y in zip(g.d, g.x["y"], strict=True):
        m.mul(d, y, g.s["sum"])


def less_sum(m: Machine, g: Group) -> None:
    for d, x in zip(g.d, g.x["x"], strict=True):
        m.sub(d, x, g.s["top"])
    for d in g.d:
        m.sub(d, d, g.s["sum"])


def sum(m: Machine, g: Group) -> None:
    g.add("sum", g.x[next(iter(g.x))])


def sum_for_mean(m: Machine, g: Group) -> None:
    g.add("mean", g.x["x"])


def squares(m: Machine, g: Group) -> None:
    g.add_products("rstd", g.x["x"], g.x["x"])


def deviations(m: Machine, g: Group) -> None:
    for t, x in zip(g.t[0], g.x["x"], strict=True):
        m.sub(t, x, g.s["mean"])
    g.clear(g.t[0])
    g.add_products("rstd", g.t[0], g.t[0])


def normalise(m: Machine, g: Group) -> None:
    source = g.x["x"]
    if "mean" in g.s:
        for d, x in zip(g.d, source, strict=True):
            m.sub(d, x, g.s["mean"])
        source = g.d
    for d, x in zip(g.d, source, strict=True):
        m.mul(d, x, g.s["rstd"])
    for i, d in enumerate(g.d):
        if "scale" in g.x and "shift" in g.x:
            m.fmad(d, g.x["scale"][i], g.x["shift"][i])
        elif "scale" in g.x:
            m.mul(d, d, g.x["scale"][i])
        elif "shift" in g.x:
            m.add(d, d, g.x["shift"][i])


def _weighted(m: Machine, g: Group) -> Sequence[int]:
    """dy times scale."""
    if "scale" not in g.x:
        return g.x["dy"]
    for t, dy, scale in zip(g.t[0], g.x["dy"], g.x["scale"], strict=True):
        m.mul(t, dy, scale)
    return g.t[0]


def _centred(m: Machine, g: Group) -> Sequence[int]:
    """x less its mean."""
    if "mean" not in g.s:
        return g.x["x"]
    for t, x in zip(g.t[1], g.x["x"], strict=True):
        m.sub(t, x, g.s["mean"])
    return g.t[1]


def norm_sums(m: Machine, g: Group) -> None:
    weighted = _weighted(m, g)
    if "sum" in g.s:
        g.add("sum", weighted)
    g.add_products("product", weighted, _centred(m, g))


def norm_gradient(m: Machine, g: Group) -> None:
    weighted, centred = _weighted(m, g), _centred(m, g)
    if "dshift" in g.x:
        for total, dy in zip(g.x["dshift"], g.x["dy"], strict=True):
            m.add(total, total, dy)
    if "dscale" in g.x:
        for t, x, dy, total in zip(g.t[2], centred, g.x["dy"], g.x["dscale"], strict=True):
            m.mul(t, x, g.s["rstd"])
            m.fma(total, dy, t)
    for d, w, x in zip(g.d, weighted, centred, strict=True):
        if "sum" in g.s:
            m.sub(w, w, g.s["sum"])
        m.fnma(w, x, g.s["product"])
        m.mul(d, w, g.s["rstd"])


def dot(m: Machine, g: Group) -> None:
    g.add_products("sum", g.x["dy"], g.x["y"])


def softmax_gradient(m: Machine, g: Group) -> None:
    for d, dy, y in zip(g.d, g.x["dy"], g.x["y"], strict=True):
        m.sub(d, dy, g.s["sum"])
        m.mul(d, d, y)


def log_softmax_gradient(m: Machine, g: Group) -> None:
    exponents.exp_not_positive(m, g.t[1], g.x["y"], g.t[0], g.s["low"])
    for dy, e in zip(g.x["dy"], g.t[1], strict=True):
        m.fnma(dy, e, g.s["sum"])


def exp_gradient(m: Machine, g: Group) -> None:
    for t, x in zip(g.t[0], g.x["x"], strict=True):
        m.sub(t, x, g.s["value"])
    exponents.exp_not_positive(m, g.d, g.t[0], g.t[1], g.s["low"])
    for d in g.d:
        m.mul(d, d, g.s["gradient"])


def spread(m: Machine, g: Group) -> None:
    for d in g.d:
        if "part" in g.s:
            m.mul(d, g.s["gradient"], g.s["part"])
        else:
            m.or_(d, g.s["gradient"], g.s["gradient"])


# ---- between passes -----------------------------------------------------------------------------


def _reciprocal(m: Machine, d: int, t: int) -> None:
    m.load_const(t, m.const(1.0))
    m.div(d, t, d)


def invert(m: Machine, s: Mapping[str, int], at: Between) -> None:
    _reciprocal(m, s["sum"], at.t[0])


def log(m: Machine, s: Mapping[str, int], at: Between) -> None:
    exponents.log(m, s["sum"], at.t)


def log_and_top(m: Machine, s: Mapping[str, int], at: Between) -> None:
    log(m, s, at)
    m.add(s["sum"], s["sum"], s["top"])


def finite(m: Machine, s: Mapping[str, int], at: Between) -> None:
    """base = the greatest number, of what is not infinite."""
    largest = (2.0 - m.arithmetic.epsilon) * 2.0**m.arithmetic.bias
    m.load_const(at.t[0], m.const(largest))
    m.min(s["base"], at.t[0], s["top"])
    m.load_const(at.t[0], m.const(-largest))
    m.max(s["base"], at.t[0], s["base"])


def mean(name: str) -> After:
    def after(m: Machine, s: Mapping[str, int], at: Between) -> None:
        m.mul(s[name], s[name], m.const(1 / at.columns))

    return after


def root(m: Machine, s: Mapping[str, int], at: Between) -> None:
    """rstd = 1 / sqrt(mean of the squares + eps)."""
    r = s["rstd"]
    m.mul(r, r, m.const(1 / at.columns))
    m.add(r, r, m.const(at.eps))
    m.sqrt(r, r)
    _reciprocal(m, r, at.t[0])


def norm_factors(m: Machine, s: Mapping[str, int], at: Between) -> None:
    """The mean of what is weighted, and what (x - mean) is multiplied by."""
    if "sum" in s:
        m.mul(s["sum"], s["sum"], m.const(1 / at.columns))
    product = s["product"]
    m.mul(product, product, m.const(1 / at.columns))
    m.mul(product, product, s["rstd"])
    m.mul(product, product, s["rstd"])
