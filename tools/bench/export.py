"""``python -m tools.bench export``: what a call of an exported kernel or layer costs a C program.

What it is: small kernels of an exported library, called from a compiled C loop through the pointer
that the header's look-up returns, beside LIBXSMM's kernels of the same shapes and an empty
function, in turns, best of all rounds; and the look-ups themselves. A small layer's pass through
the header's function, beside the same driver on the same stream with nothing around it. Needs gcc.
What it is not: large kernels, for which the call does not matter (`tools.bench kernel`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

EXIT_WRONG, EXIT_USAGE, EXIT_CANNOT = 1, 2, 3
SHAPES = ((1, 1, 1), (1, 8, 8), (4, 8, 8), (8, 16, 16), (16, 16, 16))
#: The layer: batch, input and output features
LAYER = (1, 8, 8)

#: argv: calls in a round, rounds, LIBXSMM's library or "". Prints JSON: nanoseconds a call.
_PROGRAM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "bench.h"

/* LIBXSMM's C interface, as in tools/bench/peers.py: column-major, so A and B change places */
struct shape { int m, n, k, lda, ldb, ldc, a_type, b_type, c_type, compute; };
struct batch { int kind, stride_a, stride_b; unsigned char unroll_hint; };
typedef void (*xsmm_kernel)(void *);
typedef xsmm_kernel (*xsmm_dispatch)(struct shape, unsigned, unsigned, struct batch);
enum { BETA_0 = 4, BY_STRIDE = 4, F32 = 1 };

static const int SHAPES[][3] = {@SHAPES@};
enum { COUNT = sizeof SHAPES / sizeof *SHAPES };
static float a[4096], b[4096], c[4096], other[4096];

/* the layer's driver by itself (jitgen/run/replay.py): stream, bases, no barrier */
struct job { const uint32_t *stream; const void **bases; void *barrier, *argument; };
int64_t bench_driver(const struct job *job);
static const uint32_t STREAM[] = {@STREAM@};

static int64_t empty(const struct jitgen_args *args) { (void)args; return 0; }

static double clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e9 * (double)now.tv_sec + (double)now.tv_nsec;
}

static void best(double *time, double begin, long calls)
{
    double each = (clock_ns() - begin) / (double)calls;
    if (*time == 0 || each < *time) *time = each;
}

int main(int argc, char **argv)
{
    long calls = atol(argv[1]), rounds = atol(argv[2]), round, i;
    void *library = argc > 3 && *argv[3] ? dlopen(argv[3], RTLD_NOW) : NULL;
    xsmm_dispatch dispatch = NULL;
    unsigned long long one = 1;
    double times[COUNT][2] = {{0}}, nothing = 0, get = 0, find = 0, error = 0;
    double layer = 0, driver = 0;
    struct bench_fc_forward_packed_args pass = {0};
    const void *bases[4] = {a, b, c, b};
    struct job job = {STREAM, bases, NULL, NULL};
    int64_t (*volatile replay)(const struct job *) = bench_driver;
    volatile int threads = 1, code = 0;
    volatile jitgen_kernel kernels[COUNT], none = empty;
    volatile xsmm_kernel peers[COUNT] = {0};
    struct jitgen_args args = {0};
    void *words[20] = {0};
    int s;

    for (i = 0; i < 4096; i++) a[i] = (float)(i % 7) - 3, b[i] = (float)(i % 5) - 2;
    args.a = a, args.b = b, args.c = c, args.count = 1;
    pass.x = a, pass.w = b, pass.b = b, pass.y = c;
    words[2] = &one, words[4] = b, words[8] = words[10] = a, words[12] = words[16] = other;
    if (argc > 3 && *argv[3] && !library) {
        fprintf(stderr, "%s\\n", dlerror());
        return 3;
    }
    if (library) {
        void *init = dlsym(library, "libxsmm_init"), *found;
        void (*start)(void);
        memcpy(&start, &init, sizeof start);
        start();
        found = dlsym(library, "libxsmm_dispatch_brgemm");
        memcpy(&dispatch, &found, sizeof dispatch);
    }
    for (s = 0; s < COUNT; s++) {
        const int m = SHAPES[s][0], n = SHAPES[s][1], k = SHAPES[s][2];
        const struct jitgen_entry *entry = bench_find(m, n, k, 0, 0, 0, JITGEN_F32, 0);
        if (!entry) return 3;
        kernels[s] = entry->kernel;
        kernels[s](&args);
        if (dispatch) {
            struct shape shape = {n, m, k, n, k, n, F32, F32, F32, F32};
            struct batch batch = {BY_STRIDE, 0, 0, 0};
            batch.stride_a = 4 * k * n, batch.stride_b = 4 * m * k;
            peers[s] = dispatch(shape, BETA_0, 0, batch);
            if (!peers[s]) continue;
            peers[s](words);
            for (i = 0; i < m * n; i++) error = fmax(error, fabs((double)c[i] - other[i]));
        }
    }
    if (bench_fc_forward_packed(&pass, 0, threads)) return 3;
    memcpy(other, c, sizeof other);
    memset(c, 0xff, sizeof c);
    replay(&job);
    if (memcmp(other, c, @BYTES@)) error = 1;
    for (round = 0; round < rounds; round++) {
        double start = clock_ns();
        for (i = 0; i < calls; i++) code |= bench_fc_forward_packed(&pass, 0, threads);
        best(&layer, start, calls);
        start = clock_ns();
        for (i = 0; i < calls; i++) code |= (int)replay(&job);
        best(&driver, start, calls);
    }
    for (round = 0; round < rounds; round++) {
        double begin = clock_ns();
        for (i = 0; i < calls; i++) none(&args);
        best(&nothing, begin, calls);
        for (s = 0; s < COUNT; s++) {
            begin = clock_ns();
            for (i = 0; i < calls; i++) kernels[s](&args);
            best(&times[s][0], begin, calls);
            if (!peers[s]) continue;
            begin = clock_ns();
            for (i = 0; i < calls; i++) peers[s](words);
            best(&times[s][1], begin, calls);
        }
        begin = clock_ns();
        for (i = 0; i < calls / 1000 + 1; i++) none = bench_get(BENCH_S0) ? empty : NULL;
        best(&get, begin, calls / 1000 + 1);
        begin = clock_ns();
        for (i = 0; i < calls / 1000 + 1; i++)
            none = bench_find(16, 16, 16, 0, 0, 0, JITGEN_F32, 0) ? empty : NULL;
        best(&find, begin, calls / 1000 + 1);
    }
    printf("{\\"empty\\": %.3f, \\"get\\": %.1f, \\"find\\": %.1f, \\"error\\": %g, "
           "\\"layer\\": %.1f, \\"driver\\": %.1f, \\"calls\\": [",
           nothing, get, find, error, layer, driver);
    for (s = 0; s < COUNT; s++)
        printf("%s[%.3f, %.3f]", s ? ", " : "", times[s][0], times[s][1]);
    printf("]}\\n");
    return 0;
}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--isa", default=None, metavar="LIST", help="avx2, avx512 or both by comma; default: all")
    add("--rounds", type=int, default=30, help="default 30")
    add("--calls", type=int, default=200_000, help="calls of a kernel in a round; default 200000")
    add("--libxsmm", metavar="FILE", help="LIBXSMM's shared library (default: the one of etops)")
    add("--json", default=None, metavar="FILE", help="write the figures to FILE")


def measure(isa: str, peer: str, calls: int, rounds: int) -> dict[str, Any]:
    """Export, compile and run; raises RuntimeError if that fails."""
    import jitgen
    from jitgen.inspect.asm import assembly
    from jitgen.run.replay import emit_replay
    from tools.bench.peers import environment

    kernels: dict[str, Any] = {
        f"s{i}": jitgen.brgemm(*shape, target=isa) for i, shape in enumerate(SHAPES)
    }
    layer = kernels["fc"] = jitgen.FullyConnected(*LAYER, target=isa, threads=1)
    run = layer.passes()["forward packed"].run
    driver = emit_replay(run.stream.calls, layer.target)
    values = {
        "SHAPES": ", ".join(f"{{{m}, {n}, {k}}}" for m, n, k in SHAPES),
        "BYTES": str(4 * LAYER[0] * LAYER[2]),
        "STREAM": ", ".join(f"{word}u" for word in run.stream.slices[0]),
    }
    program_text = _PROGRAM
    for name, value in values.items():
        program_text = program_text.replace(f"@{name}@", value)
    with tempfile.TemporaryDirectory() as folder:
        jitgen.export(kernels, folder, "bench", passes=["forward packed"])
        (Path(folder) / "driver.s").write_text(
            assembly(driver, "bench_driver") + '    .section .note.GNU-stack,"",@progbits\n'
        )
        source = Path(folder) / "program.c"
        source.write_text(program_text)
        program = f"{folder}/program"
        command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", str(source), f"-I{folder}"]
        command += [f"{folder}/driver.s", f"{folder}/bench.o", "-o", program, "-lm", "-ldl"]
        child = {**os.environ, **environment(isa)}
        for step in (command, [program, str(calls), str(rounds), peer]):
            done = subprocess.run(step, capture_output=True, text=True, check=False, env=child)
            if done.returncode:
                raise RuntimeError(f"{step[0]}: exit code {done.returncode}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return {"isa": isa, "shapes": SHAPES, **found}


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; the exit code."""
    import jitgen
    from tools.bench import report as bench_report
    from tools.bench.peers import Libxsmm, PeerMissing

    usable = [name for name, why in jitgen.targets().items() if not why]
    wanted = arguments.isa.split(",") if arguments.isa is not None else usable[::-1]
    known = [name for name in ("avx2", "avx512") if name in usable]
    if arguments.rounds < 1 or arguments.calls < 1:
        print("--rounds and --calls are at least 1", file=sys.stderr)
        return EXIT_USAGE
    missing = [name for name in wanted if name not in known]
    if missing or not wanted or shutil.which("gcc") is None:
        what = f"this processor lacks {', '.join(missing)}" if missing else "gcc is not installed"
        print(f"cannot measure: {what if wanted else 'no target runs here'}", file=sys.stderr)
        return EXIT_CANNOT
    try:
        path = arguments.libxsmm or Libxsmm.find()[0]
    except PeerMissing as error:
        path = ""
        print(f"without LIBXSMM: {error}", file=sys.stderr)
    print(bench_report.facts_text(bench_report.machine_facts()))
    print("f32, count 1, beta 0, operands in the L1 cache; nanoseconds, best of "
          f"{arguments.rounds} rounds")  # fmt: skip
    results = []
    for isa in wanted:
        try:
            result = measure(isa, path, arguments.calls, arguments.rounds)
        except RuntimeError as error:
            print(f"cannot measure: {error}", file=sys.stderr)
            return EXIT_CANNOT
        if result["error"] > 1e-3:
            print(f"{isa}: results differ by {result['error']}", file=sys.stderr)
            return EXIT_WRONG
        results.append(result)
        print(f"\n{isa:12} jitgen  LIBXSMM")
        for (m, n, k), (ours, theirs) in zip(SHAPES, result["calls"], strict=True):
            peer = f"{theirs:8.1f}" if theirs else f"{'-':>8}"
            print(f"{f'{m} x {n} x {k}':12} {ours:6.1f} {peer}")
        print(f"{'empty':12} {result['empty']:6.1f}")
        print(f"look-ups: bench_get {result['get']:.0f}, bench_find {result['find']:.0f}")
        call, alone = result["layer"], result["driver"]
        size = " x ".join(map(str, LAYER))
        print(f"layer {size}: {call:.1f}, its driver alone {alone:.1f}: {call - alone:.1f} more")
    if arguments.json is not None:
        Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n")
    return 0
