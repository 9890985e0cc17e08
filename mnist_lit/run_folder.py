"""A run's folder: created or found again, with the configuration that repeats the run."""

import itertools
import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import filelock
from omegaconf import DictConfig, OmegaConf

from mnist_lit.errors import UserError
from mnist_lit.result import newest_run, write_atomically

# The run's configuration, in a form that Hydra can compose again.
CONFIG = "config.yaml"
# What lies in a folder where nothing has run.
OF_NO_RUN = {"train.log", "evaluate.log", "predict.log", ".lock"}
CONFIG_HEADER = """\
# Repeat this run:  python -m mnist_lit.train --config-dir {folder} --config-name config
# Changed by its command: {overrides}
defaults:
  - hydra: train
  - _self_

"""


def new_folder(parent: str) -> str:
    """Create and return `<parent>/<date>/<time>[-n]`, which no other process gets.

    Raises UserError if it cannot be created.
    """
    now = datetime.now()
    name = now.strftime("%H-%M-%S")
    day = Path(parent) / now.strftime("%Y-%m-%d")
    try:
        day.mkdir(parents=True, exist_ok=True)
        for attempt in itertools.count(1):
            folder = day / (name if attempt == 1 else f"{name}-{attempt}")
            with suppress(FileExistsError):
                folder.mkdir()
                break
    except OSError as error:
        told = "cd to another folder, or name one, hydra.run.dir=FOLDER"
        raise UserError(f"{error.filename}: {error.strerror}; {told}") from error
    return str(folder)


def run_dir(resume: str | None, parent: str) -> str:
    """Return the folder of the run to resume, or a new one below `parent`.

    Raises UserError if there is no run in the folder.
    """
    if resume is None:
        return new_folder(parent)
    if not _holds_run(Path(resume)):
        above = [path for path in Path(resume).parents[:2] if _holds_run(path)]  # of RUN/checkpoints/last.ckpt
        known = above[0] if above else newest_run(CONFIG)
        raise UserError(f"resume={resume}: holds no run; name the folder of one, such as {known}")
    return resume


def _holds_run(folder: Path) -> bool:
    path = folder / CONFIG
    return path.is_file() and path.read_text(encoding="utf-8", errors="replace").startswith(CONFIG_HEADER[:16])


def write_config(cfg: DictConfig, run_dir: Path, overrides: Sequence[str]) -> None:
    """Write the configuration of a run to its folder, and what its command changed in the defaults."""
    header = CONFIG_HEADER.format(folder=shlex.quote(os.path.relpath(run_dir)), overrides=json.dumps([*overrides]))
    # A repeat gets a folder of its own.
    repeatable = OmegaConf.merge(cfg, {"run_dir": "${hydra:runtime.output_dir}"})
    write_atomically(run_dir / CONFIG, header + OmegaConf.to_yaml(repeatable))


def read_config(run_dir: Path) -> DictConfig:
    """Read what `write_config` has written."""
    cfg = OmegaConf.load(run_dir / CONFIG)
    assert isinstance(cfg, DictConfig)
    del cfg["defaults"]
    return cfg


def read_overrides(run_dir: Path) -> list[str]:
    """Read the overrides that `write_config` has written, whether or not the run has ended; none where they are not."""
    content = (run_dir / CONFIG).read_text(encoding="utf-8")
    found = re.search(r"^# Changed by its command: (\[.*\])$", content, re.MULTILINE)
    overrides: list[str] = json.loads(found[1]) if found else []
    return overrides


def check_is_new(run_dir: Path) -> None:
    """Raise UserError if the folder has a run in it."""
    if (run_dir / CONFIG).exists():
        raise UserError(f"{run_dir} belongs to another run: resume={run_dir} goes on with it, or name a new folder")


@contextmanager
def claimed(run_dir: Path) -> Iterator[bool]:
    """Try to lock a run's folder, and yield whether that worked: of two processes, one gets it.

    The operating system releases the lock when the process dies, however it dies.
    """
    lock = filelock.FileLock(run_dir / ".lock", timeout=0)
    with suppress(filelock.Timeout):
        lock.acquire()
    try:
        yield lock.is_locked
    finally:
        lock.release()


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Lock a run's folder; raises UserError if another process has."""
    with claimed(run_dir) as is_ours:
        if not is_ours:
            raise UserError(f"{run_dir}: another process is at work there; wait for it, or end it first")
        yield


@contextmanager
def no_folder_left(run_dir: Path) -> Iterator[None]:
    """Remove the run folder, if nothing but its log is in it, when a run ends before it has started."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        remove_unused(run_dir)
        raise
    except SystemExit as end:
        if end.code == 128 + signal.SIGTERM:  # with another, what was told may name the log
            remove_unused(run_dir)
        raise


def remove_unused(run_dir: Path) -> None:
    """Remove a run folder if nothing but its log is in it; never the folder that the user is in."""
    if run_dir.resolve() != Path.cwd() and {path.name for path in run_dir.iterdir()} <= OF_NO_RUN:
        shutil.rmtree(run_dir, ignore_errors=True)
