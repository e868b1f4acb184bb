"""One import name: `jitgen` holds `isa` and `primitives`, which a checkout has beside it; old names
work, with a warning. Who imports whom is checked by `tools.imports`.

Not here: wheels (test_wheel).
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from child import run_child

import jitgen
from jitgen import moved, primitives
from tools import imports

ROOT = Path(__file__).resolve().parent.parent


def test_a_checkouts_folders_are_the_same_modules() -> None:
    """Never a second copy of a registry, whichever name comes first."""
    run_child("""
        import isa.avx512, primitives, primitives.layers.pooling
        from primitives import FullyConnected
        import jitgen, jitgen.isa.avx512, jitgen.primitives.layers.pooling
        assert primitives is jitgen.primitives and isa is jitgen.isa
        assert FullyConnected is jitgen.FullyConnected is primitives.FullyConnected
        assert isa.avx512 is jitgen.isa.avx512
        assert primitives.layers.pooling is jitgen.primitives.layers.pooling
        assert isa.FAMILIES is jitgen.isa.FAMILIES
    """, PYTHONWARNINGS="error")  # fmt: skip


def test_a_users_own_primitives_and_isa_disturb_nothing(tmp_path: Path) -> None:
    for name in ("primitives", "isa"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("mine = True\n")
    run_child(f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import isa, primitives
        assert isa.mine and primitives.mine
        import jitgen
        jitgen.brgemm(4, 4, 4, target="avx512")
        assert jitgen.FullyConnected(4, 4, 4).forward
        assert jitgen.primitives is not primitives and jitgen.isa is not isa
    """, PYTHONWARNINGS="error")  # fmt: skip


def test_import_is_lazy() -> None:
    """`import jitgen` loads no layer and nothing that reads listings."""
    run_child("""
        import sys
        import jitgen
        rooms = {name.split(".")[1] for name in sys.modules if name.startswith("jitgen.")}
        late = {"primitives", "inspect", "analysis", "debug", "objects", "cli"}
        assert not rooms & late, rooms & late
        for name in jitgen.__all__:
            assert name in dir(jitgen) and getattr(jitgen, name) is not None
    """)  # fmt: skip


def test_public_names_of_layers() -> None:
    assert set(primitives.__all__) == set(primitives.PUBLIC) <= set(jitgen.__all__)
    for name in primitives.PUBLIC:
        assert getattr(jitgen, name) is getattr(primitives, name)
        assert name in dir(primitives)
    for module in (jitgen, primitives):
        with pytest.raises(AttributeError, match="'nothing'"):
            module.nothing  # noqa: B018


@pytest.mark.parametrize("old", sorted(moved.MOVED))
def test_old_names_warn_and_are_the_module_itself(old: str) -> None:
    sys.modules.pop(old, None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = importlib.import_module(old)
    assert found is importlib.import_module(moved.MOVED[old])
    (warning,) = [w for w in caught if w.category is DeprecationWarning]
    assert str(warning.message) == f"{old} is {moved.MOVED[old]} now"
    assert warning.filename == __file__


def test_the_warning_names_the_line_that_asked(tmp_path: Path) -> None:
    script = tmp_path / "old.py"
    script.write_text("import jitgen\n\nfrom jitgen.kernel import brgemm\njitgen.cpu.host()\n")
    done = subprocess.run(
        [sys.executable, "-W", "default", script], cwd=ROOT, env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    warned = [line for line in done.stderr.splitlines() if "DeprecationWarning" in line]
    assert warned == [
        f"{script}:3: DeprecationWarning: jitgen.kernel is jitgen.gemm.kernel now",
        f"{script}:4: DeprecationWarning: jitgen.cpu is jitgen.run.cpu now",
    ]


def test_imports_point_down_and_in_no_circle() -> None:
    graph = imports.graph(ROOT)
    assert {"jitgen.isa.avx2", "jitgen.primitives.conv.cost", "tools.bench.fc"} <= set(graph)
    assert "jitgen.isa.a64" in graph["jitgen.run.loader"]  # in a function, and counted
    assert imports.circles(graph) == [] == imports.upward(graph)
    # both can fail
    graph["jitgen.isa.form"] = {"jitgen.gemm.kernel"}
    assert any("jitgen.isa.form" in circle for circle in imports.circles(graph))
    assert "jitgen.isa.form: imports jitgen.gemm.kernel; imports point down only" in (
        imports.upward(graph)
    )


def test_threads_that_open_the_first_machine_at_once() -> None:
    """None of them finds a module that another one is about to run."""
    code = """if True:
        import sys, threading
        from jitgen import isa
        sys.setswitchinterval(1e-6)
        bits = {name: 128 if name == "neon" else 256 for name in isa.FAMILIES}
        opened, start = [], threading.Barrier(8)
        def work():
            start.wait()
            opened.extend(isa.open_machine(name, "f32", bits[name]) for name in isa.FAMILIES)
        threads = [threading.Thread(target=work) for _ in range(8)]
        [t.start() for t in threads], [t.join() for t in threads]
        assert len(opened) == 8 * len(bits)"""
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True,
                              text=True)  # fmt: skip
        assert done.returncode == 0 and not done.stderr, done.stderr


def test_a_room_without_a_floor_is_named() -> None:
    (sentence,) = imports.upward({"jitgen.new.cells": set(), "jitgen.isa": set()})
    assert sentence == "jitgen.new.cells: FLOORS of tools/imports.py does not say where new stands"


def test_an_old_name_runs_with_m() -> None:
    for name in ("jitgen.kernel", "isa.x86_rows"):
        done = subprocess.run([sys.executable, "-W", "ignore", "-m", name], cwd=ROOT,
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
