import math
import re
from pathlib import Path

import pytest
from made_runs import Add, cells_of_markdown

from mnist_lit.errors import UserError
from mnist_lit.reports.report import write_report
from mnist_lit.reports.runs import parse_overrides, read_runs


def test_one_row_a_run_with_its_metrics_and_overrides(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.98, seed=3)
    runs = read_runs([sweep_dir])
    (run,) = runs.to_dict("records")
    assert run["run"] == "optimizer.lr=0.1,seed=3"
    assert run["overrides"] == {"optimizer.lr": "0.1", "seed": "3", "sweep.keys": "[a,b]"}
    assert (run["val/acc"], run["fit_seconds"], run["seed"], run["status"]) == (0.98, 8.0, 3, "finished")
    assert run["history"]["val/loss"] == [(16, 0.06), (32, 0.03)]


def test_what_json_holds_as_null_is_missing(add: Add, sweep_dir: Path) -> None:
    history = {"train/loss": [(10, 0.1), (20, math.inf), (30, math.nan)]}
    add("optimizer.lr=1", status="diverged", history=history, metrics={"val/acc": math.nan}, fit_seconds=None)
    (run,) = read_runs([sweep_dir]).to_dict("records")
    assert run["history"]["train/loss"] == [(10, 0.1)]
    assert math.isnan(run["val/acc"])
    assert math.isnan(run["fit_seconds"])


def test_overrides_are_read_as_hydra_takes_them() -> None:
    overrides = ["+a.b=1", "++c=x=y", "a.b=2", "callbacks=[default,early_stopping]"]
    assert parse_overrides(overrides) == {"a.b": "2", "c": "x=y", "callbacks": "[default,early_stopping]"}


def test_folder_of_a_run_and_folders_of_several_sweeps_are_read_alike(add: Add, sweep_dir: Path) -> None:
    one = add("optimizer.lr=0.1", acc=0.98)
    add("optimizer.lr=0.2", acc=0.97)
    other = sweep_dir.with_name("other")
    sweep_dir.rename(other)
    sweep_dir.mkdir()
    add("optimizer.lr=0.3", acc=0.96)
    assert list(read_runs([other / one.name])["run"]) == [one.name]
    names = ["demo/optimizer.lr=0.3,seed=0", "other/optimizer.lr=0.1,seed=0", "other/optimizer.lr=0.2,seed=0"]
    assert list(read_runs([sweep_dir, other])["run"]) == names
    assert len(read_runs([other, other / one.name])) == 2


def test_runs_lie_below_their_days_too(add: Add, sweep_dir: Path) -> None:
    for day, time in (("2026-11-25", "09-30-00"), ("2026-11-26", "10-00-00"), ("2026-11-26", "10-00-01")):
        folder = sweep_dir / day / time
        folder.parent.mkdir(exist_ok=True)
        add("optimizer.lr=0.1", acc=0.98).rename(folder)
        (folder / "config.yaml").touch()
    names = ["2026-11-25/09-30-00", "2026-11-26/10-00-00", "2026-11-26/10-00-01"]
    assert read_runs([sweep_dir])["run"].to_list() == names


def test_only_jobs_are_counted(add: Add, sweep_dir: Path) -> None:
    run = add("optimizer.lr=0.1", acc=0.98)
    for path in (sweep_dir / "figures", sweep_dir / ".submitit", run / "checkpoints", run / "figures"):
        path.mkdir()
    (sweep_dir / "sweep.json").write_text("{}")
    killed = sweep_dir / "optimizer.lr=0.2"
    (killed / "csv").mkdir(parents=True)
    (killed / "config.yaml").touch()
    assert read_runs([sweep_dir])["run"].to_list() == ["optimizer.lr=0.1,seed=0", "optimizer.lr=0.2"]
    assert read_runs([run, killed])["run"].to_list() == ["optimizer.lr=0.1,seed=0", "optimizer.lr=0.2"]
    assert len(read_runs([run])) == 1


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"schema_version": 99}', '{"schema_version": 1}', '{"schema_version": 2, "status": "x"}'],
)
def test_unreadable_result_is_listed_with_its_reason(add: Add, sweep_dir: Path, content: str) -> None:
    add("optimizer.lr=0.1", acc=0.98)
    broken = add("optimizer.lr=0.2", acc=0.99)
    (broken / "result.json").write_text(content)
    text = write_report([sweep_dir], sweep_dir)
    assert "2 runs: 1 finished, 1 unreadable" in text
    (header, row) = cells_of_markdown((sweep_dir / "report.md").read_text(), "Runs that did not finish")
    assert header == ["run", "status", "reason"]
    assert row[:2] == [broken.name, "unreadable"]
    assert row[2].startswith("result.json: ")


def test_no_run_is_an_error_that_names_the_folder(sweep_dir: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"no run has ended in {sweep_dir}: found no run's folder")):
        write_report([sweep_dir], sweep_dir)
    (sweep_dir / "lr=0.1").mkdir()
    (sweep_dir / "lr=0.2").mkdir()
    with pytest.raises(
        UserError, match=re.escape(f"{sweep_dir}: found 2 folders without result.json; wait until one is done")
    ):
        write_report([sweep_dir], sweep_dir)
    assert not (sweep_dir / "report.md").exists()


def test_job_without_result_is_counted_as_never_ended(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.98)
    (sweep_dir / "lr=0.2").mkdir()
    (sweep_dir / "lr=0.2" / "config.yaml").touch()
    never_began = sweep_dir / "lr=0.3"
    text = write_report([sweep_dir / "optimizer.lr=0.1,seed=0", sweep_dir / "lr=0.2", never_began], sweep_dir)
    assert "1 setting, 1 run: 1 finished" in text
    assert "2 jobs without result.json: not begun, killed, or still running" in text
    rows = cells_of_markdown((sweep_dir / "report.md").read_text(), "Runs that did not finish")[1:]
    assert [row[:2] for row in rows] == [["lr=0.2", "never ended"], ["lr=0.3", "never ended"]]


def test_a_result_that_is_no_file_is_unreadable(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.98)
    (sweep_dir / "odd" / "result.json").mkdir(parents=True)
    assert sorted(read_runs([sweep_dir])["status"]) == ["finished", "unreadable"]
