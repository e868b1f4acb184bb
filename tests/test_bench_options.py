"""Every benchmark of layers names a bad option and measures nothing."""

from __future__ import annotations

import pytest
from bench_command import bench

BAD = [
    ("conv", ("--table", "lenet"), "paper, resnet50"),
    ("conv", ("--layer", "21"), "'21'"),
    ("conv", ("--batch", "0"), "--batch"),
    ("conv", ("--pass", "backward"), "backward"),
    ("conv", ("--algorithm", "fft"), "--algorithm 'fft' is not one of direct, winograd"),
    ("fc", ("--shape", "1x2"), "1x2"),
    ("fc", ("--pass", "backward"), "backward"),
    ("lstm", ("--case", "1x20x256"), "1x20x256"),
    ("lstm", ("--case", "1x20x256x0"), "'0'"),
    ("lstm", ("--cell", "rnn"), "rnn"),
    ("lstm", ("--pass", "data"), "data"),
    ("resnet50", ("--batch", "0"), "--batch"),
    ("resnet50", ("--batch", "1", "x"), "'x'"),
    ("resnet50", ("--size", "16"), "--size"),
    ("mlp", ("--network", "10"), "'10'"),
    ("mlp", ("--network", "10-x"), "'x'"),
    ("mlp", ("--batch", "0"), "--batch"),
]
BAD += [
    (command, (option, value), value if option == "--json" else option)
    for command in ("conv", "fc", "lstm", "resnet50", "mlp")
    for option, value in (("--threads", "0"), ("--rounds", "3"), ("--json", "/nowhere/file"))
]


@pytest.mark.parametrize(("command", "arguments", "word"), BAD)
def test_bad_options_are_named(command: str, arguments: tuple[str, ...], word: str) -> None:
    done = bench(command, *arguments)
    assert done.returncode == 2
    assert word in done.stderr
