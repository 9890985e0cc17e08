"""How fast 10,000 pictures are read, against opening the same files with Pillow and nothing more.

    python benchmarks/predict_speed.py            # one table; needs no data but the packaged sample

The files are the sample's digits as PNG of 28 x 28 (taken as they are) and as dark JPEG of 280 x 280 on light paper
(prepared). Both sides are measured in every round, and a ratio is the median of the rounds'.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from train_speed import experiment, machine

from mnist_lit import answers
from mnist_lit.data.idx import read_idx
from mnist_lit.data.sources import SAMPLE_DIR, TRAIN_IMAGES
from mnist_lit.photos import album
from mnist_lit.predictor import Predictor


def bare(files: Sequence[Path]) -> None:
    """Decode every file, one after another."""
    for file in files:
        with Image.open(file) as image:
            np.asarray(image)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-images", type=int, default=10_000)
    options = parser.parse_args()

    made = experiment("data=sample")
    predictor = Predictor(
        model=made.module.model, mean=0.1307, std=0.3081, probabilities=torch.sigmoid, class_names=list("0123456789")
    )
    digits = read_idx(SAMPLE_DIR / f"{TRAIN_IMAGES}.gz", num_dims=3, md5=None).numpy()

    def ours(files: Sequence[Path]) -> None:
        photos = album.load(files)
        answers.answer(predictor, photos.images, photos.files, batch_size=1000)

    print(f"{machine()}; {options.num_images:,} pictures, median of {options.repeats}\n")
    print("| pictures | opened by Pillow | predicted | pictures/s | ratio |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, suffix, factor in (("28 x 28 PNG", "png", 1), ("280 x 280 JPEG", "jpg", 10)):
            files = [Path(folder) / f"{index}.{suffix}" for index in range(options.num_images)]
            for index, file in enumerate(files):
                image = Image.fromarray(digits[index % len(digits)])
                if factor > 1:
                    image = ImageOps.invert(image.resize((28 * factor, 28 * factor)))
                image.save(file)
            rounds = [(seconds(partial(bare, files)), seconds(partial(ours, files))) for _ in range(options.repeats)]
            opened, predicted = (statistics.median(column) for column in zip(*rounds, strict=True))
            ratio = statistics.median(b / a for a, b in rounds)
            print(
                f"| {name} | {opened:.2f} s | {predicted:.2f} s | {len(files) / predicted:,.0f} | {ratio:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
