"""The analysis: counts against the listing's own text, bounds against hand-computed ones, the core
model against llvm-mca, and what `jitgen analyze` prints. No test asserts a measured speed.
The host: test_analysis_host.py.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import needs
import pytest
from random_cases import random_case

import jitgen
from jitgen import cli
from jitgen.analysis import CPUS, Report, analyze, execution, mca, memory, plot
from jitgen.analysis.core import COUNTS, CROSSED, Core
from jitgen.analysis.cpus import SOURCES, rate
from jitgen.analysis.execution import PHASES, Execution
from jitgen.analysis.loops import find_loops
from jitgen.gemm.kernel import Kernel
from jitgen.inspect.instructions import KINDS, Instruction, Memory
from jitgen.target import ANY_WIDTH, parse_target

#: every target with a CPU that runs it
PAIRS = [(target, c.name) for c in CPUS.values() for target in (c.target, *c.also)]
#: What counts as which kind, by the text of an instruction: written apart from the module under
#: test. The first that fits counts.
TEXTS = (
    ("FMA", r"vfn?madd|fml[as] |fmad "),
    ("broadcast", r"vbroadcast|vmovddup|ld1r[wd] "),
    ("load", r"v(mask)?mov\w+ [xyz]mm.*\[|ld1[wd] |ldr |ldur |ldp |mov r\w+, \w+ ptr|pop"),
    ("store", r"v(mov|extract)\w+ \w+ ptr|st1[wd] |st[urp]|mov \w+ ptr|push"),
    ("branch", r"j\w+ L|b(\.\w+)? L|cbn?z|ret"),
    ("other", r"mov [vs]\d"),
    ("integer", r"(add|sub|subs|dec|lea|mov|movz|movk|movn|cmp|cmn|mul|imul|xor|ubfm|lsr) [^z]"),
)  # fmt: skip


def _random_kernels(target: str, count: int) -> list[tuple[Kernel, Any]]:
    rng = random.Random(f"analysis {target}")
    found: list[tuple[Kernel, Any]] = []
    while len(found) < count:
        c = random_case(rng)
        try:
            kernel = jitgen.brgemm(
                c.m, c.n, c.k, c.dtype, target=target, batch=c.batch, alpha=c.alpha, beta=c.beta,
                trans_a=c.trans_a, trans_b=c.trans_b, epilogue=c.epilogue, plan=dict(c.plan),
            )  # fmt: skip
        except ValueError:  # a plan that needs too many registers
            continue
        found.append((kernel, c))
    return found


def _kind(text: str) -> str:
    return next((kind for kind, pattern in TEXTS if re.match(pattern, text)), "other")


# ---- counts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["avx2", "avx512", "sve128", "sve256", "sve512", "neon"])
def test_counts_of_inner_loops_are_those_of_the_text(target: str) -> None:
    seen = 0
    for kernel, _ in _random_kernels(target, 25):
        listing = kernel.listing()
        for loop in find_loops(kernel):
            texts = [line.text for line in loop.lines]
            assert all(text in listing for text in texts if " L" not in text)
            expected = Counter(map(_kind, texts))
            for text in texts:  # the memory operand of an FMA counts beside
                if _kind(text) == "FMA" and " ptr " in text:
                    expected["broadcast" if "{1to" in text else "load"] += 1
            assert loop.counts == {kind: expected[kind] for kind in KINDS}, texts
            assert loop.code_bytes == sum(len(line.code) for line in loop.lines)
            registers = set(re.findall(r"\b(?:[xyz]mm|[zvqds])(\d+)", " ".join(texts)))
            assert loop.registers == len(registers)
            seen += loop.counts["FMA"]
    assert seen > 100


@pytest.mark.parametrize("target", ["avx2", "avx512", "sve256", "neon"])
def test_fmas_executed_are_those_of_the_tiles(target: str) -> None:
    for m, n, k, batch in ((64, 64, 64, 16), (63, 31, 33, 7), (5, 5, 5, 3), (40, 70, 300, 2)):
        kernel = jitgen.brgemm(m, n, k, target=target)
        row = next(c for c in CPUS.values() if target in (c.target, *c.also))
        report = analyze(kernel, row, batch, other_models=False)
        lanes = kernel.target.machine("f32", n).lanes
        vectors = sum(r.size * r.repeat * -(-c.size // lanes) * c.repeat
                      for r, c in kernel.plan.tiles())  # fmt: skip
        assert report.executed["FMA"] == vectors * k * batch
        assert report.phases["reduction"] > 0.5 or batch < 4


@pytest.mark.parametrize(("target", "name"), PAIRS)
def test_skipping_passes_changes_no_count(
    target: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kernel, _ in _random_kernels(target, 8):
        for batch in (1, 5):
            totals = []
            for fewest in (execution.FEWEST, 10**9):
                monkeypatch.setattr(execution, "FEWEST", fewest)
                core = Core(CPUS[name], kernel.spec.dtype)
                Execution(kernel).walk(batch, core, 128)
                core.settle()
                totals.append(core.totals)
                monkeypatch.undo()
            # all but line crossings, whose pattern may be longer than the passes walked
            skipped, whole = ([round(x) for x in t[COUNTS:CROSSED]] for t in totals)
            assert skipped == whole
            cycles, all_cycles = (sum(t[:COUNTS]) for t in totals)
            assert cycles == pytest.approx(all_cycles, rel=0.05)


# ---- bounds -------------------------------------------------------------------------------------


def _bounds(target: str, name: str, **plan: int) -> tuple[Report, dict[str, float]]:
    kernel = jitgen.brgemm(12, plan["columns"], 64, target=target, plan=plan)
    report = analyze(kernel, name, 1)
    (loop,) = report.loops
    return report, loop.bounds


def test_bounds_by_hand_on_skylake() -> None:
    # 6 x 64 floats: 4 steps of 6 broadcasts, 4 loads of 64 bytes and 24 FMAs; two adds, dec, jne
    report, found = _bounds("avx512", "skylake-avx512", rows=6, columns=64, k_unroll=4)
    assert found["FMA pipes"] == 4 * 24 / 2
    assert found["load ports"] == 4 * (6 + 4) / 2
    assert found["L1 bandwidth"] == 4 * (6 * 4 + 4 * 64) / 128
    assert found["store ports"] == 0
    assert found["front end"] == (4 * (6 + 4 + 24) + 4) / 4
    assert found["FMA latency"] == 4 * 4
    assert found["L2 bandwidth"] == 0
    assert report.loops[0].binding == "FMA pipes" == report.binding
    assert report.loops[0].cycles == 48


def test_bounds_by_hand_on_a_chain_that_is_too_short() -> None:
    # one accumulator: each of 8 steps waits for the one before it
    kernel = jitgen.brgemm(
        1, 4, 64, target="sve128", plan={"rows": 1, "columns": 4, "k_unroll": 8, "k_split": 1}
    )
    (loop,) = analyze(kernel, "neoverse-v2").loops
    assert loop.loop.counts["FMA"] == 8 == loop.loop.counts["load"] == loop.loop.counts["broadcast"]
    assert loop.bounds["FMA pipes"] == 8 / 4
    assert loop.bounds["load ports"] == pytest.approx(16 / 3)
    assert loop.bounds["FMA latency"] == 8 * 2  # a sum is passed on after 2 of 4 cycles
    assert loop.binding == "FMA latency"
    assert loop.cycles == 16


def test_nothing_is_predicted_beyond_the_peak() -> None:
    for target, name in PAIRS:
        for kernel, c in _random_kernels(target, 8):
            report = analyze(kernel, name, max(1, c.count), other_models=False)
            assert 0 < report.percent < 100.5, c


@pytest.mark.parametrize(
    "name", ["skylake-avx512", "neoverse-n1", "neoverse-v1", "neoverse-v2", "a64fx"]
)
def test_core_model_agrees_with_llvm_mca(name: str) -> None:
    """To 4 %, for loops that are bound by FMA pipes, as every kernel of full tiles is."""
    if mca.find_llvm_mca() is None:
        needs.need("no llvm-mca of version 19 or newer")
    compared = 0
    for size, dtype in (((64, 64, 64), "f32"), ((48, 48, 48), "f32"), ((64, 64, 64), "f64")):
        kernel = jitgen.brgemm(*size, dtype, target=CPUS[name].target)
        for loop in analyze(kernel, name, 16).loops:
            theirs = next(o for o in loop.opinions if o.tool.startswith("llvm-mca"))
            assert theirs.cycles is not None, theirs.why
            assert loop.cycles == pytest.approx(theirs.cycles, rel=0.04)
            compared += 1
    assert compared >= 3


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", ["neoverse-n1", "apple-firestorm", "neoverse-v1", "neoverse-v2"])
def test_units_that_are_not_broadcast_leave_the_pipes_to_multiply(name: str, dtype: str) -> None:
    """On NEON only multiply-accumulates take vector pipes: 64 x 64 x 64 is within 3 % of their
    bound, and llvm-mca, which has no model of Apple's core, says so too."""
    report = analyze(jitgen.brgemm(64, 64, 64, dtype, target="neon"), name, 1)
    assert report.percent > 97 and report.binding == "FMA pipes"
    for loop in report.loops:
        counts = loop.loop.counts
        assert counts["FMA"] >= 80 and counts["broadcast"] == counts["other"] == 0
        loads = [i.load.bytes for i in loop.loop.instructions if i.load]
        assert set(loads) == {report.kernel.spec.a_bytes, 16}
        opinion = next((o for o in loop.opinions if o.cycles is not None), None)
        assert (opinion is None) == (name == "apple-firestorm" or mca.find_llvm_mca() is None)
        assert opinion is None or loop.bounds["FMA pipes"] / opinion.cycles > 0.97


def test_known_faults_of_other_models_are_named() -> None:
    if mca.find_llvm_mca() is None:
        needs.need("no llvm-mca of version 19 or newer")
    kernel = jitgen.brgemm(64, 64, 64, target="avx512")
    for name, word in (("icelake-server", "one 512-bit FMA"), ("znver4", "broadcast")):
        text = "\n".join(analyze(kernel, name, 16).lines())
        assert re.search(rf"llvm-mca \d+ \(known fault: .*{word}", text)
    assert "known fault" not in "\n".join(analyze(kernel, "skylake-avx512", 16).lines())


def test_answers_of_osaca_are_read() -> None:
    sums = "   48.0  0.00  20.0  20.0   3.00   15.0  16.0\n\nLoop-Carried Dependencies\n"
    assert mca.read_osaca(sums, "", 0).cycles == 48
    latency = sums.replace("16.0", "60.0")  # the last but one, the critical path, does not bind
    assert mca.read_osaca(latency, "", 0).cycles == 60
    crashed = mca.read_osaca("", "Traceback\nKeyError: \"Port '135' not in port list.\"\n", 1)
    assert crashed.cycles is None and "KeyError" in crashed.why
    missing = "WARNING: The performance data for 26 instructions is missing. Not ...\n" + sums
    assert mca.read_osaca(missing, "", 0).cycles is None
    assert mca.read_osaca("nothing", "", 0).cycles is None


# ---- the core model -----------------------------------------------------------------------------


def _cycles(name: str, instructions: list[Instruction], passes: int = 200) -> float:
    """Cycles of a pass in the steady state."""
    core = Core(CPUS[name], "f32")
    ends = []
    for _ in range(2):
        for _ in range(passes):
            core.run(instructions, {}, 0)
        core.settle()
        ends.append(core.totals[0])
    return (ends[1] - ends[0]) / passes


def _load(at: int, size: int) -> Instruction:
    return Instruction(
        "load", "move", 8 * size, (1,), (100 + at % 7,), Memory(1, at, size), None, "load", -1
    )


def _fma(acc: int, bits: int = 512) -> Instruction:
    return Instruction("FMA", "fma", bits, (acc, 130, 131), (acc,), None, None, "", acc)


def test_core_model_knows_latency_throughput_and_lines() -> None:
    assert _cycles("skylake-avx512", [_fma(100)]) == 4
    assert _cycles("skylake-avx512", [_fma(100 + i) for i in range(24)]) == 12
    assert _cycles("a64fx", [_fma(100 + i) for i in range(4)]) == 9
    # Zen 4: one 512-bit FMA a cycle or two of half the width, also where both are mixed
    mixed = [_fma(100 + i, 256 if i % 5 == 4 else 512) for i in range(25)]
    assert _cycles("znver4", mixed) == pytest.approx(22.5, rel=0.01)
    # loads of 32 bytes: two a cycle, one where they cross a line; alternating, each has its own
    assert _cycles("znver4", [_load(64 * i, 32) for i in range(12)]) == 6
    assert _cycles("znver4", [_load(64 * i + 48, 32) for i in range(12)]) == 12
    assert _cycles("znver4", [_load(64 * i + 48 * (i % 2), 32) for i in range(12)]) == 12


def test_a_mispredicted_branch_costs_its_penalty() -> None:
    core = Core(CPUS["znver4"], "f32")
    core.run([_fma(100)], {}, 0)
    core.settle()
    before = core.totals[0]
    core.mispredict(0)
    core.run([_fma(101)], {}, 0)
    core.settle()
    assert core.totals[0] - before >= CPUS["znver4"].mispredict


def test_each_level_of_memory_counts_what_does_not_fit() -> None:
    row = CPUS["znver4"]
    small = memory.traffic(jitgen.brgemm(16, 16, 16, target="avx512"), row, 1)
    assert (small.l1, small.l2, small.l3) == (0, 0, 0)
    # m = 1: B (256 KiB), A and C once, from L2 only
    row_kernel = jitgen.brgemm(1, 64, 64, target="avx512")
    once = memory.traffic(row_kernel, row, 16)
    assert once.l1 == once.touched == 16 * 64 * 65 * 4 + 64 * 4
    assert once.l2 == once.l3 == 0
    assert memory.traffic(row_kernel, row, 16 * 16).l2 > 0 == memory.traffic(row_kernel, row, 16).l3
    # a stride of 0: the same matrices again and again
    same = jitgen.brgemm(1, 64, 64, target="avx512", stride_a=0, stride_b=0)
    assert memory.traffic(same, row, 1000).touched == 64 * 65 * 4 + 64 * 4
    assert analyze(row_kernel, row, 16).binding == "L2 bandwidth"


def test_bounds_of_memory_levels_are_cycles() -> None:
    moved = memory.Traffic(l1=3200, scattered=0, l2=640, l3=0, touched=10**6)
    assert moved.cycles(CPUS["znver4"]) == {
        "L2 bandwidth": 100, "L3 bandwidth": 32, "memory bandwidth": 0
    }  # fmt: skip
    # the A64FX has no third level
    assert moved.cycles(CPUS["a64fx"])["memory bandwidth"] == 640 / CPUS["a64fx"].memory_bytes


def test_rows_of_the_table_are_complete() -> None:
    for name, row in CPUS.items():
        assert name == row.name and "" in row.sources
        for fact, text in row.sources.items():
            assert text.split(" (")[0] in SOURCES
            assert not fact or hasattr(row, fact), fact
        widest = max(parse_target(t).vector_bits for t in (row.target, *row.also))
        assert row.vector_bits == widest
        assert parse_target(row.target).machine("f32", ANY_WIDTH).vector_bits == widest
        assert rate(row.fma, widest) >= 1 and rate(row.fma, 32) >= rate(row.fma, widest)


def test_the_peak_is_that_of_the_targets_vectors() -> None:
    """Which is what a measured one is compared with, too."""
    for name, bits, flops in (
        ("skylake-avx512", 512, 64), ("skylake-avx512", 256, 32), ("znver4", 512, 32),
        ("znver4", 256, 32), ("neoverse-v2", 128, 32), ("a64fx", 512, 64),
    ):  # fmt: skip
        assert CPUS[name].flops_a_cycle(4, bits) == 2 * CPUS[name].flops_a_cycle(8, bits) == flops
    kernel = jitgen.brgemm(64, 64, 64, target="avx2")
    for name in ("skylake-avx512", "sapphirerapids", "znver3", "znver4"):
        assert analyze(kernel, name, 16, other_models=False).percent > 98


# ---- report, command line -----------------------------------------------------------------------


def test_json_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["analyze", "30", "50", "40", "--batch", "3", "--cpu", "a64fx", "--json"]
    assert cli.main([*command, "--epilogue", "bias,gelu", "--dtype", "f64"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["m"], values["n"], values["k"], values["batch"]) == (30, 50, 40, 3)
    assert values["target"] == "sve512" and values["cpu"]["name"] == "a64fx"
    predicted = values["predicted"]
    assert 0 < predicted["percent_of_peak"] < 100
    assert predicted["cycles"] == max(predicted["bounds"].values())
    assert set(predicted["phases"]) == set(PHASES)
    assert sum(predicted["phases"].values()) == pytest.approx(1)
    assert predicted["phases"]["epilogue"] > 0.01
    assert values["flops"] == 2 * 30 * 50 * 40 * 3
    assert values["measured"] is None
    assert set(values["executed"]) == set(KINDS)
    for loop in values["loops"]:
        assert set(loop["counts"]) == set(KINDS)
        assert loop["registers"] <= loop["registers_available"] == 32
        assert loop["bounds"][loop["binding"]] == max(loop["bounds"].values())
    assert "Fujitsu" in values["cpu"]["sources"]["all others"]


@pytest.mark.parametrize(("target", "name"), PAIRS)
def test_text_names_what_binds(target: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["analyze", "64", "64", "64", "--cpu", name, "--isa", target]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"64 x 64 x 64, batch 1, f32, {target} on {CPUS[name].title}")
    assert re.search(r"^predicted +\d+\.\d % of the FMA peak .* bound by ", text, re.MULTILINE)
    assert text.count("<- binding") == text.count("\ntile ")
    assert "modelled" in text and "measured  " not in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["8", "8", "8", "--cpu", "pentium"], "cpu='pentium' is not one of skylake-avx512"),
        (["8", "8", "8", "--cpu", "a64fx", "--isa", "avx2"], "target='avx2': Fujitsu A64FX"),
        (["8", "8", "8", "--cpu", "znver3", "--isa", "avx512"], "(znver3) runs avx2"),
        (["8", "8", "--cpu", "znver3"], "three sizes"),
        (["8", "8", "8", "--cpu", "znver3", "--batch", "0"], "batch=0"),
        (["8", "8", "8", "--cpu", "znver3", "--plot", "x.pdf"], "does not end in .png or .svg"),
        (["8", "8", "8", "--cpu", "znver3", "--plot", "no/x.png"], "folder does not exist"),
        (["8", "8", "8", "--cpu", "znver3", "--seconds", "0"], "--seconds 0"),
        (["8", "8", "8"], "--cpu"),
    ],
)
def test_errors_name_argument_and_rule(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["analyze", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_missing_llvm_mca_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mca, "LLVM_MCA", ())
    monkeypatch.setenv("PATH", "")
    mca.find_llvm_mca.cache_clear()
    try:
        assert cli.main(["analyze", "8", "8", "8", "--cpu", "neoverse-v2"]) == 0
        text = capsys.readouterr().out
        assert "core model" in text and "llvm-mca" not in text
    finally:
        mca.find_llvm_mca.cache_clear()


# ---- plot ---------------------------------------------------------------------------------------


def _need_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        needs.need("matplotlib is missing")


@pytest.mark.parametrize("name", ["znver4", "a64fx"])
def test_plots_are_pictures(name: str, tmp_path: Path) -> None:
    _need_matplotlib()
    kernel = jitgen.brgemm(64, 64, 64, target=CPUS[name].target)
    report = analyze(kernel, name, 16)
    png, svg = tmp_path / "roof.png", tmp_path / "roof.svg"
    plot.roofline(report, str(png))
    data = png.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR"
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    assert width >= 1000 and height >= 600
    assert data.endswith(b"IEND\xae\x42\x60\x82")
    plot.roofline(report, str(svg))
    comments = svg.read_text()
    assert ElementTree.fromstring(comments).tag.endswith("svg")
    for words in ("FMA peak", "L1 ", "L2 ", "memory ", "GB/s", "predicted"):
        assert f"<!-- {words}" in comments or words in comments, words
    assert ("L3 " in comments) == bool(CPUS[name].l3)


def test_a_plot_without_matplotlib_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    file = tmp_path / "x.png"
    assert cli.main(["analyze", "8", "8", "8", "--cpu", "znver4", "--plot", str(file)]) == 3
    assert "extra `plot`" in capsys.readouterr().err
    assert not file.exists()
