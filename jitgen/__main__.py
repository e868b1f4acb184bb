"""`python -m jitgen`: the command line (`jitgen.cli`)."""

from __future__ import annotations

import sys

from jitgen.cli import main

sys.exit(main())
