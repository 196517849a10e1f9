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
command -v apt-get >/dev/null || explain "no apt-get"
if [ "$(id -u)" = 0 ]; then
  as_root=""
elif sudo -n true 2>/dev/null; then
  as_root="sudo -n"
else
  explain "no administrator's rights"
fi
printf '\033[1m%s\033[0m\n' "Installing Chromium from the distribution (about 110 MB to download)"
export DEBIAN_FRONTEND=noninteractive
install() { $as_root apt-get install -y -q --no-install-recommends "$@" >/dev/null 2>&1; }
$as_root apt-get update -q >/dev/null 2>&1 || explain "apt-get failed"
# Debian has the program without windows as a smaller package.
install chromium-headless-shell fonts-dejavu-core || install chromium fonts-dejavu-core || explain "apt-get failed"
