"""What this CPU can run, and that no kernel needs more than its target says.

Not here: AArch64's own probes (test_aarch64_python).
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import cpuinfo
import pytest

import jitgen
from jitgen.emit.steps import STEPS
from jitgen.run import cpu
from jitgen.target import TARGETS

ROOT = Path(__file__).resolve().parent.parent
#: features that others come with
IMPLIED = {"avx2": {"avx"}, "fma": {"avx"}}
#: features that every CPU of an architecture has
ALWAYS = {"x86_64": set[str](), "aarch64": {"asimd"}}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="CPUID is of x86")
def test_features_agree_with_py_cpuinfo() -> None:
    """CPUID and XCR0, read by our own probe, say what the kernel's flags say."""
    flags = set(cpuinfo.get_cpu_info()["flags"])
    known = {name for name in cpu.X86_FEATURES if name != "osxsave"}
    assert cpu.features() & known == flags & known


def test_host_is_the_first_usable_target() -> None:
    usable = [name for name, reason in jitgen.targets().items() if not reason]
    if not usable:
        with pytest.raises(RuntimeError, match="no target can run here"):
            jitgen.host()
        return
    assert jitgen.host().name in usable


X86 = frozenset(("avx2", "fma"))
WIDE = X86 | {"avx512f", "avx512vl", "avx512bw", "avx512dq"}


@pytest.mark.parametrize(
    ("architecture", "features", "bits", "cap", "wanted"),
    [
        ("x86_64", WIDE, 0, "", "avx512"), ("x86_64", X86, 0, "", "avx2"),
        ("x86_64", WIDE, 0, "avx2", "avx2"), ("x86_64", WIDE, 0, "avx512", "avx512"),
        ("x86_64", X86, 0, "avx512", "avx2"), ("x86_64", frozenset[str](), 0, "", "lacks avx2"),
        ("x86_64", WIDE, 0, "neon", "neon is for aarch64"),
        ("aarch64", frozenset(("sve",)), 384, "", "sve384"),
        ("aarch64", frozenset[str](), 0, "", "neon"),
        ("aarch64", frozenset(("sve",)), 256, "neon", "neon"),
        ("aarch64", frozenset(("sve",)), 256, "sve256", "sve256"),
        ("aarch64", frozenset(("sve",)), 256, "sve512", "have 256 bits, not 512"),
        ("riscv64", frozenset[str](), 0, "", "neon is for aarch64; this host is riscv64"),
    ],
)  # fmt: skip
def test_the_best_target_under_the_cap(
    architecture: str, features: frozenset[str], bits: int, cap: str, wanted: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of every architecture, the order of TARGETS; a message says why there is none."""
    monkeypatch.setattr(cpu.loader, "architecture", lambda: architecture)
    monkeypatch.setattr(cpu.loader, "why_not_here", lambda: "")
    monkeypatch.setattr(cpu, "features", lambda: features)
    monkeypatch.setattr(cpu, "vector_length", lambda: bits)
    if " " not in wanted:
        assert cpu._host.__wrapped__(cap, bits).name == wanted
        return
    with pytest.raises(RuntimeError, match=f"no target can run here.*{wanted}"):
        cpu._host.__wrapped__(cap, bits)


@pytest.mark.parametrize("target", [*TARGETS, "sve384", "sve2048"])
def test_kernels_need_no_more_than_their_target_has(target: str) -> None:
    steps = [
        ("leaky_relu", 0.1) if name == "leaky_relu" else ("clip", 0, 6) if name == "clip"
        else ("scale", 2) if name == "scale" else name
        for name in STEPS if name != "relu_mask" or target not in ("sve384", "sve2048")
    ]  # fmt: skip
    found = jitgen.target.parse_target(target)
    promised = {*found.features, *ALWAYS[found.architecture]}
    for feature, implied in IMPLIED.items():
        promised |= implied if feature in promised else set()
    for shape in ((5, 3, 4), (13, 21, 7), (9, 70, 33)):
        for trans_b in (False, True):
            kernel = jitgen.brgemm(
                *shape, target=target, trans_b=trans_b, epilogue=steps, alpha=2.0, beta=0.5
            )
            needed = {f for feature in kernel.program.features for f in feature.split()}
            assert needed <= promised, needed - promised


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_generate_and_refuse_to_run(system: str) -> None:
    code = f"""
import sys
import numpy as np
sys.platform = {system!r}
import jitgen
assert all("needs Linux" in reason for reason in jitgen.targets().values()), jitgen.targets()
kernel = jitgen.brgemm(4, 8, 2, target="avx2")
assert "vfmadd231ps" in kernel.listing()
a, b, c = (np.zeros(s, np.float32) for s in ((1, 4, 2), (1, 2, 8), (4, 8)))
for run in (lambda: kernel(a, b, c), lambda: kernel.address, jitgen.host):
    try:
        run()
    except RuntimeError as error:
        assert "needs Linux" in str(error), error
    else:
        raise SystemExit("it ran")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
