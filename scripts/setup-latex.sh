#!/usr/bin/env bash
# LaTeX for paper.pdf: from the distribution where we may install packages; otherwise everything but the PDF is made.
set -euo pipefail
packages="texlive-latex-recommended texlive-fonts-recommended texlive-pictures texlive-science lmodern"

command -v pdflatex >/dev/null && kpsewhich booktabs.sty >/dev/null && kpsewhich algorithm2e.sty >/dev/null && exit 0
explain() {
  echo "LaTeX is not installed and cannot be installed from here ($1): everything but paper.pdf will be made."
  echo "For the PDF, install a TeX distribution with booktabs and algorithm2e, e.g. on Debian or Ubuntu:"
  echo "  sudo apt-get install --no-install-recommends $packages"
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
printf '\033[1m%s\033[0m\n' "Installing LaTeX from the distribution (about 200 MB to download)"
export DEBIAN_FRONTEND=noninteractive
{ $as_root apt-get update -q && $as_root apt-get install -y -q --no-install-recommends $packages; } >/dev/null 2>&1 || explain "apt-get failed"
