"""perf says what every sample in generated code is: of kernels, drivers, and what enters teams.

Which memory holds generated code is asked of the process, not of perf, so that what perf cannot
name counts. Not here: listings, callers, gdb (`test_debug_tools`).
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from needs import need
from test_debug_tools import HOST, need_perf, run_tool

#: Samples in generated code that must have a name, and how many there must be to judge by
LEAST, ENOUGH = 0.98, 300
#: CPU seconds of both threads, once everything is made
SECONDS = 1.5

#: Layers of all kinds on teams of two threads, by a runtime or without: program.py SECONDS TEAM
PROGRAM = """
import os, sys, time
import numpy as np
import jitgen
from jitgen.run import threads

if sys.argv[2] == "crew":
    threads.openmp = lambda: None

def ones(*shape):
    return np.ones(shape, "f")

calls = []
dense, x, w = jitgen.FullyConnected(64, 256, 256, activation="relu"), ones(64, 256), ones(256, 256)
calls += [
    lambda: dense.forward(x, w, w[0]), lambda: dense.backward_activation(x, x),
    lambda: dense.backward_data(x, w), lambda: dense.backward_weights(x, x),
]
def convolve(layer):
    x, w, y = (ones(*shape) for shape in (layer.x_shape, layer.w_shape, layer.y_shape))
    return [
        lambda: layer.forward(x, w, y[0, :, 0, 0].copy()), lambda: layer.backward_data(y, w),
        lambda: layer.backward_weights(y, x),
    ]
for how in ({"stride": 2, "algorithm": "direct"}, {"algorithm": "winograd"}, {"groups": 64}):
    calls += convolve(jitgen.Convolution(2, 64, 28, 28, 64, 3, padding=1, **how))
pool = jitgen.MaxPool(2, 64, 28, 28, 2)
image, pooled = ones(*pool.x_shape), ones(*pool.y_shape)
calls += [lambda: pool.forward(image), lambda: pool.backward(pooled, image)]
lstm = jitgen.Lstm(32, 10, 64, 64)
arrays = [ones(*lstm.shapes[name]) for name in ("x", "w", "r", "b")]
y = ones(*lstm.shapes["y"])
calls += [lambda: lstm.forward(*arrays, training=True), lambda: lstm.backward(y)]
adam = jitgen.Adam([w.copy()])
calls += [lambda: adam.step([w])]
for call in calls:
    call()
end = time.process_time() + float(sys.argv[1])
while time.process_time() < end:
    for call in calls:
        call()
print("process", os.getpid())
with open("/proc/self/maps") as maps:
    for line in maps:
        span, access, *_, name = [*line.split(None, 5), ""][:6]
        if "x" in access and not (name.startswith("[") or os.path.exists(name.strip())
                                  and name.strip() != "/dev/zero"):
            print("code", span)
"""
#: Kind, target and shape; whose driver it is, the pass and the sizes; or a part of a team
NAMES = re.compile(
    rf"jitgen_(?:[a-z_]+_{HOST}_f32_\d+\w*|replay_{HOST}_[A-Z][A-Za-z]+_[a-z_]+\d\w*"
    rf"|(?:member|crew|helper)_{HOST})_[0-9a-f]{{8}}"
)
#: What a sample of the program must be found in, at the least
KINDS = ("brgemm", "depthwise", "winograd_input", "lstm", "max_pool_backward", "adam", "replay")


def share(script: str, spans: list[tuple[int, int]]) -> tuple[Counter[str], Counter[str]]:
    """Samples (`perf script -F ip,sym,dso`) in generated code: by name, and without one."""
    named, unnamed = Counter[str](), Counter[str]()
    for line in script.splitlines():
        match = re.fullmatch(r" *([0-9a-f]+) (.*) \(.*\)", line)
        assert match, line
        if any(low <= int(match[1], 16) < high for low, high in spans):
            (named if NAMES.fullmatch(match[2]) else unnamed)[match[2]] += 1
    return named, unnamed


@pytest.mark.parametrize("team", ["runtime", "crew"])
@pytest.mark.parametrize("tool", ["perf", "jitdump"])
def test_nearly_all_samples_in_generated_code_have_a_name(
    tool: str, team: str, tmp_path: Path
) -> None:
    need(None if HOST else "no target runs here", installable=False)
    need_perf()
    (tmp_path / "program.py").write_text(PROGRAM)
    record = ["perf", "record", "-e", "cpu-clock", "-k", "CLOCK_MONOTONIC", "-o", "raw"]
    how = {"JITGEN_DEBUG": tool, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    said = run_tool([*record, sys.executable, "program.py", f"{SECONDS}", team], tmp_path, how)
    data = "raw"
    if tool == "jitdump":
        data = "injected"
        run_tool(["perf", "inject", "--jit", "-i", "raw", "-o", data], tmp_path)
    script = run_tool(["perf", "script", "-i", data, "-F", "ip,sym,dso"], tmp_path)
    if tool == "perf":
        Path(f"/tmp/perf-{re.findall(r'process ([0-9]+)', said)[0]}.map").unlink()
    found = re.findall(r"code ([0-9a-f]+)-([0-9a-f]+)", said)
    spans = [(int(low, 16), int(high, 16)) for low, high in found]
    named, unnamed = share(script, spans)
    total = sum(named.values()) + sum(unnamed.values())
    assert total >= ENOUGH, f"{total} samples, {script.count(chr(10))} of all"
    assert sum(named.values()) >= LEAST * total, unnamed
    for kind in KINDS:
        assert any(name.startswith(f"jitgen_{kind}_{HOST}_") for name in named), (kind, named)


def test_what_has_no_name_counts() -> None:
    ours = f"jitgen_brgemm_{HOST}_f32_4x4x4_0123abcd"
    script = "\n".join([
        f"    7f0000001010 {ours} (/tmp/perf-1.map)", "    7f0000001fff [unknown] (//anon)",
        "    7f0000001020 jitgen_replay (/tmp/perf-1.map)", "    7f0000002000 main (/bin/x)",
        f"ffffffff81000000 {ours} ([kernel.kallsyms])",
    ])  # fmt: skip
    named, unnamed = share(script, [(0x7F0000001000, 0x7F0000002000)])
    assert named == {ours: 1} and unnamed == {"[unknown]": 1, "jitgen_replay": 1}
