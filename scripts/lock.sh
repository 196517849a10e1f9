#!/usr/bin/env bash
# Write requirements.lock: the versions of an environment, with the hashes that the package index publishes for their files.
#
# Usage: lock.sh [<environment>]     default: .venv
# The lock holds the hashes of all files of a version, so one lock serves several Pythons and processors. Which ones is
# written into its header: those for which every package has a wheel.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${1:-.venv}
# Packages that publish no wheel. They are built from the source distribution that the lock pins.
sources="connection-pool deepspeed"
# The oldest glibc of these wheels is 2.28 (Debian 10, RHEL 8).
glibc=2.28

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$environment/bin/python" -I -m venv "$work/uv"
"$work/uv/bin/pip" install -q uv==0.13.9
"$environment/bin/python" -I -m pip freeze --all --exclude-editable | grep -viE '^cmapkd( |=)' >"$work/versions"

resolve() { # <Python> <machine> <file> [<option>...]
  local options=(--only-binary :all:)
  for package in $sources; do options+=(--no-binary "$package"); done
  "$work/uv/bin/uv" pip compile -q "$work/versions" --no-deps --no-header --no-annotate --cache-dir "$work/cache" \
    --python-version "$1" --python-platform "$2-manylinux_${glibc/./_}" "${options[@]}" -o "$3" "${@:4}"
}

pythons=""
for python in 3.11 3.12 3.13 3.14 3.15; do
  complete=yes
  for machine in x86_64 aarch64; do
    resolve "$python" "$machine" "$work/try" 2>/dev/null || complete=""
  done
  [ -z "$complete" ] || pythons="$pythons $python"
done
[ -n "$pythons" ] || {
  echo "error: no Python has wheels for all of these versions" >&2
  resolve 3.11 x86_64 "$work/try"
}
resolve "${pythons##* }" x86_64 "$work/lock" --generate-hashes
{
  echo "# Every package of the environment, with version and SHA-256 of its files. pyproject.toml names the direct dependencies."
  echo "# scripts/lock.sh writes this file from an environment that the tests passed in; scripts/setup-environment.sh installs it."
  echo "# python:$pythons"
  echo "# machine: x86_64 aarch64"
  echo "# glibc: $glibc"
  # In this order: for pip, what is said of all packages replaces what was said of some before.
  echo "--require-hashes"
  echo "--only-binary :all:"
  for package in $sources; do echo "--no-binary $package"; done
  cat "$work/lock"
} >requirements.lock.new
mv requirements.lock.new requirements.lock
