"""Element-wise kernels: the backward pass of activations, optimizer steps, copies, column sums.

They are called as BRGEMM kernels are, with one pointer to the words of
`jitgen.emit.frame.ARGUMENTS` (docs/abi.md), so streams mix them freely; `count` is not read. Shapes
are fixed in the code, which loops over rows and vectors and stays below 4 KiB. Not here: what is
done with the code bytes (`jitgen.run.replay`), and kernels that move elements to other places
(`jitgen.kernels.layout`).

>>> from jitgen.target import AVX2
>>> emit_map("add_to", 3, 100, "f32", AVX2, ld={"a": 128}).name
'add_to f32 3x100'
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jitgen.emit import derivatives
from jitgen.emit.copying import repeated
from jitgen.emit.routine import Operand, Routine, Writer, Written, emitter
from jitgen.emit.shapes import check_rows
from jitgen.isa.machine import Machine
from jitgen.kernels import gradients
from jitgen.run.cache import CODE
from jitgen.target import Target

#: Emits an operation on one vector: (machine, registers of what was read, temporaries, scalars)
#: -> registers of what is to be written
Body = Callable[[Machine, Sequence[int], Sequence[int], Sequence[int]], Sequence[int]]


@dataclass(frozen=True)
class Op:
    """An element-wise operation: the words it reads and writes, temporaries, and its code.

    `meanings` says what the words are, `scalars` names the elements of the array that word `bias`
    points to. `unroll` vectors stand in the loop's body: one where an operation has many
    instructions.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    body: Body
    meanings: Mapping[str, str]
    temps: int = 0
    scalars: tuple[str, ...] = ()
    mask: bool = False
    unroll: int = 4


def _copy(m: Machine, x: Sequence[int], t: Sequence[int], s: Sequence[int]) -> Sequence[int]:
    return x


def _zero(m: Machine, x: Sequence[int], t: Sequence[int], s: Sequence[int]) -> Sequence[int]:
    m.zero(t[0])
    return t


def _add_to(m: Machine, x: Sequence[int], t: Sequence[int], s: Sequence[int]) -> Sequence[int]:
    m.add(x[0], x[0], x[1])
    return x[:1]


def _relu(m: Machine, x: Sequence[int], t: Sequence[int], s: Sequence[int]) -> Sequence[int]:
    m.zero(t[0])
    m.select_greater(t[1], x[1], t[0], x[0], t[0])
    return t[1:2]


def _relu_mask(m: Machine, x: Sequence[int], t: Sequence[int], s: Sequence[int]) -> Sequence[int]:
    m.zero(t[1])
    m.select_negative(x[0], t[0], x[0], t[1])
    return x[:1]


def _sigmoid(m: Machine, x: Sequence[int], t: Sequence[int], s: Sequence[int]) -> Sequence[int]:
    m.load_const(t[0], m.const(1.0))
    m.sub(t[0], t[0], x[1])
    m.mul(t[0], t[0], x[1])
    m.mul(x[0], x[0], t[0])
    return x[:1]


def _tanh(m: Machine, x: Sequence[int], t: Sequence[int], s: Sequence[int]) -> Sequence[int]:
    m.load_const(t[0], m.const(1.0))
    m.fnma(t[0], x[1], x[1])
    m.mul(x[0], x[0], t[0])
    return x[:1]


def _gelu(m: Machine, x: Sequence[int], t: Sequence[int], s: Sequence[int]) -> Sequence[int]:
    derivatives.gelu(m, x[1], t)
    m.mul(x[0], x[0], x[1])
    return x[:1]


def _silu(m: Machine, x: Sequence[int], t: Sequence[int], s: Sequence[int]) -> Sequence[int]:
    derivatives.silu(m, x[1], t)
    m.mul(x[0], x[0], x[1])
    return x[:1]


def _sgd(m: Machine, x: Sequence[int], t: Sequence[int], s: Sequence[int]) -> Sequence[int]:
    weight, gradient, velocity = x
    rate, momentum, decay = s
    m.fma(gradient, weight, decay)
    m.fmad(velocity, momentum, gradient)
    m.fnma(weight, rate, velocity)
    return weight, velocity


def _adam(m: Machine, x: Sequence[int], t: Sequence[int], s: Sequence[int]) -> Sequence[int]:
    weight, gradient, mean, square = x
    step, root, eps, beta1, rest1, beta2, rest2, decay = s
    m.fma(gradient, weight, decay)
    m.mul(mean, mean, beta1)
    m.fma(mean, gradient, rest1)
    m.mul(gradient, gradient, gradient)
    m.mul(square, square, beta2)
    m.fma(square, gradient, rest2)
    m.sqrt(gradient, square)
    m.fmad(gradient, root, eps)
    m.mul(t[0], mean, step)
    m.div(t[0], t[0], gradient)
    m.sub(weight, weight, t[0])
    return weight, mean, square


_STATE = ("c", "b", "residual")
_MOVE = {"a": "source", "c": "target"}
_OF_Y = {"a": "gradient of y", "b": "y", "c": "gradient of x", "bias": "parameters"}
_OF_Z = {**_OF_Y, "b": "what the function was applied to"}
_STEP = {"c": "weights", "a": "gradient", "bias": "scalars"}
OPS = {
    "copy": Op(("a",), ("c",), _copy, _MOVE),
    "zero": Op((), ("c",), _zero, _MOVE, temps=1),
    "add_to": Op(("c", "a"), ("c",), _add_to, _MOVE),
    "relu_backward": Op(("a", "b"), ("c",), _relu, _OF_Y, temps=2),
    "relu_backward_mask": Op(
        ("a",), ("c",), _relu_mask, {**_OF_Y, "mask": "where y is positive"}, temps=2, mask=True
    ),
    "sigmoid_backward": Op(("a", "b"), ("c",), _sigmoid, _OF_Y, temps=1),
    "tanh_backward": Op(("a", "b"), ("c",), _tanh, _OF_Y, temps=1),
    "gelu_backward": Op(("a", "b"), ("c",), _gelu, _OF_Z, derivatives.TEMPS["gelu"], unroll=1),
    "silu_backward": Op(("a", "b"), ("c",), _silu, _OF_Z, derivatives.TEMPS["silu"], unroll=1),
    "clip_backward": Op(
        ("a", "b"), ("c",), gradients.clip, _OF_Y, temps=3, scalars=("low", "high")
    ),
    "leaky_relu_backward": Op(
        ("a", "b"), ("c",), gradients.leaky_relu, _OF_Y, temps=3, scalars=("slope",)
    ),
    "elu_backward": Op(("a", "b"), ("c",), gradients.elu, _OF_Y, temps=3, scalars=("alpha",)),
    "hardsigmoid_backward": Op(
        ("a", "b"), ("c",), gradients.hardsigmoid, _OF_Y, temps=4, scalars=("alpha", "beta")
    ),
    "hardswish_backward": Op(("a", "b"), ("c",), gradients.hardswish, _OF_Z, temps=4),
    "exp_backward": Op(("a", "b"), ("c",), gradients.exp, _OF_Y),
    "sgd": Op(
        ("c", "a", "b"), _STATE[:2], _sgd, {**_STEP, "b": "velocity"},
        scalars=("rate", "momentum", "weight_decay"),
    ),
    "adam": Op(
        ("c", "a", "b", "residual"), _STATE, _adam,
        {**_STEP, "b": "mean", "residual": "mean square"}, temps=1, scalars=(
            "step", "root", "eps", "beta1", "1 - beta1", "beta2", "1 - beta2", "weight_decay",
        ), unroll=2,
    ),
}  # fmt: skip


def adam_scalars(
    t: int, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> tuple[float, ...]:  # fmt: skip
    """The scalars of op "adam" in step t = 1, 2, ...; names and defaults are torch.optim.Adam's."""
    step, root = lr / (1.0 - betas[0] ** t), 1.0 / math.sqrt(1.0 - betas[1] ** t)
    return step, root, eps, betas[0], 1.0 - betas[0], betas[1], 1.0 - betas[1], weight_decay


def emit_map(
    op: str, rows: int, columns: int, dtype: str, target: Target, *,
    ld: Mapping[str, int] | None = None,
) -> Routine:  # fmt: skip
    """The routine that applies `op` to blocks of rows x columns elements.

    Words a, b, c, residual are addresses of row-major blocks; `ld` gives leading dimensions in
    elements by word (default: columns). c, and every word that an op updates, may be a or b itself
    (same address and leading dimension), but may not overlap otherwise.

    | op | computes |
    | --- | --- |
    | copy, zero, add_to | c = a, c = 0, c += a |
    | relu_backward | c = a where b > 0, else 0, also where b is NaN (b = y, relu's result) |
    | relu_backward_mask | c = a where the bit of `mask` is set, else 0 |
    | sigmoid_backward, tanh_backward | c = a b (1 - b), c = a (1 - b b) (b = y) |
    | gelu_backward, silu_backward | c = a f'(b) (b = z, what f was applied to) |
    | others of activations | c = a f'(b): `jitgen.kernels.gradients`; scalars: parameters of f |
    | sgd | g = a + weight_decay c, b = momentum b + g, c -= rate b |
    | adam | g = a + weight_decay c, b = beta1 b + (1 - beta1) g, residual = beta2 residual |
    | | + (1 - beta2) g g, c -= step b / (root sqrt(residual) + eps) |

    mask: as the epilogue's relu_mask writes it; ld["mask"] in bytes (default: ceil(columns / 8)).
    sgd and adam are those of PyTorch; word `bias` points to the scalars of an op in the order of
    `OPS[op].scalars`, of the kernel's element type; see `adam_scalars`.

    Raises ValueError that names argument, value and rule.
    """
    if op not in OPS:
        raise ValueError(f"op={op!r} is not one of {', '.join(OPS)}")
    words = dict.fromkeys((*OPS[op].reads, *OPS[op].writes), columns)
    if OPS[op].mask:
        words["mask"] = -(-columns // 8)
    for name, leading in (ld or {}).items():
        if name not in words:
            raise ValueError(f"ld has {name!r}; {op} has the words {', '.join(words)}")
        if leading < words[name]:
            raise ValueError(f"ld[{name!r}]={leading} is smaller than a row's {words[name]}")
        words[name] = leading
    check_rows(rows, columns, dtype, max(words.values()))
    return _emit_map(op, rows, columns, dtype, target, tuple(words.items()))


@CODE.of
@emitter
def _emit_map(
    op: str, rows: int, columns: int, dtype: str, target: Target, ld: tuple[tuple[str, int], ...]
) -> Written:
    name = f"{op} {dtype} {rows}x{columns}"
    packed = all(
        leading * 8 == columns if word == "mask" else leading == columns for word, leading in ld
    )
    if packed:  # rows that follow one another are one long row
        rows, columns = 1, rows * columns
    return _Map(OPS[op], name, rows, columns, dtype, target, dict(ld)).write()


class _Map(Writer):
    """Writes one kernel of `emit_map`."""

    def __init__(
        self, op: Op, name: str, rows: int, columns: int, dtype: str, target: Target,
        ld: dict[str, int],
    ) -> None:  # fmt: skip
        machine = target.machine(dtype, columns)
        types = {"mask": "bits"}
        operands = {w: Operand(w, op.meanings[w], types.get(w, dtype)) for w in ld}
        beside = (Operand("bias", op.meanings["bias"], dtype),) if op.scalars else ()
        super().__init__(name, target, machine, operands, columns, beside)
        self.op, self.rows, self.columns = op, rows, columns
        self.pitch = {n: x * (1 if n == "mask" else machine.element) for n, x in ld.items()}
        registers = iter(range(machine.vectors))
        self.scalars = [next(registers) for _ in op.scalars]
        self.values = [next(registers) for _ in op.reads]
        self.temps = [next(registers) for _ in range(op.temps)]
        machine.constant_temps = tuple(next(registers) for _ in range(machine.constant_registers))
        if op.mask and math.lcm(machine.lanes, 8) > 64:
            raise ValueError(
                f"op 'relu_backward_mask': bytes do not divide vectors of {machine.lanes} elements"
            )

    def enter(self) -> None:
        if self.scalars:
            self.frame.load_argument("step", "bias")
            for i, register in enumerate(self.scalars):
                self.machine.broadcast(register, (self.frame["step"], i * self.element))
        self.load_operands()
        self.set_tail()

    def write(self) -> Written:
        machine, frame = self.machine, self.frame
        self.take("step", "row", "constants", *(("mask", "bits") if self.op.mask else ()))
        self.begin()
        if self.rows == 1:
            self._row(self.tail)
        else:
            with repeated(machine, frame["row"], self.rows):
                moved = self._row(self.tail)
                for name, pitch in self.pitch.items():
                    machine.advance(frame[name], pitch - moved[name])
        return self.end()

    def _row(self, tail: int) -> dict[str, int]:
        """One row; returns by how many bytes the pointer of each word has moved."""
        machine, unroll = self.machine, self.op.unroll
        passes, rest = divmod(self.columns // machine.lanes, unroll)
        moved = dict.fromkeys(self.pitch, 0)
        if passes == 1:
            passes, rest = 0, rest + unroll
        if passes:
            machine.program.section(f"{passes} times {unroll} vectors")
            step = dict.fromkeys(self.pitch, unroll * self.vector)
            if self.op.mask:
                step["mask"] = unroll * machine.lanes // 8
            machine.set(self.frame["step"], passes)
            machine.program.align(machine.loop_alignment)
            again = machine.program.new_label()
            machine.place(again)
            self._vectors([machine.lanes] * unroll)
            for name, size in step.items():
                machine.advance(self.frame[name], size)
                moved[name] = passes * size
            machine.count_down(self.frame["step"], again)
        if rest or tail:
            machine.program.section(f"{rest} vectors and a tail of {tail}")
            self._vectors([machine.lanes] * rest + ([tail] if tail else []))
        return moved

    def _vectors(self, widths: list[int]) -> None:
        """Apply the operation to vectors that follow one another."""
        machine, frame, op = self.machine, self.frame, self.op
        unit = math.lcm(machine.lanes, 8) // machine.lanes  # vectors whose mask bits are bytes
        unit *= max(1, 64 // machine.lanes // unit)
        for i, lanes in enumerate(widths):
            if op.mask:
                if i % unit == 0:
                    bits = sum(widths[i : i + unit])
                    at = (frame["mask"], i * machine.lanes // 8)
                    machine.load_bits(frame["bits"], at, -(-bits // 8))
                position = i % unit * machine.lanes
                free = (self.temps[1], self.values[0])
                machine.spread_bits(self.temps[0], frame["bits"], position, free)
            for register, name in zip(self.values, op.reads, strict=True):
                machine.load(register, (frame[name], i * self.vector), lanes)
            results = op.body(machine, self.values, self.temps, self.scalars)
            for register, name in zip(results, op.writes, strict=True):
                machine.store(register, (frame[name], i * self.vector), lanes)


#: Vectors that `emit_column_sums` loads ahead of their addition
_AHEAD = 2


def emit_column_sums(
    rows: int, columns: int, dtype: str, target: Target, *, lda: int | None = None,
    accumulate: bool = False,
) -> Routine:  # fmt: skip
    """The routine for c[j] = a[0, j] + a[1, j] + ..., in this order, or c[j] += with `accumulate`.

    Words a and c are addresses; a is rows x columns, row-major, with leading dimension `lda` in
    elements (default: columns). Raises ValueError that names argument, value and rule.
    """
    lda = columns if lda is None else lda
    check_rows(rows, columns, dtype, lda)
    return _emit_column_sums(rows, columns, dtype, target, lda, accumulate)


@CODE.of
@emitter
def _emit_column_sums(
    rows: int, columns: int, dtype: str, target: Target, lda: int, accumulate: bool
) -> Written:
    machine = target.machine(dtype, columns)
    operands = {"a": Operand("a", "rows", dtype), "c": Operand("c", "sums of columns", dtype)}
    name = f"column_sums {dtype} {rows}x{columns}"
    writer = Writer(name, target, machine, operands, columns)
    writer.take("at", "row", "block", "constants")
    a, c, at, row, block = (writer.frame[role] for role in ("a", "c", "at", "row", "block"))
    lanes, size = machine.lanes, writer.vector
    ahead = range(machine.vectors - 1 - _AHEAD, machine.vectors - 1)
    most = machine.vectors // 2 + machine.vectors // 8

    def sums(widths: list[int]) -> None:
        for i, width in enumerate(widths):
            if accumulate:
                machine.load(i, (c, i * size), width)
            else:
                machine.zero(i)
        machine.move(at, a)
        machine.program.align(machine.loop_alignment)
        with repeated(machine, row, rows):
            for i, width in enumerate(widths):
                machine.load(ahead[i % _AHEAD], (at, i * size), width)
                machine.add(i, i, ahead[i % _AHEAD])
            machine.advance(at, lda * machine.element)
        for i, width in enumerate(widths):
            machine.store(i, (c, i * size), width)

    blocks, rest = divmod(writer.vectors, most)
    writer.begin()
    if blocks:
        machine.program.section(f"{blocks} blocks of {most} vectors of columns")
        with repeated(machine, block, blocks):
            sums([lanes] * most)
            machine.advance(a, most * size)
            machine.advance(c, most * size)
    if rest or writer.tail:
        machine.program.section(f"{rest} vectors of columns and a tail of {writer.tail}")
        sums([lanes] * rest + ([writer.tail] if writer.tail else []))
    return writer.end()
