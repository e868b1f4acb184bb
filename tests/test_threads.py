"""Teams of threads: with OpenMP, without it, after a fork, under a limit, from many callers.

Not here: what they compute (test_streams).
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import needs
import numpy as np
import pytest

from jitgen import cpu, loader, threads
from primitives.gemm import Product, pack_part, product_part
from primitives.stream import Stream

ROOT = Path(__file__).resolve().parent.parent
HERE = [name for name, why in cpu.targets().items() if not why]
pytestmark = pytest.mark.skipif(not HERE, reason="no target runs on this CPU")

CHILD = """
import os, sys
sys.path[:0] = ["tests", "."]
from test_threads import Problem
problem = Problem(3)
problem.check()
{body}
print("fine")
"""
FORK = """
pid = os.fork()
if pid == 0:
    problem.check()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0, "the child failed"
problem.check()
"""


class Problem:
    """A product with a barrier in it: B is packed by all threads, then used by all."""

    def __init__(self, size: int) -> None:
        product = Product(70, 90, 50, "f32", cpu.host(), size, 16, b="rows")
        self.team = Stream(
            [pack_part(product, "b", "p"), product_part(product, "a", "p", "c")],
            ["a", "b", "c", "p"], size,
        ).team(product.target)  # fmt: skip
        self.elements = product.packed_elements

    def check(self) -> None:
        """Fresh data; sums of small integers are exact."""
        rng = np.random.default_rng()
        a, b = (rng.integers(-8, 9, s).astype(np.float32) for s in ((70, 50), (50, 90)))
        c = np.full((70, 90), np.nan, np.float32)
        p = np.full(self.elements, np.nan, np.float32)
        for _ in range(20):
            self.team([loader.ffi.from_buffer(x) for x in (a, b, c, p)])
            np.testing.assert_array_equal(c, a.astype(np.float64) @ b)


def in_a_child(body: str = "", **environment: str) -> str:
    """Output of a fresh process; a deadlock is a failure."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(body=body)], cwd=ROOT, capture_output=True, text=True,
        timeout=60, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_team(size: int) -> None:
    Problem(size).check()


def test_without_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python threads and the C library's barrier give the same."""
    monkeypatch.setattr(threads, "usable_openmp", lambda: None)
    Problem(4).check()


def test_after_a_fork() -> None:
    """GNU's runtime would wait forever in the child for threads that are gone."""
    assert "fine" in in_a_child(FORK)


def test_a_limit_on_the_team() -> None:
    """The runtime gives fewer threads than asked for."""
    assert "fine" in in_a_child(OMP_THREAD_LIMIT="2")
    assert "fine" in in_a_child(OMP_DYNAMIC="true", OMP_THREAD_LIMIT="1")


def test_many_callers_at_once() -> None:
    """One stream, called from several Python threads at the same time."""
    problem = Problem(2)
    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(problem.check) for _ in range(12)]:
            done.result()


def test_many_callers_without_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_openmp", lambda: None)
    test_many_callers_at_once()


def test_beside_pytorch() -> None:
    """PyTorch brings an OpenMP runtime of its own."""
    needs.need_torch()
    body = "import torch\nx = torch.rand(300, 300)\n" + "problem.check(); x @ x\n" * 3
    assert "fine" in in_a_child(body)


def test_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads.check_threads(3) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5,2")
    assert threads.check_threads(None) == 5
    assert threads.check_threads(1) == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads.check_threads(None) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("bad", [0, -1, 100_000, 2.0, "2", True])
def test_bad_numbers(bad: object) -> None:
    with pytest.raises((TypeError, ValueError), match="threads="):
        threads.check_threads(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", ["0", "many", "-2"])
def test_bad_variable(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", bad)
    with pytest.raises(ValueError, match="OMP_NUM_THREADS="):
        threads.check_threads(None)
