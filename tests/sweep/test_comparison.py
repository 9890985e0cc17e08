import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_runs import BEST, CLOSE, FAR, Add, add_setting, settings_of, summary_of
from scipy import stats

from mnist_lit.sweep.comparison import ALPHA, holm, least_effect, paired_p_value, welch_p_value
from mnist_lit.sweep.report import write_report


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
        assert "With n = 4, what is smaller than about 2.1 times the spread of the differences stays hidden" in shown
        assert "Welch" not in shown
    page = (sweep_dir / "report.html").read_text()
    assert re.findall(r'<tr class="(\w+)">', page) == ["best", "same", "worse"]


def test_least_effect_is_where_a_difference_becomes_significant() -> None:
    differences = np.array([-1.0, 0.0, 1.0])  # of mean 0 and standard deviation 1
    for share, is_seen in ((0.99, False), (1.01, True)):
        shifted = differences + share * least_effect(3, num_comparisons=4)
        assert (4 * paired_p_value(shifted, np.zeros(3)) < ALPHA) == is_seen


def test_a_truly_best_setting_is_seldom_called_worse() -> None:
    """The claim in `compare_with_first`, for six equally good settings and five seeds that have effects."""
    random = np.random.default_rng(0)
    called_worse, num_sweeps = 0, 2000
    for _ in range(num_sweeps):
        scores = 0.98 + 0.001 * (random.normal(size=(6, 5)) + random.normal(size=5))
        best = scores.mean(axis=1).argmax()
        others = [other for other in range(6) if other != best]
        corrected = holm(np.array([paired_p_value(scores[best], scores[other]) for other in others]))
        called_worse += best != 0 and corrected[others.index(0)] < 0.05
    assert called_worse / num_sweeps < 0.03
