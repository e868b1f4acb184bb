"""The C header of an export: clean in every standard, stable numbers, look-up of kernels, and the
question what the CPU and its operating system can do."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from libraries import ARCHITECTURES, need_x86
from toolchain import STRICT, run, tool

import jitgen
from jitgen.objects.table import FEATURES, flag_bits, flags
from jitgen.run import cpu
from jitgen.types import DTYPES

BEST = "avx512" if not jitgen.targets()["avx512"] else "avx2"


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with kernels.h for each architecture."""
    folders = {}
    for architecture, targets in ARCHITECTURES.items():
        folders[architecture] = tmp_path_factory.mktemp(architecture)
        jitgen.export(
            {"small": [jitgen.brgemm(1, 2, 3, target=target) for target in targets]},
            folders[architecture],
        )
    return folders


# ---- header -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "compiler",
    [
        "gcc -std=c99", "gcc -std=c17", "clang -std=c99", "g++ -std=c++98", "g++ -std=c++20",
        "clang++ -std=c++11",
    ],
)  # fmt: skip
def test_header(headers: dict[str, Path], compiler: str) -> None:
    """The header alone is clean C and C++, also if it is included twice."""
    name, standard = compiler.split()
    strict = [*STRICT, *(["-Wold-style-cast"] if "++" in name else [])]
    source = '#include "kernels.h"\n#include "kernels.h"\nint main(void) { return 0; }\n'
    language = "c++" if "++" in name else "c"
    options = (standard, *strict, f"-I{headers['x86_64']}", "-fsyntax-only")
    run(name, *options, "-x", language, "-", input=source)


def test_header_refuses_other_processors(headers: dict[str, Path]) -> None:
    """A header for another architecture does not compile, and says so."""
    for compiler, path, text in (
        ("gcc", headers["aarch64"], "AArch64"),
        ("aarch64-linux-gnu-gcc", headers["x86_64"], "x86-64"),
    ):  # fmt: skip
        done = subprocess.run(
            [tool(compiler), "-fsyntax-only", f"-I{path}", "-include", "kernels.h", "-x", "c", "-"],
            input="", capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode and f"this library is for {text}" in done.stderr


def test_numbers_are_stable() -> None:
    """Programs were compiled with these numbers: names may be appended, none may change."""
    assert list(DTYPES)[:2] == ["f32", "f64"]
    assert FEATURES["x86_64"][:8] == (
        "avx", "fma", "osxsave", "avx2", "avx512f", "avx512dq", "avx512bw", "avx512vl",
    )  # fmt: skip
    assert FEATURES["aarch64"][:2] == ("sve", "sve2")
    own = "trans_a trans_b packed_b alpha beta strides ldr offset address"
    steps = (
        "bias bias_row residual relu relu_mask leaky_relu sigmoid tanh gelu gelu_tanh silu clip "
        "scale"
    )
    expected = {name: bit for bit, name in enumerate(own.split())}
    expected |= {name: bit for bit, name in enumerate(steps.split(), 16)}
    assert flag_bits() | expected == flag_bits()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ""), ({"lda": 9, "ldb": 9, "ldc": 9}, ""), ({"ldr": 9}, ""), ({"beta": 1}, "beta"),
        ({"alpha": 0}, "alpha"), ({"trans_a": True}, "trans_a"), ({"trans_b": True}, "trans_b"),
        ({"packed_b": True}, "packed_b"), ({"packed_b": 64}, "packed_b"),
        ({"packed_b": True, "stride_b": 0}, "packed_b strides"), ({"stride_a": 0}, "strides"),
        ({"stride_a": 2 * 4, "stride_b": 4 * 3}, ""), ({"stride_b": 13}, "strides"),
        ({"lda": 5, "trans_a": True, "stride_a": 20}, "trans_a"), ({"batch": "offset"}, "offset"),
        ({"batch": "address"}, "address"), ({"epilogue": ["residual"]}, "residual"),
        ({"epilogue": ["residual"], "ldr": 9}, "ldr residual"),
        ({"epilogue": [("scale", 2), "relu", "bias"]}, "bias relu scale"),
    ],
)  # fmt: skip
def test_flags(options: dict[str, Any], expected: str) -> None:
    """Flags say what shape and leading dimensions do not, and no more."""
    for target in ("avx2", "avx512"):
        spec = jitgen.brgemm(2, 3, 4, target=target, **options).spec
        assert flags(spec) == expected.split()


QUESTIONS = """
#include <stdio.h>
#include "kernels.h"
int main(void)
{
    const struct jitgen_library *library = kernels_library();
    struct jitgen_library other;
    printf("%u %u\\n", jitgen_cpu_features(), jitgen_cpu_features());
    printf("%s %d %d\\n", library->generator, (int)library->abi, (int)library->count);
#define ASK(...) do { const struct jitgen_entry *e = kernels_find(__VA_ARGS__); \\
    puts(e ? e->symbol : "none"); } while (0)
    ASK(8, 8, 8, 0, 0, 0, JITGEN_F32, 0);
    ASK(8, 8, 8, 8, 8, 8, JITGEN_F32, 0);
    ASK(8, 8, 8, 0, 0, 0, JITGEN_F64, 0);
    ASK(8, 8, 8, 9, 0, 0, JITGEN_F32, 0);
    ASK(8, 8, 8, 0, 0, 0, JITGEN_F32, JITGEN_BETA);
    ASK(4, 8, 16, 0, 0, 0, JITGEN_F32, JITGEN_TRANS_A | JITGEN_TRANS_B);
    ASK(5, 6, 7, 0, 0, 0, JITGEN_F32, JITGEN_CLIP);
    ASK(5, 6, 7, 0, 0, 0, JITGEN_F32, JITGEN_BIAS | JITGEN_RELU);
    puts(jitgen_get(library, 1000) ? "some" : "none");
    other = *library;
    other.abi = 2;
    puts(jitgen_get(&other, 0) || jitgen_find(&other, 8, 8, 8, 0, 0, 0, 0, 0) ? "some" : "none");
    return 0;
}
"""


def test_find(tmp_path: Path) -> None:
    """Kernels are found by exactly what they are; where several fit, none is."""
    need_x86()
    target = BEST
    jitgen.export(
        {
            "plain": jitgen.brgemm(8, 8, 8, target=target),
            "wide": jitgen.brgemm(8, 8, 8, lda=9, target=target),
            "both": jitgen.brgemm(4, 8, 16, trans_a=True, trans_b=True, target=target),
            "clip6": jitgen.brgemm(5, 6, 7, epilogue=[("clip", 0, 6)], target=target),
            "clip1": jitgen.brgemm(5, 6, 7, epilogue=[("clip", 0, 1)], target=target),
            "order": jitgen.brgemm(5, 6, 7, epilogue=["relu", "bias"], target=target),
        },
        tmp_path,
    )
    run("gcc", *STRICT, "-x", "c", "-", "-x", "none", f"-I{tmp_path}", tmp_path / "kernels.o",
        "-o", tmp_path / "p", input=QUESTIONS)  # fmt: skip
    bits, library, *found = run(tmp_path / "p").splitlines()
    first, second = map(int, bits.split())
    assert first == second
    seen = {name for i, name in enumerate(FEATURES["x86_64"]) if first >> i & 1}
    assert seen == cpu.features()
    assert library == f"jitgen {jitgen.__version__} 1 6"
    expected = ["plain", "plain", "none", "wide", "none", "both", "none", "order", "none", "none"]
    assert [x.removeprefix("kernels_").removesuffix(f"_{target}") for x in found] == expected


OTHER_CPU = """
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <cpuid.h>
static uint32_t xcr0;
static unsigned words[2][4];
static int fake_cpuid(unsigned leaf, unsigned subleaf, unsigned *a, unsigned *b, unsigned *c,
                      unsigned *d)
{
    const unsigned *found = words[leaf == 7];
    if (subleaf || (leaf == 7 && !found[1])) return 0;
    *a = found[0], *b = found[1], *c = found[2], *d = found[3];
    return 1;
}
@HEADER@
int main(int count, char **values)
{
    (void)count;
    words[0][2] = (unsigned)strtoul(values[1], NULL, 0);
    words[1][1] = (unsigned)strtoul(values[2], NULL, 0);
    xcr0 = (uint32_t)strtoul(values[3], NULL, 0);
    printf("%u\\n", jitgen_cpu_features());
    return 0;
}
"""


def test_other_cpus(headers: dict[str, Path], tmp_path: Path) -> None:
    """What CPUs and operating systems of other kinds have: CPUID and XCR0 are played to the
    header. A target counts only if the system keeps its registers."""
    text = (headers["x86_64"] / "kernels.h").read_text()
    asking = '__asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));'
    assert text.count(asking) == 1 and text.count("__get_cpuid_count") == 2
    text = text.replace(asking, "a = xcr0;").replace("__get_cpuid_count", "fake_cpuid")
    source = OTHER_CPU.replace("@HEADER@", text)
    program = tmp_path / "program"
    run("gcc", "-O1", "-x", "c", "-", "-o", program, input=source)
    avx, fma, osxsave = 1 << 28, 1 << 12, 1 << 27
    avx2, avx512 = 1 << 5, 1 << 16 | 1 << 17 | 1 << 30 | 1 << 31
    whole = avx | fma | osxsave
    for first, seventh, state, wanted in (
        (whole, avx2 | avx512, 0xE7, {"avx2", "avx512"}), (whole, avx2 | avx512, 7, {"avx2"}),
        (whole, avx2 | avx512, 0xE5, set()), (whole, avx2 | avx512, 0x67, {"avx2"}),
        (whole, avx2 | avx512, 3, set()), (whole, avx2, 0xE7, {"avx2"}), (whole, 0, 7, set()),
        (avx | fma, avx2 | avx512, 0xE7, set()), (avx | osxsave, avx2, 7, set()),
        (whole, avx2 | avx512 & ~(1 << 30), 0xE7, {"avx2"}), (0, 0, 0, set()),
    ):  # fmt: skip
        bits = int(run(program, str(first), str(seventh), str(state)))
        found = {name for i, name in enumerate(FEATURES["x86_64"]) if bits >> i & 1}
        targets = [jitgen.brgemm(1, 1, 1, target=name).target for name in ("avx2", "avx512")]
        assert {t.name for t in targets if set(t.features) <= found} == wanted
