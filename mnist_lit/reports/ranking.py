"""The settings of a sweep, ranked by their mean over seeds, and what each key does."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd

from mnist_lit.errors import UserError
from mnist_lit.notation import Value, cut, parsed, shown
from mnist_lit.reports.comparison import are_equal, compare_with_best
from mnist_lit.reports.runs import METRIC, is_test, metric_tags, setting_of
from mnist_lit.sweep.identity import short_keys

Mode = Literal["max", "min"]

ABSENT = "(default)"  # what a run that does not override a key has for it


@dataclass(frozen=True)
class Summary:
    """Runs grouped into settings (what the swept keys say), ranked.

    `mode` is which end of `metric` is good.
    `settings` has one row a setting, best first; its position is the setting's number. Columns: `rank` (NaN
    without a mean), `n` (runs with the metric), `mean` and `sd` of the metric over them (sd with n - 1 below,
    NaN for n < 2), `bad` (runs that diverged, or finished with a metric that is not finite), `failed` (failed or
    interrupted), `fit_seconds` (median), and of the comparison with the best `verdict` (best, same, worse, not
    tested, diverged, no result), `test` (paired, Welch or nothing), `num_scores` (of each setting that it goes by) and
    `p_value` (corrected; NaN without test).
    `values` has the same rows and one column a swept key. `runs` is `read_runs`'s table, less `repetitions`
    rows, with `setting` (-1 for runs that left nothing to read) and `score`. `effects` has one row for each
    value of each key: the `mean` over the `settings` that have it, and their `bad` runs.
    """

    metric: str
    mode: Mode
    settings: pd.DataFrame
    values: pd.DataFrame
    runs: pd.DataFrame
    effects: pd.DataFrame
    repetitions: int

    @property
    def keys(self) -> list[str]:
        """The swept keys."""
        return list(self.values.columns)

    @property
    def numeric_keys(self) -> list[str]:
        """The swept keys whose values are all numbers."""
        return [key for key in self.keys if pd.api.types.is_numeric_dtype(self.values[key])]

    @property
    def averaged_keys(self) -> list[str]:
        """The swept keys of which a value was tried with several of the others; none in a search, which draws anew."""
        return [key for key in self.keys if not self.values.loc[self.ranked.index, key].is_unique]

    @property
    def tags(self) -> list[str]:
        """The names of all metrics of the runs: `metric` first, those of the test images last."""
        return sorted(metric_tags(self.runs), key=lambda tag: tag != self.metric)

    @property
    def ranked(self) -> pd.DataFrame:
        """The settings that have a mean."""
        return self.settings[self.settings["n"] > 0]

    @property
    def winners(self) -> list[int]:
        """The settings of rank 1: several only if their means are equal."""
        return [int(setting) for setting in np.flatnonzero(self.settings["rank"] == 1)]

    @property
    def test_tags(self) -> list[str]:
        """The names of the metrics of the test images that the best settings have."""
        best = pd.concat([self.runs_of(winner, finished=True) for winner in self.winners or [0]])
        return [tag for tag in self.tags if is_test(tag) and best[tag].notna().any()]

    @property
    def ordered_effects(self) -> list[tuple[str, pd.DataFrame]]:
        """The rows of `effects` that have a mean, key by key, the one that moves the metric most first."""
        known = self.effects.dropna(subset="mean")
        groups = [(key, known[known["key"] == key]) for key in self.keys]
        return sorted(
            [(key, group) for key, group in groups if len(group)],
            key=lambda group: -float(np.ptp(group[1]["mean"].to_numpy(dtype=float))),
        )

    def label(self, setting: int) -> str:
        """Name a setting in a line, less what it leaves as it is: `lr=0.1, batch_size=128`."""
        values = self.values.iloc[setting].to_dict()
        parts = [
            f"{short}={cut(shown(values[key]), 30)}"
            for key, short in short_keys(self.keys).items()
            if values[key] != ABSENT
        ]
        return ", ".join(parts) or ("the defaults" if self.keys else "all runs")

    def runs_of(self, setting: int, *, finished: bool = False) -> pd.DataFrame:
        """The runs of a setting, or those of them that finished."""
        chosen = self.runs["setting"] == setting
        return self.runs[chosen & (self.runs["status"] == "finished") if finished else chosen]


def summarise(runs: pd.DataFrame, *, metric: str = METRIC) -> Summary:
    """Take runs that differ in nothing but their seed as one setting, and rank settings by their mean of `metric`.

    The lower is the better for a loss or an error, else the higher. Settings with a bad run come after all without,
    those without any metric last. Of runs that repeat another's configuration and seed one counts.

    Raises UserError for a metric of the test images, and for one that no finished run has.
    """
    mode: Mode = "min" if metric.endswith(("loss", "error")) else "max"
    all_runs, runs = runs, without_repetitions(runs)
    ended = runs[runs["overrides"].notna()]
    score = _scores(ended, metric)
    values = swept_values(ended)
    number_of: dict[tuple[Value, ...], int] = {}
    numbers = [number_of.setdefault(tuple(row), len(number_of)) for row in values.to_numpy(dtype=object).tolist()]
    is_measured = pd.Series([metric in tags for tags in ended["measured"]], ended.index, dtype=bool)
    settings = _aggregate(ended.assign(setting=numbers, score=score, is_measured=is_measured))
    order, ranks = _order(settings, mode)

    # From here on a setting's number is its position in the ranking.
    settings = settings.iloc[order].reset_index(drop=True).assign(rank=ranks)
    values = values.iloc[[numbers.index(number) for number in order]].reset_index(drop=True)
    positions = pd.Series([order.index(number) for number in numbers], ended.index, dtype=int)
    runs = runs.assign(setting=positions.reindex(runs.index, fill_value=-1), score=score)
    settings = settings.join(compare_with_best(settings, runs))
    effects = _effects(settings, values)
    return Summary(metric, mode, settings, values, runs, effects, repetitions=len(all_runs) - len(runs))


def without_repetitions(runs: pd.DataFrame) -> pd.DataFrame:
    """Keep one of the runs that had the same configuration and seed: a finished one if there is one.

    They are no further evidence: the same seed gives the same numbers. Nor is a run of the same seed, values and
    numbers, even where a value was written differently, such as 1 and 1.0.
    """
    tags = metric_tags(runs)
    configurations: list[tuple[Any, ...]] = []
    numbers: list[tuple[Any, ...]] = []
    for run in runs.to_dict("records"):
        setting = sorted(setting_of(run["overrides"] or {}).items())
        scores = [run[tag] for tag in tags if not math.isnan(run[tag])]
        itself = (run["run"],)
        configurations.append(itself if run["overrides"] is None else (run["config_hash"], run["seed"], *setting))
        values = ((key, parsed(value)) for key, value in setting)
        numbers.append((run["seed"], *values, *scores) if scores and run["status"] == "finished" else itself)
    finished_first = (runs["status"] != "finished").sort_values(kind="stable").index
    repeated = [
        pd.Series(identity, runs.index, dtype=object).loc[finished_first].duplicated().sort_index()
        for identity in (configurations, numbers)
    ]
    return runs[~(repeated[0] | repeated[1])]


def _scores(ended: pd.DataFrame, metric: str) -> "pd.Series[float]":
    """Return the metric of the finished runs, NaN for others."""
    if is_test(metric):
        raise UserError(f"metric {metric}: test images that choose a setting cannot judge it any more; use val/acc")
    finished = ended["status"] == "finished"
    known = [tag for tag in metric_tags(ended) if ended.loc[finished, tag].notna().any()]
    if metric in known:
        return ended[metric].where(finished).astype(float)
    if finished.any():
        others = ", ".join(tag for tag in known if not is_test(tag)) or "none to rank by"
        raise UserError(f"metric {metric}: no finished run has it, they have {others}")
    return pd.Series(math.nan, ended.index)


def swept_values(ended: pd.DataFrame) -> pd.DataFrame:
    """Return the overrides that differ between the runs, one column a key, numbers where all are numbers."""
    overrides = [setting_of(run) for run in ended["overrides"]]
    columns: dict[str, list[Value]] = {}
    for key in dict.fromkeys(key for run in overrides for key in run):
        values = [parsed(run.get(key, ABSENT)) for run in overrides]
        if len(set(values)) > 1:
            is_numeric = all(isinstance(value, float) for value in values)
            columns[key] = values if is_numeric else [shown(value) for value in values]
    return pd.DataFrame(columns, index=ended.index)


def _aggregate(ended: pd.DataFrame) -> pd.DataFrame:
    """Return one row a setting, in the order of their numbers."""
    finished = ended["status"] == "finished"
    ended = ended.assign(
        bad=(ended["status"] == "diverged") | (finished & ended["is_measured"] & ended["score"].isna()),
        failed=ended["status"].isin(["failed", "interrupted"]),
        fit_seconds=ended["fit_seconds"].where(finished),
    )
    return ended.groupby("setting").agg(
        n=("score", "count"),
        mean=("score", "mean"),
        sd=("score", "std"),  # pandas divides by n - 1
        bad=("bad", "sum"),
        failed=("failed", "sum"),
        fit_seconds=("fit_seconds", "median"),  # one of them may have met a busy machine
    )


def _order(settings: pd.DataFrame, mode: Mode) -> tuple[list[int], list[float]]:
    """Return the settings' numbers, best first, and their ranks; equal means share one."""
    cost = ((-1 if mode == "max" else 1) * settings["mean"]).fillna(0.0)
    places = list(zip(settings["n"] == 0, settings["bad"] > 0, cost, strict=True))
    order = sorted(range(len(places)), key=lambda number: places[number])
    ranks = [1.0] if order else []
    for place, (before, number) in enumerate(pairwise(order), start=2):
        is_same = places[before][:2] == places[number][:2] and are_equal(places[before][2], places[number][2])
        ranks.append(ranks[-1] if is_same else place)
    order = [number for _, number in sorted(zip(ranks, order, strict=True))]  # of equals the first one first
    return order, [math.nan if places[number][0] else rank for number, rank in zip(order, ranks, strict=True)]


def _effects(settings: pd.DataFrame, values: pd.DataFrame) -> pd.DataFrame:
    """Average the settings' means for each value of each key, every setting weighing the same; numbers come first."""
    rows = [
        (key, value, group["mean"].mean(), group["mean"].count(), group["bad"].sum())
        for key in values.columns
        for value, group in sorted(settings.groupby(values[key]), key=lambda each: _numbers_first(each[0]))
    ]
    return pd.DataFrame(rows, columns=["key", "value", "mean", "settings", "bad"])


def _numbers_first(value: Value) -> tuple[bool, Value]:
    number = parsed(str(value))
    return isinstance(number, str), number
