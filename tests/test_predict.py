"""From files to answers: as right as the network is on the pixels themselves, and honest about bad files."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import Main, Trained, compose_config, train
from made_digits import FONTS, rendered
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image

from mnist_lit import answers, composition, pictures
from mnist_lit.checkpoint import read_checkpoint
from mnist_lit.data.idx import read_idx
from mnist_lit.data.sources import SAMPLE_DIR, TEST_IMAGES, TEST_LABELS
from mnist_lit.errors import UserError
from mnist_lit.photos import album
from mnist_lit.photos.photo import Pixels, prepare
from mnist_lit.pictures import draw_images
from mnist_lit.predictor import Predictor

NUM_IMAGES = 200


@pytest.fixture(scope="module")
def digits() -> tuple[Pixels, list[str]]:
    images: Pixels = read_idx(SAMPLE_DIR / f"{TEST_IMAGES}.gz", num_dims=3, md5=None).numpy()
    labels = read_idx(SAMPLE_DIR / f"{TEST_LABELS}.gz", num_dims=1, md5=None)
    return images[:NUM_IMAGES], [str(label) for label in labels[:NUM_IMAGES].tolist()]


@pytest.fixture(scope="module")
def better(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A network that reads most digits."""
    composition.register_resolvers()
    folder = tmp_path_factory.mktemp("better") / "run"
    train(
        compose_config(
            folder,
            "trainer.max_epochs=15",
            "optimizer=adam",
            "loss=cross_entropy",
            "logger=none",
            "~callbacks.pictures",
        )
    )
    return read_checkpoint(folder).predictor()


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Path]:
    """Write pictures into a folder."""

    def write(**pictures: Pixels) -> Path:
        folder = tmp_path / "photos"
        folder.mkdir(exist_ok=True)
        for name, pixels in pictures.items():
            Image.fromarray(pixels).save(folder / f"{name}.png")
        return folder

    return write


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_classes(predictor: Predictor, images: list[Pixels]) -> list[str]:
    with torch.no_grad():
        classes = predictor(torch.from_numpy(np.stack(images))).argmax(dim=1)
    return [predictor.class_names[index] for index in classes.tolist()]


def test_accuracy_on_files_is_accuracy_on_pixels(
    main: Main, trained: Trained, digits: tuple[Pixels, list[str]], photos: Callable[..., Path], tmp_path: Path
) -> None:
    images, labels = digits
    photos(**{f"{index:03}": image for index, image in enumerate(images)})
    outcome = main(f"ckpt={trained.folder}", "images=photos", "batch_size=199", module="predict")  # and one
    assert (outcome.code, outcome.err) == (0, "")
    (folder,) = tmp_path.glob("outputs/predict/*/*")
    rows = read_csv(folder / "predictions.csv")
    predictor = read_checkpoint(trained.folder).predictor()
    with torch.no_grad():
        expected = predictor(torch.from_numpy(images)).topk(2)
    assert [row["digit"] for row in rows] == [str(index) for index in expected.indices[:, 0].tolist()]
    assert [row["second_guess"] for row in rows] == [str(index) for index in expected.indices[:, 1].tolist()]
    assert [float(row["confidence"]) for row in rows] == pytest.approx(expected.values[:, 0].tolist(), abs=1e-5)
    right = [row["digit"] == label for row, label in zip(rows, labels, strict=True)]
    assert sum(right) == int((expected.indices[:, 0] == torch.tensor(list(map(int, labels)))).sum())
    assert 0.3 < np.mean(right) < 1
    table = outcome.out.splitlines()
    assert table[0].split() == ["file", "digit", "confidence", "second", "guess"]
    assert table[1].split()[:2] == ["photos/000.png", rows[0]["digit"]]
    assert imread(folder / "pictures.png").std() > 0.1


def test_pictures_are_titled_by_file_and_answer(
    main: Main, trained: Trained, photos: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def draw(images: Pixels, titles: list[str]) -> Figure:
        seen.extend(titles)
        return draw_images(images, titles)

    monkeypatch.setattr(pictures, "draw_images", draw)
    photos(**dict.fromkeys(["IMG_20261126_0001", "$a_$ü", "七"], rendered("3")))  # of which no font has all
    outcome = main(f"ckpt={trained.folder}", "images=photos", "num_images=3", "output=null", module="predict")
    assert (outcome.code, outcome.err) == (0, "")
    assert "num_images" not in outcome.out  # there are no more
    assert [title.split("\n")[0] for title in seen] == ["$a_$?", "IMG_2..._0001", "?"]
    digit, confidence = seen[0].split("\n")[1].split()
    assert digit in "0123456789"
    assert confidence.endswith("%")


def test_names_that_no_terminal_can_show_are_told_in_one_line(
    main: Main, trained: Trained, photos: Callable[..., Path], tmp_path: Path
) -> None:
    folder = photos(a=rendered("3"))
    lines = "new\nline.png", "two\u2028lines.png", "two\u2029paragraphs.png"
    for name in (*lines, "escape\x1b[31m.png", os.fsdecode(b"caf\xe9.png")):
        (folder / name).write_bytes((folder / "a.png").read_bytes())
    (folder / "no\npicture.png").touch()
    outcome = main(f"ckpt={trained.folder}", "images=photos", "output=answers.csv", module="predict")
    assert outcome.code == 2
    assert outcome.err.splitlines()[0] == "error: photos/no\\npicture.png: not a picture, or a damaged one"
    names = {line.split("  ")[0] for line in outcome.out.splitlines() if line.startswith("photos")}
    escaped = {"new\\nline.png", "two\\u2028lines.png", "two\\u2029paragraphs.png"}
    expected = {"a.png", *escaped, "escape\\x1b[31m.png", "caf\\udce9.png"}
    assert names == {f"photos/{name}" for name in expected}
    with (tmp_path / "answers.csv").open(encoding="utf-8", newline="") as file:
        written = {row["file"] for row in csv.DictReader(file) if not row["error"]}
    # Where they can be, as they are.
    assert written == {f"photos/{name}" for name in ("a.png", *lines, "escape\x1b[31m.png", "caf\\xe9.png")}


def test_json_has_names_in_any_language_as_they_are(tmp_path: Path) -> None:
    answers.write(tmp_path / "answers.JSON", [answers.Answer("七.png", "7", 0.9)])
    assert '"七.png"' in (tmp_path / "answers.JSON").read_text(encoding="utf-8")


def test_what_pillow_warns_of_is_nothing_to_tell(tmp_path: Path) -> None:
    Image.fromarray(rendered("3")).save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0")  # cut off
    assert album.load([tmp_path / "x.jpg"]).refused == {}


def test_bad_files_are_named_and_the_others_are_done(
    main: Main, trained: Trained, photos: Callable[..., Path], tmp_path: Path
) -> None:
    folder = photos(a=rendered("3"), blank=np.full((50, 50), 200, dtype=np.uint8), two=rendered("12"), z=rendered("7"))
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:300])
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    (folder / ".hidden").write_text("", encoding="utf-8")
    outcome = main(f"ckpt={trained.folder}", "images=photos", "output=new/answers.json", module="predict")
    assert outcome.code == 2
    assert outcome.err.splitlines() == [
        "error: photos/blank.png: blank: no ink that stands out from the paper",
        "error: photos/cut.png: not a picture, or a damaged one",
        "error: photos/notes.txt: not a picture, or a damaged one",
        "error: photos/two.png: 2 marks that lie apart: if they are digits, cut each into a picture",
        "error: 4 of 6 files left out",
    ]
    records = json.loads((tmp_path / "new" / "answers.json").read_text(encoding="utf-8"))
    assert [record["file"] for record in records if record["error"] is None] == ["photos/a.png", "photos/z.png"]
    assert len(records) == 6
    assert all(0 <= record["second_confidence"] <= record["confidence"] <= 1 for record in records[:2])
    assert not list(tmp_path.glob("outputs/predict/*/*/predictions.csv"))


@pytest.fixture
def not_digits(trained: Trained, tmp_path: Path) -> Path:
    """A checkpoint that says that its data set is not one of digits."""
    content = torch.load(trained.folder / "checkpoints" / "last.ckpt", weights_only=True)
    content["hyper_parameters"]["data"]["name"] = "FashionMNIST"
    torch.save(content, tmp_path / "fashion.ckpt")
    return tmp_path / "fashion.ckpt"


def test_pictures_of_no_digits_are_seen_as_a_whole(
    main: Main, not_digits: Path, photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Pixels] = []
    answer = answers.answer

    def watched(predictor: Predictor, images: Pixels, *others: Any, **options: Any) -> list[answers.Answer]:
        seen.extend(images)
        return answer(predictor, images, *others, **options)

    monkeypatch.setattr(answers, "answer", watched)
    boots = np.zeros((28, 28), dtype=np.uint8)
    boots[:, :9] = boots[:, 19:] = 180
    photos(blank=np.zeros((28, 28), dtype=np.uint8), boots=boots, large=np.pad(np.kron(255 - boots, boots[:9, :9]), 9))
    outcome = main(f"ckpt={not_digits}", "images=photos", "output=answers.json", module="predict")
    assert outcome.err.splitlines()[0] == "error: photos/blank.png: blank: no ink that stands out from the paper"
    assert "error: 1 of 3 files left out" in outcome.err
    assert (seen[0] == boots).all()
    assert len(json.loads((tmp_path / "answers.json").read_text(encoding="utf-8"))) == 3


def test_nothing_but_bad_files(main: Main, trained: Trained, photos: Callable[..., Path]) -> None:
    photos(blank=np.zeros((50, 50), dtype=np.uint8))
    outcome = main(f"ckpt={trained.folder}", "images=photos/blank.png", module="predict")
    assert (outcome.code, outcome.err.splitlines()[-1]) == (2, "error: 1 of 1 files left out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images=none*.png"], "images=none*.png: no such file or folder, and no glob of any; name a picture"),
        (["images=empty"], "images=empty: a folder without files; name a picture"),
        ([], "images is missing: add images=PATH"),
        (["images="], "images is missing: add images=PATH"),
        (["empty"], "empty: cannot be read; it needs a key: ckpt=, images= or resume="),
        (["lr 0.1" * 100], "lr 0.1"),
        (["images=empty", "checkpoint=x"], "checkpoint is not a key: there are "),
        (["images=empty", "output=answers.txt"], "output=answers.txt: must end in .csv or .json"),
        (["images=empty", "batch_size=0"], "batch_size=0: must be at least 1"),
        (["images=empty", "num_images=many"], "num_images=many: must be a whole number"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_left(
    arguments: list[str], message: str, main: Main, trained: Trained, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    outcome = main(f"ckpt={trained.folder}", *arguments, module="predict")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: {message}")
    assert outcome.err.count("\n") == 1
    assert list(tmp_path.glob("outputs/predict/*/*")) == []


def test_missing_checkpoint_is_named(main: Main) -> None:
    assert main("images=x.png", module="predict").err.startswith("error: ckpt is missing: add ckpt=PATH")


def test_names_stand_for_files_folders_and_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/2.png", "a/1.png", "a/sub/3.png", "a/x[1].jpg", "~draft.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert album.find("a") == [Path("a/1.png"), Path("a/2.png"), Path("a/x[1].jpg")]
    assert album.find("a/*.png") == [Path("a/1.png"), Path("a/2.png")]
    assert album.find("a/**/*.png") == [Path("a/1.png"), Path("a/2.png"), Path("a/sub/3.png")]
    assert album.find("a/x[1].jpg") == [Path("a/x[1].jpg")]
    assert album.find("~draft.png") == album.find("~*") == [Path("~draft.png")]
    with pytest.raises(UserError, match="no such file or folder"):
        album.find("b")


def test_printed_digits_are_mostly_read(better: Predictor) -> None:
    texts = [(digit, size, font) for digit in "0123456789" for size in (40, 150) for font in FONTS]
    read = read_classes(better, [prepare(rendered(*text)) for text in texts])
    right = np.mean([answer == text[0] for answer, text in zip(read, texts, strict=True)])
    assert right > 0.6  # it has learned 1,600 handwritten ones


def test_answers_do_not_depend_on_how_the_picture_was_taken(
    better: Predictor, digits: tuple[Pixels, list[str]]
) -> None:
    images = list(digits[0])
    expected = read_classes(better, images)
    same: list[Callable[[Pixels], Pixels]] = [
        lambda image: 255 - image,
        lambda image: np.pad(image, ((3, 40), (25, 8))),
        lambda image: np.asarray(Image.fromarray(255 - image).resize((56, 56))),
        lambda image: np.asarray(Image.fromarray(image).resize((280, 280))) // 2 + 60,
    ]
    for change, least in zip(same, (1, 0.98, 0.9, 0.9), strict=True):
        read = read_classes(better, [prepare(change(image)) for image in images])
        assert np.mean([a == b for a, b in zip(read, expected, strict=True)]) >= least


def test_table_is_aligned_for_long_class_names() -> None:
    given = [answers.Answer("a.png", "ankle boot", 0.5, "bag", 0.25), answers.Answer("long/b.png", "bag", 1, "coat", 0)]
    head, first, second = answers.to_table(given).splitlines()
    assert first == "a.png       ankle boot       50.0%  bag (25.0%)"
    assert second == "long/b.png  bag             100.0%  coat (0.0%)"
    assert head.index("digit") == first.index("ankle")


def test_a_class_without_a_chance_is_no_second_guess() -> None:
    def predictor(images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[0.0, 1.0, 0.0], [0.25, 0.0, 0.75]])[: len(images)]

    predictor.class_names = list("abc")  # type: ignore[attr-defined]
    images: Any = np.zeros((2, 28, 28), dtype=np.uint8)
    given = answers.answer(cast("Predictor", predictor), images, [Path("x"), Path("y")], batch_size=2)
    guesses = [(one.digit, one.second_guess, one.second_confidence) for one in given]
    assert guesses == [("b", None, None), ("c", "a", 0.25)]
    assert answers.to_table(given).splitlines()[1].endswith("100.0%  -")


def test_help_says_how(main: Main) -> None:
    outcome = main("--help", module="predict")
    assert outcome.code == 0
    assert "python -m mnist_lit.predict ckpt=outputs/train/DATE/TIME images=seven.jpg" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 100
