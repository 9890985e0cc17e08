import base64
import io
import re
import statistics
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_runs import Add, cells_of_markdown, summary_of
from matplotlib.image import imread

from mnist_lit.reports.charts import draw_charts, draw_curves, draw_effects, draw_heatmap, draw_times
from mnist_lit.reports.report import write_report
from mnist_lit.reports.runs import read_runs


def test_all_failed_is_reported_without_a_ranking(add: Add, sweep_dir: Path) -> None:
    for seed in range(3):
        add("optimizer.lr=0.1", seed=seed, status="failed", error="OSError: full", history={})
    add("optimizer.lr=1", status="diverged", error="NaN", history={})
    text = write_report([sweep_dir], sweep_dir)
    assert "No run has finished, so there is nothing to rank." in text
    assert "2 settings, 4 runs: 1 diverged, 3 failed" in text
    assert "OSError: full" in text
    page = (sweep_dir / "report.md").read_text()
    assert "## Ranking" not in page
    assert page.count("OSError: full") == 3
    assert draw_charts(summary_of(sweep_dir)) == {}
    assert len(pd.read_csv(sweep_dir / "results.csv")) == 4


def test_single_run(add: Add, sweep_dir: Path) -> None:
    folder = add("optimizer.lr=0.1", acc=0.98)
    text = write_report([folder], folder)
    assert text.startswith(f"Report on {folder.name}: 1 setting, 1 run: 1 finished; 5 s of fitting.")
    assert "With one seed nothing is known of how far chance moves the result." in text
    assert re.search(r"^1 +0\.9800 +1 +5\.0$", text, re.MULTILINE)
    assert re.search(r"^test/acc +0\.8566 \(n = 1\)$", text, re.MULTILINE)
    summary = summary_of(folder)
    assert draw_curves(summary) is not None
    assert draw_times(summary) is not None
    assert (draw_effects(summary), draw_heatmap(summary)) == (None, None)


def test_search_has_no_heatmap_and_no_means_of_values_tried_once(add: Add, sweep_dir: Path) -> None:
    random = np.random.default_rng(0)
    for lr, momentum in random.uniform(0.01, 1, (60, 2)):
        add(f"optimizer.lr={lr}", f"optimizer.momentum={momentum}", acc=1 - lr / 10)
    write_report([sweep_dir], sweep_dir)
    page = (sweep_dir / "report.md").read_text()
    assert "nothing tells their effects apart" in page
    assert "effects of keys may mix" not in page
    assert cells_of_markdown(page, "Effect of each key") == []
    assert draw_heatmap(summary_of(sweep_dir)) is None
    assert draw_effects(summary_of(sweep_dir)) is not None


def test_key_of_many_values_has_no_endless_table(add: Add, sweep_dir: Path) -> None:
    for number in range(30):
        add(f"optimizer.lr={number / 100 + 0.01}", acc=0.9 + number / 1000)
    write_report([sweep_dir], sweep_dir)
    assert len(cells_of_markdown((sweep_dir / "report.md").read_text(), "Effect of each key")) == 2


def test_rows_that_are_left_out_are_counted(add: Add, sweep_dir: Path) -> None:
    told = {}
    for number in range(1, 52):
        add(f"optimizer.lr={number}", acc=0.9 - number / 1000)
        if number in (10, 11, 50, 51):
            text = write_report([sweep_dir], sweep_dir)
            told[number] = re.findall(r"\d+ more", text + (sweep_dir / "report.md").read_text())
    assert told == {10: [], 11: ["1 more"], 50: ["40 more"], 51: ["41 more", "1 more"]}


def test_three_of_many_winners_are_named(add: Add, sweep_dir: Path) -> None:
    for index in range(4):
        add(f"optimizer.lr={index + 1}", acc=0.9)
    assert write_report([sweep_dir], sweep_dir).count("\nbest  ") == 3


def test_markdown_and_html_hold_the_same_table(grid: Path) -> None:
    write_report([grid], grid)
    rows = cells_of_markdown((grid / "report.md").read_text(), "Ranking")
    assert rows[0][:5] == ["rank", "optimizer.lr", "data.batch_size", "val/acc (mean ± sd)", "n"]
    assert rows[1][:6] == ["1", "0.1", "128", "0.9486 ± 0.0008", "2", "best"]
    assert rows[4][:7] == ["4", "0.01", "32", "0.9111", "1", "has a diverged run", "1"]
    page = (grid / "report.html").read_text()
    table = page.split("<h2>Ranking</h2>")[1].split("</table>")[0]
    assert [re.findall(r"<t[hd]>(.*?)</t[hd]>", line) for line in table.split("<tr ")[1:]] == rows


def test_test_scores_are_shown_for_the_best_setting_only(grid: Path) -> None:
    text = write_report([grid], grid)
    shown = [text, (grid / "report.md").read_text(), re.sub(r"base64,[^\"]*", "", (grid / "report.html").read_text())]
    runs = read_runs([grid])
    best = [0.9111 + 0.0123 * 3 - 0.1234, 0.9122 + 0.0123 * 3 - 0.1234]
    for page in shown:
        assert f"{statistics.fmean(best):.4f} ± {statistics.stdev(best):.4f}" in page
    others = [acc for acc in runs["test/acc"].dropna() if min(abs(acc - mine) for mine in best) > 1e-9]
    means = [statistics.fmean(pair) for pair in zip(others[1::2], others[2::2], strict=True)]
    assert len(others) == 5
    for page in shown:
        assert not [number for number in (*others, *means) if f"{number:.4f}" in page]
        assert "Selected on validation: highest mean val/acc." in " ".join(page.split())


def test_command_trains_the_best_setting_again(add: Add, sweep_dir: Path) -> None:
    add("+x='a b'", "optimizer.lr=0.1", acc=0.9)
    add("+x='a b'", "optimizer.lr=0.2", acc=0.8)
    write_report([sweep_dir], sweep_dir)
    line = re.search("Train it again: `(.*)`", (sweep_dir / "report.md").read_text())
    assert line is not None
    assert line[1] == "python -m mnist_lit.train '+x='\"'\"'a b'\"'\"'' optimizer.lr=0.1"


@pytest.mark.usefixtures("with_charts")
def test_html_needs_nothing_but_itself_and_pictures_show_something(grid: Path) -> None:
    write_report([grid], grid)
    page = (grid / "report.html").read_text()
    assert not re.search(r"https?:|//|@import|<script|<link|url\(", re.sub(r"base64,[^\"]*", "", page))
    sources = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page)
    assert len(sources) == 4
    inlined = {base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True) for source in sources}
    assert inlined == {path.read_bytes() for path in (grid / "figures").iterdir()}
    pictures = sorted((grid / "figures").iterdir())
    assert [path.stem for path in pictures] == ["accuracy_time", "effects", "heatmap", "loss_curves"]
    for path in pictures:
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        pixels = imread(io.BytesIO(data))
        assert pixels.shape[:2] == (height, width)
        assert min(width, height) >= 200
        assert len(np.unique(pixels[..., 0])) > 10
