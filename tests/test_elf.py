"""Objects, archives and shared objects as the usual tools see them: no warning, right symbols and
bytes; linked in every way. Unwinding: test_elf_unwinding.py; all else: test_export.py."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import cffi
import pytest
from libraries import ARCHITECTURES, build, emulate, make, need_x86
from toolchain import run

import jitgen
from jitgen.objects.archive import Member, archive
from jitgen.objects.shared import gnu_hash, system_hash

#: Names that objdump prefers to ours
ALIASES = {("movz", "mov"), ("dup", "mov"), ("ubfm", "lsl"), ("add", "mov"), ("nop", "xchg")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A library for each architecture."""
    folders = {}
    for architecture, targets in ARCHITECTURES.items():
        folders[architecture] = tmp_path_factory.mktemp(architecture)
        jitgen.export(make(targets), folders[architecture], "lib1")
    return folders


@pytest.fixture
def here(folders: dict[str, Path]) -> Path:
    """The library for this CPU."""
    need_x86()
    return folders["x86_64"]


# ---- what tools say -----------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["lib1.o", "liblib1.a", "liblib1.so"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tools_have_no_complaint(folders: dict[str, Path], architecture: str, file: str) -> None:
    """readelf, nm and objdump read everything without a word on stderr; symbols have the sizes of
    the code, and the disassembler sees its bytes."""
    path = folders[architecture] / file
    text = run("readelf", "-aW", path)
    assert "GNU-stack" in text or "GNU_STACK" in text
    assert "RWE" not in text
    prefix = "" if architecture == "x86_64" else "aarch64-linux-gnu-"
    assert len(run(f"{prefix}objdump", "-r", "-s", path)) > 1000
    listed = {}
    for line in run("nm", "-S", "--defined-only", path).splitlines():
        words = line.split()
        if len(words) == 4:
            listed[words[3]] = (words[2], int(words[1], 16))
    for name, kernels in make(ARCHITECTURES[architecture]).items():
        for kernel in kernels:
            symbol = f"lib1_{name}_{kernel.target.name}"
            lines = list(kernel.program.lines())
            instructions = [line for line in lines if line.kind == "instruction"]
            end = instructions[-1].offset + len(instructions[-1].code)
            kind, size = listed[symbol]
            assert kind == "T" and 0 <= size - end < 64
            if size < len(kernel.code):
                assert listed[f"{symbol}.constants"] == ("t", len(kernel.code) - size)
            options = ["-Mintel"] if architecture == "x86_64" else []
            shown = run(f"{prefix}objdump", "-dw", *options, f"--disassemble={symbol}", path)
            pattern = r"^ *([0-9a-f]+):\t([0-9a-f ]+?) *\t(?:\{\w+\} )?(\S+)"
            seen = re.findall(pattern, shown, re.MULTILINE)
            first = int(seen[0][0], 16)
            flip = 1 if architecture == "x86_64" else -1
            code = b"".join(bytes.fromhex(x)[::flip] for _, x, _ in seen)
            assert code[:end] == kernel.code[:end]
            found = {int(at, 16) - first: text for at, _, text in seen}
            for line in instructions:
                names = (line.text.split()[0], found[line.offset])
                assert names[0] == names[1] or names in ALIASES
    assert listed["lib1_library"][0] == "T"
    assert listed["lib1_table"][0] == "D"


def test_hashes_of_names() -> None:
    """Examples of the System V ABI's and GNU's own hash functions, from their documentation."""
    assert system_hash("") == 0 and system_hash("printf") == 0x077905A6
    assert system_hash("exit") == 0x0006CF04 and system_hash("syscall") == 0x0B09985C
    assert gnu_hash("") == 0x1505 and gnu_hash("printf") == 0x156B2BB8
    assert gnu_hash("exit") == 0x7C967E3F and gnu_hash("syscall") == 0xBAC212A0


def test_dynamic_loading_with_either_hash_table(tmp_path: Path) -> None:
    """dlopen finds all of 60 symbols through the GNU table, and without it through the other one;
    the bytes there are the kernel's."""
    need_x86()
    kernels = [jitgen.brgemm(m, n, 3, target="avx2") for m in range(1, 7) for n in range(1, 11)]
    manifest = jitgen.export(kernels, tmp_path, "many")
    whole = (tmp_path / "libmany.so").read_bytes()
    gnu, ignored = struct.pack("<Q", 0x6FFFFEF5), struct.pack("<Q", 0x6FFFFDF7)
    system, both = struct.pack("<QQ", 4, 0x1C8), (14).to_bytes(8, "little")
    assert whole.count(gnu) == whole.count(system) == 1 and both in whole
    ffi = cffi.FFI()
    for number, (old, new) in enumerate(((b"", b""), (gnu, ignored), (system, ignored + bytes(8)))):
        path = tmp_path / f"lib{number}.so"
        path.write_bytes(whole.replace(old, new) if old else whole)
        ffi.cdef("".join(f"int {each['symbol']}(void *);" for each in manifest["kernels"]), True)
        library = ffi.dlopen(str(path))
        for kernel, each in zip(kernels, manifest["kernels"], strict=True):
            address = ffi.cast("char *", ffi.addressof(library, each["symbol"]))
            assert bytes(ffi.buffer(address, len(kernel.code))) == kernel.code
        with pytest.raises(AttributeError):
            ffi.cdef("int absent(void);", True)
            _ = library.absent
        ffi.dlclose(library)


def test_archive_of_odd_sizes(tmp_path: Path) -> None:
    """Members come out as they went in, whatever their size, and the index names their symbols."""
    members = {f"{'x' * n}.o": bytes(range(n)) for n in (1, 2, 15, 16, 33)}
    path = tmp_path / "a.a"
    path.write_bytes(archive([Member(name, data, ()) for name, data in members.items()]))
    assert run("ar", "t", path).split() == list(members)
    for name, data in members.items():
        shown = subprocess.run(["ar", "p", path, name], capture_output=True, check=True)
        assert shown.stdout == data


# ---- linking ------------------------------------------------------------------------------------

CALL = """
#include <stdio.h>
#include "lib1.h"
int main(void)
{
    float a[4 * 16], b[16 * 8], c[4 * 8], sum = 0;
    const struct jitgen_entry *entry = lib1_get(LIB1_LEAF);
    struct jitgen_args args = {0};
    int i;
    for (i = 0; i < 64; i++) a[i] = (float)(i % 5);
    for (i = 0; i < 128; i++) b[i] = (float)(i % 3);
    args.a = a, args.b = b, args.c = c, args.count = 1;
    if (!entry || entry->kernel(&args)) return 2;
    for (i = 0; i < 32; i++) sum += c[i] * (float)i;
    printf("%d\\n", (int)sum);
    return 0;
}
"""


def expected_sum() -> str:
    """What CALL prints."""
    a = [i % 5 for i in range(64)]
    b = [i % 3 for i in range(128)]
    c = [sum(a[r * 16 + k] * b[k * 8 + j] for k in range(16)) for r in range(4) for j in range(8)]
    return f"{sum(x * i for i, x in enumerate(c))}\n"


@pytest.mark.parametrize(
    "options",
    [
        ("lib1.o",), ("liblib1.a",), ("-L.", "-llib1", "-Wl,-rpath,$ORIGIN"), ("-static", "lib1.o"),
        ("-static-pie", "lib1.o"), ("-static-pie", "liblib1.a"), ("-no-pie", "lib1.o"),
        ("-no-pie", "-L.", "-llib1", "-Wl,-rpath,$ORIGIN"), ("-Wl,--gc-sections", "lib1.o"),
        ("-Wl,-z,now", "-Wl,-z,relro", "lib1.o"),
    ],
)  # fmt: skip
def test_linked(here: Path, options: tuple[str, ...]) -> None:
    """A program linked in any way gets the right result, without a warning of the linker."""
    program = build(here, "gcc", CALL, *options)
    assert run(program) == expected_sum()


def test_linked_by_way_of_other_objects(here: Path, tmp_path: Path) -> None:
    """ld -r, and a shared object made of ours by ld, keep everything."""
    run("ld", "--fatal-warnings", "-r", here / "lib1.o", "-o", tmp_path / "r.o")
    assert run(build(here, "gcc", CALL, tmp_path / "r.o")) == expected_sum()
    run("ld", "--fatal-warnings", "-shared", "--eh-frame-hdr", here / "lib1.o", "-o",
        tmp_path / "libr.so")  # fmt: skip
    linked = build(here, "gcc", CALL, tmp_path / "libr.so", f"-Wl,-rpath,{tmp_path}")
    assert run(linked) == expected_sum()


def test_stripped(here: Path, tmp_path: Path) -> None:
    """A stripped shared object still works."""
    run("strip", "-o", tmp_path / "liblib1.so", here / "liblib1.so")
    program = build(here, "gcc", CALL, tmp_path / "liblib1.so", f"-Wl,-rpath,{tmp_path}")
    assert run(program) == expected_sum()


def test_archive_gives_only_what_is_named(here: Path) -> None:
    """A program that names one kernel holds that one alone."""
    source = """
        #include "lib1.h"
        int main(void)
        {
            float one = 3;
            struct jitgen_args args = {0};
            args.a = args.b = args.c = &one;
            return args.count > 1 ? (int)lib1_leaf_avx2(&args) : 0;
        }
    """
    names = run("nm", build(here, "gcc", source, "-O0", "liblib1.a"))
    assert re.findall(r" T (lib1\w+)", names) == ["lib1_leaf_avx2"]


def test_two_libraries_in_one_program(tmp_path: Path) -> None:
    """Headers and names of two libraries with the same kernels do not clash."""
    kernel = jitgen.brgemm(4, 8, 16, target="avx2")
    for name in ("one", "two"):
        jitgen.export([kernel], tmp_path, name)
    source = """
        #include "one.h"
        #include "two.h"
        int main(void) { return !(one_library()->count == two_library()->count); }
    """
    run(build(tmp_path, "gcc", source, "one.o", "two.o"))


def test_segments_are_protected(here: Path) -> None:
    """In a running process no page of the shared object is both writable and executable, and the
    table is read-only once relocated."""
    script = f"""
import ctypes, sys
library = ctypes.CDLL({str(here / 'liblib1.so')!r})
table = ctypes.addressof(ctypes.c_char.in_dll(library, "lib1_table"))
for line in open("/proc/self/maps"):
    if line.rstrip().endswith("liblib1.so"):
        span, access = line.split()[:2]
        begin, end = (int(x, 16) for x in span.split("-"))
        print(access, begin <= table < end)
"""
    maps = run(sys.executable, "-c", script).splitlines()
    assert sorted(maps) == ["r--p False", "r--p True", "r-xp False"]


@pytest.mark.parametrize(
    "options",
    [
        ("-static", "lib1.o"), ("-static", "liblib1.a"), ("-static-pie", "lib1.o"), ("lib1.o",),
        ("-L.", "-llib1", "-Wl,-rpath,$ORIGIN"), ("-no-pie", "-L.", "-llib1", "-Wl,-rpath,$ORIGIN"),
    ],
)  # fmt: skip
def test_linked_for_aarch64(folders: dict[str, Path], options: tuple[str, ...]) -> None:
    """The same for AArch64, at each vector length that the library has, and at one that it has
    not, where NEON is left."""
    program = build(folders["aarch64"], "aarch64-linux-gnu-gcc", CALL, *options)
    for bits in (128, 256, 512):
        assert emulate(program, bits) == expected_sum()
    assert emulate(program, 1024) == expected_sum()


def test_linked_for_aarch64_by_way_of_other_objects(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """ld -r and ld -shared for AArch64."""
    folder = folders["aarch64"]
    ld = ("aarch64-linux-gnu-ld", "--fatal-warnings")
    run(*ld, "-r", folder / "lib1.o", "-o", tmp_path / "r.o")
    program = build(folder, "aarch64-linux-gnu-gcc", CALL, tmp_path / "r.o")
    assert emulate(program, 256) == expected_sum()
    run(*ld, "-shared", "--eh-frame-hdr", folder / "lib1.o", "-o", tmp_path / "libr.so")
    options = (tmp_path / "libr.so", f"-Wl,-rpath,{tmp_path}")
    program = build(folder, "aarch64-linux-gnu-gcc", CALL, *options)
    assert emulate(program, 256) == expected_sum()
