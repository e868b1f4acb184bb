"""Passes of layers as C functions: the same bits as in Python, threads of the caller, what is
refused. Kernels as files: test_export.py."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import layer_programs
import numpy as np
import pytest
from layer_programs import Arrays, execute, natively, program
from libraries import LOADER, build, emulate, need_x86
from test_passes import KINDS
from tiers import TIERS, need
from toolchain import STRICT, run, tool

import jitgen
from jitgen import Convolution, FullyConnected, Gru, Lstm
from jitgen.target import parse_target

ROOT = Path(__file__).resolve().parent.parent
#: Every kind of layer, and some that are large enough for two threads in every pass
LAYERS = KINDS | {
    "fc on two": lambda **o: FullyConnected(64, 96, 160, activation="relu", **o),
    "lstm on two": lambda **o: Lstm(8, 3, 40, 64, **o),
    "gru on two": lambda **o: Gru(9, 3, 40, 64, reset="before", **o),
    "winograd on two": lambda **o: Convolution(2, 16, 14, 14, 32, 3, padding=1,
                                               algorithm="winograd", **o),
}  # fmt: skip
X86 = ("avx2", "avx512")


class Made(NamedTuple):
    """A library of all layers for one target: its folder, its manifest, the layers by name."""

    folder: Path
    manifest: dict[str, Any]
    layers: dict[str, Any]

    def passes(self, threads: int) -> list[tuple[Any, str]]:
        """The passes in the order of the library, each with its type, on so many threads."""
        layers = [layer if threads == 1 else layer._on(threads) for layer in self.layers.values()]
        return [(each, layer.dtype) for layer in layers for each in layer.passes().values()]


def _made(folder: Path, target: str) -> Made:
    layers = {re.sub(r"\W", "_", name): make(threads=1, target=target)
              for name, make in LAYERS.items()}  # fmt: skip
    return Made(folder, jitgen.export(layers, folder, "net", threads=(2, 1)), layers)


@pytest.fixture(scope="module", params=X86)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """All layers for a target of x86-64."""
    return _made(tmp_path_factory.mktemp(request.param), request.param)


def target_of(made: Made) -> str:
    return str(made.manifest["layers"][0]["target"])


def differing(made: Made, arrays: list[Arrays], found: bytes) -> list[str]:
    """Symbols of the functions whose results are not what they must be."""
    wrong, at = [], 0
    for each, layer in zip(arrays, made.manifest["layers"], strict=True):
        wanted = each.wanted
        if found[at : at + len(wanted)] != wanted:
            wrong.append(layer["symbol"])
        at += len(wanted)
    assert at == len(found)
    return wrong


# ---- the same bits ------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits(made: Made, threads: int) -> None:
    """Every pass of every layer, called three times, gives what Python's call gives."""
    target = target_of(made)
    need(TIERS[f"{target} native"])
    arrays = [
        natively(each, dtype, seed)
        for seed, (each, dtype) in enumerate(made.passes(threads))
    ]
    used = [len(each.run.stream.slices) for each, _ in made.passes(threads)]
    assert used.count(threads) > 20
    made_program = program(made.folder, made.manifest, "libnet.a", target)
    data = b"".join(each.given for each in arrays)
    assert not differing(made, arrays, execute(made_program, data, threads, 3))


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """All layers for SVE of 256 bits."""
    return _made(tmp_path_factory.mktemp("arm"), "sve256")


def test_same_bits_on_aarch64(arm: Made) -> None:
    """The same on an emulated SVE, on one thread and on two: what the streams give there that
    Python would replay."""
    need(TIERS["sve256 qemu"])
    arrays = list(layer_programs.emulated(arm.passes(1), parse_target("sve256")))
    compiler = "aarch64-linux-gnu-gcc"
    made_program = program(arm.folder, arm.manifest, "libnet.a", "sve256", compiler)
    data = b"".join(each.given for each in arrays)
    for threads in (1, 2):
        found = execute(made_program, data, threads, 3 - threads, bits=256)
        assert not differing(arm, arrays, found), threads
