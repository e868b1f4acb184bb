"""Element-wise work on all threads: gradients of activations, optimizer updates.

A stream of one part cuts the elements among the threads. Not here: the emitted loops
(`jitgen.kernels.elementwise`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jitgen.emit.steps import STEPS, Step
from jitgen.gemm.spec import make_step
from jitgen.kernels.elementwise import emit_map
from jitgen.primitives.nest.limits import threads_that_pay
from jitgen.primitives.nest.loops import Loop
from jitgen.primitives.nest.nest import Nest
from jitgen.primitives.nest.run import Run
from jitgen.primitives.nest.stream import Made
from jitgen.primitives.nest.tensor import Tensor
from jitgen.run.cache import STREAMS
from jitgen.target import Target
from jitgen.types import NUMPY

#: Activations: the steps of an epilogue that take no array, but for scaling
ACTIVATIONS = tuple(n for n, step in STEPS.items() if step.operand is None and n != "scale")
#: Activations whose output tells the sign of their input only if their parameter is not negative
SIGNED = ("leaky_relu", "elu")
#: Elements of a call: enough to make its cost vanish, few enough to deal them out evenly
ELEMENTS = 1 << 14


@STREAMS.of
def elementwise(
    op: str, size: int, words: tuple[str, ...], scalars: str, dtype: str, threads: int,
    target: Target, numbers: tuple[float, ...] = (),
) -> Run:  # fmt: skip
    """`op` of jitgen.kernels.elementwise.emit_map over `size` elements that follow one another.

    Tensors: the op's operands `words`, and `scalars`, that of its run-time numbers ("": none),
    unless these are given as `numbers`.
    """

    def code(sizes: dict[str, int], first: bool, last: bool) -> Made:
        return emit_map(op, 1, sizes["n"], dtype, target), {}

    at = {word: Tensor(word, "n", dtype, n=size).at(n="n") for word in words}
    if scalars:
        at[scalars] = Tensor(scalars, "n", dtype, n=1).at()
    used = threads_that_pay("elementwise", threads, size)
    nest = Nest("N", {"n": Loop(size, (min(size, ELEMENTS),))}, dtype, target)
    constants = {scalars: np.array(numbers, NUMPY[dtype])} if numbers else {}
    tensors = [name for name in at if name not in constants]
    return Run([nest.call(op, code, at)], tensors, used, target, dtype, constants=constants)


def make_activation(activation: Any, dtype: str) -> Step | None:
    """The step of a layer's `activation`: None, one of ACTIVATIONS, or (name, parameter, ...).
    TypeError, ValueError: argument, value and rule."""
    if activation is None:
        return None
    return make_step("activation=", activation, dtype, ACTIVATIONS)


def shown_activation(activation: Step | None) -> str:
    """An activation for the eye."""
    return "no activation" if activation is None else " ".join(map(str, activation))


def is_signed(activation: Step) -> bool:
    """Whether an activation's output does not tell the sign of its input, which its derivative
    needs."""
    name, *parameters = activation
    return name in SIGNED and parameters[0] < 0


def derived_from(activation: Step | None, y: Any, z: Any) -> tuple[str, Any]:
    """Of an activation's output y and its input z, the one that its derivative is made from: its
    name and value. ValueError where that one is missing, or the other one given, or where there is
    no derivative."""
    if activation is None:
        raise ValueError("activation=None: dz is dy")
    name = activation[0]
    known = STEPS[name].known
    if not known:
        raise ValueError(f"activation={name!r} has no backward pass: its gradient is not known")
    if is_signed(activation):
        raise ValueError(
            f"activation={activation} has no backward pass: its output does not tell the sign of "
            "its input, as it does with a parameter that is not negative"
        )
    if known == "y":
        if z is not None or y is None:
            what = "y is missing" if z is None else "z is given"
            raise ValueError(
                f"{what}: the gradient of {name} takes y, what forward returned, and no z"
            )
        return "y", y
    if y is not None or z is None:
        what = "z is missing" if y is None else "y is given"
        raise ValueError(
            f"{what}: the gradient of {name} takes z=, the input of the activation (what the "
            "same layer with activation=None returns), and y=None"
        )
    return "z", z


def backward_activation(at: Any, activation: Step, size: int) -> Run:
    """Tensors a: dy, b: what `derived_from` says, c: dz = dy * activation'(z), of `size` elements;
    `at` has dtype, threads and target."""
    name, *numbers = activation
    return elementwise(
        f"{name}_backward", size, ("a", "b", "c"), "bias" if numbers else "", at.dtype, at.threads,
        at.target, tuple(numbers),
    )  # fmt: skip
