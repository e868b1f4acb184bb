"""Blocks of matrices with gaps, and kernels that work on them, executed and compared.

A block is rows x columns elements with a leading dimension in a flat array whose gaps are NaN. A
`Call` is a kernel with its words and what each writable word must hold afterwards. Not here: what
kernels compute (`test_elementwise`, `test_layout`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rig.job import Buffer, Job
from tiers import TIERS

from jitgen.emit.frame import ARGUMENTS
from jitgen.emit.routine import Routine

FLOATS = {"f32": np.float32, "f64": np.float64}
#: Every way to execute kernels
EVERYWHERE = tuple(TIERS)
#: What a NaN of a gap looks like: no operation makes this one
POISON = {"f32": np.uint32(0x7FC12345), "f64": np.uint64(0x7FF8123456789ABC)}


def block(values: np.ndarray, leading: int, before: np.ndarray | None = None) -> np.ndarray:
    """A flat array with `values` (rows x columns) at a leading dimension, as short as possible.

    Between the rows it has the poison, or the elements of `before`, another such array.
    """
    rows, columns = values.shape
    dtype = "f32" if values.dtype == np.float32 else "f64"
    flat = np.full((rows - 1) * leading + columns, POISON[dtype]).view(values.dtype)
    if before is not None:
        flat[:] = before
    flat[index(rows, columns, leading)] = values
    return flat


def index(rows: int, columns: int, leading: int) -> np.ndarray:
    """Where the elements of a block are in its flat array."""
    return np.arange(rows)[:, None] * leading + np.arange(columns)


def poison(rows: int, columns: int, dtype: str) -> np.ndarray:
    """A matrix of NaN, for what a kernel must overwrite."""
    return np.full((rows, columns), POISON[dtype]).view(FLOATS[dtype])


@dataclass
class Wanted:
    """What a word's rows x columns block must hold afterwards, and how far off it may be.

    A bound of 0 asks for the same number; NaN and infinities must be where they are wanted. `at`:
    where the elements are in the flat array, if they are no block.
    """

    value: np.ndarray
    leading: int
    bound: np.ndarray | float = 0.0
    at: np.ndarray | None = None


@dataclass
class Call:
    """A kernel and its words (addresses by name of `jitgen.emit.frame.ARGUMENTS`, or numbers).

    place: on which side of the buffers lies the unmapped page.
    """

    routine: Routine
    words: Mapping[str, np.ndarray | int]
    wanted: Mapping[str, Wanted]
    label: str
    place: str = "end"

    @property
    def code(self) -> bytes:
        """The kernel's machine code."""
        return self.routine.code

    def job(self) -> Job:
        """The call as the rig takes it; an array that is named twice is one buffer."""
        buffers: dict[int, Buffer] = {}
        words: list[int | Buffer] = [0] * len(ARGUMENTS)
        written = {id(self.words[name]) for name in self.wanted}
        for name, word in self.words.items():
            value: int | Buffer
            if isinstance(word, int):
                value = word
            else:
                new = Buffer(word, id(word) in written, self.place)  # type: ignore[arg-type]
                value = buffers.setdefault(id(word), new)
            words[ARGUMENTS[name] // 8] = value
        return Job(self.code, words, self.label)

    def compare(self, outputs: Sequence[np.ndarray]) -> str:
        """What is wrong with the writable words, in the order of their words; or ""."""
        names = sorted(self.wanted, key=lambda name: ARGUMENTS[name])
        for name, got in zip(names, outputs, strict=True):
            wanted, before = self.wanted[name], self.words[name]
            assert isinstance(before, np.ndarray)
            at = wanted.at
            if at is None:
                at = index(*wanted.value.shape, wanted.leading)
            error = _difference(got[at], wanted)
            if error:
                return f"{name}: {error}"
            after = got.copy()
            after[at] = before[at]
            if after.tobytes() != before.tobytes():
                return f"{name}: elements between the rows were changed"
        return ""


def _difference(got: np.ndarray, wanted: Wanted) -> str:
    with np.errstate(all="ignore"):
        value = wanted.value.astype(np.float64)
        off = np.abs(got.astype(np.float64) - value)
        same = (got == value.astype(got.dtype)) | (np.isnan(got) & np.isnan(value))
        wrong = ~(same | (np.isfinite(value) & (off <= wanted.bound)))
    if not wrong.any():
        return ""
    i, j = np.argwhere(wrong)[0]
    bound = np.broadcast_to(wanted.bound, wrong.shape)[i, j]
    return (
        f"{wrong.sum()} of {wrong.size} elements are wrong, first [{i}, {j}] = {got[i, j]!r} "
        f"instead of {value[i, j]!r} +- {bound:.3g}"
    )


def execute(tier: str, calls: Sequence[Call]) -> list[str]:
    """Run calls on a tier; a sentence for each that went wrong. All must have been executed."""
    assert calls
    results = TIERS[tier].run([call.job() for call in calls], isa=TIERS[tier].target)
    failures = []
    for call, result in zip(calls, results, strict=True):
        error = result.error if not result.ok else call.compare(result.outputs)
        if error:
            failures.append(f"{tier}, {call.label}: {error}")
    return failures


def leading(rng: random.Random, columns: int) -> int:
    """A leading dimension of rows of `columns`, without or with a gap."""
    return columns + rng.choice((0, 0, 1, 3, 5, 16, 100))
