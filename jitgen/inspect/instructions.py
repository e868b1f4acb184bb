"""What an emitted instruction asks of a core: its kind, registers, memory access and width.

It is read off the instruction's row: mnemonic and operand kinds. Not here: what a given core makes
of it (`jitgen.analysis.cpus`, `jitgen.analysis.core`).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from jitgen.isa.a64_rows import XZR
from jitgen.isa.form import REGISTER_KINDS, Form, Record
from jitgen.isa.x86_rows import IMMEDIATE_BYTES

#: Kinds of instructions, in the order of reports; a multiply-accumulate with a memory operand
#: counts as FMA and, beside, as a load or broadcast
FMA, LOAD, BROADCAST, STORE, INTEGER, BRANCH, OTHER = KINDS = (
    "FMA", "load", "broadcast", "store", "integer", "branch", "other",
)  # fmt: skip
#: Numbers of vector and mask registers begin here; general-purpose ones have their own
VECTOR, MASK = 100, 200

#: Kinds of registers -> where their numbers begin; a kind that is not here is an error
FIRST = {
    kind: {"general": 0, "vector": VECTOR, "mask": MASK}[bank]
    for kind, (bank, _) in REGISTER_KINDS.items()
}
#: Kinds that are none, or that name no register but the one that the instruction always takes
_OTHERS = (*IMMEDIATE_BYTES, "rel", "rip", "cl", "imm", "label")
_BITS = {"xmm": 128, "ymm": 256, "zmm": 512}
_BRANCHES = re.compile(r"j\w+|b(\..*)?|cbn?z|ret|call")
_FMA = re.compile(r"vfn?madd\w+|fml[as]|fmad")
_BROADCAST = re.compile(r"vbroadcast\w+|vmovddup|ld1r[wd]")
#: operation of a vector instruction, which decides its unit and latency
_OPERATIONS = (
    ("mul", re.compile(r"vmulp.|fmul")),
    ("add", re.compile(r"v(add|sub)p.|fadd|fsub")),
    ("div", re.compile(r"vdivp.|fdivr?|vsqrtp.|fsqrt")),
)
_COMPARES = ("cmp", "cmn", "test")
#: They take a load port and give nothing
_PREFETCHES = ("prefetcht0", "prfm")


class Memory(NamedTuple):
    """A memory operand: base register (-1: the code itself), displacement and size in bytes."""

    base: int
    displacement: int
    bytes: int


class Instruction(NamedTuple):
    """One instruction. `operation` is "fma", "mul", "add", "div", "logic" for those on vectors,
    else "integer", "branch", "move" or "nop" ("move": renamed, no unit); `bits` its vector width.
    `loads` and `stores` are at most one memory operand each."""

    kind: str
    operation: str
    bits: int
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    load: Memory | None
    store: Memory | None
    #: "load" or "broadcast" where there is a memory operand to read
    load_kind: str
    accumulator: int  # the register that an FMA adds to, or -1


def read_record(record: Record, architecture: str, vector_bytes: int) -> Instruction:
    """The instruction of a record; `vector_bytes` is the size of an SVE register."""
    form, operands = record
    if architecture == "x86_64":
        return _x86(form, operands)
    return _a64(form, operands, vector_bytes)


# ---- x86 ----------------------------------------------------------------------------------------


def _x86(form: Form, operands: tuple[object, ...]) -> Instruction:
    reads: list[int] = []
    writes: list[int] = []
    memory: Memory | None = None
    stores = False
    bits = 0
    name = form.mnemonic
    for i, (kind, value) in enumerate(zip(form.kinds, operands, strict=False)):
        base = re.sub(r"[+{].*", "", kind)
        if isinstance(value, tuple):
            pointer, index, _, displacement = value
            reads += [r for r in (pointer, index) if r is not None]
            size = int(base[1:] or 0) // 8 if base[0] in "mb" else 0
            memory = Memory(pointer, displacement, size)
            stores = i == 0
        elif base not in _OTHERS:
            assert isinstance(value, int)
            number = value + FIRST[base]
            bits = max(bits, _BITS.get(base, 0))
            if i or "+" in kind or name in _COMPARES or name == "push":
                reads.append(number)
            if (not i and name not in _COMPARES and name != "push") or "+" in kind:
                writes.append(number)
    return _finish(
        name, reads, writes, memory if name != "lea" else None, stores, bits,
        any(k.startswith("b") and k[1:].isdigit() for k in form.kinds),
    )  # fmt: skip


# ---- A64 ----------------------------------------------------------------------------------------


def _a64(form: Form, operands: tuple[object, ...], vector_bytes: int) -> Instruction:
    reads: list[int] = []
    writes: list[int] = []
    name = form.mnemonic
    store = name.startswith("st")
    vector = False
    bits = 0
    for i, (kind, value) in enumerate(zip(form.kinds, operands, strict=False)):
        base = kind.rstrip("+")
        if base in _OTHERS or value == XZR:
            continue
        assert isinstance(value, int)
        vector = vector or FIRST[base] == VECTOR
        if base == "z":
            bits = 8 * vector_bytes
        number = value + FIRST[base]
        written = i == 0 and not store and name not in (*_COMPARES, "cbnz", "cbz", "prfm")
        written = written or (i == 1 and name == "ldp")
        if written:
            writes.append(number)
        if not written or "+" in kind:
            reads.append(number)
    memory = None
    if "[xsp" in form.signature:
        registers = list(zip(form.kinds, operands, strict=False))
        pointer = next(v for k, v in registers if k.startswith("xsp"))
        step = next((v for k, v in registers if k.startswith("imm")), 0)
        assert isinstance(pointer, int) and isinstance(step, int)
        broadcast = _BROADCAST.fullmatch(name)
        _, size = REGISTER_KINDS[form.kinds[0]]
        if not size:
            size = vector_bytes if not broadcast else 4 if name == "ld1rw" else 8
        if name in ("ldp", "stp"):
            size *= 2
        memory = Memory(pointer, step * (vector_bytes if "mul vl" in form.signature else 1), size)
    return _finish(name, reads, writes, memory, store, bits or 128 * vector, False)


# ---- both ---------------------------------------------------------------------------------------


def _finish(
    name: str, reads: list[int], writes: list[int], memory: Memory | None, stores: bool, bits: int,
    embedded_broadcast: bool,
) -> Instruction:  # fmt: skip
    load, store = (None, memory) if stores else (memory, None)
    accumulator = -1
    if name in ("push", "pop"):
        stack = Memory(4, 0, 8)
        load, store = (stack, None) if name == "pop" else (None, stack)
    if _FMA.fullmatch(name):
        kind, operation = FMA, "fma"
        if name not in ("fmad",) and "213" not in name:
            accumulator = writes[0]
    elif _BRANCHES.fullmatch(name):
        kind, operation = BRANCH, "branch"
    elif memory is not None and name in _PREFETCHES:
        return Instruction(
            OTHER, "move", 0, tuple(reads), (), memory._replace(bytes=0), None, "", -1
        )  # fmt: skip
    elif name == "nop":
        kind, operation = OTHER, "nop"
    elif bits:
        operation = next((o for o, p in _OPERATIONS if p.fullmatch(name)), "logic")
        kind = OTHER
        if load is not None and name.startswith(("vmov", "vmask", "vbroadcast", "ld")):
            kind, operation = LOAD, "move"
        elif store is not None:
            kind, operation = STORE, "logic" if name.startswith("vextract") else "move"
        elif name in ("vpxord", "vxorps") and len(set(reads)) == 1:
            reads, operation = [], "move"  # a zeroing idiom waits for nothing
        elif name == "vmovups":
            operation = "move"
    else:
        kind, operation = INTEGER, "integer"
        if name == "xor" and len(set(reads + writes)) == 1:
            reads, operation = [], "move"
        elif name == "mov" and load is None and store is None:
            operation = "move"
        elif load is not None or store is not None:
            operation = "move"
            kind = STORE if store is not None else LOAD
    load_kind = ""
    if load is not None:
        load_kind = BROADCAST if embedded_broadcast or _BROADCAST.fullmatch(name) else LOAD
        if kind == LOAD:
            kind = load_kind
    return Instruction(
        kind, operation, bits, tuple(dict.fromkeys(reads)), tuple(dict.fromkeys(writes)), load,
        store, load_kind, accumulator,
    )  # fmt: skip
