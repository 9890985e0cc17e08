"""Real digits for every test: the packaged sample, no network, one job in this process unless it must not be."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from mnist_lit import cli
from mnist_lit.data import sources

# Two busy processes with two threads each on two cores wait for one another most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

Compose = Callable[..., DictConfig]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _as_found() -> Iterator[None]:
    """Leave torch's global settings, and the cache of data sets, as a new process has them."""
    cli.register_resolvers()
    yield
    torch.use_deterministic_algorithms(False)
    sources.load.cache_clear()


@pytest.fixture
def make_config(tmp_path: Path) -> Compose:
    """Compose the training configuration over the sample; the run folder is `tmp_path / run`."""

    def make(*overrides: str, run: str = "run", sample: bool = True) -> DictConfig:
        run_dir = tmp_path / run
        run_dir.mkdir(exist_ok=True)
        chosen = ["data=sample"] if sample else []
        with initialize_config_dir(str(cli.CONF_DIR), version_base="1.3"):
            return compose("train", [*chosen, f"run_dir={run_dir}", *overrides])

    return make


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run `python -m mnist_lit.<module>` in a process of its own, in `tmp_path`, away from any network."""

    def run(module: str, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", f"mnist_lit.{module}", *arguments],
            cwd=tmp_path,
            env=os.environ | {"npm_config_registry": "http://127.0.0.1:9", "npm_config_fetch_retries": "0"} | env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run
