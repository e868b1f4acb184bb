"""`jitgen show`: print a kernel in any format, two of them side by side, or a layer's streams.

Not here: how it is explained (`jitgen.inspect`), layers (`jitgen.cli.show_layer`).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from jitgen.cli.requests import (
    LAYER_OPTIONS,
    OPTIONS,
    add_layer_options,
    add_options,
    make_request,
    parse_plan,
    refuse,
)
from jitgen.cli.terminal import OK
from jitgen.emit.routine import Routine
from jitgen.gemm.kernel import Kernel
from jitgen.inspect.compare import compare, comparison_text, read_listing
from jitgen.inspect.formats import FORMATS, render
from jitgen.inspect.listing import as_values

SUMMARY = "print the machine code of a kernel, explained, the difference of two, or a layer"
USAGE = """\
%(prog)s M N K [options] [--format FORMAT] [-o FILE]
       %(prog)s M N K [options] --diff CHANGE [--diff CHANGE ...]
       %(prog)s A.json B.json
       %(prog)s --layer LAYER [--pass PASS [--calls N | --kernel N]] [--isa TARGET] [--threads N]"""
NOTES = """\
formats:
  text   for the eye: sections, registers, every instruction with its meaning
  asm    assembles to the same bytes with llvm-mc or GNU as
  bytes  the machine code itself, with its constants
  json   everything in text, for programs and for a later comparison
  html   one page that needs nothing else: loops fold, registers light up

The other kernel of --diff is the same request with the changes made: a target (avx512),
plan:OPTION=VALUE,... or NAME=VALUE for any option above (dtype=f64, epilogue=bias,relu,
trans_b=yes). A.json and B.json are two files of --json. docs/listing.md says how to read it all.

  jitgen show 64 64 64 --isa avx2 --diff avx512
  jitgen show 64 64 64 --isa avx2 --diff plan:rows=4,columns=16
  jitgen show 6 32 8 --format html --cpu znver4 -o kernel.html

A layer is a call as in Python, with literals as arguments. Without --pass all passes are listed;
with it the stream of one is told: its kernels by shape, its parts with their loops, and the first
--calls of each thread. --kernel N is one of these kernels, in any format.

  jitgen show --layer "Convolution(4, 64, 56, 56, 64, 3, padding=1)"
  jitgen show --layer "FullyConnected(64, 512, 1024, activation='relu')" --pass forward --isa sve256
  jitgen show --layer "Lstm(16, 10, 64, 128)" --pass backward --kernel 2 --format asm

"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    add_options(parser, size=_size_or_file)
    parser.add_argument("--format", choices=FORMATS, help="what to print (text)")
    parser.add_argument("--syntax", default="intel", help="of asm on x86: intel (default) or att")
    parser.add_argument("-o", "--output", metavar="FILE", help="write there instead of printing")
    what = "another kernel to compare with: this one with a change"
    parser.add_argument("--diff", metavar="CHANGE", action="append", help=what)
    what = "html: add the analysis for a CPU (jitgen analyze --help lists them)"
    parser.add_argument("--cpu", metavar="CPU", help=what)
    add_layer_options(parser)
    what = "of a pass: calls of each thread and part that are shown (4)"
    parser.add_argument("--calls", type=int, metavar="N", help=what)
    what = "of a pass: print its kernel of that number"
    parser.add_argument("--kernel", type=int, metavar="N", help=what)


def _size_or_file(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def run(arguments: argparse.Namespace) -> int:
    """`jitgen show`: print, or write to a file."""
    sizes, asked = arguments.size, vars(arguments)
    chosen = arguments.format or ("json" if arguments.json else "text")
    if arguments.json and chosen != "json":
        raise ValueError(f"--json and --format {chosen}: ask for one of them")
    if arguments.cpu is not None and chosen != "html":
        raise ValueError(f"--cpu {arguments.cpu} is for --format html")
    if arguments.layer is not None:
        return _show_layer(arguments, chosen)
    refuse(arguments, {**LAYER_OPTIONS, "calls": "--calls", "kernel": "--kernel"}, "--layer")
    files = [x for x in sizes if isinstance(x, str)]
    if files and (len(files) != 2 or len(sizes) != 2):
        raise ValueError(f"give three sizes M N K, or two files to compare; got {len(sizes)}")
    if files and arguments.diff:
        raise ValueError(f"--diff {arguments.diff[0]} is for sizes M N K, not for files")
    if files or arguments.diff:
        if chosen not in ("text", "json"):
            raise ValueError(f"--format {chosen}: a comparison is text or json")
        if files:
            left, right = (read_listing(file) for file in files)
        else:
            left = as_values(make_request(sizes, asked).make())
            right = as_values(make_request(sizes, _changed(asked, arguments.diff)).make())
        found = compare(left, right)
        _write(_json(found) if chosen == "json" else comparison_text(found), arguments.output)
        return OK
    _write_listing(make_request(sizes, asked).make(), chosen, arguments)
    return OK


def _show_layer(arguments: argparse.Namespace, chosen: str) -> int:
    from jitgen.cli import show_layer

    if arguments.cpu is not None:
        raise ValueError(f"--cpu {arguments.cpu}: jitgen analyze --layer says how fast a layer is")
    found = show_layer.show(arguments, chosen)
    if isinstance(found, Routine):
        _write_listing(found, chosen, arguments)
        return OK
    if arguments.syntax != "intel":
        raise ValueError(f"--syntax {arguments.syntax} is for --format asm")
    _write(found if isinstance(found, str) else _json(found), arguments.output)
    return OK


def _write_listing(routine: Routine, chosen: str, arguments: argparse.Namespace) -> None:
    if chosen == "bytes":
        _write(routine.code, arguments.output)
        return
    analysis = None
    if arguments.cpu is not None and isinstance(routine, Kernel):
        analysis = _analysis(routine, arguments)
    _write(render(routine, chosen, arguments.syntax, analysis), arguments.output)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def _analysis(kernel: Kernel, arguments: argparse.Namespace) -> list[str]:
    from jitgen.analysis import analyze

    return analyze(kernel, arguments.cpu, arguments.batch or 1).lines()


def _changed(asked: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    """The request with changes: TARGET, plan:OPTION=VALUE,... or NAME=VALUE."""
    result = dict(asked)
    for change in changes:
        name, equals, value = (part.strip() for part in change.partition("="))
        try:
            if change.startswith("plan:"):
                result["plan"] = {**(result["plan"] or {}), **parse_plan(change[5:])}
            elif not equals:
                result["isa"] = change
            elif name in OPTIONS:
                result[name] = OPTIONS[name][0](value)
            else:
                raise ValueError(f"{name!r} is not one of {', '.join(OPTIONS)}")
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise ValueError(f"--diff {change}: {error}") from None
    return result


def _write(content: str | bytes, file: str | None) -> None:
    if file is not None:
        data = content if isinstance(content, bytes) else content.encode()
        Path(file).write_bytes(data)
    elif isinstance(content, str):
        # piece by piece, so that a reader who stops early is noticed
        sys.stdout.writelines(content.splitlines(keepends=True))
    elif sys.stdout.isatty():
        raise ValueError("--format bytes: a terminal cannot show machine code; add -o FILE")
    else:
        sys.stdout.buffer.write(content)
