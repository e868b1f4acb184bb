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
from jitgen.cli_kernel import BAD, BAD_ARGUMENTS, CANNOT_RUN, GOOD, OK, Request, colour, print_json
from jitgen.loader import ExecutableMemoryError

INTERRUPTED, PIPE_CLOSED = 128 + 2, 128 + 13

DESCRIPTION = """\
Batch-reduce GEMM kernels, C = epilogue(beta C + alpha sum of A_i B_i), generated as machine code.
"""
EPILOG = """\
examples:
  jitgen kernel 64 64 64 --batch 16          generate, check against float64, measure
  jitgen kernel 128 3072 64 --batch 12 --epilogue bias,gelu --isa avx2 --json
  jitgen kernel --shapes examples/resnet50.csv --dtype f64
  jitgen show 6 32 8 --isa sve256            the machine code with explanations
  JITGEN_ISA=avx2 jitgen targets             what this CPU can run, the automatic choice capped

exit codes:
  0  done
  1  a result differs from the one in float64 by more than the error bound
  2  bad arguments
  3  the target cannot run on this host: kernels were generated, but not run
"""
KERNEL_NOTES = """\
A file for --shapes has a header line with m,n,k and any of name, count_in_network, batch, dtype,
epilogue, alpha, beta, lda, ldb, ldc, trans_a, trans_b, packed_b, batch_kind and plan; options on
the command line hold where the file says nothing. Lines that begin with # are comments.

Percentages are of the peak of fused multiply-adds that the same run measures; a kernel's time is
that of a call from Python less that of a call of an empty kernel (very short kernels: the whole
call). The arrays are the same at each call, so small ones stay in the caches. NumPy, on one
thread as the kernel, does one matmul of A and B joined along k and the epilogue without gelu.

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


def _request(size: list[Any], asked: dict[str, Any], name: str = "", times: int = 1) -> Request:
    """`asked` holds isa and any of OPTIONS."""
    if len(size) != 3:
        raise ValueError(f"a kernel has three sizes, M N K; got {len(size)}")
    given = {name: asked[name] for name in OPTIONS if asked.get(name) is not None}
    count, kind = given.pop("batch", 1), given.pop("batch_kind", "stride")
    make = functools.partial(jitgen.brgemm, *size, batch=kind, target=asked["isa"], **given)
    return Request(name, times, count, make)


def _read_shapes(file: str, asked: dict[str, Any]) -> Iterator[Request]:
    with open(file, newline="", encoding="utf-8") as stream:
        rows = csv.DictReader([x for x in stream if x.strip() and not x.startswith("#")])
    columns = rows.fieldnames or []
    known = ["name", "m", "n", "k", "count_in_network", *OPTIONS]
    for column in ("m", "n", "k", *columns):
        if column not in columns:
            raise ValueError(f"{file}: column {column!r} is missing")
        if column not in known:
            raise ValueError(f"{file}: column {column!r} is not one of {', '.join(known)}")
    for row in rows:
        try:
            if None in row or None in row.values():
                raise ValueError(f"the header has {len(columns)} columns, this line has not")
            cells = {name: value.strip() for name, value in row.items() if value.strip()}
            *size, times = (
                _whole(name, cells.get(name, default))
                for name, default in (("m", ""), ("n", ""), ("k", ""), ("count_in_network", "1"))
            )
            options = {name: OPTIONS[name][0](cells[name]) for name in OPTIONS if name in cells}
            request = _request(size, {**asked, **options}, cells.get("name", ""), times)
            request.make()
        except (argparse.ArgumentTypeError, TypeError, ValueError) as error:
            where = row.get("name") or f"row {rows.line_num - 1}"
            raise ValueError(f"{file}: {where}: {error}") from None
        yield request


def _whole(name: str, text: str) -> int:
    if not text.isdigit():
        raise ValueError(f"{name}={text!r} is no whole number")
    return int(text)


# ---- commands -----------------------------------------------------------------------------------


def kernel(arguments: argparse.Namespace) -> int:
    """`jitgen kernel`: check and measure kernels."""
    file, seconds = arguments.shapes, arguments.seconds
    if not 0 < seconds < 3600:
        raise ValueError(f"--seconds {seconds:g} is not between 0 and 3600")
    if file and arguments.size:
        raise ValueError("give either M N K or --shapes, not both")
    given = vars(arguments)
    asked = list(_read_shapes(file, given)) if file else [_request(arguments.size, given)]
    if not asked:
        raise ValueError(f"{file}: the file has no line with a shape")
    return cli_kernel.run(asked, seconds, bool(file), arguments.json)


def show(arguments: argparse.Namespace) -> int:
    """`jitgen show`: print the listing."""
    kernel = _request(arguments.size, vars(arguments)).make()
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
    try:
        chosen, reason = cpu.host().name, ""
    except (RuntimeError, ValueError) as error:
        chosen, reason = "", str(error)
    if arguments.json:
        print_json({
            "cpu": cpu.name(), "features": features, "chosen": chosen or None, "why_none": reason,
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
    raw = argparse.RawDescriptionHelpFormatter
    style: dict[str, Any] = {"formatter_class": raw, "allow_abbrev": False}
    parser = argparse.ArgumentParser("jitgen", None, DESCRIPTION, EPILOG, **style)
    parser.add_argument("--version", action="version", version=f"jitgen {jitgen.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    one, many = "%(prog)s M N K [options]", "\n       %(prog)s --shapes FILE [options]"
    for name, usage, notes, what in (
        ("kernel", one + many, KERNEL_NOTES, "generate a kernel, check it and measure it"),
        ("show", one, "", "print the machine code of a kernel, explained"),
        ("targets", "%(prog)s [--json]", "", "list what this CPU can run"),
    ):
        sub = commands.add_parser(
            name, help=what, description=f"{what.capitalize()}.", usage=usage,
            epilog=notes + EPILOG, **style,
        )  # fmt: skip
        sub.add_argument("--json", action="store_true", help="print JSON")
        if name != "targets":
            _add_options(sub)
        if name == "kernel":
            sub.add_argument("--shapes", metavar="FILE", help="a table of kernels, as CSV")
            what = "time to measure a kernel for (0.3)"
            sub.add_argument("--seconds", type=float, metavar="S", default=0.3, help=what)
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    what = "C is M x N, A_i M x K, B_i K x N"
    parser.add_argument("size", type=int, nargs="*", metavar="M N K", help=what)
    parser.add_argument("--isa", metavar="TARGET", help="avx512, avx2, sve256 ... (the best here)")
    for name, (parse, takes, what) in OPTIONS.items():
        option = "--" + name.replace("_", "-")
        if takes:
            parser.add_argument(option, type=parse, metavar=takes, help=what)
        else:
            parser.add_argument(option, action="store_true", default=None, help=what)


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
    except OSError as error:  # the file of shapes
        code, message = BAD_ARGUMENTS, f"{error.filename}: {error.strerror}"
    except (MemoryError, TypeError, ValueError) as error:
        code, message = BAD_ARGUMENTS, str(error)
    print(f"jitgen: error: {message}", file=sys.stderr)
    return code
