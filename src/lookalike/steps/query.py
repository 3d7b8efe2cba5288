"""Ask the champion: what looks like this?"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from lookalike import artifacts
from lookalike.errors import DataError
from lookalike.steps.context import Context, Result

STEP = "query"


class Found(BaseModel):
    """A similar item: see `lookalike.serving.client.Similar`."""

    rank: int
    item_id: str
    label: str | None
    distance: float
    similarity: float


class Answered(Result):
    """Neighbours by query, in the order asked."""

    answers: dict[str, list[Found]]

    @property
    def words(self) -> str:
        found = sum(len(answer) for answer in self.answers.values())
        return f"{len(self.answers)} queries, {found} similar items"


def run(
    context: Context, paths: Sequence[Path] = (), k: int = 10, url: str | None = None
) -> Answered:
    """Find similar items.

    Args:
        context: whose champion is asked.
        paths: image files; none: the sample queries that `evaluate` drew for the champion.
        k: neighbours of each.
        url: of an endpoint to ask; None asks in this process.

    Raises:
        DataError: no such file, not an image, or no champion yet.
        RequestError: no endpoint there.
    """
    from lookalike.serving.client import Endpoint, similar_of
    from lookalike.serving.release import load_champion

    files = {str(path): _read(path) for path in paths} or _samples(context)
    if url is not None:
        endpoint = Endpoint(url)
        found = {name: endpoint.similar(data, k=k) for name, data in files.items()}
    else:
        import pandas as pd

        model = load_champion(context.tracking, context.config.model_name)
        found = {}
        for name, data in files.items():
            row = pd.DataFrame([{"image": base64.b64encode(data).decode()}])
            answer = model.predict(row, params={"k": k})
            found[name] = similar_of(answer.to_dict("records"))
    return Answered(
        answers={
            name: [Found(**similar.__dict__) for similar in rows] for name, rows in found.items()
        }
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"the query image {path} cannot be read ({error.strerror})",
            remedy="Name image files that exist",
        ) from error


def _samples(context: Context) -> dict[str, bytes]:
    from lookalike.serving.release import need_champion

    tags = need_champion(context.tracking, context.config.model_name).tags
    report = artifacts.open_artifact(tags["report"], "report")
    with artifacts.workbench() as folder:
        local = artifacts.fetch(report, folder)
        return {str(p): p.read_bytes() for p in sorted((local / "queries").glob("*.png"))}
