"""PeachPy as the second assembler of x86: the same bytes, or a refusal by name.

PeachPy is found where it can be imported, or in the directory that JITGEN_PEACHPY names, by default
that of Debian's package python3-peachpy. Not here: what the bytes do.
"""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import needs
import pytest
import test_rows
from cases import Case
from random_cases import SEED, random_case
from row_operands import kinds_of

import jitgen
import jitgen.isa.x86
import jitgen.peachpy
from jitgen.isa import open_machine
from jitgen.isa.form import Form
from jitgen.isa.program import Program
from jitgen.peachpy import assemble, peachpy_form
from jitgen.target import AVX2, TARGETS, Target

DEBIAN = "/usr/lib/python3/dist-packages"
#: forms that PeachPy lacks: EVEX.128 of a load of one element to all
LACKING = {"vbroadcastss xmm m32", "vsqrtpd xmm b64", "vsqrtpd ymm b64", "lock xadd m64 r64"}
KERNELS = 300


@pytest.fixture(scope="module", autouse=True)
def _peachpy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """PeachPy, importable for these tests."""
    if importlib.util.find_spec("peachpy"):
        yield
        return
    home = Path(os.environ.get("JITGEN_PEACHPY", DEBIAN))
    if not (home / "peachpy" / "x86_64").is_dir():
        needs.need("PeachPy is not installed (Debian, Ubuntu: python3-peachpy)")
    # links to what is needed, and nothing else of that directory
    folder = tmp_path_factory.mktemp("peachpy")
    (folder / "peachpy").symlink_to(home / "peachpy")
    if not importlib.util.find_spec("six"):
        (folder / "six.py").symlink_to(home / "six.py")
    sys.path.append(str(folder))
    yield
    sys.path.remove(str(folder))


# ---- single instructions ---------------------------------------------------------------------


def _shifted_broadcast(form: Form, operands: tuple[Any, ...]) -> bool:
    """Whether an operand is a broadcast element with a displacement."""
    kinds = kinds_of(form)
    return any(k in ("b32", "b64") and v[3] for k, v in zip(kinds, operands, strict=True))


def test_every_form() -> None:
    """Every form, corner and random operands: the same bytes, or refused for a known reason."""
    wrong = []
    same: Counter[str] = Counter()
    for name, cases in test_rows.cases("x86_64").items():
        for case in cases:
            known = case.form.signature in LACKING or _shifted_broadcast(case.form, case.operands)
            text = case.form.text(case.operands)
            try:
                code = peachpy_form(case.form).encode(case.operands)
            except ValueError as error:
                if not known or text not in str(error):
                    wrong.append(f"{text}: {error}")
            else:
                if known or code != case.code:
                    wrong.append(f"{text}: {code.hex()}, not {case.code.hex()}")
                same[name] += 1
    assert not wrong, f"{len(wrong)} differ:\n" + "\n".join(wrong[:40])
    missing = {name for name in test_rows.cases("x86_64") if not same[name]}
    assert {name.partition(": ")[2] for name in missing} == LACKING


def test_branches_and_alignment() -> None:
    """Branches of both lengths, forward and backward, over aligned places and constants."""
    for gap in (0, 1, 60, 120, 124, 127, 128, 131, 1000):
        program = Program(jitgen.isa.x86.nops)
        program.constant(b"\1\2\3\4")
        for form in test_rows.label_forms("x86_64"):
            register = (9,) if len(form.kinds) == 2 else ()
            back, forth = program.new_label(), program.new_label()
            program.section("gaps")
            program.align(32)
            program.place(back)
            for _ in range(gap):
                program.emit(jitgen.isa.x86.FORMS["ret"], ())
            program.emit(form, (*register, back))
            program.emit(form, (*register, forth))
            for _ in range(gap):
                program.emit(jitgen.isa.x86.FORMS["ret"], ())
            program.place(forth)
        assert assemble(program, AVX2) == program.encode()


def test_unmasked_compare_has_no_mask() -> None:
    """PeachPy by itself encodes vcmpps k1, ... as if it were masked by k1."""
    form = open_machine("avx512", "f32", 512).table["vcmpps k zmm zmm uimm8"]
    code = peachpy_form(form).encode((1, 2, 3, 30))
    assert code == form.encode((1, 2, 3, 30))
    assert code[3] & 7 == 0


# ---- kernels ---------------------------------------------------------------------------------


def _request(case: Case, target: Target, **more: Any) -> jitgen.Kernel:
    """The kernel of a case, by the public function."""
    lanes = target.machine(case.dtype, 1 << 20).lanes
    packed = case.packed * lanes if case.packed > 0 else case.packed < 0
    return jitgen.brgemm(
        case.m, case.n, case.k, case.dtype, lda=case.lda, ldb=case.ldb, ldc=case.ldc, ldr=case.ldr,
        batch=case.batch, stride_a=case.stride_a, stride_b=case.stride_b, alpha=case.alpha,
        beta=case.beta, trans_a=case.trans_a, trans_b=case.trans_b, packed_b=packed,
        epilogue=case.epilogue, target=target, plan=dict(case.plan), **more,
    )  # fmt: skip


def _kernels(target: Target) -> Iterator[tuple[Case, jitgen.Kernel]]:
    """Kernels of random cases over all options."""
    rng = random.Random(SEED)
    made = 0
    while made < KERNELS:
        case = random_case(rng, 40)
        try:
            kernel = _request(case, target)
        except ValueError:
            continue  # a plan or a panel width of the case's own that does not fit
        made += 1
        yield case, kernel


def test_avx2_kernels() -> None:
    """Random AVX2 kernels, all options: the same bytes."""
    for case, kernel in _kernels(AVX2):
        assert assemble(kernel.program, kernel.target) == kernel.code, (SEED, case)


def test_avx512_kernels() -> None:
    """Random AVX-512 kernels: the same bytes, or refused for a broadcast with a displacement."""
    outcomes: Counter[bool] = Counter()
    for case, kernel in _kernels(TARGETS["avx512"]):
        records = kernel.program.records
        shifted = any(_shifted_broadcast(f, o) for f, o in records if f.kinds and f.label_at < 0)
        outcomes[shifted] += 1
        if shifted:
            with pytest.raises(ValueError, match=r"PeachPy cannot encode .*1to\d+.*displacement"):
                assemble(kernel.program, kernel.target)
        else:
            assert assemble(kernel.program, kernel.target) == kernel.code, (SEED, case)
    assert min(outcomes[False], outcomes[True]) >= KERNELS // 20, outcomes


def test_public_face() -> None:
    """brgemm(assembler="peachpy") gives a kernel of its own with the same bytes."""
    ours = jitgen.brgemm(6, 19, 5, target="avx2", epilogue=("bias", "gelu"))
    theirs = jitgen.brgemm(6, 19, 5, target="avx2", epilogue=("bias", "gelu"), assembler="peachpy")
    assert theirs is not ours
    assert theirs.code == ours.code


# ---- refusals --------------------------------------------------------------------------------


def test_refused_target() -> None:
    """A target that is not x86 is refused by name."""
    with pytest.raises(ValueError, match=r"target='sve256' is aarch64"):
        jitgen.brgemm(4, 4, 4, target="sve256", assembler="peachpy")


def test_refused_instruction() -> None:
    """An instruction that PeachPy does not know is refused by name."""
    program = Program(jitgen.isa.x86.nops)
    kinds = ("zmm+", "zmm", "zmm")
    form = Form("vpdpbusd zmm zmm zmm", kinds, "avx512vnni", lambda o: b"", lambda o: "vpdpbusd")
    program.emit(form, (0, 1, 2))
    with pytest.raises(ValueError, match="PeachPy has no instruction VPDPBUSD"):
        assemble(program, AVX2)


def test_missing_peachpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PeachPy the error says how to get it."""
    kernel = jitgen.brgemm(4, 4, 4, target="avx2")
    jitgen.peachpy._library.cache_clear()
    monkeypatch.setitem(sys.modules, "peachpy", None)
    for name in [n for n in sys.modules if n.startswith("peachpy.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match="python3-peachpy"):
        assemble(kernel.program, kernel.target)


def test_functions_of_the_caller_get_nothing() -> None:
    """Assembling while the caller builds with PeachPy adds no instruction to what he builds."""
    stream = importlib.import_module("peachpy.stream")
    instructions = importlib.import_module("peachpy.x86_64")
    kernel = jitgen.brgemm(3, 4, 5, target="avx2")
    with stream.InstructionStream() as built:
        instructions.RET()
        assert assemble(kernel.program, kernel.target) == kernel.code
        instructions.RET()
    assert len(built) == 2
