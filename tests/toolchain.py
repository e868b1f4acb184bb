"""Compilers and tools that tests run: found or asked for, and silent when all is well.

Not here: any test.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import needs

#: Debian's packages of the tools
PACKAGES = {
    "gcc": "gcc", "g++": "g++", "clang": "clang", "clang++": "clang", "cmake": "cmake",
    "pkg-config": "pkg-config", "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "aarch64-linux-gnu-objdump": "binutils-aarch64-linux-gnu",
    "aarch64-linux-gnu-ld": "binutils-aarch64-linux-gnu", "qemu-aarch64": "qemu-user",
    "qemu-x86_64": "qemu-user",
}  # fmt: skip
#: Warnings that are errors
STRICT = (
    "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion", "-Wsign-conversion", "-Wshadow",
    "-Wcast-qual",
)  # fmt: skip


def tool(name: str) -> str:
    """A tool by name; the test is skipped (fails under CI) if it is not installed."""
    package = PACKAGES.get(name, "binutils")
    needs.need(None if shutil.which(name) else f"{name} is missing: apt-get install {package}")
    return name


def run(
    *command: str | Path, folder: Path | None = None, code: int = 0, input: str | None = None,
    variables: dict[str, str] | None = None,
) -> str:  # fmt: skip
    """What a command prints; it must end with `code` and leave stderr empty."""
    done = subprocess.run(
        [tool(str(command[0])) if "/" not in str(command[0]) else command[0], *command[1:]],
        cwd=folder, capture_output=True, text=True, timeout=120, input=input, env=variables,
        check=False,
    )  # fmt: skip
    told = f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == code, told
    assert not done.stderr, told
    return done.stdout
