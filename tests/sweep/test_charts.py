from pathlib import Path

import numpy as np
from made_runs import Add, summary_of

from mnist_lit.sweep.charts import COLOURS, GREY, draw_curves, draw_heatmap


def test_heatmap_shows_the_means_and_what_diverged(grid: Path) -> None:
    figure = draw_heatmap(summary_of(grid))
    assert figure is not None
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer.lr", "data.batch_size")
    # Rows: batch size 32, 128; columns: learning rate 0.01, 0.1.
    assert [text.get_text() for text in axes.texts] == ["0.9111\ndiverged", "0.9363", "0.9240", "0.9486"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.01", "0.1"]


def test_curves_are_over_images_where_the_batch_size_is_swept(grid: Path, add: Add) -> None:
    figure = draw_curves(summary_of(grid))
    assert figure is not None
    train, val = figure.axes
    assert (train.get_title(), val.get_title(), train.get_xlabel()) == ("train/loss", "val/loss", "images seen")
    (lines,) = train.collections
    corners = [np.asarray(path.vertices, dtype=float) for path in lines.get_paths()]
    ends = {round(line[-1, 0]) for line in corners if len(line) > 1}
    assert ends == {30 * 32, 30 * 128}
    assert train.get_ylim()[1] < 1  # the diverged run's 1e30 is outside
    assert val.get_xlim() == train.get_xlim()  # validated once or twice, it would be over a range of its own
    assert [train.yaxis.get_major_formatter()(loss) for loss in (0.1, 0.02)] == ["0.1", "0.02"]


def test_legend_is_limited_to_the_first_ranks(add: Add, sweep_dir: Path) -> None:
    for index in range(12):
        add(f"optimizer.lr={(index + 1) / 100}", acc=0.9 - index / 100)
    figure = draw_curves(summary_of(sweep_dir))
    assert figure is not None
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [*[f"{index + 1}. lr={(index + 1) / 100:g}" for index in range(8)], "4 more"]
    assert [line.get_color() for line in legend.get_lines()] == [*COLOURS, GREY]
