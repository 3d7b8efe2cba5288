"""The `duplicates` step, as a cluster's scheduler runs it."""

import sys

from lookalike.cli import main

main(["duplicates", *sys.argv[1:]])
