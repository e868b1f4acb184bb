"""``python -m tools.bench fc`` runs and its JSON says what it should; no speed is asserted."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import needs
import numpy as np
import pytest
from bench_command import bench

import jitgen
from tools.bench import fc as bench_fc, fc_peers as bench_fc_peers


def test_a_shape_is_measured(tmp_path: Path) -> None:
    needs.need(jitgen.targets()["avx2"] or None, installable=False)
    if importlib.util.find_spec("torch") is None:
        needs.need("PyTorch is not installed", installable=False)
    file = tmp_path / "fc.json"
    done = bench("fc", "--quick", "--threads", "1", "--shape", "1x40x24", "--json", str(file))
    assert done.returncode == 0, done.stderr
    document = json.loads(file.read_text())
    (run,) = document["runs"]
    assert [row["pass"] for row in run["rows"]] == ["forward", "data", "weights"]
    for row in run["rows"]:
        assert (row["n"], row["c"], row["k"], row["threads"]) == (1, 40, 24, 1)
        assert {name: why for name, why in row["failed"].items() if name != "libxsmm"} == {}
        named = {"jitgen", "jitgen packed", "torch", "onednn", "numpy"}
        assert named <= set(row["best"])
        assert all(0 < row["median"][name] <= row["best"][name] for name in row["best"])
        for ours in ("jitgen", "jitgen packed"):
            assert row["ratio"][ours] == row["best"][ours] / row["best"][row["rival"][ours]]
        assert row["gbs"]["memory"] > 0
    everything = document["summary"]["all passes, threads: 1"]
    least = min(row["ratio"]["jitgen"] for row in run["rows"])
    assert everything["jitgen / best peer"]["least"] == least
    assert everything["jitgen / best peer"]["where"] == "1x40x24"


@pytest.mark.parametrize("which", bench_fc.PASSES)
def test_a_wrong_result_is_found(which: str) -> None:
    problem = bench_fc_peers.Problem(bench_fc_peers.Shape(3, 20, 7), which)
    (call,) = bench_fc_peers.numpy_way(problem)
    assert problem.check(call) is None

    def slightly_wrong() -> tuple[np.ndarray, ...]:
        results = call()
        results[-1].reshape(-1)[-1] += 1e-2
        return results

    assert "wrong result" in str(problem.check(slightly_wrong))
    # an output that nobody wrote
    outputs = {"forward": (problem.y,), "data": (problem.dx,), "weights": (*problem.dw, problem.db)}
    assert "wrong result" in str(problem.check(lambda: outputs[which]))


def test_cold_weights_exceed_the_last_cache() -> None:
    problem = bench_fc_peers.Problem(bench_fc_peers.Shape(1, 512, 512), "forward", cold=True)
    size = bench_fc_peers.last_level_cache_bytes()
    assert sum(w.nbytes for w in problem.w) >= 2 * size
    assert len({w.ctypes.data for w in problem.w}) == len(problem.w)
