"""The numbers of an evaluation, against others' ways to them."""

import math
from pathlib import Path

import pytest
import torch
from conftest import Trained

from mnist_lit.checkpoint import read_checkpoint
from mnist_lit.errors import UserError
from mnist_lit.evaluation import Evaluation, Predictions, build_scorer, check_classes, predict_split
from mnist_lit.trust import restore_data


def predictions(labels: list[int], predicted: list[int], confidences: list[float]) -> Predictions:
    right = sum(a == b for a, b in zip(labels, predicted, strict=True))
    return Predictions(
        loss=0.5,
        acc=right / len(labels),
        labels=torch.tensor(labels),
        predicted=torch.tensor(predicted),
        confidences=torch.tensor(confidences, dtype=torch.float64),
        num_classes=3,
    )


SOME = predictions([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2], [0.99, 0.51, 0.5, 0.98, 0.9, 0.4])


@pytest.fixture(scope="module")
def evaluation(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    checkpoint = read_checkpoint(trained.folder)
    datamodule = restore_data(checkpoint.config["data"])
    scorer = build_scorer(checkpoint.config["trainer"], accelerator="cpu", folder=tmp_path_factory.mktemp("scored"))
    scores = predict_split(checkpoint.classifier(), datamodule, scorer, "test")
    return Evaluation(checkpoint, datamodule, "test", scores)


@pytest.mark.parametrize(("right", "total"), [(0, 4), (1, 4), (4, 4), (9737, 10000)])
def test_interval_is_wilsons(right: int, total: int) -> None:
    scores = predictions([0] * total, [0] * right + [1] * (total - right), [0.5] * total)
    # Where the true share p is so far off that the share seen is 1.96 standard deviations away from it.
    low, high = scores.acc_interval()
    for p in (low, high):
        assert abs(right / total - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / total), abs=1e-6)
    assert 0 <= low <= right / total <= high <= 1
    assert low < high


def test_classes_are_scored_one_by_one() -> None:
    scores = SOME.classes()
    assert scores["precision"] == pytest.approx([1, 1 / 2, 1 / 2])
    assert scores["recall"] == pytest.approx([2 / 3, 1 / 2, 1])
    assert scores["f1"] == pytest.approx([4 / 5, 1 / 2, 2 / 3])
    assert scores["num_images"] == [3, 2, 1]
    assert SOME.confusion_matrix().tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]


def test_mistakes_come_with_the_most_confident_first() -> None:
    assert SOME.mistakes() == [4, 2]
    many = predictions([0] * 50, [1] * 50, [index / 50 for index in range(50)])
    assert many.mistakes() == list(range(49, 13, -1))


def test_calibration_error_is_the_bins_distance_from_the_diagonal() -> None:
    bins = SOME.bins()
    assert len(bins) == 15
    assert [(place, bins[place][2]) for place in range(15) if bins[place][2]] == [(6, 1), (7, 2), (13, 1), (14, 2)]
    assert bins[7][:2] == pytest.approx((0.505, 0.5))
    assert bins[14][:2] == pytest.approx((0.985, 1.0))
    # By hand: |0.4 - 1| + 2 |0.505 - 0.5| + |0.9 - 0| + 2 |0.985 - 1|, over 6.
    assert SOME.calibration_error() == pytest.approx((0.6 + 0.01 + 0.9 + 0.03) / 6)


def test_confidences_are_the_predictors(evaluation: Evaluation) -> None:
    scores = evaluation.predictions
    with torch.no_grad():
        probabilities = evaluation.checkpoint.predictor()(evaluation.datamodule.test.images)
    expected, predicted = probabilities.max(dim=1)
    assert torch.equal(scores.predicted, predicted)
    torch.testing.assert_close(scores.confidences.float(), expected)
    assert scores.acc == pytest.approx((predicted == scores.labels).float().mean().item())


def test_a_confidence_of_1_is_in_the_last_bin(trained: Trained, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(trained.folder)
    classifier = checkpoint.classifier()
    last = [layer for layer in classifier.model.modules() if isinstance(layer, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.eye(10)[7] * 9)
    datamodule = restore_data(checkpoint.config["data"])
    scorer = build_scorer(checkpoint.config["trainer"], accelerator="cpu", folder=tmp_path)
    scores = predict_split(classifier, datamodule, scorer, "test")
    sevens = (scores.labels == 7).double().mean().item()
    assert scores.bins()[14] == pytest.approx((1, sevens, 500))
    assert scores.calibration_error() == pytest.approx(1 - sevens)


def test_network_without_mistakes_has_no_picture_of_them(evaluation: Evaluation, tmp_path: Path) -> None:
    labels = evaluation.predictions.labels
    perfect = Predictions(0.0, 1.0, labels, labels, torch.full((500,), 0.9, dtype=torch.float64), 10)
    flawless = Evaluation(evaluation.checkpoint, evaluation.datamodule, "test", perfect)
    flawless.write(tmp_path)
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"confusion_matrix", "reliability"}
    assert "mistakes" not in flawless.table()


def test_other_numbers_of_classes_are_refused() -> None:
    check_classes("ab", of_network="cd")
    with pytest.raises(UserError, match=r"^data: has 3 classes, but the network was trained on 2 \(c, d\)"):
        check_classes("abc", of_network="cd")
