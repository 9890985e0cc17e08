"""A report as Markdown, as HTML, and as a short text for the terminal."""

import base64
import html
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from mnist_lit.notation import mean_and_sd
from mnist_lit.reports import sentences
from mnist_lit.reports.charts import CAPTIONS
from mnist_lit.reports.contents import (
    Block,
    Chart,
    Heading,
    Notes,
    Table,
    Text,
    ranking_table,
    test_scores_table,
    unfinished_table,
)
from mnist_lit.reports.ranking import Summary
from mnist_lit.sweep.identity import short_keys

MAX_ROWS_TERMINAL = 10
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


def terminal_text(title: str, summary: Summary) -> str:
    """Return the short text: counts, the first ranks, the best setting with its test score, what to beware of."""
    lines = [f"{title}: {sentences.counts(summary)}", ""]
    rows: list[tuple[str, str]] = []
    if summary.winners:
        ranking = ranking_table(summary, MAX_ROWS_TERMINAL, short_keys(summary.keys))
        lines += _aligned([ranking.headers, *ranking.rows])
        if (hidden := len(summary.settings) - MAX_ROWS_TERMINAL) > 0:
            lines.append(f"... and {hidden} more")
        lines.append("")
        for winner in summary.winners[:3]:
            runs = summary.runs_of(winner, finished=True)
            rows.append(("best", summary.label(winner)))
            rows += [(tag, f"{mean_and_sd(runs[tag])} (n = {runs[tag].count()})") for tag in summary.test_tags]
        rows += [("selection", sentences.selection(summary)), ("test", sentences.method(summary))]
        rows.append(("diverged", sentences.bad_runs(summary)))
    else:
        lines += ["No run has finished, so there is nothing to rank.", ""]
        rows += [(status, f"{run}: {reason}") for run, status, reason in unfinished_table(summary.runs).rows[:3]]
    rows += [("note", warning) for warning in sentences.warnings(summary)]
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


def text_without_ranking(title: str, runs: pd.DataFrame) -> str:
    """Return the short text on runs of `read_runs`'s table that were never validated."""
    table = test_scores_table(runs)
    counts = sentences.counts_without_ranking(runs)
    return "\n".join([f"{title}: {counts}", sentences.NOT_RANKED, "", *_aligned([table.headers, *table.rows])])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def markdown(title: str, blocks: Iterable[Block]) -> str:
    """Return the page whose charts lie in figures/."""
    parts = [f"# {title}"]
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"## {text}")
            case Text(text):
                parts.append(text)
            case Notes(notes):
                parts.append("\n".join(f"- **Note:** {note}" for note in notes))
            case Table(headers, rows):
                lines = [headers, ["---"] * len(headers), *rows]
                cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
                parts.append("\n".join(f"| {' | '.join(line)} |" for line in cells))
            case Chart(name):
                parts.append(f"![{name}](figures/{name}.png)\n\n{CAPTIONS[name]}")
    return "\n\n".join(parts) + "\n"


def html_page(title: str, blocks: Iterable[Block], charts: Mapping[str, bytes]) -> str:
    """Return the page with its charts (PNG) inside."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"<h2>{html.escape(text)}</h2>")
            case Text(text):
                parts.append(f"<p>{_inline(text)}</p>")
            case Notes(notes):
                parts.append(f"<ul>{''.join(f'<li>{html.escape(note)}</li>' for note in notes)}</ul>")
            case Table(headers, rows, styles):
                lines = ["".join(f"<th>{html.escape(header)}</th>" for header in headers)]
                lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
                classes = ["", *(styles or [""] * len(rows))]
                body = [f'<tr class="{name}">{line}</tr>' for name, line in zip(classes, lines, strict=True)]
                parts.append('<div class="wide"><table>\n' + "\n".join(body) + "\n</table></div>")
            case Chart(name):
                data, caption = base64.b64encode(charts[name]).decode(), html.escape(CAPTIONS[name])
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
