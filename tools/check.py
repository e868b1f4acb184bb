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

ROOT = Path(__file__).resolve().parent.parent
#: Longest file, in lines, in the rooms below
LONGEST = 450
ROOMS = ("isa", "jitgen", "primitives", "tools")
#: What each room may import of this project: imports point down only
MAY_IMPORT = {"isa": {"isa"}, "jitgen": {"isa", "jitgen"}, "primitives": {"jitgen", "primitives"}}
#: Instruction sets may be named only where targets and CPUs are told apart: of the files that lie
#: in jitgen/ and primitives/ themselves, these
INSTRUCTION_SETS = {*isa.FAMILIES, "neon", "zmm", "ymm"}
TELLS_APART = {"cpu.py", "kernel.py", "peachpy.py", "target.py"}
FAST_TESTS = (
    "tests/test_rows.py", "tests/test_listing.py", "tests/test_cli.py", "tests/test_bad_input.py",
    "tests/test_kernels_python.py",
)  # fmt: skip


def sources(room: str) -> list[Path]:
    """The Python files of a room."""
    return sorted((ROOT / room).rglob("*.py"))


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
            for node in ast.walk(tree):
                broken += _imports(room, f"{name}", node)
    for room in ("jitgen", "primitives"):
        for path in sorted((ROOT / room).glob("*.py")):
            found = _instruction_sets(ast.parse(path.read_text()))
            if found and path.name not in TELLS_APART:
                name = path.relative_to(ROOT)
                broken.append(f"{name}: an algorithm names the instruction set {found[0]}")
    return broken


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


def _imports(room: str, name: str, node: ast.AST) -> list[str]:
    modules = []
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        modules = [node.module]
    allowed = MAY_IMPORT.get(room)
    tops = {m.split(".")[0] for m in modules} & {*ROOMS, "tests"}
    if allowed is None or tops <= allowed:
        return []
    return [f"{name}: imports {sorted(tops - allowed)[0]}; imports point down only"]


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
