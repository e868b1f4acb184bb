"""What this process holds for later, and giving it back.

Not here: the caches (`jitgen.run.cache`), scratch memory (`jitgen.run.scratch`), memory for code
(`jitgen.run.loader`).
"""

from __future__ import annotations

import sys

from jitgen import isa
from jitgen.isa.form import clear_caches as clear_forms
from jitgen.run import cache, loader, scratch


def clear_caches() -> None:
    """Forget all kernels, streams, plans and cached instruction bytes, and give scratch memory
    back. Kernels and layers that are in use stay as they are; what they forgot they make again.
    """
    for each in cache.ALL:
        each.clear()
    scratch.POOL.clear()
    families = (module for module, _ in isa.FAMILIES.values())
    for name in ("jitgen.isa.x86", "jitgen.isa.a64", *families):
        module = sys.modules.get(name)
        if module is not None:
            clear_forms(module.tables())


def cache_info() -> dict[str, dict[str, int]]:
    """What is held, by kind: "entries" and "bytes", about, and "most_bytes" where there is a bound.

    kernels, code, streams and plans are caches; scratch is idle memory of layers; executable is
    all memory that machine code lies in, which goes when its kernels and layers do.
    """
    held = {each.name: each.info() for each in cache.ALL}
    return held | {"scratch": scratch.POOL.info(), "executable": loader.info()}
