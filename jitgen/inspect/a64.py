"""A64 and SVE instructions as what they do: a template for each vector form, an operation for each
scalar form that kernels use.

In a template `{0}` is the first operand of the form. Not here: names of operands
(`jitgen.inspect.meaning`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from jitgen.inspect.values import Memory, Register, Scalar
from jitgen.isa.a64 import X16, X17, register_name
from jitgen.isa.a64_rows import SP, XZR
from jitgen.isa.form import Form, Operands

R = Register

#: Mnemonics of vector instructions, with the kinds of operands where those tell them apart.
VECTOR = {
    "ptrue": "{0} = all lanes",
    "whilelo": "{0} = the first {lanes} lanes",
    "dup z imm": "{0} = {1}",
    "dup z z": "{0} = first lane of {1}, broadcast",
    "zip1": "{0} = lower halves of {1} and {2}, in turn",
    "zip2": "{0} = upper halves of {1} and {2}, in turn",
    "lsr z p/m": "{0} = {0} >> {2}, lane by lane",
    "index": "{0} = 0, 1, 2 ... lane by lane",
    "sub": "{0} = {0} - {1}",
    "lsl z z": "{0} = {1} << {2}, lane by lane",
    "lsl z p/m": "{0} = {0} << {2}, lane by lane",
    "fmla": "{0} += {2} * {3}",
    "fmls": "{0} -= {2} * {3}",
    "fmad": "{0} = {0} * {2} + {3}",
    "fadd": "{0} = {1} + {2}",
    "fsub": "{0} = {1} - {2}",
    "fmul": "{0} = {1} * {2}",
    "fmax": "{0} = max({0}, {2})",
    "fmin": "{0} = min({0}, {2})",
    "fdiv": "{0} = {0} / {2}",
    "fdivr": "{0} = {2} / {0}",
    "movprfx": "{0} = {1}",
    "and": "{0} = {1} & {2}",
    "orr": "{0} = {1} | {2}",
    "cmplt": "{0} = {2} < {3}",
    "fcmgt": "{0} = {2} > {3}",
    "fcmgt 0": "{0} = {2} > 0",
    "fsqrt": "{0} = sqrt({2})",
    "sel": "{0} = {2} where {1}, else {3}",
    "orv": "{0} = all lanes of {2} where {1}, or-ed",
    "faddv": "{0} = sum of all lanes of {2}",
    "fmaxv": "{0} = greatest lane of {2}",
    "fmov w s": "{0} = bits of {1}",
    "fmov x d": "{0} = bits of {1}",
    "fmov": "{0} = {1}",
    "ld1": "{0} = {memory}",
    "st1": "{memory} = {0}",
    "ldr": "{0} = {memory}",
    "str": "{memory} = {0}",
    "ld1r": "{0} = {memory}, broadcast",
}


def _memory(base: int, disp: int, size: int) -> Memory:
    return Memory(base, disp, size)


def _branch(condition: str) -> Callable[[int], Scalar]:
    return lambda label: Scalar("branch", text=condition)


def _pair(op: str, letter: str) -> Callable[[int, int, int, int], Scalar]:
    def pair(t: int, u: int, base: int, disp: int) -> Scalar:
        names = [register_name(r) if letter == "x" else f"d{r}" for r in (t, u) if r != XZR]
        return Scalar(op, text=", ".join(names))

    return pair


def _load(size: int) -> Callable[[int, int, int], Scalar]:
    return lambda t, n, i: Scalar("=", t, _memory(n, i, size))


def _store(size: int) -> Callable[[int, int, int], Scalar]:
    return lambda t, n, i: Scalar("store", -1, _memory(n, i, size), R(t))


#: What a scalar form does, by its signature; the operands are those of the form.
SCALAR: dict[str, Callable[..., Scalar]] = {
    "movz x imm lsl imm": lambda d, i, s: Scalar("=", d, i << s),
    "movn x imm lsl imm": lambda d, i, s: Scalar("=", d, ~(i << s)),
    "movk x imm lsl imm": lambda d, i, s: Scalar("insert", d, R(d), i << s, 0xFFFF << s),
    "mov x x": lambda d, m: Scalar("=", d, R(m)),
    "orr x x x lsl imm": lambda d, n, m, s: Scalar("|", d, R(n), R(m), 1 << s),
    "and x x x": lambda d, n, m: Scalar("&", d, R(n), R(m)),
    "and xsp x #-64": lambda d, n: Scalar("&", d, R(n), -64),
    "add xsp xsp imm": lambda d, n, i: Scalar("+", d, R(n), i),
    "add xsp xsp imm lsl #12": lambda d, n, i: Scalar("+", d, R(n), i << 12),
    "add x x x lsl imm": lambda d, n, m, s: Scalar("+", d, R(n), R(m), 1 << s),
    "add xsp xsp x uxtx": lambda d, n, m: Scalar("+", d, R(n), R(m)),
    "sub xsp xsp imm": lambda d, n, i: Scalar("-", d, R(n), i),
    "sub xsp xsp imm lsl #12": lambda d, n, i: Scalar("-", d, R(n), i << 12),
    "sub x x x": lambda d, n, m: Scalar("-", d, R(n), R(m)),
    "sub xsp xsp x uxtx": lambda d, n, m: Scalar("-", d, R(n), R(m)),
    "subs x xsp imm": lambda d, n, i: Scalar("-", d, R(n), i),
    "cmp x x": lambda n, m: Scalar("compare", -1, R(n), R(m)),
    "cmp xsp imm": lambda n, i: Scalar("compare", -1, R(n), i),
    "cmp xsp imm lsl #12": lambda n, i: Scalar("compare", -1, R(n), i << 12),
    "cmn xsp imm": lambda n, i: Scalar("compare", -1, R(n), -i),
    "csel x x x lo": lambda d, n, m: Scalar("below", d, R(n), R(m)),
    "mul x x x": lambda d, n, m: Scalar("*", d, R(n), R(m)),
    "lsr x x imm": lambda d, n, s: Scalar(">>", d, R(n), s),
    "ubfm x x imm imm": lambda d, n, r, s: Scalar("<<", d, R(n), 63 - s),
    "ldr x [xsp imm]": _load(8),
    "ldr w [xsp imm]": _load(4),
    "ldur x [xsp imm]": _load(8),
    "ldur w [xsp imm]": _load(4),
    "ldurh w [xsp imm]": _load(2),
    "ldurb w [xsp imm]": _load(1),
    "str x [xsp imm]": _store(8),
    "str w [xsp imm]": _store(4),
    "stur x [xsp imm]": _store(8),
    "stur w [xsp imm]": _store(4),
    "sturh w [xsp imm]": _store(2),
    "sturb w [xsp imm]": _store(1),
    "stp x x [xsp imm]": _pair("save", "x"),
    "ldp x x [xsp imm]": _pair("restore", "x"),
    "stp d d [xsp imm]": _pair("save", "d"),
    "ldp d d [xsp imm]": _pair("restore", "d"),
    "prfm pldl1keep [xsp imm]": lambda n, i: Scalar("prefetch", -1, _memory(n, i, 1)),
    "adr x label": lambda d, label: Scalar("constants", d),
    "b label": _branch(""),
    "b.eq label": _branch("="),
    "b.ne label": _branch("!="),
    "b.lt label": _branch("<"),
    "cbnz x label": lambda t, label: Scalar("branch", -1, R(t), text="!="),
    "ret": lambda: Scalar("return"),
    "rdvl x imm": lambda d, i: Scalar("unknown", d, text="bytes of a vector register"),
    "fmov w s": lambda d, n: Scalar("unknown", d),
    "fmov x d": lambda d, n: Scalar("unknown", d),
}

STACK_POINTER = SP
#: names of registers that no role has
NAMES = {X16: "x16", X17: "x17", SP: "sp", XZR: "0"}


def template(form: Form, operands: Operands) -> str:
    """What a vector instruction does, with places for its operands; "" if it is not known."""
    return _template(form)


@cache
def _template(form: Form) -> str:
    mnemonic, _, rest = form.signature.partition(" ")
    kinds = " ".join(re.split(r"[.\[]", part)[0] for part in rest.split()[:2])
    if mnemonic.startswith(("ld1", "st1")):
        mnemonic = mnemonic[:-1]
    if "#0.0" in rest:
        return VECTOR[f"{mnemonic} 0"]
    return VECTOR.get(f"{mnemonic} {kinds}") or VECTOR.get(mnemonic) or ""


def mask_of(form: Form, operands: Operands) -> str:
    """Name of the mask that says which lanes are active, or ""."""
    masked = form.mnemonic.startswith(("ld1", "st1")) and form.kinds[1][0] == "p"
    return f"p{operands[1]}" if masked else ""


def mask_source(form: Form, operands: Operands) -> tuple[str, int] | None:
    """(name of the mask that the instruction makes, register with the number of its lanes)."""
    return (f"p{operands[0]}", operands[2]) if form.mnemonic == "whilelo" else None


def memory_operand(form: Form, operands: Operands, vector: int) -> tuple[Memory, bool] | None:
    """(operand, is it a whole vector) if the instruction has one in memory; `vector`: its bytes."""
    if "[xsp" not in form.signature:
        return None
    base, disp = operands[-2:]
    whole = "mul vl" in form.signature
    return Memory(base, disp * (vector if whole else 1)), whole

