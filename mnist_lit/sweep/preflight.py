"""The check of a sweep's jobs before the first of them trains."""

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from mnist_lit import startup
from mnist_lit.errors import UserError
from mnist_lit.notation import Value, count, duration, shown
from mnist_lit.result import config_hash, read_result
from mnist_lit.sweep import ledger
from mnist_lit.sweep.identity import job_name
from mnist_lit.sweep.overrides import key_and_value

if TYPE_CHECKING:
    from mnist_lit.data import MNISTDataModule

Swept = list[tuple[str, Value]]  # the swept keys and a job's values


class Preflight:
    """Checks the jobs of the sweep over `keys` in `folder`; of those that differ in the seed only, one is built.

    What is built waits for `prepare`; if `is_timed`, it makes a few steps, with such images as are there.
    """

    def __init__(self, folder: Path, keys: list[str], *, is_timed: bool) -> None:
        self.folder = folder
        self.keys = keys
        self.is_timed = is_timed
        self.unvalidated: list[bool] = []  # of each job, whether it has no images to validate on
        # The names of jobs that are not done, and the seconds of their fits, None where they are not known.
        self.to_do: list[tuple[str, float | None]] = []
        self.seconds: dict[str, float | None] = {}  # of what was built, by its hash but for the seed
        # Of what was built, a job's name, and what remains to be checked. Without the network: there may be many.
        self.unprepared: list[tuple[str, MNISTDataModule, float]] = []
        self.owners = {job.name: self._swept(job.overrides) for job in ledger.read_jobs(folder)}  # of the folders

    def check(self, config: DictConfig, overrides: list[str]) -> ledger.Job:
        """Check the configuration of one job, build it unless it is done already, and return its place in the ledger.

        Raises UserError for a configuration that cannot work, naming the job.
        """
        with startup.fast_imports():
            from mnist_lit import build

        name = job_name(self.keys, overrides)
        self._claim_folder(name, self._swept(overrides))
        with _as_the_running_job(config, self.folder / name), self._job_named(name):
            cfg = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
            resolved = build.check(cfg)
            job = ledger.Job(name=name, overrides=overrides, config_hash=config_hash(resolved))
            if not ledger.is_done(read_result(self.folder / name), job.config_hash):
                but_for_the_seed = config_hash(resolved | {"seed": None})
                if but_for_the_seed not in self.seconds:
                    self.seconds[but_for_the_seed] = self._build(cfg, name)
                    gc.collect()  # a trainer and its module form cycles
                self.to_do.append((name, self.seconds[but_for_the_seed]))
        self.unvalidated.append(0 in (resolved["data"].get("val_size"), resolved["trainer"].get("limit_val_batches")))
        return job

    def prepare(self) -> None:
        """Fetch the images that the jobs need, once all are checked; raises UserError, naming a job that cannot."""
        from mnist_lit import run

        # Those of one source after another, since few sources are kept in memory.
        for name, datamodule, test_limit in sorted(self.unprepared, key=lambda it: it[1].source.folder):
            with self._job_named(name):
                run.prepare(datamodule, test_limit)

    def _build(self, cfg: DictConfig, name: str) -> float | None:
        from mnist_lit.build import build_job
        from mnist_lit.sweep.estimate import fit_seconds

        run = build_job(cfg)
        if self.is_timed:
            return fit_seconds(run)
        self.unprepared.append((name, run.datamodule, run.test_limit))
        return None

    @contextmanager
    def _job_named(self, name: str) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            raise UserError(f"{error} (job {name})" if self.keys else str(error)) from error

    def _claim_folder(self, name: str, values: Swept) -> None:
        """Raise UserError if a job with other values has the folder: some characters in names become `_`."""
        owner = self.owners.setdefault(name, values)
        if owner != values and len(owner) == len(values):  # a sweep over other keys is told by the ledger
            different = [
                f"{key}={shown(value)}"
                for pairs in zip(owner, values, strict=True)
                if pairs[0] != pairs[1]
                for key, value in pairs
            ]
            raise UserError(f"{' and '.join(different)}: would share the folder {self.folder / name}; rename one")

    def _swept(self, overrides: Sequence[str]) -> Swept:
        given = (override for override in overrides if not override.startswith("~"))
        return [(key, value) for key, value in map(key_and_value, given) if key in self.keys]

    def describe(self, jobs: list[ledger.Job]) -> str:
        """List the jobs, and how long those that are not done will take."""
        names = {name for name, _ in self.to_do}
        lines = [f"{'to do' if job.name in names else 'done':6} {job.name}" for job in jobs]
        what = f"{count(len(jobs), 'job')}, {len(names)} to do in {self.folder}{self.estimate(len(names))}"
        return "\n".join([*lines, what])

    def estimate(self, num_jobs: int) -> str:
        """Say behind a colon how long so many jobs like those that are to do will take, nothing if there are none."""
        if not num_jobs:
            return ""
        seconds = [it for _, it in self.to_do if it is not None]
        if len(seconds) < len(self.to_do):
            return ": no estimate, for the images have yet to be fetched"
        if math.isinf(total := mean(seconds) * num_jobs):
            return ": no estimate, for only a callback ends a job (trainer.max_epochs=-1)"
        return f": about {duration(math.ceil(total))} of training, by their first steps"


@contextmanager
def _as_the_running_job(config: DictConfig, run_dir: Path) -> Iterator[None]:
    """Let `${hydra:...}` resolve in a job's configuration before the job runs."""
    with read_write(config), open_dict(config):
        config.hydra.runtime.output_dir = str(run_dir.absolute())
    running: Any = HydraConfig.instance()
    before, running.cfg = running.cfg, config  # its set_config would copy the configuration, 4 ms a job
    try:
        yield
    finally:
        running.cfg = before


def check_folders(config: DictConfig) -> None:
    """Raise UserError where the command line puts the sweep, or its jobs, elsewhere than the ledger looks for them."""
    if not str(config.sweep.name).strip("./ ") or ".." in Path(str(config.sweep.name)).parts:
        raise UserError(f"sweep.name='{config.sweep.name}': must be the name of a folder; leave it out for the default")
    if not OmegaConf.is_interpolation(config, "run_dir"):
        told = "each job has a folder of its own below hydra.sweep.dir; leave it out"
        raise UserError(f"run_dir={config.run_dir}: {told}")
    as_written: Any = OmegaConf.to_container(config.hydra.sweep)
    if not str(as_written["subdir"]).startswith("${mnist_lit.job_name:"):
        told = "a job's folder is named by what is swept; leave it out"
        raise UserError(f"hydra.sweep.subdir={as_written['subdir']}: {told}")
    for override in config.hydra.overrides.hydra:
        if override.startswith("hydra.run.dir="):
            raise UserError(
                f"{override}: a single run's; a sweep is named by sweep.name=NAME or hydra.sweep.dir=FOLDER"
            )
