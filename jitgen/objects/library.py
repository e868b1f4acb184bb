"""`jitgen.export`: kernels and layers to a folder of files that C, C++, CMake, Rust or Go programs
can use.

Not here: what was asked for (`jitgen.objects.asked`), what stands in the files
(`jitgen.objects.parts`, `header`, `assembly`, `packages`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jitgen import doors
from jitgen.inspect.listing import describe
from jitgen.objects import asked
from jitgen.objects.assembly import source
from jitgen.objects.entry import Group
from jitgen.objects.header import header
from jitgen.objects.packages import package_files
from jitgen.objects.parts import Library
from jitgen.objects.procedure import Procedure
from jitgen.objects.prototypes import Function, functions
from jitgen.objects.table import ABI, Exported, Product, flags, group, name_kernels
from jitgen.target import Target
from jitgen.version import __version__

#: The manifest's own version: raised when a field changes its meaning or goes away
MANIFEST = 1


def write_library(
    kernels: asked.Kernels, directory: str | os.PathLike[str], name: str, threads: asked.Threads,
    passes: asked.Passes, weights: asked.Weights,
) -> dict[str, Any]:  # fmt: skip
    """See `jitgen.export`."""
    asked.check_name(name)
    directory = doors.path("directory", directory)
    plain, layers = asked.named(kernels)
    products = group(plain)
    exported = name_kernels(name, products)
    found = functions(asked.procedures(layers, threads, passes, weights))
    procedures = [(each.symbol(name, p), p) for each in found for p in each.procedures]
    _check_symbols(exported, procedures)
    _check_names(name, exported, products, found)
    architecture = _architecture(
        [*(each.kernel.target for each in exported), *(p.target for _, p in procedures)]
    )
    generator = f"jitgen {__version__}"
    library = Library(name, architecture, exported, procedures, generator)
    text = header(name, architecture, products, exported, found, generator)
    files: dict[str, bytes] = {
        f"{name}.o": library.object(),
        f"lib{name}.a": library.archive(),
        f"lib{name}.so": library.shared(),
        f"{name}.s": source(library).encode(),
        f"{name}.h": text.encode(),
    }
    for file, package in package_files(name, architecture, generator, __version__).items():
        files[file] = package.encode()
    manifest = {
        "manifest": MANIFEST, "generator": generator, "abi": ABI, "name": name,
        "architecture": architecture,
        "files": {file: hashlib.sha256(data).hexdigest() for file, data in files.items()},
        "kernels": [_described(each, products[each.product]) for each in exported],
        "layers": _layers(name, found, library.groups),
    }  # fmt: skip
    files[f"{name}.json"] = (json.dumps(manifest, indent=1) + "\n").encode()
    _write(Path(directory), files)
    return manifest


def _check_symbols(
    kernels: Sequence[Exported], procedures: Sequence[tuple[str, Procedure]]
) -> None:
    """Raise ValueError if a kernel and a pass of a layer have one symbol."""
    twice = {each.symbol for each in kernels} & {symbol for symbol, _ in procedures}
    if twice:
        raise ValueError(f"kernels: {min(twice)} is a kernel and a pass of a layer; name one of "
                         "them otherwise")  # fmt: skip


def _check_names(
    library: str, kernels: Sequence[Exported], products: Sequence[Product],
    found: Sequence[Function],
) -> None:  # fmt: skip
    """Raise ValueError if the header would define a name twice."""
    of_all = [f"{library}_{word}" for word in ("find", "get", "library", "product", "table")]
    names = [*of_all, f"{library.upper()}_H", *(each.symbol for each in kernels)]
    names += [f"{library}_{name}".upper() for each in products for name in each.names]
    names += [name for function in found for name in function.names(library)]
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} would stand for two things in {library}.h; let a kernel, a "
                         "layer or an array have another name")  # fmt: skip


def _architecture(used: Sequence[Target]) -> str:
    targets = {target.architecture: target.name for target in used}
    if len(targets) > 1:
        found = " and ".join(f"{a} ({target})" for a, target in targets.items())
        raise ValueError(
            f"kernels are for {found}: a library is for one architecture; export two libraries"
        )
    return next(iter(targets))


def _described(exported: Exported, product: Product) -> dict[str, Any]:
    """What the manifest says of a kernel."""
    kernel = exported.kernel
    spec = {k: _finite(v) for k, v in kernel.spec.described().items()}
    plan = asdict(kernel.plan)
    return {
        "symbol": exported.symbol, "product": exported.product, "names": product.names,
        "target": kernel.target.name, "vector_bits": kernel.target.vector_bits,
        "features": list(kernel.target.features), "computes": describe(kernel.spec),
        "spec": spec, "flags": flags(kernel.spec), "plan": plan,
        "code_bytes": len(kernel.code), "sha256": hashlib.sha256(kernel.code).hexdigest(),
    }  # fmt: skip


def _layers(library: str, found: Sequence[Function], groups: Sequence[Group]) -> list[Any]:
    """What the manifest says of passes of layers."""
    each_on_target = [(function, p) for function in found for p in function.procedures]
    return [
        {
            "symbol": function.symbol(library, p), "function": f"{library}_{function.name}",
            "target": p.target.name, "vector_bits": p.target.vector_bits,
            "features": list(p.target.features), "computes": p.computes,
            "threads": list(p.threads),
            "arguments": [{**a._asdict(), "shape": list(a.shape)} for a in p.arguments],
            "scratch_bytes": p.scratch_bytes,
            "code_bytes": sum(len(code.code) for code in made.codes),
            "data_bytes": sum(len(data.data) for data in made.data),
        }
        for (function, p), made in zip(each_on_target, groups, strict=True)
    ]  # fmt: skip


def _finite(value: Any) -> Any:
    """JSON knows no infinity: a clip without an end has "inf" or "-inf"."""
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return str(value) if value in (float("inf"), float("-inf")) else value


def _write(directory: Path, files: Mapping[str, bytes]) -> None:
    """Each file appears whole: a program that runs an older library keeps it."""
    directory.mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        new = directory / f".{file}.{os.getpid()}"
        try:
            new.write_bytes(data)
            new.replace(directory / file)
        finally:
            new.unlink(missing_ok=True)
