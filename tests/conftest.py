"""The suite as a whole: one seed, a table of the kernels executed, and the least that CI demands.

Works under pytest-xdist: the count file and the seed are set before workers start. Not here: any
test or fixture.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from rig import count

#: (instruction set, how it was executed begins with): CI must have executed some of each
DEMANDED = (
    ("avx2", "native"),
    ("avx512", "bochs"),
    ("sve128", "qemu"),
    ("sve256", "qemu"),
    ("sve512", "qemu"),
    ("neon", "qemu"),
)
_FILE = pytest.StashKey[Path]()
_MISSING = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long the soak is (test_soak), and whether hashes are rewritten (test_golden)."""
    parser.addoption("--minutes", type=float, default=10.0, help="of the soak of random layers")
    parser.addoption("--runs", type=int, help="of each program, and random layers, of the soak")
    parser.addoption(
        "--refresh-golden", action="store_true", help="write the hashes of tests/golden anew"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Start the count file and fix the seed, in the process that starts the others."""
    # tests change the generator in memory: what it makes then must not be stored for anyone
    os.environ.pop("JITGEN_CACHE", None)
    if hasattr(config, "workerinput"):
        return
    os.environ.setdefault("JITGEN_SEED", str(secrets.randbits(32)))
    if count.FILE_VARIABLE not in os.environ:
        handle, name = tempfile.mkstemp(prefix="jitgen-count-")
        os.close(handle)
        os.environ[count.FILE_VARIABLE] = name
        config.add_cleanup(lambda: _forget(name))
    config.stash[_FILE] = Path(os.environ[count.FILE_VARIABLE])


def pytest_report_header() -> str:
    """Tell the seed before anything can hang."""
    return f"JITGEN_SEED={os.environ['JITGEN_SEED']}"


def _forget(name: str) -> None:
    os.environ.pop(count.FILE_VARIABLE, None)
    Path(name).unlink(missing_ok=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Under CI, a run of the whole suite that skipped an instruction set has failed."""
    config = session.config
    if hasattr(config, "workerinput") or not os.environ.get("CI") or not _whole_suite(config):
        return
    missing = missing_tiers(count.read(config.stash[_FILE]))
    config.stash[_MISSING] = missing
    if missing and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    config = terminalreporter.config
    counts = count.read(config.stash[_FILE])
    if counts:
        terminalreporter.section("kernels executed")
        terminalreporter.line(count.table(counts))
    for each in config.stash.get(_MISSING, []):
        terminalreporter.line(f"FAILED: CI is set and no kernel was executed for {each}", red=True)


def missing_tiers(counts: Counter[tuple[str, str]]) -> list[str]:
    """Which of the demanded ways to execute have no kernel in the counts."""
    return [
        f"{isa} on {prefix}"
        for isa, prefix in DEMANDED
        if not any(isa == i and how.startswith(prefix) and n for (i, how), n in counts.items())
    ]


def _whole_suite(config: pytest.Config) -> bool:
    """Whether no selection was asked for: no -k, -m, --lf, --deselect, no path within tests/."""
    options = ("keyword", "lf", "deselect", "ignore", "ignore_glob", "collectonly")
    if any(config.getoption(option, None) for option in options):
        return False
    if config.getoption("markexpr") != "not slow and not soak":  # which pyproject.toml asks for
        return False
    here = Path(__file__).resolve().parent
    asked = [(config.invocation_params.dir / str(arg)).resolve() for arg in config.args]
    return any(path == here or path in here.parents for path in asked)
