"""Products, rows and scratch that do not fit are refused when they are made, as they would give
wrong numbers or write beyond arrays.

Not here: mistakes of extents and names (test_primitive).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jitgen
from jitgen import Loop, Nest, Primitive, Tensor
from jitgen.primitives.nest.run import best_times

LOOPS = {"m": Loop(8, (4,))}
X = Tensor("x", "m k", "f32", m=8, k=6)
W = Tensor("w", "k n", "f32", k=6, n=16)
Y = Tensor("y", "m n", "f32", m=8, n=16)


def nest(order: str = "M", loops: Any = None, target: str = "avx2") -> Nest:
    return Nest(order, LOOPS if loops is None else loops, "f32", target)


def product(a: Any = None, b: Any = None, c: Any = None, loops: Any = None) -> Any:
    a, b, c = a or X.at(m="m"), b or W.at(), c or Y.at(m="m")
    return nest(loops=loops).gemm(a, b, c)


def scratch_read_by(**how: Any) -> Primitive:
    """Two products with scratch of each thread between them."""
    hidden = Tensor("hidden", "m n", "f32", own=True, m=4, n=16)
    v = Tensor("v", "n o", "f32", n=16, o=16)
    out = Tensor("out", "m o", "f32", m=8, o=16)
    first = product(c=hidden.at())
    second = nest().gemm(
        hidden.at(), v.at(), out.at(m="m"), n="o", k="n",
        **{key: (first,) for key in how if key in ("before", "after")},
    )  # fmt: skip
    parts = [first, second] if "apart" in how else [second]
    return Primitive(parts, [X, W, v, out], threads=1)


def test_scratch_is_written_before_it_is_read() -> None:
    assert scratch_read_by(before=True).scratch_bytes
    for how in ("after", "apart"):
        with pytest.raises(ValueError, match="reads 'hidden', which each thread has for itself"):
            scratch_read_by(**{how: True})


def test_scratch_is_made_in_the_blocks_in_which_it_is_taken() -> None:
    hidden = Tensor("hidden", "m n", "f32", own=True, m=8, n=16)
    wide = nest(loops={"m": Loop(8, (8,))}).gemm(X.at(m="m"), W.at(), hidden.at())
    v, out = Tensor("v", "n o", "f32", n=16, o=16), Tensor("out", "m o", "f32", m=8, o=16)
    second = nest().gemm(hidden.at(), v.at(), out.at(m="m"), n="o", k="n", before=(wide,))
    with pytest.raises(ValueError, match="makes 8 positions of loop 'm' in 'hidden', of which"):
        Primitive([second], [X, W, v, out], threads=1)


def blocked(layout: str, **sizes: int) -> Any:
    return Tensor("x", layout, "f32", **sizes).at(m="m")


@pytest.mark.parametrize(("make", "words"), [
    (lambda: product(a=Tensor("x", "m k y", "f32", m=8, k=6, y=3).at(m="m")), "lie 3 apart there"),
    (lambda: product(b=Tensor("w", "k n y", "f32", k=6, n=16, y=2).at()), "lie 2 apart there"),
    (lambda: product(a=blocked("k/4 m k", m=8, k=6)), "6 positions along blocks of 4"),
    (lambda: product(a=Tensor("x", "m/2 k m", "f32", m=8, k=6).at(m="m")),
     "more than a block of 2, and blocks do not follow"),
])  # fmt: skip
def test_factors_lie_as_kernels_have_them(make: Callable[[], object], words: str) -> None:
    assert product()
    with pytest.raises(ValueError, match=words):
        make()


def test_a_result_has_a_place_though_its_sum_may_be_empty() -> None:
    """Operands of a batch that may be empty may point behind their array; what is written not."""
    a = Tensor("a", "t m k", "f32", t=2, m=4, k=4)
    b = Tensor("b", "t k n", "f32", t=2, k=4, n=8)
    c = Tensor("c", "r m n", "f32", r=2, m=4, n=8)
    rows = nest("R", {"r": Loop(2, (1,))})
    lists = {"batch": {"t": ("r", np.array([0, 1, 2]))}}
    assert rows.gemm(a.at(t="t"), b.at(t="t"), c.at(r="r"), **lists)
    with pytest.raises(ValueError, match="the loops go from 0 to 2 along axis r, which has 2"):
        rows.gemm(a.at(t="t"), b.at(t="t"), c.at(r=("r", np.array([0, 2]))), **lists)


def test_threads_share_no_sums_of_rows() -> None:
    """Of whichever result."""
    names = {"dy": "m n", "x": "m n", "dx": "m n", "scale": "n", "mean": "m", "rstd": "m",
             "dscale": "n", "dshift": "n"}  # fmt: skip
    extents = {"m": 8, "n": 16}
    tensors = {
        name: Tensor(name, layout, "f32", **{axis: extents[axis] for axis in layout.split()})
        for name, layout in names.items()
    }
    places = {name: t.at(m="m") if "m" in t.sizes else t.at() for name, t in tensors.items()}
    part = nest().rows("layer_norm_backward", places)
    assert Primitive([part], list(tensors.values()), threads=1)
    with pytest.raises(ValueError, match="threads 0 and 1 both write"):
        Primitive([part], list(tensors.values()), threads=2)


@pytest.mark.parametrize(("epilogue", "words", "message"), [
    ("relu_mask", {"mask": Tensor("mask", "i", 1, i=1).at()}, "call writes 8 of 1"),
    ("bias", {"bias": Tensor("b", "n/8 q n", "f32", n=16, q=2).at()}, "takes 16 along 'n', which"),
    ("residual", {"residual": Tensor("r", "m n/8 q n", "f32", m=8, n=16, q=2).at(m="m")},
     "takes 16 along 'n', which"),
])  # fmt: skip
def test_what_an_epilogue_reads_and_writes_fits(
    epilogue: str, words: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        nest().gemm(X.at(m="m"), W.at(), Y.at(m="m"), epilogue=(epilogue,), words=words)


def test_a_copy_takes_neighbours() -> None:
    source, to = Tensor("s", "k m", "f32", k=4, m=16), Tensor("t", "k m", "f32", k=4, m=8)
    loops = {"m": Loop(8, (8,))}
    with pytest.raises(ValueError, match="elements lie 2 apart"):
        nest(loops=loops).relayout(source.at(m=("m", 2)), to.at(m="m"), title="every second")


def test_batches_of_absurd_lengths_and_numbers_beside_blocks() -> None:
    a, b = Tensor("a", "p/4 p m k", "f32", p=8, m=4, k=4), Tensor("b", "k n", "f32", k=4, n=8)
    rows, c = nest("R", {"r": Loop(1, (1,))}), Tensor("c", "r m n", "f32", r=1, m=4, n=8).at(r="r")
    with pytest.raises(ValueError, match="products; there are"):
        rows.gemm(a.at(p="t"), b.at(), c, batch={"t": ("r", np.array([0, 1 << 40]))})
    with pytest.raises(ValueError, match="a number beside the batch"):
        rows.gemm(a.at(p=[1, "t"]), b.at(), c, batch={"t": ("r", np.array([0, 2]))})


def test_numbers_of_rows_lie_together() -> None:
    z, v = Tensor("z", "m n", "f32", m=8, n=16), Tensor("v", "m q", "f32", m=8, q=2)
    with pytest.raises(ValueError, match="its elements do not lie together"):
        nest().rows("sum", {"x": z.at(m="m"), "value": v.at(m="m", q=1)})
    scale = Tensor("scale", "n q", "f32", n=16, q=2)
    wide = Tensor("z", "n m", "f32", m=8, n=16).at(m="m")
    with pytest.raises(ValueError, match="its elements do not lie together"):
        nest().rows("rms_norm", {"x": wide, "y": wide, "scale": scale.at(q=0)})


def test_constants_are_only_read_and_native() -> None:
    with pytest.raises(ValueError, match=r"constants\['y'\]: 'multiply' writes it"):
        Primitive([product()], [X, W], threads=1, constants={"y": np.zeros((8, 16), np.float32)})
    with pytest.raises(TypeError, match="of another byte order"):
        Primitive([product()], [X, Y], threads=1, constants={"w": np.zeros((6, 16), ">f4")})


def test_weights_in_another_order_do_not_go_into_a_library(tmp_path: Path) -> None:
    w = Tensor("w", "q k n", "f32", q=2, k=6, n=16, strides={"q": 16, "k": 32})
    part = nest().gemm(X.at(m="m"), w.at(q=1), Y.at(m="m"))
    made = Primitive([part], [X, w, Y], threads=1)
    with pytest.raises(ValueError, match="does not lie in order"):
        jitgen.export({"p": made}, tmp_path, "net",
                      weights={"p": {"w": np.zeros(w.shape, np.float32)}})  # fmt: skip


def test_strides_of_inner_axes_count() -> None:
    assert Tensor("a", "m n", "f32", m=4, n=4, strides={"n": 2}).elements >= 19
    assert Tensor("a", "m k n", "f32", m=4, k=4, n=4, strides={"m": 4, "k": 4}).elements >= 28


def test_measuring_takes_as_long_as_it_is_told() -> None:
    """However short a call is: nothing grows with the number of calls."""
    calls = 0

    def run(buffers: object) -> None:
        nonlocal calls
        calls += 1

    runs: Any = [run]
    (best,) = best_times(runs, {}, 0.02, 5)
    assert calls > 1000 and 0 <= best < 0.02
