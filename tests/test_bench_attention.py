"""``python -m tools.bench attention`` runs; its JSON says what it should. No speed is asserted."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import needs
from bench_command import bench

import jitgen


def test_a_case_is_measured(tmp_path: Path) -> None:
    needs.need(jitgen.targets()["avx2"] or None, installable=False)
    file = tmp_path / "attention.json"
    done = bench(
        "attention", "--quick", "--threads", "1", "--case", "2x3x40x16", "--queries", "16",
        "--json", str(file),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = json.loads(file.read_text())["runs"]
    torch = importlib.util.find_spec("torch") is not None
    assert ("torch" in run["missing"]) == (not torch)
    assert [row["layout"] for row in run["rows"]] == ["b h s d", "b s p h d"]
    for row in run["rows"]:
        assert (row["case"], row["queries"], row["failed"]) == ("2x3x40x16", 16, {})
        assert row["flops"] == 4 * 2 * 3 * 40 * 40 * 16
        assert row["of_bound"] > 0 and row["best_ns"]["softmax"] < row["best_ns"]["jitgen"]
        assert set(row["best"]) == {"jitgen"} | ({"torch"} if torch else set())


def test_wrong_options_are_named() -> None:
    done = bench("attention", "--case", "2x3x40")
    assert done.returncode == 2 and "--case '2x3x40' has not four sizes" in done.stderr
