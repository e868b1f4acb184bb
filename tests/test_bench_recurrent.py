"""``python -m tools.bench lstm`` runs and its JSON says what it should; no speed is asserted."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
from bench_command import bench

import jitgen
from tools.bench import recurrent_peers as peers

TORCH = importlib.util.find_spec("torch") is not None
ONNX = all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxruntime"))
#: A Python that begins with this finds no peers
NO_PEERS = """
import importlib.util
find = importlib.util.find_spec
peers = ("torch", "onnx", "onnxruntime")
importlib.util.find_spec = lambda name, package=None: None if name in peers else find(name, package)
"""


def _measured(file: Path, *arguments: str, path: Path | None = None) -> dict[str, Any]:
    needs.need(jitgen.targets()["avx2"] or None, installable=False)
    done = bench("lstm", "--quick", "--threads", "1", *arguments, "--json", str(file), path=path)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(file.read_text())
    return result


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_case_is_measured(tmp_path: Path, cell: str) -> None:
    document = _measured(tmp_path / "cell.json", "--cell", cell, "--case", "1x3x20x40")
    (run,) = document["runs"]
    assert [row["pass"] for row in run["rows"]] == ["forward", "backward"]
    for row in run["rows"]:
        forward = row["pass"] == "forward"
        assert (row["cell"], row["case"], row["failed"]) == (cell, "1x3x20x40", {})
        gates = {"lstm": 4, "gru": 3}[cell]
        assert row["flops"] == 2 * 3 * gates * 40 * (20 + 40) * (1 if forward else 2)
        named = {"jitgen"} | ({"torch"} if TORCH else set())
        named |= {"onednn packed"} if TORCH and forward and cell == "lstm" else set()
        named |= {"onnxruntime"} if ONNX and forward else set()
        assert set(row["best"]) == named
        for name in named:
            assert 0 < row["best_ns"][name] <= row["median_ns"][name]
        for ratio, rival in row["rival"].items():
            assert row["ratio"][ratio] == row["best"]["jitgen"] / row["best"][rival]
        assert ("peer" in row["ratio"]) == (len(named) > 1)
        assert ("gbs" in row) == forward
        figures = document["summary"][f"{cell} {row['pass']}, threads: 1"]
        if len(named) > 1:
            assert figures["time of best peer / jitgen"]["least"] == row["ratio"]["peer"]
            assert figures["time of best peer / jitgen"]["where"] == "1x3x20x40"
    row = run["rows"][0]
    # w once, r at each of three steps
    read = 4 * gates_bytes(cell, 20) + 3 * 4 * gates_bytes(cell, 40)
    assert row["gbs"]["jitgen"] == pytest.approx(read / row["best_ns"]["jitgen"])
    assert row["share"]["jitgen"] == row["gbs"]["jitgen"] / row["gbs"]["loads"]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("lengths", ["short", "mixed"])
def test_lengths_are_measured(tmp_path: Path, cell: str, lengths: str) -> None:
    document = _measured(
        tmp_path / "cell.json", "--cell", cell, "--case", "3x20x20x40", "--lengths", lengths
    )
    (run,) = document["runs"]
    for row in run["rows"]:
        forward = row["pass"] == "forward"
        assert (row["case"], row["lengths"], row["failed"]) == ("3x20x20x40", lengths, {})
        steps = sum(peers.LENGTHS[lengths](3, 20))
        gates = {"lstm": 4, "gru": 3}[cell]
        assert row["flops"] == 2 * steps * gates * 40 * (20 + 40) * (1 if forward else 2)
        assert set(row["best"]) == {"jitgen", "jitgen longest"} | ({"torch"} if TORCH else set())
        assert row["ratio"]["longest"] == row["best"]["jitgen"] / row["best"]["jitgen longest"]
        assert f"{cell} {lengths} {row['pass']}, threads: 1" in document["summary"]


def gates_bytes(cell: str, features: int) -> int:
    """Elements of a weight array for 40 units."""
    return {"lstm": 4, "gru": 3}[cell] * 40 * features


def test_without_peers_it_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_PEERS)
    document = _measured(tmp_path / "cell.json", "--case", "2x3x20x40", path=tmp_path)
    (run,) = document["runs"]
    assert set(run["missing"]) == {"torch", "onnxruntime"}
    assert all("pip install 'jitgen[peers]'" in text for text in run["missing"].values())
    for row in run["rows"]:
        assert set(row["best"]) == {"jitgen"}
        assert row["ratio"] == {} and "gbs" not in row


def test_the_help_has_examples() -> None:
    assert "python -m tools.bench lstm --cell gru" in bench("lstm", "--help").stdout


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_reference_agrees_with_differences(cell: str) -> None:
    reference = {"lstm": peers.lstm, "gru": peers.gru}[cell]
    problem = peers.Problem(peers.Case(cell, 3, 4, 5, 6), "backward")
    arrays = [a.astype(np.float64) for a in (problem.x, problem.w, problem.r, problem.b)]
    dy = problem.dy.astype(np.float64)
    gradients = reference(*arrays, dy)[1:]
    rng = np.random.default_rng(0)
    for array, gradient in zip(arrays, gradients, strict=True):
        assert array.shape == gradient.shape
        for _ in range(5):
            at = tuple(int(rng.integers(size)) for size in array.shape)
            losses = []
            for step in (1e-5, -2e-5):
                array[at] += step
                losses.append(float((reference(*arrays, dy)[0] * dy).sum()))
            array[at] += 1e-5
            assert gradient[at] == pytest.approx((losses[0] - losses[1]) / 2e-5, abs=1e-7)


@pytest.mark.parametrize("lengths", ["", "mixed"])
@pytest.mark.parametrize("which", ["forward", "backward"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_wrong_result_is_found(cell: str, which: str, lengths: str) -> None:
    problem = peers.Problem(peers.Case(cell, 3, 4, 5, 6, lengths), which)
    way = peers.jitgen(problem, 1)
    right = [np.array(array) for array in way.read(way.call())]
    assert problem.check(lambda: tuple(right)) is None
    for result in right:
        good = result.flat[-1]
        for bad in (good + 1e-3 * np.abs(result).max(), np.nan):
            result.flat[-1] = bad
            assert "wrong result" in str(problem.check(lambda: tuple(right)))
        result.flat[-1] = good
    assert "wrong shapes" in str(problem.check(lambda: (right[0][:-1], *right[1:])))
