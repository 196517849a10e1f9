#!/usr/bin/env bash
# What both images hold, on a bare Debian 12: Python, the packages of requirements.lock, TeX and cmapkd itself.
# The scripts are those of `make setup`, so an image and a virtual environment cannot drift apart.
#
# Usage: install.sh <source>     as root, at the end of the base system (%post of the definitions beside this file)
# Environment: SOURCE_DATE_EPOCH  no file in the image is younger [s since 1970]
#              APPTAINER_LABELS   file that takes further labels, one `name value` a line
# A folder mounted at /mnt with the files of the lock takes the place of the package index: the image is then built without a
# network for pip. Versions of Debian's packages are kept in debian-packages.txt beside the source.
set -euo pipefail
source=$1
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_ROOT_USER_ACTION=ignore
# git says which code made a number; libibverbs is what NCCL needs for InfiniBand.
packages="python3 python3-venv git ca-certificates libibverbs1 ibverbs-providers"

# What is lost when the power fails is built again: no package waits for the disk.
echo force-unsafe-io >/etc/dpkg/dpkg.cfg.d/image
apt-get update -q
# shellcheck disable=SC2086
apt-get install -y -q --no-install-recommends $packages
cd "$source"
scripts/setup-latex.sh
command -v pdflatex >/dev/null || { echo "LaTeX could not be installed" >&2; exit 1; }

if compgen -G "/mnt/*.whl" >/dev/null; then
  export PIP_NO_INDEX=1 PIP_FIND_LINKS=/mnt
fi
venv=$(dirname "$source")/venv
scripts/setup-environment.sh python3 "$venv"
[ -z "${APPTAINER_LABELS:-}" ] || echo "cmapkd.lock.sha256 $(sha256sum requirements.lock | cut -d ' ' -f 1)" >>"$APPTAINER_LABELS"

# What differs between two builds, or is never read. Bytecode that names no time of its source loads from a read-only image.
rm -f "$venv/.complete"
find "$source" "$venv" -name __pycache__ -type d -prune -exec rm -rf {} +
"$venv/bin/python" -m compileall -q -j 0 --invalidation-mode unchecked-hash "$venv/lib" "$source/cmapkd" >/dev/null || true # templates with {{ }} in them
dpkg-query --show --showformat '${Package}:${Architecture} ${Version}\n' | LC_ALL=C sort >"$(dirname "$source")/debian-packages.txt"
apt-get clean
# Nothing in /tmp, /var/tmp, /root or /home: during a build Apptainer shows the host's own there, and they would be emptied.
rm -rf /etc/dpkg/dpkg.cfg.d/image /var/lib/apt/lists/* /var/cache/* /var/log/* /var/lib/dpkg/*-old /usr/share/doc/* /usr/share/man/*
mkdir -p /var/cache/apt/archives/partial
: >/etc/machine-id
find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /mnt -o -path /tmp -o -path /var/tmp -o -path /root -o -path /home \) -prune -o -newermt "@$SOURCE_DATE_EPOCH" \
  -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
