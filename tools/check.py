"""The fast checks, under a minute: ruff, mypy, house rules, and tests that need no emulator.

    python -m tools.check            # everything
    python -m tools.check --no-tests

Not here: the whole suite (`python -m pytest`).
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
import time
from pathlib import Path

from jitgen import isa
from jitgen.isa import types
from tools import imports

ROOT = Path(__file__).resolve().parent.parent
#: Longest file, in lines, in the rooms below
LONGEST = 450
ROOMS = ("isa", "jitgen", "primitives", "tools")
#: What names an instruction set, outside of isa/
INSTRUCTION_SETS = {*isa.FAMILIES, "neon", "zmm", "ymm"}
#: Files that may name them, each with its reason
TELLS_APART = {
    "jitgen/target.py": "a target is an instruction set at a vector length",
    "jitgen/peachpy.py": "PeachPy's own names of registers and CPUs",
    "jitgen/run/cpu.py": "which of them this CPU has",
    "jitgen/analysis/cpus.py": "a table of CPUs and what they have",
    "jitgen/analysis/host.py": "which CPU of that table this one is",
    "jitgen/inspect/instructions.py": "what instructions do, by the names of registers",
    "jitgen/inspect/words.py": "names of vector registers in texts of instructions",
    "jitgen/objects/header.py": "the C code that asks a CPU what it has",
    "jitgen/objects/table.py": "how that code asks an AArch64 CPU",
}
#: Files that may name element types, each with its reason; elsewhere only defaults do
TELLS_TYPES = {
    "isa/types.py": "the table",
    "jitgen/emit/functions.py": "coefficients that are right for a type",
    "jitgen/emit/derivatives.py": "coefficients that are right for a type",
    "jitgen/emit/exponents.py": "coefficients that are right for a type",
    "jitgen/emit/rectifiers.py": "limits that are right for a type",
    "jitgen/analysis/cpus.py": "what a CPU needs for a division, by type",
}
FAST_TESTS = (
    "tests/test_rows.py", "tests/test_listing.py", "tests/test_cli.py", "tests/test_bad_input.py",
    "tests/test_kernels_python.py",
)  # fmt: skip


def sources(room: str) -> list[Path]:
    """The Python files of a room."""
    links = {ROOT / "jitgen" / "isa", ROOT / "jitgen" / "primitives"}  # rooms by themselves
    return [p for p in sorted((ROOT / room).rglob("*.py")) if links.isdisjoint(p.parents)]


def house_rules() -> list[str]:
    """Broken house rules, one sentence each."""
    broken = []
    for room in ROOMS:
        for path in sources(room):
            text = path.read_text()
            name = path.relative_to(ROOT)
            if text.count("\n") > LONGEST:
                broken.append(f"{name}: {text.count(chr(10))} lines, at most {LONGEST}")
            tree = ast.parse(text)
            if not ast.get_docstring(tree) and text.strip():
                broken.append(f"{name}: no module docstring")
    for what, rooms, named, listed in (
        ("instruction set", ("jitgen", "primitives"), _instruction_sets, TELLS_APART),
        ("element type", ("isa", "jitgen", "primitives"), _element_types, TELLS_TYPES),
    ):
        for path in (path for room in rooms for path in sources(room)):
            name = f"{path.relative_to(ROOT)}"
            found = named(ast.parse(path.read_text()))
            if found and name not in listed:
                broken.append(f"{name}: names the {what} {found[0]}")
            elif not found and name in listed:
                broken.append(f"{name}: may name {what}s, and names none")
    graph = imports.graph(ROOT)
    broken += [f"imports in a circle: {', '.join(circle)}" for circle in imports.circles(graph)]
    return broken + imports.upward(graph)


def _instruction_sets(tree: ast.AST) -> list[str]:
    """Instruction sets that a module names: as a text of its own, a variable or an import."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(name)) | ast.Name(id=name) | ast.Attribute(attr=name):
                names.add(name.lower())
            case ast.alias(name=name):
                names |= set(name.lower().split("."))
    return sorted(names & INSTRUCTION_SETS)


def _element_types(tree: ast.AST) -> list[str]:
    """Element types that a module names, but as the default of an argument."""
    defaults: set[ast.AST | None] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            defaults.update((*node.defaults, *node.kw_defaults))
    return sorted(
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in types.DTYPES and node not in defaults
    )


def line_counts() -> str:
    """Lines by room."""
    counts = {r: sum(p.read_text().count("\n") for p in sources(r)) for r in ROOMS}
    return ", ".join(f"{room} {n}" for room, n in counts.items() if n)


def main(argv: list[str] | None = None) -> int:
    """Run the checks; 0 if all pass, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tools.check", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--no-tests", action="store_true", help="only ruff, mypy and house rules")
    options = parser.parse_args(argv)
    failed = []
    commands = {
        "ruff": [sys.executable, "-m", "ruff", "check", "."],
        "mypy": [sys.executable, "-m", "mypy"],
    }
    if not options.no_tests:
        tests = [t for t in FAST_TESTS if (ROOT / t).exists()]
        commands["tests"] = [sys.executable, "-m", "pytest", "-q", "-x", *tests]
    for name, command in commands.items():
        begin = time.perf_counter()
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        print(f"{name}: {'ok' if code == 0 else 'FAILED'} ({time.perf_counter() - begin:.1f} s)")
        if code:
            failed.append(name)
    broken = house_rules()
    for sentence in broken:
        print(sentence)
    print(f"house rules: {'FAILED' if broken else 'ok'}; lines: {line_counts()}")
    return 1 if failed or broken else 0


if __name__ == "__main__":
    sys.exit(main())
