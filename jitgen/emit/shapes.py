"""How large matrices may be that emitted code addresses.

Not here: the checks of users' arguments (`jitgen.doors`).
"""

from __future__ import annotations

from jitgen import doors
from jitgen.types import DTYPES

#: Size in bytes that one matrix, and one stride, stays below: displacements have 32 bits
MATRIX_BYTES = doors.MOST + 1
#: Taps of a window, at most: they stand in line
MOST_TAPS = 81


def check_rows(rows: int, columns: int, dtype: str, leading: int) -> None:
    """Raise ValueError unless this is a matrix down which kernels can go row by row."""
    doors.one_of("dtype", dtype, DTYPES)
    if rows < 1 or columns < 1:
        raise ValueError(f"rows={rows}, columns={columns}: both must be at least 1")
    if leading < columns:
        raise ValueError(f"leading dimension {leading} is smaller than columns={columns}")
    if leading * DTYPES[dtype].size >= MATRIX_BYTES and rows > 1:
        raise ValueError(f"rows of {leading} elements ({dtype}) lie 2 GiB or more apart")


def check_shape(rows: int, columns: int, dtype: str, leading: int) -> None:
    """Raise ValueError unless this is a matrix that kernels can address from its first element."""
    check_rows(rows, columns, dtype, leading)
    if rows * leading * DTYPES[dtype].size >= MATRIX_BYTES and rows > 1:
        raise ValueError(f"{rows} rows of {leading} elements ({dtype}) span 2 GiB or more")
