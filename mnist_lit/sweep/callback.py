"""Hydra's callback for multiruns: every job is checked before the first trains, and all are summed up after."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from mnist_lit import messages, startup
from mnist_lit.composition import JobLoader
from mnist_lit.errors import UserError
from mnist_lit.result import config_hash, flatten
from mnist_lit.sweep import ledger
from mnist_lit.sweep.identity import job_name
from mnist_lit.sweep.progress import ProgressLines
from mnist_lit.sweep.workers import fork_from_one

if TYPE_CHECKING:
    from mnist_lit.data import MNISTDataModule
    from mnist_lit.data.sources import Source

# Compared by name, so that Hydra alone decides when plugins are imported.
IN_PROCESS = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
OPTUNA = "hydra_optuna_sweeper"
HOLD_SOME_OUT = "data.val_size=5000 callbacks.checkpoint.monitor=val/acc holds some out"
GRID_SWEEPER = "hydra_plugins.mnist_lit_sweeper.GridSweeper"


class SweepCallback(Callback):
    """Enters the jobs of a multirun into its ledger, refuses the sweep if one cannot work, reports at the end.

    Hydra swallows what a callback raises, except SystemExit: errors are told here, and end the process.
    """

    def __init__(self) -> None:
        self.alone: filelock.FileLock | None = None
        self.lines: ProgressLines | None = None
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
            num_failed = self._sum_up(config)
        except Exception as error:
            messages.tell_and_exit(error)
        if num_failed:
            sys.exit(1)

    def _sum_up(self, config: DictConfig) -> int:
        from mnist_lit.sweep.report import write_report

        folder = Path(config.hydra.sweep.dir)
        if self.lines is not None:
            self.lines.stop()
        if self.alone is not None:
            self.alone.release()
        jobs = ledger.read_jobs(folder)
        try:
            print(write_report([folder / job.name for job in jobs], folder))
        except UserError as error:  # such as runs without validation, which nothing can rank
            print(f"no report: {error}")
        failed = {job.name: reason for job in jobs if (reason := self._failure(folder / job.name)) is not None}
        for name, reason in failed.items():
            earlier = "" if self.names is None or name in self.names else " (of an earlier command)"
            print(f"failed: {name}: {reason}{earlier}", file=sys.stderr)
        return len(failed.keys() if self.names is None else failed.keys() & self.names)

    def _failure(self, run_dir: Path) -> str | None:
        """Return why a job failed; None if it did not, is at work in another process, or was left out."""
        if (result := ledger.read_result(run_dir)) is not None:
            return str(result.get("error")) if result["status"] == "failed" else None
        if not run_dir.is_dir() or (run_dir.parent / ledger.STOP).exists():
            return None
        with ledger.claimed(run_dir) as is_ours:
            return "it left no result.json" if is_ours else None

    def _prepare(self, config: DictConfig) -> None:
        if config.resume is not None:
            raise UserError(f"resume={config.resume}: a multirun goes on by itself; give its own command again")
        check_folders(config)
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        # Hydra gives it to the sweeper and the launcher.
        loader = hydra.config_loader = JobLoader(hydra.config_loader)
        overrides = all_overrides(loader, config)
        keys = [key_of(override) for override in overrides if override.is_sweep_override()]
        is_grid = config.hydra.sweeper._target_ == GRID_SWEEPER
        if is_grid and not all(override.is_discrete_sweep() for override in overrides if override.is_sweep_override()):
            raise UserError("a grid takes lists and ranges only; for interval() choose sweep=tpe")
        if config.hydra.launcher._target_ == JOBLIB and not config.sweep.dry_run:
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
        if config.hydra.launcher._target_ != IN_PROCESS:
            adapt_ray(config.hydra.launcher)
            self.lines = ProgressLines(Path(config.hydra.sweep.dir))
            self.lines.start()

    def _prepare_grid(
        self, config: DictConfig, loader: JobLoader, overrides: list[Override], keys: list[str], told: str
    ) -> None:
        folder = Path(config.hydra.sweep.dir)
        grid = BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]
        if not grid:
            raise UserError(f"{' '.join(config.hydra.overrides.task[:-1])}: gives a key no value, so there is no job")
        check = Preflight(folder, keys)
        jobs = [check.job(loader.load_sweep_config(config, [*job, told]), job) for job in grid]
        for override in overrides:
            if override.is_range_sweep() and len(list(override.sweep_iterator())) == 1:
                print(f"note: {override.input_line} is one value; range(START,STOP,STEP)", file=sys.stderr)
        names, values = [job.name for job in jobs], [tuple(map(_as_number, job)) for job in grid]
        self.names = set(names)
        times = Counter(names) + Counter(values)
        if twice := [name for name, value in zip(names, values, strict=True) if times[name] + times[value] > 2]:
            raise UserError(f"{', '.join(dict.fromkeys(twice))}: there twice; name each value once")
        settings = unswept_settings(config, overrides)
        if config.sweep.dry_run:
            ledger.check_is_same(folder, keys, settings)
            print(describe_jobs(folder, jobs))
            sys.exit(0)
        if {*keys} - {"seed"} and all(check.blind):
            print(f"note: no job has validation images, so nothing will rank them; {HOLD_SOME_OUT}", file=sys.stderr)
        check.data()
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
        if OPTUNA in sweeper._target_:
            from mnist_lit.sweep.search import distributions, take_up

            distributions(overrides)
        fixed = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
        check = Preflight(folder, [])
        for chosen in ([], *([value] for override in overrides for value in known_values(override))):
            check.job(loader.load_sweep_config(config, [*fixed, *chosen, told]), [*fixed, *chosen])
        if any(check.blind):
            raise UserError(f"sweep: a search goes by validation images, and there are none; {HOLD_SOME_OUT}")
        settings = unswept_settings(config, overrides)
        ledger.check_is_same(folder, keys, settings)
        if config.sweep.dry_run:
            print(f"a search over {', '.join(keys)}, {sweeper.get('n_trials')} trials in {folder}")
            sys.exit(0)
        check.data()
        folder.mkdir(parents=True, exist_ok=True)
        self.alone = filelock.FileLock(folder / ".search.lock", timeout=0)
        try:
            self.alone.acquire()
        except filelock.Timeout:
            raise UserError(f"{folder}: another process searches there; wait for it, or choose a sweep.name") from None
        if OPTUNA in sweeper._target_ and sweeper.storage and sweeper.study_name:

            def status_of(params: Mapping[str, Any]) -> str | None:
                name = job_name(keys, [f"{key}={value}" for key, value in params.items()])
                return (ledger.read_result(folder / name) or {}).get("status")

            num_done, num_begun = take_up(sweeper.storage, sweeper.study_name, distributions(overrides), status_of)
            sweeper.n_trials = max(sweeper.n_trials - num_done, 0)
            if sweeper.sampler.get("seed") is not None:
                sweeper.sampler.seed += num_begun  # or it would draw the first trials again
        ledger.register(folder, keys, settings, [], num_expected=num_trials)


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


def all_overrides(loader: ConfigLoader, config: DictConfig) -> list[Override]:
    """Return what `hydra.sweeper.params` and the command line change; of a key's several, the last counts."""
    params = config.hydra.sweeper.get("params") or {}
    arguments: list[str] = OmegaConf.to_container(config.hydra.overrides.task)  # type: ignore[assignment]
    lines = [*(f"{key}={value}" for key, value in params.items()), *arguments]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(lines)
    return list({override.get_key_element(): override for override in parsed}.values())


def known_values(override: Override) -> list[str]:
    """Return, as overrides, the values that a search may choose for a key, or the ends of a range."""
    if not override.is_sweep_override():
        return []
    swept = override.value()
    values: Iterable[float | str | None]
    if isinstance(swept, IntervalSweep):
        values = [swept.start, swept.end]
    elif isinstance(swept, RangeSweep):  # a search takes the end too
        values = [swept.start, swept.stop]
    else:
        values = override.sweep_string_iterator()
    return [f"{override.get_key_element()}={value}" for value in values]


def _as_number(override: str) -> tuple[str, float | str]:
    """Return key and value, 1 and 1.0 as the same."""
    key, _, value = override.partition("=")
    try:
        return key, float(value)
    except ValueError:
        return key, value


def key_of(override: Override) -> str:
    """Return the key that an override changes, without its package or the + before it."""
    return str(override.key_or_group)


def unswept_settings(config: DictConfig, overrides: list[Override]) -> dict[str, Any]:
    """Map the dotted keys that a sweep does not change to their values, interpolations left as they stand.

    Below a swept group, only the keys that were overridden for all its options count.
    """
    given = {key_of(override) for override in overrides if not override.is_sweep_override()}
    plain = OmegaConf.to_container(
        OmegaConf.masked_copy(config, [key for key in map(str, config) if key not in ("hydra", "run_dir", "sweep")])
    )
    params = config.hydra.sweeper.get("params") or {}
    fixed = {
        override.get_key_element(): override.value()  # of the command line, they are in the configuration already
        for override in overrides
        if not override.is_sweep_override() and override.get_key_element() in params
    }
    swept_keys = [key_of(override) for override in overrides if override.is_sweep_override()]
    elsewhere = ("data.root", *swept_keys)  # where the data lies does not matter
    return {
        key: value
        for key, value in [*flatten(plain), *flatten(fixed)]
        if not any(key == swept or (key.startswith(f"{swept}.") and key not in given) for swept in elsewhere)
    }


class Preflight:
    """Checks the jobs of the sweep over `keys` in `folder`, building one of those that differ in the seed only.

    `blind` says of each whether it has no images to validate on.
    """

    def __init__(self, folder: Path, keys: list[str]) -> None:
        self.folder = folder
        self.keys = keys
        self.built: set[str] = set()
        self.sources: dict[Source, MNISTDataModule] = {}
        self.blind: list[bool] = []

    def job(self, config: DictConfig, overrides: list[str]) -> ledger.Job:
        """Check the configuration of one job unless it is done already, and return its place in the ledger.

        Raises UserError for a configuration that cannot work, naming the job.
        """
        with startup.fast_imports():
            from mnist_lit import build

        name = job_name(self.keys, overrides)
        with _as_the_running_job(config, self.folder / name):
            cfg = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
            resolved = build.check_top_level(cfg)
            self.blind.append(0 in (resolved["data"].get("val_size"), resolved["trainer"].get("limit_val_batches")))
            job = ledger.Job(name=name, overrides=overrides, config_hash=config_hash(resolved))
            if ledger.is_done(ledger.read_result(self.folder / name), job.config_hash):
                return job
            try:
                if (but_for_the_seed := config_hash(resolved | {"seed": None})) in self.built:
                    build.check(cfg)
                else:
                    datamodule = build.build_job(cfg).datamodule
                    self.built.add(but_for_the_seed)
                    self.sources[datamodule.source] = datamodule
            except UserError as error:
                raise UserError(f"{error} (job {name})" if self.keys else str(error)) from error
        return job

    def data(self) -> None:
        """Fetch what the jobs need, once; raises UserError if it cannot be had."""
        for datamodule in self.sources.values():
            datamodule.prepare_data()


def describe_jobs(folder: Path, jobs: list[ledger.Job]) -> str:
    """List the jobs with their state, and how long the rest will take by the mean of those that ran."""
    results = {job.name: ledger.read_result(folder / job.name) for job in jobs}
    done = {job.name for job in jobs if ledger.is_done(results[job.name], job.config_hash)}
    lines = [f"{'done' if job.name in done else 'to do':6} {job.name}" for job in jobs]
    seconds = [result["fit_seconds"] for result in results.values() if result and result["fit_seconds"]]
    remaining = len(jobs) - len(done)
    estimate = f"about {remaining * sum(seconds) / len(seconds):.0f} s of fitting" if seconds else "no job has run yet"
    return "\n".join([*lines, f"{len(jobs)} jobs, {remaining} to do in {folder}: {estimate}"])


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
