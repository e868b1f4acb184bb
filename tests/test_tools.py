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
from tools import check
from tools.bench import analysis as bench_analysis

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


def test_bench_compares_predictions_with_measurements(tmp_path: Path) -> None:
    needs.need(jitgen.targets()["avx512"] or None, installable=False)
    file = tmp_path / "analysis.json"
    done = _run(
        "tools.bench", "analysis", "--random", "3", "--rounds", "5", "--sample-ms", "0.1",
        "--json", str(file),
    )  # fmt: skip
    rows = json.loads(file.read_text())["rows"]
    near = sum(abs(r["predicted"] - r["measured"]) <= 10 for r in rows)
    assert len(rows) == 3 and all(r["measured"] > 0 and r["predicted"] > 0 for r in rows)
    assert f"{near} of 3 within 10 points" in done.stdout
    # a speed decides which of the two it is
    assert done.returncode == (0 if near == 3 else 1), done.stderr


def test_the_list_of_the_comparison_is_the_published_one() -> None:
    cases = bench_analysis.the_list()
    assert len(cases) == 30 == len(set(map(str, cases)))
    assert {(c.isa, c.dtype) for c in cases} == {
        (isa, dtype) for isa in ("avx2", "avx512") for dtype in ("f32", "f64")
    }


def test_the_tree_holds_nothing_that_a_run_leaves() -> None:
    """What git ignores is not in it either."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        needs.need("this is no checkout of git", installable=False)
    asked = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not done.stdout
    ignored = subprocess.run(
        ["git", "check-ignore", ".coverage", ".coverage.host.1", "htmlcov/index.html"], cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert len(ignored.stdout.split()) == 3


def test_house_rules_hold_and_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check.house_rules() == []
    for room in ("isa", "jitgen"):
        shutil.copytree(ROOT / room, tmp_path / room, symlinks=True)
    upward = tmp_path / "isa" / "form.py"
    upward.write_text(upward.read_text() + "\nfrom jitgen import target\n")
    named = tmp_path / "jitgen" / "gemm" / "plan.py"
    named.write_text(named.read_text() + '\nNAMED = "avx2"\n')
    monkeypatch.setattr(check, "ROOT", tmp_path)
    broken = check.house_rules()
    assert "jitgen.isa.form: imports jitgen.target; imports point down only" in broken
    assert any("avx2" in sentence for sentence in broken)
