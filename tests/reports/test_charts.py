from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from made_runs import Add, summary_of
from matplotlib.backends.backend_agg import FigureCanvasAgg

from mnist_lit.reports.charts import COLOURS, GREY, draw_charts, draw_curves, draw_effects, draw_heatmap, draw_times
from mnist_lit.reports.report import write_report


def test_heatmap_shows_the_means_and_what_diverged(grid: Path) -> None:
    figure = draw_heatmap(summary_of(grid))
    assert figure is not None
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer.lr", "data.batch_size")
    # Rows: batch size 32, 128; columns: learning rate 0.01, 0.1.
    assert [text.get_text() for text in axes.texts] == ["0.9111\ndiverged", "0.9363", "0.9240", "0.9486"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.01", "0.1"]


def test_lowest_loss_is_the_lightest_in_the_heatmap(grid: Path) -> None:
    figure = draw_heatmap(summary_of(grid, "val/loss"))
    assert figure is not None
    assert np.argmax(np.asarray(figure.axes[0].images[0].get_array())) == 3


def test_sparse_values_make_no_heatmap(add: Add, sweep_dir: Path) -> None:
    for index in range(5):
        add(f"optimizer.lr={index + 1}", f"data.batch_size={index + 1}", acc=0.9 - index / 10)
    assert draw_heatmap(summary_of(sweep_dir)) is None


def test_curves_are_over_images_where_the_batch_size_is_swept(grid: Path, add: Add) -> None:
    figure = draw_curves(summary_of(grid))
    assert figure is not None
    train, val = figure.axes
    assert (train.get_title(), val.get_title(), train.get_xlabel()) == (
        "train/loss",
        "val/loss",
        "images (step x batch size)",
    )
    (lines,) = train.collections
    corners = [np.asarray(path.vertices, dtype=float) for path in lines.get_paths()]
    ends = {round(line[-1, 0]) for line in corners if len(line) > 1}
    assert ends == {30 * 32, 30 * 128}
    assert train.get_ylim()[1] < 1  # the diverged run's 1e30 is outside
    assert val.get_xlim() == train.get_xlim()  # validated once or twice, it would be over a range of its own


@pytest.mark.parametrize(
    ("low", "high"), [(0.031, 0.034), (0.031, 0.2), (0.031, 5.0), (1e-5, 1.0), (1e-5, 5.0), (1.0, 1e6), (1e-6, 1e12)]
)
def test_logarithmic_axes_have_labels_that_do_not_collide(low: float, high: float, add: Add, sweep_dir: Path) -> None:
    for index, value in enumerate(np.geomspace(low, high, 9)):
        losses = [(10 * step, loss) for step, loss in enumerate(np.geomspace(high, low, 9), start=1)]
        history = {"train/loss": losses, "val/loss": losses}
        add(f"optimizer.lr={value}", f"data.batch_size={index + 1}", acc=0.9 + index / 100, history=history)
    summary = summary_of(sweep_dir)
    curves, effects = draw_curves(summary), draw_effects(summary)
    assert curves is not None
    assert effects is not None
    for figure in (curves, effects):
        FigureCanvasAgg(figure).draw()
    for axis, side in ((curves.axes[0].yaxis, 1), (effects.axes[0].xaxis, 0)):
        near, far = axis.get_view_interval()
        places = [place for place in axis.get_majorticklocs() if near <= place <= far]
        labels = [label for label in axis.get_ticklabels() if near <= label.get_position()[side] <= far]
        assert len(places) >= 2
        assert all(float(label.get_text().replace("\N{MINUS SIGN}", "-")) > 0 for label in labels)
        boxes = [label.get_window_extent() for label in labels]
        assert not any(one.overlaps(other) for one, other in pairwise(boxes))
    assert (curves.axes[0].get_yscale() == "log") == (high / low >= 5)  # else it may have one round number, or none


def test_legend_is_limited_to_the_first_ranks(add: Add, sweep_dir: Path) -> None:
    for index in range(12):
        add(f"optimizer.lr={(index + 1) / 100}", acc=0.9 - index / 100)
    figure = draw_curves(summary_of(sweep_dir))
    assert figure is not None
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [*[f"{index + 1}. lr={(index + 1) / 100:g}" for index in range(8)], "4 more"]
    assert [line.get_color() for line in legend.get_lines()] == [*COLOURS, GREY]


def test_legend_stays_inside_and_names_each_setting(add: Add, sweep_dir: Path) -> None:
    keys = [f"model.very_long_name_of_a_key_{index}" for index in range(5)]
    for index in range(4):
        add(*(f"{key}={index}" for key in keys), acc=0.9 - index / 100)
    add(*(f"{key}=9" for key in keys), status="diverged", error="NaN")
    figure = draw_times(summary_of(sweep_dir))
    assert figure is not None
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert [name[:3] for name in names] == ["1. ", "2. ", "3. ", "4. ", "ver"]  # no rank for what diverged
    FigureCanvasAgg(figure).draw()
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


def test_a_dollar_in_a_value_is_a_dollar(add: Add, sweep_dir: Path) -> None:
    for index, folder in enumerate(("/a$x_{/b$", "/c")):
        add(f"data.source_dir={folder}", acc=0.9 - index / 10)
    assert draw_charts(summary_of(sweep_dir)).keys() >= {"effects", "loss_curves"}


def test_values_that_are_names_are_dots_and_tell_themselves_apart(add: Add, sweep_dir: Path) -> None:
    sizes = ["[512,256,128,64,32]", "[512,256,128,64,16]"]
    for index, size in enumerate(sizes):
        for batch_size in (100, 32):
            add(f"model.hidden_sizes={size}", f"data.batch_size={batch_size}", acc=0.9 - index / 10)
    add("model.hidden_sizes=[8]", acc=0.5)
    figure = draw_effects(summary_of(sweep_dir))
    assert figure is not None
    for axes, expected in zip(
        figure.axes, (["[512,256...,64,16]", "[512,256...,64,32]", "[8]"], ["32", "100", "(default)"]), strict=True
    ):
        assert [label.get_text() for label in axes.get_xticklabels()] == expected
        assert axes.lines[1].get_linestyle() == "None"


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ((16, 32, 50, 64, 100, 128, 256, 512), {"30", "100", "300"}),
        ((0.1, 0.11, 0.5), None),  # two of them would be one blot
    ],
)
def test_labels_of_values_are_many_and_apart(
    values: tuple[float, ...], labels: set[str] | None, add: Add, sweep_dir: Path
) -> None:
    for index, value in enumerate(values):
        add(f"optimizer.lr={value}", acc=0.9 - index / 100)
    figure = draw_effects(summary_of(sweep_dir))
    assert figure is not None
    (axes,) = figure.axes
    FigureCanvasAgg(figure).draw()
    near, far = axes.get_xlim()
    shown = {label.get_text() for label in axes.get_xticklabels() if near <= label.get_position()[0] <= far}
    assert shown == labels if labels else len(shown) >= 3 and "0.11" not in shown


def test_a_setting_is_named_by_what_it_changes(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.9)
    add("data.batch_size=32", acc=0.8)
    add("optimizer.lr=1000", status="diverged", error="NaN", history={"train/loss": [(10, 0.1)]})
    add(acc=0.7)
    summary = summary_of(sweep_dir)
    assert [summary.label(setting) for setting in range(4)] == ["lr=0.1", "batch_size=32", "the defaults", "lr=1000"]
    figure = draw_curves(summary)
    assert figure is not None
    assert figure.legends[0].get_texts()[-1].get_text() == "lr=1000 (diverged)"


def test_steps_are_whole_and_a_key_with_one_mean_has_no_effect(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.9, history={"train/loss": [(10, 0.2), (11, 0.1)]})
    add("optimizer.lr=1000", status="diverged", error="NaN")
    summary = summary_of(sweep_dir)
    figure = draw_curves(summary)
    assert figure is not None
    FigureCanvasAgg(figure).draw()
    assert all(float(place).is_integer() for place in figure.axes[0].xaxis.get_majorticklocs())
    assert draw_effects(summary) is None
    page = write_report([sweep_dir], sweep_dir) and (sweep_dir / "report.md").read_text()
    assert "range of means" not in page
    assert "| optimizer.lr | 1000 | - | 0 | 1 |" in page
