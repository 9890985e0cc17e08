"""Train: `python -m mnist_lit.train [KEY=VALUE ...]`."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mnist_lit import cli
from mnist_lit.errors import UserError
from mnist_lit.result import Result, write_atomically
from mnist_lit.sweep import ledger

if TYPE_CHECKING:
    from mnist_lit.run import Run

CONFIG = "config.yaml"
CONFIG_HEADER = """\
# Repeat this run:  python -m mnist_lit.train --config-dir {folder} --config-name config
defaults:
  - hydra: train
  - _self_

"""


def main() -> None:
    """Compose the configuration and train."""
    cli.run(train, config_name="train")


def train(cfg: DictConfig) -> float:
    """Fit, test with the best checkpoint, and leave everything in `cfg.run_dir`; return `val/acc` (or NaN).

    A job of a multirun goes through `_train_as_job`. A single run raises UserError for what the user can
    mend, and SystemExit with code 1 if it diverged, 130 if it was interrupted.
    """
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return _train_as_job(cfg)
    run_dir = Path(cfg.run_dir)
    if (run_dir / CONFIG).exists() and "LOCAL_RANK" not in os.environ:  # Lightning's other processes share it
        raise UserError(f"{run_dir} belongs to another run: leave hydra.run.dir out, or name a new folder")
    with cli.no_folder_left(run_dir):
        run = _build(cfg)
        run.datamodule.prepare_data()
    result = _execute(run, cfg)
    if run.trainer.is_global_zero:
        _show(result, run_dir)
    if result.status == "diverged":
        raise SystemExit(1)
    return result.metrics.get("val/acc", math.nan)


def _train_as_job(cfg: DictConfig) -> float:
    """Train one job of a multirun, unless it is done, or taken by another process; never raise its errors.

    A job that was cut off goes on from its last checkpoint. Returns `val/acc`, or NaN for a job that has
    none: diverged, failed, taken.
    """
    run_dir, folder = Path(cfg.run_dir), Path(cfg.run_dir).parent
    with ledger.claimed(run_dir) as is_ours:
        if not is_ours or (folder / ledger.STOP).exists():
            return math.nan
        known = next((job for job in ledger.read_jobs(folder) if job.name == run_dir.name), None)
        result = ledger.read_result(run_dir)
        if known is None or not ledger.is_done(result, known.config_hash):
            try:
                with cli.only_in_the_log_file():  # the screen has one line a job
                    _execute(_build(cfg), cfg, resume=True)
            except Exception as error:
                cli.tell(error)
                if cfg.sweep.on_error == "stop":
                    (folder / ledger.STOP).touch()
            print(ledger.progress_line(folder, run_dir.name), flush=True)
            result = ledger.read_result(run_dir)
    value = (result or {}).get("metrics", {}).get("val/acc")
    return math.nan if value is None else value


def _build(cfg: DictConfig) -> "Run":
    with cli.fast_imports():
        from mnist_lit.build import build
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    run = build(cfg, overrides=hydra.overrides.task if hydra else [])
    if run.trainer.world_size > 1 and hydra is not None and hydra.mode == RunMode.MULTIRUN:
        raise UserError(
            f"trainer.devices={run.trainer.num_devices}: a multirun trains on one device per job, since each further "
            "process would start the whole sweep again; set trainer.devices=1, or run the jobs singly"
        )
    return run


def _execute(run: "Run", cfg: DictConfig, *, resume: bool = False) -> Result:
    if run.trainer.is_global_zero:
        header = CONFIG_HEADER.format(folder=os.path.relpath(run.run_dir))
        write_atomically(run.run_dir / CONFIG, header + OmegaConf.to_yaml(cfg))
    try:
        return run.execute(test=cfg.test, resume=resume)
    except (KeyboardInterrupt, SystemExit):
        raise SystemExit(130) from None


def _show(result: Result, run_dir: Path) -> None:
    """Print what a person wants to know when a run has ended."""
    rows = [(tag, f"{result.metrics[tag]:.4f}") for tag in sorted(result.metrics, reverse=True)]
    if result.best_epoch is not None:
        rows.append(("best epoch", str(result.best_epoch + 1)))
    if result.images_per_second:
        rows.append(
            (
                "fit",
                f"{result.fit_seconds:.1f} s, {result.images_per_second:,.0f} images/s on {result.device}",
            )
        )
    if result.error:
        rows.append((result.status, result.error))
    rows.append(("run folder", os.path.relpath(run_dir)))
    rows.append(("curves", "tensorboard --logdir outputs"))
    print("\n".join(f"{name:12}{value}" for name, value in rows))


if __name__ == "__main__":
    main()
