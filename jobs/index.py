"""The `index` step, as a cluster's scheduler runs it."""

import sys

from lookalike.cli import main

main(["index", *sys.argv[1:]])
