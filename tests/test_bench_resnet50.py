"""``python -m tools.bench resnet50`` runs and its JSON says what it should; no speed asserted."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import needs
import numpy as np
import pytest
from bench_command import bench

import jitgen
from examples import resnet50

ONNX = all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxruntime"))


def test_a_batch_is_measured(tmp_path: Path) -> None:
    needs.need(jitgen.targets()["avx2"] or None, installable=False)
    file = tmp_path / "resnet50.json"
    done = bench(
        "resnet50", "--quick", "--threads", "1", "--batch", "2", "--size", "64", "--json", f"{file}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(file.read_text())
    (run,) = document["runs"]
    (row,) = run["rows"]
    assert (row["n"], row["size"], row["threads"], row["failed"]) == (2, 64, 1, {})
    torch = importlib.util.find_spec("torch") is not None
    assert ("torch" in run["missing"], "onnxruntime" in run["missing"]) == (not torch, not ONNX)
    named = {"jitgen"} | ({"torch", "torch nhwc", "fused"} if torch else set())
    named |= {"onnxruntime"} if ONNX else set()
    assert set(row["best"]) == named
    for text in run["missing"].values():
        assert "pip install 'jitgen[peers]'" in text
    for name in named:
        assert 0 < row["best_ns"][name] <= row["median_ns"][name]
        assert row["best"][name] == row["flops"] / row["best_ns"][name]
    kinds = row["kinds"]
    counts = {name: kind["layers"] for name, kind in kinds.items() if name != "other"}
    assert counts == {
        "7x7/2": 1, "max pool": 1, "1x1": 17, "3x3": 13, "1x1 + residual": 16, "1x1/2": 3,
        "3x3/2": 3, "head": 2,
    }  # fmt: skip
    assert sum(kind.get("flops", 0) for kind in kinds.values()) == row["flops"]
    # 4.09 billion multiplications and additions for 224 x 224 pixels, without rounded sizes
    assert row["flops"] == pytest.approx(2 * 2 * 4.09e9 * (64 / 224) ** 2, rel=0.01)
    if ONNX:
        for name, kind in kinds.items():
            assert kind["onnxruntime"] > 0, name
        assert row["ratio"]["onnx"] == row["best"]["jitgen"] / row["best"]["onnxruntime"]
        assert document["summary"]["threads: 1"]["time of ONNX Runtime / jitgen"]["least"] == (
            row["ratio"]["onnx"]
        )


def test_the_help_has_examples() -> None:
    assert "python -m tools.bench resnet50 --quick" in bench("resnet50", "--help").stdout


def test_the_onnx_model_is_the_network() -> None:
    needs.need(None if ONNX else "ONNX Runtime is not installed", installable=False)
    from tools.bench import resnet50_peers as peers

    weights = resnet50.random_weights()
    images = np.random.default_rng(3).standard_normal((2, 64, 64, 3)).astype(np.float32)
    logits = resnet50.Resnet50(weights, 2, 64, threads=2)(images)
    theirs = peers.Onnx(weights, 2, 64, threads=2)
    assert resnet50.difference(theirs(images), logits) < 1e-4
    # the measure sees other images
    assert resnet50.difference(theirs(images[::-1]), logits) > 1e-2
