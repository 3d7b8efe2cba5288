"""The `release` step, as a cluster's scheduler runs it."""

import sys

from lookalike.cli import main

main(["release", *sys.argv[1:]])
