#!/usr/bin/env bash
# Create or update a virtual environment from requirements.lock in the current folder, and install the package there.
#
# Usage: setup-environment.sh <Python> <environment>
# Every file is checked against the hashes of the lock. An interrupted run continues: pip skips what is installed.
set -euo pipefail
python=$1 venv=$2 lock=requirements.lock
gigabytes=7 downloads=3 # of the environment, and of the files that are downloaded for it [GB]

say() { printf '\033[1m%s\033[0m\n' "$*"; }
refuse() { # <what is wrong> <fix>
  printf 'error: %s\nfix: %s\n' "$1" "$2" >&2
  exit 1
}

# Packages of a loaded module, of the user or of another environment do not count, and nothing is installed elsewhere.
unset PYTHONPATH PYTHONHOME PIP_PYTHON PIP_DRY_RUN PIP_REQUIREMENT PIP_EDITABLE PIP_TARGET PIP_PREFIX PIP_ROOT PIP_USER
export PYTHONNOUSERSITE=1 PYTHONUTF8=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# What the lock has wheels for is in its header.
supported() { sed -n "s/^# $1: *//p" "$lock"; }

check_machine() {
  [ "$(uname -s)" = Linux ] || refuse "$(uname -s): the packages of the lock are for Linux" \
    "use a Linux machine; on Windows, WSL2 (\`wsl --install\`) with the clone inside of its file system"
  local pythons about first last on_cluster
  pythons=$(supported python)
  first=${pythons%% *} last=${pythons##* }
  on_cluster="On a cluster, \`module avail python\` lists what there is: after \`module load\`, make setup PYTHON=\$(command -v python3)"
  about=$("$python" -I -c 'import os, platform, sys
print("%d.%d" % sys.version_info[:2], platform.machine(), sys.implementation.name, os.confstr("CS_GNU_LIBC_VERSION").split()[-1])' 2>/dev/null) ||
    refuse "PYTHON = $python: is not a Python ${first:-3.11} or newer on Linux with glibc" \
      "make setup PYTHON=python${first:-3.11}. $on_cluster"
  read -r version machine implementation glibc <<<"$about"
  case " $pythons " in
  "  " | *" $version "*) ;;
  *) refuse "PYTHON = $python: is Python $version; the packages of the lock are for Python $first to $last" \
    "make setup PYTHON=python$first. $on_cluster" ;;
  esac
  [ "$implementation" = cpython ] || refuse "PYTHON = $python: is $implementation" "use CPython: make setup PYTHON=python$first"
  case " $(supported machine) " in
  "  " | *" $machine "*) ;;
  *) refuse "$machine: the packages of the lock are for $(supported machine)" "use such a machine" ;;
  esac
  local oldest
  oldest=$(supported glibc)
  [ -z "$oldest" ] || [ "$(printf '%s\n' "$oldest" "$glibc" | sort -V | head -n 1)" = "$oldest" ] ||
    refuse "glibc $glibc: the packages of the lock need $oldest or newer" "use a newer system, or the image (docs/cluster.md)"
}

existing() { # the nearest folder above a path that exists, links followed
  local path
  path=$(readlink -m -- "$1")
  while [ ! -d "$path" ]; do path=$(dirname -- "$path"); done
  printf '%s\n' "$path"
}
free() { df -Pk -- "$1" 2>/dev/null | awk 'NR == 2 { printf "%d", $4 / 1000000 }'; }

where_space_is_set() {
  cat >&2 <<'TEXT'
What moves files to another file system (export it, then `make setup` again, which continues):
  the environment      ln -s /scratch/me/cmapkd-venv .venv     (in the clone, before `make setup`; remove .venv first)
  pip's cache          PIP_CACHE_DIR=/scratch/me/pip, or PIP_NO_CACHE_DIR=1 for none
  pip's temporary files   TMPDIR=/scratch/me/tmp
  pretrained weights   HF_HOME=/scratch/me/huggingface
  drawings and data    CMAPKD_CACHE=/scratch/me/cmapkd
TEXT
}

# What is needed and where, before anything is downloaded. Only free space of the file system is known for certain.
check_space() {
  local cache temporary used need room quotas
  cache=$("$python" -I -m pip cache dir 2>/dev/null) || cache=${PIP_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/pip}
  [ -w "$(existing "$cache")" ] && [ -n "${HOME:-}${PIP_CACHE_DIR:-}${XDG_CACHE_HOME:-}" ] || export PIP_NO_CACHE_DIR=1
  temporary=${TMPDIR:-/tmp}
  used=$(du -sk -- "$(readlink -m -- "$venv")" 2>/dev/null | awk '{ printf "%d", $1 / 1000000 }') || true
  need=$((gigabytes - ${used:-0}))
  room=$(free "$(existing "$venv")")
  echo "  environment  $venv: $gigabytes GB, of which ${used:-0} GB are there; ${room:-?} GB are free"
  if [ -n "${PIP_NO_INDEX:-}" ]; then
    :
  elif [ -n "${PIP_NO_CACHE_DIR:-}" ]; then
    echo "  downloads    $temporary: $downloads GB for a while; $(free "$(existing "$temporary")") GB are free; no cache"
  else
    echo "  downloads    $cache: $downloads GB; $(free "$(existing "$cache")") GB are free. PIP_NO_CACHE_DIR=1 keeps none"
    echo "  temporary    $temporary: $downloads GB; $(free "$(existing "$temporary")") GB are free"
  fi
  echo "  later        ${CMAPKD_CACHE:-~/.cache/cmapkd} (CMAPKD_CACHE) and ${HF_HOME:-~/.cache/huggingface} (HF_HOME): drawings, data, weights"
  if quotas=$(timeout 10 quota -s 2>/dev/null) && [ -n "$quotas" ]; then
    printf '  quota\n%s\n' "$quotas"
  fi
  if [ -n "$room" ] && [ "$need" -gt 0 ] && [ "$room" -lt "$need" ]; then
    where_space_is_set
    refuse "$venv: needs $need GB more, and $room GB are free there" "make room, or move it as above"
  fi
}

isolated_python() { "$venv/bin/python" -I -X utf8 "$@"; }

# Run pip. `--no-user` counts more than a pip.conf that wants packages in the user's folder.
pip_install() {
  local errors status=0
  exec 3>&1 4>&2
  errors=$(isolated_python -m pip install -q --no-input --no-deps --no-user "$@" 2>&1 >&3 |
    tee >(cat >&4)) || status=$?
  exec 3>&- 4>&-
  [ "$status" != 0 ] || return 0
  if grep -qE 'Errno (28|122)\]|Disk quota exceeded|No space left on device' <<<"$errors"; then
    where_space_is_set
    refuse "$venv: the disk or the quota is full (environment, pip's cache or temporary files)" "make room, or move them as above"
  elif grep -q 'DO NOT MATCH THE HASHES' <<<"$errors"; then
    refuse "$lock: a file differs from what the lock pins; nothing of it was installed" \
      "PIP_NO_CACHE_DIR=1 make setup; if that fails too, ask whoever runs the package index that pip uses (\`pip config list\`)"
  fi
  refuse "$venv: pip failed with $status, see above" "make setup, which continues"
}

# Requirements of the lock with these names, or all but these, with their hashes.
only() { LC_ALL=C awk -v names=" $* " '/^[A-Za-z0-9]/ { name = $0; sub(/==.*/, "", name); kept = index(names, " " name " ") } /^[ A-Za-z0-9]/ && kept' "$lock"; }
all_but() { LC_ALL=C awk -v names=" $* " '/^[A-Za-z0-9]/ { name = $0; sub(/==.*/, "", name); kept = !index(names, " " name " ") } /^[ A-Za-z0-9]/ && kept' "$lock"; }

create() {
  say "Creating the virtual environment in $venv"
  # A link stays one: its folder is the environment.
  local folder
  folder=$(readlink -m -- "$venv")
  [ ! -e "$folder" ] || [ -f "$folder/pyvenv.cfg" ] || [ -z "$(ls -A -- "$folder")" ] ||
    refuse "$venv: $folder holds other files than an environment, and would be emptied" "name an empty folder"
  mkdir -p -- "$folder"
  if ! "$python" -I -c 'import ensurepip, venv' 2>/dev/null; then
    # Debian and Ubuntu ship venv apart from Python.
    echo "Installing python$version-venv, which this system keeps in a package of its own" >&2
    local as_root=""
    [ "$(id -u)" = 0 ] || as_root=sudo
    { command -v apt-get && { [ -z "$as_root" ] || command -v sudo; }; } >/dev/null ||
      refuse "PYTHON = $python: cannot create virtual environments" "install its package venv, or name another Python: make setup PYTHON=..."
    $as_root apt-get update -q && $as_root apt-get install -y -q "python$version-venv"
  fi
  "$python" -I -m venv --clear -- "$folder" || {
    where_space_is_set
    refuse "$venv: cannot be created in $folder" "make sure that you may write there and that there is room"
  }
}

# These of a pip.conf cannot be switched off on the command line.
check_configuration() {
  local found
  found=$(isolated_python -m pip config list 2>/dev/null | grep -E '^(global|install)\.(target|prefix|root)=') || return 0
  refuse "pip's configuration has $found: packages would be installed there" "\`pip config unset ${found%%=*}\`, then make setup"
}

# What pip left half-done when it was killed: it writes INSTALLER into a package's metadata after all of its files.
remove_unfinished() {
  local site found
  site=$(isolated_python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  for found in "$site"/*.dist-info; do
    [ ! -d "$found" ] || [ -f "$found/INSTALLER" ] || rm -rf -- "$found"
  done
  rm -rf -- "$site"/~*
}

check_machine
echo "Installing needs:"
check_space
if ! isolated_python -m pip --version >/dev/null 2>&1; then create; fi
check_configuration
remove_unfinished

say "Installing the packages of requirements.lock (about $downloads GB to download)"
installers="pip setuptools wheel"
sources=$(sed -n 's/^--no-binary //p' "$lock" | tr '\n' ' ')
checked=(--require-hashes --only-binary :all:)
# The lock is complete, so nothing is resolved. pip itself comes first: any version can install the pinned one.
# shellcheck disable=SC2086
{
  [ -z "$(only $installers)" ] || pip_install "${checked[@]}" -r <(only $installers)
  [ -z "$(all_but $installers $sources)" ] || pip_install "${checked[@]}" -r <(all_but $installers $sources)
  # What has no wheel is built with the packages above: DeepSpeed's build looks for torch.
  for package in $sources; do
    say "Building $package"
    DS_BUILD_OPS=0 pip_install --require-hashes --no-binary "$package" --no-build-isolation -r <(only "$package")
  done
}
PYTHONWARNINGS=ignore pip_install --no-index --no-build-isolation -e .
date -u +%FT%TZ >"$venv/.complete"
say "Environment ready"
