"""What all layers are made of: arrays checked and taken by name, sizes of batch, streams.

A layer is made for one shape. Called with another batch it makes what that takes, and keeps it for
the last few. Not here: what a layer computes, what a stream is (`jitgen.primitives.nest.run`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

from numpy import empty, may_share_memory, ndarray

from jitgen import doors
from jitgen.emit.steps import Step
from jitgen.frozen import Frozen
from jitgen.primitives.layers.arrays import buffer_of, first_of
from jitgen.primitives.layers.elementwise import derived_from, gradient
from jitgen.primitives.nest.limits import check_elements, made
from jitgen.primitives.nest.run import Run
from jitgen.target import Target
from jitgen.types import NUMPY

#: Shapes for which a layer keeps streams: so many, and as many again that were used before them
MOST_SHAPES = 16
#: Streams of one shape
MOST_RUNS = 64

Shape = tuple[int, ...]
#: An array of a call: tensor of the stream, name of the argument, value (of a result None: a new
#: array), shape
Operand = tuple[str, str, Any, Shape]
#: What makes a stream, and its arguments after the first
Key = tuple[Any, ...]
#: Tensor and strides in elements of all axes but the last, of arrays that are not C-contiguous
Strides = tuple[tuple[str, Shape], ...]


class Sized:
    """A layer at one size of its arrays. at: what its streams depend on, their makers' first
    argument; kind: the arrays' dtype; runs: streams that were used."""

    __slots__ = ("at", "kind", "runs")

    def __init__(self, at: Any) -> None:
        self.at = at
        self.kind = NUMPY[at.dtype]
        self.runs: dict[Any, Run] = {}


class Layer(Frozen, ABC):
    """What layers share; `at` (with dtype, threads, target) is what their streams depend on.

    Streams belong to the process, so a copy has none: it finds or makes its own when it is used.
    """

    #: in its repr
    _name = ""
    #: leading axes of an array that may have another size at each call
    _free = 1
    #: Passes whose makers take `strides` -> tensors that may have some
    _strided: Mapping[Any, Iterable[str]] = {}

    def __init_subclass__(cls) -> None:
        if cls.__name__[0] != "_":
            cls._name = cls.__name__

    def __init__(self, at: Any, shape: Shape) -> None:
        """`shape` is that of x. ValueError where arrays would be too large."""
        self._check_sizes(at)
        self._at = at
        self._shape = shape
        #: by the shape of the array that a pass is about
        self._sizes: dict[Shape, Sized] = {}
        self._older: dict[Shape, Sized] = {}

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_sizes": {}, "_older": {}}

    def __repr__(self) -> str:
        what, *more = self._words()
        at = f"{self.dtype} for {self.target.name}, threads={self.threads}"
        return f"<primitives.{self._name} {', '.join([what, at, *more])}>"

    @abstractmethod
    def _words(self) -> list[str]:
        """For the repr."""

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

    # ---- sizes and streams ----------------------------------------------------------------------

    def _resized(self, given: Shape) -> Any:
        """`at` for the batch of an array of this shape."""
        return replace(self._at, batch=given[0])

    @abstractmethod
    def _check_sizes(self, at: Any) -> None:
        """Raise ValueError where arrays, or what kernels see of them, are too large."""

    @abstractmethod
    def _arguments(self, at: Any) -> dict[str, object]:
        """The arguments that say how large a layer is, for errors."""

    def _sized(self, name: str, value: Any, shape: Shape) -> Sized:
        """The layer for the batch of an array, which has `shape` at the layer's own."""
        if type(value) is not ndarray:
            value = doors.view(name, value, f" of {NUMPY[self.dtype]}")
        return self._sizes.get(value.shape) or self._another(value.shape, shape)

    def _own(self) -> Sized:
        """The layer for its own batch."""
        return self._another(self._shape, self._shape)

    def _another(self, given: Shape, shape: Shape) -> Sized:
        if len(given) != len(shape) or given[self._free :] != shape[self._free :] or 0 in given:
            given = shape  # which the error of the array's shape names
        found = self._sizes.get(given) or self._older.get(given)
        if found is None:
            found = Sized(self._resized(given))
            self._check_sizes(found.at)
        if len(self._sizes) >= MOST_SHAPES:
            self._older, self._sizes = self._sizes, {}
        self._sizes[given] = found
        return found

    def _run(self, sized: Sized, key: Key, strides: Strides = ()) -> Run:
        """The stream of `key`, made once. ValueError if it would be too large."""
        whole: Any = (key, strides) if strides else key
        run = sized.runs.get(whole)
        if run is None:
            more = {"strides": strides} if strides else {}
            name = key[0] if isinstance(key[0], str) else key[0].__name__
            make = partial(self._make, sized, *key, **more)
            arguments = self._arguments(sized.at)
            run = made(make, name, arguments)
            run.name = run.name or " ".join(map(str, (self._name, name, *arguments.values())))
            if len(sized.runs) >= MOST_RUNS:
                sized.runs = {}
            sized.runs[whole] = run
        return run

    def _make(self, sized: Sized, maker: Any, *how: Any, **more: Any) -> Run:
        run: Run = maker(sized.at, *how, **more)
        return run

    # ---- arrays ---------------------------------------------------------------------------------

    def _call(
        self, sized: Sized, key: Key, inputs: Iterable[Operand], results: Sequence[Operand],
        over: str = "",
    ) -> list[Any]:  # fmt: skip
        """Run a stream; the results. One that is given may overlap no other array, but be the
        argument `over`."""
        # a call of a small layer takes 5 microseconds: what is right is let through quickly
        kind, buffers = sized.kind, {}
        strides: Strides = ()
        for tensor, name, value, shape in inputs:
            if type(value) is ndarray and value.dtype is kind and value.shape == shape:
                try:
                    buffers[tensor] = buffer_of(value)
                    continue
                except ValueError:
                    pass  # not contiguous
            buffers[tensor], more = self._taken(sized, key, tensor, name, value, shape)
            strides += more
        arrays: list[Any] = []
        for tensor, name, value, shape in results:
            if value is None:
                value = empty(shape, kind)
                buffers[tensor] = buffer_of(value)
            else:
                buffers[tensor], more = self._taken(sized, key, tensor, name, value, shape)
                strides += more
                self._check_result(name, value, (*inputs, *results[: len(arrays)]), over)
            arrays.append(value)
        run = None if strides else sized.runs.get(key)
        if run is None:
            run = self._run(sized, key, strides)
        run(buffers)
        return arrays

    def _result(self, *call: Any) -> ndarray:
        """The one result of `_call`."""
        result: ndarray = self._call(*call)[0]
        return result

    def _taken(
        self, sized: Sized, key: Key, tensor: str, name: str, value: Any, shape: Shape
    ) -> tuple[Any, Strides]:
        """The buffer of an array (cffi, keeps it alive), and its strides unless C-contiguous."""
        if type(value) is ndarray and value.dtype is sized.kind and value.shape == shape:
            try:
                return buffer_of(value), ()
            except ValueError:
                pass  # not contiguous
        if tensor not in self._strided.get(key[0], ()):
            return buffer_of(self._checked(name, value, shape)), ()
        array, strides = self._loose(name, value, shape)
        if strides:
            return buffer_of(first_of(array)), ((tensor, self._apart(strides)),)
        return buffer_of(array), ()

    def _loose(self, name: str, value: Any, shape: Shape) -> tuple[ndarray, Shape]:
        """An array whose last axis is contiguous, and its strides, () if it has no gaps."""
        array = self._shaped(name, value, shape)
        if array.flags.c_contiguous:
            return array, ()
        strides = doors.strides(name, array)
        span = sum(s * (n - 1) for s, n in zip(strides, shape, strict=False)) + shape[-1]
        check_elements({f"{name}.strides": array.strides}, **{name: (span,)})
        return array, strides

    def _apart(self, strides: Shape) -> Shape:
        """Strides of a caller's array as the layer's streams take them."""
        return strides

    def _shaped(self, name: str, value: Any, shape: Shape) -> ndarray:
        array = doors.typed(name, value, NUMPY[self.dtype])
        if array.shape != shape:
            hint = self._hint(name, array.shape, shape)
            raise ValueError(f"{name} has shape {array.shape}; it must be {shape}{hint}")
        return array

    def _checked(self, name: str, value: Any, shape: Shape) -> ndarray:
        """A C-contiguous array. TypeError, ValueError."""
        right = type(value) is ndarray and value.dtype is NUMPY[self._at.dtype]
        if right and value.shape == shape and value.flags.c_contiguous:
            checked: ndarray = value
            return checked
        array = self._shaped(name, value, shape)
        return doors.array(name, array, shape, array.dtype)

    def _hint(self, name: str, given: Shape, shape: Shape) -> str:
        """What else an error says of a wrong shape."""
        return ""

    def _check_result(
        self, name: str, value: Any, others: Iterable[Operand], over: str = ""
    ) -> None:
        """Raise ValueError unless an array may be written, and is apart from `others`, but the
        argument `over` if it is the same."""
        array = value if type(value) is ndarray else doors.view(name, value)
        if not array.flags.writeable:
            doors.writable(name, array)
        for _, other, each, _ in others:
            if each is None or (each is value and other == over):
                continue  # None: a result in a new array
            if type(each) is not ndarray:
                each = doors.view(other, each)
            if may_share_memory(array, each):  # what `apart` looks into
                doors.apart(name, array, [(other, each)])

    def _wanted(self, name: str, value: Any, wanted: bool, how: str) -> bool:
        """Whether the layer takes an argument; ValueError if it is given nevertheless, `how` says
        why not."""
        if not wanted and value is not None:
            raise ValueError(f"{name} is given, but the layer was made with {how}")
        return wanted

    def _gradient(
        self, activation: Step | None, shape: Shape, dy: Any, y: Any, z: Any, out: Any
    ) -> ndarray:
        """dy * activation'(z); `shape` is that of y at the layer's own batch."""
        name, known = derived_from(activation, y, z)
        sized = self._sized("dy", dy, shape)
        shape = (sized.at.batch, *shape[1:])
        inputs = (("a", "dy", dy, shape), ("b", name, known, shape))
        key = (gradient, activation, prod(shape))
        return self._result(sized, key, inputs, (("c", "out", out, shape),), "dy")
