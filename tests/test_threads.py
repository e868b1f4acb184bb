"""Teams of threads: with OpenMP, without it, after a fork, under a limit, from many callers.

Not here: what they compute (test_streams); processes that end, fork or are interrupted
(test_processes).
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import needs
import numpy as np
import processes
import pytest

from jitgen.primitives.nest.gemm import Product, pack_part, product_part
from jitgen.primitives.nest.stream import Stream
from jitgen.run import cpu, loader, quota, threads

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
        product = Product(70, 90, 50, "f32", cpu.host(), size, 16, b="k n")
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
    """Threads and the barrier of the C library give the same."""
    monkeypatch.setattr(threads, "usable_openmp", lambda: None)
    Problem(4).check()


def test_after_a_fork() -> None:
    """GNU's runtime would wait forever in the child for threads that are gone."""
    assert "fine" in in_a_child(FORK)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """Of a file in this process's memory, and of a process, cut within a character."""
    body = f"""
    import ctypes, mmap
    from jitgen.run import threads
    name = os.fsencode({str(tmp_path)!r}) + b"/\\xff.bin"
    with open(name, "wb+") as file:
        file.write(b"x" * 4096)
        file.flush()
        mapped = mmap.mmap(file.fileno(), 4096)
        threads.openmp.cache_clear()
        problem.check()
    assert threads._loaded_runtimes() is not None
    ctypes.CDLL(None).prctl(15, b"\\xd0\\xb0" * 7 + b"\\xd0", 0, 0, 0)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if threads._forked_before_import() else 1)
    assert os.waitpid(pid, 0)[1] == 0
    """
    assert "fine" in in_a_child(textwrap.dedent(body))


def test_what_cannot_be_found_out_counts_as_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc, a forked process uses threads of its own."""
    monkeypatch.setattr(threads, "_loaded_runtimes", lambda: None)
    monkeypatch.setattr(threads, "_stale", False)
    monkeypatch.setattr(threads, "_sought", False)
    monkeypatch.setattr(threads, "working", set())
    threads._after_fork_in_child()
    assert threads.usable_openmp() is None
    monkeypatch.setattr(threads, "_stale", False)
    monkeypatch.setattr(threads, "_loaded_runtimes", list)
    threads._after_fork_in_child()
    assert not threads._stale


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


def test_llvms_runtime() -> None:
    """LLVM's OpenMP has the GNU interface too."""
    needs.need(*processes.missing("exit, LLVM"))
    body = (
        "from jitgen.run import threads\n"
        "assert threads.usable_openmp()\n"
        "assert ['libomp' in name for name in threads._loaded_runtimes()] == [True]\n" + FORK
    )
    assert "fine" in in_a_child(body, **processes.WITH_LLVM)


@pytest.mark.parametrize("openmp", [True, False])
def test_a_thread_that_the_system_refuses(openmp: bool) -> None:
    """Nothing is computed, nobody waits, and the next call is right."""
    body = f"""
    import resource
    from jitgen.run import threads
    if not {openmp}:
        threads._stale = True
    many = Problem(64)
    a = [np.ones(s, np.float32) for s in ((70, 50), (50, 90), (70, 90), many.elements)]
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + (80 << 20), limits[1]))
    for _ in range(3):
        try:
            many.team([loader.ffi.from_buffer(x) for x in a])
            raise SystemExit("no error")
        except OSError as error:
            assert "threads=64" in str(error) and "refuses" in str(error), error
        assert (a[2] == 1).all()
    resource.setrlimit(resource.RLIMIT_AS, limits)
    many.check()
    """
    # GNU's runtime ends the process where the system refuses a thread; so no runtime, or a limit
    limited = {"OMP_THREAD_LIMIT": "1"} if openmp else {}
    done = in_a_child("from test_threads import *\n" + textwrap.dedent(body), **limited)
    assert "fine" in done


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
    assert threads.check_threads(None) == quota.cpus() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("membership", "files", "cpus"),
    [
        # version 2: the tightest of a group and those above it; in a container the root itself
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, [1.5]),
        ("0::/gone/../x\n", {"cpu.max": "50000 100000\n"}, [0.5]),
        ("0::/\n", {"cpu.max": "max 100000\n"}, []),
        ("0::/\n", {}, []),
        # version 1, and both beside each other
        (
            "4:cpu,cpuacct:/d/1\n2:cpuset:/d\n0::/\n",
            {"cpu/d/1/cpu.cfs_quota_us": "400000", "cpu/d/1/cpu.cfs_period_us": "100000",
             "cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            [4.0],
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, [2]),
        # what cannot be read says nothing
        ("0::/\n", {"cpu.max": "many 0"}, []),
        ("0::/\n", {"cpu.max": ""}, []),
        ("nonsense", {"cpu.max": "100000 100000"}, []),
        ("", {}, []),
    ],
)  # fmt: skip
def test_quotas(
    membership: str, files: dict[str, str], cpus: list[float], tmp_path: Path
) -> None:
    """A limit of a control group counts as cores do."""
    (tmp_path / "membership").write_text(membership)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list(quota.quotas(str(tmp_path / "membership"), str(tmp_path))) == cpus


@pytest.mark.parametrize(
    ("found", "allowed", "expected"),
    [([], 8, 8), ([2.5, 6.0], 8, 3), ([0.2], 8, 1), ([64.0], 8, 8), ([1.0], 64, 1)],
)
def test_a_quota_counts_as_cores_do(
    found: list[float], allowed: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "quotas", lambda *_: iter(found))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    quota.cpus.cache_clear()
    try:
        assert threads.check_threads(None) == expected
    finally:
        quota.cpus.cache_clear()


@pytest.mark.parametrize("bad", [0, -1, 100_000, 2.0, "2", True])
def test_bad_numbers(bad: object) -> None:
    with pytest.raises((TypeError, ValueError), match="threads="):
        threads.check_threads(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", ["0", "many", "-2", "²", "9" * 5000])
def test_bad_variable(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", bad)
    with pytest.raises(ValueError, match="OMP_NUM_THREADS="):
        threads.check_threads(None)
