"""What a sweep found: its settings ranked by validation, as CSV, Markdown, HTML with pictures, and a short text."""

import base64
import html
import io
import json
import math
import os
import re
import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator
from scipy.special import stdtr

from mnist_lit.errors import UserError
from mnist_lit.result import FILE_NAME, SCHEMA_VERSION, write_atomically
from mnist_lit.sweep.identity import short_keys

Mode = Literal["max", "min"]
Value = float | str
Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]

ALPHA = 0.05
# Overrides that make no setting: what tells repetitions apart, where files go, how the sweep itself works.
NOT_SETTINGS = re.compile(r"seed|run_dir|sweep\..*")
# Folders beside a sweep's jobs, or inside a job, that are no jobs.
NOT_JOBS = ("figures", "checkpoints")
NEVER_ENDED, UNREADABLE = "never ended", "unreadable"
ABSENT = "(default)"  # what a run that does not override a key has for it

MAX_ROWS = 50  # of a table in report.md and report.html
MAX_ROWS_TERMINAL = 10
MAX_VALUES = 20  # of one key: in the table of effects, along a side of the heatmap
MAX_EFFECTS = 6  # keys in the picture of effects

# Okabe and Ito (2008), distinct for the colour-blind too, but for the yellow, which white paper swallows.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000", "#8C564B")
GREY = "#bbbbbb"
PICTURES = {
    "loss_curves": "Loss of every run: a colour for each of the first ranks, a line a seed, grey for the rest; dashed "
    "runs did not finish. Training loss is averaged over neighbouring points.",
    "effects": "Effect of each key: a dot for each setting's mean, the line is the mean for each value.",
    "heatmap": "Mean for each pair of values, averaged over the other keys; diverged: some of its runs did.",
    "accuracy_time": "What the training time buys: a dot a run.",
}


@dataclass(frozen=True)
class Summary:
    """Runs grouped into settings (what the swept keys say), ranked.

    `settings` has one row a setting, best first; its position is the setting's number. Columns: `rank` (NaN
    without a mean), `n` (runs with the metric), `mean` and `sd` of the metric over them (sd with n - 1 below,
    NaN for n < 2), `bad` (runs that diverged, or finished without a finite metric), `failed` (failed or
    interrupted), `fit_seconds` (mean), and of the comparison with the first `verdict` (best, same, worse, not
    tested, diverged, no result), `test` (paired, Welch or nothing) and `p_value` (corrected; NaN without test).
    `values` has the same rows and one column a swept key. `runs` is `read_runs`'s table, less `repetitions`
    rows, with `setting` (-1 for runs that left nothing to read) and `score`. `effects` has one row for each
    value of each key: the `mean` over the `settings` that have it, and their `bad` runs. `warnings` are sentences.
    """

    metric: str
    mode: Mode
    settings: pd.DataFrame
    values: pd.DataFrame
    runs: pd.DataFrame
    effects: pd.DataFrame
    repetitions: int
    warnings: tuple[str, ...] = ()

    @property
    def keys(self) -> list[str]:
        """The swept keys."""
        return list(self.values.columns)

    @property
    def numeric_keys(self) -> list[str]:
        """The swept keys whose values are all numbers."""
        return [key for key in self.keys if pd.api.types.is_numeric_dtype(self.values[key])]

    @property
    def ranked(self) -> pd.DataFrame:
        """The settings that have a mean."""
        return self.settings[self.settings["n"] > 0]

    @property
    def winners(self) -> list[int]:
        """The settings of rank 1: several only if their means are equal."""
        return [int(setting) for setting in np.flatnonzero(self.settings["rank"] == 1)]

    def label(self, setting: int) -> str:
        """Name a setting in a line: `lr=0.1, batch_size=128`."""
        shown = self.values.iloc[setting].to_dict()
        parts = [f"{short}={_cut(_shown(shown[key]), 30)}" for key, short in short_keys(self.keys).items()]
        return ", ".join(parts) or "all runs"

    def runs_of(self, setting: int, *, finished: bool = False) -> pd.DataFrame:
        """The runs of a setting, or those of them that finished."""
        chosen = self.runs["setting"] == setting
        return self.runs[chosen & (self.runs["status"] == "finished") if finished else chosen]


# --- Reading ---------------------------------------------------------------------------------------------------------


def read_runs(folders: Iterable[Path]) -> pd.DataFrame:
    """Read the `result.json` of all runs: one row a run.

    A folder is a run's own or holds runs' folders; one that is missing is a run that never began. Columns:
    `run` (path below the closest folder above all runs), the fields of `mnist_lit.result.Result` (`metrics`
    one column each, `overrides` a dict, `arguments` the same as they were given), `git_commit` and `versions`.
    A run without a result.json that can be read has the status "never ended" (killed, or still at work) or
    "unreadable", and hardly more.

    Raises UserError if none of the runs has ended.
    """
    folders = list(folders)
    paths = list(dict.fromkeys(path.resolve() for folder in folders for path in _run_folders(folder)))
    records = [_read(path) for path in paths]
    if all(record["status"] == NEVER_ENDED for record in records):
        seen = f"{_count(len(records), 'folder')} without {FILE_NAME}" if records else "no run's folder"
        where = ", ".join(map(str, folders))
        raise UserError(f"no run has ended in {where}: found {seen}; name a sweep's folder, outputs/sweeps/NAME")
    parent = os.path.commonpath([path.parent for path in paths])
    for path, record in zip(paths, records, strict=True):
        record["run"] = path.relative_to(parent).as_posix()
    return pd.DataFrame(records)


def _run_folders(folder: Path) -> list[Path]:
    if not folder.is_dir() or (folder / FILE_NAME).exists():
        return [folder]
    below = [path for path in sorted(folder.iterdir()) if path.name not in NOT_JOBS and not path.name.startswith(".")]
    jobs = [path for path in below if path.is_dir()]
    return jobs or ([folder] if (folder / "config.yaml").exists() else [])


def _read(folder: Path) -> dict[str, Any]:
    kept = ("status", "seed", "error", "config_hash", "device", "num_parameters")
    numbers = ("best_epoch", "fit_seconds", "images_per_second")
    others = ("overrides", "arguments", "history", "git_commit", "versions")
    nothing = {**dict.fromkeys((*kept, *others)), **dict.fromkeys(numbers, math.nan)}
    try:
        record = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        if record["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {record['schema_version']}, this program reads {SCHEMA_VERSION}")
        return {
            **{key: record[key] for key in kept},
            **{key: _float(record[key]) for key in numbers},
            **{tag: _float(value) for tag, value in record["metrics"].items()},
            "overrides": parse_overrides(record["overrides"]),
            "arguments": record["overrides"],
            "history": {
                tag: [(step, value) for step, value in curve if value is not None]
                for tag, curve in record["history"].items()
            },
            "git_commit": record["git_commit"],
            "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        }
    except FileNotFoundError:
        return nothing | {"status": NEVER_ENDED, "error": f"no {FILE_NAME}: killed, or still at work"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return nothing | {"status": UNREADABLE, "error": f"{FILE_NAME}: {type(error).__name__}: {error}"}


def parse_overrides(overrides: Iterable[str]) -> dict[str, str]:
    """Turn Hydra's `["optimizer.lr=0.1", "+seed=3"]` into keys and values; of a key's several, the last counts."""
    parts = (text.lstrip("+").partition("=") for text in overrides)
    return {key: value for key, _, value in parts}


# --- Ranking ---------------------------------------------------------------------------------------------------------


def summarise(runs: pd.DataFrame, *, metric: str = "val/acc", mode: Mode | None = None) -> Summary:
    """Take runs that differ in nothing but their seed as one setting, and rank settings by their mean of `metric`.

    `mode` is which end of the metric is good: by default the lower for a loss, else the higher. Settings with
    a bad run come after all settings without, those without any metric last. Of runs that repeat another's
    configuration and seed one counts.

    Raises UserError for a metric of the test images, and for one that no finished run has.
    """
    mode = mode or ("min" if metric.endswith("loss") else "max")
    all_runs, runs = runs, _without_repetitions(runs)
    ended = runs[runs["overrides"].notna()]
    score = _scores(ended, metric)
    values = _swept_values(ended)
    number_of: dict[tuple[Value, ...], int] = {}
    numbers = [number_of.setdefault(tuple(row), len(number_of)) for row in values.to_numpy(dtype=object).tolist()]
    settings = _aggregate(ended.assign(setting=numbers, score=score))
    order, ranks = _order(settings, mode)

    # From here on a setting's number is its position in the ranking.
    settings = settings.iloc[order].reset_index(drop=True).assign(rank=ranks)
    values = values.iloc[[numbers.index(number) for number in order]].reset_index(drop=True)
    positions = pd.Series([order.index(number) for number in numbers], ended.index, dtype=int)
    runs = runs.assign(setting=positions.reindex(runs.index, fill_value=-1), score=score)
    settings = settings.join(_compare_with_first(settings, runs))
    effects = _effects(settings, values)
    summary = Summary(metric, mode, settings, values, runs, effects, repetitions=len(all_runs) - len(runs))
    return replace(summary, warnings=tuple(_warnings(summary)))


def _scores(ended: pd.DataFrame, metric: str) -> "pd.Series[float]":
    """Return the metric of the finished runs, NaN for others."""
    if metric.startswith("test/"):
        raise UserError(f"metric {metric}: test images that choose a setting cannot judge it any more; use val/acc")
    finished = ended["status"] == "finished"
    known = [tag for tag in _metric_tags(ended) if ended.loc[finished, tag].notna().any()]
    if metric in known:
        return ended[metric].where(finished).astype(float)
    if finished.any():
        others = ", ".join(tag for tag in known if not tag.startswith("test/")) or "none to rank by"
        raise UserError(f"metric {metric}: no finished run has it, they have {others}")
    return pd.Series(math.nan, ended.index)


def _aggregate(ended: pd.DataFrame) -> pd.DataFrame:
    """Return one row a setting, in the order of their numbers."""
    finished = ended["status"] == "finished"
    ended = ended.assign(
        bad=(ended["status"] == "diverged") | (finished & ended["score"].isna()),
        failed=ended["status"].isin(["failed", "interrupted"]),
        fit_seconds=ended["fit_seconds"].where(finished),
    )
    return ended.groupby("setting").agg(
        n=("score", "count"),
        mean=("score", "mean"),
        sd=("score", "std"),  # pandas divides by n - 1
        bad=("bad", "sum"),
        failed=("failed", "sum"),
        fit_seconds=("fit_seconds", "mean"),
    )


def _order(settings: pd.DataFrame, mode: Mode) -> tuple[list[int], list[float]]:
    """Return the settings' numbers, best first, and their ranks; equal means share one."""
    # Rounded, since means of the same numbers in another order may differ in their last bit.
    cost = ((-1 if mode == "max" else 1) * settings["mean"]).round(12).fillna(0.0)
    places = list(zip(settings["n"] == 0, settings["bad"] > 0, cost, strict=True))
    order = sorted(range(len(places)), key=lambda number: places[number])
    ordered = [places[number] for number in order]
    return order, [math.nan if place[0] else 1.0 + ordered.index(place) for place in ordered]


def _without_repetitions(runs: pd.DataFrame) -> pd.DataFrame:
    """Keep one of the runs that had the same configuration and seed: a finished one if there is one.

    They are no further evidence: the same seed gives the same numbers.
    """
    identity = [
        (run["run"],) if run["overrides"] is None else (run["config_hash"], run["seed"], *_setting_of(run["overrides"]))
        for run in runs.to_dict("records")
    ]
    finished_first = (runs["status"] != "finished").sort_values(kind="stable").index
    repeated = pd.Series(identity, runs.index, dtype=object).loc[finished_first].duplicated()
    return runs[~repeated.sort_index()]


def _setting_of(overrides: Mapping[str, str]) -> list[tuple[str, str]]:
    return sorted((key, value) for key, value in overrides.items() if not NOT_SETTINGS.fullmatch(key))


def _swept_values(ended: pd.DataFrame) -> pd.DataFrame:
    """Return the overrides that differ between the runs, one column a key, numbers where all are numbers."""
    overrides = list(ended["overrides"])
    keys = dict.fromkeys(key for run in overrides for key in run if not NOT_SETTINGS.fullmatch(key))
    columns: dict[str, list[Value]] = {}
    for key in keys:
        values = [_parse(run.get(key, ABSENT)) for run in overrides]
        if len(set(values)) > 1:
            is_numeric = all(isinstance(value, float) for value in values)
            columns[key] = values if is_numeric else [str(value) for value in values]
    return pd.DataFrame(columns, index=ended.index)


def _compare_with_first(settings: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Test at level ALPHA, over all comparisons, whether the settings' means differ from the first's.

    Two settings with the same seeds are compared by a paired t-test over the seeds, others by Welch's; Holm's
    method corrects the p-values. Settings with a bad run or fewer than two scores are not compared.

    The first was chosen by these very numbers, so this is a selection of what may be the best (Gupta, "On some
    multiple decision rules", Technometrics 7, 1965). Simulated with 2 to 30 normal settings, 3 to 10 seeds and
    any number of them equally good, it called a given best setting worse in less than 3 % of sweeps.
    """
    scores = {number: run.set_index("seed")["score"].dropna() for number, run in runs.groupby("setting")}
    verdicts, tests, p_values = [], [], []
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
        verdicts.append(verdict)
        tests.append(test)
        p_values.append(p_value)
    table = pd.DataFrame({"verdict": verdicts, "test": tests, "p_value": p_values})
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


def paired_p_value(a: Floats, b: Floats) -> float:
    """Return the two-sided p-value of Student's t-test (Biometrika 6, 1908) on the differences a - b [n >= 2].

    NaN where the differences are all one number other than 0: they do not say how much chance moves them.
    """
    difference = a - b
    error = difference.std(ddof=1) / math.sqrt(len(a))
    return _two_sided(difference.mean(), error, len(a) - 1, scale=np.abs(a).max())


def welch_p_value(a: Floats, b: Floats) -> float:
    """Return the two-sided p-value of Welch's t-test (Biometrika 34, 1947) for equal means of a [n], b [m].

    NaN where neither a nor b varies and their means differ.
    """
    squares = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])
    freedom = np.array([len(a) - 1, len(b) - 1])
    degrees = squares.sum() ** 2 / (squares**2 / freedom).sum() if squares.any() else math.nan
    return _two_sided(a.mean() - b.mean(), math.sqrt(squares.sum()), degrees, scale=np.abs(a).max())


def _two_sided(difference: float, error: float, degrees: float, scale: float) -> float:
    # Equal float32 metrics may differ by less than this, and accuracies over 5,000 images differ by more.
    rounding = 1e-6 * scale
    if error <= rounding:
        return 1.0 if abs(difference) <= rounding else math.nan
    return float(2 * stdtr(degrees, -abs(difference) / error))


def holm(p_values: Floats) -> Floats:
    """Correct p-values [m] for being m (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    order = np.argsort(p_values)
    corrected = np.empty_like(p_values)
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def _effects(settings: pd.DataFrame, values: pd.DataFrame) -> pd.DataFrame:
    """Average the settings' means for each value of each key, every setting weighing the same."""
    rows = [
        (key, value, group["mean"].mean(), group["mean"].count(), group["bad"].sum())
        for key in values.columns
        for value, group in settings.groupby(values[key])
    ]
    return pd.DataFrame(rows, columns=["key", "value", "mean", "settings", "bad"])


def _ordered_effects(summary: Summary) -> list[tuple[str, pd.DataFrame]]:
    """Return the rows of `effects` that have a mean, key by key, the one that matters most first."""
    known = summary.effects.dropna(subset="mean")
    groups = [(key, known[known["key"] == key]) for key in summary.keys]
    return sorted(
        [(key, group) for key, group in groups if len(group)],
        key=lambda group: -float(np.ptp(group[1]["mean"].to_numpy(dtype=float))),
    )


# --- Sentences -------------------------------------------------------------------------------------------------------


def _warnings(summary: Summary) -> Iterable[str]:
    settings, runs = summary.settings, summary.runs
    if len(summary.ranked) == 1 and settings["n"].iloc[0] == 1:
        yield "With one seed nothing is known of how far chance moves the result. Repeat with several: seed=range(5)."
    if len(summary.ranked) > 1:
        if settings["n"].iloc[0] == 1:
            who = "With one seed a setting" if settings["n"].max() == 1 else "The best setting has one seed only:"
            yield f"{who} the order may be luck, so nothing is marked. Repeat with several: seed=range(5)."
        if settings["bad"].iloc[0] > 0:
            yield "Every setting has a diverged run, the best one too: do not rely on it."
    yield from _edge_warnings(summary)
    if _is_unbalanced(summary):
        yield (
            "The values of a key did not all run with the same values of the other keys, so that effects of keys "
            "may mix; the ranking is not touched."
        )
    if runs[runs["setting"] >= 0].duplicated(["setting", "seed"]).any():
        yield "Some runs have equal overrides and seeds but different configurations: were defaults changed?"
    for column in ("git_commit", "versions", "device"):
        if runs[column].dropna().nunique() > 1:
            yield f"The runs differ in {column} ({FILE_NAME} says how): so may their numbers."


def _edge_warnings(summary: Summary) -> Iterable[str]:
    """Warn where the best value of a numeric key is the smallest or the largest one tried."""
    tried = summary.values[(summary.settings["n"] > 0) | (summary.settings["bad"] > 0)]
    for key in summary.numeric_keys:
        best = {float(value) for value in summary.values[key].iloc[summary.winners]}
        if len(best) != 1 or tried[key].nunique() < 2:
            continue
        value = best.pop()
        if value == tried[key].max():
            yield f"The best {key}={_shown(value)} is the largest value tried: try larger ones too."
        # Nothing in a configuration is negative: 0 (no momentum, no dropout) is where a key ends.
        elif value == tried[key].min() and value != 0:
            yield f"The best {key}={_shown(value)} is the smallest value tried: try smaller ones too."


def _is_unbalanced(summary: Summary) -> bool:
    ranked = summary.values.loc[summary.ranked.index]
    for key in summary.keys:
        others = ranked.drop(columns=key)
        rests = {frozenset(group.itertuples(index=False, name=None)) for _, group in others.groupby(ranked[key])}
        if len(rests) > 1:
            return True
    return False


def _counts(summary: Summary) -> str:
    """Say how many settings and runs there are, and how the runs ended."""
    statuses = summary.runs["status"].value_counts().to_dict()
    never_ended = statuses.pop(NEVER_ENDED, 0)
    kinds = ("finished", "diverged", "failed", "interrupted", UNREADABLE)
    ends = ", ".join(f"{statuses[kind]} {kind}" for kind in kinds if kind in statuses)
    fitting = _duration(float(summary.runs["fit_seconds"].sum()))
    num_settings = _count(len(summary.settings), "setting")
    text = f"{num_settings}, {_count(sum(statuses.values()), 'run')}: {ends}; {fitting} of fitting."
    if never_ended:
        text += f" {_count(never_ended, 'job')} without {FILE_NAME} never ended, or still at work."
    if summary.repetitions:
        text += f" Left out: {_count(summary.repetitions, 'run')} with the configuration and seed of another."
    return text


def _selection(summary: Summary) -> str:
    """Say what chose the best setting, and what its test score is worth."""
    which, rivals = "highest" if summary.mode == "max" else "lowest", len(summary.ranked)
    text = f"Selected on validation: {which} mean {summary.metric}. " if rivals > 1 else ""
    if not _test_tags(summary):
        return f"{text}The runs hold no score on the test images."
    if rivals == 1:
        return "There is one setting, so nothing was selected."
    return (
        f"{text}Being the best of {rivals}, it is a little flattered; the score on the test images, shown for "
        "the selected setting only, is not."
    )


def _method(summary: Summary) -> str:
    """Say how the marks in the ranking came about; nothing if there are none."""
    tested = summary.settings[summary.settings["test"].isin(["paired", "Welch"]) & summary.settings["p_value"].notna()]
    if tested.empty:
        return ""
    names = {"paired": "paired t-test over the seeds", "Welch": "Welch's t-test where their seeds differ"}
    tests = " or ".join(name for test, name in names.items() if test in set(tested["test"]))
    fewest = min(tested["n"].min(), summary.settings["n"].iloc[0])
    return (
        f"Indistinguishable from the best: p >= {ALPHA} in a two-sided {tests}, p-values corrected by Holm's method "
        f"over {_count(len(tested), 'comparison')}. With n = {fewest}, small differences stay hidden."
    )


def _about_bad_runs(summary: Summary) -> str:
    if not summary.settings["bad"].any():
        return ""
    return (
        f"A diverged run has no {summary.metric}: it is missing from the mean, but counts against its setting, which "
        "ranks after every setting without one. Failed and interrupted runs say nothing about theirs."
    )


# --- Writing ---------------------------------------------------------------------------------------------------------


def write_report(folders: Sequence[Path], folder: Path, *, metric: str = "val/acc", mode: Mode | None = None) -> str:
    """Report on the runs in `folders` and write it into `folder`; return a short text for the terminal.

    Writes results.csv (one row a run, in the order of the ranking), report.md, figures/*.png, and report.html,
    which holds its pictures and refers to nothing outside itself.

    Raises UserError as `read_runs` and `summarise` do.
    """
    summary = summarise(read_runs(folders), metric=metric, mode=mode)
    title = f"Report on {folder.resolve().name}"
    pictures = draw_pictures(summary)
    blocks = _blocks(summary, pictures)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        path = folder / "figures" / f"{name}.png"
        if name in pictures:
            path.write_bytes(pictures[name])
        else:
            path.unlink(missing_ok=True)  # of an earlier report, on other runs
    write_atomically(folder / "results.csv", results_table(summary).to_csv(index=False, lineterminator="\n"))
    write_atomically(folder / "report.md", _markdown(title, blocks))
    write_atomically(folder / "report.html", _html(title, blocks, pictures))
    return f"{_terminal(title, summary)}\n{'report':12}{os.path.relpath(folder / 'report.html')}"


def results_table(summary: Summary) -> pd.DataFrame:
    """Return one row a run with all its metrics, by the rank of its setting, then by seed; unread runs last."""
    runs = summary.runs
    tags = sorted(_metric_tags(runs), key=lambda tag: tag != summary.metric)
    # Integers without a point, in a column of other numbers too.
    values = (
        summary.values.map(lambda value: value if isinstance(value, str) else f"{value:.15g}")
        .reindex(runs["setting"])
        .set_axis(runs.index)
    )
    columns = {
        "rank": runs["setting"].map(summary.settings["rank"]).astype("Int64"),
        **{key: values[key] for key in summary.keys},
        "seed": runs["seed"].astype("Int64"),
        "status": runs["status"],
        **{tag: runs[tag] for tag in tags},
        "best_epoch": runs["best_epoch"].astype("Int64"),
        **{key: runs[key] for key in ("fit_seconds", "images_per_second")},
        "num_parameters": runs["num_parameters"].astype("Int64"),
        **{key: runs[key] for key in ("device", "config_hash", "git_commit", "run", "error")},
    }
    places = runs.assign(place=runs["setting"].where(runs["setting"] >= 0, len(summary.settings)))
    return pd.DataFrame(columns).loc[places.sort_values(["place", "seed"], kind="stable").index]


# What a report consists of, whether it is shown as Markdown or as HTML.


@dataclass(frozen=True)
class _Heading:
    text: str


@dataclass(frozen=True)
class _Text:  # `code` and **strong** as in Markdown
    text: str


@dataclass(frozen=True)
class _Notes:
    sentences: Sequence[str]


@dataclass(frozen=True)
class _Table:
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    styles: Sequence[str] = ()  # of the rows


@dataclass(frozen=True)
class _Picture:
    name: str


_Block = _Heading | _Text | _Notes | _Table | _Picture


def _blocks(summary: Summary, pictures: Mapping[str, bytes]) -> list[_Block]:
    blocks: list[_Block] = [_Text(_counts(summary))]
    if summary.warnings:
        blocks.append(_Notes(summary.warnings))
    if summary.winners:
        blocks += [_Heading("Best setting"), *_best_setting(summary)]
        blocks += [_Heading("Ranking"), _ranking(summary, MAX_ROWS), *_more(len(summary.settings))]
        blocks += [_Text(text) for text in (_method(summary), _about_bad_runs(summary)) if text]
    else:
        blocks.append(_Text("**No run has finished, so there is nothing to rank.**"))
    if summary.winners and summary.keys:
        blocks += [_Heading("Effect of each key"), *_effect_tables(summary)]
    if pictures:
        blocks += [_Heading("Pictures"), *[_Picture(name) for name in PICTURES if name in pictures]]
    unfinished = _unfinished(summary)
    if unfinished.rows:
        shown = _Table(unfinished.headers, unfinished.rows[:MAX_ROWS])
        blocks += [_Heading("Runs that did not finish"), shown, *_more(len(unfinished.rows))]
    columns = {"device": "device", "versions": "versions", "git_commit": "commit"}
    conditions = [[name, "; ".join(summary.runs[column].dropna().unique())] for column, name in columns.items()]
    return [*blocks, _Heading("Conditions"), _Table(["what", "value"], [row for row in conditions if row[1]])]


def _more(num_rows: int) -> list[_Block]:
    return [_Text(f"{num_rows - MAX_ROWS} more in results.csv.")] if num_rows > MAX_ROWS else []


def _best_setting(summary: Summary) -> list[_Block]:
    tags = [summary.metric, *[tag for tag in _metric_tags(summary.runs) if tag != summary.metric]]
    rows = [
        [summary.label(winner), str(summary.settings["n"].iloc[winner])]
        + [_mean_and_sd(summary.runs_of(winner, finished=True)[tag]) for tag in tags]
        for winner in summary.winners[:MAX_ROWS]
    ]
    blocks: list[_Block] = [_Table(["setting", "n", *map(_mean_header, tags)], rows), _Text(_selection(summary))]
    if len(rows) > 1:
        blocks.append(_Text(f"{len(summary.winners)} settings have the same mean {summary.metric}."))
    arguments = [text for text in summary.runs_of(0)["arguments"].iloc[0] if _setting_of(parse_overrides([text]))]
    return [*blocks, _Text(f"Train it again: `python -m mnist_lit.train {shlex.join(arguments)}`")]


def _ranking(summary: Summary, most: int, names: Mapping[str, str] | None = None) -> _Table:
    """Return the table of the first `most` settings, the keys called by `names`."""
    settings = summary.settings.head(most)
    decimals = _decimals(settings["mean"], settings["sd"])
    rows = list(zip(settings["mean"], settings["sd"], strict=True))
    columns: dict[str, list[str]] = {"rank": [_fixed(rank, 0) for rank in settings["rank"]]}
    for key in summary.keys:
        columns[names[key] if names else key] = [_cut(_shown(value), 40) for value in summary.values[key].head(most)]
    columns[_mean_header(summary.metric)] = [_plus_minus(mean, sd, decimals) for mean, sd in rows]
    columns["n"] = settings["n"].astype(str).to_list()
    if len(summary.ranked) > 1:
        columns["against the best"] = [
            _verdict(verdict, p) for verdict, p in zip(settings["verdict"], settings["p_value"], strict=True)
        ]
    for name, header in {"bad": "diverged", "failed": "failed"}.items():
        if summary.settings[name].any():
            columns[header] = settings[name].astype(str).to_list()
    columns["fit s"] = [_fixed(seconds, 1) for seconds in settings["fit_seconds"]]
    return _Table(list(columns), list(zip(*columns.values(), strict=True)), list(settings["verdict"]))


def _verdict(verdict: str, p_value: float) -> str:
    words = {"same": "indistinguishable", "diverged": "has a diverged run"}.get(verdict, verdict)
    if math.isnan(p_value):
        return words
    return f"{words}, p < 0.001" if p_value < 0.001 else f"{words}, p = {p_value:.3f}"


def _effect_tables(summary: Summary) -> list[_Block]:
    """Return two tables: how far each key moves the metric, and the means behind it."""
    ordered = _ordered_effects(summary)
    decimals = _decimals(summary.effects["mean"])
    ranges = []
    for key, effect in ordered:
        ascending = effect.sort_values("mean", ascending=summary.mode == "min")
        best, worst = ascending.iloc[0], ascending.iloc[-1]
        ends = [f"{_cut(_shown(end['value']), 40)} ({_fixed(end['mean'], decimals)})" for end in (best, worst)]
        ranges.append([key, _fixed(abs(best["mean"] - worst["mean"]), decimals), *ends])
    rows = [
        [key, _cut(_shown(row["value"]), 40), _fixed(row["mean"], decimals), str(row["settings"]), str(row["bad"])]
        for key, _ in ordered
        for row in summary.effects[summary.effects["key"] == key].to_dict("records")
        if summary.values[key].nunique() <= MAX_VALUES
    ]
    each = f"Mean {summary.metric} for each value of a key, over all settings that have it (each counts once)."
    blocks: list[_Block] = [_Text(each), _Table(["key", "range of means", "best value", "worst value"], ranges)]
    table = _Table(["key", "value", f"mean {summary.metric}", "settings", "diverged runs"], rows)
    return [*blocks, table] if rows else blocks


def _unfinished(summary: Summary) -> _Table:
    runs = summary.runs[summary.runs["status"] != "finished"].sort_values("status", kind="stable")
    rows = [list(row) for row in runs[["run", "status", "error"]].fillna("-").itertuples(index=False, name=None)]
    return _Table(["run", "status", "reason"], rows)


def _terminal(title: str, summary: Summary) -> str:
    """Return the short text: counts, the first ranks, the best setting with its test score, what to beware of."""
    lines = [f"{title}: {_counts(summary)}", ""]
    rows: list[tuple[str, str]] = []
    if summary.winners:
        ranking = _ranking(summary, MAX_ROWS_TERMINAL, short_keys(summary.keys))
        lines += _aligned([ranking.headers, *ranking.rows])
        if (hidden := len(summary.settings) - MAX_ROWS_TERMINAL) > 0:
            lines.append(f"... and {hidden} more")
        lines.append("")
        for winner in summary.winners[:3]:
            runs = summary.runs_of(winner, finished=True)
            rows.append(("best", summary.label(winner)))
            rows += [(tag, f"{_mean_and_sd(runs[tag])} (n = {runs[tag].count()})") for tag in _test_tags(summary)]
        rows += [("selection", _selection(summary)), ("test", _method(summary)), ("diverged", _about_bad_runs(summary))]
    else:
        lines += ["No run has finished, so there is nothing to rank.", ""]
        rows += [(status, f"{run}: {reason}") for run, status, reason in _unfinished(summary).rows[:3]]
    rows += [("note", warning) for warning in summary.warnings]
    for name, text in rows:
        lines += textwrap.wrap(
            text,
            width=110,
            initial_indent=f"{name:12}",
            subsequent_indent=" " * 12,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _markdown(title: str, blocks: Iterable[_Block]) -> str:
    parts = [f"# {title}"]
    for block in blocks:
        match block:
            case _Heading(text):
                parts.append(f"## {text}")
            case _Text(text):
                parts.append(text)
            case _Notes(sentences):
                parts.append("\n".join(f"- **Note:** {sentence}" for sentence in sentences))
            case _Table(headers, rows):
                lines = [headers, ["---"] * len(headers), *rows]
                cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
                parts.append("\n".join(f"| {' | '.join(line)} |" for line in cells))
            case _Picture(name):
                parts.append(f"![{name}](figures/{name}.png)\n\n{PICTURES[name]}")
    return "\n\n".join(parts) + "\n"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 66rem; margin: 2rem auto;
       padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .8rem 0; }
th, td { text-align: left; padding: .25rem .9rem .25rem .4rem; border-bottom: 1px solid #e5e5e5; vertical-align: top; }
th { border-bottom: 2px solid #999; white-space: nowrap; }
tr.best { background: #cfe8f5; font-weight: 600; } tr.same { background: #eef7fb; } tr.diverged { color: #777; }
ul { padding: .6rem 1rem .6rem 2rem; background: #fff6e0; border-left: 4px solid #e69f00; }
code { background: #f2f2f2; padding: .1rem .3rem; border-radius: 3px; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #555; }
"""


def _html(title: str, blocks: Iterable[_Block], pictures: Mapping[str, bytes]) -> str:
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for block in blocks:
        match block:
            case _Heading(text):
                parts.append(f"<h2>{html.escape(text)}</h2>")
            case _Text(text):
                parts.append(f"<p>{_inline(text)}</p>")
            case _Notes(sentences):
                parts.append(f"<ul>{''.join(f'<li>{html.escape(sentence)}</li>' for sentence in sentences)}</ul>")
            case _Table(headers, rows, styles):
                lines = ["".join(f"<th>{html.escape(header)}</th>" for header in headers)]
                lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
                classes = ["", *(styles or [""] * len(rows))]
                body = [f'<tr class="{name}">{line}</tr>' for name, line in zip(classes, lines, strict=True)]
                parts.append('<div class="wide"><table>\n' + "\n".join(body) + "\n</table></div>")
            case _Picture(name):
                data, caption = base64.b64encode(pictures[name]).decode(), html.escape(PICTURES[name])
                image = f'<img src="data:image/png;base64,{data}" alt="{caption}">'
                parts.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    body_text = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body_text}\n</body>\n</html>\n'


def _inline(text: str) -> str:
    escaped = re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))
    return re.sub(r"\*\*(.*?)\*\*", r"<strong>\1</strong>", escaped)


# --- Pictures --------------------------------------------------------------------------------------------------------


def draw_pictures(summary: Summary) -> dict[str, bytes]:
    """Draw those of PICTURES that the runs give rise to, as PNG."""
    figures = {
        "loss_curves": draw_curves(summary),
        "effects": draw_effects(summary),
        "heatmap": draw_heatmap(summary),
        "accuracy_time": draw_times(summary),
    }
    pictures = {}
    for name, figure in figures.items():
        if figure is not None:
            buffer = io.BytesIO()
            FigureCanvasAgg(figure).print_png(buffer)
            pictures[name] = buffer.getvalue()
    return pictures


def draw_curves(summary: Summary) -> Figure | None:
    """Draw the training and validation losses of all runs; None if no run has any.

    Over optimiser steps, or over images where the batch size was swept: steps of different batches do not
    compare.
    """
    runs = summary.runs[summary.runs["setting"] >= 0].sort_values("setting", ascending=False)  # first ranks on top
    tags = [tag for tag in ("train/loss", "val/loss") if any(history.get(tag) for history in runs["history"])]
    if not tags:
        return None
    batch_key = "data.batch_size"
    in_images = batch_key in summary.numeric_keys
    figure = Figure(figsize=(9, 4.6), dpi=110, layout="constrained")
    for axes, tag in zip(figure.subplots(1, len(tags), squeeze=False)[0], tags, strict=True):
        drawn = [run for run in runs.to_dict("records") if run["history"].get(tag)]
        lines = [_thinned(run["history"][tag]) for run in drawn]
        if in_images:
            lines = [
                line * (summary.values[batch_key].iloc[run["setting"]], 1.0)
                for line, run in zip(lines, drawn, strict=True)
            ]
        colours = [_colour(run["setting"]) for run in drawn]
        styles = ["solid" if run["status"] == "finished" else "dashed" for run in drawn]
        axes.add_collection(LineCollection(lines, colors=colours, linestyles=styles, linewidths=1, alpha=0.85))
        for line, colour in zip(lines, colours, strict=True):
            if len(line) == 1:
                axes.plot(*line[0], marker=".", color=colour)
        # Of finished runs: what diverges leaves the picture instead of flattening the rest.
        framed = [line for line, style in zip(lines, styles, strict=True) if style == "solid"] or lines
        axes.autoscale_view()
        _frame_losses(axes, np.concatenate(framed)[:, 1])
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_title(tag, fontsize=10)
        axes.set_xlabel("images seen" if in_images else "step")
        axes.grid(alpha=0.3)
    _add_legend(figure, summary)
    return figure


def _thinned(points: Sequence[tuple[float, float]], most: int = 60) -> Floats:
    """Average neighbouring points [N, 2] until at most `most` are left: the losses of single batches are noise."""
    array = np.asarray(points, dtype=np.float64)
    return np.array([part.mean(axis=0) for part in np.array_split(array, min(most, len(array)))])


def _frame_losses(axes: Axes, heights: Floats) -> None:
    low, high = float(heights.min()), float(heights.max())
    if 0 < low < high:
        axes.set_yscale("log")
        margin = (high / low) ** 0.05
        axes.set_ylim(low / margin, high * margin)
    elif low < high:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def draw_effects(summary: Summary) -> Figure | None:
    """Draw the metric over the values of each key, the one that matters most first; None without keys."""
    few = [key for key in summary.keys if key in summary.numeric_keys or summary.values[key].nunique() <= MAX_VALUES]
    effects = [(key, effect) for key, effect in _ordered_effects(summary) if key in few][:MAX_EFFECTS]
    if not effects:
        return None
    num_columns = min(len(effects), 3)
    num_rows = math.ceil(len(effects) / num_columns)
    figure = Figure(figsize=(max(3.0 * num_columns, 4.5), 2.8 * num_rows), dpi=110, layout="constrained")
    grid = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False)
    for axes, (key, effect) in zip(grid.flat, effects, strict=False):
        dots, places = summary.values[key].loc[summary.ranked.index].to_list(), effect["value"].to_list()
        if key in summary.numeric_keys:
            position = {value: float(value) for value in places}
            if min(places) > 0 and max(places) / min(places) >= 8:
                axes.set_xscale("log")
        else:
            position = {value: float(index) for index, value in enumerate(places)}
        if len(places) <= 6 or key not in summary.numeric_keys:
            crowded = sum(len(_shown(value)) for value in places) > 24
            names = [_cut(_shown(value), 18) for value in places]
            axes.set_xticks(list(position.values()), names, rotation=30 if crowded else 0)
            axes.set_xticks([], minor=True)
        axes.plot([position[value] for value in dots], summary.ranked["mean"], ".", color=GREY)
        if len(places) <= MAX_VALUES:
            axes.plot(list(position.values()), effect["mean"], "o-", color=COLOURS[0], markersize=4)
        axes.set_xlabel(key)
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(effects) :]:
        axes.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel(f"mean {summary.metric}")
    return figure


def draw_heatmap(summary: Summary) -> Figure | None:
    """Draw the mean metric over two numeric keys: learning rate and batch size, or those that matter most.

    None where fewer than two numeric keys were swept, or their values make no grid (as in a random search).
    """
    preferred = ["optimizer.lr", "data.batch_size"]
    numeric = [key for key, _ in _ordered_effects(summary) if key in summary.numeric_keys]
    keys = sorted(numeric, key=lambda key: preferred.index(key) if key in preferred else len(preferred))[:2]
    if len(keys) < 2:
        return None
    groups = summary.settings.groupby([summary.values[key] for key in reversed(keys)])
    means = groups["mean"].mean().unstack()
    bad = groups["bad"].sum().unstack().to_numpy(dtype=np.float64) > 0
    table = means.to_numpy(dtype=np.float64)
    if max(table.shape) > MAX_VALUES or np.isfinite(table).mean() < 0.3:
        return None
    figure = Figure(figsize=(2.2 + 0.85 * table.shape[1], 1.6 + 0.55 * table.shape[0]), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("#eeeeee")
    # The worst 15 % share a colour, so that one hopeless corner does not take them all.
    goodness = table if summary.mode == "max" else -table
    lowest = np.nanquantile(goodness, 0.15)
    image = axes.imshow(goodness, cmap="viridis", vmin=lowest, vmax=np.nanmax(goodness), aspect="auto")
    decimals = _decimals(pd.Series(table.ravel()))
    for (row, column), mean in np.ndenumerate(table):
        text = _fixed(mean, decimals) + "\ndiverged" * bool(bad[row, column])
        is_dark = sum(image.to_rgba(goodness[row, column])[:3]) < 1.4 and not math.isnan(mean)
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if is_dark else "#222222")
    axes.set_xticks(range(table.shape[1]), [_shown(value) for value in means.columns])
    axes.set_yticks(range(table.shape[0]), [_shown(value) for value in means.index])
    axes.set_xlabel(keys[0])
    axes.set_ylabel(keys[1])
    axes.set_title(f"mean {summary.metric}", fontsize=10)
    return figure


def draw_times(summary: Summary) -> Figure | None:
    """Draw the metric of every finished run over its seconds of fitting; None if no run has both."""
    runs = summary.runs.dropna(subset=["score", "fit_seconds"]).sort_values("setting", ascending=False)
    if runs.empty:
        return None
    figure = Figure(figsize=(7, 4.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    colours = [_colour(setting) for setting in runs["setting"]]
    axes.scatter(runs["fit_seconds"], runs["score"], c=colours, s=28, alpha=0.85, linewidths=0)
    if 0 < 20 * runs["fit_seconds"].min() <= runs["fit_seconds"].max():
        axes.set_xscale("log")
    axes.set_xlabel("fit seconds")
    axes.set_ylabel(summary.metric)
    axes.grid(alpha=0.3)
    _add_legend(figure, summary)
    return figure


def _colour(setting: int) -> str:
    return COLOURS[setting] if setting < len(COLOURS) else GREY


def _add_legend(figure: Figure, summary: Summary) -> None:
    """Name the coloured settings below the axes."""
    if not summary.keys:
        return
    shown = range(min(len(summary.settings), len(COLOURS)))
    names = {f"{setting + 1}. {summary.label(setting)}": _colour(setting) for setting in shown}
    if (others := len(summary.settings) - len(shown)) > 0:
        names[f"{others} more"] = GREY
    lines = [Line2D([], [], color=colour, linewidth=3) for colour in names.values()]
    num_columns = 2 if len(names) > 3 else 1
    figure.legend(lines, list(names), loc="outside lower center", ncols=num_columns, frameon=False, fontsize=8)


# --- Words and numbers -----------------------------------------------------------------------------------------------


def _parse(text: str) -> Value:
    """Return a finite number, or the text as it is."""
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _shown(value: Value) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.12g}" if value.is_integer() else f"{value:.6g}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _fixed(number: float, decimals: int) -> str:
    return "-" if math.isnan(number) else f"{number:.{decimals}f}"


def _plus_minus(mean: float, sd: float, decimals: int) -> str:
    return _fixed(mean, decimals) if math.isnan(sd) else f"{mean:.{decimals}f} ± {sd:.{decimals}f}"


def _decimals(means: "pd.Series[float]", sds: "pd.Series[float] | None" = None) -> int:
    """Return how many decimals show the middle spread's first digit; at least 4, which accuracies need."""
    spreads = means.diff().abs() if sds is None or not (sds > 0).any() else sds
    spread = float(spreads[spreads > 0].median())
    return 4 if math.isnan(spread) else min(max(math.ceil(-math.log10(spread)), 4), 8)


def _mean_and_sd(values: "pd.Series[float]") -> str:
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    return _plus_minus(mean, sd, _decimals(pd.Series([mean]), pd.Series([sd])))


def _mean_header(tag: str) -> str:
    return f"{tag} (mean ± sd)"


def _metric_tags(runs: pd.DataFrame) -> list[str]:
    """Return the names of the metrics, such as `val/acc`, those of the test images last."""
    return sorted((tag for tag in runs.columns if "/" in tag), key=lambda tag: (tag.startswith("test/"), tag))


def _test_tags(summary: Summary) -> list[str]:
    """Return the metrics of the test images that the best setting has."""
    best = summary.runs_of(0, finished=True)
    return [tag for tag in _metric_tags(best) if tag.startswith("test/") and best[tag].notna().any()]
