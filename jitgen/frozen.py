"""What copies of an object are: of layers and kernels whole, of what holds addresses none.

Not here: how each class comes back (its own `__reduce__` or `__setstate__`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn


class Frozen:
    """An object that copies and pickles by its attributes."""

    def __getstate__(self) -> dict[str, Any]:
        """The attributes. Another thread may use the object meanwhile, and the copy should not
        share what that one fills: dicts are copied, each in one step."""
        state = self.__dict__.copy()
        return {name: v.copy() if isinstance(v, dict) else v for name, v in state.items()}


def uncopied(instead: str) -> Callable[[Any, Any], NoReturn]:
    """A `__reduce_ex__` for classes that hold addresses or machine code of this process: they
    neither copy nor pickle. `instead` says what does."""

    def refuse(self: Any, protocol: Any) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} belongs to its process: it is not copied or pickled; "
            f"{instead}"
        )

    return refuse
