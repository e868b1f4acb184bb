"""The C header of a library: argument struct, table, choice of a kernel at run time, prototypes.

C99 and C++, for compilers that understand GNU's inline assembly (GCC, Clang). What does not depend
on the library stands between guards of its own, so that a program may include several headers.
Not here: what the table holds (`jitgen.objects.table`) and the code behind it; passes of layers
(`jitgen.objects.prototypes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import calcsize

from jitgen.emit.frame import ARGUMENTS
from jitgen.gemm.spec import KernelSpec
from jitgen.inspect.listing import describe
from jitgen.isa import sve
from jitgen.objects.prototypes import Function, prototypes
from jitgen.objects.table import (
    A64_FEATURES,
    ABI,
    ENTRY,
    FEATURES,
    Exported,
    Product,
    flag_bits,
    flags,
)
from jitgen.run import cpu
from jitgen.target import Target
from jitgen.types import DTYPES

#: C types and meanings of the words of the argument struct
_WORDS = {
    "a": ("const void *", "A_0, or an array of addresses of A_i (JITGEN_ADDRESS)"),
    "b": ("const void *", "the same of B"),
    "c": ("void *", "C"),
    "count": ("int64_t", "how many products are summed, 0 or more"),
    "a_offsets": ("const int64_t *", "JITGEN_OFFSET: A_i is at a + a_offsets[i] elements"),
    "b_offsets": ("const int64_t *", "the same of B"),
    "bias": ("const void *", "JITGEN_BIAS: n elements, added to every row of C"),
    "bias_row": ("const void *", "JITGEN_BIAS_ROW: m elements, added to every column"),
    "residual": ("const void *", "JITGEN_RESIDUAL: an m x n matrix, added to C"),
    "mask": ("void *", "JITGEN_RELU_MASK: receives a bit for each element of C"),
}
_MEANINGS = {
    "kernel": "call it: kernel(&args)", "symbol": "its name", "ldr": "of the residual",
    "stride_a": "elements from A_i to A_i+1", "stride_b": "the same of B",
    "id": "number of the product", "dtype": "enum jitgen_dtype", "flags": "JITGEN_TRANS_A ...",
    "panel": "columns of a panel of a packed B, else 0", "features": "JITGEN_CPU_...",
    "vector_bits": "of the target",
}  # fmt: skip
_FLAG_MEANINGS = {
    "trans_a": "A_i is stored k x m", "trans_b": "B_i is stored n x k",
    "packed_b": "B_i is stored in panels", "alpha": "alpha is not 1", "beta": "beta is not 0",
    "strides": "matrices of a batch do not lie right behind one another",
    "ldr": "the residual's leading dimension is not that of C",
    "offset": "batch by arrays of offsets", "address": "batch by arrays of addresses",
}  # fmt: skip

_CHECKS = {
    "x86_64": """\
#if !defined(__x86_64__) || defined(__ILP32__)
#error "this library is for x86-64"
#endif
#include <cpuid.h>
""",
    "aarch64": """\
#if !defined(__aarch64__) || defined(__ILP32__) || defined(__AARCH64EB__)
#error "this library is for AArch64, little-endian"
#endif
#include <sys/auxv.h>
""",
}
_FITS = {
    "x86_64": "(cpu & entry->features) == entry->features",
    "aarch64": """(cpu & entry->features) == entry->features
        && (!(entry->features & JITGEN_CPU_SVE) || entry->vector_bits == jitgen_vector_bits())""",
}

#: "rdvl x0, #1"
_RDVL = int.from_bytes(sve.FORMS["rdvl x imm"].encode((0, 1)), "little")
_FIND = """
/* Whether an entry's kernel can run, on a CPU with these features{thread}. */
static inline int jitgen_fits(const struct jitgen_entry *entry, uint32_t cpu)
{{
    return {fits};
}}

/* The best kernel of a product that can run here; NULL if there is none. */
static inline const struct jitgen_entry *jitgen_get(
    const struct jitgen_library *library, uint32_t id)
{{
    const uint32_t cpu = jitgen_cpu_features();
    int64_t i;
    if (library->abi != JITGEN_ABI) return NULL;
    for (i = 0; i < library->count; i++)
        if (library->entries[i].id == id && jitgen_fits(&library->entries[i], cpu))
            return &library->entries[i];
    return NULL;
}}

/* The same for the product of this shape, with exactly these flags. A leading dimension of 0 stands
   for rows without gaps. NULL also if several products fit, which differ in what the flags only
   hint at (strides, alpha, beta, order and parameters of the epilogue): ask for those by number. */
static inline const struct jitgen_entry *jitgen_find(
    const struct jitgen_library *library, int64_t m, int64_t n, int64_t k, int64_t lda,
    int64_t ldb, int64_t ldc, uint32_t dtype, uint32_t flags)
{{
    const struct jitgen_entry *found = NULL;
    int64_t i;
    if (library->abi != JITGEN_ABI) return NULL;
    if (lda == 0) lda = flags & JITGEN_TRANS_A ? m : k;
    if (ldb == 0) ldb = flags & JITGEN_TRANS_B ? k : n;
    if (ldc == 0) ldc = n;
    for (i = 0; i < library->count; i++) {{
        const struct jitgen_entry *entry = &library->entries[i];
        if (entry->m != m || entry->n != n || entry->k != k || entry->lda != lda
            || entry->ldb != ldb || entry->ldc != ldc || entry->dtype != dtype
            || entry->flags != flags)
            continue;
        if (found && found->id != entry->id) return NULL;
        found = entry;
    }}
    return found ? jitgen_get(library, found->id) : NULL;
}}
"""


def header(
    name: str, architecture: str, products: Sequence[Product], kernels: Sequence[Exported],
    functions: Sequence[Function], generator: str,
) -> str:  # fmt: skip
    """The text of `name`.h."""
    upper = name.upper()
    what = " and ".join(["kernels"] * bool(kernels) + ["passes of layers"] * bool(functions))
    lines = [
        f"/* {name}.h: {what} made by {generator} for {architecture}.",
        *(_about_kernels(name, products[0]) if kernels else []),
        "*/",
        f"#ifndef {upper}_H",
        f"#define {upper}_H",
        "",
        "#include <stddef.h>",
        "#include <stdint.h>",
        _CHECKS[architecture],
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
        "#ifndef JITGEN_ABI",
        f"#define JITGEN_ABI {ABI}",
        "",
        *_common(architecture),
        f"#elif JITGEN_ABI != {ABI}",
        '#error "headers of different versions of jitgen"',
        "#endif",
        "",
        *(_kernels(name, products, kernels) if kernels else []),
        *(prototypes(name, functions, _conditions(functions)) if functions else []),
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "#endif",
    ]
    return "\n".join(lines) + "\n"


def _about_kernels(name: str, product: Product) -> list[str]:
    return [
        "",
        "   A kernel computes C = epilogue(beta C + alpha sum over i < count of op(A_i) op(B_i)),",
        "   matrices row-major, sizes and leading dimensions in elements. Look a kernel up once",
        "   and keep it.",
        "",
        f"       const struct jitgen_entry *entry = {name}_get({name.upper()}_{_c(product)});",
        "       struct jitgen_args args = {0};",
        "       args.a = a, args.b = b, args.c = c, args.count = 1;",
        "       if (entry) entry->kernel(&args);",
    ]


def _conditions(functions: Sequence[Function]) -> dict[str, str]:
    """In C: whether `cpu`, the features, are those of a target, by its name."""
    targets = {p.target for function in functions for p in function.procedures}
    return {target.name: _condition(target) for target in targets}


def _condition(target: Target) -> str:
    features = sorted(target.features, key=FEATURES[target.architecture].index)
    wanted = " | ".join(f"JITGEN_CPU_{feature.upper()}" for feature in features)
    length = f" && jitgen_vector_bits() == {target.vector_bits}" if target.scalable else ""
    return f"!(~cpu & ({wanted or '0u'})){length}"


def _kernels(name: str, products: Sequence[Product], kernels: Sequence[Exported]) -> list[str]:
    """Numbers of the products, functions that find kernels, and these."""
    return [
        *_products(name, products),
        "/* The table of all kernels, best targets first. */",
        f"const struct jitgen_library *{name}_library(void);",
        "",
        "/* The best kernel of a product that can run here; NULL if there is none. */",
        f"static inline const struct jitgen_entry *{name}_get(enum {name}_product product)",
        "{",
        f"    return jitgen_get({name}_library(), product);",
        "}",
        "",
        "/* The same by shape: see jitgen_find. */",
        f"static inline const struct jitgen_entry *{name}_find(",
        "    int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc,",
        "    uint32_t dtype, uint32_t flags)",
        "{",
        f"    return jitgen_find({name}_library(), m, n, k, lda, ldb, ldc, dtype, flags);",
        "}",
        "",
        "/* The kernels themselves: 0 when done; see jitgen_kernel. */",
        *(f"int64_t {each.symbol}(const struct jitgen_args *args);" for each in kernels),
        "",
    ]


def _c(product: Product) -> str:
    return product.names[0].upper()


def _enumerator(name: str, value: int, meaning: str = "") -> str:
    comment = f" /* {meaning} */" if meaning else ""
    return f"    {name} = {value},{comment}"


def _common(architecture: str) -> list[str]:
    """What all libraries of an architecture share."""
    lines = ["/* What a kernel is called with; it reads only the words that it needs. */"]
    lines += _struct("jitgen_args", [(*_WORDS[word], word) for word in ARGUMENTS])
    lines += _offsets("jitgen_args", ARGUMENTS)
    refused = "; 1: nothing, for this thread's vectors have another length"
    lines += [
        f"/* Returns 0: done{refused if architecture == 'aarch64' else ''}. */",
        "typedef int64_t (*jitgen_kernel)(const struct jitgen_args *args);",
        "",
    ]
    dtypes = [_enumerator(f"JITGEN_{d.upper()}", i) for i, d in enumerate(DTYPES)]
    lines += ["enum jitgen_dtype {", *_last(dtypes), "};", ""]
    steps = "the epilogue has this step"
    bits = [
        _enumerator(f"JITGEN_{flag.upper()}", 1 << bit, _FLAG_MEANINGS.get(flag, steps))
        for flag, bit in flag_bits().items()
    ]
    lines += ["enum jitgen_flag {", *_last(bits), "};", ""]
    features = FEATURES[architecture]
    bits = [_enumerator(f"JITGEN_CPU_{f.upper()}", 1 << i) for i, f in enumerate(features)]
    lines += ["enum jitgen_cpu {", *_last(bits), "};", ""]
    fields = [(kind, _MEANINGS.get(field, ""), field) for kind, field, _ in ENTRY]
    lines += ["/* A kernel in a library. */", *_struct("jitgen_entry", fields)]
    sizes = [calcsize(f"<{form}") for _, _, form in ENTRY]
    places = {field: sum(sizes[:i]) for i, (_, field, _) in enumerate(ENTRY)}
    lines += _offsets("jitgen_entry", places)
    lines += ["struct jitgen_library {"]
    lines += [
        "    int64_t abi; /* JITGEN_ABI of the library */", "    int64_t count;",
        "    const struct jitgen_entry *entries;", "    const char *generator;", "};", "",
    ]  # fmt: skip
    lines += _features(architecture)
    thread = " in this thread" if architecture == "aarch64" else ""
    lines += _FIND.format(fits=_FITS[architecture], thread=thread).strip("\n").split("\n")
    return lines


def _last(enumerators: list[str]) -> list[str]:
    """Without the last comma, which C++98 does not have."""
    head, comma, tail = enumerators[-1].partition(",")
    assert comma
    return [*enumerators[:-1], head + tail]


def _struct(name: str, fields: Sequence[tuple[str, str, str]]) -> list[str]:
    lines = [f"struct {name} {{"]
    for kind, meaning, field in fields:
        space = "" if kind.endswith("*") else " "
        lines.append(f"    {kind}{space}{field};" + (f" /* {meaning} */" if meaning else ""))
    return [*lines, "};"]


def _offsets(struct: str, places: dict[str, int]) -> list[str]:
    """Declarations that do not compile unless the fields lie where the library has them."""
    return [
        f"typedef char {struct}_has_{field}_at_{at}"
        f"[offsetof(struct {struct}, {field}) == {at} ? 1 : -1];"
        for field, at in places.items()
    ] + [""]


def _features(architecture: str) -> list[str]:
    """`jitgen_cpu_features` and, for AArch64, `jitgen_vector_bits`."""
    lines = [
        "/* The features of this CPU that its operating system has enabled: enum jitgen_cpu. */",
        "static inline uint32_t jitgen_cpu_features(void)",
        "{",
    ]
    if architecture == "aarch64":
        lines.append("    uint32_t found = 0;")
        for feature, (word, bits) in A64_FEATURES.items():
            test = f"getauxval({word}) & {bits:#x}ul"
            lines.append(f"    if ({test}) found |= JITGEN_CPU_{feature.upper()};")
        return [
            *lines, "    return found;", "}", "",
            "/* Bits of this thread's SVE vectors; 0 without SVE. */",
            "static inline int32_t jitgen_vector_bits(void)", "{",
            "    int32_t bytes;",
            "    if (!(jitgen_cpu_features() & JITGEN_CPU_SVE)) return 0;",
            "    /* rdvl x0, #1, for assemblers that do not know it: no system call */",
            f'    __asm__ volatile(".inst {_RDVL:#x}\\n\\tmov %w0, w0" : "=r"(bytes) : : "x0");',
            "    return 8 * bytes;", "}", "",
        ]  # fmt: skip
    # asked once: in a virtual machine, cpuid takes microseconds
    lines += [
        "    static uint32_t known; /* 0: not asked yet */",
        "    uint32_t a = 0, b = 0, c = 0, d = 0, wide = 0;",
        "    uint32_t found = __atomic_load_n(&known, __ATOMIC_RELAXED);",
        "    if (found) return found;",
        "    found = 1u << 31;",
    ]
    leaves = dict.fromkeys((leaf, subleaf) for leaf, subleaf, _, _ in cpu.X86_FEATURES.values())
    for leaf in leaves:
        lines.append(f"    if (__get_cpuid_count({leaf[0]}, {leaf[1]}, &a, &b, &c, &d)) {{")
        for feature, (*where, register, bit) in cpu.X86_FEATURES.items():
            if tuple(where) == leaf:
                test = f"{'abcd'[register]} & 1u << {bit}"
                lines.append(f"        if ({test}) found |= JITGEN_CPU_{feature.upper()};")
        lines.append("    }")
    wide = [f"JITGEN_CPU_{f.upper()}" for f in cpu.X86_FEATURES if f.startswith("avx512")]
    return [
        *lines,
        "    /* which registers does the operating system keep? */",
        "    a = 0;",
        "    if (found & JITGEN_CPU_OSXSAVE)",
        '        __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));',
        *(f"    wide |= {each};" for each in wide),
        f"    if ((a & {cpu.ZMM_STATE:#x}) != {cpu.ZMM_STATE:#x}) found &= ~wide;",
        f"    if ((a & {cpu.YMM_STATE:#x}) != {cpu.YMM_STATE:#x}) found = 1u << 31;",
        "    __atomic_store_n(&known, found, __ATOMIC_RELAXED);",
        "    return found;", "}", "",
    ]  # fmt: skip


def _products(name: str, products: Sequence[Product]) -> list[str]:
    lines = ["/* What the kernels compute, by number. */", f"enum {name}_product {{"]
    enumerators = []
    for number, product in enumerate(products):
        meaning = _sentence(product.kernels[0].spec)
        for alias in product.names:
            enumerators.append(_enumerator(f"{name.upper()}_{alias.upper()}", number, meaning))
            meaning = ""
    return [*lines, *_last(enumerators), "};", ""]


def _sentence(spec: KernelSpec) -> str:
    """A product in a comment of one line."""
    b = "B in panels" if spec.panel else f"ldb {spec.ldb}"
    size = f"{spec.m} x {spec.n} x {spec.k} {spec.dtype}, lda {spec.lda}, {b}, ldc {spec.ldc}"
    strides = f", strides {spec.stride_a} and {spec.stride_b}" if "strides" in flags(spec) else ""
    return f"{size}{strides}: {describe(spec)}"
