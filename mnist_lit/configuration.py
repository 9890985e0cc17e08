"""What the configuration must hold: the keys and types of its top level, and values that can work together."""

import math
from typing import Any, Literal

import torch

from mnist_lit.errors import UserError
from mnist_lit.module import MONITORED
from mnist_lit.notation import in_yaml


def top_level(
    *,
    data: dict[str, Any],
    augmentation: dict[str, Any] | None,
    model: dict[str, Any],
    loss: dict[str, Any],
    optimizer: dict[str, Any],
    scheduler: dict[str, Any] | None,
    trainer: dict[str, Any],
    callbacks: dict[str, Any],
    logger: dict[str, Any],
    sweep: dict[str, Any],
    seed: int,
    test: bool,
    resume: str | None,
    run_dir: str,
) -> None:
    """Stand for the top level of the configuration: its keys and their types."""


def sweep(
    *, name: str | int, keys: list[str], on_error: Literal["continue", "stop"], dry_run: bool, pictures: list[str]
) -> None:
    """Stand for the group `sweep`, which configures no class."""


def check_together(config: dict[str, Any]) -> None:
    """Check ranges that no constructor looks at; raises UserError for these and for combinations that cannot work."""
    can_be_left_out = [part for part in ("augmentation", "scheduler") if config[part]]
    for part in ("data", "model", "loss", "optimizer", "trainer", *can_be_left_out):
        if "_target_" not in config[part]:
            key = next(iter(config[part]), None) if part in can_be_left_out else None
            left = f"; leave out {part}.{key}, or write ~{part}.{key} where a file sets it" if key else ""
            raise UserError(f"{part}: must have a _target_, which names its class{left}")
    trainer, optimizer = config["trainer"], config["optimizer"]
    if not 0 <= config["seed"] < 2**32:
        raise UserError(f"seed={config['seed']}: must be from 0 to 4294967295")
    accelerator = trainer.get("accelerator")
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available() and not torch.mps.is_available():
        raise UserError(f"trainer.accelerator={accelerator}: torch finds no GPU here; set it to cpu or auto")
    max_epochs = trainer.get("max_epochs")
    if max_epochs is None or max_epochs == 0 or max_epochs < -1:
        raise UserError(
            f"trainer.max_epochs={in_yaml(max_epochs)}: must be at least 1, or -1: until a callback stops it"
        )
    clip, precision = trainer.get("gradient_clip_val") or 0, str(trainer.get("precision"))
    scheduler = config["scheduler"] or {}
    is_long = max_epochs == -1 and not (trainer.get("max_steps", -1) > 0 and scheduler.get("interval") == "step")
    if is_long and scheduler.get("length_argument"):
        raise UserError("trainer.max_epochs=-1: this scheduler needs the run's length; give it, or set scheduler=none")
    if clip and "mixed" in precision and optimizer.get("fused"):
        raise UserError(
            f"trainer.gradient_clip_val={clip}: Lightning cannot clip for a fused optimizer in "
            f"trainer.precision={precision}; set optimizer.fused=false"
        )
    for key in ("log_every_n_steps", "check_val_every_n_epoch", "accumulate_grad_batches"):
        if trainer.get(key) is not None and trainer[key] < 1:
            raise UserError(f"trainer.{key}={trainer[key]}: must be at least 1")
    for key, all_of_it in {"limit_train_batches": "null for all batches", "max_steps": "-1 for no limit"}.items():
        if trainer.get(key) == 0:
            raise UserError(f"trainer.{key}=0: leaves nothing to train on; set it to {all_of_it}")
    if isinstance(trainer.get("val_check_interval"), int | float) and trainer["val_check_interval"] <= 0:
        raise UserError(f"trainer.val_check_interval={trainer['val_check_interval']}: must be above 0, or null: 1.0")
    if isinstance(profiler := trainer.get("profiler"), str):
        raise UserError(
            f"trainer.profiler={profiler}: would write its table nowhere; take debug=profile, or name a class and its "
            "dirpath as conf/debug/profile.yaml does"
        )
    if clip < 0:
        raise UserError(f"trainer.gradient_clip_val={clip}: must be above 0, or null: none")
    momentum = optimizer.get("momentum")
    if isinstance(momentum, int | float) and not 0 <= momentum < 1:
        raise UserError(f"optimizer.momentum={momentum}: must be at least 0 and below 1")
    lr = optimizer.get("lr")
    if isinstance(lr, int | float) and not 0 < lr < math.inf:
        raise UserError(f"optimizer.lr={lr}: must be above 0 and finite")
    for group in ("callbacks", "logger"):
        for name, node in config[group].items():
            if node and not (isinstance(node, dict) and "_target_" in node):
                raise UserError(
                    f"{group}.{name}={in_yaml(node)}: must be a group of keys with a _target_, or null: none"
                )
    folder = f"{config['run_dir']}/checkpoints"
    last = {"dirpath": folder, "filename": "last"}
    for key, value in last.items():
        if (seen := (config["callbacks"].get("last") or last).get(key)) != value:
            told = f"resume= looks for {folder}/last.ckpt; leave it out"
            raise UserError(f"callbacks.last.{key}={in_yaml(seen)}: {told}")
    for name, callback in config["callbacks"].items():
        if not callback:
            continue
        is_checkpoint = "Checkpoint" in str(callback["_target_"])
        instead = f"callbacks.{name}.monitor=null" if is_checkpoint else f"~callbacks.{name}"
        _check_monitor(f"callbacks.{name}", callback, config, instead=instead)
        if name != "last" and {key: callback.get(key) for key in last} == last:
            raise UserError(f"callbacks.{name}.filename=last: is what resume= goes on from; choose another")
        is_told_apart = callback.get("enable_version_counter", True) or "{" in (callback.get("filename") or "{")
        if not is_told_apart and callback.get("save_top_k", 1) not in (0, 1):
            raise UserError(
                f"callbacks.{name}.save_top_k={callback['save_top_k']}: all would go to one file; give them names, "
                f"callbacks.{name}.filename='{callback['filename']}-{{epoch}}'"
            )
    _check_monitor("scheduler", scheduler, config, instead="choose another scheduler")


def _check_monitor(key: str, node: dict[str, Any], config: dict[str, Any], *, instead: str) -> None:
    """Check that what a callback or schedule goes by, if it does, is measured."""
    monitor = node.get("monitor")
    if monitor is None:
        return
    if monitor not in MONITORED:
        raise UserError(f"{key}.monitor={monitor}: must be {' or '.join(MONITORED)}")
    for name, value in {
        "data.val_size": config["data"].get("val_size"),
        "trainer.limit_val_batches": config["trainer"].get("limit_val_batches"),
    }.items():
        if value == 0:
            told = f"{name}=0 leaves nothing to validate on; set it above 0, or {instead}"
            raise UserError(f"{key}.monitor={monitor}: {told}")
    every, max_epochs = config["trainer"].get("check_val_every_n_epoch"), config["trainer"]["max_epochs"]
    if every is not None and 0 < max_epochs < every:
        raise UserError(
            f"trainer.check_val_every_n_epoch={every}: above trainer.max_epochs={max_epochs}, so that nothing would be "
            f"validated, and {key}.monitor={monitor} never known; set it to {max_epochs} or below"
        )


def check_mode(key: str, monitor: str | None, mode: str | None) -> None:
    """Raise UserError if what goes by a metric takes the wrong end of it for the best."""
    good = {"val/loss": "min", "val/acc": "max"}.get(str(monitor))
    if good is not None and mode in ("min", "max") and mode != good:
        raise UserError(f"{key}.mode={mode}: would take the worst {monitor} for the best; set {key}.mode={good}")
