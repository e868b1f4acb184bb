"""SGD with momentum and Adam, as PyTorch defines them; updates run on all threads.

    Sgd:   v = momentum v + (g + weight_decay w);  w -= lr v
    Adam:  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
           w -= lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)      (Kingma, Ba, arXiv:1412.6980)

Not here: gradients.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jitgen import cpu, doors
from jitgen.doors import NUMPY
from jitgen.elementwise import adam_scalars
from jitgen.threads import check_threads
from primitives.arrays import aligned, buffer_of, check
from primitives.elementwise import elementwise


class _Optimizer:
    """Parameters (arrays of one dtype, changed in place; they may not overlap) and their state.

    Hyperparameters may be assigned between steps; a step checks them before it changes anything.
    """

    op: str
    #: argument words of the parameter, its gradient and its state
    words: tuple[str, ...]

    def __init__(self, parameters: Sequence[np.ndarray], threads: int | None) -> None:
        self.parameters = list(_arrays("parameters", parameters))
        if not self.parameters:
            raise ValueError(f"parameters={doors.shown(parameters)} is empty")
        self.dtype = doors.floats("parameters[0]", self.parameters[0])
        self.threads = check_threads(threads)
        self._target = cpu.host()
        self._scalars = np.zeros(8, NUMPY[self.dtype])
        self._state = []
        self._fixed = []
        for i, p in enumerate(self.parameters):
            check(f"parameters[{i}]", p, getattr(p, "shape", ()), self.dtype)
            doors.writable(f"parameters[{i}]", p)
            if not p.size:
                raise ValueError(f"parameters[{i}] has shape {p.shape}; it is empty")
            state = [aligned(p.shape, self.dtype) for _ in self.words[2:]]
            for array in state:
                array.fill(0)
            self._state.append(state)
            self._fixed.append((buffer_of(p), [buffer_of(s) for s in state]))
        #: where the parameters lie: begin, end, number
        self._places = sorted((*_span(p), i) for i, p in enumerate(self.parameters))
        for (_, end, i), (begin, _, j) in itertools.pairwise(self._places):
            if begin < end:
                raise ValueError(f"parameters[{i}] overlaps parameters[{j}]; both are written")

    def _check_apart(self, i: int, gradient: np.ndarray) -> None:
        """A gradient overlaps no parameter; it may be its own."""
        begin, end = _span(gradient)
        at = max(bisect.bisect(self._places, (begin,)) - 1, 0)
        for low, high, j in itertools.takewhile(lambda place: place[0] < end, self._places[at:]):
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
        checked = [
            check(f"gradients[{i}]", g, p.shape, self.dtype)
            for i, (g, p) in enumerate(zip(gradients, self.parameters, strict=True))
        ]
        for i, g in enumerate(gradients):
            self._check_apart(i, g)
        self._scalars[: len(scalars)] = scalars
        numbers = buffer_of(self._scalars)
        for p, g, (w, state) in zip(self.parameters, checked, self._fixed, strict=True):
            team: Any = elementwise(
                self.op, p.size, self.words, "bias", self.dtype, self.threads, self._target
            )
            team((w, g, *state, numbers))


def _arrays(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, np.ndarray):
        raise TypeError(f"{name} is an array of shape {value.shape}; give a list of arrays")
    return doors.items(name, value)


def _span(array: np.ndarray) -> tuple[int, int]:
    """Addresses of the first byte and behind the last."""
    begin = int(array.__array_interface__["data"][0])
    return begin, begin + array.nbytes


class Sgd(_Optimizer):
    """Stochastic gradient descent with momentum (torch.optim.SGD); lr, momentum and weight_decay
    are finite and not negative."""

    op, words = "sgd", ("c", "a", "b")

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


class Adam(_Optimizer):
    """Adam (torch.optim.Adam); lr and weight_decay are finite and not negative, betas from 0 to
    below 1, eps above 0 in the parameters' dtype: it keeps 0 / 0 away where gradients are 0."""

    op, words = "adam", ("c", "a", "b", "residual")

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
        self.steps = 0
        self.lr, self.betas, self.eps, self.weight_decay = self._numbers()

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
        numbers, t = self._numbers(), doors.size("steps", self.steps, 0) + 1
        self._update(gradients, adam_scalars(t, *numbers))
        self.steps = t
