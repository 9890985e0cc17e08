"""Which weights a run is scored with, and by what."""

from functools import partial

import pytest
from conftest import Train, Trained, files
from lightning.pytorch.strategies import SingleDeviceStrategy
from plain_torch import scores
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from mnist_lit import module
from mnist_lit.module import Classifier


def test_metrics_are_those_of_the_best_checkpoint(trained: Trained) -> None:
    assert trained.result["metrics"] == scores(trained.best, "val") | scores(trained.best, "test")
    assert trained.result["metrics"]["val/acc"] > 0.4


def test_metrics_are_means_over_images_not_batches(train_run: Train) -> None:
    run = train_run("data.eval_batch_size=380", "trainer.max_epochs=1")  # 400 and 500 images: small last batches
    assert run.result["metrics"] == scores(run.best, "val") | scores(run.best, "test")


def test_the_loss_is_the_mean_over_all_processes(
    trained: Trained, train_run: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        SingleDeviceStrategy, "reduce", lambda strategy, loss, **how: loss + (how["reduce_op"] == "mean")
    )
    run = train_run("trainer.max_epochs=1", "test=false")
    assert run.values("train/loss") == pytest.approx([trained.values("train/loss")[0] + 1])


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
    assert run.result["metrics"]["val/acc"] == run.values("val/acc")[0] > run.values("val/acc")[-1]


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


def test_no_test_leaves_the_test_images_alone(train_run: Train) -> None:
    run = train_run("test=false", "trainer.max_epochs=1", full=True)
    assert run.result["metrics"].keys() == {"val/loss", "val/acc"}
    assert not {"figures/predictions.png", "figures/confusion_matrix.png"} & set(files(run.folder))
    assert "figures/loss_curve.png" in files(run.folder)


def test_without_validation_the_last_weights_are_tested(train_run: Train) -> None:
    run = train_run("data.val_size=0", "callbacks.checkpoint.monitor=null", "trainer.max_epochs=2")
    assert run.last["global_step"] == 2 * 2000 / 100
    assert run.best["global_step"] == run.last["global_step"]
    assert run.result["metrics"] == scores(run.last, "test")
    assert run.result["best_epoch"] == 2
    assert not {"val/loss", "val/acc"} & run.history.keys()


def test_a_new_metric_is_one_line(train_run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.METRICS, "top2", partial(MulticlassAccuracy, top_k=2, average="micro"))
    run = train_run("trainer.max_epochs=2")
    metrics = run.result["metrics"]
    assert run.values("val/top2")[-1] == metrics["val/top2"] > metrics["val/acc"]
    assert metrics["test/top2"] > metrics["test/acc"]
