"""Hydra's callback for multiruns: every job is checked before the first trains, and all are summed up after."""

import re
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import filelock
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from mnist_lit import messages, run_folder, startup
from mnist_lit.composition import JobLoader
from mnist_lit.errors import UserError
from mnist_lit.notation import count
from mnist_lit.result import read_result
from mnist_lit.sweep import ledger, plugins
from mnist_lit.sweep.identity import job_name
from mnist_lit.sweep.overrides import all_overrides, key_and_value, key_of, known_values, unswept_settings
from mnist_lit.sweep.preflight import Preflight, check_folders
from mnist_lit.sweep.workers import fork_from_one

HOLD_SOME_OUT = "data.val_size=5000 callbacks.checkpoint.monitor=val/acc holds some out"


class SweepCallback(Callback):
    """Enters the jobs of a multirun into its ledger, refuses the sweep if one cannot work, reports at the end.

    Hydra swallows what a callback raises, except SystemExit: errors are told here, and end the process.
    """

    def __init__(self) -> None:
        self.at_end = ExitStack()
        self.names: set[str] | None = None  # of this command's jobs; None: all that there are, a search's

    def __getstate__(self) -> dict[str, Any]:
        return {}  # jobs in other processes have a copy of this, without lock and thread

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Compose and check all jobs of a grid; with `sweep.dry_run`, list them and exit."""
        try:
            self._prepare(config)
        except Exception as error:
            messages.tell_and_exit(error)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Keep of a job only what it returned: Hydra would keep its configurations until the sweep's end."""
        job_return.cfg = job_return.hydra_cfg = None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write and print the report, name the failures, and exit with 1 if there are any."""
        try:
            self._sum_up(config)
        except Exception as error:
            messages.tell_and_exit(error)

    def _sum_up(self, config: DictConfig) -> None:
        from mnist_lit.reports.report import write_report

        folder = Path(config.hydra.sweep.dir)
        self.at_end.close()
        jobs = ledger.read_jobs(folder)
        try:
            print(write_report([folder / job.name for job in jobs], folder))
        except UserError as error:  # nothing has ended, or what has was neither validated nor tested
            print(f"no report: {error}")
        failed = {job.name: reason for job in jobs if (reason := self._failure(folder / job.name)) is not None}
        for name, reason in failed.items():
            earlier = "" if self.names is None or name in self.names else " (of an earlier command)"
            print(f"failed: {name}: {reason}{earlier}", file=sys.stderr)
        of_this_command = failed.keys() if self.names is None else failed.keys() & self.names
        if of_this_command:
            sys.exit(1)

    def _failure(self, run_dir: Path) -> str | None:
        """Return why a job failed; None if it did not, is at work in another process, or was left out."""
        if (result := read_result(run_dir)) is not None:
            return str(result.get("error")) if result["status"] == "failed" else None
        if not run_dir.exists() or (run_dir.parent / ledger.STOP).exists():
            return None
        try:
            with run_folder.claimed(run_dir) as is_ours:
                return "it left no result.json; if it was killed, the same command goes on" if is_ours else None
        except OSError as error:
            return messages.describe(error)

    def _prepare(self, config: DictConfig) -> None:
        if config.resume is not None:
            raise UserError(f"resume={config.resume}: a multirun goes on by itself; give its own command again")
        check_folders(config)
        for part in ("launcher", "sweeper"):
            if isinstance(chosen := config.hydra[part], str):
                raise UserError(f"hydra.{part}={chosen}: write hydra/{part}={chosen}, with a slash")
        for key in ("max_batch_size", "n_jobs"):
            if (value := config.hydra.sweeper.get(key, 1)) is not None and not (isinstance(value, int) and value >= 1):
                raise UserError(f"hydra.sweeper.{key}={value}: must be at least 1")
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        # Hydra gives it to the sweeper and the launcher.
        loader = hydra.config_loader = JobLoader(hydra.config_loader)
        overrides = all_overrides(loader, config)
        keys = [key_of(override) for override in overrides if override.is_sweep_override()]
        if of_the_sweep := [key for key in keys if re.fullmatch(r"sweep(\..*)?|run_dir|resume", key)]:
            raise UserError(f"{of_the_sweep[0]}: cannot be swept, since it is the whole sweep's; give it one value")
        is_grid = config.hydra.sweeper._target_ in plugins.GRIDS
        if is_grid and not all(override.is_discrete_sweep() for override in overrides if override.is_sweep_override()):
            raise UserError("a grid takes lists and ranges only; for interval() choose sweep=tpe")
        if config.hydra.launcher._target_ == plugins.JOBLIB and not config.sweep.dry_run:
            fork_from_one(config.hydra.launcher.n_jobs)
        # The jobs' configurations are composed anew from these lists, wherever they run.
        told = f"sweep.keys=[{','.join(keys)}]"
        with read_write(config), open_dict(config):
            config.sweep.keys = keys
            config.hydra.overrides.task.append(told)
        if is_grid:
            self._prepare_grid(config, loader, overrides, keys, told)
        else:
            self._prepare_search(config, loader, overrides, keys, told)
        if config.hydra.launcher._target_ != plugins.IN_PROCESS:
            adapt_ray(config.hydra.launcher)
            lines = ledger.ProgressLines(Path(config.hydra.sweep.dir))
            lines.start()
            self.at_end.callback(lines.stop)

    def _prepare_grid(
        self, config: DictConfig, loader: JobLoader, overrides: list[Override], keys: list[str], told: str
    ) -> None:
        folder = Path(config.hydra.sweep.dir)
        grid = BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]
        if not grid:
            raise UserError(f"{' '.join(config.hydra.overrides.task[:-1])}: gives a key no value, so there is no job")
        preflight = Preflight(folder, keys, is_timed=config.sweep.dry_run)
        jobs = [preflight.check(loader.load_sweep_config(config, [*job, told]), job) for job in grid]
        for override in overrides:
            if override.is_range_sweep() and len(list(override.sweep_iterator())) == 1:
                print(f"note: {override.input_line} is one value; range(START,STOP,STEP)", file=sys.stderr)
        self.names = {job.name for job in jobs}
        values = [tuple(map(key_and_value, job)) for job in grid]
        num_times = Counter(values)
        if twice := [job.name for job, value in zip(jobs, values, strict=True) if num_times[value] > 1]:
            raise UserError(f"{', '.join(dict.fromkeys(twice))}: there twice; name each value once")
        settings = unswept_settings(config, overrides)
        if config.sweep.dry_run:
            ledger.check_is_same(folder, keys, settings)
            _end_dry_run(preflight.describe(jobs))
        if {*keys} - {"seed"} and all(preflight.unvalidated):
            print(f"note: no job has validation images, so nothing will rank them; {HOLD_SOME_OUT}", file=sys.stderr)
        preflight.prepare()
        ledger.register(folder, keys, settings, jobs)

    def _prepare_search(
        self, config: DictConfig, loader: JobLoader, overrides: list[Override], keys: list[str], told: str
    ) -> None:
        """Check what its jobs have in common, and each value or bound alone; they enter the ledger as they start."""
        folder = Path(config.hydra.sweep.dir)
        sweeper = config.hydra.sweeper
        if (num_trials := sweeper.get("n_trials")) is not None and num_trials < 1:
            raise UserError(f"hydra.sweeper.n_trials={num_trials}: must be at least 1")
        if not str(direction := sweeper.get("direction", "maximize")).endswith("maximize"):  # it may be an Enum's
            raise UserError(f"hydra.sweeper.direction={direction}: must be maximize, since jobs return val/acc")
        for key in {"seed", "data.split_seed"} & {*keys}:
            raise UserError(
                f"{key}: a search would choose the luckiest; leave it out, and try the best with sweep=seeds"
            )
        if plugins.OPTUNA in sweeper._target_:
            from mnist_lit.sweep.search import distributions, take_up

            drawn_from = distributions(overrides)
        fixed = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
        preflight = Preflight(folder, [], is_timed=config.sweep.dry_run)
        for chosen in ([], *([value] for override in overrides for value in known_values(override))):
            preflight.check(loader.load_sweep_config(config, [*fixed, *chosen, told]), [*fixed, *chosen])
        if any(preflight.unvalidated):
            raise UserError(f"sweep: a search goes by validation images, and there are none; {HOLD_SOME_OUT}")
        settings = unswept_settings(config, overrides)
        ledger.check_is_same(folder, keys, settings)
        if config.sweep.dry_run:
            what = f"a search over {', '.join(keys)} in {folder}"
            if num_trials is not None:  # not every sweeper has it
                num_to_do = max(num_trials - len(ledger.names_done(folder)), 0)
                what += f": {count(num_trials, 'trial')}, {num_to_do} to do{preflight.estimate(num_to_do)}"
            _end_dry_run(what)
        preflight.prepare()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self.at_end.enter_context(filelock.FileLock(folder / ".search.lock", timeout=0))
        except filelock.Timeout:
            raise UserError(f"{folder}: another process searches there; wait for it, or choose a sweep.name") from None
        if plugins.OPTUNA in sweeper._target_ and sweeper.storage and sweeper.study_name:

            def status_of(params: Mapping[str, Any]) -> str | None:
                name = job_name(keys, [f"{key}={value}" for key, value in params.items()])
                return (read_result(folder / name) or {}).get("status")

            num_done, num_begun = take_up(sweeper.storage, sweeper.study_name, drawn_from, status_of)
            sweeper.n_trials = max(sweeper.n_trials - num_done, 0)
            if sweeper.sampler.get("seed") is not None:
                sweeper.sampler.seed += num_begun  # or it would draw the first trials again
        ledger.register(folder, keys, settings, [], num_expected=num_trials)


def _end_dry_run(told: str) -> NoReturn:
    print(told)
    startup.tell_once_if_busy()
    sys.exit(0)


def adapt_ray(launcher: DictConfig) -> None:
    """Fill in what Hydra's plugin for Ray leaves open, if that is the launcher."""
    if "ray" not in launcher:
        return
    init = launcher.ray.init
    defaults = {"log_to_driver": False, "logging_level": "ERROR"}  # a line a job is enough
    if init.get("address") is None:
        defaults["include_dashboard"] = False
    else:
        defaults["object_store_memory"] = None  # the plugin's own value is refused by a cluster that runs already
    with open_dict(launcher):
        launcher.ray.init = {**defaults, **init}
