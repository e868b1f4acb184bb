"""What all commands share in talking to the terminal: exit codes, colours, JSON.

Not here: arguments (`jitgen.cli.requests`).
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

OK, WRONG, BAD_ARGUMENTS, CANNOT_RUN = range(4)
STRONG, GOOD, BAD = "1", "32", "1;31"


def colour(code: str, text: str) -> str:
    """`text` in the colour of an SGR code (STRONG, GOOD or BAD): on a terminal only, and not with
    NO_COLOR."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return f"\x1b[{code}m{text}\x1b[0m" if sys.stdout.isatty() and not plain else text


def print_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2, allow_nan=False))
