"""Two kernels side by side: what differs in spec, plan, registers, instructions, size and inner
loop.

It compares listings as values (`jitgen.inspect.listing.as_values`), which may come from files. Not
here: how fast the kernels are (`jitgen kernel`, `jitgen analyze`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any

from jitgen.inspect.listing import KIND

_Code = tuple[str, str]  # text and meaning of an instruction
#: Says what a JSON document is
COMPARISON = "jitgen comparison 1"
#: Width of each side in the text, in columns
SIDE = 52
#: What a listing must hold to be compared
_LINE = {"kind": str, "bytes": str, "text": str, "meaning": str, "class": str, "offset": int}
_TILE = {"rows": int, "columns": int, "accumulators": list, "a": list, "b": list}
_LOOP = {"over": str, "first_line": int, "last_line": int}
_COUNTS = dict.fromkeys(("fma", "load", "broadcast", "store", "integer", "branch", "other"), int)
_INNER = {"tile": str, "steps": int, "bytes": int, "instructions": _COUNTS}
_SHAPE: dict[str, Any] = {
    "target": str, "computes": str, "code_bytes": int, "spec": dict, "plan_fields": dict,
    "general_registers": dict, "instructions": _COUNTS, "tiles": [_TILE], "loops": [_LOOP],
    "inner_loops": [_INNER], "lines": [_LINE],
}  # fmt: skip


def read_listing(file: str) -> dict[str, Any]:
    """The values in a file that `jitgen show --json` wrote.

    Raises ValueError that names the file if it is none, OSError if it cannot be read.
    """
    with open(file, encoding="utf-8") as stream:
        try:
            values = json.load(stream)
        except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8
            raise ValueError(f"{file}: no JSON: {error}") from None
    kind = values.get("format") if isinstance(values, dict) else None
    if kind != KIND:
        raise ValueError(
            f"{file}: no listing as this jitgen's `show --json` writes it: format is {kind!r}, "
            f"not {KIND!r}"
        )
    wrong = _misshapen(values, _SHAPE, "")
    if wrong:
        raise ValueError(f"{file}: no listing as `jitgen show --json` writes it: {wrong}")
    for loop in values["loops"]:
        if not 0 <= loop["first_line"] <= loop["last_line"] < len(values["lines"]):
            raise ValueError(f"{file}: a loop ends at line {loop['last_line']}, which is not there")
    return dict(values)


def _misshapen(value: Any, shape: Any, where: str) -> str:
    """What is wrong with a value, or ""."""
    if isinstance(shape, type):
        fits = isinstance(value, shape) and not (shape is int and isinstance(value, bool))
        return "" if fits else f"{where or 'the whole'} is {value!r:.40}, not {shape.__name__}"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} is no list"
        found = (_misshapen(x, shape[0], f"{where}[{i}]") for i, x in enumerate(value))
        return next(filter(None, found), "")
    if not isinstance(value, dict):
        return f"{where} is no object"
    for name, inner in shape.items():
        at = f"{where}.{name}".lstrip(".")
        wrong = f"{at} is missing" if name not in value else _misshapen(value[name], inner, at)
        if wrong:
            return wrong
    return ""


def compare(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """What differs between two listings, as values: each difference is a pair [left, right]."""
    pairs = {
        name: _differences(left[name], right[name])
        for name in ("spec", "plan_fields", "general_registers")
    }
    return {
        "format": COMPARISON,
        "names": [_name(left), _name(right)],
        "computes": [left["computes"], right["computes"]],
        "target": [left["target"], right["target"]],
        "code_bytes": [left["code_bytes"], right["code_bytes"]],
        **pairs,
        "tiles": [[_tile(tile) for tile in side["tiles"]] for side in (left, right)],
        "instructions": {
            kind: [left["instructions"][kind], right["instructions"][kind]] for kind in _COUNTS
        },
        "inner_loops": [left["inner_loops"], right["inner_loops"]],
        "inner_code": _aligned(_inner_code(left), _inner_code(right)),
    }


def _name(values: dict[str, Any]) -> str:
    spec = values["spec"]
    size = " x ".join(str(spec.get(name, "?")) for name in ("m", "n", "k"))
    return f"{size} {spec.get('dtype', '')} {values['target']}"


def _differences(left: dict[str, Any], right: dict[str, Any]) -> dict[str, list[Any]]:
    names = dict.fromkeys([*left, *right])
    return {n: [left.get(n), right.get(n)] for n in names if left.get(n) != right.get(n)}


def _tile(tile: dict[str, Any]) -> dict[str, Any]:
    """A tile's size and how many vector registers it has for what."""
    sets = tile["accumulators"]
    return {
        "size": f"{tile['rows']} x {tile['columns']}",
        "accumulators": sum(len(each) for each in sets), "sets": len(sets), "a": len(tile["a"]),
        "b": len(tile["b"]), "tail": int(bool(tile.get("tail"))),
    }  # fmt: skip


def _inner_code(values: dict[str, Any]) -> list[_Code]:
    """(text, meaning) of the instructions of the longest reduction loop that is an inner one."""
    loops = [x for x in values["loops"] if x["over"] == "k"]
    bodies = [values["lines"][x["first_line"] : x["last_line"] + 1] for x in loops]
    fmas = [sum(line["class"] == "fma" for line in body) for body in bodies]
    if not bodies or not max(fmas):
        return []
    body = bodies[fmas.index(max(fmas))]
    return [(x["text"], x["meaning"]) for x in body if x["kind"] == "instruction"]


def _aligned(left: list[_Code], right: list[_Code]) -> list[dict[str, Any]]:
    """Lines of both sides beside each other where they mean the same."""
    matcher = SequenceMatcher(None, [m for _, m in left], [m for _, m in right], autojunk=False)
    out = []
    for tag, i, j, k, m in matcher.get_opcodes():
        pairs = zip_longest(left[i:j], right[k:m])
        for a, b in pairs if tag == "equal" else _by_target(left[i:j], right[k:m]):
            out.append({
                "same": tag == "equal", "text": [a[0] if a else None, b[0] if b else None],
                "meaning": [a[1] if a else None, b[1] if b else None],
            })  # fmt: skip
    return out


def _by_target(
    left: list[_Code], right: list[_Code]
) -> Iterator[tuple[_Code | None, _Code | None]]:
    """Pairs that set the same thing to different values; all others are alone."""
    a, b = ([meaning.split(" ")[0] for _, meaning in side] for side in (left, right))
    for tag, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal":
            yield from zip(left[i:j], right[k:m], strict=True)
        else:
            yield from ((x, None) for x in left[i:j])
            yield from ((None, x) for x in right[k:m])


# ---- text ---------------------------------------------------------------------------------------


def comparison_text(found: dict[str, Any]) -> str:
    """A comparison for the eye."""
    return "\n".join(line.rstrip() for line in _lines(found)) + "\n"


def _row(name: str, left: object, right: object, more: str = "") -> str:
    return f"  {name:16} {_cell(left):{SIDE}} {_cell(right):{SIDE}} {more}"


def _cell(value: object) -> str:
    return "-" if value is None else str(value)


def _lines(found: dict[str, Any]) -> Iterator[str]:
    yield _row("", *found["names"])
    yield _row("computes", *found["computes"])
    left, right = found["code_bytes"]
    yield _row("bytes", left, right, _change(left, right))
    for title, key in (("spec", "spec"), ("plan", "plan_fields")):
        yield from ("", f"{title}" + ("" if found[key] else ": the same"))
        yield from (_row(name, *pair) for name, pair in found[key].items())
    yield from ("", "registers")
    for i, (a, b) in enumerate(zip_longest(*found["tiles"])):
        yield _row(f"tile {i + 1}", a and _tile_text(a), b and _tile_text(b))
    for role, pair in found["general_registers"].items():
        yield _row(role, *pair)
    yield from ("", "instructions")
    for kind, (a, b) in found["instructions"].items():
        yield _row(kind, a, b, _change(a, b))
    yield from ("", "inner loops")
    for i, (a, b) in enumerate(zip_longest(*found["inner_loops"])):
        yield _row(f"loop {i + 1}", a and _loop_text(a), b and _loop_text(b))
    if found["inner_code"]:
        yield from ("", "the inner loop with most FMAs: = the same meaning, | another")
    for line in found["inner_code"]:
        texts = [text if text is None or len(text) <= SIDE else f"{text[: SIDE - 3]}..."
                 for text in line["text"]]  # fmt: skip
        meaning = line["meaning"][0] if line["same"] else " | ".join(filter(None, line["meaning"]))
        a, b = (text or "" for text in texts)
        sign = "=" if line["same"] else "|" if a and b else "<" if a else ">"
        yield f"  {a:{SIDE}} {sign} {b:{SIDE}}  ; {meaning}"


def _change(left: int, right: int) -> str:
    if left == right:
        return "the same"
    return f"{right - left:+d}" + (f" ({100 * (right - left) / left:+.0f} %)" if left else "")


def _tile_text(tile: dict[str, Any]) -> str:
    sets = f" in {tile['sets']} sets" if tile["sets"] > 1 else ""
    tail = ", a mask" if tile["tail"] else ""
    return f"{tile['size']}: {tile['accumulators']} of C{sets}, {tile['a']} A, {tile['b']} B{tail}"


def _loop_text(loop: dict[str, Any]) -> str:
    counts = loop["instructions"]
    fma, total = counts["fma"], sum(counts[kind] for kind in _COUNTS)
    share = f", {100 * fma / total:.0f} % FMA" if total else ""
    passes = loop.get("passes")
    return (
        f"{loop['tile']}: {passes} x {loop['steps']} steps, {loop['bytes']} bytes, "
        f"{fma} of {total}{share}"
    )
