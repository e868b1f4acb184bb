"""A kernel, or another routine, as one HTML page that needs nothing else: listing, registers,
encodings.

Not here: its style and script (`jitgen.inspect.page`), and the listing itself
(`jitgen.inspect.listing`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from html import escape
from typing import Any

from jitgen.emit.routine import Routine
from jitgen.gemm.emitted import EmittedKernel
from jitgen.inspect import routines
from jitgen.inspect.encoding import fields
from jitgen.inspect.listing import ListedLine, describe, lines, plan_lines, register_grid
from jitgen.inspect.page import SCRIPT, STYLE
from jitgen.inspect.registers import general_name, role_meaning, tiles
from jitgen.inspect.sections import Sections
from jitgen.isa.x86_rows import R8, R16, R32, R64

#: Nothing is loaded from anywhere: the browser itself refuses it
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_REGISTER = re.compile(
    r"\b(?:([xyz]mm|[zdsv])(\d+)|(k[0-7]|p\d+)|([xw])(\d+)|(sp)|("
    + "|".join(sorted((*R64, *R32, *R16, *R8), key=len, reverse=True))
    + r"))\b"
)
#: any name of a general-purpose register on x86 -> the 64-bit one
_WHOLE = {name: R64[i] for names in (R64, R32, R16, R8) for i, name in enumerate(names)}


def page(routine: Routine, analysis: list[str] | None = None) -> str:
    """The page; `analysis`: lines of a report on how fast the kernel can be, shown as they are."""
    return "\n".join(_page(routine, analysis)) + "\n"


def _page(routine: Routine, analysis: list[str] | None) -> Iterator[str]:
    kernel = routine if isinstance(routine, EmittedKernel) else None
    title = f"{routine.name} for {routine.target.name}"
    if kernel:
        spec = kernel.spec
        title = f"{spec.m} x {spec.n} x {spec.k} {spec.dtype} for {kernel.target.name}"
    title = escape(title)
    yield "<!DOCTYPE html>"
    yield f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f'<link rel="icon" href="data:,"><style>{STYLE}</style></head><body>'
    yield f"<header><h1>{title}</h1>"
    yield from _kernel_head(kernel) if kernel else _routine_head(routine)
    if analysis is not None:
        yield f"<h2>Analysis</h2><pre>{escape(chr(10).join(analysis))}</pre>"
    yield "</header><main>"
    if kernel:
        yield from _listing(kernel, lines(kernel), Sections(kernel).sentence)
    else:
        yield from _listing(routine, routines.lines(routine), lambda section: "")
    yield f"</main><script>{SCRIPT}</script></body></html>"


def _kernel_head(kernel: EmittedKernel) -> Iterator[str]:
    """What it computes, its plan and registers."""
    spec = kernel.spec
    yield f'<p class="computes"><code>{escape(describe(spec))}</code></p>'
    layout = f"panels of {spec.panel}" if spec.panel else f"ldb {spec.ldb}"
    yield (
        f'<p class="soft">lda {spec.lda}, {layout}, ldc {spec.ldc}; batch by {spec.batch}; '
        f"{len(kernel.code)} bytes with constants</p>"
    )
    yield '<div class="columns"><div><h2>Plan</h2><ul>'
    yield from (f"<li>{escape(line)}</li>" for line in plan_lines(kernel))
    yield "</ul></div>"
    argument = kernel.target.machine(kernel.spec.dtype, kernel.spec.n).argument
    yield from _general(
        kernel, {"args": argument, **kernel.roles},
        lambda role: "the argument struct" if role == "args" else role_meaning(role),
    )  # fmt: skip
    yield '<div class="tiles">'
    for size in tiles(kernel):
        yield from _grid(kernel, size)
    yield "</div></div>"


def _routine_head(routine: Routine) -> Iterator[str]:
    """Its words and registers."""
    yield f'<p class="soft">{len(routine.code)} bytes with constants</p>'
    yield '<div class="columns"><div><h2>Words of its argument</h2><table>'
    for operand in routine.signature:
        cells = operand.word, operand.type, operand.meaning
        yield f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
    yield "</table></div>"
    meanings = {o.word: o.meaning for o in routine.signature} | {"args": "the argument struct"}
    roles = {"args": routine.argument, **routine.roles}
    yield from _general(routine, roles, lambda role: meanings.get(role, ""))
    yield "</div>"


def _register(text: str) -> str:
    """Marks the registers in an instruction; all widths of one are the same."""

    def mark(match: re.Match[str]) -> str:
        vector, number, mask, general, which, stack, name = match.groups()
        key = (
            f"v{number}" if vector else mask if mask else f"x{which}" if general
            else stack or _WHOLE[name]
        )  # fmt: skip
        return f'<span class="r" data-r="{key}">{match[0]}</span>'

    return _REGISTER.sub(mark, escape(text))


def _general(
    routine: Routine, roles: dict[str, int], meaning: Callable[[str], str]
) -> Iterator[str]:
    yield "<div><h2>General-purpose registers</h2><table>"
    for role, number in roles.items():
        name = _register(general_name(routine.target, number))
        yield (
            f'<tr><td>{name}</td><td>{escape(role)}</td><td class="words soft">'
            f"{escape(meaning(role))}</td></tr>"
        )
    yield "</table></div>"


def _grid(kernel: EmittedKernel, size: tuple[int, int]) -> Iterator[str]:
    yield f"<div><h2>Vector registers, tile {size[0]} x {size[1]}</h2>"
    yield '<table class="grid">'
    heading, *rows = register_grid(kernel, size)
    yield f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in heading)}</tr>"
    for name, *cells in rows:
        yield f"<tr><th>{escape(name)}</th>"
        yield "".join(f"<td>{_register(cell)}</td>" for cell in cells) + "</tr>"
    yield "</table></div>"


def _listing(
    routine: Routine, listed_lines: Iterable[ListedLine], sentence_of: Callable[[Any], str]
) -> Iterator[str]:
    yield '<div class="bar"><h2>Listing</h2>'
    yield '<button data-all="open">unfold all loops</button>'
    yield '<button data-all="close">fold all loops</button>'
    yield '<span class="legend">' + "".join(
        f'<span style="color: var(--{kind})">{kind}</span>'
        for kind in ("fma", "load", "broadcast", "store", "branch")
    ) + "</span></div>"
    yield '<div class="work"><div class="listing code">'
    ends: list[int] = []
    first = True
    for i, listed in enumerate(listed_lines):
        line = listed.line
        if listed.loop is not None:
            ends.append(listed.loop.end)
            yield (
                f'<div class="loop"><button aria-expanded="true"><b>{escape(line.text)}</b> '
                f'{escape(listed.meaning)}</button><div class="body">'
            )
        elif line.kind == "section":
            sentence = escape(sentence_of(line.section))
            yield f'<div class="title"><h3>{escape(line.text)}</h3><p>{sentence}</p></div>'
        elif line.kind == "label":
            yield f'<div class="label">{escape(line.text)}:</div>'
        else:
            yield _row(routine, listed, first)
            first = False
        while ends and ends[-1] == i:
            ends.pop()
            yield "</div></div>"
    yield "</div><aside>" + _DETAILS + "</aside></div>"


def _row(routine: Routine, listed: ListedLine, first: bool) -> str:
    line, _, roles, meaning, _, kind = listed
    if line.record is None:
        split = [("data", line.code)]
    elif routine.target.architecture == "x86_64":
        split = fields(line.record[0], line.code)
    else:
        split = [("word, lowest byte first", line.code)]
    encoded = "|".join(f"{name}={code.hex(' ')}" for name, code in split)
    tabindex = 0 if first else -1
    return (
        f'<div class="row {kind}" tabindex="{tabindex}" data-n="{len(line.code)}" '
        f'data-roles="{escape(", ".join(roles))}" data-fields="{escape(encoded)}">'
        f'<span class="at">{line.offset:x}</span><span class="hex">{line.code.hex()}</span>'
        f'<span class="text">{_register(line.text)}</span>'
        f'<span class="says">{escape(meaning)}</span></div>'
    )


_DETAILS = """\
<div class="details"><p class="hint soft">Point at an instruction, or move to it with the arrow
keys: its meaning and encoding appear here. Pointing at a register shows all its uses.</p>
<div class="found" hidden><div class="text code"></div><div class="says code"></div>
<div class="fields code"></div><p class="where soft"></p></div>
<p class="keys"><kbd>&uarr;</kbd> <kbd>&darr;</kbd> move, <kbd>Enter</kbd> folds a loop</p></div>"""
