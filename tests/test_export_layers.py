"""Passes of layers as C functions: the same bits as in Python, threads of the caller, what is
refused. Kernels as files: test_export.py."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import layer_programs
import numpy as np
import pytest
from layer_programs import Arrays, execute, natively, program
from libraries import LOADER, build, emulate, need_x86
from test_passes import KINDS
from tiers import TIERS, need
from toolchain import STRICT, run, tool

import jitgen
from jitgen import (
    Convolution,
    FullyConnected,
    Gru,
    Loop,
    Lstm,
    Nest,
    Primitive,
    Rnn,
    Tensor,
)
from jitgen.primitives.nest.nest import relayout
from jitgen.primitives.rnn.arguments import biases
from jitgen.target import parse_target

ROOT = Path(__file__).resolve().parent.parent
#: Every kind of layer, and some that are large enough for two threads in every pass
LAYERS = KINDS | {
    "fc on two": lambda **o: FullyConnected(64, 96, 160, activation="relu", **o),
    "lstm on two": lambda **o: Lstm(8, 3, 40, 64, **o),
    "gru on two": lambda **o: Gru(9, 3, 40, 64, reset="before", **o),
    "winograd on two": lambda **o: Convolution(2, 16, 14, 14, 32, 3, padding=1,
                                               algorithm="winograd", **o),
}  # fmt: skip
X86 = ("avx2", "avx512")


class Made(NamedTuple):
    """A library of all layers for one target: its folder, its manifest, the layers by name."""

    folder: Path
    manifest: dict[str, Any]
    layers: dict[str, Any]

    def passes(self, threads: int) -> list[tuple[Any, str]]:
        """The passes in the order of the library, each with its type, on so many threads."""
        layers = [layer if threads == 1 else layer._on(threads) for layer in self.layers.values()]
        return [(each, layer.dtype) for layer in layers for each in layer._exported().values()]


def _made(folder: Path, target: str) -> Made:
    layers = {re.sub(r"\W", "_", name): make(threads=1, target=target)
              for name, make in LAYERS.items()}  # fmt: skip
    return Made(folder, jitgen.export(layers, folder, "net", threads=(2, 1)), layers)


@pytest.fixture(scope="module", params=X86)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """All layers for a target of x86-64."""
    return _made(tmp_path_factory.mktemp(request.param), request.param)


def target_of(made: Made) -> str:
    return str(made.manifest["layers"][0]["target"])


def differing(made: Made, arrays: list[Arrays], found: bytes) -> list[str]:
    """Symbols of the functions whose results are not what they must be."""
    wrong, at = [], 0
    for each, layer in zip(arrays, made.manifest["layers"], strict=True):
        wanted = each.wanted
        if found[at : at + len(wanted)] != wanted:
            wrong.append(layer["symbol"])
        at += len(wanted)
    assert at == len(found)
    return wrong


# ---- the same bits ------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits(made: Made, threads: int) -> None:
    """Every pass of every layer, called three times, gives what Python's call gives."""
    target = target_of(made)
    need(TIERS[f"{target} native"])
    arrays = [
        natively(each, dtype, seed)
        for seed, (each, dtype) in enumerate(made.passes(threads))
    ]
    used = [len(each.run.stream.slices) for each, _ in made.passes(threads)]
    assert used.count(threads) > 20
    made_program = program(made.folder, made.manifest, "libnet.a", target)
    data = b"".join(each.given for each in arrays)
    assert not differing(made, arrays, execute(made_program, data, threads, 3))


@pytest.mark.parametrize(("target", "bits"), [("sve256", 256), ("neon", 0)])
def test_same_bits_on_aarch64(tmp_path: Path, target: str, bits: int) -> None:
    """The same on an emulated AArch64, on one thread and on two: what the streams give there that
    Python would replay."""
    need(TIERS[f"{target} qemu"])
    made = _made(tmp_path, target)
    arrays = list(layer_programs.emulated(made.passes(1), parse_target(target)))
    compiler = "aarch64-linux-gnu-gcc"
    made_program = program(made.folder, made.manifest, "libnet.a", target, compiler)
    data = b"".join(each.given for each in arrays)
    for threads in (1, 2):
        found = execute(made_program, data, threads, 3 - threads, bits)
        assert not differing(made, arrays, found), threads


# ---- one layer ----------------------------------------------------------------------------------


def small(target: str, **options: Any) -> FullyConnected:
    """A layer that is large enough for two threads."""
    return FullyConnected(64, 96, 160, activation="relu", threads=1, target=target, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The passes of a layer on both targets of x86-64, on 1, 2 and 5 threads, and a kernel."""
    path = tmp_path_factory.mktemp("x86")
    kernel = jitgen.brgemm(4, 8, 16, target="avx2")
    layers = {"fc": [small("avx2"), small("avx512")], "small": kernel}
    jitgen.export(layers, path, "net", threads=(1, 2, 5))
    return path


@pytest.fixture(scope="module")
def arm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for two vector lengths of SVE, and a library that has NEON too."""
    path = tmp_path_factory.mktemp("arm_x")
    layers = {"fc": [small("sve256"), small("sve512")]}
    jitgen.export(layers, path, "net", threads=(1, 2), passes=["forward", "pack_weights"])
    layers["fc"].append(small("neon"))
    jitgen.export(layers, path / "neon", "net", threads=(1, 2), passes=["forward"])
    return path


#: argv: nothing. The sum of a layer's results where all that is read is 1; its code; codes of wrong
#: calls, behind which no result has changed
CODES = r"""
#include <stdio.h>
#include <stdlib.h>
#include "net.h"
static float x[64][96], w[160][96], b[160], y[64][160];
static char room[NET_FC_FORWARD_SCRATCH_BYTES + JITGEN_SCRATCH_ALIGN];
int main(void)
{
    struct net_fc_forward_args args;
    const int calls[][2] = {{0, 3}, {0, 0}, {0, -1}, {1, 1}, {-1, 1}, {2, 2}, {1000, 2}};
    size_t i, k;
    double sum = 0;
    void (*call)(void) = (void (*)(void))@CALL@;
    int (*wide)(const struct net_fc_forward_args *, int64_t, int64_t);
    for (i = 0; i < 64; i++) for (k = 0; k < 96; k++) x[i][k] = 1;
    for (i = 0; i < 160; i++) for (k = 0; k < 96; k++) w[i][k] = 1;
    for (i = 0; i < 64; i++) for (k = 0; k < 160; k++) y[i][k] = -1;
    args.x = &x[0][0], args.w = &w[0][0], args.b = b, args.y = &y[0][0], args.scratch = room;
    args.scratch = room + (JITGEN_SCRATCH_ALIGN - (uintptr_t)room % JITGEN_SCRATCH_ALIGN);
    for (i = 0; i < sizeof calls / sizeof *calls; i++)
        printf("%d ", net_fc_forward(&args, calls[i][0], calls[i][1]));
    for (i = 0; i < 64; i++) for (k = 0; k < 160; k++) sum += y[i][k];
    printf("%g ", sum);
    /* the upper half of an int's register may hold anything */
    wide = (int (*)(const struct net_fc_forward_args *, int64_t, int64_t))call;
    printf("%d ", wide(&args, (int64_t)5 << 32, (int64_t)7 << 32 | 1));
    for (sum = 0, i = 0; i < 64; i++) for (k = 0; k < 160; k++) sum += y[i][k];
    printf("%g\n", sum);
    return 0;
}
"""
UNCHANGED, SUM = f"{-64.0 * 160:g}", f"{64.0 * 160 * 96:g}"


def test_codes(folder: Path) -> None:
    """A number of threads that the library is not made for, and a thread that is not among them,
    are refused, and nothing is done."""
    need_x86()
    source = CODES.replace("@CALL@", "net_fc_forward")
    for compiler in ("gcc", "clang"):
        found = run(build(folder, compiler, source, folder / "libnet.a")).split()
        assert found == ["2"] * 7 + [UNCHANGED, "0", SUM]


@pytest.mark.parametrize(
    ("model", "code", "total"), [("max", "0", SUM), ("Haswell", "0", SUM), ("Nehalem", "3", "")]
)
def test_other_cpus(folder: Path, model: str, code: str, total: str) -> None:
    """The best target that an emulated CPU has; without one a code, and nothing is done."""
    need_x86()
    made = build(folder, "gcc", CODES.replace("@CALL@", "net_fc_forward"), folder / "libnet.so",
                 f"-Wl,-rpath,{folder}")  # fmt: skip
    command = [tool("qemu-x86_64"), "-cpu", model, made]  # which warns of features it has not
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    wrong = "2" if code == "0" else "3"
    assert found == [wrong] * 7 + [UNCHANGED, code, total or UNCHANGED]


def test_other_vector_lengths(arm_folder: Path) -> None:
    """The target of the thread's vector length; without one a code; a function of another length
    refuses, and nothing is done."""
    for call, outcomes in (
        ("net_fc_forward", {256: ("0", SUM), 512: ("0", SUM), 128: ("3", UNCHANGED)}),
        ("net_fc_forward_sve256", {256: ("0", SUM), 512: ("1", UNCHANGED), 128: ("1", UNCHANGED)}),
    ):
        made = build(arm_folder, "aarch64-linux-gnu-gcc", CODES.replace("@CALL@", call),
                     arm_folder / "libnet.a")  # fmt: skip
        for bits, (code, total) in outcomes.items():
            found = emulate(made, bits).split()
            wrong = "3" if bits == 128 else "2"
            assert found == [wrong] * 7 + [UNCHANGED, code, total], (call, bits)
        if call == "net_fc_forward":
            source, where = CODES.replace("@CALL@", call), arm_folder / "neon"
            also = build(where, "aarch64-linux-gnu-gcc", source, where / "libnet.a")
            for bits in (128, 256):
                assert emulate(also, bits).split() == ["2"] * 7 + [UNCHANGED, "0", SUM]
            without = [tool("qemu-aarch64"), "-L", LOADER, "-cpu", "max,sve=off", made]
            done = subprocess.run(without, capture_output=True, text=True, check=True)
            assert done.stdout.split() == ["3"] * 7 + [UNCHANGED, "3", UNCHANGED]


@pytest.mark.parametrize("library", ["net.o", "libnet.so", "net.s"])
def test_every_file_holds_the_same(folder: Path, library: str) -> None:
    """Programs that are linked with the other files of a library do the same."""
    need_x86()
    options = (folder / library, f"-Wl,-rpath,{folder}")
    found = run(build(folder, "gcc", CODES.replace("@CALL@", "net_fc_forward"), *options)).split()
    assert found == ["2"] * 7 + [UNCHANGED, "0", SUM]


@pytest.mark.parametrize(
    "compiler",
    [
        "gcc -std=c99", "gcc -std=c17", "clang -std=c99", "g++ -std=c++98", "g++ -std=c++20",
        "clang++ -std=c++11", "aarch64-linux-gnu-gcc -std=c99", "aarch64-linux-gnu-g++ -std=c++20",
    ],
)  # fmt: skip
def test_header(folder: Path, arm_folder: Path, compiler: str) -> None:
    """The header is clean C and C++, included twice, beside another library's, and all its
    functions are."""
    name, standard = compiler.split()
    strict = [*STRICT, *(["-Wold-style-cast"] if "++" in name else [])]
    where = arm_folder if name.startswith("aarch64") else folder
    text = (where / "net.h").read_text()
    calls = re.findall(r"^static inline int (net_\w+)\(", text, re.MULTILINE)
    assert "net_fc_forward" in calls and "net_fc_pack_weights" in calls
    body = "\n".join(f"    if ({call}(NULL, 0, 99)) return 1;" for call in calls)
    (where / "other.h").write_text(re.sub(r"\b(net|NET)_", r"\1x_", text))
    source = f'#include "net.h"\n#include "other.h"\n#include "net.h"\nint main(void)\n{{\n{body}\n'
    run(name, standard, *strict, f"-I{where}", "-fsyntax-only", "-x",
        "c++" if "++" in name else "c", "-", input=source + "    return 0;\n}\n")  # fmt: skip


def test_files_need_nothing(folder: Path, arm_folder: Path) -> None:
    """The shared object needs no other, has nothing to relocate for passes, and every function has
    a symbol with its size and unwind information; the object has no open ends."""
    for where in (folder, arm_folder):
        dynamic = run("readelf", "-dW", where / "libnet.so")
        assert "NEEDED" not in dynamic
        symbols = run("readelf", "-sW", where / "net.o")
        assert not re.search(r"UND \w", symbols)
        functions = {m[2]: (int(m[1]), m[0]) for m in re.findall(
            r": (\w+) +(\d+) FUNC +\w+ +DEFAULT +\d+ (\S+)", symbols)}  # fmt: skip
        starts = {int(address, 16) for size, address in functions.values() if size}
        assert len(starts) == len(functions)
        names = " ".join(functions)
        for part in (r"net_fc_forward_\w+ ", r"\.barrier ", r"\.t2_replay ", r"\.t1_k0_\w+"):
            assert re.search(part, names), (part, names)
        frames = run("readelf", "--debug-dump=frames", where / "libnet.so")
        assert frames.count(" FDE ") == len(functions)
        moved = run("readelf", "-rW", where / "libnet.so")
        assert moved.count("RELATIVE") == (4 if where == folder else 0)  # the table of one kernel


def test_deterministic(folder: Path, tmp_path: Path) -> None:
    """The same files in another process."""
    source = (
        "import jitgen\nfrom jitgen import FullyConnected as F\n"
        "k = jitgen.brgemm(4, 8, 16, target='avx2')\n"
        "o = {'activation': 'relu', 'threads': 7}\n"
        "fc = [F(64, 96, 160, **o, target=t) for t in ('avx2', 'avx512')]\n"
        f"jitgen.export({{'fc': fc, 'small': k}}, {str(tmp_path)!r}, 'net', threads=(5, 2, 1))\n"
    )
    subprocess.run([sys.executable, "-c", source], cwd=ROOT, check=True)
    for file in folder.glob("*net*"):
        if file.suffix in (".o", ".a", ".so", ".s", ".h", ".json", ".cmake", ".pc"):
            assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


#: argv: threads, rounds. Layers one behind the other by threads of the program, which wait for each
#: other nowhere but in the layers; the weights are packed by the same threads. The input is another
#: one in every other round. Prints the sums of the last two rounds, and how many rounds had a sum
#: that was not that of two rounds before
CHAIN = r"""
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "net.h"
static int nthreads, rounds, codes[64];
static float x[2][64 * 96], w[160 * 96], b[160], y[64 * 160], dz[64 * 160], dx[64 * 96];
static double sums[2];
static int wrong;
static struct net_fc_pack_weights_args pack;
static struct net_fc_forward_packed_args forward[2];
static struct net_fc_backward_activation_args gradient;
static struct net_fc_backward_data_args data;
static void *room(size_t size)
{
    void *memory = NULL;
    if (size && posix_memalign(&memory, JITGEN_SCRATCH_ALIGN, size)) exit(4);
    return size ? memset(memory, 0, size) : NULL;
}
static void *work(void *number)
{
    const int tid = (int)(intptr_t)number;
    int i, k;
    codes[tid] |= net_fc_pack_weights(&pack, tid, nthreads);
    for (i = 0; i < rounds; i++) {
        codes[tid] |= net_fc_forward_packed(&forward[i % 2], tid, nthreads);
        codes[tid] |= net_fc_backward_activation(&gradient, tid, nthreads);
        codes[tid] |= net_fc_backward_data(&data, tid, nthreads);
        if (tid == 0) { /* the next call that writes dx waits for this thread before */
            double sum = 0;
            for (k = 0; k < 64 * 96; k++) sum += (double)(k % 13 + 1) * dx[k];
            wrong += i > 1 && sum != sums[i % 2];
            sums[i % 2] = sum;
        }
    }
    return NULL;
}
int main(int count, char **values)
{
    pthread_t threads[64];
    float *panels;
    size_t i;
    int t;
    if (count != 3) return 2;
    nthreads = atoi(values[1]), rounds = atoi(values[2]);
    for (i = 0; i < 64 * 96; i++) x[0][i] = (float)(i % 7) - 3, x[1][i] = (float)(i % 11) - 5;
    for (i = 0; i < 160 * 96; i++) w[i] = (float)(i % 5) - 2;
    panels = (float *)room(NET_FC_PACK_WEIGHTS_PANELS_BYTES);
    pack.w = w, pack.panels = panels, pack.scratch = room(NET_FC_PACK_WEIGHTS_SCRATCH_BYTES);
    forward[0].x = x[0], forward[0].w = panels, forward[0].b = b, forward[0].y = y;
    forward[0].scratch = room(NET_FC_FORWARD_PACKED_SCRATCH_BYTES);
    forward[1] = forward[0], forward[1].x = x[1];
    gradient.dy = y, gradient.y = y, gradient.dz = dz;
    gradient.scratch = room(NET_FC_BACKWARD_ACTIVATION_SCRATCH_BYTES);
    data.dz = dz, data.w = w, data.dx = dx;
    data.scratch = room(NET_FC_BACKWARD_DATA_SCRATCH_BYTES);
    for (t = 1; t < nthreads; t++)
        if (pthread_create(&threads[t], NULL, work, (void *)(intptr_t)t)) return 5;
    work(NULL);
    for (t = 1; t < nthreads; t++) pthread_join(threads[t], NULL);
    for (t = 0; t < nthreads; t++) if (codes[t]) return 6;
    printf("%.17g %.17g %d\n", sums[0], sums[1], wrong);
    free(panels), free(pack.scratch), free(forward[0].scratch), free(gradient.scratch);
    free(data.scratch);
    return 0;
}
"""


def chain_sums() -> list[float]:
    """What CHAIN prints: sums of small integers, exact in any order."""
    count = np.arange(64 * 96)
    w = (np.arange(160 * 96) % 5 - 2.0).reshape(160, 96)
    result = []
    for x in (count % 7 - 3.0, count % 11 - 5.0):
        y = np.maximum(x.reshape(64, 96) @ w.T, 0)
        result.append(float(((y * (y > 0)) @ w).reshape(-1) @ (count % 13 + 1.0)))
    return [*result, 0.0]


def numbers(text: str) -> list[float]:
    return [float(each) for each in text.split()]


def test_threads_of_the_caller(folder: Path) -> None:
    """Passes one behind the other: each begins when all threads have ended the one before. Five
    threads come to an end on fewer CPUs, too."""
    need_x86()
    made = build(folder, "gcc", CHAIN, "-Wno-cast-qual", folder / "libnet.a", "-pthread")
    for threads, rounds in ((1, 2), (2, 4000), (5, 300)):
        begin = time.monotonic()
        assert numbers(run(made, str(threads), str(rounds))) == chain_sums()
        assert time.monotonic() - begin < 60


def test_threads_of_the_caller_on_aarch64(tmp_path: Path) -> None:
    """The same under emulation."""
    jitgen.export({"fc": small("sve256")}, tmp_path, "net", threads=(1, 2, 3))
    made = build(tmp_path, "aarch64-linux-gnu-gcc", CHAIN, "-Wno-cast-qual", tmp_path / "net.s",
                 "-pthread")  # fmt: skip
    for threads, rounds in (("1", "2"), ("2", "20"), ("3", "20")):
        assert numbers(emulate(made, 256, threads, rounds)) == chain_sums()


def test_valgrind(tmp_path: Path) -> None:
    """A caller with two threads is clean in the eyes of valgrind, which knows no AVX-512."""
    need(TIERS["avx2 native"])
    jitgen.export({"fc": small("avx2")}, tmp_path, "net", threads=(1, 2))
    made = build(tmp_path, "gcc", CHAIN, "-Wno-cast-qual", tmp_path / "libnet.a", "-pthread")
    for threads in ("1", "2"):
        done = subprocess.run(
            [tool("valgrind"), "--error-exitcode=9", "--leak-check=full", "-q", made, threads, "3"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert numbers(done.stdout) == chain_sums()


# ---- weights in the library ---------------------------------------------------------------------


@pytest.mark.parametrize("target", X86)
def test_weights_in_the_library(tmp_path: Path, target: str) -> None:
    """Functions that hold their weights, packed, give what Python gives with packed weights."""
    need(TIERS[f"{target} native"])
    rng = np.random.default_rng(3)

    def new(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, shape).astype(np.float32)

    options: dict[str, Any] = {"threads": 1, "target": target}
    fc = small(target)
    conv = Convolution(2, 16, 14, 14, 32, 3, padding=1, activation="relu", **options)
    both = Lstm(8, 3, 40, 64, direction="bidirectional", forget_bias=0.5, **options)
    x, w, b = new(64, 96), new(160, 96), new(160)
    image, filters, bias = new(*conv.x_shape), new(*conv.w_shape), new(32)
    steps, h0, c0 = (new(*both.shapes[n]) for n in ("x", "h0", "h0"))
    of_rnn = {n: new(*both.shapes[n]) for n in ("w", "r", "b")}
    weights = {"fc": {"w": w, "b": b}, "conv": {"w": filters, "b": bias}, "rnn": of_rnn}
    manifest = jitgen.export(
        {"fc": fc, "conv": conv, "rnn": both}, tmp_path, "net", threads=(1, 2), weights=weights,
        passes={"fc": ["forward", "backward_data"], "conv": ["forward"],
                "rnn": ["forward", "forward reverse"]},
    )  # fmt: skip
    panels = both.pack_weights(of_rnn["w"], of_rnn["r"])
    y, _, c = both.forward(steps, panels, None, of_rnn["b"], h0, c0)
    dz, packed = new(64, 160), fc.pack_weights(w)
    wanted = {
        "net_fc_forward": ({"x": x}, {"y": fc.forward(x, packed, b)}),
        "net_fc_backward_data": ({"dz": dz}, {"dx": fc.backward_data(dz, packed)}),
        "net_conv_forward": ({"x": image}, {"y": conv.forward(image, conv.pack_weights(filters),
                                                             bias)}),
        "net_rnn_forward": ({"x": steps, "h0": h0[0], "c0": c0[0], "c": c0[0]},
                            {"y": y[:, :, :64], "c": c[0]}),
        "net_rnn_forward_reverse": ({"x": steps, "h0": h0[1], "c0": c0[1], "c": c0[1]},
                                    {"y": y[:, :, 64:], "c": c[1]}),
    }  # fmt: skip
    data, names = b"", []
    for layer in manifest["layers"]:
        given, results = wanted[layer["function"]]
        names.append([a["name"] for a in layer["arguments"]])
        assert set(names[-1]) == {*given, *results}, names[-1]
        for a in layer["arguments"]:
            data += given.get(a["name"], np.zeros(a["shape"], np.float32)).tobytes()
    found = execute(program(tmp_path, manifest, "libnet.so", target), data, 2, 2)
    at = 0
    for layer in manifest["layers"]:
        _, results = wanted[layer["function"]]
        for a in layer["arguments"]:
            if a["result"]:
                array = np.frombuffer(found[at : at + a["nbytes"]], np.float32).reshape(a["shape"])
                at += a["nbytes"]
                part = np.s_[:, :, 64:] if "reverse" in layer["symbol"] else np.s_[:, :, :64]
                array = array[part] if layer["function"][:7] == "net_rnn" and a["name"] == "y" \
                    else array
                np.testing.assert_array_equal(array, results[a["name"]], layer["symbol"])
    assert at == len(found)


def test_gdb_names_and_unwinds(folder: Path) -> None:
    """From a kernel of a pass, gdb finds the driver, the entry and the caller, by name."""
    need_x86()
    best = "avx512" if not jitgen.targets()["avx512"] else "avx2"
    made = build(folder, "gcc", CHAIN, "-Wno-cast-qual", "-g", folder / "libnet.a", "-pthread")
    stem = f"net_fc_forward_packed_{best}"
    (kernel, *_) = re.findall(rf" t ({stem}\.t1_k0_\S+)", run("nm", made))
    script = [f"-ex=break *'{kernel}'", "-ex=run 1 1", "-ex=backtrace", "-ex=stepi 9",
              "-ex=backtrace"]  # fmt: skip
    command = [tool("gdb"), "-q", "-batch", "-nx", *script, made]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for trace in shown.split("\n#0 ")[1:]:
        frames = re.findall(r"^#?\d* *(?:0x\w+ in )?(\S+) \(", trace, re.MULTILINE)
        inner = [kernel, f"{stem}.t1_replay", stem, "net_fc_forward_packed", "work", "main"]
        assert frames[:6] == inner, shown
    assert shown.count("\n#0 ") == 2


@pytest.mark.parametrize("target", X86)
def test_packed_biases(target: str) -> None:
    """What C gets for biases is what Python makes of them."""
    need(TIERS[f"{target} native"])
    for hidden in (5, 16, 70):
        for make in (
            lambda **o: Lstm(2, 3, 4, forget_bias=0.7, dtype="f64", **o),
            lambda **o: Lstm(2, 3, 4, direction="bidirectional", **o),
            lambda **o: Gru(2, 3, 4, **o), lambda **o: Gru(2, 3, 4, reset="before", **o),
            lambda **o: Rnn(2, 3, 4, bias=False, **o),
        ):  # fmt: skip
            layer = make(hidden=hidden, target=target, threads=1)
            each = layer._exported()["pack_biases"]
            arrays = natively(each, layer.dtype, hidden)
            b = arrays.before["b"]
            assert b.shape == (2, layer.layer.gates * hidden)
            for name, wanted in biases(layer.layer, b, layer.forget_bias).items():
                np.testing.assert_array_equal(arrays.after[name], wanted)


@pytest.mark.parametrize("target", X86)
def test_primitives_of_a_user(tmp_path: Path, target: str) -> None:
    """Attention of one head and a product with a packed operand, from C on two threads; a tensor
    with gaps, and one that lies in the library."""
    need(TIERS[f"{target} native"])
    rng = np.random.default_rng(8)
    at = parse_target(target)
    q, o = (Tensor(name, "q d", "f32", q=64, d=32) for name in "qo")
    k = Tensor("k", "k d", "f32", k=48, d=32, strides={"k": 40})
    v = Tensor("v", "k d", "f32", k=48, d=32)
    p = Tensor("p", "q k", "f32", own=True, q=16, k=48)
    head = Nest("Q", {"q": Loop(64, (16,))}, "f32", at)
    scores = head.gemm(q.at(q="q"), k.at(), p.at(), m="q", n="k", k="d")
    softmax = head.rows("softmax", {"x": p.at(), "y": p.at()}, rows="q", over="k")
    part = head.gemm(p.at(), v.at(), o.at(q="q"), m="q", n="d", k="k", before=(scores, softmax))
    attention = Primitive([part], [q, k, v, o], threads=2, name="attention")
    arrays = {n: rng.uniform(-1, 1, (64 if n in "qo" else 48, 32)).astype(np.float32)
              for n in "qvo"}  # fmt: skip
    memory = rng.uniform(-1, 1, k.elements).astype(np.float32)
    arrays["k"] = np.lib.stride_tricks.as_strided(memory, (48, 32), (160, 4))
    attention(**arrays)
    manifest = jitgen.export({"head": attention, "baked": attention}, tmp_path, "net", threads=[2],
                             weights={"baked": {"v": arrays["v"]}})  # fmt: skip
    assert [each["function"] for each in manifest["layers"]] == ["net_head", "net_baked"]
    assert "40 x 1 elements apart" in (tmp_path / "net.h").read_text()
    data = b""
    for layer in manifest["layers"]:
        for a in layer["arguments"]:
            given = memory if a["name"] == "k" else arrays[a["name"]]
            data += (given * (np.nan if a["result"] else 1)).astype(np.float32).tobytes()
            assert (a["dtype"], a["nbytes"]) == ("f32", given.nbytes)
    found = execute(program(tmp_path, manifest, "libnet.a", target), data, 2, 3)
    assert found == 2 * arrays["o"].tobytes()
    for error, message, names in (
        (ValueError, "a: 'for' is no name that an array can have", ("for", "y")),
        (ValueError, "a: arrays x, X need different names", ("x", "X")),
        (ValueError, "a: the array's name 'x y' is no C name", ("x y", "z")),
    ):
        source, to = (Tensor(name, "m n", "f32", m=4, n=8) for name in names)
        moved = Primitive([relayout(source, to, "f32", at)], [source, to], 1)
        with pytest.raises(error, match=re.escape(message)):
            jitgen.export({"a": moved}, tmp_path / "new", "net")
    for error, message, more in (
        (ValueError, "the primitive was made for 2", {"threads": [1]}),
        (ValueError, "a primitive has none", {"passes": ["forward"]}),
        (ValueError, "weights: name='o' is not in what it reads", {"weights": {"a": {"o": None}}}),
        (ValueError, "has gaps", {"weights": {"a": {"k": arrays["k"]}}}),
    ):
        with pytest.raises(error, match=re.escape(message)):
            jitgen.export({"a": attention}, tmp_path / "new", "net", **{"threads": [2], **more})
