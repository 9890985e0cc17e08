"""The step loop: Lightning's own to the last bit, for whoever listens, and left to Lightning where it is not plain."""

from typing import Any

import lightning as L
import pytest
import torch
from conftest import Compose, read_checkpoint
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torch import Tensor

from mnist_lit.build import build
from mnist_lit.loop import MOMENTS, OWN_STEP_HOOKS, StepLoop
from mnist_lit.module import Classifier
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


class InForward(L.Callback):
    """Logs from within the forward pass."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)

        def log(model: Any, images: Any, logits: Tensor) -> None:
            if pl_module.training:
                pl_module.log("largest", logits.detach().max(), on_epoch=True)

        pl_module.model.register_forward_hook(log)


class AtTheEnd(L.Callback):
    """Logs when an epoch is over."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for divisor in range(3, 30):
            pl_module.log(f"1/{divisor} in {trainer.current_epoch}", 1 / divisor)


class Restless(L.Callback):
    """Changes how steps are made in the middle of an epoch."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        trainer.accumulate_grad_batches = 2 if 4 <= batch_idx < 8 else 1
        trainer.gradient_clip_val = 0.001 if batch_idx >= 12 else None


class Sharp(torch.optim.SGD):
    """An optimiser that needs its closure, whatever its signature says, and calls it twice."""

    def step(self, closure: Any = None) -> Any:
        closure()
        return super().step(closure)


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


LBFGS = [*(f"~optimizer.{key}" for key in ("momentum", "nesterov", "weight_decay", "fused")), "+optimizer.max_iter=2"]


@pytest.mark.parametrize(
    ("listener", "overrides"),
    [
        (Listener, ()),
        (InForward, ()),
        (AtTheEnd, ()),
        (Listener, ("scheduler=one_cycle", "augmentation=affine_elastic")),
        (Listener, ("optimizer=adam", "loss=cross_entropy", "scheduler=cosine", "scheduler.interval=epoch")),
        (Listener, ("trainer.precision=bf16-mixed",)),
        (Listener, ("+trainer.val_check_interval=5",)),
        (Listener, ("+trainer.max_steps=20",)),
        (Listener, ("optimizer._target_=torch.optim.LBFGS", *LBFGS, "trainer.limit_train_batches=4")),
        (Listener, ("optimizer._target_=test_loop.Sharp", "optimizer.fused=false")),
    ],
)
def test_a_step_is_lightnings_own(
    listener: type[L.Callback], overrides: tuple[str, ...], make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, heard = make(*overrides, name="ours"), listener()
    with monkeypatch.context() as patch:
        patch.setattr(_AutomaticOptimization, "run", _must_not_be_called)
        fit(ours, heard)
    monkeypatch.setattr(StepLoop, "advance", _TrainingEpochLoop.advance)
    theirs, heard_theirs = make(*overrides, name="theirs"), listener()
    fit(theirs, heard_theirs)
    assert_same(ours, theirs)
    if isinstance(heard, Listener) and isinstance(heard_theirs, Listener):
        assert heard.heard == heard_theirs.heard
        assert {moment for moment, *_ in heard.heard} == set(MOMENTS)
    logged = {Listener: "loss_epoch", InForward: "largest_epoch", AtTheEnd: "1/29 in 0"}[listener]
    assert logged in ours.trainer.callback_metrics


def test_a_bug_does_not_end_an_epoch_early(make: Any) -> None:
    class Exhausted(L.Callback):
        def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
            next(iter(()))

    with pytest.raises(RuntimeError, match=r"^StopIteration within a step$"):
        fit(make(name="run"), Exhausted())


def test_a_callback_may_change_the_steps(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = make(name="ours")
    fit(ours, Restless())
    monkeypatch.setattr(StepLoop, "advance", _TrainingEpochLoop.advance)
    theirs = make(name="theirs")
    fit(theirs, Restless())
    assert 2 * 8 < ours.trainer.global_step < 2 * 16
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("+trainer.val_check_interval=0.25",),
        ("+trainer.val_check_interval=0.25", "callbacks.last.save_on_train_epoch_end=false"),
    ],
)
def test_a_resumed_step_is_lightnings_own(
    overrides: tuple[str, ...], make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (*overrides, "data.eval_batch_size=100")
    runs = []
    for name, advance in (("ours", StepLoop.advance), ("theirs", _TrainingEpochLoop.advance)):
        monkeypatch.setattr(StepLoop, "advance", advance)
        fit(make(*overrides, name=name))
        run = make(*overrides, "trainer.max_epochs=4", name=name)
        path, checkpoint = run.last_checkpoint()
        assert checkpoint["epoch"] == 1
        run.execute(test=False, resume_from=path)
        runs.append(run)
    assert_same(*runs)


def assert_same(ours: Run, theirs: Run) -> None:
    """Compare what is logged, counted, recorded and learned."""
    metrics, metrics_theirs = ours.trainer.callback_metrics, theirs.trainer.callback_metrics
    assert {tag: value.item() for tag, value in metrics.items()} == {
        tag: value.item() for tag, value in metrics_theirs.items()
    }
    assert ours.module.images_seen == theirs.module.images_seen > 0
    assert not ours.module.unrecorded
    last, last_theirs = (read_checkpoint(run.run_dir, "last") for run in (ours, theirs))
    for key in ("loops", "epoch", "global_step"):
        assert last[key] == last_theirs[key]
    for key in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(last[key], last_theirs[key], rtol=0, atol=0)
    torch.testing.assert_close(last["progress"]["history"], last_theirs["progress"]["history"], rtol=0, atol=0)


def _must_not_be_called(*arguments: Any) -> None:
    raise AssertionError("left to Lightning")


@pytest.mark.parametrize(
    "overrides",
    [
        ("trainer.gradient_clip_val=0.01",),
        ("+trainer.accumulate_grad_batches=2",),
        ("debug=profile", "trainer.max_epochs=2"),
    ],
)
def test_other_steps_are_left_to_lightning(
    overrides: tuple[str, ...], make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_left = _count_left_to_lightning(monkeypatch)
    run = make(*overrides, name="run")
    fit(run)
    assert num_left() == 2 * 16


@pytest.mark.filterwarnings("ignore:You have overridden")  # whose hook counts
@pytest.mark.parametrize("hook", OWN_STEP_HOOKS)
def test_a_module_may_have_steps_of_its_own(hook: str, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    num_left = _count_left_to_lightning(monkeypatch)
    run = make(name="run")
    called = []

    def own(self: L.LightningModule, *arguments: Any, **named: Any) -> Any:
        called.append(hook)
        return getattr(L.LightningModule, hook)(self, *arguments, **named)

    monkeypatch.setattr(type(run.module), hook, own, raising=False)
    fit(run)
    assert num_left() == 2 * 16
    assert called or hook in ("transfer_batch_to_device", "on_after_batch_transfer")


def _count_left_to_lightning(monkeypatch: pytest.MonkeyPatch) -> Any:
    left = []
    theirs = _AutomaticOptimization.run

    def counted(self: _AutomaticOptimization, *arguments: Any) -> Any:
        left.append(arguments)
        return theirs(self, *arguments)

    monkeypatch.setattr(_AutomaticOptimization, "run", counted)
    return lambda: len(left)
