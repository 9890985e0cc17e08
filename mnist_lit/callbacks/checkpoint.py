"""Checkpoint files that survive what happens to them: a killed process, a folder that is moved."""

import io
import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from mnist_lit.result import write_atomically


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place, then moves it there: a killed process leaves the old file or the new one.

    Lightning's own writes to the system's folder for temporary files, often on another file system, from where a move
    is a copy.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write the file, in a folder that is made if need be."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(path, content.getvalue())  # an OSError where the disk is full


class MovableCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that knows its best files again when the run resumes in a folder that was moved or copied.

    Lightning's own warns that the folder has changed, forgets the best score, and points to the old place.
    """

    @property
    def state_key(self) -> str:
        """Name it in short: Lightning's own name, of all its arguments, is half of a profile's width."""
        return f"{type(self).__name__}({self.filename}, {self.monitor})" if self.filename else super().state_key

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time; where only the ends of epochs count, Lightning's own takes 10 us to find that out."""
        if self._every_n_train_steps > 0 or self._train_time_interval is not None:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state up, its paths below the folder as it is now."""
        now = str(self.dirpath)

        def moved(path: str) -> str:
            return str(Path(now) / Path(path).relative_to(state_dict["dirpath"])) if path else path

        paths = ("best_model_path", "last_model_path", "kth_best_model_path")
        super().load_state_dict(
            state_dict
            | {key: moved(state_dict[key]) for key in paths}
            | {"best_k_models": {moved(path): score for path, score in state_dict["best_k_models"].items()}}
            | {"dirpath": now}
        )
        self.current_score = state_dict["current_score"]  # which Lightning saves, and forgets
