"""The step loop: Lightning's own to the last bit, for whoever listens, and left to Lightning where it is not plain."""

from typing import Any

import lightning as L
import pytest
import torch
from conftest import Compose, read_checkpoint
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torch import Tensor

from mnist_lit.build import build
from mnist_lit.loop import MOMENTS, StepLoop
from mnist_lit.run import Run


class Listener(L.Callback):
    """Notes every moment of a step with what it is told then, and logs from some of them."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def _note(self, moment: str, module: L.LightningModule, *arguments: Any) -> None:
        gradients = [None if p.grad is None else p.grad.sum().item() for p in module.parameters()]
        weights = [p.sum().item() for p in module.parameters()]
        told = [_plain(argument) for argument in arguments]
        self.heard.append((moment, told, gradients, weights, module.trainer.global_step))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._note("on_train_batch_start", pl_module, batch, batch_idx)

    def on_before_zero_grad(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self._note("on_before_zero_grad", pl_module)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._note("on_before_backward", pl_module, loss)
        pl_module.log("loss", loss, on_step=True, on_epoch=True)

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note("on_after_backward", pl_module)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self._note("on_before_optimizer_step", pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._note("on_train_batch_end", pl_module, outputs, batch, batch_idx)
        pl_module.log("num_images", float(len(batch[1])), reduce_fx="sum", on_epoch=True)


def _plain(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.double().sum().item(), argument.dtype, argument.requires_grad
    if isinstance(argument, dict):
        return {key: _plain(value) for key, value in argument.items()}
    return list(map(_plain, argument)) if isinstance(argument, list | tuple) else argument


def fit(run: Run, *listeners: L.Callback) -> None:
    run.trainer.callbacks[:0] = listeners  # type: ignore[attr-defined]
    run.execute(test=False)


@pytest.fixture
def make(make_config: Compose) -> Any:
    def make_run(*overrides: str, name: str) -> Run:
        bare = ("callbacks.pictures=null", "logger=none", "trainer.max_epochs=2")
        run = build(make_config(*bare, *overrides, run=name))
        run.datamodule.prepare_data()
        return run

    return make_run


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("scheduler=one_cycle", "augmentation=affine_elastic"),
        ("optimizer=adam", "loss=cross_entropy", "scheduler=cosine", "scheduler.interval=epoch"),
        ("trainer.precision=bf16-mixed",),
        ("+trainer.val_check_interval=5",),
        ("+trainer.max_steps=20",),
    ],
)
def test_a_step_is_lightnings_own(overrides: tuple[str, ...], make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, heard = make(*overrides, name="ours"), Listener()
    with monkeypatch.context() as patch:
        patch.setattr(_TrainingEpochLoop, "advance", _must_not_be_called)
        fit(ours, heard)
    monkeypatch.setattr(StepLoop, "advance", _TrainingEpochLoop.advance)
    theirs, heard_theirs = make(*overrides, name="theirs"), Listener()
    fit(theirs, heard_theirs)

    assert heard.heard == heard_theirs.heard
    assert {moment for moment, *_ in heard.heard} == set(MOMENTS)
    assert {tag: value.item() for tag, value in ours.trainer.callback_metrics.items()} == {
        tag: value.item() for tag, value in theirs.trainer.callback_metrics.items()
    }
    assert "loss_epoch" in ours.trainer.callback_metrics
    last, last_theirs = (read_checkpoint(run.run_dir, "last") for run in (ours, theirs))
    assert last["loops"] == last_theirs["loops"]
    torch.testing.assert_close(last["progress"]["history"], last_theirs["progress"]["history"], rtol=0, atol=0)
    assert last["state_dict"].keys() == last_theirs["state_dict"].keys()
    assert all(torch.equal(weights, last_theirs["state_dict"][name]) for name, weights in last["state_dict"].items())


def _must_not_be_called(*arguments: Any) -> None:
    raise AssertionError("left to Lightning")


class Closure(torch.optim.SGD):
    """An optimiser that cannot do without a closure, as LBFGS cannot."""

    def step(self, closure: Any) -> Any:  # type: ignore[override]
        return super().step(closure)


@pytest.mark.parametrize(
    "overrides",
    [
        ("trainer.gradient_clip_val=0.01",),
        ("+trainer.accumulate_grad_batches=2",),
        ("trainer.profiler=simple",),
        ("optimizer._target_=test_loop.Closure", "~optimizer.fused"),
    ],
)
def test_other_steps_are_left_to_lightning(
    overrides: tuple[str, ...], make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_left = _count_left_to_lightning(monkeypatch)
    run = make(*overrides, name="run")
    fit(run)
    assert num_left() == 2 * 16


@pytest.mark.parametrize("hook", ["optimizer_step", "on_train_batch_start", "backward"])
def test_a_module_may_have_steps_of_its_own(hook: str, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    num_left = _count_left_to_lightning(monkeypatch)
    run = make(name="run")
    called = []

    def own(self: L.LightningModule, *arguments: Any) -> Any:
        called.append(hook)
        return getattr(L.LightningModule, hook)(self, *arguments)

    monkeypatch.setattr(type(run.module), hook, own, raising=False)
    fit(run)
    assert num_left() == 2 * 16
    assert len(called) == 2 * 16


def _count_left_to_lightning(monkeypatch: pytest.MonkeyPatch) -> Any:
    left = []
    theirs = _TrainingEpochLoop.advance

    def counted(self: _TrainingEpochLoop, data_fetcher: Any) -> None:
        left.append(self.batch_idx)
        theirs(self, data_fetcher)

    monkeypatch.setattr(_TrainingEpochLoop, "advance", counted)
    return lambda: len(left)
