"""A kernel as assembly language that assembles to its very bytes, with llvm-mc (19 or later) and
GNU as.

Where an assembler would choose another encoding, a prefix such as {evex} or {disp32} pins the
kernel's; every emitted form can be pinned, so there are no instructions written as bytes. Not here:
listings for the eye (`jitgen.inspect.listing`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from jitgen.gemm.emitted import EmittedKernel
from jitgen.inspect.listing import describe
from jitgen.inspect.unwind import sleb, uleb
from jitgen.isa.form import Form, Operands
from jitgen.isa.program import ALIGN, DATA_ALIGN, Line, Program
from jitgen.isa.x86 import NOPS
from jitgen.isa.x86_rows import REGISTERS

if TYPE_CHECKING:
    from jitgen.emit.routine import Routine
    from jitgen.inspect.unwind import Row

SYNTAXES = ("intel", "att")
#: what each recommended no-operation is (jitgen.isa.x86.NOPS): prefix, AT&T suffix, operand
_NOPS = (
    ("", "", ""), ("", "", "xchg"), ("", "l", "rax"), ("{disp8} ", "l", "rax"),
    ("{disp8} ", "l", "rax + rax"), ("{disp8} ", "w", "rax + rax"), ("{disp32} ", "l", "rax"),
    ("{disp32} ", "l", "rax + rax"), ("{disp32} ", "w", "rax + rax"),
)  # fmt: skip


def assembly(
    kernel: Routine, symbol: str, syntax: str = "intel",
    cfi: Callable[[Routine], Iterable[Row]] | None = None, exported: bool = True,
    constants: bool = True,
) -> str:  # fmt: skip
    """The kernel as a function `symbol` (a global one, if it is exported) in section .text: the
    bytes are `kernel.code`; without `constants` the text ends with the label of these, for whoever
    writes them.

    syntax: "intel" or "att", for x86 ("intel" elsewhere, where there is only one). cfi gives the
    rows of unwind information (`jitgen.inspect.unwind.rows`), written as .cfi directives. Labels
    are local, so one file can hold many kernels; the section stays .text.

    Raises ValueError for other syntaxes, for what is no symbol, and for a kernel whose code another
    assembler made.
    """
    x86 = kernel.target.architecture == "x86_64"
    if syntax not in SYNTAXES:
        raise ValueError(f"syntax={syntax!r} is neither 'intel' nor 'att'")
    if syntax == "att" and not x86:
        raise ValueError(f"syntax='att' is for x86; {kernel.target.name} has one syntax only")
    if not re.fullmatch(r"[A-Za-z_.$][\w.$]*", symbol, re.ASCII):
        raise ValueError(f"symbol={symbol!r} is no name that assemblers take")
    program = kernel.program
    if program.encode() != kernel.code:
        raise ValueError("the code is another assembler's, whose choices cannot be written down")
    writer = _Writer(symbol, syntax, None if x86 else kernel.target.features, exported)
    what = f"{kernel.name} for {kernel.target.name}"
    if isinstance(kernel, EmittedKernel):
        spec = kernel.spec
        what = f"{spec.m} x {spec.n} x {spec.k} {spec.dtype} for {kernel.target.name}: "
        what += describe(spec)
    out = [
        f"{writer.comment} {what}",
        f"{writer.comment} int64_t {symbol}(const void *args), see docs/abi.md; "
        f"{len(kernel.code)} bytes",
        *writer.begin(),
    ]
    directives = _directives(cfi(kernel)) if cfi is not None else {}
    if cfi is not None:
        out.append("    .cfi_startproc")
    end = 0
    own = len(kernel.code) - (0 if constants else program.constant_bytes)
    for line in program.lines():
        if line.offset >= own:
            break
        if line.offset > end:  # .balign would fill with no-operations: the code comes before it
            out.append(f"    .zero {line.offset - end}")
        end = line.offset + len(line.code)
        if line.kind == "instruction":
            out += [f"    {text}" for text in directives.pop(line.offset, ())]
        out += writer.line(line)
    if cfi is not None:
        out.append("    .cfi_endproc")
    out += writer.end()
    if not constants:
        out += ["    .balign 64, 0", writer.label(program.data_label)]
    elif not program.constant_bytes and _refers(program, program.data_label):
        # a register points at constants, of which there are none
        place = -(-len(kernel.code) // DATA_ALIGN) * DATA_ALIGN
        label = writer.label(program.data_label).rstrip(":")
        out.append(f"    .set {label}, {symbol} + {place}")
    return "\n".join(out) + "\n"


def _refers(program: Program, label: int) -> bool:
    """Whether an instruction refers to a label."""
    return any(form.label_at >= 0 and of[form.label_at] == label for form, of in program.records)


class _Writer:
    """features: what a target of A64 needs beyond ARMv8-A; None: x86."""

    def __init__(
        self, symbol: str, syntax: str, features: tuple[str, ...] | None, exported: bool
    ) -> None:
        self.symbol, self.exported, self.features = symbol, exported, features
        self.x86 = features is None
        self.att = syntax == "att"
        self.comment = "#" if self.x86 else "//"

    def begin(self) -> list[str]:
        kind = "@function" if self.x86 else "%function"
        extensions = "+".join(["armv8-a", *(self.features or ())])
        architecture = [] if self.x86 else [f"    .arch {extensions}"]
        syntax = ["    .intel_syntax noprefix"] if self.x86 and not self.att else []
        exported = [f"    .globl {self.symbol}"] if self.exported else []
        return [
            *architecture, "    .text", *exported,
            f"    .type {self.symbol}, {kind}", "    .p2align 6", f"{self.symbol}:", *syntax,
        ]  # fmt: skip

    def end(self) -> list[str]:
        # in Intel syntax a symbol such as k1 would be a register
        syntax = ["    .att_syntax prefix"] if self.x86 and not self.att else []
        return [*syntax, f"    .size {self.symbol}, . - {self.symbol}"]

    def label(self, number: int) -> str:
        """The line of a label."""
        return self._labels(f"L{number}:")

    def line(self, line: Line) -> list[str]:
        if line.kind == "section":
            return [f"    {self.comment} {line.text}"]
        if line.kind == "label":
            return [self._labels(f"{line.text}:")]
        if line.kind == "data":
            return [f"    {line.text}"]
        assert line.record is not None, "an instruction has a record"
        form, operands = line.record
        if form is ALIGN:
            return [f"    {text}" for text in self._padding(line.code)]
        text = _att(form, operands) if self.att else form.text(operands)
        if form.label_at >= 0:
            text = self._labels(text)
        return [f"    {self._pin(form, line.code)}{text}"]

    def _labels(self, text: str) -> str:
        return re.sub(r"\bL(\d+)\b", rf".L{self.symbol}_\1", text)

    def _pin(self, form: Form, code: bytes) -> str:
        """The prefix that keeps assemblers to this encoding."""
        if not self.x86:
            return ""
        if form.sizes and len(code) > form.sizes[0]:
            return "{disp32} "  # a branch that could not be short when it was laid out
        vector = "avx" in form.feature or form.feature == "fma"
        return {0xC4: "{vex3} ", 0x62: "{evex} "}.get(code[0], "") if vector else ""

    def _padding(self, code: bytes) -> list[str]:
        if not self.x86:
            return ["nop"] * (len(code) // 4)
        out = []
        while code:
            size = max(n for n in range(1, len(NOPS) + 1) if code.startswith(NOPS[n - 1]))
            prefix, suffix, operand = _NOPS[size - 1]
            code = code[size:]
            if not operand:
                out.append("nop")
            elif operand == "xchg":
                out.append("xchg %ax, %ax" if self.att else "xchg ax, ax")
            elif self.att:
                address = "(%rax,%rax)" if "+" in operand else "(%rax)"
                out.append(f"{prefix}nop{suffix} {'0' if prefix else ''}{address}")
            else:
                size_name = "dword" if suffix == "l" else "word"
                out.append(f"{prefix}nop {size_name} ptr [{operand}{' + 0' if prefix else ''}]")
        return out


def _att(form: Form, operands: Operands) -> str:
    """An x86 instruction in AT&T syntax: operands reversed, sizes where no register shows them."""
    parts = []
    mask = f"{{%k{operands[-1]}}}" if "{k}" in form.signature else ""
    mask += "{z}" if "{z}" in form.signature else ""
    for i, kind in enumerate(form.kinds):
        text = _att_operand(form, kind.partition("{")[0].rstrip("+"), operands[i])
        parts.append(text + (mask if i == 0 else ""))
    return f"{form.mnemonic} {', '.join(reversed(parts))}" if parts else form.mnemonic


def _att_operand(form: Form, kind: str, value: Any) -> str:
    if isinstance(value, tuple):
        base, index, scale, disp = value
        inside = f"%{REGISTERS['r64'][base]}"
        if index is not None:
            inside += f",%{REGISTERS['r64'][index]},{scale}"
        to = ""
        if kind[0] == "b":
            widest = next(k for k in form.signature.split() if k[1:3] == "mm")[0]
            to = f"{{1to{ {'x': 128, 'y': 256, 'z': 512}[widest] // int(kind[1:])}}}"
        return f"{disp or ''}({inside}){to}"
    if kind == "rel":
        return f"L{value}"
    if kind == "rip":
        return f"L{value}(%rip)"
    return f"%{REGISTERS[kind][value]}" if kind in REGISTERS else f"${value}"


# ---- unwind information -------------------------------------------------------------------------


def _expression(row: Row) -> bytes:
    """DW_CFA_def_cfa_expression: breg slot, deref, plus_uconst (DWARF 5, 2.5 and 6.4.2)."""
    assert row.cfa_slot is not None, "for rows with a slot"
    code = bytes([0x70 + row.cfa_register]) + sleb(row.cfa_slot)
    code += bytes([0x06, 0x23]) + uleb(row.cfa_offset)
    return bytes([0x0F]) + uleb(len(code)) + code


def _directives(rows: Iterable[Row]) -> dict[int, list[str]]:
    """The .cfi directives that lead from row to row, by the offset they stand at."""
    before, *rest = rows
    result = {}
    for row in rest:
        if row.cfa_slot is not None:
            texts = [f".cfi_escape {', '.join(hex(x) for x in _expression(row))}"]
        else:
            texts = [f".cfi_def_cfa {row.cfa_register}, {row.cfa_offset}"]
        if (before.cfa_register, before.cfa_offset, before.cfa_slot) == (
            row.cfa_register, row.cfa_offset, row.cfa_slot
        ):  # fmt: skip
            texts = []
        texts += [f".cfi_restore {r}" for r in sorted(before.saved.keys() - row.saved.keys())]
        texts += [
            f".cfi_offset {r}, {at}" for r, at in row.saved.items() if before.saved.get(r) != at
        ]
        result[row.offset] = texts
        before = row
    return result
