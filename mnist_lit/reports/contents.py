"""What a report consists of, whether it is shown as Markdown or as HTML."""

import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mnist_lit.notation import cut, fixed, mean_and_sd, num_decimals, plus_minus, shown
from mnist_lit.reports import sentences
from mnist_lit.reports.charts import CAPTIONS, MAX_VALUES
from mnist_lit.reports.ranking import Summary, swept_values, without_repetitions
from mnist_lit.reports.runs import is_test, metric_tags, parse_overrides, setting_of
from mnist_lit.sweep.identity import short_keys

MAX_ROWS = 50  # of a table


@dataclass(frozen=True)
class Heading:
    """The title of a section."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph, with `code` and **strong** as in Markdown."""

    text: str


@dataclass(frozen=True)
class Notes:
    """What the reader must not miss."""

    sentences: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Cells as text; `styles` are the classes that HTML gives the rows, if any."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    styles: Sequence[str] = ()


@dataclass(frozen=True)
class Chart:
    """A chart, by its name in CAPTIONS."""

    name: str


Block = Heading | Text | Notes | Table | Chart


def blocks(summary: Summary, charts: Collection[str]) -> list[Block]:
    """Return the whole report from top to bottom, with the charts that were drawn."""
    blocks: list[Block] = [Text(sentences.counts(summary))]
    if warnings := list(sentences.warnings(summary)):
        blocks.append(Notes(warnings))
    if summary.winners:
        blocks += [Heading("Best setting"), *_best_setting(summary)]
        blocks += [Heading("Ranking"), ranking_table(summary, MAX_ROWS), *_more(len(summary.settings))]
        blocks += [Text(text) for text in (sentences.method(summary), sentences.bad_runs(summary)) if text]
    else:
        blocks.append(Text("**No run has finished, so there is nothing to rank.**"))
    if summary.winners and summary.keys:
        blocks += [Heading("Effect of each key"), *_effect_tables(summary)]
    if charts:
        blocks += [Heading("Pictures"), *[Chart(name) for name in CAPTIONS if name in charts]]
    return [*blocks, *_appendix(summary.runs)]


def blocks_without_ranking(runs: pd.DataFrame) -> list[Block]:
    """Return the report on runs of `read_runs`'s table that were never validated."""
    scores = test_scores_table(runs)
    first = Table(scores.headers, scores.rows[:MAX_ROWS])
    told = [Text(sentences.counts_without_ranking(runs)), Text(sentences.NOT_RANKED)]
    return [*told, first, *_more(len(scores.rows)), *_appendix(runs)]


def _appendix(runs: pd.DataFrame) -> list[Block]:
    """Return what did not finish, and the conditions of all runs."""
    blocks: list[Block] = []
    unfinished = unfinished_table(runs)
    if unfinished.rows:
        first = Table(unfinished.headers, unfinished.rows[:MAX_ROWS])
        blocks += [Heading("Runs that did not finish"), first, *_more(len(unfinished.rows))]
    columns = {"device": "device", "versions": "versions", "git_commit": "commit"}
    conditions = [[name, "; ".join(runs[column].dropna().unique())] for column, name in columns.items()]
    return [*blocks, Heading("Conditions"), Table(["what", "value"], [row for row in conditions if row[1]])]


def _more(num_rows: int) -> list[Block]:
    return [Text(f"{num_rows - MAX_ROWS} more in results.csv.")] if num_rows > MAX_ROWS else []


def _best_setting(summary: Summary) -> list[Block]:
    rows = []
    for winner in summary.winners[:MAX_ROWS]:
        runs, n = summary.runs_of(winner, finished=True), summary.settings["n"].iloc[winner]
        partly = {tag: f" (n = {runs[tag].count()})" for tag in summary.tags if 0 < runs[tag].count() < n}
        scores = [mean_and_sd(runs[tag]) + partly.get(tag, "") for tag in summary.tags]
        rows.append([summary.label(winner), str(n), *scores])
    headers = ["setting", "n", *[f"{tag} (mean ± sd)" for tag in summary.tags]]
    blocks: list[Block] = [Table(headers, rows), Text(sentences.selection(summary))]
    if len(rows) > 1:
        blocks.append(Text(f"{len(summary.winners)} settings have the same mean {summary.metric}."))
    arguments = [text for text in summary.runs_of(0)["arguments"].iloc[0] if setting_of(parse_overrides([text]))]
    return [*blocks, Text(f"Train it again: `python -m mnist_lit.train {shlex.join(arguments)}`")]


def ranking_table(summary: Summary, most: int, names: Mapping[str, str] | None = None) -> Table:
    """Return the table of the first `most` settings, the keys called by `names`."""
    settings = summary.settings.head(most)
    decimals = num_decimals(settings["mean"], settings["sd"])
    rows = list(zip(settings["mean"], settings["sd"], strict=True))
    columns: dict[str, list[str]] = {"rank": [fixed(rank, 0) for rank in settings["rank"]]}
    for key in summary.keys:
        columns[names[key] if names else key] = [cut(shown(value), 40) for value in summary.values[key].head(most)]
    columns[f"{summary.metric} (mean ± sd)"] = [plus_minus(mean, sd, decimals) for mean, sd in rows]
    columns["n"] = settings["n"].astype(str).to_list()
    if len(summary.ranked) > 1:
        columns["against the best"] = [
            _verdict(verdict, p) for verdict, p in zip(settings["verdict"], settings["p_value"], strict=True)
        ]
    for name, header in {"bad": "diverged", "failed": "unfinished"}.items():
        if summary.settings[name].any():
            columns[header] = settings[name].astype(str).to_list()
    columns["fit s"] = [fixed(seconds, 1) for seconds in settings["fit_seconds"]]
    return Table(list(columns), list(zip(*columns.values(), strict=True)), list(settings["verdict"]))


def _verdict(verdict: str, p_value: float) -> str:
    words = {"same": "not told apart", "diverged": "has a diverged run"}.get(verdict, verdict)
    if math.isnan(p_value):
        return words
    return f"{words}, p < 0.001" if p_value < 0.001 else f"{words}, p = {p_value:.3f}"


def _effect_tables(summary: Summary) -> list[Block]:
    """Return two tables: how far each key moves the metric, and the means behind it; a sentence where none can be."""
    telling = summary.keys if len(summary.keys) == 1 else summary.averaged_keys
    ordered = [(key, effect) for key, effect in summary.ordered_effects if key in telling]
    if not ordered:
        return [Text("No value was tried with several of the other keys: nothing tells their effects apart.")]
    decimals = num_decimals(summary.effects["mean"])
    ranges = []
    for key, effect in ordered:
        if len(effect) == 1:  # no other value has a mean
            continue
        ascending = effect.sort_values("mean", ascending=summary.mode == "min")
        best, worst = ascending.iloc[0], ascending.iloc[-1]
        ends = (_value_and_mean(end, decimals) for end in (best, worst))
        ranges.append([key, fixed(abs(best["mean"] - worst["mean"]), decimals), *ends])
    rows = [
        [key, cut(shown(row["value"]), 40), fixed(row["mean"], decimals), str(row["settings"]), str(row["bad"])]
        for key, _ in ordered
        for row in summary.effects[summary.effects["key"] == key].to_dict("records")
        if summary.values[key].nunique() <= MAX_VALUES
    ]
    each = f"Mean {summary.metric} for each value of a key, over all settings that have it (each counts once)."
    tables = [
        Table(["key", "range of means", "best value", "worst value"], ranges),
        Table(["key", "value", f"mean {summary.metric}", "settings", "diverged runs"], rows),
    ]
    return [Text(each), *(table for table in tables if table.rows)]


def _value_and_mean(effect: "pd.Series[Any]", decimals: int) -> str:
    diverged = f", {effect['bad']} diverged" if effect["bad"] else ""
    return f"{cut(shown(effect['value']), 40)} ({fixed(effect['mean'], decimals)}{diverged})"


def test_scores_table(runs: pd.DataFrame) -> Table:
    """Return the test scores of the settings of `read_runs`'s table, in the order they ran.

    Test images that choose a setting cannot judge it any more, so that none is the best.
    """
    finished = without_repetitions(runs[runs["status"] == "finished"])
    tags = [tag for tag in metric_tags(finished) if is_test(tag)]
    values = swept_values(finished)
    names = short_keys(list(values.columns))
    settings = pd.Series([tuple(map(shown, row)) for row in values.to_numpy(dtype=object).tolist()], finished.index)
    rows = [
        [*setting, *(mean_and_sd(group[tag]) for tag in tags), str(len(group))]
        for setting, group in finished.groupby(settings, sort=False)
    ]
    return Table([*names.values(), *(f"{tag} (mean ± sd)" for tag in tags), "n"], rows)


def unfinished_table(runs: pd.DataFrame) -> Table:
    """Return the table of the runs that did not finish, and why."""
    runs = runs[runs["status"] != "finished"].sort_values("status", kind="stable")
    rows = [list(row) for row in runs[["run", "status", "error"]].fillna("-").itertuples(index=False, name=None)]
    return Table(["run", "status", "reason"], rows)
