"""Which settings are indistinguishable from the best: t-tests over the seeds, corrected for their number."""

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

# Student's distribution alone: with its t-tests, scipy.stats would take half a second more of every sweep's end.
from scipy.special import stdtr, stdtrit

Scores = NDArray[np.floating[Any]]

ALPHA = 0.05


def compare_with_first(settings: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Test at level ALPHA, over all comparisons, whether the settings' means differ from the first's.

    Two settings with the same seeds are compared by a paired t-test over the seeds, others by Welch's; Holm's
    method corrects the p-values. Settings with a bad run or fewer than two scores are not compared. Takes and
    returns columns of `mnist_lit.sweep.ranking.Summary`: `verdict`, `test` and `p_value` for each of `settings`.

    The first was chosen by these very numbers, so this is a selection of what may be the best (Gupta, "On some
    multiple decision rules", Technometrics 7, 1965). Simulated with 2 to 30 normal settings, 3 to 10 seeds and
    any number of them equally good, it called a given best setting worse in less than 3 % of sweeps.
    """
    scores = {number: run.set_index("seed")["score"].dropna() for number, run in runs.groupby("setting")}
    rows = []
    for number, row in enumerate(settings.to_dict("records")):
        verdict, test, p_value = "not tested", "", math.nan
        if row["n"] == 0:
            verdict = "no result"
        elif row["rank"] == 1:
            verdict = "best"
        elif row["bad"] > 0:
            verdict = "diverged"
        elif min(row["n"], settings["n"].iloc[0]) >= 2:
            test, p_value = _compare(scores[0], scores[number])
        rows.append((verdict, test, p_value))
    table = pd.DataFrame(rows, columns=["verdict", "test", "p_value"])
    tested = table["p_value"].notna()
    corrected = holm(table.loc[tested, "p_value"].to_numpy(dtype=np.float64))
    table.loc[tested, "p_value"] = corrected
    table.loc[tested, "verdict"] = np.where(corrected < ALPHA, "worse", "same")
    return table


def _compare(first: "pd.Series[float]", other: "pd.Series[float]") -> tuple[str, float]:
    a, b = first.to_numpy(dtype=np.float64), other.to_numpy(dtype=np.float64)
    if first.index.is_unique and sorted(first.index) == sorted(other.index):
        return "paired", paired_p_value(a, other.reindex(first.index).to_numpy(dtype=np.float64))
    return "Welch", welch_p_value(a, b)


def paired_p_value(a: Scores, b: Scores) -> float:
    """Return the two-sided p-value of Student's t-test on the differences a - b [n >= 2].

    NaN where all differences are equal and not 0: without spread there is no test.
    """
    differences = a - b
    if _is_rounding(float(np.ptp(differences)), a, b):
        return _without_spread(a, b)
    return _p_value(differences.mean(), differences.var(ddof=1) / len(differences), len(differences) - 1)


def welch_p_value(a: Scores, b: Scores) -> float:
    """Return the two-sided p-value of Welch's t-test for equal means of a [n >= 2] and b [m >= 2].

    NaN where neither a nor b varies and their means differ. The degrees of freedom are those of Welch (Biometrika 34,
    1947).
    """
    if _is_rounding(float(max(np.ptp(a), np.ptp(b))), a, b):
        return _without_spread(a, b)
    of_a, of_b = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1))
    return _p_value(a.mean() - b.mean(), of_a + of_b, freedom)


def _p_value(difference: float, variance: float, freedom: float) -> float:
    return float(2 * stdtr(freedom, -abs(difference) / math.sqrt(variance)))


def least_effect(n: int, num_comparisons: int) -> float:
    """Return the least difference, in standard deviations of it over n >= 2 seeds, that the test detects.

    That of Student's paired t-test at Holm's first step: t at 1 - ALPHA / (2 num_comparisons), over sqrt(n).
    """
    return float(stdtrit(n - 1, 1 - ALPHA / (2 * num_comparisons)) / math.sqrt(n))


def _without_spread(a: Scores, b: Scores) -> float:
    return 1.0 if _is_rounding(abs(a.mean() - b.mean()), a, b) else math.nan


def _is_rounding(difference: float, a: Scores, b: Scores) -> bool:
    # Equal float32 metrics may differ by less than this, and accuracies over 5,000 images differ by more.
    return difference <= 1e-6 * float(max(np.abs(a).max(), np.abs(b).max()))


def holm(p_values: Scores) -> Scores:
    """Correct p-values [m] for multiple testing (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    order = np.argsort(p_values)
    corrected = np.empty_like(p_values)
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected
