"""Streams of recurrent layers on arrays with gaps: what is read and written is what it is without
gaps, and gaps stay as they are. Panels of weights are those of any batch and steps. Products that
go over two loops, as those of all steps do.

Not here: what is right without gaps (test_recurrent).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jitgen.primitives.layers.arrays import buffer_of
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.nest import Nest
from jitgen.primitives.nest.stream import Stream
from jitgen.primitives.nest.tensor import Tensor
from jitgen.primitives.rnn.backward import backward
from jitgen.primitives.rnn.lengths import Lengths, Whole
from jitgen.primitives.rnn.steps import GATES, Layer, Way
from jitgen.primitives.rnn.streams import forward, pack_weights
from jitgen.run import cpu
from jitgen.run.loader import ffi
from jitgen.target import parse_target

STEPS, INPUTS, HIDDEN, DIRECTIONS = 5, 7, 19, 2
#: Tensor -> elements of a row
ROWS = {"x": INPUTS, "dx": INPUTS, "y": DIRECTIONS * HIDDEN, "dy": DIRECTIONS * HIDDEN}
#: Elements from step to step, and from row to row, by batch and elements of a row
GAPS: dict[str, Any] = {
    "none": lambda n, row: (n * row, row),
    "rows": lambda n, row: (n * (row + 3), row + 3),
    "steps": lambda n, row: (n * row + 5, row),
    "both": lambda n, row: (n * (row + 2) + 5, row + 2),
    "batch first": lambda n, row: (row + 1, STEPS * (row + 1) + 4),
}


class Arrays:
    """Tensors of a layer; those of `ROWS` with gaps of NaN."""

    def __init__(self, layer: Layer, way: Way, gaps: str, rows: Whole) -> None:
        numbers = np.random.default_rng(7)
        self.layer, self.way, self.rows, self.strides = layer, way, rows, tuple[Any, ...]()
        self.views: dict[str, np.ndarray] = {}
        self.bases: dict[str, np.ndarray] = {}
        n, h, wide = layer.batch, layer.hidden, layer.gates * layer.hidden
        shapes = {
            "w": (wide, INPUTS), "r": (wide, h), "h0": (n, h), "c0": (n, h), "p": (3, h),
            "bias": (layer.units * layer.gates,), "bias_r": (layer.units * layer.gates,),
            "dh": (n, h), "dc": (n, h),
        }  # fmt: skip
        for name, shape in shapes.items():
            self.bases[name] = 0.3 * numbers.standard_normal(shape, np.float32)
        for name, size in layer.sizes.items():
            self.bases[name] = np.zeros(size, np.float32)
        for name, shape in {"dw": (wide, INPUTS), "dr": (wide, h), "db": (wide,), "db_r": (wide,),
                            "dgates": (STEPS, n, wide), "dgates_r": (STEPS, n, wide)}.items():
            self.bases[name] = np.zeros(shape, np.float32)
        self.bases |= {"r_n": self.bases["r"][2 * h :], "dr_n": self.bases["dr"][2 * h :]}
        for name, row in ROWS.items():
            apart = GAPS[gaps](n, row)
            size = (STEPS - 1) * apart[0] + (n - 1) * apart[1] + row
            base = self.bases[name] = np.full(size, np.nan, np.float32)
            places = np.lib.stride_tricks.as_strided(
                np.arange(size), (STEPS, n, row), tuple(8 * step for step in (*apart, 1))
            )
            values = numbers.standard_normal((STEPS, n, row), np.float32)
            base[places] = values if name in ("x", "dy") else 0
            self.views[name] = np.lib.stride_tricks.as_strided(
                base, (STEPS, n, row), tuple(4 * step for step in (*apart, 1))
            )
            self.strides += () if gaps == "none" else ((name, apart),)
        if rows.mask is not None:
            self.bases["mask"] = rows.mask
            rows.clear(self.views["x"])
            begin = way.d * h
            rows.begin(self.views["y"][:, :, begin : begin + h], self.bases["h0"])

    def run(self, make: Any, *how: Any) -> None:
        """Run a stream on these."""
        run = make(self.layer, self.way, *how, strides=self.strides)
        absent = {"p"} if not self.layer.peephole else set[str]()
        run({name: buffer_of(self.bases[name]) if name in self.bases and name not in absent
             else ffi.NULL for name in run.tensors}, self.rows.flags)  # fmt: skip


def passes(layer: Layer, way: Way, gaps: str, lengths: list[int] | None) -> Arrays:
    """A forward and a backward pass."""
    arrays = Arrays(layer, way, gaps, Whole() if lengths is None else Lengths(layer, lengths))
    arrays.run(forward, True, False)
    arrays.run(backward)
    return arrays


@pytest.mark.parametrize("gaps", [name for name in GAPS if name != "none"])
@pytest.mark.parametrize("kind", GATES)
def test_results_are_those_without_gaps(kind: str, gaps: str) -> None:
    for batch, reverse, masked in ((3, False, False), (3, True, True), (14, True, False),
                                   (14, False, True), (1, False, False)):  # fmt: skip
        way = Way(reverse, 1, True, masked)
        layer = Layer(kind, batch, STEPS, INPUTS, HIDDEN, DIRECTIONS, kind == "lstm", "f32", 2,
                      cpu.choose(None))  # fmt: skip
        lengths = sorted((5 - i % 5 for i in range(batch)), reverse=True) if masked else None
        wanted, got = passes(layer, way, "none", lengths), passes(layer, way, gaps, lengths)
        for name, base in wanted.bases.items():
            if name in wanted.views:
                continue
            np.testing.assert_allclose(got.bases[name], base, 1e-4, 1e-5, err_msg=f"{name} {batch}")
        for name, view in wanted.views.items():
            np.testing.assert_allclose(got.views[name], view, 1e-4, 1e-5, err_msg=f"{name} {batch}")
            gap = np.isnan(got.bases[name]).sum()
            assert gap == got.bases[name].size - view.size, f"{name} {batch}: gaps were written"
        # the other direction's results are not touched
        assert not got.views["y"][:, :, :HIDDEN].any() and got.views["y"][:, :, HIDDEN:].any()


def test_panels_of_weights_are_those_of_any_batch_and_steps() -> None:
    for kind in GATES:
        layer = Layer(kind, 3, STEPS, INPUTS, HIDDEN, 1, False, "f32", 1, parse_target("avx2"))
        other = replace(layer, batch=40, steps=2)
        streams = [pack_weights(each).stream for each in (layer, other)]
        assert [t.places for t in layer.panels.values()] == [
            t.places for t in other.panels.values()
        ]
        assert streams[0].calls == streams[1].calls
        np.testing.assert_array_equal(streams[0].slices[0], streams[1].slices[0])


# ---- products over two loops --------------------------------------------------------------------


def _product(steps: int, rows: int, apart: int, summed: bool) -> np.ndarray:
    """The sum over, or the rows of, t and n, in blocks of `steps` and `rows`; steps lie `apart`."""
    t, n, k, columns, target = 6, 4, 5, 16, cpu.choose(None)
    numbers = np.random.default_rng(3)
    a = numbers.standard_normal((t, apart), np.float32)
    loops = {"t": Loop(t, (steps,)), "n": Loop(n, (rows,)), "c": Loop(columns, (columns,))}
    left = Tensor("a", "t n m", "f32", strides={"t": apart}, t=t, n=n, m=k)
    of_a = a[:, : n * k].reshape(t, n, k)
    if summed:
        b = numbers.standard_normal((t, n, columns), np.float32)
        c, wanted = np.zeros((k, columns), np.float32), np.einsum("tnk,tnc->kc", of_a, b)
        loops["m"] = Loop(k, (k,))
        part = Nest("MCtn", loops, "f32", target, "tn").gemm(
            left.at(t="t", n="n", m="m"),
            Tensor("b", "c/16 t n c", "f32", t=t, n=n, c=columns).at(t="t", n="n", c="c"),
            Tensor("c", "m c", "f32", m=k, c=columns).at(m="m", c="c"), m="m", n="c", k="n",
            outer="t",
        )  # fmt: skip
    else:
        b = numbers.standard_normal((k, columns), np.float32)
        c, wanted = np.zeros((t, n, columns), np.float32), of_a @ b
        part = Nest("TNC", loops, "f32", target).gemm(
            left.at(t="t", n="n"), Tensor("b", "c/16 m c", "f32", m=k, c=columns).at(c="c"),
            Tensor("c", "t n c", "f32", t=t, n=n, c=columns).at(t="t", n="n", c="c"), m="n", n="c",
            k="m", outer="t",
        )  # fmt: skip
    Stream([part], ["a", "b", "c"]).team(target)(tuple(buffer_of(x) for x in (a, b, c)))
    np.testing.assert_allclose(c, wanted, 1e-5, 1e-5)
    return c


@pytest.mark.parametrize(
    ("steps", "rows", "apart"), [(6, 4, 20), (2, 4, 20), (6, 3, 20), (4, 4, 23), (1, 3, 23)]
)
def test_a_sum_over_two_loops(steps: int, rows: int, apart: int) -> None:
    _product(steps, rows, apart, True)


@pytest.mark.parametrize(("steps", "rows", "apart"), [(6, 4, 20), (4, 4, 20), (1, 3, 23)])
def test_rows_of_two_loops(steps: int, rows: int, apart: int) -> None:
    _product(steps, rows, apart, False)


@pytest.mark.parametrize(("steps", "rows", "apart"), [(2, 3, 20), (2, 4, 23)])
def test_rows_that_do_not_follow_one_another(steps: int, rows: int, apart: int) -> None:
    with pytest.raises(ValueError, match="outer='t': a call takes some of its positions"):
        _product(steps, rows, apart, False)
