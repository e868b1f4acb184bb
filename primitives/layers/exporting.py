"""Streams, passes of layers among them, as what a library can hold:
`jitgen.objects.procedure.Procedure`.

Not here: a layer's passes (`jitgen.primitives.layers.passes`), the library (`jitgen.objects`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np

from jitgen import doors
from jitgen.objects.procedure import Argument, Base, Constant, Cut, Procedure
from jitgen.primitives.layers.passes import Pass
from jitgen.primitives.nest.run import Run
from jitgen.run.replay import emit_replay
from jitgen.target import Target
from jitgen.types import DTYPES, NUMPY

#: What a pass that reads packed weights has behind its name
PACKED = " packed"


class About(NamedTuple):
    """What a procedure says of itself beside its arguments: its name in C, what it computes."""

    name: str
    computes: str
    target: Target


def is_about_packing(name: str) -> bool:
    """Whether a pass packs an array, or takes a packed one."""
    return PACKED in name or name.startswith("pack_")


def source_of(name: str, passes: Mapping[str, Pass], given: Mapping[str, object]) -> str:
    """The pass that a function replays which is called like the pass `name`: where weights are
    given, and another pass takes these packed, that one."""
    first, *direction = name.split(" ")
    packed = " ".join([first + PACKED, *direction])
    if not given or packed not in passes:
        return name
    plain, other = ({a.name: a.shape for a in passes[n].arguments} for n in (name, packed))
    return packed if any(plain.get(n) != other.get(n) for n in given) else name


def is_packed(taken: Pass, given: Mapping[str, Any]) -> bool:
    """Whether the array w, if there is one, is as a pass takes it."""
    shapes = {a.name: a.shape for a in taken.arguments}
    return "w" not in given or "w" not in shapes or np.shape(given["w"]) == shapes["w"]


def panels_of(layer: Any, taken: Pass, w: Any) -> Any:
    """The weights of a layer with a filter, packed as a pass takes them."""
    backward = taken.name.startswith("backward")
    packed = layer.pack_weights(w, backward=backward)
    return packed.backward if backward else packed.forward


def checked(taken: Pass, arrays: Mapping[str, Any], dtype: str) -> dict[str, np.ndarray]:
    """Those of the arrays that a pass takes. TypeError or ValueError unless they are right."""
    return {
        a.name: doors.array(f"weights[{a.name!r}]", arrays[a.name], a.shape, NUMPY[dtype])
        for a in taken.arguments if a.name in arrays
    }  # fmt: skip


def of_pass(
    about: About, passes: Mapping[int, Pass], baked: Mapping[str, np.ndarray], dtype: str
) -> Procedure:
    """A pass, made for each number of threads; `baked`: arrays, in the layout of the pass, that lie
    in the library, by name of the argument.

    Raises ValueError if the numbers of threads want arrays of different shapes.
    """
    each_takes = {each.arguments for each in passes.values()}
    if len(each_takes) > 1:
        raise ValueError(f"threads={tuple(passes)}: {about.name} takes arrays of other layouts "
                         "on each number of threads; export them apart")  # fmt: skip
    (takes,) = each_takes
    size = DTYPES[dtype].size
    arguments = {
        a.tensor: Argument(
            a.name, dtype, a.shape, prod(a.shape) * size, a.result, a.meaning, a.updated
        )
        for a in takes if a.name not in baked
    }  # fmt: skip
    constants = {a.tensor: baked[a.name] for a in takes if a.name in baked}
    runs = {threads: each.run for threads, each in passes.items()}
    return procedure(about, runs, arguments, constants)


def procedure(
    about: About, runs: Mapping[int, Run], arguments: Mapping[str, Argument],
    baked: Mapping[str, np.ndarray],
) -> Procedure:  # fmt: skip
    """A stream, made for each number of threads, on the caller's `arguments` and on arrays that lie
    in the library, both by tensor."""
    constants: dict[bytes, Constant] = {}

    def constant(tensor: str, array: np.ndarray) -> Base:
        """The place of a constant; arrays of the same bytes are one."""
        data = np.ascontiguousarray(array).tobytes()
        name = re.sub(r"\W", "_", tensor, flags=re.ASCII)
        constants.setdefault(data, Constant(f"{name}{len(constants)}", data))
        return Base("constant", list(constants).index(data))

    cuts = []
    for threads, run in runs.items():
        stream = run.stream
        places = {tensor: Base("argument", i) for i, tensor in enumerate(arguments)}
        places |= {
            tensor: Base("scratch", place.start)
            for tensor, place in zip(run.scratch, run.places, strict=True)
        }
        both = [*baked.items(), *run.constants.items()]
        places |= {tensor: constant(tensor, array) for tensor, array in both}
        driver = emit_replay(stream.calls, about.target, f"{about.name} on {threads} threads")
        bases = tuple(places.get(tensor, Base("nothing")) for tensor in stream.tensors)
        cuts.append(Cut(threads, driver, tuple(s.tobytes() for s in stream.slices), bases))
    return Procedure(
        about.name, about.target, tuple(arguments.values()), tuple(cuts),
        max(run.scratch_bytes for run in runs.values()), tuple(constants.values()), about.computes,
    )  # fmt: skip
