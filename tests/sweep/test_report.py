import base64
import csv
import io
import json
import math
import re
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from scipy import stats

from mnist_lit import report as entry_point
from mnist_lit.errors import UserError
from mnist_lit.result import Result
from mnist_lit.sweep.report import (
    COLOURS,
    GREY,
    Summary,
    draw_curves,
    draw_effects,
    draw_heatmap,
    draw_pictures,
    draw_times,
    holm,
    paired_p_value,
    parse_overrides,
    read_runs,
    summarise,
    welch_p_value,
    write_report,
)

Add = Callable[..., Path]
HISTORY = {
    "train/loss": [(10, 0.09), (20, 0.05), (30, 0.02)],
    "val/loss": [(16, 0.06), (32, 0.03)],
    "val/acc": [(16, 0.9), (32, 0.95)],
}


@pytest.fixture
def sweep_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "sweeps" / "demo"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def add(sweep_dir: Path) -> Add:
    """Leave a run in the sweep's folder, as `mnist_lit.train` does; without `acc` it has no metrics."""

    def add_run(
        *overrides: str, acc: float | None = None, seed: int = 0, status: str = "finished", **more: Any
    ) -> Path:
        metrics = {} if acc is None else {"val/acc": acc, "val/loss": 1 - acc, "test/acc": acc - 0.1234}
        arguments = [*overrides, f"seed={seed}", "sweep.keys=[a,b]"]
        folder = sweep_dir / more.pop("name", ",".join(arguments[:-1]).replace("/", "|"))
        folder.mkdir()
        fields: dict[str, Any] = {
            "status": status,
            "config_hash": " ".join(sorted(arguments)),
            "overrides": arguments,
            "seed": seed,
            "device": "1 x cpu (2 threads)",
            "num_parameters": 218058,
            "metrics": metrics,
            "best_epoch": 2,
            "fit_seconds": 5.0 + seed,
            "images_per_second": 30000.0,
            "history": HISTORY,
        }
        Result(**fields | more).write(folder)
        assert isinstance(folder, Path)
        return folder

    return add_run


@pytest.fixture(autouse=True)
def _one_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Result.write` asks git and the installed packages: 10 ms for each of hundreds of runs."""
    monkeypatch.setattr("mnist_lit.result.versions", lambda: {"python": "3.11.7", "torch": "2.14.1"})
    monkeypatch.setattr("mnist_lit.result.git_commit", lambda: "0123abc")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes half a second a report."""
    monkeypatch.setattr("mnist_lit.sweep.report.draw_pictures", lambda summary: {})


@pytest.fixture
def with_pictures(monkeypatch: pytest.MonkeyPatch, _no_pictures: None) -> None:
    monkeypatch.setattr("mnist_lit.sweep.report.draw_pictures", draw_pictures)


def summary_of(folder: Path, **options: Any) -> Summary:
    return summarise(read_runs([folder]), **options)


def settings_of(summary: Summary) -> list[dict[str, Any]]:
    rows = summary.settings.to_dict("records")
    return [values | {str(key): row[key] for key in row} for row, values in zip(rows, values_of(summary), strict=True)]


def values_of(summary: Summary) -> list[dict[str, Any]]:
    return [{str(key): row[key] for key in row} for row in summary.values.to_dict("records")]


def add_setting(add: Add, *overrides: str, accs: Sequence[float], first_seed: int = 0) -> None:
    for seed, acc in enumerate(accs, first_seed):
        add(*overrides, acc=acc, seed=seed)


def cells_of_markdown(text: str, heading: str) -> list[list[str]]:
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if "---" not in line]


BEST = [0.981, 0.983, 0.982, 0.985]
CLOSE = [0.980, 0.984, 0.981, 0.983]
FAR = [0.950, 0.953, 0.951, 0.955]


# --- Reading ---


def test_one_row_a_run_with_its_metrics_and_overrides(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.98, seed=3)
    runs = read_runs([sweep_dir])
    (run,) = runs.to_dict("records")
    assert run["run"] == "optimizer.lr=0.1,seed=3"
    assert run["overrides"] == {"optimizer.lr": "0.1", "seed": "3", "sweep.keys": "[a,b]"}
    assert (run["val/acc"], run["fit_seconds"], run["seed"], run["status"]) == (0.98, 8.0, 3, "finished")
    assert run["history"]["val/loss"] == [(16, 0.06), (32, 0.03)]


def test_what_json_holds_as_null_is_missing(add: Add, sweep_dir: Path) -> None:
    history = {"train/loss": [(10, 0.1), (20, math.inf), (30, math.nan)]}
    add("optimizer.lr=1", status="diverged", history=history, metrics={"val/acc": math.nan}, fit_seconds=None)
    (run,) = read_runs([sweep_dir]).to_dict("records")
    assert run["history"]["train/loss"] == [(10, 0.1)]
    assert math.isnan(run["val/acc"])
    assert math.isnan(run["fit_seconds"])


def test_overrides_are_read_as_hydra_takes_them() -> None:
    overrides = ["+a.b=1", "++c=x=y", "a.b=2", "callbacks=[default,early_stopping]"]
    assert parse_overrides(overrides) == {"a.b": "2", "c": "x=y", "callbacks": "[default,early_stopping]"}


def test_folder_of_a_run_and_folders_of_several_sweeps_are_read_alike(add: Add, sweep_dir: Path) -> None:
    one = add("optimizer.lr=0.1", acc=0.98)
    add("optimizer.lr=0.2", acc=0.97)
    other = sweep_dir.with_name("other")
    sweep_dir.rename(other)
    sweep_dir.mkdir()
    add("optimizer.lr=0.3", acc=0.96)
    assert list(read_runs([other / one.name])["run"]) == [one.name]
    names = ["demo/optimizer.lr=0.3,seed=0", "other/optimizer.lr=0.1,seed=0", "other/optimizer.lr=0.2,seed=0"]
    assert list(read_runs([sweep_dir, other])["run"]) == names
    assert len(read_runs([other, other / one.name])) == 2


def test_only_jobs_are_counted(add: Add, sweep_dir: Path) -> None:
    run = add("optimizer.lr=0.1", acc=0.98)
    for path in (sweep_dir / "figures", sweep_dir / ".submitit", run / "checkpoints", run / "figures"):
        path.mkdir()
    (sweep_dir / "sweep.json").write_text("{}")
    assert len(read_runs([sweep_dir])) == 1
    assert len(read_runs([run])) == 1


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"schema_version": 99}', '{"schema_version": 1, "status": "x"}'])
def test_unreadable_result_is_listed_with_its_reason(add: Add, sweep_dir: Path, content: str) -> None:
    add("optimizer.lr=0.1", acc=0.98)
    broken = add("optimizer.lr=0.2", acc=0.99)
    (broken / "result.json").write_text(content)
    text = write_report([sweep_dir], sweep_dir)
    assert "2 runs: 1 finished, 1 unreadable" in text
    (header, row) = cells_of_markdown((sweep_dir / "report.md").read_text(), "Runs that did not finish")
    assert header == ["run", "status", "reason"]
    assert row[:2] == [broken.name, "unreadable"]
    assert row[2].startswith("result.json: ")


def test_no_run_is_an_error_that_names_the_folder(sweep_dir: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"no run has ended in {sweep_dir}: found no run's folder")):
        write_report([sweep_dir], sweep_dir)
    (sweep_dir / "lr=0.1").mkdir()
    (sweep_dir / "lr=0.2").mkdir()
    with pytest.raises(UserError, match=re.escape(f"{sweep_dir}: found 2 folders without result.json")):
        write_report([sweep_dir], sweep_dir)
    assert not (sweep_dir / "report.md").exists()


def test_job_without_result_is_counted_as_never_ended(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.98)
    (sweep_dir / "lr=0.2").mkdir()
    (sweep_dir / "lr=0.2" / "config.yaml").touch()
    never_began = sweep_dir / "lr=0.3"
    text = write_report([sweep_dir / "optimizer.lr=0.1,seed=0", sweep_dir / "lr=0.2", never_began], sweep_dir)
    assert "1 setting, 1 run: 1 finished" in text
    assert "2 jobs without result.json never ended, or still at work" in text
    rows = cells_of_markdown((sweep_dir / "report.md").read_text(), "Runs that did not finish")[1:]
    assert [row[:2] for row in rows] == [["lr=0.2", "never ended"], ["lr=0.3", "never ended"]]


# --- Ranking ---


def test_settings_are_ranked_by_their_mean_over_seeds(add: Add, sweep_dir: Path) -> None:
    add_setting(add, "optimizer.lr=0.01", accs=FAR)
    add_setting(add, "optimizer.lr=0.1", accs=BEST)
    add_setting(add, "optimizer.lr=0.3", accs=CLOSE)
    rows = settings_of(summary_of(sweep_dir))
    assert [row["optimizer.lr"] for row in rows] == [0.1, 0.3, 0.01]
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert [row["n"] for row in rows] == [4, 4, 4]
    for row, accs in zip(rows, (BEST, CLOSE, FAR), strict=True):
        assert row["mean"] == pytest.approx(statistics.fmean(accs), rel=1e-12)
        assert row["sd"] == pytest.approx(statistics.stdev(accs), rel=1e-9)
        assert row["fit_seconds"] == 6.5


def test_loss_is_ranked_from_the_lowest(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.9, metrics={"val/acc": 0.9, "val/loss": 0.02})
    add("optimizer.lr=0.2", acc=0.8, metrics={"val/acc": 0.8, "val/loss": 0.01})
    assert [row["optimizer.lr"] for row in settings_of(summary_of(sweep_dir))] == [0.1, 0.2]
    by_loss = summary_of(sweep_dir, metric="val/loss")
    assert by_loss.mode == "min"
    assert [row["optimizer.lr"] for row in settings_of(by_loss)] == [0.2, 0.1]
    assert settings_of(summary_of(sweep_dir, metric="val/loss", mode="max"))[0]["optimizer.lr"] == 0.1
    text = write_report([sweep_dir], sweep_dir, metric="val/loss")
    assert "Selected on validation: lowest mean val/loss." in " ".join(text.split())


def test_equal_means_share_a_rank(add: Add, sweep_dir: Path) -> None:
    accs = [0.1, 0.2, 0.3]
    assert sum(accs) != sum(accs[::-1])  # in the last bit, which is not what ranks
    add_setting(add, "optimizer.lr=0.1", accs=accs)
    add_setting(add, "optimizer.lr=0.2", accs=accs[::-1])
    add_setting(add, "optimizer.lr=0.3", accs=[0.1, 0.1, 0.1])
    summary = summary_of(sweep_dir)
    assert [row["rank"] for row in settings_of(summary)] == [1, 1, 3]
    assert summary.winners == [0, 1]
    assert not [warning for warning in summary.warnings if "value tried" in warning]
    write_report([sweep_dir], sweep_dir)
    text = (sweep_dir / "report.md").read_text()
    assert "2 settings have the same mean val/acc." in text
    assert [row[0] for row in cells_of_markdown(text, "Best setting")[1:]] == ["lr=0.1", "lr=0.2"]


def test_swept_keys_are_those_that_differ(add: Add, sweep_dir: Path) -> None:
    for lr in ("0.1", "1e-1", "0.2"):
        seed = 1 if lr == "1e-1" else 0
        add(f"optimizer.lr={lr}", "data=sample", f"run_dir=runs|{lr}", acc=0.9, seed=seed)
    summary = summary_of(sweep_dir)
    assert summary.keys == ["optimizer.lr"]
    assert sorted((row["optimizer.lr"], row["n"]) for row in settings_of(summary)) == [(0.1, 2), (0.2, 1)]


def test_key_that_some_runs_leave_alone_is_default_there(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.9)
    add("optimizer.lr=0.1", "optimizer=adam", acc=0.91)
    summary = summary_of(sweep_dir)
    assert values_of(summary) == [{"optimizer": "adam"}, {"optimizer": "(default)"}]
    assert summary.numeric_keys == []


def test_values_that_are_no_numbers_work(add: Add, sweep_dir: Path) -> None:
    for optimizer in ("adam", "sgd"):
        for sizes in ("[256,64]", "[32]"):
            add_setting(add, f"optimizer={optimizer}", f"model.hidden_sizes={sizes}", accs=[0.9, 0.91])
    write_report([sweep_dir], sweep_dir)
    rows = cells_of_markdown((sweep_dir / "report.md").read_text(), "Ranking")
    assert rows[0][1:3] == ["optimizer", "model.hidden_sizes"]
    assert sorted(row[1:3] for row in rows[1:]) == [
        ["adam", "[256,64]"],
        ["adam", "[32]"],
        ["sgd", "[256,64]"],
        ["sgd", "[32]"],
    ]
    assert "value tried" not in (sweep_dir / "report.md").read_text()
    assert draw_heatmap(summary_of(sweep_dir)) is None


def test_repeated_configuration_counts_once(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", status="failed", name="a", error="OSError: full")
    add("optimizer.lr=0.1", acc=0.9, name="b")
    add("optimizer.lr=0.1", acc=0.9, name="c")
    summary = summary_of(sweep_dir)
    assert (summary.settings["n"].item(), summary.repetitions) == (1, 2)
    assert list(summary.runs["run"]) == ["b"]
    text = " ".join(write_report([sweep_dir], sweep_dir).split())
    assert "Left out: 2 runs with the configuration and seed of another." in text


def test_equal_overrides_with_different_configurations_are_told(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.9, name="a", config_hash="1")
    add("optimizer.lr=0.1", acc=0.8, name="b", config_hash="2")
    summary = summary_of(sweep_dir)
    assert summary.settings["n"].item() == 2
    assert any("equal overrides and seeds but different configurations" in warning for warning in summary.warnings)


@pytest.mark.parametrize("metric", ["test/acc", "test/loss"])
def test_ranking_by_test_images_is_refused(add: Add, sweep_dir: Path, metric: str) -> None:
    add("optimizer.lr=0.1", acc=0.9)
    with pytest.raises(UserError, match=f"metric {metric}: test images that choose"):
        write_report([sweep_dir], sweep_dir, metric=metric)


def test_unknown_metric_names_those_there_are_but_no_test_metric(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.9)
    for metric in ("val/f1", "fit_seconds"):
        with pytest.raises(UserError) as refused:
            write_report([sweep_dir], sweep_dir, metric=metric)
        assert str(refused.value) == f"metric {metric}: no finished run has it, they have val/acc, val/loss"


# --- Comparing ---


def test_paired_p_value_is_scipys() -> None:
    random = np.random.default_rng(0)
    for size in (2, 3, 10):
        a, b = random.normal(0.98, 0.01, size), random.normal(0.97, 0.02, size)
        assert paired_p_value(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)


def test_welch_p_value_is_scipys() -> None:
    random = np.random.default_rng(0)
    for sizes in ((2, 2), (3, 5), (10, 4)):
        a, b = (random.normal(0.98, sd, size) for size, sd in zip(sizes, (0.01, 0.03), strict=True))
        assert welch_p_value(a, b) == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, rel=1e-9)


@pytest.mark.parametrize("p_value", [paired_p_value, welch_p_value])
def test_without_any_spread_there_is_nothing_to_test(p_value: Callable[..., float]) -> None:
    a = np.full(3, 0.98)
    assert p_value(a, a) == 1.0
    assert math.isnan(p_value(a, a - 0.01))
    rounded = np.array([0.98, 0.98, 0.98], dtype=np.float32).astype(np.float64)
    assert p_value(a, rounded) == 1.0


def test_holm_is_the_textbooks() -> None:
    # Four p-values: 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1, which must not be below the one before.
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.5, 0.9])), [1.0, 1.0])
    assert holm(np.array([])).size == 0


def test_same_seeds_are_compared_in_pairs_and_corrected(add: Add, sweep_dir: Path) -> None:
    add_setting(add, "optimizer.lr=0.01", accs=FAR)
    add_setting(add, "optimizer.lr=0.1", accs=BEST)
    add_setting(add, "optimizer.lr=0.3", accs=CLOSE)
    best, close, far = settings_of(summary_of(sweep_dir))
    smaller, larger = (stats.ttest_rel(BEST, accs).pvalue for accs in (FAR, CLOSE))
    assert 2 * smaller < 0.05 < larger
    assert far["p_value"] == pytest.approx(2 * smaller, rel=1e-6)
    assert close["p_value"] == pytest.approx(larger, rel=1e-6)
    assert [row["test"] for row in (best, close, far)] == ["", "paired", "paired"]
    assert [row["verdict"] for row in (best, close, far)] == ["best", "same", "worse"]


def test_other_seeds_are_compared_by_welchs_test(add: Add, sweep_dir: Path) -> None:
    add_setting(add, "optimizer.lr=0.1", accs=BEST)
    add_setting(add, "optimizer.lr=0.3", accs=CLOSE, first_seed=10)
    add_setting(add, "optimizer.lr=0.01", accs=FAR[:3])
    best, close, far = settings_of(summary_of(sweep_dir))
    smaller, larger = (stats.ttest_ind(BEST, accs, equal_var=False).pvalue for accs in (FAR[:3], CLOSE))
    assert far["p_value"] == pytest.approx(2 * smaller, rel=1e-6)
    assert close["p_value"] == pytest.approx(larger, rel=1e-6)
    assert [row["test"] for row in (close, far)] == ["Welch", "Welch"]
    assert [row["verdict"] for row in (best, close, far)] == ["best", "same", "worse"]


def test_seeds_pair_whatever_the_order_the_runs_are_found_in(add: Add, sweep_dir: Path) -> None:
    for seed, (a, b) in enumerate(zip(BEST, CLOSE, strict=True)):
        add("optimizer.lr=0.1", acc=a, seed=seed, name=f"a{seed}")
        add("optimizer.lr=0.3", acc=b, seed=seed, name=f"b{9 - seed}")
    _, close = settings_of(summary_of(sweep_dir))
    assert close["p_value"] == pytest.approx(stats.ttest_rel(BEST, CLOSE).pvalue, rel=1e-6)


def test_report_marks_what_cannot_be_told_from_the_best_and_names_the_test(add: Add, sweep_dir: Path) -> None:
    add_setting(add, "optimizer.lr=0.1", accs=BEST)
    add_setting(add, "optimizer.lr=0.3", accs=CLOSE)
    add_setting(add, "optimizer.lr=0.01", accs=FAR)
    text = " ".join(write_report([sweep_dir], sweep_dir).split())
    p_value = stats.ttest_rel(BEST, CLOSE).pvalue
    for shown in (text, (sweep_dir / "report.md").read_text(), (sweep_dir / "report.html").read_text()):
        assert f"indistinguishable, p = {p_value:.3f}" in shown
        assert "paired t-test over the seeds" in shown
        assert "Holm's method over 2 comparisons" in shown.replace("&#x27;", "'")
        assert "With n = 4, small differences stay hidden" in shown
        assert "Welch" not in shown
    page = (sweep_dir / "report.html").read_text()
    assert re.findall(r'<tr class="(\w+)">', page) == ["best", "same", "worse"]


def test_a_truly_best_setting_is_seldom_called_worse() -> None:
    """The claim in `_compare_with_first`, for six equally good settings and five seeds that have effects."""
    random = np.random.default_rng(0)
    called_worse, num_sweeps = 0, 2000
    for _ in range(num_sweeps):
        scores = 0.98 + 0.001 * (random.normal(size=(6, 5)) + random.normal(size=5))
        best = scores.mean(axis=1).argmax()
        others = [other for other in range(6) if other != best]
        corrected = holm(np.array([paired_p_value(scores[best], scores[other]) for other in others]))
        called_worse += best != 0 and corrected[others.index(0)] < 0.05
    assert called_worse / num_sweeps < 0.03


@pytest.mark.parametrize("num_settings", [2, 5])
def test_one_seed_marks_nothing_and_says_why(add: Add, sweep_dir: Path, num_settings: int) -> None:
    for index in range(num_settings):
        add(f"optimizer.lr=0.{index + 1}", acc=0.9 + index / 100)
    text = " ".join(write_report([sweep_dir], sweep_dir).split())
    sentence = "With one seed a setting the order may be luck, so nothing is marked."
    for shown in (text, (sweep_dir / "report.md").read_text(), (sweep_dir / "report.html").read_text()):
        assert sentence in shown
        assert "indistinguishable" not in shown.lower()
        assert "p = " not in shown
    rows = cells_of_markdown((sweep_dir / "report.md").read_text(), "Ranking")
    assert [row[4] for row in rows[1:]] == ["best", *["not tested"] * (num_settings - 1)]
    assert not any("±" in cell for row in rows[1:] for cell in row)


def test_best_with_one_seed_is_told_though_others_have_more(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.99)
    add_setting(add, "optimizer.lr=0.2", accs=BEST)
    summary = summary_of(sweep_dir)
    assert list(summary.settings["verdict"]) == ["best", "not tested"]
    assert any(warning.startswith("The best setting has one seed only") for warning in summary.warnings)


# --- Runs that went wrong ---


def test_setting_with_a_diverged_run_ranks_after_all_without(add: Add, sweep_dir: Path) -> None:
    add_setting(add, "optimizer.lr=1", accs=[0.99, 0.995])
    add("optimizer.lr=1", seed=2, status="diverged", error="the loss became NaN at step 40", fit_seconds=0.1)
    add_setting(add, "optimizer.lr=0.01", accs=[0.5, 0.6, 0.7])
    safe, risky = settings_of(summary_of(sweep_dir))
    assert (safe["optimizer.lr"], safe["verdict"]) == (0.01, "best")
    assert (risky["rank"], risky["n"], risky["bad"], risky["verdict"]) == (2, 2, 1, "diverged")
    assert (risky["mean"], risky["fit_seconds"]) == (pytest.approx(0.9925), 5.5)  # of those that finished
    assert math.isnan(risky["p_value"])
    text = " ".join(write_report([sweep_dir], sweep_dir).split())
    assert "6 runs: 5 finished, 1 diverged" in text
    assert "it is missing from the mean, but counts against its setting" in text
    rows = cells_of_markdown((sweep_dir / "report.md").read_text(), "Runs that did not finish")
    assert rows[1:] == [["optimizer.lr=1,seed=2", "diverged", "the loss became NaN at step 40"]]


def test_diverged_setting_wins_only_if_there_is_nothing_else(add: Add, sweep_dir: Path) -> None:
    for lr, acc in ((0.1, 0.9), (0.2, 0.8)):
        add(f"optimizer.lr={lr}", acc=acc)
        add(f"optimizer.lr={lr}", seed=1, status="diverged", error="NaN")
    summary = summary_of(sweep_dir)
    assert [row["optimizer.lr"] for row in settings_of(summary)] == [0.1, 0.2]
    assert "Every setting has a diverged run, the best one too: do not rely on it." in summary.warnings


def test_finished_run_without_a_finite_metric_is_a_bad_one(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", metrics={"val/acc": 0.9, "val/loss": math.inf})
    add("optimizer.lr=0.2", metrics={"val/acc": 0.8, "val/loss": 0.1})
    first, last = settings_of(summary_of(sweep_dir, metric="val/loss"))
    assert (first["optimizer.lr"], first["bad"], last["bad"], last["n"]) == (0.2, 0, 1, 0)
    assert math.isnan(last["rank"])


def test_failed_runs_are_listed_and_do_not_count_against_their_setting(add: Add, sweep_dir: Path) -> None:
    add_setting(add, "optimizer.lr=0.1", accs=BEST)
    add("optimizer.lr=0.1", seed=9, status="failed", error="OSError: No | space <left>")
    add("optimizer.lr=0.1", seed=10, status="interrupted", metrics={"val/acc": 0.1})
    add_setting(add, "optimizer.lr=0.3", accs=FAR)
    first = settings_of(summary_of(sweep_dir))[0]
    assert (first["optimizer.lr"], first["n"], first["failed"], first["bad"]) == (0.1, 4, 2, 0)
    assert first["mean"] == pytest.approx(statistics.fmean(BEST))
    assert "10 runs: 8 finished, 1 failed, 1 interrupted" in write_report([sweep_dir], sweep_dir)
    rows = (sweep_dir / "report.md").read_text().split("## Runs that did not finish")[1]
    assert "| optimizer.lr=0.1,seed=9 | failed | OSError: No \\| space <left> |" in rows
    assert "| optimizer.lr=0.1,seed=10 | interrupted | - |" in rows
    assert "<td>OSError: No | space &lt;left&gt;</td>" in (sweep_dir / "report.html").read_text()


def test_all_failed_is_reported_without_a_ranking(add: Add, sweep_dir: Path) -> None:
    for seed in range(3):
        add("optimizer.lr=0.1", seed=seed, status="failed", error="OSError: full", history={})
    add("optimizer.lr=1", status="diverged", error="NaN", history={})
    text = write_report([sweep_dir], sweep_dir)
    assert "No run has finished, so there is nothing to rank." in text
    assert "2 settings, 4 runs: 1 diverged, 3 failed" in text
    assert "OSError: full" in text
    page = (sweep_dir / "report.md").read_text()
    assert "## Ranking" not in page
    assert page.count("OSError: full") == 3
    assert draw_pictures(summary_of(sweep_dir)) == {}
    assert len(pd.read_csv(sweep_dir / "results.csv")) == 4


# --- Keys ---


@pytest.mark.parametrize(
    ("accs", "expected"),
    [
        ({"0.01": 0.9, "0.1": 0.8, "1": 0.7}, "optimizer.lr=0.01 is the smallest value tried: try smaller ones too."),
        ({"0.01": 0.7, "0.1": 0.8, "1": 0.9}, "optimizer.lr=1 is the largest value tried: try larger ones too."),
        ({"0.01": 0.7, "0.1": 0.9, "1": 0.8}, None),
        ({"0": 0.9, "0.1": 0.8, "1": 0.7}, None),  # 0 is where a key ends
        ({"0.1": 0.9, "auto": 0.8}, None),
    ],
)
def test_edge_of_a_swept_key(add: Add, sweep_dir: Path, accs: dict[str, float], expected: str | None) -> None:
    for lr, acc in accs.items():
        add(f"optimizer.lr={lr}", acc=acc)
    found = [warning for warning in summary_of(sweep_dir).warnings if "value tried" in warning]
    assert found == ([f"The best {expected}"] if expected else [])
    text = " ".join(write_report([sweep_dir], sweep_dir).split())
    for shown in (text, (sweep_dir / "report.md").read_text(), (sweep_dir / "report.html").read_text()):
        assert (expected or "value tried") in shown or not expected
        assert ("value tried" in shown) == bool(expected)


def test_value_that_diverged_was_tried_one_that_failed_was_not(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.8)
    add("optimizer.lr=0.3", acc=0.9)
    add("optimizer.lr=1", status="failed", error="OSError: full")
    assert any("0.3 is the largest" in warning for warning in summary_of(sweep_dir).warnings)
    add("optimizer.lr=3", status="diverged", error="NaN")
    assert not any("is the largest" in warning for warning in summary_of(sweep_dir).warnings)


def test_effect_of_a_key_averages_over_the_rest(add: Add, sweep_dir: Path) -> None:
    accs = {("0.1", "32"): 0.90, ("0.1", "128"): 0.94, ("0.3", "32"): 0.80, ("0.3", "128"): 0.82}
    for (lr, size), acc in accs.items():
        add_setting(add, f"optimizer.lr={lr}", f"data.batch_size={size}", accs=[acc - 0.01, acc + 0.01])
    effects = summary_of(sweep_dir).effects
    means = {(row["key"], row["value"]): row["mean"] for row in effects.to_dict("records")}
    assert means == pytest.approx(
        {
            ("optimizer.lr", 0.1): 0.92,
            ("optimizer.lr", 0.3): 0.81,
            ("data.batch_size", 32.0): 0.85,
            ("data.batch_size", 128.0): 0.88,
        }
    )
    assert set(effects["settings"]) == {2}
    write_report([sweep_dir], sweep_dir)
    rows = cells_of_markdown((sweep_dir / "report.md").read_text(), "Effect of each key")
    assert rows[0] == ["key", "range of means", "best value", "worst value"]
    assert rows[1] == ["optimizer.lr", "0.1100", "0.1 (0.9200)", "0.3 (0.8100)"]
    assert rows[2] == ["data.batch_size", "0.0300", "128 (0.8800)", "32 (0.8500)"]
    assert ["data.batch_size", "32", "0.8500", "2", "0"] in rows


def test_setting_weighs_the_same_with_few_seeds_in_the_effects(add: Add, sweep_dir: Path) -> None:
    add_setting(add, "optimizer.lr=0.1", "data.batch_size=32", accs=[0.9] * 5)
    add_setting(add, "optimizer.lr=0.1", "data.batch_size=64", accs=[0.8])
    means = summary_of(sweep_dir).effects.set_index("value")["mean"]
    assert means.to_dict() == pytest.approx({32.0: 0.9, 64.0: 0.8})
    assert not any("effects of keys may mix" in warning for warning in summary_of(sweep_dir).warnings)
    add("optimizer.lr=0.2", "data.batch_size=64", acc=0.6)
    summary = summary_of(sweep_dir)
    effects = {(row["key"], row["value"]): row["mean"] for row in summary.effects.to_dict("records")}
    assert effects["optimizer.lr", 0.1] == pytest.approx(0.85)
    assert any("effects of keys may mix" in warning for warning in summary.warnings)


def test_different_commits_versions_and_devices_are_told(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.9)
    other = add("optimizer.lr=0.2", acc=0.8, device="1 x cuda")
    assert [warning for warning in summary_of(sweep_dir).warnings if "differ in" in warning] == [
        "The runs differ in device (result.json says how): so may their numbers."
    ]
    record = json.loads((other / "result.json").read_text())
    record |= {"git_commit": "4567def", "versions": {"torch": "1.0"}}
    (other / "result.json").write_text(json.dumps(record))
    assert len([warning for warning in summary_of(sweep_dir).warnings if "differ in" in warning]) == 3
    write_report([sweep_dir], sweep_dir)
    assert "0123abc; 4567def" in (sweep_dir / "report.md").read_text()


# --- Shapes of sweeps ---


def test_single_run(add: Add, sweep_dir: Path) -> None:
    folder = add("optimizer.lr=0.1", acc=0.98)
    text = write_report([folder], folder)
    assert text.startswith(f"Report on {folder.name}: 1 setting, 1 run: 1 finished; 5 s of fitting.")
    assert "With one seed nothing is known of how far chance moves the result." in text
    assert re.search(r"^1 +0\.9800 +1 +5\.0$", text, re.MULTILINE)
    assert re.search(r"^test/acc +0\.8566 \(n = 1\)$", text, re.MULTILINE)
    summary = summary_of(folder)
    assert draw_curves(summary) is not None
    assert draw_times(summary) is not None
    assert (draw_effects(summary), draw_heatmap(summary)) == (None, None)


def test_many_seeds_of_one_setting(add: Add, sweep_dir: Path) -> None:
    add_setting(add, "optimizer.lr=0.1", accs=FAR[:3])
    text = write_report([sweep_dir], sweep_dir)
    assert re.search(r"^1 +0\.9513 ± 0\.0015 +3 +6\.0$", text, re.MULTILINE)
    assert "There is one setting, so nothing was selected." in text
    summary = summary_of(sweep_dir)
    assert (summary.keys, summary.warnings, summary.settings["n"].item()) == ([], (), 3)


def test_runs_without_any_override(add: Add, sweep_dir: Path) -> None:
    add(acc=0.9, overrides=[])
    summary = summary_of(sweep_dir)
    assert (summary.keys, summary.settings["mean"].item()) == ([], 0.9)


@pytest.mark.usefixtures("with_pictures")
def test_five_hundred_runs_are_all_read_ranked_and_drawn(add: Add, sweep_dir: Path) -> None:
    for index in range(100):
        lr, size = 2.0 ** -(index % 10), 2 ** (index // 10)
        for seed in range(5):
            acc = 0.9 - index % 10 / 100 + index // 10 / 1000 + (seed * index * 7 % 11) / 1e5
            add(f"optimizer.lr={lr}", f"data.batch_size={size}", acc=acc, seed=seed)
    start = time.perf_counter()
    text = write_report([sweep_dir], sweep_dir)
    print(f"500 runs: {time.perf_counter() - start:.1f} s")  # told, not held: the machine may be busy
    assert "100 settings, 500 runs: 500 finished" in text
    assert len(text.splitlines()) < 40
    assert "... and 90 more" in text
    page = (sweep_dir / "report.md").read_text()
    assert len(cells_of_markdown(page, "Ranking")) == 51
    assert "50 more in results.csv." in page
    assert len(pd.read_csv(sweep_dir / "results.csv")) == 500
    assert {path.stem for path in (sweep_dir / "figures").iterdir()} == {
        "loss_curves",
        "effects",
        "heatmap",
        "accuracy_time",
    }


def test_random_search_has_no_heatmap_and_no_endless_tables(add: Add, sweep_dir: Path) -> None:
    random = np.random.default_rng(0)
    for lr, momentum in random.uniform(0.01, 1, (60, 2)):
        add(f"optimizer.lr={lr}", f"optimizer.momentum={momentum}", acc=1 - lr / 10)
    write_report([sweep_dir], sweep_dir)
    page = (sweep_dir / "report.md").read_text()
    assert len(cells_of_markdown(page, "Effect of each key")) == 3
    assert draw_heatmap(summary_of(sweep_dir)) is None
    assert draw_effects(summary_of(sweep_dir)) is not None


# --- Files ---


@pytest.fixture
def grid(add: Add, sweep_dir: Path) -> Path:
    """Two keys, two seeds, one diverged run; no two accuracies are alike."""
    for index, (lr, size) in enumerate([("0.01", "32"), ("0.01", "128"), ("0.1", "32"), ("0.1", "128")]):
        overrides = ("data=sample", f"optimizer.lr={lr}", f"data.batch_size={size}")
        add(*overrides, acc=0.9111 + 0.0123 * index, seed=0)
        if index == 0:
            add(*overrides, seed=1, status="diverged", error="NaN", history={"train/loss": [(10, 1e30)]})
        else:
            add(*overrides, acc=0.9122 + 0.0123 * index, seed=1)
    return sweep_dir


def test_csv_has_one_row_a_run_in_the_order_of_the_ranking(grid: Path) -> None:
    (grid / "unfinished").mkdir()
    write_report([grid], grid)
    rows = list(csv.DictReader(io.StringIO((grid / "results.csv").read_text())))
    columns = "rank optimizer.lr data.batch_size seed status val/acc val/loss test/acc best_epoch fit_seconds"
    assert " ".join(rows[0]).startswith(columns)
    settings = [(row["rank"], row["optimizer.lr"], row["data.batch_size"], row["seed"]) for row in rows]
    assert settings == [
        ("1", "0.1", "128", "0"),
        ("1", "0.1", "128", "1"),
        ("2", "0.1", "32", "0"),
        ("2", "0.1", "32", "1"),
        ("3", "0.01", "128", "0"),
        ("3", "0.01", "128", "1"),
        ("4", "0.01", "32", "0"),
        ("4", "0.01", "32", "1"),
        ("", "", "", ""),
    ]
    assert [float(row["val/acc"]) for row in rows[:2]] == [0.9111 + 0.0123 * 3, 0.9122 + 0.0123 * 3]
    assert float(rows[2]["test/acc"]) == 0.9111 + 0.0123 * 2 - 0.1234  # all metrics, for whoever wants them
    assert (rows[7]["status"], rows[7]["val/acc"], rows[7]["error"]) == ("diverged", "", "NaN")
    assert (rows[8]["status"], rows[8]["run"]) == ("never ended", "unfinished")
    assert (rows[0]["num_parameters"], rows[0]["best_epoch"], rows[0]["git_commit"]) == ("218058", "2", "0123abc")


def test_markdown_and_html_hold_the_same_table(grid: Path) -> None:
    write_report([grid], grid)
    rows = cells_of_markdown((grid / "report.md").read_text(), "Ranking")
    assert rows[0][:5] == ["rank", "optimizer.lr", "data.batch_size", "val/acc (mean ± sd)", "n"]
    assert rows[1][:6] == ["1", "0.1", "128", "0.9486 ± 0.0008", "2", "best"]
    assert rows[4][:7] == ["4", "0.01", "32", "0.9111", "1", "has a diverged run", "1"]
    page = (grid / "report.html").read_text()
    table = page.split("<h2>Ranking</h2>")[1].split("</table>")[0]
    assert [re.findall(r"<t[hd]>(.*?)</t[hd]>", line) for line in table.split("<tr ")[1:]] == rows


def test_test_scores_are_shown_for_the_best_setting_only(grid: Path) -> None:
    text = write_report([grid], grid)
    shown = [text, (grid / "report.md").read_text(), re.sub(r"base64,[^\"]*", "", (grid / "report.html").read_text())]
    runs = read_runs([grid])
    best = [0.9111 + 0.0123 * 3 - 0.1234, 0.9122 + 0.0123 * 3 - 0.1234]
    for page in shown:
        assert f"{statistics.fmean(best):.4f} ± {statistics.stdev(best):.4f}" in page
    others = [acc for acc in runs["test/acc"].dropna() if min(abs(acc - mine) for mine in best) > 1e-9]
    means = [statistics.fmean(pair) for pair in zip(others[1::2], others[2::2], strict=True)]
    assert len(others) == 5
    for page in shown:
        assert not [number for number in (*others, *means) if f"{number:.4f}" in page]
        assert "Selected on validation: highest mean val/acc." in " ".join(page.split())


def test_command_trains_the_best_setting_again(add: Add, sweep_dir: Path) -> None:
    add("+x='a b'", "optimizer.lr=0.1", acc=0.9)
    add("+x='a b'", "optimizer.lr=0.2", acc=0.8)
    write_report([sweep_dir], sweep_dir)
    line = re.search("Train it again: `(.*)`", (sweep_dir / "report.md").read_text())
    assert line is not None
    assert line[1] == "python -m mnist_lit.train '+x='\"'\"'a b'\"'\"'' optimizer.lr=0.1"


def test_runs_without_test_scores_say_so(add: Add, sweep_dir: Path) -> None:
    for lr, acc in ((0.1, 0.9), (0.2, 0.8)):
        add(f"optimizer.lr={lr}", metrics={"val/acc": acc})
    text = " ".join(write_report([sweep_dir], sweep_dir).split())
    assert "Selected on validation: highest mean val/acc. The runs hold no score on the test images." in text


def test_report_names_no_path_of_this_machine(grid: Path, tmp_path: Path) -> None:
    write_report([grid], grid)
    for name in ("results.csv", "report.md", "report.html"):
        assert str(tmp_path) not in (grid / name).read_text()


@pytest.mark.usefixtures("with_pictures")
def test_html_needs_nothing_but_itself_and_pictures_show_something(grid: Path) -> None:
    write_report([grid], grid)
    page = (grid / "report.html").read_text()
    assert not re.search(r"https?:|//|@import|<script|<link|url\(", re.sub(r"base64,[^\"]*", "", page))
    sources = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page)
    assert len(sources) == 4
    inlined = {base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True) for source in sources}
    assert inlined == {path.read_bytes() for path in (grid / "figures").iterdir()}
    pictures = sorted((grid / "figures").iterdir())
    assert [path.stem for path in pictures] == ["accuracy_time", "effects", "heatmap", "loss_curves"]
    for path in pictures:
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        pixels = imread(io.BytesIO(data))
        assert pixels.shape[:2] == (height, width)
        assert min(width, height) >= 200
        assert len(np.unique(pixels[..., 0])) > 10


def test_heatmap_shows_the_means_and_what_diverged(grid: Path) -> None:
    figure = draw_heatmap(summary_of(grid))
    assert figure is not None
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer.lr", "data.batch_size")
    # Rows: batch size 32, 128; columns: learning rate 0.01, 0.1.
    assert [text.get_text() for text in axes.texts] == ["0.9111\ndiverged", "0.9363", "0.9240", "0.9486"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.01", "0.1"]


def test_curves_are_over_images_where_the_batch_size_is_swept(grid: Path, add: Add) -> None:
    figure = draw_curves(summary_of(grid))
    assert figure is not None
    train, val = figure.axes
    assert (train.get_title(), val.get_title(), train.get_xlabel()) == ("train/loss", "val/loss", "images seen")
    (lines,) = train.collections
    corners = [np.asarray(path.vertices, dtype=float) for path in lines.get_paths()]
    ends = {round(line[-1, 0]) for line in corners if len(line) > 1}
    assert ends == {30 * 32, 30 * 128}
    assert train.get_ylim()[1] < 1  # the diverged run's 1e30 is outside


def test_legend_is_limited_to_the_first_ranks(add: Add, sweep_dir: Path) -> None:
    for index in range(12):
        add(f"optimizer.lr={(index + 1) / 100}", acc=0.9 - index / 100)
    figure = draw_curves(summary_of(sweep_dir))
    assert figure is not None
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [*[f"{index + 1}. lr={(index + 1) / 100:g}" for index in range(8)], "4 more"]
    assert [line.get_color() for line in legend.get_lines()] == [*COLOURS, GREY]


def test_second_report_replaces_the_first(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for names in (["heatmap", "effects"], ["effects"]):
        pictures = dict.fromkeys(names, b"picture")
        monkeypatch.setattr("mnist_lit.sweep.report.draw_pictures", lambda summary, pictures=pictures: pictures)
        write_report([grid], grid)
        assert sorted(path.stem for path in (grid / "figures").iterdir()) == sorted(names)
        assert re.findall(r"figures/(\w+)\.png", (grid / "report.md").read_text()) == sorted(names)
    assert not list(grid.glob(".*"))  # nothing half-written


# --- Entry point ---


def run_entry_point(*arguments: object) -> int:
    try:
        entry_point.main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_entry_point_writes_and_prints(
    grid: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(grid.parent)
    assert run_entry_point("demo") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Report on demo: 4 settings, 8 runs: 7 finished, 1 diverged")
    assert lines[-1].split() == ["report", "demo/report.html"]
    assert all((grid / name).exists() for name in ("results.csv", "report.md", "report.html"))


def test_glob_reports_into_the_folder_above_or_where_it_is_told(
    grid: Path, add: Add, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid.rename(grid.with_name("first"))
    grid.mkdir()
    add("optimizer.lr=0.3", "data.batch_size=32", acc=0.99)
    monkeypatch.chdir(grid.parents[1])
    assert run_entry_point("sweeps/*") == 0
    assert (grid.parent / "report.html").exists()
    assert "5 settings, 9 runs" in capsys.readouterr().out
    assert run_entry_point(grid, grid.with_name("first"), "--output", "elsewhere", "--metric", "val/loss") == 0
    assert Path("elsewhere/report.html").exists()
    assert "val/loss (mean ± sd)" in Path("elsewhere/report.md").read_text()
    assert not (grid / "report.html").exists()


def test_folder_whose_name_looks_like_a_glob_is_taken_as_it_is(add: Add, sweep_dir: Path) -> None:
    folder = add("model.hidden_sizes=[256,64]", acc=0.9)
    assert "[" in folder.name
    assert entry_point.find_folders([str(folder)]) == [folder]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder; name a sweep's, outputs/sweeps/NAME"),
        (["nowhere*"], "nowhere*: no such folder; name a sweep's, outputs/sweeps/NAME"),
        (["file"], "file: no such folder; name a sweep's, outputs/sweeps/NAME"),
        (["empty"], "no run has ended in empty: found no run's folder; name a sweep's folder, outputs/sweeps/NAME"),
        (["demo", "--metric", "val/f1"], "metric val/f1: no finished run has it, they have val/acc, val/loss"),
        (["demo", "--output", "file"], "File exists: file/figures"),
    ],
)
def test_errors_of_the_users_are_one_line_and_code_2(
    grid: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(grid.parent)
    Path("empty").mkdir()
    Path("file").touch()
    assert run_entry_point(*arguments) == 2
    printed = capsys.readouterr()
    if message.startswith("File exists"):
        message = printed.err.removeprefix("error: ").strip()  # the system's words
        assert "file" in message
    assert printed.err == f"error: {message}\n"
    assert printed.out == ""


def test_help_is_quick_and_readable(tmp_path: Path) -> None:
    script = (
        "import sys, mnist_lit.report as report\n"
        "try:\n    report.main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "print('loaded', *{'numpy', 'pandas', 'matplotlib', 'scipy', 'torch', 'hydra'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "loaded"
    assert "python -m mnist_lit.report outputs/sweeps/NAME" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110


def test_reporting_needs_neither_torch_nor_hydra(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.9)
    script = (
        "import sys, mnist_lit.report as report\n"
        "report.main(sys.argv[1:])\n"
        "print('loaded', *{'torch', 'lightning', 'hydra', 'matplotlib.pyplot'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", script, str(sweep_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "loaded"
    assert done.stderr == ""
