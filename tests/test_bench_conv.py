"""``python -m tools.bench conv`` runs and its JSON says what it should; no speed is asserted."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import needs
import numpy as np
import pytest
from bench_command import bench

import jitgen
from tools.bench import conv_peers as peers

TABLES = {"paper": 20, "resnet50": 23, "vgg16": 9, "mobilenet": 19, "odd": 18}


def _layer(name: str) -> peers.Layer:
    (layer,) = (layer for layer in peers.layers("odd") if layer.name == name)
    return layer


def test_a_layer_is_measured(tmp_path: Path) -> None:
    needs.need(jitgen.targets()["avx2"] or None, installable=False)
    if importlib.util.find_spec("torch") is None:
        needs.need("PyTorch is not installed", installable=False)
    file = tmp_path / "conv.json"
    done = bench(
        "conv",
        "--quick", "--threads", "1", "--table", "odd", "--layer", "odd channels", "--batch", "1",
        "--json", str(file),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(file.read_text())
    (run,) = document["runs"]
    assert [row["pass"] for row in run["rows"]] == ["forward", "data", "weights"]
    for row in run["rows"]:
        assert (row["layer"], row["n"]) == ("odd channels: 17@31x29->23 3/1", 1)
        assert row["order"] == "winograd"
        assert row["flops"] == 2 * 17 * 23 * 9 * 31 * 29
        assert {name: why for name, why in row["failed"].items() if name != "onnxruntime"} == {}
        named = {"jitgen", "jitgen nhwc", "torch", "torch nhwc"}
        if row["pass"] == "forward":
            named |= {"onednn", "onednn packed", "blocked"}
        assert named <= set(row["best"])
        assert all(0 < row["median"][name] <= row["best"][name] for name in row["best"])
        for ratio, ours in (("nchw", "jitgen"), ("jitgen", "jitgen"), ("nhwc", "jitgen nhwc")):
            assert row["ratio"][ratio] == row["best"][ours] / row["best"][row["rival"][ratio]]
        theirs = max(v for name, v in row["best"].items() if not name.startswith("jitgen"))
        assert row["best"][row["rival"]["nhwc"]] == theirs
        title = f"{row['pass']}, batch 1, threads: 1"
        figures = document["summary"][title]["jitgen nhwc / best peer"]
        assert figures["least"] == row["ratio"]["nhwc"]
        assert figures["where"] == row["layer"]


def test_the_tables_are_networks() -> None:
    assert {name: len(peers.layers(name)) for name in TABLES} == TABLES
    # ResNet-50 has 53 convolutions, VGG-16 has 13, MobileNet 27
    counts = {name: sum(at.count for at in peers.layers(name)) for name in TABLES}
    assert (counts["paper"], counts["resnet50"]) == (53, 53)
    assert (counts["vgg16"], counts["mobilenet"]) == (13, 27)
    flops = {name: sum(at.count * at.flops(1) for at in peers.layers(name)) for name in TABLES}
    billions = {name: value / 2e9 for name, value in flops.items()}
    # multiplications and additions as published, fully connected layers left out
    assert billions["resnet50"] == pytest.approx(4.09, abs=0.01)
    assert billions["vgg16"] == pytest.approx(15.35, abs=0.01)
    assert billions["mobilenet"] == pytest.approx(0.568, abs=0.001)


@pytest.mark.parametrize("which", peers.PASSES)
@pytest.mark.parametrize(
    "name", ["odd channels", "AlexNet second", "dilated", "stride 3", "stride 2x1", "one row"]
)
def test_the_reference_agrees_with_loops(which: str, name: str) -> None:
    layer = _layer(name)
    problem = peers.Problem(layer, 1, which)
    x, w, dy = (a.astype(np.float64) for a in (problem.x, problem.w, problem.dy))
    found = peers.reference(layer, which, x, w, dy)
    inner, outer = layer.c // layer.groups, layer.k // layer.groups
    rng = np.random.default_rng(0)
    for _ in range(10):
        at = tuple(int(rng.integers(size)) for size in found.shape)
        total = 0.0
        for c, k, i, r, s in _places(layer, which, at, inner, outer):
            h = i[0] * layer.stride[0] + r * layer.dilation[0] - layer.padding[0]
            v = i[1] * layer.stride[1] + s * layer.dilation[1] - layer.padding[1]
            if not (0 <= h < layer.height and 0 <= v < layer.width):
                continue
            if which == "forward":
                total += x[0, c, h, v] * w[k, c % inner, r, s]
            elif which == "weights":
                total += x[0, c, h, v] * dy[0, k, i[0], i[1]]
            elif (h, v) == at[2:]:
                total += w[k, c % inner, r, s] * dy[0, k, i[0], i[1]]
        assert found[at] == pytest.approx(total, abs=1e-9)


def _places(
    layer: peers.Layer, which: str, at: tuple[int, ...], inner: int, outer: int
) -> list[tuple[int, int, tuple[int, int], int, int]]:
    """Every (channel, output channel, output pixel, tap) that an element of a result sums over."""
    taps = list(np.ndindex(*layer.kernel))
    pixels = list(np.ndindex(*layer.out))
    if which == "forward":
        group = at[1] // outer
        return [
            (c, at[1], at[2:], r, s)
            for c in range(group * inner, (group + 1) * inner) for r, s in taps
        ]  # fmt: skip
    if which == "data":
        group = at[1] // inner
        near = [
            (i, r, s) for i in pixels for r, s in taps
            if i[0] * layer.stride[0] + r * layer.dilation[0] - layer.padding[0] == at[2]
            and i[1] * layer.stride[1] + s * layer.dilation[1] - layer.padding[1] == at[3]
        ]  # fmt: skip
        features = range(group * outer, (group + 1) * outer)
        return [(at[1], k, i, r, s) for k in features for i, r, s in near]
    c = at[0] // outer * inner + at[1]
    return [(c, at[0], i, at[2], at[3]) for i in pixels]


def test_the_order_says_how_a_pass_is_computed() -> None:
    found = []
    for name, algorithm in (
        ("odd channels", None), ("odd channels", "direct"), ("stride 3", "winograd"),
    ):  # fmt: skip
        made = peers.convolution(_layer(name), 1, 1, "nhwc", algorithm)
        found.append(peers.order(made, "forward"))
    assert found[0] == "winograd"
    assert all(sorted(order.lower()) == sorted("ngkchw") for order in found[1:])


@pytest.mark.parametrize("which", peers.PASSES)
def test_a_wrong_result_is_found(which: str) -> None:
    layer = _layer("odd channels")
    problem = peers.Problem(layer, 2, which)
    right = [peers.reference(layer, which, problem.x, problem.w, problem.dy)]
    if which == "forward":
        right = [np.maximum(right[0] + problem.b[:, None, None], 0)]
    elif which == "weights":
        right.append(problem.dy.sum((0, 2, 3)))
    assert problem.check(tuple(right)) is None
    for result in right:
        good = result.flat[-1]
        for bad in (good + 1e-1, np.nan):
            result.flat[-1] = bad
            assert "wrong result" in str(problem.check(tuple(right)))
        result.flat[-1] = good
    assert "wrong shapes" in str(problem.check((right[0][..., :-1], *right[1:])))
