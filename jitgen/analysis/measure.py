"""A kernel on data: checked against float64, timed in turns with the FMA peak and NumPy.

The error bound holds for any order of summation: (k count + 4) eps sum |A||B| for each element of
the products, carried through the epilogue. Times are taken in short samples by turns, so that a
change of clock or a busy neighbour meets all. The FMA peak and an empty call are machine code from
the same verbs as kernels, so they exist on every target. Not here: what is reported
(`jitgen.cli.kernel`).
"""

from __future__ import annotations

import functools
import math
import statistics
import time
import timeit
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import jitgen.gemm.kernel
from jitgen import doors
from jitgen.emit.frame import Frame
from jitgen.emit.routine import Routine, Written, emitter
from jitgen.emit.steps import STEPS, Step
from jitgen.gemm.kernel import Bound, Kernel
from jitgen.gemm.plan import check_overrides
from jitgen.target import ANY_WIDTH, Target
from jitgen.types import DTYPES, NUMPY, DTypeLike

Array = np.ndarray
#: Arrays begin at multiples of so many bytes
ALIGN = 64
#: Rounding of one step of an epilogue, in eps of its result; the functions err by less
STEP_EPS = 8
#: An error as large as any: for results that are no numbers
HUGE = 1e30
#: Samples that each contestant gets in the time given, and at least
ROUNDS, FEWEST_ROUNDS = 25, 5
#: Multiply-accumulates of each chain in a pass of the loop; passes of a call, so many that what
#: the call costs beside them is about a part in a thousand
PEAK_UNROLL, PEAK_PASSES = 4, 10_000
#: Tries of which a generation time is the median
TRIES = 5


def apply_step(step: Step, x: Array, operands: dict[str, Array]) -> Array:
    """The step of an epilogue on `x`, in its precision."""
    name, *parameters = step
    operand = STEPS[name].operand
    if operand is not None:
        parameters = [operands[operand.word]]
    with np.errstate(over="ignore"):
        return np.asarray(STEPS[name].meaning(x, *parameters))


def largest_slope(step: Step, x: Array) -> Any:
    """By how much the step of an epilogue can enlarge an error of `x`."""
    name, *parameters = step
    slope = STEPS[name].slope
    return slope(x, *parameters) if callable(slope) else slope


class Check(NamedTuple):
    """Whether all elements keep within their bounds; the largest error, the bound of that element,
    and the largest part of its bound that any error takes."""

    passed: bool
    largest_error: float
    bound_there: float
    of_bound: float
    mask_bits_wrong: int


class Problem:
    """Random arrays for a kernel and a batch of `count`, uniform in [-1, 1]."""

    def __init__(self, kernel: Kernel, count: int) -> None:
        spec, count = doors.instance("kernel", kernel, Kernel).spec, doors.size("count", count)
        self.kernel = kernel
        self.count = count
        self._random = np.random.default_rng(1)
        rows, columns = spec.a_shape
        a_all = self._array(spec.a_type, count, rows, spec.lda)
        b_all = self._array(spec.b_type, count, *spec.b_shape[:-1], spec.panel or spec.ldb)
        a, b = a_all[..., :columns], b_all[..., : spec.b_shape[-1]]
        # op(A_i) and op(B_i), whatever the layout
        self._a = a.swapaxes(1, 2) if spec.trans_a else a
        self._b = b.swapaxes(1, 2) if spec.trans_b or spec.panel else b
        if spec.panel:
            self._b = self._b.reshape(count, spec.k, -1)[..., : spec.n]
        self.c = self._array(spec.c_type, spec.m, spec.ldc)[:, : spec.n]
        self._c = self.c.copy()
        shapes = {"bias": (spec.n,), "bias_row": (spec.m,), "residual": (spec.m, spec.ldr)}
        self._extra = {
            s: self._array(spec.c_type, *shape) for s, shape in shapes.items() if spec.has(s)
        }
        if spec.has("residual"):
            self._extra["residual"] = self._extra["residual"][:, : spec.n]
        if spec.has("relu_mask"):
            self._extra["mask"] = np.empty((spec.m, spec.mask_bytes), np.uint8)
        self._arguments: tuple[Any, Any] = (a, b)
        if spec.batch == "address":
            self._arguments = (list(a), list(b))
        elif spec.batch == "offset":
            self._arguments = (a_all, b_all)
            self._extra["a_offsets"] = np.arange(count) * a_all[0].size
            self._extra["b_offsets"] = np.arange(count) * b_all[0].size

    def _array(self, kind: str, *shape: int) -> Array:
        dtype = NUMPY[kind]
        raw = np.empty(math.prod(shape) * dtype.itemsize + ALIGN, np.uint8)
        start = -raw.ctypes.data % ALIGN
        array = raw[start : start + raw.size - ALIGN].view(dtype).reshape(shape)
        self._random.random(dtype=dtype.type, out=array)
        array *= 2
        array -= 1
        return array

    def bind(self, kernel: Kernel) -> Bound:
        """`kernel`, of the same spec, bound to the arrays."""
        doors.instance("kernel", kernel, Kernel)
        return kernel.bind(*self._arguments, self.c, **self._extra)

    def check(self) -> Check:
        """Run the kernel once and compare all elements with the result in float64."""
        spec = self.kernel.spec
        self.c[...] = self._c
        self.bind(self.kernel)()
        eps = DTYPES[spec.c_type].epsilon
        x, size = np.zeros((spec.m, spec.n)), np.zeros((spec.m, spec.n))
        for a, b in zip(self._a, self._b, strict=True):
            a, b = a.astype(np.float64), b.astype(np.float64)
            x += a @ b
            size += np.abs(a) @ np.abs(b)
        old = self._c.astype(np.float64)
        x = spec.alpha * x + spec.beta * old
        size = abs(spec.alpha) * size + abs(spec.beta) * np.abs(old)
        bound = (spec.k * self.count + 4) * eps * size
        operands = {name: array.astype(np.float64) for name, array in self._extra.items()}
        wrong = 0
        for name, *parameters in spec.epilogue:
            # parameters are rounded to the element type
            step = (name, *(float(self.c.dtype.type(p)) for p in parameters))
            if name == "relu_mask":
                bits = np.unpackbits(self._extra["mask"], axis=1, bitorder="little")
                differ = bits[:, : spec.n].astype(bool) != (x > 0)
                wrong = int(np.count_nonzero(differ & (np.abs(x) > bound)))
            bound = largest_slope(step, x) * bound
            x = apply_step(step, x, operands)
            bound += STEP_EPS * eps * np.abs(x)
        error = np.nan_to_num(np.abs(self.c - x), nan=HUGE, posinf=HUGE)
        bound += DTYPES[spec.c_type].tiny
        worst = np.unravel_index(error.argmax(), error.shape)
        part = min(float((error / bound).max()), HUGE)
        passed = part <= 1 and not wrong
        return Check(passed, float(error[worst]), float(bound[worst]), part, wrong)

    def numpy_call(self) -> Callable[[], Any]:
        """The same work by NumPy: one product of A and B joined along k (which is done here, not
        in the call) and the epilogue, without gelu: NumPy has no erf."""
        spec = self.kernel.spec
        a = np.ascontiguousarray(np.concatenate(list(self._a), axis=1))
        b = np.ascontiguousarray(np.concatenate(list(self._b), axis=0))
        out = np.empty((spec.m, spec.n), self.c.dtype)
        steps = [step for step in spec.epilogue if step[0] != "gelu"]

        def call() -> Array:
            x: Array = np.matmul(a, b, out=out)
            if spec.alpha != 1.0:
                x *= spec.alpha
            if spec.beta:
                x += spec.beta * self._c
            for step in steps:
                x = apply_step(step, x, self._extra)
            return x

        return call


# ---- time ---------------------------------------------------------------------------------------


def empty_kernel(kernel: Kernel) -> Kernel:
    """A kernel of the same face that returns at once: what a call costs without the work."""
    doors.instance("kernel", kernel, Kernel)
    machine = kernel.target.machine(kernel.spec.dtype, ANY_WIDTH)
    machine.begin(())
    machine.end()
    return _stand_in(kernel, machine.program.encode())


def peak_kernel(kernel: Kernel) -> tuple[Kernel, int]:
    """A kernel of the same face that does what `emit_peak` gives; and its floating-point
    operations."""
    doors.instance("kernel", kernel, Kernel)
    routine, flops = emit_peak(kernel.target, kernel.spec.dtype)
    return _stand_in(kernel, routine.code), flops


def emit_peak(target: Target, dtype: DTypeLike) -> tuple[Routine, int]:
    """A routine that does nothing but independent multiply-accumulates on the widest registers of
    the target; and its floating-point operations."""
    dtype = doors.dtype("dtype", dtype)
    machine = doors.instance("target", target, Target).machine(dtype, ANY_WIDTH)
    macs = PEAK_PASSES * PEAK_UNROLL * (machine.vectors - 2) * machine.lanes
    return _emit_peak(target, dtype), 2 * macs


@emitter
def _emit_peak(target: Target, dtype: str) -> Written:
    machine = target.machine(dtype, ANY_WIDTH)
    frame = Frame(machine)
    chains, passes = machine.vectors - 2, frame.take("passes")
    machine.begin(frame.used())
    for v in range(machine.vectors):
        machine.zero(v)
    machine.set(passes, PEAK_PASSES)
    machine.program.align(machine.loop_alignment)
    label = machine.program.new_label()
    machine.place(label)
    for _ in range(PEAK_UNROLL):
        for acc in range(chains):
            machine.mac(acc, chains, chains + 1, machine.lanes)
    machine.count_down(passes, label)
    machine.end()
    return Written(f"peak {dtype} {PEAK_PASSES} passes", (), target, frame)


def _stand_in(kernel: Kernel, code: bytes) -> Kernel:
    return Kernel(kernel.spec, kernel.target, kernel.plan, code, {}, assembler="")


def interleave(
    contestants: dict[str, Callable[[], Any]], seconds: float
) -> dict[str, list[float]]:
    """Time callables in turns for about `seconds` altogether (longer if single calls are): seconds
    of a call in each round."""
    for name, call in doors.mapping("contestants", contestants).items():
        doors.function(f"contestants[{doors.shown(name)}]", call)
    if not contestants:
        raise ValueError(f"contestants={doors.shown(contestants)} is empty; there must be some")
    seconds = doors.number("seconds", seconds, above=0, high=3600)
    sample = seconds / ROUNDS / len(contestants)
    timers = {name: timeit.Timer(call) for name, call in contestants.items()}
    calls = {name: _calls(timer, sample) for name, timer in timers.items()}
    result: dict[str, list[float]] = {name: [] for name in contestants}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < FEWEST_ROUNDS or time.perf_counter() < end:
        for name, timer in timers.items():
            result[name].append(timer.timeit(calls[name]) / calls[name])
        rounds += 1
    return result


def _calls(timer: timeit.Timer, seconds: float) -> int:
    """How many calls take about `seconds`; also warms up."""
    calls = 1
    while (taken := timer.timeit(calls)) < seconds / 4:
        calls *= 4
    return max(1, round(calls * seconds / taken))


def generation(kernel: Kernel, make: functools.partial[Kernel]) -> dict[str, float]:
    """Seconds to generate a kernel: `cold` with all caches empty, `warm` with cached instruction
    bytes. `make` is the call of `jitgen.brgemm` that gives the kernel."""
    doors.instance("kernel", kernel, Kernel)
    doors.instance("make", make, functools.partial)
    overrides = check_overrides(make.keywords.get("plan") or {})
    again = functools.partial(jitgen.gemm.kernel.generate, kernel.spec, kernel.target, overrides)
    cold = timeit.repeat(make, jitgen.clear_caches, repeat=TRIES, number=1)
    warm = timeit.repeat(again, repeat=TRIES, number=1)
    return {"cold": statistics.median(cold), "warm": statistics.median(warm)}
