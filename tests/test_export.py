"""`jitgen export` and `jitgen.export`: every file of a library in use, run-time choice of kernels,
manifest. The header: test_export_header.py; what can be wrong with a request:
test_export_command.py; files as tools see them: test_elf.py."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from libraries import need_x86
from random_cases import SEED, random_case
from toolchain import STRICT, run, tool

import jitgen
from jitgen.cli import main
from jitgen.cli.terminal import OK
from jitgen.objects.packages import package_files

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples" / "c"
SPECS = EXAMPLES / "specs.json"
BEST = "avx512" if not jitgen.targets()["avx512"] else "avx2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of the examples for both x86-64 targets."""
    path = tmp_path_factory.mktemp("x86")
    assert main(["export", str(SPECS), "-o", str(path), "--targets", "avx2,avx512"]) == OK
    return path


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for three vector lengths of SVE, and NEON."""
    path = tmp_path_factory.mktemp("arm")
    targets = "sve128,sve256,sve512,neon"
    assert main(["export", str(SPECS), "-o", str(path), "--targets", targets]) == OK
    return path


# ---- examples -----------------------------------------------------------------------------------


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("example", ["dense", "packed", "dispatch", "layer"])
@pytest.mark.parametrize("library", ["kernels.o", "libkernels.a", "libkernels.so"])
def test_examples(
    folder: Path, tmp_path: Path, compiler: str, example: str, library: str
) -> None:
    """Each example compiles without a warning, runs, and is right, on the best target."""
    need_x86()
    program = _example(tmp_path, folder, compiler, example, library)
    shown = run(program)
    what = {"layer": "kernels_fc_forward_packed on 2 threads"}.get(example, rf"kernels_\w+_{BEST}")
    assert re.search(rf"^{example}: {what}, .*largest error \S+$", shown, re.MULTILINE)


def _example(to: Path, folder: Path, compiler: str, example: str, library: str) -> Path:
    """Compile an example; returns the program."""
    language = ["-std=c99"]
    if example == "packed":
        compiler, language = compiler.replace("gcc", "g++"), ["-std=c++11", "-Wold-style-cast"]
        compiler = "clang++" if compiler == "clang" else compiler
    source = EXAMPLES / f"{example}.{'cpp' if example == 'packed' else 'c'}"
    run(compiler, "-O2", *language, *STRICT, f"-I{folder}", source, folder / library, "-o",
        to / example, "-lm", "-pthread", f"-Wl,-rpath,{folder}",
        "-Wl,--fatal-warnings")  # fmt: skip
    return to / example


@pytest.mark.parametrize(
    ("model", "target"), [("max", "avx2"), ("Haswell", "avx2"), ("Nehalem", "")]
)
def test_choice_on_other_cpus(folder: Path, tmp_path: Path, model: str, target: str) -> None:
    """A program takes what an emulated CPU has, or none."""
    need_x86()
    program = _example(tmp_path, folder, "gcc", "dispatch", "libkernels.a")
    done = subprocess.run(
        [tool("qemu-x86_64"), "-cpu", model, program], capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    states = {line.split()[0]: line.split()[-1] for line in lines[:-1]}
    for symbol, state in states.items():
        assert state == ("chosen" if target and symbol.endswith(target) else "no"), done.stdout
    if target:
        assert done.returncode == 0 and f"kernels_precise_{target}, largest" in lines[-1]
    else:
        assert done.returncode == 3 and "no kernel" in lines[-1]


@pytest.mark.parametrize("library", ["libkernels.a", "libkernels.so"])
def test_examples_for_aarch64(arm: Path, tmp_path: Path, library: str) -> None:
    """C for AArch64: the kernel of this thread's vector length, or that of every CPU."""
    for example in ("dense", "dispatch", "packed", "layer"):
        packed = example == "packed"
        compiler = "aarch64-linux-gnu-g++" if packed else "aarch64-linux-gnu-gcc"
        source = EXAMPLES / f"{example}.{'cpp' if packed else 'c'}"
        run(compiler, "-O2", *STRICT, f"-I{arm}", source, arm / library, "-o", tmp_path / example,
            "-lm", "-pthread", f"-Wl,-rpath,{arm}", "-Wl,--fatal-warnings")  # fmt: skip
        models = [(f"max,sve-default-vector-length={length}", found) for length, found in (
            (16, "sve128"), (32, "sve256"), (64, "sve512"), (48, "neon"))]  # fmt: skip
        for model, found in (*models, ("cortex-a72", "neon")):
            code, shown = _emulated(tmp_path / example, model)
            assert code == 0, shown
            told = "on 2 threads, " if example == "layer" else f"_{found}, "
            assert told in shown.splitlines()[-1]


def _emulated(program: Path, model: str) -> tuple[int, str]:
    command = [tool("qemu-aarch64"), "-L", "/usr/aarch64-linux-gnu", "-cpu", model, program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_cmake(folder: Path, tmp_path: Path) -> None:
    """The package of a library that was moved to a folder with a space in its name is found; its
    examples are built and pass; a version that does not exist is refused."""
    need_x86()
    moved = tmp_path / "a folder"
    shutil.copytree(folder, moved)
    build = tmp_path / "build"
    run("cmake", "-S", EXAMPLES, "-B", build, f"-DCMAKE_PREFIX_PATH={moved}")
    run("cmake", "--build", build)
    assert "100% tests passed" in run("ctest", "--test-dir", build, folder=build)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(x C)\n"
        "find_package(kernels ${WANTED} CONFIG)\nmessage(STATUS \"found ${kernels_FOUND}\")\n"
    )
    for wanted, found in (("", "1"), ("0.1", "1"), ("0.1.0", "1"), ("0.9", "0"), ("1.0", "0")):
        shown = subprocess.run(
            [tool("cmake"), "-S", tmp_path, "-B", tmp_path / f"b{wanted}", f"-DWANTED={wanted}",
             f"-Dkernels_DIR={moved}"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert f"found {found}" in shown, (wanted, shown)


def test_versions_for_cmake(tmp_path: Path) -> None:
    """A package meets requests for its version and for older ones with the same first number."""
    files = package_files("x", "x86_64", "jitgen", "2.3.4")
    (tmp_path / "version.cmake").write_text(files["xConfigVersion.cmake"])
    script = tmp_path / "script.cmake"
    script.write_text(
        "include(${CMAKE_CURRENT_LIST_DIR}/version.cmake)\n"
        'message(STATUS "${PACKAGE_VERSION_COMPATIBLE} ${PACKAGE_VERSION_EXACT}")\n'
    )
    for asked, found in (
        ("2.3.4", "TRUE TRUE"), ("2.3", "TRUE"), ("2.1", "TRUE"), ("2", "TRUE"), ("2.4", "FALSE"),
        ("1.3", "FALSE"), ("3.3", "FALSE"), ("", "TRUE"),
    ):  # fmt: skip
        values = (f"-DPACKAGE_FIND_VERSION={asked}", f"-DPACKAGE_FIND_VERSION_MAJOR={asked[:1]}")
        assert run("cmake", *values, "-P", script).strip().removeprefix("-- ").strip() == found


def test_cmake_for_another_processor(arm: Path, tmp_path: Path) -> None:
    """A package for another architecture is not found, and says why."""
    need_x86()
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(x C)\n"
        "find_package(kernels CONFIG REQUIRED)\n"
    )
    command = [tool("cmake"), "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={arm}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode and "kernels is for aarch64, not for x86_64" in done.stderr


def test_pkg_config(folder: Path, tmp_path: Path) -> None:
    """pkg-config finds a library that was moved to a folder with a space in its name, and its flags
    compile and link."""
    need_x86()
    moved = tmp_path / "a folder"
    shutil.copytree(folder, moved)
    variables = {"PKG_CONFIG_PATH": str(moved), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    run("pkg-config", "--validate", "kernels", variables=variables)
    assert run("pkg-config", "--modversion", "kernels", variables=variables) == "0.1.0\n"
    shown = run("pkg-config", "--cflags", "--libs", "kernels", variables=variables)
    options = shlex.split(shown)
    assert options == [f"-I{moved}", f"-L{moved}", "-lkernels"]
    run("gcc", EXAMPLES / "dense.c", *options, f"-Wl,-rpath,{moved}", "-lm", "-o", tmp_path / "d")
    assert "largest error" in run(tmp_path / "d")


# ---- assembly source, manifest ------------------------------------------------------------------


def _bytes_of(path: Path, symbol: str, size: int, objdump: str) -> bytes:
    """The bytes at a symbol of an object."""
    names = run(objdump.replace("objdump", "nm"), path)
    address = int(re.search(rf"^(\w+) T {symbol}$", names, re.MULTILINE)[1], 16)  # type: ignore[index]
    shown = subprocess.run(
        [objdump, "-s", "-j", ".text", f"--start-address={address}",
         f"--stop-address={address + size}", path],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    rows = re.findall(r"^ [0-9a-f]+ ((?:[0-9a-f]{2,8} ){1,4})", shown, re.MULTILINE)
    return bytes.fromhex("".join(rows).replace(" ", ""))


@pytest.mark.parametrize(
    ("which", "compiler", "objdump"),
    [("folder", "gcc", "objdump"),
     ("arm", "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-objdump")],
)  # fmt: skip
def test_assembly_source(
    request: pytest.FixtureRequest, tmp_path: Path, which: str, compiler: str, objdump: str
) -> None:
    """The assembler makes the same bytes of every function, and the same table and unwind
    information; the manifest's hashes are those of the code."""
    path: Path = request.getfixturevalue(which)
    made = tmp_path / "made.o"
    run(compiler, "-c", path / "kernels.s", "-o", made)
    manifest = json.loads((path / "kernels.json").read_text())
    for each in manifest["kernels"]:
        code = _bytes_of(made, each["symbol"], each["code_bytes"], objdump)
        assert hashlib.sha256(code).hexdigest() == each["sha256"]
        assert code == _bytes_of(path / "kernels.o", each["symbol"], each["code_bytes"], objdump)
    ours = _bytes_of(path / "kernels.o", "kernels_library", 12, objdump)
    assert _bytes_of(made, "kernels_library", 12, objdump) == ours
    for section in (".data.rel.ro", ".rodata"):
        dumps = [run(objdump, "-s", "-j", section, x) for x in (made, path / "kernels.o")]
        assert dumps[0].partition("Contents")[2] == dumps[1].partition("Contents")[2]
    for each in manifest["layers"]:
        parts = [_parts_of(x, each["symbol"], objdump) for x in (made, path / "kernels.o")]
        assert parts[0] == parts[1] and len(parts[0]) > 3
    frames = [_frames(x) for x in (made, path / "kernels.o")]
    assert frames[0] == frames[1] and len(frames[0]) > len(manifest["kernels"])


def _parts_of(path: Path, symbol: str, objdump: str) -> dict[str, list[str]]:
    """The instructions of an entry and of all functions whose names begin with it, in words."""
    names = run(objdump.replace("objdump", "nm"), path)
    found = {}
    for part in re.findall(rf"^\w+ [tT] ({symbol}(?:\.\S+)?)$", names, re.MULTILINE):
        if part.endswith(".constants"):
            continue
        shown = run(objdump, "-d", f"--disassemble={part}", path)
        _, _, body = shown.partition(f"<{part}>:")
        # without places in the file, and what follows a function
        texts = [line.split("\t")[-1] for line in body.splitlines()[1:] if "\t" in line]
        lines = [text.split("#")[0] for text in texts]
        lines = [re.sub(r"\b[0-9a-f]+ <.*>", "", line) for line in lines]
        end = max((i for i, line in enumerate(lines) if line.startswith("ret")), default=0)
        found[part] = lines[: end + 1]
    return found


def _frames(path: Path) -> list[list[str]]:
    """The unwind rules of each function, without places in the file."""
    text = run("readelf", "--debug-dump=frames-interp", path)
    blocks = [block for block in text.split("\n\n") if " FDE " in block]
    return [[line.split(maxsplit=1)[-1] for line in b.splitlines()[2:]] for b in blocks]


def test_linked_from_assembly_source(folder: Path, tmp_path: Path) -> None:
    """A program links with the assembled source alone."""
    need_x86()
    run("gcc", "-O2", *STRICT, f"-I{folder}", EXAMPLES / "dense.c", folder / "kernels.s", "-lm",
        "-o", tmp_path / "dense", "-Wl,--fatal-warnings")  # fmt: skip
    assert f"kernels_dense_{BEST}" in run(tmp_path / "dense")


def test_manifest(folder: Path) -> None:
    """It tells what was made of what; every file has its hash."""
    manifest = json.loads((folder / "kernels.json").read_text())
    assert manifest["generator"] == f"jitgen {jitgen.__version__}"
    assert (manifest["manifest"], manifest["abi"], manifest["architecture"]) == (1, 1, "x86_64")
    assert {f.name for f in folder.iterdir()} == {*manifest["files"], "kernels.json"}
    for file, digest in manifest["files"].items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest
    specs = [spec for spec in json.loads(SPECS.read_text()) if "m" in spec]
    assert len(manifest["kernels"]) == 2 * len(specs)
    for number, spec in enumerate(specs):
        for each in manifest["kernels"][2 * number : 2 * number + 2]:
            arguments = {key: value for key, value in spec.items() if key != "name"}
            kernel = jitgen.brgemm(**arguments, target=each["target"])
            assert each["sha256"] == hashlib.sha256(kernel.code).hexdigest()
            assert each["names"] == [spec["name"]] and each["product"] == number
            assert each["spec"]["lda"] == kernel.spec.lda and each["plan"]["order"]
            assert each["features"] == list(kernel.target.features)


def test_exports_are_equal(folder: Path, tmp_path: Path) -> None:
    """The same kernels give the same files, byte by byte, in another process and order of work."""
    command = [sys.executable, "-m", "jitgen", "export", SPECS, "-o", tmp_path, "--targets"]
    subprocess.run([*command, "avx2,avx512"], cwd=ROOT, check=True, capture_output=True)
    for file in folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


def test_random_kernels(tmp_path: Path) -> None:
    """Whatever a kernel is, it can be exported, and its entry says what it is."""
    rng = random.Random(SEED)
    kernels = []
    while len(kernels) < 40:
        case = random_case(rng, 30)
        try:
            kernels.append(case.kernel(rng.choice(("avx2", "avx512"))))
        except ValueError:
            assert case.plan or case.packed > 0
    specs = {(k.spec, k.target) for k in kernels}
    first = {(k.spec, k.target): k for k in reversed(kernels)}
    manifest = jitgen.export(first.values(), tmp_path)
    assert len(manifest["kernels"]) == len(specs)
    run("readelf", "-aW", tmp_path / "libkernels.so")
    run("gcc", *STRICT, "-fsyntax-only", f"-I{tmp_path}", "-x", "c", "-",
        input='#include "kernels.h"\n')  # fmt: skip
    run("gcc", "-c", tmp_path / "kernels.s", "-o", tmp_path / "s.o")


def test_benchmark(tmp_path: Path) -> None:
    """`tools.bench export` measures every target here; wrong options have codes of their own."""
    need_x86()
    tool("gcc")
    command = [sys.executable, "-m", "tools.bench", "export", "--calls", "1000"]
    for options, code in (
        (["--rounds", "2", "--json", str(tmp_path / "j")], 0), (["--rounds", "0"], 2),
        (["--isa", "sve256"], 3), (["--isa", "avx2", "--libxsmm", "/none"], 3),
    ):  # fmt: skip
        done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
    for result in json.loads((tmp_path / "j").read_text()):
        assert not jitgen.targets()[result["isa"]] and result["error"] < 1e-3
        assert len(result["calls"]) == len(result["shapes"])
        assert all(ours > 0 for ours, _ in result["calls"])
        # what a C call of a layer may cost beside its driver
        assert result["driver"] > 0 and 0 < result["layer"] < result["driver"] + 60
