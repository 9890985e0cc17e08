"""Whatever is wrong in a command line: one line that says what, exit code 2, and no folder."""

from pathlib import Path

import pytest
import torch
from conftest import Main, assert_refused
from torch import Tensor, nn

from mnist_lit.loss import OneHotMSE
from mnist_lit.model import MLP

ON_SAMPLE: list[tuple[str, list[str]]] = [
    # Values of another type: key, value, what is allowed.
    ("optimizer.lr=abc", ["optimizer.lr=abc: must be a number"]),
    ("seed=abc", ["seed=abc: must be a whole number"]),
    ("data.batch_size=1.5", ["data.batch_size=1.5: must be a whole number"]),
    ("model.hidden_sizes=[a]", ["model.hidden_sizes=['a']: must be a list, each a whole number\n"]),
    ("trainer.precision=64x", ["trainer.precision=64x: must be ", "32-true", "bf16-mixed"]),
    ("optimizer=adam optimizer.betas=[0.9]", ["optimizer.betas=[0.9]: must be a list [a number, a number]"]),
    # Values out of range.
    ("seed=-1", ["seed=-1: must be from 0 to 4294967295"]),
    ("optimizer.lr=-1", ["optimizer.lr=-1: must be above 0"]),
    ("optimizer.momentum=1.5", ["optimizer.momentum=1.5: must be at least 0 and below 1\n"]),
    (
        "callbacks=early_stopping callbacks.early_stopping.patience=-1",
        ["callbacks.early_stopping.patience=-1: must be at least 0\n"],
    ),
    ("data.batch_size=0", ["data.batch_size must be at least 1 and below 2147483648, got 0"]),
    ("data.val_size=2000", ["data.val_size=2000: must be below the 2000 training images"]),
    ("trainer.max_epochs=-3", ["trainer.max_epochs=-3: must be at least 1, or -1"]),
    ("model.hidden_sizes=[]", ["model.hidden_sizes must be one or more widths of at least 1", "[]"]),
    ("model.activation=Foo", ["model.activation must name an activation of torch.nn, such as ReLU or Tanh, got Foo"]),
    ("model.activation=gelu", ["model.activation must name an activation of torch.nn, such as GELU, got gelu"]),
    ("scheduler=one_cycle scheduler.scheduler.pct_start=3", ["scheduler", "pct_start", "between 0 and 1", "3"]),
    ("scheduler=cosine scheduler.interval=day", ["scheduler.interval=day: must be step or epoch"]),
    ("scheduler=cosine scheduler.length_argument=days", ["scheduler", "days"]),
    ("augmentation=affine_elastic augmentation.alpha=-1", ["augmentation.alpha must be at least 0, got -1"]),
    ("augmentation=affine_elastic augmentation.sigma=abc", ["augmentation.sigma=abc: must be a number"]),
    ("sweep.on_error=stpo", ["sweep.on_error=stpo: must be continue or stop"]),
    ("sweep.dry_run=maybe", ["sweep.dry_run=maybe: must be true or false"]),
    ("callbacks.pictures=true", ["callbacks.pictures=true: must be a group of keys with a _target_, or null: none"]),
    ("+logger.mine=true", ["logger.mine=true: must be a group of keys with a _target_, or null: none"]),
    ("+callbacks.mine.a=1", ["callbacks.mine={'a': 1}: must be a group of keys with a _target_, or null: none"]),
    (
        "+logger.mine._target_=torch.nn.ReLU",
        ["logger.mine._target_=torch.nn.ReLU: must give a lightning.pytorch.loggers.logger.Logger, got ReLU"],
    ),
    (
        "callbacks.last.filename=latest",
        ["callbacks.last.filename=latest: resume= looks for ", "/last.ckpt; leave it out"],
    ),
    (
        "+callbacks.interruption.path=x",
        ["callbacks.interruption.path=x: not a key; callbacks.interruption takes none;"],
    ),
    ("callbacks.last.dirpath=elsewhere", ["callbacks.last.dirpath=elsewhere: resume= looks for ", "/last.ckpt"]),
    ("+trainer.max_steps=0", ["trainer.max_steps=0: leaves nothing to train on; set it to -1 for no limit"]),
    ("+trainer.accumulate_grad_batches=0", ["trainer.accumulate_grad_batches=0: must be at least 1"]),
    ("+trainer.val_check_interval=0", ["trainer.val_check_interval=0: must be above 0, or null: 1.0"]),
    ("trainer.profiler=simple", ["trainer.profiler=simple: would write its table nowhere; take debug=profile"]),
    ("seed=glob(x*) -m", ["seed=glob(x*): gives a key no value, so there is no job"]),
    ("sweep.pictures=loss_curve", ["sweep.pictures=loss_curve: must be a list, each text"]),
    ("-m sweep.name=a,b", ["error: sweep.name: cannot be swept, since it is the whole sweep's; give it one value\n"]),
    ("seed=0,1 hydra.launcher=joblib -m", ["hydra.launcher=joblib: write hydra/launcher=joblib, with a slash"]),
    ("seed=0,1 hydra.sweeper=optuna -m", ["hydra.sweeper=optuna: write hydra/sweeper=optuna, with a slash"]),
    ("seed=0,1 hydra.sweeper.max_batch_size=0 -m", ["hydra.sweeper.max_batch_size=0: must be at least 1"]),
    ("seed=0,1 hydra.sweeper.max_batch_size=abc -m", ["hydra.sweeper.max_batch_size=abc: must be at least 1"]),
    (
        "data.source_dir=müller",
        ["data.source_dir=müller: cannot be read; a value with letters beyond "],
    ),
    ("trainer.strategy=ddp_spawn trainer.accelerator=cpu", ["trainer.strategy=ddp_spawn: ", "set it to ddp"]),
    ("seed=0,1 sweep.dry_run=maybe -m", ["sweep.dry_run=maybe: must be true or false"]),
    ("seed=0,1 -m sweep.on_error=stpo", ["sweep.on_error=stpo: must be continue or stop"]),
    ("tuned", ["error: tuned: cannot be read; did you mean experiment=tuned?\n"]),
    (
        "~model +model={_target_:torch.nn.Linear,in_features:28,out_features:9}",
        ["model: gives [28, 9] numbers for the 10 classes of data.class_names; its last layer must have 10\n"],
    ),
    (
        "+callbacks.mine={_target_:lightning.pytorch.callbacks.LearningRateFinder}",
        ["callbacks.mine: looks for a key that this project's module has not; sweep, -m optimizer.lr=0.01,0.1\n"],
    ),
    ("outputs/train/x", ["outputs/train/x: cannot be read; write KEY=VALUE without spaces"]),
    ("loss=cross_entropy loss.label_smoothing=2", ["loss: ", "label_smoothing"]),
    ("~loss +loss={_target_:torch.nn.functional.mse_loss}", ["loss.input is missing", "take a class, such as torch"]),
    (
        "loss=cross_entropy +loss.reduction=sum",
        ["loss: is a sum over the batch, and must be a mean, such as"],
    ),
    (
        "~model +model={_target_:torch.nn.MaxPool2d,kernel_size:a}",
        ["model.kernel_size=a: must be a whole number or a list, each a whole number\n"],
    ),
    ("loss=cross_entropy +loss.weight=[1,2]", ["loss.weight=[1, 2]: must be null or an object that a _target_ names"]),
    ("+augmentation._target_=torch.nn.Flatten", ["augmentation: must give images [B, 28, 28], got [64, 784] for [64,"]),
    (
        "+augmentation={_target_:torch.nn.Linear,in_features:28,out_features:28}",
        ["augmentation: fails for pixels uint8 [B, 28, 28]: RuntimeError: mat1 and mat2 must have the same dtype"],
    ),
    ("+augmentation={_target_:torch.nn.Threshold,threshold:255,value:1}", ["augmentation: makes 255, a white pixel, "]),
    ("loss._target_=torch.nn.L1Loss", ["error: loss: UserWarning: Using a target size (torch.Size([2]))"]),
    (
        "+scheduler._target_=torch.optim.lr_scheduler.StepLR",
        ["scheduler._target_=torch.optim.lr_scheduler.StepLR: must be mnist_lit.module.Schedule"],
    ),
    (
        "optimizer._partial_=false",
        ["optimizer.params is missing: optimizer needs it; add _partial_: true, the weights come later"],
    ),
    ("sweep=grid", ["sweep: this is a single run; add -m for a sweep"]),
    ("optimizer.lr=0.1,0.2", ["optimizer.lr=0.1,0.2: a single run takes one value; add -m for a sweep"]),
    ("seed=range(3)", ["seed=range(3): a single run takes one value; add -m for a sweep"]),
    ("sweep.dry_run=true", ["sweep: this is a single run; add -m for a sweep"]),
    # Names of keys, options and classes.
    ("+sweep.on_eror=stop", ["sweep.on_eror=stop: not a key; did you mean on_error?"]),
    (
        "optimizer.lrr=1",
        ["optimizer.lrr is not a key: there are lr, momentum, ", "; did you mean optimizer.lr?"],
    ),
    ("lr=1", ["lr is not a key: there are data, ", "; did you mean optimizer.lr?"]),
    ("epochs=1", ["epochs is not a key"]),
    ("max_epoch=1", ["; did you mean trainer.max_epochs?"]),
    ("+optimizer.lrr=1", ["optimizer.lrr=1: not a key; did you mean lr?", "momentum"]),
    ("+foo=1", ["foo=1: not a key; the configuration takes data, augmentation, model, loss, optimizer"]),
    ("trainer.accelerator=cpu trainer.devices=4096", ["trainer.devices=4096: this machine has ", " processors"]),
    ("~loss._target_", ["loss: must have a _target_, which names its class\n"]),
    ("+scheduler.interval=step", ["scheduler: must have a _target_, which names its class; leave out scheduler.int"]),
    ("+augmentation.alpha=3", ["augmentation: must have a _target_", "or write ~augmentation.alpha where a file sets"]),
    ("sweep.pictures.x=1", ["sweep.pictures.x=1: "]),
    ("~callbacks", ["~callbacks: takes a list of options; callbacks=[] leaves out all, ~callbacks.NAME one\n"]),
    ("~optimizer", ["optimizer is missing: the configuration needs it\n"]),
    (
        "augmentation=blur",
        ["augmentation=blur: no such option, there are affine_elastic, ciresan2010, elastic, none, simard2003"],
    ),
    (
        "callbacks.mine._target_=mine.Callback",
        ["callbacks.mine is not a key", "; a new one needs a plus: +callbacks.mine"],
    ),
    ("optimizer.eps=1", ["optimizer.eps is not a key", "; a new one needs a plus: +optimizer.eps"]),
    (
        "~loss +loss={_target_:torch.nn.CrossEntropyLoss,reduction:none}",
        ["loss: must give one number for a batch, got [2] numbers"],
    ),
    ("~loss +loss._target_=operator.sub", ["loss.a is missing: ", "; if it gets that later, add _partial_: true"]),
    ("optimizer._target_=torch.optim.RMSprop", ["optimizer.nesterov=false: not a key; ", "write ~optimizer.nesterov"]),
    ("optimizer=sdg", ["optimizer=sdg: no such option, there are adam, adamw, sgd; did you mean optimizer=sgd?"]),
    ("experiment=bolg", ["experiment=bolg: no such option, there are ", " blog,", "did you mean experiment=blog?"]),
    ("callbacks=[default,erly]", ["callbacks=erly: no such option, there are default, early_stopping"]),
    ("optimizer=SGD", ["there are adam, adamw, sgd; did you mean optimizer=sgd?"]),
    ("trainer.gradient_clip_val=null model=null", ["error: model=null: no such option, there are mlp"]),
    ("optimizer=1", ["error: optimizer=1: no such option, there are adam, adamw, sgd"]),
    ("callbacks=[default,null]", ["error: callbacks=null: no such option, there are default, early_stopping"]),
    ("~data", ["error: data is missing: the configuration needs it"]),
    ("-m ~data seed=0,1", ["error: data is missing: the configuration needs it"]),
    ("~data.val_size", ["error: data.val_size is missing: data needs it"]),
    ("--config-name train optimizer.lr=abc", ["optimizer.lr=abc: must be a number"]),
    ("callbacks.checkpoint.monitor=val/ac", ["callbacks.checkpoint.monitor=val/ac: must be val/acc or val/loss"]),
    (
        "callbacks=[default,early_stopping] callbacks.early_stopping.monitor=acc",
        ["callbacks.early_stopping.monitor=acc: must be val/acc or val/loss"],
    ),
    (
        "callbacks.checkpoint.monitor=val/loss",
        [
            "callbacks.checkpoint.mode=max: would take the worst val/loss for the best",
            "set callbacks.checkpoint.mode=min",
        ],
    ),
    (
        "callbacks=early_stopping callbacks.early_stopping.mode=min",
        ["callbacks.early_stopping.mode=min: would take the worst val/acc"],
    ),
    (
        "+callbacks.checkpoint.save_top_k=2",
        ["callbacks.checkpoint.save_top_k=2: all would go to one", "filename="],
    ),
    ("+trainer.logger=false", ["trainer.logger=false: would have no effect; it is set by logger=OPTION"]),
    ("+data.augmentation=null", ["data.augmentation=null: would have no effect; it is set by augmentation=OPTION"]),
    ("trainer.max_time=soon", ["trainer", "soon"]),
    ("trainer.check_val_every_n_epoch=5", ["trainer.check_val_every_n_epoch=5: above trainer.max_epochs=1"]),
    ("-m seed=0,1 hydra.run.dir=x", ["hydra.run.dir=x: a single run's; a sweep is named by sweep.name=NAME"]),
    ("scheduler=cosine +scheduler.monitor=val/acc", ["scheduler.monitor=val/acc: only ReduceLROnPlateau goes by a"]),
    (
        "+callbacks.stop={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:val/acc}",
        ["callbacks.stop.mode=min: would take the worst val/acc for the best; set callbacks.stop.mode=max"],
    ),
    (
        "+callbacks.t={_target_:lightning.pytorch.callbacks.Timer} trainer.max_time={seconds:9}",
        ["trainer.max_time={'seconds': 9}: would have no effect beside a Timer among the callbacks"],
    ),
    (
        "+callbacks.swa={_target_:lightning.pytorch.callbacks.StochasticWeightAveraging,swa_lrs:0.1}",
        ["callbacks.swa: averages weights after the last checkpoint", "EMAWeightAveraging"],
    ),
    (
        "scheduler=plateau scheduler.monitor=null",
        ["scheduler.monitor is missing: what it goes by, val/acc or val/loss"],
    ),
    (
        "scheduler=plateau data.val_size=0 callbacks.checkpoint.monitor=null",
        ["data.val_size=0 leaves nothing to validate on; set it above 0, or choose another scheduler"],
    ),
    (
        "scheduler=cosine +scheduler.monitor=val/f1",
        ["scheduler.monitor=val/f1: must be val/acc or val/loss"],
    ),
    # What does not go together.
    ("debug=overfit trainer.max_epochs=100", ["=500: above trainer.max_epochs=100", "; set it to 100 or below\n"]),
    (
        "callbacks=early_stopping experiment=tuned",
        ["val/acc: data.val_size=0 leaves nothing to validate on; set it above 0, or ~callbacks.early_stopping\n"],
    ),
    (
        "data.val_size=0",
        [
            "val/acc: data.val_size=0 leaves nothing to validate on; ",
            "set it above 0, or callbacks.checkpoint.monitor=null\n",
        ],
    ),
    (
        "scheduler=cosine scheduler.interval=epoch trainer.max_epochs=-1 +trainer.max_steps=10",
        ["trainer.max_epochs=-1: this scheduler needs the run's length"],
    ),
    ("trainer.limit_val_batches=0", ["monitor=val/acc: trainer.limit_val_batches=0 leaves nothing to validate on"]),
    (
        "trainer.gradient_clip_val=1 trainer.precision=bf16-mixed",
        ["trainer.gradient_clip_val=1: ", "trainer.precision=bf16-mixed", "set optimizer.fused=false"],
    ),
    # What is no KEY=VALUE.
    ("optimizer.lr", ["optimizer.lr: cannot be read; write KEY=VALUE without spaces"]),
    ("model.hidden_sizes=[512, 256]", ["write KEY=VALUE without spaces, in quotes where it has brackets"]),
    ("--config-name=trian", ["trian"]),
    ("--multir seed=0,1", ["error: unrecognized arguments: --multir"]),
    ("--lr 0.1", ["error: unrecognized arguments: --lr", "; settings are written KEY=VALUE, without dashes"]),
    ("--resolve", ["error: ", "--resolve", "can only be used in conjunction with --cfg"]),
    ("run_dir=null", ["run_dir=null: follows hydra.run.dir; give hydra.run.dir=FOLDER instead"]),
    ("run_dir=elsewhere", ["run_dir=elsewhere: follows hydra.run.dir"]),
]
if not torch.cuda.is_available() and not torch.mps.is_available():
    ON_SAMPLE.append(("trainer.accelerator=gpu", ["trainer.accelerator=gpu: torch finds no GPU here", "cpu or auto"]))


@pytest.mark.parametrize(("arguments", "said"), ON_SAMPLE, ids=[arguments for arguments, _ in ON_SAMPLE])
def test_bad_command_line_is_refused_in_one_line(main: Main, tmp_path: Path, arguments: str, said: list[str]) -> None:
    assert_refused(main("data=sample", "trainer.max_epochs=1", *arguments.split()), tmp_path, *said)


def test_a_schedule_that_the_run_is_too_short_for_is_told(main: Main) -> None:
    short = (
        "data=sample",
        "scheduler=one_cycle",
        "scheduler.scheduler.pct_start=0.25",
        "trainer.limit_train_batches=4",
    )
    outcome = main(*short, "trainer.max_epochs=1")
    assert outcome.code == 2
    assert outcome.err.startswith("error: scheduler.scheduler, with {'total_steps': 4}: ZeroDivisionError")


@pytest.mark.parametrize(
    ("part", "gives", "told"),
    [
        (MLP, ([1.0], 0), "model: must give logits, a tensor [B, 10], got tuple"),
        (OneHotMSE, {"loss": 1.0}, "loss: must give one number for a batch, a tensor, got dict"),
    ],
)
def test_a_part_that_gives_no_tensor_is_refused(
    main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: type[nn.Module], gives: object, told: str
) -> None:
    monkeypatch.setattr(part, "forward", lambda self, *arguments: gives)
    assert_refused(main("data=sample"), tmp_path, told)


def test_what_a_network_raises_is_told_with_its_key(
    main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: MLP, images: Tensor) -> Tensor:
        raise ValueError("no way")

    monkeypatch.setattr(MLP, "forward", forward)
    assert_refused(main("data=sample"), tmp_path, "model: ValueError: no way")
