"""Real digits for every test: the packaged sample, no network, one job in this process unless it must not be."""

import os

# Two busy processes with two threads each on two cores wait for one another most of the time. Libraries read this when
# they are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import importlib
import json
import logging
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from io import StringIO
from pathlib import Path
from typing import IO, Any

import pytest

from mnist_lit import composition, startup

with startup.fast_imports():  # as every command does
    import mnist_lit.build  # noqa: F401

import torch
import torch._dynamo  # what an optimiser imports
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from made_digits import browser, digit_images, digits, server  # noqa: F401 (fixtures)
from made_resumes import whole  # noqa: F401 (fixtures)
from made_runs import add, grid, sweep_dir, with_charts  # noqa: F401 (fixtures)
from made_sources import install_npm, mirror, no_mirrors, no_npm  # noqa: F401 (fixtures)
from made_sweeps import sweep  # noqa: F401 (fixtures)
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from mnist_lit import load_model
from mnist_lit.data import sources
from mnist_lit.predictor import Predictor

# What a script starts with & ignores Ctrl-C, and so would the processes of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The longest, which must not come last: one worker would wait for the other.
FIRST = ("test_failures", "test_launch", "test_sweep", "test_resume")

Compose = Callable[..., DictConfig]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class Trained:
    """A run that has ended, and what it left in its folder."""

    folder: Path
    config: DictConfig

    @cached_property
    def result(self) -> dict[str, Any]:
        return read_result(self.folder)

    @cached_property
    def best(self) -> dict[str, Any]:
        return read_checkpoint(self.folder, "best")

    @cached_property
    def last(self) -> dict[str, Any]:
        return read_checkpoint(self.folder, "last")

    @property
    def history(self) -> dict[str, list[tuple[int, float]]]:
        """All scalars of the run as lists of (step, value)."""
        history = self.last["progress"]["history"]
        return {tag: [(int(step), value) for step, value in points.tolist()] for tag, points in history.items()}

    def values(self, tag: str) -> list[float]:
        return [value for _, value in self.history[tag]]


@dataclass(frozen=True)
class Outcome:
    """How a command line ended: its exit code (0 where it returned), and what it printed."""

    code: int
    out: str
    err: str


def assert_refused(outcome: Outcome, where: Path, *said: str) -> None:
    """Assert the exit code, a single line that says all of `said`, and that no run folder was left."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert outcome.err.endswith("\n")
    assert "Traceback" not in outcome.err
    for part in said:
        assert part in outcome.err
    assert list(where.glob("outputs/*/*/*")) == []


Train = Callable[..., Trained]
Main = Callable[..., Outcome]


def read_result(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result


def read_checkpoint(folder: Path, name: str) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(
        folder / "checkpoints" / f"{name}.ckpt", map_location="cpu", weights_only=True
    )
    return checkpoint


def files(folder: Path) -> list[str]:
    """Return the files of a run, an event file's own name replaced, but for the lock, which a filelock may leave."""
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return sorted("events" if "tfevents" in name else name for name in names)


@cache
def composer() -> tuple[composition.JobLoader, DictConfig]:
    """Return what composes from files once for each choice of them, and the defaults."""
    with initialize_config_dir(str(composition.CONF_DIR), version_base="1.3"):
        loader = composition.JobLoader(GlobalHydra.instance().config_loader())
        return loader, compose("train", return_hydra_config=True)


def compose_config(run_dir: Path, *overrides: str, sample: bool = True) -> DictConfig:
    run_dir.mkdir(exist_ok=True)
    chosen = ["data=sample"] if sample else []
    loader, defaults = composer()
    config = loader.load_sweep_config(defaults, [*chosen, f"run_dir={run_dir}", *overrides])
    with open_dict(config):
        del config["hydra"]
    return config


def train(config: DictConfig) -> float | None:
    """Train by the entry point's task, in the folder that the configuration names."""
    from mnist_lit.train import train as task

    hydra = composer()[1].copy()
    with read_write(hydra), open_dict(hydra):
        hydra.hydra.mode, hydra.hydra.runtime.output_dir = RunMode.RUN, config.run_dir
    HydraConfig.instance().set_config(hydra)
    try:
        return task(config)
    finally:
        HydraConfig.instance().cfg = None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in FIRST)


@pytest.fixture(autouse=True, scope="session")
def _parsed_once() -> Iterator[None]:
    """Parse each text of YAML once: a third of the time of composing a configuration, of which there are hundreds."""
    load = OmegaConf.load

    @cache
    def parsed(text: str) -> bytes:
        return pickle.dumps(load(StringIO(text)))

    def load_once(file: IO[str] | Path) -> Any:
        return load(file) if isinstance(file, Path) else pickle.loads(parsed(file.read()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", load_once)
        yield


@pytest.fixture(autouse=True, scope="module")
def _imports_are_no_garbage() -> None:
    """Keep what is imported by now out of garbage collection: each job of a sweep would look through it, 0.4 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _as_found() -> Iterator[None]:
    """Leave torch's, Hydra's and logging's global state, and what is cached, as a new process has them."""
    composition.register_resolvers()
    yield
    sys.modules.pop("mine", None)  # a module that some tests write
    torch.use_deterministic_algorithms(False)
    sources.load.cache_clear()
    forget_hydra()


def forget_hydra() -> None:
    """Undo what a run by Hydra leaves in its process: its singletons, and handlers of its log file."""
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    root, file_only = logging.getLogger(), logging.getLogger("mnist_lit.file_only")
    root.setLevel(logging.WARNING)
    logging.raiseExceptions = True
    file_only.propagate = True
    for logger in (root, file_only):
        for handler in list(logger.handlers):
            # Pytest's own are of classes of its own.
            if type(handler) in (logging.StreamHandler, logging.FileHandler):
                logger.removeHandler(handler)
                with suppress(OSError):  # of a full disk
                    handler.close()


@pytest.fixture
def make_config(tmp_path: Path) -> Compose:
    """Compose the training configuration over the sample; the run folder is `tmp_path / run`."""

    def make(*overrides: str, run: str = "run", sample: bool = True) -> DictConfig:
        return compose_config(tmp_path / run, *overrides, sample=sample)

    return make


@pytest.fixture
def train_run(tmp_path: Path) -> Train:
    """Train over the sample in this process; the run folder is `tmp_path / run`.

    Without `full`, there are no pictures and no event file, which take half of so short a run's time.
    """

    def run_it(*overrides: str, run: str = "run", sample: bool = True, full: bool = False) -> Trained:
        bare = [] if full else ["callbacks.pictures=null", "logger=none"]
        config = compose_config(tmp_path / run, *bare, *overrides, sample=sample)
        train(config)
        return Trained(folder=tmp_path / run, config=config)

    return run_it


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One run of the defaults over the sample, three epochs of 16 steps, for all tests that only read it."""
    composition.register_resolvers()
    folder = tmp_path_factory.mktemp("trained") / "run"
    config = compose_config(folder)
    train(config)
    return Trained(folder=folder, config=config)


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """Run `python -m mnist_lit.<module> ARGUMENTS` in this process, in `tmp_path`, as if it were a new one."""
    monkeypatch.chdir(tmp_path)

    def run_it(*arguments: str, module: str = "train", full_error: bool = False) -> Outcome:
        monkeypatch.setenv("HYDRA_FULL_ERROR", str(int(full_error)))
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        capsys.readouterr()
        code = 0
        try:
            importlib.import_module(f"mnist_lit.{module}").main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            forget_hydra()
        printed = capsys.readouterr()
        return Outcome(code=code, out=printed.out, err=printed.err)

    return run_it


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Restore the handling of Ctrl-C, which Lightning switches off when it sees one."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


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


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A network that knows its digits: 9 of 10 in the sample's test set."""
    composition.register_resolvers()
    folder = tmp_path_factory.mktemp("trained") / "run"
    overrides = ["loss=cross_entropy", "optimizer.lr=0.1", "trainer.max_epochs=8"]
    train(compose_config(folder, *overrides, "callbacks.pictures=null", "logger=none"))
    return load_model(folder)
