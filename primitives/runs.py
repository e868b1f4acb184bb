"""The streams that a layer has used. Not here: what a stream is (`primitives.run`)."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from primitives.run import Run


class Runs(dict[Hashable, Run]):
    """Streams by what made them. They belong to the process, so a copy has none: it finds or makes
    its own when it is used."""

    def use(self, make: Callable[..., Run], subject: Any, *how: Any) -> Run:
        """`make(subject, *how)`, made once. `subject` is the same each time: hashing a layer at
        each call would cost a microsecond."""
        key = (make, *how)
        run = self.get(key)
        if run is None:
            run = self[key] = make(subject, *how)
        return run

    def copy(self) -> Runs:
        return Runs()

    def __reduce__(self) -> tuple[type[Runs], tuple[()]]:
        return Runs, ()
