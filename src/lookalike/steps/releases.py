"""The releases of a model: which there are, and which is the champion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from lookalike.errors import DataError
from lookalike.steps import release
from lookalike.steps.context import Context, Result
from lookalike.steps.release import Released

if TYPE_CHECKING:
    from lookalike.lake.ledger import Commit


class Release(BaseModel):
    """A version that passed the gate, and what it showed then."""

    number: int
    encoder: str
    index: str
    figures: dict[str, float]
    aliases: tuple[str, ...]
    registered: bool
    """Whether the registry has it still; `clean` removes old ones."""


class Releases(Result):
    """The versions of a model that passed the gate, the newest first."""

    unchanged: bool = True
    name: str
    releases: tuple[Release, ...]

    @property
    def words(self) -> str:
        return f"{self.name} has {len(self.releases):,} releases"


def listed(context: Context) -> Releases:
    """All releases; where a release was killed before its alias, the alias is mended."""
    from lookalike.serving import registry

    name = context.config.model_name
    if release.commits(context):
        release.follow(context)
    known = {v.number: v for v in registry.versions(context.tracking, name)}
    found = []
    for commit in _passed(context)[::-1]:
        number = commit.outputs["number"]
        version = known.get(number)
        found.append(
            Release(
                number=number,
                encoder=commit.outputs["encoder"],
                index=commit.outputs["index"],
                figures=commit.outputs["figures"],
                aliases=version.aliases if version else (),
                registered=version is not None,
            )
        )
    return Releases(name=name, releases=tuple(found))


def promote(context: Context, number: int) -> Released:
    """Make a version that passed the gate the champion.

    Raises:
        DataError: it did not pass, or the registry has it no more.
    """
    from lookalike.serving import registry

    name, commits = context.config.model_name, release.commits(context)
    target = next((c for c in commits if c.outputs["number"] == number), None)
    if target is None:
        passed = ", ".join(str(c.outputs["number"]) for c in _passed(context)) or "none"
        raise DataError(
            f"version {number} of {name} never passed the gate of this warehouse",
            allowed=f"those that did: {passed}",
            remedy="Run `lookalike releases` for what they showed",
        )
    if number not in {v.number for v in registry.versions(context.tracking, name)}:
        raise DataError(
            f"the registry has no version {number} of {name} any more",
            remedy="Promote one that `lookalike releases` shows as registered",
        )
    last = commits[0]
    if last.outputs["number"] == number:
        release.follow(context)
        return Released(**last.outputs | {"unchanged": True})
    # What gives way stays away: the next scheduled run would bring it back.
    gone: list[dict[str, Any]] = [*last.outputs.get("withdrawn", ()), last.inputs]
    result = Released(
        **target.outputs
        | {
            "unchanged": False,
            "instead_of": last.outputs["number"],
            "withdrawn": tuple(one for one in gone if one != target.inputs),
        }
    )
    newest = context.ledger.need(release.STEP).version
    recorded = context.config.recorded()
    context.ledger.commit(release.STEP, target.inputs, result.model_dump(), recorded, newest)
    release.follow(context)
    return result


def rollback(context: Context) -> Released:
    """Make the release before the champion the champion again.

    Raises:
        DataError: there is none before it.
    """
    commits = release.commits(context)
    numbers = [commit.outputs["number"] for commit in _passed(context)]
    place = numbers.index(commits[0].outputs["number"]) if commits else 0
    if place == 0:
        raise DataError(
            f"no release of {context.config.model_name} came before its champion"
            if commits
            else f"the model {context.config.model_name!r} has no champion yet",
            remedy="Run `lookalike releases` for those that there are",
        )
    return promote(context, numbers[place - 1])


def _passed(context: Context) -> list[Commit]:
    """Commits of versions when they passed the gate, the oldest first."""
    return [c for c in release.commits(context)[::-1] if c.outputs.get("instead_of") is None]
