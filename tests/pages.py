"""The pages of documentation as blocks, and what it takes to run them.

A block is between fences; its first line names its language and, perhaps, a file:

    python        run, all of a page in one process, one after the other
    sh            each command is run, in a folder that has the page's files and examples/
    output        what the commands before print: all of it, or pieces between lines of "..."
    gdb           commands behind "(gdb)" for the gdb that was started before, and what it answers
    sample        output that is another one each time, or on each machine
    text          no code: formulas, diagrams, rows
    LANGUAGE FILE written to that file, for the commands

Not here: any test.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]  # fmt: skip
#: Languages of blocks without a file, and of those that must have one
PLAIN = {"python", "sh", "output", "gdb", "sample", "text"}
FILES = {"python", "c", "json", "cmake", "rust", "go"}
#: Programs that commands use, and what to install; None: CI does not have it
TOOLS = {
    "gcc": "gcc", "cmake": "cmake", "ctest": "cmake", "pkg-config": "pkg-config", "gdb": "gdb",
    "perf": "linux-perf", "bochs": "bochs", "qemu": "qemu-user", "rustc": None, "go": None,
}  # fmt: skip
EXECUTABLES = {"qemu": "qemu-aarch64"}
#: Seconds for a command, or for all Python of a page
LIMIT = 120
#: Ends what a block of Python prints
END = "\x1e"


class Block(NamedTuple):
    """What stands between two fences; `line` is that of its first line, from 1."""

    page: str
    line: int
    language: str
    file: str
    text: str

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self.page}:{self.line}"


def blocks(text: str, page: str) -> list[Block]:
    """All blocks of a page. AssertionError for a fence that stays open, a language that is not
    known, and code that is indented instead of fenced."""
    found: list[Block] = []
    opened: tuple[str, str, int] | None = None  # indentation, first line, where
    lines: list[str] = []
    before = ""
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.fullmatch(r"( *)```(.*)", line)
        if fence and opened is None:
            opened, lines = (fence[1], fence[2].strip(), number), []
        elif fence and opened is not None:
            assert fence[2] == "", f"{page}:{number}: a fence within a block"
            language, _, file = opened[1].partition(" ")
            known = FILES if file else PLAIN
            assert language in known, f"{page}:{opened[2]}: {opened[1]!r} is not one of {known}"
            found.append(Block(page, opened[2] + 1, language, file, "\n".join(lines) + "\n"))
            opened = None
        elif opened is not None:
            lines.append(line.removeprefix(opened[0]))
        else:
            indented = line.startswith("    ") and not before.strip()
            assert not indented, f"{page}:{number}: an indented block; fence it: {line}"
        before = line
    assert opened is None, f"{page}:{opened and opened[2]}: the block has no end"
    return found


@cache
def read(path: Path) -> list[Block]:
    """The blocks of a file of the project."""
    return blocks(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))


def commands(text: str) -> list[str]:
    """The commands of a block, without comments; one may go over several lines."""
    found: list[str] = []
    pending = ""
    for line in text.splitlines():
        pending += re.sub(r"(^|\s+)# .*", "", line)
        if not pending.strip():
            continue
        if subprocess.run(["bash", "-n", "-c", pending], capture_output=True, check=False).stderr:
            pending += "\n"
            continue
        found.append(pending)
        pending = ""
    assert not pending.strip(), f"no whole command: {pending}"
    return found


def tools(command: str) -> list[str]:
    """The TOOLS that a command uses."""
    words = re.split(r"[\s;|&()'\"]+", command)
    return [tool for tool in TOOLS if tool in words]


def prepare(folder: Path, page: list[Block]) -> dict[str, str]:
    """Make a page's folder; the environment of its programs, `python` and `jitgen` among them."""
    for name in ("examples", "tests"):
        (folder / name).symlink_to(ROOT / name)
    for block in page:
        if block.file:
            (folder / block.file).write_text(block.text)
    programs = folder / ".programs"
    programs.mkdir()
    jitgen = programs / "jitgen"
    jitgen.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m jitgen "$@"\n')
    jitgen.chmod(0o755)
    # perf finds names of kernels in /tmp only: note who may have left some there
    notes = f"import os\nprint(os.getpid(), file=open({str(programs / 'started')!r}, 'a'))\n"
    (programs / "sitecustomize.py").write_text(notes)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JITGEN_", "PYTHON"))}
    path = (programs, Path(sys.executable).parent, os.environ.get("PATH", os.defpath))
    return {
        # other processes may be busy: threads that wait must not take their cores
        **kept, "OMP_WAIT_POLICY": "passive", "PATH": os.pathsep.join(map(str, path)),
        "TMPDIR": str(folder), "XDG_CACHE_HOME": str(folder / ".cache"), "MPLBACKEND": "Agg",
        "PYTHONPATH": os.pathsep.join(map(str, (programs, ROOT))),
    }  # fmt: skip


def clean_up(folder: Path) -> None:
    """Remove what a page's programs left outside its folder."""
    started = folder / ".programs" / "started"
    for process in started.read_text().split() if started.exists() else ():
        Path(f"/tmp/perf-{process}.map").unlink(missing_ok=True)


def run_python(page: list[Block], folder: Path, environment: dict[str, str]) -> None:
    """Run all Python of a page in one process, and compare what a block prints with the output
    block behind it; AssertionError with its traceback, which has the page's own lines."""
    chosen = [(i, b) for i, b in enumerate(page) if b.language == "python" and not b.file]
    parts = [("\n" * (block.line - 1) + block.text, block.page) for _, block in chosen]
    text = (
        "import json, sys\nnames = {'__name__': '__main__'}\n"
        "for text, page in json.load(sys.stdin):\n    exec(compile(text, page, 'exec'), names)\n"
        f"    print(end={END!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", text], input=json.dumps(parts), cwd=folder,
        env=environment, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    for (i, _), printed in zip(chosen, done.stdout.split(END), strict=False):
        behind = page[i + 1 : i + 2]
        if behind and behind[0].language == "output":
            check_output(behind[0], printed)


def run_command(
    command: str, folder: Path, environment: dict[str, str], place: str, given: str = ""
) -> str:
    """What a command prints that reads what is `given`; AssertionError unless it ends with 0."""
    # not a pipe: perf would read its data from there
    source = {"input": given} if given else {"stdin": subprocess.DEVNULL}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=LIMIT, check=False, **source,
    )  # fmt: skip
    told = f"{place}: {command}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, told
    return done.stdout


def check_output(block: Block, printed: str) -> None:
    """AssertionError unless an output block is what was printed, or pieces of it in order."""
    at, shown = 0, f"{printed[:1000]}{' ...' * (len(printed) > 1000)}"
    pieces = re.split(r"^\.\.\.\n", block.text, flags=re.MULTILINE)
    for piece in pieces:
        found = f"\n{printed}".find(f"\n{piece}", at)
        assert found >= 0, f"{block.place}: not printed (here):\n{piece}\nbut\n{shown}"
        at = found + len(piece)
    whole = len(pieces) > 1 or printed == block.text
    assert whole, f"{block.place}: there is more, or less:\n{shown}"


def check_session(block: Block, printed: str) -> None:
    """AssertionError unless gdb's answers are those of a gdb block; addresses may differ, "..." is
    anything, and spaces and ends of lines do not count."""
    told = re.sub(r"\s", "", printed)
    at = 0
    for line in block.text.splitlines():
        if line.startswith("(gdb)"):
            continue
        pattern = re.escape(re.sub(r"\s", "", line)).replace(r"\.\.\.", ".*?")
        found = re.compile(re.sub(r"0x[0-9a-f]+", "0x[0-9a-f]+", pattern)).search(told, at)
        assert found, f"{block.place}: gdb does not answer {line!r}\n{printed}"
        at = found.end()
