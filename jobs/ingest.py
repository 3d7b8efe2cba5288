"""The `ingest` step, as a cluster's scheduler runs it."""

import sys

from lookalike.cli import main

main(["ingest", *sys.argv[1:]])
