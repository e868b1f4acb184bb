"""Element types as NumPy has them: `DTYPES` (of `jitgen.isa.types`, the one table) and `NUMPY`.

Not here: what is taken for a type from a user (`jitgen.doors.dtype`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jitgen.isa.types import DTYPES, DType

__all__ = ["DTYPES", "NUMPY", "DType", "DTypeLike", "name_of"]

#: What stands for a type as an argument (`jitgen.doors.dtype`)
DTypeLike = str | np.dtype[Any] | type[np.generic]


class _Numpy(dict[str, np.dtype[Any]]):
    """Name of a type -> NumPy's dtype, made when it is first asked for: that of a type of another
    package is known to NumPy only once that package is imported."""

    def __missing__(self, name: str) -> np.dtype[Any]:
        found = self[name] = np.dtype(DTYPES[name].numpy)
        return found


NUMPY = _Numpy()


def name_of(dtype: np.dtype[Any]) -> str | None:
    """The name of the type that NumPy's dtype, in native byte order, is; None if there is none."""
    return next((name for name in DTYPES if dtype == NUMPY[name]), None)
