"""The whole way on other catalogues than the sample: photos in folders, a feed of URLs."""

from __future__ import annotations

import csv
import json
import os
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support import ROOT, SAMPLE, command, idx_files, read_idx, served

from lookalike.images import encode_png
from lookalike.steps import STEPS

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def run(conf: Path, *settings: str) -> dict[str, Any]:
    done = command("run", "--json", "--conf", str(conf), *settings, timeout=1500)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert list(report["steps"]) == list(STEPS)
    return report


def test_photos_in_folders(tmp_path: Path) -> None:
    """conf/folder.yaml as it is shipped."""
    data = os.environ.get("LOOKALIKE_DATA")
    if data is None or not (Path(data) / "grocery").is_dir():
        pytest.skip("LOOKALIKE_DATA names no folder with grocery/: 2,240 photos of 81 classes")
    places = {"tables": str(tmp_path / "tables"), "files": str(tmp_path)}
    settings = [w for k, v in places.items() for w in ("--set", f"warehouse.{k}={v}")]
    report = run(ROOT / "conf" / "folder.yaml", *settings)
    photos = sum(1 for _ in (Path(data) / "grocery").rglob("*.jpg"))
    ingested = report["steps"]["ingest"]
    assert (ingested["seen"], ingested["used"]) == (photos, photos)
    assert report["steps"]["snapshot"]["classes"] == 81
    figures = report["steps"]["evaluate"]["figures"]["A"]
    assert figures["encoder"]["p_at_1"] > figures["raw_pixels"]["p_at_1"]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_a_feed_of_urls(tmp_path: Path) -> None:
    """A shop's feed: 1,000 images at addresses, 20 of them dead, no splits given."""
    (tmp_path / "shop").mkdir()
    files = idx_files(SAMPLE)["train"]
    pixels, labels = (read_idx(Path(files[kind])) for kind in ("images", "labels"))
    rows = np.sort(np.concatenate([np.flatnonzero(labels == c)[:100] for c in range(10)]))
    shop = partial(Quiet, directory=str(tmp_path / "shop"))
    with served(shop) as url, (tmp_path / "feed.csv").open("w") as file:
        feed = csv.writer(file)
        feed.writerow(["sku", "image_url", "category", "price"])
        for n, row in enumerate(rows):
            if n % 50:
                (tmp_path / "shop" / f"{n}.png").write_bytes(encode_png(pixels[row]))
            feed.writerow([f"sku-{n:04d}", f"{url}/{n}.png", labels[row], n % 7])
        file.flush()
        recipe = yaml.safe_load((ROOT / "conf" / "demo.yaml").read_text()) | {
            "name": "feed",
            "warehouse": {"tables": str(tmp_path / "tables"), "files": str(tmp_path)},
            "data": {
                "source": "manifest",
                "table": str(tmp_path / "feed.csv"),
                "item_id": "sku",
                "url": "image_url",
                "label": "category",
            },
            "tune": {"trials": 0},
            "gate": {"above_raw_pixels": False},
        }
        recipe["train"] |= {"epochs": 4}
        conf = tmp_path / "feed.yaml"
        conf.write_text(yaml.safe_dump(recipe))
        report = run(conf)
    ingested = report["steps"]["ingest"]
    assert (ingested["seen"], ingested["used"], ingested["rejected"]) == (1000, 980, 20)
    split = report["steps"]["duplicates"]
    assert split["train"] + split["validation"] + split["test"] == 980
    assert 50 < split["test"] < 150
    assert report["steps"]["index"]["count"] == 980
