"""How a run ends that does not end well: diverged, failed, interrupted, or refused for its folder."""

import math
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Main, Train, Trained, compose_config, files, read_checkpoint, read_result, train
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import functional

from mnist_lit import build, cli, startup
from mnist_lit.callbacks.interruption import Interruption
from mnist_lit.data.dataset import ResumableLoader
from mnist_lit.errors import UserError
from mnist_lit.logger import TensorBoard
from mnist_lit.loss import OneHotMSE
from mnist_lit.module import Classifier


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (["optimizer.lr=1000"], "train/loss became nan at step 10: "),
        (["optimizer.lr=1000", "trainer.log_every_n_steps=100"], "val/loss became nan at step 16: "),
    ],
    ids=["train", "val"],
)
def test_diverged_run_says_so_and_exits_with_1(
    train_run: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], start: str
) -> None:
    with pytest.raises(SystemExit) as end:
        train_run(*overrides)
    assert end.value.code == 1
    result = read_result(tmp_path / "run")
    assert result["status"] == "diverged"
    assert result["error"] == f"{start}try a smaller optimizer.lr, or trainer.gradient_clip_val=1"
    assert result["metrics"] == {}
    assert result["best_epoch"] is None
    printed = capsys.readouterr()
    assert f"diverged    {start}" in printed.out
    assert "Traceback" not in printed.out + printed.err


def test_a_result_is_kept_where_the_event_file_cannot_be_closed(
    train_run: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def close(logger: TensorBoard) -> None:
        raise OSError("no space")

    monkeypatch.setattr(TensorBoard, "close", close)
    with pytest.raises(OSError, match="no space"):
        train_run("logger=tensorboard")
    assert read_result(tmp_path / "run")["status"] == "finished"


@pytest.mark.usefixtures("ctrl_c")
def test_a_signal_is_heard_in_the_step_that_diverges(
    train_run: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nan_and_signal(logits: Tensor, labels: Tensor) -> Tensor:
        if logits.requires_grad:
            signal.raise_signal(signal.SIGINT)
        return logits.sum() * math.nan

    monkeypatch.setattr(OneHotMSE, "forward", staticmethod(nan_and_signal))
    monkeypatch.setattr(build, "_check_shapes", lambda *args, **kwargs: None)
    with pytest.raises(SystemExit) as end:
        train_run("trainer.log_every_n_steps=1")
    assert end.value.code == 130
    assert read_result(tmp_path / "run")["status"] == "interrupted"


def test_one_bad_validation_batch_counts(train_run: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def sometimes_nan(logits: Tensor, labels: Tensor) -> Tensor:
        value = functional.mse_loss(logits, functional.one_hot(labels, 10).float())
        return value if logits.requires_grad or len(labels) != 150 else value * math.nan

    monkeypatch.setattr(OneHotMSE, "forward", staticmethod(sometimes_nan))
    with pytest.raises(SystemExit):
        train_run("data.eval_batch_size=250", "trainer.max_epochs=1")  # of 400 images: 250 and 150
    assert read_result(tmp_path / "run")["status"] == "diverged"


def test_failure_is_recorded_and_raised(train_run: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(self: Classifier, batch: Any, batch_idx: int) -> Tensor:
        if self.trainer.global_step == 20:
            raise RuntimeError("out of\nluck")
        return training_step(self, batch, batch_idx)

    training_step = Classifier.training_step
    monkeypatch.setattr(Classifier, "training_step", fail)
    with pytest.raises(RuntimeError, match=r"^out of\nluck$"):
        train_run(full=True)
    result = read_result(tmp_path / "run")
    assert result["status"] == "failed"
    assert result["error"] == "RuntimeError: out of luck"
    assert [step for step, _ in result["history"]["train/loss"]] == [10, 20]
    assert read_checkpoint(tmp_path / "run", "last")["global_step"] == 16
    assert files(tmp_path / "run").count("events") == 1


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_is_recorded_and_exits_with_130(
    train_run: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(self: Classifier, batch: Any, batch_idx: int) -> Tensor:
        if self.trainer.global_step == 20:
            raise KeyboardInterrupt
        return training_step(self, batch, batch_idx)

    training_step = Classifier.training_step
    monkeypatch.setattr(Classifier, "training_step", interrupt)
    with pytest.raises(SystemExit) as end:
        train_run()
    assert end.value.code == 130
    result = read_result(tmp_path / "run")
    assert result["status"] == "interrupted"
    assert result["error"] is None
    assert result["metrics"].keys() <= {"val/loss", "val/acc"}
    assert [step for step, _ in result["history"]["val/acc"]] == [16]


def test_folder_of_another_run_is_refused_and_left_alone(trained: Trained) -> None:
    def contents() -> dict[Path, tuple[int, bytes]]:
        paths = (path for path in trained.folder.rglob("*") if path.is_file() and path.name != ".lock")
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}

    before = contents()
    with pytest.raises(UserError) as refusal:
        train(compose_config(trained.folder, "seed=1"))
    assert str(refusal.value) == (
        f"{trained.folder} belongs to another run: resume={trained.folder} goes on with it, or name a new folder"
    )
    assert contents() == before


@pytest.mark.parametrize(
    ("number", "ends"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_signal_ends_at_once_until_libraries_are_imported_and_in_order_then(
    number: signal.Signals,
    ends: type[BaseException],
    ctrl_c: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    heard = []

    def task(cfg: DictConfig) -> None:
        heard.append(signal.getsignal(number))
        with startup.fast_imports():
            pass
        heard.append(signal.getsignal(number))

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(sys, "argv", ["mnist-lit-export"])
    before = signal.getsignal(number)
    cli.run(task, "export")
    assert signal.getsignal(number) is before
    at_once, later = heard
    assert callable(at_once)
    assert callable(later)
    with pytest.raises(ends, match="143" if ends is SystemExit else None):
        later(number, None)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit, match=str(128 + number)):
        at_once(number, None)
    assert capfd.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("left", [[], None, ["train.log", "config.yaml"]], ids=["new", "not_made_yet", "resumed"])
def test_an_early_ctrl_c_leaves_no_folder(
    ctrl_c: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, left: list[str] | None
) -> None:
    def task(cfg: DictConfig) -> None:
        if left is None:
            shutil.rmtree(cfg.run_dir)
        for name in left or []:
            (Path(cfg.run_dir) / name).touch()
        handler = signal.getsignal(signal.SIGINT)
        assert callable(handler)
        handler(signal.SIGINT, None)

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mnist-lit-train", "hydra.run.dir=run"])
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit, match="130"):
        cli.run(task, "train")
    assert sorted(path.name for path in tmp_path.glob("run/*")) == sorted(left or [])
    assert (tmp_path / "run").exists() == bool(left)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(("signal_is", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_a_signal_while_a_loader_starts_is_heard(
    signal_is: BaseException, code: int, train_run: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Lightning's teardown fails at what it has left half done."""

    def interrupted(self: ResumableLoader) -> None:
        raise signal_is

    monkeypatch.setattr(ResumableLoader, "__iter__", interrupted)
    with pytest.raises(SystemExit) as end:
        train_run()
    assert end.value.code == code
    assert read_result(tmp_path / "run")["status"] == "interrupted"


def test_signals_are_given_back_when_training_ends() -> None:
    nobody: Any = None
    before = signal.getsignal(signal.SIGTERM)
    callback = Interruption()
    callback.on_train_start(nobody, nobody)
    assert signal.getsignal(signal.SIGTERM) != before
    callback.on_train_end(nobody, nobody)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_test_of_no_batch_is_refused_before_the_fit(main: Main, tmp_path: Path) -> None:
    outcome = main("data=sample", "trainer.limit_test_batches=0.05", "hydra.run.dir=run")
    told = "trainer.limit_test_batches=0.05: leaves no batch of 1 to test; give a number of batches, or set test=false"
    assert (outcome.code, outcome.err) == (2, f"error: {told}\n")
    assert not (tmp_path / "run").exists()
    limited = ("data=sample", "trainer.max_epochs=1", "trainer.limit_test_batches=0.05", "test=false")
    assert main(*limited, "hydra.run.dir=done").code == 0
    before = (tmp_path / "done" / "result.json").read_bytes()
    assert main("resume=done", "test=true").code == 2
    assert (tmp_path / "done" / "result.json").read_bytes() == before
