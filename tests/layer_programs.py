"""C programs that call the passes of an exported library, and what the passes must give.

A program reads the arrays of each function from a file, calls it on so many threads as often as it
is told, each time from the same arrays, and writes what the results hold then. Not here: any test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from libraries import LOADER
from rig.job import Buffer, Job, Pointers
from tiers import TIERS
from toolchain import STRICT, run, tool

from jitgen.primitives.layers.arrays import buffer_of
from jitgen.primitives.layers.passes import Pass
from jitgen.run.loader import ffi
from jitgen.run.replay import emit_replay
from jitgen.target import Target
from jitgen.types import NUMPY

#: argv: input, output, threads, repeats
PROGRAM = r"""
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "@NAME@.h"

typedef int (*function)(const void *args, int tid, int nthreads);
struct part { function call; const void *args; int tid, nthreads, code; };
static FILE *in, *out;
static int nthreads, repeats, wrong;

static void *do_part(void *of)
{
    struct part *part = (struct part *)of;
    part->code = part->call(part->args, part->tid, part->nthreads);
    return NULL;
}

static void team(function call, const void *args)
{
    pthread_t threads[64];
    struct part parts[64];
    int i;
    for (i = 0; i < nthreads; i++) {
        struct part part = {0};
        part.call = call, part.args = args, part.tid = i, part.nthreads = nthreads;
        parts[i] = part;
        if (i && pthread_create(&threads[i], NULL, do_part, &parts[i])) exit(4);
    }
    do_part(&parts[0]);
    for (i = 0; i < nthreads; i++) {
        if (i) pthread_join(threads[i], NULL);
        wrong |= parts[i].code;
    }
}

static void *array(size_t size)
{
    void *memory = malloc(size);
    if (!memory || fread(memory, 1, size, in) != size) exit(5);
    return memory;
}

static void *scratch(size_t size)
{
    void *memory = NULL;
    if (size && posix_memalign(&memory, JITGEN_SCRATCH_ALIGN, size)) exit(6);
    return size ? memset(memory, 0, size) : NULL;
}

@FUNCTIONS@

int main(int count, char **values)
{
    if (count != 5) return 2;
    in = fopen(values[1], "rb"), out = fopen(values[2], "wb");
    nthreads = atoi(values[3]), repeats = atoi(values[4]);
    if (!in || !out) return 3;
@CALLS@
    fclose(in), fclose(out);
    return wrong ? 10 + wrong : 0;
}
"""


def program(
    folder: Path, manifest: Mapping[str, Any], library: str, target: str, compiler: str = "gcc"
) -> Path:
    """The program that calls all passes of one target, linked with a file of the library."""
    name = manifest["name"]
    functions, calls = [], []
    for each in (x for x in manifest["layers"] if x["target"] == target):
        functions.append(_function(each))
        calls.append(f"    test_{each['symbol']}();")
    source = PROGRAM.replace("@NAME@", name).replace("@FUNCTIONS@", "\n".join(functions))
    made = folder / f"program-{target}-{library}"
    run(compiler, "-O1", "-x", "c", "-", "-x", "none", *STRICT, "-Wno-cast-qual", "-I", folder,
        "-o", made, folder / library, "-pthread", f"-Wl,-rpath,{folder}", "-Wl,--fatal-warnings",
        input=source.replace("@CALLS@", "\n".join(calls)), folder=folder)  # fmt: skip
    return made


def _function(layer: Mapping[str, Any]) -> str:
    """A function that calls a pass on arrays of exactly its size."""
    symbol, struct = layer["symbol"], f"struct {layer['function']}_args"
    kinds = {"f32": "float", "f64": "double", "": "void"}
    lines = [
        f"static int call_{symbol}(const void *args, int tid, int n)", "{",
        f"    return {symbol}((const {struct} *)args, tid, n);", "}",
        f"static void test_{symbol}(void)", "{", f"    {struct} args;", "    int i;",
    ]  # fmt: skip
    for a in layer["arguments"]:
        kind = kinds[a["dtype"]]
        lines.append(f"    {kind} *{a['name']} = ({kind} *)array({a['nbytes']}u);")
        if a["result"]:
            lines += [f"    void *first_{a['name']} = malloc({a['nbytes']}u);",
                      f"    memcpy(first_{a['name']}, {a['name']}, {a['nbytes']}u);"]  # fmt: skip
        lines.append(f"    args.{a['name']} = {a['name']};")
    lines += [f"    args.scratch = scratch({layer['scratch_bytes']}u);",
              "    for (i = 0; i < repeats; i++) {"]  # fmt: skip
    results = [a for a in layer["arguments"] if a["result"]]
    lines += [f"        memcpy({a['name']}, first_{a['name']}, {a['nbytes']}u);" for a in results]
    lines += [f"        team(call_{symbol}, &args);", "    }"]
    lines += [f"    fwrite({a['name']}, 1, {a['nbytes']}u, out);" for a in results]
    lines += [f"    free(first_{a['name']});" for a in results]
    lines += [f"    free({a['name']});" for a in layer["arguments"]]
    return "\n".join([*lines, "    free(args.scratch);", "}"])


def execute(
    program: Path, data: bytes, threads: int, repeats: int, bits: int | None = None
) -> bytes:
    """What the results hold after a program has run on these arrays; `bits`: emulated with SVE
    vectors of so many (0: without SVE)."""
    given, found = program.with_suffix(".in"), program.with_suffix(".out")
    given.write_bytes(data)
    before: list[str | Path] = []
    if bits is not None:
        model = f"max,sve-default-vector-length={bits // 8}" if bits else "max,sve=off"
        before = [tool("qemu-aarch64"), "-L", LOADER, "-cpu", model]
    run(*before, program, given, found, str(threads), str(repeats))
    return found.read_bytes()


class Arrays(NamedTuple):
    """The arrays of a pass, by tensor: before it, and the results behind it."""

    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]

    @property
    def given(self) -> bytes:
        """All arrays before the pass."""
        return b"".join(array.tobytes() for array in self.before.values())

    @property
    def wanted(self) -> bytes:
        """The results."""
        return b"".join(array.tobytes() for array in self.after.values())


def arrays_of(each: Pass, dtype: str, seed: int) -> dict[str, np.ndarray]:
    """Random arrays for a pass, what it only writes as NaN; panels whose padding it leaves alone
    are zeros, as Python has them."""
    rng = np.random.default_rng(seed)
    made = {}
    for a in each.arguments:
        array = rng.uniform(-1, 1, a.shape).astype(NUMPY[dtype])
        if a.result and not a.updated:
            array.fill(0 if a.name.endswith("_panels") else np.nan)
        made[a.tensor] = array
    return made


def natively(each: Pass, dtype: str, seed: int) -> Arrays:
    """A pass as Python runs it here."""
    before = arrays_of(each, dtype, seed)
    after = {name: array.copy() for name, array in before.items()}
    absent = {name: ffi.NULL for name in each.run.tensors if name not in before}
    each.run({name: buffer_of(array) for name, array in after.items()} | absent)
    written = [a.tensor for a in each.arguments if a.result]
    return Arrays(before, {name: after[name] for name in written})


def emulated(passes: Sequence[tuple[Pass, str]], target: Target) -> Iterator[Arrays]:
    """Passes, each with its type, as Python would run them on one thread, on an emulated AArch64:
    their drivers and streams."""
    jobs, all_before = [], []
    for seed, (each, dtype) in enumerate(passes):
        stream, run_ = each.run.stream, each.run
        before = arrays_of(each, dtype, seed)
        written = {a.tensor for a in each.arguments if a.result}
        made = {name: Buffer(array, write=name in written) for name, array in before.items()}
        made |= {name: Buffer(np.zeros(size, NUMPY[dtype]), write=True)
                 for name, size in run_.scratch.items()}  # fmt: skip
        made |= {name: Buffer(array) for name, array in run_.constants.items()}
        nothing = Buffer(np.zeros(1))
        pointers = Pointers([made.get(name, nothing) for name in stream.tensors])
        code = emit_replay(stream.calls, target).code
        jobs.append(Job(code, [Buffer(stream.slices[0]), pointers, 0, 0], label=each.name))
        all_before.append((before, [n for n in stream.tensors if made.get(n, nothing).write],
                           [a.tensor for a in each.arguments if a.result]))  # fmt: skip
    outcomes = TIERS[f"{target.name} qemu"].run(jobs, isa=target.name)
    for (before, names, written), outcome in zip(all_before, outcomes, strict=True):
        assert outcome.ok, outcome.error
        found = dict(zip(names, outcome.outputs, strict=True))
        yield Arrays(before, {n: found[n] for n in written})
