"""A kernel as text and as values: what it computes, its plan and reasons, registers, and every
instruction with its meaning.

Not here: the text of one instruction (`jitgen.isa.form.Form.text`), its meaning
(`jitgen.inspect.meaning`) or any decision (`jitgen.gemm.plan`); other formats:
`jitgen.inspect.asm`, `jitgen.inspect.html`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from jitgen.gemm.sections import PackB, TileSection
from jitgen.inspect.loops import Loop
from jitgen.inspect.meaning import explain
from jitgen.inspect.registers import general_name, role_meaning, tile_registers, tiles, vector_name
from jitgen.inspect.sections import Sections
from jitgen.inspect.text import numbered
from jitgen.isa.form import Record
from jitgen.isa.program import Line
from jitgen.isa.x86_rows import R32

if TYPE_CHECKING:
    from jitgen.emit.routine import Routine
    from jitgen.gemm.emitted import EmittedKernel
    from jitgen.gemm.spec import KernelSpec

__all__ = [
    "as_values", "describe", "general_name", "lines", "listing", "plan_lines", "tile_registers",
]  # fmt: skip

#: Says what a JSON file is
KIND = "jitgen listing 1"


def describe(spec: KernelSpec) -> str:
    """What the kernel computes, in one line.

    >>> from jitgen.gemm.spec import make_spec
    >>> describe(make_spec(8, 8, 8, beta=1.0, trans_b=True, epilogue=["bias", ("clip", 0, 6)]))
    'C = C + sum of A_i B_i^T, then bias, clip(0, 6)'
    """
    product = f"A_i{'^T' if spec.trans_a else ''} B_i{'^T' if spec.trans_b else ''}"
    old = {0.0: "", 1.0: "C + "}.get(spec.beta, f"{spec.beta:g} C + ")
    alpha = "" if spec.alpha == 1.0 else f"{spec.alpha:g} "
    steps = [
        name + (f"({', '.join(f'{p:g}' for p in parameters)})" if parameters else "")
        for name, *parameters in spec.epilogue
    ]
    return f"C = {old}{alpha}sum of {product}" + (f", then {', '.join(steps)}" if steps else "")


def plan_lines(kernel: EmittedKernel) -> list[str]:
    """The plan and why it was chosen, a sentence each."""
    plan = kernel.plan
    counts: Counter[str] = Counter()
    for rows, columns in plan.tiles():
        counts[f"{rows.size} x {columns.size}"] += rows.repeat * columns.repeat
    tiles = ", ".join(f"{n} of {size}" for size, n in counts.items())
    blocks = "" if plan.k_block >= kernel.spec.k else f" in blocks of {plan.k_block}"
    chunk = plan.batch_chunk or "all"
    prefetch = f"; B prefetched {plan.prefetch} steps ahead" if plan.prefetch else ""
    packed = "; B copied to the stack first" if plan.pack else ""
    return [
        f"tiles of C: {tiles}; {'columns' if plan.order == 'nm' else 'rows'} in the outer loop",
        f"reduction: k = {kernel.spec.k}{blocks}, {plan.k_unroll} steps unrolled; "
        f"{chunk} batch elements between stores of C{prefetch}{packed}",
        *plan.reasons,
    ]


class ListedLine(NamedTuple):
    """A line of the program, the number of loops around it, the roles of the registers it touches,
    its meaning, the loop that begins here, and its kind of instruction (or "")."""

    line: Line
    depth: int
    roles: list[str]
    meaning: str
    loop: Loop | None
    kind: str


#: What is told of each line: the roles of its registers, its kind of instruction (or "")
Facts = tuple[list[str], str]


def facts(kernel: Routine) -> Callable[[Line], Facts]:
    """What says of a line of a routine's program which roles it touches and of what kind it is."""
    from jitgen.inspect.instructions import read_record  # which itself imports this module

    names = {general_name(kernel.target, number): role for role, number in kernel.roles.items()}
    if kernel.target.architecture == "x86_64":
        names |= {R32[number]: role for role, number in kernel.roles.items()}
    architecture, vector_bytes = kernel.target.architecture, kernel.target.vector_bits // 8

    @cache  # a kernel repeats a few hundred instructions
    def roles(text: str) -> list[str]:
        # a save or restore of the caller's value has nothing to do with the role
        words = [] if text.startswith(("push", "pop")) else re.findall(r"\w+", text)
        return list(dict.fromkeys(names[word] for word in words if word in names))

    @cache
    def kind(record: Record) -> str:
        padding = record[0].mnemonic == "align"
        return "other" if padding else read_record(record, architecture, vector_bytes).kind.lower()

    def of(line: Line) -> Facts:
        if line.kind == "instruction" and line.record is not None:
            return roles(line.text), kind(line.record)
        return [], ""

    return of


def lines(kernel: EmittedKernel) -> Iterator[ListedLine]:
    """The program line by line."""
    told = facts(kernel)
    for line, meaning, depth, loop in explain(kernel, list(kernel.program.lines())):
        roles, kind = told(line)
        yield ListedLine(line, depth, roles, meaning, loop, kind)


# ---- values -------------------------------------------------------------------------------------


def as_values(kernel: EmittedKernel) -> dict[str, Any]:
    """The listing as JSON has it: plain lists, dicts, strings and numbers."""
    all_lines = list(lines(kernel))
    sections = Sections(kernel)
    listed = [line_values(x, sections.sentence(x.line.section)) for x in all_lines]
    registers = {role: general_name(kernel.target, n) for role, n in kernel.roles.items()}
    plan = asdict(kernel.plan)
    spec = kernel.spec.described()
    return {
        "format": KIND, "target": kernel.target.name, "computes": describe(kernel.spec),
        "code_bytes": len(kernel.code),
        "spec": {name: _plain(value) for name, value in spec.items()},
        "plan": plan_lines(kernel),
        "plan_fields": {n: plan[n] for n in plan if n not in ("nest", "reasons")},
        "general_registers": registers, "tiles": tile_registers(kernel),
        "loops": [_loop_values(listed, x.loop) for x in all_lines if x.loop is not None],
        "instructions": mix(all_lines),
        "inner_loops": inner_loops(all_lines),
        "lines": listed,
    }  # fmt: skip


def line_values(listed: ListedLine, sentence: str) -> dict[str, Any]:
    """A line as JSON has it; `sentence` is the meaning of a section."""
    line, depth, roles, meaning, _, kind = listed
    return {
        "kind": line.kind, "offset": line.offset, "bytes": line.code.hex(), "text": line.text,
        "depth": depth, "roles": roles, "meaning": sentence if line.kind == "section" else meaning,
        "class": kind,
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """The value as JSON can hold it: infinities as text, tuples as lists."""
    if isinstance(value, tuple):
        return [_plain(x) for x in value]
    return str(value) if isinstance(value, float) and value in (float("inf"), -float("inf")) else (
        value
    )


def _loop_values(listed: list[dict[str, Any]], loop: Loop) -> dict[str, Any]:
    start = loop.start.number if loop.start is not None else None
    return {
        "over": loop.quantity, "start": start, "by": loop.by, "trips": loop.trips,
        "label": listed[loop.begin]["text"], "begin": listed[loop.begin]["offset"],
        "end": listed[loop.end]["offset"] + len(listed[loop.end]["bytes"]) // 2,
        "first_line": loop.begin, "last_line": loop.end,
    }  # fmt: skip


def mix(some: list[ListedLine]) -> dict[str, int]:
    """How many instructions there are of each kind."""
    from jitgen.inspect.instructions import KINDS

    counts = Counter(x.kind for x in some if x.kind)
    return {kind.lower(): counts[kind.lower()] for kind in KINDS}


def inner_loops(all_lines: list[ListedLine]) -> list[dict[str, Any]]:
    """The reduction loops: tile, passes, steps in a pass, bytes, and instructions by kind."""
    result: list[dict[str, Any]] = []
    tile = ""
    for x in all_lines:
        section = x.line.section
        if isinstance(section, TileSection):
            tile = f"{section.rows} x {section.columns}"
        elif isinstance(section, PackB):
            tile = ""
        if x.loop is not None and x.loop.quantity == "k" and tile:
            body = all_lines[x.loop.begin : x.loop.end + 1]
            result.append({
                "tile": tile, "passes": x.loop.trips, "steps": x.loop.by,
                "bytes": sum(len(y.line.code) for y in body), "instructions": mix(body),
            })  # fmt: skip
    return result


# ---- text ---------------------------------------------------------------------------------------


def listing(kernel: EmittedKernel) -> str:
    """The whole kernel as text: header, register maps, sections, instructions, constants."""
    all_lines = list(lines(kernel))
    sections = Sections(kernel)
    out = [f"; {line}".rstrip() for line in _header(kernel)]
    labels: list[str] = []  # printed below the headings of the same place
    for line, depth, _, meaning, loop, _ in all_lines:
        if line.kind == "section":
            sentence = sections.sentence(line.section)
            out += ["", f"; {line.text}", *([f";   {sentence}"] if sentence else [])]
        elif line.kind == "label":
            labels.append(f"{line.text}:" + (f"  ; {meaning}" if loop else ""))
        else:
            out += labels
            labels.clear()
            out += numbered(line, depth, meaning)
    return "\n".join(out + labels) + "\n"


def _header(kernel: EmittedKernel) -> Iterator[str]:
    spec, target, program = kernel.spec, kernel.target, kernel.program
    yield f"{spec.m} x {spec.n} x {spec.k} {spec.dtype} for {target.name}: {describe(spec)}"
    strides = f" (A {spec.stride_a}, B {spec.stride_b})" if spec.batch == "stride" else ""
    b = f"packed in panels of {spec.panel}" if spec.panel else f"ldb {spec.ldb}"
    yield f"in elements: lda {spec.lda}, {b}, ldc {spec.ldc}; batch by {spec.batch}{strides}"
    needs = sorted({f for some in program.features for f in some.split()})
    yield f"{len(kernel.code)} bytes with constants; needs {', '.join(needs)}"
    if kernel.code != program.encode():
        yield "another assembler made the code that runs; the bytes below are jitgen's own"
    yield from ("", "plan", *(f"  {sentence}" for sentence in plan_lines(kernel)))
    yield from ("", "general-purpose registers")
    argument = target.machine(spec.dtype, spec.n).argument
    yield f"  {general_name(target, argument):4} {'args':10} the argument struct"
    for role, number in kernel.roles.items():
        yield f"  {general_name(target, number):4} {role:10} {role_meaning(role)}"
    for size in tiles(kernel):
        yield from ("", *register_map(kernel, size))
    yield from ("", "A, B: the batch element's; row, col: the tile's first row and column;")
    yield "k: the step from the block's first; M[i, j..l]: columns j to l of row i of M"


def register_map(kernel: EmittedKernel, size: tuple[int, int]) -> list[str]:
    """The vector registers of a tile as a grid: rows of C down, its columns across."""
    heading, *rows = register_grid(kernel, size)
    widths = [max(len(row[i]) for row in (heading, *rows)) for i in range(len(heading))]
    return [
        f"vector registers of a tile of {size[0]} x {size[1]}",
        *("  " + "  ".join(f"{x:{w}}" for x, w in zip(row, widths, strict=True)).rstrip()
          for row in (heading, *rows)),
    ]  # fmt: skip


def register_grid(kernel: EmittedKernel, size: tuple[int, int]) -> list[list[str]]:
    """The same as cells: a heading, a row for each of C (and set of sums), then A, B, tail.

    An operand that the tile holds stands beside the rows (a) or below the columns (b) it is
    multiplied with.
    """
    tile = tiles(kernel)[size]
    name = [vector_name(kernel, v) for v in range(32)]
    spans = [
        f"{at}..{at + n - 1}" if n > 1 else str(at)
        for at, n in zip(tile.offsets, tile.widths, strict=True)
    ]
    held_a = tile.hold == "a"
    cells = [["columns", *spans, "a" if held_a else ""]]
    for s, rows in enumerate(tile.sets):
        for i, row in enumerate(rows):
            a = name[tile.held[i]] if held_a and not s else ""
            cells.append([f"acc{chr(39) * s}[{i},*]", *(name[v] for v in row), a])
    moving = name[tile.moving] if tile.moving >= 0 else "from memory"
    blank = [""] * (len(spans) - 1)
    if held_a:
        cells.append(["b", moving, *blank, ""])
    else:
        cells.append(["b[*]", *(name[v] for v in tile.held), ""])
        cells.append(["a", moving, *blank, ""])
    if tile.tail >= 0:
        cells.append(["tail", name[tile.tail], *blank, ""])
    return cells
