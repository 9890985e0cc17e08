"""What the network says about pictures: its first and second guess, in a table and in files."""

import csv
import io
import json
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from mnist_lit.photos.photo import Pixels
from mnist_lit.predictor import Predictor
from mnist_lit.result import write_atomically

FORMATS = (".csv", ".json")
ESCAPED = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories of controls, halves of characters, and ends of lines


@dataclass(frozen=True)
class Answer:
    """The two likeliest classes of a picture with their probabilities, if above 0; or the `error` that left it out."""

    file: str
    digit: str | None = None
    confidence: float | None = None
    second_guess: str | None = None
    second_confidence: float | None = None
    error: str | None = None


def answer(predictor: Predictor, images: Pixels, files: Sequence[Path], *, batch_size: int) -> list[Answer]:
    """Ask the network about prepared pictures uint8 [N, 28, 28], `batch_size` at a time."""
    answers = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            chosen = slice(start, start + batch_size)
            top = predictor(torch.from_numpy(np.ascontiguousarray(images[chosen]))).float().topk(2)
            for file, values, classes in zip(files[chosen], top.values.tolist(), top.indices.tolist(), strict=True):
                first, second = (predictor.class_names[index] for index in classes)
                # Where all but one have no chance, none of them is the second.
                guesses = (first, values[0], second, values[1]) if values[1] > 0 else (first, values[0])
                answers.append(Answer(str(file), *guesses))
    return answers


def printable(path: str) -> str:
    """Return a path as a terminal can show it, in one line: what controls it, or is no UTF-8, is escaped."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in ESCAPED else character
        for character in path
    )


def to_table(answers: Sequence[Answer]) -> str:
    """Return one line each, under a headline; confidences in percent."""
    names = [printable(answer.file) for answer in answers]
    width = max(map(len, ["file", *names]))
    classes = max([len("digit"), *(len(answer.digit or "") for answer in answers)])
    lines = [f"{'file':{width}}  {'digit':{classes}}  confidence  second guess"]
    for name, given in zip(names, answers, strict=True):
        assert given.confidence is not None
        second = "-" if given.second_confidence is None else f"{given.second_guess} ({given.second_confidence:.1%})"
        lines.append(f"{name:{width}}  {given.digit:{classes}}  {given.confidence:10.1%}  {second}")
    return "\n".join(lines)


def write(path: Path, answers: Sequence[Answer]) -> None:
    """Write one row, or one object, for each answer: CSV or JSON, as the name ends; whole or not at all."""
    # The bytes of a name that is no UTF-8 are halves of characters in it.
    names = [os.fsencode(answer.file).decode(errors="backslashreplace") for answer in answers]
    records = [asdict(answer) | {"file": name} for answer, name in zip(answers, names, strict=True)]
    if path.suffix.lower() == ".json":
        text = json.dumps(records, indent=2, ensure_ascii=False) + "\n"
    else:
        file = io.StringIO()
        writer = csv.DictWriter(file, fieldnames=list(Answer.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        text = file.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
