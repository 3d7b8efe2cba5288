"""The `tune` step, as a cluster's scheduler runs it."""

import sys

from lookalike.cli import main

# On a schedule the snapshot changes, and with it the search.
main(["tune", "--fresh", *sys.argv[1:]])
