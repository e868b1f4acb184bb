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
Y = Tensor("y", "n k", "f32", n=5, k=40).at(n="m", k="n")


def nest(order: str, sums: str) -> Nest:
    """Loops over a product of 5 x 3 and 3 x 40."""
    loops = {"m": Loop(5, (5,)), "n": Loop(40, (16,)), "k": Loop(3, (1,))}
    return Nest(order, loops, "f32", AVX2, sums)


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
