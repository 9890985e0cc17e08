import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_runs import BEST, CLOSE, FAR, Add, add_setting, settings_of, summary_of, warnings_of
from scipy import stats

from mnist_lit.reports.comparison import ALPHA, for_selection, least_effect, paired_p_value, welch_p_value
from mnist_lit.reports.report import write_report


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
    assert 0 < p_value(a, np.array([0.97, 0.98, 0.982])) < 1
    rounded = np.array([0.98, 0.98, 0.98], dtype=np.float32).astype(np.float64)
    assert p_value(a, rounded) == 1.0


def test_each_step_counts_the_pairs_that_may_still_be_equal() -> None:
    # Five settings with the best: 0.004 * 10 pairs, 0.005 * 6 (not below the one before), 0.02 * 3, and 0.9 * 1.
    np.testing.assert_allclose(for_selection(np.array([0.005, 0.9, 0.02, 0.004])), [0.04, 0.9, 0.06, 0.04])
    np.testing.assert_allclose(for_selection(np.array([0.02, 0.5]), num_best=2), [0.12, 1.0])
    assert for_selection(np.array([])).size == 0


def test_same_seeds_are_compared_in_pairs_and_corrected(add: Add, sweep_dir: Path) -> None:
    add_setting(add, "optimizer.lr=0.01", accs=FAR)
    add_setting(add, "optimizer.lr=0.1", accs=BEST)
    add_setting(add, "optimizer.lr=0.3", accs=CLOSE)
    best, close, far = settings_of(summary_of(sweep_dir))
    smaller, larger = (stats.ttest_rel(BEST, accs).pvalue for accs in (FAR, CLOSE))
    assert 3 * smaller < 0.05 < larger  # of three pairs, each of which might have been tested; of the one left
    assert far["p_value"] == pytest.approx(3 * smaller, rel=1e-6)
    assert close["p_value"] == pytest.approx(larger, rel=1e-6)
    assert [row["test"] for row in (best, close, far)] == ["", "paired", "paired"]
    assert [row["num_scores"] for row in (best, close, far)] == [0, 4, 4]
    assert [row["verdict"] for row in (best, close, far)] == ["best", "same", "worse"]


def test_other_seeds_are_compared_by_welchs_test(add: Add, sweep_dir: Path) -> None:
    add_setting(add, "optimizer.lr=0.1", accs=BEST)
    add_setting(add, "optimizer.lr=0.3", accs=CLOSE, first_seed=10)
    add_setting(add, "optimizer.lr=0.01", accs=FAR[:3], first_seed=2)  # has two in common, of four
    best, close, far = settings_of(summary_of(sweep_dir))
    smaller, larger = (stats.ttest_ind(BEST, accs, equal_var=False).pvalue for accs in (FAR[:3], CLOSE))
    assert far["p_value"] == pytest.approx(3 * smaller, rel=1e-6)
    assert close["p_value"] == pytest.approx(larger, rel=1e-6)
    assert [(row["test"], row["num_scores"]) for row in (close, far)] == [("Welch", 4), ("Welch", 3)]
    assert [row["verdict"] for row in (best, close, far)] == ["best", "same", "worse"]


def test_seeds_that_are_there_twice_are_not_paired(add: Add, sweep_dir: Path) -> None:
    add_setting(add, "optimizer.lr=0.1", accs=BEST)
    add_setting(add, "optimizer.lr=0.3", accs=CLOSE)
    add("optimizer.lr=0.3", acc=0.97, config_hash="other defaults", name="again")
    _, close = settings_of(summary_of(sweep_dir))
    assert (close["test"], close["num_scores"]) == ("Welch", 4)


def test_a_missing_seed_does_not_cost_the_pairing(add: Add, sweep_dir: Path) -> None:
    luck = [0.0, 0.02, -0.02, 0.01, -0.01]
    for seed, of_seed in enumerate(luck):
        add("optimizer.lr=0.1", acc=0.95 + of_seed + 0.0001 * seed, seed=seed)
        if seed != 3:
            add("optimizer.lr=0.3", acc=0.94 + of_seed, seed=seed)
    _, other = settings_of(summary_of(sweep_dir))
    assert (other["test"], other["num_scores"], other["verdict"]) == ("paired", 4, "worse")
    common = [0, 1, 2, 4]
    expected = stats.ttest_rel([0.95 + luck[i] + 0.0001 * i for i in common], [0.94 + luck[i] for i in common]).pvalue
    assert other["p_value"] == pytest.approx(expected, rel=1e-6)
    assert "did not all run with the same seeds" in " ".join(warnings_of(sweep_dir))
    told = " ".join(write_report([sweep_dir], sweep_dir).split())
    assert "by more than the luck of the seeds explains: p < 0.05 in a two-sided paired t-test" in told
    assert "stay hidden" not in told
    add("optimizer.lr=0.3", acc=0.94 + luck[3], seed=3)
    assert "same seeds" not in " ".join(warnings_of(sweep_dir))


def test_what_is_better_on_the_common_seeds_is_not_called_worse(add: Add, sweep_dir: Path) -> None:
    add_setting(add, "optimizer.lr=0.1", accs=[0.90, 0.91, 0.92, 0.93, 0.995])
    add_setting(add, "optimizer.lr=0.2", accs=[0.9021, 0.912, 0.9219, 0.932])
    best, other = settings_of(summary_of(sweep_dir))
    assert (best["optimizer.lr"], other["verdict"], other["p_value"]) == (0.1, "same", 1.0)


def test_of_several_best_ones_the_closest_counts(add: Add, sweep_dir: Path) -> None:
    add_setting(add, "optimizer.lr=0.1", accs=[0.90, 0.92, 0.94, 0.96])
    add_setting(add, "optimizer.lr=0.2", accs=[0.96, 0.94, 0.92, 0.90])  # the same mean
    add_setting(add, "optimizer.lr=0.3", accs=[0.899, 0.919, 0.938, 0.959])  # less by as much as the first, every time
    first, second, other = settings_of(summary_of(sweep_dir))
    assert [row["rank"] for row in (first, second, other)] == [1, 1, 3]
    p_value = stats.ttest_rel([0.96, 0.94, 0.92, 0.90], [0.899, 0.919, 0.938, 0.959]).pvalue
    assert other["p_value"] == pytest.approx(min(3 * p_value, 1), rel=1e-6)
    assert other["verdict"] == "same"


def test_differences_without_spread_are_said_to_be_untestable(add: Add, sweep_dir: Path) -> None:
    for lr, acc in ((0.1, 0.95), (0.2, 0.90)):
        add_setting(add, f"optimizer.lr={lr}", accs=[acc] * 3)
    text = " ".join(write_report([sweep_dir], sweep_dir).split())
    assert "Differences that are the same for every seed cannot be tested." in text
    assert "Not told apart" not in text


def test_seeds_pair_whatever_the_order_the_runs_are_found_in(add: Add, sweep_dir: Path) -> None:
    for seed, (a, b) in enumerate(zip(BEST, CLOSE, strict=True)):
        add("optimizer.lr=0.1", acc=a, seed=seed, name=f"a{seed}")
        add("optimizer.lr=0.3", acc=b, seed=seed, name=f"b{9 - seed}")
    _, close = settings_of(summary_of(sweep_dir))
    assert close["p_value"] == pytest.approx(stats.ttest_rel(BEST, CLOSE).pvalue, rel=1e-6)  # the only pair


def test_report_marks_what_cannot_be_told_from_the_best_and_names_the_test(add: Add, sweep_dir: Path) -> None:
    add_setting(add, "optimizer.lr=0.1", accs=BEST)
    add_setting(add, "optimizer.lr=0.3", accs=CLOSE)
    add_setting(add, "optimizer.lr=0.01", accs=FAR)
    text = " ".join(write_report([sweep_dir], sweep_dir).split())
    p_value = stats.ttest_rel(BEST, CLOSE).pvalue
    for shown in (text, (sweep_dir / "report.md").read_text(), (sweep_dir / "report.html").read_text()):
        assert f"not told apart, p = {p_value:.3f}" in shown
        assert "paired t-test over the seeds" in shown
        assert "The best of the 3 that can be tested was picked by the same numbers" in shown
        assert (
            "With n = 4, an observed difference below about 2.4 times its spread over the seeds stays hidden" in shown
        )
        assert "Welch" not in shown
    page = (sweep_dir / "report.html").read_text()
    assert re.findall(r'<tr class="(\w+)">', page) == ["best", "same", "worse"]


def test_least_effect_is_where_a_difference_becomes_significant() -> None:
    differences = np.array([-1.0, 0.0, 1.0])  # of mean 0 and standard deviation 1
    for share, is_seen in ((0.99, False), (1.01, True)):
        shifted = differences + share * least_effect(3, num_settings=4)
        assert (6 * paired_p_value(shifted, np.zeros(3)) < ALPHA) == is_seen


@pytest.mark.parametrize("means", [[0.0] * 10, [0.0] * 3 + [-3.0] * 3, [0.0, 0.0, -2.0, -2.0, -4.0, -4.0]])
def test_no_equal_setting_is_called_worse_in_95_of_100_sweeps(means: list[float]) -> None:
    """The best being chosen by the same numbers, with five seeds that have effects of their own."""
    random = np.random.default_rng(0)
    num_wrong, num_sweeps = 0, 1000
    for _ in range(num_sweeps):
        scores = np.array(means)[:, None] + random.normal(size=(len(means), 5)) + random.normal(size=5)
        best = int(scores.mean(axis=1).argmax())
        others = [other for other in range(len(means)) if other != best]
        corrected = for_selection(np.array([paired_p_value(scores[best], scores[other]) for other in others]))
        num_wrong += any(p < ALPHA and means[other] >= means[best] for p, other in zip(corrected, others, strict=True))
    assert 0 < num_wrong / num_sweeps < ALPHA
