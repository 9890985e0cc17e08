"""Export: `python -m mnist_lit.export ckpt=PATH [KEY=VALUE ...]`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from mnist_lit import cli
from mnist_lit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from mnist_lit.checkpoint import Checkpoint

# What was written is compared with the network on so many.
NUM_DIGITS = 1000


def main() -> None:
    """Compose the configuration and export."""
    cli.run(export, config_name="export", paths=["ckpt", "output"])


def export(cfg: DictConfig) -> None:
    """Write the checkpoint's network as a file for other programs, and print what it takes and gives.

    Raises UserError, and leaves no file, for what the user can mend and if the file gave other answers.
    """
    cli.require_checkpoint(cfg)
    with cli.fast_imports():
        from mnist_lit import formats
        from mnist_lit.build import check_keys
        from mnist_lit.checkpoint import read_checkpoint
    options = check_keys(_top_level, cfg)
    file_format = formats.find_format(options["format"])
    checkpoint = read_checkpoint(options["ckpt"])
    path = Path(options["output"] or _default_path(checkpoint.path).with_suffix(file_format.suffix))
    if path.suffix != file_format.suffix:
        raise UserError(
            f"output={path}: must end in {file_format.suffix}, as a file of format={options['format']} does"
        )
    predictor = checkpoint.predictor(trusted=options["trusted"])
    digits = _test_digits(checkpoint, options["data"], trusted=options["trusted"])
    difference = formats.write_checked(predictor, path, file_format, digits)
    rows = {
        "file": f"{os.path.relpath(path)} ({path.stat().st_size / 1e6:.1f} MB)",
        "takes": f"{formats.IMAGES}, uint8 [batch, 28, 28], white on black",
        "gives": f"{formats.PROBABILITIES}, float32 [batch, {len(predictor.class_names)}]",
        "checked": f"{len(digits):,} test digits, singly and at once: {difference:.1g} at most away from torch",
    }
    print("\n".join(f"{name:12}{value}" for name, value in rows.items()))


def _default_path(checkpoint: Path) -> Path:
    """Return RUN/model for RUN/checkpoints/best.ckpt, and the path itself for a checkpoint that lies elsewhere."""
    return checkpoint.parent.parent / "model" if checkpoint.parent.name == "checkpoints" else checkpoint


def _test_digits(checkpoint: "Checkpoint", named: dict[str, Any], *, trusted: list[str]) -> "Tensor":
    """Return test images uint8 [N, 28, 28] of the data set that was named, else of the network's own."""
    from mnist_lit.build import restore_data

    datamodule = restore_data(checkpoint.config["data"], named, trusted=trusted)
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule.test.images[:NUM_DIGITS]


def _top_level(
    *,
    ckpt: str,
    data: dict[str, Any],
    format: str,  # noqa: A002 (what users call it)
    output: str | None,
    trusted: list[str],
) -> None:
    """Stand for the top level of the configuration: its keys and their types."""


if __name__ == "__main__":
    cli.run_and_exit(main)
