"""Who imports whom: the graph of this project's modules, its circles, and the floors it stands on.

Imports inside functions and for type checkers count as all others do. Not here: other house rules
(`tools.check`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

#: Rooms of `jitgen` from the ground up, those of one floor together: imports point down only, or
#: stay in a room. What is no package is a room by itself.
FLOORS = (
    ("moved", "version"), ("isa",), ("types",), ("doors", "frozen", "records"), ("target",),
    ("emit",),
    ("run", "peachpy"), ("gemm",), ("kernels",), ("inspect",), ("objects",),
    ("analysis", "debug"), ("primitives",), ("cli",), ("__main__",),
)  # fmt: skip
Graph = Mapping[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Name -> file of every module: `isa` and `primitives` by their names in `jitgen`."""
    found = {}
    for room in ("isa", "jitgen", "primitives", "tools"):
        for path in sorted((root / room).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[:2] in (("jitgen", "isa"), ("jitgen", "primitives")):
                continue  # links, or copies, of what stands beside jitgen
            name = ".".join(parts).removesuffix(".__init__")
            found[f"jitgen.{name}" if room in ("isa", "primitives") else name] = path
    return found


def imported(tree: ast.AST, known: Iterable[str]) -> Iterator[str]:
    """The modules of `known` that a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in known:
                    yield whole
                elif node.module in known:
                    yield node.module


def graph(root: Path) -> dict[str, set[str]]:
    """Module -> the modules it imports."""
    known = modules(root)
    return {
        name: set(imported(ast.parse(path.read_text()), known)) - {name}
        for name, path in known.items()
    }


def reached(graph: Graph, start: Iterable[str]) -> set[str]:
    """`start` and all that is imported from there on."""
    found, left = set(), list(start)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += graph[name]
    return found


def circles(graph: Graph) -> list[list[str]]:
    """Groups of modules that import one another, in order."""
    behind = {name: reached(graph, graph[name]) for name in graph}
    groups = {
        tuple(sorted(other for other in behind[name] if name in behind[other]))
        for name in graph if name in behind[name]
    }  # fmt: skip
    return [list(group) for group in sorted(groups)]


def upward(graph: Graph) -> list[str]:
    """Imports of `jitgen` that point up, one sentence each."""
    floors = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
    rooms = {name.split(".")[1]: name for name in graph if name.startswith("jitgen.")}
    broken = [f"{name}: FLOORS of tools/imports.py does not say where {room} stands"
              for room, name in rooms.items() if room not in floors]  # fmt: skip
    for name, names in graph.items():
        for other in names:
            if not (name.startswith("jitgen.") and other.startswith("jitgen.")):
                continue
            here, there = name.split(".")[1], other.split(".")[1]
            up = floors.get(there, 0) >= floors.get(here, len(floors))
            if here != there and up:
                broken.append(f"{name}: imports {other}; imports point down only")
    return broken
