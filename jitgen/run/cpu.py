"""What this CPU can run: features from CPUID and XCR0 (x86) or the auxiliary vector (AArch64).

The probe is machine code of our own, because under emulation /proc/cpuinfo shows the host;
py-cpuinfo gives the human-readable name only, of CPUs that do not tell their own. Not here: what a
target needs (`jitgen.target`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from jitgen import records
from jitgen.isa.program import Program
from jitgen.isa.x86 import FORMS, RAX, RBX, RCX, RDX, RSI, nops
from jitgen.run import loader
from jitgen.target import TARGETS, Target, parse_target, sve

# CPUID leaf, subleaf, register (0 eax 1 ebx 2 ecx 3 edx), bit (SDM volume 2, CPUID)
X86_FEATURES = {
    "avx": (1, 0, 2, 28), "fma": (1, 0, 2, 12), "osxsave": (1, 0, 2, 27),
    "avx2": (7, 0, 1, 5), "avx512f": (7, 0, 1, 16), "avx512dq": (7, 0, 1, 17),
    "avx512bw": (7, 0, 1, 30), "avx512vl": (7, 0, 1, 31), }  # fmt: skip
#: CPUID leaves with the CPU's name, and the one that says which such leaves there are
BRAND, BRAND_LEAVES = (0x8000_0002, 0x8000_0003, 0x8000_0004), 0x8000_0000
#: XCR0 bits that the operating system must have enabled
YMM_STATE, ZMM_STATE = 0x6, 0xE6
HWCAP, HWCAP2 = 16, 26
HWCAP_SVE, HWCAP2_SVE2 = 1 << 22, 1 << 1
PR_SVE_GET_VL = 51


def _probe_code() -> bytes:
    """`void probe(uint64_t out[2], uint64_t leaf, uint64_t subleaf)`: out = eax | ebx << 32, ecx |
    edx << 32; leaf 0xFFFFFFFF reads XCR0 instead."""
    program = Program(nops)
    emit = program.emit
    other, done = program.new_label(), program.new_label()
    out, leaf = 8, RSI
    emit(FORMS["push r64"], (RBX,))
    emit(FORMS["mov r64 r64"], (out, 7))
    emit(FORMS["mov r64 r64"], (RCX, RDX))
    emit(FORMS["cmp r64 imm8"], (leaf, -1))
    emit(FORMS["je rel"], (other,))
    emit(FORMS["mov r64 r64"], (RAX, leaf))
    emit(FORMS["cpuid"], ())
    emit(FORMS["jmp rel"], (done,))
    program.place(other)
    emit(FORMS["xor r32 r32"], (RCX, RCX))
    emit(FORMS["xgetbv"], ())
    program.place(done)
    for i, register in enumerate((RAX, RBX, RCX, RDX)):
        emit(FORMS["mov m32 r32"], ((out, None, 1, 4 * i), register))
    emit(FORMS["pop r64"], (RBX,))
    emit(FORMS["ret"], ())
    return program.encode()


def _cpuid() -> Callable[[int, int], list[int]]:
    """What gives eax, ebx, ecx and edx of a leaf and subleaf."""
    code = loader.place(_probe_code())

    def read(leaf: int, subleaf: int) -> list[int]:
        out = np.zeros(4, np.uint32)
        probe = loader.ffi.cast(loader.OF_NUMBERS, code.address)  # which `read` keeps in its place
        probe(out.__array_interface__["data"][0], leaf % (1 << 64), subleaf)
        found: list[int] = out.tolist()
        return found

    return read


def _x86_features() -> frozenset[str]:
    read = _cpuid()
    highest = read(0, 0)[0]
    found = {
        name
        for name, (leaf, subleaf, register, bit) in X86_FEATURES.items()
        if leaf <= highest and read(leaf, subleaf)[register] >> bit & 1
    }
    state = read(-1, 0)[0] if "osxsave" in found else 0
    if state & YMM_STATE != YMM_STATE:
        return frozenset()
    if state & ZMM_STATE != ZMM_STATE:
        found = {name for name in found if not name.startswith("avx512")}
    return frozenset(found)


@lru_cache(maxsize=1)
def features() -> frozenset[str]:
    """CPU features that this host has and its operating system has enabled."""
    if loader.why_not_here():
        return frozenset()
    if loader.architecture() == "x86_64":
        return _x86_features()
    c = loader.libc()
    found = set()
    if c.getauxval(HWCAP) & HWCAP_SVE:
        found.add("sve")
    if c.getauxval(HWCAP2) & HWCAP2_SVE2:
        found.add("sve2")
    return frozenset(found)


def vector_length() -> int:
    """SVE vector length of the calling thread in bits; 0 without SVE."""
    if loader.architecture() != "aarch64" or "sve" not in features():
        return 0
    length = loader.libc().prctl(PR_SVE_GET_VL, 0, 0, 0, 0)
    return 0 if length < 0 else 8 * (length & 0xFFFF)


def why_not(target: Target) -> str:
    """Why this host cannot run `target`, or ""."""
    reason = loader.why_not_here()
    if reason:
        return reason
    if target.architecture != loader.architecture():
        return f"{target.name} is for {target.architecture}; this host is {loader.architecture()}"
    missing = [f for f in target.features if f not in features()]
    if missing:
        return f"this CPU (or its operating system) lacks {', '.join(missing)}"
    if target.family == "sve" and target.vector_bits != vector_length():
        return f"this thread's SVE vectors have {vector_length()} bits, not {target.vector_bits}"
    return ""


def host() -> Target:
    """The best target that this host can run, capped by the environment variable JITGEN_ISA.

    Raises RuntimeError with the reasons if there is none.
    """
    return _host(os.environ.get("JITGEN_ISA", ""), vector_length())


def choose(target: str | Target | None) -> Target:
    """The target that an argument names: None is the host's. TypeError, ValueError."""
    if target is None:
        return host()
    return target if isinstance(target, Target) else parse_target(target)


def _tell(target: Target, why_not: str) -> None:
    """Tell of a target that was considered, if somebody wants to know."""
    if records.wanted(records.DISPATCH):
        records.tell(records.DISPATCH, target.name, "no" if why_not else "yes", why_not)


@lru_cache(maxsize=64)
def _host(cap: str, sve_bits: int) -> Target:
    here = loader.architecture()
    order = [t for t in TARGETS.values() if t.architecture == here and not t.scalable]
    if here == "aarch64":
        order.insert(0, sve(sve_bits or 128))
    order = order or list(TARGETS.values())
    if cap:
        capped = parse_target(cap)
        better = order[: order.index(capped)] if capped in order else order
        for target in better:
            _tell(target, f"JITGEN_ISA={cap}")
        order = order[len(better) :] if capped in order else [capped]
    for target in order:
        reason = why_not(target)
        _tell(target, reason)
        if not reason:
            return target
    reasons = "; ".join(f"{t.name}: {why_not(t)}" for t in order)
    asked = f" under JITGEN_ISA={cap}" if cap else ""
    raise RuntimeError(f"no target can run here{asked}: {reasons}")


@lru_cache(maxsize=1)
def name() -> str:
    """The CPU's name as its maker gives it (for people, never for decisions)."""
    if not loader.why_not_here() and loader.architecture() == "x86_64":
        read = _cpuid()
        if read(BRAND_LEAVES, 0)[0] >= BRAND[-1]:
            words = [word for leaf in BRAND for word in read(leaf, 0)]
            text = np.array(words, "<u4").tobytes().partition(b"\0")[0]
            return " ".join(text.decode("latin-1").split())
    import cpuinfo  # takes a second

    info = cpuinfo.get_cpu_info()
    return str(info.get("brand_raw") or info.get("arch_string_raw") or "unknown CPU")


def targets() -> dict[str, str]:
    """Every listed target -> why it is not usable here, "" if it is."""
    listed = dict(TARGETS)
    bits = vector_length()
    if bits:
        listed.setdefault(f"sve{bits}", sve(bits))
    return {name: why_not(target) for name, target in listed.items()}

