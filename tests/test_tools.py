"""The developers' tools run and say what they should; none of these tests asserts a speed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import needs
import pytest

import jitgen
from tools import check, mca

ROOT = Path(__file__).resolve().parent.parent


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip


def test_bench_measures_a_shape(tmp_path: Path) -> None:
    if jitgen.targets()["avx2"]:
        pytest.skip(jitgen.targets()["avx2"])
    file = tmp_path / "bench.json"
    done = _run(
        "tools.bench", "kernel", "--shape", "6x16x8", "--dtype", "f32", "--isa", "avx2",
        "--peers", "numpy", "--rounds", "5", "--sample-ms", "0.2", "--json", str(file),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = json.loads(file.read_text())["runs"][0]
    assert run["isa"] == "avx2"
    row = run["suite"]["rows"][0]
    assert (row["m"], row["n"], row["k"]) == (6, 16, 8)
    assert row["best"]["jitgen"] > 0 and row["best"]["numpy"] > 0


def test_bench_refuses_a_bad_shape() -> None:
    done = _run("tools.bench", "kernel", "--shape", "6x16")
    assert done.returncode == 2
    assert "6x16" in done.stderr


def test_mca_models_every_inner_loop() -> None:
    if not any(shutil.which(tool) for tool in mca.TOOLS):
        needs.need("llvm-mca is missing")
    done = _run("tools.mca", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {row["cpu"] for row in rows} == set(mca.CPUS)
    # a model, not a measurement: the same figure on every machine
    assert all(row["percent"] >= 95 for row in rows), rows


def test_inner_loops_are_found_for_every_target() -> None:
    for target in ("avx2", "avx512", "sve128", "sve256", "sve512"):
        loops = mca.inner_loops(jitgen.brgemm(64, 64, 64, target=target))
        assert loops
        assert all("again" in text.splitlines()[-1] for text in loops.values())


def test_house_rules_hold_and_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check.house_rules() == []
    for room in ("isa", "jitgen"):
        shutil.copytree(ROOT / room, tmp_path / room)
    upward = tmp_path / "isa" / "form.py"
    upward.write_text(upward.read_text() + "\nimport jitgen\n")
    named = tmp_path / "jitgen" / "plan.py"
    named.write_text(named.read_text() + '\nNAMED = "avx2"\n')
    monkeypatch.setattr(check, "ROOT", tmp_path)
    broken = check.house_rules()
    assert any("isa/form.py" in sentence for sentence in broken)
    assert any("avx2" in sentence for sentence in broken)
