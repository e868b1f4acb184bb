"""Arguments that layers have in common: checked, with errors that name argument, value and rule.

Not here: arrays (`primitives.arrays`), windows of images (`primitives.windows`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

ACTIVATIONS = ("relu", "sigmoid", "tanh", "gelu", "silu")
LAYOUTS = ("nchw", "nhwc")


def positive(**sizes: Any) -> None:
    """Raise TypeError or ValueError unless all are ints from 1 on."""
    for name, value in sizes.items():
        if type(value) is not int:
            raise TypeError(f"{name}={value!r} is no int")
        if value < 1:
            raise ValueError(f"{name}={value} is not positive")


def one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")
