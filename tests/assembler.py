"""llvm-mc as the oracle of encodings: texts to bytes, and bytes to texts.

It needs version 19 or later (SVE, and the syntax that pins an encoding). Every function runs the
tool once for a whole batch. Not here: what is compared with it (`test_rows`).
"""

from __future__ import annotations

import functools
import re
import shutil
import struct
import subprocess
from collections.abc import Sequence

OLDEST = 19
_NAMES = ("llvm-mc-22", "llvm-mc-21", "llvm-mc-20", "llvm-mc-19", "llvm-mc")
_FLAGS = {
    "x86_64": ["-triple=x86_64-linux-gnu", "-mattr=+avx512f,+avx512vl,+avx512bw,+avx512dq,+fma"],
    "aarch64": ["-triple=aarch64-linux-gnu", "-mattr=+sve"],
}
_HEADER = {"x86_64": ".intel_syntax noprefix\n", "aarch64": ""}
_ENCODING = re.compile(r"encoding: \[([^\]]*)\]")


class AssemblerError(Exception):
    """llvm-mc refused a text, or answered something unexpected."""


@functools.cache
def find() -> str | None:
    """Path of an llvm-mc that is new enough, or None."""
    for name in _NAMES:
        path = shutil.which(name)
        if path is None:
            continue
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
        version = re.search(r"version (\d+)", answer.stdout)
        if version and int(version[1]) >= OLDEST:
            return path
    return None


def assemble(architecture: str, texts: Sequence[str]) -> list[bytes]:
    """The bytes of each instruction; AssemblerError names those that are refused.

    A text may be two lines: then the bytes of the first count, and the second only follows it.
    """
    answer = _run(architecture, "\n".join(texts) + "\n", "-show-encoding").decode()
    codes = [
        bytes(int(byte, 16) for byte in found.split(",")) for found in _ENCODING.findall(answer)
    ]
    if len(codes) != sum(text.count("\n") + 1 for text in texts):
        raise AssemblerError(f"{len(codes)} encodings for {len(texts)} texts")
    remaining = iter(codes)
    first = []
    for text in texts:
        first.append(next(remaining))
        for _ in range(text.count("\n")):
            next(remaining)
    return first


def assemble_section(architecture: str, text: str) -> bytes:
    """The .text section of a whole program, with its labels resolved."""
    return section(_run(architecture, text, "-filetype=obj"), ".text")


def disassemble(architecture: str, codes: Sequence[bytes]) -> list[str]:
    """The text of each instruction, in LLVM's own spelling."""
    lines = "\n".join(" ".join(f"0x{byte:02x}" for byte in code) for code in codes)
    answer = _run(architecture, lines + "\n", "--disassemble", header=False).decode()
    texts = [line.strip() for line in answer.splitlines() if line.startswith("\t")]
    texts = [text for text in texts if not text.startswith(".")]
    if len(texts) != len(codes):
        raise AssemblerError(f"{len(texts)} texts for {len(codes)} instructions")
    return texts


def _run(architecture: str, text: str, *flags: str, header: bool = True) -> bytes:
    tool = find()
    assert tool is not None, "call find() first"
    head = _HEADER[architecture] if header else ""
    answer = subprocess.run(
        [tool, *_FLAGS[architecture], *flags, "-o", "-"],
        input=(head + text).encode(),
        capture_output=True,
        check=False,
    )
    if answer.returncode or b"error:" in answer.stderr:
        messages = answer.stderr.decode().splitlines()
        raise AssemblerError("\n".join(messages[:40]))
    return answer.stdout


def section(elf: bytes, wanted: str) -> bytes:
    """The contents of a section of an ELF64 object; it must have no relocations."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    at = headers[names][4]
    contents = {}
    for header in headers:
        start = at + header[0]
        name = elf[start : elf.index(b"\0", start)].decode()
        contents[name] = elf[header[4] : header[4] + header[5]]
    if f".rela{wanted}" in contents:
        raise AssemblerError(f"{wanted} has relocations: a label is not resolved")
    return contents[wanted]
