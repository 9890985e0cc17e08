"""Train: `python -m mnist_lit.train [KEY=VALUE ...]`."""

import logging
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mnist_lit import cli
from mnist_lit.errors import UserError

if TYPE_CHECKING:
    import lightning as L

    from mnist_lit.result import Result

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
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    with cli.no_folder_left(run_dir):
        run = build(cfg, overrides)
        _refuse_what_cannot_work(run.trainer, run_dir)
    is_main_process = run.trainer.is_global_zero
    if is_main_process:
        header = CONFIG_HEADER.format(folder=os.path.relpath(run_dir))
        (run_dir / "config.yaml").write_text(header + OmegaConf.to_yaml(cfg), encoding="utf-8")

    try:
        result = run.execute(test=cfg.test)
    except (KeyboardInterrupt, SystemExit):
        raise SystemExit(130) from None
    if is_main_process:
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
