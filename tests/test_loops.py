"""Loop nests as data: every block once, in the order asked for, dealt to threads in equal pieces.

Not here: kernels (test_streams).
"""

from __future__ import annotations

import random
from math import ceil

import numpy as np
import pytest
from random_cases import SEED

from jitgen.primitives.nest.curve import curve
from jitgen.primitives.nest.loops import Loop, iterate


def covered(nest: object, loops: dict[str, Loop]) -> np.ndarray:
    """How often each point of the iteration space is covered."""
    counts = np.zeros([loop.extent for loop in loops.values()], np.int64)
    for i in range(len(nest)):  # type: ignore[arg-type]
        place = tuple(
            slice(nest.start[n][i], nest.start[n][i] + nest.size[n][i])  # type: ignore[attr-defined]
            for n in loops
        )
        counts[place] += 1
    return counts


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16, 33])
@pytest.mark.parametrize("columns", [1, 2, 5, 8, 31])
def test_the_curve_visits_every_point_and_steps_to_neighbours(rows: int, columns: int) -> None:
    points = curve(rows, columns)
    assert sorted(map(tuple, points.tolist())) == [
        (i, j) for i in range(rows) for j in range(columns)
    ]
    steps = np.abs(np.diff(points, axis=0))
    assert steps.max(initial=0) <= 1
    assert (steps.sum(axis=1) == 2).sum() <= 1  # one diagonal step where a side is odd


def test_the_order_is_the_one_asked_for() -> None:
    loops = {"n": Loop(4, (2, 1)), "k": Loop(2, (1,))}
    nest = iterate("nkn", loops)
    assert list(zip(nest.start["n"].tolist(), nest.start["k"].tolist(), strict=True)) == [
        (0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (3, 0), (2, 1), (3, 1),
    ]  # fmt: skip
    nest = iterate("knn", loops)
    assert nest.start["k"].tolist() == [0] * 4 + [1] * 4


def test_random_nests_cover_everything_once() -> None:
    rng = random.Random(SEED)
    for _ in range(150):
        loops, levels = {}, []
        for name in "mnk"[: rng.randint(1, 3)]:
            inner = rng.randint(1, 7)
            blocks = tuple(
                inner * f for f in sorted({1, *rng.sample([2, 3, 6], rng.randint(0, 1))})[::-1]
            )
            loops[name] = Loop(rng.randint(1, 40), blocks)
            levels += [name] * len(blocks)
        rng.shuffle(levels)
        parallel = rng.randint(0, len(levels))
        order = "".join(x.upper() if i < parallel else x for i, x in enumerate(levels))
        if len(levels) > 1 and levels[0] != levels[1] and parallel != 1 and rng.random() < 0.5:
            order = f"[{order[:2]}]{order[2:]}"
        threads = rng.randint(1, 5)
        nest = iterate(order, loops, threads)
        assert (covered(nest, loops) == 1).all(), (order, loops)
        assert nest.thread.min() >= 0
        assert nest.thread.max() < threads
        if parallel == 0:
            assert nest.thread.max() == 0
        for name, loop in loops.items():
            assert nest.size[name].max() <= loop.blocks[-1]


def test_pieces_are_consecutive_and_equal() -> None:
    nest = iterate("NK", {"n": Loop(64, (4,)), "k": Loop(100, (10,))}, threads=4)
    assert (np.diff(nest.thread) >= 0).all()
    assert np.bincount(nest.thread).tolist() == [40, 40, 40, 40]
    nest = iterate("n|K", {"n": Loop(3, (1,)), "k": Loop(ceil(8.0), (1,))}, threads=2)
    assert nest.thread.tolist() == [0, 0, 0, 0, 1, 1, 1, 1] * 3
    assert nest.phase.tolist() == [0] * 8 + [1] * 8 + [2] * 8


@pytest.mark.parametrize(
    ("order", "word"),
    [
        ("n", "'k'"), ("nkk", "'k'"), ("nx", "'x'"), ("n?k", "order"), ("NkN", "order"),
        ("N|k", "barrier"), ("[Nk]", "half"), ("KnN", "together"),
    ],
)  # fmt: skip
def test_bad_orders(order: str, word: str) -> None:
    loops = {"n": Loop(4, (2, 1) if order.count("n") + order.count("N") > 1 else (1,)),
             "k": Loop(4, (1,))}  # fmt: skip
    with pytest.raises(ValueError, match="order") as error:
        iterate(order, loops)
    assert word in str(error.value)


@pytest.mark.parametrize(("extent", "blocks"), [(-1, (1,)), (4, ()), (4, (0,)), (4, (3, 2))])
def test_bad_loops(extent: int, blocks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"extent=|blocks(\[0\])?="):
        Loop(extent, blocks)
