"""A library of a few kernels for each architecture, and programs that use it.

Not here: any test or fixture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import needs
from toolchain import STRICT, run

import jitgen

ARCHITECTURES = {"x86_64": ["avx2", "avx512"], "aarch64": ["sve128", "sve256", "sve512", "neon"]}
#: One of each way that a kernel uses the stack, and one with constants
SHAPES: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "leaf": ((4, 8, 16), {}),
    "saves": ((33, 70, 64), {"beta": 1.0, "plan": {"batch_chunk": 1, "k_block": 16}}),
    "packs": ((33, 47, 64), {"trans_b": True}),
    "functions": ((5, 9, 7), {"epilogue": ["bias", "gelu"]}),
}
#: Root of the libraries for AArch64
LOADER = "/usr/aarch64-linux-gnu"


def make(targets: list[str]) -> dict[str, list[jitgen.Kernel]]:
    """Kernels of all SHAPES."""
    return {
        name: [jitgen.brgemm(*size, target=target, **options) for target in targets]
        for name, (size, options) in SHAPES.items()
    }


def need_x86() -> None:
    """What follows runs code for x86-64."""
    runs = any(not jitgen.targets()[name] for name in ARCHITECTURES["x86_64"])
    needs.need(None if runs else "no x86-64 target runs here", installable=False)


def build(folder: Path, compiler: str, source: str, *options: str | Path) -> Path:
    """Compile a program that includes lib1.h from `folder`, without a warning; returns it."""
    language = "c++" if compiler.endswith("++") else "c"
    program = folder / f"program-{abs(hash((compiler, source, options))):x}"
    run(compiler, "-O1", "-x", language, "-", "-x", "none", *STRICT, "-I", folder, "-o", program,
        "-Wl,--fatal-warnings", *options, input=source, folder=folder)  # fmt: skip
    return program


def emulate(program: Path, bits: int, *arguments: str, code: int = 0) -> str:
    """Run a program for AArch64 with SVE vectors of so many bits."""
    length = f"max,sve-default-vector-length={bits // 8}"
    return run("qemu-aarch64", "-L", LOADER, "-cpu", length, program, *arguments, code=code)
