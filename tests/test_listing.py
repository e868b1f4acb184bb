"""Listings: every instruction with its bytes and text, loops indented, roles and sections named."""

from __future__ import annotations

import re
from typing import Any

import pytest

import jitgen
from jitgen.inspect import listing
from jitgen.spec import make_spec

SHAPES: list[tuple[tuple[int, int, int], dict[str, Any]]] = [
    ((1, 1, 1), {}),
    ((13, 37, 21), {"beta": 1.0}),
    ((64, 64, 64), {}),
    ((5, 20, 9), {"epilogue": ("bias", "gelu"), "batch": "address"}),
    ((9, 17, 33), {"trans_b": True, "alpha": 0.5, "beta": 0.25, "batch": "offset"}),
    ((33, 19, 12), {"dtype": "f64", "trans_a": True, "epilogue": ("relu_mask", "residual")}),
    ((30, 70, 16), {"packed_b": True, "epilogue": (("clip", 0, 6),)}),
]
TARGETS = ["avx512", "avx2", "sve128", "sve256", "sve512"]


@pytest.fixture(params=[f"{t}-{i}" for t in TARGETS for i in range(len(SHAPES))])
def kernel(request: pytest.FixtureRequest) -> jitgen.Kernel:
    """A kernel for every target and shape."""
    target, i = request.param.split("-")
    size, options = SHAPES[int(i)]
    return jitgen.brgemm(*size, target=target, **options)


def test_lines_hold_all_bytes(kernel: jitgen.Kernel) -> None:
    """Bytes stand at their offsets; what is left out is padding before the constants."""
    code = bytearray(len(kernel.code))
    end = 0
    for listed in listing.lines(kernel):
        line = listed.line
        assert line.offset >= end or not line.code
        code[line.offset : line.offset + len(line.code)] = line.code
        end = max(end, line.offset + len(line.code))
    assert bytes(code) == kernel.code
    assert listed.depth == 0


def test_text_shows_every_instruction(kernel: jitgen.Kernel) -> None:
    """Parsing the listing back gives the bytes; each first line of an instruction has its text."""
    text = kernel.listing()
    found = bytearray(len(kernel.code))
    texts = {}
    for line in text.splitlines():
        match = re.match(r" *([0-9a-f]+)  ([0-9a-f]+)(?:  +(\S.*))?$", line)
        if match:
            at, code = int(match[1], 16), bytes.fromhex(match[2])
            found[at : at + len(code)] = code
            texts[at] = match[3]
    assert bytes(found) == kernel.code
    for listed in listing.lines(kernel):
        line = listed.line
        if line.kind == "section":
            assert f"\n; {line.text}\n" in text
        elif line.kind == "label":
            assert f"\n{line.text}:\n" in text
        else:
            assert texts[line.offset].startswith(line.text)
    assert max(map(len, text.splitlines())) <= 120


def test_header_names_registers_and_plan(kernel: jitgen.Kernel) -> None:
    """Roles, plan and its reasons stand in the header; tiles' registers are distinct."""
    header = kernel.listing().split("\n\n")[0]
    for role, number in kernel.roles.items():
        assert re.search(rf"{listing.general_name(kernel.target, number)} +{role} ", header)
    for reason in kernel.plan.reasons:
        assert reason in header
    machine = kernel.target.machine(kernel.spec.dtype, kernel.spec.n)
    for tile in listing.tile_registers(kernel):
        names = [name for some in tile["accumulators"] for name in some] + tile["a"] + tile["b"]
        names += [tile["tail"]] if tile["tail"] else []
        assert len(set(names)) == len(names) <= machine.vectors
        vectors = -(-tile["columns"] // machine.lanes)
        assert all(len(some) == tile["rows"] * vectors for some in tile["accumulators"])


def test_accumulators_are_those_of_the_code() -> None:
    """The accumulators that the header names are the ones the multiply-accumulates write."""
    kernel = jitgen.brgemm(6, 64, 64, target="avx512")
    written = {
        x.line.text.split()[1].rstrip(",")
        for x in listing.lines(kernel)
        if x.line.text.startswith("vfmadd231ps")
    }
    (tile,) = listing.tile_registers(kernel)
    assert written == {name for some in tile["accumulators"] for name in some}


def test_loops_are_indented() -> None:
    """The reduction loop lies within the loops over tiles and batch."""
    kernel = jitgen.brgemm(64, 64, 64, target="avx2")
    inside = [x.depth for x in listing.lines(kernel) if x.line.text.startswith("vfmadd")]
    assert min(inside) >= 2
    outside = [x.depth for x in listing.lines(kernel) if x.line.text == "ret"]
    assert outside == [0]


def test_describe() -> None:
    """One line says what a kernel computes."""
    spec = make_spec(2, 2, 2, alpha=0.5, beta=2.0, trans_a=True, epilogue=("relu",))
    assert listing.describe(spec) == "C = 2 C + 0.5 sum of A_i^T B_i, then relu"
    assert listing.describe(make_spec(2, 2, 2)) == "C = sum of A_i B_i"
