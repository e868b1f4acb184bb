"""The formats of a listing, by name, for Python and the command line.

Not here: what each of them holds (`listing`, `asm`, `html` of this package).
"""

from __future__ import annotations

import json
from typing import Any

from jitgen import doors
from jitgen.emit.routine import Routine
from jitgen.gemm.emitted import EmittedKernel

#: all of them are text but "bytes"
FORMATS = ("text", "asm", "bytes", "json", "html")


def render(
    kernel: Routine, format: str = "text", syntax: str = "intel",
    analysis: list[str] | None = None,
) -> str:  # fmt: skip
    """A kernel or another routine in one of FORMATS but "bytes", which is `kernel.code`.

    syntax: "intel" or "att", for asm. analysis: lines of a report that a page shows as well.

    Raises ValueError for an unknown format or syntax, and for a syntax that the format or the
    target has not.
    """
    doors.instance("kernel", kernel, Routine)
    syntax = doors.text("syntax", syntax)
    if analysis is not None:
        given = enumerate(doors.items("analysis", analysis))
        analysis = [doors.text(f"analysis[{i}]", line) for i, line in given]
    if doors.text("format", format) not in FORMATS or format == "bytes":
        texts = ", ".join(name for name in FORMATS if name != "bytes")
        raise ValueError(
            f"format={doors.shown(format)} is not one of {texts}"
            + ("; the bytes are kernel.code" if format == "bytes" else "")
        )
    if syntax != "intel" and format != "asm":
        raise ValueError(f"syntax={doors.shown(syntax)} is for the format 'asm', not {format!r}")
    if format == "asm":
        from jitgen.inspect.asm import assembly
        from jitgen.inspect.names import symbol_name
        from jitgen.inspect.unwind import rows

        text = assembly(kernel, symbol_name(kernel), syntax, rows)
        at = "@" if kernel.target.architecture == "x86_64" else "%"
        return f'{text}    .section .note.GNU-stack,"",{at}progbits\n'  # no executable stack
    if format == "html":
        from jitgen.inspect.html import page

        return page(kernel, analysis)
    from jitgen.inspect import listing, routines

    if isinstance(kernel, EmittedKernel):
        return listing.listing(kernel) if format == "text" else _json(listing.as_values(kernel))
    return routines.listing(kernel) if format == "text" else _json(routines.as_values(kernel))


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, allow_nan=False) + "\n"
