"""Arguments that layers have in common: checked, with errors that name argument, value and rule.

Not here: arrays (`primitives.arrays`), windows of images (`primitives.windows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jitgen import cpu
from jitgen.spec import DTYPES
from jitgen.target import Target, parse_target


def positive(name: str, value: Any) -> None:
    """Raise TypeError or ValueError unless `value` is an int from 1 on."""
    if type(value) is not int:
        raise TypeError(f"{name}={value!r} is no int")
    if value < 1:
        raise ValueError(f"{name}={value} is not positive")


def one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")


def machine(dtype: str, target: str | Target | None) -> Target:
    """The target for elements of `dtype`: this CPU's best one where it is None."""
    one_of("dtype", dtype, list(DTYPES))
    if target is None:
        return cpu.host()
    return target if isinstance(target, Target) else parse_target(target)
