"""What is installed: a wheel and a source archive hold one package, `jitgen`, that works by itself.

Not here: names in a checkout (test_rooms).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = """
import importlib.util, pathlib, sys
import jitgen
import jitgen.isa.avx2, jitgen.primitives.layers.fully_connected
here = pathlib.Path(sys.argv[1])
assert here in pathlib.Path(jitgen.__file__).parents, jitgen.__file__
assert here in pathlib.Path(jitgen.isa.avx2.__file__).parents
for name in ("isa", "primitives", "tools"):
    assert importlib.util.find_spec(name) is None, name
kernel = jitgen.brgemm(8, 8, 8, target="avx512")
layer = jitgen.FullyConnected(4, 8, 16, target="sve256", threads=1)
print(len(kernel.code), jitgen.__version__, len(layer.stream("forward").calls))
"""


def build(what: str, source: Path, to: Path) -> Path:
    """A wheel or a source archive of a checkout, with the setuptools that are here."""
    to.mkdir()
    code = f"from setuptools import build_meta; build_meta.build_{what}({str(to)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (made,) = to.iterdir()
    return made


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What setup reads of the checkout, links as links."""
    to = tmp_path_factory.mktemp("checkout") / "jitgen"
    to.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    for room in ("isa", "jitgen", "primitives", "tools"):
        shutil.copytree(ROOT / room, to / room, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, to / name)
    return to


def modules(names: list[str]) -> set[str]:
    """Python modules among the names of files."""
    return {name for name in names if name.endswith(".py")}


def test_a_wheel_holds_one_package_that_works(checkout: Path, tmp_path: Path) -> None:
    wheel = build("wheel", checkout, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        file.extractall(tmp_path / "site")
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"jitgen"}
    wanted = {
        f"jitgen/{path.relative_to(ROOT)}" if room != "jitgen" else f"{path.relative_to(ROOT)}"
        for room in ("isa", "jitgen", "primitives") for path in (ROOT / room).rglob("*.py")
        if not {"isa", "primitives"} & set(path.relative_to(ROOT / room).parts[:-1])
    }  # fmt: skip
    assert modules(names) == wanted
    assert "jitgen/py.typed" in names
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, sys.argv[1])\n{INSTALLED}",
         tmp_path / "site"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == wheel.name.split("-")[1]


def test_a_source_archive_builds_the_same_wheel(checkout: Path, tmp_path: Path) -> None:
    archive = build("sdist", checkout, tmp_path / "sdist")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    (source,) = [path for path in tmp_path.iterdir() if path.name.startswith("jitgen-")]
    for room in ("isa", "primitives"):
        assert (source / "jitgen" / room / "__init__.py").is_file()
    with zipfile.ZipFile(build("wheel", source, tmp_path / "again")) as file:
        again = file.namelist()
    with zipfile.ZipFile(build("wheel", checkout, tmp_path / "wheel")) as file:
        assert sorted(again) == sorted(file.namelist())
