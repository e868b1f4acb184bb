"""The golden corpus: how kernels and streams are hashed, and the kernels.

What is emitted is a pure function of a request and a target; a change that is not meant to alter
it alters no hash. All that the corpus knows of the product's inside is in the imports and the
adapter. Not here: layers (`golden_layers`), comparison and refresh (`test_golden`), whether the
bytes are right (all other tests).
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from hashlib import blake2b
from itertools import product
from typing import Any
from unittest import mock

import numpy as np

from jitgen.analysis.measure import emit_peak
from jitgen.gemm.kernel import brgemm
from jitgen.kernels.cell_bodies import CELLS
from jitgen.kernels.cells import emit_cell
from jitgen.kernels.depthwise import emit_depthwise, emit_depthwise_weights
from jitgen.kernels.dot import emit_dot
from jitgen.kernels.elementwise import emit_column_sums, emit_map
from jitgen.kernels.layout import emit_transpose
from jitgen.kernels.pack import emit_packer
from jitgen.kernels.pooling import emit_pool, emit_pool_backward
from jitgen.kernels.row_functions import ROW_FUNCTIONS
from jitgen.kernels.rows import emit_rows
from jitgen.kernels.strips import Axis, plan_strip
from jitgen.kernels.winograd import KINDS, Grid, Squares, emit_winograd
from jitgen.primitives.nest.run import Run
from jitgen.primitives.nest.stream import Stream
from jitgen.run import cpu, quota
from jitgen.run.cache import STREAMS
from jitgen.run.crew import emit_crew, emit_helper, emit_member
from jitgen.run.replay import Call, Word, emit_replay
from jitgen.target import Target

# ---- adapter: what follows knows how the product is built, and nothing below it does -----------

#: Streams that a call of a layer replays: each with its constant tables, and the slices in place
#: of its own (None: its own)
Replayed = list[tuple[Stream, dict[str, np.ndarray], "list[np.ndarray] | None"]]


def code_of(emitted: Any) -> bytes:
    """The machine code of what `brgemm` or an emitter returned."""
    return bytes(emitted.code)


def streams_hash(replayed: Replayed) -> str:
    """Of the records that each thread replays, barriers among them; of the calls: code, words by
    name with the tensors they point into, fixed values; and of constant tables."""
    digest = blake2b(digest_size=6)
    for stream, constants, slices in replayed:
        for records in slices or stream.slices:
            digest.update(f"thread of {len(records)}".encode())
            digest.update(np.ascontiguousarray(records, "<u4").tobytes())
        for call in stream.calls:
            tensors = stream.tensors
            words = [
                (w.name, None if w.base is None else tensors[w.base], w.shift) for w in call.words
            ]
            digest.update(f"call {len(call.code)} {words} {sorted(call.fixed)}".encode())
            digest.update(call.code)
        for name, table in sorted(constants.items()):
            digest.update(f"table {name} {table.dtype.str} {table.shape}".encode())
            digest.update(table.tobytes())
    return digest.hexdigest()


@contextmanager
def written_down(target: Target) -> Iterator[Replayed]:
    """Streams are noted and not run, so that layers for any target work on any host; the list is
    the caller's to empty. A layer without a target of its own gets `target`; whoever asks for more
    of this host fails: nothing emitted may depend on it."""
    replayed: Replayed = []

    def run(self: Run, buffers: Any, flags: np.ndarray | None = None) -> None:
        slices = None if flags is None else self.stream.chosen(flags)
        replayed.append((self.stream, self.constants, slices))

    def team(self: Stream, target: Target) -> Callable[[Any], None]:
        return lambda buffers: replayed.append((self, {}, None))

    def asked(*_: Any) -> Any:
        raise AssertionError("what is emitted depends on the host")

    with ExitStack() as stack:
        stack.callback(STREAMS.clear)  # which holds teams that do nothing
        STREAMS.clear()
        for owner, name, value in (
            (Run, "__call__", run), (Stream, "team", team), (cpu, "host", lambda: target),
            (cpu, "features", asked), (cpu, "vector_length", asked), (quota, "cpus", asked),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(owner, name, value))
        yield replayed


def strip_of(
    rows: Axis, columns: Axis, channels: int, dtype: str, target: Target, **how: Any
) -> tuple[Axis, Axis]:  # fmt: skip
    """As much of these results as one depthwise kernel computes."""
    strip = plan_strip(rows, columns, channels, dtype, target, **how)
    whole = rows if strip.rolling else replace(rows, count=1)
    return whole, replace(columns, count=strip.pixels)


def call(emitted: Any, words: dict[str, int | None], shift: int, **fixed: int) -> Call:
    """A kind of call, for a driver: word -> number of the tensor (None: a plain number)."""
    made = tuple(Word(name, base, shift if base is not None else 0) for name, base in words.items())
    return Call(emitted, made, tuple(fixed.items()))


# ---- what there is -----------------------------------------------------------------------------

TARGETS = ("avx2", "avx512", "sve128", "sve256", "sve512")
DTYPES = ("f32", "f64")
#: A case: its name, and what makes it
Kernel = tuple[str, Callable[[], Any]]
#: In place of a hash, of a kernel that is refused
REFUSED = "refused"


class Draw:
    """Numbers that are the same in every version of Python: `random()` is, of one seed."""

    def __init__(self, name: str) -> None:
        self._random = random.Random(zlib.crc32(name.encode())).random

    def number(self, low: int, high: int) -> int:
        """From low to high, both included."""
        return low + int(self._random() * (high - low + 1))

    def of(self, *values: Any) -> Any:
        """One of the values."""
        return values[self.number(0, len(values) - 1)]


def kernel_hash(make: Callable[[], Any]) -> str:
    """Of what is emitted; or that it is refused."""
    try:
        return blake2b(code_of(make()), digest_size=6).hexdigest()
    except ValueError:
        return REFUSED


# ---- kernels -----------------------------------------------------------------------------------


def _later(emit: Callable[..., Any], *args: Any, **how: Any) -> Callable[[], Any]:
    return lambda: emit(*args, **how)


def shown(options: dict[str, Any]) -> str:
    """Options for the eye."""
    text = " ".join(f"{name} {value}" for name, value in options.items())
    return "".join(c for c in text if c not in "'(){},").replace("True", "yes")


_EPILOGUES: tuple[tuple[Any, ...], ...] = (
    ("bias",), ("bias_row",), ("residual",), ("relu",), ("relu_mask",), (("leaky_relu", 0.25),),
    ("sigmoid",), ("tanh",), ("gelu",), ("gelu_tanh",), ("silu",), (("clip", -0.5, 6.0),),
    (("scale", 1.5),),
    ("bias", "relu"), ("bias", "relu_mask"), ("bias", "residual", "relu"), ("bias", "gelu"),
    ("bias_row", "sigmoid"), ("bias", ("scale", 0.5), ("clip", -1.0, 1.0)), ("silu", "bias"),
)  # fmt: skip
_PLANS: dict[str, tuple[Any, ...]] = {
    "rows": (1, 2, 5), "columns": (8, 24, 32), "order": ("nm", "mn"), "hold": ("a", "b"),
    "k_unroll": (1, 3, 8), "k_split": (1, 2), "k_block": (1, 5), "batch_chunk": (1, 3),
    "prefetch": (4, 32), "pack": (1,),
}  # fmt: skip


def _products(draw: Draw, dtype: str, at: Target) -> Iterator[Kernel]:
    for epilogue in _EPILOGUES:
        for m, n, k in ((5, 37, 8), (draw.number(1, 20), draw.number(1, 70), draw.number(1, 40))):
            make = _later(brgemm, m, n, k, dtype, target=at, epilogue=epilogue)
            yield f"brgemm {m}x{n}x{k} {shown({'': epilogue}).strip()}", make
    for i in range(90):
        m, n, k = (draw.number(1, draw.of(9, 30, 70)) for _ in range(3))
        how: dict[str, Any] = {}
        for name, values in (
            ("trans_a", (True,)), ("trans_b", (True,)), ("packed_b", (True, 16, 32)),
            ("batch", ("offset", "address")), ("alpha", (0.5, -1.0)), ("beta", (1.0, -0.25)),
            ("lda", (100,)), ("ldb", (105, 2048)), ("ldc", (77,)), ("ldr", (99,)),
            ("stride_a", (0, 9000)), ("epilogue", _EPILOGUES),
        ):  # fmt: skip
            if draw.number(0, 3) == 0:
                how[name] = draw.of(*values)
        if "packed_b" in how:
            how = {name: how[name] for name in how if name not in ("trans_b", "ldb")}
        if "batch" in how:
            how.pop("stride_a", None)
        if i % 2:
            name = draw.of(*_PLANS)
            how["plan"] = {name: draw.of(*_PLANS[name])}
        yield f"brgemm {m}x{n}x{k} {shown(how)}", _later(brgemm, m, n, k, dtype, target=at, **how)
    yield "peak", lambda: emit_peak(at, dtype)[0]


def _moves(draw: Draw, dtype: str, at: Target) -> Iterator[Kernel]:
    for i in range(7):
        k, n = draw.number(1, 40), draw.number(1, draw.of(20, 100))
        for trans in (False, True):
            leading = (k if trans else n) + draw.of(0, 3)
            shape = (k, n, leading, leading * 50, draw.of(16, 32, 48), dtype, trans, at)
            name = f"{k}x{n} ld {leading} panel {shape[4]}{' trans' * trans}"
            yield f"pack {name}", _later(emit_packer, *shape)
        gap = i % 3
        make = _later(emit_transpose, k, n, dtype, at, lda=n + gap, ldc=k + 2 * gap)
        yield f"transpose {k}x{n} gap {gap}", make


_MAPS = (
    "copy", "zero", "add_to", "relu_backward", "relu_backward_mask", "sigmoid_backward",
    "tanh_backward", "gelu_backward", "silu_backward", "sgd", "adam",
)  # fmt: skip


def _rows(draw: Draw, dtype: str, at: Target) -> Iterator[Kernel]:
    for op, i in product(_MAPS, range(4)):
        rows, columns = draw.number(1, 5), draw.number(1, draw.of(20, 200))
        ld = {"c": columns + draw.number(1, 9)} if i % 2 else {}
        make = _later(emit_map, op, rows, columns, dtype, at, ld=ld)
        yield f"map {op} {rows}x{columns} {shown(ld)}".strip(), make
    for i in range(6):
        rows, columns = draw.number(1, 30), draw.number(1, draw.of(20, 300))
        lda, more = columns + draw.of(0, 5), i % 2 == 1
        make = _later(emit_column_sums, rows, columns, dtype, at, lda=lda, accumulate=more)
        yield f"column sums {rows}x{columns} lda {lda}{' accumulate' * more}", make
    steps: Any
    for steps in ((), (("bias",),), (("bias",), ("relu",)), (("tanh",),)):
        n, k = draw.number(1, 40), draw.number(1, 90)
        ldb = k + draw.of(0, 3)
        make = _later(emit_dot, n, k, ldb, dtype, at, steps)
        yield f"dot {n}x{k} ldb {ldb} {shown({'': steps}).strip()}".strip(), make


def _windows(draw: Draw, dtype: str, at: Target) -> Iterator[Kernel]:
    steps: Any
    for i, steps in enumerate((
        (), (("bias",),), (("bias",), ("relu",)), (("clip", -0.5, 2.0),), (("bias",), ("silu",)),
        (("gelu_tanh",), ("bias",)), (("sigmoid",),), (("gelu",),),
    )):  # fmt: skip
        c, side, step, up = draw.number(1, 70), draw.of(3, 3, 5), draw.of(1, 2), draw.of(1, 1, 2)
        taps = tuple(range(-(side // 2), side - side // 2))
        rows = Axis(draw.number(1, 6), step, taps, 9, up)
        columns = Axis(20, step, taps, 9, up)
        name = f"{c} channels {side}x{side} step {step}/{up} rows {rows.count}"
        for gradient in (False, True):
            part = strip_of(rows, columns, c, dtype, at, epilogue=() if gradient else steps,
                            gradient=gradient)  # fmt: skip
            apart: dict[str, Any] = {"lda": (20 * c, c), "ahead": i % 2}
            if gradient:
                apart |= {"ldb": (30 * c, c), "ldc": c, "accumulate": i % 3 > 0}
                make = _later(emit_depthwise_weights, *part, c, dtype, at, **apart)
                yield f"depthwise weights {i} {name}", make
            else:
                apart |= {"ldb": c, "ldc": (30 * c, c), "epilogue": steps}
                make = _later(emit_depthwise, *part, c, dtype, at, **apart)
                yield f"depthwise {name} {shown({'': steps}).strip()}".strip(), make
    for i, kind in product(range(5), ("max", "average")):
        c, pixels, side = draw.number(1, 70), draw.number(1, 12), draw.of(2, 3, 5)
        shape = (kind, pixels, c, tuple(r * 40 * c + s * c for r in range(side)
                                        for s in range(side)), dtype, at)  # fmt: skip
        name = f"{kind} {side}x{side} {pixels}x{c}"
        yield f"pool {name}", _later(emit_pool, *shape, step=2 * c, ldc=c)
        more = i % 2 == 0
        make = _later(emit_pool_backward, *shape, step=2 * c, ldb=c, accumulate=more)
        yield f"pool backward {name}{' accumulate' * more}", make


def _squares(draw: Draw, dtype: str, at: Target) -> Iterator[Kernel]:
    steps: Any
    for kind, matrix in KINDS.items():
        side = len(matrix if kind == "output" else matrix[0])
        for steps in (((), (), (("bias",), ("residual",), ("relu",)), (("bias",), ("tanh",)))
                      if kind == "output" else ((), (), ())):  # fmt: skip
            c, number = draw.number(1, 70), draw.number(1, 4)
            whole, low = (0, side), draw.number(0, 1)
            row = (Squares(number, (low, side), whole), Squares(1, whole, (0, side - 1)))
            a, to = Grid(8 * c, c, 2 * c), Grid(9 * c, c, 3 * c)
            make = _later(emit_winograd, kind, c, row, a, to, dtype, at, epilogue=steps)
            name = f"winograd {kind} {c} {number} from {low} {shown({'': steps}).strip()}"
            yield name.strip(), make


_STEPS: tuple[tuple[Any, ...], ...] = (
    ("exp",), ("hardsigmoid",), ("hardsigmoid", 0.2, 0.5), ("hardswish",), ("elu",), ("elu", 0.25),
    ("mish",), ("leaky_relu", 0.125), ("clip", 0.0, 6.0), ("scale", 0.5), ("residual",),
)  # fmt: skip


def _steps(draw: Draw, dtype: str, at: Target) -> Iterator[Kernel]:
    """Each step in each kernel that has an epilogue, and the gradients."""
    for step in _STEPS:
        steps = (("bias",), step)
        name = shown({"": steps}).strip()
        m, n, k, c = (draw.number(1, high) for high in (20, 70, 90, 70))
        yield f"brgemm {m}x{n}x{k} {name}", _later(brgemm, m, n, k, dtype, target=at,
                                                   epilogue=steps)  # fmt: skip
        yield f"dot {n}x{k} {name}", _later(emit_dot, n, k, k, dtype, at, steps)
        rows, columns = (Axis(count, 1, (-1, 0, 1), 9) for count in (draw.number(1, 6), 20))
        part = strip_of(rows, columns, c, dtype, at, epilogue=steps)
        yield f"depthwise {c} rows {rows.count} {name}", _later(
            emit_depthwise, *part, c, dtype, at, lda=(20 * c, c), ldb=c, ldc=(30 * c, c),
            epilogue=steps,
        )  # fmt: skip
        row = (Squares(2, (0, 2), (0, 2)), Squares(1, (0, 2), (0, 1)))
        yield f"winograd {c} {name}", _later(
            emit_winograd, "output", c, row, Grid(8 * c, c, 2 * c), Grid(9 * c, c, 3 * c), dtype,
            at, epilogue=steps,
        )  # fmt: skip
    for op in ("clip", "leaky_relu", "elu", "hardsigmoid", "hardswish", "exp"):
        rows, columns = draw.number(1, 5), draw.number(1, 200)
        make = _later(emit_map, f"{op}_backward", rows, columns, dtype, at)
        yield f"map {op}_backward {rows}x{columns}", make


def _cells(draw: Draw, dtype: str, at: Target) -> Iterator[Kernel]:
    for cell, known in CELLS.items():
        flags = [{}, {"masked": True}]
        flags += [{"save": True}, {"masked": True, "save": True}] if known.saves else []
        flags += [{"peephole": True}] if known.peephole else []
        for options in flags:
            rows, units, width = draw.number(1, 9), draw.number(1, 70), draw.of(16, 32, 64)
            how = options | ({"hidden": units + 5} if draw.number(0, 2) == 0 else {})
            make = _later(emit_cell, cell, rows, units, dtype, at, width=width, **how)
            yield f"{cell} {rows}x{units} width {width} {shown(how)}".strip(), make


def _row_functions(draw: Draw, dtype: str, at: Target) -> Iterator[Kernel]:
    for function, record in ROW_FUNCTIONS.items():
        optional = [name for name, operand in record.operands.items() if operand.optional]
        wide = [name for name, operand in record.operands.items() if operand.place == "row"]
        for i, axis in enumerate((1, 1, 1, 0)):
            rows, columns = draw.number(1, 20), draw.number(1, (20, 160, 1200, 70)[i])
            how: dict[str, Any] = {"axis": axis}
            if i % 2:
                how["ld"] = {wide[-1]: columns + draw.number(1, 9)}
            if optional and i and axis:
                how["given"] = tuple(optional[: draw.number(1, len(optional))])
            make = _later(emit_rows, function, rows, columns, dtype, at, **how)
            yield f"{function} {rows}x{columns} {shown(how)}", make


def _drivers(draw: Draw, dtype: str, at: Target) -> Iterator[Kernel]:
    if dtype == DTYPES[0]:  # which those that only call others have
        for emit in (emit_member, emit_crew, emit_helper):
            yield emit.__name__.removeprefix("emit_"), _later(emit, at)
    shift = 2 if dtype == "f32" else 3
    copy = call(emit_map("copy", 1, 9, dtype, at), {"a": 0, "c": 1}, shift)
    add = call(emit_map("add_to", 2, 17, dtype, at), {"c": 2, "a": 1}, shift)
    kernel = brgemm(3, 9, 5, dtype, target=at)
    gemm = call(kernel, {"a": 0, "b": 1, "c": 2}, shift, count=3)
    batch = call(kernel, {"count": None, "c": 2, "b": 0, "a": 1}, shift)
    for calls in ((), (copy,), (copy, gemm), (batch, add, copy), (copy,) * 6):
        kinds = {id(copy): "copy", id(add): "add", id(gemm): "brgemm", id(batch): "batch"}
        name = " ".join(kinds[id(c)] for c in calls)
        yield f"driver of {name or 'nothing'}", _later(emit_replay, calls, at)


KERNELS: dict[str, Callable[[Draw, str, Target], Iterator[Kernel]]] = {
    "products": _products, "moves": _moves, "rows": _rows, "windows": _windows,
    "winograd": _squares, "steps": _steps, "cells": _cells, "drivers": _drivers,
    "row-functions": _row_functions,
}  # fmt: skip
