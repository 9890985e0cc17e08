import json
import re
from pathlib import Path

import pytest
from made_runs import BEST, FAR, Add, add_setting, cells_of_markdown, summary_of, warnings_of

from mnist_lit.reports.report import write_report
from mnist_lit.reports.sentences import warnings


def test_equal_overrides_with_different_configurations_are_told(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.9, name="a", config_hash="1")
    add("optimizer.lr=0.1", acc=0.8, name="b", config_hash="2")
    summary = summary_of(sweep_dir)
    assert summary.settings["n"].item() == 2
    expected = "Some runs of one setting have different configurations: were defaults changed? Their mean is of both."
    assert expected in warnings_of(sweep_dir)


@pytest.mark.parametrize("hashes", [("1", "1"), ("1", "2"), ("1", None)])
def test_other_seeds_with_different_configurations_are_told(
    add: Add, sweep_dir: Path, hashes: tuple[str | None, str | None]
) -> None:
    for seed, setting_hash in enumerate(hashes):
        add("optimizer.lr=0.1", acc=0.9, seed=seed, setting_hash=setting_hash)
    told = [warning for warning in warnings_of(sweep_dir) if "different configurations" in warning]
    assert len(told) == (hashes == ("1", "2"))


@pytest.mark.parametrize("num_settings", [2, 5])
def test_one_seed_marks_nothing_and_says_why(add: Add, sweep_dir: Path, num_settings: int) -> None:
    for index in range(num_settings):
        add(f"optimizer.lr=0.{index + 1}", acc=0.9 + index / 100)
    text = " ".join(write_report([sweep_dir], sweep_dir).split())
    sentence = "With one seed a setting the order may be luck, so nothing is marked."
    for shown in (text, (sweep_dir / "report.md").read_text(), (sweep_dir / "report.html").read_text()):
        assert sentence in shown
        assert "not told apart" not in shown.lower()
        assert "p = " not in shown
    rows = cells_of_markdown((sweep_dir / "report.md").read_text(), "Ranking")
    assert [row[4] for row in rows[1:]] == ["best", *["not tested"] * (num_settings - 1)]
    assert not any("±" in cell for row in rows[1:] for cell in row)


def test_best_with_one_seed_is_told_though_others_have_more(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.99)
    add_setting(add, "optimizer.lr=0.2", accs=BEST)
    summary = summary_of(sweep_dir)
    assert list(summary.settings["verdict"]) == ["best", "not tested"]
    assert any(warning.startswith("The best setting has one seed only") for warning in warnings_of(sweep_dir))


@pytest.mark.parametrize(
    ("accs", "expected"),
    [
        ({"0.01": 0.9, "0.1": 0.8, "1": 0.7}, "optimizer.lr=0.01 is the smallest value tried: try smaller ones too."),
        ({"0.01": 0.7, "0.1": 0.8, "1": 0.9}, "optimizer.lr=1 is the largest value tried: try larger ones too."),
        ({"0.01": 0.7, "0.1": 0.9, "1": 0.8}, None),
        ({"0": 0.9, "0.1": 0.8, "1": 0.7}, None),  # 0 is where a key ends
        ({"0.1": 0.9, "auto": 0.8}, None),
        ({"0.1": 0.9, "0.5": 0.8, "1": 0.9}, None),  # both ends are best
        ({"": 0.7, "0.5": 0.9, "10": 0.8}, None),  # of the default, which is none of the values
        ({"null": 0.7, "0.5": 0.8, "10": 0.9}, "optimizer.lr=10 is the largest value tried: try larger ones too."),
    ],
)
def test_edge_of_a_swept_key(add: Add, sweep_dir: Path, accs: dict[str, float], expected: str | None) -> None:
    for lr, acc in accs.items():
        add(*([f"optimizer.lr={lr}"] if lr else []), acc=acc)
    found = [warning for warning in warnings_of(sweep_dir) if "value tried" in warning]
    assert found == ([f"The best {expected}"] if expected else [])
    text = " ".join(write_report([sweep_dir], sweep_dir).split())
    for shown in (text, (sweep_dir / "report.md").read_text(), (sweep_dir / "report.html").read_text()):
        assert (expected or "value tried") in shown or not expected
        assert ("value tried" in shown) == bool(expected)


def test_nobody_is_asked_to_try_less_than_a_batch_of_one(add: Add, sweep_dir: Path) -> None:
    for batch_size in (1, 50):
        add(f"data.batch_size={batch_size}", acc=1 / batch_size)
    assert not any("value tried" in warning for warning in warnings_of(sweep_dir))


def test_a_single_number_is_no_edge(add: Add, sweep_dir: Path) -> None:
    for index, lr in enumerate(("0.1", "auto")):
        for batch_size in (32, 64, 16):
            add(f"optimizer.lr={lr}", f"data.batch_size={batch_size}", acc=(batch_size - index) / 100)
    assert not any("lr=" in warning for warning in warnings_of(sweep_dir))


def test_value_that_diverged_was_tried_one_that_failed_was_not(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.8)
    add("optimizer.lr=0.3", acc=0.9)
    add("optimizer.lr=1", status="failed", error="OSError: full")
    assert any("0.3 is the largest" in warning for warning in warnings_of(sweep_dir))
    add("optimizer.lr=3", status="diverged", error="NaN")
    assert not any("is the largest" in warning for warning in warnings_of(sweep_dir))


def test_different_commits_versions_and_devices_are_told(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.9)
    other = add("optimizer.lr=0.2", acc=0.8, device="1 x cuda")
    assert [warning for warning in warnings_of(sweep_dir) if "differ in" in warning] == [
        "The runs differ in device (result.json says how): so may their numbers."
    ]
    record = json.loads((other / "result.json").read_text())
    record |= {"git_commit": "4567def", "versions": {"torch": "1.0"}}
    (other / "result.json").write_text(json.dumps(record))
    assert len([warning for warning in warnings_of(sweep_dir) if "differ in" in warning]) == 3
    write_report([sweep_dir], sweep_dir)
    assert "0123abc; 4567def" in (sweep_dir / "report.md").read_text()


def test_seeds_that_diverged_are_not_missing(grid: Path) -> None:
    assert not any("same seeds" in warning for warning in warnings_of(grid))


def test_two_seeds_tell_huge_differences_only(add: Add, sweep_dir: Path) -> None:
    for lr, accs in ((0.1, [0.98, 0.99]), (0.2, [0.97, 0.985]), (0.3, [0.96, 0.98])):
        add_setting(add, f"optimizer.lr={lr}", accs=accs)
    assert "With n = 2, all but huge differences stay hidden" in " ".join(write_report([sweep_dir], sweep_dir).split())


def test_many_seeds_of_one_setting(add: Add, sweep_dir: Path) -> None:
    add_setting(add, "optimizer.lr=0.1", accs=FAR[:3])
    text = write_report([sweep_dir], sweep_dir)
    assert re.search(r"^1 +0\.9513 ± 0\.0015 +3 +6\.0$", text, re.MULTILINE)
    assert "There is one setting, so nothing was selected." in text
    summary = summary_of(sweep_dir)
    assert (summary.keys, warnings_of(sweep_dir), summary.settings["n"].item()) == ([], [], 3)


def test_the_only_setting_that_did_not_diverge(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.9)
    for lr in (10, 100):
        add(f"optimizer.lr={lr}", status="diverged", error="NaN")
    text = " ".join(write_report([sweep_dir], sweep_dir).split())
    assert "Of 3 settings only this one has a val/acc, so nothing was selected." in text


@pytest.mark.parametrize(
    ("other", "keys"),
    [
        ("data=sample", "data"),
        ("data.val_size=100", "data.val_size"),
        ("debug=fast", "debug"),
        ("experiment=blog", "experiment"),
        ("model.dropout=0", ""),
    ],
)
def test_runs_on_other_validation_images_are_told(add: Add, sweep_dir: Path, other: str, keys: str) -> None:
    add("optimizer.lr=0.1", acc=0.9)
    add("optimizer.lr=0.1", other, acc=0.8)
    told = [warning.split(",")[0] for warning in warnings_of(sweep_dir) if "validation images" in warning]
    assert told == ([f"The runs differ in {keys}"] if keys else [])


def test_runs_without_test_scores_say_so(add: Add, sweep_dir: Path) -> None:
    for lr, acc in ((0.1, 0.9), (0.2, 0.8)):
        add(f"optimizer.lr={lr}", metrics={"val/acc": acc})
    text = " ".join(write_report([sweep_dir], sweep_dir).split())
    assert (
        "Selected on validation: highest mean val/acc. The best setting's runs hold no score on the test images."
        in text
    )


def test_test_scores_of_some_runs_say_of_how_many(add: Add, sweep_dir: Path) -> None:
    for seed in range(4):
        scores = {"val/acc": 0.95 + seed / 100} | ({"test/acc": 0.94 + seed / 100} if seed < 2 else {})
        add("optimizer.lr=0.1", metrics=scores, seed=seed)
        add("optimizer.lr=0.2", metrics={"val/acc": 0.8 + seed / 90, "test/acc": 0.7}, seed=seed)
    text = write_report([sweep_dir], sweep_dir)
    assert "0.9450 ± 0.0071 (n = 2)" in text
    _, best = cells_of_markdown((sweep_dir / "report.md").read_text(), "Best setting")
    assert best == ["lr=0.1", "4", "0.9650 ± 0.0129", "0.9450 ± 0.0071 (n = 2)"]


@pytest.mark.parametrize(("key", "is_told"), [("loss", True), ("experiment", True), ("optimizer", False)])
def test_ranking_by_the_losses_of_different_losses_is_told(add: Add, sweep_dir: Path, key: str, is_told: bool) -> None:
    for option, acc in (("a", 0.9), ("b", 0.8)):
        add(f"{key}={option}", acc=acc)
    told = [text for text in warnings(summary_of(sweep_dir, "val/loss")) if "different losses" in text]
    assert len(told) == is_told
    assert not [text for text in warnings_of(sweep_dir) if "different losses" in text]


def test_what_a_search_drew_is_on_no_edge(add: Add, sweep_dir: Path) -> None:
    for acc, lr in ((0.9, "0.044303812345678"), (0.8, "0.512345678901234")):
        add(f"optimizer.lr={lr}", acc=acc)
    assert not [text for text in warnings_of(sweep_dir) if "value tried" in text]
