"""Element types: `DTYPES`, the one place where there is a type.

A type is stored in memory and computed in a type, its own or a wider one ("arithmetic"). A further
type is a record here; where it is computed in another one, machines need verbs that convert
(`jitgen.isa.machine.Machine.converts`). Not here: NumPy's dtypes (`jitgen.types`), which types the
matrices of a kernel have (`jitgen.gemm.spec`).

>>> DTYPES["f64"].size, DTYPES["f32"].epsilon == 2.0**-23
(8, True)
"""

from __future__ import annotations

import struct
from typing import NamedTuple


class DType(NamedTuple):
    """An element type, binary floating point or an integer."""

    name: str
    kind: str  # "float", "signed" or "unsigned"
    size: int  # bytes of an element in memory
    precision: int  # bits of the significand, the hidden one counted; of an integer, all bits
    least_exponent: int  # 2**least_exponent is the smallest normal number; of an integer, 0
    arithmetic: str  # name of the type that it is computed and accumulated in
    packing: str  # format of `struct`; "" for a type that is computed in another
    numpy: str  # NumPy's name
    c: str  # name in C
    #: reduction steps that one multiply-accumulate takes: B then holds so many rows interleaved,
    #: [k / ku][n][ku]
    ku: int = 1

    @property
    def epsilon(self) -> float:
        """Distance of 1 to the next larger number."""
        return 2.0 ** (1 - self.precision)

    @property
    def tiny(self) -> float:
        """The smallest normal number."""
        return 2.0**self.least_exponent

    @property
    def bias(self) -> int:
        """What the field of the exponent holds for 1."""
        return 1 - self.least_exponent

    def encode(self, value: float) -> bytes:
        """A value as an element in memory; OverflowError if it is too large."""
        return struct.pack(self.packing, value)

    def encode_bits(self, bits: int) -> bytes:
        """A bit pattern as an element in memory."""
        return bits.to_bytes(self.size, "little")


DTYPES = {
    dtype.name: dtype
    for dtype in (
        DType("f32", "float", 4, 24, -126, "f32", "<f", "float32", "float"),
        DType("f64", "float", 8, 53, -1022, "f64", "<d", "float64", "double"),
    )
}


def find(argument: str, name: str) -> DType:
    """The type of that name; ValueError names the argument."""
    if name not in DTYPES:
        raise ValueError(f"{argument}={name!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]
