"""Building what a checkpoint names, which may come from anywhere: nothing but networks, losses and data sets."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import nn

from mnist_lit.build import build_part, locate, targets
from mnist_lit.data import MNISTDataModule
from mnist_lit.errors import UserError
from mnist_lit.module import Classifier
from mnist_lit.signatures import check_arguments

OURS = ("torch.nn", "mnist_lit")  # packages whose networks, losses and data sets are always built


def packages_to_trust(config: Mapping[str, Any]) -> list[str]:
    """Return the packages that `trusted` must name for a checkpoint with this configuration."""
    parts = {key: config[key] for key in ("model", "loss", "data")}
    named = [str(node["_target_"]) for _, node in targets(parts)]
    return sorted({target.partition(".")[0] for target in named if not _is_within(target, OURS)} - {"torch"})


def restore(config: Mapping[str, Any], *, trusted: Sequence[str] = ()) -> Classifier:
    """Build the module of a configuration that came from a checkpoint: for evaluation, it has no optimiser of its own.

    Such a file may come from anywhere, so what it names is built only if it is a network or loss of torch.nn, of
    this package or of the `trusted` ones. Raises UserError for anything else.
    """
    parts = _vetted({key: config[key] for key in ("model", "loss")}, trusted)
    return Classifier(
        model=build_part("model", parts["model"]),
        loss=build_part("loss", parts["loss"]),
        optimizer=torch.optim.SGD,
        scheduler=None,
        num_classes=len(config["data"]["class_names"]),
    )


def restore_data(
    own: Mapping[str, Any], named: Mapping[str, Any] | None = None, *, trusted: Sequence[str] = ()
) -> MNISTDataModule:
    """Build the data set that the user's group `data` names, else the checkpoint's own, vetted as in `restore`.

    Where `named` names no data set, it only changes values of the network's `own`. In both cases, images are normalised
    by the mean and std of the network's own data set, which are a part of what was trained (see `Predictor`): with
    statistics of the new images it would be another network, one that has seen its test. Raises UserError as `restore`
    and `build` do.
    """
    named = named or {}
    if "_target_" in named:
        node = {**named, "mean": own["mean"], "std": own["std"]}
        check_arguments("data", locate("data", node["_target_"]), node)
    else:
        node = _vetted({"data": {**own, **named} if isinstance(own, Mapping) else own}, trusted)["data"]
    datamodule: MNISTDataModule = build_part("data", node)
    return datamodule


def _vetted(parts: Mapping[str, Any], trusted: Sequence[str]) -> dict[str, Any]:
    """Return the parts of a checkpoint's configuration if they name only what may be built."""
    roots = (*OURS, *trusted)
    vetted = dict(parts)
    for key, node in vetted.items():
        # `build_part` would fail, without a word on the checkpoint.
        if not (isinstance(node, dict) and "_target_" in node):
            raise UserError(f"{key}: the checkpoint's configuration names no class here; use one of mnist_lit.train")
    _check_plain("", vetted)
    for key, node in targets(vetted):
        target = str(node["_target_"])
        found = locate(key, target) if _is_within(target, roots) else None
        # Check where it is defined, too: a dotted path may reach what a module merely imports.
        is_part = isinstance(found, type) and issubclass(found, nn.Module | L.LightningDataModule)
        is_trusted = is_part or (_is_within(target, trusted) and callable(found))
        if not (is_trusted and _is_within(str(found.__module__), roots)):
            package = target.split(".")[0]
            hint = f"if you trust it and know its package, add 'trusted=[{package}]'"
            if package == "torch":  # all of which is too much to trust
                hint = "for a function, write a class of your own, torch.nn.Module, that calls it"
            raise UserError(f"{key}._target_={target}: is no network, loss or data set of {' or '.join(roots)}; {hint}")
    for key, node in targets(vetted):
        check_arguments(key, locate(key, node["_target_"]), node)
    return vetted


def _check_plain(key: str, node: Any) -> None:
    """Raise UserError unless all is dictionaries, lists, text, numbers, booleans and None, with nothing to resolve."""
    is_group = type(node) is dict and all(type(name) is str for name in node)
    if is_group or type(node) is list:
        for name, child in node.items() if is_group else enumerate(node):
            _check_plain(f"{key}.{name}" if key else str(name), child)
        return
    # Saved configurations are fully resolved; an interpolation left in one could read this machine's environment.
    is_unresolved = isinstance(node, str) and ("${" in node or node == "???")
    if is_unresolved or type(node) not in (str, int, float, bool, type(None)):
        shown = " ".join(node.split()) if isinstance(node, str) else type(node).__name__
        raise UserError(f"{key}={shown}: the checkpoint's configuration is not plain data; use one of mnist_lit.train")


def _is_within(path: str, packages: Sequence[str]) -> bool:
    return any(path == package or path.startswith(f"{package}.") for package in packages)
