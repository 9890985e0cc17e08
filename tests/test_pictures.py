from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import Train
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from torch.utils.data import DistributedSampler

from mnist_lit.callbacks.pictures import Pictures, in_order
from mnist_lit.pictures import RIGHT, WRONG, draw_confusion_matrix, draw_curves, draw_images, draw_reliability

HISTORY = {
    "train/loss": [(10, 0.5), (20, 0.25)],
    "val/loss": [(16, 0.4)],
    "val/acc": [(16, 0.75), (32, 1.0)],
    "lr": [(10, 0.1)],
}


def pixels(figure: Figure) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def test_curves_are_losses_above_accuracy() -> None:
    above, below = draw_curves(HISTORY).axes
    drawn = [
        {
            str(line.get_label()): [tuple(point) for point in np.asarray(line.get_xydata()).tolist()]
            for line in axes.lines
        }
        for axes in (above, below)
    ]
    assert drawn == [{tag: HISTORY[tag] for tag in ("train/loss", "val/loss")}, {"val/acc": HISTORY["val/acc"]}]
    assert below.get_xlabel() == "step"


def test_curves_without_validation_are_one_panel() -> None:
    (axes,) = draw_curves({"train/loss": [(10, 0.5)]}).axes
    assert [(line.get_label(), line.get_marker()) for line in axes.lines] == [
        ("train/loss", "o")
    ]  # or it shows nothing


@pytest.mark.parametrize("tags", [["train/loss"], ["train/loss", "val/loss", "val/acc"]])
def test_curves_have_room_for_their_labels(tags: list[str]) -> None:
    figure = draw_curves({tag: [(1, 0.1425), (2, 0.1575)] for tag in tags})
    drawn = pixels(figure)
    assert (drawn[[0, -1]] == 255).all()
    assert (drawn[:, [0, -1]] == 255).all()
    assert all(step.is_integer() for step in figure.axes[-1].get_xticks())


def test_confusion_matrix_counts_labels_in_rows_and_predictions_in_columns() -> None:
    figure = draw_confusion_matrix(np.array([[8, 2], [0, 1]]), ["cat", "dog"])
    (axes,) = figure.axes
    counts = {text.get_position(): (text.get_text(), text.get_color()) for text in axes.texts}
    # Keyed by (column, row).
    assert counts[1, 0] == ("2", WRONG)
    assert counts[0, 0][0] == "8"
    assert counts[0, 1][0] == ""
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "label")
    (image,) = axes.images
    assert np.asarray(image.get_array()) == pytest.approx(np.sqrt([[0.8, 0.2], [0.0, 1.0]]))


def test_confusion_matrix_has_room_for_long_names() -> None:
    figure = draw_confusion_matrix(np.eye(2), ["a", "b" * 100])
    pixels(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b" * 11 + "..." + "b" * 10]


def test_confusion_matrix_takes_a_class_without_images() -> None:
    assert pixels(draw_confusion_matrix(np.array([[1, 0], [0, 0]]), ["0", "1"])).std() > 0


def test_images_stand_below_their_titles_in_their_colours() -> None:
    images = np.zeros((5, 28, 28), dtype=np.uint8)
    images[3] = 255
    titles = ["0", "1", "2", "3", "4, is 9"]
    figure = draw_images(images, titles, [RIGHT, RIGHT, RIGHT, RIGHT, WRONG])
    (axes,) = figure.axes
    assert [(text.get_text(), text.get_color()) for text in axes.texts] == [
        *((title, RIGHT) for title in titles[:4]),
        (titles[4], WRONG),
    ]
    # The fourth of five, in three columns: the first of the second row, where all is black.
    drawn = pixels(figure)
    height, width = (size // unit for size, unit in zip(drawn.shape[:2], (2, 3), strict=True))
    assert drawn[height + height // 2 :][: height // 4, width // 4 : width // 2].max() < 10
    assert drawn[height // 2 :][: height // 4, width // 4 : width // 2].min() > 245


def test_titles_of_two_lines_have_room() -> None:
    one, two = (draw_images(np.zeros((4, 28, 28), dtype=np.uint8), [title] * 4) for title in ("4", "4\nis 9"))
    assert two.get_figheight() > one.get_figheight()
    drawn = pixels(two)
    above = drawn[: drawn.shape[0] // 2 - round(28 / 46 * drawn.shape[0] / 2)]
    assert (above < 128).any()
    # The upper line is not cut off.
    assert (above[:3] > 245).all()


def heights(axes: Axes) -> list[float]:
    return [bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)]


def test_reliability_is_accuracy_over_confidence() -> None:
    above, below = draw_reliability([(0.0, 0.0, 0), (0.3, 0.5, 4), (0.7, 0.6, 10)], 0.1234).axes
    assert heights(above) == [0.0, 0.5, 0.6]
    diagonal, seen = above.lines
    assert np.asarray(diagonal.get_xydata()).tolist() == [[0, 0], [1, 1]]
    # No point for the empty bin.
    assert np.asarray(seen.get_xydata()).tolist() == [[0.3, 0.5], [0.7, 0.6]]
    assert seen.get_label() == "calibration error 0.1234"
    assert heights(below) == [0, 4, 10]
    assert (above.get_ylabel(), below.get_ylabel(), below.get_xlabel()) == ("accuracy", "images", "confidence")


def test_weights_are_shown_around_zero() -> None:
    (axes,) = draw_images(np.array([[[0.5, -2.0]]], dtype=np.float32), None, colour_map="RdBu_r").axes
    (image,) = axes.images
    assert image.get_clim() == (-2.0, 2.0)
    assert image.get_cmap().name == "RdBu_r"


def test_wrong_predictions_are_red(train_run: Train) -> None:
    run = train_run("optimizer.lr=1e-12", "debug=fast", "callbacks.pictures.num_images=36", full=True)
    assert run.result["metrics"]["test/acc"] < 0.3
    # Digits themselves are grey.
    for name, has_red in {"predictions": True, "samples": False}.items():
        shown = imread(run.folder / "figures" / f"{name}.png")[..., :3]
        assert ((shown[..., 0] - shown[..., 1] > 0.3).sum() > 100) == has_red
        assert (shown.max(axis=2) - shown.min(axis=2) > 0.1).any() == has_red


@pytest.mark.parametrize(("names", "told"), [("abcdefghij", "b, is a"), (["boot", *"bcdefghij"], "b,\nis boot")])
def test_mistakes_in_words_take_two_lines(
    names: Sequence[str], told: str, train_run: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr("mnist_lit.callbacks.pictures._publish", lambda trainer, name, figure: None)
    monkeypatch.setattr("mnist_lit.callbacks.pictures.draw_images", lambda images, titles, *_: seen.extend(titles))
    train_run("debug=fast", f"data.class_names=[{','.join(names)}]", "callbacks.pictures.draw=[predictions]", full=True)
    wrong = [title for title in seen if " is " in title.replace("\n", " ")]
    assert wrong
    assert all((",\nis " in title) == ("\n" in told) for title in wrong)


def test_an_image_that_another_process_scores_is_left_out() -> None:
    pictures = Pictures(draw=[], num_images=1)
    batch = torch.zeros(2, 28, 28), torch.tensor([1, 2])
    pictures.on_test_batch_end(L.Trainer(logger=False), L.LightningModule(), torch.tensor([3]), batch, 0)
    assert [pair.tolist() for pair in pictures.predictions] == [[[3], [1]]]


def test_no_images_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^num_images must be at least 1, got 0$"):
        Pictures(draw=["samples"], num_images=0)


def test_an_unknown_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^draw must name some of samples, .*, got heatmap$"):
        Pictures(draw=["samples", "heatmap"], num_images=1)


def test_only_the_pictures_asked_for_are_drawn(train_run: Train) -> None:
    run = train_run("callbacks.pictures.draw=[predictions,loss_curve]", "trainer.max_epochs=1", full=True)
    assert sorted(path.name for path in (run.folder / "figures").iterdir()) == ["loss_curve.png", "predictions.png"]


@pytest.mark.parametrize(("num_images", "num_processes"), [(8, 1), (8, 2), (7, 2), (8, 3)])
def test_predictions_of_several_processes_are_put_in_order(num_images: int, num_processes: int) -> None:
    labels = torch.arange(num_images)
    images: Any = range(num_images)
    seen: set[int] = set()
    shares = []
    for rank in range(num_processes):
        positions: list[int] = list(DistributedSampler(images, num_processes, rank, shuffle=False))
        own = torch.tensor([position for position in positions if position not in seen])  # no image counts twice
        seen |= {*positions}
        shares.append(torch.stack([own + 100, own]))
    assert torch.equal(in_order(shares), torch.stack([labels + 100, labels]))
