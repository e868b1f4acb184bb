"""The streams that a layer has used. Not here: what a stream is (`jitgen.primitives.nest.run`)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

from jitgen.primitives.nest.limits import made
from jitgen.primitives.nest.run import Run


class Runs(dict[Hashable, Run]):
    """Streams by what made them. They belong to the process, so a copy has none: it finds or makes
    its own when it is used. `layer` is what tools call it, `sizes` are its arguments, for them
    and for errors."""

    def __init__(self, layer: str, sizes: Mapping[str, object]) -> None:
        super().__init__()
        self.layer = layer
        self.sizes = sizes

    def use(self, make: Callable[..., Run], subject: Any, *how: Any) -> Run:
        """`make(subject, *how)`, made once. `subject` is the same each time: hashing a layer at
        each call would cost a microsecond. Raises ValueError if the stream would be too large."""
        key = (make, *how)
        run = self.get(key)
        if run is None:
            run = self[key] = made(partial(make, subject, *how), make.__name__, self.sizes)
            shape = " ".join(f"{value}" for value in self.sizes.values())
            run.name = run.name or f"{self.layer} {make.__name__} {shape}"
        return run

    def copy(self) -> Runs:
        return Runs(self.layer, self.sizes)

    def __reduce__(self) -> tuple[type[Runs], tuple[str, Mapping[str, object]]]:
        return Runs, (self.layer, self.sizes)
