"""A kernel as text: what it computes, its plan and reasons, register roles, and every instruction.

`as_values` gives the same as values, for other tools. Not here: the text of one instruction
(`isa.form.Form.text`) or any decision (`jitgen.plan`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from isa import a64, x86
from isa.program import LABEL, Line
from isa.x86_rows import R32
from isa.x86_vector import REGISTER
from jitgen.frame import Tile
from jitgen.plan import tile_split

if TYPE_CHECKING:
    from jitgen.kernel import Kernel
    from jitgen.spec import KernelSpec
    from jitgen.target import Target

#: What the general-purpose registers hold, by role
ROLES = {
    "a": "A of this pass's first batch element",
    "b": "B of this pass's first batch element",
    "a_now": "where A is read; at the ends of a tile, where C is",
    "b_now": "where B is read; in an epilogue, where its operand is",
    "last": "batch index that ends this pass",
    "index": "batch index; scratch at the ends of a tile",
    "step": "counts the reduction loop; scratch elsewhere",
    "first": "batch index that began this pass",
    "row": "byte offset of the tile's first row in a column of single elements",
    "col": "byte offset of the tile's first column in a row",
    "k": "byte offset of this block of the reduction",
    "constants": "address of the constants",
    "b_step": "the constant bytes from one reduction step of B to the next",
}
#: Bytes of machine code in one line of a listing
LINE_BYTES = 11


def describe(spec: KernelSpec) -> str:
    """What the kernel computes, in one line.

    >>> from jitgen.spec import make_spec
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


def plan_lines(kernel: Kernel) -> list[str]:
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


def general_name(target: Target, number: int) -> str:
    """Name of a general-purpose register of `target`."""
    x86_64 = target.architecture == "x86_64"
    return x86.register_name(number) if x86_64 else a64.register_name(number)


def tile_registers(kernel: Kernel) -> list[dict[str, Any]]:
    """Vector registers of each kind of tile: rows, columns, accumulators (a list for each set),
    a and b (operands of a reduction step) and tail (a mask, or None), as names."""
    spec, plan = kernel.spec, kernel.plan
    machine = kernel.target.machine(spec.dtype, spec.n)
    facts = kernel.target.facts(machine)
    prefix = REGISTER[machine.vector_bits] if kernel.target.architecture == "x86_64" else "z"
    result = {}
    for rows, columns in plan.tiles():
        size = (rows.size, columns.size)
        split = tile_split(plan, spec, facts, *size)
        tile = Tile(spec, facts, *size, 0, 0, split, plan.hold)
        name = [f"{prefix}{i}" for i in range(facts.vectors)]
        operands = [name[i] for i in tile.operands]
        held = len(tile.widths) if tile.hold == "b" else rows.size
        a, b = operands[:held], operands[held:]
        if tile.hold == "b":
            a, b = b, a
        result[size] = {
            "rows": rows.size, "columns": columns.size,
            "accumulators": [[name[i] for row in s for i in row] for s in tile.sets],
            "a": a, "b": b, "tail": name[tile.tail] if tile.tail >= 0 else None,
        }  # fmt: skip
    return list(result.values())


class ListedLine(NamedTuple):
    """A line of the program with the number of loops around it and the roles it touches."""

    line: Line
    depth: int
    roles: list[str]


def lines(kernel: Kernel) -> Iterator[ListedLine]:
    """The program line by line."""
    program = list(kernel.program.lines())
    records = [line.record or (LABEL, ()) for line in program]
    placed = {x[0]: i for i, (form, x) in enumerate(records) if form is LABEL and x}
    changes = [0] * (len(program) + 1)
    for i, (form, operands) in enumerate(records):
        begin = placed.get(operands[form.label_at], i) if form.label_at >= 0 else i
        if begin < i:  # a branch back is the end of a loop
            changes[begin + 1] += 1
            changes[i + 1] -= 1
    names = {general_name(kernel.target, number): role for role, number in kernel.roles.items()}
    if kernel.target.architecture == "x86_64":
        names |= {R32[number]: role for role, number in kernel.roles.items()}
    for line, depth in zip(program, accumulate(changes), strict=False):
        # a save or restore of the caller's value has nothing to do with the role
        named = line.kind == "instruction" and not line.text.startswith(("push", "pop"))
        words = re.findall(r"\w+", line.text) if named else []
        roles = dict.fromkeys(names[word] for word in words if word in names)
        yield ListedLine(line, depth, list(roles))


def as_values(kernel: Kernel) -> dict[str, Any]:
    """The listing as JSON has it."""
    listed = [
        {
            "kind": line.kind, "offset": line.offset, "bytes": line.code.hex(),
            "text": line.text, "depth": depth, "roles": roles,
        }
        for line, depth, roles in lines(kernel)
    ]  # fmt: skip
    registers = {role: general_name(kernel.target, n) for role, n in kernel.roles.items()}
    return {
        "target": kernel.target.name, "computes": describe(kernel.spec),
        "code_bytes": len(kernel.code), "plan": plan_lines(kernel),
        "general_registers": registers, "tiles": tile_registers(kernel), "lines": listed,
    }  # fmt: skip


def listing(kernel: Kernel) -> str:
    """The whole kernel as text: header, register roles, sections, instructions, constants."""
    out = [f"; {line}".rstrip() for line in _header(kernel)]
    labels: list[str] = []  # printed below the headings of the same place
    for line, depth, roles in lines(kernel):
        if line.kind == "section":
            out += ["", f"; {line.text}"]
        elif line.kind == "label":
            labels.append(f"{line.text}:")
        else:
            out += labels
            labels.clear()
            text, comment = "  " * depth + line.text, f"  ; {', '.join(roles)}" if roles else ""
            for at in range(0, len(line.code), LINE_BYTES):
                code = line.code[at : at + LINE_BYTES].hex()
                out.append(f"{line.offset + at:6x}  {code:22}  {text:<46}{comment}".rstrip())
                text = comment = ""
    return "\n".join(out + labels) + "\n"


def _header(kernel: Kernel) -> Iterator[str]:
    spec, target = kernel.spec, kernel.target
    yield f"{spec.m} x {spec.n} x {spec.k} {spec.dtype} for {target.name}: {describe(spec)}"
    strides = f" (A {spec.stride_a}, B {spec.stride_b})" if spec.batch == "stride" else ""
    b = f"packed in panels of {spec.panel}" if spec.panel else f"ldb {spec.ldb}"
    yield f"in elements: lda {spec.lda}, {b}, ldc {spec.ldc}; batch by {spec.batch}{strides}"
    needs = sorted({f for some in kernel.program.features for f in some.split()})
    yield f"{len(kernel.code)} bytes with constants; needs {', '.join(needs)}"
    if kernel.code != kernel.program.encode():
        yield "another assembler made the code that runs; the bytes below are jitgen's own"
    yield from ("", "plan", *(f"  {sentence}" for sentence in plan_lines(kernel)))
    yield from ("", "general-purpose registers")
    argument = target.machine(spec.dtype, spec.n).argument
    yield f"  {general_name(target, argument):4} the argument struct"
    for role, number in kernel.roles.items():
        further = "where A is read, for rows further down"  # a_now1, a_now2 ...
        meaning = further if role.startswith("a_now") and role != "a_now" else ROLES[role]
        yield f"  {general_name(target, number):4} {role:10} {meaning}"
    yield from ("", "vector registers")
    for tile in tile_registers(kernel):
        sets = " + ".join(_span(names) for names in tile["accumulators"])
        a = _span(tile["a"]) or "broadcast from memory"
        tail = f", tail mask {tile['tail']}" if tile["tail"] else ""
        size = f"{tile['rows']} x {tile['columns']}"
        yield f"  tile {size}: C {sets} row by row, A {a}, B {_span(tile['b'])}{tail}"


def _span(names: list[str]) -> str:
    """First and last of consecutive registers."""
    return names[0] if len(names) == 1 else f"{names[0]}-{names[-1]}" if names else ""
