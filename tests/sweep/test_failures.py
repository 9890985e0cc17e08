"""What fails, diverges, is cut off or damaged in a sweep, and how it goes on."""

import errno
import os
import random
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.utils import get_class
from made_processes import exit_code, in_child
from made_sweeps import QUICK, Sweep, assert_same_sweep, results
from omegaconf import DictConfig

from mnist_lit import build
from mnist_lit.module import Classifier
from mnist_lit.result import Result
from mnist_lit.run import Run
from mnist_lit.sweep import plugins


def test_a_checkpoint_of_other_settings_or_damaged_is_not_gone_on_from(sweep: Sweep) -> None:
    arguments = ("optimizer.lr=0.1", "seed=0,1,2,3", "sweep.name=s")
    assert sweep(*arguments) == 0
    before = results("outputs/sweeps/s")
    for name in before:
        Path(f"outputs/sweeps/s/{name}/result.json").unlink()
    last = Path("outputs/sweeps/s/seed=0/checkpoints/last.ckpt")
    content = torch.load(last, weights_only=True)
    content["hyper_parameters"]["optimizer"]["lr"] = 0.2
    content["state_dict"] = {key: tensor * 0 for key, tensor in content["state_dict"].items()}
    torch.save(content, last)
    damaged = Path("outputs/sweeps/s/seed=1/checkpoints/last.ckpt")
    damaged.write_bytes(damaged.read_bytes()[:1000])
    Path("outputs/sweeps/s/seed=2/checkpoints/best.ckpt").unlink()
    Path("outputs/sweeps/s/seed=3/checkpoints/best.ckpt").write_bytes(b"")  # by a power cut
    assert sweep(*arguments) == 0
    after = results("outputs/sweeps/s")
    assert {name: result["metrics"] for name, result in after.items()} == {
        name: result["metrics"] for name, result in before.items()
    }


def test_a_failed_job_is_told_recorded_and_tried_again(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    arguments = ("callbacks.checkpoint.dirpath=file/x,ok", "sweep.name=s")
    assert sweep(*arguments) == 1
    found = results("outputs/sweeps/s")
    assert found["dirpath=file_x"]["status"] == "failed"
    assert "file/x" in found["dirpath=file_x"]["error"]
    assert found["dirpath=ok"]["status"] == "finished"
    assert "failed: dirpath=file_x: " in capsys.readouterr().err
    assert "file/x" in Path("outputs/sweeps/s/dirpath=file_x/train.log").read_text()
    first_try = Path("outputs/sweeps/s/dirpath=file_x/result.json").stat().st_mtime_ns
    assert sweep(*arguments) == 1
    assert Path("outputs/sweeps/s/dirpath=file_x/result.json").stat().st_mtime_ns > first_try


def test_a_job_that_failed_is_told_by_other_commands_but_no_failure_of_theirs(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    assert sweep("callbacks.checkpoint.dirpath=file/x,a", "sweep.name=s") == 1
    capsys.readouterr()
    assert sweep("callbacks.checkpoint.dirpath=a,b", "sweep.name=s") == 0
    assert re.search(r"^failed: dirpath=file_x: .* \(of an earlier command\)$", capsys.readouterr().err, re.MULTILINE)


def test_a_job_without_a_result_has_failed(
    sweep: Sweep, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(result: Result, run_dir: Path) -> None:
        if result.seed == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        written(result, run_dir)

    written = Result.write
    monkeypatch.setattr(Result, "write", write)
    assert sweep("seed=0,1") == 1
    told = "failed: seed=1: it left no result.json; if it was killed, the same command goes on\n"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("on_error", ["continue", "stop"])
def test_where_a_launcher_fails_the_jobs_that_have_not_begun_go_on(
    on_error: str, sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("seed=3,4", "sweep.name=s") == 0
    (blocked := Path("outputs/sweeps/s/seed=1/train.log")).mkdir(parents=True)
    result = Path("outputs/sweeps/s/seed=3/result.json")
    result.write_text(result.read_text().replace('"finished"', '"failed"'))  # by an earlier command: it goes on, too
    code = sweep("seed=0,1,2,3", "sweep.name=s", f"sweep.on_error={on_error}")
    told = capsys.readouterr().err
    assert f"error: Is a directory: {blocked.absolute()}\n" in told
    ended = {name for name, result in results("outputs/sweeps/s").items() if result["status"] == "finished"}
    if on_error == "continue":
        assert (code, ended) == (1, {"seed=0", "seed=2", "seed=3", "seed=4"})
        assert told.count("error: ") == 1
        assert "failed: seed=1: it left no result.json" in told
    else:
        assert (code, ended) == (2, {"seed=0", "seed=4"})


def in_process_launcher() -> Any:
    Plugins.instance()  # which imports it anew
    return get_class(plugins.IN_PROCESS)


def test_a_launcher_that_starts_nothing_is_not_asked_again(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []

    def launch(self: object, jobs: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        launched.append(jobs)
        raise RuntimeError("no worker can be started")

    monkeypatch.setattr(in_process_launcher(), "launch", launch)
    assert sweep("seed=0,1") == 1
    assert len(launched) == 1


@pytest.mark.parametrize("blocked", [[".lock"], [".lock", "train.log"]])
def test_a_folder_that_cannot_be_locked_is_a_failure(
    blocked: list[str], sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in blocked:
        Path("outputs/sweeps/s/seed=1", name).mkdir(parents=True)
    assert sweep("seed=0,1,2", "sweep.name=s") == 1
    assert re.search(r"^failed: seed=1: Is a directory: .*/seed=1/\.lock$", capsys.readouterr().err, re.MULTILINE)
    assert list(results("outputs/sweeps/s")) == ["seed=0", "seed=2"]


def test_a_folder_that_is_unusable_since_an_earlier_failure_stops_no_other(sweep: Sweep) -> None:
    assert sweep("seed=0,1", "sweep.name=s") == 0
    result = Path("outputs/sweeps/s/seed=1/result.json")
    result.write_text(result.read_text().replace('"finished"', '"failed"'))
    (log := result.with_name("train.log")).unlink()
    log.mkdir()
    assert sweep("seed=0,1,2,3", "sweep.name=s") == 1
    assert {"seed=2", "seed=3"} <= results("outputs/sweeps/s").keys()


def test_what_a_launcher_makes_of_a_ctrl_c_ends_the_sweep(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(self: object, jobs: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        Path("outputs/sweeps/seed/seed=0").mkdir()
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise AssertionError  # noqa: B904

    monkeypatch.setattr(in_process_launcher(), "launch", launch)
    assert sweep("seed=0,1") == 130


def test_on_error_stop_leaves_the_rest_undone(sweep: Sweep) -> None:
    Path("file").touch()
    assert sweep("callbacks.checkpoint.dirpath=file/x,ok", "sweep.on_error=stop", "sweep.name=s") == 1
    assert list(results("outputs/sweeps/s")) == ["dirpath=file_x"]


def test_a_sweep_that_nothing_can_rank_ends_well(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("data.val_size=0", "callbacks.checkpoint.monitor=null", "seed=0,1") == 0
    captured = capsys.readouterr()
    assert "No run was validated, so nothing is ranked." in captured.out
    assert captured.err == ""  # seeds alone need no ranking
    assert sweep("data.val_size=0", "callbacks.checkpoint.monitor=null", "seed=0,1", "test=false", "sweep.name=s") == 0
    assert "no report: metric val/acc: no finished run has it" in capsys.readouterr().out


def test_a_damaged_result_is_run_again(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("seed=0,1") == 0
    before = results("outputs/sweeps/seed")
    Path("outputs/sweeps/seed/seed=0/result.json").write_text('{"status": "finished"}')
    Path("outputs/sweeps/seed/seed=1/result.json").write_text("")
    assert sweep("seed=0,1") == 0
    after = results("outputs/sweeps/seed")
    assert {name: run["metrics"] for name, run in after.items()} == {
        name: run["metrics"] for name, run in before.items()
    }
    capsys.readouterr()
    for content in ("", "[]", "{}"):
        Path("outputs/sweeps/seed/sweep.json").write_text(content)
        assert sweep("seed=0,1") == 2
        assert capsys.readouterr().err.startswith("error: outputs/sweeps/seed/sweep.json: damaged; remove it")


def test_a_diverged_job_is_a_finding_not_a_failure(sweep: Sweep) -> None:
    assert sweep("optimizer.lr=0.1,1000", "sweep.name=s") == 0
    assert {name: result["status"] for name, result in results("outputs/sweeps/s").items()} == {
        "lr=0.1": "finished",
        "lr=1000": "diverged",
    }


def test_killed_at_any_moment_a_sweep_ends_in_the_same_bits(tmp_path: Path) -> None:
    # Short jobs, so that the kills hit everything between two of them as well.
    grid = (*QUICK, "optimizer.lr=0.1,0.03", "seed=0,1", "trainer.limit_train_batches=5")
    whole, killed = (tmp_path / "outputs" / "sweeps" / name for name in ("whole", "killed"))
    assert exit_code(in_child(*grid, "sweep.dry_run=true", folder=tmp_path)) == 0  # the first child waits for imports
    began = time.monotonic()
    assert exit_code(in_child(*grid, "sweep.name=whole", folder=tmp_path)) == 0
    duration = time.monotonic() - began
    moments = random.Random(0)
    num_killed = 0
    for trial in range(40):
        process = in_child(*grid, "sweep.name=killed", folder=tmp_path)
        time.sleep(moments.uniform(0.2, 0.7) * duration)
        process.kill()
        num_killed += exit_code(process) == -signal.SIGKILL
        if num_killed >= 10:
            break
        if len(results(killed)) == 4:  # start over, until it was killed often enough
            assert_same_sweep(whole, killed)
            killed.rename(killed.with_name(f"done{trial}"))
    assert num_killed >= 10
    assert exit_code(in_child(*grid, "sweep.name=killed", folder=tmp_path)) == 0
    assert_same_sweep(whole, killed)


def test_ctrl_c_leaves_the_job_interrupted_and_resumable(tmp_path: Path) -> None:
    process = in_child(*QUICK, "seed=0,1", "trainer.max_epochs=100", "sweep.name=s", folder=tmp_path)
    checkpoint = tmp_path / "outputs/sweeps/s/seed=0/checkpoints/last.ckpt"
    while not checkpoint.exists():
        assert process.is_alive()
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    assert exit_code(process) == 130
    found = results(tmp_path / "outputs/sweeps/s")
    assert {name: result["status"] for name, result in found.items()} == {"seed=0": "interrupted"}
    assert torch.load(checkpoint, weights_only=True)["epoch"] >= 0


def test_a_part_that_exits_fails_its_job_alone(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(self: Classifier) -> None:
        if self.hparams["seed"] == 1:
            sys.exit(1)

    monkeypatch.setattr(Classifier, "on_train_epoch_start", leave)
    assert sweep("seed=0,1,2", "sweep.name=s") == 1
    found = results("outputs/sweeps/s")
    assert [found[f"seed={seed}"]["status"] for seed in range(3)] == ["finished", "failed", "finished"]
    assert found["seed=1"]["error"] == "RuntimeError: some part of the run called sys.exit(1)"


def test_what_a_library_makes_of_a_ctrl_c_ends_the_sweep(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Run) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise AttributeError("'NoneType' object has no attribute '_invalidate_flags_cache'") from error

    monkeypatch.setattr(Run, "last_checkpoint", fail)
    assert sweep("seed=0,1", "sweep.name=s") == 130
    assert results("outputs/sweeps/s") == {}
    assert not Path("outputs/sweeps/s/seed=1").exists()


def test_a_job_that_fails_while_it_is_built_is_recorded(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job_built = build.build_job

    def build_but_one(cfg: DictConfig, overrides: Sequence[str] = ()) -> Run:
        if overrides and cfg.seed == 1:  # preflight gives none
            raise RuntimeError("out of memory")
        return job_built(cfg, overrides)

    monkeypatch.setattr(build, "build_job", build_but_one)
    assert sweep("seed=0,1,2", "sweep.name=s") == 1
    found = results("outputs/sweeps/s")
    assert [found[f"seed={seed}"]["status"] for seed in range(3)] == ["finished", "failed", "finished"]
    assert found["seed=1"]["error"] == "RuntimeError: out of memory"
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "failed: seed=1: RuntimeError: out of memory"
    assert "2/3  seed=1  failed" in captured.out
    assert "2 finished, 1 failed" in captured.out


def test_a_job_that_fails_before_it_begins_is_recorded(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def torn(run: Run) -> None:
        raise ValueError("a torn file")

    monkeypatch.setattr("mnist_lit.train._checkpoint_of_job", torn)
    assert sweep("seed=0,1", "sweep.name=s") == 1
    assert {result["error"] for result in results("outputs/sweeps/s").values()} == {"ValueError: a torn file"}
