"""perf and gdb, the real ones, see kernels by name, with lines of the listing and callers."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from child import HERE
from needs import need

import jitgen
from jitgen.debug import gdb
from jitgen.debug.image import Image, images
from jitgen.inspect.listing import listing
from jitgen.inspect.names import symbol_name
from jitgen.kernels.cells import emit_cell
from jitgen.run.replay import Call, Word, emit_replay
from jitgen.target import parse_target

HOST = next((name for name, reason in jitgen.targets().items() if not reason), None)


@pytest.fixture(autouse=True)
def _host() -> None:
    need(None if HOST else "no target runs here", installable=False)


#: A program whose kernel runs for a while: python program.py SECONDS [tools to turn on late]
PROGRAM = """
import os, sys, time
import numpy as np
import jitgen
print(os.getpid())

kernel = jitgen.brgemm(48, 48, 48, trans_b=True)
other = jitgen.brgemm(8, 8, 8)
a, b = np.ones((2, 4, 48, 48), np.float32)
bound = kernel.bind(a, b, np.ones((48, 48), np.float32))
other.address
if sys.argv[2:]:
    jitgen.debug.enable(*sys.argv[2:])
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    for _ in range(100):
        bound()
"""


def run_tool(
    command: Sequence[str | Path], folder: Path, environment: dict[str, str] | None = None
) -> str:
    """Standard output of a command that must succeed."""
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=120, cwd=folder,
        env={
            **os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "TMPDIR": str(folder),
            "HOME": str(folder), **(environment or {}),
        },
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def write_program(folder: Path, text: str = PROGRAM) -> Path:
    path = folder / "program.py"
    path.write_text(text)
    return path


# ---- perf ----------------------------------------------------------------------------------------


@functools.cache
def need_perf() -> None:
    if not shutil.which("perf"):
        need("perf is not installed (Debian: linux-perf)")
    probe = ["perf", "record", "-e", "cpu-clock", "-o", "/dev/null", "true"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    if done.returncode:
        need(f"perf may not record here: {done.stderr.strip()}", installable=False)


def _record(folder: Path, *options: str, late: Sequence[str] = (), **environment: str) -> str:
    """Run the program under perf; returns its process number."""
    python = [sys.executable, write_program(folder), "0.6", *late]
    perf = ["perf", "record", "-e", "cpu-clock", *options, "-o", "raw"]
    return run_tool([*perf, *python], folder, environment).splitlines()[0]


def _share(report: str, name: str) -> float:
    """The percentage that a report gives a symbol."""
    match = re.search(rf"^ *([0-9.]+)% .*{name}$", report, re.MULTILINE)
    assert match, report[:3000]
    return float(match[1])


@pytest.mark.parametrize("late", [False, True], ids=["from the start", "later"])
def test_perf_report_names_kernels(late: bool, tmp_path: Path) -> None:
    need_perf()
    name = symbol_name(jitgen.brgemm(48, 48, 48, trans_b=True))
    switch: dict[str, Any] = {"late": ["perf"]} if late else {"JITGEN_DEBUG": "perf"}
    process = _record(tmp_path, **switch)
    report = run_tool(["perf", "report", "-i", "raw", "--stdio"], tmp_path)
    Path(f"/tmp/perf-{process}.map").unlink()
    assert _share(report, rf"\[JIT\] tid \d+ +\[\.\] {name}") > 5


@pytest.mark.parametrize("late", [False, True], ids=["from the start", "later"])
def test_jitdump_gives_perf_listing_lines_and_callers(late: bool, tmp_path: Path) -> None:
    need_perf()
    name = symbol_name(jitgen.brgemm(48, 48, 48, trans_b=True))
    options = ("-k", "CLOCK_MONOTONIC", "-F", "200", "--call-graph", "dwarf,32768")
    switch: dict[str, Any] = {"late": ["jitdump"]} if late else {"JITGEN_DEBUG": "jitdump"}
    _record(tmp_path, *options, **switch)
    run_tool(["perf", "inject", "--jit", "-i", "raw", "-o", "data"], tmp_path)
    plain = ["perf", "report", "-i", "data", "--stdio", "--no-children"]
    report = run_tool([*plain, "-g", "none"], tmp_path)
    assert _share(report, rf"jitted-\d+-\d+\.so +\[\.\] {name}") > 5
    annotated = run_tool(["perf", "annotate", "-i", "data", "--stdio", "-s", name], tmp_path)
    # a line of the listing, then the instruction of the same bytes
    pair = r": \d+ +([0-9a-f]+)  [0-9a-f]+ +\w.*\n +[0-9.]+ : +([0-9a-f]+):"
    pairs = re.findall(pair, annotated)
    assert len(pairs) > 100, annotated[:3000]
    starts = {int(at, 16) - int(offset, 16) for offset, at in pairs}
    assert len(starts) == 1, "lines of the listing do not stand at their instructions"
    if not late:  # the frames of older kernels have no room behind the code
        chain = run_tool([*plain, "-G", "-S", name], tmp_path)
        assert "PyEval" in chain and "cdata_call" in chain, chain[:3000]


# ---- gdb -----------------------------------------------------------------------------------------


def _gdb(folder: Path, script: str, program: str, **environment: str) -> str:
    """What gdb prints that runs commands on a Python program."""
    if not shutil.which("gdb"):
        need("gdb is not installed (Debian, Ubuntu: gdb)")
    commands = folder / "commands.gdb"
    settings = ("pagination off", "debuginfod enabled off", "style enabled off", "width 0",
                "breakpoint pending on")  # fmt: skip
    commands.write_text("".join(f"set {each}\n" for each in settings) + script)
    python = [sys.executable, write_program(folder, program)]
    return run_tool(
        ["gdb", "--nx", "--batch", "-x", commands, "--args", *python], folder,
        {"JITGEN_DEBUG": "gdb", **environment},
    )  # fmt: skip


#: Stops where the first kernel is registered, then in it
INTO_KERNEL = """
break __jit_debug_register_code
run
finish
delete
rbreak ^jitgen_brgemm
continue
"""
CALL = """
import numpy as np
import jitgen
kernel = jitgen.brgemm({arguments})
s = kernel.spec
a, b = np.ones((2, s.m * s.k), np.float32), np.ones((2, s.k * s.n), np.float32)
c = np.ones((s.m, s.n), np.float32)
kernel(a.reshape(2, s.m, s.k), b.reshape((2, s.n, s.k) if s.trans_b else (2, s.k, s.n)), c)
print("c is", c[0, 0], flush=True)
"""


def test_gdb_shows_name_arguments_lines_and_callers(tmp_path: Path) -> None:
    """`finish` returns to the caller, and the program goes on."""
    script = INTO_KERNEL + "backtrace 12\nprint *args\nprint args->a[0]@3\nlist\nfinish\ncontinue\n"
    arguments = "12, 24, 8, beta=1.0, trans_b=True"
    shown = _gdb(tmp_path, script, CALL.format(arguments=arguments))
    name = symbol_name(jitgen.brgemm(12, 24, 8, beta=1.0, trans_b=True))
    assert re.search(rf"^#0 +{name} \(args=0x[0-9a-f]+\) at {name}\.lst:\d+$", shown, re.M), shown
    assert re.search(r"^#\d+ .* cdata_call ", shown, re.M), shown
    assert re.search(r"^#\d+ .*Py", shown, re.M), shown
    assert "count = 2" in shown and "bias = 0x0" in shown and "= {1, 1, 1}" in shown, shown
    listed = listing(jitgen.brgemm(12, 24, 8, beta=1.0, trans_b=True))
    first = next(line for line in listed.splitlines() if line.startswith("     0  "))
    assert first in shown, shown
    assert re.search(r"^Value returned is \$\d+ = 0$", shown, re.M), shown
    assert "c is 17.0" in shown and "exited normally" in shown, shown


#: In gdb's Python: at every instruction of the kernel, is the next frame that of the caller?
STEP_ALL = """
python
kept = ("rsp", "rbx", "rbp", "r12", "r13", "r14", "r15")
frame = gdb.selected_frame()
name = frame.name()
caller = frame.older()
wanted = {name: int(caller.read_register(name)) for name in kept}
word = gdb.lookup_type("long").pointer()
pushed = gdb.Value(int(frame.read_register("rsp"))).cast(word).dereference()
assert caller.pc() == int(pushed) & (1 << 64) - 1, "at entry"
here = {name: int(frame.read_register(name)) for name in kept}
here["rsp"] += 8
assert wanted == here, (wanted, here)
pc, steps = caller.pc(), 0
while gdb.selected_frame().name() == name:
    frame = gdb.selected_frame()
    older = frame.older()
    assert older is not None and older.pc() == pc, f"caller after {steps} steps"
    found = {name: int(older.read_register(name)) for name in kept}
    assert found == wanted, f"registers after {steps} steps: {found}, not {wanted}"
    gdb.execute("stepi", to_string=True)
    steps += 1
assert gdb.selected_frame().pc() == pc
print("steps", steps)
end
"""


@pytest.mark.parametrize(
    "arguments",
    ["8, 24, 3, batch='offset'", "12, 64, 4, plan={'k_block': 2, 'batch_chunk': 1}, beta=1.0",
     "2, 8, 40, trans_b=True", "1, 48, 32, trans_b=True, plan={'k_block': 32}"],
    ids=["plain", "saves", "scratch", "pages"],
)  # fmt: skip
def test_gdb_finds_the_caller_at_every_instruction(arguments: str, tmp_path: Path) -> None:
    other = None if "avx" in str(HOST) else "written for x86-64 (test_unwind has both)"
    need(other, installable=False)
    program = CALL.format(arguments=arguments)
    if "offset" in arguments:
        program = program.replace(", c)", ", c, a_offsets=np.zeros(2, np.int64), "
                                  "b_offsets=np.zeros(2, np.int64))")  # fmt: skip
    shown = _gdb(tmp_path, INTO_KERNEL + STEP_ALL, program)
    match = re.search(r"^steps (\d+)$", shown, re.M)
    assert match and int(match[1]) > 100, shown


#: A layer, whose driver calls its kernels; the first call is made before gdb looks
LAYER = """
import numpy as np
import jitgen
layer = jitgen.FullyConnected(64, 40, 24, threads=1, bias=False)
print("y is", layer.forward(np.ones((64, 40), "f"), np.ones((24, 40), "f"))[0, 0], flush=True)
"""
#: Its driver is the first to be registered; when it is called, all are
INTO_DRIVER = INTO_KERNEL.replace("^jitgen_brgemm", "^jitgen_replay")
INTO_LAYER = {
    "replay": INTO_DRIVER,
    **{x: f"{INTO_DRIVER}delete\nrbreak ^jitgen_{x}\ncontinue\n" for x in ("brgemm", "pack")},
}


@pytest.mark.parametrize("kind", ["brgemm", "pack"])
def test_gdb_stops_in_a_layers_kernel_with_its_driver_behind(kind: str, tmp_path: Path) -> None:
    """Kernel, driver and Python in the backtrace, and the kernel's argument; all goes on."""
    script = INTO_LAYER[kind] + "backtrace 12\nprint *args\nfinish\ndelete\ncontinue\n"
    shown = _gdb(tmp_path, script, LAYER)
    assert re.search(
        rf"^#0 +(jitgen_{kind}\w+) \(args=0x[0-9a-f]+\) at \1\.lst:\d+$", shown, re.M
    ), shown
    driver = r"jitgen_replay_\w+_FullyConnected_forward_64_40_24_\w+"
    assert re.search(rf"^#1 +0x[0-9a-f]+ in {driver} \(args=.*\) at {driver}\.lst:\d+$", shown,
                     re.M), shown  # fmt: skip
    assert re.search(r"^#\d+ .* cdata_call ", shown, re.M), shown
    assert re.search(r"^#\d+ .*Py", shown, re.M), shown
    assert "count = " in shown and "y is 40.0" in shown and "exited normally" in shown, shown


@pytest.mark.parametrize("kind", ["replay", "brgemm", "pack"])
def test_gdb_finds_the_caller_at_every_instruction_of_a_layer(kind: str, tmp_path: Path) -> None:
    """Of its driver too, over the calls that it makes."""
    other = None if "avx" in str(HOST) else "written for x86-64 (test_unwind has both)"
    need(other, installable=False)
    step = STEP_ALL.replace('gdb.execute("stepi"', 'gdb.execute("nexti"')
    shown = _gdb(tmp_path, INTO_LAYER[kind] + step, LAYER)
    match = re.search(r"^steps (\d+)$", shown, re.M)
    assert match and int(match[1]) > 30, shown


def test_gdb_names_the_kernel_that_crashed(tmp_path: Path) -> None:
    """A wrong address in the argument struct of a kernel that was loaded before gdb was asked."""
    program = """
import jitgen
from jitgen.run import loader
from jitgen.emit.frame import ARGUMENTS
kernel = jitgen.brgemm(16, 16, 16)
function = loader.ffi.cast("void (*)(void *)", kernel.address)
args = loader.ffi.new("int64_t[]", len(ARGUMENTS))
args[ARGUMENTS["count"] // 8] = 1
args[ARGUMENTS["a"] // 8] = 8
jitgen.debug.enable("gdb")
def call_with_a_wrong_address():
    function(args)
call_with_a_wrong_address()
"""
    script = "run\nbacktrace\ngenerate-core-file core\nkill\nfile\n"
    shown = _gdb(tmp_path, script, program, JITGEN_DEBUG="")
    name = symbol_name(jitgen.brgemm(16, 16, 16))
    assert "SIGSEGV" in shown
    assert re.search(rf"^#0 .*\b{name} \(args=0x[0-9a-f]+\) at ", shown, re.M), shown
    assert "main" in shown, shown
    again = run_tool(["gdb", "--nx", "--batch", "-ex", "set width 0", "-ex", "backtrace 2",
                  sys.executable, "core"], tmp_path)  # fmt: skip
    assert re.search(rf"^#0 .*\b{name} \(", again, re.M), again


def test_gdb_forgets_kernels_when_it_is_turned_off(tmp_path: Path) -> None:
    program = """
import os, tempfile
import jitgen
def folders():
    return [x for x in os.listdir(tempfile.gettempdir()) if x.startswith("jitgen-gdb-")]
before = folders()
for alpha in (1.0, 2.0):
    jitgen.debug.enable("gdb")
    kernel = jitgen.brgemm(16, 16, 16, alpha=alpha)
    kernel.address
    assert len(folders()) == len(before) + 1
    os.kill(os.getpid(), 10)
    jitgen.debug.disable()
    assert folders() == before
    os.kill(os.getpid(), 10)
"""
    look = "continue\ninfo functions ^jitgen_brgemm\n"
    script = "handle SIGUSR1 nopass\nrun\ninfo functions ^jitgen_brgemm\n" + look * 3
    shown = _gdb(tmp_path, script, program, JITGEN_DEBUG="")
    counts = [part.count("int64_t jitgen_brgemm") for part in shown.split("All functions")[1:]]
    assert counts == [1, 0, 2, 0], shown


def _some_images() -> Iterator[Image]:
    """Of kernels, and of a driver with those behind it."""
    for name in ("avx2", "sve256"):
        target = parse_target(name)
        kernel = jitgen.brgemm(12, 24, 8, trans_b=True, batch="address", target=name)
        cell = emit_cell("gru_backward", 3, 20, "f64", target, width=16, masked=True)
        calls = [Call(kernel, (Word("a", 0, 2),)), Call(cell, (Word("c", 1, 3),), (("count", 3),))]
        for routine in (kernel, emit_replay(calls, target, "two")):
            place = SimpleNamespace(address=0x7F00_0000_1000, room=1 << 15)
            yield from images(routine, cast("Any", place))


def test_images_of_the_other_architecture_can_be_read(tmp_path: Path) -> None:
    """readelf and llvm's dwarfdump have nothing to complain about."""
    if not shutil.which("readelf"):
        need("readelf is not installed (Debian, Ubuntu: binutils)")
    for image in _some_images():
        details = image.details()
        lines = image.routine.program.lines()
        instructions = [x for x in lines if x.kind == "instruction"]
        assert [offset for offset, _ in details.lines] == [x.offset for x in instructions]
        path = tmp_path / "image"
        path.write_bytes(gdb.elf_image(image, details, tmp_path / "x.lst"))
        done = subprocess.run(
            ["readelf", "--wide", "--all", "--debug-dump=info,abbrev,decodedline,frames", path],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert not done.stderr, done.stderr
        rows = re.findall(r"^x\.lst +(\d+) +0x([0-9a-f]+)", done.stdout, re.M)
        read = [(int(at, 16) - image.address, int(line)) for line, at in rows]
        assert read[: len(details.lines)] == details.lines
        (tmp_path / "hook.so").write_bytes(gdb.hook(image.architecture))
        done = subprocess.run(
            ["readelf", "--wide", "--all", tmp_path / "hook.so"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert not done.stderr and "__jit_debug_descriptor" in done.stdout
