"""SGD with momentum and Adam, as PyTorch defines them; updates run on all threads.

    Sgd:   v = momentum v + (g + weight_decay w);  w -= lr v
    Adam:  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
           w -= lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)      (Kingma, Ba, arXiv:1412.6980)

Not here: gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jitgen import cpu
from jitgen.elementwise import adam_scalars
from jitgen.operands import NUMPY
from jitgen.threads import check_threads
from primitives.arrays import aligned, buffer_of, check
from primitives.elementwise import elementwise
from primitives.limits import check_elements


class _Optimizer:
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
        self.parameters = list(parameters)
        self.threads = check_threads(threads)
        self._target = cpu.host()
        self._scalars = np.zeros(8, first)
        self._state = []
        self._fixed = []
        for i, p in enumerate(self.parameters):
            check(f"parameters[{i}]", p, getattr(p, "shape", ()), self.dtype)
            check_elements({f"parameters[{i}].shape": p.shape}, it=p.shape)
            if not p.flags.writeable:
                raise ValueError(f"parameters[{i}] is read-only; it is written")
            state = [aligned(p.shape, self.dtype) for _ in self.words[2:]]
            for array in state:
                array.fill(0)
            self._state.append(state)
            self._fixed.append((buffer_of(p), [buffer_of(s) for s in state]))

    def _update(self, gradients: Sequence[np.ndarray], scalars: Sequence[float]) -> None:
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
        self._scalars[: len(scalars)] = scalars
        numbers = buffer_of(self._scalars)
        for p, g, (w, state) in zip(self.parameters, checked, self._fixed, strict=True):
            team: Any = elementwise(
                self.op, p.size, self.words, "bias", self.dtype, self.threads, self._target
            )
            team((w, g, *state, numbers))


class Sgd(_Optimizer):
    """Stochastic gradient descent with momentum (torch.optim.SGD)."""

    op, words = "sgd", ("c", "a", "b")

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

    def step(self, gradients: Sequence[np.ndarray]) -> None:
        """Update every parameter with its gradient, in place."""
        t = self.steps + 1
        self._update(gradients, adam_scalars(t, self.lr, self.betas, self.eps, self.weight_decay))
        self.steps = t
