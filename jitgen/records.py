"""What the library tells of its work: records of the standard `logging`.

Logger "jitgen" has a child for each kind of record: "jitgen.exec" (a call of a layer),
"jitgen.generate" (code or a stream that was made), "jitgen.dispatch" (why a target was chosen, or
not). A record's message is the kind and its fields, parted by commas; each field is an attribute of
the record too (`extra`). `logging.getLogger("jitgen").setLevel(logging.INFO)` is enough to get the
first two kinds; the level that "jitgen" begins with keeps them from a root logger at INFO. Not
here: who prints them (`jitgen.run.verbose`), where they are told.
"""

from __future__ import annotations

import logging

#: Kind -> fields of its records, in their order
FIELDS = {
    "exec": ("layer", "pass", "algorithm", "target", "dtype", "threads", "shape", "ms"),
    "generate": ("kind", "title", "source", "target", "kernels", "calls", "bytes", "ms"),
    "dispatch": ("target", "chosen", "reason"),
}  # fmt: skip
LEVELS = {"exec": logging.INFO, "generate": logging.INFO, "dispatch": logging.DEBUG}
#: Whoever asks for less than this on LOGGER may get records
QUIET = logging.WARNING

LOGGER = logging.getLogger("jitgen")
#: As long as it is LOGGER's only handler, the program has not said where records should go
NOWHERE = logging.NullHandler()
LOGGER.addHandler(NOWHERE)
if LOGGER.level == logging.NOTSET:
    LOGGER.setLevel(QUIET)
EXEC, GENERATE, DISPATCH = (LOGGER.getChild(kind) for kind in FIELDS)


def wanted(logger: logging.Logger) -> bool:
    """Whether somebody wants the records of EXEC, GENERATE or DISPATCH."""
    return logger.isEnabledFor(LEVELS[kind_of(logger.name)])


def kind_of(name: str) -> str:
    """The kind of records that a logger has, by its name."""
    return name.rpartition(".")[2]


def tell(logger: logging.Logger, *values: object) -> None:
    """Make a record of EXEC, GENERATE or DISPATCH, of its fields' values."""
    kind = kind_of(logger.name)
    fields = dict(zip(FIELDS[kind], values, strict=True))
    line = ",".join([kind, *map(_shown, values)])
    logger.log(LEVELS[kind], line, extra=fields)


def told_generation(
    kind: str, title: str, source: str, target: str, size: int, seconds: float,
    kernels: int | None = None, calls: int | None = None,
) -> None:  # fmt: skip
    """Tell of code or a stream that was made, if somebody wants to know.

    kind: "kernel", "routine", "driver" or "stream"; source: "new", or where it came from; size: in
    bytes; kernels: that a stream or its driver calls; calls: in a stream.
    """
    if wanted(GENERATE):
        tell(GENERATE, kind, title, source, target, kernels, calls, size, 1e3 * seconds)


def _shown(value: object) -> str:
    """A field of a line: without the commas that part fields, on the line."""
    if isinstance(value, float):
        return f"{value:.4f}"
    if value is None:
        return ""
    return " ".join(str(value).replace(",", ";").split())
