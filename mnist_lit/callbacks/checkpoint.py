"""Lightning's ModelCheckpoint, for folders that are moved."""

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint


class MovableCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that knows its best files again when the run resumes in a folder that was moved or copied.

    Lightning's own warns that the folder has changed, forgets the best score, and points to the old place.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state up, its paths below the folder as it is now."""
        now = str(self.dirpath)

        def moved(path: str) -> str:
            return str(Path(now) / Path(path).name) if path else path

        paths = ("best_model_path", "last_model_path", "kth_best_model_path")
        super().load_state_dict(
            state_dict
            | {key: moved(state_dict[key]) for key in paths}
            | {"best_k_models": {moved(path): score for path, score in state_dict["best_k_models"].items()}}
            | {"dirpath": now}
        )
