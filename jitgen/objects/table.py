"""What a library holds: kernels grouped by what they compute, their C names, the table of them.

A product is what one or more kernels compute, each for another target; C finds a product by its
number or by shape and flags, and takes the first of its kernels that the CPU can run. Not here: the
C side (`jitgen.objects.header`) and the files (`jitgen.objects.library`).
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from jitgen.emit.steps import STEPS
from jitgen.gemm.emitted import EmittedKernel
from jitgen.gemm.spec import KernelSpec
from jitgen.objects.elf import Fixup
from jitgen.run import cpu
from jitgen.types import DTYPES

#: Version of the argument struct and of the table; a header refuses a table of another version
ABI = 1
#: AArch64: word of the auxiliary vector, and its bit
A64_FEATURES = {"sve": (cpu.HWCAP, cpu.HWCAP_SVE), "sve2": (cpu.HWCAP2, cpu.HWCAP2_SVE2)}
#: CPU features by bit number, by architecture. New ones may only be appended.
FEATURES = {"x86_64": tuple(cpu.X86_FEATURES), "aarch64": tuple(A64_FEATURES)}
#: Flags of a kernel by bit number: what shape and leading dimensions do not say. New ones may only
#: be appended. Steps of the epilogue have bits of their own, above these.
FLAGS = (
    "trans_a", "trans_b", "packed_b", "alpha", "beta", "strides", "ldr", "offset", "address",
)  # fmt: skip
#: The fields of a table entry: C type, name, struct format
ENTRY = (
    ("jitgen_kernel", "kernel", "Q"), ("const char *", "symbol", "Q"),
    *(("int64_t", name, "q") for name in (
        "m", "n", "k", "lda", "ldb", "ldc", "ldr", "stride_a", "stride_b",
    )),
    ("double", "alpha", "d"), ("double", "beta", "d"),
    ("uint32_t", "id", "I"), ("uint32_t", "dtype", "I"), ("uint32_t", "flags", "I"),
    ("int32_t", "panel", "i"), ("uint32_t", "features", "I"), ("int32_t", "vector_bits", "i"),
)  # fmt: skip
ENTRY_FORMAT = "<" + "".join(form for _, _, form in ENTRY)
ENTRY_BYTES = struct.calcsize(ENTRY_FORMAT)
#: The head of a table: version, number of entries, their address, who made it
HEAD_FORMAT = "<qqQQ"
#: C names have this many characters at most
LONGEST_NAME = 100


@dataclass(frozen=True)
class Exported:
    """A kernel in a library."""

    kernel: EmittedKernel
    symbol: str
    product: int


@dataclass
class Product:
    """What kernels compute, its names (in C, in upper case behind the library's), the kernels."""

    names: list[str]
    kernels: list[EmittedKernel]


def default_strides(spec: KernelSpec) -> tuple[int, int]:
    """Strides of A and B whose matrices lie behind one another; 0 without strides."""
    if spec.batch != "stride":
        return 0, 0
    b = prod(spec.b_shape) if spec.panel else (spec.n if spec.trans_b else spec.k) * spec.ldb
    return spec.a_shape[0] * spec.lda, b


def flags(spec: KernelSpec) -> list[str]:
    """The flags that hold for a kernel, steps of the epilogue included."""
    holds = {
        "trans_a": spec.trans_a, "trans_b": spec.trans_b, "packed_b": spec.panel > 0,
        "alpha": spec.alpha != 1.0, "beta": spec.beta != 0.0,
        "strides": (spec.stride_a, spec.stride_b) != default_strides(spec),
        "ldr": spec.has("residual") and spec.ldr != spec.ldc,
        "offset": spec.batch == "offset", "address": spec.batch == "address",
    }  # fmt: skip
    return [name for name in FLAGS if holds[name]] + [s for s in STEPS if spec.has(s)]


def flag_bits() -> dict[str, int]:
    """Bit number of each flag."""
    steps = {name: step.bit for name, step in STEPS.items()}
    return {name: i for i, name in enumerate(FLAGS)} | steps


def _identity(spec: KernelSpec) -> str:
    """Equal for kernels that compute the same, whatever the target; panels may differ."""
    values = spec.described()
    panel = values.pop("panel")
    values["packed_b"] = panel > 0
    if spec.stride_b == default_strides(spec)[1]:
        del values["stride_b"]
    return json.dumps(values)


def group(kernels: Iterable[tuple[str, EmittedKernel]]) -> list[Product]:
    """Products of named kernels (a name may be ""), in order; best targets first, each once.

    Raises ValueError for names that clash, or that no C name can be made of, and for two kernels of
    one product and target with different code.
    """
    products: dict[str, Product] = {}
    used: dict[str, str] = {}
    for name, kernel in kernels:
        identity = _identity(kernel.spec)
        product = products.setdefault(identity, Product([], []))
        if name:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or len(name) > LONGEST_NAME:
                raise ValueError(
                    f"kernel name {name!r} is no C name of at most {LONGEST_NAME} characters"
                )
            if used.setdefault(name.upper(), identity) != identity:
                raise ValueError(f"kernel name {name!r} stands for two different kernels")
            if name.upper() not in map(str.upper, product.names):
                product.names.append(name)
        same = [k for k in product.kernels if k.target is kernel.target]
        if not same:
            product.kernels.append(kernel)
        elif same[0].code != kernel.code:
            raise ValueError(f"{kernel!r} is asked for twice, with different plans")
    for identity, product in products.items():
        spec = product.kernels[0].spec
        if not product.names:
            digits = hashlib.sha256(identity.encode()).hexdigest()[:8]
            product.names.append(f"{spec.dtype}_{spec.m}x{spec.n}x{spec.k}_{digits}")
        product.kernels.sort(key=lambda k: (-k.target.vector_bits, -len(k.target.features)))
    return list(products.values())


def name_kernels(library: str, products: Sequence[Product]) -> list[Exported]:
    """The kernels of all products with their symbols: library, product, target."""
    return [
        Exported(kernel, f"{library}_{product.names[0]}_{kernel.target.name}", number)
        for number, product in enumerate(products)
        for kernel in product.kernels
    ]


def feature_bits(architecture: str, names: Iterable[str]) -> int:
    """The bits of CPU features."""
    known = FEATURES[architecture]
    return sum(1 << known.index(name) for name in set(names))


def _entry(exported: Exported) -> bytes:
    spec, target = exported.kernel.spec, exported.kernel.target
    bits = flag_bits()
    values: dict[str, Any] = {
        **spec.described(), "kernel": 0, "symbol": 0, "id": exported.product,
        "dtype": list(DTYPES).index(spec.dtype),
        "flags": sum(1 << bits[flag] for flag in flags(spec)),
        "features": feature_bits(target.architecture, target.features),
        "vector_bits": target.vector_bits,
    }  # fmt: skip
    return struct.pack(ENTRY_FORMAT, *(values[name] for _, name, _ in ENTRY))


def table(
    library: str, kernels: Sequence[Exported], generator: str
) -> tuple[bytes, tuple[Fixup, ...], bytes]:
    """The table `library`_table (a head, then entries), its fixups, and the strings that it refers
    to, `library`_strings."""
    strings = f"{library}_strings"
    text = bytearray(generator.encode() + b"\0")
    data = bytearray(struct.pack(HEAD_FORMAT, ABI, len(kernels), 0, 0))
    fixups = [
        Fixup(16, "address", f"{library}_table", len(data)), Fixup(24, "address", strings),
    ]  # fmt: skip
    for each in kernels:
        at = len(data)
        fixups += [
            Fixup(at, "address", each.symbol), Fixup(at + 8, "address", strings, len(text)),
        ]  # fmt: skip
        data += _entry(each)
        text += each.symbol.encode() + b"\0"
    return bytes(data), tuple(fixups), bytes(text)
