#!/usr/bin/env bash
# Chromium, in which the tests look at the report: from the distribution where we may install packages; otherwise the test is skipped.
set -euo pipefail

for program in "${CHROMIUM:-chromium}" chromium-headless-shell chromium-browser google-chrome google-chrome-stable chrome; do
  "$program" --version >/dev/null 2>&1 && exit 0
done
explain() {
  echo "Chromium is not installed and cannot be installed from here ($1): the test that opens the report in a browser will be skipped."
  echo "For that test, install it, e.g. on Debian: sudo apt-get install --no-install-recommends chromium"
  exit 0
}
. "$(dirname "$0")/packages.sh"
may_install Chromium "110 MB"
# Debian has the program without windows as a smaller package.
install chromium-headless-shell fonts-dejavu-core || install chromium fonts-dejavu-core || explain "apt-get failed"
