"""What `resume=` takes, refuses, names and records."""

import shutil
import signal
import time
from pathlib import Path

import pytest
from conftest import Main, read_checkpoint, read_result
from made_processes import exit_code, in_child
from made_resumes import SETTINGS

pytestmark = pytest.mark.usefixtures("ctrl_c")
WITHOUT_SCHEDULE = [setting for setting in SETTINGS if "scheduler" not in setting]


def test_a_finished_run_goes_on_for_more_epochs(main: Main, tmp_path: Path) -> None:
    assert main(*WITHOUT_SCHEDULE, "trainer.max_epochs=3", "hydra.run.dir=whole").code == 0
    assert main(*WITHOUT_SCHEDULE, "trainer.max_epochs=1", "hydra.run.dir=longer").code == 0
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "longer").rglob("*") if path.name != "train.log"}
    again = main("resume=longer")
    assert again.code == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert "nothing is left to train; to go on for longer, add trainer.max_epochs=N, above 1" in again.out + again.err
    longer = main("resume=longer", "trainer.max_epochs=3")
    assert longer.code == 0
    assert "nothing is left" not in longer.out + longer.err
    assert "goes on after step " in longer.out + longer.err
    assert "goes on after step " not in again.out + again.err
    whole, run = (read_result(tmp_path / name) for name in ("whole", "longer"))
    for key in ("metrics", "history", "config_hash", "best_epoch", "overrides"):
        assert run[key] == whole[key]
    assert "max_epochs: 3" in (tmp_path / "longer" / "config.yaml").read_text(encoding="utf-8")


def test_a_finished_run_is_tested_if_it_was_not(main: Main, tmp_path: Path) -> None:
    assert main(*WITHOUT_SCHEDULE, "trainer.max_epochs=1", "test=false", "hydra.run.dir=run").code == 0
    assert "test/acc" not in read_result(tmp_path / "run")["metrics"]
    assert main("resume=run", "test=true").code == 0
    assert "test/acc" in read_result(tmp_path / "run")["metrics"]


def test_a_finished_run_whose_length_is_fixed_is_not_told_to_go_on(main: Main, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    done = main("resume=run")
    assert done.code == 0
    assert "nothing is left to train\n" in done.out + done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume=nowhere"], "resume=nowhere: holds no run; name the folder of one, such as outputs/train/DATE/TIME"),
        (
            ["resume=run/checkpoints/last.ckpt"],
            "resume=run/checkpoints/last.ckpt: holds no run; name the folder of one, such as run\n",
        ),
        (["resume=run", "optimizer.lr=1"], "optimizer.lr=1: a resumed run keeps its settings, but for trainer.max_ep"),
        (["resume=run", "optimizer=adam"], "optimizer=adam: a resumed run keeps its settings"),
        (
            ["resume=run", "trainer.max_epochs=9"],
            "trainer.max_epochs=9: this run's scheduler was laid out for 3",
        ),
        (["resume=run", "trainer.max_epochs=-7"], "trainer.max_epochs=-7"),
        (["-m", "resume=run", "seed=1,2"], "resume=run: a multirun goes on by itself"),
    ],
)
def test_what_cannot_be_resumed_is_refused(
    arguments: list[str], message: str, main: Main, whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").symlink_to(whole)
    before = {path.name: path.stat().st_mtime_ns for path in whole.iterdir() if path.name not in (".lock", "train.log")}
    outcome = main(*arguments)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {message}")
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "nowhere").exists()
    after = {path.name: path.stat().st_mtime_ns for path in whole.iterdir() if path.name not in (".lock", "train.log")}
    assert after == before


def test_what_cannot_go_on_leaves_the_record_of_the_run(main: Main, tmp_path: Path) -> None:
    assert main(*WITHOUT_SCHEDULE, "hydra.run.dir=run").code == 0
    folder = tmp_path / "run"
    before = [(folder / name).read_bytes() for name in ("result.json", "config.yaml")]
    outcome = main("resume=run", "trainer.max_epochs=2")
    assert (outcome.code, outcome.err) == (2, "error: trainer.max_epochs=2: the run is in its epoch 3 already\n")
    last = folder / "checkpoints" / "last.ckpt"
    whole_last = last.read_bytes()
    last.write_bytes(whole_last[:1000])
    outcome = main("resume=run")
    assert outcome.code == 2
    assert outcome.err == f"error: {last}: damaged; start a new run\n"
    last.write_bytes(whole_last)
    (last.parent / "best.ckpt").write_bytes(b"")
    outcome = main("resume=run", "trainer.max_epochs=4")
    assert outcome.code == 2
    assert outcome.err.endswith("best.ckpt: damaged; start a new run\n")
    (last.parent / "best.ckpt").unlink()
    told = main("resume=run", "trainer.max_epochs=4").err.replace(f"{tmp_path}/", "")
    assert told == "error: run/checkpoints/best.ckpt: missing; put it back, or start a new run\n"
    assert [(folder / name).read_bytes() for name in ("result.json", "config.yaml")] == before
    (folder / "result.json").unlink()  # as if it had been killed
    told = main("resume=run", "trainer.max_epochs=4").err.replace(f"{tmp_path}/", "")
    way_out = "put it back, or remove run/checkpoints/last.ckpt to start the run anew"
    assert told == f"error: run/checkpoints/best.ckpt: missing; {way_out}\n"
    last.write_bytes(b"")
    damaged = f"error: {last}: damaged; remove it to start the run anew"
    assert main("resume=run").err == f"{damaged}\n"
    last.unlink()
    last.mkdir()
    assert main("resume=run").err.startswith(f"{damaged}: IsADirectoryError: ")


def test_no_result_stays_beside_the_checkpoints_of_another_attempt(main: Main, tmp_path: Path) -> None:
    assert main(*WITHOUT_SCHEDULE, "trainer.max_epochs=1", "hydra.run.dir=run").code == 0
    killed = in_child("resume=run", "trainer.max_epochs=3", folder=tmp_path, step=40, number=signal.SIGKILL)
    assert exit_code(killed) == -signal.SIGKILL
    assert not (tmp_path / "run" / "result.json").exists()
    assert main("resume=run").code == 0
    assert read_result(tmp_path / "run")["best_epoch"] <= 3
    assert read_checkpoint(tmp_path / "run", "last")["epoch"] == 2


def test_the_newest_run_is_named_where_there_is_none(main: Main, tmp_path: Path) -> None:
    for module, word in (("train", "resume=nowhere"), ("evaluate", "ckpt=nowhere")):
        assert "outputs/train/DATE/TIME" in main(word, module=module).err
    for _ in range(2):
        assert main("debug=fast", "callbacks.pictures=null").code == 0
    newest = max(tmp_path.glob("outputs/train/*/*"), key=lambda path: path.stat().st_mtime).relative_to(tmp_path)
    for module, word in (("train", "resume=nowhere"), ("evaluate", "ckpt=nowhere")):
        assert str(newest) in main(word, module=module).err


def test_a_resumed_run_stays_in_its_folder(main: Main, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    outcome = main("resume=run", "hydra.run.dir=elsewhere")
    assert outcome.code == 2
    assert "elsewhere: a resumed run stays in its folder; leave it out" in outcome.err
    assert not (tmp_path / "elsewhere").exists()


def test_a_finished_run_without_its_last_checkpoint_is_left_alone(main: Main, tmp_path: Path) -> None:
    assert main(*WITHOUT_SCHEDULE, "trainer.max_epochs=1", "callbacks.last=null", "hydra.run.dir=run").code == 0
    best = (tmp_path / "run" / "checkpoints" / "best.ckpt").read_bytes()
    outcome = main("resume=run", "trainer.max_epochs=2")
    assert outcome.code == 2
    assert "run: finished, and has no checkpoints/last.ckpt to go on from; start a new run" in outcome.err
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").read_bytes() == best


def test_a_resumed_run_can_be_repeated_from_its_config(main: Main, tmp_path: Path) -> None:
    assert main(*WITHOUT_SCHEDULE, "trainer.max_epochs=1", "hydra.run.dir=run").code == 0
    assert main("resume=run", "trainer.max_epochs=2").code == 0
    assert main("--config-dir", "run", "--config-name", "config", "hydra.run.dir=again").code == 0
    assert read_result(tmp_path / "again")["metrics"] == read_result(tmp_path / "run")["metrics"]


def test_a_part_that_was_taken_out_and_put_back_is_recorded_so(main: Main, tmp_path: Path) -> None:
    words = ["debug=fast", "~optimizer", "+optimizer={_target_:torch.optim.RMSprop,_partial_:true,lr:0.001}"]
    assert main(*words, "hydra.run.dir=run").code == 0
    assert main("resume=run", "trainer.max_epochs=2").code == 0
    assert read_result(tmp_path / "run")["overrides"] == [*words, "trainer.max_epochs=2"]


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path, main: Main) -> None:
    folder = tmp_path / "run"
    arguments = (*SETTINGS, "trainer.max_epochs=1000", f"hydra.run.dir='{folder}'")
    process = in_child(*arguments, folder=tmp_path)
    try:
        while not (folder / "config.yaml").exists():
            assert process.is_alive()
            time.sleep(0.05)
        outcome = main(f"resume={folder}")
    finally:
        process.kill()
        assert exit_code(process) == -signal.SIGKILL
    assert outcome.code == 2
    assert outcome.err == f"error: {folder}: another process is at work there; wait for it, or end it first\n"


def test_checkpoints_that_share_a_name_are_told_apart(main: Main, tmp_path: Path) -> None:
    by_loss = "{_target_:mnist_lit.callbacks.checkpoint.MovableCheckpoint,monitor:val/loss,filename:best}"
    folders = ("callbacks.checkpoint.dirpath=null", "+callbacks.mine.dirpath=run/by_loss")
    assert main("data=sample", "hydra.run.dir=run", f"+callbacks.mine={by_loss}", *folders).code == 0
    found = read_checkpoint(tmp_path / "run", "last")["callbacks"].values()
    scores = {Path(path): state["best_model_score"] for state in found if (path := state.get("best_model_path"))}
    history = read_result(tmp_path / "run")["history"]  # which gets better from epoch to epoch
    for folder, tag in {"checkpoints": "val/acc", "by_loss": "val/loss"}.items():
        assert scores[tmp_path / "run" / folder / "best.ckpt"] == pytest.approx(history[tag][-1][1])
    (tmp_path / "run" / "checkpoints" / "best.ckpt").write_bytes(b"")
    outcome = main("resume=run", "trainer.max_epochs=4")
    assert outcome.code == 2
    assert outcome.err.endswith("best.ckpt: damaged; start a new run\n")
