"""The passes of a layer by name, and the arrays that each takes: for tools and for other callers.

A layer's methods say themselves what a pass takes (`jitgen.primitives.layers.base.Layer.passes`),
so this is a description and no second way to run one. Not here: what a pass does (the layers),
streams (`jitgen.primitives.nest.run`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from jitgen import doors
from jitgen.primitives.nest.run import Run


class Argument(NamedTuple):
    """An array of a pass: C-contiguous, of the layer's dtype."""

    #: its name in `Run.tensors`
    tensor: str
    #: as the layer's documentation calls it: "x", "w", "b", "residual", "dy", "y", "dw" ...
    name: str
    shape: tuple[int, ...]
    #: the pass writes it
    result: bool
    #: a result that the pass reads too: what the caller has put into it counts
    updated: bool = False
    #: what it holds, where name and shape do not say it
    meaning: str = ""


class Pass(NamedTuple):
    """A pass at the layer's own sizes: what it runs, and on which arrays.

    `run.tensors` that no argument has are not read: any address will do for them, also 0.
    """

    #: its key in `Passes`
    name: str
    run: Run
    arguments: tuple[Argument, ...]


class Use(NamedTuple):
    """How a layer's methods come to a pass: `call` makes the calls on a layer, the last of which
    (of a layer of two directions: the last two) runs it."""

    call: Callable[[Any], object]
    #: names of the results, in the order in which the method hands them on
    results: tuple[str, ...] = ()


class Passes(Mapping[str, Pass]):
    """Passes by name. Each is made, and its stream with it, when it is looked up; that takes as
    long as the first call of the layer's method."""

    def __init__(self, makers: Mapping[str, Callable[[str], Pass]]) -> None:
        """makers: by name, what makes the pass of that name."""
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> Pass:
        """KeyError for an unknown name, which says what there is."""
        if name not in self._makers:
            raise KeyError(f"{doors.shown(name)} is not one of {', '.join(self._makers)}")
        return self._makers[name](name)

    def __contains__(self, name: Any) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __repr__(self) -> str:
        return f"<primitives.Passes {', '.join(self)}>"
