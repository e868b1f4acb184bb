"""What the rig runs and what it reports: Buffer, Pointers, Job, Result.

Kernel ABI: `int64 kernel(const uint64_t words[])`; one pointer argument (rdi or x0), status in
the low 32 bits of the result, 0 = ok. This module holds data only; it executes nothing.

    a = Buffer(np.ones(16, np.float32))
    c = Buffer(np.zeros(16, np.float32), write=True)
    result, = native.run([Job(code, [a, c, 16])])
    result.outputs[0]                                # c after the run
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np


class RigError(RuntimeError):
    """The rig itself failed (emulator missing, broken or refusing its settings), not a kernel."""


@dataclass(eq=False)
class Buffer:
    """An array in memory of its own, with unmapped pages around it.

    place "end": the last byte lies directly before an unmapped page, which catches over-runs;
    place "start": the first byte lies directly after one, which catches under-runs. The rest of
    the page is NaN bytes; a write there is reported as well, a read only shows in the numbers.
    Without write=True the memory is read-only. One Buffer used in several words of a job is one
    piece of memory; its array is copied and never changed.
    """

    data: np.ndarray
    write: bool = False
    place: Literal["end", "start"] = "end"

    def __post_init__(self) -> None:
        if not isinstance(self.data, np.ndarray):
            raise TypeError(f"data={type(self.data).__name__}: must be a numpy array")
        if self.place not in ("end", "start"):
            raise ValueError(f"place={self.place!r}: must be 'end' or 'start'")


@dataclass(eq=False)
class Pointers:
    """A read-only array of the addresses of other buffers (8 bytes each), placed like "end"."""

    targets: Sequence[Buffer]


@dataclass(eq=False)
class Job:
    """One call: machine code and the 8-byte words of its argument struct.

    Integers must fit in 64 bits, signed or unsigned. The struct itself is read-only and ends at
    an unmapped page, so reading more words than there are is a fault.
    """

    code: bytes
    words: Sequence[int | Buffer | Pointers]
    label: str = ""

    def __post_init__(self) -> None:
        if not self.code:
            raise ValueError("code: must not be empty")
        for i, word in enumerate(self.words):
            if isinstance(word, (Buffer, Pointers)):
                continue
            if not -(2**63) <= int(word) < 2**64:
                raise ValueError(f"words[{i}]={word}: does not fit in 64 bits")


@dataclass
class Result:
    """What a job did.

    ok: returned status 0 with every register the ABI protects intact and no stray write.
    error: why not; "" when ok. Faults name the signal or vector, the instruction as an offset
    into the code, and the address relative to the nearest buffer.
    value: the 64-bit result register, signed; 0 when the kernel did not return.
    outputs: the writable buffers after the run, in order of first appearance in words; empty when
    the kernel did not return.
    returned: the kernel came back, whatever it did wrong.
    """

    ok: bool
    error: str
    value: int = 0
    outputs: list[np.ndarray] = field(default_factory=list)
    returned: bool = False


def failed(error: str) -> Result:
    """Return the Result of a job that did not come back."""
    return Result(False, error)
