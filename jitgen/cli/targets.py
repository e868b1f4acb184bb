"""`jitgen targets`: what this CPU can run, and why not the rest.

Not here: detection (`jitgen.run.cpu`).
"""

from __future__ import annotations

import argparse
import os

import jitgen
from jitgen.cli.terminal import BAD, GOOD, OK, colour, print_json
from jitgen.run import cpu

SUMMARY = "list what this CPU can run"
USAGE = "%(prog)s [--json]"
NOTES = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has no options."""


def run(arguments: argparse.Namespace) -> int:
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
