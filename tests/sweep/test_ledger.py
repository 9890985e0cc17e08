"""How the ledger counts the jobs that have ended, and tells that two sweeps are not the same."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from made_runs import Add

from mnist_lit.errors import UserError
from mnist_lit.result import read_result
from mnist_lit.sweep import ledger


def test_jobs_that_end_between_two_looks_are_counted_one_by_one(
    add: Add, sweep_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [ledger.Job(f"seed={seed}", [f"seed={seed}"], "hash") for seed in range(4)]
    failed = add(seed=3, status="failed", name="seed=3", fit_seconds=6.0) / "result.json"  # by an earlier call
    os.utime(failed, ns=(0, 0))
    ledger.register(sweep_dir, ["seed"], {}, jobs)
    lines = ledger.ProgressLines(sweep_dir)
    began = (sweep_dir / ledger.BEGAN).stat().st_mtime_ns
    for order, seed in enumerate((2, 0, 1), start=1):
        end = began + order * 10 * 10**9  # a job every ten seconds, whatever each has spent on its fit
        os.utime(add(acc=0.9, seed=seed, name=f"seed={seed}") / "result.json", ns=(end, end))
    lines.start()
    lines.stop()
    assert capsys.readouterr().out.splitlines() == [
        "1/4  seed=2  val/acc 0.9000  7.0 s  about 30 s left",
        "2/4  seed=0  val/acc 0.9000  5.0 s  about 20 s left",
        "3/4  seed=1  val/acc 0.9000  6.0 s  about 10 s left",
    ]
    shutil.rmtree(failed.parent)
    os.utime(add(acc=0.9, seed=3, name="seed=3") / "result.json", ns=(began + 40 * 10**9,) * 2)
    assert ledger.progress_line(sweep_dir, "seed=3") == "4/4  seed=3  val/acc 0.9000  8.0 s"


def test_three_differences_are_named_and_the_rest_counted(sweep_dir: Path) -> None:
    checksums = {f"data.checksums.{name}": "0123456789abcdef" for name in "abc"}
    ledger.register(sweep_dir, ["seed"], {"data.source_dir": None, "seed": 0} | checksums, [])
    settings = {"data.source_dir": "sample", "seed": 0} | dict.fromkeys(checksums, "fedcba9876543210")
    with pytest.raises(UserError) as refusal:
        ledger.check_is_same(sweep_dir, ["seed"], settings)
    first = f"sweep.name={sweep_dir.name}: the runs in {sweep_dir} have data.source_dir=null, not sample, "
    assert str(refusal.value).startswith(f"{first}have data.checksums.a=")
    assert "data.checksums.c" not in str(refusal.value)
    assert " and 1 more; choose another sweep.name" in str(refusal.value)


def test_a_whole_number_is_not_taken_for_a_fraction(sweep_dir: Path) -> None:
    ledger.register(sweep_dir, ["seed"], {"trainer.limit_train_batches": 1.0}, [])
    ledger.check_is_same(sweep_dir, ["seed"], {"trainer.limit_train_batches": 1.0})
    with pytest.raises(UserError, match=r"have trainer.limit_train_batches=1.0, not 1;"):  # all batches, or one
        ledger.check_is_same(sweep_dir, ["seed"], {"trainer.limit_train_batches": 1})


def test_each_result_is_read_once(add: Add, sweep_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [add(acc=0.9, seed=seed, name=f"seed={seed}").name for seed in range(5)]
    ledger.register(sweep_dir, ["seed"], {}, [ledger.Job(name, [name], "hash") for name in names])
    read = []

    def noted(run_dir: Path) -> dict[str, Any] | None:
        read.append(run_dir.name)
        return read_result(run_dir)

    monkeypatch.setattr(ledger, "read_result", noted)
    for name in names:
        ledger.progress_line(sweep_dir, name)
    assert len(read) == 2 * len(names)  # to count it, and to tell of it


def test_a_sweep_that_was_stopped_goes_on_with_its_command(tmp_path: Path) -> None:
    (tmp_path / ledger.STOP).touch()
    ledger.register(tmp_path, [], {}, [])
    assert not (tmp_path / ledger.STOP).exists()
