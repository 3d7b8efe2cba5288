"""The `query` step, as a cluster's scheduler runs it."""

import sys

from lookalike.cli import main

main(["query", *sys.argv[1:]])
