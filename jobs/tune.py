"""The `tune` step, as a cluster's scheduler runs it."""

import sys

from lookalike.cli import main

main(["tune", *sys.argv[1:]])
