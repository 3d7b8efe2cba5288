"""The releases of a model: which there are, and which is the champion."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from lookalike.errors import ArtifactError, DataError
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
        count = len(self.releases)
        return f"{self.name} has {count:,} release{'' if count == 1 else 's'}"


def listed(context: Context) -> Releases:
    """All releases; where a release was killed before its alias, the alias is mended."""
    from lookalike.serving import registry

    name = context.config.model_name
    if commits := release.commits(context):
        with suppress(ArtifactError):  # the champion is shown as removed
            release.follow(context, commits)
    known = {v.number: v for v in registry.versions(context.tracking, name)}
    found = []
    for commit in _passed(commits)[::-1]:
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
        passed = ", ".join(str(c.outputs["number"]) for c in _passed(commits)) or "none"
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
        release.follow(context, commits)
        return Released(**last.outputs | {"unchanged": True})
    gone: list[dict[str, Any]] = list(last.outputs.get("withdrawn", ()))
    order = [commit.outputs["number"] for commit in _passed(commits)]
    if order.index(number) < order.index(last.outputs["number"]):
        # What gives way to an older one stays away: the next scheduled run would bring it back.
        gone.append(last.inputs)
    result = Released(
        **target.outputs
        | {
            "unchanged": False,
            "instead_of": last.outputs["number"],
            "withdrawn": tuple(one for one in gone if one != target.inputs),
        }
    )
    recorded, since = context.config.recorded(), release.since(context, commits)
    context.ledger.commit(release.STEP, target.inputs, result.model_dump(), recorded, since)
    release.follow(context, release.commits(context))
    return result


def rollback(context: Context) -> Released:
    """Make the release before the champion the champion again; of those that were not withdrawn.

    Raises:
        DataError: there is none before it.
    """
    commits = release.commits(context)
    older: list[int] = []
    if commits:
        last, passed = commits[0].outputs, _passed(commits)
        place = [commit.outputs["number"] for commit in passed].index(last["number"])
        withdrawn = last.get("withdrawn", ())
        older = [c.outputs["number"] for c in passed[:place] if c.inputs not in withdrawn]
    if not older:
        raise DataError(
            f"no release of {context.config.model_name} came before its champion"
            if commits
            else f"the model {context.config.model_name!r} has no champion yet",
            remedy="Run `lookalike releases` for those that there are, and promote one",
        )
    return promote(context, older[-1])


def _passed(commits: list[Commit]) -> list[Commit]:
    """Of commits, the newest first, those of versions that passed the gate, the oldest first."""
    return [commit for commit in commits[::-1] if commit.outputs.get("instead_of") is None]
