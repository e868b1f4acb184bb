"""Switches of jitgen.debug: what turns tools on and off; whatever fails, kernels still run."""

from __future__ import annotations

import re
from typing import Any, cast

import pytest
from child import run_child
from needs import need

import jitgen
from jitgen.inspect.names import symbol_name

HOST = next((name for name, reason in jitgen.targets().items() if not reason), None)


@pytest.fixture(autouse=True)
def _host() -> None:
    need(None if HOST else "no target runs here", installable=False)


RUN = """
import os, threading, warnings
import numpy as np
import jitgen

def right(kernel):
    s = kernel.spec
    c = kernel(np.ones((s.m, s.k), np.float32), np.ones((s.k, s.n), np.float32),
               np.zeros((s.m, s.n), np.float32))
    return bool((c == s.alpha * s.k).all())

def names(path):
    with open(path) as file:
        return [line.split()[2] for line in file]
"""


def test_off_means_off() -> None:
    run_child(RUN + """
from jitgen.run import loader
assert loader.on_load is None and loader.share
assert right(jitgen.brgemm(4, 8, 4))
assert not os.path.exists(f"/tmp/perf-{os.getpid()}.map")
""", JITGEN_DEBUG="")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("'perff'", "tool='perff' is not one of perf, jitdump, gdb"),
        ("", "name at least one tool: perf, jitdump, gdb"),
        ("'gdb', directory='/nowhere'", "directory='/nowhere' is no directory"),
    ],
)
def test_wrong_requests_are_refused(arguments: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        eval(f"enable({arguments})", {"enable": jitgen.debug.enable})
    assert jitgen.run.loader.on_load is None


def test_wrong_names_in_the_environment_are_warned_of() -> None:
    said = run_child(
        """
        import warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import jitgen
            import os
            jitgen.brgemm(4, 8, 4).address
        for each in caught:
            print(each.category.__name__, each.message)
        os.unlink(f"/tmp/perf-{os.getpid()}.map")
        """,
        JITGEN_DEBUG="perf, vtune,gbd",
        JITGEN_DEBUG_DIR="/nowhere",
    )
    assert said.splitlines() == [
        "RuntimeWarning jitgen.debug: JITGEN_DEBUG: vtune, gbd is not one of perf, jitdump, gdb",
        "RuntimeWarning jitgen.debug: JITGEN_DEBUG_DIR='/nowhere' is no directory and is not used",
    ]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ("resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))", "File too large"),
        ("os.rmdir(folder)", "No such file or directory"),
        ("jitgen.debug._tools['jitdump'].add = lambda image: 1 // 0", "ZeroDivisionError"),
    ],
    ids=["full disk", "folder gone", "fault of ours"],
)
@pytest.mark.parametrize("tool", ["jitdump", "gdb"])
def test_a_tool_that_fails_warns_once_and_kernels_run(tool: str, spoil: str, reason: str) -> None:
    run_child(RUN + f"""
import resource, tempfile
from jitgen.run import loader
folder = tempfile.mkdtemp()
jitgen.debug.enable({tool!r}, directory=folder)
{spoil.replace("jitdump", tool)}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert all(right(jitgen.brgemm(4, 8, 4, alpha=float(i))) for i in range(1, 5))
assert len(caught) == 1, [str(x.message) for x in caught]
said = str(caught[0].message)
assert said.startswith("jitgen.debug: {tool} is turned off: ") and {reason!r} in said, said
assert loader.on_load is None and loader.share
""", JITGEN_DEBUG="")


def test_one_tool_that_fails_leaves_the_others_on() -> None:
    run_child(RUN + """
import tempfile
folder = tempfile.mkdtemp()
jitgen.debug.enable("perf", "jitdump", directory=folder)
os.rmdir(folder)
path = f"/tmp/perf-{os.getpid()}.map"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    kernels = [jitgen.brgemm(4, 8, 4, alpha=float(i)) for i in range(1, 5)]
    assert all(map(right, kernels))
assert len(caught) == 1 and len(names(path)) == 4, (caught, names(path))
os.unlink(path)
""", JITGEN_DEBUG="")


def test_threads_announce_each_kernel_once() -> None:
    """While tools are turned on, in threads that generate and load."""
    run_child(RUN + """
import tempfile
from jitgen.inspect.names import symbol_name
kernels = []

def work(number):
    for i in range(40):
        kernel = jitgen.brgemm(4, 8, 4, alpha=float(1 + i % 30 + number * 20))
        assert right(kernel)
        kernels.append(kernel)

threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
for thread in threads:
    thread.start()
with tempfile.TemporaryDirectory() as folder:
    jitgen.debug.enable("perf", "jitdump", "gdb", directory=folder)
    for thread in threads:
        thread.join()
    path = f"/tmp/perf-{os.getpid()}.map"
    assert sorted(names(path)) == sorted(symbol_name(k) for k in set(kernels))
    os.unlink(path)
""", JITGEN_DEBUG="")


def test_a_forked_child_writes_files_of_its_own() -> None:
    """With the kernels of before the fork; the parent's files stay as they were."""
    run_child(RUN + """
import tempfile
with tempfile.TemporaryDirectory() as folder:
    jitgen.debug.enable("perf", "jitdump", "gdb", directory=folder)
    assert right(jitgen.brgemm(4, 8, 4))
    dump = lambda: f"{folder}/jit-{os.getpid()}.dump"
    mapped = lambda: f"/tmp/perf-{os.getpid()}.map"
    before = names(mapped())
    child = os.fork()
    good = names(mapped()) == before
    good = good and right(jitgen.brgemm(4, 8, 4)) and right(jitgen.brgemm(6, 8, 4))
    good = good and len(names(mapped())) == 2 and os.path.getsize(dump()) > 1000
    good = good and open(dump(), "rb").read().count(b"jitgen_brgemm") >= 2
    os.unlink(mapped())
    if not child:
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0, "in the child"
    assert good and sorted(os.listdir(folder))[:2] == sorted(
        [f"jit-{os.getpid()}.dump", f"jit-{child}.dump"]
    )
""", JITGEN_DEBUG="")


#: Two layers, and what their functions are called: patterns in the order in which they are loaded
LAYERS = """
import tempfile
from jitgen import FullyConnected, MaxPool

def use(layer, *arrays):
    return layer.forward(*arrays)

dense = FullyConnected(6, 40, 24, threads=1)
packed = dense.pack_weights(np.ones((24, 40), "f"))
pool = MaxPool(1, 20, 6, 6, 2, stride=2, threads=1)

def run():
    y = use(dense, np.ones((6, 40), "f"), packed, np.ones(24, "f"))
    assert (y == 41).all() and (use(pool, np.ones((1, 20, 6, 6), "f")) == 1).all()

WANTED = ("replay_T_FullyConnected_pack_weights_6_40_24", "pack_T", "pack_transposed_T",
          "replay_T_FullyConnected_forward_6_40_24", "brgemm_T",
          "replay_T_MaxPool_forward_1_20_6_6", "transpose_T", "max_pool_T")
WANTED = [f"jitgen_{each}_".replace("_T", f"_{jitgen.host().name}") for each in WANTED]

def missing(found):
    return [each for each in WANTED if not any(name.startswith(each) for name in found)]
"""


@pytest.mark.parametrize("late", [False, True], ids=["from the start", "later"])
def test_layers_show_kernels_packers_and_drivers(late: bool) -> None:
    """In order of their addresses within a driver's piece, one after the other, none over another;
    also to tools that are turned on when all have been loaded."""
    run_child(RUN + LAYERS + f"""
with tempfile.TemporaryDirectory() as folder:
    if {late}:
        run()
    jitgen.debug.enable("perf", "jitdump", "gdb", directory=folder)
    if not {late}:
        dense = FullyConnected(6, 40, 24, threads=1)
        packed = dense.pack_weights(np.ones((24, 40), "f"))
    run()
    path = f"/tmp/perf-{{os.getpid()}}.map"
    lines = [line.split() for line in open(path)]
    os.unlink(path)
    assert not missing([name for _, _, name in lines]), (missing(x[2] for x in lines), lines)
    places = sorted((int(at, 16), int(size, 16)) for at, size, _ in lines)
    assert all(a + n <= b for (a, n), (b, _) in zip(places, places[1:])), lines
    listed = [name.removesuffix(".lst") for name in os.listdir(folder) if name.endswith(".lst")]
    assert set(listed) == {{name for _, _, name in lines}}
    dump = open(f"{{folder}}/jit-{{os.getpid()}}.dump", "rb").read()
    assert all(dump.count(name.encode() + bytes(1)) for _, _, name in lines)
    (driver,) = (name for name in listed if "FullyConnected_forward" in name)
    text = open(f"{{folder}}/{{driver}}.lst").read()
    assert "; behind it, at these offsets" in text and "brgemm f32" in text, text
    (packer,) = (name for name in listed if name.startswith("jitgen_max_pool"))
    assert "y" in open(f"{{folder}}/{{packer}}.lst").read()
    run()
""", JITGEN_DEBUG="", PYTHONWARNINGS="error")


def test_threads_of_a_crew_have_names() -> None:
    run_child(RUN + """
from jitgen.run.team import Team
jitgen.debug.enable("perf")
path = f"/tmp/perf-{os.getpid()}.map"
layer = jitgen.FullyConnected(256, 256, 256, threads=2, bias=False)
layer.forward(np.ones((256, 256), "f"), np.ones((256, 256), "f"))
kinds = {name.split("_")[1] for name in names(path)}
os.unlink(path)
assert kinds >= {"member", "crew", "helper", "replay", "brgemm"}, kinds
""", JITGEN_DEBUG="")


def test_a_layer_that_is_gone_is_not_announced() -> None:
    """What no tool was told of goes with its layer."""
    run_child(RUN + LAYERS + """
from jitgen.run import loader
run()
count = len(loader.loaded)
assert count >= 3
del dense, pool
jitgen.clear_caches()
assert not loader.loaded, list(loader.loaded)
""", JITGEN_DEBUG="")


def test_names_are_identifiers_of_their_own_code() -> None:
    seen = {}
    for target in ("avx2", "avx512", "sve256"):
        for arguments in ({}, {"beta": 1.0}, {"dtype": "f64"}, {"plan": {"k_unroll": 1}}):
            kernel = jitgen.brgemm(4, 8, 16, target=target, **cast("Any", arguments))
            name = symbol_name(kernel)
            assert name.isidentifier() and name.isascii() and "4x8x16" in name
            assert name == symbol_name(kernel)
            assert seen.setdefault(name, kernel.code) == kernel.code
    assert len(seen) == 12


def test_the_map_is_private_and_belongs_to_this_process() -> None:
    """Lines that others of this process wrote stay, those of an earlier process go."""
    run_child("""
        import os, stat
        path = f"/tmp/perf-{os.getpid()}.map"
        try:
            for age, kept in ((0, True), (3 * 86400, False)):
                with open(path, "w") as file:
                    file.write("1000 10 other\\n")
                then = os.stat(path).st_mtime - age
                os.utime(path, (then, then))
                import jitgen
                from jitgen.inspect.names import symbol_name
                jitgen.debug.enable("perf")
                kernel = jitgen.brgemm(4, 8, 4, alpha=1.0 + age)
                kernel.address
                lines = open(path).read().splitlines()
                wanted = f"{kernel.address:x} {len(kernel.code):x} {symbol_name(kernel)}"
                assert lines[-1] == wanted, (lines, wanted)
                assert ("1000 10 other" in lines) == kept, lines
                jitgen.debug.disable()
                jitgen.brgemm(5, 8, 4, alpha=2.0 + age).address
                assert open(path).read().splitlines() == lines
            os.unlink(path)
            jitgen.debug.enable("perf")
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        finally:
            os.unlink(path)
    """)
