"""``python -m tools.bench mlp`` runs and its JSON says what it should; no speed is asserted."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import needs
from bench_command import bench

import jitgen


def test_a_step_is_measured(tmp_path: Path) -> None:
    needs.need(jitgen.targets()["avx2"] or None, installable=False)
    file = tmp_path / "mlp.json"
    done = bench(
        "mlp", "--quick", "--threads", "1", "--network", "20-30-10", "--batch", "8", "--json",
        str(file),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(file.read_text())
    (run,) = document["runs"]
    torch = importlib.util.find_spec("torch") is not None
    assert ("torch" in run["missing"]) == (not torch)
    assert [row["optimizer"] for row in run["rows"]] == ["sgd", "adam"]
    for row in run["rows"]:
        assert (row["network"], row["batch"], row["failed"]) == ("20-30-10", 8, {})
        # forward and both gradients of two layers, without the gradient of the images
        assert row["flops"] == 2 * 8 * (3 * (600 + 300) - 600)
        assert set(row["best"]) == {"jitgen"} | ({"torch"} if torch else set())
        if torch:
            assert row["ratio"]["jitgen"] == row["best"]["jitgen"] / row["best"]["torch"]
