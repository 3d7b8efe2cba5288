"""The `snapshot` step, as a cluster's scheduler runs it."""

import sys

from lookalike.cli import main

main(["snapshot", *sys.argv[1:]])
