"""`jitgen analyze`: what a kernel asks of a CPU, the bounds of its loops, its predicted speed.

Not here: the analysis (`jitgen.analysis`), layers (`jitgen.cli.analyze_layer`).
"""

from __future__ import annotations

import argparse
import dataclasses

from jitgen.analysis import CPUS, analyze, host, plot
from jitgen.analysis.cpus import find_cpu
from jitgen.cli.requests import (
    LAYER_OPTIONS,
    add_layer_options,
    add_options,
    make_request,
    refuse,
)
from jitgen.cli.terminal import OK, STRONG, colour, print_json
from jitgen.run import cpu as host_cpu

SUMMARY = "predict what bounds a kernel or a layer on a CPU, and how fast it can be there"
USAGE = """\
%(prog)s M N K --cpu CPU [options]
       %(prog)s --layer LAYER [--pass PASS] [--cpu CPU] [--isa TARGET] [--threads N]"""
NOTES = """\
The CPU implies the target; --isa asks for another one that it runs. With --cpu host the kernel is
also measured, and its percent of the FMA peak stands beside the predicted one; a host that is not
among the CPUs is taken for the nearest one, and the analysis says so. Cycles by llvm-mca
(19 or newer) and OSACA are shown where these are installed. What is modelled, from which sources
and how well it agrees with measurements: docs/analysis.md.

Of a layer every pass is analyzed, or the parts of one with --pass: their calls and floating-point
operations, and the bounds of core, L2, L3 and memory on the slowest thread. Without --cpu that is
the host, where passes and parts are measured too.

  jitgen analyze --layer "Convolution(4, 64, 56, 56, 64, 3, padding=1)" --cpu neoverse-v1
  jitgen analyze --layer "FullyConnected(64, 512, 1024, activation='relu')" --pass forward

"""
#: Seconds for which a kernel is measured
SECONDS = 0.3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    add_options(parser)
    parser.add_argument("--cpu", metavar="CPU", help=f"{', '.join(CPUS)} or host")
    parser.add_argument("--plot", metavar="FILE", help="draw the roofline to a .png or .svg file")
    what = "on the host: time to measure for (0.3; 0.1 for each pass and part of a layer)"
    parser.add_argument("--seconds", type=float, metavar="S", help=what)
    add_layer_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """`jitgen analyze`: print the analysis."""
    seconds = SECONDS if arguments.seconds is None else arguments.seconds
    if not 0 < seconds < 3600:
        raise ValueError(f"--seconds {seconds:g} is not between 0 and 3600")
    if arguments.layer is not None:
        from jitgen.cli import analyze_layer

        return analyze_layer.run(arguments)
    refuse(arguments, LAYER_OPTIONS, "--layer")
    if arguments.cpu is None:
        raise ValueError(f"--cpu is missing: one of {', '.join(CPUS)}, host")
    if arguments.plot:
        plot.check_file(arguments.plot)
    on_host = arguments.cpu == "host"
    row, note = host.find_host() if on_host else (find_cpu(arguments.cpu), "")
    target = host.target_here(row) if on_host else row.target
    given = vars(arguments)
    request = make_request(arguments.size, {**given, "isa": arguments.isa or target})
    kernel = request.make()
    report = dataclasses.replace(analyze(kernel, row, request.batch), note=note)
    reason = host_cpu.why_not(kernel.target) if on_host else ""
    if on_host and not reason:
        measured = host.run(kernel, request.batch, seconds)
        report = dataclasses.replace(report, measured=measured)
    if arguments.plot:
        plot.roofline(report, arguments.plot)
    if arguments.json:
        print_json(report.as_values())
    else:
        head, *rest = report.lines()
        print(colour(STRONG, head), *rest, sep="\n")
    if reason:
        raise RuntimeError(f"analyzed but not measured: {reason}")
    return OK
