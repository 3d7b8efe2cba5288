"""A release in the registries that there are: SQLite, and MLflow's server over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from shop import EACH, release
from support import mlflow_server

from lookalike import artifacts
from lookalike.errors import ArtifactError
from lookalike.serving import registry
from lookalike.serving.release import champion, load_champion, log, point, stored
from lookalike.tracking import Tracking


@pytest.fixture(scope="module", params=["sqlite", "server"])
def tracking(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tracking]:
    folder = tmp_path_factory.mktemp("registry")
    if request.param == "sqlite":
        yield Tracking.of(str(folder), "shop", None)
        return
    with mlflow_server(folder) as url:
        yield Tracking(url, "shop")


def aliases(tracking: Tracking) -> dict[str, int]:
    found = tracking.client.get_registered_model("shop").aliases
    return {alias: int(number) for alias, number in found.items()}


def test_a_release_is_logged_pointed_to_and_loaded(tracking: Tracking, tmp_path: Path) -> None:
    assert champion(tracking, "shop") is None
    laid = release(tmp_path)
    numbers = [log(tracking.start("release"), laid, "shop", {"report": "r"}) for _ in range(3)]
    assert numbers == [1, 2, 3]
    point(tracking, "shop", [1])
    assert aliases(tracking) == {"champion": 1}
    point(tracking, "shop", [2, 1])
    assert aliases(tracking) == {"champion": 2, "previous": 1}
    point(tracking, "shop", [1, 2, 1])  # as after a rollback
    assert aliases(tracking) == {"champion": 1, "previous": 2}
    # `previous` is the newest other one that there still is.
    registry.withdraw(tracking, "shop", 2)
    point(tracking, "shop", [3, 2, 1])
    assert aliases(tracking) == {"champion": 3, "previous": 1}
    with pytest.raises(ArtifactError, match="no version 9 of shop"):
        point(tracking, "shop", [9, 1])
    assert aliases(tracking)["champion"] == 3
    rows = load_champion(tracking, "shop").predict(
        pd.DataFrame([{"item_id": "bag-01"}]), params={"k": 2}
    )
    assert rows["rank"].tolist() == [1, 2]
    artifacts.verify(kept := stored(tracking, "shop", 3, tmp_path / "fetched"))
    assert kept.meta["count"] == 3 * EACH
    with pytest.raises(ArtifactError, match="models:/shop/2 cannot be read"):
        stored(tracking, "shop", 2, tmp_path / "gone")
