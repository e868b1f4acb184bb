"""`Primitive`, batches by lists, and what both refuse.

Not here: the worked examples (test_own_primitives), nests without lists (test_tensor).
"""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from primitives_on import replay
from random_cases import SEED
from tiers import TIERS, need

from jitgen import Loop, Nest, Primitive, Tensor
from jitgen.primitives.nest.stream import Part
from jitgen.run import cpu

NUMPY = {"f32": np.float32, "f64": np.float64}
HERE = [name for name, why in cpu.targets().items() if not why]
#: tier -> random products by lists
AMOUNT = {
    "avx2 native": 60, "avx512 native": 60, "avx512 bochs": 12, "sve128 qemu": 10,
    "sve256 qemu": 10, "sve512 qemu": 10,
}  # fmt: skip


def rand(*shape: int) -> np.ndarray:
    return np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)


def product(threads: int = 1, target: str = "", **how: Any) -> Primitive:
    """y = x w, in two parts: w is packed first, into scratch."""
    x, y = Tensor("x", "m k", "f32", m=20, k=12), Tensor("y", "m n", "f32", m=20, n=40)
    w, panels = Tensor("w", "k n", "f32", k=12, n=40), Tensor("p", "n/16 k n", "f32", k=12, n=40)
    loops, name = {"m": Loop(20, (6,)), "n": Loop(40, (16,))}, target or HERE[-1]
    pack = Nest("N", {"n": loops["n"]}, "f32", name).relayout(w.at(n="n"), panels.at(n="n"),
                                                            title="pack")  # fmt: skip
    multiply = Nest("MN", loops, "f32", name).gemm(
        x.at(m="m"), panels.at(n="n"), y.at(m="m", n="n"), **how
    )
    return Primitive([pack, multiply], [x, w, y], threads, scratch=[panels])


# ---- calls --------------------------------------------------------------------------------------


@pytest.mark.skipif(not HERE, reason="no target runs on this CPU")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_arrays_by_name(threads: int) -> None:
    multiply = product(threads, alpha=0.5)
    x, w, y = rand(20, 12), rand(12, 40), np.full((20, 40), np.nan, np.float32)
    assert multiply(y=y, x=x, w=w) is None
    np.testing.assert_allclose(y, x.astype(float) @ w / 2, rtol=0, atol=1e-5)
    assert multiply.results == ("y",) and list(multiply.tensors) == ["x", "w", "y"]
    assert multiply.threads == threads and multiply.target.name == HERE[-1]
    assert multiply.scratch_bytes == 4 * 48 * 12
    assert "pack" in multiply.stream.text() and multiply.nbytes > 0
    assert 0 < multiply.seconds() < 1


@pytest.mark.skipif(not HERE, reason="no target runs on this CPU")
@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({"w": None}, TypeError, "arrays are given for 'x', 'y'; it takes 'x', 'w', 'y'"),
        ({"z": rand(2)}, TypeError, "'z'; it takes 'x', 'w', 'y'"),
        ({"x": rand(12, 20)}, ValueError, r"x has shape \(12, 20\); <Tensor x .*> has \(20, 12\)"),
        ({"x": rand(20, 12).astype("f8")}, TypeError, "x has dtype float64; it must be float32"),
        ({"x": rand(20, 24)[:, ::2]}, ValueError, r"x has strides \(96, 8\); .* has \(48, 4\)"),
        ({"x": [[1.0]]}, TypeError, "x is list"),
        ({"y": "read-only"}, ValueError, "y is read-only; it is written"),
        ({"y": "w"}, ValueError, "y overlaps w; an output"),
    ],
)
def test_wrong_arrays(arrays: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"x": rand(20, 12), "w": rand(12, 40), "y": rand(20, 40)}
    before = given["y"].copy()
    if arrays.get("y") == "w":
        memory = np.zeros(1000, np.float32)
        arrays = {"w": memory[:480].reshape(12, 40), "y": memory[200:].reshape(20, 40)}
    if isinstance(arrays.get("y"), str):
        given["y"].flags.writeable = False
        arrays = {}
    given = {name: x for name, x in {**given, **arrays}.items() if x is not None}
    with pytest.raises(error, match=message):
        product()(**given)
    if "y" not in arrays:
        np.testing.assert_array_equal(given["y"], before)


@pytest.mark.skipif(not HERE, reason="no target runs on this CPU")
def test_gaps_and_blocks_are_those_of_the_layout() -> None:
    """Rows with gaps in and out, panels as an array of three axes."""
    x = Tensor("x", "m k", "f32", strides={"m": 20}, m=5, k=12)
    w, y = Tensor("w", "n/16 k n", "f32", k=12, n=40), Tensor("y", "m n", "f32", strides={"m": 64},
                                                            m=5, n=40)  # fmt: skip
    assert (w.shape, w.steps, x.shape, x.steps) == ((3, 12, 16), (192, 16, 1), (5, 12), (20, 1))
    nest = Nest("m", {"m": Loop(5, (2,))}, "f32")
    multiply = Primitive([nest.gemm(x.at(m="m"), w.at(), y.at(m="m"))], [x, w, y], 1)
    wide, plain, room = rand(5, 20), rand(12, 48), np.full((5, 64), 7, np.float32)
    panels = np.ascontiguousarray(plain.reshape(12, 3, 16).swapaxes(0, 1))
    multiply(x=wide[:, :12], w=panels, y=room[:, :40])
    np.testing.assert_allclose(room[:, :40], wide[:, :12] @ plain[:, :40], rtol=0, atol=1e-5)
    assert (room[:, 40:] == 7).all()
    with pytest.raises(ValueError, match="x has strides"):
        multiply(x=rand(5, 12), w=panels, y=room[:, :40])


@pytest.mark.skipif(not HERE, reason="no target runs on this CPU")
def test_one_tensor_constants_and_what_is_own() -> None:
    """y += ones, twice: read and written under one name; the threads' own parts do not meet."""
    ones, y = Tensor("ones", "k n", "f32", k=1, n=8), Tensor("y", "m n", "f32", m=6, n=8)
    row, mine = Tensor("row", "m k", "f32", m=6, k=1), Tensor("mine", "m n", "f32", own=True, m=2,
                                                            n=8)  # fmt: skip
    nest = Nest("M", {"m": Loop(6, (2,))}, "f32")
    first = nest.gemm(row.at(m="m"), ones.at(), mine.at(), beta=0.0)
    add = nest.gemm(
        row.at(m="m"), ones.at(), y.at(m="m"), beta=1.0, epilogue=("residual",),
        words={"residual": mine.at()}, before=(first,),
    )  # fmt: skip
    given = {"ones": np.ones((1, 8), np.float32), "row": np.ones((6, 1), np.float32)}
    twice = Primitive([add], [y], 3, constants=given)
    given["ones"][:] = 100  # it has a copy
    array = np.zeros((6, 8), np.float32)
    twice(y=array)
    np.testing.assert_array_equal(array, np.full((6, 8), 2))
    assert twice.scratch_bytes == 3 * 4 * 16
    Primitive([first], [], 1, constants=given)()


@pytest.mark.skipif(not HERE, reason="no target runs on this CPU")
@pytest.mark.parametrize("threads", [1, 2])
def test_calls_at_once_have_scratch_of_their_own(threads: int) -> None:
    """Four Python threads, each with its own w, which is packed into scratch."""
    multiply, x = product(threads), rand(20, 12)

    def use(factor: int) -> bool:
        w, y = rand(12, 40) * np.float32(factor), np.empty((20, 40), np.float32)
        expected = x.astype(float) @ w
        for _ in range(200):
            y.fill(np.nan)
            multiply(x=x, w=w, y=y)
            if not np.abs(y - expected).max() <= 1e-5 * factor:
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(use, (1, 10, 100, 1000)))


@pytest.mark.skipif(not HERE, reason="no target runs on this CPU")
def test_it_belongs_to_its_process() -> None:
    multiply = product()
    for wrong in (copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match="make it anew from its parts"):
            wrong(multiply)
    with pytest.raises(AttributeError, match="threads of a Primitive is read-only"):
        multiply.threads = 3


def test_any_machine_can_make_one() -> None:
    """Its stream and kernels are there; the call says why this CPU cannot."""
    multiply = product(target="sve256")
    assert multiply.target.name == "sve256" and len(multiply.stream.calls) > 1
    if "sve256" not in HERE:
        with pytest.raises(RuntimeError, match="cannot run kernels for sve256"):
            multiply(x=rand(20, 12), w=rand(12, 40), y=rand(20, 40))


# ---- batches by lists ---------------------------------------------------------------------------


def random_lists(rng: random.Random, target: str) -> tuple[Primitive, dict[str, Any], np.ndarray]:
    """A product of random blocks in any order, some rows of blocks without any; its arrays, and
    what y must be."""
    dtype, numbers = rng.choice(["f32", "f64"]), np.random.default_rng(rng.randrange(1 << 32))
    rows, across, m, k, n = (rng.randint(1, most) for most in (5, 6, 9, 8, 40))
    counts = [rng.choice((0, rng.randint(1, 2 * across))) for _ in range(rows)]
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(rng.choice(["i4", "i8"]))
    total = int(indptr[-1])
    indices = numbers.integers(0, across, total).astype("i4")
    s = Tensor("s", "t m k", dtype, t=total, m=m, k=k)
    turned = rng.random() < 0.4
    x = Tensor("x", "q n k" if turned else "q k n", dtype, q=across, k=k, n=n)
    y = Tensor("y", "r m n", dtype, r=rows, m=m, n=n)
    loops = {"r": Loop(rows, (1,)), "n": Loop(n, (rng.randint(1, n),))}
    part = Nest(rng.choice(["RN", "rn", "[RN]", "NR"]), loops, dtype, target).gemm(
        s.at(t="t"), x.at(q=("t", indices), n="n"), y.at(r="r", n="n"), batch={"t": ("r", indptr)},
        epilogue=("relu",),
    )  # fmt: skip
    arrays = {
        name: numbers.integers(-8, 9, t.shape).astype(NUMPY[dtype])
        for name, t in (("s", s), ("x", x))
    }
    arrays["y"] = np.full(y.shape, np.nan, NUMPY[dtype])
    wide = arrays["x"].swapaxes(1, 2) if turned else arrays["x"]
    expected = np.zeros(y.shape)
    for r in range(rows):
        for t in range(indptr[r], indptr[r + 1]):
            expected[r] += arrays["s"][t] @ wide[indices[t]]
    return Primitive([part], [s, x, y], 1), arrays, np.maximum(expected, 0)


@pytest.mark.parametrize("tier", AMOUNT)
def test_sums_over_lists(tier: str) -> None:
    """Sums of integers are exact; a row of blocks without any is zeros."""
    need(TIERS[tier])
    rng = random.Random(f"{SEED} {tier}")
    made = [random_lists(rng, TIERS[tier].target) for _ in range(AMOUNT[tier])]
    assert any(not row.any() for *_, expected in made for row in expected)
    found = replay(TIERS[tier], [(primitive, arrays) for primitive, arrays, _ in made])
    for (_, _, expected), results in zip(made, found, strict=True):
        np.testing.assert_array_equal(results["y"], expected)


@pytest.mark.skipif(not HERE, reason="no target runs on this CPU")
def test_no_blocks_at_all() -> None:
    s, x = Tensor("s", "t m k", "f32", t=0, m=2, k=3), Tensor("x", "q k n", "f32", q=4, k=3, n=5)
    y, none = Tensor("y", "r m n", "f32", r=3, m=2, n=5), np.zeros(0, np.int64)
    part = Nest("R", {"r": Loop(3, (1,))}, "f32").gemm(
        s.at(t="t"), x.at(q=("t", none)), y.at(r="r"), batch={"t": ("r", np.zeros(4, np.int64))}
    )
    found = np.full((3, 2, 5), np.nan, np.float32)
    Primitive([part], [s, x, y], 2)(s=np.zeros((0, 2, 3), np.float32), x=rand(4, 3, 5), y=found)
    np.testing.assert_array_equal(found, np.zeros((3, 2, 5)))


# ---- mistakes -----------------------------------------------------------------------------------

X, Y = Tensor("x", "m k", "f32", m=20, k=12), Tensor("y", "m n", "f32", m=20, n=40)
W, MINE = Tensor("w", "k n", "f32", k=12, n=40), Tensor("w", "k n", "f32", own=True, k=12, n=40)
LOOPS = {"m": Loop(20, (6,))}


def part(w: Tensor = W, y: Tensor = Y, target: str = "avx2") -> Part:
    return Nest("M", LOOPS, "f32", target).gemm(X.at(m="m"), w.at(), y.at(m="m"))


def step(name: str, place: Any) -> Part:
    nest = Nest("M", LOOPS, "f32", "avx2")
    return nest.gemm(X.at(m="m"), W.at(), Y.at(m="m"), epilogue=(name,), words={name: place})


def lists(
    pointers: Any = (0, 1, 3), indices: Any = (0, 3, 1), loop: str = "r", name: str = "t",
    block: int = 1, sums: str = "", at: dict[str, Any] | None = None, **how: Any,
) -> Part:  # fmt: skip
    s, x = Tensor("s", "t m k", "f32", t=3, m=2, k=3), Tensor("x", "q k n", "f32", q=4, k=3, n=5)
    y = Tensor("y", "r m n", "f32", r=2, m=2, n=5)
    nest = Nest("R", {"r": Loop(2, (block,))}, "f32", "avx2")
    return nest.gemm(
        s.at(t=name), x.at(q=(name, np.array(indices))), y.at(**({"r": "r"} if at is None else at)),
        batch={name: (loop, np.array(pointers))}, **how,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Primitive([], [X]), ValueError, r"parts=\[\] is empty"),
        (lambda: Primitive([part()], []), ValueError, "'x' is not in tensors, scratch or"),
        (lambda: Primitive([part()], [X, Y]), ValueError, "'w' is not in tensors, scratch or"),
        (lambda: Primitive([part()], [X, W, Y, W]), ValueError, "tensors has another 'w'"),
        (lambda: Primitive([part()], [X, W, Y], scratch=[W]), ValueError, "is in tensors too"),
        (lambda: Primitive([part()], [X, W, Y, Tensor("z", "n", "f32", n=1)]), ValueError,
         "tensors has 'z', which no part has"),
        (lambda: Primitive([part(MINE)], [X, MINE, Y]), ValueError,
         "<Tensor w .* own> is each thread's own: it is in no list"),
        (lambda: Primitive([part(MINE)], [X, W, Y]), ValueError, "'w' is each thread's own here"),
        (lambda: Primitive([part(), part(MINE)], [X, Y]), ValueError, "multiply: 'w' is not in"),
        (lambda: Primitive([part(MINE), part(Tensor(
            "w", "k n", "f32", own=True, strides={"k": 50}, k=12, n=40))], [X, Y]), ValueError,
         "'w' has 2400 bytes of each thread here, and 1920 elsewhere"),
        (lambda: Primitive([part()], [X, Tensor("w", "k n", "f32", k=11, n=40), Y]), ValueError,
         "'w' has 480 elements of 4 bytes here; tensors has .* of 440 of 4"),
        (lambda: Primitive([part()], [X, Y], constants={"w": rand(12, 39)}), ValueError,
         r"constants\['w'\] has 468 elements of 4 bytes; in 'multiply' it has 480 of 4"),
        (lambda: Primitive([part(), part(target="avx512")], [X, W, Y]), ValueError,
         "parts are for targets avx2, avx512"),
        (lambda: lists(loop="q"), ValueError, r"batch\['t'\]: loop='q' is not in loops"),
        (lambda: lists(name="r"), ValueError, "'r' is a loop of the nest; a batch is none"),
        (lambda: lists(block=2), ValueError, "one position of loop 'r', whose blocks have 2"),
        (lambda: lists((0, 1)), ValueError, "pointers has 2 numbers; the loop has 3 positions"),
        (lambda: lists((0, 2, 1)), ValueError, "must not be negative and not go down"),
        (lambda: lists((-1, 2, 3)), ValueError, "must not be negative and not go down"),
        (lambda: lists((0.0, 2.0, 3.0)), TypeError, "it must be a vector of integers"),
        (lambda: lists((0, 1, 4)), ValueError, "s: the loops go from 0 to 3 along axis t"),
        (lambda: lists(indices=(0, 3)), ValueError, "table along q has 2 numbers; the loop has 3"),
        (lambda: lists(indices=(0, 3, 4)), ValueError, "x: the loops go from 0 to 4 along axis q"),
        (lambda: lists(indices=(0, 3, -1)), ValueError, "x: the loops go from -1 to 3 along axis"),
        (lambda: lists(at={}), ValueError, "c does not depend on loop 'r'"),
        (lambda: lists(taps="r"), ValueError, "taps='r': a product with batch= has none"),
        (lambda: Primitive([lists(), lists(indices=(0, 2, 1))], [
            Tensor("s", "t m k", "f32", t=3, m=2, k=3), Tensor("x", "q k n", "f32", q=4, k=3, n=5),
            Tensor("y", "r m n", "f32", r=2, m=2, n=5)]), ValueError,
         "another part has a table 'x by t' of other values; let their batches have two names"),
        (lambda: Nest("MN", {**LOOPS, "n": Loop(40, (8,))}, "f32", "avx2", sums="m").gemm(
            X.at(m="m"), W.at(n="n"), Y.at(m="m", n="n")), ValueError, "cannot share a sum"),
        (lambda: Nest("m", LOOPS, "f32", "avx2", sums="m").gemm(
            X.at(m="m"), W.at(), Y.at(m="m")), ValueError, "m='m': each position of that loop has"),
        (lambda: part(y=Tensor("y", "n m", "f32", n=40, m=20)), ValueError,
         "n='n': columns of a call lie 20 elements apart in <Tensor y"),
        (lambda: part(y=Tensor("y", "n/16 m n", "f32", n=40, m=20)), ValueError,
         "n='n': columns of a call are 40, in blocks of 16 apart in <Tensor y"),
        (lambda: part(y=Tensor("y", "m n", "f32", n=39, m=20)), ValueError,
         "'n': a call takes all of the axis, which has 40 in <Tensor w .* and 39 in <Tensor y"),
        (lambda: Nest("M", LOOPS, "f32", "avx2").gemm(X.at(m="m"), W.at(n=3), Y.at(m="m")),
         ValueError, "n='n': a call takes all of the axis, but the place in <Tensor w .* an index"),
        (lambda: Nest("M", LOOPS, "f32", "avx2").gemm(
            X.at(m="m"), W.at(), Tensor("y", "m n", "f32", own=True, m=5, n=40).at()), ValueError,
         "m='m': a call takes 6 positions of loop 'm'; <Tensor y .* own> has 5"),
        (lambda: Nest("M", LOOPS, "f32", "avx2").gemm(X.at(m="m"), W.at(), Y.at(m="m"), n="k"),
         ValueError, "m='m', n='k', k='k': a product has three loops or axes"),
        (lambda: Nest("M", LOOPS, "f32", "avx2").gemm(
            X.at(m="m"), W.at(), Y.at(m="m"), epilogue=("relu", "bias")), ValueError,
         "epilogue has 'bias'; words has no 'bias'"),
        (lambda: Nest("M", LOOPS, "f32", "avx2").relayout(
            X.at(m="m"), Tensor("z", "k q", "f32", q=20, k=12).at(q="m"), title="turn"),
         ValueError, "q, along which neighbours lie together in one of them, is no axis of the"),
        (lambda: Nest("M", {"m": Loop(3, (1,))}, "f32", "avx2").call(
            "t", lambda *_: None, {"c": X.at(m=("m", np.array([0, 1, 20])))}), ValueError,
         "x: the loops go from 0 to 20 along axis m, which has 20"),
        (lambda: step("bias", Tensor("b", "n", "f32", n=39).at()), ValueError,
         r"words\['bias'\]: <Tensor b 'n' n=39> has 39 along 'n', of which a call takes 40"),
        (lambda: step("bias", Tensor("b", "q", "f32", q=40).at()), ValueError,
         r"words\['bias'\]='n': <Tensor b .* has no axis along that loop, or called so"),
        (lambda: step("bias", Tensor("b", "n m", "f32", m=2, n=40).at()), ValueError,
         r"words\['bias'\]: along 'n' <Tensor b .* has elements 2 apart"),
        (lambda: step("bias", Tensor("b", "n", "f64", n=40).at()), ValueError,
         r"words\['bias'\]=<Tensor b .*> has elements of 8 bytes; dtype='f32'"),
        (lambda: step("residual", Tensor("b", "m n", "f32", m=20, n=39).at(m="m")), ValueError,
         "has 39 along 'n', of which a call takes 40"),
        (lambda: step("residual", Tensor("b", "m n", "f32", m=19, n=40).at(m="m")), ValueError,
         "b: the loops go from 0 to 19 along axis m, which has 19"),
        (lambda: Nest("M", LOOPS, "f32", "avx3"), ValueError, "avx3"),
        (lambda: Nest("M", LOOPS, "f32", "avx2").gemm(
            X.at(m="m"), W.at(), Y.at(m="m"), alpha=1e39), ValueError, "alpha=1e.39 is too large"),
    ],
)  # fmt: skip
def test_mistakes_are_named(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()
