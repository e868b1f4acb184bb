"""`jitgen show --layer`: every pass of every kind of layer, streams in words, kernels by number.

Not here: layers from texts (test_layer_text), listings (test_listing), what passes take
(test_passes).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jitgen import Convolution, FullyConnected
from jitgen.cli import main
from jitgen.cli.terminal import BAD_ARGUMENTS, OK
from jitgen.primitives.layers.text import layer_of
from jitgen.primitives.nest import shown
from jitgen.run.replay import BARRIER, END, FIRST_KIND

Captured = pytest.CaptureFixture[str]
TARGETS = ("avx2", "avx512", "sve256")
#: Every kind of layer
LAYERS = (
    "FullyConnected(5, 70, 40, activation='relu', residual=True)",
    "FullyConnected(64, 256, 96, bias=False, dtype='f64')",
    "Convolution(2, 8, 9, 7, 16, 3, padding=1, activation='gelu', algorithm='direct')",
    "Convolution(2, 8, 9, 7, 16, 3, stride=2, layout='nhwc')",
    "Convolution(1, 16, 12, 12, 24, 3, padding=1, algorithm='winograd')",
    "Convolution(2, 20, 9, 7, 20, 3, groups=20)",
    "convolution_1d(2, 3, 8, 4, 3, padding=1)",
    "MaxPool(2, 3, 8, 8, 3, stride=2, padding=1)",
    "AveragePool(2, 3, 8, 8, 2, layout='nhwc')",
    "Lstm(3, 4, 5, 6, peephole=True)",
    "Gru(13, 3, 5, 20, direction='bidirectional')",
    "Gru(2, 3, 5, 6, reset='before')",
    "Rnn(2, 1, 5, 6, bias=False)",
    "Softmax(7, 37)",
    "LogSumExp(7, 37)",
    "RowMean(7, 37)",
    "LayerNorm(40, 21)",
    "RmsNorm(7, 37, affine=False)",
)
CONV = "Convolution(2, 8, 9, 7, 16, 3, padding=1, algorithm='direct')"


def printed(capsys: Captured, *arguments: str) -> str:
    assert main(["show", *arguments]) == OK
    return capsys.readouterr().out


def error(capsys: Captured, *arguments: str) -> str:
    assert main(["show", *arguments]) == BAD_ARGUMENTS
    out, message = capsys.readouterr()
    assert not out
    return message.removeprefix("jitgen: error: ").rstrip("\n")


def walked(stream: Any) -> list[list[int]]:
    """Kinds of the calls that each thread makes, read off its words as the driver reads them."""
    result = []
    for words in stream.slices:
        kinds, at = [], 0
        while words[at] != END:
            kind, repeats = int(words[at]), int(words[at + 1])
            width = 0 if kind == BARRIER else len(stream.calls[kind - FIRST_KIND].words)
            kinds += [kind] * (1 if kind == BARRIER else repeats)
            at += 2 + width * repeats
        result.append(kinds)
    return result


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("text", LAYERS)
def test_every_pass_of_every_layer(text: str, target: str, capsys: Captured) -> None:
    asked = ("--layer", text, "--isa", target, "--threads", "2")
    found = json.loads(printed(capsys, *asked, "--json"))
    layer = layer_of(text, target=target, threads=2)
    assert list(found["passes"]) == list(layer.passes()) and found["target"] == target
    overview = printed(capsys, *asked)
    for name, counts in found["passes"].items():
        assert re.search(rf"^{re.escape(name)}  .*\b{counts['calls']} ", overview, re.M)
        stream = layer.passes()[name].run.stream
        kinds = walked(stream)
        assert counts["barriers"] == kinds[0].count(BARRIER) == kinds[-1].count(BARRIER)
        calls = [kind - FIRST_KIND for some in kinds for kind in some if kind != BARRIER]
        assert counts["calls"] == len(calls)
        one = json.loads(printed(capsys, *asked, "--pass", name, "--json", "--calls", "1000000"))
        assert {k: one[k] for k in ("calls", "barriers", "threads", "code_bytes")} == {
            k: counts[k] for k in ("calls", "barriers", "threads", "code_bytes")
        }
        assert [k["calls"] for k in one["kernels"]] == np.bincount(calls).tolist()
        assert [k["name"] for k in one["kernels"]] == [c.routine.name for c in stream.calls]
        # each thread's calls are told in the order in which it makes them
        for thread, some in enumerate(kinds):
            told = [c["kernel"] for p in one["parts"] for c in p["threads"][thread]["first"]]
            assert told == [kind - FIRST_KIND for kind in some if kind != BARRIER]
        assert [a["tensor"] for a in one["arguments"]] == [
            a.tensor for a in layer.passes()[name].arguments
        ]
        words = printed(capsys, *asked, "--pass", name)
        for kernel in one["kernels"]:
            line = rf"^ *{kernel['number']}  {re.escape(kernel['name'])}.* {kernel['bytes']}\b"
            assert re.search(line, words, re.M)


def test_flops_are_those_counted_by_hand() -> None:
    def flops(layer: Any, name: str) -> int:
        uses = shown.kernels(layer.passes()[name].run.stream)
        return sum(use.calls * use.flops for use in uses)

    n, c, k = 37, 300, 130
    for batch in (n, 3):  # 3: rows times rows, in place
        layer = FullyConnected(batch, c, k)
        for name in layer.passes():
            multiplies = name.startswith(("forward", "backward_data", "backward_weights"))
            assert flops(layer, name) == multiplies * 2 * batch * c * k, name
    # no border: every pixel of every tap is one
    conv = Convolution(2, 12, 10, 9, 20, 3, algorithm="direct")
    by_hand = 2 * 2 * 20 * (8 * 7) * 12 * 9
    assert flops(conv, "forward") == flops(conv, "backward_weights") == by_hand
    # with one: rows leave out the taps above and below the image, columns multiply its zeros
    conv = Convolution(1, 12, 10, 9, 20, 3, padding=1, algorithm="direct")
    assert flops(conv, "forward") == 2 * 20 * 9 * 12 * 3 * (8 * 3 + 2 * 2)
    # F(2 x 2, 3 x 3): 16 products for each of 6 x 6 tiles
    conv = Convolution(1, 12, 12, 12, 20, 3, padding=1, algorithm="winograd")
    assert flops(conv, "forward") == 2 * 16 * 36 * 12 * 20
    # depthwise: only what lies in the image is multiplied
    conv = Convolution(1, 20, 10, 9, 20, 3, padding=1, groups=20)
    assert flops(conv, "forward") == 2 * 20 * (10 * 3 - 2) * (9 * 3 - 2)


def test_a_stream_in_words(capsys: Captured) -> None:
    words = printed(capsys, "--layer", CONV, "--pass", "forward", "--isa", "avx2", "--threads", "1",
                    "--calls", "2")  # fmt: skip
    head, _, rest = words.partition("\n\n")
    assert head.splitlines() == [
        f"{CONV}: forward, direct",
        "Convolution 2x8x9x7 -> 2x16x9x7 nchw, kernel 3x3, f32 for avx2, threads=1, bias",
    ]
    assert "  image      2x8x9x7   4032  x\n" in rest
    assert "  result     2x16x9x7  8064  y, written\n" in rest
    assert "scratch" in rest and "constants" in rest
    assert "brgemm f32 7x16x8 times 9" in rest and "C = sum of A_i B_i, then bias" in rest
    assert "part 0: " in rest and "; order 'NH" in rest
    first = r"^    \d brgemm f32 7x16x8: n 0\+1, .*; a x\[0\], b panels\[0\], "
    assert re.search(first, rest, re.M)
    assert re.search(r"^    \.\.\. and \d+ more$", rest, re.M)
    stream = layer_of(CONV, target="avx2", threads=1).passes()["forward"].run.stream
    assert words.endswith(stream.text(2))


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_in_every_format(target: str, capsys: Captured, tmp_path: Path) -> None:
    asked = ("--layer", CONV, "--pass", "forward", "--isa", target)
    stream = layer_of(CONV, target=target).passes()["forward"].run.stream
    for number, call in enumerate(stream.calls):
        one = (*asked, "--kernel", str(number))
        assert printed(capsys, *one) == call.routine.listing()
        assert printed(capsys, *one, "--format", "asm") == call.routine.listing("asm")
        assert printed(capsys, *one, "--format", "html") == call.routine.listing("html")
        values = json.loads(printed(capsys, *one, "--json"))
        assert values["code_bytes"] == len(call.code) and values["target"] == target
        file = tmp_path / "kernel.bin"
        assert printed(capsys, *one, "--format", "bytes", "-o", str(file)) == ""
        assert file.read_bytes() == call.code


@pytest.mark.parametrize(("arguments", "message"), [
    (("--layer", "Foo(3)"), "layer='Foo(3)': 'Foo' is not one of FullyConnected, Convolution, "
     "convolution_1d, MaxPool, AveragePool, Lstm, Gru, Rnn, Softmax, LogSoftmax, LogSumExp, "
     "RowSum, RowMean, LayerNorm, RmsNorm"),
    (("--layer", "Rnn(1, 2, 3, 0)"), "hidden=0 is smaller than 1"),
    (("--layer", "Rnn(1, 2, 3, 4)", "--pass", "back"), "--pass back is not one of forward, "
     "forward packed, forward training, backward, pack_weights"),
    (("--layer", "Rnn(1, 2, 3, 4)", "--pass", "forward", "--kernel", "9"),
     "--kernel 9: forward has kernels 0 to 5"),
    (("--layer", "Rnn(1, 2, 3, 4)", "--pass", "forward", "--kernel", "-1"),
     "--kernel -1: forward has kernels 0 to 5"),
    (("--layer", "Rnn(1, 2, 3, 4)", "--kernel", "1"),
     "--kernel 1 is a kernel of a pass: --pass is missing"),
    (("--layer", "Rnn(1, 2, 3, 4)", "--calls", "1"), "--calls 1 is for a pass: --pass is missing"),
    (("--layer", "Rnn(1, 2, 3, 4)", "--pass", "forward", "--calls", "-1"),
     "--calls=-1 is smaller than 0"),
    (("--layer", "Rnn(1, 2, 3, 4)", "--threads", "0"), "threads=0 is not from 1 to 1024"),
    (("--layer", "Rnn(1, 2, 3, 4)", "--isa", "mmx"),
     "target='mmx' is not one of avx512, avx2, sve128, sve256, sve512, neon, sve<bits>"),
    (("--layer", "Rnn(1, 2, 3, 4)", "--format", "html"), "--format html: a layer is text or json; "
     "--kernel N asks for one of the kernels of a pass"),
    (("--layer", "Rnn(1, 2, 3, 4)", "--batch", "3"), "--batch 3 is for kernels, not for --layer"),
    (("--layer", "Rnn(1, 2, 3, 4)", "--trans-a"), "--trans-a is for kernels, not for --layer"),
    (("--layer", "Rnn(1, 2, 3, 4)", "--diff", "avx2"), "--diff ['avx2'] is for kernels, not for "
     "--layer"),
    (("--layer", "Rnn(1, 2, 3, 4)", "4", "4", "4"), "give M N K or --layer, not both; got 4 too"),
    (("4", "4", "4", "--pass", "forward"), "--pass forward is for --layer"),
    (("4", "4", "4", "--kernel", "0"), "--kernel 0 is for --layer"),
    (("--layer", "Rnn(1, 2, 3, 4)", "--format", "html", "--cpu", "znver4"),
     "--cpu znver4: jitgen analyze --layer says how fast a layer is"),
    (("--layer", "Rnn(1, 2, 3, 4)", "--syntax", "att"), "--syntax att is for --format asm"),
])  # fmt: skip
def test_what_is_wrong_is_named(
    arguments: tuple[str, ...], message: str, capsys: Captured
) -> None:
    assert error(capsys, *arguments) == message


def test_the_help_shows_layers(capsys: Captured) -> None:
    assert main(["show", "--help"]) == OK
    text = capsys.readouterr().out
    # what all commands have in common stands below: an example with a comment
    examples = re.findall(r'^  jitgen (show --layer "[^"]*"(?: \S+)*)$', text, re.M)
    assert len(examples) == 3
    for example in examples:
        match = re.match(r'show --layer "([^"]*)" ?(.*)', example)
        assert match and main(["show", "--layer", match[1], *match[2].split()]) == OK
        assert capsys.readouterr().out
