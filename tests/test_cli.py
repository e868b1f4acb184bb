"""The command line, in this process: every command, every kind of error, JSON, colours, pipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jitgen
from jitgen.analysis import measure
from jitgen.analysis.measure import Problem
from jitgen.cli import kernel as kernel_command, main
from jitgen.cli.terminal import OK, WRONG

ROOT = Path(__file__).resolve().parent.parent
HERE = [name for name, why in jitgen.targets().items() if not why]
ELSEWHERE = next(name for name, why in jitgen.targets().items() if why)
needs_target = pytest.mark.skipif(not HERE, reason="no target runs on this CPU")
FAST = ["--seconds", "0.001"]

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The automatic choice is this CPU's own."""
    monkeypatch.delenv("JITGEN_ISA", raising=False)


def run_json(capsys: Captured, *arguments: str) -> Any:
    """The JSON that a successful command prints."""
    assert main([*arguments, "--json"]) == OK
    return json.loads(capsys.readouterr().out)


# ---- targets ------------------------------------------------------------------------------------


def test_targets(capsys: Captured) -> None:
    """Each target with the reason why it cannot run."""
    assert main(["targets"]) == OK
    text = capsys.readouterr().out
    for name, why in jitgen.targets().items():
        (line,) = (x for x in text.splitlines() if x.startswith(name + " "))
        assert (why or "runs here") in line
    found = run_json(capsys, "targets")
    assert {n: t["why_not"] for n, t in found["targets"].items()} == jitgen.targets()
    assert found["chosen"] == (jitgen.host().name if HERE else None)


def test_targets_with_a_cap(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cap that leaves nothing is told, not fatal."""
    monkeypatch.setenv("JITGEN_ISA", ELSEWHERE)
    found = run_json(capsys, "targets")
    assert found["chosen"] is None
    assert ELSEWHERE in found["why_none"]
    assert main(["targets"]) == OK
    assert "no default target" in capsys.readouterr().out


# ---- show ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ["avx512", "avx2", "sve128", "sve256", "sve512", "neon"])
def test_show(capsys: Captured, isa: str) -> None:
    """The listing as text is the kernel's; the structured one holds all bytes."""
    shape = ["7", "21", "9", "--epilogue", "bias,clip:0:6", "--isa", isa]
    assert main(["show", *shape]) == OK
    kernel = jitgen.brgemm(7, 21, 9, epilogue=["bias", ("clip", 0, 6)], target=isa)
    assert capsys.readouterr().out == kernel.listing()
    found = run_json(capsys, "show", *shape)
    code = bytearray(len(kernel.code))
    for line in found["lines"]:
        piece = bytes.fromhex(line["bytes"])
        code[line["offset"] : line["offset"] + len(piece)] = piece
    assert bytes(code) == kernel.code
    assert found["general_registers"].keys() == kernel.roles.keys()


@pytest.fixture
def files(capsys: Captured, tmp_path: Path) -> list[str]:
    """Two listings as files."""
    names = []
    for isa in ("avx2", "avx512"):
        names.append(str(tmp_path / f"{isa}.json"))
        assert main(["show", "9", "17", "8", "--isa", isa, "--json", "-o", names[-1]]) == OK
    assert capsys.readouterr().out == ""
    return names


def test_show_formats(capfdbinary: Any, tmp_path: Path) -> None:
    """Every format is the library's, on stdout and in a file."""
    kernel = jitgen.brgemm(7, 21, 9, target="avx2")
    shape = ["show", "7", "21", "9", "--isa", "avx2"]
    file = tmp_path / "out"
    for name in ("text", "asm", "json", "html"):
        for syntax in ("intel", "att") if name == "asm" else ("intel",):
            asked = [*shape, "--format", name, "--syntax", syntax]
            assert main(asked) == OK
            assert capfdbinary.readouterr().out.decode() == kernel.listing(name, syntax)
            assert main([*asked, "-o", str(file)]) == OK
            assert file.read_text() == kernel.listing(name, syntax)
    assert main([*shape, "--format", "bytes"]) == OK
    assert capfdbinary.readouterr().out == kernel.code
    assert main([*shape, "--format", "bytes", "--output", str(file)]) == OK
    assert file.read_bytes() == kernel.code


def test_show_analysis(capsys: Captured) -> None:
    """A page may hold the analysis for a CPU."""
    shape = ["show", "7", "21", "9", "--isa", "avx2", "--format", "html"]
    assert main([*shape, "--cpu", "znver4"]) == OK
    assert "<h2>Analysis</h2><pre>7 x 21 x 9" in capsys.readouterr().out
    assert main(shape) == OK
    assert "<h2>Analysis</h2>" not in capsys.readouterr().out


def test_bytes_do_not_go_to_a_terminal(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Machine code is refused there, and written to a file."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shape = ["show", "4", "4", "4", "--isa", "avx2", "--format", "bytes"]
    assert main(shape) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "a terminal cannot show machine code; add -o FILE" in err
    assert main([*shape, "-o", str(tmp_path / "x")]) == OK


def test_show_two_files(capsys: Captured, files: list[str]) -> None:
    """Two files side by side say what two requests do."""
    assert main(["show", *files]) == OK
    text = capsys.readouterr().out
    found = run_json(capsys, "show", *files)
    assert found["target"] == ["avx2", "avx512"]
    shape = ["show", "9", "17", "8", "--isa", "avx2", "--diff", "avx512"]
    assert main(shape) == OK
    assert capsys.readouterr().out == text
    assert run_json(capsys, *shape) == found
    assert "9 x 17 x 8 f32 avx2" in text
    assert max(map(len, text.splitlines())) <= 180


@pytest.mark.parametrize(
    ("changes", "part", "name", "pair"),
    [
        (["dtype=f64"], "spec", "dtype", ["f32", "f64"]),
        (["epilogue=relu", "beta=1"], "spec", "beta", [0.0, 1.0]),
        (["trans_b=yes"], "spec", "trans_b", [False, True]),
        (["plan:k_unroll=2"], "plan_fields", "k_unroll", [4, 2]),
        (["plan:rows=2", "plan:columns=8"], "plan_fields", None, None),
    ],
)
def test_show_changes(
    capsys: Captured, changes: list[str], part: str, name: str | None, pair: Any
) -> None:
    """The other kernel is this one with the changes."""
    arguments = [x for change in changes for x in ("--diff", change)]
    found = run_json(capsys, "show", "8", "32", "8", "--isa", "avx2", *arguments)
    if name is not None:
        assert found[part][name] == pair
    else:
        assert [tile[0]["size"] for tile in found["tiles"]][1] == "2 x 8"


def test_foreign_files(capsys: Captured, files: list[str], tmp_path: Path) -> None:
    """A file that is no listing is named with what is wrong: exit code 2, no traceback."""
    listing = json.loads(Path(files[0]).read_text())
    odd = tmp_path / "odd.json"

    def without(name: str) -> str:
        return json.dumps({key: value for key, value in listing.items() if key != name})

    def with_(name: str, value: Any) -> str:
        return json.dumps({**listing, name: value})

    for text, message in (
        ("", "no JSON"), ("{", "no JSON"), ("[1]", "format is None"), ('"x"', "format is None"),
        ("{}", "format is None"), ('{"format": "jitgen listing 9"}', "'jitgen listing 9', not"),
        (without("lines"), "lines is missing"), (without("spec"), "spec is missing"),
        (with_("code_bytes", "x"), "code_bytes is 'x', not int"),
        (with_("tiles", [{}]), "tiles[0].rows is missing"),
        (with_("tiles", 3), "tiles is no list"),
        (with_("loops", [{"over": "k", "first_line": 0, "last_line": 10**6}]), "which is not"),
        (with_("instructions", {"fma": "many"}), "instructions.fma is 'many', not int"),
    ):  # fmt: skip
        odd.write_text(text)
        assert main(["show", files[1], str(odd)]) == 2, message
        out, err = capsys.readouterr()
        assert out == ""
        assert f"{odd}: " in err
        assert message in err
        assert "Traceback" not in err
    odd.write_bytes(b"\xff\xfe{")
    assert main(["show", files[1], str(odd)]) == 2
    assert f"{odd}: no JSON" in capsys.readouterr().err


# ---- kernel -------------------------------------------------------------------------------------


@needs_target
@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize(
    "options",
    [
        "64 64 64 --batch 3",
        "5 7 9 --dtype f64 --beta 0.5 --alpha -2 --lda 12 --ldb 10 --ldc 8",
        "12 20 8 --trans-a --trans-b --batch 2 --lda 13 --epilogue bias_row,silu",
        "12 40 8 --packed-b --batch 2 --epilogue residual,relu_mask,scale:2",
        "9 9 9 --batch-kind offset --batch 4 --epilogue gelu --ldb 11",
        "9 9 9 --batch-kind address --batch 4 --epilogue leaky_relu:0.1,tanh,sigmoid,gelu_tanh",
        "8 16 8 --plan rows=2,hold=b --epilogue relu,clip:0:6",
    ],
)
def test_kernel(capsys: Captured, isa: str, options: str) -> None:
    """Every option gives a kernel that passes its check, and a full report."""
    found = run_json(capsys, "kernel", *options.split(), "--isa", isa, *FAST)
    assert found["check"]["passed"]
    assert 0 <= found["check"]["largest_error"] <= found["check"]["bound_there"]
    assert found["target"] == isa
    assert found["flops"] == 2 * found["m"] * found["n"] * found["k"] * found["batch"]
    assert found["speed"]["of_peak"] > 0
    assert found["speed"]["best_seconds"] > 0
    assert found["speed"]["numpy_seconds"] > 0
    assert found["generation_seconds"].keys() == {"cold", "warm"}
    assert main(["kernel", *options.split(), "--isa", isa, *FAST]) == OK
    text = capsys.readouterr().out
    for word in ("GFLOP/s", "FMA peak", "NumPy", "float64", "bytes, generated in", "plan"):
        assert word in text
    assert max(map(len, text.splitlines()[2:])) <= 98


@needs_target
def test_wrong_result(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that computes something else is found: exit code 1."""
    other = jitgen.brgemm(8, 8, 8, alpha=1.001)
    monkeypatch.setattr(Problem, "bind", lambda self, _: other.bind(*self._arguments, self.c))
    assert main(["kernel", "8", "8", "8", *FAST]) == WRONG
    assert "WRONG" in capsys.readouterr().out


@needs_target
def test_nan_and_wrong_mask_are_found() -> None:
    """A NaN, and a bit of the relu mask, count as errors."""
    kernel = jitgen.brgemm(8, 8, 8, epilogue=("relu_mask",))
    problem = Problem(kernel, 1)
    assert problem.check().passed
    bind = problem.bind

    def spoilt(what: str) -> bool:
        def run() -> None:
            bind(kernel)()
            if what == "nan":
                problem.c[3, 3] = np.nan
            else:
                problem._extra["mask"][3] ^= 255

        problem.bind = lambda _: run  # type: ignore[assignment,method-assign,misc,return-value]
        return not problem.check().passed

    assert spoilt("nan")
    assert spoilt("mask")


def test_cannot_run_here(capsys: Captured) -> None:
    """A foreign target is generated; the reason why it was not run is on stderr."""
    assert main(["kernel", "8", "8", "8", "--isa", ELSEWHERE]) == 3
    out, err = capsys.readouterr()
    assert "bytes, generated in" in out
    assert "GFLOP/s" not in out
    assert f"generated but not run: {jitgen.targets()[ELSEWHERE]}" in err


def test_no_target_at_all(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --isa something must run here."""
    monkeypatch.setenv("JITGEN_ISA", ELSEWHERE)
    assert main(["kernel", "8", "8", "8"]) == 3
    assert "no target can run here" in capsys.readouterr().err


@needs_target
def test_short_file(capsys: Captured, tmp_path: Path) -> None:
    """A file of shapes: options of lines and of the command line, a table with a total, JSON."""
    file = tmp_path / "shapes.csv"
    file.write_text(
        "# comment\nname,m,n,k,batch,dtype,epilogue,trans_b,count_in_network\n"
        'one,4,8,16,2,,"bias,relu",,3\n\ntwo,5,5,5,,f64,,yes,\n'
    )
    arguments = ["kernel", "--shapes", str(file), "--beta", "1", *FAST]
    assert main(arguments) == OK
    text = capsys.readouterr().out
    assert [x.split()[0] for x in text.splitlines()[1:4]] == ["one", "two", "total"]
    assert max(map(len, text.splitlines())) <= 100
    found = run_json(capsys, *arguments)
    one, two = found["kernels"]
    assert (one["batch"], one["dtype"], two["batch"], two["dtype"]) == (2, "f32", 1, "f64")
    assert "C + sum of A_i B_i, then bias, relu" in one["computes"]
    assert "B_i^T" in two["computes"]
    assert found["total"]["kernels"] == 4
    assert found["total"]["flops"] == 3 * one["flops"] + two["flops"]


@pytest.mark.parametrize("name", ["resnet50", "bert_base"])
@pytest.mark.parametrize("isa", [ELSEWHERE])
def test_example_files_generate(capsys: Captured, name: str, isa: str) -> None:
    """The files of the examples are valid, with the known work of their networks."""
    file = ROOT / "examples" / f"{name}.csv"
    assert main(["kernel", "--shapes", str(file), "--isa", isa, "--json"]) == 3
    total = json.loads(capsys.readouterr().out)["total"]
    if name == "resnet50":
        assert total == {"kernels": 53, "flops": 7_711_850_496}
    else:  # 24 h^2 s + 4 h s^2 for each of 12 layers, s = 128 and 384, h = 768
        h = 768
        assert total["flops"] == sum(12 * (24 * h * h * s + 4 * h * s * s) for s in (128, 384))


def test_table_without_running(capsys: Captured, tmp_path: Path) -> None:
    """A foreign target has a table of generated code."""
    file = tmp_path / "shapes.csv"
    file.write_text("name,m,n,k\nonly,4,8,16\n")
    assert main(["kernel", "--shapes", str(file), "--isa", ELSEWHERE]) == 3
    out = capsys.readouterr().out
    assert "only" in out
    assert "4x8x16" in out
    assert "GFLOP/s" not in out


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "COMMAND"),
        ("blub", "invalid choice"),
        ("kernel", "three sizes"),
        ("kernel 4 4", "three sizes"),
        ("kernel 4 4 4 --shapes x.csv", "not both"),
        ("kernel 0 4 4", "m=0 is smaller than 1"),
        ("kernel 4 4 4 --isa blub", "target='blub' is not one of"),
        ("kernel 4 4 4 --isa avx2 --dtype f16", "dtype='f16'"),
        ("kernel 4 4 4 --isa avx2 --epilogue blub", "epilogue step 'blub'"),
        ("kernel 4 4 4 --isa avx2 --epilogue clip:1", "'clip' takes low, high"),
        ("kernel 4 4 4 --epilogue clip:a:b", "'a' is no number"),
        ("kernel 4 4 4 --plan rows", "'rows' is not of the form name=value"),
        ("kernel 4 4 4 --isa avx2 --plan blub=1", "plan option 'blub'"),
        ("kernel 4 4 4 --isa avx2 --lda 2", "lda=2 is smaller than 4"),
        ("kernel 4 4 4 --seconds 0", "not between"),
        ("kernel 4 4 x", "invalid int value"),
        ("kernel --shapes /there/is/no/such.csv", "/there/is/no/such.csv: No such file"),
        ("show 4 4 4 --isa avx2 --batch-kind blub", "batch='blub'"),
        ("show 4 4", "three sizes"),
        ("show 4 4 x", "three sizes M N K, or two files"),
        ("show a.json", "three sizes M N K, or two files"),
        ("show a.json b.json --diff avx2", "--diff avx2 is for sizes M N K, not for files"),
        ("show /there/is/no/a.json /there/is/no/b.json", "/there/is/no/a.json: No such file"),
        ("show 4 4 4 --isa avx2 --format pdf", "invalid choice"),
        ("show 4 4 4 --isa avx2 --format asm --json", "ask for one of them"),
        ("show 4 4 4 --isa sve128 --format asm --syntax att", "is for x86; sve128 has one"),
        ("show 4 4 4 --isa avx2 --syntax att", "syntax='att' is for the format 'asm'"),
        ("show 4 4 4 --isa avx2 --format html --diff avx512", "a comparison is text or json"),
        ("show 4 4 4 --isa avx2 --diff blub", "target='blub' is not one of"),
        ("show 4 4 4 --isa avx2 --diff blub=1", "--diff blub=1: 'blub' is not one of batch, dtype"),
        ("show 4 4 4 --isa avx2 --diff beta=x", "--diff beta=x: could not convert"),
        ("show 4 4 4 --isa avx2 --diff plan:rows", "'rows' is not of the form name=value"),
        ("show 4 4 4 --isa avx2 --cpu znver4", "--cpu znver4 is for --format html"),
        ("show 4 4 4 --isa avx2 --format html --cpu z80", "cpu='z80' is not one of"),
        ("show 4 4 4 --isa avx2 -o /there/is/no/file", "/there/is/no/file: No such file"),
    ],
)
def test_bad_arguments(capsys: Captured, arguments: str, message: str) -> None:
    """Exit code 2 and the library's message, no traceback."""
    assert main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert "Traceback" not in err
    assert not out


@needs_target
def test_batch_smaller_than_one(capsys: Captured) -> None:
    """A batch of nothing cannot be measured."""
    assert main(["kernel", "4", "4", "4", "--batch", "0"]) == 2
    assert "batch=0 is smaller than 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,m,n\na,1,2\n", "column 'k' is missing"),
        ("name,m,n,k,blub\na,1,2,3,4\n", "column 'blub' is not one of"),
        ("name,m,n,k\na,1,2,x\n", "a: k='x' is no whole number"),
        ("name,m,n,k\na,1,2\n", "a: the header has 4 columns"),
        ("name,m,n,k\na,1,2,0\n", "a: k=0 is smaller than 1"),
        ("name,m,n,k,trans_a\na,1,2,3,maybe\n", "a: 'maybe' is neither yes nor no"),
        ("m,n,k,batch\n1,2,3,x\n", "row 1: invalid literal"),
        ("name,m,n,k\n", "no line with a shape"),
        ("", "column 'm' is missing"),
    ],
)
def test_bad_files(capsys: Captured, tmp_path: Path, text: str, message: str) -> None:
    """Errors in a file name the file and the line."""
    file = tmp_path / "shapes.csv"
    file.write_text(text)
    assert main(["kernel", "--shapes", str(file), "--isa", "avx2"]) == 2
    err = capsys.readouterr().err
    assert str(file) in err
    assert message in err


# ---- the face -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], ["kernel"], ["show"], ["targets"]])
def test_help(capsys: Captured, command: list[str]) -> None:
    """Help has examples and fits 100 columns."""
    assert main([*command, "--help"]) == OK
    text = capsys.readouterr().out
    assert "examples:" in text
    assert "exit codes:" in text
    assert max(map(len, text.splitlines())) <= 100


def test_colour(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours on a terminal only, and not with NO_COLOR."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    arguments = ["kernel", "4", "4", "4", "--isa", ELSEWHERE]
    main(arguments)
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    main(arguments)
    assert "\x1b[1m4 x 4 x 4" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    main(arguments)
    assert "\x1b" not in capsys.readouterr().out


def test_progress_on_a_terminal(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Progress goes to stderr, on a terminal only, and is wiped."""
    file = tmp_path / "shapes.csv"
    file.write_text("name,m,n,k\nfirst,4,8,16\nsecond,4,8,8\n")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    main(["kernel", "--shapes", str(file), "--isa", ELSEWHERE])
    err = capsys.readouterr().err
    assert "2/2 second" in err
    assert "\r\x1b[Kjitgen:" in err


def test_module_entry_and_closed_pipe() -> None:
    """`python -m jitgen` works, and a reader that stops early is no error message."""
    # far more text than a pipe holds, so that the writer is still at it when the reader stops
    shape = ["64", "64", "64", "--isa", "avx2", "--epilogue", "gelu"]
    command = [sys.executable, "-m", "jitgen", "show", *shape, "--json"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "{\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 141


def test_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process starts again with the variables set, once, with the same arguments."""
    calls: list[Any] = []
    monkeypatch.setattr(os, "execv", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "jitgen", "kernel", "4", "4", "4"])
    for name in kernel_command.THREADS:
        monkeypatch.setenv(name, "1")
        monkeypatch.delenv(name)
    kernel_command.use_one_thread()
    assert calls == [(sys.executable, [sys.executable, "-m", "jitgen", "kernel", "4", "4", "4"])]
    assert all(os.environ[name] == "1" for name in kernel_command.THREADS)
    kernel_command.use_one_thread()
    assert len(calls) == 1


@pytest.mark.parametrize("isa", ["avx512", "avx2", "sve128", "sve512", "neon"])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_peak_is_made_of_independent_chains(isa: str, dtype: str) -> None:
    """The peak's loop has as many operations as it says, each chain on a register of its own."""
    kernel = jitgen.brgemm(4, 4, 4, dtype, target=isa)
    routine, flops = measure.emit_peak(kernel.target, dtype)
    texts = [x.text for x in routine.program.lines() if x.kind == "instruction"]
    macs = [x for x in texts if x.startswith(("vfmadd", "fmla"))]
    machine = kernel.target.machine(dtype, 1 << 20)
    assert flops == 2 * len(macs) * machine.lanes * measure.PEAK_PASSES
    assert len({x.split()[1] for x in macs}) == machine.vectors - 2
    assert machine.vectors - 2 >= kernel.target.rates.fma * kernel.target.rates.latency
    assert len(measure.empty_kernel(kernel).code) < 100


@needs_target
def test_interleave_counts_rounds() -> None:
    """Every contestant has a sample of each round."""
    times = measure.interleave({"a": lambda: None, "b": lambda: None}, 0.001)
    assert len(times["a"]) == len(times["b"]) >= measure.FEWEST_ROUNDS
    assert min(times["a"]) > 0
