"""One table row, parsed: what both architectures share of an instruction's description.

A `Form` is one encodable shape of an instruction. An emitted instruction is a plain tuple
`(form, operands)`; its bytes are cached per operand tuple, because a kernel repeats a few hundred
encodings. Not here: how a row is written and encoded; see `jitgen.isa.x86_rows` and
`jitgen.isa.a64_rows`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Operands of one instruction: register numbers, immediates, memory tuples, labels.
Operands = tuple[Any, ...]
Record = tuple["Form", Operands]

#: Kinds of operands that are registers -> the bank of registers that they are of, and how many
#: bytes of one they stand for (0: the machine says how wide its vectors and masks are)
REGISTER_KINDS = {
    **dict.fromkeys(("r64", "rax", "x", "xsp"), ("general", 8)),
    "r32": ("general", 4), "w": ("general", 4), "r16": ("general", 2), "r8": ("general", 1),
    "zmm": ("vector", 64), "ymm": ("vector", 32), "xmm": ("vector", 16), "z": ("vector", 0),
    "v": ("vector", 16), "q": ("vector", 16), "d": ("vector", 8), "s": ("vector", 4),
    "k": ("mask", 8), "p": ("mask", 0),
}  # fmt: skip
#: Encodings that a form keeps; beyond that it begins anew
CACHE_SIZE = 4096


class EncodingError(ValueError):
    """An operand does not fit its field: the message names row, operand and rule."""


class Form:
    """One encodable shape of an instruction.

    `signature` is the unique name ("vaddps ymm ymm m256"), `kinds` the operand kinds in the
    manual's order ('+' marks an operand that is read and written), `feature` the CPU feature it
    needs. `label_at` is the index of a label operand, or -1. `meaning` is what the instruction
    does, with places for its operands ("{0} = {1} + {2}"; {memory} is the one in memory), where its
    table says it.
    """

    __slots__ = (
        "cache", "encode", "feature", "kinds", "label_at", "meaning", "mnemonic", "signature",
        "sizes", "text",
    )  # fmt: skip

    def __init__(
        self,
        signature: str,
        kinds: tuple[str, ...],
        feature: str,
        encode: Callable[[Operands], bytes],
        text: Callable[[Operands], str],
        label_at: int = -1,
        sizes: tuple[int, ...] = (),
        meaning: str = "",
    ) -> None:
        self.signature = signature
        self.mnemonic = signature.split()[0] if signature else ""
        self.kinds = kinds
        self.feature = feature
        self.encode = encode
        self.text = text
        self.label_at = label_at
        #: for a branch: the lengths it may take, shortest first
        self.sizes = sizes
        self.meaning = meaning
        self.cache: dict[Operands, bytes] = {}

    def __repr__(self) -> str:
        return f"Form({self.signature!r})"


def clear_caches(tables: list[dict[str, Form]]) -> None:
    """Forget all cached bytes (to measure cold generation)."""
    for table in tables:
        for form in table.values():
            form.cache.clear()
