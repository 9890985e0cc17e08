"""Evaluate: `python -m mnist_lit.evaluate ckpt=PATH [KEY=VALUE ...]`."""

import os
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig

from mnist_lit import cli, run_folder


def main() -> None:
    """Compose the configuration and evaluate."""
    cli.run(evaluate, config_name="evaluate", paths=["ckpt"])


def evaluate(cfg: DictConfig) -> None:
    """Score the checkpoint, print a table, and leave numbers and pictures in `cfg.run_dir`.

    Raises UserError for what the user can mend; then no folder is left.
    """
    run_dir = Path(cfg.run_dir)
    with run_folder.no_folder_left(run_dir, log="evaluate.log"):
        cli.require_checkpoint(cfg)
        with cli.fast_imports():
            from mnist_lit.build import check_keys, restore_data
            from mnist_lit.checkpoint import read_checkpoint
            from mnist_lit.evaluation import Evaluation, build_scorer, check_classes, check_held_out, predict_split
        options = check_keys(_top_level, cfg)
        checkpoint = read_checkpoint(options["ckpt"])
        module = checkpoint.classifier(trusted=options["trusted"])
        own, named = checkpoint.config["data"], options["data"]
        if "class_names" in named:
            check_classes(named["class_names"], of_network=own["class_names"])
        datamodule = restore_data(own, named, trusted=options["trusted"])
        if options["split"] == "val":
            check_held_out(datamodule, own)
        scorer = build_scorer(checkpoint.config["trainer"], accelerator=options["accelerator"], folder=run_dir)
        datamodule.prepare_data()
        predictions = predict_split(module, datamodule, scorer, options["split"])
    evaluation = Evaluation(checkpoint, datamodule, options["split"], predictions)
    evaluation.write(run_dir)
    print(evaluation.table())
    print(f"\n{'folder':14}{os.path.relpath(run_dir)}")


def _top_level(
    *,
    ckpt: str,
    data: dict[str, Any],
    split: Literal["test", "val"],
    accelerator: str,
    trusted: list[str],
    run_dir: str,
) -> None:
    """Stand for the top level of the configuration: its keys and their types."""


if __name__ == "__main__":
    cli.run_and_exit(main)
