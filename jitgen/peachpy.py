"""PeachPy as a second assembler of x86 kernels: the same Program through its instruction classes.

Every instruction's bytes, branches included, come from PeachPy. Left to our own layout: where
labels lie, which of its lengths a branch takes, the padding of alignments, and constant data. Not
used: PeachPy's functions, register allocation and loader. What PeachPy does not know, or encodes
wrongly, is refused by name.

PeachPy is no dependency: its only release does not run under Python 3. Debian and Ubuntu have it
as the package python3-peachpy.
"""

from __future__ import annotations

import copy
import functools
import importlib
from typing import Any

from isa.form import Form, Operands
from isa.program import Program
from isa.x86_rows import REGISTERS, Memory
from jitgen.target import Target

#: width in bits by vector register
VECTOR_BITS = {"xmm": 128, "ymm": 256, "zmm": 512}
#: bytes of the immediates that PeachPy would write shorter where their value allows
IMMEDIATE_BYTES = {"imm32": 4, "imm64": 8}
#: our names that PeachPy does not share
MNEMONICS = {"movabs": "MOV"}


class PeachPyMissingError(ImportError):
    """PeachPy cannot be imported: the message says how to get it."""


def assemble(program: Program, target: Target) -> bytes:
    """The machine code of a program with its constants behind it, assembled by PeachPy.

    Raises ValueError that names the target, if that is not x86, or the instruction that PeachPy
    cannot encode; PeachPyMissingError (an ImportError) without PeachPy.
    """
    if target.architecture != "x86_64":
        raise ValueError(
            f"assembler='peachpy' is for x86-64; target={target.name!r} is {target.architecture}"
        )
    registers, _, _ = _peachpy()
    assert registers is not None
    rendered = copy.copy(program)
    # labels and alignments have no mnemonic of an instruction and stay as they are
    rendered.records = [
        (peachpy_form(form) if _is_instruction(form) else form, operands)
        for form, operands in program.records
    ]
    return rendered.encode()
