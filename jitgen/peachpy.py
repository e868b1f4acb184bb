"""PeachPy as a second assembler of x86 kernels: the same Program through its instruction classes.

Every instruction's bytes, branches included, come from PeachPy. Left to our own layout: where
labels lie, which of its lengths a branch takes, the padding of alignments, and constant data. Not
used: PeachPy's functions, register allocation and loader. What PeachPy does not know, or encodes
wrongly, is refused by name.

PeachPy is no dependency, because its only release is for Python 2; Debian and Ubuntu have it as the
package python3-peachpy.
"""

from __future__ import annotations

import copy
import functools
import importlib
import threading
from dataclasses import dataclass
from typing import Any

from jitgen.isa.form import Form, Operands
from jitgen.isa.program import ALIGN, LABEL, SECTION, Program
from jitgen.isa.x86_rows import REGISTERS, Memory
from jitgen.target import Target

#: The mnemonics that PeachPy does not share
MNEMONICS = {"movabs": "MOV"}
#: moves between vector registers that could be written as a store as well
MOVES = ("vmovups", "vmovupd")
#: instructions of AVX-512 that take no mask
UNMASKED = ("kmovw", "vpmovd2m", "vpmovq2m", "vpmovm2d", "vpmovm2q")
#: bits by kind of vector register
VECTOR_BITS = {"xmm": 128, "ymm": 256, "zmm": 512}
#: a value of each immediate that needs the whole field
WIDEST = {"imm8": 127, "uimm8": 255, "imm32": 2**31 - 1, "uimm32": 2**32 - 1, "imm64": 2**63 - 1}
#: what PeachPy raises for operands that none of its forms takes
REFUSALS = (SyntaxError, ValueError, AssertionError)

#: PeachPy has one global stream of instructions, so one thread at a time
_lock = threading.Lock()


class PeachPyMissingError(ImportError):
    """PeachPy cannot be imported; the message says how to get it."""


@dataclass(frozen=True)
class _Library:
    """The modules of PeachPy that are used here."""

    instructions: Any
    registers: Any
    operand: Any
    stream: Any


@functools.lru_cache(maxsize=1)
def _library() -> _Library:
    names = ("x86_64", "x86_64.registers", "x86_64.operand", "stream")
    try:
        return _Library(*(importlib.import_module(f"peachpy.{name}") for name in names))
    except ImportError as error:
        raise PeachPyMissingError(
            f"assembler='peachpy' needs the packages peachpy and six, and importing them failed: "
            f"{error}. Debian and Ubuntu: install python3-peachpy, and make its directory peachpy "
            f"importable here (a directory on PYTHONPATH with a link to it)"
        ) from error


def assemble(program: Program, target: Target) -> bytes:
    """The machine code of a program, its constants behind it, assembled by PeachPy.

    Raises ValueError that names the target, if that is not x86-64, or the instruction that PeachPy
    cannot encode; PeachPyMissingError (an ImportError) where there is no PeachPy.
    """
    if target.architecture != "x86_64":
        raise ValueError(
            f"assembler='peachpy' is for x86-64; target={target.name!r} is {target.architecture}"
        )
    rendered = copy.copy(program)
    rendered.records = [
        (form if form in (LABEL, SECTION, ALIGN) else peachpy_form(form), operands)
        for form, operands in program.records
    ]
    # a function that the caller is building with PeachPy gets nothing of it
    with _lock, _library().stream.NullStream():
        return rendered.encode()


@functools.cache
def peachpy_form(form: Form) -> Form:
    """The same form of an x86 table, with PeachPy as its encoder.

    Its `encode` takes the operands that `form.encode` takes, and raises ValueError, naming the
    form, for an instruction that PeachPy lacks or operands that it cannot encode rightly.
    """
    encode = functools.partial(_encode, form)
    return Form(
        form.signature, form.kinds, form.feature, encode, form.text, form.label_at, form.sizes
    )


def _encode(form: Form, operands: Operands) -> bytes:
    name = MNEMONICS.get(form.mnemonic, form.mnemonic.upper())
    make = getattr(_library().instructions, name, None)
    if make is None:
        raise ValueError(f"PeachPy has no instruction {name}: {form.text(operands)}")
    try:
        return _choose(form, operands, make)
    except REFUSALS as error:
        text = form.signature if form.label_at >= 0 else form.text(operands)
        raise ValueError(f"PeachPy cannot encode {text!r}: {error}") from error


def _choose(form: Form, operands: Operands, make: Any) -> bytes:
    """Of the encodings that PeachPy offers, the one of this form.

    That is the shortest, except that a branch has the length the layout gave it, an immediate the
    width of the form's field, and a move between registers the opcode of a load.
    """
    instruction = make(*_rendered(form, operands))
    code = instruction.encode()
    size = len(code)
    kinds = _kinds(form)
    if form.label_at >= 0:
        size = operands[form.label_at][1]
    elif kinds and kinds[-1] in WIDEST:
        size = len(make(*_rendered(form, _with_widest(kinds, operands))).encode())
    elif form.mnemonic in MOVES and set(kinds) <= set(VECTOR_BITS):
        _, load = instruction.encodings[0]
        code = load(instruction.operands)
        size = len(code)
    if size != len(code):
        code = instruction.encode_length_options().get(size)
    if code is None:
        raise ValueError(f"it offers no encoding of {size} bytes")
    return bytes(code)


def _with_widest(kinds: list[str], operands: Operands) -> Operands:
    """The operands with an immediate that needs its whole field, and without rax among the r64:
    rax has shorter forms, which are rows of their own."""
    last = len(kinds) - 1
    others = [1 if kind == "r64" else operands[i] for i, kind in enumerate(kinds[:last])]
    return (*others, WIDEST[kinds[last]], *operands[last + 1 :])


def _kinds(form: Form) -> list[str]:
    """Operand kinds without '+' and masks."""
    return [kind.replace("+", "").partition("{")[0] for kind in form.kinds]


def _rendered(form: Form, operands: Operands) -> list[Any]:
    """The operands as PeachPy's objects."""
    kinds = _kinds(form)
    found = [
        _operand(kinds, kind, value)
        for kind, value in zip(kinds, operands, strict=False)  # a mask has no kind
    ]
    mask = _mask(form, operands)
    if mask is not None:
        if kinds[0][0] == "m":
            found[0].mask = mask
        else:
            found[0] = _library().registers.MaskedRegister(found[0], mask)
    return found


def _mask(form: Form, operands: Operands) -> Any:
    """The mask of the first operand, or None.

    Every other EVEX instruction gets k0, which means "no mask" (SDM volume 2, 2.7.4): without it
    PeachPy takes VEX where there is one, and encodes the result of a comparison as its mask too.
    """
    registers = _library().registers
    if "{k}" in form.signature:
        return registers.RegisterMask(registers.KRegister(operands[-1]), "{z}" in form.signature)
    evex = "avx512" in form.feature and form.mnemonic not in UNMASKED
    return registers.RegisterMask(registers.k0) if evex else None


def _operand(kinds: list[str], kind: str, value: Any) -> Any:
    library = _library()
    if kind in REGISTERS:
        return getattr(library.registers, REGISTERS[kind][value])
    if kind in ("rel", "rip"):
        distance, size = value
        offset = library.operand.RIPRelativeOffset(distance - size)
        return offset if kind == "rel" else library.operand.MemoryOperand(offset)
    if isinstance(value, tuple):
        return _memory(kinds, kind, value)
    return value


def _memory(kinds: list[str], kind: str, memory: Memory) -> Any:
    library = _library()
    base, index, scale, displacement = memory
    size = int(kind[1:]) // 8 if kind[1:] else None
    broadcast = None
    if kind[0] == "b":
        if displacement:
            # it would scale the displacement by the whole vector, not by the element
            raise ValueError("it gets a broadcast operand with a displacement wrong")
        bits = max(VECTOR_BITS.get(other, 0) for other in kinds)
        broadcast = bits // int(kind[1:])
    general = REGISTERS["r64"]
    address = library.operand.MemoryAddress(
        getattr(library.registers, general[base]),
        None if index is None else getattr(library.registers, general[index]),
        None if index is None else scale,
        displacement,
    )
    return library.operand.MemoryOperand(address, size, None, broadcast)
