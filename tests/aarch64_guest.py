"""Checks that an AArch64 Python runs on itself: `test_aarch64_python` starts this under qemu-user.

    python aarch64_guest.py 256 '["Case(3, 5, 7)"]'       # 0: on a processor without SVE

The last line of output is JSON: {"kernels": how many ran, "failures": [text, ...]}. Not here:
pytest and hypothesis, which that Python does not have.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
from cases import Case, build, views
from oracle import compare

import jitgen
from jitgen import FullyConnected
from jitgen.run import cpu, loader
from jitgen.run.threads import usable_openmp

PR_SVE_SET_VL = 50  # prctl, linux/prctl.h
INF = float("inf")

_ran = 0


def _ones(kernel: jitgen.Kernel, count: int = 2) -> list[np.ndarray]:
    """A batch of ones and a C of zeros: every element of the result is k * count."""
    s = kernel.spec
    dtype = np.float32 if s.dtype == "f32" else np.float64
    shapes = [(count, s.m, s.k), (count, s.k, s.n)]
    return [*(np.ones(shape, dtype) for shape in shapes), np.zeros((s.m, s.n), dtype)]


def _right(kernel: jitgen.Kernel) -> bool:
    global _ran
    a, b, c = _ones(kernel)
    result = kernel(a, b, c)
    _ran += 1
    return result is c and bool((c == 2 * kernel.spec.k).all())


def _error(call: Callable[[], Any]) -> str:
    """The message of the RuntimeError that `call` must raise."""
    try:
        call()
    except RuntimeError as error:
        return str(error)
    raise AssertionError("no RuntimeError was raised")


def _set_length(bits: int) -> None:
    """Change the SVE vector length of this thread."""
    length = loader.libc().prctl(PR_SVE_SET_VL, bits // 8, 0, 0, 0)
    assert length >= 0 and 8 * (length & 0xFFFF) == bits, f"the emulator has no {bits} bits"


def _other(bits: int) -> int:
    return 256 if bits == 128 else 128


def _host(bits: int) -> str:
    return f"sve{bits}" if bits else "neon"


# ---- with SVE and without --------------------------------------------------------------------


def check_targets(bits: int) -> None:
    """The host is SVE at this length, or else NEON, which runs on every one; other targets say why
    they are not usable."""
    targets = jitgen.targets()
    assert jitgen.host().name == _host(bits)
    assert {name for name, reason in targets.items() if not reason} == {_host(bits), "neon"}
    missing = f"have {bits} bits" if bits else "lacks sve"
    assert missing in targets[f"sve{_other(bits)}"]
    assert "x86_64" in targets["avx2"] and "aarch64" in targets["avx2"]
    assert cpu.vector_length() == bits


def check_capped(bits: int) -> None:
    """JITGEN_ISA=neon chooses it, whatever else there is."""
    os.environ["JITGEN_ISA"] = "neon"
    try:
        assert jitgen.host().name == "neon"
        assert _right(jitgen.brgemm(6, 11, 5))
    finally:
        os.environ["JITGEN_ISA"] = ""


def check_cases(bits: int, cases: list[str]) -> None:
    """Random cases, called and bound, against float64."""
    global _ran
    wrong = []
    for number, text in enumerate(cases):
        case = eval(text, {"Case": Case, "inf": INF})
        try:
            kernel = case.kernel(_host(bits))
        except ValueError as error:
            if not (case.plan or case.packed > 0):
                wrong.append(f"{text}: {error}")
            continue
        arrays = build(case, kernel.spec.panel)
        positional, keywords = views(case, arrays)
        if number % 2:
            kernel.bind(*positional, **keywords)()
        else:
            assert kernel(*positional, **keywords) is positional[2]
        _ran += 1
        mask = arrays.mask if case.has("relu_mask") else None
        message = compare(case, build(case, kernel.spec.panel), arrays.c, mask)
        if message:
            wrong.append(f"{text}: {message}")
    assert not wrong, "\n".join(wrong[:3])


def check_host_target(bits: int) -> None:
    """Without a target the kernel is for the host's, in both element types, and is cached."""
    for dtype in ("f32", "f64"):
        kernel = jitgen.brgemm(7, 37, 11, dtype)
        assert kernel.target.name == _host(bits)
        assert kernel is jitgen.brgemm(7, 37, 11, dtype)
        assert _right(kernel)


def check_pack_b(bits: int) -> None:
    """Panels packed by emitted code give what plain B gives."""
    a, b, c = _ones(jitgen.brgemm(9, 41, 6))
    kernel = jitgen.brgemm(9, 41, 6, packed_b=True)
    kernel(a, jitgen.pack_b(b, kernel), c)
    assert (c == 12).all()


def check_flush(bits: int) -> None:
    """Our stub that flushes the instruction cache was called, and runs.

    No check here runs code where other code ran before. QEMU 7.2 would run the old code: it does
    nothing at `ic ivau` and does not notice what is written through a second mapping.
    """
    kernel = jitgen.brgemm(3, 4, 5)
    assert _right(kernel)
    assert loader._flush is not None
    assert kernel._loaded is not None
    loader._flush_instruction_cache(kernel._loaded)
    assert _right(kernel)


def check_other_length(bits: int) -> None:
    """A kernel for another length, or for SVE where there is none, can be generated and listed,
    not run."""
    other = _other(bits)
    kernel = jitgen.brgemm(3, 5, 7, target=f"sve{other}")
    assert kernel.code
    a, b, c = _ones(kernel)
    message = _error(lambda: kernel(a, b, c))
    reason = f"have {bits} bits, not {other}" if bits else "lacks sve"
    assert f"sve{other}" in message and reason in message, message
    assert not c.any()


def check_changed_length(bits: int) -> None:
    """When a thread's length changes after binding, a call raises and writes nothing; one of NEON
    does not care."""
    kernel, other = jitgen.brgemm(5, 6, 7), jitgen.brgemm(5, 6, 7, target="neon")
    a, b, c = _ones(kernel)
    bound = kernel.bind(a, b, c)
    _set_length(_other(bits))
    try:
        bound_message = _error(bound)
        call_message = _error(lambda: kernel(a, b, c))
        untouched = not c.any()
        right = _right(other)
        here = jitgen.host().name
    finally:
        _set_length(bits)
    for message in (bound_message, call_message):
        assert f"have {_other(bits)} bits" in message and "did nothing" in message, message
    assert untouched and right
    assert here == f"sve{_other(bits)}"
    bound()
    assert (c == 14).all()


def check_threads(bits: int) -> None:
    """Threads share kernels; one whose length differs is refused, alone."""
    kernels = [jitgen.brgemm(m, 40 - m, 9) for m in range(1, 9)]
    outcomes: list[Any] = []

    def work() -> None:
        outcomes.append(all(_right(kernel) for _ in range(5) for kernel in kernels))

    def differ() -> None:
        _set_length(_other(bits))
        outcomes.append("did nothing" in _error(lambda: _right(kernels[0])))

    assert _right(kernels[0])
    others = (work, differ, work, work) if bits else (work, work, work, work)
    threads = [threading.Thread(target=target) for target in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [True] * 4, outcomes


def check_layer(bits: int) -> None:
    """A layer of three threads with a barrier, without OpenMP: threads of our own."""
    assert usable_openmp() is None
    layer = FullyConnected(64, 64, 80, threads=3)
    rng = np.random.default_rng()
    x, w, b = (
        rng.integers(-8, 9, s).astype(np.float32) for s in ((64, 64), (80, 64), (80,))
    )  # fmt: skip
    for _ in range(3):
        assert (layer.forward(x, w, b) == x.astype(np.float64) @ w.T + b).all()


def check_fork(bits: int) -> None:
    """Kernels made before a fork, and after it, run in both processes."""
    before = jitgen.brgemm(4, 5, 6)
    assert _right(before)
    child = os.fork()
    if child == 0:
        try:
            right = _right(before) and _right(jitgen.brgemm(4, 5, 8))
        except BaseException:
            traceback.print_exc()
            right = False
        os._exit(0 if right else 1)
    assert _right(jitgen.brgemm(4, 5, 7)) and _right(before)
    assert os.waitpid(child, 0)[1] == 0


def main() -> None:
    """Run the checks that the arguments name and print the outcome."""
    bits, cases = int(sys.argv[1]), json.loads(sys.argv[2])
    named = [
        check_targets, check_capped, check_host_target, check_pack_b, check_flush,
        check_other_length, check_threads, check_layer, check_fork,
    ]  # fmt: skip
    if bits:
        named.append(check_changed_length)
    checks: dict[str, Callable[[], None]] = {
        check.__name__: (lambda check=check: check(bits)) for check in named
    }
    checks["check_cases"] = lambda: check_cases(bits, cases)
    failures = []
    for name, check in checks.items():
        try:
            check()
        except Exception:
            failures.append(f"{name}: {traceback.format_exc()}")
    print(json.dumps({"kernels": _ran, "failures": failures}))


if __name__ == "__main__":
    main()
