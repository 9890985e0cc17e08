"""Loggers for runs that are compared and that go on: TensorBoard, with HParams from the first second, and CSV."""

import csv
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from mnist_lit.module import Classifier
from mnist_lit.result import flatten


def _without_lightnings_epoch(metrics: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Leave out the whole number that Lightning adds to what callbacks log, a step late: ours has decimals."""
    is_ours = "images_seen" in metrics
    return ((tag, value) for tag, value in metrics.items() if is_ours or tag != "epoch")


def _scalars_at(step: int, paths: Sequence[Path]) -> dict[str, float]:
    """Return the scalars at a step in event files, less test scores."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return {
        value.tag: value.simple_value
        for path in paths
        for event in LegacyEventFileLoader(str(path)).Load()
        if event.step == step
        for value in event.summary.value
        if value.HasField("simple_value") and not value.tag.startswith("test/")
    }


class TensorBoard(TensorBoardLogger):
    """Writes one event file straight into `save_dir`, with the model's graph and a row in the HParams tab.

    `hparams` picks the row's columns: dotted keys of the configuration, a group standing for all its values
    (`optimizer` gives `optimizer.lr`, ..., and `optimizer` itself, the class). TensorBoard infers types and ranges
    from all runs it shows, and takes a row's metrics from the latest scalars: a run that is killed has its row too.
    """

    # The last network's: tracing takes longer than all else here, and most jobs of a sweep share one.
    graphs: ClassVar[dict[str, Any]] = {}

    def __init__(self, *, save_dir: str, hparams: Sequence[str]) -> None:
        # A Ctrl-C within the writer's queue can make its thread, and whoever waits for it, sleep until the next flush.
        super().__init__(save_dir, name="", version="", default_hp_metric=False, flush_secs=2)
        self.columns = tuple(hparams)
        self.again: tuple[Mapping[str, float], int] | None = None
        self.has_row = self.has_graph = False  # Lightning gives both once more for the test

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write all scalars as one event: a quarter of the time of one event each."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=tag, simple_value=float(value)) for tag, value in _without_lightnings_epoch(metrics)
        ]
        self.experiment._get_file_writer().add_summary(Summary(value=values), step)

    @rank_zero_only
    def log_hyperparams(
        self,
        params: Any,  # a dictionary of plain data
        metrics: dict[str, Any] | None = None,
        step: int | None = None,
    ) -> None:
        """Write the row (Lightning calls this at the start of a fit with the module's configuration)."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        if self.again is not None:
            self.log_metrics(*self.again)
            self.again = None
        if self.has_row:
            return
        self.has_row = True
        flat = dict(flatten(params))
        chosen = {
            key.removesuffix("._target_"): value
            for key, value in flat.items()
            if any(key == column or key.startswith(f"{column}.") for column in self.columns)
            and not key.endswith("._partial_")
        }
        # Without an id of its own the row is named by the run's folder.
        self.experiment._get_file_writer().add_summary(hparams_pb(chosen, trial_id=""))

    @rank_zero_only
    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:
        """Write the graph of the network (Lightning calls this at the start of a fit and of a test), once."""
        if self.has_graph or "purge_step" in self._kwargs:
            return
        self.has_graph = True
        assert isinstance(model, Classifier)
        from torch.utils.tensorboard._pytorch_graph import graph

        network = f"{model.hparams.get('model')} {model.model!r}"  # two of a class of one's own may be printed alike
        if network not in self.graphs:
            images = torch.zeros(1, 28, 28).to(next(model.parameters()))
            with warnings.catch_warnings(), torch.no_grad():
                # TensorBoard's graphs need torch.jit.trace, which torch deprecates: nothing a user can fix.
                warnings.simplefilter("ignore")
                self.graphs.clear()
                self.graphs[network] = graph(model.model, images)
        self.experiment._get_file_writer().add_graph(self.graphs[network])
        self.experiment.flush()

    @rank_zero_only
    def save(self) -> None:
        """Flush; no hparams.yaml, since config.yaml stands beside the event file."""
        self.experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flush only: Lightning calls this after the fit, and the test goes on in the same event file."""
        self.experiment.flush()

    @rank_zero_only
    def forget_after(self, step: int, at_step: Mapping[str, float]) -> None:
        """Make TensorBoard drop the points from `step` on that earlier event files hold, but for `at_step`.

        These are the scalars at the very step, among which there may be test scores, too; they will be logged again.
        """
        self._kwargs["purge_step"] = step
        # TensorBoard reads event files by the order of their names, events.out.tfevents.<second>.<host>.<process>...:
        # one of the same second, or of a machine whose clock is late, would come before them.
        paths = sorted(Path(self.log_dir).glob("events.out.tfevents.*.*"))
        # With what callbacks logged there, which is not in the checkpoint. Not written yet: processes that are forked
        # for the fit would share the writer's thread.
        self.again = (_scalars_at(step, paths) | dict(at_step), step)
        parts = [path.name.split(".", 4) for path in paths]
        last = max((int(second) for _, _, _, second, _ in parts if second.isdigit()), default=0)
        if 0 < (wait := last + 1 - time.time()) < 10:
            time.sleep(wait)
        elif wait > 0:  # a clock was wrong: theirs are set back
            earliest = int(time.time()) - len(paths)
            for number, (path, (*first, _, rest)) in enumerate(zip(paths, parts, strict=True)):
                path.rename(path.with_name(".".join([*first, f"{earliest + number:010}", rest])))

    @rank_zero_only
    def close(self) -> None:
        """Close the event file."""
        self.experiment.close()


class Csv(CSVLogger):
    """Writes the scalars to `csv/metrics.csv` in `save_dir`, a row a step."""

    def __init__(self, *, save_dir: str) -> None:
        # Each row at once: a run that is killed goes on from its last checkpoint, and needs those before it.
        super().__init__(save_dir, name="", version="csv", flush_logs_every_n_steps=1)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Write a row."""
        super().log_metrics(dict(_without_lightnings_epoch(metrics)), step)

    @rank_zero_only
    def forget_after(self, step: int, at_step: Mapping[str, float]) -> None:
        """Keep an earlier attempt's rows up to `step`, less test scores; Lightning itself would drop all of them."""
        path = Path(self.log_dir, "metrics.csv")
        if not path.exists():
            return
        with path.open(newline="", encoding="utf-8") as file:
            whole = [line for line in file if line.endswith("\n")]  # a killed process may leave part of a row
        rows = [
            row
            for row in csv.DictReader(whole)
            if int(row["step"]) <= step and not any(value and tag.startswith("test/") for tag, value in row.items())
        ]
        shutil.rmtree(self.log_dir)
        self.experiment.metrics = [{key: value for key, value in row.items() if value} for row in rows]
        self.experiment.save()
