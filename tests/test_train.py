"""A run from its first step to its end, and what it leaves in its folder."""

import os
from dataclasses import fields
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import lightning as L
import pytest
import torch
from conftest import Compose, Train, Trained, files, train
from lightning.pytorch.accelerators import CUDAAccelerator
from matplotlib.image import imread
from omegaconf import DictConfig, OmegaConf

from mnist_lit.build import build
from mnist_lit.callbacks.interruption import Interruption
from mnist_lit.data.sources import SAMPLE
from mnist_lit.errors import UserError
from mnist_lit.evaluation import build_scorer
from mnist_lit.result import SCHEMA_VERSION, Result

PICTURES = ("samples", "predictions", "confusion_matrix", "first_layer_weights", "loss_curve")


def test_run_folder_holds_what_is_promised_and_nothing_else(trained: Trained) -> None:
    pictures = [f"figures/{name}.png" for name in PICTURES]
    assert files(trained.folder) == sorted(
        ["checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "events", "result.json", *pictures]
    )


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_a_png_with_something_on_it(trained: Trained, name: str) -> None:
    path = trained.folder / "figures" / f"{name}.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 200
    assert pixels.std() > 0.05
    # In all four quarters: not one line of text in a corner.
    rows, columns = (size // 2 for size in pixels.shape[:2])
    for quarter in (pixels[:rows, :columns], pixels[:rows, columns:], pixels[rows:, :columns], pixels[rows:, columns:]):
        assert quarter.std() > 0.01


def test_pictures_show_as_many_images_as_asked_for(train_run: Train) -> None:
    run = train_run("callbacks.pictures.num_images=4", "logger=none", "debug=fast", full=True)
    for name in ("samples", "predictions"):
        assert imread(run.folder / "figures" / f"{name}.png").shape[:2] == (215, 170)
    # Dark digits on white, in a grid without empty cells.
    pixels = imread(run.folder / "figures" / "samples.png")[..., :3].mean(axis=2)
    assert pixels[:107, :85].min() < 0.1


def test_result_has_every_field(trained: Trained) -> None:
    assert trained.result.keys() == {field.name for field in fields(Result)} | {
        "schema_version",
        "versions",
        "git_commit",
    }
    assert trained.result["schema_version"] == SCHEMA_VERSION == 2
    assert trained.result["status"] == "finished"
    assert trained.result["error"] is None
    assert trained.result["seed"] == 0
    assert trained.result["overrides"] == []
    assert trained.result["device"].startswith("1 x ")
    assert trained.result["num_parameters"] == 784 * 256 + 256 + 256 * 64 + 64 + 64 * 10 + 10
    assert trained.result["versions"]["torch"] == torch.__version__.split("+")[0]
    assert trained.result["best_epoch"] == 3
    seconds = trained.result["fit_seconds"]
    assert 0 < seconds < 60
    assert trained.result["images_per_second"] == pytest.approx(3 * 1600 / seconds)


def test_fit_seconds_are_the_fits_alone(train_run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[float] = []

    def timed(self: L.Trainer, *args: Any, **kwargs: Any) -> None:
        started = perf_counter()
        fit(self, *args, **kwargs)
        spent.append(perf_counter() - started)

    fit = L.Trainer.fit
    monkeypatch.setattr(L.Trainer, "fit", timed)
    run = train_run()  # and a test, which restores the best checkpoint with its clock
    assert 0.2 * spent[0] < run.result["fit_seconds"] < spent[0]


def test_a_step_of_several_batches_is_logged_once(train_run: Train) -> None:
    run = train_run("+trainer.accumulate_grad_batches=4", "trainer.log_every_n_steps=2", "trainer.max_epochs=2")
    assert [step for step, _ in run.history["train/loss"]] == [2, 4, 6, 8]


def test_result_keeps_the_curves(trained: Trained) -> None:
    curves = trained.result["history"]
    assert curves.keys() == {"train/loss", "val/loss", "val/acc"}
    assert [step for step, _ in curves["train/loss"]] == [10, 20, 30, 40]
    assert [step for step, _ in curves["val/loss"]] == [step for step, _ in curves["val/acc"]] == [16, 32, 48]
    assert {tag: [tuple(point) for point in points] for tag, points in curves.items()} == {
        tag: trained.history[tag] for tag in curves
    }
    assert curves["train/loss"][0][1] > curves["train/loss"][-1][1]


@pytest.mark.parametrize("own_timer", [False, True])
def test_a_limit_of_time_ends_a_run(train_run: Train, own_timer: bool, capsys: pytest.CaptureFixture[str]) -> None:
    timer = "+callbacks.t={_target_:lightning.pytorch.callbacks.Timer,duration:{milliseconds:1}}"
    run = train_run(timer if own_timer else "trainer.max_time={milliseconds:1}", "trainer.max_epochs=50")
    assert run.last["epoch"] < 2
    assert run.result["status"] == "finished"
    assert run.result["fit_seconds"] > 0
    assert "stopped     the limit of time was reached" in capsys.readouterr().out


def test_checkpoints_hold_the_plain_resolved_configuration(trained: Trained) -> None:
    def types(node: Any) -> set[type]:
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
        return {type(node)}.union(*map(types, children))

    resolved = OmegaConf.to_container(trained.config, resolve=True)
    for checkpoint in (trained.best, trained.last):
        hyper_parameters = dict(checkpoint["hyper_parameters"])
        assert hyper_parameters == resolved
        assert hyper_parameters["data"]["source_dir"] == SAMPLE
        assert types(hyper_parameters) <= {dict, list, str, int, float, bool, type(None)}


def test_config_file_is_the_configuration(trained: Trained) -> None:
    text = (trained.folder / "config.yaml").read_text(encoding="utf-8")
    assert text.startswith("# Repeat this run:  python -m mnist_lit.train --config-dir ")
    saved = OmegaConf.create(text)
    assert isinstance(saved, DictConfig)
    assert saved.pop("defaults") == [{"hydra": "train"}, "_self_"]
    # Whoever repeats it has a folder of his own.
    expected: Any = OmegaConf.to_container(trained.config)
    assert OmegaConf.to_container(saved) == expected | {"run_dir": "${hydra:runtime.output_dir}"}


def test_training_learns(trained: Trained) -> None:
    losses = trained.values("val/loss")
    assert losses == sorted(losses, reverse=True)
    assert trained.result["metrics"]["test/acc"] > 0.4


@pytest.mark.parametrize("length", ["trainer.max_epochs=1", "+trainer.max_steps=7"])
def test_a_loss_that_nothing_logs_or_validates_is_looked_at_in_the_end(
    length: str, train_run: Train, tmp_path: Path
) -> None:
    never = ["data.val_size=0", "callbacks.checkpoint.monitor=null", "test=false", "trainer.log_every_n_steps=1000"]
    with pytest.raises(SystemExit) as end:
        train_run(*never, length, "optimizer.lr=1e10", run="diverged")
    assert end.value.code == 1
    assert not (tmp_path / "diverged" / "checkpoints").exists()  # from which it could go on
    assert train_run(*never, length, run="sound").result["status"] == "finished"


def test_run_too_short_for_a_curve_ends_well(train_run: Train) -> None:
    run = train_run(
        "data.val_size=0", "callbacks.checkpoint.monitor=null", "+trainer.max_steps=3", "test=false", full=True
    )
    assert run.history == {}
    assert run.result["status"] == "finished"
    assert "figures/first_layer_weights.png" in files(run.folder)


def test_a_gpu_that_is_not_wanted_is_nothing_to_warn_of(train_run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CUDAAccelerator, "is_available", lambda: True)
    run = train_run("trainer.accelerator=cpu", "trainer.max_epochs=1")
    assert run.result["device"].startswith("1 x cpu")
    build_scorer(run.config.trainer, accelerator="cpu", folder=run.folder)


def test_a_distributed_run_of_one_process_is_the_plain_one(train_run: Train, trained: Trained) -> None:
    with patch.dict(os.environ):
        try:
            run = train_run("trainer.strategy=ddp", "trainer.accelerator=cpu")
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
    assert run.result["metrics"].keys() == trained.result["metrics"].keys()
    assert len(run.history["val/loss"]) == 3


def test_what_interrupts_a_step_comes_after_all_who_listen_to_it(make_config: Compose) -> None:
    own = "{_target_:lightning.pytorch.callbacks.LambdaCallback}"
    trainer: Any = build(make_config(f"+callbacks.own={own}")).trainer
    names = [type(callback).__name__ for callback in trainer.callbacks]
    assert names.index(Interruption.__name__) > names.index("LambdaCallback")


def test_the_first_of_several_processes_takes_no_other_runs_folder(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")  # as torchrun does
    with pytest.raises(UserError, match="belongs to another run"):
        train(trained.config)
