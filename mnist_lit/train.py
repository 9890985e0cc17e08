"""Train: `python -m mnist_lit.train [KEY=VALUE ...]`."""

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mnist_lit import cli
from mnist_lit.errors import DivergedError, UserError

if TYPE_CHECKING:
    import lightning as L

    from mnist_lit.build import Experiment
    from mnist_lit.result import Result, Status

log = logging.getLogger(__name__)

CONFIG_HEADER = """\
# Repeat this run:  python -m mnist_lit.train --config-dir {folder} --config-name config
defaults:
  - hydra: default
  - _self_

"""


def main() -> None:
    """Compose the configuration and train."""
    cli.run(train, config_name="train")


def train(cfg: DictConfig) -> float:
    """Fit, test with the best checkpoint, and leave everything in `cfg.run_dir`; return `val/acc` (or NaN).

    Raises UserError for what the user can mend, and SystemExit with code 1 for a run that diverged, 130
    for one that was interrupted.
    """
    with cli.fast_imports():
        from mnist_lit.build import build
    run_dir = Path(cfg.run_dir)
    with cli.no_folder_left(run_dir):
        experiment = build(cfg)
        _refuse_what_cannot_work(experiment.trainer, run_dir)
    is_main_process = experiment.trainer.is_global_zero
    if is_main_process:
        header = CONFIG_HEADER.format(folder=run_dir)
        (run_dir / "config.yaml").write_text(header + OmegaConf.to_yaml(cfg), encoding="utf-8")

    result = _fit_and_test(experiment, test=cfg.test)
    if is_main_process:
        result.write(run_dir)
        _show(result, run_dir)
    if result.status == "diverged":
        raise SystemExit(1)
    return result.metrics.get("val/acc", math.nan)


def _refuse_what_cannot_work(trainer: "L.Trainer", run_dir: Path) -> None:
    if trainer.is_global_zero and (run_dir / "config.yaml").exists():
        raise UserError(f"{run_dir} belongs to another run: leave hydra.run.dir out, or name a new folder")
    if trainer.world_size > 1 and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise UserError(
            f"trainer.devices={trainer.num_devices}: a multirun trains on one device per job, since each further "
            "process would start the whole sweep again; set trainer.devices=1, or run the jobs singly"
        )


def _fit_and_test(experiment: "Experiment", *, test: bool) -> "Result":
    """Run the fit and the test, and say how they ended.

    An error, or Ctrl-C, is recorded in `result.json` before it is raised again.
    """
    from mnist_lit.logger import TensorBoard

    trainer = experiment.trainer
    facts: dict[str, Any] = {"metrics": {}}
    try:
        _fit(experiment, facts)
        if test:
            _test(experiment, facts)
    except DivergedError as error:
        return _result("diverged", experiment, facts, error)
    # Lightning turns Ctrl-C into SystemExit.
    except (KeyboardInterrupt, SystemExit) as error:
        if trainer.is_global_zero:
            _result("interrupted", experiment, facts).write(Path(trainer.default_root_dir))
        raise SystemExit(130) from error
    except Exception as error:
        if trainer.is_global_zero:
            _result("failed", experiment, facts, error).write(Path(trainer.default_root_dir))
        raise
    finally:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoard):
                logger.close()
    return _result("finished", experiment, facts)


def _fit(experiment: "Experiment", facts: dict[str, Any]) -> None:
    import torch
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from tqdm.contrib.logging import logging_redirect_tqdm

    trainer, module = experiment.trainer, experiment.module
    try:
        with quiet(), logging_redirect_tqdm():
            trainer.fit(module, datamodule=experiment.datamodule)
    except MisconfigurationException as error:  # such as a callback that monitors what is never logged
        raise UserError(" ".join(str(error).split())) from error
    finally:
        seconds = experiment.timer.time_elapsed("train")
        facts |= {
            "fit_seconds": seconds,
            "images_per_second": module.images_seen / seconds if seconds else None,
        }
    if best := _best_checkpoint(trainer):
        checkpoint = torch.load(best, weights_only=True)
        facts["best_epoch"] = checkpoint["epoch"]
        for tag, points in module.history.items():
            value = dict(points).get(checkpoint["global_step"])
            if tag.startswith("val/") and value is not None:
                facts["metrics"][tag] = value


def _test(experiment: "Experiment", facts: dict[str, Any]) -> None:
    trainer = experiment.trainer
    with quiet():
        trainer.test(
            experiment.module,
            datamodule=experiment.datamodule,
            ckpt_path=_best_checkpoint(trainer),
            verbose=False,
        )
    facts["metrics"] |= {tag: value.item() for tag, value in trainer.callback_metrics.items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Drop the warnings that a user can do nothing about."""
    with warnings.catch_warnings():
        # True of loaders that read files; here the images are in memory and workers cost time.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # Steps are counted across epochs, so a short epoch has its points too.
        warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
        # What data.val_size=0 asks for.
        warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero.*")
        # Lightning 2.6 uses what torch 2.14 deprecates.
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        yield


def _best_checkpoint(trainer: "L.Trainer") -> str | None:
    """Return the path of the checkpoint to keep, or None where none was written."""
    return getattr(trainer.checkpoint_callback, "best_model_path", None) or None


def _result(
    status: "Status", experiment: "Experiment", facts: dict[str, Any], error: BaseException | None = None
) -> "Result":
    from mnist_lit.result import Result, config_hash

    return Result(
        status=status,
        config_hash=config_hash(experiment.config),
        overrides=list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else [],
        seed=experiment.config["seed"],
        device=_device_name(experiment.trainer),
        num_parameters=sum(parameter.numel() for parameter in experiment.module.parameters()),
        error=cli.describe(error) if error else None,
        **facts,
    )


def _device_name(trainer: "L.Trainer") -> str:
    import torch

    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{trainer.world_size} x {device.type} ({name})"


def _show(result: "Result", run_dir: Path) -> None:
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
