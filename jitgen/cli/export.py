"""`jitgen export`: write kernels and layers as object, libraries, assembly source, C header and
manifest.

Not here: what is written (`jitgen.objects`), tables of shapes (`jitgen.cli.requests`).
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jitgen
from jitgen.cli.requests import read_shapes
from jitgen.cli.terminal import OK, print_json
from jitgen.objects.asked import own_name
from jitgen.primitives.layers.text import layer_of
from jitgen.run import cpu

SUMMARY = "write kernels and layers as a library for C and C++"
USAGE = """\
%(prog)s [SPECS] [--layer [NAME=]LAYER ...] -o DIR [--name NAME] [--targets LIST]
                     [--threads LIST] [--passes LIST] [--json]"""
NOTES = """\
SPECS is a JSON list of objects: the arguments of jitgen.brgemm (m, n and k; dtype, lda, ldb, ldc,
ldr, batch, stride_a, stride_b, alpha, beta, trans_a, trans_b, packed_b, epilogue, target, plan),
and name, the kernel's name in C; or a layer, with its name, its passes and threads (if they are
missing, those of the options) and its target:

  [{"name": "layer1", "m": 64, "n": 64, "k": 64, "epilogue": ["bias", ["clip", 0, 6]]},
   {"m": 6, "n": 32, "k": 8, "dtype": "f64", "beta": 1.0, "target": "avx2"},
   {"name": "fc1", "layer": "FullyConnected(64, 512, 1024)", "passes": ["forward"]}]

or a table of shapes as for jitgen kernel --shapes (a file that ends in .csv). What has no target of
its own is made for each of --targets. DIR gets NAME.o, libNAME.a, libNAME.so, NAME.s, NAME.h,
NAME.json (the manifest), NAMEConfig.cmake, NAMEConfigVersion.cmake and NAME.pc; docs/export.md says
how to use them. No compiler or linker is needed.

  jitgen export examples/c/specs.json -o build --targets avx2,avx512
  jitgen export examples/resnet50.csv -o build --name resnet50 --targets sve128,sve256,sve512
  jitgen export --layer 'fc1=FullyConnected(64, 512, 1024)' --threads 1,2 -o build --name net

"""

#: What a spec of a kernel may hold, and that of a layer
KEYS = ("name", *(key for key in inspect.signature(jitgen.brgemm).parameters if key != "assembler"))
LAYER_KEYS = ("name", "layer", "passes", "threads", "target")


class Asked(NamedTuple):
    """A kernel or a layer on one target, its name ("": none), and of a layer the passes and numbers
    of threads (None: those of the options)."""

    name: str
    value: Any
    passes: Any = None
    threads: Any = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    what = "kernels and layers, as JSON or CSV"
    parser.add_argument("specs", metavar="SPECS", nargs="?", help=what)
    what = "a layer, as it is made in Python (docs/primitives.md); may be given several times"
    parser.add_argument("--layer", metavar="[NAME=]LAYER", action="append", default=[], help=what)
    what = "where the files go; made if need be"
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help=what)
    what = "what files and C names begin with (kernels)"
    parser.add_argument("--name", default="kernels", help=what)
    what = "targets of what names none: avx2,avx512 or sve128,sve256 ... (the best here)"
    parser.add_argument("--targets", metavar="LIST", help=what)
    what = "on how many threads of the program the passes of layers are done: 1,2,4 (1)"
    parser.add_argument("--threads", metavar="LIST", default="1", help=what)
    what = "passes of layers that name none: forward,backward_data ... (all)"
    parser.add_argument("--passes", metavar="LIST", help=what)


def run(arguments: argparse.Namespace) -> int:
    """`jitgen export`: read the specs, generate, write."""
    targets = _list(arguments.targets) or [cpu.host().name]
    if arguments.specs is None and not arguments.layer:
        raise ValueError("SPECS: neither a file nor --layer is given")
    asked: list[Asked] = []
    if arguments.specs is not None:
        table = arguments.specs.lower().endswith(".csv")
        asked += (_read_table if table else _read_specs)(arguments.specs, targets)
    for text in arguments.layer:
        name, text = _named(text)
        asked += _layers(Asked(name, text), targets, {each.name for each in asked})
    passes, threads = _list(arguments.passes), _numbers(arguments.threads)
    by_name: dict[str, list[Any]] = {}
    for each in asked:
        by_name.setdefault(each.name, []).append(each.value)
    layers = [each for each in asked if not isinstance(each.value, jitgen.Kernel)]
    for one, other in itertools.combinations(layers, 2):
        how = [(each.threads, each.passes) for each in (one, other)]
        if one.name == other.name and how[0] != how[1]:
            raise ValueError(f"layer {one.name!r} stands there twice, with other passes or threads")
    manifest = jitgen.export(
        by_name, arguments.output, arguments.name,
        threads={each.name: each.threads or threads for each in layers},
        passes={each.name: found for each in layers if (found := each.passes or passes)},
    )  # fmt: skip
    if arguments.json:
        print_json(manifest)
    else:
        _show(arguments, manifest)
    return OK


def _show(arguments: argparse.Namespace, manifest: dict[str, Any]) -> None:
    """The files, and what is in them."""
    for file in (*manifest["files"], f"{arguments.name}.json"):
        print(Path(arguments.output) / file)
    print()
    width = max(len(each["symbol"]) for each in manifest["kernels"] + manifest["layers"])
    for each in manifest["kernels"]:
        spec = each["spec"]
        size = f"{spec['m']} x {spec['n']} x {spec['k']} {spec['dtype']}"
        print(f"{each['symbol']:{width}}  {size}, {each['code_bytes']} bytes: {each['computes']}")
    for each in manifest["layers"]:
        size = f"{each['code_bytes']} bytes and {each['data_bytes']} of data"
        print(f"{each['symbol']:{width}}  {size}: {each['computes']}")


def _list(text: str | None) -> list[str] | None:
    return None if text is None else [each.strip() for each in text.split(",")]


def _numbers(text: str) -> list[int]:
    for each in text.split(","):
        if not re.fullmatch(" *[0-9]{1,9} *", each):
            raise ValueError(f"threads={text!r}: {each!r} is no number, as in 1,2,4")
    return [int(each) for each in text.split(",")]


def _named(text: str) -> tuple[str, str]:
    """Name and text of a layer: "fc1=FullyConnected(...)", or without a name."""
    found = re.fullmatch(r" *(\w+) *=(.*)", text, re.DOTALL)
    return (found[1], found[2]) if found else ("", text)


def _layers(asked: Asked, targets: list[str], used: set[str]) -> Iterator[Asked]:
    """A layer, whose value is its text, on each of the targets."""
    made = [layer_of(asked.value, threads=1, target=target) for target in targets]
    name = asked.name or own_name(asked.value.partition("(")[0].strip(), used)
    for layer in made:
        yield asked._replace(name=name, value=layer)


def _read_table(file: str, targets: list[str]) -> Iterator[Asked]:
    """The kernels of a CSV file; their names become C names."""
    for target in targets:
        for request in read_shapes(file, {"isa": target}):
            name = re.sub(r"[^A-Za-z0-9_]", "_", request.name)
            yield Asked(name if not name[:1].isdigit() else f"_{name}", request.make())


def _read_specs(file: str, targets: list[str]) -> Iterator[Asked]:
    """The kernels and layers of a JSON file."""
    try:
        specs = json.loads(Path(file).read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None
    if not isinstance(specs, list):
        raise ValueError(f"{file}: it holds {_shown(specs)}; a list of kernels is wanted")
    used: set[str] = set()
    for number, spec in enumerate(specs):
        layer = isinstance(spec, dict) and "layer" in spec
        try:
            found = list(_make_layer(spec, targets, used) if layer else _make(spec, targets))
        except (TypeError, ValueError) as error:
            what = "layer" if layer else "kernel"
            raise ValueError(f"{file}: {what} {number}: {error}") from None
        used |= {each.name for each in found}
        yield from found


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


def _make_layer(spec: dict[str, Any], targets: list[str], used: set[str]) -> Iterator[Asked]:
    _check_keys(spec, LAYER_KEYS)
    for key, kind, what in (("passes", str, "names"), ("threads", int, "numbers")):
        value = spec.get(key, [kind()])
        if not (isinstance(value, list) and value and all(type(each) is kind for each in value)):
            raise ValueError(f"{key}={_shown(value)} is no list of {what}")
    target = spec.get("target")
    asked = Asked(_name_of(spec), spec["layer"], spec.get("passes"), spec.get("threads"))
    yield from _layers(asked, targets if target is None else [target], used)


def _make(spec: Any, targets: list[str]) -> Iterator[Asked]:
    if not isinstance(spec, dict):
        raise ValueError(f"{_shown(spec)} is no object, as in {{\"m\": 64, \"n\": 64, \"k\": 64}}")
    _check_keys(spec, KEYS)
    for key in ("m", "n", "k"):
        if key not in spec:
            raise ValueError(f"{key!r} is missing")
    arguments = {key: value for key, value in spec.items() if key not in ("name", "target")}
    asked = spec.get("target")
    for target in targets if asked is None else [asked]:
        yield Asked(_name_of(spec), jitgen.brgemm(**arguments, target=target))


def _check_keys(spec: dict[str, Any], keys: tuple[str, ...]) -> None:
    for key in spec:
        if key not in keys:
            raise ValueError(f"{key!r} is not one of {', '.join(keys)}")


def _name_of(spec: dict[str, Any]) -> str:
    name = spec.get("name", "")
    if not isinstance(name, str) or ("name" in spec and not name):
        raise ValueError(f"name={_shown(name)} is no name")
    return name
