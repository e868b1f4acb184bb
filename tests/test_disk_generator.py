"""A changed generator finds none of the old one's kernels on disk; the benchmark of the cache.

Not here: damaged files (`test_disk_trust`).
"""

from __future__ import annotations

import compileall
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from child import HERE, run_child
from disk_cache import SETTLED, enabled, small, stored

import jitgen
from jitgen.run import disk
from tools import imports

ROOT = HERE.parent
folder = pytest.fixture(enabled)

REPORT = """
import sys
sys.path.insert(0, {path!r})
import jitgen, jitgen.gemm.kernel
assert jitgen.__file__.startswith({path!r}), jitgen.__file__
{settled}
calls = []
generate = jitgen.gemm.kernel.generate
jitgen.gemm.kernel.generate = lambda *a: calls.append(a) or generate(*a)
code = jitgen.brgemm(20, 20, 50, target="avx2").code
print(len(calls), code.hex())
"""


def _copy(to: Path) -> Path:
    shutil.copytree(ROOT / "jitgen", to / "jitgen", ignore=shutil.ignore_patterns("__pycache__"))
    return to


def _report(path: Path, cache: Path, bytecode: str = "") -> tuple[int, str]:
    """How many kernels a child that imports jitgen from `path` generated (0 or 1); its code.
    bytecode: where Python keeps it, if it should."""
    text = REPORT.format(path=str(path), settled=SETTLED)
    keep = {"PYTHONDONTWRITEBYTECODE": "" if bytecode else "1", "PYTHONPYCACHEPREFIX": bytecode}
    calls, code = run_child(text, JITGEN_CACHE=str(cache), **keep).split()
    return int(calls), code


def _edit_unseen(path: Path, old: str, new: str) -> None:
    """An edit that leaves a file's size and time as they were."""
    before, text = path.stat(), path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_another_generator_does_not_load_the_olds_kernels(tmp_path: Path) -> None:
    """Not even if its files have the sizes and times of the old."""
    source, cache = _copy(tmp_path / "source"), tmp_path / "cache"
    plan = source / "jitgen" / "gemm" / "plan.py"
    calls, old = _report(source, cache)
    assert calls == 1
    assert _report(source, cache) == (0, old)
    _edit_unseen(plan, "UNROLL_MACS = 60", "UNROLL_MACS = 30")
    calls, new = _report(source, cache)
    assert calls == 1 and new != old
    assert _report(source, cache) == (0, new)
    _edit_unseen(plan, "UNROLL_MACS = 30", "UNROLL_MACS = 60")
    assert _report(source, cache) == (0, old)


def test_bytecode_that_python_takes_for_new_does_no_harm(tmp_path: Path) -> None:
    """After an unseen edit Python runs the old bytecode; what that makes is not the new text's."""
    source, cache, bytecode = _copy(tmp_path / "source"), tmp_path / "cache", tmp_path / "bytecode"
    plan = source / "jitgen" / "gemm" / "plan.py"
    _, old = _report(source, cache, str(bytecode))
    assert _report(source, cache, str(bytecode)) == (0, old)
    _edit_unseen(plan, "UNROLL_MACS = 60", "UNROLL_MACS = 30")
    assert _report(source, cache, str(bytecode)) == (1, old)
    shutil.rmtree(bytecode)
    calls, new = _report(source, cache, str(bytecode))
    assert calls == 1 and new != old
    assert _report(source, cache, str(bytecode)) == (0, new)


def test_a_process_whose_sources_changed_stores_nothing(tmp_path: Path) -> None:
    """It may run the old text, and must not store it under the new one's name."""
    source, cache = _copy(tmp_path / "source"), tmp_path / "cache"
    run_child(f"""
        import sys, time, warnings
        sys.path.insert(0, {str(source)!r})
        import jitgen
        from jitgen.run import disk
        time.sleep(0.1)
        disk.UNCHANGED_SINCE = time.time()
        time.sleep(0.1)
        disk.enable({str(cache)!r})
        one = jitgen.brgemm(1, 1, 1, target="avx2").code
        with open({str(source / "jitgen" / "isa" / "avx512.py")!r}, "a") as file:
            file.write("# edited\\n")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            jitgen.brgemm(2, 2, 2, target="avx2")
            jitgen.brgemm(3, 3, 3, target="avx2")
            disk.enable({str(cache)!r})
        texts = [str(each.message) for each in caught]
        assert len(texts) == 1 and "sources changed" in texts[0], texts
        assert disk.store() is None
    """)
    assert len(stored(cache)) == 1


def test_packages_in_an_archive_and_without_sources(tmp_path: Path) -> None:
    source, cache = _copy(tmp_path / "source"), tmp_path / "cache"
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(source.rglob("*.py")):
            file.write(path, path.relative_to(source))
    _, code = first = _report(source, cache)
    assert first[0] == 1
    # the same text, so the same generator
    assert _report(archive, cache) == (0, code)
    assert compileall.compile_dir(source, quiet=2, legacy=True)
    for path in source.rglob("*.py"):
        path.unlink()
    assert _report(source, cache) == (1, code)
    assert _report(source, cache) == (0, code)


def test_without_readable_sources_there_is_no_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "SHAPING", disk.SHAPING | {"jitgen": {"missing"}})
    with pytest.warns(RuntimeWarning, match="sources of jitgen are not all there"):
        disk.enable(folder)
    assert small().code and stored(folder) == []


def test_all_modules_that_shape_code_count() -> None:
    """`kernel` calls them and imports more; all that the others import must be in the digest."""
    graph = imports.graph(ROOT)
    counted = {
        module for module in graph for package, wanted in disk.SHAPING.items()
        if module.rpartition(".")[0] == package and module not in disk.SHAPING
        if wanted is None or module.rpartition(".")[2] in wanted
    } - {"jitgen.gemm.kernel", "jitgen.gemm.operands"}  # fmt: skip
    assert {"jitgen.isa.avx512", "jitgen.emit.functions", "jitgen.gemm.plan"} <= counted
    used = imports.reached(graph, counted) - set(disk.SHAPING) - counted
    assert used == {"jitgen.moved"}  # of no code
    # the check can fail
    graph["jitgen.gemm.plan"] = {"jitgen.run.cache"}
    assert "jitgen.run.cache" in imports.reached(graph, counted)


def test_the_benchmark_measures_and_checks_that_it_does(tmp_path: Path) -> None:
    """It fails where kernels do not come from where they should: here nothing is believed."""
    if all(jitgen.targets().values()):
        pytest.skip("no target runs here")
    source = _copy(tmp_path)
    shutil.copytree(ROOT / "tools", source / "tools")
    time.sleep(2.1)  # sources younger than that are taken to be under edit
    file = tmp_path / "disk.json"
    command = [sys.executable, "-m", "tools.bench", "disk", "--rounds", "1", "--json", str(file)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=source, env=environment, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert {(row["count"], row["mode"]) for row in found["starts"]} == {
        (count, mode) for count in (1, 10, 100) for mode in ("without", "filling", "filled")
    }
    assert all(each > 0 for each in found["single_us"].values())
    disk_module = source / "jitgen" / "run" / "disk.py"
    disk_module.write_text(disk_module.read_text().replace("if not why:", "if False:"))
    time.sleep(2.1)
    done = subprocess.run(
        command, cwd=source, env=environment, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 1 and "did not come from" in done.stderr
