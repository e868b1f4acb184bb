"""What `jitgen.export` and `jitgen export` make of requests: names, duplicates, specs and all that
can be wrong with them. What is written: test_export.py."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pages
import pytest
from libraries import need_x86
from random_cases import SEED
from toolchain import STRICT, run

import jitgen
from jitgen import FullyConnected, Loop, MaxPool, Nest, Primitive, Tensor
from jitgen.cli import main
from jitgen.cli.export import KEYS, LAYER_KEYS
from jitgen.cli.terminal import BAD_ARGUMENTS, CANNOT_RUN, OK
from jitgen.run import cpu

ROOT = Path(__file__).resolve().parent.parent
SPECS = ROOT / "examples" / "c" / "specs.json"

Captured = pytest.CaptureFixture[str]


# ---- the function -------------------------------------------------------------------------------


def small(**options: Any) -> jitgen.Kernel:
    """A kernel."""
    return jitgen.brgemm(2, 3, 4, **{"target": "avx2", **options})


def test_function_in_any_order_of_imports() -> None:
    """jitgen.export is the function, whatever was imported before."""
    for first in ("jitgen.objects.library", "jitgen.cli", "jitgen.inspect.unwind", "jitgen.debug"):
        code = f"import {first}, jitgen; assert callable(jitgen.export), jitgen.export"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_each_kernel_once(tmp_path: Path) -> None:
    """Kernels asked for twice are written once; further names stand for the same number."""
    manifest = jitgen.export([small(), small(), small(target="avx512")], tmp_path)
    assert [each["product"] for each in manifest["kernels"]] == [0, 0]
    name = manifest["kernels"][0]["names"][0]
    assert re.fullmatch(r"f32_2x3x4_[0-9a-f]{8}", name)
    assert [each["symbol"] for each in manifest["kernels"]] == [
        f"kernels_{name}_avx512", f"kernels_{name}_avx2",
    ]  # fmt: skip
    manifest = jitgen.export({"one": small(), "two": [small(), small(target="avx512")]}, tmp_path)
    assert [each["symbol"] for each in manifest["kernels"]] == [
        "kernels_one_avx512", "kernels_one_avx2",
    ]  # fmt: skip
    text = (tmp_path / "kernels.h").read_text()
    assert "KERNELS_ONE = 0" in text and "KERNELS_TWO = 0" in text


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (ValueError, "there are none", list),
        (TypeError, "is one kernel; give a list", lambda: small()),
        (TypeError, "3 is no jitgen.Kernel", lambda: [3]),
        (TypeError, "3 is no jitgen.Kernel", lambda: {"a": 3}),
        (TypeError, "'x' is no jitgen.Kernel", lambda: {"a": "x"}),
        (TypeError, "1 is no name", lambda: {1: small()}),
        (ValueError, "'a b' is no C name", lambda: {"a b": small()}),
        (ValueError, "is no C name", lambda: {"a" * 101: small()}),
        (ValueError, "'A' stands for two", lambda: {"a": small(), "A": small(beta=1)}),
        (ValueError, "two libraries", lambda: [small(), small(target="sve256")]),
        (ValueError, "asked for twice, with different plans",
         lambda: [small(), small(plan={"rows": 1})]),
    ],
)  # fmt: skip
def test_wrong_kernels(
    tmp_path: Path, error: type[Exception], message: str, make: Callable[[], Any]
) -> None:
    """Errors name what is wrong; nothing is written."""
    with pytest.raises(error, match=re.escape(message)):
        jitgen.export(make(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["", "a-b", "1a", "_a", "jitgen", "ä", "a" * 101, "../a", None, 3])
def test_wrong_names(tmp_path: Path, name: Any) -> None:
    """A library's name becomes a part of C names and files."""
    with pytest.raises((TypeError, ValueError), match=r"^name="):
        jitgen.export([small()], tmp_path, name)
    assert not list(tmp_path.iterdir())


# ---- the command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"), ("{", "Expecting property name"), ("[1]", "1 is no object"),
        ("{}", "it holds {}; a list of kernels"), ("[]", "there are none"), ("3", "it holds 3"),
        ("[[]]", "kernel 0: [] is no object"), ('[{"m": 1}]', "kernel 0: 'n' is missing"),
        ('[{"m": 1, "n": 1, "k": 1, "x": 2}]', "'x' is not one of name, m, n, k, dtype"),
        ('[{"m": 1, "n": 1, "k": 1, "assembler": "peachpy"}]', "'assembler' is not one of"),
        ('[{"m": 1, "m": 2, "n": 1, "k": 1}]', "'m' stands twice"),
        ('[{"m": 0, "n": 1, "k": 1}]', "m=0 is smaller than 1"),
        ('[{"m": 1.5, "n": 1, "k": 1}]', "m=1.5 is no integer"),
        ('[{"m": true, "n": 1, "k": 1}]', "m=True is no integer"),
        ('[{"m": 1, "n": 1, "k": 1e400}]', "k=inf is no integer"),
        ('[{"m": 1, "n": 1, "k": [[]]}]', "k=[[]] is no integer"),
        ('[{"m": 1, "n": 1, "k": 1, "name": 1}]', "name=1 is no name"),
        ('[{"m": 1, "n": 1, "k": 1, "name": ""}]', 'name="" is no name'),
        ('[{"m": 1, "n": 1, "k": 1, "name": "a\\u0000"}]', "is no C name"),
        ('[{"m": 1, "n": 1, "k": 1, "target": "mmx"}]', "target='mmx' is not one of"),
        ('[{"m": 1, "n": 1, "k": 1, "target": 3}]', "target=3 is neither"),
        ('[{"m": 1, "n": 1, "k": 1, "dtype": {}}]', "dtype={} is not one of"),
        ('[{"m": 1, "n": 1, "k": 1, "beta": "1"}]', "beta='1' is no real number"),
        ('[{"m": 1, "n": 1, "k": 1, "plan": 3}]', "plan=3 is no mapping"),
        ('[{"m": 1, "n": 1, "k": 1, "plan": {"rows": {}}}]', "rows={} is no integer"),
        ('[{"m": 1, "n": 1, "k": 1, "epilogue": "relu"}]', "is a string"),
        ('[{"m": 1, "n": 1, "k": 1, "epilogue": {"a": 1}}]', "epilogue={'a': 1} is no sequence"),
        ('[{"m": 1, "n": 1, "k": 1, "epilogue": [["clip", NaN, 1]]}]', "is not finite"),
        ('[{"m": 99999999, "n": 99999999, "k": 1}]', "at most"),
        ("[" * 100000, "recursion"), ("\udce9", "utf-8"),
        ('[{"layer": "FullyConnected(1, 2, 3)", "m": 1}]', "'m' is not one of name, layer, passes"),
        ('[{"layer": 3}]', "layer 0: layer=3 is no str"), ('[{"layer": "F(1)"}]', "not one of Ful"),
        ('[{"layer": "FullyConnected(1, 2)"}]', "missing a required argument: 'out_features'"),
        ('[{"layer": "FullyConnected(0, 2, 3)"}]', "batch=0 is smaller than 1"),
        ('[{"layer": "MaxPool(1, 2, 3, 3, 2)", "passes": "forward"}]', 'passes="forward" is no'),
        ('[{"layer": "MaxPool(1, 2, 3, 3, 2)", "passes": []}]', "passes=[] is no list of names"),
        ('[{"layer": "MaxPool(1, 2, 3, 3, 2)", "passes": ["no"]}]', "passes[0]='no' is not"),
        ('[{"layer": "MaxPool(1, 2, 3, 3, 2)", "threads": [true]}]', "threads=[true] is no list"),
        ('[{"layer": "MaxPool(1, 2, 3, 3, 2)", "threads": [1, 1]}]', "threads=[1, 1]: it has"),
        ('[{"layer": "MaxPool(1, 2, 3, 3, 2)", "threads": [0]}]', "threads[0]=0 is smaller than 1"),
        ('[{"layer": "MaxPool(1, 2, 3, 3, 2, threads=2)"}]', "threads is given twice"),
        ('[{"layer": "MaxPool(1, 2, 3, 3, 2)", "name": "a b"}]', "'a b_forward' is no C name"),
        ('[{"layer": "MaxPool(1, 2, 3, 3, 2)", "target": "mmx"}]', "target='mmx' is not one of"),
    ],
)  # fmt: skip
def test_wrong_specs(capsys: Captured, tmp_path: Path, text: str, message: str) -> None:
    """Each error names the file and what is wrong with it, in one line; exit code 2."""
    path = tmp_path / "specs.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    asked = ["export", str(path), "-o", str(tmp_path / "out"), "--targets", "avx2"]
    assert main(asked) == BAD_ARGUMENTS
    told = capsys.readouterr().err
    assert told.startswith("jitgen: error: ") and message in told and told.count("\n") == 1
    later = ("there are none", "is no C name", "passes[0]=", "threads[0]=", "threads=[1, 1]")
    assert str(path) in told or any(text in told for text in later)
    assert not (tmp_path / "out").exists()


def test_damaged_specs(tmp_path: Path) -> None:
    """Bytes changed at random never lead to more than an error."""
    rng = random.Random(SEED)
    whole = SPECS.read_bytes()
    codes = set()
    for number in range(60):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(3)] = bytes(rng.choices(b'{}[],":0179-tfn\xff', k=1))
        path = tmp_path / f"{number}.json"
        path.write_bytes(data)
        codes.add(main(["export", str(path), "-o", str(tmp_path / "out"), "--targets", "avx2"]))
    assert codes <= {OK, BAD_ARGUMENTS} and BAD_ARGUMENTS in codes


def test_command_errors(capsys: Captured, tmp_path: Path, monkeypatch: Any) -> None:
    """Files and folders that are not there or not to be written, targets that do not exist."""
    out = str(tmp_path / "out")
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ([str(tmp_path / "absent.json"), "-o", out], "absent.json: No such file"),
        ([str(tmp_path), "-o", out], "Is a directory"),
        ([str(SPECS), "-o", str(tmp_path / "file")], "file: File exists"),
        ([str(SPECS), "-o", str(tmp_path / "file" / "x")], "Not a directory"),
        ([str(SPECS), "-o", "/proc/none"], "/proc/none: No such file"),
        ([str(SPECS), "-o", out, "--targets", "avx2,,"], "target='' is not one of"),
        ([str(SPECS), "-o", out, "--targets", "sve100"], "target='sve100': SVE has"),
        ([str(SPECS), "-o", out, "--targets", "avx2,sve256"], "two libraries"),
        ([str(SPECS), "-o", out, "--name", "a-b"], "name='a-b'"),
        ([str(SPECS)], "required: -o/--output"),
        (["-o", out], "SPECS: neither a file nor --layer is given"),
        (["--layer", "F(1)", "-o", out], "'F' is not one of FullyConnected"),
        (["--layer", "a=FullyConnected(1, 2, 3)", "--threads", "1,x", "-o", out], "'x' is no"),
        (["--layer", "a=FullyConnected(1, 2, 3)", "--threads", "2000", "-o", out], "than 1024"),
        (["--layer", "a=MaxPool(1, 2, 3, 3, 2)", "--passes", "", "-o", out], "passes[0]='' is not"),
        (["--layer", "a=MaxPool(1, 2, 3, 3, 2)", "--layer", "a=MaxPool(1, 2, 3, 3, 2)", "-o", out],
         "'a_forward' stands for two passes on one target"),
    ):
        assert main(["export", *(["--targets", "avx2"] if "--targets" not in arguments else []),
                     *arguments]) == BAD_ARGUMENTS  # fmt: skip
        assert message in capsys.readouterr().err
    assert not Path(out).exists()
    monkeypatch.setattr(cpu, "host", lambda: (_ for _ in ()).throw(RuntimeError("nothing here")))
    assert main(["export", str(SPECS), "-o", out]) == CANNOT_RUN
    assert "nothing here" in capsys.readouterr().err


def test_command(capsys: Captured, tmp_path: Path) -> None:
    """The files and kernels are listed; --json prints the manifest; a second run replaces."""
    asked = ["export", str(SPECS), "-o", str(tmp_path), "--name", "N"]
    asked += ["--targets", " avx2 , avx512"]
    assert main(asked) == OK
    lines = capsys.readouterr().out.splitlines()
    files = lines[: lines.index("")]
    assert all(Path(file).is_file() for file in files) and len(files) == 9
    assert lines[-5].startswith("N_small_avx2 ") and "1 x 1 x 1 f32" in lines[-5]
    assert lines[-1].startswith("N_fc_pack_weights_avx2 ") and "of FullyConnected" in lines[-1]
    assert main([*asked, "--json"]) == OK
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "N.json").read_text())
    assert len(list(tmp_path.iterdir())) == 9


def test_layers(capsys: Captured, tmp_path: Path) -> None:
    """Layers of the command line and of a file: names, passes and threads of their own, or those of
    the options."""
    path, pool = tmp_path / "s.json", "MaxPool(1, 2, 3, 3, 2)"
    path.write_text(json.dumps([
        {"layer": pool, "name": "own", "passes": ["backward"], "threads": [3]}, {"layer": pool},
        {"layer": "FullyConnected(2, 3, 4)", "passes": ["pack_weights"]},
    ]))  # fmt: skip
    out = str(tmp_path / "out")
    asked = [str(path), "--layer", f"given = {pool}", "--layer", pool, "-o", out, "--name", "n"]
    asked += ["--layer", "convolution_1d(1, 2, 3, 4, 1)"]
    asked += ["--targets", "avx512,avx2", "--threads", "1, 2", "--passes", "forward", "--json"]
    assert main(["export", *asked]) == OK
    found = [(x["function"], x["target"], x["threads"]) for x in
             json.loads(capsys.readouterr().out)["layers"]]  # fmt: skip
    assert found == [(f"n_{name}", target, threads) for name, threads in (
        ("own_backward", [3]), ("max_pool_forward", [1, 2]),
        ("fully_connected_pack_weights", [1, 2]), ("given_forward", [1, 2]),
        ("max_pool_2_forward", [1, 2]), ("convolution_1d_forward", [1, 2]),
    ) for target in ("avx512", "avx2")]  # fmt: skip


def test_requests_of_layers(tmp_path: Path) -> None:
    """What can be wrong with layers, and with what is said of them by name."""
    pool = MaxPool(1, 2, 3, 3, 2, threads=1, target="avx2")
    fc = FullyConnected(2, 3, 4, threads=1, target="avx2")
    w = np.zeros((4, 3), np.float32)
    for error, message, kernels, more in (
        (TypeError, "is one layer; give a list, [layer]", pool, {}),
        (ValueError, "two libraries", [pool, small(target="sve256")], {}),
        (ValueError, "'a_forward' stands for two passes on one target", {"a": [pool, pool]}, {}),
        (ValueError, "'a_forward' stands for passes that are not the same",
         {"a": [fc, FullyConnected(2, 3, 5, threads=1, target="avx512")]}, {}),
        (ValueError, "passes: 'b' is no layer's name (a)", {"a": pool}, {"passes": {"b": []}}),
        (ValueError, "weights: 'b' is no layer's name (a)", {"a": pool}, {"weights": {"b": {}}}),
        (ValueError, "threads: 'b' is no layer's name (a)", {"a": pool}, {"threads": {"b": [1]}}),
        (ValueError, "weights: name='w' is not in those of the layer=()", {"a": pool},
         {"weights": {"a": {"w": w}}}),
        (ValueError, "w has shape (4, 3); it must be (5, 3)",
         {"a": FullyConnected(2, 3, 5, threads=1, target="avx2")}, {"weights": {"a": {"w": w}}}),
        (TypeError, "weights['b']", {"a": fc}, {"weights": {"a": {"b": 3}}}),
        (ValueError, "weights: no pass that is exported takes 'b'", {"a": fc},
         {"weights": {"a": {"b": 3}}, "passes": ["backward_data"]}),
        (ValueError, "net_a_forward_avx2 is a kernel and a pass of a layer",
         {"a": pool, "a_forward": small()}, {}),
        (ValueError, "'A_forward' and 'a_forward' are one name in capitals",
         {"a": pool, "A": pool}, {}),
    ):
        with pytest.raises(error, match=re.escape(message)):
            jitgen.export(kernels, tmp_path / "new", "net", **{"passes": ["forward"], **more})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("names", "array", "twice"), [
    (("p", "p_avx2"), "x", "net_p_avx2"), (("get",), "x", "net_get"),
    (("p",), "Scratch", "NET_P_SCRATCH_BYTES"),
])  # fmt: skip
def test_a_header_defines_each_name_once(
    names: tuple[str, ...], array: str, twice: str, tmp_path: Path
) -> None:
    x, y = (Tensor(name, "m n", "f32", m=4, n=4) for name in (array, "y"))
    copied = Nest("M", {"m": Loop(4, (2,))}, "f32", "avx2").relayout(
        x.at(m="m"), y.at(m="m"), title="copy"
    )
    made = {name: Primitive([copied], [x, y], threads=1) for name in names}
    with pytest.raises(ValueError, match=f"{twice} would stand for two things in net.h"):
        jitgen.export(made, tmp_path, "net")


def test_target_of_a_spec_comes_first(tmp_path: Path) -> None:
    """--targets holds for kernels that name none."""
    path = tmp_path / "s.json"
    own, other = {"m": 1, "n": 2, "k": 3, "target": "avx512"}, {"m": 1, "n": 2, "k": 4}
    path.write_text(json.dumps([own, other]))
    out = tmp_path / "out"
    assert main(["export", str(path), "-o", str(out), "--targets", "avx2"]) == OK
    manifest = json.loads((out / "kernels.json").read_text())
    assert [each["target"] for each in manifest["kernels"]] == ["avx512", "avx2"]


def test_table_of_shapes(tmp_path: Path) -> None:
    """A table of shapes, whose names become C names; equal shapes share a kernel."""
    table = ROOT / "examples" / "resnet50.csv"
    assert main(["export", str(table), "-o", str(tmp_path), "--targets", "avx2"]) == OK
    manifest = json.loads((tmp_path / "kernels.json").read_text())
    rows = [x for x in table.read_text().splitlines() if x.strip() and not x.startswith("#")]
    names = [name for each in manifest["kernels"] for name in each["names"]]
    assert len(names) == len(rows) - 1 > len(manifest["kernels"])
    run("readelf", "-aW", tmp_path / "kernels.o")


def test_documentation(tmp_path: Path) -> None:
    """docs/export.md names every key and file; its program compiles without a warning."""
    text = (ROOT / "docs" / "export.md").read_text()
    files = {block.file: block.text for block in pages.read(ROOT / "docs" / "export.md")}
    (tmp_path / "specs.json").write_text(files["specs.json"])
    for file, to in ((tmp_path / "specs.json", "docs"), (SPECS, "lib")):
        assert main(["export", str(file), "-o", str(tmp_path / to), "--targets", "avx2"]) == OK
    for key in (*KEYS, *LAYER_KEYS):
        assert f"`{key}`" in text
    for file in (tmp_path / "docs").iterdir():
        assert f"`{file.name.replace('kernels', 'NAME')}`" in text
    manifest = json.loads((tmp_path / "docs" / "kernels.json").read_text())
    layer = manifest["layers"][0]
    for key in (*manifest, *manifest["kernels"][0], *layer, *layer["arguments"][0]):
        assert f"`{key}`" in text
    need_x86()
    folder = tmp_path / "lib"
    run("gcc", *STRICT, "-x", "c", "-", "-x", "none", f"-I{folder}", folder / "libkernels.a", "-o",
        folder / "program", input=files["main.c"])  # fmt: skip
    assert run(folder / "program") == "21\n"


def test_help(capsys: Captured) -> None:
    """--help shows examples, and all keys of a spec."""
    assert main(["export", "--help"]) == OK
    text = capsys.readouterr().out
    assert "jitgen export examples/c/specs.json -o build" in text
    for key in ("stride_a", "packed_b", "plan", "ldr", "target"):
        assert key in text
