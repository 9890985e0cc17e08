"""Predict: `python -m mnist_lit.predict ckpt=PATH images=FILE|FOLDER|GLOB [KEY=VALUE ...]`."""

import os
import sys
from pathlib import Path

from mnist_lit import cli
from mnist_lit.errors import UserError
from mnist_lit.notation import cut

NAME_LENGTH = 13  # characters that are as wide as a picture


def main() -> None:
    """Compose the configuration and read the pictures."""
    cli.run_with_checkpoint(predict, config_name="predict")


def predict(
    *,
    ckpt: str,
    images: str,
    output: str | None,
    batch_size: int,
    num_images: int,
    trusted: list[str],
    run_dir: str,
) -> None:
    """Print what the pictures show; leave the answers, and the pictures as the network saw them, in files.

    A network that was trained on MNIST is shown the one digit in each, any other each as a whole.

    Bad pictures are named on stderr and left out; then it raises SystemExit with code 2, when the others are done.
    """
    from mnist_lit import answers, pictures
    from mnist_lit.checkpoint import read_checkpoint
    from mnist_lit.photos import album, photo

    for key, value in {"batch_size": batch_size, "num_images": num_images}.items():
        if value < 1:
            raise UserError(f"{key}={value}: must be at least 1")
    answers_file = Path(output or f"{run_dir}/predictions.csv")
    if answers_file.suffix.lower() not in answers.FORMATS:
        raise UserError(f"output={answers_file}: must end in {' or '.join(answers.FORMATS)}")
    files = album.find(images)
    checkpoint = read_checkpoint(ckpt)
    predictor = checkpoint.predictor(trusted=trusted)
    photos = album.load(files, photo.preparation(checkpoint.config["data"].get("name", "MNIST")))
    given = answers.answer(predictor, photos.images, photos.files, batch_size=batch_size)
    refused = [answers.Answer(str(file), error=reason) for file, reason in photos.refused.items()]
    answers.write(answers_file, [*given, *refused])
    if given:
        titles = []
        for one in given[:num_images]:
            name = answers.printable(Path(one.file).stem).encode("ascii", "replace").decode()  # every font has these
            titles.append(f"{cut(name, NAME_LENGTH)}\n{one.digit} {one.confidence:.0%}")
        pictures.save(pictures.draw_images(photos.images[:num_images], titles), Path(run_dir) / "pictures.png")
        print(answers.to_table(given))
    print(f"\n{'answers':10}{os.path.relpath(answers_file)}\n{'folder':10}{os.path.relpath(run_dir)}", flush=True)
    if len(given) > num_images:
        print(f"{'pictures':10}the first {num_images} of {len(given)}; num_images=N shows more", flush=True)
    for one in refused:
        print(f"error: {answers.printable(one.file)}: {one.error}", file=sys.stderr)
    if refused:
        print(f"error: {len(refused)} of {len(files)} files left out", file=sys.stderr)
        raise SystemExit(2)


if __name__ == "__main__":
    main()
