"""Objects that stay as they were made, and what copies of them are.

Machine code is generated for the sizes that an object shows: were they assigned, it would run with
the checks of others. Not here: how each class comes back from a copy (its own `__reduce__` or
`__setstate__`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn


class Frozen:
    """An object whose public attributes are set once, and which copies and pickles by them."""

    #: public attributes that may be assigned again
    _settable: frozenset[str] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        self._refuse(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self._refuse(name)
        super().__delattr__(name)

    def _refuse(self, name: str) -> None:
        if name[:1] == "_" or name in self._settable:
            return
        if name in self.__dict__ or hasattr(type(self), name):
            raise AttributeError(
                f"{name} of a {type(self).__name__} is read-only: make another object instead"
            )

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
