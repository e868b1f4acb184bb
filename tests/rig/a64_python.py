"""An AArch64 Python with NumPy and cffi, run under qemu-user on any Debian: it needs no root.

It is made once, by apt (with directories of its own: the system's packages are left alone) and pip,
from whatever archives they are configured for, and kept in a cache directory: JITGEN_CACHE, or
jitgen-tests in the user's cache. apt's archive must have arm64 beside the others, as Debian's does.

    done = a64_python.run(["-c", "import numpy; print(numpy.__version__)"], "max")

Not here: kernels without Python (`qemu`), which start a hundred times faster.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .job import RigError
from .qemu import _emulator

DEBIAN_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
WHEELS = ("numpy", "cffi", "py-cpuinfo")
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
#: apt as configured on this system, but for another architecture and in directories of its own
APT_CONFIGURATION = """
APT::Architecture "arm64";
#clear APT::Architectures;
APT::Architectures {{ "arm64"; }};
Dir::State "{home}/state";
Dir::State::status "{home}/status";
Dir::Cache "{home}/cache";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Debug::NoLocking "true";
#clear APT::Update;
#clear DPkg::Post-Invoke;
"""
SETUP_SECONDS = 600.0


@functools.lru_cache(maxsize=1)
def available() -> str | None:
    """Return None if Python can run, else why not. Makes it if it is not there yet."""
    if _emulator() is None:
        return "qemu-aarch64 is not installed (Debian, Ubuntu: qemu-user)"
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed, which downloads or unpacks an AArch64 Python"
    try:
        _home()
    except RigError as error:
        return str(error)
    return None


def run(
    arguments: Sequence[str], cpu: str, *, paths: Sequence[Path] = (), timeout: float = 120.0,
    **environment: str,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run the AArch64 Python with arguments; it can import NumPy, cffi and what is in `paths`.

    cpu: a qemu model with options ("max,sve-default-vector-length=32" for 256 bits of SVE).
    timeout: in seconds. environment: variables set on top of this process's own. It cannot start
    itself as a child process (fork works). RigError if it is not there and cannot be made.
    """
    home = _home()
    variables = {
        **os.environ,
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPYCACHEPREFIX": str(home / "pycache"),
        **environment,
        "PYTHONPATH": os.pathsep.join(map(str, (*paths, home / "site"))),
    }
    return subprocess.run(
        [*_command(home, cpu), *arguments],
        check=False, capture_output=True, text=True, timeout=timeout, env=variables,
    )  # fmt: skip


def _command(home: Path, cpu: str) -> list[str]:
    found = _emulator()
    if found is None:
        raise RigError("qemu-aarch64 is not installed")
    root = home / "root"
    return [found, "-L", str(root), "-cpu", cpu, str(_interpreter(root))]


def _interpreter(root: Path) -> Path:
    """The interpreter itself (python3.11), whose links may point out of root."""
    names = sorted((root / "usr" / "bin").glob("python3.[0-9]*[0-9]"))
    if not names:
        raise RigError("Debian's packages brought no python3.<minor>")
    return names[-1]


def _cache() -> Path:
    chosen = os.environ.get("JITGEN_CACHE")
    if chosen:
        return Path(chosen)
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "jitgen-tests"


@functools.lru_cache(maxsize=1)
def _home() -> Path:
    """Where it lies, made if needed. A name tells the recipe, so a changed one is made anew."""
    recipe = repr((DEBIAN_PACKAGES, WHEELS, PLATFORMS, APT_CONFIGURATION))
    home = _cache() / f"aarch64-python-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if home.is_dir():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="making-", dir=home.parent) as folder:
        made = Path(folder) / "made"
        _make(made, Path(folder) / "apt")
        try:
            made.rename(home)
        except OSError:
            # another process was faster; what it made is the same
            if not home.is_dir():
                raise
    return home


def _make(home: Path, apt: Path) -> None:
    for folder in (home, apt, apt / "state/lists/partial", apt / "cache/archives/partial"):
        folder.mkdir(parents=True)
    (apt / "status").touch()
    (apt / "apt.conf").write_text(APT_CONFIGURATION.format(home=apt))
    get = ["apt-get", "-q", "-c", str(apt / "apt.conf")]
    # an archive without arm64 fails here and does no harm
    _do([*get, "update"], required=False)
    _do([*get, "-y", "--download-only", "install", *DEBIAN_PACKAGES])
    root = home / "root"
    for package in sorted((apt / "cache/archives").glob("*.deb")):
        _do(["dpkg", "-x", str(package), str(root)])
    for name in ("lib", "bin", "sbin"):
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    version = _interpreter(root).name.removeprefix("python").replace(".", "")
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    site = str(home / "site")
    _do([
        sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--target", site,
        "--only-binary=:all:", "--implementation", "cp", "--python-version", version, *platforms,
        *WHEELS,
    ])  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": site, "PYTHONDONTWRITEBYTECODE": "1"}
    _do([*_command(home, "max"), "-c", "import numpy, cffi; cffi.FFI().dlopen(None)"], environment)


def _do(
    command: list[str], environment: dict[str, str] | None = None, required: bool = True
) -> None:
    """Run a step; RigError with the end of what it said if it fails."""
    try:
        done = subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=SETUP_SECONDS, env=environment,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RigError(f"no AArch64 Python: {error}") from error
    if required and done.returncode:
        said = done.stdout.strip()[-500:]
        raise RigError(f"no AArch64 Python: {' '.join(command[:4])} ... failed: {said}")
