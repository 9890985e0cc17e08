"""Runs that are cut off and go on end in the same bits as runs that never were."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import Main, read_checkpoint, read_result
from made_processes import exit_code, in_child
from made_resumes import SETTINGS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.usefixtures("ctrl_c")


def resume(folder: Path) -> int:
    return exit_code(in_child(f"resume={folder}", folder=folder))


def cut_off(folder: Path, step: int, number: int) -> int:
    arguments = (*SETTINGS, f"hydra.run.dir='{folder}'")
    return exit_code(in_child(*arguments, folder=folder.parent, step=step, number=number))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.startswith("hp")
    }


def assert_same(folder: Path, whole: Path) -> None:
    one, other = read_result(folder), read_result(whole)
    for key in ("status", "config_hash", "overrides", "metrics", "best_epoch", "history"):
        assert one[key] == other[key], key
    for name in ("best", "last"):
        mine, theirs = read_checkpoint(folder, name), read_checkpoint(whole, name)
        assert mine["global_step"] == theirs["global_step"]
        torch.testing.assert_close(mine["progress"]["history"], theirs["progress"]["history"], rtol=0, atol=0)
        assert torch.equal(mine["progress"]["rng_state"], theirs["progress"]["rng_state"])
        for key, tensor in theirs["state_dict"].items():
            assert torch.equal(mine["state_dict"][key], tensor), key
        torch.testing.assert_close(mine["optimizer_states"], theirs["optimizer_states"], rtol=0, atol=0)
        assert mine["lr_schedulers"] == theirs["lr_schedulers"]
        ours, others = (
            [state.get("current_score") for state in checkpoint["callbacks"].values()] for checkpoint in (mine, theirs)
        )
        assert ours == others
    assert scalars(folder) == scalars(whole)


@pytest.mark.parametrize(
    ("step", "number"),
    [
        (1, signal.SIGINT),
        (7, signal.SIGTERM),
        (15, signal.SIGINT),
        (16, signal.SIGTERM),
        (17, signal.SIGINT),
        (48, signal.SIGTERM),
    ],
)
def test_a_signal_stops_after_the_step_and_the_run_goes_on_from_there(
    step: int, number: signal.Signals, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert cut_off(folder, step, number) == 128 + number
    assert read_result(folder)["status"] == "interrupted"
    assert read_checkpoint(folder, "last")["global_step"] == step
    assert resume(folder) == 0
    assert_same(folder, whole)


def test_weights_of_double_precision_are_not_rounded(tmp_path: Path) -> None:
    settings = (*SETTINGS, "trainer.precision=64-true")
    assert exit_code(in_child(*settings, f"hydra.run.dir='{tmp_path}/whole'", folder=tmp_path)) == 0
    cut = in_child(*settings, f"hydra.run.dir='{tmp_path}/run'", folder=tmp_path, step=17, number=signal.SIGINT)
    assert exit_code(cut) == 130
    assert resume(tmp_path / "run") == 0
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("step", [17, 48])
def test_killed_a_run_goes_on_from_its_last_epoch(step: int, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert cut_off(folder, step, signal.SIGKILL) == -signal.SIGKILL
    assert not (folder / "result.json").exists()
    assert read_checkpoint(folder, "last")["global_step"] == (step - 1) // 16 * 16
    assert resume(folder) == 0
    assert_same(folder, whole)


def test_a_limit_of_steps_and_steps_of_several_batches_change_nothing(tmp_path: Path) -> None:
    """The first half of the run makes a step of each batch, the second of two."""
    accumulation = "_target_:lightning.pytorch.callbacks.GradientAccumulationScheduler,scheduling:{1:2}"
    settings = (*SETTINGS, "+trainer.max_steps=1000", f"+callbacks.accumulation={{{accumulation}}}")
    assert exit_code(in_child(*settings, f"hydra.run.dir='{tmp_path}/whole'", folder=tmp_path)) == 0
    folder = tmp_path / "run"
    cut = in_child(*settings, f"hydra.run.dir='{folder}'", folder=tmp_path, step=17, number=signal.SIGKILL)
    assert exit_code(cut) == -signal.SIGKILL
    assert exit_code(in_child(f"resume={folder}", folder=tmp_path, step=20, number=signal.SIGTERM)) == 143
    assert resume(folder) == 0
    assert_same(folder, tmp_path / "whole")


def test_killed_before_its_first_checkpoint_a_run_starts_anew(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert cut_off(folder, 5, signal.SIGKILL) == -signal.SIGKILL
    assert resume(folder) == 0
    assert_same(folder, whole)


def test_cut_off_twice_a_run_still_ends_in_the_same_bits(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lr=1,of a sweep"  # Hydra's own characters
    assert cut_off(folder, 7, signal.SIGTERM) == 143
    assert exit_code(in_child(f"resume={folder}", folder=tmp_path, step=12, number=signal.SIGINT)) == 130
    assert read_checkpoint(folder, "last")["global_step"] == 12
    assert resume(folder) == 0
    assert_same(folder, whole)


def test_a_run_whose_folder_was_moved_knows_its_best_again(whole: Path, tmp_path: Path) -> None:
    assert cut_off(tmp_path / "before", 33, signal.SIGINT) == 130
    folder = (tmp_path / "before").rename(tmp_path / "after")
    assert resume(folder) == 0
    assert_same(folder, whole)
    states = read_checkpoint(folder, "last")["callbacks"]
    (state,) = (state for name, state in states.items() if state.get("monitor") == "val/acc")
    assert state["best_model_path"] == str(folder / "checkpoints" / "best.ckpt")
    assert list(state["best_k_models"]) == [state["best_model_path"]]


def test_a_run_that_had_stopped_early_stays_stopped(main: Main, tmp_path: Path) -> None:
    stopping = ("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer.lr=1e-12")
    command = ("data=sample", *stopping, "trainer.max_epochs=9", "callbacks.pictures=null", "hydra.run.dir=run")
    assert main(*command).code == 0
    before = read_result(tmp_path / "run")
    assert len(before["history"]["val/acc"]) == 2
    (tmp_path / "run" / "result.json").unlink()  # as after a kill while it was tested
    assert main("resume=run").code == 0
    after = read_result(tmp_path / "run")
    for key in ("metrics", "history", "best_epoch", "status"):
        assert after[key] == before[key]


def test_a_step_of_several_batches_is_not_cut_in_two(tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    settings = (*SETTINGS, "trainer.max_epochs=1", "+trainer.accumulate_grad_batches=2")
    assert exit_code(in_child(*settings, f"hydra.run.dir='{whole}'", folder=tmp_path)) == 0
    assert exit_code(in_child(*settings, f"hydra.run.dir='{folder}'", folder=tmp_path, step=3)) == 143
    assert resume(folder) == 0
    assert_same(folder, whole)


def test_the_rows_of_a_table_go_on(tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    settings = (*SETTINGS, "logger=csv")
    assert exit_code(in_child(*settings, f"hydra.run.dir='{whole}'", folder=tmp_path)) == 0
    killed = in_child(*settings, f"hydra.run.dir='{folder}'", folder=tmp_path, step=40, number=signal.SIGKILL)
    assert exit_code(killed) == -signal.SIGKILL
    with (folder / "csv" / "metrics.csv").open("a", encoding="utf-8") as file:
        file.write("0.1")  # of a row
    assert resume(folder) == 0
    table, expected = ((path / "csv" / "metrics.csv").read_text(encoding="utf-8") for path in (folder, whole))
    assert table == expected
    assert resume(folder) == 0  # which only tests again
    assert (folder / "csv" / "metrics.csv").read_text(encoding="utf-8") == expected


def test_a_run_killed_between_its_test_and_its_result_has_no_point_twice(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "result.json").rename(folder / ".result.json.123.part")  # which is written before it is moved
    (folder / "checkpoints" / ".last.ckpt.123.part").touch()
    (users := folder / ".mine.tar.7").touch()
    assert resume(folder) == 0
    assert_same(folder, whole)
    assert not list(folder.rglob("*.part"))
    assert users.exists()


@pytest.mark.parametrize("name", ["{epoch}-{step}", "{epoch}-{val/acc:.3f}"])
def test_a_best_checkpoint_with_numbers_in_its_name_is_found_or_made_again(name: str, tmp_path: Path) -> None:
    settings = (
        "data=sample",
        "trainer.max_epochs=2",
        "+trainer.val_check_interval=5",
        "optimizer.lr=0.3",
        f"callbacks.checkpoint.filename='{name}'",
        "callbacks.checkpoint.auto_insert_metric_name=true",
        "callbacks.pictures=null",
    )
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert exit_code(in_child(*settings, f"hydra.run.dir='{whole}'", folder=tmp_path)) == 0
    killed = in_child(*settings, f"hydra.run.dir='{folder}'", folder=tmp_path, step=30, number=signal.SIGKILL)
    assert exit_code(killed) == -signal.SIGKILL
    assert resume(folder) == 0
    assert read_result(folder)["metrics"] == read_result(whole)["metrics"]
    names, expected = (sorted(str(path.relative_to(run)) for path in run.rglob("*.ckpt")) for run in (folder, whole))
    assert names == expected
    (folder / "checkpoints" / "last.ckpt").unlink()
    (folder / "result.json").unlink()
    assert resume(folder) == 0  # from the beginning, all of its own removed
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.ckpt")) == expected


def test_a_signal_is_heard_though_every_step_is_validated(tmp_path: Path) -> None:
    settings = ("data=sample", "trainer.max_epochs=1", "+trainer.val_check_interval=1", "callbacks.pictures=null")
    cut = in_child(*settings, "hydra.run.dir=run", folder=tmp_path, step=4, number=signal.SIGTERM)
    assert exit_code(cut) == 143
    assert read_checkpoint(tmp_path / "run", "last")["global_step"] == 5


def test_what_is_due_at_the_step_comes_before_the_end(tmp_path: Path) -> None:
    settings = (
        "data=sample",
        "trainer.max_epochs=2",
        "+trainer.val_check_interval=5",
        "+callbacks.steps={_target_:lightning.pytorch.callbacks.ModelCheckpoint,monitor:null,save_top_k:-1}",
        "+callbacks.steps.every_n_train_steps=4",
        "+callbacks.steps.dirpath=${run_dir}/steps",
        "+callbacks.steps.filename='{step}'",
        "callbacks.pictures=null",
    )
    whole = tmp_path / "whole"
    assert exit_code(in_child(*settings, f"hydra.run.dir='{whole}'", folder=tmp_path)) == 0
    for step in (8, 10):  # a checkpoint of its own; a validation
        folder = tmp_path / f"run{step}"
        cut = in_child(*settings, f"hydra.run.dir='{folder}'", folder=tmp_path, step=step, number=signal.SIGINT)
        assert exit_code(cut) == 130
        assert read_checkpoint(folder, "last")["global_step"] == (11 if step == 10 else step)
        assert resume(folder) == 0
        one, other = read_result(folder), read_result(whole)
        assert one["history"] == other["history"]
        assert one["metrics"] == other["metrics"]
        assert scalars(folder) == scalars(whole)
        names, expected = (sorted(path.name for path in (run / "steps").iterdir()) for run in (folder, whole))
        assert names == expected


def test_a_schedule_that_goes_by_a_metric_goes_on(tmp_path: Path) -> None:
    never_enough = ("scheduler.scheduler.patience=0", "+scheduler.scheduler.threshold=1e9")
    settings = (*SETTINGS, "scheduler=plateau", *never_enough)
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert exit_code(in_child(*settings, f"hydra.run.dir='{whole}'", folder=tmp_path)) == 0
    killed = in_child(*settings, f"hydra.run.dir='{folder}'", folder=tmp_path, step=40, number=signal.SIGKILL)
    assert exit_code(killed) == -signal.SIGKILL
    assert resume(folder) == 0
    assert_same(folder, whole)
    assert read_checkpoint(folder, "last")["progress"]["plateau"]["last_epoch"] == 3
