"""What a further instruction set must not trip over: a registered family changes nothing of the
others, and what a table does not know is refused when it is read.

Not here: rows and verbs of the instruction sets that there are (test_rows.py, test_sve_verbs.py,
test_neon_verbs.py).
"""

from __future__ import annotations

import ast
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from conftest import DEMANDED
from libraries import ARCHITECTURES, LOADER, make, need_x86
from test_rows import TABLES
from tiers import TIERS
from toolchain import STRICT, run

import jitgen
from jitgen import isa
from jitgen.analysis.cpus import CPUS
from jitgen.inspect.instructions import read_record
from jitgen.isa import a64_rows, x86_rows
from jitgen.isa.form import EncodingError, Form
from jitgen.isa.machine import Machine
from jitgen.target import TARGETS, parse_target
from tools import check


class Pretend(ModuleType):
    """The module of a family of which nothing is asked."""

    def open_machine(
        self, arithmetic: str, vector_bits: int = 0, storage: str | None = None
    ) -> Machine:
        """None of its kernels is asked for here."""
        raise ValueError(f"vector_bits={vector_bits}: the pretend family has 128")


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("last", [True, False])
def test_a_further_family_changes_no_export(
    architecture: str, last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file of a library is the same, byte by byte, wherever the family stands."""
    kernels = make(ARCHITECTURES[architecture])
    before = jitgen.export(kernels, tmp_path / "before")["files"]
    monkeypatch.setitem(sys.modules, "jitgen.isa.pretend", Pretend("jitgen.isa.pretend"))
    mine = {"pretend": ("jitgen.isa.pretend", architecture)}
    families = {**isa.FAMILIES, **mine} if last else {**mine, **isa.FAMILIES}
    monkeypatch.setattr(isa, "FAMILIES", families)
    for name in [name for name in sys.modules if name.startswith("jitgen.objects")]:
        monkeypatch.delitem(sys.modules, name)  # what they read when they are imported, too
    assert jitgen.export(kernels, tmp_path / "after")["files"] == before


FITS = """
#include <stdio.h>
#include "kernels.h"
int main(void)
{
    const uint32_t cpu = jitgen_cpu_features();
    struct jitgen_entry entry = {0};
    entry.vector_bits = 128;
    printf("%d ", jitgen_fits(&entry, cpu));
    entry.features = JITGEN_CPU_SVE;
    printf("%d ", jitgen_fits(&entry, cpu));
    entry.vector_bits = 256;
    printf("%d\\n", jitgen_fits(&entry, cpu));
    return 0;
}
"""


@pytest.mark.parametrize(
    ("model", "fits"),
    [("cortex-a53", "1 0 0"), ("max,sve-default-vector-length=16", "1 1 0"),
     ("max,sve-default-vector-length=32", "1 0 1")],
)  # fmt: skip
def test_only_sve_has_a_length_that_belongs_to_the_thread(
    model: str, fits: str, tmp_path: Path
) -> None:
    """On AArch64 an entry that asks for no SVE fits whatever the length of its vectors."""
    jitgen.export([jitgen.brgemm(1, 2, 3, target="sve128")], tmp_path)
    program = tmp_path / "program"
    run("aarch64-linux-gnu-gcc", *STRICT, f"-I{tmp_path}", "-x", "c", "-", "-o", program,
        input=FITS)  # fmt: skip
    assert run("qemu-aarch64", "-L", LOADER, "-cpu", model, program) == fits + "\n"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("fmopa za{d+}.s, p{g}/m, p{h}/m, z{n}.s, z{m}.s | "
         "10000000100 m:5 h:3 g:3 n:5 000 d:2 | sme",
         "'za' before {d} is not one of #, x, w, z, p, d, s, v, q"),
        ("ldr h{t}, [x{n:sp}, #{i}] | 0111110101 i:12*2 n:5 t:5 | fp16", "'h' before {t}"),
        ("add wsp{d}, w{n} | 0000000000000000000000 n:5 d:5 |", "'wsp' before {d}"),
        ("add w{d}, w{n:sp} | 0000000000000000000000 n:5 d:5 |", "'w' before {n} takes no :sp"),
        ("fmla z{d+}.s, z{n}.s, z{m}.s[{i}] | 01100100101 i:2 m:3 000000 n:5 d:5 | sve",
         "{i} is a label, which stands alone"),
        ("add x{d}, w{d} | 000000000000000000000000000 d:5 |", "w{d} stood before, as another"),
        ("add x{d}, x{n} | 000000000000000000000000000 d:5 |", "no field for the operand x{n}"),
        ("add x{d} | 0000000000000000000000 n:5 d:5 |", "no operand for the fields n"),
        ("add x{d} | 00000000000000000000000000x d:5 |", "is neither bits nor a field"),
        ("add x{d} | 0000 d:5 |", "the diagram has 9 bits, not 32"),
    ],
)  # fmt: skip
def test_a_row_of_a64_that_is_not_understood_is_refused(row: str, words: str) -> None:
    """By row and word, when the table is read; a row of today's letters goes through."""
    assert a64_rows.parse_table("add x{d}, x{n} | 0000000000000000000000 n:5 d:5 |")
    with pytest.raises(EncodingError) as caught:
        a64_rows.parse_table(row)
    assert words in str(caught.value) and row.split(" |")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("tdpbf16ps | tmm+ tmm tmm | VEX.128.F3.0F38.W0 5C /r | amx", "'tmm+' is no kind of"),
        ("vaddps | zmm zmm zmm/m1024 | EVEX.512.0F.W0 58 /r | avx512f", "'zmm/m1024' is no kind"),
        ("vaddps | zmm{q} zmm zmm | EVEX.512.0F.W0 58 /r | avx512f", "'zmm{q}' is no kind of"),
        ("vaddph | zmm zmm zmm | EVEX.512.MAP5.W0 58 /r | avx512fp16", "'EVEX.512.MAP5.W0' is no"),
        ("vaddps | zmm zmm zmm | EVEX.512.0F.W0 58 /v | avx512f", "'/v' is no part of an encoding"),
        ("vaddps | zmm zmm zmm | EVEX.512.0F.W0 5 /r | avx512f", "'5' is no part of an encoding"),
    ],
)  # fmt: skip
def test_a_row_of_x86_that_is_not_understood_is_refused(row: str, words: str) -> None:
    """By row and word, when the table is read."""
    assert x86_rows.parse_table("vaddps | zmm{kz} zmm zmm | EVEX.512.0F.W0 58 /r | avx512f")
    with pytest.raises(EncodingError) as caught:
        x86_rows.parse_table(row)
    assert words in str(caught.value) and row in str(caught.value)


def test_the_analysis_knows_every_kind_of_register() -> None:
    """Of all forms of all tables, and refuses one that it does not know."""
    for architecture, tables in TABLES.items():
        for form in [form for table in tables for form in table.values()]:
            kinds = [kind.split("{")[0].rstrip("+") for kind in form.kinds]
            operands = [
                (0, None, 1, 0) if kind[0] in "mb" and kind[1:].isdigit() else 0 for kind in kinds
            ]
            if architecture == "aarch64" or "m" not in kinds:
                read_record((form, tuple(operands)), architecture, 32)
    odd = Form("fmopa za.s", ("za+",), "sme", bytes, str)
    with pytest.raises(KeyError, match="'za'"):
        read_record((odd, (3,)), "aarch64", 32)


@pytest.mark.parametrize(
    "text",
    [
        'x = "neon"\n', "from jitgen.isa import sve\n", "import jitgen.isa.avx512\n",
        "isa.avx2.FORMS\n",
    ],
)
def test_no_algorithm_names_an_instruction_set(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file of jitgen/ or primitives/ it is, and however it names it."""
    assert set(isa.FAMILIES) <= check.INSTRUCTION_SETS
    assert check._instruction_sets(ast.parse(text))
    monkeypatch.setattr(check, "ROOT", tmp_path)
    for room in ("jitgen", "primitives"):
        (tmp_path / room / "deep").mkdir(parents=True)
        (tmp_path / room / "deep" / "cells.py").write_text(f'"""A module."""\n{text}')
    named = [s for s in check.house_rules() if "names the instruction set" in s]
    assert [s.split(":")[0] for s in named] == ["jitgen/deep/cells.py", "primitives/deep/cells.py"]


def test_every_family_is_a_target_with_a_core_and_a_tier() -> None:
    """Registered in one place, it is listed, analyzed, and executed, and CI asks for that."""
    families = {target.family: target for target in TARGETS.values()}
    assert set(families) == set(isa.FAMILIES)
    runs = [parse_target(name) for c in CPUS.values() for name in (c.target, *c.also)]
    emulated = [parse_target(tier.target) for tier in TIERS.values() if tier.emulated]
    demanded = [parse_target(name) for name, _ in DEMANDED]
    for family, found in families.items():
        assert isa.FAMILIES[family][1] == found.architecture
        assert found.machine("f32", 64).name == family
        assert family in {target.family for target in runs}
        assert family in {target.family for target in emulated} | {"avx2"}
        assert family in {target.family for target in demanded}
        with pytest.raises(ValueError, match="vector_bits=192 is none"):
            replace(found, vector_bits=192)


def test_names_of_vector_registers_are_the_machines() -> None:
    """A kernel's registers are named by its machine, whatever the architecture."""
    need_x86()
    for target, register in (("avx2", "ymm"), ("avx512", "zmm"), ("sve256", "z"), ("neon", "v")):
        kernel = jitgen.brgemm(8, 16, 8, target=target)
        assert kernel.target.machine("f32", 16).register == register
        assert f" {register}0" in kernel.listing()
