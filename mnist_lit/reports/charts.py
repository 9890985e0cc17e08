"""The charts of a report: losses, effects, a heatmap, what time buys."""

import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from mnist_lit.notation import cut, fixed, num_decimals, shown
from mnist_lit.reports.ranking import Summary

CAPTIONS = {
    "loss_curves": "Loss of every run: a colour for each of the first ranks, a line a seed, grey for the rest; dashed "
    "runs did not finish. Training loss is averaged over neighbouring points.",
    "effects": "Effect of each key: grey dots are the settings' means, blue ones the mean for each value.",
    "heatmap": "Mean for each pair of values, averaged over the other keys; diverged: some of its runs did. The worst "
    "15 % of the pairs share a colour.",
    "accuracy_time": "What the training time buys: a dot a run.",
}
MAX_EFFECTS = 6  # keys in the chart of effects
LEAST_LOG_RANGE = 5  # of losses on a logarithmic axis, on which there are two round numbers then
# A logarithmic axis whose ends are less than so many times apart has labels at these multiples of the powers of ten.
MULTIPLES = {20: (1, 2, 5), 200: (1, 3)}
LEAST_GAP = 0.12  # between labels of single values, as a share of their axis
MAX_VALUES = 20  # of one key: along a side of the heatmap, in charts and tables of effects

# Okabe and Ito (2008), distinct for the colour-blind too, but for the yellow, which white paper swallows.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000", "#8C564B")
GREY = "#bbbbbb"


def draw_charts(summary: Summary) -> dict[str, bytes]:
    """Return the charts that the runs give rise to, as PNG, by their names in CAPTIONS."""
    charts = {}
    with rc_context({"text.parse_math": False}):  # a dollar in a value is a dollar
        figures = {
            "loss_curves": draw_curves(summary),
            "effects": draw_effects(summary),
            "heatmap": draw_heatmap(summary),
            "accuracy_time": draw_times(summary),
        }
        for name, figure in figures.items():
            if figure is not None:
                buffer = io.BytesIO()
                FigureCanvasAgg(figure).print_png(buffer)
                charts[name] = buffer.getvalue()
    return charts


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
    for axes, tag in zip(figure.subplots(1, len(tags), sharex=True, squeeze=False)[0], tags, strict=True):
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
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_title(tag, fontsize=10)
        axes.set_xlabel("images (step x batch size)" if in_images else "step")
        axes.grid(alpha=0.3)
    _add_legend(figure, summary)
    return figure


def _thinned(points: Sequence[tuple[float, float]], most: int = 60) -> NDArray[np.float64]:
    """Average neighbouring points [N, 2] until at most `most` are left: the losses of single batches are noise."""
    array = np.asarray(points, dtype=np.float64)
    return np.array([part.mean(axis=0) for part in np.array_split(array, min(most, len(array)))])


def _frame_losses(axes: Axes, heights: NDArray[np.float64]) -> None:
    low, high = float(heights.min()), float(heights.max())
    if 0 < low * LEAST_LOG_RANGE <= high:
        axes.set_yscale("log")
        _label_plainly(axes.yaxis, low, high)
        margin = (high / low) ** 0.05
        axes.set_ylim(low / margin, high * margin)
    elif low < high:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def draw_effects(summary: Summary) -> Figure | None:
    """Draw the metric over the values of each key, the one that matters most first; None without keys."""
    few = [key for key in summary.keys if key in summary.numeric_keys or summary.values[key].nunique() <= MAX_VALUES]
    effects = [(key, effect) for key, effect in summary.ordered_effects if key in few and len(effect) > 1][:MAX_EFFECTS]
    if not effects:
        return None
    num_columns = min(len(effects), 3)
    num_rows = math.ceil(len(effects) / num_columns)
    figure = Figure(figsize=(max(3.0 * num_columns, 4.5), 2.8 * num_rows), dpi=110, layout="constrained")
    grid = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False)
    for axes, (key, effect) in zip(grid.flat, effects, strict=False):
        dots, places = summary.values[key].loc[summary.ranked.index].to_list(), effect["value"].to_list()
        is_numeric, is_log = key in summary.numeric_keys, False
        if is_numeric:
            position = {value: float(value) for value in places}
            if is_log := min(places) > 0 and max(places) / min(places) >= 8:
                axes.set_xscale("log")
                _label_plainly(axes.xaxis, min(places), max(places))
        else:
            position = {value: float(index) for index, value in enumerate(places)}
        if not is_numeric or (len(places) <= 6 and _least_gap(places, is_log=is_log) >= LEAST_GAP):
            names = [cut(shown(value), 18) for value in places]
            crowded = max(map(len, names)) * len(names) > 24
            turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
            axes.set_xticks(list(position.values()), names, **turned)
            axes.set_xticks([], minor=True)
        axes.plot([position[value] for value in dots], summary.ranked["mean"], ".", color=GREY)
        if len(places) <= MAX_VALUES:
            # No line from one name to the next, whose order means nothing.
            style = "o-" if is_numeric else "o"
            axes.plot(list(position.values()), effect["mean"], style, color=COLOURS[0], markersize=4)
        axes.set_xlabel(key)
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(effects) :]:
        axes.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel(f"mean {summary.metric}")
    return figure


def _least_gap(values: Sequence[float], *, is_log: bool) -> float:
    """Return the smallest step from one value to the next, as a share of their range; 1 for a single one."""
    places = np.sort(np.log(values) if is_log else np.array(values, dtype=np.float64))
    return float(np.diff(places).min() / np.ptp(places)) if len(places) > 1 else 1.0


def draw_heatmap(summary: Summary) -> Figure | None:
    """Draw the mean metric over two numeric keys: learning rate and batch size, or those that matter most.

    None where fewer than two numeric keys were swept, or their values make no grid (as in a random search).
    """
    preferred = ["optimizer.lr", "data.batch_size"]
    numeric = [key for key, _ in summary.ordered_effects if key in summary.numeric_keys]
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
    decimals = num_decimals(table.ravel())
    for (row, column), mean in np.ndenumerate(table):
        text = fixed(mean, decimals) + ("\ndiverged" if bad[row, column] else "")
        is_dark = sum(image.to_rgba(goodness[row, column])[:3]) < 1.4 and not math.isnan(mean)
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if is_dark else "#222222")
    axes.set_xticks(range(table.shape[1]), [shown(value) for value in means.columns])
    axes.set_yticks(range(table.shape[0]), [shown(value) for value in means.index])
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
    low, high = runs["fit_seconds"].min(), runs["fit_seconds"].max()
    if 0 < 20 * low <= high:
        axes.set_xscale("log")
        _label_plainly(axes.xaxis, low, high)
    axes.set_xlabel("fit seconds")
    axes.set_ylabel(summary.metric)
    axes.grid(alpha=0.3)
    _add_legend(figure, summary)
    return figure


def _label_plainly(axis: Axis, low: float, high: float) -> None:
    """Label a logarithmic axis over low..high 0.02 instead of 2 x 10^-2, which is also slow to set."""
    # More labels would collide over many decades, and matplotlib leaves all out over still more.
    marks = next((marks for most, marks in MULTIPLES.items() if high / low < most), None)
    axis.set_major_locator(LogLocator(subs=marks) if marks else LogLocator(numticks=5))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _colour(setting: int) -> str:
    return COLOURS[setting] if setting < len(COLOURS) else GREY


def _add_legend(figure: Figure, summary: Summary) -> None:
    """Name the coloured settings below the axes."""
    if not summary.keys:
        return
    first = summary.settings.head(len(COLOURS))
    names = []
    for setting, row in enumerate(first.to_dict("records")):
        rank = "" if math.isnan(row["rank"]) else f"{row['rank']:.0f}. "
        names.append(cut(f"{rank}{summary.label(setting)}{' (diverged)' if row['bad'] else ''}", 100))
    if (others := len(summary.settings) - len(first)) > 0:
        names.append(f"{others} more")
    lines = [Line2D([], [], color=_colour(index), linewidth=3) for index in range(len(names))]
    num_columns = 2 if len(names) > 3 and max(map(len, names)) < 48 else 1  # of 100 characters in all
    figure.legend(lines, names, loc="outside lower center", ncols=num_columns, frameon=False, fontsize=8)
