#!/usr/bin/env bash
# Install what the tests need and run all of them, emulators included.
#
#   bash tools/test.sh [pytest arguments]
#   bash tools/test.sh -m slow                # what a plain run leaves out: minutes each
#
# Debian or Ubuntu: emulators, assemblers, compilers, debuggers, a browser and PeachPy come from apt
# (as root or through sudo), Python packages go into .venv. Elsewhere install the packages below by
# hand first. A test whose tool is missing is skipped and says so; with CI set it fails.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
    qemu-user bochs bochs-term bochsbios llvm-19 binutils python3-peachpy
    gcc g++ libc6-dev clang cmake make pkg-config gcc-aarch64-linux-gnu g++-aarch64-linux-gnu
    gdb linux-perf chromium libomp5
)
missing=()
for package in "${packages[@]}"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ] && command -v apt-get >/dev/null; then
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update -qq
    # not every release has every package
    known=()
    for package in "${missing[@]}"; do
        apt-cache show "$package" >/dev/null 2>&1 && known+=("$package")
    done
    missing=("${known[@]}")
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq \
        --no-install-recommends "${missing[@]}" >/dev/null
fi

python=${PYTHON:-python3}
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install -q -e '.[test,check]'
.venv/bin/python -m tools.check --no-tests
exec .venv/bin/python -m pytest -n 2 "$@"
