"""Gradients of activations with straight parts, dz = dy activation'(z): on one vector of each.

Bodies of element-wise operations (`jitgen.kernels.elementwise.Op`): registers x of dy and of what
the derivative is made from, temporaries t, the activation's parameters s. Where the lines meet, the
derivative is that of one of them, as in PyTorch's hardtanh, leaky_relu and elu (hardswish: at 3
and -3 the curve's, 3/2 and -1/2; PyTorch's is the lines'). Not here: curved ones
(`jitgen.emit.derivatives`).
"""

from __future__ import annotations

from collections.abc import Sequence

from jitgen.isa.machine import Machine


def clip(m: Machine, x: Sequence[int], t: Sequence[int], s: Sequence[int]) -> Sequence[int]:
    """dy where low < y < high, else 0, also where y is NaN."""
    m.zero(t[0])
    m.select_greater(t[1], x[1], s[0], x[0], t[0])
    m.select_greater(t[2], s[1], x[1], t[1], t[0])
    return t[2:3]


def leaky_relu(m: Machine, x: Sequence[int], t: Sequence[int], s: Sequence[int]) -> Sequence[int]:
    """dy where y > 0, else slope dy."""
    m.mul(t[0], x[0], s[0])
    m.zero(t[1])
    m.select_greater(t[2], x[1], t[1], x[0], t[0])
    return t[2:3]


def elu(m: Machine, x: Sequence[int], t: Sequence[int], s: Sequence[int]) -> Sequence[int]:
    """dy where y > 0, else (y + alpha) dy."""
    m.add(t[0], x[1], s[0])
    m.mul(t[0], t[0], x[0])
    m.zero(t[1])
    m.select_greater(t[2], x[1], t[1], x[0], t[0])
    return t[2:3]


def hardsigmoid(m: Machine, x: Sequence[int], t: Sequence[int], s: Sequence[int]) -> Sequence[int]:
    """alpha dy where 0 < y < 1, else 0, also where y is NaN."""
    m.mul(t[0], x[0], s[0])
    m.zero(t[1])
    m.select_greater(t[2], x[1], t[1], t[0], t[1])
    m.load_const(t[0], m.const(1.0))
    m.select_greater(t[3], t[0], x[1], t[2], t[1])
    return t[3:4]


def hardswish(m: Machine, x: Sequence[int], t: Sequence[int], s: Sequence[int]) -> Sequence[int]:
    """0 where z < -3, dy where z > 3, else (z / 3 + 1/2) dy."""
    m.load_const(t[0], m.const(0.5))
    m.fma(t[0], x[1], m.const(1 / 3))
    m.mul(t[0], t[0], x[0])
    m.load_const(t[1], m.const(3.0))
    m.select_greater(t[2], x[1], t[1], x[0], t[0])
    m.load_const(t[1], m.const(-3.0))
    m.zero(t[0])
    m.select_greater(t[3], t[1], x[1], t[0], t[2])
    return t[3:4]


def exp(m: Machine, x: Sequence[int], t: Sequence[int], s: Sequence[int]) -> Sequence[int]:
    """y dy."""
    m.mul(x[0], x[0], x[1])
    return x[:1]
