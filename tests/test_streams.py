"""Streams of products: what they say, and what comes out when an emitted driver replays them.

Replayed by the driver of each instruction set, AVX2 natively, AVX-512 in Bochs and natively, SVE
under qemu, between guard pages; on several threads natively. Not here: layers
(test_fully_connected).
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from layouts import stored
from random_cases import SEED
from rig.job import Buffer, Job, Pointers
from tiers import TIERS, need

from jitgen.emit.routine import Routine
from jitgen.gemm.kernel import panel_width
from jitgen.primitives.nest import gemm
from jitgen.primitives.nest.gemm import (
    Product,
    choose_blocks,
    fused_part,
    pack_part,
    product_part,
)
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.nest import Nest
from jitgen.primitives.nest.stream import Made, Part, Ref, Stream
from jitgen.primitives.nest.tensor import Tensor
from jitgen.run import cpu, loader
from jitgen.run.replay import BARRIER, END, FIRST_KIND, emit_replay
from jitgen.target import AVX2, parse_target
from jitgen.types import DTYPES

NUMPY = {"f32": np.float32, "f64": np.float64}
#: tier -> (streams, largest size)
AMOUNT = {
    "avx2 native": (120, 90), "avx512 native": (120, 90), "avx512 bochs": (60, 24),
    "sve128 qemu": (20, 30), "sve256 qemu": (20, 30), "sve512 qemu": (20, 30),
    "neon qemu": (20, 30),
}  # fmt: skip


def random_product(rng: random.Random, target: str, most: int, threads: int) -> Product:
    """Any layout of A, B and C, sizes that blocks do not divide."""
    m, n, k = (rng.randint(1, most) for _ in range(3))
    dtype = rng.choice(["f32", "f64"])
    chosen = parse_target(target)
    lanes = chosen.machine(dtype, 1 << 20).lanes
    width = rng.choice([lanes, 2 * lanes, panel_width(m, n, k, dtype, chosen)])
    w, b = rng.choice([4, 8, 16]), rng.choice(["", "k n", "n k", "in place"])
    product = Product(
        m, n, k, dtype, chosen, threads, width,
        a=rng.choice(["m k", "k m", f"k/{w} m k", f"m/{w} k m"]),
        b="k n" if b == "in place" else b, in_place=b == "in place",
        c=rng.choice(["m n", f"n/{width} m n"]),
        epilogue=rng.choice([(), (("bias",),), (("bias",), ("relu",))]),
        order=rng.choice([None, "MN", "NM", "[MN]", "mn", "nM"]),
    )  # fmt: skip
    rows, columns, _ = choose_blocks(product)
    if not product.rows_of_panels:
        rows = rng.randint(1, m)
    if product.depth_of_panels and product.order:
        product = replace(product, order="NM")
    return replace(product, blocks=(rows, columns))


def build(product: Product, seed: int) -> tuple[Stream, dict[str, np.ndarray], np.ndarray]:
    """The stream, its tensors as stored (outputs poisoned), and what C must be, in float64."""
    rng = np.random.default_rng(seed)
    p, kind = product, NUMPY[product.dtype]
    a, b = (rng.integers(-8, 9, s).astype(kind) for s in ((p.m, p.k), (p.k, p.n)))
    bias = rng.integers(-8, 9, p.n).astype(kind)
    expected = a.astype(np.float64) @ b
    if p.epilogue:
        expected += bias
    if len(p.epilogue) > 1:
        expected = np.maximum(expected, 0)
    tensors = {
        "a": stored(a, "m k", p.a), "b": stored(b, "k n", p.b or f"n/{p.width} k n"),
        "c": np.full((p.m, p.n) if p.c == "m n" else (-(-p.n // p.width), p.m, p.width),
                     np.nan, kind),
        "bias": bias,
    }  # fmt: skip
    parts = []
    packed = p.to_pack
    if packed and p.a in ("m k", "k m") and p.c == "m n" and seed % 2:
        tensors["panels"] = np.full(p.threads * p.panel_depth * p.width, np.nan, kind)
        parts.append(fused_part(p, "a", "b", "panels", "c"))
        tensors = {name: np.ascontiguousarray(t) for name, t in tensors.items()}
        return Stream(parts, list(tensors), p.threads), tensors, expected
    if packed:
        parts.append(pack_part(p, "b", "panels"))
        tensors["panels"] = np.full(p.packed_elements, np.nan, kind)
    source = "panels" if packed else "b"
    parts.append(product_part(p, "a", source, "c"))
    tensors = {name: np.ascontiguousarray(t) for name, t in tensors.items()}
    return Stream(parts, list(tensors), p.threads), tensors, expected


def result(product: Product, c: np.ndarray) -> np.ndarray:
    """C as a plain matrix."""
    if product.c == "m n":
        return c
    flat = c.transpose(1, 0, 2).reshape(product.m, -1)
    assert np.isnan(flat[:, product.n :]).all(), "columns beyond n were written"
    return flat[:, : product.n]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Panels are packed in several pieces also where the sizes are those of a test."""
    monkeypatch.setattr(gemm, "PANEL_BYTES", 1 << 10)


@pytest.mark.parametrize("tier", AMOUNT)
def test_replay(tier: str) -> None:
    """The driver of each instruction set replays random streams; sums of integers are exact."""
    need(TIERS[tier])
    amount, most = AMOUNT[tier]
    rng = random.Random(f"{SEED} {tier}")
    jobs, cases = [], []
    for i in range(amount):
        product = random_product(rng, TIERS[tier].target, most, 1)
        stream, tensors, expected = build(product, SEED + i)
        written = ("c", "panels")
        buffers = [Buffer(t, write=name in written) for name, t in tensors.items()]
        code = emit_replay(stream.calls, product.target).code
        words = [Buffer(stream.slices[0]), Pointers(buffers), 0, 0]
        jobs.append(Job(code, words, label=str(product)))
        cases.append((product, [n for n in tensors if n in written], expected))
    outcomes = TIERS[tier].run(jobs, isa=TIERS[tier].target)
    for (product, names, expected), outcome in zip(cases, outcomes, strict=True):
        assert outcome.ok, f"JITGEN_SEED={SEED} {product}: {outcome.error}"
        c = outcome.outputs[names.index("c")].reshape(
            (product.m, product.n) if product.c == "m n" else (-1, product.m, product.width)
        )
        np.testing.assert_array_equal(result(product, c), expected, err_msg=str(product))


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_give_the_same(threads: int) -> None:
    """On this CPU, with a team of any size: exactly the same numbers."""
    rng = random.Random(f"{SEED} {threads}")
    name = cpu.host().name
    for i in range(40):
        product = random_product(rng, name, 120, threads)
        stream, tensors, expected = build(product, SEED + i)
        pointers = [loader.ffi.from_buffer(t) for t in tensors.values()]
        stream.team(product.target)(pointers)
        np.testing.assert_array_equal(result(product, tensors["c"]), expected, str(product))


def decode(stream: Stream, thread: int) -> list[tuple[int, list[int]]]:
    """The calls of a slice as the driver reads them: (kind, offsets); barriers have no offsets."""
    words = stream.slices[thread].tolist()
    at, calls = 0, []
    while words[at] != END:
        kind, repeats = words[at : at + 2]
        at += 2
        if kind == BARRIER:
            calls.append((BARRIER, []))
            continue
        size = len(stream.calls[kind - FIRST_KIND].words)
        for _ in range(repeats):
            calls.append((kind, words[at : at + size]))
            at += size
    assert at + 2 == len(words)
    return calls


def test_every_product_term_is_used_once() -> None:
    """From the bytes of the streams alone: each output block written once, each term used once."""
    rng = random.Random(SEED)
    for _ in range(60):
        threads = rng.randint(1, 4)
        product = replace(random_product(rng, "avx2", 90, threads), a="m k", c="m n")
        stream, _, _ = build(product, 0)
        used = np.zeros((product.m, product.n, product.k), np.int64)
        written = np.zeros((product.m, product.n), np.int64)
        part = stream.parts[-1]
        per_thread = [decode(stream, t) for t in range(threads)]
        barriers = [sum(kind == BARRIER for kind, _ in calls) for calls in per_thread]
        assert len(set(barriers)) == 1
        found = [call for calls in per_thread for call in calls if len(call[1]) >= 3
                 and "b" in [w.name for w in stream.calls[call[0] - FIRST_KIND].words]]  # fmt: skip
        assert len(found) == len(part.nest)
        shapes = dict(zip(part.kind.tolist(), zip(*part.nest.size.values(), strict=True),
                          strict=True))  # fmt: skip
        for kind, (a, b, c, *_) in found:
            rows, columns = shapes[kind]
            m, k = divmod(a, product.k)
            n = b if product.in_place else b // (product.k * product.width) * product.width
            assert (k, c) == (0, m * product.n + n)
            used[m : m + rows, n : n + columns] += 1
            written[m : m + rows, n : n + columns] += 1
        assert (used == 1).all(), product
        assert (written == 1).all(), product


def test_the_text_tells_who_does_what() -> None:
    product = Product(8, 32, 4, "f32", parse_target("avx2"), 2, 16, blocks=(4, 16))
    stream, _, _ = build(product, 0)
    text = stream.text(1)
    assert "thread 1: 2 calls" in text
    assert "... and 1 more" in text
    assert "c c[128]" in text


def test_the_text_has_calls_beside_others_at_any_depth() -> None:
    """In the order in which they are made: what is before what is before."""
    target = parse_target("avx2")
    nest = Nest("m", {"m": Loop(4, (2,))}, "f32", target)
    x, y, z = (Tensor(name, "m k", "f32", m=4, k=4).at(m="m") for name in "xyz")
    first = nest.relayout(x, x, title="first")
    second = nest.relayout(x, y, title="second", before=(first,))
    third = nest.relayout(x, z, title="third", before=(second,), after=(first,))
    lines = Stream([third], ["x", "y", "z"]).text(1).splitlines()
    written = [line.split(", c ")[1] for line in lines if "m 0+2" in line]
    assert written == ["x[0]", "y[0]", "z[0]", "x[0]"]


def test_offsets_beyond_32_bits_are_refused() -> None:
    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        return Routine("nothing", (), AVX2, b"\xc3"), {}

    loops = {"n": Loop(4, (2,))}
    part = Part("far", "n", loops, code, {"a": Ref("a", {"n": 1 << 31}, 4, 0, 0, {})})
    with pytest.raises(ValueError, match="far"):
        Stream([part], ["a"])


def test_the_driver_reports_a_refusal() -> None:
    """What a kernel returns reaches the caller: two calls, one of which refuses."""
    from jitgen.isa.program import Program
    from jitgen.isa.x86 import FORMS, RAX, nops

    target: Any = cpu.host()
    if target.architecture != "x86_64":
        pytest.skip("the kernel that refuses is written for x86-64")
    codes = []
    for value in (0, 1):
        program = Program(nops)
        program.emit(FORMS["mov r32 uimm32"], (RAX, value))
        program.emit(FORMS["ret"], ())
        codes.append(Routine(f"returns {value}", (), target, program.encode()))

    def code(size: dict[str, int], first: bool, last: bool) -> Made:
        return codes[first], {}

    refs = {"a": Ref("a", {"n": 1}, 4, 0, 0, {})}
    part = Part("refuse", "n", {"n": Loop(2, (1,))}, code, refs, "n")
    with pytest.raises(RuntimeError, match="vectors"):
        Stream([part], ["a"]).team(target)([loader.ffi.NULL])


assert DTYPES.keys() == NUMPY.keys()
