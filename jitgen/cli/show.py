"""`jitgen show`: print the machine code of a kernel, explained.

Not here: how it is explained (`jitgen.inspect`).
"""

from __future__ import annotations

import argparse
import sys

from jitgen.cli.requests import add_options as add_arguments
from jitgen.cli.requests import make_request
from jitgen.cli.terminal import OK, print_json
from jitgen.inspect import listing

__all__ = ["NOTES", "SUMMARY", "USAGE", "add_arguments", "run"]

SUMMARY = "print the machine code of a kernel, explained"
USAGE = "%(prog)s M N K [options]"
NOTES = ""


def run(arguments: argparse.Namespace) -> int:
    """`jitgen show`: print the listing."""
    kernel = make_request(arguments.size, vars(arguments)).make()
    if arguments.json:
        print_json(listing.as_values(kernel))
    else:
        sys.stdout.write(kernel.listing())
    return OK
