"""Instruction sets: table-driven encoders and the verbs a kernel generator needs.

This package knows instructions and registers, not algorithms; it imports nothing but the
standard library. One file per instruction set holds a table in the manual's own notation and the
binding of the verbs of `jitgen.isa.machine.Machine` to rows of that table.

>>> from jitgen import isa
>>> machine = isa.open_machine("avx2", "f32")
>>> machine.lanes
8
"""

from __future__ import annotations

import importlib
from types import ModuleType

from jitgen.isa.machine import Machine
from jitgen.isa.program import Program

__all__ = ["FAMILIES", "Machine", "Program", "open_machine"]

#: Instruction-set families: name -> (module, architecture). The file name is the registry.
FAMILIES = {
    "avx2": ("jitgen.isa.avx2", "x86_64"),
    "avx512": ("jitgen.isa.avx512", "x86_64"),
    "sve": ("jitgen.isa.sve", "aarch64"),
    "neon": ("jitgen.isa.neon", "aarch64"),
}
_modules: dict[str, ModuleType] = {}


def open_machine(
    name: str, arithmetic: str, vector_bits: int = 0, storage: str | None = None
) -> Machine:
    """A fresh `Machine` of family `name` with an empty program.

    `arithmetic` is the type that it computes in and `storage` that of elements in memory (the same
    if not told), names of `jitgen.isa.types.DTYPES`; `vector_bits` is needed where the family
    leaves it open (SVE). ValueError for what the family has not.
    """
    module = _modules.get(name)  # layers open several when they are made
    if module is None:
        module = _modules[name] = importlib.import_module(FAMILIES[name][0])
    machine: Machine = module.open_machine(arithmetic, vector_bits, storage)
    return machine


if __name__ == "isa":  # a checkout's folder, imported by its own name
    from jitgen import moved

    moved.same_as_ours("isa")
