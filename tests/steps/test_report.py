"""The picture of neighbours."""

from pathlib import Path

import numpy as np
from PIL import Image

from lookalike.images import encode_png
from lookalike.steps import report


def test_labels_are_no_mathematics(tmp_path: Path) -> None:
    """Price classes, which matplotlib would take for an empty formula."""
    labels = np.array(["$$", "$10_$50", "$$"])
    pictures = {row: encode_png(np.full((4, 4), 80 * row, np.uint8)) for row in range(3)}
    path = tmp_path / "neighbours.png"
    columns = {"lookalike": np.array([[2, 1], [2, 0]])}
    report.draw_neighbours(np.array([0, 1]), columns, pictures, labels, path)
    with Image.open(path) as drawn:
        assert drawn.width > 100
