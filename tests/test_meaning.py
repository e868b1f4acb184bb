"""Meanings: every instruction has one, and the meanings alone, executed, compute the kernel.

Not here: the reader that executes them (`meanings`).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Hashable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from meanings import FLOATS, Reader
from random_cases import SEED, random_case

import jitgen
from jitgen.gemm.sections import Mark, PackB, ReductionLoop, TileSection
from jitgen.inspect.meaning import Explained, explain
from jitgen.inspect.values import Value

TARGETS = ["avx2", "avx512", "sve128", "sve256", "sve512", "neon"]


def explained(kernel: jitgen.Kernel) -> list[Explained]:
    """Every line with its meaning."""
    return list(explain(kernel, list(kernel.program.lines())))


def kernels(target: str, count: int, rng: random.Random, largest: int = 70) -> Iterator[Any]:
    """(case, kernel) of random cases; plans that are refused are left out."""
    while count:
        case = random_case(rng, largest)
        try:
            kernel = case.kernel(target)
        except ValueError:
            continue
        count -= 1
        yield case, kernel


def reduces(section: Hashable) -> bool:
    """Whether the section's multiply-accumulates are those of the product."""
    reduction = isinstance(section, TileSection) and section.stage == "reduce"
    return reduction or isinstance(section, ReductionLoop)


# ---- every line --------------------------------------------------------------------------------

@pytest.mark.parametrize("target", TARGETS)
def test_every_instruction_has_a_meaning(target: str) -> None:
    """No line without one; no address that is not an element; no vector without a name."""
    for case, kernel in kernels(target, 60, random.Random(SEED)):
        section: Hashable = None
        for line in explained(kernel):
            if line.line.kind == "section":
                section = line.line.section
            if line.line.kind != "instruction":
                continue
            where = f"{case}\n{section}: {line.line.text}: {line.meaning!r}"
            assert line.meaning, where
            assert not re.search(r"[{}@]|None|Fraction", line.meaning), where
            if section in (Mark.ENTRY, Mark.RETURN):
                continue
            assert not re.search(r"(^|[ =])\[", line.meaning), where
            assert isinstance(section, PackB) or not re.search(r"\bv\d", line.meaning), where
            pointer = re.match(r"[ab]_now\d* = (.*)", line.meaning)
            if pointer:
                assert re.match(r"&|args\.|[ab]_addresses\[", pointer[1]), where
            if line.line.text.startswith(("vfmadd231", "fmla")) and reduces(section):
                assert re.match(r"acc'*\[\d+,\d+\] \+= ", line.meaning), where


@pytest.mark.parametrize("target", TARGETS)
def test_elements_lie_in_their_matrices(target: str) -> None:
    """Where row and column are known, what is read or written is within the matrix."""
    for case, kernel in kernels(target, 30, random.Random(SEED + 1)):
        spec = kernel.spec
        columns = -(-spec.n // spec.panel) * spec.panel if spec.panel else spec.n
        limits = {
            "A": (spec.m, spec.k), "B": (spec.k, columns), "C": (spec.m, spec.n),
            "residual": (spec.m, spec.n), "bias": (spec.n,), "bias_row": (spec.m,),
        }  # fmt: skip
        for line in explained(kernel):
            if "&" in line.meaning or "prefetch" in line.meaning:
                continue
            for name, inside in re.findall(r"\b(A|B|C|residual|bias|bias_row)\[([^\]]*)\]",
                                           line.meaning):  # fmt: skip
                for index, limit in zip(inside.split(", "), limits[name], strict=True):
                    last = re.search(r"(\d+)$", index)
                    assert last is None or int(last[1]) < limit, f"{case}\n{line.meaning}"


def test_loops_are_counted() -> None:
    """Loops have what they count, from where, in which steps and how often."""
    kernel = jitgen.brgemm(13, 20, 9, target="avx2")
    loops = [line.loop for line in explained(kernel) if line.loop is not None]
    found = [(x.quantity, x.start.number if x.start else None, x.by, x.trips) for x in loops]
    assert found == [
        ("first", 0, 1, None), ("index", None, 1, None), ("k", 0, 3, 3), ("row", 4, 3, 3),
        ("index", None, 1, None), ("k", 0, 3, 3),
    ]  # fmt: skip


def test_values_are_linear() -> None:
    """Sums cancel terms, products scale them."""
    row = Value(0, {"row": 36})
    assert row + Value(4) - row == Value(4)
    assert (row + Value(1)).times(2) == Value(2, {"row": 72})
    assert row.number is None
    assert (row - row).number == 0


# ---- the meanings, executed ----------------------------------------------------------------------

_erf = np.vectorize(math.erf)
STEPS: dict[str, Any] = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x, slope: np.where(x < 0, x * slope, x),
    "clip": lambda x, low, high: np.minimum(np.maximum(x, low), high),
    "scale": lambda x, factor: x * factor,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "hardswish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "hardsigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "elu": lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
}


def operands(kernel: jitgen.Kernel, count: int, rng: np.random.Generator) -> dict[str, Any]:
    """Random arrays as the reader wants them."""
    spec = kernel.spec
    kind = FLOATS[spec.dtype]
    columns = -(-spec.n // spec.panel) * spec.panel if spec.panel else spec.n
    b = np.zeros((count, spec.k, columns), kind)
    b[:, :, : spec.n] = rng.standard_normal((count, spec.k, spec.n)) / math.sqrt(spec.k)
    return {
        "A": list(rng.standard_normal((count, spec.m, spec.k)).astype(kind)), "B": list(b),
        "C": rng.standard_normal((spec.m, spec.n)).astype(kind),
        "residual": rng.standard_normal((spec.m, spec.n)).astype(kind),
        "bias": rng.standard_normal(spec.n).astype(kind),
        "bias_row": rng.standard_normal(spec.m).astype(kind),
    }  # fmt: skip


def expected(kernel: jitgen.Kernel, arrays: dict[str, Any]) -> Any:
    """C in float64."""
    spec = kernel.spec
    c = spec.beta * arrays["C"].astype(float)
    for a, b in zip(arrays["A"], arrays["B"], strict=True):
        c += spec.alpha * (a.astype(float) @ b[:, : spec.n].astype(float))
    for name, *parameters in spec.epilogue:
        if name in ("bias", "residual"):
            c += arrays[name]
        elif name == "bias_row":
            c += arrays[name][:, None]
        else:
            c = STEPS[name](c, *parameters)
    return c


def largest_error(kernel: jitgen.Kernel, count: int, reader: type[Reader] = Reader) -> float:
    """How far the C that the meanings compute is from the true one."""
    arrays = operands(kernel, count, np.random.default_rng(5))
    wanted = expected(kernel, arrays)
    reader(kernel, arrays, count).run()
    return float(np.max(np.abs(arrays["C"] - wanted) / (1 + np.abs(wanted))))


@pytest.mark.parametrize("target", TARGETS)
def test_meanings_compute_the_kernel(target: str) -> None:
    """Executed sentence by sentence, the listing gives C: all layouts, plans and epilogues."""
    rng = random.Random(SEED + 2)
    checked = 0
    while checked < 14:
        case = random_case(rng, 20)
        steps = tuple(s for s in case.epilogue if s != "relu_mask")
        case = replace(case, epilogue=steps, count=rng.choice((1, 2, 3)))
        try:
            kernel = case.kernel(target)
        except ValueError:
            continue
        tolerance = 2e-5 if case.dtype == "f32" else 1e-12
        assert largest_error(kernel, case.count) < tolerance, case
        checked += 1


@pytest.mark.parametrize("target", TARGETS)
def test_a_wrong_meaning_is_noticed(target: str) -> None:
    """One wrong index or sign among all sentences makes another C."""
    kernel = jitgen.brgemm(7, 19, 6, target=target, epilogue=("bias",))
    assert largest_error(kernel, 2) < 2e-5
    for old, new in (("A[0, k]", "A[0, k+1]"), ("acc[1,0] += a", "acc[1,0] -= a"),
                     ("A[0, 0]", "A[0, 1]"), ("bias[0..", "bias[1.."),
                     ("lane 0 of a", "lane 1 of a")):  # fmt: skip
        class Wrong(Reader):
            """The same with one sentence changed."""

            def _execute(self, text: str) -> None:
                if not text.startswith(("a_now", "b_now")):
                    text = text.replace(old, new)  # noqa: B023 (used within the loop)
                super()._execute(text)

        told = any(old in x.meaning and "&" not in x.meaning for x in explained(kernel))
        try:
            assert (largest_error(kernel, 2, Wrong) > 1e-3) == told, old
        except (AssertionError, ValueError):
            assert told
