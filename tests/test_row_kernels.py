"""Functions of rows on every target, against NumPy in double precision, within stated bounds.

Rows with gaps lie between guard pages, results begin as NaN. What infinities and NaN become is
that of PyTorch's functions. Not here: e^x and ln x alone (`test_exponents`), layers
(`test_normalisation`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from blocks import EVERYWHERE, FLOATS, Call, Wanted, block, execute, leading, poison
from random_cases import SEED
from row_oracle import results
from tiers import TIERS, need

from jitgen.kernels.row_functions import ROW_FUNCTIONS
from jitgen.kernels.rows import emit_rows
from jitgen.target import AVX2, AVX512, parse_target

Array = np.ndarray[Any, Any]

each_tier = pytest.mark.parametrize("tier", EVERYWHERE)
each_dtype = pytest.mark.parametrize("dtype", FLOATS)
each_axis = pytest.mark.parametrize("axis", [1, 0])
each_function = pytest.mark.parametrize("function", ROW_FUNCTIONS)

#: one element, tails, whole vectors, rows that fit registers and that do not, loops
SHAPES = [(1, 1), (3, 2), (2, 7), (5, 16), (1, 33), (2, 128), (3, 150), (2, 384), (1, 517), (70, 3)]
INF, NAN = np.inf, np.nan


def operands(
    function: str, rows: int, columns: int, dtype: str, axis: int, numbers: np.random.Generator
) -> dict[str, Array]:
    """Random operands of all that a function reads or writes, results being NaN."""
    shapes = {"row": (rows, columns), "column": (1, columns), "value": (rows, 1)}
    if not axis:
        shapes |= {"column": (rows, 1), "value": (1, columns)}
    found = {}
    for name, operand in ROW_FUNCTIONS[function].operands.items():
        shape = shapes[operand.place]
        value = numbers.standard_normal(shape) * 3
        if name == "rstd":
            value = np.abs(value) + 0.1
        elif name == "y":
            e = np.exp(value)
            value = np.log(e / e.sum(axis=axis, keepdims=True))
            value = value if function == "log_softmax_backward" else np.exp(value)
        elif name == "x" and "value" in found and "gradient" in found:
            value = found["value"] - np.abs(value)
        found[name] = value.astype(FLOATS[dtype])
    return found


def call(
    function: str, arrays: Mapping[str, Array], dtype: str, tier: str, axis: int,
    rng: random.Random, given: tuple[str, ...] = (), over: str = "",
) -> Call:  # fmt: skip
    """A routine on these operands, and what it must leave. over: the operand that the result may
    lie in."""
    record = ROW_FUNCTIONS[function]
    target = parse_target(TIERS[tier].target)
    names = [n for n, operand in record.operands.items() if n in given or not operand.optional]
    rows, columns = next(
        arrays[n].shape for n in names if record.operands[n].place == "row"
    )  # fmt: skip
    eps = 1e-3 if record.eps else 0.0
    here = {n: arrays[n] for n in names}
    lanes = target.machine(dtype, columns).lanes
    wanted = results(function, here, eps, axis, lanes)
    lds = {n: leading(rng, columns) for n in names if record.operands[n].place == "row"}
    words: dict[str, Array | int] = {}
    outputs = {}
    for name in names:
        word, value = record.operands[name].word, here[name]
        ld = lds.get(name, value.shape[1])
        result = name in wanted
        if result and name not in ("dscale", "dshift"):
            value = poison(*value.shape, dtype)
        words[word] = block(value, ld)
        if result:
            value, bound = wanted[name]
            outputs[word] = Wanted(value, ld, bound.astype(np.float64))
    if over:
        (result,) = (n for n in wanted if record.operands[n].word == "c")
        words["c"] = words[record.operands[over].word]
        lds[result] = lds[over]
        outputs["c"].leading = lds[over]
    routine = emit_rows(
        function, rows, columns, dtype, target, ld=lds, given=given, eps=eps or 1e-5, axis=axis
    )
    label = f"{routine.name} axis {axis} given {given} over {over!r} ld {lds}"
    return Call(routine, words, outputs, label, rng.choice(("start", "end")))


def choices(function: str, axis: int) -> list[tuple[str, ...]]:
    """Which optional operands there are: none, all, and some."""
    optional = [
        name for name, operand in ROW_FUNCTIONS[function].operands.items()
        if operand.optional and not (axis == 0 and name in ("dscale", "dshift"))
    ]  # fmt: skip
    return list({(): 0, tuple(optional): 0, tuple(optional[:1]): 0, tuple(optional[1:]): 0})


def run(tier: str, calls: list[Call]) -> None:
    """Execute calls; none may fail."""
    failures = execute(tier, calls)
    assert not failures, f"JITGEN_SEED={SEED}: {len(failures)} failed:\n" + "\n".join(failures[:9])


@each_tier
@each_dtype
@each_axis
@each_function
def test_rows(tier: str, dtype: str, axis: int, function: str) -> None:
    """Every shape, with every choice of optional operands, rows with gaps or without."""
    need(TIERS[tier])
    rng = random.Random(f"{SEED} {tier} {dtype} {axis} {function}")
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    shapes = SHAPES + [(rng.randint(1, 9), rng.randint(1, 400)) for _ in range(3)]
    calls = []
    for rows, columns in shapes:
        size = (rows, columns) if axis else (columns, rows)
        for given in choices(function, axis):
            arrays = operands(function, *size, dtype, axis, numbers)
            calls.append(call(function, arrays, dtype, tier, axis, rng, given))
    run(tier, calls)


@each_tier
@each_dtype
@each_axis
def test_results_over_operands(tier: str, dtype: str, axis: int) -> None:
    """y over x, dx over each row operand that it is made from: rows in registers and others."""
    need(TIERS[tier])
    rng = random.Random(f"{SEED} over {tier} {dtype} {axis}")
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    calls = []
    for function, record in ROW_FUNCTIONS.items():
        (result,) = (n for n, operand in record.operands.items() if operand.word == "c")
        if record.operands[result].place != "row":
            continue
        for over, operand in record.operands.items():
            if operand.place != "row" or over == result:
                continue
            for size in ((3, 37), (2, 700)):
                arrays = operands(function, *size, dtype, axis, numbers)
                given = choices(function, axis)[-1]
                calls.append(call(function, arrays, dtype, tier, axis, rng, given, over))
    assert len(calls) > 20
    run(tier, calls)


@each_tier
@each_dtype
@each_axis
def test_small_integers_are_exact(tier: str, dtype: str, axis: int) -> None:
    """Sums of whole numbers, and what has one answer: equal elements of a power of two of them."""
    need(TIERS[tier])
    rng = random.Random(f"{SEED} exact {tier} {dtype} {axis}")
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    calls = []
    for rows, columns in ((3, 1), (2, 64), (4, 256), (1, 1024)):
        size = (rows, columns) if axis else (columns, rows)
        length = size[axis]
        whole = numbers.integers(-9, 10, size).astype(FLOATS[dtype])
        total = whole.sum(axis=axis, keepdims=True)
        equal = np.full(size, 7.5, FLOATS[dtype])
        for function, arrays, name, value in (
            ("sum", {"x": whole, "value": total}, "c", total),
            ("mean", {"x": whole, "value": total}, "c", total / length),
            ("softmax", {"x": equal, "y": equal}, "c", np.full(size, 1 / length)),
        ):
            made = call(function, arrays, dtype, tier, axis, rng)
            made.wanted[name].value, made.wanted[name].bound = value, 0.0  # type: ignore[index]
            calls.append(made)
    run(tier, calls)


#: rows with what is not finite, and what follows for softmax, log-softmax and log-sum-exp
SPECIAL = [
    ([-INF, -INF, -INF], [NAN] * 3, [NAN] * 3, -INF),
    ([0.0, -INF, 0.0], [0.5, 0, 0.5], None, None),
    ([1.0, INF, 2.0], [NAN] * 3, [NAN] * 3, INF),
    ([1.0, NAN, 2.0], [NAN] * 3, [NAN] * 3, NAN),
    ([NAN, INF, -INF], [NAN] * 3, [NAN] * 3, NAN),
    ([-INF, NAN, -INF], [NAN] * 3, [NAN] * 3, NAN),
    ([3e38, -3e38, 3e38], [0.5, 0, 0.5], None, None),
    ([-1000.0, 0.0, -95.0], None, None, None),
]


@each_tier
@each_dtype
@each_axis
@pytest.mark.parametrize("length", [3, 19, 600])
def test_infinities_and_nan(tier: str, dtype: str, axis: int, length: int) -> None:
    """A row of -infinity, infinities and NaN anywhere, e^x too small to be a number."""
    need(TIERS[tier])
    rng = random.Random(f"{SEED} special {tier} {dtype} {axis} {length}")
    calls = []
    for values, *wanted in SPECIAL:
        x = np.full((2, length), -INF)
        places = rng.sample(range(length), 3)
        x[:, places] = values
        others = np.isin(np.arange(length), places, invert=True)
        x = x if axis else x.T
        for function, value in zip(("softmax", "log_softmax", "log_sum_exp"), wanted, strict=True):
            arrays = {"x": x.astype(FLOATS[dtype])}
            arrays |= {"y": arrays["x"], "value": arrays["x"].max(axis=axis, keepdims=True)}
            made = call(function, arrays, dtype, tier, axis, rng)
            calls.append(made)
            if value is None:  # as NumPy has it
                continue
            result = made.wanted["c"].value if axis else made.wanted["c"].value.T
            expected = np.full(result.shape, value if np.isscalar(value) else 0.0)
            if not np.isscalar(value):
                expected[:, places] = value
                rest = NAN if np.isnan(value).all() else 0.0
                expected[:, others] = rest
            made.wanted["c"].value = expected if axis else expected.T  # type: ignore[misc]
    run(tier, calls)


def test_names_signatures_and_code_without_loops_over_vectors() -> None:
    """What a routine is called and reads; long rows take no more code than others."""
    routine = emit_rows("layer_norm", 4, 100, "f32", AVX2, given=("scale", "mean"))
    assert routine.name == "layer_norm f32 4x100"
    assert [o.word for o in routine.signature] == ["a", "c", "bias", "bias_row"]
    sizes = {len(emit_rows("softmax", 3, n, "f32", AVX512).code) for n in (1024, 4096, 1 << 20)}
    assert max(sizes) < 4096 and max(sizes) - min(sizes) < 64
    routine = emit_rows("softmax", 1 << 20, 3, "f64", AVX512, axis=0)
    assert routine.name == "softmax f64 1048576x3 down columns" and len(routine.code) < 4096


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"function": "softmin"}, "function='softmin' is not one of"),
        ({"rows": 0}, "rows=0"),
        ({"ld": {"x": 7}}, "leading dimension 7 is smaller than columns=8"),
        ({"ld": {"scale": 8}}, "ld"),
        ({"given": ("mean",)}, "given"),
        ({"axis": 2}, "axis=2"),
        ({"function": "rms_norm_backward", "axis": 0, "given": ("dscale",)}, "axis=0: sums over"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], message: str) -> None:
    """Errors name argument, value and rule."""
    given = {"function": "softmax", "rows": 4, "columns": 8, "dtype": "f32", "target": AVX2}
    with pytest.raises(ValueError, match=message):
        emit_rows(**{**given, **arguments})
