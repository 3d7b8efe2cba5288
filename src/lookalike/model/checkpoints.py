"""Where a training stands, kept so that other processes can go on from there."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookalike import artifacts
from lookalike.errors import NO_ROOM, DamagedError, LookalikeError

KIND = "checkpoint"
KEPT = 3


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training: versioned folders below a folder or URI."""

    root: str

    def newest(self) -> artifacts.Artifact | None:
        """The one with the most steps that is whole; None where there is none.

        Raises:
            LookalikeError: what is there cannot be listed.
        """
        try:
            found = self._by_step()
        except OSError as error:
            raise LookalikeError(
                f"the checkpoints in {self.root} cannot be listed ({error})",
                remedy="See what stands there instead of a folder, or who may read it",
            ) from error
        for artifact in found:
            try:
                artifacts.verify(artifact)
            except LookalikeError:
                continue  # damaged: the one before it costs an interval, no more
            except OSError as error:  # whole, for all anybody knows: not to be begun anew without
                raise LookalikeError(
                    f"the checkpoint {artifact.uri} cannot be read ({error})",
                    remedy="Run `lookalike train` again once it can",
                ) from error
            return artifact
        return None

    def save(self, built: Path, step: int, place: dict[str, Any]) -> None:
        """Commit a checkpoint, then remove all but the last few.

        Args:
            built: local folder that holds its files.
            step: steps done, over all epochs.
            place: what JSON can hold of the state.

        Raises:
            LookalikeError: there is no room for it.
            OSError: it could not be written.
        """
        try:
            kept = artifacts.commit(self.root, KIND, built, {"step": step, "place": place})
        except OSError as error:
            if error.errno not in NO_ROOM:  # a storage's bad moment: to begin again may do
                raise
            raise LookalikeError(
                f"the checkpoint at step {step:,} could not be written to {self.root} "
                f"({error.strerror or error})",
                remedy="Make room there, then run `lookalike train` again: it goes on from the "
                "checkpoint before",
            ) from error
        with suppress(OSError):  # what cannot be removed takes room, no more
            others = [a for a in self._by_step() if a.uri != kept.uri]
            # One of as many steps or more was passed over: this training went on from before it.
            before = [a for a in others if a.meta["step"] < step]
            passed_over = [a for a in others if a.meta["step"] >= step]
            for old in [*passed_over, *before[KEPT - 1 :]]:
                artifacts.remove(old.uri)

    def remove(self) -> None:
        """Remove them all."""
        artifacts.remove(self.root)

    def _by_step(self) -> list[artifacts.Artifact]:
        found = []
        for uri in artifacts.folders(self.root):
            with suppress(DamagedError):  # as one that is damaged elsewhere
                if (manifest := artifacts.manifest_at(uri, KIND)) is not None:
                    found.append(artifacts.Artifact(uri, manifest))
        return sorted(found, key=lambda artifact: int(artifact.meta["step"]), reverse=True)
