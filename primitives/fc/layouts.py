"""Blocked layouts: matrices in panels, as kernels read them without packing.

Not here: who packs them (`jitgen.primitives.layers.fully_connected`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jitgen import doors
from jitgen.primitives.layers.arrays import realigned


@dataclass(frozen=True, repr=False)
class Blocked:
    """A matrix (rows x columns) in panels: array is [ceil(columns / width)][rows][width]. What
    lies beyond the last column is of no account."""

    array: np.ndarray
    columns: int

    def __post_init__(self) -> None:
        doors.floats("array", self.array)
        if self.array.ndim != 3 or 0 in self.array.shape:
            rule = "(panels, rows, width), none zero"
            raise ValueError(f"array has shape {self.array.shape}; it must be {rule}")
        columns = doors.size("columns", self.columns)
        panels = self.array.shape[0]
        if panels != -(-columns // self.width):
            raise ValueError(
                f"columns={columns} take {-(-columns // self.width)} panels of width "
                f"{self.width}; array has shape {self.array.shape}"
            )
        doors.settle(self, columns=columns)

    def __repr__(self) -> str:
        panels, rows, width = self.array.shape
        return f"<primitives.Blocked {rows}x{self.columns} in {panels} panels of {width}>"

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, array=realigned(state["array"]))

    @property
    def width(self) -> int:
        """Columns of a panel."""
        return int(self.array.shape[2])

    def plain(self) -> np.ndarray:
        """The matrix as a plain array."""
        panels, rows, width = self.array.shape
        flat = self.array.transpose(1, 0, 2).reshape(rows, panels * width)
        return np.ascontiguousarray(flat[:, : self.columns])


@dataclass(frozen=True, repr=False)
class PackedWeights:
    """Weights (out_features x in_features) as the passes read them: panels of w^T for the forward
    pass, panels of w for backward by data (or None). layout: in_features, out_features, dtype."""

    forward: Blocked
    backward: Blocked | None
    layout: tuple[int, int, str]

    def __post_init__(self) -> None:
        doors.instance("forward", self.forward, Blocked)
        if self.backward is not None:
            doors.instance("backward", self.backward, Blocked)
        inputs, outputs, dtype = doors.items("layout", self.layout, 3)
        doors.settle(
            self, layout=(
                *doors.pair("layout", (inputs, outputs)),
                doors.dtype("layout[2]", dtype),
            ),
        )  # fmt: skip

    def __repr__(self) -> str:
        inputs, outputs, dtype = self.layout
        passes = "forward" if self.backward is None else "forward and backward"
        return f"<primitives.PackedWeights {inputs} -> {outputs}, {dtype}, {passes}>"
