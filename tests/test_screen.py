"""What a run says on the screen when it has ended."""

import logging
import os
import shlex
from pathlib import Path

import pytest
import torch
from conftest import Compose, Main, Train
from made_sweeps import Sweep

from mnist_lit import startup
from mnist_lit.build import build


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


def test_what_no_metric_chose_is_not_called_best(train_run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train_run("callbacks.checkpoint.monitor=null", "trainer.max_epochs=1")
    assert "\nlast epoch  1: all scores are of its checkpoint\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "is_told"), [("+trainer.max_steps=2", True), ("+trainer.limit_val_batches=0", False)]
)
def test_a_run_that_ends_before_its_first_validation_says_so(
    override: str, is_told: bool, train_run: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    train_run(override, "callbacks.checkpoint.monitor=null", "trainer.max_epochs=1", "test=false")
    assert ("never: the run ended before its first validation" in capsys.readouterr().out) == is_told


def test_a_run_without_our_callbacks_says_what_it_lacks(main: Main, tmp_path: Path) -> None:
    mine = "+callbacks.mine={_target_:lightning.pytorch.callbacks.DeviceStatsMonitor}"
    told = (
        "note        our callbacks are left out, and resume= and ckpt= need them: 'callbacks=[default,MINE]' has both\n"
    )
    assert told in main("debug=fast", "logger=csv", "callbacks=[]", mine).out
    whole = main("debug=fast", "logger=csv", mine)
    assert whole.code == 0
    assert told not in whole.out


@pytest.mark.parametrize("lr", [0.001, 1.75])
def test_a_run_that_only_guesses_is_told(lr: float, train_run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train_run("optimizer=adam", f"optimizer.lr={lr}")
    told = f"note        no better than guessing: does optimizer.lr={lr} suit this optimizer and loss?\n"
    assert (told in capsys.readouterr().out) == (lr == 1.75)


def test_a_part_of_the_images_is_too_little_to_judge(train_run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train_run("optimizer=adam", "optimizer.lr=1.75", "trainer.limit_train_batches=15")
    assert "no better than guessing" not in capsys.readouterr().out


def test_a_limit_of_time_that_is_not_reached_is_not_told(train_run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train_run("debug=fast", "trainer.max_time={hours:1}")
    assert "stopped" not in capsys.readouterr().out


def test_curves_are_shown_beside_those_of_other_runs(main: Main) -> None:
    assert main("debug=fast", "callbacks.pictures=null").out.endswith("curves      tensorboard --logdir outputs\n")


def test_the_command_that_uses_a_run_trusts_its_own_classes(
    main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("from mnist_lit.model import MLP\nclass Net(MLP): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    short = ("data=sample", "trainer.max_epochs=1", "logger=none", "callbacks.pictures=null")
    for own, trusted in {"mnist_lit.model.MLP": "", "mine.Net": " 'trusted=[mine]'"}.items():
        done = main(*short, f"model._target_={own}", f"hydra.run.dir={own}")
        command = f"python -m mnist_lit.evaluate ckpt={own}{trusted}"
        assert f"use it      {command}\n" in done.out
        assert main(*shlex.split(command)[3:], module="evaluate").code == 0


@pytest.mark.parametrize(("load", "seconds", "is_told"), [(9.0, 6.0, True), (2.5, 6.0, False), (9.0, 4.0, False)])
def test_busy_cores_are_told(
    load: float,
    seconds: float,
    is_told: bool,
    train_run: Train,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("mnist_lit.run.Timer.time_elapsed", lambda timer, stage: seconds)
    train_run("debug=fast")
    told = f"note        other work keeps the 2 cores busy (a load of {load}): OMP_NUM_THREADS=1 may be faster\n"
    assert (told in capsys.readouterr().out) == is_told


def test_busy_cores_are_told_after_a_sweeps_first_job_and_by_its_dry_run(
    sweep: Sweep, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 9.0, 9.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("mnist_lit.run.Timer.time_elapsed", lambda timer, stage: 6.0)
    for dry_run in ("true", "false"):
        startup.tell_once_if_busy.cache_clear()
        assert sweep("seed=0,1", "trainer.max_epochs=1", f"sweep.dry_run={dry_run}") == 0
        assert capsys.readouterr().err.count("note: other work keeps the ") == 1


def test_a_run_is_printed_in_a_line(make_config: Compose, tmp_path: Path) -> None:
    assert repr(build(make_config())) == f"Run(run_dir={str(tmp_path / 'run')!r}, status=None, metrics={{}})"


def test_logging_of_lightning_stays_off_the_screen(train_run: Train, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        train_run("debug=fast")
    assert {record.name for record in caplog.records} == {"mnist_lit.callbacks.progress", "mnist_lit.file_only"}
