"""What a layer says of itself: its passes, for tools, and its functions, for libraries in C.

The layer's methods are the description: they are called on a copy that notes down what they would
run. Not here: how a layer is called (`jitgen.primitives.layers.base`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

from numpy import broadcast_to, ndarray

from jitgen import doors
from jitgen.emit.steps import STEPS, Step
from jitgen.frozen import Frozen
from jitgen.objects.procedure import Exportable, Procedure, check_counts
from jitgen.primitives.layers import exporting
from jitgen.primitives.layers.elementwise import is_signed
from jitgen.primitives.layers.passes import Argument, Pass, Passes, Use
from jitgen.primitives.nest.run import Run
from jitgen.target import Target
from jitgen.types import NUMPY

Shape = tuple[int, ...]
#: An array of a call: tensor of the stream, name of the argument, value (of a result None: a new
#: array), shape
Operand = tuple[str, str, Any, Shape]
#: What makes a stream, and its arguments after the first
Key = tuple[Any, ...]


class Sized:
    """A layer at one size of its arrays. at: what its streams depend on, their makers' first
    argument; kind: the arrays' dtype; runs: streams that were used."""

    __slots__ = ("at", "kind", "runs")

    def __init__(self, at: Any) -> None:
        self.at = at
        self.kind = NUMPY[at.dtype]
        self.runs: dict[Any, Run] = {}


class Described(Frozen, Exportable):
    """Passes by name, and functions for libraries, of what runs streams on arrays."""

    #: in its repr
    _name = ""
    #: arguments of its methods that training makes, and that a library may hold
    _trained: tuple[str, ...] = ()
    #: of these, those that passes take in another form -> the argument of that form
    _packed_as: Mapping[str, str] = {}
    #: what its streams depend on
    _at: Any

    def __init_subclass__(cls) -> None:
        if cls.__name__[0] != "_":
            cls._name = cls.__name__

    @abstractmethod
    def _words(self) -> list[str]:
        """For the repr."""

    @abstractmethod
    def _own(self) -> Sized:
        """The layer for its own batch."""

    @abstractmethod
    def _run(self, sized: Sized, key: Key) -> Run:
        """The stream of `key`, made once. ValueError if it would be too large."""

    @property
    def dtype(self) -> str:
        """Type of the elements of all arrays."""
        return str(self._at.dtype)

    @property
    def threads(self) -> int:
        """Threads of a call, at most."""
        return int(self._at.threads)

    @property
    def target(self) -> Target:
        """What the machine code is for."""
        target: Target = self._at.target
        return target

    # ---- passes, for tools ----------------------------------------------------------------------

    def passes(self) -> Passes:
        """The passes at the layer's own sizes by name: their streams and arrays."""
        return Passes({name: partial(self._pass, use) for name, use in self._uses().items()})

    @abstractmethod
    def _uses(self) -> dict[str, Use]:
        """How the methods come to each pass."""

    def _pass(self, use: Use, name: str) -> Pass:
        """What the methods run: they are called on a copy that only notes it down."""
        calls: list[tuple[Key, list[Operand], list[Operand]]] = []

        def note(
            sized: Sized, key: Key, inputs: Iterable[Operand], results: Iterable[Operand],
            over: str = "",
        ) -> list[Any]:  # fmt: skip
            calls.append((key, [*inputs], [*results]))
            return [self._blank(shape) for *_, shape in calls[-1][2]]

        noting = copy(self)
        vars(noting)["_call"] = note
        use.call(noting)
        key, inputs, results = calls[-1]
        arguments = [Argument(t, name.partition(" (")[0], s, False) for t, name, _, s in inputs]
        named = zip(results, use.results, strict=True)
        arguments += [Argument(t, name, s, True) for (t, _, _, s), name in named]
        return Pass(name, self._run(self._own(), key), tuple(arguments))

    def _blank(self, shape: Shape) -> ndarray:
        """An array that has a shape and a type, but no memory."""
        return broadcast_to(NUMPY[self.dtype].type(0), shape)

    def _use_of_gradient(self, activation: Step | None, shape: Shape) -> dict[str, Use]:
        """The pass of `backward_activation`, if the activation has a gradient."""
        if activation is None or not STEPS[activation[0]].known or is_signed(activation):
            return {}
        a, known = self._blank(shape), STEPS[activation[0]].known
        return {"backward_activation": Use(
            lambda own: own.backward_activation(a, **{known: a}), ("dz",)
        )}  # fmt: skip

    # ---- export ---------------------------------------------------------------------------------

    def procedures(
        self, name: str, passes: Iterable[str] | None = None, threads: Iterable[int] = (1,),
        weights: Mapping[str, ndarray] | None = None,
    ) -> list[Procedure]:  # fmt: skip
        """The passes (None: all) as C functions for `jitgen.export`, on so many threads each.

        weights: arrays that lie in the library, by the names that the layer's methods have for
        them; where a pass reads them packed they are packed here, which takes a CPU that runs the
        layer's target. Raises TypeError or ValueError that names argument, value and rule, and
        RuntimeError where weights cannot be packed here.
        """
        name = doors.text("name", name)
        counts = check_counts(threads)
        given = {} if weights is None else dict(doors.mapping("weights", weights))
        for each in given:
            doors.one_in("weights: name", each, "those of the layer", self._trained)
        own = self._exported()
        wanted = tuple(own) if passes is None else doors.items("passes", passes)
        if passes is None and given:  # the weights are packed already
            wanted = tuple(n for n in own if not exporting.is_about_packing(n))
        for i, each in enumerate(wanted):
            doors.one_of(f"passes[{i}]", each, own)
        layers = {n: self if n == self.threads else self._on(n) for n in counts}
        sources = {n: layer._exported() for n, layer in layers.items()}
        what, *more = self._words()
        result = []
        taken: set[str] = set()
        for each in wanted:
            source = exporting.source_of(each, own, given)
            made = {n: passes[source] for n, passes in sources.items()}
            first = made[counts[0]]
            taken |= {argument.name for argument in first.arguments}
            try:
                baked = self._baked(first, given) if given else {}
                arrays = exporting.checked(first, baked, self.dtype)
            except RuntimeError as error:
                raise RuntimeError(f"weights: {error}; they are packed where the target runs: "
                                   "export there, or give a packed w") from None  # fmt: skip
            about = exporting.About(
                f"{name}_{each.replace(' ', '_')}", f"{each} of {self._name} " + ", ".join(
                    [what, *more]), self.target,
            )  # fmt: skip
            result.append(exporting.of_pass(about, made, arrays, self.dtype))
        for each in given:
            if not {each, self._packed_as.get(each)} & taken:
                raise ValueError(f"weights: no pass that is exported takes {each!r}")
        return result

    def _exported(self) -> Passes:
        """The passes, and those for what Python does otherwise."""
        return self.passes()

    def _on(self, threads: int) -> Any:
        """The same layer on another number of threads."""
        other = copy(self)
        at = replace(self._at, threads=threads)
        vars(other).update({name: at for name, value in vars(self).items() if value is self._at})
        return other

    def _baked(self, taken: Pass, given: Mapping[str, ndarray]) -> Mapping[str, ndarray]:
        """Weights as a pass takes them, by argument of the pass."""
        return given
