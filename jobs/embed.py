"""The `embed` step, as a cluster's scheduler runs it."""

import sys

from lookalike.cli import main

main(["embed", *sys.argv[1:]])
