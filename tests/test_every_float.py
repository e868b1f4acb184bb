"""sigmoid, tanh, ln and e^x (x <= 0) of every f32 there is, by code that this CPU runs: the error
in ULP.

Slow (minutes), so that a plain run leaves it out: `python -m pytest -m slow`. Not here: samples of
all functions (test_functions, which models the instructions), f64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import test_exponents
from test_functions import BOUNDS, reference_f32, ulps
from tiers import TIERS, need

import jitgen
from jitgen import Loop, Nest, Stream, Tensor
from jitgen.emit import exponents
from jitgen.emit.copying import repeated
from jitgen.emit.routine import Operand, Routine, Writer
from jitgen.isa.machine import Machine
from jitgen.run.loader import ffi
from jitgen.target import parse_target

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


def _exp(m: Machine) -> None:
    m.load_const(9, m.const(exponents.LOWEST["f32"]))
    exponents.exp_not_positive(m, [8], [0], [1], 9)
    m.or_(0, 8, 8)


#: name -> emits it on register 0, what it is, which numbers it takes, how small a result may be
EXPONENTS: dict[str, tuple[Callable[[Machine], None], Any, Any, float]] = {
    "exp": (_exp, np.exp, lambda x: ~(x > 0), float(np.finfo(np.float32).tiny) * 0.7078),
    "log": (lambda m: exponents.log(m, 0, range(1, 6)), np.log, lambda x: x == x, 0.0),
    "log of normal": (lambda m: exponents.log_of_normal(m, 0, range(1, 6)), np.log,
                      lambda x: np.isnan(x) | (x >= np.finfo(np.float32).tiny) & (x < np.inf), 0.0),
}  # fmt: skip


def on_pieces(target: str, emit: Callable[[Machine], None]) -> Callable[[list[np.ndarray]], None]:
    """What applies a function of one vector to the first array, of PIECE elements, and leaves the
    results in the second."""
    chosen = parse_target(target)
    operands = {word: Operand(word, word, "f32") for word in "ac"}
    writer = Writer("each", chosen, chosen.machine("f32", PIECE), operands)
    writer.take("step", "constants")
    writer.begin()
    m, frame = writer.machine, writer.frame
    with repeated(m, frame["step"], PIECE // m.lanes):
        m.load(0, (frame["a"], 0), m.lanes)
        emit(m)
        m.store(0, (frame["c"], 0), m.lanes)
        for word in "ac":
            m.advance(frame[word], writer.vector)
    written = writer.end()
    made = Routine(written.name, written.signature, chosen, m.program.encode())
    nest = Nest("n", {"n": Loop(PIECE, (PIECE,))}, "f32", chosen)
    words = {word: Tensor(word, "n", "f32", n=PIECE).at(n="n") for word in "ac"}
    part = nest.call("each", lambda sizes, first, last: (made, {}), words)
    team = Stream([part], list(words), 1).team(chosen)
    return lambda arrays: team([ffi.from_buffer(array) for array in arrays])


def worst_exponent(target: str, name: str, pieces: range) -> float:
    """The largest error in ULP of a function of `EXPONENTS`."""
    emit, reference, takes, least = EXPONENTS[name]
    apply, worst = on_pieces(target, emit), 0.0
    for piece in pieces:
        x = (np.arange(PIECE, dtype=np.uint32) + np.uint32(piece * PIECE)).view(np.float32)
        y = np.full_like(x, 7)
        with np.errstate(all="ignore"):
            apply([x, y])
            wanted = reference(x.astype(np.float64))
            nan = np.isnan(wanted)
            right = takes(x)
            assert (np.isnan(y) == nan)[right].all()
            small = np.abs(wanted) < least
            assert (y[small & right] <= least).all()
            errors = ulps(y, wanted)[right & ~nan & ~small]
        worst = max(worst, float(errors.max(initial=0.0)))
    return worst


@pytest.mark.parametrize("target", ["avx2", "avx512"])
@pytest.mark.parametrize("name", EXPONENTS)
def test_some_exponents(name: str, target: str) -> None:
    """One piece in 64."""
    need(TIERS[f"{target} native"])
    worst = worst_exponent(target, name, range(5, (1 << 32) // PIECE, 64))
    assert 0.5 < worst <= test_exponents.BOUNDS[name[:3], "f32"]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPONENTS)
def test_every_exponent(name: str) -> None:
    need(TIERS["avx2 native"])
    worst = worst_exponent("avx2", name, range((1 << 32) // PIECE))
    print(f"{name}: {worst:.3f} ULP")
    assert worst <= test_exponents.BOUNDS[name[:3], "f32"]


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
