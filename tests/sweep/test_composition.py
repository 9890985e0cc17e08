from collections.abc import Iterator

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import setup_globals
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mnist_lit import cli
from mnist_lit.sweep.composition import JobLoader

Loaders = tuple[ConfigLoaderImpl, JobLoader, DictConfig]


@pytest.fixture
def loaders() -> Iterator[Loaders]:
    """Hydra's own loader, ours, and the configuration of a multirun."""
    setup_globals()
    with initialize_config_dir(str(cli.CONF_DIR), version_base="1.3"):
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
