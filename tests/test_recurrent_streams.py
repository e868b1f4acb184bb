"""Recurrent layers with their streams replayed elsewhere: SVE, AVX-512 in Bochs, guard pages.

The layer is that of the user; only where it would run a stream, the stream goes to the rig, which
puts every tensor into memory of its own between guard pages. Not here: the comparison and what is
compared (recurrent_cases).
"""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from random_cases import SEED
from recurrent_cases import poison_empty, random_problem
from rig.job import Buffer, Job, Pointers, Result
from tiers import TIERS, Tier, need

from jitgen.primitives.nest.run import Run
from jitgen.run.loader import ffi
from jitgen.run.replay import emit_replay

#: tier -> (layers, largest size): each is at least three streams, most are four to eight
AMOUNT = {
    "avx2 native": (60, 20), "avx512 native": (60, 20), "avx512 bochs": (24, 16),
    "sve128 qemu": (30, 16), "sve256 qemu": (30, 16), "sve512 qemu": (30, 16),
    "neon qemu": (30, 16),
}  # fmt: skip


class Elsewhere:
    """Takes the place of `Run.__call__`: streams of several layers, run a batch at a time.

    Each layer is used in a Python thread; when all of them wait for a stream, the tier runs these
    streams together.
    """

    def __init__(self, tier: Tier) -> None:
        self.tier = tier
        self.streams = 0
        self._changed = threading.Condition()
        self._waiting: list[tuple[Job, list[Result]]] = []
        self._alive = 0

    def all(self, uses: list[Callable[[], None]]) -> None:
        """Every use to its end; the first error is raised."""
        self._alive = len(uses)
        with ThreadPoolExecutor(len(uses)) as pool:
            futures = [pool.submit(self._one, use) for use in uses]
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: len(self._waiting) == self._alive)
                    batch, self._waiting = self._waiting, []
                if not batch:
                    break
                results = self.tier.run([job for job, _ in batch], isa=self.tier.target)
                with self._changed:
                    for (_, waiting), result in zip(batch, results, strict=True):
                        waiting.append(result)
                    self._changed.notify_all()
        for future in futures:
            future.result()

    def _one(self, use: Callable[[], None]) -> None:
        try:
            use()
        finally:
            with self._changed:
                self._alive -= 1
                self._changed.notify_all()

    def call(self, run: Run, buffers: dict[str, Any], flags: np.ndarray | None = None) -> None:
        """The stream of `run`, on copies of the tensors; which are copied back."""
        (words,) = run.stream.slices if flags is None else run.stream.chosen(flags)
        given = [buffers[name] for name in run.tensors]
        tensors = [np.frombuffer(ffi.buffer(b), np.uint8) if b != ffi.NULL else None
                   for b in given]  # fmt: skip
        with self._changed:
            self.streams += 1
            place: Any = ("start", "end")[self.streams % 2]
        # a tensor that is not there: reading it shows, writing it too
        copies = [Buffer(np.full(1, np.nan)) if t is None else Buffer(t.copy(), True, place)
                  for t in tensors]  # fmt: skip
        kind = np.float32 if run._dtype == "f32" else np.float64
        copies += [Buffer(np.zeros(n, kind), write=True) for n in run.scratch.values()]
        copies += [Buffer(array) for array in run.constants.values()]
        assert len(copies) == len(run.stream.tensors)
        code = emit_replay(run.stream.calls, run._target).code
        results: list[Result] = []
        with self._changed:
            job = Job(code, [Buffer(words), Pointers(copies), 0, 0])
            self._waiting.append((job, results))
            self._changed.notify_all()
            self._changed.wait_for(lambda: results)
        result = results[0]
        assert result.ok, result.error
        outputs = iter(result.outputs)
        for tensor, before in zip(tensors, copies, strict=False):
            if tensor is not None:
                after = next(outputs)
                # tensors may share memory: dr and its last rows, dr_n, which not all cells write
                if not np.array_equal(after, before.data):
                    tensor[...] = after


@pytest.mark.parametrize("tier", AMOUNT)
def test_replay(tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inference, training and backward of random layers, all options."""
    need(TIERS[tier])
    amount, most = AMOUNT[tier]
    rng = random.Random(f"{SEED} {tier}")
    machine = Elsewhere(TIERS[tier])
    poison_empty(monkeypatch)
    monkeypatch.setattr(Run, "__call__", lambda run, *how: machine.call(run, *how[:2]))

    def use(problem: Any) -> None:
        given = {**problem.arrays, **problem.gradients}
        before = copy.deepcopy(given)
        problem.check()
        for name, array in before.items():
            np.testing.assert_array_equal(given[name], array, f"{name} was changed: {problem.text}")

    problems = [random_problem(rng, TIERS[tier].target, most, 1) for _ in range(amount)]
    machine.all([lambda p=p: use(p) for p in problems])  # type: ignore[misc]
    assert machine.streams >= 3 * amount >= 40
