"""Kernels and layers as files: object, static and shared library, assembly source, C header,
manifest."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jitgen.objects.asked import Kernels, Passes, Threads, Weights


def export(
    kernels: Kernels, directory: str | os.PathLike[str], name: str = "kernels", *,
    threads: Threads = (1,), passes: Passes = None, weights: Weights = None,
) -> dict[str, Any]:  # fmt: skip
    """Write `kernels`, kernels, layers and primitives, to `directory` (made if need be) as object,
    static and shared library, assembly source, C header, CMake package, pkg-config file and
    manifest; returns the manifest.

    All are for one architecture; several targets of it may stand in one library, which then chooses
    at run time. The keys of a mapping become the names in C ("": none), where one key may stand for
    a kernel, or a layer, on several targets. Kernels asked for twice are written once. See
    docs/export.md.

    Of layers only: threads, on how many threads C may call a pass, and passes, their names (None:
    all), for all layers or by the layer's name; weights, by the layer's name, arrays by argument
    that are to lie in the library, packed already.

    Raises TypeError or ValueError that names argument, value and rule, OSError where the directory
    cannot be written to. Nothing is written before all is generated.

    >>> import tempfile
    >>> import jitgen
    >>> kernel = jitgen.brgemm(4, 8, 16, target="avx2")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     jitgen.export({"small": kernel}, folder)["kernels"][0]["symbol"]
    'kernels_small_avx2'
    """
    # what only an export needs, `import jitgen` does not load
    from jitgen.objects.library import write_library

    return write_library(kernels, directory, name, threads, passes, weights)
