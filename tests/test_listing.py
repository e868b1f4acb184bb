"""Listings: every instruction with its bytes, text and meaning, loops, registers, and two compared.

Not here: whether the meanings are right (`test_meaning`), assembly (`test_reassembly`) and the page
(`test_html`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

import jitgen
from jitgen.analysis import analyze
from jitgen.gemm import sections as s
from jitgen.gemm.spec import make_spec
from jitgen.inspect import listing, registers
from jitgen.inspect.compare import compare, comparison_text
from jitgen.inspect.sections import Sections
from jitgen.isa.program import CONSTANTS

SHAPES: list[tuple[tuple[int, int, int], dict[str, Any]]] = [
    ((1, 1, 1), {}),
    ((13, 37, 21), {"beta": 1.0}),
    ((64, 64, 64), {}),
    ((5, 20, 9), {"epilogue": ("bias", "gelu"), "batch": "address"}),
    ((9, 17, 33), {"trans_b": True, "alpha": 0.5, "beta": 0.25, "batch": "offset"}),
    ((33, 19, 12), {"dtype": "f64", "trans_a": True, "epilogue": ("relu_mask", "residual")}),
    ((30, 70, 16), {"packed_b": True, "epilogue": (("clip", 0, 6),)}),
]
TARGETS = ["avx512", "avx2", "sve128", "sve256", "sve512", "neon"]


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
            assert f"\n{line.text}:" in text
        else:
            assert texts[line.offset].startswith(line.text)
            assert texts[line.offset].endswith(listed.meaning)
    assert max(map(len, text.splitlines())) <= 140


def test_header_names_registers_and_plan(kernel: jitgen.Kernel) -> None:
    """Roles, plan and its reasons stand in the header; tiles' registers are distinct."""
    header = kernel.listing().split("\n\n")[0]
    for size, tile in registers.tiles(kernel).items():
        grid = listing.register_grid(kernel, size)
        assert {len(row) for row in grid} == {len(tile.widths) + 2}
        cells = [cell for row in grid[1:] for cell in row[1:] if cell and " " not in cell]
        used = [v for rows in tile.sets for row in rows for v in row] + tile.operands
        used += [tile.tail] if tile.tail >= 0 else []
        assert sorted(cells) == sorted(registers.vector_name(kernel, v) for v in used)
        assert "\n".join(f"; {x}" for x in listing.register_map(kernel, size)) in header
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


def test_every_section_has_a_sentence(kernel: jitgen.Kernel) -> None:
    """A section says what it does and why; one that nobody knows has none."""
    sections = Sections(kernel)
    for listed in listing.lines(kernel):
        if listed.line.kind == "section":
            sentence = sections.sentence(listed.line.section)
            assert re.fullmatch(r"[A-Z].*\.", sentence), listed.line.text
            assert len(sentence) < 130
    assert sections.sentence("something else") == ""


def test_sentences_say_what_the_kernel_does() -> None:
    """Loops, registers and the reasons are this kernel's."""
    kernel = jitgen.brgemm(64, 64, 64, target="avx2", alpha=0.5, beta=2.0, epilogue=("relu",))
    sections = Sections(kernel)
    said = " ".join(sections.sentence(x.line.section) for x in listing.lines(kernel))
    (tile, *_) = registers.tiles(kernel)
    macs = tile[0] * tile[1] // 8
    for part in ("the outer loop over tiles", f"for {macs} FMAs", "16 vector registers",
                 "adds beta C, applies the epilogue, stores the tile to C"):  # fmt: skip
        assert part in said



@pytest.mark.parametrize(("target", "cpu"), [("avx2", "znver4"), ("sve256", "neoverse-v1")])
def test_nobody_reads_the_words_of_a_title(
    target: str, cpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Titles in other words change no meaning, sentence, loop or phase."""

    def read() -> tuple[set[str], list[Any]]:
        titles, found = set(), []
        for size, options in (((70, 70, 600), {"beta": 1.0, "epilogue": ("bias", "gelu")}),
                              ((64, 200, 64), {"trans_b": True, "epilogue": (("clip", 0, 6),)})):
            kernel = jitgen.brgemm(*size, target=target, **options)
            values = json.loads(kernel.listing("json"))
            titles |= {x.pop("text") for x in values["lines"] if x["kind"] == "section"}
            found += [values, analyze(kernel, cpu, 3, other_models=False).as_values()]
        return titles, found

    titles, found = read()
    assert len({re.match(r"\w+", title)[0] for title in titles}) == 10  # type: ignore[index]
    for record in (s.BatchPass, s.BlockLoop, s.EpilogueStep, s.Mark, s.PackB, s.ReductionLoop,
                   s.TileSection):  # fmt: skip
        monkeypatch.setattr(record, "__str__", lambda self: "other words")
    assert read() == ({"other words", CONSTANTS}, found)


# ---- values, formats, comparison ----------------------------------------------------------------


def test_values_agree_with_the_text(kernel: jitgen.Kernel) -> None:
    """JSON has the same lines, loops that lie within each other, and a count of each kind."""
    found = listing.as_values(kernel)
    assert json.loads(kernel.listing("json")) == json.loads(json.dumps(found))
    text = kernel.listing()
    for line in found["lines"]:
        assert line["meaning"] in text
    counted = Counter(line["class"] for line in found["lines"] if line["class"])
    assert {k: n for k, n in found["instructions"].items() if n} == counted
    for loop in found["loops"]:
        inside = found["lines"][loop["first_line"] : loop["last_line"] + 1]
        assert inside[0]["text"] == loop["label"]
        assert inside[-1]["meaning"].startswith("again while")
        assert loop["begin"] == inside[0]["offset"]
        assert loop["end"] == inside[-1]["offset"] + len(inside[-1]["bytes"]) // 2
        assert all(line["depth"] > inside[0]["depth"] for line in inside[1:])
    counted_loops = [x for x in found["loops"] if x["over"] == "k" and x["by"]]
    passes = [x["trips"] * x["by"] for x in counted_loops]
    assert all(steps <= kernel.spec.k for steps in passes)
    for inner in found["inner_loops"]:
        assert inner["instructions"]["fma"] % inner["steps"] == 0


def test_formats_are_checked() -> None:
    """Unknown formats and syntaxes that do not apply are named."""
    kernel = jitgen.brgemm(4, 4, 4, target="avx2")
    assert kernel.listing("text") == kernel.listing()
    assert kernel.listing("asm", "att") != kernel.listing("asm")
    assert kernel.listing("html").startswith("<!DOCTYPE html>")
    for arguments, message in (
        (("pdf",), "format='pdf' is not one of text, asm, json, html"),
        (("bytes",), "the bytes are kernel.code"),
        (("text", "att"), "syntax='att' is for the format 'asm'"),
        (("asm", "masm"), "syntax='masm' is neither"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            kernel.listing(*arguments)


def test_a_kernel_is_the_same_as_itself() -> None:
    """No difference where there is none, and the same code beside itself."""
    values = listing.as_values(jitgen.brgemm(13, 20, 9, target="avx2", epilogue=("bias",)))
    found = compare(values, values)
    assert found["spec"] == found["plan_fields"] == found["general_registers"] == {}
    assert all(a == b for a, b in found["instructions"].values())
    assert found["inner_code"]
    assert all(line["same"] for line in found["inner_code"])
    text = comparison_text(found)
    assert "spec: the same" in text
    assert "plan: the same" in text


def test_differences_are_found() -> None:
    """Spec, plan, registers, counts and the inner loop of two kernels."""
    left = jitgen.brgemm(24, 32, 16, target="avx2", plan={"rows": 4, "columns": 16})
    right = jitgen.brgemm(24, 32, 16, target="avx512", beta=1.0)
    found = compare(listing.as_values(left), listing.as_values(right))
    assert found["target"] == ["avx2", "avx512"]
    assert found["spec"] == {"beta": [0.0, 1.0]}
    assert found["tiles"][0][0] == {
        "size": "4 x 16", "accumulators": 8, "sets": 1, "a": 1, "b": 2, "tail": 0,
    }  # fmt: skip
    assert found["code_bytes"] == [len(left.code), len(right.code)]
    mix = [listing.as_values(k)["instructions"]["fma"] for k in (left, right)]
    assert found["instructions"]["fma"] == mix
    for side in (0, 1):
        code = [x["text"][side] for x in found["inner_code"] if x["text"][side] is not None]
        assert sum(text.startswith("vfmadd") for text in code) > 0
    same = [x for x in found["inner_code"] if x["same"]]
    assert same
    assert all(x["meaning"][0] == x["meaning"][1] for x in same)
    text = comparison_text(found)
    for part in ("beta", "4 x 16: 8 of C, 1 A, 2 B", "inner loop with most FMAs"):
        assert part in text


def test_describe() -> None:
    """One line says what a kernel computes."""
    spec = make_spec(2, 2, 2, alpha=0.5, beta=2.0, trans_a=True, epilogue=("relu",))
    assert listing.describe(spec) == "C = 2 C + 0.5 sum of A_i^T B_i, then relu"
    assert listing.describe(make_spec(2, 2, 2)) == "C = sum of A_i B_i"
