"""The command line: `jitgen targets`, `jitgen kernel` and `jitgen show`.

This file parses arguments, turns errors into messages and holds the two short commands. Not here:
`jitgen kernel` (`jitgen.cli_kernel`) and the options of a kernel (`jitgen.cli_options`).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

import jitgen
from jitgen import cpu, listing
from jitgen.cli_kernel import kernel, use_one_thread
from jitgen.cli_options import (
    BAD,
    BAD_ARGUMENTS,
    CANNOT_RUN,
    GOOD,
    OK,
    OPTIONS,
    Style,
    print_json,
    requests,
)
from jitgen.loader import ExecutableMemoryError

INTERRUPTED = 128 + 2
PIPE_CLOSED = 128 + 13

EXIT_CODES = """\
exit codes:
  0  done
  1  a result differs from the one in float64 by more than the error bound
  2  bad arguments
  3  the target cannot run on this host: kernels were generated, but not run
"""
DESCRIPTION = """\
Batch-reduce GEMM kernels, C = epilogue(beta C + alpha sum of A_i B_i), generated as machine code.
"""
EXAMPLES = """\
examples:
  jitgen kernel 64 64 64 --batch 16          generate, check against float64, measure
  jitgen kernel --shapes examples/resnet50.csv
  jitgen show 6 32 8 --isa avx512            the machine code with explanations
  jitgen targets                             what this CPU can run

"""
KERNEL_USAGE = "%(prog)s M N K [options]\n       %(prog)s --shapes FILE [options]"
KERNEL_EXAMPLES = """\
examples:
  jitgen kernel 64 64 64 --batch 16
  jitgen kernel 128 3072 64 --batch 12 --epilogue bias,gelu --isa avx2
  jitgen kernel 56 64 64 --batch 9 --plan rows=4,columns=32 --json
  jitgen kernel --shapes examples/bert_base.csv --dtype f32

A file for --shapes has a header line with name,m,n,k and any of batch, dtype, epilogue, alpha,
beta, lda, ldb, ldc, trans_a, trans_b, packed_b, batch_kind, plan and count_in_network; options on
the command line hold where the file says nothing. Lines that begin with # are comments.

Percentages are of the peak of fused multiply-adds that the same run measures; a kernel's time is
that of a call from Python less that of a call of an empty kernel (very short kernels: the whole
call). The arrays are the same at each call, so small ones stay in the caches.

"""
SHOW_EXAMPLES = """\
examples:
  jitgen show 64 64 64 --isa avx512
  jitgen show 6 32 8 --isa sve256 --epilogue bias,relu
  jitgen show 6 32 8 --json

"""
TARGETS_EXAMPLES = """\
examples:
  jitgen targets
  JITGEN_ISA=avx2 jitgen targets             with the automatic choice capped

"""


def show(arguments: argparse.Namespace) -> int:
    """`jitgen show`: print the listing."""
    kernel = requests(arguments)[0].kernel()
    if not arguments.json:
        sys.stdout.write(kernel.listing())
        return OK
    rows = [
        {
            "kind": x.line.kind, "offset": x.line.offset, "bytes": x.line.code.hex(),
            "text": x.line.text, "depth": x.depth, "roles": x.roles,
        }
        for x in listing.lines(kernel)
    ]  # fmt: skip
    names = {r: listing.general_name(kernel.target, n) for r, n in kernel.roles.items()}
    print_json({
        "target": kernel.target.name, "computes": listing.describe(kernel.spec),
        "code_bytes": len(kernel.code), "plan": listing.plan_lines(kernel),
        "general_registers": names, "tiles": listing.tile_registers(kernel), "lines": rows,
    })  # fmt: skip
    return OK


def targets(arguments: argparse.Namespace) -> int:
    """`jitgen targets`: what can run here."""
    usable = jitgen.targets()
    cap = os.environ.get("JITGEN_ISA", "")
    try:
        chosen: str | None = cpu.host().name
        reason = ""
    except (RuntimeError, ValueError) as error:
        chosen, reason = None, str(error)
    features = sorted(cpu.features())
    if arguments.json:
        print_json({
            "cpu": cpu.name(), "features": features, "chosen": chosen, "why_none": reason,
            "JITGEN_ISA": cap or None,
            "targets": {name: {"usable": not why, "why_not": why} for name, why in usable.items()},
        })  # fmt: skip
        return OK
    style = Style()
    print(f"{'CPU':10} {cpu.name()}")
    print(f"{'features':10} {' '.join(features) or 'none that a target needs'}")
    if cap:
        print(f"{'JITGEN_ISA':10} {cap}: caps the automatic choice")
    print()
    for name, why in usable.items():
        state = style(GOOD, "runs here") if not why else "generates only: " + why
        mark = ", chosen by default" if name == chosen else ""
        print(f"{name:10} {state}{mark}")
    print(f"{'sve<bits>':10} SVE of any other length, 128 to 2048 bits in steps of 128")
    if reason:
        print(f"\n{style(BAD, 'no default target')}: {reason}")
    return OK


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 3600")
    return value


def _parser() -> argparse.ArgumentParser:
    def formatter(prog: str) -> argparse.RawDescriptionHelpFormatter:
        return argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=98)

    parser = argparse.ArgumentParser(
        prog="jitgen", description=DESCRIPTION, epilog=EXAMPLES + EXIT_CODES,
        formatter_class=formatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"jitgen {jitgen.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, what: str, epilog: str, usage: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=what, description=what[0].upper() + what[1:] + ".",
            epilog=epilog + EXIT_CODES, formatter_class=formatter, allow_abbrev=False,
            usage=usage,
        )  # fmt: skip
        sub.add_argument("--json", action="store_true", help="print JSON")
        return sub

    what = "generate a kernel, check it and measure it"
    measuring = command("kernel", what, KERNEL_EXAMPLES, KERNEL_USAGE)
    what = "print the machine code of a kernel, explained"
    showing = command("show", what, SHOW_EXAMPLES, "%(prog)s M N K [options]")
    command("targets", "list what this CPU can run", TARGETS_EXAMPLES, "%(prog)s [--json]")
    for sub in (measuring, showing):
        sub.add_argument(
            "size", type=int, nargs="*", metavar="M N K", help="C is M x N, A_i M x K, B_i K x N"
        )
        sub.add_argument("--isa", metavar="TARGET", help="avx512, avx2, sve256 ... (the best here)")
        for name, (parse, takes, what) in OPTIONS.items():
            option = "--" + name.replace("_", "-")
            if takes:
                sub.add_argument(option, type=_checked(parse), metavar=takes, help=what)
            else:
                sub.add_argument(option, action="store_true", default=None, help=what)
    measuring.add_argument("--shapes", metavar="FILE", help="a table of kernels, as CSV")
    measuring.add_argument(
        "--seconds", type=_positive, metavar="S", help="time to measure for (0.5; 0.2 a shape)"
    )
    return parser


def _checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """`parse` with its own message as argparse's, where it has one."""
    if parse in (int, float, str):
        return parse

    def checked(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    try:
        arguments = _parser().parse_args(argv)
        if argv is None and arguments.command == "kernel":
            use_one_thread()
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
    except MemoryError as error:
        return _error(f"not enough memory for the arrays: {error}", BAD_ARGUMENTS)
    except (RuntimeError, ExecutableMemoryError) as error:
        return _error(str(error), CANNOT_RUN)
    except OSError as error:  # the file of shapes
        return _error(f"{error.filename}: {error.strerror}", BAD_ARGUMENTS)
    except (TypeError, ValueError) as error:
        return _error(str(error), BAD_ARGUMENTS)


def _error(message: str, code: int) -> int:
    print(f"jitgen: error: {message}", file=sys.stderr)
    return code
