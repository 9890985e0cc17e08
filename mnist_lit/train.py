"""Train: `python -m mnist_lit.train [KEY=VALUE ...]`."""

import gc
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mnist_lit import cli, messages, run_folder, startup
from mnist_lit.errors import ENDED_BY_SIGNAL, UserError, interruption_behind
from mnist_lit.notation import count, in_yaml, split_override
from mnist_lit.result import FILE_NAME, Result, config_hash, read_result, remove_scratch
from mnist_lit.sweep import ledger, plugins

if TYPE_CHECKING:
    from mnist_lit.run import Run

log = logging.getLogger("mnist_lit.train")

# What a run that is resumed may change: how long it goes on, where, and whether it is scored at the end.
CHANGED_ON_RESUME = ("trainer.max_epochs", "trainer.max_time", "trainer.accelerator", "data.root", "test")


def main() -> None:
    """Compose the configuration and train; say how a sweep that was interrupted goes on."""
    try:
        cli.run(train, config_name="train")
    except SystemExit as end:
        if end.code in ENDED_BY_SIGNAL and cli.is_multirun():
            print("interrupted; the same command again goes on", file=sys.stderr)
        raise


def train(cfg: DictConfig) -> float | None:
    """Fit, test with the best checkpoint, and leave everything in `cfg.run_dir`; return what a sweep asks of a job.

    That is told by `_train_as_job`. A single run raises UserError for what the user can fix, and SystemExit with code 1
    if it diverged, 128 + the signal's number if it was interrupted.
    """
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        return _train_as_job(cfg)
    # The log is in Hydra's folder, and the rest belongs there too.
    with run_folder.no_folder_left(Path(output_dir := hydra.runtime.output_dir)):
        if cfg.resume is not None and Path(cfg.resume).resolve() != Path(output_dir).resolve():
            raise UserError(f"hydra.run.dir={output_dir}: a resumed run stays in its folder; leave it out")
        if cfg.run_dir != output_dir:
            raise UserError(f"run_dir={in_yaml(cfg.run_dir)}: follows hydra.run.dir; give hydra.run.dir=FOLDER instead")
        if cfg.sweep.dry_run is True or hydra.sweeper.get("params"):
            raise UserError("sweep: this is a single run; add -m for a sweep")
    run_dir = Path(cfg.run_dir)
    is_resumed = cfg.resume is not None
    if is_resumed and (run_dir.parent / ledger.LEDGER).is_file():
        raise UserError(f"resume={cfg.resume}: a job of a sweep, whose own command goes on with it")
    # Lightning starts a distributed run's other processes in the same folder.
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    with run_folder.held(run_dir) if is_first else nullcontext():
        if is_resumed:
            cfg = _as_it_was(cfg)
        elif is_first:
            run_folder.check_is_new(run_dir)
        with run_folder.no_folder_left(run_dir):
            run = _build(cfg, run_folder.read_overrides(run_dir) if is_resumed else ())
            run.prepare()
        if is_resumed and _is_complete(run, test=cfg.test):
            return None
        result = _execute(run, cfg, _checkpoint_of(run) if is_resumed else None)
    if run.trainer.is_global_zero:
        _show(result, run, cfg)
    if result.status == "diverged":
        raise SystemExit(1)
    return None


def _as_it_was(cfg: DictConfig) -> DictConfig:
    """Return the configuration of the run that `resume` names, with what may be changed in it.

    Raises UserError for other changes.
    """
    saved = run_folder.read_config(Path(cfg.run_dir))
    for override in HydraConfig.get().overrides.task:
        key, _ = split_override(override)
        if key != "resume" and key not in CHANGED_ON_RESUME:
            raise UserError(
                f"{override}: a resumed run keeps its settings, but for {', '.join(CHANGED_ON_RESUME)}; leave it out, "
                "or start a new run"
            )
        if key == "trainer.max_epochs" and (saved.scheduler or {}).get("length_argument"):
            told = f"this run's scheduler was laid out for {count(saved.trainer.max_epochs, 'epoch')}; start a new run"
            raise UserError(f"{override}: {told}")
        if key != "resume":
            OmegaConf.update(saved, key, OmegaConf.select(cfg, key))
    saved.run_dir = cfg.run_dir
    return saved


def _is_complete(run: "Run", *, test: bool) -> bool:
    """Return whether a resumed run has nothing left to train or to test; say so if it has nothing to train."""
    result, max_epochs = read_result(run.run_dir), run.trainer.max_epochs
    if result is None or result["status"] != "finished" or (found := run.last_checkpoint()) is None:
        return False
    if found[1]["epoch"] + 1 != max_epochs:
        return False
    is_fixed = run.module.scheduler and run.module.scheduler.length_argument
    longer = f"; to go on for longer, add trainer.max_epochs=N, above {max_epochs}"
    log.info("nothing is left to train%s", "" if is_fixed else longer)
    return not test or "test/acc" in result["metrics"]


def _checkpoint_of(run: "Run") -> Path | None:
    """Return the checkpoint that a resumed run goes on from, or None if it was cut off before the first.

    Raises UserError, before anything in the run's folder is touched, for one that is damaged or past
    trainer.max_epochs, and for a run that has finished without one.
    """
    if (found := run.last_checkpoint()) is None:
        if run.has_finished:
            raise UserError(f"{run.run_dir}: finished, and has no checkpoints/last.ckpt to go on from; start a new run")
        run.start_anew()
        return None
    path, checkpoint = found
    num_epochs, max_epochs = checkpoint["epoch"] + 1, run.trainer.max_epochs
    if max_epochs is not None and 0 <= max_epochs < num_epochs:
        raise UserError(f"trainer.max_epochs={max_epochs}: the run is in its epoch {num_epochs} already")
    if not (num_epochs == max_epochs and run.has_finished):
        log.info("goes on after step %d", checkpoint["global_step"])
    run.forget_after(checkpoint)
    return path


def _checkpoint_of_job(run: "Run") -> Path | None:
    """Return the checkpoint that a job goes on from, or None if there is no intact one of the same configuration."""
    with suppress(UserError):
        found = run.last_checkpoint()
        if found is not None and config_hash(found[1]["hyper_parameters"]) == config_hash(run.config):
            run.forget_after(found[1])
            return found[0]
    run.start_anew()
    return None


def _train_as_job(cfg: DictConfig) -> float | None:
    """Train one job of a multirun, unless it is done, or taken by another process; never raise its errors.

    A job that was cut off goes on from its last checkpoint. Returns what a search maximises: `val/acc`, 0 for
    a job that diverged or failed, None (a trial without a value) for one that another process has, or that is
    left out.
    """
    run_dir, folder = Path(cfg.run_dir), Path(cfg.run_dir).parent
    with ExitStack() as stack:
        try:
            is_ours = stack.enter_context(run_folder.claimed(run_dir))
        except OSError as error:
            messages.tell(error)
            return ledger.WORST
        if not is_ours or (folder / ledger.STOP).exists():
            return None
        job = next((job for job in ledger.read_jobs(folder) if job.name == run_dir.name), None) or _enter(cfg)
        result = read_result(run_dir)
        if not ledger.is_done(result, job.config_hash):
            try:
                _execute_job(cfg, job)
            finally:
                gc.collect()  # a trainer and its callbacks form cycles of 5 MB
            startup.freeze_once()
            result = read_result(run_dir)
            if HydraConfig.get().launcher._target_ == plugins.IN_PROCESS:  # the screen is not a worker's
                print(ledger.progress_line(folder, run_dir.name), flush=True)
                if result is not None and _may_crawl(result["fit_seconds"], result["device"]):
                    startup.tell_once_if_busy()
    if result is None or result["status"] in ("diverged", "failed"):
        return ledger.WORST
    value: float | None = result["metrics"].get("val/acc")
    return value


def _execute_job(cfg: DictConfig, job: ledger.Job) -> None:
    """Build and execute a job; tell and record its errors."""
    run = None
    try:
        with cli.only_in_the_log_file():  # the screen has one line a job
            run = _build(cfg)
            run.prepare()
            _execute(run, cfg, _checkpoint_of_job(run))
    except Exception as error:
        if (end := interruption_behind(error)) is not None:
            raise end from None
        messages.tell(error)
        if run is None or run.result is None:
            with suppress(OSError):  # which may be what went wrong
                _record_unstarted(cfg, job, error)
        if cfg.sweep.on_error == "stop":
            (Path(cfg.run_dir).parent / ledger.STOP).touch()


def _enter(cfg: DictConfig) -> ledger.Job:
    """Enter a job of a search, which decides on its jobs as it goes, into the ledger."""
    with startup.fast_imports():
        from mnist_lit.build import resolve
    run_dir = Path(cfg.run_dir)
    job = ledger.Job(run_dir.name, list(HydraConfig.get().overrides.task), config_hash(resolve(cfg)))
    ledger.enter(run_dir.parent, [job])
    return job


def _record_unstarted(cfg: DictConfig, job: ledger.Job, error: Exception) -> None:
    """Leave the `result.json` of a job that failed before its run, which would have written it, began."""
    result = Result(
        status="failed",
        config_hash=job.config_hash,
        overrides=_overrides(),
        seed=cfg.seed,
        error=messages.describe(error),
    )
    result.write(Path(cfg.run_dir))


def _build(cfg: DictConfig, known_overrides: Sequence[str] = ()) -> "Run":
    with startup.fast_imports():
        from mnist_lit.build import build, build_job
    build_it = build_job if HydraConfig.get().mode == RunMode.MULTIRUN else build
    return build_it(cfg, _overrides(known_overrides))


def _overrides(known: Sequence[str] = ()) -> list[str]:
    """Return what tells a run's configuration from ours; a resumed run's include the `known` that it was started with.

    First come options that chose another configuration, such as the one that an earlier run has left.
    """
    hydra = HydraConfig.get()
    options = [f"--config-dir={it.path}" for it in hydra.runtime.config_sources if it.provider == "command-line"]
    if hydra.job.config_name != "train":
        options.append(f"--config-name={hydra.job.config_name}")
    # Of a key's several, the last counts. A part may be taken out (~) and put back (+).
    given = {word.partition("=")[0]: word for word in (*known, *hydra.overrides.task)}
    return [*options, *(word for key, word in given.items() if key != "resume")]


def _execute(run: "Run", cfg: DictConfig, resume_from: Path | None) -> Result:
    if run.trainer.is_global_zero:
        (run.run_dir / FILE_NAME).unlink(missing_ok=True)  # an earlier attempt's would stand beside our checkpoints
        remove_scratch(run.run_dir)
        run_folder.write_config(cfg, run.run_dir, run.overrides)
    try:
        result = run.execute(test=cfg.test, resume_from=resume_from)
        scores = [f"{tag} {value:.4f}" for tag, value in sorted(result.metrics.items(), reverse=True)]
        messages.file_log.info(": ".join(filter(None, [result.status, result.error or ", ".join(scores)])))
        return result
    except (KeyboardInterrupt, SystemExit) as end:
        code = end.code if isinstance(end, SystemExit) else 130
        messages.file_log.info("interrupted")
        if HydraConfig.get().mode == RunMode.RUN:
            resume = shlex.quote(f"resume={os.path.relpath(run.run_dir)}")
            print(f"interrupted; go on:  python -m mnist_lit.train {resume}", file=sys.stderr)
        raise SystemExit(code) from None


def _may_crawl(fit_seconds: float | None, device: str | None) -> bool:
    return (fit_seconds or 0) > 5 and " x cpu " in str(device)


def _show(result: Result, run: "Run", cfg: DictConfig) -> None:
    """Print what a person wants to know when a run has ended."""
    from mnist_lit.trust import packages_to_trust

    rows = [(tag, f"{result.metrics[tag]:.4f}") for tag in sorted(result.metrics, reverse=True)]
    is_to_validate = cfg.data.get("val_size") and cfg.trainer.get("limit_val_batches") != 0
    if result.status == "finished" and not result.history["val/loss"]:
        why = (
            "the run ended before its first validation"
            if is_to_validate
            else "no images are validated on (data.val_size, trainer.limit_val_batches)"
        )
        rows.insert(0, ("val", f"never: {why}"))
    if "val/acc" in result.metrics:
        is_chosen = getattr(run.trainer.checkpoint_callback, "monitor", None) is not None
        rows.append(
            ("best epoch" if is_chosen else "last epoch", f"{result.best_epoch}: all scores are of its checkpoint")
        )
    if run.stopped_early:
        rows.append(("stopped", run.stopped_early))
    if result.images_per_second:
        rows.append(("fit", f"{result.fit_seconds:.1f} s, {result.images_per_second:,.0f} images/s on {result.device}"))
    losses = result.history["train/loss"]
    is_same_batch = cfg.trainer.get("overfit_batches") and not cfg.model.get("dropout") and not cfg.augmentation
    if is_same_batch and result.status == "finished" and len(losses) > 1:
        (first_step, first), (_, last) = losses[0], losses[-1]
        is_learnt = last <= first / 30
        too_little = f"too little at optimizer.lr={cfg.optimizer.get('lr')}: try others, then doubt network and loss"
        verdict = "the network can learn" if is_learnt else too_little
        rows.append(("overfit", f"train/loss from {first:.2g} (step {first_step}) to {last:.2g}: {verdict}"))
    accuracy = result.metrics.get("test/acc", result.metrics.get("val/acc", 1.0))
    is_whole = result.status == "finished" and not cfg.trainer.get("limit_train_batches")
    if is_whole and accuracy < 1.2 / len(run.datamodule.class_names):
        told = f"no better than guessing: does optimizer.lr={cfg.optimizer.get('lr')} suit this optimizer and loss?"
        rows.append(("note", told))
    if cfg.callbacks and not {"checkpoint", "last", "interruption"} & {*cfg.callbacks}:
        told = "our callbacks are left out, and resume= and ckpt= need them: 'callbacks=[default,MINE]' has both"
        rows.append(("note", told))
    if _may_crawl(result.fit_seconds, result.device) and (busy := startup.busy_note()):
        rows.append(("note", busy))
    rows += [("profile", os.path.relpath(path)) for path in run.run_dir.glob("fit-*.txt")]
    if result.error:
        rows.append((result.status, result.error))
    folder = os.path.relpath(run.run_dir)
    rows.append(("run folder", folder))
    if (run.run_dir / "checkpoints" / "best.ckpt").exists():
        words = [f"ckpt={folder}"]
        if own := packages_to_trust(run.config):
            words.append(f"trusted=[{','.join(own)}]")
        rows.append(("use it", f"python -m mnist_lit.evaluate {shlex.join(words)}"))
    if any(run.run_dir.glob("events.out.tfevents.*")):
        logdir = "outputs" if Path(folder).parts[:1] == ("outputs",) else folder  # beside the other runs, if it is
        rows.append(("curves", f"tensorboard --logdir {shlex.quote(logdir)}"))
    print("\n".join(f"{name:12}{value}" for name, value in rows))


if __name__ == "__main__":
    main()
