"""The steps of an epilogue, one record each: what all that emits, checks, exports or tells reads.

An emitter of kernels says where its accumulators are and how an operand's vectors are loaded
(`apply`); the record does the rest, so that every step that makes sense in a kernel is in it. Not
here: the arithmetic (`jitgen.emit.functions`, `jitgen.emit.rectifiers`), how a user's epilogue is
read (`jitgen.gemm.spec.make_epilogue`).

>>> STEPS["clip"].parameters, STEPS["bias"].operand
({'low': None, 'high': None}, StepOperand(word='bias', place='column'))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from jitgen.emit import functions, rectifiers
from jitgen.isa.machine import Machine

#: One step of an epilogue: (name, *parameters).
Step = tuple[Any, ...]
#: (machine, accumulators, temporaries, *parameters): emits a step on all of the accumulators
Emit = Callable[..., None]
#: (operand, temporary) -> accumulators, those at a time for which the temporary now has the operand
Operands = Callable[["StepOperand", int], Iterable[Sequence[int]]]

_erf = np.vectorize(math.erf, otypes=[float])


class StepOperand(NamedTuple):
    """What a step reads or writes: a word of the argument struct, and which of its elements belongs
    to element (i, j) of C: "column" (j), "row" (i), "element" (i, j) as in C, "bit" (one bit for an
    element of C, written)."""

    word: str
    place: str


@dataclass(frozen=True)
class StepKind:
    """A kind of step.

    bit: of the flags in exported tables, below 31, never to be changed. meaning: (x, *parameters or
    the operand) -> result, by NumPy in x's precision. sentence: what a listing says. parameters:
    name -> default (None: it must be given). temps: vector registers beside the accumulators, the
    first of which holds the operand. constants: whether it reads constants. size: instructions for
    an accumulator, about, 0 for one to six. slope: by how much it can enlarge an error, or a
    function of x and the parameters that tells. known: which the derivative is made from, the
    step's output "y" or its input "z" ("": it has none). infinite: parameters may be infinities.
    """

    name: str
    bit: int
    meaning: Callable[..., Any]
    sentence: str
    emit: Emit
    parameters: Mapping[str, float | None] = field(default_factory=dict)
    operand: StepOperand | None = None
    temps: int = 1
    constants: bool = False
    size: int = 0
    slope: float | Callable[..., Any] = 1.0
    known: str = ""
    infinite: bool = False


def _each(emit: Emit) -> Emit:
    """The step that does the same with one accumulator after the other."""

    def emit_all(
        m: Machine, xs: Sequence[int], t: Sequence[int], *parameters: float
    ) -> None:
        for x in xs:
            emit(m, x, t, *parameters)

    return emit_all


def _add(m: Machine, xs: Sequence[int], t: Sequence[int]) -> None:
    for x in xs:
        m.add(x, x, t[0])


def _relu(m: Machine, xs: Sequence[int], t: Sequence[int]) -> None:
    m.zero(t[0])
    for x in xs:
        m.max(x, t[0], x)


def _scale(m: Machine, xs: Sequence[int], t: Sequence[int], factor: float) -> None:
    constant = m.const(factor)
    for x in xs:
        m.mul(x, x, constant)


def _function(
    bit: int, emit: Emit, meaning: Callable[..., Any], temps: int,
    slope: float | Callable[..., Any], known: str,
    parameters: Mapping[str, float | None] | None = None,
) -> StepKind:  # fmt: skip
    """A step that is one of the functions, on each accumulator."""
    name = emit.__name__
    return StepKind(
        name, bit, meaning, f"{name}(x)", _each(emit), parameters or {}, temps=temps,
        constants=True, size=40, slope=slope, known=known,
    )  # fmt: skip


def _positive(x: Any) -> Any:
    return np.maximum(x, 0)


_ALL = (
    StepKind("bias", 16, np.add, "adds a row vector to every row", _add,
             operand=StepOperand("bias", "column")),
    StepKind("bias_row", 17, lambda x, bias: x + bias[:, np.newaxis], "adds a column vector", _add,
             operand=StepOperand("bias_row", "row")),
    StepKind("residual", 18, np.add, "adds a matrix", _add,
             operand=StepOperand("residual", "element")),
    StepKind("relu", 19, _positive, "max(x, 0)", _relu, known="y"),
    StepKind("relu_mask", 20, lambda x, mask: _positive(x),
             "max(x, 0), and a bit for each element that is positive", _relu,
             operand=StepOperand("mask", "bit")),
    StepKind("leaky_relu", 21, lambda x, slope: np.where(x < 0, x * slope, x),
             "multiplies negative elements by the slope", rectifiers.leaky_relu, {"slope": None},
             constants=True, slope=lambda x, slope: max(1.0, abs(slope)), known="y",
             infinite=True),
    _function(22, functions.sigmoid, lambda x: 1 / (1 + np.exp(-x)), 2, 0.25, "y"),
    _function(23, functions.tanh, np.tanh, 3, 1.0, "y"),
    _function(24, functions.gelu, lambda x: x * (1 + _erf(x * math.sqrt(0.5))) / 2, 3, 1.13, "z"),
    _function(25, functions.gelu_tanh, lambda x: (
        x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    ), 4, 1.13, ""),
    _function(26, functions.silu, lambda x: x / (1 + np.exp(-x)), 3, 1.1, "z"),
    StepKind("clip", 27, np.clip, "limits to the two numbers", rectifiers.clip,
             {"low": None, "high": None}, constants=True, known="y", infinite=True),
    StepKind("scale", 28, np.multiply, "multiplies by the number", _scale, {"factor": None},
             constants=True, slope=lambda x, factor: abs(factor), infinite=True),
    _function(29, functions.exp, np.exp, 2, lambda x: 2 * np.exp(x), "y"),
    StepKind("hardsigmoid", 30, lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
             "alpha x + beta, limited to 0 and 1", rectifiers.hardsigmoid,
             {"alpha": 1 / 6, "beta": 0.5}, constants=True,
             slope=lambda x, alpha, beta: abs(alpha), known="y"),
    StepKind("hardswish", 15, lambda x: x * np.clip(x + 3, 0, 6) / 6,
             "x times x / 6 + 1/2, that limited to 0 and 1", rectifiers.hardswish, constants=True,
             slope=1.5, known="z"),
    _function(14, rectifiers.elu,
              lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))), 3,
              lambda x, alpha: max(1.0, abs(alpha)), "y", {"alpha": 1.0}),
    _function(13, rectifiers.mish, lambda x: x * np.tanh(np.logaddexp(0, x)), 4, 1.1, ""),
)  # fmt: skip
#: name -> step
STEPS: dict[str, StepKind] = {step.name: step for step in _ALL}
#: Spellings of a step with its parameters
SPELLINGS: dict[str, Step] = {"relu6": ("clip", 0.0, 6.0)}


def temporaries(epilogue: Iterable[Step]) -> int:
    """Vector registers that an epilogue takes beside the accumulators: one at the least."""
    return max([1, *(STEPS[name].temps for name, *_ in epilogue)])


def operands(epilogue: Iterable[Step]) -> list[str]:
    """The words of the argument struct that the steps take, in their order."""
    found = (STEPS[name].operand for name, *_ in epilogue)
    return [operand.word for operand in found if operand is not None]


def check_places(epilogue: Iterable[Step], places: Collection[str], kernel: str) -> None:
    """Raise ValueError that names the step if an operand lies as none of a kernel's may."""
    for name, *_ in epilogue:
        operand = STEPS[name].operand
        if operand is not None and operand.place not in places:
            raise ValueError(
                f"epilogue step {name!r}: its operand lies by {operand.place} of C; {kernel} takes "
                f"{' and '.join(places) or 'none'}"
            )


def apply(
    step: Step, machine: Machine, accumulators: Sequence[int], temps: Sequence[int],
    operands: Operands,
) -> None:  # fmt: skip
    """Emit a step on all accumulators; `operands` brings what it reads, or writes what it writes,
    and may clobber the temporaries as well."""
    name, *parameters = step
    known = STEPS[name]
    temps = temps[: known.temps]
    groups = [accumulators] if known.operand is None else operands(known.operand, temps[0])
    for group in groups:
        known.emit(machine, group, temps, *parameters)
