import gc
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Main
from lightning import Trainer
from made_processes import exit_code, in_child
from made_sweeps import QUICK, Sweep, assert_same_sweep, results

from mnist_lit.data import sources
from mnist_lit.module import Classifier
from mnist_lit.sweep import estimate, ledger
from mnist_lit.sweep.preflight import Preflight


def test_every_combination_is_a_run_in_a_legible_folder(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("optimizer.lr=0.1,0.03", "seed=range(2)") == 0
    found = results("outputs/sweeps/lr,seed")
    assert list(found) == ["lr=0.03,seed=0", "lr=0.03,seed=1", "lr=0.1,seed=0", "lr=0.1,seed=1"]
    assert {result["status"] for result in found.values()} == {"finished"}
    assert sources.load.cache_info().misses == 1
    for run_dir in Path("outputs/sweeps/lr,seed").glob("lr*"):
        assert len(list(run_dir.glob("events.out.tfevents.*"))) == 1
        assert not (run_dir / "figures").exists()
    lines = [line for line in capsys.readouterr().out.splitlines() if "/4  " in line]
    assert [line.split("  ")[:2] for line in lines] == [
        ["1/4", "lr=0.1,seed=0"],
        ["2/4", "lr=0.1,seed=1"],
        ["3/4", "lr=0.03,seed=0"],
        ["4/4", "lr=0.03,seed=1"],
    ]


def test_nothing_of_a_job_stays_in_memory(sweep: Sweep) -> None:
    gc.disable()
    try:
        assert sweep("seed=range(3)", "trainer.max_epochs=1") == 0
        assert not [thing for thing in gc.get_objects() if type(thing) in (Trainer, Classifier)]
    finally:
        gc.enable()


def test_memory_does_not_grow_with_the_jobs(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    line, counts = ledger.progress_line, []

    def counted(folder: Path, name: str) -> str:
        gc.collect()
        counts.append(len(gc.get_objects()))
        return line(folder, name)

    monkeypatch.setattr(ledger, "progress_line", counted)
    assert sweep("seed=range(5)", "trainer.max_epochs=1") == 0
    assert counts[-1] - counts[2] < 100


def test_the_same_command_again_runs_only_what_is_new(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("optimizer.lr=0.1,0.03", "sweep.name=grown") == 0
    before = {path: path.stat().st_mtime_ns for path in Path("outputs/sweeps/grown").glob("*/result.json")}
    assert "done already" not in capsys.readouterr().out
    assert sweep("optimizer.lr=0.1,0.03,0.3", "sweep.name=grown") == 0
    assert capsys.readouterr().out.startswith("2 of 3 jobs are done already\n")
    after = {path: path.stat().st_mtime_ns for path in Path("outputs/sweeps/grown").glob("*/result.json")}
    assert len(before) == 2
    assert {path.parent.name for path in after.keys() - before.keys()} == {"lr=0.3"}
    assert all(after[path] == before[path] for path in before)


def test_runs_with_other_unswept_settings_are_not_mixed(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("optimizer.lr=0.1", "seed=0,1") == 0
    capsys.readouterr()
    assert sweep("optimizer.lr=0.1", "seed=0,1", "data.batch_size=50") == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "have data.batch_size=100, not 50; choose another sweep.name" in captured.err
    assert sweep("optimizer.lr=0.1", "seed=0,1", "data.batch_size=50", "sweep.dry_run=true") == 2
    assert capsys.readouterr() == ("", captured.err)
    for path in Path("outputs/sweeps/seed").glob("*/"):
        shutil.rmtree(path)
    assert sweep("optimizer.lr=0.1", "seed=0,1", "data.batch_size=50") == 2
    assert capsys.readouterr().err == captured.err[:-1] + ", or remove the folder, in which none has begun\n"


def test_settings_below_a_swept_group_are_not_mixed_either(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("optimizer=sgd,adam", "optimizer.lr=0.1", "sweep.name=s") == 0
    assert sweep("optimizer=sgd,adam", "optimizer.lr=0.0001", "sweep.name=s") == 2
    assert "have optimizer.lr=0.1, not 0.0001" in capsys.readouterr().err


def test_all_jobs_are_checked_before_the_first_trains(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("optimizer.lr=0.1,abc") == 2
    assert capsys.readouterr().err == "error: optimizer.lr=abc: must be a number (job lr=abc)\n"
    assert sweep("data.batch_size=10,0") == 2
    assert (
        "data.batch_size must be at least 1 and below 2147483648, got 0 (job batch_size=0)" in capsys.readouterr().err
    )
    assert not Path("outputs").exists()


def test_close_values_are_two_jobs(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("model.dropout=0.1,0.1000001", "sweep.dry_run=true") == 0
    assert capsys.readouterr().out.startswith("to do  dropout=0.1\nto do  dropout=0.1000001\n")


def test_a_range_of_one_value_is_told(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("optimizer.lr=range(0.01,0.1)", "sweep.dry_run=true") == 0
    assert capsys.readouterr().err == "note: optimizer.lr=range(0.01,0.1) is one value; range(START,STOP,STEP)\n"


def test_a_job_that_is_there_twice_is_refused(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    for twice, told in {"seed=1,1": "seed=1", "optimizer.lr=0.1,1,1.0": "lr=1, lr=1.0"}.items():
        assert sweep(twice) == 2
        assert f"error: {told}: there twice" in capsys.readouterr().err


def test_values_that_would_share_a_folder_are_refused(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    told = "would share the folder outputs/sweeps/s/dirpath=a_b; rename one\n"
    said = f"error: callbacks.checkpoint.dirpath=a/b and callbacks.checkpoint.dirpath=a_b: {told}"
    assert sweep("callbacks.checkpoint.dirpath=a/b,a_b", "sweep.name=s") == 2
    assert capsys.readouterr().err == said
    assert sweep("callbacks.checkpoint.dirpath=a/b,c", "sweep.name=s") == 0
    capsys.readouterr()
    assert sweep("++callbacks.checkpoint.dirpath=a/b,c", "sweep.name=s") == 0  # which means the same
    capsys.readouterr()
    assert sweep("callbacks.checkpoint.dirpath=a_b,c", "sweep.name=s") == 2  # after another command
    assert capsys.readouterr().err == said


def test_dry_run_tells_the_time_by_the_first_steps(
    sweep: Sweep, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*overrides: str) -> str:
        # A first step that starts something, then half a second a step.
        clock = itertools.chain([0, 100], itertools.count(100.5, 0.5))
        monkeypatch.setattr(estimate, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
        assert sweep("sweep.name=s", "sweep.dry_run=true", *overrides) == 0
        return capsys.readouterr().out.splitlines()[-1]

    def about(num_steps: int) -> str:
        return f"about {num_steps / 2 / 60:.0f} min of training, by their first steps"

    # An epoch has 16 steps.
    epochs = "trainer.max_epochs=1,2,40"
    assert told(epochs) == f"3 jobs, 3 to do in outputs/sweeps/s: {about(43 * 16)}"
    assert sweep("sweep.name=s", "trainer.max_epochs=1,2") == 0
    assert told(epochs) == f"3 jobs, 1 to do in outputs/sweeps/s: {about(40 * 16)}"
    assert told("trainer.max_epochs=1,2") == "2 jobs, 0 to do in outputs/sweeps/s"
    others = ("sweep.name=t", "trainer.max_epochs=40")
    assert told(*others, "seed=0,1", "+trainer.max_steps=320").endswith(about(640))
    assert told(*others, "+trainer.accumulate_grad_batches=1,1000").endswith(about(2 * 40 * 16))
    assert told(*others, "seed=0,1", "trainer.max_time=00:00:02:00").endswith(about(2 * 240))


def test_dry_run_says_why_it_can_tell_no_time(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    for override, told in {
        "data=mnist": "no estimate, for the images have yet to be fetched",
        "trainer.max_epochs=-1": "no estimate, for only a callback ends a job (trainer.max_epochs=-1)",
    }.items():
        assert sweep("seed=0,1", "sweep.dry_run=true", override, "data.root=data") == 0
        assert capsys.readouterr().out.splitlines()[-1].endswith(f": {told}")
    assert not Path("data").exists()


def test_dry_run_refuses_images_that_the_sweep_would(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    for override, told in {
        "data.source_dir=nowhere": "train-images-idx3-ubyte is missing; data.source_dir must hold",
        "data.val_size=3000,500": "error: data.val_size=3000: must be below the 2000 training images (job",
        "trainer.limit_test_batches=0.05,1.0": "leaves no batch of 1 to test",
    }.items():
        for dry_run in ("true", "false"):
            assert sweep("seed=0,1", override, f"sweep.dry_run={dry_run}") == 2
            assert told in capsys.readouterr().err
            assert not Path("outputs").exists()


def test_all_jobs_are_checked_before_images_are_fetched(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    not_there = ("data=mnist", "data.root=nowhere", "data.fetch_from=[]")
    assert sweep("optimizer.lr=0.1,-1", *not_there) == 2
    assert capsys.readouterr().err.startswith("error: optimizer.lr=-1: ")
    assert sweep("optimizer.lr=0.1,0.2", *not_there) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: MNIST is not in nowhere/MNIST/raw")
    assert err.endswith(" (job lr=0.1)\n")


def test_hydras_own_sweeper_is_one_of_grids(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert sweep("seed=0,1", "sweep.name=s", "hydra/sweeper=basic") == 0
    assert capsys.readouterr().out.count("val/acc 0.") == 2


def test_dry_run_keeps_no_network(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []

    def describe(self: Preflight, jobs: Sequence[ledger.Job]) -> str:
        kept.append(sum(type(thing) in (Trainer, Classifier) for thing in gc.get_objects()))
        return ""

    monkeypatch.setattr(Preflight, "describe", describe)
    gc.disable()
    try:
        assert sweep("optimizer.lr=0.1,0.2,0.3", "sweep.dry_run=true") == 0
    finally:
        gc.enable()
    assert kept == [0]


def test_dry_run_refuses_a_job_whose_first_steps_fail(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "class Odd(nn.Linear):\n"
        "    def forward(self, images):\n"
        "        if self.training:\n"
        "            raise MemoryError('too large')\n"
        "        return super().forward(images.flatten(1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = ["~model", "+model={_target_:mine.Odd,in_features:784,out_features:10}"]
    assert sweep("seed=0,1", "sweep.dry_run=true", *model) == 2
    told = "error: its first steps fail: MemoryError: too large (job seed=0)\n"
    assert capsys.readouterr().err == told


def test_dry_run_lists_the_jobs_and_trains_none(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("optimizer.lr=0.1,0.03", "seed=0,1", "sweep.dry_run=true") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "to do  lr=0.1,seed=0"
    assert lines[-1].startswith("4 jobs, 4 to do in outputs/sweeps/lr,seed: about ")
    assert not Path("outputs").exists()


def test_experiments_can_be_swept(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("experiment=tuned,blog", "trainer.max_epochs=1") == 0
    assert list(results("outputs/sweeps/experiment")) == ["experiment=blog", "experiment=tuned"]
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2 + 7  # a line a job, and their scores
    assert captured.err.startswith("note: no job has validation images, so nothing will rank them; data.val_size=5000")


def test_a_job_is_not_resumed_apart_from_its_sweep(sweep: Sweep, main: Main) -> None:
    assert sweep("optimizer.lr=0.1,0.2") == 0
    before = results("outputs/sweeps/lr")
    outcome = main("resume=outputs/sweeps/lr/lr=0.1", "trainer.max_epochs=3")
    assert outcome.code == 2
    assert outcome.err == (
        "error: resume=outputs/sweeps/lr/lr=0.1: a job of a sweep, whose own command goes on with it\n"
    )
    assert results("outputs/sweeps/lr") == before


def test_two_copies_at_once_share_the_jobs(tmp_path: Path) -> None:
    arguments = (*QUICK, "optimizer.lr=0.1,0.03", "seed=0,1")
    alone, shared = (tmp_path / "outputs" / "sweeps" / name for name in ("alone", "shared"))
    assert exit_code(in_child(*arguments, "sweep.name=alone", folder=tmp_path)) == 0
    processes = [in_child(*arguments, "sweep.name=shared", folder=tmp_path) for _ in range(2)]
    assert [exit_code(process) for process in processes] == [0, 0]
    assert_same_sweep(alone, shared)
    for run_dir in shared.glob("lr*"):
        assert len(list(run_dir.glob("events.out.tfevents.*"))) == 1


def test_a_trainer_that_cannot_be_built_is_refused_before_the_first_job(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("trainer.strategy=auto,nonsense") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: trainer: You selected an invalid strategy name: `strategy='nonsense'`")
    assert error.endswith("(job strategy=nonsense)\n")
    assert error.count("\n") == 1
    assert not results("outputs/sweeps/strategy")
    assert sweep("trainer.devices=1,2", "trainer.accelerator=cpu") == 2
    assert "a multirun trains on one device per job" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "run_dir=elsewhere",
            "run_dir=elsewhere: each job has a folder of its own below hydra.sweep.dir",
        ),
        ("sweep.name=", "sweep.name='': must be the name of a folder; leave it out for the default"),
        ("sweep.name=../a", "sweep.name='../a': must be the name of a folder; leave it out for the default"),
        ("sweep.name=..", "sweep.name='..': must be the name of a folder; leave it out for the default"),
        ("hydra.sweep.subdir=${hydra.job.num}", "hydra.sweep.subdir=${hydra.job.num}: a job's folder is named by"),
    ],
)
def test_folders_of_jobs_keep_their_names(
    override: str, told: str, sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("seed=0,1", override) == 2
    assert capsys.readouterr().err.startswith(f"error: {told}")
    assert not Path("outputs").exists()


def test_what_a_sweeps_own_file_fixes_is_not_mixed(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    for momentum, code in (("0.9", 0), ("0.5", 2)):
        fixed = f"+hydra.sweeper.params={{optimizer.momentum:{momentum}}}"
        assert sweep("seed=0,1", "trainer.max_epochs=1", "sweep.name=s", fixed) == code
    assert "have optimizer.momentum=0.9, not 0.5" in capsys.readouterr().err


def test_jobs_of_another_configuration_say_so(main: Main) -> None:
    assert main("data=sample", "trainer.max_epochs=1", "hydra.run.dir=base").code == 0
    base = ("--config-dir", "base", "--config-name", "config")
    assert main("-m", *base, "optimizer.lr=0.1,0.2", "sweep.name=s").code == 0
    for result in results("outputs/sweeps/s").values():
        assert result["overrides"][:2] == [f"--config-dir={Path('base').absolute()}", "--config-name=config"]


def test_runs_that_differ_in_their_seed_are_of_one_setting(sweep: Sweep) -> None:
    assert sweep("optimizer.lr=0.1,0.2", "seed=0,1", "data.split_seed=${seed}", "sweep.name=s") == 0
    found = results("outputs/sweeps/s")
    hashes = {name: result["setting_hash"] for name, result in found.items()}
    assert hashes["lr=0.1,seed=0"] == hashes["lr=0.1,seed=1"] != hashes["lr=0.2,seed=0"] == hashes["lr=0.2,seed=1"]
    assert len({result["config_hash"] for result in found.values()}) == 4
