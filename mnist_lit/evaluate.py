"""Evaluate: `python -m mnist_lit.evaluate ckpt=PATH [KEY=VALUE ...]`."""

import os
from pathlib import Path
from typing import Any, Literal

from mnist_lit import cli


def main() -> None:
    """Compose the configuration and evaluate."""
    cli.run_with_checkpoint(evaluate, config_name="evaluate")


def evaluate(
    *,
    ckpt: str,
    data: dict[str, Any],
    split: Literal["test", "val"],
    accelerator: str,
    trusted: list[str],
    run_dir: str,
) -> None:
    """Score the checkpoint, print a table, and leave numbers and pictures in `run_dir`."""
    from mnist_lit.checkpoint import read_checkpoint
    from mnist_lit.evaluation import Evaluation, build_scorer, check_classes, check_held_out, predict_split
    from mnist_lit.trust import restore_data

    checkpoint = read_checkpoint(ckpt)
    module = checkpoint.classifier(trusted=trusted)
    own = checkpoint.config["data"]
    if "class_names" in data:
        check_classes(data["class_names"], of_network=own["class_names"])
    datamodule = restore_data(own, data, trusted=trusted)
    if split == "val":
        check_held_out(datamodule, own)
    scorer = build_scorer(checkpoint.config["trainer"], accelerator=accelerator, folder=Path(run_dir))
    datamodule.prepare_data()
    predictions = predict_split(module, datamodule, scorer, split)
    evaluation = Evaluation(checkpoint, datamodule, split, predictions)
    evaluation.write(Path(run_dir))
    print(evaluation.table())
    print(f"\n{'folder':14}{os.path.relpath(run_dir)}")


if __name__ == "__main__":
    main()
