"""The state of a sweep, read from its files alone, so that any launcher gives the same sweep."""

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import filelock

from mnist_lit.errors import UserError
from mnist_lit.notation import in_yaml
from mnist_lit.result import FILE_NAME, read_result, write_atomically

LEDGER = "sweep.json"
STOP = ".stop"
WORST = 0.0  # what a search is told of a job that diverged or failed: an accuracy
BEGAN = ".began"  # touched by every call of the sweep
INTERVAL = 1.0  # seconds between two looks at the folder, which may lie on another machine


@dataclass(frozen=True)
class Job:
    """One run of a sweep: its folder's name, its overrides, and the hash of its whole configuration."""

    name: str
    overrides: Sequence[str]
    config_hash: str


def ends(folder: Path, jobs: Sequence[Job]) -> dict[str, int]:
    """Map the names of the jobs that have ended to when they did, in nanoseconds."""
    found = {}
    for job in jobs:
        with suppress(FileNotFoundError):  # or another process has just begun it anew
            found[job.name] = (folder / job.name / FILE_NAME).stat().st_mtime_ns
    return found


def is_done(result: Mapping[str, Any] | None, config_hash: str) -> bool:
    """Tell whether a run of this configuration has ended by itself, well or diverged."""
    return result is not None and result["config_hash"] == config_hash and result["status"] in ("finished", "diverged")


def register(
    folder: Path,
    keys: Sequence[str],
    settings: Mapping[str, Any],
    jobs: Sequence[Job],
    *,
    num_expected: int | None = None,
) -> None:
    """Enter jobs into the sweep's ledger, beside those of earlier calls.

    `keys` are swept; `settings` maps every other dotted key to its value, the same for all jobs.
    `num_expected` is how many jobs there will be in all, where they are entered as they start. Raises
    UserError as `check_is_same` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lock"):
        check_is_same(folder, keys, settings)
        ledger = _read(folder) or {"schema_version": 1, "keys": list(keys), "settings": settings, "jobs": []}
        (folder / STOP).unlink(missing_ok=True)
        (folder / BEGAN).touch()
        _write(folder, ledger | {"num_expected": num_expected}, jobs)


def check_is_same(folder: Path, keys: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Raise UserError if the folder's earlier runs swept other keys or had other settings: a sweep does not mix them.

    For `keys` and `settings`, see `register`.
    """
    if (ledger := _read(folder)) is None:
        return
    if ledger["keys"] != list(keys):
        before, now = (", ".join(it) or "nothing" for it in (ledger["keys"], keys))
        differences = [f"sweep {before}, not {now}"]
    else:
        differences = [
            f"have {key}={in_yaml(ledger['settings'].get(key))}, not {in_yaml(settings.get(key))}"
            for key in sorted(ledger["settings"].keys() | settings.keys())
            # 1 and 1.0 are one number, but one batch and all of them in trainer.limit_train_batches.
            if repr(ledger["settings"].get(key)) != repr(settings.get(key))
        ]
        differences.sort(key=len)  # checksums last
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        difference = ", ".join(differences[:3]) + more
        began = any((folder / job["name"]).is_dir() for job in ledger["jobs"])
        otherwise = "" if began else ", or remove the folder, in which none has begun"
        raise UserError(
            f"sweep.name={folder.name}: the runs in {folder} {difference}; choose another sweep.name{otherwise}"
        )


def enter(folder: Path, jobs: Sequence[Job]) -> None:
    """Enter jobs into a ledger that `register` began."""
    with filelock.FileLock(folder / ".lock"):
        ledger = _read(folder)
        assert ledger is not None
        _write(folder, ledger, jobs)


def _write(folder: Path, ledger: Mapping[str, Any], jobs: Sequence[Job]) -> None:
    entered = {job["name"]: job for job in ledger["jobs"]} | {job.name: asdict(job) for job in jobs}
    write_atomically(folder / LEDGER, json.dumps({**ledger, "jobs": list(entered.values())}, indent=1) + "\n")


def read_jobs(folder: Path) -> list[Job]:
    """Return the jobs that were entered into a sweep's ledger, in order."""
    ledger = _read(folder)
    return [Job(**job) for job in ledger["jobs"]] if ledger else []


def names_done(folder: Path) -> set[str]:
    """Return the names of a sweep's jobs that are done."""
    jobs = read_jobs(folder)
    return {job.name for job in jobs if is_done(read_result(folder / job.name), job.config_hash)}


def not_begun(folder: Path, names: Iterable[str]) -> set[str]:
    """Return those of a sweep's jobs that its running command has not begun, as far as their folders say."""
    began = (folder / BEGAN).stat().st_mtime_ns
    results = {name: folder / name / FILE_NAME for name in names}  # which a job removes when it begins
    return {
        name
        for name, result in results.items()
        if (result.stat().st_mtime_ns < began if result.is_file() else not (folder / name).exists())
    }


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        ledger: dict[str, Any] = json.loads((folder / LEDGER).read_text(encoding="utf-8"))
        if not (isinstance(ledger, dict) and {"keys", "settings", "jobs"} <= ledger.keys()):
            raise ValueError("it holds no sweep")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"{folder / LEDGER}: damaged; remove it, and the sweep's command finds its runs: {error}"
        ) from error
    return ledger


def progress_line(folder: Path, name: str) -> str:
    """Say in one line how far the sweep was when a job ended.

    `3/36  lr=0.1,seed=2  val/acc 0.9312  1.6 s  about 53 s left`.
    """
    ledger = _read(folder) or {"jobs": []}
    jobs = [Job(**job) for job in ledger["jobs"]]
    num_jobs = max(len(jobs), ledger.get("num_expected") or 0)
    result = read_result(folder / name) or {}
    # What an earlier call left failed or interrupted is still to run.
    began = (folder / BEGAN).stat().st_mtime_ns
    all_ends = ends(folder, jobs)
    done = {
        job.name
        for job in jobs
        if job.name in all_ends and is_done(_outcome(folder / job.name, all_ends[job.name]), job.config_hash)
    }
    ended = {job: end for job, end in all_ends.items() if job in done or end >= began}
    ends_until_now = [end for end in ended.values() if end <= ended.get(name, end)]
    num_ended = len(ends_until_now)
    accuracy = result.get("metrics", {}).get("val/acc")
    outcome = result.get("status", "not ended") if accuracy is None else f"val/acc {accuracy:.4f}"
    seconds = result.get("fit_seconds") or 0.0
    # By the clock, which knows how many jobs run at once and what each takes beside its fit.
    spent = [(end - began) / 1e9 for end in ends_until_now if end >= began]
    left = (num_jobs - num_ended) * max(spent) / len(spent) if spent else 0.0
    line = f"{num_ended}/{num_jobs}  {name}  {outcome}  {seconds:.1f} s"
    return f"{line}  about {left:.0f} s left" if num_ended < num_jobs else line


@cache
def _outcome(run_dir: Path, written: int) -> dict[str, str] | None:
    """Return what `is_done` asks of a result written at that time: a sweep asks it of all its jobs, a line a job."""
    result = read_result(run_dir)
    return result and {key: result[key] for key in ("config_hash", "status")}


class ProgressLines(threading.Thread):
    """Prints the lines of jobs that other processes run, from the files they leave in the sweep's `folder`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.told = self._ended()
        self.is_over = threading.Event()

    def run(self) -> None:
        """Look until it is over, and once more, or until nobody reads the lines."""
        with suppress(BrokenPipeError):
            while not self.is_over.wait(INTERVAL):
                self._tell()
            self._tell()

    def stop(self) -> None:
        """Print what is left and return."""
        self.is_over.set()
        self.join()

    def _tell(self) -> None:
        ended = self._ended()
        for name in sorted(ended.keys(), key=ended.__getitem__):
            if self.told.get(name) != ended[name]:
                print(progress_line(self.folder, name), flush=True)
        self.told = ended

    def _ended(self) -> dict[str, int]:
        return ends(self.folder, read_jobs(self.folder))
