"""jitgen as a contestant of the benchmarks, and what its generation and look-up cost.

What it is: the only module of the benchmarks that touches jitgen's Python interface.
What it is not: it measures no peer and prints nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jitgen
from jitgen.gemm.kernel import generate
from jitgen.gemm.spec import make_spec
from jitgen.target import parse_target
from tools.bench.problem import Problem, Shape
from tools.bench.timing import CompiledCall, Contestant, Cursor, PythonCall, calls_for

_GENERATION_SHAPE = (64, 64, 64)


def check_target(isa: str) -> None:
    """Raise ValueError, with jitgen's reason, unless its target of that name can run here."""
    targets = jitgen.targets()
    if isa not in targets:
        raise ValueError(f"isa={isa!r} is not one of jitgen's targets: {', '.join(targets)}")
    if targets[isa]:
        raise ValueError(f"isa={isa!r} cannot run here: {targets[isa]}")


class Jitgen:
    """jitgen's kernels of one target, beta = 0, default strides, nothing packed."""

    def __init__(self, isa: str) -> None:
        check_target(isa)
        self.target = isa
        self.origin = f"jitgen {jitgen.__version__}, target {isa}"

    def contestant(self, problem: Problem, cursor: Cursor | None) -> CompiledCall:
        """Return the contestant "jitgen" for a problem."""
        s = problem.shape
        kernel = jitgen.brgemm(s.m, s.n, s.k, problem.dtype, target=self.target)
        sets = zip(problem.a, problem.b, problem.c, strict=True)
        bounds = [kernel.bind(a, b, c) for a, b, c in sets]
        arguments = [bound.args_struct for bound in bounds]
        return CompiledCall("jitgen", kernel.address, arguments, cursor, keep=(problem, bounds))


def _milliseconds(prepare: Callable[[], Any], action: Callable[[], Any], rounds: int) -> Any:
    samples = []
    for _ in range(rounds):
        prepare()
        start = time.perf_counter_ns()
        action()
        samples.append((time.perf_counter_ns() - start) / 1e6)
    return {"best_ms": min(samples), "median_ms": statistics.median(samples)}


def generation_times(dtype: str, rounds: int) -> dict[str, Any]:
    """Return per target the milliseconds to generate 64x64x64: cold and warm, best and median.

    Past the kernel cache. Cold: right after ``jitgen.clear_caches()``. Warm: the bytes of its
    instructions are cached, because the same kernel was generated before. A target that fails
    yields {"error": text}.
    """
    result: dict[str, Any] = {}
    for name in jitgen.targets():

        def make(target: str = name) -> Any:
            return generate(make_spec(*_GENERATION_SHAPE, dtype), parse_target(target))

        try:
            result[name] = {
                "cold": _milliseconds(jitgen.clear_caches, make, rounds),
                "warm": _milliseconds(make, make, rounds),
            }
        except Exception as error:
            result[name] = {"error": f"{type(error).__name__}: {error}"}
    return result


def call_times(isa: str, dtype: str, rounds: int) -> dict[str, float]:
    """Return best nanoseconds of a cached look-up, and of a bound and a compiled empty call."""

    def look_up() -> Any:
        return jitgen.brgemm(64, 64, 64, dtype, target=isa)

    look_up()
    smallest = Problem(Shape(1, 1, 1, 1), dtype)
    a, b, c = smallest.a[0][:0], smallest.b[0][:0], smallest.c[0]
    kernel = jitgen.brgemm(1, 1, 1, dtype, target=isa)
    bound = kernel.bind(a, b, c)
    contestants: dict[str, Contestant] = {
        "jitgen.brgemm(...) look-up": PythonCall("look-up", [look_up]),
        "jitgen bound call, empty, from Python": PythonCall("bound", [bound]),
        "jitgen kernel, empty, from machine code": CompiledCall(
            "compiled", kernel.address, [bound.args_struct], keep=bound
        ),
    }
    times = {}
    for label, contestant in contestants.items():
        calls = calls_for(contestant, 1e6)
        times[label] = min(contestant.run(calls) for _ in range(rounds)) / calls
    return times
