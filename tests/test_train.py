import logging
import math
from dataclasses import fields
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
import pytest
import torch
from conftest import Compose, Train, Trained, compose_config, read_checkpoint, read_result
from hydra.utils import instantiate
from matplotlib.image import imread
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from mnist_lit.build import build
from mnist_lit.data.sources import SAMPLE
from mnist_lit.errors import UserError
from mnist_lit.loss import OneHotMSE
from mnist_lit.model import MLP
from mnist_lit.module import Classifier
from mnist_lit.result import SCHEMA_VERSION, Result
from mnist_lit.train import train

PICTURES = ("samples", "predictions", "confusion_matrix", "first_layer_weights", "loss_curve")


def files(folder: Path) -> list[str]:
    """Return the files of a run, an event file's own name replaced."""
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted("events" if "tfevents" in name else name for name in names)


def network(checkpoint: dict[str, Any]) -> nn.Module:
    """Rebuild the network from nothing but a checkpoint."""
    model = instantiate(checkpoint["hyper_parameters"]["model"])
    assert isinstance(model, nn.Module)
    weights = {key.removeprefix("model."): value for key, value in checkpoint["state_dict"].items()}
    model.load_state_dict(weights)
    return model.eval()


def split(checkpoint: dict[str, Any], name: str) -> tuple[Tensor, Tensor]:
    """Return the images, normalised, and the labels that a checkpoint's run validated or tested on."""
    data = instantiate(checkpoint["hyper_parameters"]["data"])
    data.setup()
    images, labels = getattr(data, name).__getitems__(range(len(getattr(data, name))))
    return (images.float() / 255 - 0.1307) / 0.3081, labels


def scores(checkpoint: dict[str, Any], name: str) -> dict[str, Any]:
    """Measure a checkpoint on a split with plain torch."""
    images, labels = split(checkpoint, name)
    with torch.no_grad():
        logits = network(checkpoint)(images)
    mse = functional.mse_loss(logits, functional.one_hot(labels, 10).float()).item()
    acc = (logits.argmax(dim=1) == labels).float().mean().item()
    return {f"{name}/loss": pytest.approx(mse, abs=1e-6), f"{name}/acc": pytest.approx(acc, abs=1e-7)}


def test_run_folder_holds_what_is_promised_and_nothing_else(trained: Trained) -> None:
    pictures = [f"figures/{name}.png" for name in PICTURES]
    assert files(trained.folder) == sorted(
        [".lock", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "events", "result.json", *pictures]
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
    assert trained.result["schema_version"] == SCHEMA_VERSION == 1
    assert trained.result["status"] == "finished"
    assert trained.result["error"] is None
    assert trained.result["seed"] == 0
    assert trained.result["overrides"] == []
    assert trained.result["device"].startswith("1 x ")
    assert trained.result["num_parameters"] == 784 * 256 + 256 + 256 * 64 + 64 + 64 * 10 + 10
    assert trained.result["versions"]["torch"] == torch.__version__.split("+")[0]
    assert trained.result["best_epoch"] == 2
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


def test_best_checkpoint_need_not_be_the_last(train_run: Train) -> None:
    # The epoch that is worst by accuracy is the first.
    run = train_run("callbacks.checkpoint.mode=min")
    assert (run.best["epoch"], run.best["global_step"]) == (0, 16)
    assert (run.last["epoch"], run.last["global_step"]) == (2, 48)
    assert run.result["best_epoch"] == 0
    assert run.result["metrics"] == scores(run.best, "val") | scores(run.best, "test")
    assert run.score == run.values("val/acc")[0] < run.values("val/acc")[-1]


def test_checkpoint_monitors_what_it_is_told(train_run: Train) -> None:
    run = train_run("callbacks.checkpoint.monitor=val/loss", "callbacks.checkpoint.mode=max", "test=false")
    assert run.values("val/loss")[0] == max(run.values("val/loss"))
    assert run.best["epoch"] == run.result["best_epoch"] == 0


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


def test_without_validation_the_last_weights_are_tested(train_run: Train) -> None:
    run = train_run("data.val_size=0", "callbacks.checkpoint.monitor=null", "trainer.max_epochs=2")
    assert run.score is not None
    assert math.isnan(run.score)
    assert run.last["global_step"] == 2 * 2000 / 100
    assert run.best["global_step"] == run.last["global_step"]
    assert run.result["metrics"] == scores(run.last, "test")
    assert run.result["best_epoch"] == 1
    assert not {"val/loss", "val/acc"} & run.history.keys()


def test_hidden_sizes_activation_and_dropout_by_yaml(train_run: Train, make_config: Compose) -> None:
    overrides = ["model.hidden_sizes=[32,16,8]", "model.activation=Tanh", "model.dropout=0.25", "debug=fast"]
    run = train_run(*overrides, run="trained")
    weights = {key: tuple(tensor.shape) for key, tensor in run.best["state_dict"].items() if key.endswith("weight")}
    assert list(weights.values()) == [(32, 784), (16, 32), (8, 16), (10, 8)]
    model = build(make_config(*overrides)).module.model
    assert isinstance(model, MLP)
    assert [type(layer).__name__ for layer in model.layers] == [*("Linear", "Tanh", "Dropout") * 3, "Linear"]
    assert {layer.p for layer in model.layers if isinstance(layer, nn.Dropout)} == {0.25}


@pytest.mark.parametrize(
    ("overrides", "settings", "state"),
    [
        ([], {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.0, "nesterov": False}, {"momentum_buffer"}),
        (["optimizer.lr=0.5", "optimizer.nesterov=true"], {"lr": 0.5, "nesterov": True}, {"momentum_buffer"}),
        (
            ["optimizer=adam"],
            {"lr": 0.001, "betas": [0.9, 0.999], "weight_decay": 0.0, "decoupled_weight_decay": False},
            {"step", "exp_avg", "exp_avg_sq"},
        ),
        (
            ["optimizer=adamw", "optimizer.betas=[0.8,0.9]"],
            {"lr": 0.001, "betas": [0.8, 0.9], "weight_decay": 0.01, "decoupled_weight_decay": True},
            {"step", "exp_avg", "exp_avg_sq"},
        ),
    ],
    ids=["sgd", "nesterov", "adam", "adamw"],
)
def test_optimiser_by_yaml(train_run: Train, overrides: list[str], settings: dict[str, Any], state: set[str]) -> None:
    run = train_run("trainer.max_epochs=1", *overrides)
    (optimizer,) = run.last["optimizer_states"]
    (group,) = optimizer["param_groups"]
    found = {key: list(value) if isinstance(value, tuple) else value for key, value in group.items()}
    assert found | settings == found
    assert len(group["params"]) == len(optimizer["state"]) == 6
    assert optimizer["state"][0].keys() == state
    assert run.result["status"] == "finished"
    assert run.values("train/loss")[0] < 0.12


def test_cross_entropy_by_yaml(train_run: Train) -> None:
    run = train_run("loss=cross_entropy", "trainer.max_epochs=1", "trainer.log_every_n_steps=1")
    assert run.values("train/loss")[0] == pytest.approx(math.log(10), abs=0.3)
    images, labels = split(run.best, "test")
    with torch.no_grad():
        expected = functional.cross_entropy(network(run.best)(images), labels).item()
    assert run.result["metrics"]["test/loss"] == pytest.approx(expected, abs=1e-5)


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


def test_early_stopping_stops_early(train_run: Train) -> None:
    # A learning rate that changes nothing: the second and third epoch are no better than the first.
    run = train_run(
        "callbacks=[default,early_stopping]",
        "callbacks.early_stopping.patience=2",
        "optimizer.lr=1e-12",
        "trainer.max_epochs=50",
        "test=false",
    )
    assert len(run.history["val/acc"]) == 3
    assert run.last["epoch"] == 2
    assert run.result["status"] == "finished"
    assert run.result["best_epoch"] == 0


def test_gradient_clipping_bounds_the_step(train_run: Train, make_config: Compose) -> None:
    overrides = ["optimizer.lr=1", "optimizer.momentum=0", "trainer.max_epochs=1", "+trainer.max_steps=1", "test=false"]

    def step_length(*clipping: str, run: str) -> float:
        start = build(make_config(*overrides)).module.state_dict()
        end = train_run(*overrides, "callbacks.checkpoint.monitor=null", *clipping, run=run).last["state_dict"]
        return math.sqrt(sum(float((end[key] - start[key]).pow(2).sum()) for key in start))

    assert step_length("trainer.gradient_clip_val=0.001", run="clipped") == pytest.approx(0.001, rel=1e-3)
    assert step_length(run="free") > 0.05


def test_bf16_computes_in_bf16_and_keeps_float32_weights(train_run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()

    def noting(logits: Tensor, labels: Tensor) -> Tensor:
        seen.add(logits.dtype)
        return functional.mse_loss(logits.float(), functional.one_hot(labels, 10).float())

    monkeypatch.setattr(OneHotMSE, "forward", staticmethod(noting))
    run = train_run("trainer.precision=bf16-mixed", "trainer.max_epochs=1")
    assert seen == {torch.bfloat16}
    assert {tensor.dtype for tensor in run.best["state_dict"].values()} == {torch.float32}
    assert run.result["metrics"]["val/loss"] == pytest.approx(0.0886, abs=0.002)


def test_bf16_with_clipping_works_unfused(train_run: Train) -> None:
    run = train_run(
        "trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1", "optimizer.fused=false", "debug=fast"
    )
    assert run.result["status"] == "finished"


def read_csv(folder: Path, tag: str) -> list[tuple[int, float]]:
    lines = (folder / "csv" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    return [(int(row["step"]), float(row[tag])) for row in rows if row[tag]]


@pytest.mark.parametrize(
    ("logger", "has_events", "has_csv"),
    [("tensorboard", True, False), ("csv", False, True), ("both", True, True), ("none", False, False)],
)
def test_loggers_write_their_own_files_only(train_run: Train, logger: str, has_events: bool, has_csv: bool) -> None:
    run = train_run(
        f"logger={logger}", "callbacks.pictures=null", "trainer.max_epochs=2", "trainer.log_every_n_steps=8", full=True
    )
    written = files(run.folder)
    assert written.count("events") == has_events
    assert ("csv/metrics.csv" in written) == has_csv
    assert run.result["status"] == "finished"
    if has_csv:
        for tag in ("train/loss", "lr", "epoch", "images_seen", "val/loss", "val/acc"):
            assert dict(read_csv(run.folder, tag)) == pytest.approx(dict(run.history[tag]))
        assert dict(read_csv(run.folder, "test/acc")) == pytest.approx({32: run.result["metrics"]["test/acc"]})


def test_run_too_short_for_a_curve_ends_well(train_run: Train) -> None:
    run = train_run(
        "data.val_size=0", "callbacks.checkpoint.monitor=null", "+trainer.max_steps=3", "test=false", full=True
    )
    assert run.history == {}
    assert run.result["status"] == "finished"
    assert "figures/first_layer_weights.png" in files(run.folder)


def test_debug_fast_does_two_steps_of_everything_on_the_sample(train_run: Train) -> None:
    run = train_run("debug=fast", sample=False)
    assert run.last["hyper_parameters"]["data"]["source_dir"] == SAMPLE
    assert run.last["global_step"] == 2
    assert run.last["progress"]["images_seen"] == 200
    assert [step for step, _ in run.history["train/loss"]] == [1, 2]
    assert run.result["metrics"].keys() == {"val/loss", "val/acc", "test/loss", "test/acc"}


def test_debug_overfit_learns_one_batch_by_heart(train_run: Train) -> None:
    run = train_run("debug=overfit", "trainer.max_epochs=120", "trainer.check_val_every_n_epoch=120")
    assert run.last["global_step"] == 120
    losses = run.values("train/loss")
    assert losses[0] > 0.05
    assert losses[-1] < 0.001


def test_debug_profile_leaves_a_table_of_hooks(train_run: Train) -> None:
    run = train_run("debug=profile")
    table = (run.folder / "fit-profile.txt").read_text(encoding="utf-8")
    (row,) = (line for line in table.splitlines() if "run_training_batch" in line)
    assert int(row.split("|")[3]) == 16  # calls
    assert run.last["epoch"] == 0


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
        paths = (path for path in trained.folder.rglob("*") if path.is_file())
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}

    before = contents()
    with pytest.raises(UserError) as refusal:
        train(compose_config(trained.folder, "seed=1"))
    assert str(refusal.value) == (
        f"{trained.folder} belongs to another run: resume={trained.folder} goes on with it, or name a new folder"
    )
    assert contents() == before


# From Python 3.12 on, forking a process with threads (TensorBoard's writer) warns.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_worker_processes_change_nothing(train_run: Train, trained: Trained) -> None:
    run = train_run("data.num_workers=2", "trainer.max_epochs=1", "test=false")
    assert run.history["train/loss"] == trained.history["train/loss"][:1]
    assert run.history["val/loss"] == trained.history["val/loss"][:1]


def test_a_line_on_the_screen_for_all_that_counts(
    train_run: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    run = train_run()
    metrics = run.result["metrics"]
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {tag: lines[tag] for tag in metrics} == {tag: f"{value:.4f}" for tag, value in metrics.items()}
    assert lines["best"] == "epoch  3"
    assert lines["run"] == "folder  run"
    assert lines["curves"] == "tensorboard --logdir outputs"
    assert f"{run.result['images_per_second']:,.0f} images/s" in lines["fit"]


def test_logging_of_lightning_stays_off_the_screen(train_run: Train, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        train_run("debug=fast")
    assert {record.name for record in caplog.records} == {"mnist_lit.callbacks.progress"}
