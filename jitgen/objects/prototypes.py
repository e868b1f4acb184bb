"""Passes of layers in the C header of a library: argument structs, sizes, functions.

A pass is a function in the header, which takes the best target that this CPU can run, and a
function of the library for each target. Not here: what is the same in all libraries
(`jitgen.objects.header`), the functions' code (`jitgen.objects.entry`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from jitgen.objects import entry
from jitgen.objects.procedure import ALIGN, Argument, Procedure
from jitgen.objects.table import LONGEST_NAME
from jitgen.types import DTYPES

#: What no argument may be called: keywords of C and C++, and the struct's last member
_RESERVED = frozenset((
    "scratch", "alignas", "alignof", "and", "asm", "auto", "bool", "break", "case", "catch",
    "char", "class", "compl", "const", "constexpr", "continue", "decltype", "default", "delete",
    "do", "double", "else", "enum", "explicit", "export", "extern", "false", "float", "for",
    "friend", "goto", "if", "inline", "int", "long", "mutable", "namespace", "new", "noexcept",
    "not", "nullptr", "operator", "or", "private", "protected", "public", "register",
    "restrict", "return", "short", "signed", "sizeof", "static", "struct", "switch", "template",
    "this", "throw", "true", "try", "typedef", "typeid", "typename", "typeof", "union",
    "unsigned", "using", "virtual", "void", "volatile", "wchar_t", "while", "xor", "bitand",
    "bitor", "concept", "requires", "thread_local", "_Bool", "and_eq", "char8_t", "char16_t",
    "char32_t", "co_await", "co_return", "co_yield", "const_cast", "consteval", "constinit",
    "dynamic_cast", "linux", "not_eq", "NULL", "or_eq", "reinterpret_cast", "static_assert",
    "static_cast", "unix", "xor_eq",
))  # fmt: skip

COMMON = f"""\
#ifndef JITGEN_SCRATCH_ALIGN
/* What a pass of a layer returns. If it is not JITGEN_DONE, nothing was read or written. */
enum jitgen_code {{
    JITGEN_DONE = {entry.DONE},
    JITGEN_WRONG_LENGTH = {entry.WRONG_LENGTH}, /* this thread's vectors have another length */
    JITGEN_WRONG_THREADS = {entry.WRONG_THREADS}, /* not made for nthreads, or no such tid */
    JITGEN_NO_TARGET = {entry.NO_TARGET} /* this CPU has no target of the pass */
}};

/* Scratch memory begins at a multiple of so many bytes. */
#define JITGEN_SCRATCH_ALIGN {ALIGN}
#endif
"""
_ABOUT = """\
/* Passes of layers. Each of nthreads threads calls the function with the same args and a tid of its
   own, from 0 on; a call returns when all of them have done their parts. Arrays are C-contiguous.
   scratch: ..._SCRATCH_BYTES bytes (none, if that is 0), aligned to JITGEN_SCRATCH_ALIGN, filled
   with zeros before they are first used; from then on they belong to this pass on this target and
   number of threads, and to one call at a time. ..._BYTES are enough for each target and number of
   threads. What a pass has packed is for the same target, that of this CPU. */"""


@dataclass(frozen=True)
class Function:
    """A pass in C: its procedures, the best target first."""

    name: str
    procedures: tuple[Procedure, ...]

    def symbol(self, library: str, procedure: Procedure) -> str:
        """Its name on one target."""
        return f"{library}_{self.name}_{procedure.target.name}"

    def names(self, library: str) -> list[str]:
        """Its functions and macros in the header, each as often as it is defined there."""
        symbols = [self.symbol(library, procedure) for procedure in self.procedures]
        stem = f"{library}_{self.name}".upper()
        sizes = [*(a.name.upper() for a in self.first.arguments), "SCRATCH"]
        return [f"{library}_{self.name}", *symbols, *(f"{stem}_{size}_BYTES" for size in sizes)]

    @property
    def first(self) -> Procedure:
        """The one of the best target: arguments are the same in all, but for packed ones."""
        return self.procedures[0]

    def nbytes(self, number: int) -> int:
        """Bytes of an argument on any target."""
        return max(p.arguments[number].nbytes for p in self.procedures)

    @property
    def scratch_bytes(self) -> int:
        """Bytes of scratch memory on any target."""
        return max(p.scratch_bytes for p in self.procedures)


def functions(procedures: Iterable[Procedure]) -> list[Function]:
    """Procedures of the same name as one function, best targets first.

    Raises ValueError for names that C does not have, and for procedures of one name that take other
    arguments or have the same target.
    """
    by_name: dict[str, list[Procedure]] = {}
    for each in procedures:
        arguments = [a.name for a in each.arguments]
        for name in (each.name, *arguments):
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or len(name) > LONGEST_NAME:
                what = "layer name" if name is each.name else f"{each.name}: the array's name"
                raise ValueError(f"{what} {name!r} is no C name of at most {LONGEST_NAME} "
                                 "characters")  # fmt: skip
            if name is not each.name and name in _RESERVED:
                raise ValueError(f"{each.name}: {name!r} is no name that an array can have in C")
        if len({name.upper() for name in arguments}) < len(arguments):
            raise ValueError(f"{each.name}: arrays {', '.join(arguments)} need different names, "
                             "also in capitals")  # fmt: skip
        by_name.setdefault(each.name, []).append(each)
    capitals: dict[str, str] = {}
    for name in by_name:
        other = capitals.setdefault(name.upper(), name)
        if other != name:
            raise ValueError(f"layer names: {name!r} and {other!r} are one name in capitals")
    found = []
    for name, several in by_name.items():
        several.sort(key=lambda p: (-p.target.vector_bits, -len(p.target.features)))
        if len({p.target for p in several}) < len(several):
            raise ValueError(f"layer name {name!r} stands for two passes on one target")
        takes = {
            (p.computes, p.threads, *((a.name, a.dtype, a.result) for a in p.arguments))
            for p in several
        }
        if len(takes) > 1:
            raise ValueError(f"layer name {name!r} stands for passes that are not the same")
        found.append(Function(name, tuple(several)))
    return found


def prototypes(
    library: str, found: Sequence[Function], fits: Mapping[str, str]
) -> list[str]:
    """The lines of all functions; `fits`: the C condition of each target, by its name."""
    lines = [*COMMON.split("\n"), *_ABOUT.split("\n"), ""]
    for function in found:
        lines += _function(library, function, fits)
    return lines


def _function(library: str, function: Function, fits: Mapping[str, str]) -> list[str]:
    first, name = function.first, f"{library}_{function.name}"
    struct, upper = f"{name}_args", name.upper()
    threads = ", ".join(map(str, first.threads))
    about = f"{first.computes}; nthreads: {threads}; targets, best first: " + ", ".join(
        p.target.name for p in function.procedures
    )
    lines = [*_comment(about), f"struct {struct} {{"]
    for number, argument in enumerate(first.arguments):
        kind = DTYPES[argument.dtype].c if argument.dtype else "void"
        const = "" if argument.result else "const "
        lines.append(f"    {const}{kind} *{argument.name}; /* {_holds(function, number)} */")
    lines += ["    void *scratch;", "};"]
    places = [*(a.name for a in first.arguments), "scratch"]
    lines += [
        f"typedef char {struct}_has_{field}_at_{8 * i}"
        f"[offsetof(struct {struct}, {field}) == {8 * i} ? 1 : -1];"
        for i, field in enumerate(places)
    ]
    lines += [
        f"#define {upper}_{a.name.upper()}_BYTES {function.nbytes(i)}"
        for i, a in enumerate(first.arguments)
    ]
    lines.append(f"#define {upper}_SCRATCH_BYTES {function.scratch_bytes}")
    given = f"const struct {struct} *args, int tid, int nthreads"
    lines += [f"int {function.symbol(library, p)}({given});" for p in function.procedures]
    lines += [f"static inline int {name}(", f"    {given})", "{",
              "    const uint32_t cpu = jitgen_cpu_features();"]  # fmt: skip
    for p in function.procedures:
        call = f"{function.symbol(library, p)}(args, tid, nthreads)"
        lines += [f"    if ({fits[p.target.name]})", f"        return {call};"]
    return [*lines, "    return JITGEN_NO_TARGET;", "}", ""]


def _holds(function: Function, number: int) -> str:
    """An argument in a comment: its shape, or that it depends on the target; what it is."""
    each = [p.arguments[number] for p in function.procedures]
    shapes = {_shape(a) for a in each}
    shape = shapes.pop() if len(shapes) == 1 else "a shape that depends on the target"
    done = "read and written" if each[0].updated else "written" if each[0].result else ""
    words = [shape, done, each[0].meaning]
    return "; ".join(filter(None, words)).replace("*/", "* /")


def _shape(argument: Argument) -> str:
    return " x ".join(map(str, argument.shape)) or "1"


def _comment(text: str, width: int = 94) -> list[str]:
    """A comment of several lines."""
    lines, line = [], "/*"
    for word in f"{text.replace('*/', '* /')}. */".split():
        if len(line) + 1 + len(word) > width:
            lines.append(line)
            line = "  "
        line += f" {word}"
    return [*lines, line]
