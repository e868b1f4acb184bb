"""Element-wise kernels and column sums on every target, against NumPy in double precision.

Blocks with gaps between their rows lie between guard pages; outputs begin as NaN. Copies, relu and
sums must be exact; every other bound is stated in units of the rounding error of its terms. Not
here: the derivatives alone (`test_derivatives`), layouts (`test_layout`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from blocks import EVERYWHERE, FLOATS, Call, Wanted, block, execute, leading, poison
from random_cases import SEED
from test_derivatives import derivative
from tiers import TIERS, need

from jitgen.kernels.elementwise import OPS, adam_scalars, emit_column_sums, emit_map
from jitgen.target import TARGETS, parse_target, sve

Array = np.ndarray[Any, Any]

each_tier = pytest.mark.parametrize("tier", EVERYWHERE)
each_dtype = pytest.mark.parametrize("dtype", FLOATS)

#: one element, tails, whole vectors, loops, rows without and with gaps
SHAPES = [(1, 1), (1, 7), (3, 1), (2, 16), (4, 32), (3, 33), (7, 5), (2, 64), (2, 255), (1, 1111)]


def run(tier: str, calls: list[Call]) -> None:
    """Execute calls; none may fail."""
    for call in calls:
        assert len(call.code) < 4096, call.label
    failures = execute(tier, calls)
    assert not failures, f"JITGEN_SEED={SEED}: {len(failures)} failed:\n" + "\n".join(failures[:9])


def shapes(rng: random.Random) -> list[tuple[int, int]]:
    """Fixed shapes and random ones."""
    return [*SHAPES, *((rng.randint(1, 9), rng.randint(1, 150)) for _ in range(5))]


# ---- operations on two blocks ----------------------------------------------------------------


def _add_to(c: Array, a: Array, b: Array) -> tuple[Array, Array | float]:
    return c + a, 0.0


def _relu(c: Array, a: Array, b: Array) -> tuple[Array, Array | float]:
    return np.where(b > 0, a, a.dtype.type(0)), 0.0


def _sigmoid(c: Array, a: Array, b: Array) -> tuple[Array, Array | float]:
    value = a.astype(np.longdouble) * b * (1 - b.astype(np.longdouble))
    return value, 2 * np.finfo(a.dtype).eps * np.abs(value)


def _tanh(c: Array, a: Array, b: Array) -> tuple[Array, Array | float]:
    value = a * (1 - b.astype(np.longdouble)) * (1 + b.astype(np.longdouble))
    return value, 1.5 * np.finfo(a.dtype).eps * np.abs(value)


def _gradient(name: str) -> Callable[[Array, Array, Array], tuple[Array, Array | float]]:
    def wanted(c: Array, a: Array, b: Array) -> tuple[Array, Array | float]:
        value, size = derivative(name, b)
        # in double precision the exponential here is as far off (test_derivatives has a better one)
        ulps = 5 + (np.square(b) if a.dtype == np.float64 else 0)
        return a * value, ulps * np.finfo(a.dtype).eps * np.abs(a) * size

    return wanted


def _straight(
    slope: Callable[[Array], Array],
) -> Callable[[Array, Array, Array], tuple[Array, Array | float]]:
    def wanted(c: Array, a: Array, b: Array) -> tuple[Array, Array | float]:
        value = a.astype(np.longdouble) * slope(b)
        # relative to the terms of a sum
        return value, 2 * np.finfo(a.dtype).eps * np.abs(a) * (1 + np.abs(b))

    return wanted


#: What the scalars of operations are here
SCALARS = {
    "clip_backward": (-0.75, 1.5), "leaky_relu_backward": (0.25,), "elu_backward": (0.5,),
    "hardsigmoid_backward": (0.25, 0.5),
}  # fmt: skip
#: op -> (c, a, b before) -> (c after, how far off it may be)
EXPECTED: dict[str, Callable[[Array, Array, Array], tuple[Array, Array | float]]] = {
    "copy": lambda c, a, b: (a, 0.0),
    "add_to": _add_to,
    "relu_backward": _relu,
    "sigmoid_backward": _sigmoid,
    "tanh_backward": _tanh,
    "clip_backward": _straight(lambda b: np.where((b > -0.75) & (b < 1.5), 1.0, 0.0)),
    "leaky_relu_backward": _straight(lambda b: np.where(b > 0, 1.0, 0.25)),
    "elu_backward": _straight(lambda b: np.where(b > 0, 1.0, b + 0.5)),
    "hardsigmoid_backward": _straight(lambda b: np.where((b > 0) & (b < 1), 0.25, 0.0)),
    "hardswish_backward": _straight(
        lambda b: np.where(b > 3, 1.0, np.where(b < -3, 0.0, b.astype(np.longdouble) / 3 + 0.5))
    ),
    "exp_backward": _straight(lambda b: b),
    "gelu_backward": _gradient("gelu"),
    "silu_backward": _gradient("silu"),
}


def operand(op: str, dtype: str, random_numbers: np.random.Generator, shape: Any) -> Array:
    """What b may be for an operation: an activation's result, or what it was applied to."""
    z = random_numbers.standard_normal(shape) * 3
    if op == "sigmoid_backward":
        z = 1 / (1 + np.exp(-z))
    elif op == "tanh_backward":
        z = np.tanh(z)
    elif op == "relu_backward":
        z = np.maximum(z, 0)
    return z.astype(FLOATS[dtype])


@each_tier
@each_dtype
@pytest.mark.parametrize("op", EXPECTED)
def test_blocks(tier: str, dtype: str, op: str) -> None:
    need(TIERS[tier])
    target = parse_target(TIERS[tier].target)
    rng = random.Random(f"{SEED} {tier} {dtype} {op}")
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    calls = []
    for rows, columns in shapes(rng):
        a = numbers.standard_normal((rows, columns)).astype(FLOATS[dtype])
        b = operand(op, dtype, numbers, a.shape)
        c = a[::-1] if op == "add_to" else poison(rows, columns, dtype)
        ld = {n: leading(rng, columns) for n in {*OPS[op].reads, *OPS[op].writes}}
        value, bound = EXPECTED[op](c, a, b)
        words = {n: block({"a": a, "b": b, "c": c}[n], lead) for n, lead in ld.items()}
        more = {}
        if OPS[op].scalars:
            more = {"bias": np.array(SCALARS[op], FLOATS[dtype])}
        label = f"{op} {rows} x {columns} {dtype}, {ld}"
        routine = emit_map(op, rows, columns, dtype, target, ld=ld)
        wanted = {"c": Wanted(value, ld["c"], bound)}
        calls.append(Call(routine, words | more, wanted, label, rng.choice(("end", "start"))))
        if op not in ("copy", "add_to"):  # c may be a
            routine = emit_map(op, rows, columns, dtype, target, ld={**ld, "c": ld["a"]})
            wanted = {"c": Wanted(value, ld["a"], bound)}
            words = {"a": words["a"], "b": words["b"], "c": words["a"], **more}
            calls.append(Call(routine, words, wanted, f"in place: {label}"))
    run(tier, calls)


@each_tier
@each_dtype
def test_special_numbers(tier: str, dtype: str) -> None:
    """relu_backward takes NaN for not positive and keeps a's NaN; derivatives have their limits."""
    need(TIERS[tier])
    target = parse_target(TIERS[tier].target)
    inf, nan, tiny = np.inf, np.nan, float(np.finfo(FLOATS[dtype]).smallest_subnormal)
    big = float(np.finfo(FLOATS[dtype]).max)
    b = np.array([[nan, -nan, 0.0, -0.0, tiny, -tiny, inf, -inf, 1.0, -1.0, big, -big]])
    ones = np.ones_like(b)
    limits = np.array([[nan, nan, 0.5, 0.5, 0.5, 0.5, 1, 0, nan, nan, 1, 0]])
    cases = [
        ("relu_backward", b, ones, np.where(b > 0, 1.0, 0.0)),
        ("relu_backward", ones, b, b),
        ("relu_backward", -ones, b, ones * 0),
        *((op, b, ones, limits) for op in ("gelu_backward", "silu_backward")),
        ("hardswish_backward", b, ones, np.array(
            [[nan, nan, 0.5, 0.5, 0.5, 0.5, 1, 0, nan, nan, 1, 0]])),
        ("clip_backward", b, ones, np.array([[0, 0, 1, 1, 1, 1, 0, 0, nan, nan, 0, 0]])),
        ("leaky_relu_backward", b, ones, np.where(b > 0, 1.0, 0.25)),
        ("elu_backward", b[:, :6], ones[:, :6], np.array([[nan, nan, 0.5, 0.5, 1, 0.5]])),
        ("hardsigmoid_backward", b[:, :6], ones[:, :6], np.array([[0, 0, 0, 0, 0.25, 0]])),
    ]
    calls = []
    for op, y, dy, value in cases:
        # 1 and -1 are not limits
        chosen = ~np.isin(y[0], (1.0, -1.0)) | (op == "relu_backward")
        a, z, want = (x.astype(FLOATS[dtype])[:, chosen] for x in (dy, y, value))
        words = {"a": a[0], "b": z[0], "c": poison(1, a.size, dtype)[0]}
        if OPS[op].scalars:
            words["bias"] = np.array(SCALARS[op], FLOATS[dtype])
        routine = emit_map(op, 1, a.size, dtype, target)
        calls.append(Call(routine, words, {"c": Wanted(want, a.size)}, f"{op} {z} {a}"))
    run(tier, calls)


@each_tier
@each_dtype
def test_relu_mask(tier: str, dtype: str) -> None:
    """Every number of columns up to 70, so every number of mask bytes a load takes."""
    need(TIERS[tier])
    target = parse_target(TIERS[tier].target)
    rng = random.Random(f"{SEED} {tier} {dtype}")
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    calls = []
    for columns in (*range(1, 71), 128, 129, 200, 256, 535):
        rows = rng.choice((1, 2, 3))
        ld = {"a": leading(rng, columns), "c": leading(rng, columns)}
        ld["mask"] = -(-columns // 8) + rng.choice((0, 0, 1, 5))
        a = numbers.standard_normal((rows, columns)).astype(FLOATS[dtype])
        # bits beyond the columns, and bytes between rows, are anything
        mask = numbers.integers(0, 256, (rows - 1) * ld["mask"] + -(-columns // 8), np.uint8)
        at = np.arange(rows)[:, None] * ld["mask"] + np.arange(-(-columns // 8))
        bits = np.unpackbits(mask[at], axis=1, bitorder="little")[:, :columns]
        words = {
            "a": block(a, ld["a"]), "c": block(poison(rows, columns, dtype), ld["c"]), "mask": mask
        }  # fmt: skip
        routine = emit_map("relu_backward_mask", rows, columns, dtype, target, ld=ld)
        wanted = {"c": Wanted(np.where(bits, a, 0), ld["c"])}
        label = f"relu_backward_mask {rows} x {columns} {dtype}, {ld}"
        calls.append(Call(routine, words, wanted, label, rng.choice(("end", "start"))))
    run(tier, calls)


# ---- optimizers ------------------------------------------------------------------------------


def sgd(w: Array, g: Array, v: Array, scalars: Array) -> dict[str, tuple[Array, Array]]:
    """PyTorch's SGD with momentum (torch.optim.SGD, dampening 0), with bounds in eps."""
    rate, momentum, decay = scalars
    velocity = momentum * v + (g + decay * w)
    size = np.abs(momentum * v) + np.abs(g) + np.abs(decay * w)
    return {"c": (w - rate * velocity, np.abs(w) + 3 * rate * size), "b": (velocity, 2 * size)}


def adam(w: Array, g: Array, m: Array, v: Array, scalars: Array) -> dict[str, tuple[Array, Array]]:
    """PyTorch's Adam (torch.optim.Adam, L2 weight decay), with bounds in eps."""
    step, root, eps, beta1, rest1, beta2, rest2, decay = scalars
    gradient, size = g + decay * w, np.abs(g) + np.abs(decay * w)
    mean = beta1 * m + rest1 * gradient
    square = beta2 * v + rest2 * gradient * gradient
    mean_size, square_size = np.abs(beta1 * m) + rest1 * size, beta2 * v + rest2 * size * size
    below = np.sqrt(square) * root + eps
    off = 3 * square_size / np.maximum(square, 1e-300) / 2 + 5  # of `below`, relative
    update = step * (3 * mean_size + np.abs(mean) * off) / below
    return {
        "c": (w - step * mean / below, np.abs(w) + update),
        "b": (mean, 3 * mean_size),
        "residual": (square, 4 * square_size),
    }


@each_tier
@each_dtype
@pytest.mark.parametrize("op", ["sgd", "adam"])
def test_optimizers(tier: str, dtype: str, op: str) -> None:
    """In place, in the words' arrays; the scalars end at a guard page."""
    need(TIERS[tier])
    target = parse_target(TIERS[tier].target)
    rng = random.Random(f"{SEED} {tier} {dtype} {op}")
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    eps = float(np.finfo(FLOATS[dtype]).eps)
    calls = []
    for rows, columns in shapes(rng):
        names = ("c", "a", "b", "residual")[: len(OPS[op].reads)]
        values = {n: numbers.standard_normal((rows, columns)).astype(FLOATS[dtype]) for n in names}
        if op == "adam":
            values["residual"] = np.square(values["residual"])
            given: tuple[float, ...] = adam_scalars(rng.randint(1, 9), weight_decay=0.01)
        else:
            given = (0.1, 0.9, rng.choice((0.0, 0.01)))
        scalars = np.array(given, FLOATS[dtype])
        assert len(scalars) == len(OPS[op].scalars)
        ld = {n: leading(rng, columns) for n in names}
        words: dict[str, Array | int] = {n: block(values[n], ld[n]) for n in names}
        words["bias"] = scalars
        exact = [values[n].astype(np.float64) for n in names]
        wide = scalars.astype(np.float64)
        result = sgd(*exact, wide) if op == "sgd" else adam(*exact, wide)
        wanted = {n: Wanted(value, ld[n], eps * bound) for n, (value, bound) in result.items()}
        label = f"{op} {rows} x {columns} {dtype}, {ld}"
        routine = emit_map(op, rows, columns, dtype, target, ld=ld)
        calls.append(Call(routine, words, wanted, label, rng.choice(("end", "start"))))
    run(tier, calls)


def test_adam_scalars() -> None:
    """Bias correction as the paper has it (Kingma and Ba, 2015, algorithm 1)."""
    step, root, eps, *_ = adam_scalars(3, lr=0.5, betas=(0.8, 0.9), eps=1e-6)
    m, v = 0.3, 0.7
    paper = 0.5 * (m / (1 - 0.8**3)) / (math.sqrt(v / (1 - 0.9**3)) + 1e-6)
    assert math.isclose(step * m / (math.sqrt(v) * root + eps), paper)


# ---- sums ------------------------------------------------------------------------------------


@each_tier
@each_dtype
@pytest.mark.parametrize("accumulate", [False, True])
def test_column_sums(tier: str, dtype: str, accumulate: bool) -> None:
    """Rows are added in order, so the sums are those of a loop over rows, to the last bit."""
    need(TIERS[tier])
    target = parse_target(TIERS[tier].target)
    rng = random.Random(f"{SEED} {tier} {dtype} {accumulate}")
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    calls = []
    for rows, columns in [*shapes(rng), (50, 17), (5, 700)]:
        lda = leading(rng, columns)
        a = numbers.standard_normal((rows, columns)).astype(FLOATS[dtype])
        c = a[-1] * 3 if accumulate else poison(1, columns, dtype)[0]
        total = c.copy() if accumulate else np.zeros_like(c)
        for row in a:
            total += row
        routine = emit_column_sums(rows, columns, dtype, target, lda=lda, accumulate=accumulate)
        label = f"sums of {rows} x {columns} {dtype}, lda={lda}, accumulate={accumulate}"
        words = {"a": block(a, lda), "c": c}
        wanted = {"c": Wanted(total[None, :], columns)}
        calls.append(Call(routine, words, wanted, label, rng.choice(("end", "start"))))
    run(tier, calls)


# ---- the checks, and the doors ---------------------------------------------------------------


def test_wrong_kernels_are_noticed() -> None:
    """Another operation, an element too many or too few, a gap written: each is an error."""
    need(TIERS["avx2 native"])
    target = parse_target("avx2")
    a = np.arange(1, 31, dtype=np.float32).reshape(3, 10)

    def failures(op: str, columns: int, ld: int) -> str:
        words = {"a": block(a, 12), "c": block(a + 1, 12)}
        routine = emit_map(op, 3, columns, "f32", target, ld={"a": ld, "c": ld})
        return "\n".join(execute("avx2 native", [Call(routine, words, {"c": Wanted(a, 12)}, op)]))

    assert not failures("copy", 10, 12)
    assert "30 of 30 elements are wrong" in failures("add_to", 10, 12)
    assert "3 of 30 elements are wrong" in failures("copy", 9, 12)
    assert "SIGSEGV" in failures("copy", 11, 12)
    words = {"a": block(a, 12), "c": block(a, 13)}
    routine = emit_map("copy", 1, 36 - 2, "f32", target)
    gap = execute("avx2 native", [Call(routine, words, {"c": Wanted(a[:1], 12)}, "gap")])
    assert "between the rows were changed" in gap[0]


def test_every_target_has_short_code() -> None:
    """Also where it is never executed: all lengths of SVE, all operations, long and narrow."""
    targets = {*TARGETS.values(), *(sve(bits) for bits in (384, 640, 1024, 2048))}
    for target in targets:
        for dtype in FLOATS:
            for op in OPS:
                for columns in (1, 100, 12345678):
                    assert len(emit_map(op, 1, columns, dtype, target).code) < 4096
            assert len(emit_column_sums(9, 4321, dtype, target).code) < 4096


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"op": "relu"}, "op='relu' is not one of copy"),
        ({"rows": 0}, "rows=0"),
        ({"columns": -1}, "columns=-1"),
        ({"dtype": "i8"}, "dtype='i8'"),
        ({"ld": {"c": 7}}, r"ld\['c'\]=7 is smaller"),
        ({"ld": {"x": 70}}, "ld has 'x'; copy has the words a, c"),
        ({"ld": {"a": 1 << 30}}, "2 GiB"),
        ({"op": "relu_backward_mask", "target": sve(1152), "dtype": "f64"}, "18 elements"),
    ],
)
def test_bad_input(change: dict[str, Any], words: str) -> None:
    arguments = {"op": "copy", "rows": 3, "columns": 8, "dtype": "f32", "target": TARGETS["avx2"]}
    emit_map(**arguments)
    with pytest.raises(ValueError, match=words):
        emit_map(**{**arguments, **change})


def test_bad_sums() -> None:
    with pytest.raises(ValueError, match="leading dimension 7"):
        emit_column_sums(3, 8, "f32", TARGETS["avx2"], lda=7)
