"""What `jitgen.export` was asked for: kernels and layers with their names, checked.

Not here: what becomes of them (`jitgen.objects.library`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from jitgen import doors
from jitgen.gemm.kernel import Kernel
from jitgen.objects.procedure import Exportable, Procedure, check_counts
from jitgen.objects.table import LONGEST_NAME

Asked = Kernel | Exportable
Kernels = Iterable[Asked] | Mapping[str, Asked | Iterable[Asked]]
#: Numbers of threads for all layers, or for each by its name
Threads = Iterable[int] | Mapping[str, Iterable[int]]
#: Passes of all layers, or of each by its name; None: all
Passes = Iterable[str] | Mapping[str, Iterable[str]] | None
#: By name of the layer: arrays by argument
Weights = Mapping[str, Mapping[str, np.ndarray]] | None
ONE_THREAD = (1,)
#: What is no sequence of kernels, though it may be iterated
_ONE = (Kernel, Exportable, str, np.generic)


def check_name(name: Any) -> None:
    """Raise TypeError or ValueError unless a library can be called so."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", doors.text("name", name)):
        raise ValueError(
            f"name={doors.shown(name)}: it begins with a letter and has letters, digits and "
            "underscores (A-Z, a-z, 0-9, _), because it becomes a part of C names"
        )
    if len(name) > LONGEST_NAME or name.lower() == "jitgen":
        raise ValueError(
            f"name={doors.shown(name)}: it has at most {LONGEST_NAME} characters, and is not jitgen"
        )


def named(kernels: Kernels) -> tuple[list[tuple[str, Kernel]], list[tuple[str, Exportable]]]:
    """Kernels and layers, each with its name; of a kernel "" for none."""
    found: tuple[list[tuple[str, Kernel]], list[tuple[str, Exportable]]] = ([], [])
    for name, value in _each(kernels):
        if isinstance(value, Kernel):
            found[0].append((name, value))
        elif isinstance(value, Exportable):
            used = {other for other, _ in found[1]}
            found[1].append((name or own_name(type(value).__name__, used), value))
        else:
            raise TypeError(
                f"kernels: {doors.shown(value)} is no jitgen.Kernel, nor a layer"
            )
    if not any(found):
        raise ValueError(f"kernels={doors.shown(kernels)}: there are none; a library has some")
    return found


def _each(kernels: Kernels) -> Iterator[tuple[str, Any]]:
    """What was asked for, with its names."""
    if isinstance(kernels, (Kernel, Exportable)):
        what = "kernel" if isinstance(kernels, Kernel) else "layer"
        raise TypeError(f"kernels={doors.shown(kernels)} is one {what}; give a list, [{what}]")
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(kernels, Mapping):
        pairs = kernels.items()
    else:
        pairs = (("", kernel) for kernel in doors.items("kernels", kernels))
    for name, value in pairs:
        if not isinstance(name, str):
            raise TypeError(f"kernels: {doors.shown(name)} is no name")
        several = [value] if isinstance(value, _ONE) or not np.iterable(value) else value
        for each in several:
            yield name, each


def own_name(kind: str, used: Collection[str]) -> str:
    """A name for a layer that was given none: what it is called in Python ("MaxPool"), written as
    names in C are, and a number from the second one on."""
    kind = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind).lower().strip("_")
    numbered = (f"{kind}_{i}" for i in range(2, len(used) + 3))
    return next(name for name in (kind, *numbered) if name not in used)


def procedures(
    layers: Iterable[tuple[str, Exportable]], threads: Threads, passes: Passes, weights: Weights,
) -> list[Procedure]:  # fmt: skip
    """The passes of all layers."""
    layers = list(layers)
    names = {name for name, _ in layers}
    baked = dict(doors.mapping("weights", weights)) if weights is not None else {}
    chosen = dict(passes) if isinstance(passes, Mapping) else {}
    counted = dict(threads) if isinstance(threads, Mapping) else {}
    if not isinstance(threads, Mapping):
        threads = check_counts(threads)
    for what, given in (("weights", baked), ("passes", chosen), ("threads", counted)):
        for name in given:
            if name not in names:
                known = ", ".join(sorted(names)) or "none"
                raise ValueError(f"{what}: {doors.shown(name)} is no layer's name ({known})")
    found = []
    for name, layer in layers:
        which = chosen.get(name) if isinstance(passes, Mapping) else passes
        counts = counted.get(name, ONE_THREAD) if isinstance(threads, Mapping) else threads
        found += layer.procedures(name, which, counts, baked.get(name))
    return found
