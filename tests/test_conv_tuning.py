"""How a convolution's passes are cut: legal choices, every candidate against float64, the same bits
on any number of threads, and measured winners in a file.

Not here: the passes over all options (test_convolution).
"""

from __future__ import annotations

import json
import os
import pty
import random
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_cases import SEED
from test_convolution import HERE, Reference, check, stored

from jitgen import Convolution
from jitgen.primitives.conv import choosing, cost as conv_cost, layouts, streams
from jitgen.primitives.conv.layouts import Choice
from jitgen.primitives.layers.convolution import PASSES
from jitgen.primitives.nest import tuning

needs_here = pytest.mark.skipif(not HERE, reason="no target runs on this CPU")
ROOT = Path(__file__).resolve().parent.parent
#: batch, in_channels, size, out_channels, kernel and more: rows, one long row, lanes of output
#: channels, few channels, groups, strides of which pixels are copied
LAYERS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((4, 40, 8, 8, 70, 3), {"padding": 1}),
    ((4, 40, 8, 8, 70, 1), {}),
    ((4, 70, 8, 8, 30, 1), {}),
    ((2, 3, 18, 18, 40, 7), {"padding": 3, "stride": 2}),
    ((4, 12, 9, 9, 20, 3), {"groups": 2, "stride": 2}),
    ((4, 36, 9, 9, 200, 1), {"stride": 2}),
]


def passes(layer: Convolution, r: Reference) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Name, result and expected result of all passes."""
    x, dy = (stored(layer, r.data[name]) for name in ("x", "dy"))
    y = layer.forward(x, r.data["w"], r.data["b"])
    dx = layer.backward_data(dy, layer.pack_weights(r.data["w"]))
    dw, db = layer.backward_weights(dy, x)
    assert db is not None
    return [("y", y, r.y), ("dx", dx, r.dx), ("dw", dw, r.dw), ("db", db, r.db)]


def all_candidates(layer: Convolution, which: str) -> list[Choice]:
    return conv_cost.candidates(*_how(layer, which))


def _how(layer: Convolution, which: str) -> Any:
    conv, product = streams.subject(layer.conv, which)
    return conv, which, product


@needs_here
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_every_candidate_computes_the_same(number: int, layout: str) -> None:
    sizes, more = LAYERS[number]
    layer = Convolution(*sizes, layout=layout, threads=2, **more)
    r = Reference(layer, SEED)
    seen = set()
    for which, names in zip(PASSES, (("y",), ("dx",), ("dw", "db")), strict=True):
        for choice in all_candidates(layer, which):
            other = Convolution(*sizes, layout=layout, threads=2, **more)
            other._choices[which] = choice
            for name, got, exact in passes(other, r):
                if name in names:
                    check(other, name, got, exact, r.bound)
            seen.add(choice.copies)
    assert {1, 2} <= seen, "copies of dw were not tried"


@needs_here
@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_any_number_of_threads_gives_the_same_bits(number: int) -> None:
    """With both schemes of the update, in whatever order the cost function then prefers."""
    sizes, more = LAYERS[number]
    first = Convolution(*sizes, **more)
    found = all_candidates(first, "backward_weights")
    conv, _, product = _how(first, "backward_weights")
    assert {1, 2} <= {c.copies for c in found}
    for copies in sorted({c.copies for c in found}):
        same = next(c for c in found if c.copies == copies)
        results = []
        for threads in (1, 2, 3, 5):
            layer = Convolution(*sizes, threads=threads, layout="nhwc", **more)
            layer._choices["backward_weights"] = min(
                (replace(same, order=c.order) for c in found),
                key=lambda c: conv_cost.cost(conv, product, c, threads),
            )
            results.append(passes(layer, Reference(layer, SEED)))
        for other in results[1:]:
            for (name, one, _), (_, two, _) in zip(results[0], other, strict=True):
                np.testing.assert_array_equal(one, two, err_msg=f"{name}, {copies} copies")


@needs_here
def test_blocks_do_not_depend_on_the_number_of_threads() -> None:
    for sizes, more in LAYERS:
        found = [
            [layer.choice(which) for which in PASSES]
            for layer in (Convolution(*sizes, threads=t, **more) for t in (1, 2, 3, 8))
        ]
        for choices in zip(*found, strict=True):
            assert len({(c.pixels, c.channels, c.copies) for c in choices if c}) == 1


@needs_here
def test_orders_and_blocks_of_the_caller() -> None:
    """Any legal order, with curves and barriers, and any blocks."""
    rng = random.Random(SEED)
    for i in range(40):
        sizes, more = rng.choice(LAYERS)
        layer = Convolution(*sizes, **more)
        order, blocks = {}, {}
        for which in PASSES:
            names = conv_cost.letters(_how(layer, which)[0], which)
            sums = conv_cost.SUMS[names]
            shared = rng.sample(sorted(set(names) - set(sums)), rng.randint(1, 3))
            rest = rng.sample(sorted(set(names) - set(shared)), len(names) - len(shared))
            cut = rng.randint(0, len(rest))
            middle = "".join(shared).upper()
            if len(middle) == 2 and rng.random() < 0.5:
                middle = f"[{middle}]"
            bar = "|" if cut and rng.random() < 0.3 else ""
            order[which] = "".join(rest[:cut]) + bar + middle + "".join(rest[cut:])
            blocks[which] = rng.randint(1, 60), rng.randint(1, 60)
        layer = Convolution(
            *sizes, threads=rng.randint(1, 3), layout=rng.choice(["nchw", "nhwc"]), order=order,
            blocks=blocks, **more,
        )  # fmt: skip
        assert [layer.choice(w).order for w in PASSES] == list(order.values())
        r = Reference(layer, SEED + i)
        for name, got, exact in passes(layer, r):
            check(layer, name, got, exact, r.bound)


@needs_here
def test_stream_tells_what_was_asked_for() -> None:
    layer = Convolution(
        2, 40, 8, 8, 70, 3, order="NKgchw", blocks=(4, 16), algorithm="direct", threads=2
    )
    assert "order 'NKgchw'" in layer.stream("forward").text()
    assert "c 0..40 by (16,)" in layer.stream().text()
    assert "weight gradient by tap" in layer.stream("backward_weights").text()
    with pytest.raises(ValueError, match="name='update' is not one of"):
        layer.stream("update")
    with pytest.raises(ValueError, match="which='update' is not one of"):
        layer.choice("update")


@needs_here
@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"blocks": (4,)}, ValueError, r"blocks=\(4,\) is no pair of sizes"),
        ({"blocks": (4, 0)}, ValueError, r"blocks\[1\]=0"),
        ({"blocks": {"update": (4, 4)}}, ValueError, "blocks: pass='update' is not one of forward"),
        ({"order": "NGKch"}, ValueError, "order='NGKch' does not name each of n g k c h w once"),
        ({"order": "NGKchww"}, ValueError, "once"),
        ({"order": "NGKCHW"}, ValueError, r"order='NGKCHW': threads cannot share a sum \(C\)"),
        ({"order": "NgKchw"}, ValueError, "parallel letters must stand together"),
        ({"order": "N-GKchw"}, ValueError, "order='N-GKchw'"),
        ({"order": 3}, TypeError, "order=3 is no str"),
        ({"order": {"backward_weights": "XGKCRSP"}}, ValueError, "threads cannot share a sum"),
        ({"order": {"backward_weights": "XCnpk"}}, ValueError, "x g k c r s p once"),
    ],
)
def test_bad_choices(how: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Convolution(2, 40, 8, 8, 70, 3, **how)


@needs_here
def test_depthwise_has_no_choice() -> None:
    with pytest.raises(ValueError, match="forward of a depthwise convolution has none"):
        Convolution(1, 40, 8, 8, 40, 3, groups=40, order="NGKchw")
    assert Convolution(1, 40, 8, 8, 40, 3, groups=40, tune=True).choice("forward") is None


@needs_here
def test_cost_knows_balance_and_reuse() -> None:
    """The terms point the right way: the slowest thread, weights read again, results in pieces."""
    layer = Convolution(1, 64, 28, 28, 128, 3, padding=1, threads=1)
    conv, _, product = _how(layer, "forward")
    cost = lambda order, depth, threads: conv_cost.cost(  # noqa: E731
        conv, product, Choice(order, 28, depth), threads
    )
    assert cost("NGKchw", 64, 4) > 1.8 * cost("NGKHcw", 64, 4)  # one image, two panels: 2 threads
    assert cost("NGKHcw", 64, 4) < 0.3 * cost("NGKHcw", 64, 1)
    wide = Convolution(1, 512, 28, 28, 2048, 3, padding=1, threads=1)
    conv, _, product = _how(wide, "forward")
    assert cost("NHGKcw", 64, 1) > cost("NGKchw", 64, 1)  # all weights again for each row
    assert cost("NGKchw", 16, 1) > cost("NGKchw", 64, 1)  # results wait four times as often


# ---- measured winners ---------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "folder" / "tuned.json"
    monkeypatch.setenv("JITGEN_TUNE_FILE", str(path))
    monkeypatch.setattr(tuning, "_warned", set())
    return path


def speed(value: int) -> float:
    return abs(value - 3) + 1.0


CANDIDATES = {str(value): value for value in range(9)}


def test_the_fastest_wins_and_is_remembered(file: Path) -> None:
    asked: list[int] = []

    def seconds(value: int) -> float:
        asked.append(value)
        return speed(value)

    assert tuning.tuned("key", CANDIDATES, seconds) == 3
    assert set(asked) == set(range(9)) and asked.count(3) == tuning.ROUNDS
    content = json.loads(file.read_text())
    assert list(content["winners"].values()) == ["3"]
    asked.clear()
    assert tuning.tuned("key", CANDIDATES, seconds) == 3
    assert not asked
    # another key, another winner, both kept
    assert tuning.tuned("more", CANDIDATES, lambda value: -value) == 8
    assert sorted(json.loads(file.read_text())["winners"].values()) == ["3", "8"]
    # the user's word counts, if it names a candidate
    content["winners"] = dict.fromkeys(content["winners"], "5")
    file.write_text(json.dumps(content))
    assert tuning.tuned("key", CANDIDATES, seconds) == 5
    with pytest.raises(ValueError, match=r"candidates=\{\} is empty"):
        tuning.tuned("key", {}, seconds)


def test_where_the_file_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JITGEN_TUNE_FILE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert tuning.path() == "/somewhere/jitgen/tuned.json"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no JSON"), (b"\xff\x00", "no JSON"), (b"[" * 100_000, "no JSON"),
        (b'{"format": "jitgen winners 1", "winners"', "no JSON"),
        (b"[]", "format"), (b"{}", "format"), (b'{"format": 1, "winners": {}}', "format"),
        (b'{"format": "jitgen winners 1", "winners": []}', "format"),
        (b'{"note": "a file of another program"}', "format"),
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_file_is_left_alone(file: Path, content: bytes, why: str) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.warns(RuntimeWarning, match=f"is ignored .*{why}"):
        assert tuning.tuned("key", CANDIDATES, speed) == 3
    assert file.read_bytes() == content


def test_names_that_are_no_candidates_are_replaced(file: Path) -> None:
    tuning.tuned("key", CANDIDATES, speed)
    good = file.read_text()
    for bad in ('"77"', '"__import__"', "12", "null", '["3"]'):
        file.write_text(good.replace('"3"', bad))
        tuning._warned.clear()
        if bad.startswith('"'):
            with pytest.warns(RuntimeWarning, match="names no candidate"):
                assert tuning.tuned("key", CANDIDATES, speed) == 3
        else:
            assert tuning.tuned("key", CANDIDATES, speed) == 3
        assert file.read_text() == good


def test_files_that_cannot_be_used(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.parent.mkdir()
    os.mkfifo(file)
    with pytest.warns(RuntimeWarning, match="it is no regular file"):
        assert tuning.tuned("key", CANDIDATES, speed) == 3
    file.unlink()
    file.mkdir()
    with pytest.warns(RuntimeWarning, match="is ignored .*directory"):
        assert tuning.tuned("key", CANDIDATES, speed) == 3
    file.rmdir()
    file.write_text("{}")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    if os.getuid():
        with pytest.warns(RuntimeWarning, match="it belongs to user"):
            assert tuning.tuned("key", CANDIDATES, speed) == 3
    monkeypatch.undo()
    # a folder that cannot be made
    monkeypatch.setenv("JITGEN_TUNE_FILE", f"{file}/deeper/tuned.json")
    with pytest.warns(RuntimeWarning, match="tuning: "):
        assert tuning.tuned("key", CANDIDATES, speed) == 3


WRITER = """
import sys
from jitgen.primitives.nest import tuning
for i in range(25):
    tuning.tuned(f"{sys.argv[1]} {i}", {"a": 1, "b": 2}, lambda value: value)
"""


def test_processes_may_write_at_once(file: Path) -> None:
    """None loses what another wrote."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(i)], env=environment, cwd=ROOT)
        for i in range(4)
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0] * 4
    winners = json.loads(file.read_text())["winners"]
    assert len(winners) == 100 and set(winners.values()) == {"a"}
    assert {path.name for path in file.parent.iterdir()} == {"tuned.json", "tuned.json.lock"}


def test_a_bar_on_a_terminal_only(file: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    tuning.tuned("key", CANDIDATES, speed)
    captured = capfd.readouterr()
    assert captured.err == "" and captured.out == ""
    master, slave = pty.openpty()
    with open(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        tuning.tuned("other", CANDIDATES, speed)
        terminal.flush()
        # what was written arrives in pieces
        shown = ""
        while "21/21" not in shown or not shown.endswith(" \r"):
            shown += os.read(master, 1 << 16).decode()
    os.close(master)
    assert "tuning [" in shown and "20/21" in shown


@needs_here
@pytest.mark.parametrize("faster", ["winograd", "direct"])
def test_algorithms_are_measured_too(
    faster: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless one is asked for."""

    def seconds(conv: layouts.Conv, which: str, choice: Choice) -> float:
        return 1.0 + ((choice == layouts.WINOGRAD) != (faster == "winograd"))

    monkeypatch.setattr(choosing, "seconds", seconds)
    assert set(Convolution(1, 4, 8, 8, 4, 3, tune=True).algorithms.values()) == {faster}
    winners = json.loads(file.read_text())["winners"].values()
    assert ("winograd" in winners) == (faster == "winograd")
    for asked in ("direct", "winograd"):
        layer = Convolution(1, 4, 8, 8, 4, 3, tune=True, algorithm=asked)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert set(layer.algorithms.values()) == {asked}



@needs_here
def test_tuned_layers(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured once; the results are right; the file says how each pass is cut."""
    sizes, more = LAYERS[0]
    more = {**more, "algorithm": "direct"}
    layer = Convolution(*sizes, tune=True, threads=2, **more)
    r = Reference(layer, SEED)
    for name, got, exact in passes(layer, r):
        check(layer, name, got, exact, r.bound)
    winners = json.loads(file.read_text())["winners"]
    assert len(winners) == 3 and all("threads 2" in key for key in winners)

    def fail(*_: Any) -> float:
        raise AssertionError("measured again")

    monkeypatch.setattr(streams, "seconds", fail)
    again = Convolution(*sizes, tune=True, threads=2, **more)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [again.choice(w) for w in PASSES] == [layer.choice(w) for w in PASSES]
    assert {str(layer.choice(w)) for w in PASSES} == set(winners.values())
    with pytest.raises(AssertionError, match="measured again"):
        Convolution(*sizes, tune=True, threads=1, **more).choice("forward")
