"""What another word on the command line changes: parts of the network, optimisers, schedules, loggers, presets."""

import math
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose, Train, files
from plain_torch import network, split
from torch import Tensor, nn
from torch.nn import functional

from mnist_lit.build import build, check, locate
from mnist_lit.data.sources import SAMPLE
from mnist_lit.errors import UserError
from mnist_lit.loss import OneHotMSE
from mnist_lit.model import MLP
from mnist_lit.signatures import check_arguments


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
        (
            ["~optimizer", "+optimizer={_target_:torch.optim.Rprop,_partial_:true,lr:0.01,etas:[0.4,1.2]}"],
            {"etas": [0.4, 1.2]},
            {"step", "prev", "step_size"},
        ),
    ],
    ids=["sgd", "nesterov", "adam", "adamw", "rprop"],
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


def test_augmentation_may_be_a_dataclass(train_run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "noise.py").write_text(
        "from dataclasses import dataclass\n\n@dataclass\nclass Shift:\n    by: list[int]\n\n"
        "    def __call__(self, images):\n        return images.roll(self.by[0], 2) if type(self.by) is list else 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plain = train_run("trainer.max_epochs=1", run="plain")
    run = train_run("trainer.max_epochs=1", "+augmentation._target_=noise.Shift", "+augmentation.by=[1]")
    assert run.values("train/loss") != plain.values("train/loss")


MINE = """
import warnings

import torch
from hydra.utils import instantiate

from mnist_lit.data import MNISTDataModule


class Late(torch.nn.Sequential):
    def __init__(self, layer):
        super().__init__(torch.nn.Flatten(), instantiate(layer, in_features=784))


class Own(MNISTDataModule):
    def __init__(self, *, augmentation, **others):
        super().__init__(augmentation=augmentation, **others)


class Noisy(torch.nn.CrossEntropyLoss):
    def forward(self, logits, labels):
        warnings.warn("old", DeprecationWarning)
        return super().forward(logits, labels)
"""


@pytest.mark.parametrize(
    "overrides",
    [
        ["~model", "+model={_target_:mine.Late,_recursive_:false,layer:{_target_:torch.nn.Linear,out_features:10}}"],
        [
            "~model",
            "+model={_target_:torch.nn.Sequential,_args_:[{_target_:torch.nn.Flatten},"
            "{_target_:torch.nn.Linear,in_features:784,out_features:10}]}",
        ],
        ["data._target_=mine.Own"],
        ["~loss", "+loss._target_=mine.Noisy"],
    ],
    ids=["built_later", "by_position", "given_by_code", "warns"],
)
def test_classes_of_ones_own_need_no_more_than_hydra_does(
    overrides: list[str], make_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert build(make_config(*overrides)).module.training


def test_no_image_is_seen_before_the_first_step(make_config: Compose) -> None:
    parts = ["Flatten", "BatchNorm1d,num_features:784", "Linear,in_features:784,out_features:10"]
    layers = ",".join(f"{{_target_:torch.nn.{part}}}" for part in parts)
    model: Any = build(make_config("~model", f"+model={{_target_:torch.nn.Sequential,_args_:[{layers}]}}")).module.model
    assert model[1].num_batches_tracked == 0


def test_what_holds_parts_to_be_built_has_no_type_yet(make_config: Compose) -> None:
    class Stack(torch.nn.Sequential):
        def __init__(self, layers: list[torch.nn.Module], named: dict[str, torch.nn.Module]) -> None:
            super().__init__(*layers, *named.values())

    flatten, linear = {"_target_": "torch.nn.Flatten"}, {"_target_": "torch.nn.Linear", "in_features": 784}
    check_arguments("model", Stack, {"layers": [flatten], "named": {"last": linear}})
    with pytest.raises(UserError, match=r"model\.layers=\[1\]: must be a list$"):
        check_arguments("model", Stack, {"layers": [1], "named": {"last": linear}})


def test_a_package_that_lies_here_but_is_not_found_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mypackage").mkdir()
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    with pytest.raises(UserError, match=r"mypackage lies in this folder, but not on Python's path: set PYTHONPATH=\."):
        locate("model", "mypackage.networks.Net")
    with pytest.raises(UserError, match=r"cannot be imported: .*nopackage") as refused:
        locate("model", "nopackage.networks.Net")
    assert "lies in this folder" not in str(refused.value)
    assert str(refused.value).endswith("; if nopackage is a file of yours, set PYTHONPATH to its folder")


def test_cross_entropy_by_yaml(train_run: Train) -> None:
    run = train_run("loss=cross_entropy", "trainer.max_epochs=1", "trainer.log_every_n_steps=1")
    assert run.values("train/loss")[0] == pytest.approx(math.log(10), abs=0.3)
    images, labels = split(run.best, "test")
    with torch.no_grad():
        expected = functional.cross_entropy(network(run.best)(images), labels).item()
    assert run.result["metrics"]["test/loss"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("callbacks=[]", "callbacks"),
        ("logger=[]", "logger"),
        ("~logger", "logger"),
        ("~scheduler", "scheduler"),
        ("~augmentation", "augmentation"),
    ],
)
def test_parts_can_be_taken_out(override: str, part: str, make_config: Compose) -> None:
    assert check(make_config(override))[part] == {}


def test_checkpoints_within_an_epoch(train_run: Train) -> None:
    run = train_run("+callbacks.last.every_n_train_steps=5", "trainer.max_epochs=1", "test=false")
    assert run.last["global_step"] == 15


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
        if len(labels) > 4:  # two and four are what the loss is checked with before anything starts
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


def test_debug_fast_does_two_steps_of_everything_on_the_sample(train_run: Train) -> None:
    run = train_run("debug=fast", sample=False)
    assert run.last["hyper_parameters"]["data"]["source_dir"] == SAMPLE
    assert run.last["global_step"] == 2
    assert run.last["progress"]["images_seen"] == 200
    assert [step for step, _ in run.history["train/loss"]] == [1, 2]
    assert run.result["metrics"].keys() == {"val/loss", "val/acc", "test/loss", "test/acc"}


@pytest.mark.parametrize(
    ("override", "verdict"),
    [
        ("optimizer.lr=0.1", "the network can learn"),
        ("optimizer.lr=1e-9", "too little at optimizer.lr=1e-09: try others, then doubt network and loss"),
    ],
)
def test_debug_overfit_learns_one_batch_by_heart(
    override: str, verdict: str, train_run: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_run("debug=overfit", override, "trainer.max_epochs=120", "trainer.check_val_every_n_epoch=120")
    assert run.last["global_step"] == 120
    losses = run.values("train/loss")
    assert losses[0] > 0.05
    assert (losses[-1] < 0.0005) == (verdict == "the network can learn")
    assert (
        f"overfit     train/loss from {losses[0]:.2g} (step 10) to {losses[-1]:.2g}: {verdict}\n"
        in capsys.readouterr().out
    )


def test_debug_profile_leaves_a_table_of_hooks(train_run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train_run("debug=profile")
    assert re.search(r"^profile     \S*run/fit-profile\.txt$", capsys.readouterr().out, flags=re.MULTILINE)
    table = (run.folder / "fit-profile.txt").read_text(encoding="utf-8")
    (row,) = (line for line in table.splitlines() if "run_training_batch" in line)
    assert int(row.split("|")[3]) == 16  # calls
    assert max(map(len, table.expandtabs().splitlines())) < 180
    assert run.last["epoch"] == 0


def test_a_batch_size_can_be_searched_for(train_run: Train) -> None:
    finder = "{_target_:lightning.pytorch.callbacks.BatchSizeFinder,max_trials:1,steps_per_trial:1}"
    run = train_run(f"+callbacks.finder={finder}", "trainer.max_epochs=1", "test=false")
    assert run.result["status"] == "finished"
