"""Tensors and nests: places against NumPy's own layouts, what is refused, and any tensor moved to
any layout, executed on every instruction set.

Not here: the streams of layers (test_streams and the layers' tests).
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from layouts import stored
from random_cases import SEED
from rig.job import Buffer, Job, Pointers
from tiers import TIERS, need

from jitgen import Nest, Tensor
from jitgen.kernels.layout import emit_transpose
from jitgen.primitives.nest.loops import Loop, iterate
from jitgen.primitives.nest.nest import relayout
from jitgen.primitives.nest.stream import Part, Stream
from jitgen.run import cpu, loader
from jitgen.run.replay import emit_replay
from jitgen.target import parse_target

NUMPY = {"f32": np.float32, "f64": np.float64}
AXES = ("n", "c", "h", "w")
#: tier -> how many pairs of layouts
AMOUNT = {
    "avx2 native": 150, "avx512 native": 150, "avx512 bochs": 40,
    "sve128 qemu": 30, "sve256 qemu": 30, "sve512 qemu": 30,
    "neon qemu": 30,
}  # fmt: skip


def random_layout(rng: random.Random, axes: list[str], blocks: tuple[int, ...]) -> str:
    """Axes in any order, some of them in blocks, of two sizes perhaps."""
    tokens = []
    for axis in axes:
        size = rng.choice((0, 0, *blocks))
        if size:
            tokens.append(f"{axis}/{size}")
            if size % 4 == 0 and rng.random() < 0.3:
                tokens.append(f"{axis}/{size // 4}" if size > 4 else f"{axis}/2")
    tokens += axes
    rng.shuffle(tokens)
    # the larger blocks of an axis come first
    for axis in axes:
        at = [i for i, token in enumerate(tokens) if token.partition("/")[0] == axis]
        own = sorted((tokens[i] for i in at), key=lambda t: -int(t.partition("/")[2] or 1))
        for i, token in zip(at, own, strict=True):
            tokens[i] = token
    return " ".join(tokens)


@pytest.mark.parametrize("seed", range(60))
def test_places_are_those_of_numpy(seed: int) -> None:
    rng = random.Random(f"{SEED} {seed}")
    axes = list(AXES[: rng.randint(1, 4)])
    sizes = {axis: rng.randint(1, 9) for axis in axes}
    layout = random_layout(rng, axes, (2, 4, 8))
    tensor = Tensor("t", layout, "f32", **sizes)
    numbers = np.arange(1, 1 + int(np.prod(list(sizes.values())))).reshape(*sizes.values())
    flat = stored(numbers, " ".join(axes), layout).ravel()
    assert tensor.elements == flat.size, layout
    for index in np.ndindex(*numbers.shape):
        place = tensor.offset(**dict(zip(axes, index, strict=True)))
        assert flat[place] == numbers[index], (layout, sizes, index)


@pytest.mark.parametrize("seed", range(40))
def test_an_array_holds_a_tensor(seed: int) -> None:
    """Its shape and steps are those of an array without gaps, and lead to every element."""
    rng = random.Random(f"{SEED} array {seed}")
    axes = list(AXES[: rng.randint(1, 4)])
    sizes = {axis: rng.randint(1, 20) for axis in axes}
    x = Tensor("x", random_layout(rng, axes, (4, 8)), "f32", **sizes)
    array = np.arange(x.elements).reshape(x.shape)
    assert x.steps == tuple(stride // 8 for stride in array.strides)
    index = {axis: rng.randrange(size) for axis, size in sizes.items()}
    above, at = dict.fromkeys(axes, 0), []
    for word in x.layout.split():
        axis, _, block = word.partition("/")
        inside = index[axis] % above[axis] if above[axis] else index[axis]
        at.append(inside // int(block or 1))
        above[axis] = int(block or 1)
    assert array[tuple(at)] == x.offset(**index)


@pytest.mark.parametrize("seed", range(60))
def test_an_access_is_the_place_at_each_iteration(seed: int) -> None:
    """Loops along one axis or several, with steps, tables and numbers."""
    rng = random.Random(f"{SEED} {seed}")
    loops = {name: Loop(rng.randint(1, 6), (rng.randint(1, 3),)) for name in "pqr"}
    index: dict[str, Any] = {"a": [rng.randint(0, 3), ("p", rng.randint(1, 3))], "b": "q"}
    table = np.array([rng.randint(0, 5) for _ in range(loops["r"].extent)])
    index["c"] = ("r", table)
    if rng.random() < 0.5:
        index["a"].append("q")
    blocks = f"a/{rng.choice((1, 2))}" if len(index["a"]) == 2 else "a"
    layout = " ".join([blocks.removesuffix("/1"), "b/2", "c", *("a" * ("/2" in blocks)), "b"])
    tensor = Tensor("t", layout, "f64", a=40, b=30, c=6)
    ref = tensor.at(**index).ref(loops)
    nest = iterate("pqr", loops)
    for i in range(len(nest)):
        at = {name: int(nest.start[name][i]) for name in loops}
        moved = sum(x if isinstance(x, int) else at[x[0]] * x[1] if isinstance(x, tuple) else at[x]
                    for x in index["a"])  # fmt: skip
        wanted = tensor.offset(a=moved, b=at["q"], c=int(table[at["r"]]))
        found = ref.start + sum(step * at[name] for name, step in ref.steps.items())
        found += sum(int(numbers[at[name]]) for name, numbers in ref.table.items())
        assert found == wanted, (layout, index)
    assert ref.element == 8


def test_own_tensors_and_gaps() -> None:
    rows = Tensor("x", "n c", "f32", strides={"n": 100}, n=4, c=30)
    assert rows.strides == {"n": 100, "c": 1} and rows.offset(n=2, c=3) == 203
    mine = Tensor("x", "n c", 2, own=True, n=4, c=30).at().ref({})
    assert (mine.per_thread, mine.element) == (120, 2)
    apart = Tensor("x", "p n c", "f32", own=True, strides={"p": 200}, p=3, n=4, c=30)
    assert apart.at().ref({}).per_thread == 600


def test_images_of_one_column_with_gaps_are_no_rows() -> None:
    """Neighbours along the last axis lie together, or calls that move rows would be wrong."""
    image = {"c": 2, "h": 5, "w": 1}
    assert Tensor("x", "c h w", "f32", strides={"h": 3}, **image).merged("h", "w") is None
    row = Tensor("x", "h w c", "f32", strides={"h": 7}, **image).merged("h", "w")
    assert row is not None and row.stride("w") == 7


def test_a_table_may_point_behind_the_last_place_where_nothing_is_read() -> None:
    x, loops = Tensor("x", "n", "f32", n=4), {"n": Loop(2, (1,))}
    assert x.at(n=("n", np.array([0, 4]))).ref(loops).table["n"].tolist() == [0, 4]
    with pytest.raises(ValueError, match="from 0 to 5 along axis n, which has 4"):
        x.at(n=("n", np.array([0, 5]))).ref(loops)
    with pytest.raises(ValueError, match="from 3 to 4 along axis n, which has 4"):
        x.at(n=["n", 3]).ref(loops)


@pytest.mark.parametrize("tier", AMOUNT)
def test_rows_of_a_product_are_an_axis_in_each_position_of_a_loop(tier: str) -> None:
    """7 strips of 4 rows, 3 strips at a time."""
    need(TIERS[tier])
    target, loops = parse_target(TIERS[tier].target), {"s": Loop(7, (3,))}
    rng = np.random.default_rng(SEED)
    numbers, weights = (rng.integers(-4, 5, s).astype("f4") for s in ((7, 4, 5), (5, 10)))
    a, c = (Tensor(x, f"s t {x}", "f32", s=7, t=4, **{x: n}) for x, n in (("k", 5), ("n", 10)))
    b, nest = Tensor("b", "k n", "f32", k=5, n=10), Nest("s", loops, "f32", target)
    part = nest.gemm(a.at(s="s"), b.at(), c.at(s="s"), m="s t", n="n", k="k")
    stream = Stream([part], ["k", "b", "n"], 1)
    made = Buffer(np.full((7, 4, 10), np.nan, "f4"), write=True)
    buffers = Pointers([Buffer(numbers), Buffer(weights), made])
    job = Job(emit_replay(stream.calls, target).code, [Buffer(stream.slices[0]), buffers, 0, 0])
    (outcome,) = TIERS[tier].run([job], isa=TIERS[tier].target)
    assert outcome.ok, outcome.error
    np.testing.assert_array_equal(outcome.outputs[0].reshape(7, 4, 10), numbers @ weights)
    apart = Tensor("k", "s t k", "f32", strides={"s": 21}, s=7, t=4, k=5)
    with pytest.raises(ValueError, match=r"m='s t': .* has gaps between them"):
        nest.gemm(apart.at(s="s"), b.at(), c.at(s="s"), m="s t", n="n", k="k")


def test_what_is_own_has_as_much_of_an_axis_as_its_loop() -> None:
    mine, to = Tensor("a", "t c", "f32", own=True, t=9, c=4), Tensor("c", "c t", "f32", c=7, t=9)
    target = parse_target("avx2")
    part = Nest("c", {"c": Loop(7, (4,))}, "f32", target).relayout(
        mine.at(), to.at(c="c"), title="back"
    )
    last = emit_transpose(9, 3, "f32", target, lda=4, ldc=9)
    assert part.code({"c": 3}, False, True)[0] == last


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tensor("w", "k/16 c", "f32", k=4, c=3), "k by itself comes last"),
        (lambda: Tensor("w", "k/16 k/6 k", "f32", k=4), "each hold whole ones"),
        (lambda: Tensor("w", "k K", "f32", k=4), "not 'K'"),
        (lambda: Tensor("w", "k c", "f32", k=4), "axes k c; sizes are given for k"),
        (lambda: Tensor("w", "k/2 k", "f32", strides={"k": 4}, k=4), r"strides\['k'\]"),
        (lambda: W.at(z=1), "axis='z': w has axes k c"),
        (lambda: W.at(c="q").ref({"q": Loop(4, (1,))}), "from 0 to 3 along axis c, which has 3"),
        (lambda: W.at(c=[("q", -1)]).ref({"q": Loop(3, (1,))}), "from -2 to 0 along axis c"),
        (lambda: W.at(c="q").ref({"n": Loop(3, (1,))}), "axis c goes along loop 'q'"),
        (lambda: nest("NK", "k").gemm(X, W.at(k="n", c="k"), Y), "threads cannot share a sum"),
        (lambda: nest("NKm", "").gemm(X, W.at(k="n", c="k"), Y), "missing in sums"),
        (lambda: nest("Nmk", "k").gemm(X, W.at(k="n"), Y), "k='k': .* has no axis along that loop"),
        (lambda: product(c=49), "from 0 to 49 along axis c, which has 49"),
        (lambda: product(c=50, w=40, k="c"), "'c': a call takes all of the axis, which has 50 in"),
        (lambda: product(dtype="f64"), "a=.* has elements of 8 bytes; dtype='f32'"),
        (lambda: product(at={"n": "m", "c": "m"}), "m='m': it goes along n and c of"),
        (lambda: product(epilogue=[("clip", 0, 1e39)]), "clip high=1e.39 is too large for f32"),
        (lambda: product(epilogue=["residual"], words={"residual": ADDED}), "'q' is missing in"),
        (lambda: Tensor("w", "", "f32"), "layout='' has no axes"),
        (lambda: nest("N", "").relayout(Tensor("a", "g k", "f32", g=4, k=40).at(k="n"), Tensor(
            "b", "h k", "f32", h=4, k=40).at(k="n"), title="t"), "g is an axis of one of them"),
        (lambda: relayout(W_PLAIN, Tensor("v", "k", "f32", k=40), "f32", AVX2), "differ in axes"),
        (lambda: relayout(W_PLAIN, Tensor("v", "k/3 c k", "f32", k=40, c=3), "f32", AVX2),
         "only panels of whole vectors"),
    ],
)  # fmt: skip
def test_mistakes_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


AVX2 = parse_target("avx2")
W = Tensor("w", "k/16 c k", "f32", k=40, c=3)
W_PLAIN = Tensor("w", "k c", "f32", k=40, c=3)
X = Tensor("x", "n c", "f32", n=5, c=3).at(n="m", c="k")
ADDED = Tensor("r", "q n k", "f32", q=3, n=64, k=64).at(q="q", n="m", k="n")
Y = Tensor("y", "n k", "f32", n=5, k=40).at(n="m", k="n")


def nest(order: str, sums: str) -> Nest:
    """Loops over a product of 5 x 3 and 3 x 40."""
    loops = {"m": Loop(5, (5,)), "n": Loop(40, (16,)), "k": Loop(3, (1,))}
    return Nest(order, loops, "f32", AVX2, sums)


def product(
    c: int = 50, w: int = 50, dtype: str = "f32", at: Any = None, k: str = "k", **more: Any
) -> Any:
    """64 x c times w x 64; the nest's loop k has 50, its loop q goes along nothing."""
    loops = {"m": Loop(64, (16,)), "n": Loop(64, (32,)), "k": Loop(50, (50,)), "q": Loop(3, (1,))}
    x = Tensor("x", "n c", dtype, n=64, c=c)
    along: Any = {} if k == "c" else {"c": "k"}
    return Nest("MNqk", loops, "f32", AVX2, "k").gemm(
        x.at(**at or {"n": "m", **along}), Tensor("w", "c k", "f32", c=w, k=64).at(k="n", **along),
        Tensor("y", "n k", "f32", n=64, k=64).at(n="m", k="n"), k=k, **more,
    )  # fmt: skip


def moves(rng: random.Random, target: str) -> tuple[Part, np.ndarray, np.ndarray, str]:
    """A random tensor in two layouts: the part that moves it, and how it lies in either."""
    at = parse_target(target)
    dtype = rng.choice(("f32", "f64"))
    lanes = at.machine(dtype, 1 << 20).lanes
    axes = list(AXES[: rng.randint(1, 4)])
    sizes = {axis: rng.choice((1, 2, 3, 5, 8, 17, 33)) for axis in axes}
    while np.prod(list(sizes.values())) > 4000:
        sizes[rng.choice(axes)] = 2
    source = random_layout(rng, axes, (lanes, 2 * lanes))
    to = random_layout(rng, axes, (lanes, 2 * lanes))
    tensors = Tensor("a", source, dtype, **sizes), Tensor("c", to, dtype, **sizes)
    try:
        part, filled = relayout(*tensors, dtype, at), True
    except ValueError as error:
        assert "filled up with zeros" in str(error)
        part, filled = relayout(*tensors, dtype, at, fill=False), False
    numbers = 1 + np.arange(np.prod(list(sizes.values())), dtype=NUMPY[dtype])
    numbers = numbers.reshape(*sizes.values())
    before = stored(numbers, " ".join(axes), source)
    after = stored(numbers, " ".join(axes), to, 0 if filled else np.nan)
    return part, before, after, f"{dtype} {source} -> {to} {sizes}"


@pytest.mark.parametrize("tier", AMOUNT)
def test_any_tensor_goes_to_any_layout(tier: str) -> None:
    need(TIERS[tier])
    rng = random.Random(f"{SEED} {tier}")
    jobs, cases = [], []
    for _ in range(AMOUNT[tier]):
        part, before, after, label = moves(rng, TIERS[tier].target)
        stream = Stream([part], ["a", "c"], 1)
        c = Buffer(np.full_like(after, np.nan), write=True)
        code = emit_replay(stream.calls, parse_target(TIERS[tier].target)).code
        words = [Buffer(stream.slices[0]), Pointers([Buffer(before), c]), 0, 0]
        jobs.append(Job(code, words, label=label))
        cases.append((after, label))
    outcomes = TIERS[tier].run(jobs, isa=TIERS[tier].target)
    for (after, label), outcome in zip(cases, outcomes, strict=True):
        assert outcome.ok, f"JITGEN_SEED={SEED} {label}: {outcome.error}"
        found = np.asarray(outcome.outputs[0]).reshape(after.shape)
        np.testing.assert_array_equal(found, after, f"JITGEN_SEED={SEED} {label}")


@pytest.mark.parametrize("seed", range(20))
def test_threads_share_a_move(seed: int) -> None:
    rng = random.Random(f"{SEED} {seed}")
    part, before, after, label = moves(rng, cpu.host().name)
    found = np.full_like(after, np.nan)
    stream = Stream([part], ["a", "c"], rng.randint(1, 4))
    stream.team(cpu.host())([loader.ffi.from_buffer(array) for array in (before, found)])
    np.testing.assert_array_equal(found, after, f"JITGEN_SEED={SEED} {label}")
