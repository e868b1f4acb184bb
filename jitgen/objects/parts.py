"""Sections and symbols of a library: kernels, the table of them, and the function that returns it.

Not here: the file formats (`jitgen.objects.elf`, `shared`, `archive`) and the table's layout
(`jitgen.objects.table`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jitgen.inspect.unwind import ARCHITECTURES, Function, Row, eh_frame, rows
from jitgen.isa import a64, x86
from jitgen.isa.form import Form
from jitgen.isa.program import Line
from jitgen.objects.archive import Member, archive
from jitgen.objects.elf import (
    CODE,
    FUNCTION,
    NOTYPE,
    OBJECT,
    READ,
    RELOCATED,
    Fixup,
    Section,
    Symbol,
    align,
    relocatable,
)  # fmt: skip
from jitgen.objects.shared import shared
from jitgen.objects.table import Exported, table
from jitgen.run.cache import lazy
from jitgen.target import Target

#: Functions begin at multiples of this, as their constants do
_ALIGN = 64
#: Between functions: int3 and udf #0
_FILL = {"x86_64": b"\xcc", "aarch64": b"\0"}
_FORMS: dict[str, dict[str, Form]] = {"x86_64": x86.FORMS, "aarch64": a64.FORMS}


@dataclass(frozen=True)
class Code:
    """A function: its bytes, where its constants begin, unwind information, lines of text."""

    symbol: str
    code: bytes
    constants: int
    rows: Sequence[Row]
    lines: Sequence[Line]
    fixups: tuple[Fixup, ...] = ()


def kernel_code(exported: Exported) -> Code:
    """A kernel as a function. Raises ValueError if another assembler made its code."""
    kernel = exported.kernel
    described = rows(kernel)
    lines = list(kernel.program.lines())
    constants = next((line.offset for line in lines if line.kind == "data"), len(kernel.code))
    return Code(exported.symbol, kernel.code, constants, described, lines)


def table_function(library: str, target: Target) -> Code:
    """`const struct jitgen_library *<library>_library(void)`: the table lies a distance away that
    stands behind the code. `target`: that of any kernel of the library; its scalar verbs are those
    of its architecture."""
    architecture = target.architecture
    machine = target.scalar_machine()
    base = machine.gprs[0]
    machine.use_constants(base)
    offset = machine.program.constant(bytes(8))
    machine.load_word(machine.result, (base, offset))
    machine.sum(machine.result, machine.result, base)
    machine.program.emit(_FORMS[architecture]["ret"], ())
    code = machine.program.encode()
    constants = len(code) - 8
    lines = list(machine.program.lines())
    first = ARCHITECTURES[architecture].first
    fixup = Fixup(constants, "distance8", f"{library}_table")
    return Code(f"{library}_library", code, constants, (first,), lines, (fixup,))


@dataclass(frozen=True)
class Library:
    """A library of one architecture, with one kernel at least."""

    name: str
    architecture: str
    kernels: Sequence[Exported]
    generator: str

    @lazy
    def functions(self) -> list[Code]:
        """The kernels, then the function that returns the table."""
        found = table_function(self.name, self.kernels[0].kernel.target)
        return [*map(kernel_code, self.kernels), found]

    def _text(self, functions: Sequence[Code]) -> tuple[Section, list[Symbol]]:
        """The code of functions; their symbols, and local ones for constants."""
        fill = _FILL[self.architecture]
        data = bytearray()
        symbols, fixups = [], []
        for each in functions:
            at = align(len(data), _ALIGN)
            data += fill * (at - len(data)) + each.code
            symbols.append(Symbol(each.symbol, ".text", at, each.constants, FUNCTION, True))
            fixups += [f._replace(at=at + f.at) for f in each.fixups]
            size = len(each.code) - each.constants
            if size:
                name = f"{each.symbol}.constants"
                symbols.append(Symbol(name, ".text", at + each.constants, size, OBJECT, False))
            if self.architecture == "aarch64":  # where code and data begin
                symbols.append(Symbol("$x", ".text", at, 0, NOTYPE, False))
                symbols.append(Symbol("$d", ".text", at + each.constants, 0, NOTYPE, False))
        return Section(".text", bytes(data), CODE, _ALIGN, tuple(fixups)), symbols

    def table(self) -> tuple[list[Section], list[Symbol]]:
        """The table and the strings that it refers to: sections and a symbol for each."""
        data, fixups, strings = table(self.name, self.kernels, self.generator)
        sections = [
            Section(".rodata", strings, READ, 8),
            Section(".data.rel.ro", data, RELOCATED, 16, fixups),
        ]
        symbols = [
            Symbol(f"{self.name}_strings", ".rodata", 0, len(strings), OBJECT, False),
            Symbol(f"{self.name}_table", ".data.rel.ro", 0, len(data), OBJECT, True),
        ]
        return sections, symbols

    def _object(self, functions: Sequence[Code], with_table: bool) -> bytes:
        text, symbols = self._text(functions)
        described = [Function(0, each.constants, each.rows) for each in functions]
        frames = eh_frame(described, self.architecture)
        places = tuple(
            Fixup(at, "distance4", functions[number].symbol) for at, number in frames.distances
        )
        sections = [text, Section(".eh_frame", frames.data, READ, 8, places)]
        if with_table:
            more_sections, more_symbols = self.table()
            sections += more_sections
            symbols += more_symbols
        return relocatable(self.architecture, sections, symbols)

    def object(self) -> bytes:
        """A relocatable object with everything."""
        return self._object(self.functions, True)

    def archive(self) -> bytes:
        """A static library: a member for each kernel, so that a program gets only those that it
        names, and one for the table, which needs all."""
        *kernels, found = self.functions
        members = [
            Member(f"{each.symbol}.o", self._object([each], False), (each.symbol,))
            for each in kernels
        ]
        exported = (found.symbol, f"{self.name}_table")
        members.append(Member(f"{found.symbol}.o", self._object([found], True), exported))
        return archive(members)

    def shared(self) -> bytes:
        """A shared object, lib<name>.so."""
        text, symbols = self._text(self.functions)
        (strings, entries), more = self.table()
        described = {each.symbol: each.rows for each in self.functions}
        return shared(
            self.architecture, [strings, text, entries], [*symbols, *more], described,
            f"lib{self.name}.so",
        )  # fmt: skip
