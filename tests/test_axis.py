"""Windows along a side of an image, cut into stretches and pieces, against what each result sees.

Not here: kernels that take an axis (`test_depthwise`), layers.
"""

from __future__ import annotations

import random

import pytest
from random_cases import SEED

from jitgen.kernels.strips import Axis
from jitgen.primitives.conv.axis import Pieces, stretches


@pytest.mark.parametrize("seed", range(200))
def test_results_of_a_stretch_see_with_the_same_taps(seed: int) -> None:
    rng = random.Random(f"{SEED} {seed}")
    first, apart = rng.randint(-6, 3), rng.choice((1, 1, 2, 3))
    taps = tuple(first + apart * t for t in range(rng.randint(1, 6)))
    axis = Axis(rng.randint(1, 20), rng.randint(1, 4), taps, rng.randint(1, 25))
    found = [(s.low, s.high) for s in stretches(axis) for _ in range(s.number)]
    wanted = []
    for o in range(axis.count):
        seen = [t for t, _ in axis.seen(o)] or [-1]
        wanted.append((seen[0], seen[-1] + 1) if seen != [-1] else (0, 0))
    assert found == wanted, axis
    edges = [s.first for s in stretches(axis)]
    assert edges == [o for o in range(axis.count) if not o or wanted[o] != wanted[o - 1]], axis


def test_many_results_are_soon_cut() -> None:
    axis = Axis(1 << 40, 2, (-1, 0, 1), 1 << 41)
    assert [s.number for s in stretches(axis)] == [1, (1 << 40) - 1]


@pytest.mark.parametrize("seed", range(200))
def test_a_piece_sees_what_its_results_do(seed: int) -> None:
    rng = random.Random(f"{SEED} pieces {seed}")
    taps = tuple(rng.sample(range(-6, 9), rng.randint(1, 5)))
    axis = Axis(rng.randint(1, 20), rng.randint(1, 3), taps, rng.randint(1, 20), rng.randint(1, 3))
    block = rng.randint(1, axis.count)
    pieces = Pieces(axis, block)
    for begin in range(0, axis.count, block):
        size = {"h": min(block, axis.count - begin)}
        size |= {name: int(values[begin]) for name, (_, values) in pieces.variants("h").items()}
        piece, first = pieces.of("h", size), int(pieces.first[begin])
        for o in range(piece.count):
            moved = [(t, at + first) for t, at in piece.seen(o)]
            assert moved == axis.seen(begin + o), (axis, begin, o)
