import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Main
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import setup_globals
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mnist_lit import cli, composition
from mnist_lit.composition import JobLoader

Loaders = tuple[ConfigLoaderImpl, JobLoader, DictConfig]


@pytest.fixture
def loaders() -> Iterator[Loaders]:
    """Hydra's own loader, ours, and the configuration of a multirun."""
    setup_globals()
    with initialize_config_dir(str(composition.CONF_DIR), version_base="1.3"):
        theirs = GlobalHydra.instance().config_loader()
        assert isinstance(theirs, ConfigLoaderImpl)
        line = ["data=sample", "optimizer.lr=0.1,0.2", "hydra.job.name=other"]
        master = theirs.load_configuration("train", line, run_mode=RunMode.MULTIRUN)
        yield theirs, JobLoader(theirs), master


@pytest.mark.parametrize(
    "overrides",
    [
        ["data=sample", "optimizer.lr=0.1"],
        ["optimizer.lr=0.1", "optimizer=adam", "model.hidden_sizes=[32,16]"],
        ["optimizer=adamw", "seed=3", "sweep.keys=[optimizer,seed]"],
        ["callbacks=[default,early_stopping]", "+trainer.max_steps=7"],
        ["experiment=blog", "~callbacks.pictures", "++data.batch_size=64"],
        ["data.class_names=[a,b]", "trainer={max_epochs: 5}", "trainer.max_epochs=6"],
        ["optimizer.lr=0.1", "hydra.verbose=true"],
        [],
    ],
    ids=",".join,
)
def test_jobs_are_composed_as_by_hydra(loaders: Loaders, overrides: list[str]) -> None:
    theirs, ours, master = loaders
    expected = theirs.load_sweep_config(master, overrides)
    for _ in range(2):  # the second comes from the files read for the first
        composed = ours.load_sweep_config(master, overrides)
        assert OmegaConf.to_container(composed) == OmegaConf.to_container(expected)
        assert OmegaConf.is_struct(composed)
        composed.seed = 99  # must not reach the next one


def test_files_are_read_once_for_each_choice_of_them(loaders: Loaders) -> None:
    _, ours, master = loaders
    for optimizer in ("sgd", "adam"):
        for lr in (0.1, 0.2, 0.3):
            ours.load_sweep_config(master, [f"optimizer={optimizer}", f"optimizer.lr={lr}"])
    assert list(ours.composed) == [("optimizer=sgd",), ("optimizer=adam",)]


def test_a_key_that_does_not_exist_is_refused(loaders: Loaders) -> None:
    _, ours, master = loaders
    with pytest.raises(ConfigCompositionException):
        ours.load_sweep_config(master, ["optimizer.lrr=1"])


SETS_MODE = "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params: {seed: '0,1'}\n"
LACKS_MODEL = "defaults:\n  - train\n  - override model: ???\n  - _self_\n"


@pytest.mark.parametrize(
    ("arguments", "num_composed"),
    [
        ([], 1),
        (["optimizer.lr=0.1", "experiment=tuned", "+trainer.min_epochs=1", "~scheduler", "hydra.job.num=3"], 1),
        (["-m", "optimizer.lr=0.1,0.2", "optimizer=sgd,adam", "sweep.name=a"], 1),
        (["--config-dir=own", "experiment=sets_mode"], 1),
        (["--config-dir=own", "experiment=sets_mode", "hydra.mode=RUN"], 2),
        (["-m", "hydra.mode=RUN", "seed=0,1"], 1),
        (["seed=0,1"], 1),  # refused, as a single run
        (["-m", "--config-dir=own", "--config-name=lacks_model"], 3),
        (["--config-dir=own", "--config-name=lacks_model"], 3),
        (["--config-dir=own", "--config-name=lacks_model", "experiment=sets_mode", "seed=0,1"], 3),
    ],
)
def test_configuration_is_composed_as_by_hydra_but_once(
    main: Main, monkeypatch: pytest.MonkeyPatch, arguments: list[str], num_composed: int
) -> None:
    Path("own/experiment").mkdir(parents=True)
    Path("own/experiment/sets_mode.yaml").write_text(SETS_MODE)
    Path("own/lacks_model.yaml").write_text(LACKS_MODEL)
    composed: list[bool] = []
    configs: list[str] = []
    compose, load = Hydra.compose_config, ConfigLoaderImpl._load_configuration_impl

    def count(loader: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> DictConfig:
        composed.append(True)
        return load(loader, *args, **kwargs)

    def keep(hydra: Hydra, *args: Any, **kwargs: Any) -> DictConfig:
        cfg = compose(hydra, *args, **kwargs)
        if kwargs.get("validate_sweep_overrides", True):
            configs.append(OmegaConf.to_yaml(cfg))
            raise SystemExit(0)
        return cfg

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", count)
    monkeypatch.setattr(Hydra, "compose_config", keep)
    ours = main(*arguments)
    assert len(composed) == num_composed
    monkeypatch.setattr(cli, "Loader", ConfigLoaderImpl)
    assert main(*arguments) == ours
    assert configs[: len(configs) // 2] == configs[len(configs) // 2 :]
    assert len(configs) == (0 if ours.code else 2)


def test_a_full_disk_is_told_once_in_other_processes_too(loaders: Loaders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", True)
    pickle.loads(pickle.dumps(loaders[1]))
    assert not logging.raiseExceptions
