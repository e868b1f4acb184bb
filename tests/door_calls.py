"""A working call of every public function, and what its arguments may be.

A new public function has no call here, and makes the walk fail. Not here: the walk (`door_walk`).
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from door_values import (
    IN,
    LOOSE,
    MAYBE,
    MAYBE_OUT,
    NO,
    OUT,
    Array,
    Kind,
    anything,
    dtype,
    either,
    flag,
    folder,
    function,
    items,
    mapping,
    name,
    no_items,
    nothing,
    number,
    optional,
    size,
    text,
)

import jitgen
import jitgen.analysis.measure
import jitgen.run.disk
from jitgen import target
from jitgen.analysis import analyze, plot
from jitgen.cli import main
from jitgen.gemm import spec
from jitgen.inspect import formats
from jitgen.primitives.nest import curve, loops, tuning
from jitgen.primitives.nest.cost import cost
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.nest import Nest, relayout
from jitgen.primitives.nest.primitive import Primitive
from jitgen.primitives.nest.stream import Part, Ref, Stream
from jitgen.primitives.nest.tensor import Tensor
from jitgen.run import cpu, threads

#: Those whose name says all
ACTIVATIONS = (
    "relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu", "exp", "hardsigmoid", "hardswish",
    "elu", "mish", "relu6",
)  # fmt: skip
PASSES = ("forward", "backward_data", "backward_weights")
HERE = cpu.host().name
#: Threads are not made for each case
ONE: dict[str, Any] = {"threads": 1, "target": HERE}


class Call(NamedTuple):
    """A function, its right arguments (fresh ones each time), what else each may be; `alias`: the
    words by which messages name an argument; `left_out`: arguments that are not tried, and why."""

    function: Callable[..., Any]
    arguments: Callable[[], dict[str, Any]]
    kinds: dict[str, Kind]
    alias: dict[str, str] = {}
    left_out: dict[str, str] = {}


def rand(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32) - np.float32(0.5)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


COUNT = size(1, 8)  # sizes for which trying is quick
SOME: dict[str, Kind] = {
    "dtype": dtype, "threads": optional(size(1, 1024)),
    "target": optional(name("avx2", "avx512", "sve128")), "bias": flag, "activation": optional(
        name(*ACTIVATIONS)), "tune": flag, "layout": name("nchw", "nhwc"),
    "order": optional(text), "direction": name("forward", "reverse", "bidirectional"),
}  # fmt: skip
SIZES = ("batch", "in_features", "out_features", "in_channels", "out_channels", "channels",
         "height", "width", "length", "steps", "hidden", "groups")  # fmt: skip
SOME |= dict.fromkeys(SIZES, COUNT)
PAIR = either(size(), items(size(), 2, 2))
SIDE = either(size(0), items(size(0), 2, 2))
PADDING = either(SIDE, items(SIDE, 2, 2), name("same"))


CALLS: dict[str, Call] = {}


def add(key: str, call: Any, arguments: Callable[[], dict[str, Any]], /, **more: Any) -> None:
    """Add a call; `more`: kinds of arguments that SOME has not, alias, left_out."""
    alias, left_out = more.pop("alias", {}), more.pop("left_out", {})
    kinds = {each: SOME[each] for each in arguments() if each in SOME} | more
    CALLS[key] = Call(call, arguments, kinds, alias, left_out)


# ---- jitgen -------------------------------------------------------------------------------------

EPILOGUE = ("bias", "bias_row", "residual", "relu_mask")
KERNEL = jitgen.brgemm(3, 5, 4, epilogue=EPILOGUE, target=HERE)
PACKED = jitgen.brgemm(3, 40, 4, packed_b=16, target=HERE)
OFFSET = jitgen.brgemm(3, 5, 4, batch="offset", target=HERE)
SHOWN = jitgen.brgemm(2, 8, 3, target="avx2")


def call_of_kernel() -> dict[str, Any]:
    return {"a": rand(2, 3, 4), "b": rand(2, 4, 5), "c": zeros(3, 5), "bias": rand(5),
            "bias_row": rand(3), "residual": rand(3, 5), "mask": np.zeros((3, 1), np.uint8),
            "a_offsets": None, "b_offsets": None}  # fmt: skip


def run_kernel(**arguments: Any) -> Any:
    result = KERNEL(**arguments)
    return result, arguments["mask"]


def run_bound(**arguments: Any) -> Any:
    KERNEL.bind(**arguments)()
    return arguments["c"], arguments["mask"]


def offsets() -> dict[str, Any]:
    return {"a": rand(40), "b": rand(60), "c": zeros(3, 5), "a_offsets": np.array([0, 28]),
            "b_offsets": np.array([40, 3])}  # fmt: skip


OPERANDS = {"a": IN, "b": IN, "c": OUT, "bias": IN, "bias_row": IN, "residual": IN, "mask": OUT,
            "a_offsets": MAYBE, "b_offsets": MAYBE}  # fmt: skip
def request(**more: Any) -> dict[str, Any]:
    return {"m": 3, "n": 5, "k": 4, "dtype": "f32", "lda": 4, "ldb": 5, "ldc": 5, "ldr": 5,
            "batch": "stride", "stride_a": 12, "stride_b": 20, "alpha": 1.0, "beta": 0.0,
            "trans_a": False, "trans_b": False, "epilogue": (), **more}  # fmt: skip


SPEC: dict[str, Kind] = {
    **dict.fromkeys("mnk", size()), "batch": name("stride"), "alpha": number(), "beta": number(),
    **dict.fromkeys(("lda", "ldb", "ldc", "ldr"), optional(size())), "trans_a": flag,
    **dict.fromkeys(("stride_a", "stride_b"), optional(size(0))), "trans_b": flag,
    "epilogue": no_items,
}  # fmt: skip
add("jitgen.brgemm", jitgen.brgemm,
    lambda: request(packed_b=False, ldb=None, target="avx2", plan={"rows": 2}, assembler="jitgen"),
    **SPEC, packed_b=flag, plan=optional(mapping), assembler=nothing)
add("jitgen.gemm.spec.make_spec", spec.make_spec, lambda: request(panel=0, ldb=None), **SPEC,
    panel=size(0))
add("jitgen.gemm.spec.make_epilogue", spec.make_epilogue,
    lambda: {"steps": ("relu",), "dtype": "f32"}, steps=no_items,
    dtype=optional(dtype), alias={"steps": "epilogue"})
add("jitgen.Kernel.__call__", run_kernel, call_of_kernel, **OPERANDS)
add("jitgen.Kernel.bind", run_bound, call_of_kernel, **OPERANDS)
ANY_SHAPE = Array(also=("one axis more", "one more"))
add("jitgen.Kernel.bind of offsets", OFFSET, offsets, a=ANY_SHAPE, b=ANY_SHAPE, c=OUT,
    a_offsets=Array(also=LOOSE), b_offsets=Array(also=LOOSE))
add("jitgen.Kernel.flops", KERNEL.flops, lambda: {"count": 1}, count=size(0, math.inf))
add("jitgen.Kernel.listing", SHOWN.listing, lambda: {"format": "text", "syntax": "intel"},
    format=name("text", "asm", "json", "html"), syntax=nothing)
add("jitgen.KernelSpec.described", lambda: list(KERNEL.spec.described()), dict)
add("jitgen.KernelSpec.flops", KERNEL.spec.flops, lambda: {"count": 1}, count=size(0, math.inf))
add("jitgen.pack_b", jitgen.pack_b,
    lambda: {"b": rand(2, 4, 40), "panel": PACKED, "trans": False, "out": zeros(2, 3, 4, 16)},
    b=Array(also=("not aligned", "one axis less")), panel=nothing, trans=flag,
    out=MAYBE_OUT)
add("jitgen.host", jitgen.host, dict)
add("jitgen.targets", jitgen.targets, dict)
add("jitgen.clear_caches", jitgen.clear_caches, dict)
add("jitgen.cache_info", lambda: list(jitgen.cache_info()), dict)
add("jitgen.Target", jitgen.Target,
    lambda: {"name": "mine", "family": "sve", "vector_bits": 256, "architecture": "aarch64",
             "features": ("sve",), "rates": target.AVX2.rates},
    name=text, family=nothing, vector_bits=nothing, architecture=nothing, features=items(text),
    rates=nothing)  # fmt: skip
add("jitgen.Target.scalar_machine", lambda: target.AVX2.scalar_machine().lanes, dict)
add("jitgen.Target.machine", lambda dtype, n: target.AVX2.machine(dtype, n).lanes,
    lambda: {"dtype": "f32", "n": 5}, n=size())
add("jitgen.target.parse_target", target.parse_target, lambda: {"name": "avx2"}, name=nothing,
    alias={"name": "target"})
add("jitgen.run.cpu.choose", cpu.choose, lambda: {"target": "avx2"})
add("jitgen.run.threads.check_threads", threads.check_threads, lambda: {"threads": 1})
#: The child's own, so that files named "4" do no harm
FOLDER = os.getcwd()


def export(kernels: Any, directory: Any, name: Any, **more: Any) -> Any:
    return jitgen.export(kernels, directory, name, **more)["files"]


def nothing_or_empty(v: Any) -> Any:
    """None, or a mapping of nothing."""
    return None if v is None or (isinstance(v, dict) and not v) else NO


add("jitgen.export", export,
    lambda: {"kernels": {"a": [SHOWN], "b": jitgen.MaxPool(1, 2, 3, 3, 2, **ONE)},
             "directory": FOLDER, "name": "some", "threads": [1], "passes": ["forward"],
             "weights": {}},
    kernels=nothing, directory=folder,
    threads=either(lambda v: [1] if isinstance(v, dict) and not v else NO, items(size(1, 1024), 1)),
    passes=either(nothing_or_empty, items(name("forward", "backward"))), weights=nothing_or_empty,
    name=lambda v: v if isinstance(v, str) and v in ("no", "forward", "f32", "x") else NO)


def debug(tools: Any, directory: Any) -> None:
    try:
        jitgen.debug.enable(tools, directory=directory)
    finally:
        jitgen.debug.disable()


add("jitgen.debug.enable", debug, lambda: {"tools": "gdb", "directory": FOLDER}, tools=nothing,
    directory=optional(folder), alias={"tools": "tool"})
add("jitgen.debug.disable", jitgen.debug.disable, dict)
add("jitgen.debug.enable_from_environment", jitgen.debug.enable_from_environment, dict)


def disk(directory: Any, limit: Any) -> None:
    try:
        jitgen.run.disk.enable(directory, limit)
    finally:
        jitgen.run.disk.disable()


add("jitgen.run.disk.enable", disk, lambda: {"directory": FOLDER, "limit": 1 << 22},
    directory=optional(folder), limit=size(1 << 18, math.inf))
add("jitgen.run.disk.disable", jitgen.run.disk.disable, dict)
add("jitgen.analysis.analyze", lambda **given: analyze(**given).lines(),
    lambda: {"kernel": SHOWN, "cpu": "znver3", "batch": 1, "other_models": False},
    kernel=nothing, cpu=nothing, batch=size(), other_models=flag)
REPORT = analyze(SHOWN, "znver3", 1, False)
add("jitgen.analysis.plot.check_file", plot.check_file, lambda: {"file": FOLDER + "/a.svg"},
    file=nothing)
add("jitgen.analysis.plot.roofline", plot.roofline,
    lambda: {"report": REPORT, "file": FOLDER + "/a.svg"}, report=nothing, file=nothing)
add("jitgen.inspect.formats.render", formats.render,
    lambda: {"kernel": SHOWN, "format": "text", "syntax": "intel", "analysis": None},
    kernel=nothing, format=name("text", "asm", "json", "html"), syntax=nothing,
    analysis=optional(items(text)))
add("jitgen.cli.main", main, lambda: {"argv": ["targets", "--json"]}, argv=nothing,
    left_out={"argv": "words that argparse refuses end with 2: test_cli has a table of them"})
measure = jitgen.analysis.measure
add("jitgen.analysis.measure.Problem", measure.Problem, lambda: {"kernel": KERNEL, "count": 1},
    kernel=nothing, count=COUNT)
PROBLEM = measure.Problem(KERNEL, 1)
add("jitgen.analysis.measure.Problem.bind", lambda kernel: PROBLEM.bind(kernel)(),
    lambda: {"kernel": KERNEL}, kernel=nothing)
add("jitgen.analysis.measure.Problem.check", PROBLEM.check, dict)
add("jitgen.analysis.measure.Problem.numpy_call", lambda: PROBLEM.numpy_call()(), dict)
add("jitgen.analysis.measure.empty_kernel", measure.empty_kernel, lambda: {"kernel": KERNEL},
    kernel=nothing)
add("jitgen.analysis.measure.peak_kernel", lambda kernel: measure.peak_kernel(kernel)[1],
    lambda: {"kernel": KERNEL}, kernel=nothing)
add("jitgen.analysis.measure.emit_peak",
    lambda target, dtype: measure.emit_peak(target, dtype)[1],
    lambda: {"target": cpu.host(), "dtype": "f32"}, target=nothing)


def interleave(contestants: Any, seconds: Any) -> Any:
    """With seconds that would be right made short."""
    plain = SECONDS(seconds)
    return list(measure.interleave(contestants, seconds if plain is NO else plain * 1e-6))


SECONDS = number(above=0, below=3601)
add("jitgen.analysis.measure.interleave", interleave,
    lambda: {"contestants": {"a": int}, "seconds": 1.0}, contestants=nothing, seconds=SECONDS)
add("jitgen.analysis.measure.generation", lambda **given: list(measure.generation(**given)),
    lambda: {"kernel": SHOWN, "make": functools.partial(jitgen.brgemm, 2, 8, 3, target="avx2")},
    kernel=nothing, make=nothing)

# ---- loops and streams --------------------------------------------------------------------------


def no_code(sizes: dict[str, int], first: bool, last: bool) -> Any:
    return SHOWN, {"count": 1}


REF = Ref("A", {"n": 1}, 4, 0, 0, {})
LOOPS = {"n": Loop(4, (2,))}


def part(**more: Any) -> Part:
    given = {"title": "t", "order": "n", "loops": LOOPS, "code": no_code, "words": {"a": REF}}
    return Part(**{**given, **more})


add("jitgen.primitives.nest.curve.curve", curve.curve, lambda: {"rows": 2, "columns": 3},
    rows=size(0), columns=size(0))
add("jitgen.primitives.nest.loops.Loop", Loop, lambda: {"extent": 4, "blocks": (2, 1)},
    extent=size(0), blocks=items(size(), 1))
add("jitgen.primitives.nest.loops.parse_order", loops.parse_order, lambda: {"order": "Nk"},
    order=text)
add("jitgen.primitives.nest.loops.iterate", lambda **given: loops.iterate(**given).thread,
    lambda: {"order": "n", "loops": LOOPS, "threads": 2}, order=nothing, loops=nothing)
add("jitgen.primitives.nest.stream.Stream", lambda **given: Stream(**given).slices,
    lambda: {"parts": [part()], "tensors": ["A"], "threads": 2}, parts=items(nothing),
    tensors=nothing)
STREAM = Stream([part()], ["A"])
add("jitgen.primitives.nest.stream.Stream.text", STREAM.text, lambda: {"most": 40}, most=size(0))
FLAGGED = Stream([part(when=REF)], ["A"])
add("jitgen.primitives.nest.stream.Stream.chosen", FLAGGED.chosen,
    lambda: {"flags": np.ones(4, bool)}, flags=nothing)
add("jitgen.primitives.nest.stream.Stream.team", lambda **given: STREAM.team(**given) and None,
    lambda: {"target": HERE, "name": ""}, name=text)
PLAIN = jitgen.brgemm(2, 8, 3, target=HERE)
add("jitgen.Kernel.pieces", lambda: len(PLAIN.pieces()), dict)
TEAM = Stream(
    [part(code=lambda sizes, first, last: (PLAIN, {"count": 1}),
          words={word: Ref(word, {}, 4, 0, 0, {}) for word in "abc"})],
    list("abc"),
).team(cpu.host())  # fmt: skip
add("the call of a Stream.team", TEAM,
    lambda: {"bases": [jitgen.run.loader.ffi.from_buffer(zeros(99)) for _ in "abc"]}, bases=nothing)
TENSOR = Tensor("x", "n c", "f32", n=8, c=4)
WIDE = Tensor("y", "n k", "f32", n=8, k=4)
NEST = Nest("mnk", {"m": Loop(8, (4,)), "n": Loop(4, (4,)), "k": Loop(4, (4,))}, "f32", cpu.host(),
            "k")  # fmt: skip
ACCESSES = {"a": TENSOR.at(n="m", c="k"), "b": Tensor("w", "c k", "f32", c=4, k=4).at(c="k", k="n"),
            "c": WIDE.at(n="m", k="n")}  # fmt: skip
add("jitgen.primitives.nest.tensor.Tensor", lambda n, **given: Tensor(**given, n=n, c=4),
    lambda: {"name": "x", "layout": "n c", "dtype": "f32", "own": False, "strides": {"n": 9},
             "n": 8},
    name=text, layout=text,
    dtype=either(name("f32"), lambda v: v if size(1, 8)(v) in (1, 2, 4, 8) else NO),
    own=flag, strides=lambda v: {} if v is None else mapping(v), n=size(0, 1 << 40))
add("jitgen.primitives.nest.tensor.Tensor.at", lambda n: TENSOR.at(n=n).index, lambda: {"n": "m"},
    n=either(text, size(-(1 << 40), 1 << 40), lambda v: list(v) if type(v) is list and
             NO not in [size(-(1 << 40), 1 << 40)(x) for x in v] else NO))
add("jitgen.primitives.nest.tensor.Tensor.offset", lambda n: TENSOR.offset(n=n), lambda: {"n": 3},
    n=size(0, 8))
for method in ("blocks", "rank", "run", "stride"):
    add(f"jitgen.primitives.nest.tensor.Tensor.{method}", getattr(TENSOR, method),
        lambda: {"axis": "n"}, axis=text)
add("jitgen.primitives.nest.tensor.Tensor.merged", lambda axis: TENSOR.merged("n", axis),
    lambda: {"axis": "c"}, axis=text)
add("jitgen.primitives.nest.tensor.Tensor.like", TENSOR.like,
    lambda: {"name": "y", "layout": "c n"}, name=text, layout=text)
add("jitgen.primitives.nest.cost.cost", lambda **given: cost(**given).cycles,
    lambda: {"nest": NEST, "accesses": ACCESSES, "threads": 2, "columns": "n", "windows": ""},
    nest=nothing, accesses=mapping, columns=either(name("n"), name("")), windows=name(""))
add("jitgen.primitives.nest.nest.Nest", Nest,
    lambda: {"order": "mn", "loops": {"m": Loop(8, (4,)), "n": Loop(4, (4,))}, "dtype": "f32",
             "target": HERE, "sums": ""},
    order=text, loops=mapping, dtype=name("f32"), sums=text)
add("jitgen.primitives.nest.nest.Nest.call", NEST.call,
    lambda: {"title": "t", "code": no_code, "words": ACCESSES, "before": (), "after": (),
             "when": None, "variants": None, "writes": ("c",)},
    title=text, code=function, words=mapping, before=items(nothing), after=items(nothing),
    when=optional(nothing), variants=optional(mapping),
    writes=optional(items(name("a", "b", "c"))))  # fmt: skip
add("jitgen.primitives.nest.nest.Nest.gemm", lambda **given: NEST.gemm(**given).words,
    lambda: {**ACCESSES, "m": "m", "n": "n", "k": "k", "outer": "", "taps": "", "batch": None,
             "columns": 0, "alpha": 1.0, "beta": 0.0, "epilogue": (), "plan": None, "words": None,
             "title": "t"},
    a=nothing, b=nothing, c=nothing, m=name("m"), n=name("n"), k=name("k"), outer=name(""),
    taps=name(""), batch=optional(nothing), columns=size(0), alpha=number(), beta=number(),
    epilogue=items(nothing), plan=optional(mapping), words=optional(mapping), title=text)
add("jitgen.primitives.nest.nest.Nest.relayout", lambda **given: NEST.relayout(**given).words,
    lambda: {"source": TENSOR.at(n="m", c="k"), "to": Tensor("z", "c n", "f32", n=8, c=4).at(
        n="m", c="k"), "title": "t", "fill": True},
    source=nothing, to=nothing, title=text, fill=flag)
add("jitgen.primitives.nest.nest.Nest.rows", lambda **given: NEST.rows(**given).words,
    lambda: {"function": "softmax", "operands": {"x": TENSOR.at(n="m"), "y": TENSOR.at(n="m")},
             "rows": "m", "over": "c", "eps": 1e-5, "title": ""},
    function=name("softmax"), operands=mapping, rows=name("m"), over=name("c"),
    eps=number(low=0), title=text)
add("jitgen.primitives.nest.nest.relayout", lambda **given: relayout(**given).words,
    lambda: {"source": TENSOR, "to": Tensor("z", "c n", "f32", n=8, c=4), "dtype": "f32",
             "target": HERE, "fill": True},
    source=nothing, to=nothing, dtype=name("f32"), fill=flag)
TRIPLE = {"a": TENSOR, "b": Tensor("w", "c k", "f32", c=4, k=4), "c": WIDE}
PRIMITIVE = Primitive([NEST.gemm(**ACCESSES)], [TENSOR, TRIPLE["b"], WIDE], 1)


def run_primitive(**arrays: Any) -> Any:
    PRIMITIVE(**arrays)
    return arrays["y"]


add("jitgen.primitives.nest.primitive.Primitive",
    lambda **given: Primitive(**given).stream.slices,
    lambda: {"parts": [NEST.gemm(**ACCESSES)], "tensors": [TENSOR, WIDE], "threads": 1,
             "scratch": [TRIPLE["b"]], "constants": None, "name": ""},
    parts=nothing, tensors=nothing, scratch=nothing, constants=optional(mapping), name=text,
    left_out=dict.fromkeys(("tensors", "scratch"), "without it, a part's tensor is in no list"))
add("jitgen.primitives.nest.primitive.Primitive.__call__", run_primitive,
    lambda: {"x": rand(8, 4), "w": rand(4, 4), "y": zeros(8, 4)}, x=IN, w=IN, y=OUT)
add("jitgen.primitives.nest.primitive.Primitive.procedures",
    lambda **given: [p.threads for p in PRIMITIVE.procedures(**given)],
    lambda: {"name": "a", "passes": None, "threads": [1], "weights": None},
    name=text, passes=lambda v: v if v is None else NO, threads=items(size(1, 1), 1, 1),
    weights=nothing_or_empty)
add("jitgen.primitives.nest.primitive.Primitive.seconds",
    lambda: PRIMITIVE.seconds() and None, dict)
add("jitgen.primitives.nest.tuning.tuned", tuning.tuned,
    lambda: {"key": "k", "candidates": {"a": 1}, "seconds": lambda c: 1.0}, key=anything,
    candidates=nothing, seconds=anything)
add("jitgen.primitives.nest.tuning.path", tuning.path, dict)
