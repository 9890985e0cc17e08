"""When the learning rate moves, and when a run stops early, by YAML alone."""

import math
from typing import Any

import pytest
import torch
from conftest import Compose, Train
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from mnist_lit.build import build
from mnist_lit.errors import UserError


def test_a_threshold_that_is_reached_stops_a_run(train_run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train_run("callbacks=early_stopping", "+callbacks.early_stopping.stopping_threshold=0.01", "trainer.max_epochs=50")
    assert "stopped     after epoch 1: Stopping threshold reached" in capsys.readouterr().out


def one_cycle(optimizer: Optimizer) -> LRScheduler:
    return OneCycleLR(optimizer, max_lr=0.2, total_steps=48, pct_start=0.3, cycle_momentum=False)


def cosine(optimizer: Optimizer) -> LRScheduler:
    return CosineAnnealingLR(optimizer, T_max=48)


@pytest.mark.parametrize(("schedule", "peak", "start"), [(one_cycle, 14, 0.2 / 25), (cosine, 0, 0.2)])
def test_schedule_by_yaml(train_run: Train, schedule: Any, peak: int, start: float) -> None:
    run = train_run(f"scheduler={schedule.__name__}", "optimizer.lr=0.2", "trainer.log_every_n_steps=1", "test=false")
    rates = run.values("lr")
    # It rises, or not, and falls to almost nothing.
    assert rates[0] == pytest.approx(start)
    assert rates.index(max(rates)) == peak
    assert rates[peak] == pytest.approx(0.2, rel=1e-2)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.2 / 500

    # What each step took is what the schedule had before that step.
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    scheduler = schedule(optimizer)
    expected = []
    for _ in range(48):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert dict(run.history["lr"]) == pytest.approx(dict(enumerate(expected, start=1)))


def test_early_stopping_stops_early(train_run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    # A learning rate that changes nothing: the second and third epoch are no better than the first.
    run = train_run(
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=2",
        "optimizer.lr=1e-12",
        "trainer.max_epochs=50",
    )
    assert len(run.history["val/acc"]) == 3
    assert run.last["epoch"] == 2  # the default callbacks are there too
    assert run.result["status"] == "finished"
    assert run.result["best_epoch"] == 1
    why = "Monitored metric val/acc did not improve in the last 2 records. Best score: "
    assert f"stopped     after epoch 3: {why}" in capsys.readouterr().out


def test_a_schedule_may_go_by_a_metric(train_run: Train) -> None:
    never_enough = ("scheduler.scheduler.patience=0", "+scheduler.scheduler.threshold=1e9")
    run = train_run("scheduler=plateau", *never_enough, "scheduler.scheduler.factor=0.5", "test=false")
    assert run.values("lr") == pytest.approx([0.01, 0.005, 0.005, 0.0025])


@pytest.mark.parametrize(
    ("monitor", "mode", "said"),
    [
        ("val/acc", "min", r"^scheduler\.scheduler\.mode=min: would take the worst val/acc for the best"),
        ("val/loss", "max", r"^scheduler\.scheduler\.mode=max: would take the worst val/loss for the best"),
        ("val/f1", "min", r"^scheduler\.monitor=val/f1: must be val/acc or val/loss"),
    ],
)
def test_a_schedule_goes_by_the_good_end_of_a_metric(make_config: Compose, monitor: str, mode: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        build(make_config("scheduler=plateau", f"scheduler.monitor={monitor}", f"scheduler.scheduler.mode={mode}"))


def test_a_schedule_may_span_a_number_of_steps(train_run: Train) -> None:
    run = train_run("scheduler=cosine", "trainer.max_epochs=-1", "+trainer.max_steps=20", "test=false")
    assert run.values("lr") == pytest.approx([0.005 * (1 + math.cos(math.pi * step / 20)) for step in (9, 19)])


def test_a_patience_of_none_still_waits_for_the_second_validation(train_run: Train) -> None:
    run = train_run("callbacks=early_stopping", "callbacks.early_stopping.patience=0", "trainer.max_epochs=2")
    assert len(run.values("val/acc")) == 2
