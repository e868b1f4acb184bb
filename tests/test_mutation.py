"""The rig and the oracle notice wrong code: single bits of right kernels are flipped.

A flip is noticed if the kernel faults, breaks the ABI, hangs, or gives wrong numbers. Flips in
bytes that do not matter (padding, branches that no data takes, a prefetch) cannot be; all flips in
the opcodes of the inner loop's multiply-accumulates must be.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from cases import Arrays, Case, build, job
from oracle import compare
from random_cases import SEED
from rig.job import Job, Result
from tiers import TIERS, need

import jitgen
from jitgen.gemm.sections import ReductionLoop

#: Two tiles of rows, a whole vector and a tail of several elements at every vector length, more
#: than one pass of the inner loop, and something of everything around it. No step of the epilogue
#: may hide a wrong number, as relu would
CASE = Case(
    13, 37, 41, 3, seed=SEED, lda=43, ldb=40, ldc=39, beta=0.5,
    epilogue=("bias", ("leaky_relu", 0.5)),
    plan=(("k_unroll", 4), ("batch_chunk", 2)),
)  # fmt: skip
RANDOM_FLIPS = 100
#: seconds: a mutant that takes longer hangs
TIMEOUT = 2.0
#: byte of an instruction that holds its opcode, by the first byte: VEX, EVEX; else AArch64
OPCODE = {0xC4: 3, 0x62: 4}

tiers = pytest.mark.parametrize("name", ["avx2 native", "avx512 bochs", "sve256 qemu", "neon qemu"])


def opcode_bytes(kernel: jitgen.Kernel) -> list[int]:
    """Offsets of the opcodes of the multiply-accumulates of the first inner loop."""
    found = []
    inside = False
    for line in kernel.program.lines():
        if line.kind == "section":
            inside = isinstance(line.section, ReductionLoop)
            if found:
                break
        if inside and line.kind == "instruction" and line.text.startswith(("vfmadd", "fmla")):
            assert kernel.code[line.offset : line.offset + len(line.code)] == line.code
            a64 = kernel.target.architecture == "aarch64"
            found.append(line.offset + (3 if a64 else OPCODE[line.code[0]]))
    return found


class Mutants:
    """The case's kernel on a tier, and what becomes of flipped copies of it."""

    def __init__(self, name: str) -> None:
        self.tier = TIERS[name]
        self.run: Callable[..., list[Result]] = self.tier.run
        self.kernel = CASE.kernel(self.tier.target)
        self.arrays: Arrays = build(CASE, 0)

    def job(self, flip: tuple[int, int] | None) -> Job:
        """The call, with bit flip[1] of byte flip[0] flipped."""
        code = bytearray(self.kernel.code)
        if flip is not None:
            code[flip[0]] ^= 1 << flip[1]
        return job(CASE, self.kernel, self.arrays, bytes(code))

    def noticed(self, flips: list[tuple[int, int]]) -> list[bool]:
        """Whether each flip is noticed."""
        if self.tier.emulated:
            results = self.run([self.job(flip) for flip in flips], timeout=TIMEOUT)
            return [bool(self.judge(result)) for result in results]
        return [bool(self.wrong(flip)) for flip in flips]

    def wrong(self, flip: tuple[int, int] | None) -> str:
        """What is wrong with one copy, run alone: without an emulator between them it may damage
        the process it runs in, and the results of others."""
        try:
            (result,) = self.run([self.job(flip)], timeout=TIMEOUT)
        except Exception as error:
            return f"the rig's process was damaged: {error!r}"
        return self.judge(result)

    def judge(self, result: Result) -> str:
        """What is wrong with a result."""
        if not result.ok:
            return result.error
        return compare(CASE, self.arrays, result.outputs[0], None)


@tiers
def test_the_unchanged_kernel_passes(name: str) -> None:
    need(TIERS[name])
    assert Mutants(name).wrong(None) == ""


@tiers
def test_most_random_flips_are_noticed(name: str) -> None:
    need(TIERS[name])
    mutants = Mutants(name)
    rng = random.Random(f"{SEED} {name}")
    places = rng.sample(range(len(mutants.kernel.code)), RANDOM_FLIPS)
    flips = [(place, rng.randrange(8)) for place in places]
    noticed = mutants.noticed(flips)
    missed = [flip for flip, seen in zip(flips, noticed, strict=True) if not seen]
    assert sum(noticed) >= 0.6 * RANDOM_FLIPS, f"JITGEN_SEED={SEED}: not noticed: {missed}"


@tiers
def test_all_flips_in_opcodes_of_the_inner_loop_are_noticed(name: str) -> None:
    need(TIERS[name])
    mutants = Mutants(name)
    places = opcode_bytes(mutants.kernel)
    assert len(places) >= 8
    flips = [(place, bit) for place in places for bit in range(8)]
    noticed = mutants.noticed(flips)
    missed = [flip for flip, seen in zip(flips, noticed, strict=True) if not seen]
    assert not missed, f"JITGEN_SEED={SEED}: (byte, bit) not noticed: {missed}"
