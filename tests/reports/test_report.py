import csv
import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from made_runs import Add, cells_of_markdown

from mnist_lit import report as entry_point
from mnist_lit.errors import UserError
from mnist_lit.reports.report import write_report
from mnist_lit.sweep import ledger


@pytest.mark.parametrize("name", ["sweeps", "train"])
def test_the_folder_of_all_outputs_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"^{tmp_path}: holds more than runs; name {tmp_path}/train, or a sweep's, "):
        entry_point.find_folders([str(tmp_path)])


def test_runs_without_validation_are_told_but_not_ranked(add: Add, sweep_dir: Path) -> None:
    for seed, acc in enumerate((0.98, 0.99)):
        add("experiment=tuned", "optimizer.lr=0.5", seed=seed, metrics={"test/acc": acc})
        add("experiment=blog", "optimizer.lr=0.5", seed=seed, metrics={"test/acc": acc - 0.1})
    add("experiment=tuned", "optimizer.lr=0.5", seed=2, status="diverged", error="NaN")
    text = write_report([sweep_dir], sweep_dir)
    assert text.splitlines() == [
        "Report on demo: 4 of 5 runs finished.",
        "No run was validated, so nothing is ranked. On the test images:",
        "",
        "experiment  test/acc (mean ± sd)  n",
        "blog        0.8850 ± 0.0071       2",
        "tuned       0.9850 ± 0.0071       2",
        f"report      {os.path.relpath(sweep_dir)}/report.html",
    ]
    page = (sweep_dir / "report.md").read_text()
    assert "4 of 5 runs finished.\n\nNo run was validated" in page
    assert "| tuned | 0.9850 ± 0.0071 | 2 |" in page
    assert cells_of_markdown(page, "Runs that did not finish")[1][1:] == ["diverged", "NaN"]
    assert "<td>0.9850 ± 0.0071</td>" in (sweep_dir / "report.html").read_text()
    rows = list(csv.DictReader(io.StringIO((sweep_dir / "results.csv").read_text())))
    assert [(row["experiment"], row["seed"], row["status"], row["test/acc"]) for row in rows] == [
        ("blog", "0", "finished", "0.88"),
        ("blog", "1", "finished", "0.89"),
        ("tuned", "0", "finished", "0.98"),
        ("tuned", "1", "finished", "0.99"),
        ("tuned", "2", "diverged", ""),
    ]


def test_seeds_without_validation_are_one_setting(add: Add, sweep_dir: Path) -> None:
    for seed, acc in enumerate((0.98, 0.99)):
        add("experiment=tuned", seed=seed, metrics={"test/acc": acc})
    add("experiment=tuned", seed=1, metrics={"test/acc": 0.99}, name="again")  # no further evidence
    assert write_report([sweep_dir], sweep_dir).splitlines()[-2] == "0.9850 ± 0.0071       2"


def test_csv_has_one_row_a_run_in_the_order_of_the_ranking(grid: Path) -> None:
    (grid / "unfinished").mkdir()
    write_report([grid], grid)
    rows = list(csv.DictReader(io.StringIO((grid / "results.csv").read_text())))
    columns = "rank optimizer.lr data.batch_size seed status val/acc val/loss test/acc best_epoch fit_seconds"
    assert " ".join(rows[0]).startswith(columns)
    settings = [(row["rank"], row["optimizer.lr"], row["data.batch_size"], row["seed"]) for row in rows]
    assert settings == [
        ("1", "0.1", "128", "0"),
        ("1", "0.1", "128", "1"),
        ("2", "0.1", "32", "0"),
        ("2", "0.1", "32", "1"),
        ("3", "0.01", "128", "0"),
        ("3", "0.01", "128", "1"),
        ("4", "0.01", "32", "0"),
        ("4", "0.01", "32", "1"),
        ("", "", "", ""),
    ]
    assert [float(row["val/acc"]) for row in rows[:2]] == [0.9111 + 0.0123 * 3, 0.9122 + 0.0123 * 3]
    assert (rows[7]["status"], rows[7]["val/acc"], rows[7]["error"]) == ("diverged", "", "NaN")
    assert (rows[8]["status"], rows[8]["run"]) == ("never ended", "unfinished")
    assert (rows[0]["num_parameters"], rows[0]["best_epoch"], rows[0]["git_commit"]) == ("218058", "2", "0123abc")


def test_report_names_no_path_of_this_machine(grid: Path, tmp_path: Path) -> None:
    write_report([grid], grid)
    for name in ("results.csv", "report.md", "report.html"):
        assert str(tmp_path) not in (grid / name).read_text()


def test_csv_has_test_scores_for_the_winners_only(grid: Path, add: Add) -> None:
    def scores() -> list[tuple[str, str]]:
        write_report([grid], grid)
        rows = csv.DictReader(io.StringIO((grid / "results.csv").read_text()))
        return [(row["optimizer.lr"], row["test/acc"]) for row in rows if row["test/acc"]]

    best = [0.9111 + 0.0123 * 3 - 0.1234, 0.9122 + 0.0123 * 3 - 0.1234]
    assert scores() == [("0.1", str(best[0])), ("0.1", str(best[1]))]
    for seed, acc in enumerate(best):  # as good on validation, so that both win
        add("optimizer.lr=0.3", acc=acc + 0.1234, seed=seed)
    assert [lr for lr, _ in scores()] == ["0.1", "0.1", "0.3", "0.3"]


def test_csv_keeps_its_columns_where_nobody_wins(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", status="interrupted", metrics={"val/acc": 0.9, "test/acc": 0.8})
    write_report([sweep_dir], sweep_dir)
    [row] = csv.DictReader(io.StringIO((sweep_dir / "results.csv").read_text()))
    assert (row["rank"], row["val/acc"], row["test/acc"]) == ("", "0.9", "")


def test_second_report_replaces_the_first(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for names in (["heatmap", "effects"], ["effects"]):
        charts = dict.fromkeys(names, b"picture")
        monkeypatch.setattr("mnist_lit.reports.report.draw_charts", lambda summary, charts=charts: charts)
        write_report([grid], grid)
        assert sorted(path.stem for path in (grid / "figures").iterdir()) == sorted(names)
        assert re.findall(r"figures/(\w+)\.png", (grid / "report.md").read_text()) == sorted(names)
    assert not list(grid.glob(".*"))  # nothing half-written


@pytest.mark.usefixtures("with_charts")
def test_five_hundred_runs_are_all_read_ranked_and_drawn(add: Add, sweep_dir: Path) -> None:
    for index in range(100):
        lr, size = 2.0 ** -(index % 10), 2 ** (index // 10)
        for seed in range(5):
            acc = 0.9 - index % 10 / 100 + index // 10 / 1000 + (seed * index * 7 % 11) / 1e5
            add(f"optimizer.lr={lr}", f"data.batch_size={size}", acc=acc, seed=seed)
    start = time.perf_counter()
    text = write_report([sweep_dir], sweep_dir)
    print(f"500 runs: {time.perf_counter() - start:.1f} s")  # told, not held: the machine may be busy
    assert "100 settings, 500 runs: 500 finished" in text
    assert len(text.splitlines()) < 40
    assert "... and 90 more" in text
    page = (sweep_dir / "report.md").read_text()
    assert len(cells_of_markdown(page, "Ranking")) == 51
    assert "50 more in results.csv." in page
    assert len(pd.read_csv(sweep_dir / "results.csv")) == 500
    assert {path.stem for path in (sweep_dir / "figures").iterdir()} == {
        "loss_curves",
        "effects",
        "heatmap",
        "accuracy_time",
    }


def run_entry_point(*arguments: object) -> int:
    try:
        entry_point.main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_entry_point_writes_and_prints(
    grid: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(grid.parent)
    assert run_entry_point("demo") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Report on demo: 4 settings, 8 runs: 7 finished, 1 diverged")
    best = "demo/data=sample,optimizer.lr=0.1,data.batch_size=128,seed=0"
    assert lines[-2] == f"use it      python -m mnist_lit.evaluate ckpt={best}"
    assert lines[-1].split() == ["report", "demo/report.html"]
    assert all((grid / name).exists() for name in ("results.csv", "report.md", "report.html"))


def test_command_uses_the_first_seed_of_any_name(add: Add, sweep_dir: Path) -> None:
    for seed in (2, 10):
        add("model.hidden_sizes=[8]", seed=seed, acc=0.9 + seed / 100, name=f"[8],seed={seed}")
    (line,) = [it for it in write_report([sweep_dir], sweep_dir).splitlines() if it.startswith("use it")]
    assert line.endswith(f"evaluate 'ckpt={os.path.relpath(sweep_dir)}/[8],seed=2'")


def test_jobs_of_a_sweep_that_have_not_begun_are_counted(
    add: Add, sweep_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = add("optimizer.lr=0.1", acc=0.9).name
    ledger.register(sweep_dir, ["optimizer.lr"], {}, [ledger.Job(name, [], "hash") for name in (begun, "lr=0.2")])
    assert run_entry_point(sweep_dir) == 0
    told = capsys.readouterr().out
    assert "1 setting, 1 run: 1 finished" in told
    assert "1 job without result.json: not begun, killed, or still running." in told
    assert "lr=0.2" in (sweep_dir / "report.md").read_text()


def test_glob_reports_into_the_folder_above_or_where_it_is_told(
    grid: Path, add: Add, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid.rename(grid.with_name("first"))
    grid.mkdir()
    add("optimizer.lr=0.3", "data.batch_size=32", acc=0.99)
    monkeypatch.chdir(grid.parents[1])
    assert run_entry_point("sweeps/*") == 0
    assert (grid.parent / "report.html").exists()
    assert "5 settings, 9 runs" in capsys.readouterr().out
    assert run_entry_point(grid, grid.with_name("first"), "--output", "elsewhere", "--metric", "val/loss") == 0
    assert Path("elsewhere/report.html").exists()
    assert "val/loss (mean ± sd)" in Path("elsewhere/report.md").read_text()
    assert not (grid / "report.html").exists()


def test_folders_may_be_named_from_here_or_from_the_root() -> None:
    assert entry_point.common_folder([Path("a/b").absolute(), Path("a/c")]) == Path("a")


def test_folder_whose_name_looks_like_a_glob_is_taken_as_it_is(add: Add, sweep_dir: Path) -> None:
    folder = add("model.hidden_sizes=[256,64]", acc=0.9)
    assert "[" in folder.name
    assert entry_point.find_folders([str(folder)]) == [folder]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder; name a sweep's, outputs/sweeps/NAME"),
        (["nowhere*"], "nowhere*: no such folder; name a sweep's, outputs/sweeps/NAME"),
        (["file"], "file: no such folder; name a sweep's, outputs/sweeps/NAME"),
        (["empty"], "no run has ended in empty: found no run's folder; name a sweep's folder, outputs/sweeps/NAME"),
        (["above"], "above: holds 2 sweeps; name one of a, b, or a glob of several"),
        (["demo", "--metric", "val/f1"], "metric val/f1: no finished run has it, they have val/acc, val/loss"),
        (["demo", "--output", "file"], "File exists: file/figures"),
    ],
)
def test_errors_of_the_users_are_one_line_and_code_2(
    grid: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(grid.parent)
    Path("empty").mkdir()
    Path("file").touch()
    for name in ("a", "b"):
        ledger.register(Path("above") / name, ["seed"], {}, [])
    assert run_entry_point(*arguments) == 2
    printed = capsys.readouterr()
    if message.startswith("File exists"):
        message = printed.err.removeprefix("error: ").strip()  # the system's words
        assert "file" in message
    assert printed.err == f"error: {message}\n"
    assert printed.out == ""


def test_ctrl_c_is_answered_in_one_word(
    grid: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mnist_lit.reports.report.write_report", interrupted)
    assert run_entry_point(str(grid)) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_full_disk_is_told_with_the_folder(
    grid: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mnist_lit.reports.report.write_report", full)
    assert run_entry_point(grid, "--output", "elsewhere") == 2
    assert capsys.readouterr().err == "error: No space left on device: elsewhere\n"


def test_help_is_quick_and_readable(tmp_path: Path) -> None:
    script = (
        "import sys, mnist_lit.report as report\n"
        "try:\n    report.main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "print('loaded', *{'numpy', 'pandas', 'matplotlib', 'scipy', 'torch', 'hydra'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "loaded"
    assert "python -m mnist_lit.report outputs/sweeps/NAME" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110


def test_reporting_needs_neither_torch_nor_hydra(add: Add, sweep_dir: Path) -> None:
    add("optimizer.lr=0.1", acc=0.9)
    script = (
        "import sys, mnist_lit.report as report\n"
        "report.main(sys.argv[1:])\n"
        "print('loaded', *{'torch', 'lightning', 'hydra', 'matplotlib.pyplot'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", script, str(sweep_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "loaded"
    assert done.stderr == ""
