"""From configuration to objects, checked before anything starts.

`check` comes first: names and types (signatures.py), then ranges and combinations (configuration.py). `build` calls the
constructors, which have checks of their own, and tries what they gave: shapes, the schedule, the augmentation. What is
built here takes plain arguments, and knows nothing of Hydra.
"""

import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder, ProgressBar, StochasticWeightAveraging, Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils import deterministic

from mnist_lit import configuration
from mnist_lit.callbacks.checkpoint import WholeFiles
from mnist_lit.callbacks.interruption import Interruption
from mnist_lit.data import MNISTDataModule
from mnist_lit.errors import UserError, in_one_line
from mnist_lit.loop import StepLoop
from mnist_lit.module import MONITORED, Classifier
from mnist_lit.notation import in_yaml
from mnist_lit.result import config_hash
from mnist_lit.run import Run, quiet
from mnist_lit.signatures import check_arguments

# Lightning's own handler would print everything twice, and its advice at level INFO (devices, tips,
# "max_epochs reached") repeats what is on the screen.
logging.getLogger("lightning").handlers.clear()
for name in ("lightning", "lightning.fabric", "lightning.pytorch"):
    logging.getLogger(name).setLevel(logging.WARNING)
# Hydra logs what it also raises, over several lines.
logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)

# Arguments that are built from other parts of the configuration, and how these are set.
GIVEN = {
    "data": {"augmentation": "augmentation=OPTION"},
    "trainer": {
        "callbacks": "callbacks=OPTION",
        "logger": "logger=OPTION",
        "default_root_dir": "hydra.run.dir=FOLDER",
    },
}


def build(cfg: DictConfig, overrides: Sequence[str] = ()) -> Run:
    """Seed everything, then build the data module, the module and the trainer.

    Raises UserError, naming key, value and what is allowed, for a configuration that cannot work.
    """
    # Fills fresh memory with NaN under `trainer.deterministic`, 150 us a step, to expose kernels that read
    # memory they have not written; the results are deterministic without it.
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    config = check(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    augmentation = build_part("augmentation", cfg.augmentation) if cfg.augmentation else None
    if augmentation is not None:
        _check_augmentation(augmentation)
    datamodule: MNISTDataModule = build_part("data", cfg.data, augmentation=augmentation)
    module = Classifier(
        model=build_part("model", cfg.model),
        loss=build_part("loss", cfg.loss),
        optimizer=build_part("optimizer", cfg.optimizer),
        scheduler=build_part("scheduler", cfg.scheduler) if cfg.scheduler else None,
        num_classes=len(datamodule.class_names),
    )
    _check_optimizer_and_scheduler(module)
    module.eval()  # what learns from the images it sees shall not see black ones
    with torch.no_grad():
        _check_shapes(module, len(datamodule.class_names), has_num_classes="num_classes" in cfg.model)
    module.train()
    # Kept in every checkpoint, so that it knows how to rebuild its network; plain data, so that loading
    # it executes nothing.
    module.save_hyperparameters(config)
    callbacks, timer = _build_callbacks(cfg, config)
    loggers = [_build_one_of(Logger, f"logger.{name}", node) for name, node in cfg.logger.items() if node]
    defaults = {
        "plugins": [WholeFiles()],
        # Else Lightning draws a bar of its own where callbacks.progress is left out.
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
    }
    with quiet():
        trainer = build_part(
            "trainer",
            cfg.trainer,
            callbacks=callbacks,
            logger=loggers or False,
            default_root_dir=cfg.run_dir,
            **{key: value for key, value in defaults.items() if key not in cfg.trainer},
        )
    num_cores = os.cpu_count() or 1
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > num_cores:
        raise UserError(f"trainer.devices={trainer.num_devices}: this machine has {num_cores} processors, set it to 1")
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        told = "trains in other processes, which give no curves back; for several devices, set it to ddp"
        raise UserError(f"trainer.strategy={cfg.trainer.strategy}: {told}")
    StepLoop.install(trainer)
    return Run(
        config=config,
        overrides=list(overrides),
        datamodule=datamodule,
        module=module,
        trainer=trainer,
        timer=timer,
        setting_hash=_setting_hash(cfg),
    )


def _setting_hash(cfg: DictConfig) -> str:
    """Return what is equal for runs that differ in nothing but their seed, which other keys may follow."""
    with_one_seed = cfg.copy()
    with_one_seed.seed = 0
    return config_hash(resolve(with_one_seed))


def _build_callbacks(cfg: DictConfig, config: dict[str, Any]) -> tuple[list[L.Callback], Timer]:
    """Build the callbacks in the order in which they must be called, and the one of them that times the run."""
    named = {name: _build_one_of(L.Callback, f"callbacks.{name}", node) for name, node in cfg.callbacks.items() if node}
    for name, callback in named.items():
        key = f"callbacks.{name}"
        configuration.check_mode(key, getattr(callback, "monitor", None), getattr(callback, "mode", None))
        if isinstance(callback, EarlyStopping) and callback.patience < 0:
            raise UserError(f"{key}.patience={callback.patience}: must be at least 0")
        if isinstance(callback, LearningRateFinder):
            raise UserError(
                f"{key}: looks for a key that this project's module has not; sweep, -m optimizer.lr=0.01,0.1"
            )
        if isinstance(callback, StochasticWeightAveraging):
            raise UserError(
                f"{key}: averages weights after the last checkpoint, so that they are neither kept nor tested; use "
                "lightning.pytorch.callbacks.EMAWeightAveraging"
            )
    max_time = config["trainer"].get("max_time")
    timer = next((callback for callback in named.values() if isinstance(callback, Timer)), None)
    if timer is not None and max_time is not None:
        raise UserError(f"trainer.max_time={max_time}: would have no effect beside a Timer among the callbacks")
    timer = timer or _try("trainer", lambda: Timer(duration=max_time))
    others = [callback for callback in named.values() if callback is not timer]
    # What Interruption saves and ends in the middle of an epoch, all others must have seen, and what `last` saves, all
    # other checkpoints. The timer is last but for checkpoints, which Lightning puts behind it, so that its clock leaves
    # out what other callbacks do when a fit starts and ends.
    others.sort(key=lambda callback: (isinstance(callback, Interruption), callback is named.get("last")))
    return [*others, timer], timer


def build_job(cfg: DictConfig, overrides: Sequence[str] = ()) -> Run:
    """Build one job of a multirun.

    Raises UserError as `build` does, and for more than one device.
    """
    run = build(cfg, overrides)
    if run.trainer.world_size > 1:
        raise UserError(
            f"trainer.devices={run.trainer.num_devices}: a multirun trains on one device per job, since each further "
            "process would start the whole sweep again; set trainer.devices=1, or run the jobs singly"
        )
    return run


def _check_augmentation(augmentation: Callable[[Tensor], Tensor]) -> None:
    """Distort some images; raises UserError if that gives none of the same shape and range."""
    images = torch.zeros(64, 28, 28, dtype=torch.uint8)  # of which chance leaves some white
    images[:, 7:21, 7:21] = 255
    try:
        with isolate_rng(include_cuda=False), torch.no_grad():
            distorted: Any = augmentation(images)
    except Exception as error:  # whatever one of the user's raises
        raise UserError(f"augmentation: fails for pixels uint8 [B, 28, 28]: {in_one_line(error)}") from error
    if not isinstance(distorted, Tensor) or distorted.shape != images.shape:
        got = list(distorted.shape) if isinstance(distorted, Tensor) else type(distorted).__name__
        raise UserError(f"augmentation: must give images [B, 28, 28], got {got} for {list(images.shape)}")
    if distorted.max() <= 1:
        raise UserError(f"augmentation: makes 255, a white pixel, {distorted.max():.3g}; must give pixels 0..255")


def _check_optimizer_and_scheduler(module: Classifier) -> None:
    """Build both as a fit will, to see that they can be; raises UserError if not."""
    optimizer = _try("optimizer", lambda: module.build_optimizer(module.parameters()))
    if (schedule := module.scheduler) is None:
        return
    length = {schedule.length_argument: 100} if schedule.length_argument else {}
    scheduler = _try("scheduler.scheduler", lambda: schedule.scheduler(optimizer, **length))
    if not isinstance(scheduler, ReduceLROnPlateau):
        if schedule.monitor is not None:
            raise UserError(f"scheduler.monitor={schedule.monitor}: only ReduceLROnPlateau goes by a metric")
        return
    if schedule.monitor is None:
        raise UserError(f"scheduler.monitor is missing: what it goes by, {' or '.join(MONITORED)}")
    configuration.check_mode("scheduler.scheduler", schedule.monitor, scheduler.mode)


def _check_shapes(module: Classifier, num_classes: int, *, has_num_classes: bool) -> None:
    """Send two black images through the network and the loss; one would be broadcast."""
    try:
        logits = module(torch.zeros(2, 28, 28))
    except RuntimeError as error:
        told = "takes no images [B, 28, 28] (images.flatten(1) is what a Linear takes, images.unsqueeze(1) a Conv2d)"
        raise UserError(f"model: {told}: {in_one_line(error)}") from error
    except Exception as error:  # whatever a network of the user's raises
        raise UserError(f"model: {in_one_line(error)}") from error
    if not isinstance(logits, Tensor):
        raise UserError(f"model: must give logits, a tensor [B, {num_classes}], got {type(logits).__name__}")
    if logits.shape != (2, num_classes):
        how = f"set model.num_classes={num_classes}" if has_num_classes else f"its last layer must have {num_classes}"
        raise UserError(
            f"model: gives {list(logits.shape[1:])} numbers for the {num_classes} classes of data.class_names; {how}"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Using a target size")
            labels = torch.zeros(2, dtype=torch.int64)
            loss, of_twice = module.loss(logits, labels), module.loss(logits.repeat(2, 1), labels.repeat(2))
    except Exception as error:  # whatever a loss says to options that its constructor takes
        raise UserError(f"loss: {in_one_line(error)}") from error
    if not isinstance(loss, Tensor):
        raise UserError(f"loss: must give one number for a batch, a tensor, got {type(loss).__name__}")
    if loss.ndim:
        raise UserError(f"loss: must give one number for a batch, got {list(loss.shape)} numbers")
    if loss and loss.isfinite() and torch.isclose(of_twice, 2 * loss, atol=0.0):
        raise UserError("loss: is a sum over the batch, and must be a mean, such as torch's losses with reduction=mean")


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain data; raises UserError for what cannot be resolved or is missing."""
    try:
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise UserError(" ".join(str(error).split())) from error


def check(cfg: DictConfig) -> dict[str, Any]:
    """Check types and names of the whole configuration without building anything; return it resolved.

    Raises UserError for the first key that is unknown to the class it configures, or of another type.
    """
    config = check_keys(configuration.top_level, cfg)
    check_arguments("sweep", configuration.sweep, config["sweep"])
    if schedule := (config["scheduler"] or {}).get("_target_"):
        found = locate("scheduler", schedule)
        if isinstance(found, type) and issubclass(found, LRScheduler):
            wrapped = "must be mnist_lit.module.Schedule, which wraps torch's; see conf/scheduler/cosine.yaml"
            raise UserError(f"scheduler._target_={schedule}: {wrapped}")
    for group in ("callbacks", "logger"):
        if (target := config[group].get("_target_")) is not None:
            raise UserError(
                f"{group}._target_={target}: needs a name; write `mine:` above it in its file, and indent it"
            )
    for key, node in targets(config):
        check_arguments(key, locate(key, node["_target_"]), node, given=GIVEN.get(key, {}))
    configuration.check_together(config)
    return config


def check_keys(expected: Callable[..., Any], cfg: DictConfig) -> dict[str, Any]:
    """Resolve the configuration, whose top level must have the names and types of what `expected` takes.

    Raises UserError for the first key that does not, or is not there.
    """
    config = resolve(cfg)
    for group in ("experiment", "debug"):
        if group in config:
            raise UserError(f"{group}=: the file of its option must begin with the line # @package _global_")
    check_arguments("", expected, config)
    return config


def targets(node: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every node with a `_target_`, and its dotted key; lists are numbered from 0."""
    if isinstance(node, dict) and "_target_" in node:
        yield key, node
    children = node if isinstance(node, dict) else dict(enumerate(node)) if isinstance(node, list) else {}
    is_built_later = isinstance(node, dict) and node.get("_recursive_") is False
    for name, child in children.items():
        for below, target in targets(child, f"{key}.{name}" if key else str(name)):
            # By whoever gets the node, with arguments of its own.
            yield below, target | ({"_partial_": True} if is_built_later else {})


def locate(key: str, target: str) -> Callable[..., Any]:
    """Import what a `_target_` names; raises UserError, naming the key, if that cannot be done."""
    if not isinstance(target, str):
        raise UserError(f"{key}._target_={in_yaml(target)}: must name a class, as package.module.Class")
    try:
        found: Callable[..., Any] = get_object(target)
    except Exception as error:  # whatever importing a user's module raises
        package = target.partition(".")[0]
        is_here = package and (Path(package).is_dir() or Path(f"{package}.py").is_file())
        hint = f"; {package} lies in this folder, but not on Python's path: set PYTHONPATH=." if is_here else ""
        elsewhere = f"; if {package} is a file of yours, set PYTHONPATH to its folder"
        told = in_one_line(error) + ((hint or elsewhere) if not _is_installed(package) else "")
        raise UserError(f"{key}._target_={target}: cannot be imported: {told}") from error
    return found


def _is_installed(package: str) -> bool:
    return package in sys.modules or importlib.util.find_spec(package) is not None


def build_part(key: str, node: Mapping[str, Any] | DictConfig, **arguments: Any) -> Any:
    """Build what a node names, with `arguments` besides its own; raises UserError, naming the key, if it cannot be."""
    # Plain lists, not OmegaConf's: an optimiser keeps what it is given in every checkpoint.
    convert = node.get("_convert_", "all")
    if not arguments:
        return _try(key, lambda: instantiate(node, _convert_=convert))
    # Hydra would take an argument that is a dataclass for a part of the configuration.
    return _try(key, lambda: instantiate(node, _convert_=convert, _partial_=True)(**arguments))


def _build_one_of(kind: type[Any], key: str, node: DictConfig) -> Any:
    """Build a part; raises UserError unless it is one of that kind."""
    part = build_part(key, node)
    if not isinstance(part, kind):
        raise UserError(
            f"{key}._target_={node['_target_']}: must give a {kind.__module__}.{kind.__name__}, got {part!r}"
        )
    return part


def _try(key: str, build_it: Callable[[], Any]) -> Any:
    """Call, and turn what a constructor says about its arguments into a UserError that names the key."""
    try:
        return build_it()
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        if not isinstance(cause, ValueError | TypeError | MisconfigurationException | InstantiationException):
            raise UserError(f"{key}: {in_one_line(cause)}") from error
        message = " ".join(str(cause).split())
        first_word = message.split(" ", 1)[0]
        # Our own leaves begin with the argument's name: "batch_size must be ...".
        is_argument = first_word.isidentifier() and first_word.islower() and first_word != key
        raise UserError(f"{key}{'.' if is_argument else ': '}{message}") from error
