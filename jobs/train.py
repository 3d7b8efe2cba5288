"""The `train` step, as a cluster's scheduler runs it."""

import sys

from lookalike.cli import main

main(["train", *sys.argv[1:]])
