"""Assembly of kernels assembles to the same bytes: llvm-mc and GNU as, both syntaxes of x86.

All kernels of a target go to an assembler in one file, as an export has them. Not here: the texts
of single instructions (`test_rows`).
"""

from __future__ import annotations

import functools
import platform
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import assembler
import needs
import pytest
from random_cases import SEED, random_case

import jitgen
from jitgen.inspect import unwind
from jitgen.inspect.asm import assembly
from jitgen.kernels.elementwise import emit_column_sums
from jitgen.run.replay import emit_replay
from jitgen.target import parse_target

TARGETS = ["avx2", "avx512", "sve128", "sve256", "sve512", "neon"]
X86 = TARGETS[:2]
MANY, SOME = 200, 40
ALIGN = 64


@functools.cache
def kernels(target: str, count: int = MANY) -> list[jitgen.Kernel]:
    """Kernels of random cases: every layout, plan and epilogue."""
    rng = random.Random(SEED)
    found: list[jitgen.Kernel] = []
    while len(found) < count:
        try:
            found.append(random_case(rng).kernel(target))
        except ValueError:  # a plan that is refused
            continue
    return found


@functools.cache
def source(target: str, count: int = MANY, syntax: str = "intel") -> str:
    """One file with all of them."""
    return "".join(assembly(k, f"k{i}", syntax) for i, k in enumerate(kernels(target, count)))


def llvm(architecture: str) -> list[str] | None:
    """The command of llvm-mc, or None."""
    tool = assembler.find()
    triple = f"-triple={architecture}-linux-gnu"
    return [tool, "-filetype=obj", triple] if tool is not None else None


def gnu(architecture: str) -> list[str] | None:
    """The command of GNU as, or None."""
    names = [f"{architecture}-linux-gnu-as"]
    names += ["as"] if platform.machine() == architecture else []
    return next(([tool] for tool in map(shutil.which, names) if tool is not None), None)


def assembled(tool: Callable[[str], list[str] | None], target: str, text: str, folder: Path) -> Any:
    """The .text section that a tool makes of a file."""
    architecture = "x86_64" if target in X86 else "aarch64"
    command = tool(architecture)
    if command is None:
        needs.need(f"no assembler for {architecture}: {tool.__name__}")
        raise AssertionError
    (folder / "k.s").write_text(text)
    object_file = folder / "k.o"
    answer = subprocess.run(
        [*command, str(folder / "k.s"), "-o", str(object_file)], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (answer.returncode, answer.stderr) == (0, ""), answer.stderr[:2000]
    return assembler.section(object_file.read_bytes(), ".text")


def differing(text: bytes, some: list[jitgen.Kernel]) -> list[jitgen.Kernel]:
    """The kernels whose bytes are not those of the section."""
    wrong = []
    at = 0
    for kernel in some:
        if text[at : at + len(kernel.code)] != kernel.code:
            wrong.append(kernel)
        at += -(-len(kernel.code) // ALIGN) * ALIGN
    return wrong


@pytest.mark.parametrize("tool", [llvm, gnu])
@pytest.mark.parametrize("target", TARGETS)
def test_same_bytes(target: str, tool: Any, tmp_path: Path) -> None:
    """Every byte of code and constants is the kernel's."""
    assert not differing(assembled(tool, target, source(target), tmp_path), kernels(target))


@pytest.mark.parametrize("tool", [llvm, gnu])
@pytest.mark.parametrize("target", X86)
def test_same_bytes_in_att_syntax(target: str, tool: Any, tmp_path: Path) -> None:
    """The same in AT&T syntax."""
    text = source(target, SOME, "att")
    assert not differing(assembled(tool, target, text, tmp_path), kernels(target, SOME))


@pytest.mark.parametrize("target", TARGETS)
def test_no_instruction_is_written_as_bytes(target: str) -> None:
    """Every instruction is one that a reader can read; constants are words, and where there are
    none the label in their place is set."""
    text = source(target)
    directives = set(re.findall(r"^ +(\.\w+)", text, re.MULTILINE))
    known = {".arch", ".text", ".intel_syntax", ".att_syntax", ".globl", ".type", ".size",
             ".p2align", ".zero", ".long", ".set"}  # fmt: skip
    assert directives <= known
    assert not {line for line in text.splitlines() if "cfi" in line}


@pytest.mark.parametrize("target", ["avx512", "sve256"])
def test_a_wrong_byte_is_noticed(target: str, tmp_path: Path) -> None:
    """One displacement changed in one instruction is one kernel that differs."""
    number = random.Random(SEED).randrange(MANY)
    before, begin, rest = source(target).partition(f"\nk{number}:\n")
    old, new = (r"\[rdi \+ 24\]", "[rdi + 32]") if target in X86 else (r"\[x0, #24\]", "[x0, #32]")
    changed, count = re.subn(old, new, rest, count=1)
    assert count == 1
    text = assembled(llvm, target, before + begin + changed, tmp_path)
    assert len(differing(text, kernels(target))) == 1


@pytest.mark.parametrize("syntax", ["intel", "att"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("tool", [llvm, gnu])
def test_unwind_directives(target: str, syntax: str, tool: Any, tmp_path: Path) -> None:
    """With them the bytes are the same, and readelf finds the frames that were given."""
    if syntax == "att" and target not in X86:
        syntax = "intel"
    kernel = jitgen.brgemm(40, 40, 9, trans_b=True, target=target)  # B is copied to the stack
    text = assembly(kernel, "packs", syntax, unwind.rows)
    assert assembled(tool, target, text, tmp_path) == kernel.code
    readelf = shutil.which("readelf")
    needs.need(None if readelf else "readelf is not installed")
    command = [str(readelf), "--debug-dump=frames-interp", str(tmp_path / "k.o")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^([0-9a-f]{16}) (\S+)", shown, re.MULTILINE)
    names = {7: "rsp", 0: "rax", 6: "rbp"} if target in X86 else {31: "sp", 29: "x29"}
    wanted = [
        (row.offset, "exp" if row.cfa_slot is not None else
         f"{names[row.cfa_register]}+{row.cfa_offset}")
        for row in unwind.rows(kernel)
    ]  # fmt: skip
    read = [(int(at, 16), cfa) for at, cfa in found]
    assert read[-len(wanted) :] == wanted, shown


def test_symbols_and_syntaxes_are_checked() -> None:
    """What no assembler would take is refused; a symbol may be a register's name."""
    kernel = jitgen.brgemm(4, 4, 4, target="sve128")
    with pytest.raises(ValueError, match="syntax='att' is for x86"):
        assembly(kernel, "f", "att")
    with pytest.raises(ValueError, match="syntax='nasm' is neither"):
        assembly(kernel, "f", "nasm")
    for symbol in ("", "1f", "a b", "f;", "fä"):
        with pytest.raises(ValueError, match="no name that assemblers take"):
            assembly(kernel, symbol)


@pytest.mark.parametrize("tool", [llvm, gnu])
@pytest.mark.parametrize("target", ["avx512", "sve256"])
def test_drivers_and_others(target: str, tool: Any, tmp_path: Path) -> None:
    """What has code of any length as its constants, or points at constants that are not there."""
    at = parse_target(target)
    layer = jitgen.FullyConnected(3, 5, 7, activation="gelu", threads=1, target=at)
    some: list[Any] = [emit_replay(p.run.stream.calls, at) for p in layer.passes().values()]
    assert any(len(routine.code) % 4 for routine in some) or target != "avx512"
    some.append(emit_column_sums(3, 5, "f32", at))
    for routine in some:
        text = assembly(routine, "f")
        found = assembled(tool, target, text, tmp_path)
        assert found[: len(routine.code)] == routine.code, routine
