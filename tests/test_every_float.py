"""sigmoid and tanh of every f32 there is, by kernels that this CPU runs: the error in ULP.

Slow (minutes), so that a plain run leaves it out: `python -m pytest -m slow`. Not here: samples of
all functions (test_functions, which models the instructions), f64.
"""

from __future__ import annotations

import numpy as np
import pytest
from test_functions import BOUNDS, reference_f32, ulps
from tiers import TIERS, need

import jitgen

#: Floats of a piece; 2**32 of them are cut into such pieces
PIECE = 1 << 20


def worst_error(target: str, name: str, pieces: range) -> tuple[float, float]:
    """The largest error in ULP and its input, over pieces of the 2**32 floats."""
    kernel = jitgen.brgemm(1, PIECE, 1, epilogue=(name,), target=target)
    one, y = np.ones((1, 1, 1), np.float32), np.empty((1, PIECE), np.float32)
    worst, at = 0.0, 0.0
    for piece in pieces:
        x = (np.arange(PIECE, dtype=np.uint32) + np.uint32(piece * PIECE)).view(np.float32)
        y.fill(np.nan)
        with np.errstate(all="ignore"):
            kernel(one, x.reshape(1, 1, PIECE), y)
            nan = np.isnan(x)
            assert (np.isnan(y[0]) == nan).all()
            errors = ulps(y[0], reference_f32(name, x.astype(np.float64)))
        errors[nan] = 0
        found = int(errors.argmax())
        if errors[found] > worst:
            worst, at = float(errors[found]), float(x[found])
    return worst, at


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_some_floats(name: str) -> None:
    """One piece in 64: the same, as a plain run can afford it."""
    need(TIERS["avx2 native"])
    worst, at = worst_error("avx2", name, range(5, (1 << 32) // PIECE, 64))
    assert 0.5 < worst <= BOUNDS[name, "f32"], f"{name}({at!r}) is off by {worst} ULP"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_every_float(name: str) -> None:
    need(TIERS["avx2 native"])
    worst, at = worst_error("avx2", name, range((1 << 32) // PIECE))
    print(f"{name}: {worst:.3f} ULP at {at!r}")
    assert worst <= BOUNDS[name, "f32"], f"{name}({at!r}) is off by {worst} ULP"
