import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from made_runs import (
    BEST,
    CLOSE,
    FAR,
    Add,
    add_setting,
    cells_of_markdown,
    settings_of,
    summary_of,
    values_of,
    warnings_of,
)

from mnist_lit.errors import UserError
from mnist_lit.reports.charts import draw_heatmap
from mnist_lit.reports.report import write_report


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


def test_a_run_beside_other_work_does_not_count_for_the_time_of_its_setting(add: Add, sweep_dir: Path) -> None:
    for seed, seconds in enumerate((5.0, 90.0, 6.0)):
        add("optimizer.lr=0.1", acc=0.9, seed=seed, fit_seconds=seconds)
    assert [row["fit_seconds"] for row in settings_of(summary_of(sweep_dir))] == [6.0]


def test_loss_is_ranked_from_the_lowest(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.9, metrics={"val/acc": 0.9, "val/loss": 0.02})
    add("optimizer.lr=0.2", acc=0.8, metrics={"val/acc": 0.8, "val/loss": 0.01})
    assert [row["optimizer.lr"] for row in settings_of(summary_of(sweep_dir))] == [0.1, 0.2]
    by_loss = summary_of(sweep_dir, metric="val/loss")
    assert by_loss.mode == "min"
    assert [row["optimizer.lr"] for row in settings_of(by_loss)] == [0.2, 0.1]
    text = write_report([sweep_dir], sweep_dir, metric="val/loss")
    assert "Selected on validation: lowest mean val/loss." in " ".join(text.split())
    rows = cells_of_markdown((sweep_dir / "report.md").read_text(), "Effect of each key")
    assert rows[1] == ["optimizer.lr", "0.0100", "0.2 (0.0100)", "0.1 (0.0200)"]


def test_error_is_ranked_from_the_lowest(add: Add, sweep_dir: Path) -> None:
    for lr, error in ((0.1, 0.02), (0.2, 0.01)):
        add(f"optimizer.lr={lr}", metrics={"val/error": error})
    assert [row["optimizer.lr"] for row in settings_of(summary_of(sweep_dir, metric="val/error"))] == [0.2, 0.1]


def test_equal_means_share_a_rank(add: Add, sweep_dir: Path) -> None:
    accs = [0.1, 0.2, 0.3]
    # In the last bit, which is not what ranks. Python 3.12's `sum` gives that back.
    assert accs[0] + accs[1] + accs[2] != accs[2] + accs[1] + accs[0]
    add_setting(add, "optimizer.lr=0.1", accs=accs)
    add_setting(add, "optimizer.lr=0.2", accs=accs[::-1])
    add_setting(add, "optimizer.lr=0.3", accs=[0.1, 0.1, 0.1])
    summary = summary_of(sweep_dir)
    assert [row["rank"] for row in settings_of(summary)] == [1, 1, 3]
    assert summary.winners == [0, 1]
    assert not [warning for warning in warnings_of(sweep_dir) if "value tried" in warning]
    write_report([sweep_dir], sweep_dir)
    text = (sweep_dir / "report.md").read_text()
    assert "2 settings have the same mean val/acc." in text
    assert [row[0] for row in cells_of_markdown(text, "Best setting")[1:]] == ["lr=0.1", "lr=0.2"]


def test_means_that_differ_by_float32s_rounding_share_a_rank(add: Add, sweep_dir: Path) -> None:
    for lr, right in ((0.1, (6900, 6500)), (0.3, (6800, 6600)), (1, (6800, 6599))):
        add_setting(add, f"optimizer.lr={lr}", accs=[float(np.float32(number / 10_000)) for number in right])
    summary = summary_of(sweep_dir)
    assert summary.settings["mean"][0] != summary.settings["mean"][1]
    assert [(row["optimizer.lr"], row["rank"]) for row in settings_of(summary)] == [(0.1, 1), (0.3, 1), (1, 3)]
    text = " ".join(write_report([sweep_dir], sweep_dir).split())
    assert "best lr=0.1" in text
    assert "best lr=0.3" in text
    assert "the score on the test images, shown for those of rank 1 only, is fair" in text


def test_swept_keys_are_those_that_differ(add: Add, sweep_dir: Path) -> None:
    for lr in ("0.1", "1e-1", "0.2"):
        seed = 1 if lr == "1e-1" else 0
        add(f"optimizer.lr={lr}", "data=sample", f"run_dir=runs|{lr}", f"data.root=at|{lr}", acc=0.9, seed=seed)
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


def test_a_run_whose_values_are_written_in_two_ways_counts_once(add: Add, sweep_dir: Path) -> None:
    ways = (("optimizer.lr=1", "model.activation=ReLU"), ("optimizer.lr=1.0", "model.activation='ReLU'"))
    for overrides in ways:
        for seed, acc in enumerate((0.9, 0.8)):
            add(*overrides, acc=acc, seed=seed)
    summary = summary_of(sweep_dir)
    assert (list(summary.settings["n"]), summary.repetitions) == ([2], 2)
    add("optimizer.lr=1.0", "model.activation=ReLU", acc=0.5, seed=0)  # of other numbers: something else is different
    assert list(summary_of(sweep_dir).settings["n"]) == [3]


def test_repeated_configuration_counts_once(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", status="failed", name="a", error="OSError: full")
    add("optimizer.lr=0.1", acc=0.9, name="b")
    add("optimizer.lr=0.1", acc=0.9, name="c")
    summary = summary_of(sweep_dir)
    assert (summary.settings["n"].item(), summary.repetitions) == (1, 2)
    assert list(summary.runs["run"]) == ["b"]
    text = " ".join(write_report([sweep_dir], sweep_dir).split())
    assert "Left out: 2 runs with the seed and the configuration, or the very numbers, of another." in text


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
    assert "Every setting has a diverged run, the best one too: do not rely on it." in warnings_of(sweep_dir)


def test_finished_run_without_a_finite_metric_is_a_bad_one(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", metrics={"val/acc": 0.9, "val/loss": math.inf})
    add("optimizer.lr=0.2", metrics={"val/acc": 0.8, "val/loss": 0.1})
    first, last = settings_of(summary_of(sweep_dir, metric="val/loss"))
    assert (first["optimizer.lr"], first["bad"], last["bad"], last["n"]) == (0.2, 0, 1, 0)
    assert math.isnan(last["rank"])


def test_finished_run_that_was_not_validated_is_no_bad_one(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.9)
    add("experiment=blog", metrics={"test/acc": 0.8})
    first, last = settings_of(summary_of(sweep_dir))
    assert (first["bad"], last["bad"], last["n"]) == (0, 0, 0)
    assert last["verdict"] == "no result"


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
    assert rows.index("failed") < rows.index("interrupted")  # by how they ended
    assert "<td>OSError: No | space &lt;left&gt;</td>" in (sweep_dir / "report.html").read_text()


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


def test_an_effects_end_that_diverged_says_so(add: Add, sweep_dir: Path) -> None:
    for lr, acc in ((0.1, 0.95), (0.3, 0.9)):
        add_setting(add, f"optimizer.lr={lr}", accs=[acc, acc + 0.001])
    add("optimizer.lr=0.1", seed=2, status="diverged", error="NaN")
    write_report([sweep_dir], sweep_dir)
    rows = cells_of_markdown((sweep_dir / "report.md").read_text(), "Effect of each key")
    assert rows[1][2:] == ["0.1 (0.9505, 1 diverged)", "0.3 (0.9005)"]


def test_setting_weighs_the_same_with_few_seeds_in_the_effects(add: Add, sweep_dir: Path) -> None:
    add_setting(add, "optimizer.lr=0.1", "data.batch_size=32", accs=[0.9] * 5)
    add_setting(add, "optimizer.lr=0.1", "data.batch_size=64", accs=[0.8])
    means = summary_of(sweep_dir).effects.set_index("value")["mean"]
    assert means.to_dict() == pytest.approx({32.0: 0.9, 64.0: 0.8})
    assert not any("effects of keys may mix" in warning for warning in warnings_of(sweep_dir))
    add("optimizer.lr=0.2", "data.batch_size=64", acc=0.6)
    summary = summary_of(sweep_dir)
    effects = {(row["key"], row["value"]): row["mean"] for row in summary.effects.to_dict("records")}
    assert effects["optimizer.lr", 0.1] == pytest.approx(0.85)
    assert any("effects of keys may mix" in warning for warning in warnings_of(sweep_dir))


def test_runs_without_any_override(add: Add, sweep_dir: Path) -> None:
    add(acc=0.9, overrides=[])
    summary = summary_of(sweep_dir)
    assert (summary.keys, summary.settings["mean"].item()) == ([], 0.9)
