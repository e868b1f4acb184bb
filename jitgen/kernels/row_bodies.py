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
    each vector. s: numbers of the rows that the vectors are in. sums: registers that add them up.
    tails: which vectors are no whole ones, of `lanes` lanes.
    """

    def __init__(
        self, machine: Machine, x: Mapping[str, Sequence[int]], d: Sequence[int],
        t: Sequence[Sequence[int]], s: Mapping[str, Sequence[int]],
        sums: Mapping[str, Sequence[int]], tails: Sequence[int], lanes: int, spare: int,
    ) -> None:  # fmt: skip
        self.machine, self.x, self.d, self.t, self.s = machine, x, d, t, s
        self._sums, self._tails, self._lanes, self._spare = sums, tails, lanes, spare

    def clear(self, v: Sequence[int]) -> None:
        """0 in the lanes behind the rows' ends. Those of operands have it."""
        for i in self._tails:
            self.machine.zero(self._spare)
            self.machine.select_first(v[i], v[i], self._spare, self._lanes)

    def add(self, name: str, v: Sequence[int]) -> None:
        """Add vectors, 0 behind the rows' ends, to sums."""
        for total, each in zip(self._sums[name], v, strict=True):
            self.machine.add(total, total, each)

    def add_products(self, name: str, a: Sequence[int], b: Sequence[int]) -> None:
        """Add the products of vectors to sums."""
        for total, x, y in zip(self._sums[name], a, b, strict=True):
            self.machine.fma(total, x, y)

    def greatest(self, name: str, v: Sequence[int]) -> None:
        """The greater of maxima and vectors; a NaN is passed over."""
        for i, (top, each) in enumerate(zip(self._sums[name], v, strict=True)):
            if i in self._tails:
                self.machine.select_first(self._spare, each, top, self._lanes)
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
    for t, x, top in zip(g.t[0], g.x["x"], g.s["base" if "base" in g.s else "top"], strict=True):
        m.sub(t, x, top)
    if "limit" in g.s:  # an infinity, which the difference to the greatest number leaves
        for t in g.t[0]:
            m.min(t, g.s["limit"][0], t)
    exponents.exp_not_positive(m, g.d, g.t[0], g.t[1], g.s["low"][0])
    g.clear(g.d)
    g.add("sum", g.d)


def scale(m: Machine, g: Group) -> None:
    for d, y, factor in zip(g.d, g.x["y"], g.s["sum"], strict=True):
        m.mul(d, y, factor)


def less_sum(m: Machine, g: Group) -> None:
    for d, x, top in zip(g.d, g.x["x"], g.s["top"], strict=True):
        m.sub(d, x, top)
    for d, log in zip(g.d, g.s["sum"], strict=True):
        m.sub(d, d, log)


def sum(m: Machine, g: Group) -> None:
    g.add("sum", g.x[next(iter(g.x))])


def sum_for_mean(m: Machine, g: Group) -> None:
    g.add("mean", g.x["x"])


def squares(m: Machine, g: Group) -> None:
    g.add_products("rstd", g.x["x"], g.x["x"])


def deviations(m: Machine, g: Group) -> None:
    for t, x, mean in zip(g.t[0], g.x["x"], g.s["mean"], strict=True):
        m.sub(t, x, mean)
    g.clear(g.t[0])
    g.add_products("rstd", g.t[0], g.t[0])


def normalise(m: Machine, g: Group) -> None:
    source = g.x["x"]
    if "mean" in g.s:
        for d, x, mean in zip(g.d, source, g.s["mean"], strict=True):
            m.sub(d, x, mean)
        source = g.d
    for d, x, rstd in zip(g.d, source, g.s["rstd"], strict=True):
        m.mul(d, x, rstd)
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
    for t, x, mean in zip(g.t[1], g.x["x"], g.s["mean"], strict=True):
        m.sub(t, x, mean)
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
        for t, x, rstd in zip(g.t[2], centred, g.s["rstd"], strict=True):
            m.mul(t, x, rstd)
        for t, dy, total in zip(g.t[2], g.x["dy"], g.x["dscale"], strict=True):
            m.fma(total, dy, t)
    if "sum" in g.s:
        for w, mean in zip(weighted, g.s["sum"], strict=True):
            m.sub(w, w, mean)
    for w, x, factor in zip(weighted, centred, g.s["product"], strict=True):
        m.fnma(w, x, factor)
    for d, w, rstd in zip(g.d, weighted, g.s["rstd"], strict=True):
        m.mul(d, w, rstd)


def dot(m: Machine, g: Group) -> None:
    g.add_products("sum", g.x["dy"], g.x["y"])


def softmax_gradient(m: Machine, g: Group) -> None:
    for d, dy, total in zip(g.d, g.x["dy"], g.s["sum"], strict=True):
        m.sub(d, dy, total)
    for d, y in zip(g.d, g.x["y"], strict=True):
        m.mul(d, d, y)


def log_softmax_gradient(m: Machine, g: Group) -> None:
    exponents.exp_not_positive(m, g.t[1], g.x["y"], g.t[0], g.s["low"][0])
    for dy, e, total in zip(g.x["dy"], g.t[1], g.s["sum"], strict=True):
        m.fnma(dy, e, total)


def exp_gradient(m: Machine, g: Group) -> None:
    for t, x, value in zip(g.t[0], g.x["x"], g.s["value"], strict=True):
        m.sub(t, x, value)
    exponents.exp_not_positive(m, g.d, g.t[0], g.t[1], g.s["low"][0])
    for d, gradient in zip(g.d, g.s["gradient"], strict=True):
        m.mul(d, d, gradient)


def spread(m: Machine, g: Group) -> None:
    for d, gradient in zip(g.d, g.s["gradient"], strict=True):
        if "part" in g.s:
            m.mul(d, gradient, g.s["part"][0])
        else:
            m.or_(d, gradient, gradient)


# ---- between passes -----------------------------------------------------------------------------


def _reciprocal(m: Machine, d: int, t: int) -> None:
    m.load_const(t, m.const(1.0))
    m.div(d, t, d)


def invert(m: Machine, s: Mapping[str, int], at: Between) -> None:
    _reciprocal(m, s["sum"], at.t[0])


def log(m: Machine, s: Mapping[str, int], at: Between) -> None:
    exponents.log_of_normal(m, s["sum"], at.t)  # the sum is at least 1


def log_and_top(m: Machine, s: Mapping[str, int], at: Between) -> None:
    exponents.log(m, s["sum"], at.t)
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
