"""The `evaluate` step, as a cluster's scheduler runs it."""

import sys

from lookalike.cli import main

main(["evaluate", *sys.argv[1:]])
