"""A primitive of one's own: parts as one callable that takes arrays by name and checks them.

    attention = Primitive([part], [q, k, v, o], threads=2)
    attention(q=q_array, k=k_array, v=v_array, o=o_array)

What each thread has for itself (`Tensor(..., own=True)`) and the tables of batches are made here;
other scratch and constants are told. Not here: what the parts do (`jitgen.primitives.nest.nest`),
the streams of layers, whose arrays the layers check (`jitgen.primitives.nest.run`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from jitgen import doors
from jitgen.frozen import Frozen, uncopied
from jitgen.objects.procedure import Argument, Exportable, Procedure, check_counts
from jitgen.primitives.layers.arrays import buffer_of, first_of
from jitgen.primitives.layers.exporting import About, procedure
from jitgen.primitives.nest.fit import check_own
from jitgen.primitives.nest.run import Run
from jitgen.primitives.nest.stream import Part, Ref, Stream
from jitgen.primitives.nest.tensor import Tensor
from jitgen.run.threads import check_threads
from jitgen.target import Target
from jitgen.types import DTYPES, NUMPY


class Primitive(Frozen, Exportable):
    """Parts, one after the other, on the caller's `tensors`.

    threads: how many share them (None: as many as layers take). scratch: tensors that no caller
    sees, each one for all threads. constants: arrays by the name of a tensor, copied. What is `own`
    is in no list. name: whose kernels these are, for tools.

    Raises TypeError or ValueError that names argument, value and rule, for a tensor of a part that
    is in no list too, or is larger than the one in it.
    """

    def __init__(
        self, parts: Sequence[Part], tensors: Sequence[Tensor], threads: int | None = None, *,
        scratch: Sequence[Tensor] = (), constants: Mapping[str, np.ndarray] | None = None,
        name: str = "",
    ) -> None:  # fmt: skip
        parts = [doors.instance(f"parts[{i}]", part, Part)
                 for i, part in enumerate(doors.items("parts", parts))]  # fmt: skip
        #: the caller's, by name
        self.tensors = _listed("tensors", tensors)
        shared = _listed("scratch", scratch)
        if not parts:
            raise ValueError(f"parts={doors.shown(parts)} is empty")
        every = list(chain.from_iterable(part.all() for part in parts))
        given = {} if constants is None else doors.mapping("constants", constants)
        values = _tables(every)
        for key in given:
            if key in values:
                raise ValueError(f"constants[{doors.shown(key)}]: a batch has a table of that name")
        values |= _constants(given, every)
        groups = (("tensors", self.tensors), ("scratch", shared), ("constants", values))
        own = _own(every, groups)
        check_own(parts)
        #: how many threads share the calls
        self.threads = check_threads(threads)
        #: that of the kernels: it can be made on any machine, and called where this can run
        self.target = _target(every)
        # scratch is counted in elements of one type, whatever it holds
        self._dtype = next((t.dtype for t in self.tensors.values() if t.dtype), next(iter(DTYPES)))
        sizes = {name: t.elements * t.element for name, t in shared.items()}
        sizes |= {name: self.threads * size for name, size in own.items()}
        #: bytes of scratch, those of all threads
        self.scratch_bytes = sum(sizes.values())
        self._run = Run(
            parts, list(self.tensors), self.threads, self.target, self._dtype,
            {name: self._elements(size) for name, size in sizes.items()}, values,
        )  # fmt: skip
        self._run.name = doors.text("name", name)
        written = {part.words[word].tensor for part in every for word in part.writes}
        #: the tensors that it writes
        self.results = tuple(name for name in self.tensors if name in written)
        self._taken = {name: _Taken(t) for name, t in self.tensors.items()}

    @property
    def stream(self) -> Stream:
        """Which thread calls what, in what order: `stream.text()`."""
        return self._run.stream

    @property
    def nbytes(self) -> int:
        """Bytes that this holds without scratch: words, code, constants."""
        return self._run.nbytes

    def __call__(self, **arrays: np.ndarray) -> None:
        """Compute on an array for each of `tensors`, by name: of the tensor's type, of its `shape`,
        as far apart as its layout and strides say. Results are writable and overlap no other array.

        Raises TypeError or ValueError that names the array; nothing is written then. RuntimeError
        where this CPU cannot run the kernels.
        """
        if arrays.keys() != self._taken.keys():
            names, wanted = (", ".join(map(repr, each)) for each in (arrays, self._taken))
            raise TypeError(f"arrays are given for {names or 'nothing'}; it takes {wanted}")
        found = {name: self._taken[name].check(name, array) for name, array in arrays.items()}
        for name in self.results:
            result = found[name]
            if not result.flags.writeable:
                doors.writable(name, result)
            for other, array in found.items():
                if other != name and np.may_share_memory(result, array):  # `apart` looks into it
                    doors.apart(name, result, [(other, array)])
        self._run({
            name: buffer_of(x if x.flags.c_contiguous else first_of(x))
            for name, x in found.items()
        })  # fmt: skip

    def seconds(self) -> float:
        """The shortest time of a call on arrays of zeros, of those of a hundredth of a second, two
        at the least: what `jitgen.primitives.nest.tuning.tuned` compares."""
        sizes = {name: self._elements(t.elements * t.element) for name, t in self.tensors.items()}
        return self._run.seconds(sizes)

    def procedures(
        self, name: str, passes: Iterable[str] | None = None, threads: Iterable[int] = (1,),
        weights: Mapping[str, np.ndarray] | None = None,
    ) -> list[Procedure]:  # fmt: skip
        """The C function `name` for `jitgen.export`. threads: the number that the primitive was
        made for; weights: arrays of tensors that it only reads, which then lie in the library.

        Raises TypeError or ValueError that names argument, value and rule.
        """
        name = doors.text("name", name)
        if passes is not None:
            raise ValueError(f"passes={doors.shown(passes)}: a primitive has none")
        counts = check_counts(threads)
        if counts != (self.threads,):
            raise ValueError(f"threads={doors.shown(counts)}: the primitive was made for "
                             f"{self.threads}; make one for each number")  # fmt: skip
        inputs = [n for n in self.tensors if n not in self.results]
        baked = {}
        for key, array in ({} if weights is None else doors.mapping("weights", weights)).items():
            doors.one_in("weights: name", key, "what it reads", inputs)
            if _loose(self.tensors[key]):
                raise ValueError(f"weights: {self.tensors[key]!r} does not lie in order, or has "
                                 "gaps")  # fmt: skip
            baked[key] = self._taken[key].check(f"weights[{key!r}]", array)
        arguments = {
            n: Argument(n, t.dtype or "", t.shape, t.elements * t.element, n in self.results,
                        _told(t))
            for n, t in self.tensors.items() if n not in baked
        }  # fmt: skip
        about = About(name, self._run.name or "a primitive", self.target)
        return [procedure(about, {self.threads: self._run}, arguments, baked)]

    def _elements(self, size: int) -> int:
        """Elements of one type that have so many bytes."""
        return -(-size // DTYPES[self._dtype].size)

    __reduce_ex__ = uncopied("make it anew from its parts")


class _Taken:
    """What an array for a tensor must be."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._dtype = NUMPY[tensor.dtype] if tensor.dtype else None
        self._shape = tensor.shape
        self._strides = tuple(step * tensor.element for step in tensor.steps)

    def check(self, name: str, value: Any) -> np.ndarray:
        """The array. TypeError, ValueError."""
        if type(value) is np.ndarray and value.dtype is self._dtype and (
            value.shape == self._shape and value.strides == self._strides
        ):  # what is right is let through quickly
            return value
        array = doors.view(name, value)
        if self._dtype is not None:
            array = doors.typed(name, array, self._dtype)
        elif array.dtype.itemsize != self._tensor.element or array.dtype.hasobject:
            raise TypeError(f"{name} has dtype {array.dtype}; its elements must have "
                            f"{self._tensor.element} bytes")  # fmt: skip
        if array.shape != self._shape:
            raise ValueError(f"{name} has shape {array.shape}; {self._tensor!r} has {self._shape}")
        if array.size and any(
            extent > 1 and given != wanted
            for extent, given, wanted in zip(
                self._shape, array.strides, self._strides, strict=True
            )
        ):  # fmt: skip
            raise ValueError(f"{name} has strides {array.strides}; {self._tensor!r} has "
                             f"{self._strides}")  # fmt: skip
        return array


def _loose(tensor: Tensor) -> bool:
    """Whether an array of its shape without gaps, the last axis innermost, lies otherwise."""
    sizes = list(zip(tensor.shape, tensor.steps, strict=True))
    return any(
        extent > 1 and step != prod(tensor.shape[i + 1 :]) for i, (extent, step) in enumerate(sizes)
    )


def _told(tensor: Tensor) -> str:
    """What the shape does not say of a tensor."""
    layout = f"layout {tensor.layout!r}"
    if not _loose(tensor):
        return layout
    return f"{layout}, {' x '.join(map(str, tensor.steps))} elements apart"


def _listed(argument: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Tensors by name. TypeError, ValueError."""
    found: dict[str, Tensor] = {}
    for i, each in enumerate(doors.items(argument, tensors)):
        tensor = doors.instance(f"{argument}[{i}]", each, Tensor)
        if tensor.own:
            raise ValueError(f"{argument}[{i}]={tensor!r} is each thread's own: it is in no list")
        if tensor.name in found:
            raise ValueError(f"{argument}[{i}]={tensor!r}: {argument} has another {tensor.name!r}")
        found[tensor.name] = tensor
    return found


def _places(parts: Sequence[Part]) -> Iterator[tuple[Part, Ref]]:
    for part in parts:
        for ref in part.words.values():
            yield part, ref


def _tables(parts: Sequence[Part]) -> dict[str, np.ndarray]:
    """The tables of all batches, by name."""
    found: dict[str, np.ndarray] = {}
    for part in parts:
        for name, values in part.tables.items():
            if not np.array_equal(found.setdefault(name, values), values):
                raise ValueError(f"{part.title}: another part has a table {name!r} of other "
                                 "values; let their batches have two names")  # fmt: skip
    return found


def _constants(given: Mapping[str, Any], parts: Sequence[Part]) -> dict[str, np.ndarray]:
    """Copies of the constants, which fit the places that parts have in them."""
    found = {}
    for name, value in given.items():
        what = f"constants[{doors.shown(name)}]"
        array = np.array(doors.plain(what, value), order="C")
        if not array.dtype.isnative:
            raise TypeError(f"{what} has dtype {array.dtype}, of another byte order")
        writer = next((p for p in parts for w in p.writes if p.words[w].tensor == name), None)
        if writer is not None:
            raise ValueError(f"{what}: {writer.title!r} writes it")
        array.flags.writeable = False
        found[doors.text("constants: name", name)] = array
        for part, ref in _places(parts):
            if ref.tensor != name:
                continue
            if (array.size, array.itemsize) != (ref.elements, ref.element):
                raise ValueError(
                    f"{what} has {array.size} elements of {array.itemsize} bytes; in "
                    f"{part.title!r} it has {ref.elements} of {ref.element}"
                )
    return found


def _own(
    parts: Sequence[Part], groups: Sequence[tuple[str, Mapping[str, Any]]]
) -> dict[str, int]:
    """Bytes of each thread's own tensors; ValueError where a part's tensor is in none of `groups`,
    or in two, or is not what is in it."""
    known: dict[str, tuple[str, Any]] = {}
    for argument, some in groups:
        for name, each in some.items():
            if name in known:
                raise ValueError(f"{argument} has {name!r}, which is in {known[name][0]} too")
            known[name] = argument, each
    own: dict[str, int] = {}
    used = set()
    for part, ref in _places(parts):
        name, size = ref.tensor, ref.elements * ref.element
        used.add(name)
        if ref.per_thread:
            if name in known:
                raise ValueError(f"{part.title}: {name!r} is each thread's own here, and in "
                                 f"{known[name][0]}")  # fmt: skip
            if own.setdefault(name, size) != size:
                raise ValueError(f"{part.title}: {name!r} has {size} bytes of each thread here, "
                                 f"and {own[name]} elsewhere")  # fmt: skip
            continue
        if name not in known:
            raise ValueError(f"{part.title}: {name!r} is not in tensors, scratch or constants")
        argument, tensor = known[name]
        if isinstance(tensor, Tensor) and (
            tensor.element != ref.element or tensor.elements < ref.elements
        ):
            raise ValueError(
                f"{part.title}: {name!r} has {ref.elements} elements of {ref.element} bytes here; "
                f"{argument} has {tensor!r} of {tensor.elements} of {tensor.element}"
            )
    for name, (argument, _) in known.items():
        if name not in used:
            raise ValueError(f"{argument} has {name!r}, which no part has")
    return own


def _target(parts: Sequence[Part]) -> Target:
    """That of all parts."""
    targets = list(dict.fromkeys(part.target for part in parts))
    names = [target.name if target else "none" for target in targets]
    (target, *others) = targets
    if target is None or others:
        raise ValueError(f"parts are for targets {', '.join(names)}; it takes those for one")
    return target
