"""A sweep's report: its settings ranked by validation, as CSV, Markdown, HTML with charts, and a short text."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mnist_lit.result import write_atomically
from mnist_lit.sweep import contents, pages
from mnist_lit.sweep.charts import CAPTIONS, draw_charts
from mnist_lit.sweep.ranking import Summary, summarise
from mnist_lit.sweep.runs import is_test, metric_tags, read_runs

METRIC = "val/acc"


def write_report(folders: Sequence[Path], folder: Path, *, metric: str = METRIC) -> str:
    """Report on the runs in `folders` and write it into `folder`; return a short text for the terminal.

    Writes results.csv (one row a run, in the order of the ranking), report.md, figures/*.png, and report.html,
    which holds its charts and refers to nothing outside itself. Writes nothing where no run was validated: then the
    text is all there is to tell.

    Raises UserError as `read_runs` and `summarise` do.
    """
    runs = read_runs(folders)
    title = f"Report on {folder.resolve().name}"
    if metric == METRIC and metric not in runs and any(is_test(tag) for tag in metric_tags(runs)):
        return pages.text_without_ranking(title, runs)
    summary = summarise(runs, metric=metric)
    charts = draw_charts(summary)
    blocks = contents.blocks(summary, charts)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for name in CAPTIONS:
        path = folder / "figures" / f"{name}.png"
        if name in charts:
            path.write_bytes(charts[name])
        else:
            path.unlink(missing_ok=True)  # of an earlier report, on other runs
    write_atomically(folder / "results.csv", results_table(summary).to_csv(index=False, lineterminator="\n"))
    write_atomically(folder / "report.md", pages.markdown(title, blocks))
    write_atomically(folder / "report.html", pages.html_page(title, blocks, charts))
    return f"{pages.terminal_text(title, summary)}\n{'report':12}{os.path.relpath(folder / 'report.html')}"


def results_table(summary: Summary) -> pd.DataFrame:
    """Return one row a run with its metrics, by the rank of its setting, then by seed; unread runs last.

    Metrics of the test images are there for the winners' runs only, so that nobody picks a setting by them.
    """
    runs = summary.runs
    is_winner = runs["setting"].isin(summary.winners)
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
        **{tag: runs[tag].where(is_winner) if is_test(tag) else runs[tag] for tag in summary.tags},
        "best_epoch": runs["best_epoch"].astype("Int64"),
        **{key: runs[key] for key in ("fit_seconds", "images_per_second")},
        "num_parameters": runs["num_parameters"].astype("Int64"),
        **{key: runs[key] for key in ("device", "config_hash", "git_commit", "run", "error")},
    }
    places = runs.assign(place=runs["setting"].where(runs["setting"] >= 0, len(summary.settings)))
    return pd.DataFrame(columns).loc[places.sort_values(["place", "seed"], kind="stable").index]
