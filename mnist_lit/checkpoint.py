"""Checkpoints: found, read without executing anything, and turned back into a network."""

import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typeguard
from torch import Tensor

from mnist_lit.errors import UserError, in_one_line
from mnist_lit.loss import probabilities
from mnist_lit.module import Classifier
from mnist_lit.predictor import Predictor
from mnist_lit.result import newest_run
from mnist_lit.trust import restore

ALL_ITEMS = typeguard.CollectionCheckStrategy.ALL_ITEMS
# What a checkpoint must hold; checked once, here.
CONTENT = {
    "hyper_parameters": {
        "model": dict[str, Any],
        "loss": dict[str, Any],
        "data": {"class_names": list[str], "mean": float, "std": float},
        "trainer": dict[str, Any],
    },
    "epoch": int,
    "global_step": int,
    "state_dict": dict[str, Tensor],
}


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file says: the resolved configuration of its run, and the weights after `epoch`.

    `epoch` counts from 0, `global_step` the optimiser steps.
    """

    path: Path
    config: dict[str, Any]
    epoch: int
    global_step: int
    state_dict: Mapping[str, Tensor]

    def classifier(self, *, trusted: Sequence[str] = ()) -> Classifier:
        """Rebuild the module with the checkpoint's weights, ready for evaluation on the CPU.

        `trusted` names packages, beside torch.nn and mnist_lit, whose classes it may be built from.
        Raises UserError for other classes, and for weights that do not fit.
        """
        module = restore(self.config, trusted=trusted)
        try:
            module.load_state_dict(self.state_dict)
        except RuntimeError as error:
            raise UserError(
                f"{self.path}: weights do not fit the configuration beside them: {in_one_line(error)}"
            ) from error
        return module.eval()

    def predictor(self, *, trusted: Sequence[str] = ()) -> Predictor:
        """Rebuild the network as pixels in, probabilities out, its weights fixed; see `classifier`."""
        classifier, data = self.classifier(trusted=trusted), self.config["data"]
        predictor = Predictor(
            model=classifier.model,
            mean=data["mean"],
            std=data["std"],
            probabilities=partial(probabilities, classifier.loss),
            class_names=data["class_names"],
        )
        return predictor.requires_grad_(False)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint file, or the best (else the last) one of a run's folder.

    Only tensors and plain data are read: a file that would execute code is refused. Raises UserError for
    that, for a file that is missing or damaged, and for one that this project has not written.
    """
    path = find_checkpoint(Path(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles of another protocol: they are refused or they load
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused, since it is no checkpoint, or holds more than weights and plain data and may run code "
            "when loaded; use a checkpoint that mnist_lit.train has written"
        ) from error
    except Exception as error:  # damaged pickles raise whatever their bytes happen to say
        what = "it is TorchScript, a program" if "TorchScript" in str(error) else in_one_line(error)
        raise UserError(f"{path}: damaged or no checkpoint: {what}") from error
    if (missing := _first_missing(content, CONTENT)) is not None:
        raise UserError(
            f"{path}: does not hold its configuration and weights ({missing} is missing or of another type); use a "
            "checkpoint that mnist_lit.train has written"
        )
    return Checkpoint(
        path=path,
        config=content["hyper_parameters"],
        epoch=content["epoch"],
        global_step=content["global_step"],
        state_dict=content["state_dict"],
    )


def _first_missing(content: Any, expected: Mapping[str, Any]) -> str | None:
    """Return the dotted key of what is expected and not there, or None."""
    for key, hint in expected.items():
        if not isinstance(content, dict) or key not in content:
            return key
        if isinstance(hint, Mapping):
            if (below := _first_missing(content[key], hint)) is not None:
                return f"{key}.{below}"
            continue
        try:
            typeguard.check_type(content[key], hint, collection_check_strategy=ALL_ITEMS)
        except typeguard.TypeCheckError:
            return key
    return None


def find_checkpoint(path: Path) -> Path:
    """Return `path` itself if it is a file, else the best or the last checkpoint of the run's folder that it names.

    Raises UserError if there is none.
    """
    if path.is_file():
        return path
    folder = path / "checkpoints"
    if path.name == "checkpoints" and not folder.is_dir():
        folder = path
    if (found := folder / "best.ckpt").is_file():
        return found
    if others := sorted(file.name for file in folder.glob("*.ckpt") if file.name != "last.ckpt"):
        raise UserError(f"ckpt={path}: holds no checkpoints/best.ckpt; name one of {folder}/: {', '.join(others)}")
    if (found := folder / "last.ckpt").is_file():
        return found
    what = "holds no checkpoints/best.ckpt or last.ckpt" if path.is_dir() else "no such file or folder"
    known = newest_run("checkpoints/*.ckpt")
    raise UserError(f"ckpt={path}: {what}; name a .ckpt file or a run's folder, such as {known}")
