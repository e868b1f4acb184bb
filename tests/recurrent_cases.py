"""Random recurrent layers with their arrays, and what each must give, in float64.

Not here: running them (test_recurrent natively, test_recurrent_streams on every tier), the
equations (recurrent_oracle).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from recurrent_oracle import DIRECTIONS, Cell, Forward, backward, forward

from jitgen import Gru, Lstm, Rnn

KINDS = {"f32": np.float32, "f64": np.float64}
EPS = {"f32": 2.0**-24, "f64": 2.0**-53}
LAYERS: dict[str, Any] = {"lstm": Lstm, "gru": Gru, "rnn": Rnn}


def poison_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What np.empty and np.empty_like return is NaN from now on: what a layer does not write
    shows."""

    def poisoned(make: Any) -> Any:
        def empty(*args: Any, **options: Any) -> np.ndarray:
            array: np.ndarray = make(*args, **options)
            if array.flags.c_contiguous and array.dtype.kind in "fu":
                array.reshape(-1).view(np.uint8).fill(255)
            return array

        return empty

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(np, name, poisoned(getattr(np, name)))


@dataclass
class Problem:
    """A layer, all it is given, and the float64 results. `arrays` has an entry None for each
    array that is not given."""

    layer: Any
    cell: Cell
    packed: bool
    arrays: dict[str, Any]
    lengths: Any
    gradients: dict[str, Any]
    text: str
    done: Forward = field(init=False)

    def __post_init__(self) -> None:
        with np.errstate(invalid="ignore"):
            self.done = forward(self.cell, self.arrays, self.lengths)

    def exact(self) -> dict[str, np.ndarray]:
        """Gradients by name."""
        g = self.gradients
        with np.errstate(invalid="ignore", over="ignore"):
            return backward(self.cell, self.arrays, self.done, g["dy"], g.get("dh"), g.get("dc"))

    @property
    def names(self) -> list[str]:
        """What the layer's gradients belong to, in the order of its results."""
        names = ["x", "w", "r", "b", "h0"]
        if self.cell.kind == "lstm":
            names += ["c0", "p"] if self.cell.peephole else ["c0"]
        return names

    def forward(self, training: bool = False) -> tuple[np.ndarray, ...]:
        """What the layer gives: y, h and, for an LSTM, c."""
        a = self.arrays
        weights = (a["w"], a["r"])
        if self.packed:
            weights = (self.layer.pack_weights(*weights), None)
        states = [a["h0"], a["c0"]] if self.cell.kind == "lstm" else [a["h0"]]
        more = {"p": a["p"]} if self.cell.kind == "lstm" else {}
        return self.layer.forward(
            a["x"], *weights, a["b"], *states, **more, lengths=self.lengths, training=training
        )

    def backward(self) -> tuple[Any, ...]:
        """The layer's gradients, after `forward(True)`."""
        g = self.gradients
        states = [g["dh"], g["dc"]] if self.cell.kind == "lstm" else [g["dh"]]
        return self.layer.backward(g["dy"], *states)

    def check(self) -> None:
        """Check all passes."""
        self.check_forward(self.forward())
        self.check_forward(self.forward(training=True))
        self.check_backward(self.backward())

    def check_forward(self, got: tuple[np.ndarray, ...]) -> float:
        """Compare y, h (and c) with float64; the largest share of the bound that was used.

        A pre-activation is a sum of in_features + hidden terms, and every step passes its error
        on to the next: with weights within +-1/sqrt(hidden) it does not grow on the way. So the
        bound is eps * steps * (in_features + hidden + 16) * the largest number.
        """
        steps, _, features = self.arrays["x"].shape
        terms = steps * (features + self.done.h.shape[-1] + 16)
        names = ("y", "h", "c")[: len(got)]
        wanted = (self.done.y, self.done.h, self.done.c)[: len(got)]
        return max(self._check(n, g, w, terms) for n, g, w in zip(names, got, wanted, strict=True))

    def check_backward(self, got: tuple[Any, ...]) -> float:
        """Compare the gradients: further sums, over gates * hidden terms and, for weights, over
        all rows of all steps."""
        exact = self.exact()
        steps, batch, features = self.arrays["x"].shape
        hidden = self.done.h.shape[-1]
        terms = steps * (features + 5 * hidden + batch + 16)
        worst = 0.0
        for name, gradient in zip(self.names, got, strict=True):
            if name == "b" and self.arrays["b"] is None:
                assert gradient is None, self.text
            else:
                worst = max(worst, self._check(f"d{name}", gradient, exact[name], terms))
        return worst

    def _check(self, name: str, got: np.ndarray, exact: np.ndarray, terms: int) -> float:
        assert got.shape == exact.shape, f"{name} has shape {got.shape}: {self.text}"
        assert got.dtype == self.arrays["x"].dtype, f"{name} has dtype {got.dtype}: {self.text}"
        # NaN where, and only where, the equations give it
        finite = np.isfinite(exact)
        np.testing.assert_array_equal(got[~finite], exact[~finite].astype(got.dtype),
                                      err_msg=f"{name}: {self.text}")  # fmt: skip
        if not finite.any():
            return 0.0
        bound = EPS[self.layer.layer.dtype] * terms * max(1.0, np.abs(exact[finite]).max())
        error = np.abs(got[finite] - exact[finite]).max()
        assert error <= bound, f"{name} is off by {error}, bound {bound}: {self.text}"
        return float(error / bound)


def random_problem(
    rng: random.Random, target: str, most: int, threads: int | None = None, **fixed: Any
) -> Problem:
    """Any cell, direction and option; sizes up to about `most`, also those that blocks divide.

    `fixed` overrides what a `Cell` has, and "batch", "steps", "features", "hidden", "lengths".
    """
    kind = rng.choice(["lstm", "lstm", "gru", "rnn"])
    options = {
        "kind": kind, "direction": rng.choice(list(DIRECTIONS)),
        "reset": rng.choice(["after", "before"]) if kind == "gru" else "after",
        "forget_bias": rng.choice([0.0, 0.0, 1.0, -0.5]) if kind == "lstm" else 0.0,
        "peephole": kind == "lstm" and rng.random() < 0.3,
    }  # fmt: skip
    cell = Cell(**{k: fixed.get(k, v) for k, v in options.items()})
    size = lambda: rng.choice([1, rng.randint(1, most), rng.randint(1, most)])  # noqa: E731
    batch, steps = rng.choice([1, 2, rng.randint(1, most)]), rng.choice([1, 2, rng.randint(1, 7)])
    features, hidden = size(), rng.choice([size(), 16, 2 * most])
    if rng.random() < 0.05:
        batch, steps = 3 * most, 2
    batch, steps, features, hidden = (
        fixed.get(n, v) for n, v in zip(("batch", "steps", "features", "hidden"),
                                        (batch, steps, features, hidden), strict=True)
    )  # fmt: skip
    dtype = rng.choice(["f32", "f32", "f64"])
    bias = rng.random() < 0.8
    threads = rng.choice([1, 1, 1, 2, 3, 4]) if threads is None else threads
    own: dict[str, Any] = {}
    if cell.kind == "lstm":
        own = {"forget_bias": cell.forget_bias, "peephole": cell.peephole}
    elif cell.kind == "gru":
        own = {"reset": cell.reset}
    layer = LAYERS[cell.kind](
        batch, steps, features, hidden, direction=cell.direction, bias=bias, dtype=dtype,
        threads=threads, target=target, **own,
    )  # fmt: skip
    lengths = None
    if fixed.get("lengths", rng.random() < 0.4):
        lengths = np.array([rng.choice([0, steps, rng.randint(0, steps)]) for _ in range(batch)])
    numbers = np.random.default_rng(rng.getrandbits(32))
    limit = hidden**-0.5
    arrays: dict[str, Any] = dict.fromkeys(("b", "h0", "c0", "p"))
    for name, shape in cell.shapes(batch, steps, features, hidden).items():
        if name in ("x", "dy"):
            arrays[name] = numbers.standard_normal(shape).astype(KINDS[dtype])
        elif (name == "b" and not bias) or (name in ("h0", "c0") and rng.random() < 0.4):
            arrays[name] = None
        else:
            scale = 1.0 if name in ("h0", "c0") else limit
            arrays[name] = numbers.uniform(-scale, scale, shape).astype(KINDS[dtype])
    gradients: dict[str, Any] = {"dy": arrays.pop("dy"), "dh": None, "dc": None}
    for name in ("dh", "dc") if cell.kind == "lstm" else ("dh",):
        if rng.random() < 0.6:
            shape = layer.shapes["h0"]
            gradients[name] = numbers.standard_normal(shape).astype(KINDS[dtype])
    packed = rng.random() < 0.5
    text = (
        f"{cell}, batch {batch}, steps {steps}, features {features}, hidden {hidden}, {dtype}, "
        f"bias {bias}, threads {threads}, {target}, packed {packed}, lengths {lengths}, given "
        f"{[n for n, a in {**arrays, **gradients}.items() if a is not None]}"
    )
    return Problem(layer, cell, packed, arrays, lengths, gradients, text)
