"""Lines of code as text, for all listings. Not here: what stands between them."""

from __future__ import annotations

from jitgen.isa.program import Line

#: Bytes of machine code in one line of a listing
LINE_BYTES = 11
#: Columns that the text of an instruction has before its meaning, unless it is longer
TEXT = 48


def numbered(line: Line, depth: int, meaning: str) -> list[str]:
    """Offset, bytes, text and meaning of an instruction or of data, within `depth` loops."""
    out = []
    text, comment = "  " * depth + line.text, f"; {meaning}" if meaning else ""
    for at in range(0, len(line.code), LINE_BYTES):
        code = line.code[at : at + LINE_BYTES].hex()
        gap = max(TEXT, len(text) + 2)
        out.append(f"{line.offset + at:6x}  {code:22}  {text:{gap}}{comment}".rstrip())
        text = comment = ""
    return out
