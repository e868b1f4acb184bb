"""Arrays of recurrent layers between calls: packed weights, and what training keeps.

Not here: the layers (`jitgen.primitives.layers.recurrent`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jitgen import doors
from jitgen.primitives.layers.arrays import realigned
from jitgen.primitives.rnn.lengths import Lengths, Whole
from jitgen.primitives.rnn.steps import Layer


@dataclass(frozen=True, repr=False)
class PackedRecurrent:
    """Weights of each direction as the forward pass reads them, the layer they are for, and the
    caller's arrays (not copies), for the backward pass."""

    panels: list[dict[str, np.ndarray]]
    layout: tuple[Any, ...]
    w: np.ndarray
    r: np.ndarray

    def __post_init__(self) -> None:
        doors.settle(self, panels=list(doors.items("panels", self.panels)))
        for d, panels in enumerate(self.panels):
            for name, array in doors.mapping(f"panels[{d}]", panels).items():
                doors.floats(f"panels[{d}][{doors.shown(name)}]", array)
        doors.instance("layout", self.layout, tuple)
        doors.floats("w", self.w)
        doors.floats("r", self.r)

    def __repr__(self) -> str:
        kind, features, hidden, directions, _, dtype = self.layout
        many = " in 2 directions" if directions == 2 else ""
        return f"<primitives.PackedRecurrent {kind} {features} -> {hidden}{many}, {dtype}>"

    def __setstate__(self, state: dict[str, Any]) -> None:
        panels = [{n: realigned(a) for n, a in one.items()} for one in state["panels"]]
        self.__dict__.update(state, panels=panels)


@dataclass
class Kept:
    """What the backward pass needs of a forward pass; `layer` is of its batch and steps."""

    rows: Whole | Lengths
    directions: list[dict[str, Any]]
    layer: Layer

    def __post_init__(self) -> None:
        self._bytes = self._count()

    def _count(self) -> list[dict[str, int]]:
        return [
            {name: a.nbytes for name, a in arrays.items() if a is not None}
            for arrays in self.directions
        ]

    def check(self) -> None:
        """Raise ValueError if an array has become larger or smaller (`ndarray.resize`)."""
        for now, before in zip(self._count(), self._bytes, strict=True):
            for name, size in before.items():
                if now[name] != size:
                    raise ValueError(
                        f"{name} had {size} bytes in the forward pass; now it has {now[name]}"
                    )
