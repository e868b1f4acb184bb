"""SGD with momentum and Adam, as PyTorch defines them; updates run on all threads.

    Sgd:   v = momentum v + (g + weight_decay w);  w -= lr v
    Adam:  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
           w -= lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)      (Kingma, Ba, arXiv:1412.6980)

Not here: gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jitgen import cpu
from jitgen.elementwise import adam_scalars
from jitgen.frozen import Frozen
from jitgen.operands import NUMPY
from jitgen.threads import check_threads
from primitives.arrays import aligned, buffer_of, check, check_output, realigned
from primitives.elementwise import elementwise


class _Optimizer(Frozen):
    """Parameters (arrays of one dtype, changed in place) and their state."""

    op: str
    #: argument words of the parameter, its gradient and its state
    words: tuple[str, ...]

    def __init__(self, parameters: Sequence[np.ndarray], threads: int | None) -> None:
        if not parameters:
            raise ValueError("parameters is empty")
        kinds = {kind: name for name, kind in NUMPY.items()}
        first = getattr(parameters[0], "dtype", None)
        if first not in kinds:
            raise TypeError(f"parameters[0] has dtype {first}; float32 or float64 are known")
        self.dtype = kinds[first]
        self.parameters = tuple(parameters)
        self.threads = check_threads(threads)
        self._shapes = [getattr(p, "shape", ()) for p in parameters]
        self._scalars = np.zeros(8, first)
        self._state = []
        for i, p in enumerate(self.parameters):
            check_output(f"parameters[{i}]", p, self._shapes[i], self.dtype, {})
            state = [aligned(p.shape, self.dtype) for _ in self.words[2:]]
            for array in state:
                array.fill(0)
            self._state.append(state)

    def __repr__(self) -> str:
        numbers = "".join(f", {name}={getattr(self, name)}" for name in sorted(self._settable))
        return (
            f"<primitives.{type(self).__name__} of {len(self.parameters)} parameters, "
            f"{self.dtype}{numbers}>"
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _state=[list(map(realigned, s)) for s in state["_state"]])

    def __copy__(self) -> _Optimizer:
        # of the same parameters, but what it sums up is its own
        copy = type(self).__new__(type(self))
        own = [[array.copy() for array in arrays] for arrays in self._state]
        copy.__setstate__(self.__getstate__() | {"_state": own, "_scalars": self._scalars.copy()})
        return copy

    def _update(self, gradients: Sequence[np.ndarray], scalars: Sequence[float]) -> None:
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
        self._scalars[: len(scalars)] = scalars
        numbers, target = buffer_of(self._scalars), cpu.host()
        for shape, both, state in zip(self._shapes, buffers, self._state, strict=True):
            team: Any = elementwise(
                self.op, math.prod(shape), self.words, "bias", self.dtype, self.threads, target
            )
            team((*both, *map(buffer_of, state), numbers))


class Sgd(_Optimizer):
    """Stochastic gradient descent with momentum (torch.optim.SGD)."""

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

    def step(self, gradients: Sequence[np.ndarray]) -> None:
        """Update every parameter with its gradient, in place."""
        self._update(gradients, (self.lr, self.momentum, self.weight_decay))


class Adam(_Optimizer):
    """Adam (torch.optim.Adam)."""

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

    @property
    def steps(self) -> int:
        """Steps that were made."""
        return self._steps

    def step(self, gradients: Sequence[np.ndarray]) -> None:
        """Update every parameter with its gradient, in place."""
        t = self._steps + 1
        self._update(gradients, adam_scalars(t, self.lr, self.betas, self.eps, self.weight_decay))
        self._steps = t
