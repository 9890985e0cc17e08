"""How good a trained network is, in numbers and pictures, and where it goes wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from scipy.stats import binomtest
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchmetrics.functional.classification import (
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from mnist_lit.checkpoint import Checkpoint
from mnist_lit.data import MNISTDataModule
from mnist_lit.data.dataset import ImageDataset
from mnist_lit.errors import DivergedError, UserError
from mnist_lit.loss import probabilities
from mnist_lit.module import Classifier
from mnist_lit.pictures import draw_confusion_matrix, draw_images, draw_reliability, save
from mnist_lit.result import git_commit, versions, write_json
from mnist_lit.run import quiet

SCHEMA_VERSION = 2  # since 2, `epoch` counts from 1
FILE_NAME = "evaluation.json"

Split = Literal["test", "val"]

# Equal parts of 0..1, as many as in Guo et al. (2017).
NUM_BINS = 15
NUM_MISTAKES = 36


@dataclass(frozen=True)
class Predictions:
    """What a network says of N images, over C classes.

    `loss` and `acc` are the means that the module logs. `labels` and `predicted` are int64 [N]; `confidences`
    float64 [N] are the probabilities of the predicted classes.
    """

    loss: float
    acc: float
    labels: Tensor
    predicted: Tensor
    confidences: Tensor
    num_classes: int

    @property
    def is_right(self) -> Tensor:
        """Whether each prediction is the label, bool [N]."""
        return self.predicted == self.labels

    def acc_interval(self) -> tuple[float, float]:
        """Return the 95 % score interval of the accuracy (Wilson 1927), which holds near 0 and 1, too."""
        right = binomtest(int(self.is_right.sum()), len(self.labels))
        low, high = right.proportion_ci(confidence_level=0.95, method="wilson")
        return float(low), float(high)

    def classes(self) -> dict[str, list[float]]:
        """Return precision, recall and f1 of each class, 0 where nothing can be counted, and its images (support)."""
        scores = {"precision": multiclass_precision, "recall": multiclass_recall, "f1": multiclass_f1_score}
        return {
            name: score(self.predicted, self.labels, num_classes=self.num_classes, average="none").tolist()
            for name, score in scores.items()
        } | {"num_images": self.confusion_matrix().sum(dim=1).tolist()}

    def confusion_matrix(self) -> Tensor:
        """Count images int64 [C, C], row: the label, column: the prediction."""
        return multiclass_confusion_matrix(self.predicted, self.labels, num_classes=self.num_classes)

    def calibration_error(self) -> float:
        """Return the expected calibration error: the gap of accuracy and confidence, bins weighted by their images.

        As Guo et al. (2017), equation 3.
        """
        return sum(num * abs(acc - confidence) for confidence, acc, num in self.bins()) / len(self.labels)

    def bins(self) -> list[tuple[float, float, int]]:
        """Return mean confidence, accuracy and number of images of each of NUM_BINS bins; zeros where it is empty."""
        edges = torch.linspace(0, 1, NUM_BINS + 1, dtype=self.confidences.dtype)
        index = (torch.bucketize(self.confidences, edges, right=True) - 1).clamp(max=NUM_BINS - 1)  # 1 is in the last
        counts = index.bincount(minlength=NUM_BINS)
        means = (
            index.bincount(values, minlength=NUM_BINS) / counts.clamp(min=1)
            for values in (self.confidences, self.is_right.double())
        )
        return list(zip(*(mean.tolist() for mean in means), counts.tolist(), strict=True))

    def mistakes(self) -> list[int]:
        """Return the positions of at most NUM_MISTAKES wrong predictions, the most confident first."""
        wrong = torch.nonzero(~self.is_right).flatten()
        order = self.confidences[wrong].argsort(descending=True, stable=True)
        positions: list[int] = wrong[order][:NUM_MISTAKES].tolist()
        return positions


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint's predictions on one split of a data set, and all that is told of them."""

    checkpoint: Checkpoint
    datamodule: MNISTDataModule
    split: Split
    predictions: Predictions

    def table(self) -> str:
        """Return what a person wants to know, as lines of text."""
        scores, names = self.predictions, self.datamodule.class_names
        low, high = scores.acc_interval()
        right, total = int(scores.is_right.sum()), len(scores.labels)
        classes = scores.classes()
        width = max(len("class"), *map(len, names))
        saved = f"step {self.checkpoint.global_step} in epoch {self.checkpoint.epoch + 1}"
        rows = [
            f"{'checkpoint':14}{self.checkpoint.path}, {saved}",
            f"{'images':14}{self.datamodule.source.name} {self.split}, {total:,}",
            f"{'accuracy':14}{scores.acc:.4f}, {right:,} right; 95 % interval {low:.4f} to {high:.4f}",
            f"{'loss':14}{scores.loss:.4f}",
            f"{'calibration':14}{scores.calibration_error():.4f} expected error over {NUM_BINS} bins",
            "",
            f"{'class':{width}}  precision  recall      f1  images",
        ]
        columns = (classes[key] for key in ("precision", "recall", "f1", "num_images"))
        rows += [
            f"{name:{width}}  {precision:9.4f}  {recall:.4f}  {f1:.4f}  {support:6,}"
            for name, precision, recall, f1, support in zip(names, *columns, strict=True)
        ]
        if worst := self._mistakes()[:3]:
            rows += ["", "surest mistakes"]
            rows += [
                f"  image {mistake['index']}: read as {mistake['predicted']}, is {mistake['label']}, "
                f"confidence {mistake['confidence']:.4f}"
                for mistake in worst
            ]
        return "\n".join(rows)

    def write(self, folder: Path) -> None:
        """Write pictures to `figures/`, all of it to TensorBoard's file, and last, atomically, evaluation.json."""
        scores, step = self.predictions, self.checkpoint.global_step
        with SummaryWriter(str(folder)) as writer:
            for name, figure in self._figures().items():
                pixels = save(figure, folder / "figures" / f"{name}.png")
                writer.add_image(name, pixels, step, dataformats="HWC")
            for tag, value in self._metrics().items():
                writer.add_scalar(tag, value, step)
        classes = scores.classes()
        record = {
            "schema_version": SCHEMA_VERSION,
            "checkpoint": str(self.checkpoint.path),
            "epoch": self.checkpoint.epoch + 1,
            "global_step": step,
            "data": self.datamodule.source.name,
            "split": self.split,
            "num_images": len(scores.labels),
            "metrics": self._metrics(),
            "acc_interval_95": scores.acc_interval(),
            "classes": [
                {"name": name} | {key: values[index] for key, values in classes.items()}
                for index, name in enumerate(self.datamodule.class_names)
            ],
            "confusion_matrix": scores.confusion_matrix().tolist(),
            "reliability": [
                dict(zip(("confidence", "acc", "num_images"), part, strict=True)) for part in scores.bins()
            ],
            "mistakes": self._mistakes(),
            "versions": versions(),
            "git_commit": git_commit(),
        }
        write_json(folder / FILE_NAME, record)

    def _metrics(self) -> dict[str, float]:
        scores = self.predictions
        values = {"acc": scores.acc, "loss": scores.loss, "calibration_error": scores.calibration_error()}
        return {f"{self.split}/{name}": value for name, value in values.items()}

    def _mistakes(self) -> list[dict[str, Any]]:
        """Return the mistakes as records; `index` is the image's position in the split."""
        names, scores = self.datamodule.class_names, self.predictions
        return [
            {
                "index": index,
                "label": names[scores.labels[index]],
                "predicted": names[scores.predicted[index]],
                "confidence": scores.confidences[index].item(),
            }
            for index in scores.mistakes()
        ]

    def _figures(self) -> dict[str, Any]:
        names, scores = self.datamodule.class_names, self.predictions
        figures = {
            "confusion_matrix": draw_confusion_matrix(scores.confusion_matrix().numpy(), names),
            "reliability": draw_reliability(scores.bins(), scores.calibration_error()),
        }
        if mistakes := self._mistakes():
            dataset: ImageDataset = getattr(self.datamodule, self.split)
            images, _ = dataset.__getitems__([mistake["index"] for mistake in mistakes])
            titles = [f"{wrong['predicted']} {wrong['confidence']:.1%}\nis {wrong['label']}" for wrong in mistakes]
            figures["mistakes"] = draw_images(images.cpu().numpy(), titles)
        return figures


def build_scorer(run_trainer: Mapping[str, Any], *, accelerator: str, folder: Path) -> L.Trainer:
    """Build a trainer that only scores, by the arithmetic (precision, kernels) of the run's own.

    Raises UserError for an accelerator that is unknown or not there.
    """
    try:
        with quiet():
            return L.Trainer(
                accelerator=accelerator,
                devices=1,
                **{key: run_trainer[key] for key in ("precision", "deterministic") if key in run_trainer},
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=folder,
            )
    except (MisconfigurationException, ModuleNotFoundError, ValueError) as error:
        raise UserError(f"accelerator={accelerator}: {' '.join(str(error).split())}") from error


def predict_split(module: Classifier, datamodule: MNISTDataModule, trainer: L.Trainer, split: Split) -> Predictions:
    """Score one split, whole, by the very steps that score it after training, so that the numbers are equal.

    Raises UserError where there are no such images, or where the loss is NaN or infinite.
    """
    if split == "val" and datamodule.val_size == 0:
        raise UserError("split=val: data.val_size=0, no images were held out of training; set split=test")
    batches: list[Tensor] = []
    hook = module.register_forward_hook(lambda module, images, logits: batches.append(logits.float().cpu()))
    score = {"test": trainer.test, "val": trainer.validate}[split]
    try:
        with quiet():
            score(module, datamodule=datamodule, verbose=False)
    except DivergedError as error:
        raise UserError(f"the network's {str(error).split(' at ', 1)[0]}: its training diverged") from error
    finally:
        hook.remove()
    metrics = {tag: value.item() for tag, value in trainer.callback_metrics.items()}
    logits = torch.cat(batches)
    predicted = logits.argmax(dim=1)
    confidences = probabilities(module.loss, logits).double().gather(1, predicted[:, None])[:, 0]
    images: ImageDataset = getattr(datamodule, split)
    return Predictions(
        loss=metrics[f"{split}/loss"],
        acc=metrics[f"{split}/acc"],
        labels=images.labels[images.indices].cpu(),
        predicted=predicted,
        confidences=confidences.clamp(max=1),  # rounding may put one above
        num_classes=len(datamodule.class_names),
    )


def check_classes(class_names: Sequence[str], *, of_network: Sequence[str]) -> None:
    """Raise UserError if a data set has not as many classes as the network was trained on."""
    if len(class_names) != len(of_network):
        raise UserError(
            f"data: has {len(class_names)} classes, but the network was trained on {len(of_network)} "
            f"({', '.join(of_network)}); name a data set with as many"
        )


def check_held_out(datamodule: MNISTDataModule, own: Mapping[str, Any]) -> None:
    """Raise UserError if the validation images may be some that the network was trained on.

    `own` is the configuration of its data set. Those of another data set are new to it.
    """
    for key in ("val_size", "split_seed", "checksums"):
        here = datamodule.source.checksums if key == "checksums" else getattr(datamodule, key)
        if datamodule.source.name == own.get("name") and here != own.get(key):
            raise UserError(
                f"split=val: another {key} than in training holds out other images, which the network may have been "
                "trained on; leave out data=... and data.KEY=..., or set split=test"
            )
