"""Every block of the documentation runs: Python, commands, programs; what it prints is what the
page says. Docstrings' examples too.

What a block may be, and how it is run: pages.py. A block that does not run as it stands is a fault
of its page.
"""

from __future__ import annotations

import doctest
import importlib.util
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import needs
import numpy as np
import pages
import pytest
from libraries import need_x86
from pages import PAGES, ROOT, Block

from tools.bench import __main__ as bench, command as bench_command

#: Commands that are not run (a part of each), and why
EXEMPT = {
    "python3 -m venv .venv": "installs into the clone",
    "bash tools/test.sh": "it is what runs this test",
    "pip install": "installs",
    "python -m pytest -m soak": "ten minutes and more; test_soak itself runs a little of it",
    "python -m tools.bench": "minutes of measuring; its arguments are read below",
}
#: Commands that take long, and the options with which they are run instead
SHORTER = {
    "jitgen kernel --shapes": "--seconds 0.002",
    "python examples/digits.py": "--epochs 1 --least 0",
    "python examples/digits_cnn.py": "--epochs 1 --least 0",
    "python examples/digits_lstm.py": "--epochs 1 --least 0",
    "python examples/characters.py": "--steps 2 --hidden 16 --write 10 --most 99",
    "python examples/resnet50.py --random": "--size 64",
    "python examples/block_sparse.py": "--seconds 0.01",
    "python examples/fused_attention.py": "--seconds 0.01",
    "python examples/linear_attention.py": "--seconds 0.01",
}
#: Pages by their names in reports
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
BENCH = "python -m tools.bench"


def _with(language: str) -> list[str]:
    """The pages that have such blocks."""
    return [
        name for name in NAMES
        if any(b.language == language and not b.file for b in pages.read(ROOT / name))
    ]  # fmt: skip


def _commands() -> list[tuple[str, str]]:
    """(where, command) of all pages."""
    return [
        (block.place, command)
        for path in PAGES
        for block in pages.read(path)
        if block.language == "sh"
        for command in pages.commands(block.text)
    ]


@cache
def _missing(tool: str) -> tuple[str, bool] | None:
    """Why a tool cannot be used here, and whether CI has it; None if it can."""
    package = pages.TOOLS[tool]
    if not shutil.which(pages.EXECUTABLES.get(tool, tool)):
        how = f": apt-get install {package}" if package else ""
        return f"{tool} is missing{how}", package is not None
    if tool == "perf":
        probe = ["perf", "record", "-e", "cpu-clock", "-o", "/dev/null", "true"]
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"perf may not record here: {done.stderr.strip()}", False
    return None


@pytest.mark.parametrize("name", NAMES)
def test_every_block_says_what_it_is(name: str) -> None:
    """No code is indented only, no language is unknown."""
    assert pages.read(ROOT / name) or name == "docs/disk-cache.md"


@pytest.mark.parametrize("name", _with("python"))
def test_python(name: str, tmp_path: Path) -> None:
    """All Python of a page runs, in order, in a process of its own."""
    need_x86()
    page = pages.read(ROOT / name)
    try:
        pages.run_python(page, tmp_path, pages.prepare(tmp_path, page))
    finally:
        pages.clean_up(tmp_path)


@pytest.mark.parametrize("name", _with("sh"))
def test_commands(name: str, tmp_path: Path) -> None:
    """All commands of a page run, in order, behind its Python; they print what it says."""
    need_x86()
    page = pages.read(ROOT / name)
    environment = pages.prepare(tmp_path, page)
    if any(block.file == "main.c" for block in page):
        pages.run_python(page, tmp_path, environment)  # which makes files for programs
    try:
        lacking = run_commands(page, tmp_path, environment)
    finally:
        pages.clean_up(tmp_path)
    for why, installable in lacking:  # what could run has run
        needs.need(why, installable)


def run_commands(
    page: list[Block], folder: Path, environment: dict[str, str]
) -> list[tuple[str, bool]]:
    """Run all commands of a page and check what they print; the tools that were not there."""
    lacking: dict[str, tuple[str, bool]] = {}
    printed: str | None = None
    for i, block in enumerate(page):
        if block.language == "sh":
            session = next((b.text for b in page[i:] if b.language == "gdb"), "")
            printed = ""
            for command in pages.commands(block.text):
                if any(part in command for part in EXEMPT):
                    continue
                missing = {t: why for t in pages.tools(command) if (why := _missing(t))}
                if "--compare" in command and not importlib.util.find_spec("torch"):
                    missing["torch"] = ("PyTorch is not installed", False)
                lacking |= missing
                if missing:
                    continue
                command += "".join(f" {more}" for part, more in SHORTER.items() if part in command)
                asked = "".join(re.findall(r"^\(gdb\) (.*\n)", session, re.MULTILINE))
                given = asked if "gdb" in pages.tools(command) else ""
                printed += pages.run_command(command, folder, environment, block.place, given)
            printed = None if lacking else printed
        elif block.language == "python":
            printed = None  # what is behind it is compared where Python runs
        elif block.language == "output" and printed is not None:
            pages.check_output(block, printed)
        elif block.language == "gdb" and printed is not None:
            pages.check_session(block, printed)
    return list(lacking.values())


def _bench_commands() -> list[tuple[str, str]]:
    """(where, command) of benchmarks, in blocks and in sentences; "..." stands for more of the
    same."""
    found = [(place, command) for place, command in _commands() if BENCH in command]
    for path in PAGES:
        for words in re.findall(rf"`({BENCH} [^`]*)`", path.read_text()):
            found.append((path.name, words))
    return [(place, re.sub(r"\s+(\.\.\.)?\s*", " ", command)) for place, command in found]


@pytest.mark.parametrize(("place", "command"), _bench_commands())
def test_benchmarks_take_their_arguments(
    place: str, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The options and their values are read and checked as the command does it; nothing is
    measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_command.os, "sched_getaffinity", lambda _: range(2))
    read = []
    monkeypatch.setattr(
        bench_command, "run", lambda given, _, __, options, *___: read.append(options(given))
    )
    arguments = command.split(BENCH)[1].split()
    parser = bench._parser()
    given = parser.parse_args(arguments)
    if given.command == "kernel":
        bench._options(parser, given)
    elif given.command not in ("analysis", "disk", "export"):  # which have plain options
        bench.OTHERS[given.command][0].run(given)
        assert read


def test_the_lists_of_exceptions_name_what_is_there() -> None:
    """An entry that no command has goes."""
    have = [command for _, command in _commands()]
    for part in (*EXEMPT, *SHORTER):
        assert any(part in command for command in have), f"{part!r} stands in no page"


MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for room in ("isa", "jitgen", "primitives")
    for path in sorted((ROOT / room).rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    """The examples in a module's docstrings run and give what they say; np is NumPy in them."""
    need_x86()
    assert len(MODULES) > 20
    done = doctest.testmod(importlib.import_module(name), extraglobs={"np": np})
    assert done.attempted and not done.failed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n", 'File "p", line 6'),
        ("```sh\ntrue\nfalse\n```\n", "p:2: false: exit status 1"),
        ("```python\nprint(1)\n```\n\n```output\n2\n```\n", "p:6: not printed"),
        ("```python\nprint(1, 2, sep='\\n')\n```\n\n```output\n1\n```\n", "p:6: there is more"),
        ("```sh\necho a\n```\n\n```output\nb\n```\n", "p:6: not printed"),
        ("```sh\necho a; echo b\n```\n\n```output\na\n```\n", "p:6: there is more"),
        ("```sh\necho a; echo b\n```\n\n```output\nb\n...\na\n```\n", "p:6: not printed"),
        ("```c f\nint x;\n```\n\n```sh\ncat f\n```\n\n```output\nint y;\n```\n", "p:10: not"),
        ("```\nx\n```\n", "p:1: '' is not one of"),
        ("```pyhton\nx\n```\n", "p:1: 'pyhton' is not one of"),
        ("```c\nint x;\n```\n", "p:1: 'c' is not one of"),
        ("so:\n\n    python x.py\n", "p:3: an indented block"),
        ("```sh\ntrue\n", "p:1: the block has no end"),
        ("```gdb\n(gdb) print 1\n$1 = 0x12, ...3\n```\n", "p:2: gdb does not answer '$1 = 0x12"),
    ],
)  # fmt: skip
def test_a_page_can_fail(text: str, message: str, tmp_path: Path) -> None:
    """With page and line."""
    with pytest.raises(AssertionError) as caught:
        page = pages.blocks(text, "p")
        environment = pages.prepare(tmp_path, page)
        pages.run_python(page, tmp_path, environment)
        run_commands(page, tmp_path, environment)
        for block in page:
            pages.check_session(block, "$1 = 0x34, 4, 3\n")
            pages.check_session(block, "$1 = 0x, 4, 4\n")
    assert message in str(caught.value)
