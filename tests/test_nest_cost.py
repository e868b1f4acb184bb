"""What a nest costs: against counts of what the calls of its stream touch, where nothing stays in
L2 and where all does; shares of threads; windows that overlap.

Not here: choices by cost (test_conv_tuning).
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from random_cases import SEED

from jitgen import Nest, Tensor
from jitgen.primitives.nest import cost as nest_cost
from jitgen.primitives.nest.cost import CALL_CYCLES, FAR_BYTES, Cost, cost
from jitgen.primitives.nest.loops import Loop, iterate
from jitgen.primitives.nest.tensor import Access
from jitgen.target import parse_target

TARGET = parse_target("avx512")
Places = dict[str, Access]


def product(rng: random.Random) -> tuple[Nest, Places, str]:
    """m, n and k in several whole blocks, and any order."""
    blocks = {name: rng.choice([8, 16]) for name in "mnk"}
    loops = {name: Loop(b * rng.randint(2, 4), (b,)) for name, b in blocks.items()}
    m, n, k = (loops[name].extent for name in "mnk")
    x, w = Tensor("x", "m k", "f32", m=m, k=k), Tensor("w", "n/8 k n", "f32", n=n, k=k)
    order = "".join(rng.sample("mnk", 3))
    places = {"a": x.at(m="m", k="k"), "b": w.at(n="n", k="k"),
              "c": Tensor("y", "m n", "f32", m=m, n=n).at(m="m", n="n")}  # fmt: skip
    return Nest(order, loops, "f32", TARGET, "k"), places, "n"


def pool(rng: random.Random) -> tuple[Nest, Places, str]:
    """A kernel other than a product: rows of images, all columns in a call."""
    loops = {"n": Loop(rng.randint(2, 3), (1,)), "h": Loop(rng.randint(2, 9), (1,)),
             "c": Loop(64, (rng.choice([16, 32]),))}  # fmt: skip
    sizes = {"n": loops["n"].extent, "h": loops["h"].extent, "w": 5, "c": 64}
    x, y = (Tensor(name, "n h w c", "f64", **sizes) for name in "xy")  # type: ignore[arg-type]
    order = "".join(rng.sample("nhc", 3))
    places = {"a": x.at(n="n", h="h", c="c"), "c": y.at(n="n", h="h", c="c")}
    return Nest(order, loops, "f64", TARGET), places, ""


def changes(nest: Nest, place: Access) -> tuple[int, int]:
    """How often a call needs another piece than the call before, and how many pieces there are."""
    calls = iterate(nest.order, nest.loops)
    ref = place.ref(nest.loops)
    at = sum((calls.start[name] * step for name, step in ref.steps.items()), np.zeros(len(calls)))
    return 1 + int((np.diff(at) != 0).sum()), len(np.unique(at))


@pytest.mark.parametrize("make", [product, pool])
def test_bytes_are_those_that_the_calls_touch(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(SEED)
    for _ in range(60):
        nest, places, columns = make(rng)
        for kept in (0, 1 << 60):
            monkeypatch.setattr(nest_cost, "KEPT", kept)
            found = cost(nest, places, 1, columns=columns)
            for word, place in places.items():
                loads, pieces = changes(nest, place)
                size = place.tensor.element * np.prod(list(place.tensor.sizes.values())) / pieces
                loads = pieces if kept else loads
                loads += 2 * (loads - pieces) if word == "c" else 0
                assert found.far[word] == loads * size / FAR_BYTES, (nest.order, word, kept)
        calls = len(iterate(nest.order, nest.loops))
        assert found.calls == calls * CALL_CYCLES
        total = found.multiply + found.calls + found.near + sum(found.far.values())
        assert found.cycles == total and (found.near > 0) == bool(columns)


def test_multiply_counts_axes_that_a_call_takes_whole() -> None:
    nest, places, _ = product(random.Random(SEED))
    m, n, k = (nest.loops[name].extent for name in "mnk")
    rates, lanes = TARGET.rates, 16
    assert cost(nest, places, 1).multiply == m * n * k / (lanes * rates.fma)
    whole = Nest("m", {"m": nest.loops["m"]}, "f32", TARGET)
    places = {"a": places["a"].tensor.at(m="m"), "b": places["b"].tensor.at(),
              "c": places["c"].tensor.at(m="m")}  # fmt: skip
    assert cost(whole, places, 1).multiply == m * n * k / (lanes * rates.fma)


def test_threads_take_whole_iterations() -> None:
    loops = {"m": Loop(48, (16,)), "n": Loop(64, (32,))}
    x, y = Tensor("x", "m", "f32", m=48), Tensor("y", "m n", "f32", m=48, n=64)
    places = {"a": x.at(m="m"), "c": y.at(m="m", n="n")}
    found = [cost(Nest(order, loops, "f32", TARGET), places, threads).calls / CALL_CYCLES
             for order, threads in (("Mn", 1), ("Mn", 2), ("Mn", 8), ("MN", 2), ("MN", 4))]
    assert found == [6, 4, 2, 3, 2]


def test_windows_share_places() -> None:
    """3 taps in steps of 1 find one new place a result, in steps of 2 two; those of 5, three."""
    for step, new in ((1, 1), (2, 2), (5, 3)):
        x = Tensor("x", "h c", "f32", h=100, c=16)
        y = Tensor("y", "h c", "f32", h=8, c=16)
        loops = {"h": Loop(8, (1,)), "r": Loop(3, (3,))}
        places = {"a": x.at(h=[("h", step), "r"]), "c": y.at(h="h")}
        found = cost(Nest("h", loops, "f32", TARGET), places, 1, windows="r")
        assert found.far["a"] == 8 * new * 16 * 4 / FAR_BYTES


def test_steps_of_tables_are_the_least() -> None:
    x = Tensor("x", "h c", "f32", h=100, c=16)
    place = x.at(h=[("p", np.array([40, 0, 4])), 3, ("r", 2)], c="c").also(h="s")
    assert place.steps("h") == {"p": 4, "r": 2, "s": 1} and place.steps("c") == {"c": 1}


def test_repeated_letters_are_blocks_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nest_cost, "KEPT", 0)
    loops = {"m": Loop(64, (32, 8)), "n": Loop(64, (16,))}
    x, y = Tensor("x", "m", "f32", m=64), Tensor("y", "m n", "f32", m=64, n=64)
    nest = Nest("mnm", loops, "f32", TARGET)
    found = cost(nest, {"a": x.at(m="m"), "c": y.at(m="m", n="n")}, 1)
    assert isinstance(found, Cost) and found.calls == 2 * 4 * 4 * CALL_CYCLES
    assert found.far["a"] == changes(nest, x.at(m="m"))[0] * 8 * 4 / FAR_BYTES


def test_merged_axes() -> None:
    """Places of merged axes are those of the axes; gaps and blocks cannot be merged."""
    sizes: dict[str, Any] = {"n": 2, "h": 3, "w": 4, "c": 5}
    x = Tensor("x", "n h w c", "f32", **sizes)
    row = x.merged("n", "h", "w")
    assert row is not None and row.sizes == {"n": 1, "h": 1, "w": 24, "c": 5}
    assert row.offset(w=23, c=4) == x.offset(n=1, h=2, w=3, c=4)
    wide = Tensor("x", "n h w c", "f32", strides={"w": 9, "h": 36, "n": 120}, **sizes)
    assert wide.merged("n", "h", "w") is None
    rows = wide.merged("h", "w")
    assert rows is not None and rows.offset(n=1, w=11) == wide.offset(n=1, h=2, w=3)
    one = Tensor("x", "n h w c", "f32", strides={"h": 7}, n=2, h=1, w=4, c=5)
    assert one.merged("n", "h", "w") is not None, "no step is made along an axis of one"
    assert Tensor("x", "h/2 w h", "f32", h=4, w=4).merged("h", "w") is None
    assert x.like("y", "c n h w").strides == {"c": 24, "n": 12, "h": 4, "w": 1}


def test_a_loop_that_is_missing() -> None:
    nest, places, _ = product(random.Random(SEED))
    with pytest.raises(ValueError, match="windows='q': 'q' is not in loops"):
        cost(nest, places, 1, windows="q")
    with pytest.raises(TypeError, match="nest="):
        cost(places, places, 1)  # type: ignore[arg-type]
