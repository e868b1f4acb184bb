"""JITGEN_VERBOSE: the records of `jitgen.records` as lines on standard error.

    JITGEN_VERBOSE=1 python program.py 2>&1 | grep ^jitgen_verbose,exec | cut -d, -f 3,4,10

A line is written whole, whatever other threads and forked processes write. A program that says
itself where the records of "jitgen" go has them there, and nothing is printed. See docs/verbose.md.
Not here: what the records are about.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings

from jitgen import records
from jitgen.run import cpu
from jitgen.run.threads import check_threads
from jitgen.version import __version__

VARIABLE = "JITGEN_VERBOSE"
#: First field of each line
MARK = "jitgen_verbose"
#: Words of the variable -> kinds of records; some more words mean none
WORDS = {"0": (), "1": ("exec", "generate"), **{kind: (kind,) for kind in records.FIELDS}}


class Printer(logging.Handler):
    """Prints the records of its loggers, unless the program has taken them into its hands."""

    def __init__(self, loggers: dict[str, logging.Logger]) -> None:
        super().__init__()
        self._loggers = loggers
        for logger in loggers.values():
            logger.addHandler(self)
            logger.propagate = False
            if logger.level == logging.NOTSET:
                logger.setLevel(records.LEVELS[records.kind_of(logger.name)])

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, or give it to the handlers of "jitgen"."""
        own = self._loggers[record.name].handlers == [self]
        if own and records.LOGGER.handlers == [records.NOWHERE]:
            self.print(record.getMessage(), record)
        else:
            records.LOGGER.handle(record)

    def print(self, line: str, record: logging.LogRecord) -> None:
        """Print a line, if that can be: a program must go on all the same."""
        with contextlib.suppress(OSError, ValueError):
            _write(f"{MARK},{line}\n")


def _write(line: str) -> None:
    stream, real = sys.stderr, sys.__stderr__
    if real is not None and stream is real:
        # past the stream's buffer, which a fork at the wrong moment would copy with a line in it
        os.write(real.fileno(), line.encode("utf-8", "replace"))
    elif stream is not None:  # as in a process without a console
        stream.write(line)


def _announce(*fields: str) -> None:
    """Print a line of no record, if that can be: a program must start all the same."""
    with contextlib.suppress(OSError, ValueError):
        _write(",".join([MARK, *fields]) + "\n")


def enable_from_environment() -> None:
    """Print what JITGEN_VERBOSE names, and first what the fields are and what runs here; warn of
    words that it should not have."""
    asked = [word.strip() for word in os.environ.get(VARIABLE, "").split(",")]
    bad = [word for word in asked if word and word not in WORDS]
    if bad:
        warnings.warn(f"{VARIABLE}: {', '.join(bad)} is not one of {', '.join(WORDS)}",
                      RuntimeWarning, stacklevel=2)  # fmt: skip
    kinds = {kind for word in asked for kind in WORDS.get(word, ())}
    loggers = {each.name: each for each in (records.EXEC, records.GENERATE, records.DISPATCH)
               if records.kind_of(each.name) in kinds}  # fmt: skip
    if not loggers:
        return
    for kind, fields in records.FIELDS.items():
        if kind in kinds:
            _announce("operation", *fields)
    Printer(loggers)
    try:
        target, threads = cpu.host().name, f"{check_threads(None)}"
    except (RuntimeError, ValueError) as error:  # which whoever asks for a target will see
        target, threads = f"none: {error}", ""
    about = (f"jitgen {__version__}", cpu.name(), f"target {target}", f"threads {threads}")
    _announce("info", *(each.replace(",", ";") for each in about))
