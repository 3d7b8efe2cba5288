"""Where a training stands: kept whole or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from lookalike import artifacts
from lookalike.model.checkpoints import KEPT, KIND, Checkpoints


def save(kept: Checkpoints, folder: Path, step: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "state").write_bytes(bytes(range(256)) * step)
    kept.save(folder, step, {"epoch": step // 10})


def test_the_last_few_stay(tmp_path: Path) -> None:
    kept = Checkpoints(str(tmp_path / "kept"))
    assert kept.newest() is None
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / ".DS_Store").write_bytes(b"")
    for step in range(10, 70, 10):  # several within a second: their names do not tell the order
        save(kept, tmp_path / "built", step)
        newest = kept.newest()
        assert newest is not None
        assert newest.meta == {"step": step, "place": {"epoch": step // 10}}
    steps = {m.meta["step"] for _, m in artifacts.survey(kept.root, KIND) if m is not None}
    assert steps == set(range(60, 60 - 10 * KEPT, -10))
    kept.remove()
    assert kept.newest() is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "no manifest", "its manifest"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: str) -> None:
    kept = Checkpoints(str(tmp_path / "kept"))
    for step in (10, 20):
        save(kept, tmp_path / "built", step)
    newest = kept.newest()
    assert newest is not None
    state = Path(newest.uri) / "state"
    match damage:
        case "cut":
            state.write_bytes(state.read_bytes()[:-1])
        case "flipped":
            state.write_bytes(b"\x07" + state.read_bytes()[1:])
        case "missing":
            state.unlink()
        case "no manifest":
            (Path(newest.uri) / artifacts.MANIFEST).unlink()
        case "its manifest":
            manifest = Path(newest.uri) / artifacts.MANIFEST
            manifest.write_text(manifest.read_text().replace('"epoch": 2', '"epoch": 3'))
    left = kept.newest()
    assert left is not None
    assert left.meta["step"] == 10


_WITH_LITTLE_ROOM = """
import resource, sys
from pathlib import Path
from lookalike.model.checkpoints import Checkpoints

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
Checkpoints(sys.argv[1]).save(Path(sys.argv[2]), 30, {})
"""


def test_a_full_disk_is_told_and_leaves_the_one_before(tmp_path: Path) -> None:
    kept = Checkpoints(str(tmp_path / "kept"))
    save(kept, tmp_path / "built", 10)
    larger = tmp_path / "larger"
    larger.mkdir()
    (larger / "state").write_bytes(b"x" * 100_000)
    done = subprocess.run(
        [sys.executable, "-c", _WITH_LITTLE_ROOM, kept.root, str(larger)],
        stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    said = done.stderr.splitlines()[-1]
    assert "LookalikeError: the checkpoint at step 30 could not be written to" in said
    assert "File too large" in said
    left = kept.newest()
    assert left is not None
    assert left.meta["step"] == 10


def test_a_storages_bad_moment_is_no_full_disk(tmp_path: Path) -> None:
    """To begin again may do: the error stays what it was."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="Not a directory"):
        save(Checkpoints(str(tmp_path / "file" / "kept")), tmp_path / "built", 10)
