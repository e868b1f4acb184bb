"""Emitted functions as values: names, signatures, programs emitted again, listings; and streams'
drivers, whose code holds that of their kernels."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import golden
import pytest

import jitgen
from jitgen.emit.frame import ARGUMENTS
from jitgen.emit.routine import Operand, Routine
from jitgen.inspect import formats
from jitgen.inspect.names import symbol_name
from jitgen.inspect.unwind import rows
from jitgen.isa.program import Program
from jitgen.kernels.cells import emit_cell
from jitgen.kernels.elementwise import emit_map
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.stream import Part, Ref, Stream
from jitgen.run.replay import Call, Word, emit_replay
from jitgen.target import AVX2, TARGETS, parse_target

TYPES = {"f32", "f64", "bits", "offsets", "addresses", "function", "data", "number"}


def emitted(target: str) -> Iterator[Routine]:
    """Some of every emitter."""
    at = parse_target(target)
    with golden.written_down(at):
        for family, cases in golden.KERNELS.items():
            for i, (name, make) in enumerate(cases(golden.Draw(family), "f32", at)):
                if family != "products" or i % 10 == 0 or name == "peak":
                    try:
                        yield make()
                    except ValueError:
                        continue


@pytest.mark.parametrize("target", ["avx512", "sve256", "neon"])
def test_routines_tell_what_they_are(target: str) -> None:
    kinds = set()
    for routine in emitted(target):
        kind, *rest = routine.name.split()
        kinds.add(kind)
        assert rest or kind in ("replay", "member", "crew", "helper", "barrier"), routine.name
        assert routine.target is parse_target(target)
        symbol = symbol_name(routine)
        assert symbol.isidentifier() and symbol.startswith(f"jitgen_{kind}_{target}_"), symbol
        words = [operand.word for operand in routine.signature]
        assert (words or kind == "peak") and len({*words}) == len(words) <= len(routine.words)
        assert {*words} <= routine.words.keys()
        assert all(each.type in TYPES and each.meaning for each in routine.signature)
        # emitted again, it is the same; its frames can be followed
        program = routine.program
        assert program.encode() == routine.code
        assert rows(routine)
        assert {*routine.roles.values()} <= {*range(32)}
    assert kinds >= {
        "brgemm", "pack", "pack_transposed", "transpose", "copy", "adam", "column_sums", "dot",
        "depthwise", "max_pool", "average_pool_backward", "winograd_input", "lstm", "gru_backward",
        "replay", "crew", "barrier", "entry", "peak",
    }  # fmt: skip


def test_words_that_routines_read_are_in_their_signatures() -> None:
    """Loads from the argument struct, as the instructions have them."""
    for routine in emitted("avx2"):
        if routine.words is not ARGUMENTS or routine.name.startswith("brgemm"):
            continue
        argument = routine.argument
        read = set()
        for form, operands in routine.program.records:
            if form.signature == "mov r64 m64" and operands[1][0] == argument:
                read.add(operands[1][3])
        wanted = {ARGUMENTS[operand.word] for operand in routine.signature}
        assert read == wanted, routine


def test_signatures_say_what_words_mean() -> None:
    cell = emit_cell("lstm", 3, 20, "f32", AVX2, width=16, masked=True)
    assert Operand("bias_row", "h_before", "f32") in cell.signature
    assert cell.name == "lstm f32 3x20"
    step = emit_map("relu_backward_mask", 3, 20, "f64", AVX2)
    assert step.signature == (
        Operand("a", "gradient of y", "f64"), Operand("c", "gradient of x", "f64"),
        Operand("mask", "where y is positive", "bits"),
    )  # fmt: skip
    kernel = jitgen.brgemm(3, 20, 4, batch="offset", epilogue=("bias", "relu_mask"), target="avx2")
    assert isinstance(kernel, Routine) and kernel.name == "brgemm f32 3x20x4"
    assert [each.word for each in kernel.signature] == [
        "a", "b", "c", "count", "a_offsets", "b_offsets", "bias", "mask"
    ]  # fmt: skip
    assert {each.type for each in kernel.signature} == {"f32", "number", "offsets", "bits"}
    several = jitgen.brgemm(3, 20, 4, batch="address", target="avx2")
    assert [each.type for each in several.signature[:3]] == ["addresses", "addresses", "f32"]


def test_no_program_is_kept() -> None:
    """What a cached routine holds is little more than its code."""
    routine = emit_map("gelu_backward", 5, 300, "f32", TARGETS["avx512"], ld={"c": 333})
    gc.collect()
    seen: set[int] = set()
    left: list[Any] = [vars(routine)]
    size = 0
    while left:
        each = left.pop()
        shared = (type, Routine, type(routine.target), type(gc), type(emit_map))
        if id(each) in seen or isinstance(each, shared) or each is ARGUMENTS:
            continue
        seen.add(id(each))
        assert not isinstance(each, Program)
        size += sys.getsizeof(each)
        left += gc.get_referents(each)
    assert size < routine.nbytes + 1024
    assert routine.nbytes < len(routine.code) + 2048


def test_a_listing_has_words_sections_and_all_bytes() -> None:
    routine = emit_cell("gru", 2, 9, "f32", AVX2, width=16)
    text = routine.listing()
    head, _, body = text.partition("\n\n")
    assert "; gru f32 2x9 for avx2" in head and f"; {len(routine.code)} bytes" in head
    assert ";   residual         f32       h" in head
    assert "; the last vectors: [" in body and "; constants" in body
    code = bytearray(len(routine.code))
    for line in body.splitlines():
        if line[:1] == " ":
            at, data, *_ = line.split()
            code[int(at, 16) : int(at, 16) + len(data) // 2] = bytes.fromhex(data)
    assert bytes(code) == routine.code
    assembly = routine.listing("asm")
    assert f"{symbol_name(routine)}:" in assembly and "h after" not in assembly


def test_a_listing_as_values_and_as_a_page() -> None:
    routine = emit_cell("gru", 2, 40, "f32", AVX2, width=16)
    values = json.loads(routine.listing("json"))
    assert values["format"] == "jitgen routine 1" and values["name"] == "gru f32 2x40"
    assert [word["word"] for word in values["words"]] == [o.word for o in routine.signature]
    assert values["general_registers"].keys() == routine.roles.keys()
    code = bytearray(len(routine.code))
    for line in values["lines"]:
        data = bytes.fromhex(line["bytes"])
        code[line["offset"] : line["offset"] + len(data)] = data
    assert bytes(code) == routine.code and not values["behind"]
    instructions = [line for line in values["lines"] if line["kind"] == "instruction"]
    assert sum(values["instructions"].values()) == len(instructions)
    assert any(line["depth"] for line in instructions)
    page = formats.render(routine, "html", analysis=["x & y"])
    assert "<h1>gru f32 2x40 for avx2</h1>" in page and "Words of its argument" in page
    assert "<pre>x &amp; y</pre>" in page
    assert page.count('<div class="row ') == len([x for x in values["lines"] if x["bytes"]])
    # over the two rows, and over vectors within each
    assert page.count('<div class="loop">') == 2 == max(x["depth"] for x in instructions)


def test_a_driver_knows_its_kernels() -> None:
    copy, add = (emit_map(op, 3, 40, "f32", AVX2) for op in ("copy", "add_to"))
    kernel = jitgen.brgemm(2, 8, 8, target="avx2")
    words = (Word("a", 0, 2), Word("c", 1, 2))
    calls = [Call(copy, words), Call(kernel, words), Call(copy, words[:1]), Call(add, words)]
    driver = emit_replay(calls, AVX2, "Layer forward 3 40")
    assert driver.name == "replay Layer forward 3 40"
    code = driver.code
    own, *behind = driver.pieces()
    assert own.routine is driver and own.offset == 0 and own.size % 64 == 0
    assert [piece.routine for piece in behind] == [copy, kernel, add]
    end = own.size
    for piece in behind:
        assert piece.offset >= end and piece.offset % 64 == 0
        end = piece.offset + piece.size
        assert code[piece.offset : end] == piece.routine.code
    assert end <= len(code) <= end + 64
    text = driver.listing()
    assert f";    {behind[1].offset:3x}  brgemm f32 2x8x8, {len(kernel.code)} bytes" in text
    assert ".long" not in text  # kernels are no data


def test_a_driver_dies_with_its_last_user() -> None:
    driver = emit_replay([Call(emit_map("zero", 1, 8, "f32", AVX2), ())], AVX2)
    gone = weakref.ref(driver)
    gc.disable()
    try:
        del driver
        assert gone() is None
    finally:
        gc.enable()


def test_streams_take_routines_and_know_equal_code() -> None:
    """Two requests that give the same code are one kind of call."""
    def code(size: dict[str, int], first: bool, last: bool) -> Any:
        shape = (2, 24) if size["n"] == 48 else (1, 48)  # rows that follow one another
        return emit_map("copy", *shape, "f32", AVX2), {}

    refs = {"a": Ref("a", {"n": 1}, 4, 0, 0, {}), "c": Ref("c", {"n": 1}, 4, 0, 0, {})}
    stream = Stream([Part("copy", "n", {"n": Loop(80, (48,))}, code, refs)], ["a", "c"])
    assert emit_map("copy", 2, 24, "f32", AVX2) is not emit_map("copy", 1, 48, "f32", AVX2)
    assert len(stream.calls) == 1 and stream.calls[0].routine.name.startswith("copy f32")

    def bare(size: dict[str, int], first: bool, last: bool) -> Any:
        return b"\xc3", {}

    with pytest.raises(TypeError, match=r"result of code\[0\]=b'\\xc3' is no jitgen.Routine"):
        Stream([Part("bare", "n", {"n": Loop(8, (8,))}, bare, refs)], ["a", "c"])
