"""Unwinding through exported kernels: backtraces out of faults, exceptions, gdb. The rows
themselves are checked elsewhere; here they are in files and used."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from libraries import ARCHITECTURES, SHAPES, build, emulate, make, need_x86
from toolchain import run, tool

import jitgen


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


# ---- unwinding ----------------------------------------------------------------------------------

BACKTRACE = """
#define _GNU_SOURCE
#include <execinfo.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include "lib1.h"
static void handler(int number)
{
    void *frames[50];
    int found = backtrace(frames, 50), i;
    char **names = backtrace_symbols(frames, found);
    (void)number;
    for (i = 0; i < found; i++) puts(names[i]);
    fflush(stdout);
    _exit(7);
}
__attribute__((noinline)) int64_t caller_of_the_kernel(int which)
{
    static double some[4096];
    /* what the kernel reads last lies on a page that cannot be read */
    void *guard = mmap(NULL, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct jitgen_args args = {0};
    volatile int64_t result;
    args.a = args.c = some, args.b = some, args.count = 1, args.bias = some;
    if (which == 0) args.a = guard;
    if (which == 1) args.b = guard;
    if (which == 2) args.c = guard;
    result = KERNEL(which == 3 ? (struct jitgen_args *)guard : &args);
    return result;
}
int main(int count, char **values)
{
    void *frames[2];
    (void)count;
    backtrace(frames, 2); /* loads libgcc */
    signal(SIGSEGV, handler);
    return (int)caller_of_the_kernel(atoi(values[1]));
}
"""


def called(frames: str, symbol: str) -> list[str]:
    """The two functions that stand behind `symbol` in a printed backtrace."""
    names = re.findall(r"\((\w*)\+\w+\)", frames)
    at = names.index(symbol) if symbol in names else len(names)
    return names[at + 1 : at + 3]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("how", ["object", "shared"])
def test_backtrace_out_of_a_kernel(here: Path, shape: str, how: str) -> None:
    """A handler of a fault within a kernel sees kernel, caller and main, by the unwinder of
    libgcc: the fault is in the first instruction, in the reduction or in the stores."""
    library = ["lib1.o"] if how == "object" else ["-L.", "-llib1", "-Wl,-rpath,$ORIGIN"]
    symbol = f"lib1_{shape}_avx2"
    options = (f"-DKERNEL={symbol}", "-fno-omit-frame-pointer", "-rdynamic", *library)
    program = build(here, "gcc", BACKTRACE, *options)
    for where in "0123":
        frames = run(program, where, code=7)
        assert called(frames, symbol) == ["caller_of_the_kernel", "main"], frames


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("how", ["object", "shared"])
@pytest.mark.parametrize("target", ["sve256", "neon"])
def test_backtrace_out_of_a_kernel_for_aarch64(
    folders: dict[str, Path], shape: str, how: str, target: str
) -> None:
    """The same under emulation."""
    library = ["lib1.o"] if how == "object" else ["-L.", "-llib1", "-Wl,-rpath,$ORIGIN"]
    symbol = f"lib1_{shape}_{target}"
    options = (f"-DKERNEL={symbol}", "-fno-omit-frame-pointer", "-rdynamic", *library)
    program = build(folders["aarch64"], "aarch64-linux-gnu-gcc", BACKTRACE, *options)
    for where in "0123":
        frames = emulate(program, 256, where, code=7)
        assert called(frames, symbol) == ["caller_of_the_kernel", "main"], frames


THROW = """
#include <csignal>
#include <cstdio>
#include <sys/mman.h>
#include "lib1.h"
static void handler(int) { throw 42; }
__attribute__((noinline)) static long values(volatile long *from)
{
    /* values in as many registers as must be kept by a call */
    long v0 = from[0], v1 = from[1], v2 = from[2], v3 = from[3], v4 = from[4], v5 = from[5];
    static double some[4096];
    jitgen_args args = {};
    args.a = args.c = some;
    args.count = 1;
    args.b = mmap(NULL, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    long caught = 0;
    try { lib1_packs_avx2(&args); } catch (int number) { caught = number; }
    return caught + v0 + 10 * v1 + 100 * v2 + 1000 * v3 + 10000 * v4 + 100000 * v5;
}
int main()
{
    volatile long from[6] = {1, 2, 3, 4, 5, 6};
    struct sigaction action = {};
    action.sa_handler = handler;
    action.sa_flags = SA_NODEFER;
    sigaction(SIGSEGV, &action, NULL);
    std::printf("%ld %ld\\n", values(from), values(from));
}
"""


def test_exception_through_a_kernel(here: Path) -> None:
    """An exception thrown out of a fault within a kernel reaches its caller, whose registers are
    those from before the call."""
    options = ("-O2", "-fnon-call-exceptions", "lib1.o", "-Wno-missing-field-initializers")
    program = build(here, "g++", THROW, *options)
    assert run(program) == "654363 654363\n"


def test_gdb_disassembles_and_unwinds(here: Path) -> None:
    """gdb knows the kernel and its caller."""
    program = build(here, "gcc", BACKTRACE, "-DKERNEL=lib1_packs_avx2", "-g", "lib1.o")
    script = ["-ex", "run 1 >/dev/null", "-ex", "backtrace", "-ex", "x/i $pc", "-ex", "kill"]
    done = subprocess.run(
        [tool("gdb"), "-q", "-batch", "-nx", *script, program],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert re.search(r"#0 .*lib1_packs_avx2 \(\)", done.stdout), done.stdout + done.stderr
    assert re.search(r"#1 .*caller_of_the_kernel \(which=1\)", done.stdout), done.stdout
    assert re.search(r"#2 .*main \(", done.stdout), done.stdout
    assert re.search(r"=> 0x\w+ <lib1_packs_avx2\+\d+>:", done.stdout), done.stdout
