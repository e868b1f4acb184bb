"""`--cpu host`: which core of the table a CPU is, or is nearest to, and what is said of it.

CPUs are played to the detection: what they say of themselves, and what they can run. Not here: the
analysis itself (test_analysis.py).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import cpuinfo
import needs
import pytest

import jitgen
from jitgen import cli
from jitgen.analysis import CPUS, analyze, host, mca, plot
from jitgen.cli.terminal import CANNOT_RUN, OK
from jitgen.run import cpu
from jitgen.target import parse_target
from tools.bench import analysis as bench_analysis

Patch = pytest.MonkeyPatch
Captured = pytest.CaptureFixture[str]

AVX2 = {"avx", "avx2", "fma", "osxsave"}
AVX512 = AVX2 | {"avx512f", "avx512vl", "avx512bw", "avx512dq"}
ZEN4 = AVX512 | {"avx512_vbmi2", "avx512_bf16", "gfni", "vaes", "sha_ni"}
SERVER = ZEN4 | {"avx512_fp16", "amx_tile", "avx_vnni", "serialize", "waitpkg", "movdiri"}
CLIENT = AVX2 | {"gfni", "vaes", "sha_ni", "avx_vnni", "serialize", "waitpkg", "movdiri"}
INTEL, AMD = "GenuineIntel", "AuthenticAMD"


class Played(NamedTuple):
    """A CPU: its names, the row that it should get, whether that is itself, and what runs."""

    name: str
    row: str
    known: bool
    target: str
    features: set[str]
    vendor: str = ""
    family: int = 0
    model: int = 0
    midr: int = 0
    bits: int = 0

    @property
    def architecture(self) -> str:
        """That of its row."""
        return parse_target(CPUS[self.row].target).architecture

    def play(self, monkeypatch: Patch, folder: Path) -> None:
        """Let this process find that CPU."""
        facts = {
            "vendor_id_raw": self.vendor, "family": self.family, "model": self.model,
            "flags": sorted(self.features), "brand_raw": self.name,
        }  # fmt: skip
        monkeypatch.setattr(cpuinfo, "get_cpu_info", lambda: facts)
        monkeypatch.setattr(cpu.loader, "architecture", lambda: self.architecture)
        monkeypatch.setattr(cpu, "features", lambda: frozenset(self.features))
        monkeypatch.setattr(cpu, "vector_length", lambda: self.bits)
        monkeypatch.setattr(cpu, "name", lambda: self.name)
        file = folder / "midr_el1"
        if self.midr:
            file.write_text(f"{self.midr:#018x}\n")
        monkeypatch.setattr(host, "_MIDR", file)


X86 = [
    # as their makers number them
    Played("Zen 3", "znver3", True, "avx2", AVX2 | {"vaes", "sha_ni"}, AMD, 0x19, 0x21),
    Played("Zen 4", "znver4", True, "avx512", ZEN4, AMD, 0x19, 0x61),
    Played("Zen 4 behind a hypervisor", "znver4", True, "avx2", AVX2, AMD, 0x19, 0x11),
    Played("Emerald Rapids", "sapphirerapids", True, "avx512", AVX512, INTEL, 6, 0xCF),
    Played("Cascade Lake", "skylake-avx512", True, "avx512", AVX512, INTEL, 6, 0x55),
    # not in the table
    Played("Zen 5", "znver4", False, "avx512", ZEN4 | {"avx_vnni", "movdiri"}, AMD, 0x1A, 0x02),
    Played("Zen 2", "znver3", False, "avx2", AVX2 | {"sha_ni"}, AMD, 0x17, 0x31),
    Played("Zen 3 of a new number", "znver3", False, "avx2", AVX2 | {"vaes", "sha_ni"}, AMD, 0x19,
           0xF0),
    Played("Zen 4 of a new number", "znver4", False, "avx512", ZEN4, AMD, 0x19, 0xF0),
    Played("Granite Rapids", "sapphirerapids", False, "avx512", SERVER, INTEL, 6, 0xAD),
    Played("Tiger Lake", "icelake-server", False, "avx512",
           AVX512 | {"avx512_vbmi2", "gfni", "vaes", "sha_ni", "movdiri"}, INTEL, 6, 0x8C),
    Played("Skylake-X of a new number", "skylake-avx512", False, "avx512", AVX512, INTEL, 6, 0xF0),
    Played("Haswell", "skylake-avx512", False, "avx2", AVX2, INTEL, 6, 0x3C),
    Played("Alder Lake", "sapphirerapids", False, "avx2", CLIENT, INTEL, 6, 0x97),
    Played("AVX2 and nothing else", "znver3", False, "avx2", AVX2, "CentaurHauls", 7, 59),
    Played("AVX-512 of a stranger", "znver4", False, "avx512", ZEN4, "CentaurHauls", 7, 60),
    Played("a core that says nothing", "skylake-avx512", False, "avx512", AVX512),
]  # fmt: skip
ARM = [
    Played("Graviton 3", "neoverse-v1", True, "sve256", {"sve"}, midr=0x411FD401, bits=256),
    Played("Grace", "neoverse-v2", True, "sve128", {"sve", "sve2"}, midr=0x410FD4F0, bits=128),
    Played("A64FX", "a64fx", True, "sve512", {"sve"}, midr=0x461F0010, bits=512),
    Played("Neoverse V3", "neoverse-v2", False, "sve128", {"sve", "sve2"}, midr=0x410FD840,
           bits=128),
    Played("SVE of 256 bits", "neoverse-v1", False, "sve256", {"sve", "sve2"}, midr=0x4E0F0010,
           bits=256),
    Played("SVE of 512 bits", "a64fx", False, "sve512", {"sve"}, bits=512),
    Played("SVE of 2048 bits", "a64fx", False, "neon", {"sve"}, bits=2048),
    Played("Graviton 2", "neoverse-n1", True, "neon", set(), midr=0x413FD0C1),
    Played("Graviton 3 without SVE", "neoverse-v1", True, "neon", set(), midr=0x411FD401),
    Played("Apple M1, asked on a slow core", "apple-firestorm", True, "neon", set(),
           midr=0x610F0220),
    Played("Apple M2", "apple-firestorm", False, "neon", set(), midr=0x610F0330),
    Played("Cortex-A72", "neoverse-n1", False, "neon", set(), midr=0x410FD083),
    Played("an Arm core that says nothing", "neoverse-n1", False, "neon", set()),
]  # fmt: skip
#: They run no target
WITHOUT = [
    Played("Nehalem, no AVX2", "skylake-avx512", False, "avx512", {"sse4_2"}, INTEL, 6, 0x1A),
    Played("K10, no AVX2", "znver3", False, "avx2", {"sse4a"}, AMD, 0x10, 4),
]


@pytest.mark.parametrize("played", [*X86, *ARM, *WITHOUT], ids=lambda p: p.name)
def test_every_cpu_gets_a_core(
    played: Played, monkeypatch: Patch, tmp_path: Path, capsys: Captured
) -> None:
    """The right one, a target that it runs, and a sentence exactly where it is only the nearest."""
    played.play(monkeypatch, tmp_path)
    row, note = host.find_host()
    assert (row.name, host.target_here(row)) == (played.row, played.target)
    assert bool(note) != played.known
    measured = []
    monkeypatch.setattr(host, "run", lambda *_: measured.append(1))
    monkeypatch.setattr(mca, "opinions", lambda *_: ())  # they take a process each
    wanted = CANNOT_RUN if played in WITHOUT else OK
    for options in ([], ["--json"]):
        assert cli.main(["analyze", "8", "8", "8", "--cpu", "host", *options]) == wanted
        told = capsys.readouterr()
        if options:
            values = json.loads(told.out)
            assert values["note"] == (note or None) and values["target"] == played.target
            assert values["cpu"]["name"] == played.row
        elif note:
            assert told.out.splitlines()[1] == note
            assert note.startswith(f"host CPU {played.name} (")
            assert note.endswith(
                f") is not in the table: figures are those of {played.row}, the nearest by features"
            )
        else:
            assert "not in the table" not in told.out
        assert ("analyzed but not measured" in told.err) == (played in WITHOUT)
    assert len(measured) == (0 if played in WITHOUT else 2)


def test_reports_from_python_say_it_too(monkeypatch: Patch, tmp_path: Path) -> None:
    """`analyze(..., "host")`, its plot and its values; for a named core there is nothing to say."""
    X86[5].play(monkeypatch, tmp_path)
    kernel = jitgen.brgemm(16, 16, 16, target="avx512")
    report = analyze(kernel, "host", other_models=False)
    assert "Zen 5 (AuthenticAMD family 26 model 2) is not in the table" in report.note
    assert report.note in report.lines() and report.as_values()["note"] == report.note
    assert analyze(kernel, "znver4", other_models=False).note == ""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        needs.need("matplotlib is missing")
    plot.roofline(report, str(tmp_path / "roof.svg"))
    assert "not in the table" in (tmp_path / "roof.svg").read_text()


def test_the_page_and_the_benchmark_say_it_too(
    monkeypatch: Patch, tmp_path: Path, capsys: Captured
) -> None:
    """`jitgen show --format html --cpu host`, and the comparison with measurements."""
    X86[5].play(monkeypatch, tmp_path)
    file = tmp_path / "page.html"
    asked = ["show", "8", "8", "8", "--isa", "avx512", "--format", "html", "--cpu", "host"]
    assert cli.main([*asked, "-o", str(file)]) == OK
    assert "not in the table" in file.read_text()
    capsys.readouterr()
    monkeypatch.setattr(bench_analysis, "_compared", lambda cases, *_: [(cases[0], 50.0, 50.0)])
    parser = bench_analysis.argparse.ArgumentParser()
    bench_analysis.add_arguments(parser)
    out = tmp_path / "rows.json"
    assert bench_analysis.run(parser.parse_args(["--json", str(out)])) == 0
    assert "not in the table: figures are those of znver4" in capsys.readouterr().out
    assert "not in the table" in json.loads(out.read_text())["note"]


def test_other_architectures_are_named(monkeypatch: Patch, capsys: Captured) -> None:
    """What is neither x86-64 nor AArch64 is like none of the table."""
    monkeypatch.setattr(cpu.loader, "architecture", lambda: "riscv64")
    assert cli.main(["analyze", "8", "8", "8", "--cpu", "host"]) == CANNOT_RUN
    told = capsys.readouterr().err
    assert "neither x86-64 nor AArch64" in told and "znver4" in told


def test_the_rows_that_are_told_apart_are_those_of_the_table() -> None:
    """Each row says who makes it and what it has."""
    assert list(host._ROWS) == list(CPUS)


def test_on_the_host_the_measured_percent_stands_beside(capsys: Captured) -> None:
    """Whatever CPU this is; measured percents are of the peak that predicted ones are of."""
    row, note = host.find_host()
    target = host.target_here(row)
    needs.need(cpu.why_not(parse_target(target)) or None, installable=False)
    command = ["analyze", "32", "32", "64", "--batch", "8", "--cpu", "host", "--seconds", "0.05"]
    assert cli.main([*command, "--json"]) == 0
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    measured = values["measured"]
    assert 0 < measured["percent"] < 110
    assert measured["flops_a_second"] * measured["seconds"] == pytest.approx(2 * 32 * 32 * 64 * 8)
    assert (values["target"], values["note"] or "") == (target, note)
    assert cli.main(command) == 0
    assert re.search(r"^measured +\d+\.\d %", capsys.readouterr().out, re.MULTILINE)
