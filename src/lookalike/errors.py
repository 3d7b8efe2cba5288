"""What can go wrong, with the facts: what was found, what is allowed, what to do."""

from __future__ import annotations

import errno
import re
from typing import Any, Final

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Of an `OSError` that comes again until somebody makes room."""


class LookalikeError(Exception):
    """An error that a person is meant to read.

    Args:
        fact: what was found, with its name and value.
        allowed: what would have been accepted.
        remedy: what to do now.
    """

    exit_code = 1

    def __init__(self, fact: str, *, allowed: str | None = None, remedy: str | None = None):
        self.fact = fact
        parts = [fact.rstrip(".")]
        if allowed:
            parts.append(f"Allowed: {allowed.rstrip('.')}")
        if remedy:
            parts.append(remedy.rstrip("."))
        super().__init__(". ".join(parts) + ".")

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors travel from Spark's workers; subclasses differ in what they are made from.
        return restored, (type(self), str(self), self.__dict__)


class ConfigError(LookalikeError):
    """The command line or the configuration asks for something that cannot be done."""

    exit_code = 2


class DataError(LookalikeError):
    """The data is not what its description says."""

    exit_code = 3


class ContentError(DataError):
    """These bytes cannot be used. `reason` is one word for counting."""

    def __init__(self, reason: str, fact: str, **facts: str):
        super().__init__(fact, **facts)
        self.reason = reason


class ImageError(ContentError):
    """These bytes cannot be used as an image."""


class ArtifactError(DataError):
    """An artefact is missing, damaged, of an unknown format, or belongs to another."""


class DamagedError(ArtifactError):
    """A file of an artefact is missing, or not what was committed."""


class GateError(LookalikeError):
    """A candidate did not pass the release gate. `rows` is the table that shows why."""

    exit_code = 4
    heads = ("figure", "candidate", "rule", "verdict")

    def __init__(self, fact: str, rows: list[tuple[str, str, str, str]], **facts: str):
        super().__init__(fact, **facts)
        self.rows = rows


class RequestError(LookalikeError):
    """An endpoint was asked for something it does not answer, or did not answer."""

    exit_code = 1


def restored(
    kind: type[LookalikeError], message: str, facts: dict[str, Any] | None = None
) -> LookalikeError:
    """An error as it was in another process."""
    error = kind.__new__(kind, message)
    error.__dict__.update(facts or {})
    return error


def raised_in(text: str) -> LookalikeError | None:
    """The error of ours that a traceback of another process tells of, or None."""
    found = re.search(r"lookalike\.errors\.(\w+): (.+)", text)
    if found is None:
        return None
    return restored(globals().get(found[1], LookalikeError), found[2].strip())


def scrubbed(text: str) -> str:
    """A text without the users, passwords and signatures of the addresses in it."""
    # What stands there in Azure's addresses is a container's name.
    text = re.sub(r"(?<!abfs://)(?<!abfss://)(?<!wasbs://)(?<=://)[^/?#\s]+@", "***@", text)
    return re.sub(r"(?<=://)([^\s?'\"]*)\?[^\s'\"]+", r"\1?***", text)
