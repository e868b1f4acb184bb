"""SGD with momentum and Adam, as PyTorch defines them; updates run on all threads.

    Sgd:   v = momentum v + (g + weight_decay w);  w -= lr v
    Adam:  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
           w -= lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)      (Kingma, Ba, arXiv:1412.6980)

Not here: gradients.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jitgen import doors, records
from jitgen.frozen import Frozen
from jitgen.kernels.elementwise import adam_scalars
from jitgen.primitives.layers.arrays import aligned, buffer_of, check, check_output, realigned
from jitgen.primitives.layers.elementwise import elementwise
from jitgen.primitives.nest.limits import check_elements
from jitgen.primitives.nest.run import stopwatch
from jitgen.run import cpu
from jitgen.run.loader import number
from jitgen.run.threads import check_threads
from jitgen.types import NUMPY


class Optimizer(Frozen):
    """Parameters (arrays of one dtype, changed in place; they may not overlap) and their state.

    Hyperparameters may be assigned between steps; a step checks them before it changes anything.
    """

    op: str
    #: argument words of the parameter, its gradient and its state
    words: tuple[str, ...]

    def __init__(self, parameters: Sequence[np.ndarray], threads: int | None) -> None:
        self.parameters = _arrays("parameters", parameters)
        if not self.parameters:
            raise ValueError(f"parameters={doors.shown(parameters)} is empty")
        self.dtype = doors.floats("parameters[0]", self.parameters[0])
        self.threads = check_threads(threads)
        self._shapes = [getattr(p, "shape", ()) for p in self.parameters]
        self._scalars = np.zeros(8, NUMPY[self.dtype])
        self._state = []
        for i, p in enumerate(self.parameters):
            check_output(f"parameters[{i}]", p, self._shapes[i], self.dtype, {})
            check_elements({f"parameters[{i}].shape": p.shape}, it=p.shape)
            if not p.size:
                raise ValueError(f"parameters[{i}] has shape {p.shape}; it is empty")
            state = [aligned(p.shape, self.dtype) for _ in self.words[2:]]
            for array in state:
                array.fill(0)
            self._state.append(state)
        self._check_apart(())
        #: addresses of parameters and gradients that were found apart
        self._places: list[int] = []

    def __repr__(self) -> str:
        numbers = "".join(f", {name}={getattr(self, name)}" for name in sorted(self._settable))
        return (
            f"<primitives.{type(self).__name__} of {len(self.parameters)} parameters, "
            f"{self.dtype}{numbers}>"
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _state=[list(map(realigned, s)) for s in state["_state"]])

    def __copy__(self) -> Optimizer:
        # of the same parameters, but what it sums up is its own
        copy = type(self).__new__(type(self))
        own = [[array.copy() for array in arrays] for arrays in self._state]
        copy.__setstate__(self.__getstate__() | {"_state": own, "_scalars": self._scalars.copy()})
        return copy

    def _check_apart(self, gradients: Sequence[np.ndarray]) -> None:
        """No two parameters overlap, and no gradient a parameter but its own, which it may be."""
        places = sorted((*_span(p), i) for i, p in enumerate(self.parameters))
        for (_, end, i), (begin, _, j) in itertools.pairwise(places):
            if begin < end:
                raise ValueError(f"parameters[{i}] overlaps parameters[{j}]; both are written")
        for i, gradient in enumerate(gradients):
            begin, end = _span(gradient)
            at = max(bisect.bisect(places, (begin,)) - 1, 0)
            for low, high, j in places[at : bisect.bisect_left(places, (end,))]:
                if begin < high and (i, begin, end) != (j, low, high):
                    raise ValueError(f"gradients[{i}] overlaps parameters[{j}], which is written")

    def _update(self, gradients: Sequence[np.ndarray], scalars: Sequence[float]) -> None:
        gradients = _arrays("gradients", gradients)
        if len(gradients) != len(self.parameters):
            raise ValueError(
                f"gradients has {len(gradients)} arrays; there are {len(self.parameters)} "
                "parameters"
            )
        # all are checked before any parameter changes
        buffers = []
        for i, (p, g, shape) in enumerate(
            zip(self.parameters, gradients, self._shapes, strict=True)
        ):
            gradient = check(f"gradients[{i}]", g, shape, self.dtype)
            # at each step: whoever else has the array may have changed its shape in place
            parameter = check_output(f"parameters[{i}]", p, shape, self.dtype, {})
            buffers.append((parameter, gradient))
        # arrays at the same places, of the same shapes, are as far apart as before
        places = [number(pointer) for both in buffers for pointer in both]
        if places != self._places:
            self._check_apart(gradients)
            self._places = places
        self._scalars[: len(scalars)] = scalars
        numbers, target, watch = buffer_of(self._scalars), cpu.host(), stopwatch()
        for shape, both, state in zip(self._shapes, buffers, self._state, strict=True):
            run = elementwise(
                self.op, math.prod(shape), self.words, "bias", self.dtype, self.threads, target
            )
            run.name = run.name or f"{type(self).__name__} step {math.prod(shape)}"
            arrays = *both, *map(buffer_of, state)
            run({**dict(zip(self.words, arrays, strict=True)), "bias": numbers}, None, watch)
        if watch is not None:
            elements = sum(map(math.prod, self._shapes))
            records.tell(
                records.EXEC, type(self).__name__, "step", "direct", target.name, self.dtype,
                watch.threads, f"parameters={len(self.parameters)} elements={elements}",
                1e3 * watch.seconds,
            )  # fmt: skip


def _arrays(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, np.ndarray):
        raise TypeError(f"{name} is an array of shape {value.shape}; give a list of arrays")
    return doors.items(name, value)


def _span(array: np.ndarray) -> tuple[int, int]:
    """Addresses of the first byte and behind the last."""
    begin = int(array.__array_interface__["data"][0])
    return begin, begin + array.nbytes


class Sgd(Optimizer):
    """Stochastic gradient descent with momentum (torch.optim.SGD); lr, momentum and weight_decay
    are finite and not negative."""

    op, words = "sgd", ("c", "a", "b")
    _settable = frozenset({"lr", "momentum", "weight_decay"})

    def __init__(
        self, parameters: Sequence[np.ndarray], lr: float, momentum: float = 0.0,
        weight_decay: float = 0.0, threads: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(parameters, threads)
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.lr, self.momentum, self.weight_decay = self._numbers()

    def _numbers(self) -> tuple[float, float, float]:
        return (
            doors.number("lr", self.lr, low=0, dtype=self.dtype),
            doors.number("momentum", self.momentum, low=0, dtype=self.dtype),
            doors.number("weight_decay", self.weight_decay, low=0, dtype=self.dtype),
        )

    def step(self, gradients: Sequence[np.ndarray]) -> None:
        """Update every parameter with its gradient, in place."""
        self._update(gradients, self._numbers())


class Adam(Optimizer):
    """Adam (torch.optim.Adam); lr and weight_decay are finite and not negative, betas from 0 to
    below 1, eps above 0 in the parameters' dtype: it keeps 0 / 0 away where gradients are 0."""

    op, words = "adam", ("c", "a", "b", "residual")
    _settable = frozenset({"lr", "betas", "eps", "weight_decay"})

    def __init__(
        self, parameters: Sequence[np.ndarray], lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
        threads: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(parameters, threads)
        self.lr = lr
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self._steps = 0
        self.lr, self.betas, self.eps, self.weight_decay = self._numbers()

    @property
    def steps(self) -> int:
        """Steps that were made."""
        return self._steps

    def _numbers(self) -> tuple[float, tuple[float, float], float, float]:
        first, second = doors.items("betas", self.betas, 2)
        eps = doors.number("eps", self.eps, above=0, dtype=self.dtype)
        if not NUMPY[self.dtype].type(eps) > 0:
            raise ValueError(f"eps={eps} is 0 in {self.dtype}")
        return (
            doors.number("lr", self.lr, low=0, dtype=self.dtype),
            (
                doors.number("betas[0]", first, low=0, below=1),
                doors.number("betas[1]", second, low=0, below=1),
            ),
            eps,
            doors.number("weight_decay", self.weight_decay, low=0, dtype=self.dtype),
        )

    def step(self, gradients: Sequence[np.ndarray]) -> None:
        """Update every parameter with its gradient, in place."""
        t = self._steps + 1
        self._update(gradients, adam_scalars(t, *self._numbers()))
        self._steps = t
