"""Registers of a kernel by what they hold: general-purpose ones by role, vectors by tile.

Not here: what instructions do with them (`jitgen.inspect.meaning`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jitgen.gemm.plan import tile_split
from jitgen.gemm.sections import TileStage
from jitgen.gemm.tile import Tile
from jitgen.isa import a64, x86

if TYPE_CHECKING:
    from jitgen.gemm.emitted import EmittedKernel
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
    "row": "first row of the tile",
    "col": "first column of the tile",
    "k": "first reduction step of this block",
    "constants": "address of the constants",
    "b_step": "the constant bytes from one reduction step of B to the next",
}


def role_meaning(role: str) -> str:
    """What a role holds, in words."""
    # a_now1, a_now2 ...
    return ROLES.get(role, "where A is read, for rows further down")


def general_name(target: Target, number: int) -> str:
    """Name of a general-purpose register of `target`."""
    x86_64 = target.architecture == "x86_64"
    return x86.register_name(number) if x86_64 else a64.register_name(number)


def vector_name(kernel: EmittedKernel, number: int) -> str:
    """Name of a whole vector register of a kernel."""
    machine = kernel.target.machine(kernel.spec.dtype, kernel.spec.n)
    return f"{machine.register}{number}"


def tiles(kernel: EmittedKernel) -> dict[tuple[int, int], Tile]:
    """The register tile of each size (rows, columns) that the kernel has."""
    spec, plan = kernel.spec, kernel.plan
    facts = kernel.target.facts(kernel.target.machine(spec.dtype, spec.n))
    result = {}
    for rows, columns in plan.tiles():
        size = (rows.size, columns.size)
        split = tile_split(plan, spec, facts, *size)
        result[size] = Tile(spec, facts, *size, 0, 0, split, plan.hold)
    return result


def tile_operands(tile: Tile) -> tuple[list[int], list[int]]:
    """The vector registers of A and of B in a reduction step of a tile."""
    moving = [tile.moving] if tile.moving >= 0 else []
    return (moving, tile.held) if tile.hold == "b" else (tile.held, moving)


def tile_registers(kernel: EmittedKernel) -> list[dict[str, Any]]:
    """Vector registers of each kind of tile: rows, columns, accumulators (a list for each set),
    a and b (operands of a reduction step) and tail (a mask, or None), as names."""
    result = []
    for (rows, columns), tile in tiles(kernel).items():
        a, b = ([vector_name(kernel, i) for i in some] for some in tile_operands(tile))
        sets = [[vector_name(kernel, i) for row in s for i in row] for s in tile.sets]
        result.append({
            "rows": rows, "columns": columns, "accumulators": sets, "a": a, "b": b,
            "tail": vector_name(kernel, tile.tail) if tile.tail >= 0 else None,
        })  # fmt: skip
    return result


def vector_roles(tile: Tile, stage: TileStage) -> dict[int, str]:
    """Vector register -> its name in a part of a tile.

    acc[i,j] accumulates row i of the tile and its j-th vector of columns, acc' and so on its
    further sums; a and b are operands, with an index where the tile holds several; t0, t1 ... are
    temporaries.
    """
    a, b = tile_operands(tile)
    names = {v: f"t{i}" for i, v in enumerate(tile.free)}
    if stage == "reduce":
        for letter, registers in (("a", a), ("b", b)):
            held = registers == tile.held
            names |= {v: f"{letter}[{i}]" if held else letter for i, v in enumerate(registers)}
    for s, each in enumerate(tile.sets):
        names |= {
            v: f"acc{chr(39) * s}[{i},{j}]" for i, row in enumerate(each) for j, v in enumerate(row)
        }
    if tile.tail >= 0:
        names[tile.tail] = "tail"
    return names
