"""Runs made up for the tests of reports: what training leaves behind, without training."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mnist_lit.reports.charts import draw_charts
from mnist_lit.reports.ranking import Summary, summarise
from mnist_lit.reports.runs import read_runs
from mnist_lit.reports.sentences import warnings
from mnist_lit.result import Result

Add = Callable[..., Path]

HISTORY = {
    "train/loss": [(10, 0.09), (20, 0.05), (30, 0.02)],
    "val/loss": [(16, 0.06), (32, 0.03)],
    "val/acc": [(16, 0.9), (32, 0.95)],
}
BEST = [0.981, 0.983, 0.982, 0.985]
CLOSE = [0.980, 0.984, 0.981, 0.983]
FAR = [0.950, 0.953, 0.951, 0.955]


@pytest.fixture
def sweep_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "sweeps" / "demo"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def add(sweep_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Add:
    """Leave a run in the sweep's folder, as `mnist_lit.train` does; without `acc` it has no metrics."""
    # `Result.write` asks the installed packages and git, 10 ms a run; drawing takes half a second a report.
    monkeypatch.setattr("mnist_lit.result.versions", lambda: {"python": "3.11.7", "torch": "2.14.1"})
    monkeypatch.setattr("mnist_lit.result.git_commit", lambda: "0123abc")
    monkeypatch.setattr("mnist_lit.reports.report.draw_charts", lambda summary: {})

    def add_run(
        *overrides: str, acc: float | None = None, seed: int = 0, status: str = "finished", **more: Any
    ) -> Path:
        metrics = {} if acc is None else {"val/acc": acc, "val/loss": 1 - acc, "test/acc": acc - 0.1234}
        arguments = [*overrides, f"seed={seed}", "sweep.keys=[a,b]"]
        folder = sweep_dir / str(more.pop("name", ",".join(arguments[:-1]).replace("/", "|")))
        folder.mkdir()
        fields: dict[str, Any] = {
            "status": status,
            "config_hash": " ".join(sorted(arguments)),
            "overrides": arguments,
            "seed": seed,
            "device": "1 x cpu (2 threads)",
            "num_parameters": 218058,
            "metrics": metrics,
            "best_epoch": 2,
            "fit_seconds": 5.0 + seed,
            "images_per_second": 30000.0,
            "history": HISTORY,
        }
        Result(**fields | more).write(folder)
        return folder

    return add_run


@pytest.fixture
def with_charts(add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnist_lit.reports.report.draw_charts", draw_charts)


@pytest.fixture
def grid(add: Add, sweep_dir: Path) -> Path:
    """Two keys, two seeds, one diverged run; no two accuracies are alike."""
    for index, (lr, size) in enumerate([("0.01", "32"), ("0.01", "128"), ("0.1", "32"), ("0.1", "128")]):
        overrides = ("data=sample", f"optimizer.lr={lr}", f"data.batch_size={size}")
        add(*overrides, acc=0.9111 + 0.0123 * index, seed=0)
        if index == 0:
            add(*overrides, seed=1, status="diverged", error="NaN", history={"train/loss": [(10, 1e30)]})
        else:
            add(*overrides, acc=0.9122 + 0.0123 * index, seed=1)
    return sweep_dir


def add_setting(add: Add, *overrides: str, accs: Sequence[float], first_seed: int = 0) -> None:
    for seed, acc in enumerate(accs, first_seed):
        add(*overrides, acc=acc, seed=seed)


def summary_of(folder: Path, metric: str = "val/acc") -> Summary:
    return summarise(read_runs([folder]), metric=metric)


def settings_of(summary: Summary) -> list[dict[str, Any]]:
    rows = summary.settings.to_dict("records")
    return [values | {str(key): row[key] for key in row} for row, values in zip(rows, values_of(summary), strict=True)]


def values_of(summary: Summary) -> list[dict[str, Any]]:
    return [{str(key): row[key] for key in row} for row in summary.values.to_dict("records")]


def warnings_of(folder: Path) -> list[str]:
    return list(warnings(summary_of(folder)))


def cells_of_markdown(text: str, heading: str) -> list[list[str]]:
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if "---" not in line]
