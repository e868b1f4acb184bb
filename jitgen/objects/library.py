"""`jitgen.export`: kernels to a folder of files that C, C++, CMake, Rust or Go programs can use.

Not here: what stands in the files (`jitgen.objects.parts`, `header`, `assembly`, `packages`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from jitgen import doors
from jitgen.gemm.kernel import Kernel
from jitgen.inspect.listing import describe
from jitgen.objects.assembly import source
from jitgen.objects.header import header
from jitgen.objects.packages import package_files
from jitgen.objects.parts import Library
from jitgen.objects.table import (
    ABI,
    LONGEST_NAME,
    Exported,
    Product,
    flags,
    group,
    name_kernels,
)  # fmt: skip
from jitgen.version import __version__

#: What is no sequence of kernels, though it may be iterated
_ONE = (Kernel, str, np.generic)
#: The manifest's own version: raised when a field changes its meaning or goes away
MANIFEST = 1


def write_library(
    kernels: Iterable[Kernel] | Mapping[str, Kernel | Iterable[Kernel]],
    directory: str | os.PathLike[str],
    name: str,
) -> dict[str, Any]:
    """See `jitgen.export`."""
    _check_name(name)
    directory = doors.path("directory", directory)
    products = group(_named(kernels))
    if not products:
        raise ValueError(f"kernels={doors.shown(kernels)}: there are none; a library has some")
    exported = name_kernels(name, products)
    architecture = _architecture(exported)
    generator = f"jitgen {__version__}"
    library = Library(name, architecture, exported, generator)
    files: dict[str, bytes] = {
        f"{name}.o": library.object(),
        f"lib{name}.a": library.archive(),
        f"lib{name}.so": library.shared(),
        f"{name}.s": source(library).encode(),
        f"{name}.h": header(name, architecture, products, exported, generator).encode(),
    }
    for file, text in package_files(name, architecture, generator, __version__).items():
        files[file] = text.encode()
    manifest = {
        "manifest": MANIFEST, "generator": generator, "abi": ABI, "name": name,
        "architecture": architecture,
        "files": {file: hashlib.sha256(data).hexdigest() for file, data in files.items()},
        "kernels": [_described(each, products[each.product]) for each in exported],
    }  # fmt: skip
    files[f"{name}.json"] = (json.dumps(manifest, indent=1) + "\n").encode()
    _write(Path(directory), files)
    return manifest


def _check_name(name: Any) -> None:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", doors.text("name", name)):
        raise ValueError(
            f"name={doors.shown(name)}: it begins with a letter and has letters, digits and "
            "underscores (A-Z, a-z, 0-9, _), because it becomes a part of C names"
        )
    if len(name) > LONGEST_NAME or name.lower() == "jitgen":
        raise ValueError(
            f"name={doors.shown(name)}: it has at most {LONGEST_NAME} characters, and is not jitgen"
        )


def _named(
    kernels: Iterable[Kernel] | Mapping[str, Kernel | Iterable[Kernel]],
) -> Iterator[tuple[str, Kernel]]:
    """Kernels with their names, "" for none."""
    if isinstance(kernels, Kernel):
        raise TypeError(f"kernels={doors.shown(kernels)} is one kernel; give a list, [kernel]")
    named: Iterable[tuple[Any, Any]]
    if isinstance(kernels, Mapping):
        named = kernels.items()
    else:
        named = (("", kernel) for kernel in doors.items("kernels", kernels))
    for name, value in named:
        if not isinstance(name, str):
            raise TypeError(f"kernels: {doors.shown(name)} is no name")
        several = [value] if isinstance(value, _ONE) or not np.iterable(value) else value
        for kernel in several:
            if not isinstance(kernel, Kernel):
                raise TypeError(f"kernels: {doors.shown(kernel)} is no jitgen.Kernel")
            yield name, kernel


def _architecture(exported: Sequence[Exported]) -> str:
    targets = {each.kernel.target.architecture: each.kernel.target.name for each in exported}
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
