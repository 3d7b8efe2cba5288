import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pytest

from lookalike import artifacts
from lookalike.errors import ArtifactError, ConfigError, LookalikeError


@pytest.fixture
def committed(tmp_path: Path) -> artifacts.Artifact:
    built = tmp_path / "built"
    (built / "deep").mkdir(parents=True)
    (built / "a.bin").write_bytes(b"one" * 1000)
    (built / "deep" / "b.bin").write_bytes(b"two")
    return artifacts.commit(str(tmp_path / "root"), "encoder", built, {"made_from": 7})


def test_what_is_committed_opens_and_verifies(committed: artifacts.Artifact) -> None:
    opened = artifacts.open_artifact(committed.uri, "encoder")
    artifacts.verify(opened)
    assert opened == committed
    assert [entry.path for entry in opened.manifest.files] == ["a.bin", "deep/b.bin"]


def test_commits_never_share_a_folder(tmp_path: Path) -> None:
    built = tmp_path / "built"
    built.mkdir()
    uris = {artifacts.commit(str(tmp_path / "root"), "report", built, {}).uri for _ in range(20)}
    assert len(uris) == 20


def test_the_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at every copy in turn, a commit leaves nothing that opens."""
    built = tmp_path / "built"
    built.mkdir()
    for name in ("a", "b", "c"):
        (built / name).write_bytes(b"x")
    copy = artifacts.copy_in
    for stop_at in range(3):
        copies = 0

        def killed(source: Path, uri: str, stop_at: int = stop_at) -> None:
            nonlocal copies
            if copies == stop_at:
                raise KeyboardInterrupt
            copies += 1
            copy(source, uri)

        monkeypatch.setattr(artifacts, "copy_in", killed)
        root = tmp_path / f"root{stop_at}"
        with pytest.raises(KeyboardInterrupt):
            artifacts.commit(str(root), "report", built, {})
        for folder in root.glob("*"):
            assert not artifacts.exists(str(folder), "report")
    monkeypatch.setattr(artifacts, "copy_in", copy)
    assert artifacts.exists(
        artifacts.commit(str(tmp_path / "root0"), "report", built, {}).uri, "report"
    )


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_is_found_by_verify(committed: artifacts.Artifact) -> None:
    flip(Path(committed.uri) / "a.bin")
    with pytest.raises(ArtifactError, match=r"a\.bin is not the file that was committed"):
        artifacts.verify(artifacts.open_artifact(committed.uri, "encoder"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda uri: (uri / "a.bin").unlink(), r"a\.bin is missing"),
        (lambda uri: (uri / "a.bin").write_bytes(b"short"), r"a\.bin has 5 bytes, not 3,000"),
        (lambda uri: (uri / "manifest.json").unlink(), "has no manifest.json"),
        (lambda uri: (uri / "manifest.json").write_text("{"), "cannot be read"),
        (lambda uri: (uri / "manifest.json").write_text("{}"), "has format None"),
    ],
)
def test_cheap_damage_is_found_on_opening(committed, damage, said: str) -> None:
    damage(Path(committed.uri))
    with pytest.raises(ArtifactError, match=said):
        artifacts.open_artifact(committed.uri, "encoder")


def test_what_cannot_be_read_is_not_taken_for_lost(committed: artifacts.Artifact) -> None:
    """A step that took it so would do again what is done."""
    path = Path(committed.uri) / "manifest.json"
    path.rename(path.with_suffix(".aside"))
    assert not artifacts.exists(committed.uri, "encoder")
    path.mkdir()
    with pytest.raises(LookalikeError, match=r"manifest\.json .*cannot be read") as raised:
        artifacts.exists(committed.uri, "encoder")
    assert not isinstance(raised.value, ArtifactError)
    path.rmdir()
    path.with_suffix(".aside").rename(path)
    assert artifacts.exists(committed.uri, "encoder")
    assert not artifacts.exists(f"{path}/below", "encoder")


def test_a_manifest_that_was_written_in_is_refused(committed: artifacts.Artifact) -> None:
    path = Path(committed.uri) / "manifest.json"
    raw = path.read_bytes()
    refused = 0
    for place in range(len(raw)):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        try:
            manifest = artifacts.open_artifact(committed.uri, "encoder").manifest
        except ArtifactError:
            refused += 1
        else:
            assert manifest == committed.manifest  # another white space says the same
    assert refused > 0.7 * len(raw)


def test_other_kinds_and_formats_are_refused(committed: artifacts.Artifact) -> None:
    with pytest.raises(ArtifactError, match=r"is a 'encoder'\. Allowed: a 'index'"):
        artifacts.open_artifact(committed.uri, "index")
    path = Path(committed.uri) / "manifest.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"format": 3}))
    with pytest.raises(ArtifactError, match=r"format 3\. Allowed: format 1 or 2"):
        artifacts.open_artifact(committed.uri, "encoder")


def test_fingerprints_do_not_depend_on_the_order_of_keys() -> None:
    assert artifacts.fingerprint({"a": 1, "b": 2}) == artifacts.fingerprint({"b": 2, "a": 1})
    assert artifacts.fingerprint({"a": 1}) != artifacts.fingerprint({"a": 2})


def test_spark_reads_volumes_by_a_file_system_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = "/Volumes/main/shop/files/x y"
    assert artifacts.plain_uri(volume) == f"file://{volume}"
    assert artifacts.plain_uri("s3://bucket/key") == "s3://bucket/key"
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "15.4")
    assert artifacts.plain_uri(volume) == f"dbfs:{volume}"
    assert artifacts.plain_uri("/tmp/x%20y") == "file:///tmp/x%20y"


def test_local_folders_are_told_from_remote_ones(tmp_path: Path) -> None:
    assert artifacts.local_path("/a b/c") == Path("/a b/c")
    assert artifacts.local_path("a/b") == Path("a/b").absolute()
    for uri in ("file:/a%20b/c", "file:///a%20b/c"):
        assert artifacts.local_path(uri) == Path("/a b/c")
    for uri in ("s3://bucket/key", "dbfs:/x", "abfss://c@a.dfs.core.windows.net/x"):
        assert artifacts.local_path(uri) is None
    with pytest.raises(ConfigError, match="no file system for 'nosuch://x/y'"):
        artifacts.filesystem("nosuch://x/y")
    inner, path = artifacts.filesystem("memory://root/x")  # by fsspec
    inner.create_dir(path)
    assert inner.get_file_info(path).type == pa.fs.FileType.Directory
    assert artifacts.filesystem((tmp_path / "x").as_uri())[1] == str(tmp_path / "x")


_KILLED = """
import os, signal
from lookalike.artifacts import workbench
with workbench() as folder:
    (folder / "block").write_bytes(b"x")
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_and_what_others_use_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # it is asked for once
    with artifacts.workbench() as own:
        done = subprocess.run(
            [sys.executable, "-c", _KILLED], stdout=subprocess.PIPE, text=True, check=False
        )
        left = Path(done.stdout.strip())
        assert (left / "block").exists()
        assert own.exists()
        artifacts._sweep.cache_clear()  # as another process
        with artifacts.workbench() as other:
            assert other.exists()
        assert own.exists()
    assert not any(folder.exists() for folder in (left, own, other))
