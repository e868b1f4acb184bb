"""``python -m tools.bench rows`` runs and its JSON says what it should; no speed is asserted."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import needs
import numpy as np
import pytest
from bench_command import bench

import jitgen
from tools.bench.rows_peers import FUNCTIONS, Problem

TORCH = importlib.util.find_spec("torch") is not None


@pytest.mark.parametrize("cold", [False, True])
def test_every_function_is_measured(tmp_path: Path, cold: bool) -> None:
    """Ratios, GB/s of what must be moved, and the share of a copy's."""
    needs.need(jitgen.targets()["avx2"] or None, installable=False)
    file = tmp_path / "rows.json"
    # cold: sets of arrays that are not many, as the cache is not small
    size, more = ("512x8192", ["--cold", "--function", "sum"]) if cold else ("8x40", [])
    done = bench(
        "rows", "--quick", "--threads", "1", "--case", size, *more, "--json", str(file)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(file.read_text())
    (run,) = document["runs"]
    functions = ["sum"] if cold else list(FUNCTIONS)
    wanted = [(which, name) for which in ("forward", "backward") for name in functions]
    assert [(row["pass"], row["function"]) for row in run["rows"]] == wanted
    for row in run["rows"]:
        assert (row["case"], row["cold"], row["failed"]) == (size, cold, {})
        assert set(row["best"]) == {"jitgen"} | ({"torch"} if TORCH else set())
        rows, columns = map(int, size.split("x"))
        arrays = FUNCTIONS[row["function"]][1 + (row["pass"] == "backward")]
        assert row["flops"] == 4 * rows * columns * arrays
        assert row["share"]["jitgen"] == row["best"]["jitgen"] / row["copy"]
        if TORCH:
            assert row["ratio"]["torch"] == row["best"]["jitgen"] / row["best"]["torch"]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("which", ["forward", "backward"])
def test_a_wrong_result_is_found(function: str, which: str) -> None:
    """One element that is off, or missing."""
    problem = Problem(function, which, 3, 5, "f32", False)
    right = [each.copy() for each in problem.expected]
    assert problem.check(lambda: tuple(right)) is None
    right[-1][..., -1] += 1
    assert "wrong result" in str(problem.check(lambda: tuple(right)))
    right[-1][..., -1] = np.nan
    assert "wrong result" in str(problem.check(lambda: tuple(right)))


@pytest.mark.parametrize("arguments", [("--case", "3"), ("--function", "softmin")])
def test_wrong_options(arguments: tuple[str, ...]) -> None:
    done = bench("rows", *arguments)
    assert done.returncode == 2 and arguments[1] in done.stderr
