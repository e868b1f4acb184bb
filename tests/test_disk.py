"""The cache on disk: what comes back is what generating gives; its limit, crowds, how it is asked.

Kernels are compared as bytes; that such bytes compute the right thing is for other tests. Not here:
what must not be believed (`test_disk_trust`) and changes of the generator (`test_disk_generator`).
"""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from child import HERE, run_child
from disk_cache import SETTLED, again, disk_bytes, enabled, small, spied, stored
from random_cases import SEED, random_case

import jitgen
from jitgen.gemm.kernel import CODE_BYTES, generate
from jitgen.run import disk

ROOT = HERE.parent
TARGETS = ("avx2", "avx512", "sve128", "sve256", "sve384", "sve512", "sve2048", "neon")
folder = pytest.fixture(enabled)
loads = pytest.fixture(spied)


def test_random_kernels_come_back_as_they_were(folder: Path, loads: list[bool]) -> None:
    """Code, plan and roles, for every target, options and overrides of the plan included."""
    rng = random.Random(SEED)
    compared = 0
    for number in range(280):
        case, target = random_case(rng, 40), TARGETS[number % len(TARGETS)]
        try:
            first = case.kernel(target)
        except ValueError:
            assert case.plan or case.packed > 0, (case, target)
            continue
        second = again(lambda case=case, target=target: case.kernel(target))
        assert loads[-1], (case, target)
        fresh = generate(first.spec, first.target, tuple(sorted(case.plan)))
        assert second.code == first.code == fresh.code, (case, target)
        assert second.spec == first.spec and second.target is first.target
        assert second.plan == first.plan and second.roles == first.roles, (case, target)
        assert second.program.encode() == second.code
        compared += 1
    assert compared > 140
    assert len(stored(folder)) <= compared


def test_a_kernel_from_disk_runs(folder: Path, loads: list[bool]) -> None:
    if all(jitgen.targets().values()):
        pytest.skip("no target runs here")
    import numpy as np

    for expected in (False, True):
        kernel = again(lambda: jitgen.brgemm(3, 5, 7))
        assert loads[-1] is expected
        a, b = np.ones((2, 3, 7), np.float32), np.ones((2, 7, 5), np.float32)
        assert (kernel(a, b, np.zeros((3, 5), np.float32)) == 14).all()


def test_every_part_of_a_request_has_a_key_of_its_own(folder: Path) -> None:
    """One file for each, and none where the request is the same in other words."""
    rates = jitgen.target.Rates(fma=1, loads=1, issue=3, latency=9, l1=1 << 14, l2_bytes=5)
    slow = jitgen.Target("avx2", "avx2", 256, "x86_64", ("avx2", "fma"), rates)
    requests: list[dict[str, Any]] = [
        {}, {"dtype": "f64"}, {"lda": 9}, {"ldb": 9}, {"ldc": 9}, {"batch": "offset"},
        {"batch": "address"}, {"stride_a": 0}, {"stride_b": 0}, {"alpha": 2.0}, {"beta": 1.0},
        {"trans_a": True}, {"trans_b": True}, {"packed_b": 8}, {"epilogue": ("relu",)},
        {"epilogue": (("clip", 0.0, 6.0),)}, {"epilogue": (("clip", 0.0, 7.0),)},
        {"plan": {"k_unroll": 2}}, {"plan": {"k_unroll": 3}}, {"target": "avx512"},
        {"target": "sve256"}, {"target": slow},
    ]  # fmt: skip
    for number, request in enumerate(requests):
        again(lambda request=request: jitgen.brgemm(3, 5, 7, **{"target": "avx2", **request}))
        assert len(stored(folder)) == number + 1, request
    for same in ({"lda": 7}, {"alpha": 1}, {"epilogue": []}, {"plan": {}}):
        again(lambda same=same: jitgen.brgemm(3, 5, 7, target="avx2", **same))
    assert len(stored(folder)) == len(requests)


def test_invalid_requests_and_other_assemblers_store_nothing(folder: Path) -> None:
    with pytest.raises(ValueError, match="rows"):
        small(plan={"rows": 0})
    with pytest.raises(ValueError, match="assembler"):
        small(assembler="gas")
    assert stored(folder) == []


def test_the_limit_is_kept(folder: Path, loads: list[bool]) -> None:
    limit = disk.FOLDERS * 8192
    disk.enable(folder, limit)
    for number in range(400):
        small(float(number + 1))
        if number % 20 == 0:
            assert disk_bytes(folder) <= limit
    assert limit * 0.7 < disk_bytes(folder) <= limit
    again(lambda: small(400.0))
    assert loads[-1]


def test_what_was_used_longest_ago_goes_first(
    folder: Path, loads: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Use counts, not only storing: a kernel loaded now outlives those stored after it."""
    monkeypatch.setattr(disk, "FOLDERS", 1)
    disk.enable(folder, 4 * 4096)
    for number in range(4):
        small(float(number + 1))
    for age, path in enumerate(sorted(stored(folder))):
        os.utime(path, (0, 1e9 + age))
    oldest, second, *_ = sorted(stored(folder))
    alphas = {}
    for number in range(4):
        before = {path: path.stat().st_mtime for path in stored(folder)}
        again(lambda number=number: small(float(number + 1)))
        assert loads[-1]
        (path,) = [p for p, t in before.items() if p.stat().st_mtime != t]
        alphas[path] = float(number + 1)
    for age, path in enumerate(sorted(stored(folder))):
        os.utime(path, (0, 1e9 + age))
    again(lambda: small(alphas[oldest]))
    small(99.0)
    assert oldest.exists() and not second.exists()
    assert len(stored(folder)) == 4


def test_use_is_not_written_down_at_each_load(folder: Path, loads: list[bool]) -> None:
    small()
    (path,) = stored(folder)
    recent = path.stat().st_mtime - disk.RECENT / 2
    os.utime(path, (recent, recent))
    again(small)
    assert loads[-1] and path.stat().st_mtime == recent


def test_leftovers_go_and_strangers_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that a process left half written counts and goes; files of others' never go."""
    monkeypatch.setattr(disk, "FOLDERS", 1)
    disk.enable(folder, 2 * 4096)
    small()
    (path,) = stored(folder)
    leftover, writing = path.with_name("a.new"), path.with_name("b.new")
    stranger = path.with_name("notes.txt")
    for each in (leftover, writing, stranger):
        each.write_bytes(bytes(5000))
    for each in (leftover, stranger):
        os.utime(each, (0, 1e9))
    small(2.0)
    assert not leftover.exists() and writing.exists() and stranger.exists()


def test_kernels_too_large_for_a_folder_are_not_stored(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so push no others out."""
    monkeypatch.setattr(disk, "FOLDERS", 1)
    disk.enable(folder, 4096)
    small()
    files = stored(folder)
    kernel = jitgen.brgemm(64, 64, 64, target="avx2", epilogue=("gelu",))
    assert len(kernel.code) > 4096 and len(files) == 1 and stored(folder) == files
    monkeypatch.undo()
    assert CODE_BYTES * disk.FOLDERS < disk.LIMIT


CROWD = """
import os, random, sys, threading, warnings
import jitgen, jitgen.gemm.kernel
{settled}
warnings.simplefilter("ignore")
disk.enable({folder!r}, {limit})
number, rng = {number}, random.Random({number})
loaded, load = [], disk.Store.load
def spy(self, key, largest):
    code = load(self, key, largest)
    loaded.append(code is not None)
    return code
disk.Store.load = spy
def files():
    return [os.path.join(d, n) for d, _, names in os.walk({folder!r}) for n in names]
def damage():
    try:
        path = rng.choice(files())
        if rng.random() < 0.5:
            os.unlink(path)
        else:
            with open(path, "r+b") as file:
                file.seek(rng.randrange(60))
                file.write(bytes([rng.randrange(256)]))
    except (OSError, IndexError):
        pass
def work(seed):
    rng = random.Random(seed)
    for _ in range(150):
        shape = rng.randint(1, 3), rng.randint(1, 20), 4
        kernel = jitgen.brgemm(*shape, target="avx2")
        assert kernel.code == jitgen.gemm.kernel.generate(kernel.spec, kernel.target).code, shape
        jitgen.run.cache.KERNELS.clear()
        if number == 0 and rng.random() < 0.2:
            damage()
    done.append(seed)
done = []
threads = [threading.Thread(target=work, args=(10 * number + i,)) for i in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(done) == 3
print(sum(loaded), len(loaded))
"""


def test_many_processes_and_threads_at_once(tmp_path: Path) -> None:
    """They store, load and trim the same kernels while one of them damages and removes files, each
    under its own order of hashes; every kernel is right, and the limit holds."""
    limit = disk.FOLDERS * 4096
    folder = tmp_path / "kernels"
    children = []
    for number in range(5):
        text = CROWD.format(settled=SETTLED, folder=str(folder), limit=limit, number=number)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(number)}
        children.append(subprocess.Popen(
            [sys.executable, "-c", text], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ))  # fmt: skip
    loaded = asked = 0
    for child in children:
        out, error = child.communicate(timeout=120)
        assert child.returncode == 0, error
        counts = [int(word) for word in out.split()]
        loaded, asked = loaded + counts[0], asked + counts[1]
    # one thread may find what another has in memory
    assert asked > 5 * 3 * 100 and loaded > asked // 4
    files = stored(folder)
    assert files and all(path.suffix == ".code" for path in files)
    assert disk_bytes(folder) <= limit


ASK = """
import warnings
import jitgen
{settled}
warnings.simplefilter("error")
jitgen.brgemm(3, 5, 7, target="avx2")
store = disk.store()
print(store.directory if store else None)
"""


def _ask(home: Path, **environment: str) -> str:
    unset = {"XDG_CACHE_HOME": "", "JITGEN_CACHE": ""}
    text = ASK.format(settled=SETTLED)
    return run_child(text, HOME=str(home), **{**unset, **environment}).strip()


def test_off_unless_asked_for(tmp_path: Path) -> None:
    for asked in ("", "0"):
        assert _ask(tmp_path, JITGEN_CACHE=asked) == "None"
        assert stored(tmp_path) == [] and list(tmp_path.iterdir()) == []


def test_the_environment_asks(tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    for environment, directory in (
        ({"JITGEN_CACHE": "1"}, home / ".cache" / "jitgen"),
        ({"JITGEN_CACHE": "1", "XDG_CACHE_HOME": "relative"}, home / ".cache" / "jitgen"),
        ({"JITGEN_CACHE": "1", "XDG_CACHE_HOME": str(other)}, other / "jitgen"),
        ({"JITGEN_CACHE": str(other / "mine")}, other / "mine"),
    ):
        assert _ask(home, **environment) == str(directory)
        assert len(stored(directory)) == 1
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_word_is_no_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JITGEN_CACHE", "yes")
    monkeypatch.setattr(disk, "_decided", False)
    with pytest.warns(RuntimeWarning, match="JITGEN_CACHE=yes is ignored"):
        assert disk.store() is None


def test_enable_and_disable(folder: Path, loads: list[bool]) -> None:
    disk.disable()
    small()
    assert stored(folder) == [] and loads == []
    disk.enable(folder)
    again(small)
    assert len(stored(folder)) == 1
    for bad in (True, 1.5, "1"):
        with pytest.raises(TypeError, match="limit="):
            disk.enable(folder, bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="limit=1000"):
        disk.enable(folder, 1000)
    with pytest.raises(TypeError, match="directory="):
        disk.enable(b"folder")  # type: ignore[arg-type]
    assert disk.store() is not None
