"""Operands to try a row of an instruction table with: corners of every operand, and random ones.

`operands_of` gives valid operand tuples, `bad_operands_of` tuples with one operand out of range.
The corners follow from the operand kinds of a form, not from how it is encoded.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from jitgen.isa.a64_rows import SP, XZR
from jitgen.isa.form import Form

RANDOM_CASES = 6
REGISTERS = (0, 7, 8, 15, 16, 31)
_GENERAL = (0, 3, 4, 5, 7, 8, 12, 13, 15)
_IMMEDIATES = {
    "imm8": (0, 1, -1, 127, -128),
    "uimm8": (0, 1, 127, 128, 255),
    "imm32": (0, 1, -1, 127, 128, -128, -129, 2**31 - 1, -(2**31)),
    "uimm32": (0, 1, 2**31 - 1, 2**31, 2**32 - 1),
    "imm64": (0, 1, -1, 2**31, -(2**31) - 1, 2**63 - 1, -(2**63), 2**64 - 1),
}
_DISPLACEMENTS = (0, 1, -1, 127, 128, -128, -129, 2**31 - 1, -(2**31))
_MULTIPLES = (1, -1, 127, 128, -128, -129)  # of what a displacement may be compressed by


def kinds_of(form: Form) -> list[str]:
    """Operand kinds without decoration; a mask operand is "mask"."""
    kinds = [kind.rstrip("+").partition("{")[0].rstrip("+") for kind in form.kinds]
    return kinds + ["mask"] * ("{k}" in form.signature)


def is_memory(kind: str) -> bool:
    """Is this the kind of an x86 memory operand?"""
    return kind[0] in "mb" and kind != "mask"


def corners_x86(form: Form, kind: str) -> list[Any]:
    """Every corner of an operand of an x86 form."""
    if kind in _IMMEDIATES:
        return list(_IMMEDIATES[kind])
    if kind == "mask":
        return [1, 7]
    if kind == "k":
        return [0, 1, 7]
    if kind == "rax":
        return [0]
    if kind[0] == "r":
        return list(_GENERAL)
    if is_memory(kind):
        return _memories(int(kind[1:] or 8) // 8)
    high = 32 if is_evex(form) else 16
    return [r for r in REGISTERS if r < high]


def is_evex(form: Form) -> bool:
    """Does the form need AVX-512 (except the mask moves, which have the VEX encoding)?"""
    return "avx512" in form.feature and not form.signature.startswith("kmov")


def _memories(size: int) -> list[tuple[int, int | None, int, int]]:
    bases = (*_GENERAL, 14)
    indexes = (0, 3, 5, 7, 8, 12, 13, 15)
    found: list[tuple[int, int | None, int, int]] = []
    found += [(base, None, 1, disp) for base in bases for disp in (0, 8)]
    found += [(base, index, 1, 0) for base in (0, 4, 5, 12, 13) for index in indexes]
    found += [(8, 9, scale, 64) for scale in (1, 2, 4, 8)]
    found += [(base, None, 1, disp) for base in (1, 12) for disp in _DISPLACEMENTS]
    found += [(13, 4 + 8, 8, disp) for disp in _DISPLACEMENTS]
    found += [(2, None, 1, n * size) for n in _MULTIPLES]
    found += [(2, None, 1, n * 64) for n in _MULTIPLES]
    found += [(2, None, 1, n * size + size // 2) for n in (1, 127) if size > 1]
    return found


def corners_a64(kind: str, limits: tuple[int, int, int]) -> list[int]:
    """Every corner of an operand of an A64 form; limits: smallest, largest, unit."""
    low, high, unit = limits
    if kind == "imm":
        wanted = {low, low + unit, -unit, 0, unit, high - unit, high}
        return sorted(value for value in wanted if low <= value <= high)
    if kind == "x" or kind == "w":
        return [0, 7, 8, 15, 16, 30, XZR]
    if kind == "xsp":
        return [0, 7, 8, 15, 16, 30, SP]
    return [r for r in (0, 7, 8, 15, 16, 31) if r <= high]


def combine(
    corners: Sequence[Sequence[Any]], distinct: bool, generator: random.Random
) -> Iterator[tuple[Any, ...]]:
    """Every corner of every operand at least once, among random corners of the others.

    distinct: no other operand of a tuple is the same number as the first (registers of a pair; the
    zero register and the stack pointer have one code).
    """
    if not corners:
        yield ()
        return
    forced = [(i, value) for i, values in enumerate(corners) for value in values]
    forced += [(0, generator.choice(corners[0])) for _ in range(RANDOM_CASES)]
    for i, value in forced:
        while True:
            operands = [generator.choice(values) for values in corners]
            operands[i] = value
            if not distinct or operands[0] not in operands[1:]:
                break
        yield tuple(operands)


def beyond_x86(form: Form, kind: str) -> list[Any]:
    """Values that an operand of an x86 form must not take."""
    if kind in _IMMEDIATES:
        low, high = min(_IMMEDIATES[kind]), max(_IMMEDIATES[kind])
        return [low - 1, high + 1]
    if kind == "mask":
        return [-1, 0, 8]
    if kind == "k":
        return [-1, 8]
    if is_memory(kind):
        memory = [(16, None, 1, 0), (-1, None, 1, 0), (0, 4, 1, 0), (0, 16, 1, 0), (0, -1, 1, 0)]
        return [*memory, (0, 1, 3, 0), (0, None, 1, 2**31), (0, None, 1, -(2**31) - 1)]
    if kind == "rax":
        return [-1, 1]
    return [-1, 32 if kind[0] != "r" and is_evex(form) else 16]


def beyond_a64(kind: str, limits: tuple[int, int, int]) -> list[int]:
    """Values that an operand of an A64 form must not take."""
    low, high, unit = limits
    if kind == "imm":
        return [low - unit, high + unit] + ([low + 1, 1] if unit > 1 else [])
    if kind in ("x", "w"):
        return [-1, SP, XZR + 1]
    if kind == "xsp":
        return [-1, XZR, XZR + 1]
    return [-1, high + 1]
