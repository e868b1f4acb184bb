"""Transforms of Winograd's convolution F(2 x 2, 3 x 3): lanes are channels, squares are the loop.

    y = A^T [ (G g G^T) * (B^T d B) ] A,   2 x 2 results of 3 x 3 taps from 4 x 4 pixels

(Lavin, Gray: arXiv:1509.09308). Each factor, its gradient, and what is around the product is one
kind of transform L x L^T of squares that lie in a row; where an element lies depends on the grid:
pixels of an NHWC image, or planes [element][square][channel]. Called as BRGEMM kernels are
(docs/abi.md). Not here: the products between, and the loops over rows
(`jitgen.primitives.conv.winograd`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from jitgen.emit.copying import repeated
from jitgen.emit.frame import Frame
from jitgen.emit.routine import Operand, Written, emitter
from jitgen.emit.shapes import MATRIX_BYTES, check_shape
from jitgen.emit.steps import STEPS, Step, StepOperand, apply, check_places, operands
from jitgen.gemm.spec import make_epilogue
from jitgen.isa.machine import Machine
from jitgen.run.cache import CODE
from jitgen.target import Target
from jitgen.types import DTYPES

Matrix = tuple[tuple[float, ...], ...]
_INPUT = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_OUTPUT = ((1, 1, 1, 0), (0, 1, -1, -1))
_WEIGHTS = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
#: kind -> L: of pixels x, of products to results y (and from gradients of y), of weights (and back)
KINDS: dict[str, Matrix] = {
    "input": _INPUT,
    "output": _OUTPUT,
    "gradient": tuple(zip(*_OUTPUT, strict=True)),
    "weights": _WEIGHTS,
    "weight gradient": tuple(zip(*_WEIGHTS, strict=True)),
}
#: Where operands of the epilogue of kind "output" may lie: channels are columns
PLACES = ("column", "element")


class Grid(NamedTuple):
    """Elements from an element of a square to the one below and to the right, and from a square to
    the next."""

    down: int
    right: int
    square: int


class Squares(NamedTuple):
    """`number` neighbouring squares of which rows and columns [first, behind last) exist: what else
    is read is 0, and what else would be written is not."""

    number: int
    rows: tuple[int, int]
    columns: tuple[int, int]


@CODE.of
@emitter
def emit_winograd(
    kind: str, channels: int, squares: tuple[Squares, ...], a: Grid, c: Grid, dtype: str,
    target: Target, *, lead: int = 0, epilogue: tuple[Step, ...] = (),
    residual: Grid | None = None,
) -> Written:  # fmt: skip
    """The routine for L x L^T of a row of squares, one after the other, in every channel.

    Word a is the first square's corner plus `lead` elements, word c the first result's corner;
    where elements exist is said for c if kind is "output", else for a. epilogue: all steps but
    relu_mask and bias_row, none but with kind "output"; word residual has the grid of c, unless one
    of its own is given. c overlaps no other word. Raises ValueError that names argument, value and
    rule.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(KINDS)}")
    count = sum(s.number for s in squares)
    check_shape(max(count, 1), channels, dtype, channels)
    matrix = KINDS[kind]
    side = len(matrix if kind == "output" else matrix[0])
    for s in squares:
        if s.number < 1 or any(not 0 <= low <= high <= side for low, high in s[1:]):
            raise ValueError(f"{s} is not at least one square with a part of {side} x {side}")
    of_residual = residual or c
    for name, grid in (("a", a), ("c", c), ("residual", of_residual)):
        reach = 3 * (abs(grid.down) + abs(grid.right)) + count * abs(grid.square) + channels
        if (reach + abs(lead)) * DTYPES[dtype].size >= MATRIX_BYTES:
            raise ValueError(f"{name}={grid} and lead={lead} reach 2 GiB or more")
    steps = make_epilogue(epilogue, dtype)
    if steps and kind != "output":
        raise ValueError(f"epilogue step {steps[0][0]!r}: kind={kind!r} has no epilogue")
    check_places(steps, PLACES, "a transform")
    transform = _Transform(kind, channels, squares, (a, c, of_residual), dtype, target, lead, steps)
    words = {"a": "squares", "c": "transformed squares"} | {name: name for name in operands(steps)}
    signature = tuple(Operand(word, words[word], dtype) for word in words)
    name = f"winograd_{kind.replace(' ', '_')} {dtype} {count}x{channels}"
    return Written(name, signature, target, transform.emit())


@dataclass
class _Registers:
    """Vector registers that are free, and how many values share each of the others."""

    free: list[int]
    shared: dict[int, int]

    def take(self) -> int:
        register = self.free.pop()
        self.shared[register] = 1
        return register

    def release(self, registers: list[int | None]) -> None:
        for r in registers:
            if r is not None:
                self.shared[r] -= 1
                if not self.shared[r]:
                    self.free.append(r)


class _Transform:
    def __init__(
        self, kind: str, channels: int, squares: tuple[Squares, ...], grids: tuple[Grid, ...],
        dtype: str, target: Target, lead: int, epilogue: tuple[Step, ...],
    ) -> None:  # fmt: skip
        self.kind, self.matrix, self.squares = kind, KINDS[kind], squares
        self.channels, self.lead, self.epilogue = channels, lead, epilogue
        self.machine: Machine = target.machine(dtype, channels)
        self.frame = Frame(self.machine)
        self.element = e = self.machine.element
        self.a, self.c, self.residual = (Grid(*(x * e for x in grid)) for grid in grids)
        self.vector = self.machine.lanes * e
        self.tail = channels % self.machine.lanes
        masks = self.machine.tail_vectors(self.tail) if self.tail else 0
        last = self.machine.vectors - masks
        free = last - self.machine.constant_registers
        self.machine.constant_temps = tuple(range(free, last))
        self.registers = _Registers(list(reversed(range(free))), {})
        #: rows of L at a time: two need 13 registers at most, four 20
        self.together = 4 if free >= 20 else 2
        #: pointers, and how far they move from a square to the next
        self.steps = {"from": self.a.square, "to": self.c.square}
        for word in ("residual", "bias"):
            if (word,) in epilogue:
                self.steps[word] = self.residual.square if word == "residual" else 0

    def emit(self) -> Frame:
        machine, frame = self.machine, self.frame
        for role in (*self.steps, "left", "again", "constants"):
            frame.take(role)
        machine.program.section(f"{self.kind} transform of {self.channels} channels")
        machine.begin(frame.used())
        machine.use_constants(frame["constants"])
        if self.tail:
            machine.set_tail(self.tail, machine.vectors - 1)
        for role in self.steps:
            frame.load_argument(role, {"from": "a", "to": "c"}.get(role, role))
        machine.advance(frame["from"], -self.lead * self.element)
        for squares in self.squares:
            machine.program.section(f"{squares.number} squares")
            with repeated(machine, frame["again"], squares.number):
                self._channels(squares)
        machine.end()
        return frame

    def _channels(self, squares: Squares) -> None:
        """One square, in every channel; the pointers move to the next."""
        machine, frame = self.machine, self.frame
        vectors = self.channels // machine.lanes
        if vectors:
            with repeated(machine, frame["left"], vectors):
                self._square(squares, machine.lanes)
                for role in self.steps:
                    machine.advance(frame[role], self.vector)
        if self.tail:
            self._square(squares, self.tail)
        for role, step in self.steps.items():
            machine.advance(frame[role], step - vectors * self.vector)

    def _square(self, squares: Squares, lanes: int) -> None:
        height, width = len(self.matrix), len(self.matrix[0])
        read, written = Squares(1, (0, width), (0, width)), Squares(1, (0, height), (0, height))
        if self.kind == "output":
            written = squares
        else:
            read = squares
        results: dict[tuple[int, int], int] = {}
        rows = list(range(*written.rows))
        while rows:
            chosen, rows = rows[: self.together], rows[self.together :]
            half: dict[int, list[int | None]] = {r: [None] * width for r in chosen}
            for j in range(*read.columns):
                x: list[int | None] = [None] * width
                for i in range(*read.rows):
                    if any(self.matrix[r][i] for r in chosen):
                        x[i] = self.registers.take()
                        self._move(x[i], "from", self.a, (i, j), lanes)
                for r in chosen:
                    half[r][j] = self._sum(self.matrix[r], x)
                self.registers.release(x)
            for r in chosen:
                for j in range(*written.columns):
                    value = self._sum(self.matrix[j], half[r])
                    if value is None:
                        value = self.registers.take()
                        self.machine.zero(value)
                    results[r, j] = value
                self.registers.release(half[r])
                if self.kind != "output":
                    self._store(results, lanes)
        if results:
            for step in self.epilogue:
                self._apply(step, results, lanes)
            self._store(results, lanes)

    def _move(
        self, register: int | None, role: str, grid: Grid, at: tuple[int, int], lanes: int
    ) -> None:
        """Load an element of a square, or store it."""
        assert register is not None
        place = (self.frame[role], at[0] * grid.down + at[1] * grid.right)
        (self.machine.store if role == "to" else self.machine.load)(register, place, lanes)

    def _store(self, results: dict[tuple[int, int], int], lanes: int) -> None:
        for at, register in results.items():
            value = register
            if self.registers.shared[register] > 1:  # a store may clobber what it stores
                value = self.registers.take()
                self.machine.or_(value, register, register)
                self.registers.release([value])
            self._move(value, "to", self.c, at, lanes)
            self.registers.release([register])
        results.clear()

    def _sum(self, factors: tuple[float, ...], values: list[int | None]) -> int | None:
        """A register with the sum of values times their factors of 1, -1, 0.5 or -0.5 (None: 0)."""
        machine = self.machine
        terms = [(f, v) for f, v in zip(factors, values, strict=True) if f and v is not None]
        if not terms:
            return None
        # begin with a sum or difference of two, if there is one
        terms.sort(key=lambda term: term[0] != 1)
        (factor, first), *rest = terms
        if factor == 1 and not rest:
            self.registers.shared[first] += 1
            return first
        d = self.registers.take()
        if factor == 1:
            f, v = rest.pop(0)
            if abs(f) == 1:
                (machine.add if f > 0 else machine.sub)(d, first, v)
            else:
                machine.mul(d, v, machine.const(f))
                machine.add(d, first, d)
        elif factor == 0.5:
            machine.mul(d, first, machine.const(0.5))
        else:
            machine.zero(d)
            rest = terms
        for f, v in rest:
            if abs(f) == 1:
                (machine.add if f > 0 else machine.sub)(d, d, v)
            else:
                (machine.fma if f > 0 else machine.fnma)(d, v, machine.const(0.5))
        return d

    def _apply(self, step: Step, results: dict[tuple[int, int], int], lanes: int) -> None:
        """An epilogue step on all results of a square."""

        def operand(which: StepOperand, t: int) -> Iterator[list[int]]:
            if which.place == "column":
                self.machine.load(t, (self.frame[which.word], 0), lanes)
                yield [*results.values()]
                return
            for at, register in results.items():
                self._move(t, which.word, self.residual, at, lanes)
                yield [register]

        temps = [self.registers.take() for _ in range(STEPS[step[0]].temps)]
        apply(step, self.machine, [*results.values()], temps, operand)
        self.registers.release([*temps])
