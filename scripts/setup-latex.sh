#!/usr/bin/env bash
# LaTeX for paper.pdf: from the distribution where we may install packages; otherwise everything but the PDF is made.
set -euo pipefail
# latex-extra for what algorithm2e needs, publishers for llncs.cls and its bibliography style
packages="texlive-latex-recommended texlive-latex-extra texlive-fonts-recommended texlive-pictures texlive-science texlive-publishers lmodern"
needed="booktabs.sty tikz.sty algorithm2e.sty ifoddpage.sty llncs.cls splncs04.bst"

complete() {
  command -v pdflatex >/dev/null && command -v bibtex >/dev/null || return 1
  for file in $needed; do kpsewhich "$file" >/dev/null || return 1; done
}
complete && exit 0
explain() {
  echo "LaTeX is not installed and cannot be installed from here ($1): everything but PDFs of drawings, paper and manuscript will be made."
  echo "For the PDF, install a TeX distribution with $needed, e.g. on Debian or Ubuntu:"
  echo "  sudo apt-get install --no-install-recommends $packages"
  exit 0
}
. "$(dirname "$0")/packages.sh"
may_install LaTeX "250 MB"
# shellcheck disable=SC2086
install $packages || explain "apt-get failed"
