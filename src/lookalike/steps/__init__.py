"""The steps: a verb a module, each `run(context) -> Result`.

Each takes a recipe and what the step before committed, which it finds in the ledger, and commits
in its turn. Run twice, it changes nothing the second time.
"""

from typing import Final

STEPS: Final = (
    "ingest",
    "duplicates",
    "snapshot",
    "tune",
    "train",
    "embed",
    "index",
    "evaluate",
    "release",
    "query",
)
"""In the order of the main job; also the names of commands, jobs, bundle tasks and modules."""
