"""Sequences of different lengths: how many steps are executed, and that this changes no result.

The count is read from the words that the driver replays. Native targets only. Not here: random
layers with lengths beside everything else (test_recurrent, test_recurrent_streams).
"""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from random_cases import SEED
from recurrent_cases import Problem, poison_empty, random_problem
from rig import count

from jitgen import Lstm
from jitgen.primitives.nest import limits
from jitgen.primitives.nest.stream import Stream
from jitgen.run import cpu
from jitgen.run.replay import BARRIER, END, FIRST_KIND
from jitgen.run.team import Team

HERE = [name for name, why in cpu.targets().items() if not why]
pytestmark = pytest.mark.skipif(not HERE, reason="no target runs on this CPU")
each_target = pytest.mark.parametrize("target", HERE)
each_cell = pytest.mark.parametrize(("kind", "reset"), [
    ("lstm", "after"), ("gru", "after"), ("gru", "before"), ("rnn", "after"),
])  # fmt: skip
each_direction = pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])


@pytest.fixture(autouse=True)
def small_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads share also the work of a test, and what a layer allocates is NaN at first."""
    monkeypatch.setitem(limits.WORK_PER_THREAD, "recurrent", 1)
    poison_empty(monkeypatch)


def lengths_of(rng: random.Random, batch: int, steps: int) -> dict[str, list[int]]:
    """Lengths of every kind by name."""
    some = [rng.randint(0, steps) for _ in range(batch)]
    return {
        "random": some, "falling": sorted(some, reverse=True), "rising": sorted(some),
        "one long": [steps if n == batch // 2 else min(1 + n % 2, steps) for n in range(batch)],
        "short": [rng.randint(0, -(-steps // 3)) for _ in range(batch)],
        "equal": [-(-steps // 2)] * batch, "full": [steps] * batch, "empty": [0] * batch,
    }  # fmt: skip


# ---- steps that are executed --------------------------------------------------------------------


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Stream, Sequence[np.ndarray]]]:
    """The streams that ran with flags, each with the words that its threads replayed."""
    made: list[tuple[Stream, Sequence[np.ndarray]]] = []
    found: list[tuple[Stream, Sequence[np.ndarray]]] = []
    choose, call = Stream.chosen, Team.__call__

    def chosen(stream: Stream, flags: np.ndarray) -> list[np.ndarray]:
        made.append((stream, choose(stream, flags)))
        return list(made[-1][1])

    def replay(team: Team, bases: Any, slices: Any = None) -> None:
        if slices is not None:
            stream, words = made.pop()
            assert all(one is two for one, two in zip(slices, words, strict=True))
            found.append((stream, slices))
        call(team, bases, slices)

    monkeypatch.setattr(Stream, "chosen", chosen)
    monkeypatch.setattr(Team, "__call__", replay)
    return found


def cells(
    stream: Stream, words: np.ndarray, titles: set[str], word: str
) -> tuple[list[int], int]:
    """Offsets of `word` in the calls of the parts so named, and the number of barriers."""
    kinds = {k for calls in stream.parts if calls.part.title in titles for k in calls.kind.tolist()}
    numbers, at, offsets, barriers = words.tolist(), 0, [], 0
    while numbers[at] != END:
        kind, repeats = numbers[at : at + 2]
        at += 2
        if kind == BARRIER:
            barriers += 1
            continue
        names = [w.name for w in stream.calls[kind - FIRST_KIND].words]
        for _ in range(repeats):
            if kind in kinds:
                offsets.append(numbers[at + names.index(word)])
            at += len(names)
    assert at + 2 == len(numbers)
    return offsets, barriers


@each_cell
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (5, 2), (40, 1), (40, 2)])
def test_executed_steps(
    kind: str, reset: str, direction: str, batch: int, threads: int, replayed: list[Any]
) -> None:
    """Every block of rows as often as its longest sequence has steps, once for each panel of units;
    barriers of those steps alone."""
    rng = random.Random(f"{SEED} {kind} {batch}")
    steps, hidden = 11, 37
    for name, lengths in lengths_of(rng, batch, steps).items():
        problem = random_problem(
            rng, HERE[0], 20, threads, kind=kind, reset=reset, direction=direction, batch=batch,
            steps=steps, features=7, hidden=hidden, lengths=False,
        )  # fmt: skip
        problem = replace(problem, lengths=np.array(lengths))
        blocks = -(-batch // 12)
        rows = -(-batch // blocks)
        falling = sorted(lengths, reverse=True)
        falling[0] = max(falling[0], 1)  # one step is always done
        own = falling[::rows]
        layer = problem.layer.layer
        for training in (False, True):
            problem.forward(training)
            (stream, slices) = replayed.pop()
            titles, halves = {kind}, 1
            if kind == "gru" and reset == "before":
                titles, halves = {"gru_before_output"}, 2
            done: Counter[tuple[int, int]] = Counter()
            waits = []
            for words in slices:
                offsets, barriers = cells(stream, words, titles, "residual")
                done.update(divmod(at // hidden, batch) for at in offsets)
                waits.append(barriers)
            panels = -(-hidden // layer.width)
            expected = {(t, b * rows): panels for b, n in enumerate(own) for t in range(n)}
            assert done == expected, (name, training, problem.text)
            # one before each phase but the stream's first
            plain = [calls.part.order != "t|UN" for calls in stream.parts]
            first = plain[0] or direction == "forward" or falling[0] == steps
            phases = sum(plain) + halves * falling[0] - first
            assert set(waits) == {phases * (threads > 1)}, problem.text
            assert not replayed
        problem.backward()
        (stream, slices) = replayed.pop()
        wide = layer.gates * hidden
        title = "gru_before_backward_output" if halves == 2 else f"{kind}_backward"
        done = Counter()
        for words in slices:
            offsets, _ = cells(stream, words, {title}, "c")
            # gradients of gate 0, or 1 where that one comes later
            done.update((at // wide // batch, at // wide % batch) for at in offsets)
        # in reverse, the gradient passes a step on behind the last one
        last = direction == "reverse"
        expected = {
            (t, b * rows) for b, n in enumerate(own)
            for t in range(min(steps, n + (last and n > 0)))
        }  # fmt: skip
        assert set(done) == expected, (name, problem.text)
        assert len(set(done.values())) == 1, problem.text
        # the gradient of x: whole steps where there is one block of rows
        done = Counter()
        for words in slices:
            offsets, _ = cells(stream, words, {"multiply blocks"}, "c")
            done.update(divmod(at // 7, batch) for at in offsets if at % 7 == 0)
        stride = layer.piece if blocks == 1 else 1
        expected = {(t, b * rows): 1 for b, n in enumerate(own) for t in range(0, n, stride)}
        assert done == expected, (name, problem.text)


# ---- results ------------------------------------------------------------------------------------


def poisoned(problem: Problem) -> None:
    """Leave NaN in everything that the layer keeps from one pass to the next; NaN where x and dy
    do not matter."""
    x, dy, steps = problem.arrays["x"], problem.gradients["dy"], len(problem.arrays["x"])
    odd = replace(
        problem, arrays={**problem.arrays, "x": np.full_like(x, np.nan)},
        lengths=np.full_like(problem.lengths, steps), text="all NaN",
    )  # fmt: skip
    for training in (False, True):
        assert not np.isfinite(odd.forward(training)[0]).any()
    odd.backward()
    behind = np.arange(steps)[:, None] >= problem.lengths
    for array in (x, dy):
        array[behind] = np.nan


@each_target
@each_cell
@each_direction
def test_results(target: str, kind: str, reset: str, direction: str) -> None:
    """Lengths of every kind, with NaN wherever nothing should look, on 1, 2 and 3 threads:
    float64's results."""
    rng = random.Random(f"{SEED} {target} {kind} {reset} {direction}")
    for batch, steps in ((1, 70), (3, 33), (17, 9), (40, 6)):
        some = list(lengths_of(rng, batch, steps).items())
        rng.shuffle(some)
        for (name, lengths), threads in zip(some, (1, 2, 3, 1), strict=False):
            problem = random_problem(
                rng, target, 12, threads, kind=kind, reset=reset, direction=direction,
                batch=batch, steps=steps, lengths=True,
            )  # fmt: skip
            text = f"{name} {lengths}, {problem.text}"
            problem = replace(problem, lengths=np.array(lengths), text=text)
            poisoned(problem)
            problem.check()
            count.count(target, "recurrent layers", 3)


@each_target
def test_the_order_of_sequences_does_not_matter(target: str) -> None:
    """Sequences in another order: the same bits in another order, and the same sums."""
    rng = random.Random(f"{SEED} {target}")
    for _ in range(20):
        problem = random_problem(rng, target, 20, rng.choice([1, 2]), lengths=True, batch=15)
        order = np.argsort(-problem.lengths, kind="stable")
        given = {**problem.arrays, **problem.gradients}
        for name in given.keys() & {"x", "dy", "h0", "c0", "dh", "dc"}:
            if given[name] is not None:
                given[name] = np.ascontiguousarray(given[name][..., order, :])
        again = replace(
            problem, arrays={n: given[n] for n in problem.arrays}, lengths=problem.lengths[order],
            gradients={n: given[n] for n in problem.gradients},
        )  # fmt: skip
        mine, theirs = ([*p.forward(True), *p.backward()] for p in (problem, again))
        names = ["y", "h", "c"][: len(mine) - len(problem.names)] + problem.names
        for name, one, two in zip(names, mine, theirs, strict=True):
            if name in ("y", "h", "c", "x", "h0", "c0"):
                one = one[..., order, :]
            np.testing.assert_array_equal(one, two, err_msg=f"{name}: {problem.text}")


def test_lengths_of_any_integer_type() -> None:
    """Unsigned ones too, of which a negative one is none."""
    layer = Lstm(3, 4, 5, 6, threads=1)
    rng = np.random.default_rng(SEED)
    x, w, r, b = (rng.standard_normal(layer.shapes[n]).astype(np.float32) for n in "xwrb")
    expected = layer.forward(x, w, r, b, lengths=[1, 4, 2])
    for dtype in (np.uint8, np.int16, np.uint32, np.uint64):
        results = layer.forward(x, w, r, b, lengths=np.array([1, 4, 2], dtype))
        for one, two in zip(results, expected, strict=True):
            np.testing.assert_array_equal(one, two)


@each_direction
def test_only_the_steps_in_use_are_looked_at(direction: str) -> None:
    """A training pass of 3 of 300 steps asks for no memory like x again, but for its results."""
    layer: Any = Lstm(20, 300, 64, 16, direction=direction, threads=1)
    rng = np.random.default_rng(SEED)
    x, w, r, b = (rng.standard_normal(layer.shapes[n]).astype(np.float32) for n in "xwrb")
    dy = np.ones(layer.shapes["y"], np.float32)
    lengths = [1 + n % 3 for n in range(20)]

    def more(call: Any) -> int:
        """Bytes that a call needs beside its results."""
        call()
        tracemalloc.start()
        try:
            results = call()
            return tracemalloc.get_traced_memory()[1] - sum(a.nbytes for a in results)
        finally:
            tracemalloc.stop()

    for training in (False, True):
        used = more(lambda t=training: layer.forward(x, w, r, b, lengths=lengths, training=t))
        assert used < x.nbytes // 8, training
    used = more(lambda: layer.backward(dy))
    assert used < x.nbytes // 8
