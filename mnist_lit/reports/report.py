"""A sweep's report: its settings ranked by validation, as CSV, Markdown, HTML with charts, and a short text."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mnist_lit.notation import Value
from mnist_lit.reports import contents, pages
from mnist_lit.reports.charts import CAPTIONS, draw_charts
from mnist_lit.reports.ranking import Summary, summarise, swept_values
from mnist_lit.reports.runs import METRIC, is_test, metric_tags, read_runs
from mnist_lit.result import write_atomically


def write_report(folders: Sequence[Path], folder: Path, *, metric: str = METRIC) -> str:
    """Report on the runs in `folders` and write it into `folder`; return a short text for the terminal.

    Writes results.csv (one row a run, in the order of the ranking), report.md, figures/*.png, and report.html,
    which holds its charts and refers to nothing outside itself. Runs that were never validated are not ranked, and
    have no charts.

    Raises UserError as `read_runs` and `summarise` do.
    """
    runs = read_runs(folders)
    title = f"Report on {folder.resolve().name}"
    charts: dict[str, bytes] = {}
    if metric == METRIC and metric not in runs and any(is_test(tag) for tag in metric_tags(runs)):
        text, blocks = pages.text_without_ranking(title, runs), contents.blocks_without_ranking(runs)
        table = _table(runs, swept_values(runs[runs["overrides"].notna()]).reindex(runs.index), metric_tags(runs))
    else:
        summary = summarise(runs, metric=metric)
        charts = draw_charts(summary)
        text, blocks = pages.terminal_text(title, summary) + _how_to_use(summary), contents.blocks(summary, charts)
        table = results_table(summary)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for name in CAPTIONS:
        path = folder / "figures" / f"{name}.png"
        if name in charts:
            write_atomically(path, charts[name])
        else:
            path.unlink(missing_ok=True)  # of an earlier report, on other runs
    write_atomically(folder / "results.csv", table.to_csv(index=False, lineterminator="\n"))
    write_atomically(folder / "report.md", pages.markdown(title, blocks))
    write_atomically(folder / "report.html", pages.html_page(title, blocks, charts))
    return f"{text}\n{'report':12}{os.path.relpath(folder / 'report.html')}"


def _how_to_use(summary: Summary) -> str:
    """Name a run of the best setting in a command that takes it."""
    if not summary.winners:
        return ""
    folder = summary.runs_of(summary.winners[0], finished=True).sort_values("seed")["folder"].iloc[0]
    return f"\n{'use it':12}python -m mnist_lit.evaluate {shlex.quote(f'ckpt={os.path.relpath(folder)}')}"


def results_table(summary: Summary) -> pd.DataFrame:
    """Return one row a run with its metrics, by the rank of its setting, then by seed; unread runs last.

    Metrics of the test images are there for the winners' runs only, so that nobody picks a setting by them.
    """
    runs = summary.runs
    is_winner = runs["setting"].isin(summary.winners)
    runs = runs.assign(**{tag: runs[tag].where(is_winner) for tag in summary.tags if is_test(tag)})
    table = _table(runs, summary.values.reindex(runs["setting"]).set_axis(runs.index), summary.tags)
    table.insert(0, "rank", runs["setting"].map(summary.settings["rank"]).astype("Int64"))
    places = runs.assign(place=runs["setting"].where(runs["setting"] >= 0, len(summary.settings)))
    return table.loc[places.sort_values(["place", "seed"], kind="stable").index]


def _table(runs: pd.DataFrame, values: pd.DataFrame, tags: Sequence[str]) -> pd.DataFrame:
    """Return one row a run, with its `values` of the swept keys and its metrics."""
    counted = ["seed", "best_epoch", "num_parameters"]
    table = runs.assign(**runs[counted].astype("Int64"))
    measured = [*tags, "best_epoch", "fit_seconds", "images_per_second", "num_parameters"]
    table = table[["seed", "status", *measured, "device", "config_hash", "git_commit", "run", "error"]]
    # Integers without a point, in a column of other numbers too.
    return values.map(_plain, na_action="ignore").join(table)


def _plain(value: Value) -> str:
    return value if isinstance(value, str) else f"{value:.15g}"
