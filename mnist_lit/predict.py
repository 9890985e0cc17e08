"""Predict: `python -m mnist_lit.predict ckpt=PATH images=FILE|FOLDER|GLOB [KEY=VALUE ...]`."""

import os
import sys
from pathlib import Path

from omegaconf import DictConfig

from mnist_lit import cli, run_folder
from mnist_lit.errors import UserError


def main() -> None:
    """Compose the configuration and read the pictures."""
    cli.run(predict, config_name="predict", paths=["ckpt", "images", "output"])


def predict(cfg: DictConfig) -> None:
    """Print what digits the pictures show; leave the answers, and the pictures as the network saw them, in files.

    Bad pictures are named on stderr and left out; then it raises SystemExit with code 2, when the others are
    done. Raises UserError for what the user can mend; then no folder is left.
    """
    run_dir = Path(cfg.run_dir)
    with run_folder.no_folder_left(run_dir, log="predict.log"):
        cli.require_checkpoint(cfg)
        cli.require(cfg, "images", "a picture, a folder or a glob")
        # Here, so that --help and refusals come at once.
        with cli.fast_imports():
            from mnist_lit import answers, pictures
            from mnist_lit.build import check_keys
            from mnist_lit.checkpoint import read_checkpoint
            from mnist_lit.data import album
        options = check_keys(_top_level, cfg)
        for key in ("batch_size", "num_images"):
            if options[key] < 1:
                raise UserError(f"{key}={options[key]}: must be at least 1")
        output = Path(options["output"] or run_dir / "predictions.csv")
        answers.check_format(output)
        files = album.find(options["images"])
        predictor = read_checkpoint(options["ckpt"]).predictor(trusted=options["trusted"])
    photos = album.load(files)
    given = answers.answer(predictor, photos.images, photos.files, batch_size=options["batch_size"])
    refused = answers.refused(photos.refused)
    answers.write(output, [*given, *refused])
    if given:
        shown = given[: options["num_images"]]
        titles = [f"{one.digit} {one.confidence:.0%}" for one in shown]
        pictures.save(pictures.draw_images(photos.images[: len(shown)], titles), run_dir / "pictures.png")
        print(answers.to_table(given))
    print(f"\n{'answers':10}{os.path.relpath(output)}\n{'folder':10}{os.path.relpath(run_dir)}", flush=True)
    for one in refused:
        print(f"error: {one.file}: {one.error}", file=sys.stderr)
    if refused:
        print(f"error: {len(refused)} of {len(files)} files left out", file=sys.stderr)
        raise SystemExit(2)


def _top_level(
    *,
    ckpt: str,
    images: str,
    output: str | None,
    batch_size: int,
    num_images: int,
    trusted: list[str],
    run_dir: str,
) -> None:
    """Stand for the top level of the configuration: its keys and their types."""


if __name__ == "__main__":
    cli.run_and_exit(main)
