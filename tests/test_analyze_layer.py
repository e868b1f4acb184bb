"""`jitgen analyze --layer`: bounds of parts against counts by hand, bytes of caches, the command.

No test asserts a measured speed. Not here: kernels (test_analysis).
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from test_show_layer import LAYERS

import jitgen
from jitgen import Convolution, FullyConnected, cli
from jitgen.analysis import CPUS, analyze
from jitgen.analysis.routines import Touched, core_cost, touched
from jitgen.cli.layers import Progress
from jitgen.cli.terminal import BAD_ARGUMENTS, CANNOT_RUN, OK
from jitgen.kernels.dot import emit_dot
from jitgen.kernels.elementwise import emit_map
from jitgen.kernels.layout import emit_transpose
from jitgen.kernels.pooling import emit_pool
from jitgen.primitives.layers.text import layer_of
from jitgen.primitives.nest import traffic
from jitgen.primitives.nest.bounds import Model, RunBounds
from jitgen.primitives.nest.traffic import Cache, Piece, Pieces
from jitgen.run import cpu as host_cpu
from jitgen.target import parse_target

Captured = pytest.CaptureFixture[str]
#: A CPU of each target
OF = {"avx2": "znver3", "avx512": "sapphirerapids", "sve256": "neoverse-v1", "sve512": "a64fx"}


def bounds(layer: Any, name: str = "forward", cpu: str = "sapphirerapids") -> RunBounds:
    return Model(CPUS[cpu]).predict(layer.passes()[name].run)


# ---- routines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["avx2", "avx512", "sve256"])
def test_a_call_touches_what_it_reads_and_writes(name: str) -> None:
    target = parse_target(name)

    def whole(size: int) -> Touched:
        return Touched(size, size)

    assert touched(emit_map("copy", 3, 160, "f32", target)) == {"a": whole(1920), "c": whole(1920)}
    turned = emit_transpose(64, 3136, "f32", target)
    assert touched(turned) == {"a": whole(64 * 3136 * 4), "c": whole(64 * 3136 * 4)}
    # rows of 160 elements in 200
    rows = emit_map("copy", 3, 160, "f32", target, ld={"a": 200, "c": 160})
    assert touched(rows)["a"] == Touched(1920, 4 * (2 * 200 + 160))
    dot = emit_dot(32, 64, 64, "f32", target)
    assert touched(dot) == {"a": whole(256), "b": whole(8192), "c": whole(128)}
    # windows of two pixels that share one
    pool = emit_pool("max", 5, 64, (0, 64), "f32", target, step=64, ldc=64)
    assert touched(pool) == {"a": whole(6 * 256), "c": whole(5 * 256)}
    kernel = jitgen.brgemm(12, 64, 32, target=target)
    assert touched(kernel, 3) == {"a": whole(4608), "b": whole(24576), "c": whole(3072)}


@pytest.mark.parametrize(("target", "cpu"), OF.items())
def test_products_touch_what_their_shapes_say(target: str, cpu: str) -> None:
    """The bytes that are counted without a walk are those of a walk, to whole sectors."""
    for text in ("FullyConnected(20, 64, 96)", "Convolution(1, 16, 9, 9, 32, 3, padding=1, "
                 "algorithm='direct')", "Convolution(1, 16, 9, 9, 32, 3, stride=2, layout='nhwc')",
                 "Lstm(4, 3, 32, 64)"):  # fmt: skip
        run = layer_of(text, target=target, threads=1).passes()["forward"].run
        pieces, seen = Pieces(run), 0
        for calls in run.stream.parts:
            kinds, first = np.unique(calls.kind, return_index=True)
            for kind, i in zip(kinds.tolist(), first.tolist(), strict=True):
                call = run.stream.calls[kind - 2]
                if not isinstance(call.routine, jitgen.Kernel):
                    continue
                if call.routine.spec.batch == "offset":
                    continue  # a walk makes up the offsets
                walked = touched(call.routine, traffic.batch(call))
                for word, piece in pieces.of_call(calls, i):
                    assert piece.size == pytest.approx(walked[word].bytes, rel=0.1, abs=64), word
                    assert piece.span == pytest.approx(walked[word].span, rel=0.1, abs=64), word
                    seen += 1
        assert seen >= 3 or text.startswith("Conv")


def test_taps_that_overlap_are_counted_once() -> None:
    layer = Convolution(1, 16, 12, 9, 32, 3, padding=1, algorithm="direct", threads=1,
                        target="avx512")  # fmt: skip
    run = layer.passes()["forward packed"].run
    part = next(calls for calls in run.stream.parts if "taps" in calls.part.title)
    inside = int(np.flatnonzero(part.nest.start["h"] == 5)[0])
    pieces = dict(Pieces(run).of_call(part, inside))
    width = int(part.nest.size["w"][inside]) + 2
    assert pieces["a"].size == 3 * width * 16 * 4
    assert pieces["b"].size == 9 * 16 * 32 * 4
    assert pieces["c"].size == (width - 2) * 32 * 4
    assert pieces["bias"].size == 32 * 4


@pytest.mark.parametrize(("target", "cpu"), OF.items())
def test_cycles_of_a_kernel_are_those_of_its_report(target: str, cpu: str) -> None:
    kernel = jitgen.brgemm(13, 40, 33, target=target, epilogue=("bias", "relu"))
    report = analyze(kernel, cpu, 3, other_models=False)
    cost = core_cost(kernel, CPUS[cpu], "f32", 3)
    assert cost.cycles == report.bounds["core"] and cost.loaded == report.bytes_loaded
    assert cost.instructions == sum(report.executed.values())
    # an FMA is two flops of each lane
    least = kernel.flops(3) / CPUS[cpu].flops_a_cycle(4, kernel.target.vector_bits)
    assert cost.cycles >= least
    with pytest.raises(ValueError, match="target="):
        core_cost(kernel, CPUS["a64fx" if cpu != "a64fx" else "znver3"], "f32")


# ---- caches -------------------------------------------------------------------------------------


def test_a_cache_keeps_what_was_read_last() -> None:
    kept = 3 * (1 << 20) // 4
    cache = Cache(1 << 20)
    assert cache.granule == 4096 and cache.capacity == kept
    small = [Piece("w", i * 4096, 4096, 4096) for i in range(100)]
    assert [cache.read(piece) for piece in small] == [4096] * 100
    assert [cache.read(piece) for piece in small] == [0] * 100
    large = [Piece("x", i * 4096, 4096, 4096) for i in range(200)]
    # read in turns, what is larger than the cache is never there
    assert sum(cache.read(piece) for piece in large) == 200 * 4096
    assert sum(cache.read(piece) for piece in large) == 200 * 4096
    assert cache.read(small[0]) == 4096


def test_pieces_of_a_granule_are_its_bytes() -> None:
    cache = Cache(1 << 20)
    # rows one after the other, less than a granule each
    assert sum(cache.read(Piece("x", i * 256, 256, 256)) for i in range(64)) == 64 * 256
    assert sum(cache.read(Piece("x", i * 256, 256, 256)) for i in range(64)) == 0
    # windows that overlap: all of the tensor, once
    windows = [Piece("y", i * 4096, 12288, 12288) for i in range(10)]
    assert sum(cache.read(piece) for piece in windows) == 12 * 4096
    # a quarter of each row, four times
    quarters = [Piece("z", i * 64, 16384, 65536 - 192) for i in range(4)]
    assert sum(cache.read(piece) for piece in quarters) == 65536


def test_bytes_from_beyond_l2_by_hand() -> None:
    # of 2 MiB; w takes 4 MiB, x and y 1 MiB each
    found = bounds(FullyConnected(256, 1024, 1024, threads=1, target="avx512"), "forward packed")
    (part,) = found.parts
    assert part.beyond_l2["b"] == 4 << 20 and part.beyond_l2["c"] == 1 << 20
    assert part.beyond_l2["bias"] == 4096
    # x is read again for every panel of w but the first, from L2 while it stays there
    assert 1 << 20 <= part.beyond_l2["a"] <= 4 << 20
    assert not part.beyond_l3  # of 60 MiB
    assert part.bounds["L3 bandwidth"] == sum(part.beyond_l2.values()) / 10
    # all of it stays in L2
    found = bounds(FullyConnected(64, 256, 256, threads=1, target="avx512"))
    assert all(not p.beyond_l2 and not p.bounds["L3 bandwidth"] for p in found.parts)
    # two threads: an image and its results each, to whole granules
    layer = Convolution(2, 64, 56, 56, 64, 1, bias=False, layout="nhwc", target="avx512", threads=2)
    (part,) = bounds(layer, "forward packed").parts
    image = 56 * 56 * 64 * 4
    assert part.beyond_l2["image"] == pytest.approx(image, rel=0.03)
    assert part.beyond_l2["result"] == pytest.approx(image, rel=0.03)


# ---- parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "cpu"), OF.items())
@pytest.mark.parametrize("text", LAYERS)
def test_every_pass_of_every_layer(text: str, target: str, cpu: str, capsys: Captured) -> None:
    asked = ["analyze", "--layer", text, "--cpu", cpu, "--threads", "2"]
    assert cli.main([*asked, "--json"]) == OK
    found = json.loads(capsys.readouterr().out)
    layer = layer_of(text, target=target, threads=2)
    assert found["target"] == target and list(found["passes"]) == list(layer.passes())
    for name, each in found["passes"].items():
        assert each["cpu"] == cpu and each["measured"] is None
        seconds = each["predicted"]["seconds"]
        assert 0 < seconds < 1 and 0 <= each["predicted"]["percent_of_peak"] <= 100.5
        assert seconds == pytest.approx(sum(p["seconds"] for p in each["parts"]))
        assert sum(p["percent_of_all"] for p in each["parts"]) == pytest.approx(100)
        assert each["flops"] == sum(p["flops"] for p in each["parts"])
        stream = layer.passes()[name].run.stream
        assert len(each["parts"]) == len(stream.parts)
        for part, calls in zip(each["parts"], stream.parts, strict=True):
            assert part["title"] == calls.part.title and not part["not_modelled"]
            assert part["cycles"] == max(part["bounds"].values())
            assert part["calls"] >= len(calls.nest)
            assert 0 < part["cycles_of_calling"] < part["bounds"]["core"]
    if target == "avx512":
        assert cli.main(asked) == OK
        words = capsys.readouterr().out
        for name in found["passes"]:
            assert re.search(rf"^{re.escape(name)}  ", words, re.M)


def test_flops_and_the_core_by_hand() -> None:
    n, c, k = 64, 128, 256
    found = bounds(FullyConnected(n, c, k, bias=False, threads=1, target="avx512"),
                   "forward packed")  # fmt: skip
    (part,) = found.parts
    assert found.flops == part.flops == 2 * n * c * k
    assert found.peak == 2 * 2 * 16
    core = part.bounds["core"] - part.calling
    assert part.flops / found.peak <= core <= 1.1 * part.flops / found.peak
    assert part.calling == 60 * part.calls
    assert found.percent(found.cycles) == 100 * part.flops / found.peak / part.cycles
    assert found.seconds(3e9) == 1.0  # at 3 GHz
    # two threads: half of the work each
    two = bounds(FullyConnected(n, c, k, bias=False, threads=2, target="avx512"), "forward packed")
    assert two.parts[0].bounds["core"] == pytest.approx(part.bounds["core"] / 2, rel=0.1)
    assert two.flops == found.flops


def test_the_slowest_thread_decides() -> None:
    # three images for two threads: one of them has two
    layer = Convolution(3, 16, 8, 8, 16, 1, bias=False, layout="nhwc", target="avx512", threads=2,
                        blocks=(64, 16), order="Nghwkc")  # fmt: skip
    one = Convolution(2, 16, 8, 8, 16, 1, bias=False, layout="nhwc", target="avx512", threads=1,
                      blocks=(64, 16), order="Nghwkc")  # fmt: skip
    assert bounds(layer, "forward packed").cycles >= 0.9 * bounds(one, "forward packed").cycles


def test_a_kernel_whose_path_is_not_known_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("a branch on what a matrix holds")

    monkeypatch.setattr("jitgen.primitives.nest.bounds.core_cost", refuse)
    layer = FullyConnected(64, 128, 256, threads=1, target="avx512")
    (part,) = bounds(layer, "forward packed").parts
    assert len(part.unknown) >= 1 and all("brgemm f32" in name for name in part.unknown)
    assert part.bounds["core"] == part.calling


# ---- the command --------------------------------------------------------------------------------


def test_one_pass_in_words(capsys: Captured) -> None:
    text = "FullyConnected(256, 1024, 1024, activation='relu')"
    asked = ["analyze", "--layer", text, "--pass", "forward packed", "--threads", "1"]
    assert cli.main([*asked, "--cpu", "sapphirerapids"]) == OK
    words = capsys.readouterr().out.splitlines()
    assert words[0] == f"{text}: forward packed"
    assert words[2] == ("avx512 on Intel Sapphire Rapids with two 512-bit FMA units "
                        "(sapphirerapids), 1 thread, 3.00 GHz")  # fmt: skip
    assert re.fullmatch(r"predicted   2\.\d+ ms, 9\d\.\d % of the FMA peak of 64 flops a cycle; "
                        "bound by core", words[4])  # fmt: skip
    (row,) = (line for line in words if line.startswith("0  multiply"))
    assert re.search(r" 536\.9 .* 100\.0 %  core$", row)
    assert "  from beyond L2: b 4 MiB, " in "\n".join(words)
    assert "modelled" in words[-1]
    # another target that the CPU runs
    assert cli.main([*asked, "--cpu", "sapphirerapids", "--isa", "avx2"]) == OK
    assert "avx2 on Intel Sapphire Rapids" in capsys.readouterr().out


def test_a_target_in_the_text_stays(capsys: Captured) -> None:
    asked = ["analyze", "--layer", "Rnn(1, 2, 3, 4, target='avx2')", "--cpu", "znver4"]
    assert cli.main(asked) == OK
    assert "avx2 on AMD Zen 4" in capsys.readouterr().out


def test_measured_on_the_host(capsys: Captured) -> None:
    if not any(not why for why in host_cpu.targets().values()):
        pytest.skip("no target runs on this CPU")
    asked = ["analyze", "--layer", "Rnn(4, 3, 8, 16)", "--threads", "1", "--seconds", "0.001"]
    assert cli.main([*asked, "--pass", "forward", "--json"]) == OK
    found = json.loads(capsys.readouterr().out)
    assert found["pass"] == "forward" and found["ghz"] > 0.1
    assert found["measured"]["seconds"] > 0
    assert all(part["measured_seconds"] > 0 for part in found["parts"])
    assert cli.main(asked) == OK
    assert "measured" in capsys.readouterr().out
    assert cli.main([*asked, "--pass", "forward"]) == OK
    assert "measured by itself" in capsys.readouterr().out


def test_a_host_that_cannot_run_it_says_so(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_cpu, "why_not", lambda target: "no such CPU")
    asked = ["analyze", "--layer", "Rnn(4, 3, 8, 16)", "--pass", "forward"]
    assert cli.main(asked) == CANNOT_RUN
    out, message = capsys.readouterr()
    assert "predicted" in out and "measured    " not in out
    assert message == "jitgen: error: analyzed but not measured: no such CPU\n"


@pytest.mark.parametrize(("arguments", "message"), [
    (("--layer", "Foo(3)", "--cpu", "znver4"), "layer='Foo(3)': 'Foo' is not one of "
     "FullyConnected, Convolution, convolution_1d, MaxPool, AveragePool, Lstm, Gru, Rnn"),
    (("--layer", "Rnn(1, 2, 3, 4)", "--cpu", "z80"), f"cpu='z80' is not one of {', '.join(CPUS)}, "
     "host"),
    (("--layer", "Rnn(1, 2, 3, 4)", "--cpu", "znver3", "--isa", "avx512"),
     "target='avx512': AMD Zen 3 (znver3) runs avx2"),
    (("--layer", "Rnn(1, 2, 3, 4)", "--cpu", "znver4", "--pass", "back"), "--pass back is not one "
     "of forward, forward packed, forward training, backward, pack_weights"),
    (("--layer", "Rnn(1, 2, 3, 4)", "--cpu", "znver4", "--plot", "a.svg"),
     "--plot a.svg is for kernels, not for --layer"),
    (("--layer", "Rnn(1, 2, 3, 4)", "--cpu", "znver4", "--batch", "2"),
     "--batch 2 is for kernels, not for --layer"),
    (("--layer", "Rnn(1, 2, 3, 4)", "--seconds", "-1"), "--seconds -1 is not between 0 and 3600"),
    (("4", "4", "4", "--cpu", "znver4", "--threads", "2"), "--threads 2 is for --layer"),
    (("4", "4", "4"), f"--cpu is missing: one of {', '.join(CPUS)}, host"),
])  # fmt: skip
def test_what_is_wrong_is_named(
    arguments: tuple[str, ...], message: str, capsys: Captured
) -> None:
    assert cli.main(["analyze", *arguments]) == BAD_ARGUMENTS
    out, error = capsys.readouterr()
    assert not out and error == f"jitgen: error: {message}\n"


def test_progress_is_told_on_a_terminal_only(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jitgen.cli.layers.QUIET", -math.inf)
    Progress().tell("forward")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    progress = Progress()
    progress.tell("forward (1 of 2)")
    progress.tell("")
    progress.tell("")
    assert capsys.readouterr().err == "\r\x1b[Kforward (1 of 2)\r\x1b[K"
    monkeypatch.setattr("jitgen.cli.layers.QUIET", math.inf)
    Progress().tell("forward")
    assert capsys.readouterr().err == ""
