"""Kernels and layers as the command line asks for them: options, and files of shapes.

Not here: what is done with a kernel (one module for each command).
"""

from __future__ import annotations

import argparse
import csv
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jitgen
from jitgen import doors
from jitgen.gemm.kernel import Kernel
from jitgen.types import DTYPES


class Request(NamedTuple):
    """A kernel that the user wants: how often a network has it, the batch it is called with, and
    the call of `jitgen.brgemm` that makes it."""

    name: str
    times: int
    batch: int
    make: functools.partial[Kernel]


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
    "dtype": (str, "TYPE", f"{' or '.join(DTYPES)} (f32)"),
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


def make_request(size: list[Any], asked: dict[str, Any], name: str = "", times: int = 1) -> Request:
    """`asked` holds isa and any of OPTIONS."""
    if len(size) != 3:
        raise ValueError(f"a kernel has three sizes, M N K; got {len(size)}")
    given = {name: asked[name] for name in OPTIONS if asked.get(name) is not None}
    count, kind = doors.size("batch", given.pop("batch", 1)), given.pop("batch_kind", "stride")
    make = functools.partial(jitgen.brgemm, *size, batch=kind, target=asked["isa"], **given)
    return Request(name, times, count, make)


def read_shapes(file: str, asked: dict[str, Any]) -> Iterator[Request]:
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
            request = make_request(size, {**asked, **options}, cells.get("name", ""), times)
            request.make()
        except (argparse.ArgumentTypeError, TypeError, ValueError) as error:
            where = row.get("name") or f"row {rows.line_num - 1}"
            raise ValueError(f"{file}: {where}: {error}") from None
        yield request


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name}={text!r} is no whole number")
    return int(text)


def add_options(parser: argparse.ArgumentParser, size: Callable[[str], Any] = int) -> None:
    """Sizes (read by `size`), --isa and everything in OPTIONS."""
    what = "C is M x N, A_i M x K, B_i K x N"
    parser.add_argument("size", type=size, nargs="*", metavar="M N K", help=what)
    parser.add_argument("--isa", metavar="TARGET", help="avx512, avx2, sve256 ... (the best here)")
    for name, (parse, takes, what) in OPTIONS.items():
        option = "--" + name.replace("_", "-")
        if takes:
            parser.add_argument(option, type=parse, metavar=takes, help=what)
        else:
            parser.add_argument(option, action="store_true", default=None, help=what)


# ---- layers -------------------------------------------------------------------------------------

#: Options that only layers have, by their names among the arguments
LAYER_OPTIONS = {"pass_": "--pass", "threads": "--threads"}


def add_layer_options(parser: argparse.ArgumentParser) -> None:
    """--layer, --pass and --threads."""
    what = "a layer instead of a kernel: \"Convolution(4, 64, 56, 56, 64, 3, padding=1)\""
    parser.add_argument("--layer", metavar="LAYER", help=what)
    what = "of a layer: one of its passes (default: an overview of all)"
    parser.add_argument("--pass", dest="pass_", metavar="PASS", help=what)
    what = "of a layer: how many, at most (OMP_NUM_THREADS or all CPUs)"
    parser.add_argument("--threads", type=int, metavar="N", help=what)


def refuse(arguments: argparse.Namespace, names: dict[str, str], instead: str) -> None:
    """Raise ValueError if one of the arguments `names` (name -> option) is given."""
    for name, option in names.items():
        value = getattr(arguments, name, None)
        if value is not None and value != []:
            shown = "" if value is True else f" {value}"
            raise ValueError(f"{option}{shown} is for {instead}")


def kernel_options(arguments: argparse.Namespace) -> None:
    """Raise ValueError if options are given that only kernels have."""
    if arguments.size:
        raise ValueError(f"give M N K or --layer, not both; got {arguments.size[0]} too")
    options = {name: "--" + name.replace("_", "-") for name in OPTIONS}
    refuse(arguments, {"diff": "--diff", **options}, "kernels, not for --layer")
