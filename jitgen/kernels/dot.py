"""Rows times rows: y[j] = epilogue(sum over k of x[k] w[j, k]), a matrix-vector product along k.

Vectors run along the reduction, so w is read as it is stored, each element once; nothing is packed.
The partial sums of as many columns as a vector has lanes are added by transposing them on the
stack. For one row of x: with many, panels (`jitgen.kernels.pack`) cost less than they gain. Not
here: products with the lanes along the columns (`jitgen.gemm.generator`).
"""

from __future__ import annotations

from collections.abc import Iterator

from jitgen.emit.copying import repeated
from jitgen.emit.frame import Frame
from jitgen.emit.routine import Operand, Written, emitter
from jitgen.emit.shapes import MATRIX_BYTES, check_rows
from jitgen.emit.steps import Step, StepOperand, apply, check_places, operands
from jitgen.gemm.spec import make_epilogue
from jitgen.isa.machine import Machine
from jitgen.run.cache import CODE
from jitgen.target import ANY_WIDTH, Target
from jitgen.types import DTYPES

#: Where operands of its epilogue may lie: one row of results has neither bits nor rows
PLACES = ("column", "element")
#: Rows of w that are read at the same time: as many streams as the hardware follows well
ROWS = 4


def possible(dtype: str, target: Target) -> bool:
    """Whether vectors of this target can be transposed in registers."""
    machine = target.machine(dtype, ANY_WIDTH)
    return machine.lanes in machine.transpose_squares


def within_reach(n: int, ldb: int, dtype: str) -> bool:
    """Whether the rows of w that are read at the same time span less than 2 GiB."""
    return min(n, ROWS) * ldb * DTYPES[dtype].size < MATRIX_BYTES


@CODE.of
@emitter
def emit_dot(
    n: int, k: int, ldb: int, dtype: str, target: Target, epilogue: tuple[Step, ...] = ()
) -> Written:
    """The routine for one row: word a is x (k), b is w (n x k, rows ldb elements apart), c is y
    (n), bias and residual (n) as the epilogue asks.

    epilogue: all steps but relu_mask and bias_row. Raises ValueError that names argument, value and
    rule.
    """
    check_rows(n, k, dtype, ldb)
    if not within_reach(n, ldb, dtype):
        raise ValueError(f"ldb={ldb}: {min(n, ROWS)} rows ({dtype}) span 2 GiB or more")
    if not possible(dtype, target):
        raise ValueError(f"target={target.name}: {dtype} vectors cannot be transposed there")
    steps = make_epilogue(epilogue, dtype)
    check_places(steps, PLACES, "a row of products")
    frame = _Dot(n, k, ldb, target.machine(dtype, ANY_WIDTH), steps).emit()
    meanings = {"a": "x", "b": "w", "c": "y"} | {name: name for name in operands(steps)}
    signature = tuple(Operand(word, meanings[word], dtype) for word in meanings)
    return Written(f"dot {dtype} {n}x{k}", signature, target, frame, flops=2 * n * k)


class _Dot:
    def __init__(
        self, n: int, k: int, ldb: int, machine: Machine, epilogue: tuple[Step, ...]
    ) -> None:
        self.n, self.k, self.machine, self.epilogue = n, k, machine, epilogue
        self.frame = Frame(machine)
        self.lanes = machine.lanes
        self.vector = machine.lanes * machine.element
        self.row = ldb * machine.element
        #: sums of a row: several, to hide the latency of the FMA
        self.unroll = 4 if machine.vectors >= 32 else 2
        self.x, self.w = ROWS * self.unroll, ROWS * self.unroll + 1

    def emit(self) -> Frame:
        machine, frame = self.machine, self.frame
        words = {"x": "a", "w": "b", "y": "c"}
        self.operands = operands(self.epilogue)
        words |= {word: word for word in self.operands}
        for role in (*words, "x_now", "w_now", "step", "left", "constants"):
            frame.take(role)
        machine.program.section(f"row of {self.k} times {self.n} rows")
        machine.begin(frame.used(), 2 * self.lanes * self.vector)
        machine.use_constants(frame["constants"])
        for role, word in words.items():
            frame.load_argument(role, word)
        blocks, rest = divmod(self.n, self.lanes)
        if blocks > 1:
            with repeated(machine, frame["left"], blocks):
                self._block(self.lanes)
        elif blocks:
            self._block(self.lanes)
        if rest:
            self._block(rest)
        machine.end()
        return frame

    def _block(self, columns: int) -> None:
        """`columns` (at most a vector of them) sums, and the store of their results."""
        machine, frame = self.machine, self.frame
        stack, step = machine.stack_pointer, frame["step"]
        for first in range(0, columns, ROWS):
            rows = min(ROWS, columns - first)
            machine.program.section(f"{rows} sums along k")
            machine.move(frame["x_now"], frame["x"])
            machine.offset(frame["w_now"], frame["w"], first * self.row)
            sums = [list(range(r * self.unroll, (r + 1) * self.unroll)) for r in range(rows)]
            for register in range(rows * self.unroll):
                machine.zero(register)
            passes, rest = divmod(self.k // self.lanes, self.unroll)
            if passes:
                with repeated(machine, step, passes):
                    for v in range(self.unroll):
                        self._vector(sums, v, self.lanes)
                    for role in ("x_now", "w_now"):
                        machine.advance(frame[role], self.unroll * self.vector)
            for v in range(rest):
                self._vector(sums, v, self.lanes)
            tail = self.k % self.lanes
            if tail:
                machine.set_tail(tail, machine.vectors - 1)
                self._vector(sums, rest, tail)
            for r, parts in enumerate(sums):
                for other in parts[1:]:
                    machine.add(parts[0], parts[0], other)
                machine.store(parts[0], (stack, (first + r) * self.vector), self.lanes)
        self._finish(columns)

    def _vector(self, sums: list[list[int]], v: int, lanes: int) -> None:
        """Multiply vector v of x, of `lanes` elements, with that of each row."""
        machine, frame = self.machine, self.frame
        machine.load(self.x, (frame["x_now"], v * self.vector), lanes)
        for r, parts in enumerate(sums):
            at = (frame["w_now"], r * self.row + v * self.vector)
            if machine.fused_load and lanes == self.lanes:
                machine.mac_load(parts[v % self.unroll], self.x, at, lanes)
            else:
                # whole vectors also for a tail: a narrower operation would clear the rest of the
                # sum, and what lies beyond the tail is zero in both operands
                machine.load(self.w, at, lanes)
                machine.mac(parts[v % self.unroll], self.x, self.w, self.lanes)

    def _finish(self, columns: int) -> None:
        machine, frame = self.machine, self.frame
        machine.program.section("add the lanes of each sum; epilogue and store")
        stack, size = machine.stack_pointer, self.lanes * self.vector
        machine.transpose(self.lanes, (stack, size), self.vector, (stack, 0), self.vector)
        machine.load(0, (stack, size), self.lanes)
        for j in range(1, self.lanes):
            machine.load(1, (stack, size + j * self.vector), self.lanes)
            machine.add(0, 0, 1)
        if columns < self.lanes:
            machine.set_tail(columns, machine.vectors - 1)
        # 0 is the result, what follows is free
        machine.constant_temps = (machine.vectors - 3, machine.vectors - 2)

        def operand(which: StepOperand, t: int) -> Iterator[list[int]]:
            machine.load(t, (frame[which.word], 0), columns)
            yield [0]

        for step in self.epilogue:
            apply(step, machine, [0], range(1, machine.vectors - 3), operand)
        machine.store(0, (frame["y"], 0), columns)
        machine.advance(frame["w"], columns * self.row)
        for role in ("y", *self.operands):
            machine.advance(frame[role], columns * machine.element)
