"""`jitgen export`: write kernels as object, libraries, assembly source, C header and manifest.

Not here: what is written (`jitgen.objects`), tables of shapes (`jitgen.cli.requests`).
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jitgen
from jitgen.cli.requests import read_shapes
from jitgen.cli.terminal import OK, print_json
from jitgen.gemm.kernel import Kernel
from jitgen.run import cpu

SUMMARY = "write kernels as a library for C and C++"
USAGE = "%(prog)s SPECS -o DIR [--name NAME] [--targets LIST] [--json]"
NOTES = """\
SPECS is a JSON list of objects: the arguments of jitgen.brgemm (m, n and k; dtype, lda, ldb, ldc,
ldr, batch, stride_a, stride_b, alpha, beta, trans_a, trans_b, packed_b, epilogue, target, plan),
and name, the kernel's name in C:

  [{"name": "layer1", "m": 64, "n": 64, "k": 64, "epilogue": ["bias", ["clip", 0, 6]]},
   {"m": 6, "n": 32, "k": 8, "dtype": "f64", "beta": 1.0, "target": "avx2"}]

or a table of shapes as for jitgen kernel --shapes (a file that ends in .csv). A kernel without a
target is made for each of --targets. DIR gets NAME.o, libNAME.a, libNAME.so, NAME.s, NAME.h,
NAME.json (the manifest), NAMEConfig.cmake, NAMEConfigVersion.cmake and NAME.pc; docs/export.md says
how to use them. No compiler or linker is needed.

  jitgen export examples/c/specs.json -o build --targets avx2,avx512
  jitgen export examples/resnet50.csv -o build --name resnet50 --targets sve128,sve256,sve512

"""

#: What a spec may hold
KEYS = ("name", *(key for key in inspect.signature(jitgen.brgemm).parameters if key != "assembler"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("specs", metavar="SPECS", help="the kernels, as JSON or CSV")
    what = "where the files go; made if need be"
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help=what)
    what = "what files and C names begin with (kernels)"
    parser.add_argument("--name", default="kernels", help=what)
    what = "targets of kernels that name none: avx2,avx512 or sve128,sve256 ... (the best here)"
    parser.add_argument("--targets", metavar="LIST", help=what)


def run(arguments: argparse.Namespace) -> int:
    """`jitgen export`: read the specs, generate, write."""
    text = arguments.targets
    targets = [t.strip() for t in text.split(",")] if text is not None else [cpu.host().name]
    file = arguments.specs
    read = _read_table if file.lower().endswith(".csv") else _read_specs
    kernels = _by_name(read(file, targets))
    manifest = jitgen.export(kernels, arguments.output, arguments.name)
    if arguments.json:
        print_json(manifest)
        return OK
    for file in (*manifest["files"], f"{arguments.name}.json"):
        print(Path(arguments.output) / file)
    width = max(len(each["symbol"]) for each in manifest["kernels"])
    print()
    for each in manifest["kernels"]:
        spec = each["spec"]
        size = f"{spec['m']} x {spec['n']} x {spec['k']} {spec['dtype']}"
        print(f"{each['symbol']:{width}}  {size}, {each['code_bytes']} bytes: {each['computes']}")
    return OK


def _by_name(kernels: Iterator[tuple[str, Kernel]]) -> dict[str, list[Kernel]]:
    named: dict[str, list[Kernel]] = {}
    for name, kernel in kernels:
        named.setdefault(name, []).append(kernel)
    return named


def _read_table(file: str, targets: list[str]) -> Iterator[tuple[str, Kernel]]:
    """The kernels of a CSV file; their names become C names."""
    for target in targets:
        for request in read_shapes(file, {"isa": target}):
            name = re.sub(r"[^A-Za-z0-9_]", "_", request.name)
            yield name if not name[:1].isdigit() else f"_{name}", request.make()


def _read_specs(file: str, targets: list[str]) -> Iterator[tuple[str, Kernel]]:
    """The kernels of a JSON file."""
    try:
        specs = json.loads(Path(file).read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None
    if not isinstance(specs, list):
        raise ValueError(f"{file}: it holds {_shown(specs)}; a list of kernels is wanted")
    for number, spec in enumerate(specs):
        try:
            yield from _make(spec, targets)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: kernel {number}: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, whose keys must not repeat."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} stands twice in an object")
    return values


def _shown(value: Any) -> str:
    """A value in a message: whole if it is short."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _make(spec: Any, targets: list[str]) -> Iterator[tuple[str, Kernel]]:
    if not isinstance(spec, dict):
        raise ValueError(f"{_shown(spec)} is no object, as in {{\"m\": 64, \"n\": 64, \"k\": 64}}")
    for key in spec:
        if key not in KEYS:
            raise ValueError(f"{key!r} is not one of {', '.join(KEYS)}")
    for key in ("m", "n", "k"):
        if key not in spec:
            raise ValueError(f"{key!r} is missing")
    arguments = dict(spec)
    name = arguments.pop("name", "")
    if not isinstance(name, str) or ("name" in spec and not name):
        raise ValueError(f"name={_shown(name)} is no name")
    asked = arguments.pop("target", None)
    for target in targets if asked is None else [asked]:
        yield name, jitgen.brgemm(**arguments, target=target)
