"""One run: fit, test, and the result that says how it ended."""

import math
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from tqdm.contrib.logging import logging_redirect_tqdm

from mnist_lit.callbacks.interruption import Interruption
from mnist_lit.data import MNISTDataModule
from mnist_lit.data.sources import load
from mnist_lit.errors import ENDED_BY_SIGNAL, DivergedError, UserError, in_one_line, interruption_behind
from mnist_lit.logger import Csv, TensorBoard
from mnist_lit.module import MONITORED, Classifier
from mnist_lit.notation import count
from mnist_lit.result import Result, Status, config_hash, git_commit, read_result


@dataclass(kw_only=True, eq=False, repr=False)
class Run:
    """Everything that one run needs, built and checked, and what is known of it so far.

    `config` is the resolved configuration as plain data, `overrides` what the user changed in it. `timer`,
    one of the trainer's callbacks, times the epochs with their validation, logging and checkpoints.
    """

    config: dict[str, Any]
    overrides: list[str]
    datamodule: MNISTDataModule
    module: Classifier
    trainer: L.Trainer
    timer: Timer
    setting_hash: str
    result: Result | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    best_epoch: int | None = None
    fit_seconds: float | None = None
    stopped_early: str | None = None

    def __repr__(self) -> str:
        status = self.result.status if self.result else None
        return f"Run(run_dir={str(self.run_dir)!r}, status={status!r}, metrics={self.metrics})"

    @property
    def run_dir(self) -> Path:
        """The folder that all files of the run go to."""
        return Path(self.trainer.default_root_dir)

    @property
    def has_finished(self) -> bool:
        """Whether the folder holds the result of an attempt that finished, so that there is nothing to begin anew."""
        return (read_result(self.run_dir) or {}).get("status") == "finished"

    def prepare(self) -> None:
        """Fetch the images; raises UserError as the function `prepare` does."""
        prepare(self.datamodule, self.test_limit)

    @property
    def test_limit(self) -> float | int:
        """How many batches are tested, or which share of them; 0 where none is to be."""
        limit: float | int = self.trainer.limit_test_batches
        return limit if self.config["test"] else 0

    def execute(self, *, test: bool, resume_from: Path | None = None) -> Result:
        """Fit, then test with the best checkpoint if `test`; write `result.json` last and return it.

        With `resume_from`, the fit goes on from that checkpoint.
        The result's status is "finished" or "diverged". Anything else that ends the run is written there
        ("interrupted" or "failed") and raised again.
        """
        status: Status = "failed"
        error: BaseException | None = None
        git_commit()  # of the code that runs now; the result is written when it may have changed
        try:
            self._fit(resume_from)
            if test:
                self._test()
            status = "finished"
        except DivergedError as diverged:
            status, error = "diverged", diverged
        except (KeyboardInterrupt, SystemExit):  # by a signal: `quiet` lets no other pass
            status = "interrupted"
            raise
        except Exception as failure:
            if (end := interruption_behind(failure)) is not None:
                status = "interrupted"
                raise end from None
            error = failure
            raise
        finally:
            self.result = self._result(status, error)
            if self.trainer.is_global_zero:
                self.result.write(self.run_dir)
            for logger in self.trainer.loggers:
                if isinstance(logger, TensorBoard):
                    logger.close()
        return self.result

    def last_checkpoint(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the path and content of the run folder's last checkpoint, on the CPU, or None if there is none.

        Raises UserError if it is damaged, or if the best one is, which the run will be scored with unless a better one
        comes.
        """
        last = path = self.run_dir / "checkpoints" / "last.ckpt"
        if not last.exists():
            return None
        try:
            checkpoint = _load(last)
            callback: Any = self.trainer.checkpoint_callback
            state = checkpoint["callbacks"].get(callback.state_key, {}) if callback else {}
            best = state.get("best_model_path")
            if best:
                # {val/acc} in a name makes a folder.
                folder = Path(callback.dirpath or state["dirpath"])
                path = folder / Path(best).relative_to(state["dirpath"])
                # One whose name has numbers in it was removed for a better one, later, which will come again.
                others = [] if path.exists() else folder.rglob("*.ckpt")
                if not any(other.stat().st_mtime_ns > last.stat().st_mtime_ns for other in others):
                    _load(path)
        except Exception as error:  # whatever a damaged file makes torch raise
            what = "missing; put it back, or" if isinstance(error, FileNotFoundError) else "damaged;"
            anew = f"remove {'it' if path == last else last} to start the run anew"
            is_told = isinstance(error, FileNotFoundError) or not isinstance(error, OSError)
            reason = "" if is_told else f": {in_one_line(error)}"  # the system's, such as a lack of permission
            raise UserError(f"{path}: {what} {'start a new run' if self.has_finished else anew}{reason}") from error
        return last, checkpoint

    def forget_after(self, checkpoint: Mapping[str, Any]) -> None:
        """Tell the loggers to forget what an earlier attempt logged after a checkpoint, its test scores among it."""
        step = checkpoint["global_step"]
        points = {tag: dict(points.tolist()) for tag, points in checkpoint["progress"]["history"].items()}
        at_step = {tag: values[step] for tag, values in points.items() if step in values}
        for logger in self.trainer.loggers:
            if isinstance(logger, TensorBoard | Csv):
                logger.forget_after(step, at_step)

    def start_anew(self) -> None:
        """Remove what an earlier attempt left in the run folder."""
        for pattern in ("events.out.tfevents.*", "checkpoints/**/*.ckpt", "csv/*"):
            for leftover in self.run_dir.glob(pattern):
                leftover.unlink()

    def _fit(self, resume_from: Path | None) -> None:
        if resume_from is not None:
            # Lightning does so after it has put the weights in, and would round those of a higher precision.
            self.trainer.precision_plugin.convert_module(self.module)
        try:
            with quiet(), logging_redirect_tqdm():
                self.trainer.fit(self.module, datamodule=self.datamodule, ckpt_path=resume_from)
        except MisconfigurationException as error:  # such as a callback that monitors what is never logged
            raise UserError(" ".join(str(error).split())) from error
        except Exception:
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, Interruption):
                    with _exits_told_apart():
                        callback.end()  # a signal came in the very step that failed, and is to be heard
            raise
        finally:
            self.fit_seconds = self.timer.time_elapsed("train")
            stopping = self.trainer.early_stopping_callback
            if stopping is not None and stopping.stopping_reason_message:
                why = stopping.stopping_reason_message.removesuffix(" Signaling Trainer to stop.")
                self.stopped_early = f"after epoch {stopping.stopped_epoch + 1}: {why}"
            elif (seconds_left := self.timer.time_remaining()) is not None and seconds_left <= 0:
                self.stopped_early = "the limit of time was reached (trainer.max_time)"
        if path := getattr(self.trainer.checkpoint_callback, "best_model_path", None):
            checkpoint = _load(path)
            # To be tested. Lightning would give callbacks their states back, too, and one that averages weights then
            # puts others in the place of those that were validated.
            self.module.load_state_dict(checkpoint["state_dict"])
            self.best_epoch = checkpoint["epoch"] + 1  # Lightning counts from 0
            for tag, points in self.module.history.items():
                at_step = dict(points)
                if tag.startswith("val/") and checkpoint["global_step"] in at_step:
                    self.metrics[tag] = at_step[checkpoint["global_step"]]

    def _test(self) -> None:
        with quiet():
            self.trainer.test(self.module, datamodule=self.datamodule, verbose=False)
        self.metrics |= {tag: value.item() for tag, value in self.trainer.callback_metrics.items()}

    def _result(self, status: Status, error: BaseException | None) -> Result:
        seconds = self.fit_seconds
        return Result(
            status=status,
            config_hash=config_hash(self.config),
            setting_hash=self.setting_hash,
            overrides=self.overrides,
            seed=self.config["seed"],
            device=self._device_name(),
            num_parameters=sum(parameter.numel() for parameter in self.module.parameters()),
            metrics=self.metrics,
            best_epoch=self.best_epoch,
            fit_seconds=seconds,
            images_per_second=self.module.images_seen / seconds if seconds else None,
            error=None if error is None else in_one_line(error),
            history={tag: self.module.history.get(tag, []) for tag in ("train/loss", *MONITORED)},
        )

    def _device_name(self) -> str:
        device = self.trainer.strategy.root_device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else count(torch.get_num_threads(), "thread")
        return f"{self.trainer.world_size} x {device.type} ({name})"


def prepare(datamodule: MNISTDataModule, test_limit: float | int) -> None:
    """Fetch the images of a run.

    Raises UserError if they cannot be had, or if `test_limit` leaves no batch, which Lightning says after the fit.
    """
    datamodule.prepare_data()
    num_batches = math.ceil(len(load(datamodule.source).test_labels) / datamodule.eval_batch_size)
    if isinstance(test_limit, float) and 0 < test_limit * num_batches < 1:
        told = f"leaves no batch of {num_batches} to test; give a number of batches, or set test=false"
        raise UserError(f"trainer.limit_test_batches={test_limit}: {told}")


def _load(path: str | Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return checkpoint


@contextmanager
def quiet() -> Iterator[None]:
    """Drop the warnings that a user can do nothing about; let signals, but no part of the run, end the program."""
    with warnings.catch_warnings(), _exits_told_apart():
        # True of loaders that read files; here the images are in memory and workers cost time.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # Steps are counted across epochs, so a short epoch has its points too.
        warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
        # What data.val_size=0 asks for.
        warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero.*")
        # A run that goes on, in its own folder.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty.*")
        # It does resume: the data module keeps the loader's place (MNISTDataModule.state_dict).
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        # What debug=overfit asks for.
        warnings.filterwarnings("ignore", message=".*requested to overfit but enabled train dataloader shuffling.*")
        # `Classifier` counts no image twice.
        warnings.filterwarnings("ignore", message="Using `DistributedSampler` with the dataloaders")
        # What trainer.accelerator=cpu asks for.
        warnings.filterwarnings("ignore", message="GPU available but not used")
        # torch 2.11 says so of every distributed run on a GPU.
        warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream does not match")
        # Lightning 2.6 uses what torch 2.14 deprecates.
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        yield


@contextmanager
def _exits_told_apart() -> Iterator[None]:
    """Raise KeyboardInterrupt for a Ctrl-C, SystemExit with 143 for a SIGTERM, RuntimeError for any other exit."""
    try:
        yield
    except SystemExit as end:
        # Our Interruption makes the one of it, Lightning the other.
        if end.code == 128 + signal.SIGINT or isinstance(interruption_behind(end), KeyboardInterrupt):
            raise KeyboardInterrupt from None
        if end.code in ENDED_BY_SIGNAL:
            raise
        if isinstance(end, SIGTERMException):  # Lightning's own, where nobody else has taken that signal over
            raise SystemExit(128 + signal.SIGTERM) from None
        raise RuntimeError(f"some part of the run called sys.exit({end.code!r})") from end
