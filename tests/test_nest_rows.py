"""`Nest.rows`: functions of rows at places of tensors, on threads, in loops, in scratch.

Not here: the functions (`test_row_kernels`), layers (`test_normalisation`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from row_oracle import results

from jitgen import Loop, Nest, Stream, Tensor
from jitgen.kernels.row_functions import ROW_FUNCTIONS
from jitgen.run import cpu
from jitgen.run.loader import ffi

Array = np.ndarray[Any, Any]
HERE = cpu.host()


def replay(parts: list[Any], threads: int, **arrays: Array) -> None:
    """Run parts on arrays by the names of their tensors."""
    stream = Stream(parts, list(arrays), threads=threads)
    stream.team(HERE)([ffi.from_buffer(array) for array in arrays.values()])


def check(function: str, name: str, got: Array, axis: int, **operands: Array) -> None:
    """Compare a result."""
    lanes = 4  # of any instruction set, at the least
    value, bound = results(function, operands, 1e-5, axis, lanes)[name]
    assert (np.abs(got - value) <= bound).all()


@pytest.mark.parametrize("layout", ["b m n", "b n m", "n b m"])
@pytest.mark.parametrize("threads", [1, 2])
def test_layouts_say_whether_lanes_go_along_rows_or_across(layout: str, threads: int) -> None:
    """Three axes, blocks of rows of which the last is shorter."""
    sizes = {"b": 3, "m": 13, "n": 50}
    axes = layout.split()
    x, y = (Tensor(name, layout, "f32", **sizes) for name in "xy")
    loops = {"b": Loop(3, (1,)), "m": Loop(13, (5,))}
    nest = Nest("BM", loops, "f32", HERE)
    places = {t.name: t.at(b="b", m="m") for t in (x, y)}
    part = nest.rows("log_softmax", places)
    given = np.random.default_rng(7).standard_normal([sizes[a] for a in axes]).astype(np.float32)
    result = np.full_like(given, np.nan)
    replay([part], threads, x=given, y=result)
    over = axes.index("n")
    rows = np.moveaxis(given, over, -1).reshape(-1, 50)
    check("log_softmax", "y", np.moveaxis(result, over, -1).reshape(-1, 50), 1, x=rows, y=rows)


def test_a_product_in_scratch_and_its_softmax_in_place() -> None:
    """Blocks of x w in scratch that each thread has, softmax there, and what is made of it."""
    q, k, d = 40, 24, 8
    random = np.random.default_rng(8)
    arrays = {
        "x": random.standard_normal((q, d)), "w": random.standard_normal((d, k)),
        "v": random.standard_normal((k, d)),
    }  # fmt: skip
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    x, w = Tensor("x", "q d", "f32", q=q, d=d), Tensor("w", "d k", "f32", d=d, k=k)
    v, y = Tensor("v", "k d", "f32", k=k, d=d), Tensor("y", "q d", "f32", q=q, d=d)
    p = Tensor("p", "q k", "f32", own=True, q=16, k=k)
    nest = Nest("Q", {"q": Loop(q, (16,))}, "f32", HERE)
    scores = nest.gemm(x.at(q="q"), w.at(), p.at(), m="q", n="k", k="d")
    soft = nest.rows("softmax", {"x": p.at(), "y": p.at()}, rows="q", over="k")
    part = nest.gemm(p.at(), v.at(), y.at(q="q"), m="q", n="d", k="k", before=(scores, soft))
    result = np.full((q, d), np.nan, np.float32)
    scratch = np.full((2, 16, k), np.nan, np.float32)
    replay([part], 2, **arrays, y=result, p=scratch)
    s = arrays["x"].astype(float) @ arrays["w"]
    e = np.exp(s - s.max(axis=1, keepdims=True))
    wanted = e / e.sum(axis=1, keepdims=True) @ arrays["v"]
    np.testing.assert_allclose(result, wanted, rtol=0, atol=2e-5)


def test_norms_with_their_numbers_and_gaps() -> None:
    """Operands of all places, rows with gaps."""
    m, n, gap = 11, 37, 45
    random = np.random.default_rng(9)
    wide = random.standard_normal((m, gap)).astype(np.float32)
    scale = random.standard_normal(n).astype(np.float32)
    x, y = (Tensor(name, "m n", "f32", m=m, n=n, strides={"m": gap}) for name in "xy")
    number = {name: Tensor(name, "m", "f32", m=m) for name in ("mean", "rstd")}
    nest = Nest("M", {"m": Loop(m, (4,))}, "f32", HERE)
    places = {t.name: t.at(m="m") for t in (x, y, *number.values())}
    places["scale"] = Tensor("scale", "n", "f32", n=n).at()
    part = nest.rows("layer_norm", places, eps=1e-5)
    result, mean, rstd = np.full_like(wide, np.nan), *np.full((2, m), np.nan, np.float32)
    replay([part], 2, x=wide, y=result, mean=mean, rstd=rstd, scale=scale)
    operands = {"x": wide[:, :n], "scale": scale[np.newaxis], "y": wide[:, :n]}
    for name, got in (("y", result[:, :n]), ("mean", mean[:, None]), ("rstd", rstd[:, None])):
        check("layer_norm", name, got, 1, **operands)
    assert np.isnan(result[:, n:]).all()


X = Tensor("x", "m n", "f32", m=8, n=4)
BLOCKS = Tensor("z", "m/4 n m", "f32", m=8, n=4)
SHORT = Tensor("s", "m n", "f32", m=8, n=3)
OWN = Tensor("o", "m n", "f32", own=True, m=2, n=4)
DEEP = Tensor("d", "m n c", "f32", m=8, n=4, c=2)
PLACE = {"x": X.at(m="m"), "y": X.at(m="m")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"function": "softmin"}, "function='softmin' is not one of softmax"),
        ({"operands": {"x": PLACE["x"]}}, "operands=.* has no 'y', which softmax needs"),
        ({"operands": {**PLACE, "z": PLACE["x"]}}, "operands of softmax='z' is not one of x, y"),
        ({"over": "k"}, "over='k': <Tensor x .* has no axis along that loop, or called so"),
        ({"rows": "n", "over": "m"}, "over='m': a call takes all of what is reduced; the loop has"),
        ({"operands": {**PLACE, "y": BLOCKS.at(m="m")}}, "rows='m': m lies in blocks"),
        ({"operands": {**PLACE, "y": SHORT.at(m="m")}}, "over='n': it has 4 in .* and 3 in"),
        ({"operands": {**PLACE, "y": OWN.at()}}, "rows='m': a call takes 3 positions"),
        ({"operands": {**PLACE, "y": DEEP.at(m="m")}}, "neither n nor m lies together"),
        ({"operands": {**PLACE, "y": X.at()}}, "rows='m': <Tensor x"),
        ({"eps": -1.0}, "eps=-1.0"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], message: str) -> None:
    """When the nest is made, with argument, value and rule."""
    nest = Nest("m", {"m": Loop(8, (3,))}, "f32", HERE)
    with pytest.raises(ValueError, match=message):
        nest.rows(**{"function": "softmax", "operands": PLACE, **arguments})


def test_every_function_can_be_called() -> None:
    """The names of operands are those of the table, whatever place they have."""
    nest = Nest("m", {"m": Loop(8, (3,))}, "f64", HERE)
    tensors = {"row": "m n", "column": "n", "value": "m"}
    for function, record in ROW_FUNCTIONS.items():
        places = {}
        for name, operand in record.operands.items():
            layout = tensors[operand.place]
            tensor = Tensor(name, layout, "f64", **{a: {"m": 8, "n": 4}[a] for a in layout.split()})
            places[name] = tensor.at(**({} if operand.place == "column" else {"m": "m"}))
        part = nest.rows(function, places)
        assert set(part.words) == {operand.word for operand in record.operands.values()}
