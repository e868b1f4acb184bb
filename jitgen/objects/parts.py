"""Sections and symbols of a library: kernels, the table of them, and the function that returns it;
passes of layers, each with what it needs.

Not here: the file formats (`jitgen.objects.elf`, `shared`, `archive`), the table's layout
(`jitgen.objects.table`), what a pass of a layer is made of (`jitgen.objects.entry`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jitgen.emit.frame import Frame
from jitgen.emit.routine import Written, emitter
from jitgen.inspect.unwind import Function, eh_frame
from jitgen.isa import a64, x86
from jitgen.isa.form import Form
from jitgen.objects.archive import Member, archive
from jitgen.objects.code import Code, Data
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
from jitgen.objects.entry import Group, entry_group
from jitgen.objects.procedure import ALIGN, Procedure
from jitgen.objects.shared import shared
from jitgen.objects.table import Exported, table
from jitgen.run.cache import lazy
from jitgen.target import Target

#: Between functions: int3 and udf #0
_FILL = {"x86_64": b"\xcc", "aarch64": b"\0"}
_FORMS: dict[str, dict[str, Form]] = {"x86_64": x86.FORMS, "aarch64": a64.FORMS}


@emitter
def emit_getter(target: Target) -> Written:
    """`const void *getter(void)`: an address that lies a distance away which stands behind the
    code. `target`: that of any kernel; its scalar verbs are those of its architecture."""
    machine = target.scalar_machine()
    base = machine.gprs[0]
    machine.use_constants(base)
    offset = machine.program.constant(bytes(8))
    machine.load_word(machine.result, (base, offset))
    machine.sum(machine.result, machine.result, base)
    machine.program.emit(_FORMS[target.architecture]["ret"], ())
    return Written("getter of the table", (), target, Frame(machine), {})


@dataclass(frozen=True)
class Library:
    """A library of one architecture, with one kernel or procedure at least."""

    name: str
    architecture: str
    kernels: Sequence[Exported]
    procedures: Sequence[tuple[str, Procedure]]
    generator: str

    @lazy
    def kernel_codes(self) -> list[Code]:
        """The kernels as functions, then the function that returns the table of them."""
        if not self.kernels:
            return []
        codes = [Code(each.symbol, each.kernel) for each in self.kernels]
        routine = emit_getter(self.kernels[0].kernel.target)
        fixup = Fixup(len(routine.code) - 8, "distance8", f"{self.name}_table")
        return [*codes, Code(f"{self.name}_library", routine, (fixup,))]

    @lazy
    def groups(self) -> list[Group]:
        """What each procedure is made of."""
        return [entry_group(symbol, procedure) for symbol, procedure in self.procedures]

    @property
    def functions(self) -> list[Code]:
        """All functions, in order."""
        return [*self.kernel_codes, *(code for group in self.groups for code in group.codes)]

    @property
    def data(self) -> list[Data]:
        """Read-only data of the procedures."""
        return [data for group in self.groups for data in group.data]

    def _text(self, functions: Sequence[Code]) -> tuple[Section, list[Symbol]]:
        """The code of functions; their symbols, and local ones for constants."""
        fill = _FILL[self.architecture]
        data = bytearray()
        symbols, fixups = [], []
        for each in functions:
            at = align(len(data), ALIGN)
            data += fill * (at - len(data)) + each.code
            symbols.append(
                Symbol(each.symbol, ".text", at, each.constants, FUNCTION, each.exported)
            )
            fixups += [f._replace(at=at + f.at) for f in each.fixups]
            size = len(each.code) - each.constants
            if size:
                name = f"{each.symbol}.constants"
                symbols.append(Symbol(name, ".text", at + each.constants, size, OBJECT, False))
            if self.architecture == "aarch64":  # where code and data begin
                symbols.append(Symbol("$x", ".text", at, 0, NOTYPE, False))
                symbols.append(Symbol("$d", ".text", at + each.constants, 0, NOTYPE, False))
        return Section(".text", bytes(data), CODE, ALIGN, tuple(fixups)), symbols

    def tables(self, data: Sequence[Data]) -> tuple[list[Section], list[Symbol]]:
        """Sections of data, and a symbol for each thing in them: the strings that the table refers
        to, `data`, and the table."""
        if not self.kernels:
            return _read_only(b"", [], data)
        entries, fixups, strings = table(self.name, self.kernels, self.generator)
        named = [Symbol(f"{self.name}_strings", ".rodata", 0, len(strings), OBJECT, False)]
        sections, symbols = _read_only(strings, named, data)
        sections.append(Section(".data.rel.ro", entries, RELOCATED, 16, fixups))
        name = f"{self.name}_table"
        symbols.append(Symbol(name, ".data.rel.ro", 0, len(entries), OBJECT, True))
        return sections, symbols

    def _object(
        self, functions: Sequence[Code], more: tuple[Sequence[Section], Sequence[Symbol]]
    ) -> bytes:
        text, symbols = self._text(functions)
        described = [Function(0, each.constants, each.rows) for each in functions]
        frames = eh_frame(described, self.architecture)
        places = tuple(
            Fixup(at, "distance4", functions[number].symbol) for at, number in frames.distances
        )
        sections = [text, Section(".eh_frame", frames.data, READ, 8, places), *more[0]]
        return relocatable(self.architecture, sections, [*symbols, *more[1]])

    def object(self) -> bytes:
        """A relocatable object with everything."""
        return self._object(self.functions, self.tables(self.data))

    def archive(self) -> bytes:
        """A static library: a member for each kernel and each procedure, so that a program gets
        only those that it names, and one for the table, which needs all kernels."""
        members = [
            Member(f"{each.symbol}.o", self._object([each], ([], [])), (each.symbol,))
            for each in self.kernel_codes[:-1]
        ]
        for found in self.kernel_codes[-1:]:
            exported = (found.symbol, f"{self.name}_table")
            data = self._object([found], self.tables([]))
            members.append(Member(f"{found.symbol}.o", data, exported))
        for (symbol, _), group in zip(self.procedures, self.groups, strict=True):
            data = self._object(group.codes, _read_only(b"", [], group.data))
            members.append(Member(f"{symbol}.o", data, (symbol,)))
        return archive(members)

    def shared(self) -> bytes:
        """A shared object, lib<name>.so."""
        text, symbols = self._text(self.functions)
        sections, more = self.tables(self.data)
        described = {each.symbol: each.rows for each in self.functions}
        read = [section for section in sections if section.flags == READ]
        return shared(
            self.architecture, [*read, text, *sections[len(read) :]], [*symbols, *more], described,
            f"lib{self.name}.so",
        )  # fmt: skip


def _read_only(
    first: bytes, symbols: Sequence[Symbol], data: Sequence[Data]
) -> tuple[list[Section], list[Symbol]]:
    """A section of read-only bytes, those at its begin and then `data`, with their symbols; none if
    there are no bytes."""
    out, found = bytearray(first), list(symbols)
    for symbol, each in data:
        out += bytes(-len(out) % ALIGN)
        found.append(Symbol(symbol, ".rodata", len(out), len(each), OBJECT, False))
        out += each
    return ([Section(".rodata", bytes(out), READ, ALIGN if data else 8)] if out else []), found
