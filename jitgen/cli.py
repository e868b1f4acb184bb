"""The command line: `jitgen targets`, `jitgen kernel` and `jitgen show`.

This file parses arguments, prints errors and holds the two short commands; `jitgen kernel` stands in
`jitgen.cli_kernel`. Not here: anything that a program could not do through `jitgen.brgemm`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jitgen
from jitgen import cpu, listing
from jitgen.loader import ExecutableMemoryError

OK, WRONG, BAD_ARGUMENTS, CANNOT_RUN = range(4)
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
that of a call from Python less that of a call of an empty kernel. The arrays are the same at each
call, so small ones stay in the caches.

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


def parse_epilogue(text: str) -> tuple[Any, ...]:
    """The steps of "bias,relu,clip:0:6"."""
    steps = []
    for item in filter(None, text.split(",")):
        name, *values = item.strip().split(":")
        steps.append((name, *map(_number, values)))
    return tuple(steps)


def parse_plan(text: str) -> dict[str, Any]:
    """The overrides of "rows=6,order=mn"."""
    result: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise ValueError(f"--plan {text}: {item!r} is not of the form name=value")
        result[name] = int(value) if value.lstrip("-").isdigit() else value
    return result


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"epilogue parameter {text!r} is no number") from None


def parse_flag(text: str) -> bool:
    """A yes or no in a file."""
    if text.lower() in ("1", "true", "yes"):
        return True
    if text.lower() in ("0", "false", "no"):
        return False
    raise ValueError(f"{text!r} is neither yes nor no")


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


@dataclass
class Request:
    """A kernel that the user wants, with the batch it is called with."""

    m: int
    n: int
    k: int
    options: dict[str, Any]
    isa: str | None = None
    name: str = ""
    times: int = 1
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Products summed in a call."""
        return int(self.options.get("batch", 1))

    def kernel(self) -> jitgen.Kernel:
        """The kernel, from the cache if it is there."""
        given = {name: value for name, value in self.options.items() if name != "batch"}
        if "batch_kind" in given:
            given["batch"] = given.pop("batch_kind")
        return jitgen.brgemm(self.m, self.n, self.k, target=self.isa, **given)


def requests(arguments: argparse.Namespace) -> list[Request]:
    """The kernels asked for. Raises ValueError that names what is wrong."""
    given = {name: getattr(arguments, name) for name in OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    sizes = arguments.size
    file = getattr(arguments, "shapes", None)
    if file and sizes:
        raise ValueError("give either M N K or --shapes, not both")
    if file:
        return list(_read_shapes(file, given, arguments.isa))
    if len(sizes) != 3:
        raise ValueError(f"a kernel has three sizes, M N K; got {len(sizes)}")
    return [Request(*sizes, given, arguments.isa)]


def _read_shapes(file: str, given: dict[str, Any], isa: str | None) -> Iterator[Request]:
    with open(file, newline="", encoding="utf-8") as stream:
        text = [line for line in stream if line.strip()]
    numbered = [(i, line) for i, line in enumerate(text, 1) if not line.startswith("#")]
    rows = csv.DictReader(line for _, line in numbered)
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
            m, n, k, times = (_whole(name, cells) for name in ("m", "n", "k", "count_in_network"))
            options = {name: OPTIONS[name][0](cells[name]) for name in OPTIONS if name in cells}
            request = Request(m, n, k, {**given, **options}, isa, cells.get("name", ""), times)
            request.kernel()
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from None
        yield request


def _whole(name: str, cells: dict[str, str]) -> int:
    text = cells.get(name, "1" if name == "count_in_network" else "")
    if not text.isdigit():
        raise ValueError(f"{name}={text!r} is no whole number")
    return int(text)


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
        state = style.good("runs here") if not why else "generates only: " + why
        mark = ", chosen by default" if name == chosen else ""
        print(f"{name:10} {state}{mark}")
    print(f"{'sve<bits>':10} SVE of any other length, 128 to 2048 bits in steps of 128")
    if reason:
        print(f"\n{style.bad('no default target')}: {reason}")
    return OK


class Style:
    """Colours, on a terminal only and not with NO_COLOR."""

    def __init__(self) -> None:
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        self.on = sys.stdout.isatty() and not plain

    def _wrap(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.on else text

    def strong(self, text: str) -> str:
        """Bold."""
        return self._wrap("1", text)

    def good(self, text: str) -> str:
        """Green."""
        return self._wrap("32", text)

    def bad(self, text: str) -> str:
        """Red and bold."""
        return self._wrap("1;31", text)


def print_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2, allow_nan=False))


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

    def command(name: str, what: str, epilog: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=what, description=what[0].upper() + what[1:] + ".",
            epilog=epilog + EXIT_CODES, formatter_class=formatter, allow_abbrev=False,
        )  # fmt: skip
        sub.add_argument("--json", action="store_true", help="print JSON")
        return sub

    kernel = command("kernel", "generate a kernel, check it and measure it", KERNEL_EXAMPLES)
    showing = command("show", "print the machine code of a kernel, explained", SHOW_EXAMPLES)
    command("targets", "list what this CPU can run", TARGETS_EXAMPLES)
    for sub in (kernel, showing):
        sub.add_argument(
            "size", type=int, nargs="*", metavar="M N K", help="C is M x N, A_i M x K, B_i K x N"
        )
        sub.add_argument("--isa", metavar="TARGET", help="avx512, avx2, sve256 ... (this CPU's best)")
        for name, (parse, takes, what) in OPTIONS.items():
            option = "--" + name.replace("_", "-")
            if takes:
                sub.add_argument(option, type=_checked(parse), metavar=takes, help=what)
            else:
                sub.add_argument(option, action="store_true", default=None, help=what)
    kernel.add_argument("--shapes", metavar="FILE", help="a table of kernels, as CSV")
    kernel.add_argument(
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
    from jitgen.cli_kernel import kernel, use_one_thread

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
        return 130
    except MemoryError as error:
        return _error(f"not enough memory for the arrays: {error}", BAD_ARGUMENTS)
    except (TypeError, ValueError, FileNotFoundError, IsADirectoryError, PermissionError) as error:
        return _error(str(error), BAD_ARGUMENTS)
    except (RuntimeError, ExecutableMemoryError) as error:
        return _error(str(error), CANNOT_RUN)


def _error(message: str, code: int) -> int:
    print(f"jitgen: error: {message}", file=sys.stderr)
    return code
