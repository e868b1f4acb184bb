"""``python -m tools.bench mlp`` runs and its JSON says what it should; no speed is asserted."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import needs
import pytest

import jitgen

ROOT = Path(__file__).resolve().parent.parent


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.bench", "mlp", *arguments], cwd=ROOT, capture_output=True,
        text=True, check=False, timeout=300,
    )  # fmt: skip


def test_a_step_is_measured(tmp_path: Path) -> None:
    needs.need(jitgen.targets()["avx2"] or None, installable=False)
    file = tmp_path / "mlp.json"
    done = _run(
        "--quick", "--threads", "1", "--network", "20-30-10", "--batch", "8", "--json", str(file)
    )
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


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--network", "10"), "'10'"),
        (("--network", "10-x"), "'x'"),
        (("--batch", "0"), "--batch"),
        (("--threads", "0"), "--threads"),
    ],
)
def test_bad_options_are_named(arguments: tuple[str, ...], word: str) -> None:
    done = _run(*arguments)
    assert done.returncode == 2
    assert word in done.stderr
