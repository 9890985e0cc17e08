"""A run from its first step to its end, and what it leaves in its folder."""

import logging
import math
import os
from dataclasses import fields
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import lightning as L
import pytest
import torch
from conftest import Compose, Main, Train, Trained, files, train
from lightning.pytorch.accelerators import CUDAAccelerator
from matplotlib.image import imread
from omegaconf import DictConfig, OmegaConf
from plain_torch import scores
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from mnist_lit import module
from mnist_lit.build import build
from mnist_lit.callbacks.interruption import Interruption
from mnist_lit.data.sources import SAMPLE
from mnist_lit.errors import UserError
from mnist_lit.evaluation import build_scorer
from mnist_lit.module import Classifier
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


def test_metrics_are_those_of_the_best_checkpoint(trained: Trained) -> None:
    assert trained.result["metrics"] == scores(trained.best, "val") | scores(trained.best, "test")
    assert trained.score == trained.result["metrics"]["val/acc"] > 0.4


def test_metrics_are_means_over_images_not_batches(train_run: Train) -> None:
    run = train_run("data.eval_batch_size=380", "trainer.max_epochs=1")  # 400 and 500 images: small last batches
    assert run.result["metrics"] == scores(run.best, "val") | scores(run.best, "test")


def forget(module: Classifier) -> None:
    for parameter in module.parameters() if module.current_epoch else ():
        nn.init.zeros_(parameter)


def test_best_checkpoint_need_not_be_the_last(train_run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classifier, "on_train_epoch_start", forget)
    run = train_run()
    assert (run.best["epoch"], run.best["global_step"]) == (0, 16)
    assert (run.last["epoch"], run.last["global_step"]) == (2, 48)
    assert run.result["best_epoch"] == 1
    assert run.result["metrics"] == scores(run.best, "val") | scores(run.best, "test")
    assert run.score == run.values("val/acc")[0] > run.values("val/acc")[-1]


def test_checkpoint_monitors_what_it_is_told(train_run: Train) -> None:
    # Epochs of a rate this small change the loss, but hardly an answer.
    told = ["callbacks.checkpoint.monitor=val/loss", "callbacks.checkpoint.mode=min", "optimizer.lr=1e-5"]
    run = train_run(*told, "test=false")
    losses, accuracies = run.values("val/loss"), run.values("val/acc")
    assert losses.index(min(losses)) + 1 == run.best["epoch"] + 1 == run.result["best_epoch"] == 3
    assert accuracies.index(max(accuracies)) == 0


def test_averaged_weights_are_validated_kept_and_tested(train_run: Train) -> None:
    average = "{_target_:lightning.pytorch.callbacks.EMAWeightAveraging,decay:0.5}"
    run = train_run(f"+callbacks.average={average}", "trainer.max_epochs=2")
    assert run.result["metrics"] == scores(run.best, "val") | scores(run.best, "test")


def test_a_check_before_training_is_no_score(train_run: Train) -> None:
    run = train_run("trainer.num_sanity_val_steps=1", "trainer.max_epochs=1", "test=false")
    assert [step for step, _ in run.history["val/acc"]] == [16]


def test_several_best_checkpoints_may_be_kept(train_run: Train) -> None:
    names = "callbacks.checkpoint.filename='best-{epoch}'"
    run = train_run(names, "+callbacks.checkpoint.save_top_k=2", "test=false")
    assert files(run.folder / "checkpoints") == ["best-1.ckpt", "best-2.ckpt", "last.ckpt"]


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


def test_no_test_leaves_the_test_images_alone(train_run: Train) -> None:
    run = train_run("test=false", "trainer.max_epochs=1", full=True)
    assert run.result["metrics"].keys() == {"val/loss", "val/acc"}
    assert not {"figures/predictions.png", "figures/confusion_matrix.png"} & set(files(run.folder))
    assert "figures/loss_curve.png" in files(run.folder)


def test_a_new_metric_is_one_line(train_run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.METRICS, "top2", partial(MulticlassAccuracy, top_k=2, average="micro"))
    run = train_run("trainer.max_epochs=2")
    metrics = run.result["metrics"]
    assert run.values("val/top2")[-1] == metrics["val/top2"] > metrics["val/acc"]
    assert metrics["test/top2"] > metrics["test/acc"]


def test_a_run_without_our_callbacks_says_what_it_lacks(main: Main, tmp_path: Path) -> None:
    mine = "+callbacks.mine={_target_:lightning.pytorch.callbacks.DeviceStatsMonitor}"
    told = "note        our callbacks are left out, checkpoints among them: callbacks=[default,MINE] keeps them\n"
    assert told in main("debug=fast", "logger=csv", "callbacks=[]", mine).out
    whole = main("debug=fast", "logger=csv", mine)
    assert whole.code == 0
    assert told not in whole.out


@pytest.mark.parametrize("lr", [0.001, 1.75])
def test_a_run_that_only_guesses_is_told(lr: float, train_run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train_run("optimizer=adam", f"optimizer.lr={lr}")
    told = f"note        no better than guessing: does optimizer.lr={lr} suit this optimizer and loss?\n"
    assert (told in capsys.readouterr().out) == (lr == 1.75)


@pytest.mark.parametrize(("load", "is_told"), [(9.0, True), (2.0, False)])
def test_busy_cores_are_told(
    load: float, is_told: bool, train_run: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr("mnist_lit.run.Run._device_name", lambda run: "1 x cpu (2 threads)")
    monkeypatch.setattr("mnist_lit.run.Timer.time_elapsed", lambda timer, stage: 6.0)
    train_run("debug=fast")
    told = "note        other work keeps the 2 cores busy (a load of 9.0): OMP_NUM_THREADS=1 may be faster\n"
    assert (told in capsys.readouterr().out) == is_told


def test_a_run_is_printed_in_a_line(make_config: Compose, tmp_path: Path) -> None:
    assert repr(build(make_config())) == f"Run(run_dir={str(tmp_path / 'run')!r}, status=None, metrics={{}})"


def test_without_validation_the_last_weights_are_tested(train_run: Train) -> None:
    run = train_run("data.val_size=0", "callbacks.checkpoint.monitor=null", "trainer.max_epochs=2")
    assert run.score is not None
    assert math.isnan(run.score)
    assert run.last["global_step"] == 2 * 2000 / 100
    assert run.best["global_step"] == run.last["global_step"]
    assert run.result["metrics"] == scores(run.last, "test")
    assert run.result["best_epoch"] == 2
    assert not {"val/loss", "val/acc"} & run.history.keys()


def test_what_no_metric_chose_is_not_called_best(train_run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train_run("callbacks.checkpoint.monitor=null", "trainer.max_epochs=1")
    assert "\nlast epoch  1: all scores are of its checkpoint\n" in capsys.readouterr().out


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


@pytest.mark.parametrize(
    ("override", "is_told"), [("+trainer.max_steps=2", True), ("+trainer.limit_val_batches=0", False)]
)
def test_a_run_that_ends_before_its_first_validation_says_so(
    override: str, is_told: bool, train_run: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    train_run(override, "callbacks.checkpoint.monitor=null", "trainer.max_epochs=1", "test=false")
    assert ("never: the run ended before its first validation" in capsys.readouterr().out) == is_told


def test_a_line_on_the_screen_for_all_that_counts(
    train_run: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    run = train_run("logger=tensorboard", "trainer.max_epochs=3")
    metrics = run.result["metrics"]
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {tag: lines[tag] for tag in metrics} == {tag: f"{value:.4f}" for tag, value in metrics.items()}
    assert lines["best"] == "epoch  3: all scores are of its checkpoint"
    assert lines["run"] == "folder  run"
    assert lines["curves"] == "tensorboard --logdir run"
    assert f"{run.result['images_per_second']:,.0f} images/s" in lines["fit"]


def test_logging_of_lightning_stays_off_the_screen(train_run: Train, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        train_run("debug=fast")
    assert {record.name for record in caplog.records} == {"mnist_lit.callbacks.progress", "mnist_lit.file_only"}
