"""What was probably meant: the end of the line that refuses it."""

from pathlib import Path

import pytest
from conftest import Main, assert_refused

HINTS: list[tuple[str, list[str]]] = [
    (
        "augmentation.alpha=1",
        ["; augmentation=affine_elastic, augmentation=ciresan2010, augmentation=elastic, augmentation=simard2003 have"],
    ),
    ("scheduler.T_max=3", ["scheduler.T_max is not a key: there are none\n"]),
    ("hydra.sweeper.params.a=3", ["hydra.sweeper.params.a is not a key: there are none\n"]),
    ("name=myrun", ["name is not a key", "; hydra.run.dir=FOLDER names a run, sweep.name=NAME a sweep\n"]),
    ("scheduler=plateau patience=5", ["; did you mean scheduler.scheduler.patience?\n"]),
    ("early_stopping=true", ["; callbacks=early_stopping brings it\n"]),
    ("augmentation=nonexistent", ["; to add one, write DIR/augmentation/NAME.yaml and pass --config-dir DIR\n"]),
    ("optimizer.lr=0.1.2", ["optimizer.lr=0.1.2: must be a number\n"]),
    ("model.hidden_sizes=0.5", ["model.hidden_sizes=0.5: must be a list, each a whole number\n"]),
    ("data.checksums=abc", ["data.checksums=abc: must be a group of keys\n"]),
    ("device=cpu", ["; did you mean trainer.accelerator?\n"]),
    ("learning_rate=0.1", ["; did you mean optimizer.lr?\n"]),
    ("optimizer.learning_rate=0.1", ["optimizer.learning_rate is not a key: ", "; did you mean optimizer.lr?\n"]),
    ("trainer.epochs=1", ["trainer.epochs is not a key: ", "; did you mean trainer.max_epochs?\n"]),
    ("gpu=1", ["; did you mean trainer.accelerator?\n"]),
    ("monitor=val/loss", ["; did you mean callbacks.checkpoint.monitor?\n"]),
    ("pictures=[loss_curve]", ["; did you mean sweep.pictures?\n"]),
    ("optimizer.lr=[0.1,0.2]", [": must be a number; to sweep over several, -m optimizer.lr=0.1,0.2\n"]),
    ("optimizer.lr='0.1'", ["optimizer.lr=0.1: must be a number; leave out the quotes\n"]),
    ("trainer.max_epochs=abc", ["trainer.max_epochs=abc: must be a whole number or null\n"]),
    ("loss=MSE", ["; did you mean loss=one_hot_mse?\n"]),
    ("scheduler=CosineAnnealingLR", ["; did you mean scheduler=cosine?\n"]),
    (
        "optimizer=rmsprop",
        ["there are adam, adamw, sgd; to add one, write DIR/optimizer/NAME.yaml and pass --"],
    ),
    (
        "optimizer=mine/optimizer/rmsprop.yaml",
        ["optimizer=mine/optimizer/rmsprop.yaml: no such option, there are adam"],
    ),
    ("experiment=tuned/blog", ["experiment=tuned/blog: no such option, there are augmented, blog"]),
    (
        "hydra/launcher=slurm",
        ["hydra/launcher=slurm: no such option", "; did you mean hydra/launcher=submitit_slurm?\n"],
    ),
    ("optimizer=adam optimizer.momentum=0.9", ["optimizer.momentum is not a key", "; optimizer=sgd has it\n"]),
    ("optimizer.betas=[0,0]", ["optimizer.betas is not a key", "; optimizer=adam, optimizer=adamw have it\n"]),
    ("loss.label_smoothing=0.1", ["loss.label_smoothing is not a key", "; loss=cross_entropy has it\n"]),
    ("callbacks.early_stopping.patience=3", ["is not a key", "; callbacks=early_stopping has it\n"]),
    ("hydra.sweeper.n_trials=3", ["hydra.sweeper.n_trials is not a key", "; sweep=tpe has it\n"]),
]


@pytest.mark.parametrize(("arguments", "said"), HINTS, ids=[arguments for arguments, _ in HINTS])
def test_what_was_meant_is_told(main: Main, tmp_path: Path, arguments: str, said: list[str]) -> None:
    assert_refused(main("data=sample", *arguments.split()), tmp_path, *said)


@pytest.mark.parametrize(
    ("group", "text", "told"),
    [
        (
            "callbacks",
            "_target_: lightning.pytorch.callbacks.LearningRateMonitor",
            "callbacks._target_=lightning.pytorch.callbacks.LearningRateMonitor: needs a name; write `mine:` above it",
        ),
        (
            "experiment",
            "optimizer:\n  lr: 0.1",
            "experiment=: the file of its option must begin with the line # @package",
        ),
        (
            "experiment",
            "# @package _global_\noptimizer: adam",
            "; to choose an option within a file, defaults: [override /o",
        ),
        ("optimizer", "\tlr: 0.1", "found character"),
    ],
)
def test_a_file_of_ones_own_is_mended(group: str, text: str, told: str, main: Main, tmp_path: Path) -> None:
    (tmp_path / "mine" / group).mkdir(parents=True)
    (tmp_path / "mine" / group / "mine.yaml").write_text(text, encoding="utf-8")
    chosen = "callbacks=[default,mine]" if group == "callbacks" else f"{group}=mine"
    outcome = main("--config-dir", "mine", "data=sample", chosen)
    assert_refused(outcome, tmp_path, told)
