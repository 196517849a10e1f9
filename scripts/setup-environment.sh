#!/usr/bin/env bash
# Create the virtual environment from the lock. Interrupted, it goes on where it was: pip skips what is installed.
set -euo pipefail
python=$1 venv=$2
say() { printf '\033[1m%s\033[0m\n' "$*"; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
  echo "Python 3.11 or newer is needed; '$python' is not it. Try: make PYTHON=python3.11" >&2
  exit 1
}
if [ ! -x "$venv/bin/pip" ]; then
  say "Creating the virtual environment in $venv"
  rm -rf "$venv"
  "$python" -m venv "$venv" || {
    # Debian and Ubuntu ship venv apart from Python.
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "Installing python$version-venv, which this system keeps in a package of its own" >&2
    as_root=$([ "$(id -u)" = 0 ] || echo sudo)
    $as_root apt-get update -q && $as_root apt-get install -y -q "python$version-venv"
    rm -rf "$venv" && "$python" -m venv "$venv"
  }
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1
say "Installing the packages of requirements.lock (about 3 GB to download, 6.6 GB on disk)"
# The lock is complete, so nothing is resolved. DeepSpeed's build looks for torch, so it comes last.
"$venv/bin/pip" install -q --no-deps -r <(grep -v '^deepspeed==' requirements.lock)
say "Installing DeepSpeed"
DS_BUILD_OPS=0 "$venv/bin/pip" install -q --no-build-isolation --no-deps "$(grep '^deepspeed==' requirements.lock)"
"$venv/bin/pip" install -q --no-build-isolation --no-deps -e .
date -u +%FT%TZ >"$venv/.complete"
say "Environment ready"
