"""``python -m cmapkd``."""

from cmapkd.cli import main

main()
