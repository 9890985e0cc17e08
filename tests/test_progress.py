import io
import logging
import re
import sys
from typing import Any

import pytest
from conftest import Train
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from mnist_lit.callbacks import progress
from mnist_lit.callbacks.progress import Progress
from mnist_lit.module import Classifier

ALWAYS = ("callbacks.progress.always=true", "test=false")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def frames(drawn: str) -> list[str]:
    """Return what the bar showed, one text for each time it was drawn."""
    return [frame for frame in re.split(r"[\r\n]", drawn) if "|" in frame]


@pytest.mark.parametrize(
    ("columns", "tags"), [("80", ("train/loss", "val/acc")), ("120", ("train/loss", "val/loss", "val/acc"))]
)
def test_bar_shows_losses_accuracy_and_speed(
    columns: str,
    tags: tuple[str, ...],
    train_run: Train,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", "24")
    run = train_run(*ALWAYS, "callbacks.progress.refresh_seconds=0", "trainer.log_every_n_steps=2")
    last = frames(capsys.readouterr().out)[-1]
    assert re.match(r"epoch 3/3:? +\|", last)
    assert "16/16" in last
    shown = dict(re.findall(r"([\w/]+)=\s*([\d.,]+)", last))
    assert shown.keys() == {*tags, "images/s"}
    for tag in tags:
        assert shown[tag].rstrip(",") == f"{run.values(tag)[-1]:.4f}"
    assert int(shown["images/s"].replace(",", "")) > 100
    assert len(last.replace("█", "").strip()) < int(columns) - 4  # which leaves some of the bar


def test_bar_shows_in_a_terminal(train_run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    train_run("test=false", "trainer.max_epochs=1", "callbacks.progress.refresh_seconds=0")
    assert any("train/loss=" in frame for frame in frames(terminal.getvalue()))


def test_nothing_is_drawn_where_stdout_is_no_terminal(train_run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train_run()
    printed = capsys.readouterr()
    assert frames(printed.out) == []
    assert "\r" not in printed.out + printed.err


def test_nothing_is_drawn_where_the_shell_has_closed_stdout(train_run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert train_run("trainer.max_epochs=1").result["status"] == "finished"


def test_no_bar_takes_the_place_of_one_that_is_left_out(train_run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train_run("~callbacks.progress", "trainer.max_epochs=1")
    printed = capsys.readouterr()
    assert "Epoch" not in printed.out + printed.err  # as Lightning calls it


def test_bar_is_drawn_once_a_refresh(train_run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def counting(self: Tqdm, *args: Any, **kwargs: Any) -> Any:
        if not self.disable:
            drawn.append(int(self.n))
        return display(self, *args, **kwargs)

    now, training_step = 0.0, Classifier.training_step

    def a_second_later(self: Classifier, batch: Any, batch_idx: int) -> Any:
        nonlocal now
        now += 1
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", a_second_later)
    monkeypatch.setattr(progress, "perf_counter", lambda: now)
    display = Tqdm.display
    monkeypatch.setattr(Tqdm, "display", counting)
    train_run(
        *ALWAYS,
        "callbacks.progress.refresh_seconds=3",
        "trainer.max_epochs=1",
        "data.val_size=0",
        "callbacks.checkpoint.monitor=null",
    )
    # 20 steps; the bar's birth and the epoch's end draw it too, at 0 and 20.
    assert [n for n in drawn if 0 < n < 20] == [3, 6, 9, 12, 15, 18]
    assert drawn[-1] == 20


def test_validation_and_test_draw_no_bar_of_their_own(train_run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train_run("callbacks.progress.always=true", "trainer.max_epochs=1", "callbacks.progress.refresh_seconds=0")
    drawn = frames(capsys.readouterr().out)
    assert {frame.split()[0].lower() for frame in drawn} == {"training", "epoch"}
    assert len([frame for frame in drawn if frame.startswith("epoch 1/1")]) >= 14


def test_each_epoch_leaves_a_line_behind(train_run: Train, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mnist_lit"):
        run = train_run("test=false")
    lines = [record.getMessage() for record in caplog.records if record.name == "mnist_lit.callbacks.progress"]
    assert len(lines) == 3
    # The last loss logged by the end of each epoch: of steps 10, 30 and 40.
    losses = [dict(run.history["train/loss"])[step] for step in (10, 30, 40)]
    for epoch, line in enumerate(lines):
        start = (
            f"epoch {epoch + 1}/3  train/loss {losses[epoch]:.4f}  val/loss {run.values('val/loss')[epoch]:.4f}  "
            f"val/acc {run.values('val/acc')[epoch]:.4f}  images/s "
        )
        assert line.startswith(start)
        assert int(line.removeprefix(start).replace(",", "")) > 100


def test_a_line_has_nothing_of_another_epoch(train_run: Train, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mnist_lit.callbacks.progress"):
        train_run("trainer.check_val_every_n_epoch=2", "trainer.log_every_n_steps=20", "test=false")
    names = [re.findall(r"  ([\w/]+) ", message) for message in caplog.messages]
    # In the first epoch nothing is measured, so it leaves none.
    assert names == [["train/loss", "val/loss", "val/acc", "images/s"], ["train/loss", "images/s"]]


def test_images_per_second_are_those_of_the_epoch(
    train_run: Train, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, training_step = 0.0, Classifier.training_step

    def later(self: Classifier, batch: Any, batch_idx: int) -> Any:
        nonlocal now
        now += 10 if self.current_epoch == 0 else 1
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", later)
    monkeypatch.setattr(progress, "perf_counter", lambda: now)
    with caplog.at_level(logging.INFO, logger="mnist_lit.callbacks.progress"):
        train_run("trainer.max_epochs=2", "test=false")
    assert [message.split("images/s ")[1] for message in caplog.messages] == ["10", "100"]


def test_epochs_without_an_end_are_counted_alone(train_run: Train, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mnist_lit.callbacks.progress"):
        train_run("trainer.max_epochs=-1", "+trainer.max_steps=20", "test=false")
    assert [message.split("  ")[0] for message in caplog.messages] == ["epoch 1", "epoch 2"]


def test_negative_refresh_seconds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^refresh_seconds must be at least 0, got -1$"):
        Progress(refresh_seconds=-1, always=False)
