"""What tests share: small IDX files, a small recipe, the command line in a process of its own."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from lookalike import artifacts

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "data" / "fashion-mnist-sample"
SECRET = "hunter2-is-no-password"
QUICK = ("--set", "spark.master=local[2]")
"""One process in place of a cluster, where the cluster is not what is tested."""
KILL = "import os, signal\ndef kill(*a, **k): os.kill(os.getpid(), signal.SIGKILL)\n"
FILES = {"train": "train", "test": "t10k"}
"""Beginning of the sample's file names, by split."""


def read_idx(path: Path) -> np.ndarray:
    """An IDX file, gzipped, read naively."""
    data = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def write_idx(path: Path, values: np.ndarray) -> None:
    """An IDX file, gzipped."""
    head = bytes([0, 0, 8, values.ndim])
    head += b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(gzip.compress(head + values.tobytes()))


def idx_files(folder: Path) -> dict[str, dict[str, str]]:
    """Paths of a catalogue's four files, as a recipe's `data` names them."""
    return {
        split: {
            "images": str(folder / f"{name}-images-idx3-ubyte.gz"),
            "labels": str(folder / f"{name}-labels-idx1-ubyte.gz"),
        }
        for split, name in FILES.items()
    }


def write_catalogue(folder: Path, train: int, test: int) -> None:
    """The first images of each class of the shipped sample."""
    folder.mkdir(parents=True, exist_ok=True)
    source, target = idx_files(SAMPLE), idx_files(folder)
    for split, count in (("train", train), ("test", test)):
        images, labels = (read_idx(Path(source[split][kind])) for kind in ("images", "labels"))
        rows = np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in range(10)]))
        write_idx(Path(target[split]["images"]), images[rows])
        write_idx(Path(target[split]["labels"]), labels[rows])


def write_recipe(folder: Path, train: int, test: int) -> Path:
    """A small recipe on the first images of each class; one has a label that has no name."""
    data = folder / "data"
    write_catalogue(data, train, test)
    files = idx_files(data)
    labels = read_idx(Path(files["train"]["labels"])).copy()
    labels[5] = 77
    write_idx(Path(files["train"]["labels"]), labels)
    recipe = yaml.safe_load((ROOT / "conf" / "demo.yaml").read_text())
    recipe["data"] |= files
    recipe |= {
        "name": "small",
        "warehouse": {"tables": str(folder / "wh" / "tables"), "files": str(folder / "wh")},
        "spark": {
            "master": "local-cluster[2,1,1024]",
            "conf": {"spark.hadoop.fs.s3a.secret.key": SECRET},
        },
        "tune": {
            "trials": 2,
            "algorithm": "random",  # so that both may run at once
            "budget": {"epochs": 1},
            "space": {
                "learning_rate": {"log_uniform": [0.004, 0.006]},
                "embedding_size": {"choice": [24, 40]},
            },
        },
        "train": {
            "ranks": 2,
            "epochs": 6,
            "network": "simple_cnn",
            "classes_per_batch": 5,
            "images_per_class": 4,
            "learning_rate": 0.003,
            "detail": 0.2,
        },
        "serving": {"thumbnails": 16},
        # On a few hundred images raw pixels may win; the gate's rules have tests of their own.
        "gate": {"max_drop": 0.5, "above_raw_pixels": False},
    }
    conf = folder / "small.yaml"
    conf.write_text(yaml.safe_dump(recipe))
    return conf


def write_manifest(path: Path, raw: dict[str, Any]) -> None:
    """Write a manifest that says something else, with the hash that it then must hold."""
    content = {name: value for name, value in raw.items() if name != "sha256"}
    path.write_text(json.dumps(content | {"sha256": artifacts.fingerprint(content)}))


def command(
    *arguments: str, before: str = "", after: str = "", timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run the command line, with some code before and after it in the same process."""
    code = f"import sys\nfrom lookalike.cli import main\n{before}\nmain(sys.argv[1:])\n{after}"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        # Not UTC, so that nothing comes to rest on it.
        env=os.environ | {"COLUMNS": "200", "TZ": "Asia/Kolkata"},
        check=False,
    )


def killed(where: str, call: int = 1) -> str:
    """Code that makes a function kill the process with SIGKILL, at one of its calls."""
    module, _, name = where.rpartition(".")
    owner, _, method = module.rpartition(":")
    target = f"importlib.import_module({owner or module!r})" + (f".{method}" if owner else "")
    return (
        f"{KILL}import importlib\n"
        f"whole, before = {target}.{name}, iter(range({call - 1}))\n"
        "def dies(*a, **k): return kill() if next(before, None) is None else whole(*a, **k)\n"
        f"setattr({target}, {name!r}, dies)"
    )


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def wait_for(server: subprocess.Popen[bytes] | psutil.Popen, url: str, log: Path) -> None:
    """Wait until a server answers at an address; its log is told where it does not."""
    deadline = time.monotonic() + 120
    while True:
        with suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@contextmanager
def served(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server in this process that answers by a handler; its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """A real MLflow server; its URL."""
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", folder / "server.log"
    with log.open("w") as output:
        started = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--backend-store-uri", f"sqlite:///{folder}/runs.db"),
                *("--artifacts-destination", str(folder / "artifacts")),
            ],
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    children: list[psutil.Process] = []
    try:
        wait_for(started, f"{url}/health", log)
        children = psutil.Process(started.pid).children(recursive=True)
        yield url
    finally:
        started.terminate()
        started.wait(30)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()


@dataclass(frozen=True)
class Way:
    """A warehouse that `lookalike run` made, and the report that it printed."""

    conf: Path
    warehouse: Path
    report: dict[str, Any]

    def command(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return command(*arguments, "--conf", str(self.conf), *QUICK, **more)

    def step(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.report["steps"][name]
        return found

    @property
    def release(self) -> Path:
        """The release inside the model that the run logged first."""
        found = self.warehouse.glob("mlflow/artifacts/models/*/artifacts/artifacts/release")
        return min(found, key=lambda path: path.stat().st_mtime)
