"""The command line: `jitgen kernel`, `show`, `analyze`, `export` and `targets`.

A command is a module with SUMMARY, USAGE, NOTES (shown below its options), `add_arguments(parser)`
and `run(arguments)`, which returns the exit code. This file finds the command and turns errors into
messages. Not here: what the commands do.
"""

from __future__ import annotations

import argparse
import os
import sys
from types import ModuleType
from typing import Any

import jitgen
from jitgen import doors
from jitgen.cli import analyze, export, kernel, show, targets
from jitgen.cli.terminal import BAD_ARGUMENTS, CANNOT_RUN
from jitgen.run.loader import ExecutableMemoryError

INTERRUPTED, PIPE_CLOSED = 128 + 2, 128 + 13
COMMANDS: dict[str, ModuleType] = {
    "kernel": kernel, "show": show, "analyze": analyze, "export": export, "targets": targets,
}  # fmt: skip

DESCRIPTION = """\
Batch-reduce GEMM kernels, C = epilogue(beta C + alpha sum of A_i B_i), generated as machine code.
"""
EPILOG = """\
examples:
  jitgen kernel 64 64 64 --batch 16          generate, check against float64, measure
  jitgen kernel 128 3072 64 --batch 12 --epilogue bias,gelu --isa avx2 --json
  jitgen kernel --shapes examples/resnet50.csv --dtype f64
  jitgen show 6 32 8 --isa sve256            the machine code with explanations
  jitgen show --layer "Lstm(16, 10, 64, 128)" --pass forward   what a layer runs
  jitgen analyze 64 64 64 --batch 16 --cpu neoverse-v1        what bounds it, predicted speed
  jitgen analyze 6 64 512 --cpu host --plot roofline.png      predicted beside measured
  jitgen analyze --layer "FullyConnected(64, 512, 1024)"        what bounds a layer's passes
  jitgen export specs.json -o build --targets avx2,avx512     a library for C and C++
  JITGEN_ISA=avx2 jitgen targets             what this CPU can run, the automatic choice capped

exit codes:
  0  done
  1  a result differs from the one in float64 by more than the error bound
  2  bad arguments
  3  the target cannot run on this host: kernels were generated, but not run
"""


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    style: dict[str, Any] = {"formatter_class": raw, "allow_abbrev": False}
    parser = argparse.ArgumentParser("jitgen", None, DESCRIPTION, EPILOG, **style)
    parser.add_argument("--version", action="version", version=f"jitgen {jitgen.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name, help=command.SUMMARY,
            description=f"{command.SUMMARY[0].upper()}{command.SUMMARY[1:]}.",
            usage=command.USAGE, epilog=command.NOTES + EPILOG, **style,
        )  # fmt: skip
        sub.add_argument("--json", action="store_true", help="print JSON")
        command.add_arguments(sub)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code. TypeError: argv holds no text."""
    if argv is not None:
        argv = [doors.text(f"argv[{i}]", x) for i, x in enumerate(doors.items("argv", argv))]
    if sys.stdout is None:  # closed by whoever runs this: nothing that is printed is wanted
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        arguments = _parser().parse_args(argv)
        if argv is None and arguments.command == "kernel":
            kernel.use_one_thread()
        code: int = COMMANDS[arguments.command].run(arguments)
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
    except OSError as error:  # a file that the user named
        named = error.filename if error.filename is not None else "standard output"
        code, message = BAD_ARGUMENTS, f"{named}: {error.strerror}"
    except (MemoryError, TypeError, ValueError) as error:
        code, message = BAD_ARGUMENTS, str(error)
    print(f"jitgen: error: {message}", file=sys.stderr)
    return code
