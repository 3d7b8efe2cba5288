"""The contract on MLflow's real scoring server: every field of it, and the manual's examples."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import psutil
import pytest
import requests
from PIL import Image
from shop import EACH, LIMITS, Item, ending, items, release
from support import free_port, wait_for

from lookalike.encoder import Encoder
from lookalike.errors import DataError, RequestError
from lookalike.serving.client import Endpoint, Query
from lookalike.serving.release import log, point
from lookalike.tracking import Tracking

MANUAL = Path(__file__).parents[2] / "docs" / "serving.md"
NAME = "shop"
SERVED_BY = os.environ.get("LOOKALIKE_SERVED_BY", sys.executable)
"""The Python that serves."""
SHOP = {item.item_id: item for item in items()}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A release of the shop, logged, registered, promoted, and served by `mlflow models serve`."""
    folder = tmp_path_factory.mktemp("shop")
    tracking = Tracking.of(str(folder), NAME, None)
    run = tracking.start("release")
    point(tracking, NAME, [log(run, release(folder), NAME, {})])
    port = free_port()
    command = [SERVED_BY, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["--model-uri", f"models:/{NAME}@champion", "--port", str(port)]
    log_file = folder / "server.log"
    with log_file.open("w") as output:
        server = psutil.Popen(
            command,
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ
            | {
                "MLFLOW_TRACKING_URI": tracking.uri,
                "PATH": f"{Path(SERVED_BY).parent}{os.pathsep}{os.environ['PATH']}",
            },
        )
        found = f"http://127.0.0.1:{port}"
        with ending(server):
            wait_for(server, f"{found}/ping", log_file)
            yield found


def post(url: str, content: Any, **options: Any) -> requests.Response:
    return requests.post(f"{url}/invocations", json=content, timeout=60, **options)


def ask(url: str, *rows: dict[str, Any], **params: Any) -> list[dict[str, Any]]:
    answer = post(url, {"dataframe_records": list(rows), "params": params})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["predictions"]
    return found


def naive(photo: bytes) -> list[tuple[Item, float]]:
    """All items by distance from a photo, by the encoder and numpy alone."""
    from shop import ENCODER

    encoder = Encoder.open(str(ENCODER))
    (query,) = encoder.encode([photo])
    vectors = encoder.encode([item.photo for item in SHOP.values()])
    found = zip(SHOP.values(), (1 - vectors @ query).tolist(), strict=True)
    return sorted(found, key=lambda pair: pair[1])


def base(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_an_image_by_any_road_finds_the_same(url: str) -> None:
    photo = SHOP["boot-05"].photo
    expected = [item.item_id for item, _ in naive(photo)][:5]
    pixels = np.asarray(Image.open(io.BytesIO(photo)))
    rows = [
        {"image": base(photo)},
        {"image": "data:image/png;base64," + base(photo)},
        {"input": base(photo)},
        {"input": base(pixels.tobytes())},
        {"vector": Encoder.open(str(_encoder())).encode([photo])[0].tolist()},
    ]
    answers = ask(url, *rows, k=5, collapse=False)
    for number in range(len(rows)):
        own = [row for row in answers if row["query"] == number]
        assert [row["item_id"] for row in own] == expected
        assert [row["rank"] for row in own] == [1, 2, 3, 4, 5]
        assert own[0]["distance"] == pytest.approx(0, abs=1e-6)
        assert all(0 < row["similarity"] <= 1 for row in own)


def _encoder() -> Path:
    from shop import ENCODER

    return ENCODER


def test_what_is_chosen_is_what_naive_code_chooses(url: str) -> None:
    item = SHOP["boot-01"]
    others = [(o, d) for o, d in naive(item.photo) if o.item_id != "boot-01"]
    asked = {"item_id": "boot-01", "key": "mine"}

    def found(**params: Any) -> list[str]:
        rows = ask(url, asked, **params)
        assert all(row["query"] == "mine" for row in rows)
        return [row["item_id"] for row in rows]

    def ids(pairs: list[tuple[Item, float]]) -> list[str]:
        return [o.item_id for o, _ in pairs]

    apart = [(o, d) for o, d in others if o.item_id != "boot-02"]
    assert found(k=4) == ids(apart)[:4]
    assert found(k=4, collapse=False) == ids(others)[:4]
    assert found(k=3, collapse=False, exclude_self=False) == ["boot-01", *ids(others)[:2]]
    # Where it may be found itself, it stands for its product.
    assert found(k=4, exclude_self=False) == ["boot-01", *ids(apart)[:3]]
    middle = apart[5][1] + 1e-4
    assert found(k=20, within=middle) == ids(apart)[:6]
    where = "label == 'bags' and price < 100"
    cheap = [p for p in apart if p[0].label == "bags" and float(p[0].attributes["price"]) < 100]
    assert found(k=20, where=where) == ids(cheap)
    brands, seen = [], set()
    for other, distance in apart:
        if other.attributes["brand"] not in seen:
            seen.add(other.attributes["brand"])
            brands.append((other, distance))
    assert found(k=20, max_per="brand: 1") == ids(brands)
    assert len(brands) == 3
    assert found(k=20, where="brand == 'nobody'") == []


def test_numbers_come_back_as_they_were_sent(url: str) -> None:
    rows = [{"item_id": 42, "key": 7}, {"vector": _vector()}, {"item_id": "bag-01"}]
    found = ask(url, *rows, k=1)
    assert [row["query"] for row in found] == [7, 1, 2]
    assert "no item '42' in" in found[0]["error"]["message"]


def test_what_is_asked_for_is_added(url: str) -> None:
    rows = ask(url, {"item_id": "bag-03"}, k=3, thumbnails=True, attributes=True, about=True)
    for row in rows:
        assert row["attributes"] == SHOP[row["item_id"]].attributes
        picture = base64.b64decode(row["thumbnail"].removeprefix("data:image/jpeg;base64,"))
        with Image.open(io.BytesIO(picture)) as image:
            assert (image.format, max(image.size)) == ("JPEG", 8)
        assert row["about"]["items"] == 3 * EACH
        assert row["about"]["items_version"] == 7
    assert set(ask(url, {"item_id": "bag-03"}, k=1)[0]) == {
        "query", "rank", "item_id", "label", "distance", "similarity", "error"
    }  # fmt: skip


def test_rows_that_cannot_be_answered_have_codes(url: str) -> None:
    large = io.BytesIO()
    Image.new("1", (200, 200)).save(large, "PNG")
    whole = SHOP["bag-01"].photo
    bad = [
        ({"key": "a"}, "no_query"),
        ({"item_id": "bag-01", "vector": [1.0]}, "many_queries"),
        ({"item_id": "gone"}, "no_such_item"),
        ({"text": "a red bag"}, "wrong_kind"),
        ({"image": "no base64!"}, "not_base64"),
        ({"image": 5}, "not_base64"),
        ({"image": base(b"some text")}, "not_an_image"),
        ({"image": ""}, "empty"),
        ({"image": base(whole[:-30])}, "damaged"),
        ({"image": base(large.getvalue())}, "too_large"),
        ({"image": base(bytes(6_000))}, "too_many_bytes"),
        ({"vector": "words"}, "not_a_vector"),
        ({"vector": [1.0, 2.0]}, "wrong_length"),
        ({"vector": [0.0] * len(_vector())}, "zero_vector"),
    ]
    rows = ask(url, {"item_id": "bag-01"}, *(row for row, _ in bad), {"item_id": "bag-02"}, k=1)
    assert [row["rank"] for row in rows] == [1, *[0] * len(bad), 1]
    assert [row["error"]["code"] for row in rows[1:-1]] == [code for _, code in bad]
    assert all(row["item_id"] is None and row["error"]["message"] for row in rows[1:-1])
    assert rows[1]["query"] == "a"


def _vector() -> list[float]:
    vector: list[float] = Encoder.open(str(_encoder())).encode([SHOP["bag-01"].photo])[0].tolist()
    return vector


SECRET = "do-not-repeat-me"
ASKED = b'{"dataframe_records": [{"item_id": "do-not-repeat-me"}], "params": '


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"k": 0}, "k = 0. Allowed: 1 to 20"),
        ({"k": 1_000}, "serving.max_k"),
        ({"where": "price <"}, "Allowed: names, strings, numbers"),
        ({"where": "colour == 'red'"}, "brand, price"),
        ({"max_per": "brand"}, "'brand: 2, label: 5'"),
        ({"min_similarity": 2}, "a probability between 0 and 1"),
        ({"effort": -1}, "at least 1"),
    ],
)
def test_a_refused_request_says_what_was_expected(
    url: str, params: dict[str, Any], said: str
) -> None:
    answer = post(url, {"dataframe_records": [{"item_id": SECRET}], "params": params})
    assert answer.status_code == 400
    assert said in answer.json()["message"]
    assert SECRET not in answer.text
    assert "Traceback" not in answer.text


def test_too_many_rows_are_refused_by_the_limits_name(url: str) -> None:
    rows = [{"item_id": SECRET}] * (LIMITS.rows + 1)
    answer = post(url, {"dataframe_records": rows})
    assert answer.status_code == 400
    assert "serving.max_rows" in answer.json()["message"]
    assert SECRET not in answer.text


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"item_id": "do-not-repeat-me"', "cannot be read as JSON"),
        (b"do-not-repeat-me\xff", "cannot be read as JSON"),
        (b'["do-not-repeat-me"]', "no JSON object"),
        (b'{"rows": [{"item_id": "do-not-repeat-me"}]}', "dataframe_records"),
        (b'{"dataframe_records": {"item_id": "do-not-repeat-me"}}', "dataframe_records"),
        (b'{"dataframe_records": "do-not-repeat-me"}', "dataframe_records"),
        (
            b'{"dataframe_split": {"columns": ["item_id"], "data": [["do-not-repeat-me", 2]]}}',
            "an object",
        ),
        (b'{"dataframe_records": []}', "dataframe_records"),
        (b'{"dataframe_records": [{"image_id": "do-not-repeat-me"}]}', "dataframe_records"),
        (b'{"inputs": ["do-not-repeat-me"]}', "dataframe_records"),
        (b'{"instances": [["do-not-repeat-me"]]}', "dataframe_records"),
        (b'{"inputs": "do-not-repeat-me"}', "dataframe_records"),
        (b'{"inputs": {"item_id": ["do-not-repeat-me", "b"], "vector": [1]}}', "dataframe_records"),
        (b'{"inputs": [["do-not-repeat-me"], ["a", "b"]]}', "dataframe_records"),
        (ASKED + b'{"k": "many-do-not-repeat-me"}}', "k has the type str. Allowed: a whole number"),
        (ASKED + b'{"k": true}}', "k has the type bool. Allowed: a whole number"),
        (ASKED + b'{"where": 5}}', "where has the type int. Allowed: a text"),
        (ASKED + b'{"within": "near"}}', "within has the type str. Allowed: a number"),
        (ASKED + b'{"about": 1}}', "about has the type int. Allowed: true or false"),
        (ASKED + b"[1]}", "an object of names and values"),
        (ASKED + b'{"wher": "label == 1"}}', "not known. Allowed: k, within, min_similarity"),
    ],
)
def test_what_cannot_be_read_is_a_400(url: str, body: bytes, said: str) -> None:
    answer = requests.post(
        f"{url}/invocations", data=body, headers={"Content-Type": "application/json"}, timeout=60
    )
    assert answer.status_code == 400
    assert said in answer.json()["message"]
    assert "Traceback" not in answer.text
    assert SECRET not in answer.text


@pytest.mark.parametrize("kind", [None, "text/csv", "application/x-parquet", "image/jpeg"])
def test_other_layouts_are_refused_or_read(url: str, kind: str | None) -> None:
    body = b'item_id,key\n"do-not-repeat-me' + b"\x00" * (kind != "text/csv")
    headers = {} if kind is None else {"Content-Type": kind}
    answer = requests.post(f"{url}/invocations", data=body, headers=headers, timeout=60)
    assert answer.status_code in (400, 415)
    assert "Traceback" not in answer.text
    assert SECRET not in answer.text


def test_the_client_asks_all_of_it(url: str, tmp_path: Path) -> None:
    shop, photo = Endpoint(url), tmp_path / "boot.png"
    photo.write_bytes(SHOP["boot-05"].photo)
    expected = [item.item_id for item, _ in naive(SHOP["boot-05"].photo)][:4]
    for query in ({"image": photo}, {"image": photo.read_bytes()}, {"vector": None}):
        given = query if query.get("image") else {
            "vector": Encoder.open(str(_encoder())).encode([photo.read_bytes()])[0]
        }  # fmt: skip
        found = shop.similar(**given, k=4, collapse=False)
        assert [similar.item_id for similar in found] == expected
    (found, *_) = shop.similar(item_id="bag-01", k=3, thumbnails=True, attributes=True)
    assert found.thumbnail is not None
    assert found.thumbnail[:2] == b"\xff\xd8"
    assert found.attributes == SHOP[found.item_id].attributes
    # Fewer than k is an answer.
    assert len(shop.similar(item_id="bag-01", where="label == 'bags'", k=20)) == EACH - 1
    assert shop.about()["items"] == 3 * EACH
    with pytest.raises(DataError, match="takes images"):
        shop.similar(text="a red bag")
    with pytest.raises(DataError, match="cannot be read"):
        shop.similar(tmp_path / "nowhere.png")
    with pytest.raises(RequestError, match="400: k = 21"):
        shop.similar(item_id="bag-01", k=21)


def test_many_questions_are_asked_in_parts(url: str, tmp_path: Path) -> None:
    ids = [*SHOP, "gone"]
    queries = [Query(item_id=item_id) for item_id in ids]
    queries.insert(5, Query(image=tmp_path / "nowhere.png"))
    answers = Endpoint(url, rows=7).similar_to(queries, k=2)
    unread = answers.pop(5)
    assert isinstance(unread, DataError)
    assert "nowhere.png cannot be read" in str(unread)
    for item_id, answer in zip(ids[:-1], answers, strict=False):
        photo, family = SHOP[item_id].photo, SHOP[item_id].family
        others = [i.item_id for i, _ in naive(photo)
                  if i.item_id != item_id and (family is None or i.family != family)]  # fmt: skip
        one = others[0]
        assert not isinstance(answer, DataError)
        assert answer[0].item_id == one
    assert isinstance(answers[-1], DataError)
    assert len(answers) == len(ids)


def examples() -> list[tuple[str, str]]:
    """Language and code of the manual's examples."""
    blocks = re.findall(r"```(bash|python|javascript)\n(.*?)```", MANUAL.read_text(), re.DOTALL)
    assert {language for language, _ in blocks} == {"bash", "python", "javascript"}
    return blocks


@pytest.mark.parametrize(("language", "code"), examples(), ids=lambda text: shlex.quote(text)[:20])
def test_the_manuals_examples_run(url: str, tmp_path: Path, language: str, code: str) -> None:
    (tmp_path / "boot.png").write_bytes(SHOP["boot-01"].photo)
    code = code.replace("http://127.0.0.1:5001", url)
    file = tmp_path / "example.mjs"
    file.write_text(code)
    program = {
        "bash": ["bash", "-ec", code],
        "python": [sys.executable, "-c", code],
        "javascript": ["node", str(file)],
    }[language]
    if shutil.which(program[0]) is None:
        pytest.skip(f"{program[0]} is not on this machine")
    done = subprocess.run(
        program, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    # All of them ask for a boot, and all of them get boots.
    assert "boot-" in done.stdout
    if language == "bash":
        rows = json.loads(done.stdout)["predictions"]
        assert rows[0]["rank"] == 1
        assert rows[0]["label"] == "boots"


@pytest.mark.soak
def test_all_of_it_in_an_environment_of_the_models_own_requirements(tmp_path: Path) -> None:
    """These tests again, with a server in an environment made from the package registry."""
    tracking = Tracking.of(str(tmp_path), NAME, None)
    number = log(tracking.start("release"), release(tmp_path), NAME, {})
    with tracking.connected():
        folder = mlflow.artifacts.download_artifacts(f"models:/{NAME}/{number}")
    python = tmp_path / "environment" / "bin" / "python"
    venv.create(python.parents[1], with_pip=True)
    requirements = str(Path(folder) / "requirements.txt")
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", requirements], check=True)
    packages = subprocess.run(
        [python, "-m", "pip", "list"], check=True, capture_output=True, text=True
    ).stdout
    assert not re.search(r"^(tensorflow|pyspark|lookalike)\b", packages, re.MULTILINE)
    again = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not soak", __file__],
        env=os.environ | {"LOOKALIKE_SERVED_BY": str(python)},
        cwd=MANUAL.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stdout
