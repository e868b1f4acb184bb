"""What the commands share: the options of a kernel, files of shapes, exit codes, colours.

Not here: the commands (`jitgen.cli`, `jitgen.cli_kernel`).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jitgen

OK, WRONG, BAD_ARGUMENTS, CANNOT_RUN = range(4)
STRONG, GOOD, BAD = "1", "32", "1;31"


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
    if text not in ("yes", "no"):
        raise ValueError(f"{text!r} is neither yes nor no")
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
        asked = list(_read_shapes(file, given, arguments.isa))
        if not asked:
            raise ValueError(f"{file}: the file has no line with a shape")
        return asked
    if len(sizes) != 3:
        raise ValueError(f"a kernel has three sizes, M N K; got {len(sizes)}")
    m, n, k = sizes
    return [Request(m, n, k, given, arguments.isa)]


def _read_shapes(file: str, given: dict[str, Any], isa: str | None) -> Iterator[Request]:
    with open(file, newline="", encoding="utf-8") as stream:
        lines = [line for line in stream if line.strip() and not line.startswith("#")]
    rows = csv.DictReader(lines)
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


class Style:
    """Colours, on a terminal only and not with NO_COLOR."""

    def __init__(self) -> None:
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        self.on = sys.stdout.isatty() and not plain

    def __call__(self, code: str, text: str) -> str:
        """`text` in the colour of an SGR code (STRONG, GOOD or BAD)."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.on else text


def print_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2, allow_nan=False))
