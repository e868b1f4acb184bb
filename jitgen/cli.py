"""The command line: `jitgen targets`, `jitgen kernel` and `jitgen show`.

This file parses arguments and files of shapes, turns errors into messages and holds the two short
commands. Not here: what `jitgen kernel` does (`jitgen.cli_kernel`).
"""

from __future__ import annotations

import argparse
import csv
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jitgen
from jitgen import cli_kernel, cpu, listing
from jitgen.cli_kernel import (
    BAD,
    BAD_ARGUMENTS,
    CANNOT_RUN,
    GOOD,
    OK,
    Request,
    colour,
    print_json,
)
from jitgen.loader import ExecutableMemoryError

INTERRUPTED = 128 + 2
PIPE_CLOSED = 128 + 13

DESCRIPTION = """\
Batch-reduce GEMM kernels, C = epilogue(beta C + alpha sum of A_i B_i), generated as machine code.
"""
EXIT_CODES = """
exit codes:
  0  done
  1  a result differs from the one in float64 by more than the error bound
  2  bad arguments
  3  the target cannot run on this host: kernels were generated, but not run
"""
EXAMPLES = """\
examples:
  jitgen kernel 64 64 64 --batch 16          generate, check against float64, measure
  jitgen kernel --shapes examples/resnet50.csv
  jitgen show 6 32 8 --isa avx512            the machine code with explanations
  jitgen targets                             what this CPU can run
"""
KERNEL_EXAMPLES = """\
examples:
  jitgen kernel 64 64 64 --batch 16
  jitgen kernel 128 3072 64 --batch 12 --epilogue bias,gelu --isa avx2
  jitgen kernel 56 64 64 --batch 9 --plan rows=4,columns=32 --json
  jitgen kernel --shapes examples/bert_base.csv --dtype f32

A file for --shapes has a header line with m,n,k and any of name, count_in_network, batch, dtype,
epilogue, alpha, beta, lda, ldb, ldc, trans_a, trans_b, packed_b, batch_kind and plan; options on
the command line hold where the file says nothing. Lines that begin with # are comments.

Percentages are of the peak of fused multiply-adds that the same run measures; a kernel's time is
that of a call from Python less that of a call of an empty kernel (very short kernels: the whole
call). The arrays are the same at each call, so small ones stay in the caches. NumPy has one
thread, as the kernel has.
"""
SHOW_EXAMPLES = """\
examples:
  jitgen show 64 64 64 --isa avx512
  jitgen show 6 32 8 --isa sve256 --epilogue bias,relu --json
"""
TARGETS_EXAMPLES = """\
examples:
  jitgen targets
  JITGEN_ISA=avx2 jitgen targets             with the automatic choice capped
"""


# ---- kernels asked for --------------------------------------------------------------------------


def parse_epilogue(text: str) -> tuple[Any, ...]:
    """The steps of "bias,relu,clip:0:6"."""
    steps = []
    for item in filter(None, text.split(",")):
        name, *values = item.strip().split(":")
        steps.append((name, *map(_number, values)))
    return tuple(steps)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        message = f"epilogue parameter {text!r} is no number"
        raise argparse.ArgumentTypeError(message) from None


def parse_plan(text: str) -> dict[str, Any]:
    """The overrides of "rows=6,order=mn"."""
    result: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise argparse.ArgumentTypeError(f"{item!r} is not of the form name=value")
        result[name] = int(value) if value.lstrip("-").isdigit() else value
    return result


def parse_flag(text: str) -> bool:
    """A yes or no in a file."""
    if text not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither yes nor no")
    return text == "yes"


#: What a kernel can be asked: name -> (parser, what it takes, help); flags take nothing
OPTIONS: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "batch": (int, "N", "how many products are summed (1)"),
    "dtype": (str, "TYPE", "f32 (default) or f64"),
    "epilogue": (parse_epilogue, "STEPS", "applied to C before the store: bias,relu,clip:0:6"),
    "alpha": (float, "X", "factor of the products (1)"),
    "beta": (float, "X", "factor of the old C (0)"),
    "lda": (int, "N", "elements from a row of A to the next"),
    "ldb": (int, "N", "elements from a row of B to the next"),
    "ldc": (int, "N", "elements from a row of C to the next"),
    "trans_a": (parse_flag, "", "A is stored k x m"),
    "trans_b": (parse_flag, "", "B is stored n x k"),
    "packed_b": (parse_flag, "", "B is stored in panels as wide as a register tile"),
    "batch_kind": (str, "KIND", "stride (default), offset or address"),
    "plan": (parse_plan, "PLAN", "overrides, to tune: rows=6,columns=16,k_unroll=4"),
}


def _request(
    size: list[int], options: dict[str, Any], isa: str | None, name: str = "", times: int = 1
) -> Request:
    if len(size) != 3:
        raise ValueError(f"a kernel has three sizes, M N K; got {len(size)}")
    given = {name: value for name, value in options.items() if value is not None}
    count = given.pop("batch", 1)
    kind = given.pop("batch_kind", "stride")
    make = functools.partial(jitgen.brgemm, *size, batch=kind, target=isa, **given)
    return Request(name, times, count, make)


def _read_shapes(file: str, given: dict[str, Any], isa: str | None) -> Iterator[Request]:
    with open(file, newline="", encoding="utf-8") as stream:
        rows = csv.DictReader([x for x in stream if x.strip() and not x.startswith("#")])
    columns = rows.fieldnames or []
    known = ["name", "m", "n", "k", "count_in_network", *OPTIONS]
    for column in columns:
        if column not in known:
            raise ValueError(f"{file}: column {column!r} is not one of {', '.join(known)}")
    for column in ("m", "n", "k"):
        if column not in columns:
            raise ValueError(f"{file}: column {column!r} is missing")
    for row in rows:
        where = f"{file}: {row.get('name') or f'row {rows.line_num - 1}'}"
        try:
            if None in row or None in row.values():
                raise ValueError(f"the header has {len(columns)} columns, this line has not")
            cells = {name: value.strip() for name, value in row.items() if value.strip()}
            *size, times = (_whole(name, cells) for name in ("m", "n", "k", "count_in_network"))
            options = {name: OPTIONS[name][0](cells[name]) for name in OPTIONS if name in cells}
            request = _request(size, {**given, **options}, isa, cells.get("name", ""), times)
            request.make()
        except (argparse.ArgumentTypeError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from None
        yield request


def _whole(name: str, cells: dict[str, str]) -> int:
    text = cells.get(name, "1" if name == "count_in_network" else "")
    if not text.isdigit():
        raise ValueError(f"{name}={text!r} is no whole number")
    return int(text)


# ---- commands -----------------------------------------------------------------------------------


def kernel(arguments: argparse.Namespace) -> int:
    """`jitgen kernel`: check and measure kernels."""
    given = {name: getattr(arguments, name) for name in OPTIONS}
    file, seconds = arguments.shapes, arguments.seconds
    if not 0 < seconds < 3600:
        raise ValueError(f"--seconds {seconds:g} is not between 0 and 3600")
    if not file:
        asked = [_request(arguments.size, given, arguments.isa)]
        return cli_kernel.run(asked, seconds, False, arguments.json)
    if arguments.size:
        raise ValueError("give either M N K or --shapes, not both")
    asked = list(_read_shapes(file, given, arguments.isa))
    if not asked:
        raise ValueError(f"{file}: the file has no line with a shape")
    return cli_kernel.run(asked, seconds, True, arguments.json)


def show(arguments: argparse.Namespace) -> int:
    """`jitgen show`: print the listing."""
    given = {name: getattr(arguments, name) for name in OPTIONS}
    kernel = _request(arguments.size, given, arguments.isa).make()
    if arguments.json:
        print_json(listing.as_values(kernel))
    else:
        sys.stdout.write(kernel.listing())
    return OK


def targets(arguments: argparse.Namespace) -> int:
    """`jitgen targets`: what can run here."""
    usable = jitgen.targets()
    cap = os.environ.get("JITGEN_ISA")
    features = sorted(cpu.features())
    chosen, reason = None, ""
    try:
        chosen = cpu.host().name
    except (RuntimeError, ValueError) as error:
        reason = str(error)
    if arguments.json:
        print_json({
            "cpu": cpu.name(), "features": features, "chosen": chosen, "why_none": reason,
            "JITGEN_ISA": cap,
            "targets": {name: {"usable": not why, "why_not": why} for name, why in usable.items()},
        })  # fmt: skip
        return OK
    print(f"CPU        {cpu.name()}")
    print(f"features   {' '.join(features) or 'none that a target needs'}\n")
    default = ", chosen by default" + (f" under JITGEN_ISA={cap}" if cap else "")
    for name, why in usable.items():
        state = "generates only: " + why if why else colour(GOOD, "runs here")
        print(f"{name:10} {state}{default if name == chosen else ''}")
    print("sve<bits>  SVE of any other length, 128 to 2048 bits in steps of 128")
    if reason:
        print(f"\n{colour(BAD, 'no default target')}: {reason}")
    return OK


# ---- arguments and errors -----------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    make = functools.partial(
        argparse.ArgumentParser, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser = make(prog="jitgen", description=DESCRIPTION, epilog=EXAMPLES + EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"jitgen {jitgen.__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=make
    )

    def command(name: str, what: str, usage: str, epilog: str) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = commands.add_parser(
            name, help=what, description=f"{what.capitalize()}.", usage=f"%(prog)s {usage}",
            epilog=epilog + EXIT_CODES,
        )  # fmt: skip
        sub.add_argument("--json", action="store_true", help="print JSON")
        return sub

    usage = "M N K [options]\n       %(prog)s --shapes FILE [options]"
    measuring = command(
        "kernel", "generate a kernel, check it and measure it", usage, KERNEL_EXAMPLES
    )
    what = "print the machine code of a kernel, explained"
    showing = command("show", what, "M N K [options]", SHOW_EXAMPLES)
    command("targets", "list what this CPU can run", "[--json]", TARGETS_EXAMPLES)
    for sub in (measuring, showing):
        what = "C is M x N, A_i M x K, B_i K x N"
        sub.add_argument("size", type=int, nargs="*", metavar="M N K", help=what)
        sub.add_argument("--isa", metavar="TARGET", help="avx512, avx2, sve256 ... (the best here)")
        for name, (parse, takes, what) in OPTIONS.items():
            option = "--" + name.replace("_", "-")
            if takes:
                sub.add_argument(option, type=parse, metavar=takes, help=what)
            else:
                sub.add_argument(option, action="store_true", default=None, help=what)
    measuring.add_argument("--shapes", metavar="FILE", help="a table of kernels, as CSV")
    measuring.add_argument(
        "--seconds", type=float, metavar="S", default=0.3, help="time to measure a kernel for (0.3)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    try:
        arguments = _parser().parse_args(argv)
        if argv is None and arguments.command == "kernel":
            cli_kernel.use_one_thread()
        code = {"kernel": kernel, "show": show, "targets": targets}[arguments.command](arguments)
        sys.stdout.flush()
        return code
    except SystemExit as end:  # argparse has printed help or its error
        return end.code if isinstance(end.code, int) else BAD_ARGUMENTS
    except BrokenPipeError:
        # whoever read the output has seen enough; keep the interpreter's last flush quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except (RuntimeError, ExecutableMemoryError) as error:
        code, message = CANNOT_RUN, str(error)
    except MemoryError as error:
        code, message = BAD_ARGUMENTS, f"not enough memory for the arrays: {error}"
    except OSError as error:  # the file of shapes
        code, message = BAD_ARGUMENTS, f"{error.filename}: {error.strerror}"
    except (TypeError, ValueError) as error:
        code, message = BAD_ARGUMENTS, str(error)
    print(f"jitgen: error: {message}", file=sys.stderr)
    return code
