"""Export: `python -m mnist_lit.export ckpt=PATH [KEY=VALUE ...]`."""

import os
from pathlib import Path
from typing import Any, Literal

from mnist_lit import cli
from mnist_lit.errors import UserError

# What was written is compared with the network on so many.
NUM_DIGITS = 1000


def main() -> None:
    """Compose the configuration and export."""
    cli.run_with_checkpoint(export, config_name="export")


def export(
    *,
    ckpt: str,
    data: dict[str, Any],
    format: Literal["onnx", "torch_export"],  # noqa: A002 (what users call it)
    output: str | None,
    trusted: list[str],
) -> None:
    """Write the checkpoint's network as a file for other programs, and print what it takes and gives.

    It is compared with the network on test images of `data`, else of the network's own data set. Raises UserError, and
    leaves no file, if it gave other answers.
    """
    from mnist_lit import formats
    from mnist_lit.checkpoint import read_checkpoint
    from mnist_lit.trust import restore_data

    file_format = formats.find_format(format)
    checkpoint = read_checkpoint(ckpt)
    path = Path(output or _default_path(checkpoint.path).with_suffix(file_format.suffix))
    if path.suffix != file_format.suffix:
        raise UserError(f"output={path}: must end in {file_format.suffix}, as a file of format={format} does")
    if path.is_dir():
        raise UserError(f"output={path}: is a folder; name a file")
    predictor = checkpoint.predictor(trusted=trusted)
    datamodule = restore_data(checkpoint.config["data"], data, trusted=trusted)
    datamodule.prepare_data()
    datamodule.setup()
    digits = datamodule.test.images[:NUM_DIGITS]
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


if __name__ == "__main__":
    main()
